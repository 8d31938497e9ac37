//! Sealed records: small objects that hold one CBOR map under the structure key (docs/format.md §9).
//!
//! `header (16) ‖ salt (32) ‖ sealed length (4) ‖ sealed record`. Snapshot records, leases and tombstones are all of this
//! form, and differ in their kind and in what their keys are derived for.

use zerocopy::IntoBytes;

use crate::error::{Error, ErrorKind, Result};
use crate::keys::{Role, derive};
use crate::object::{ObjectHeader, ObjectKind, split, split_len};
use crate::repository::Repository;
use crate::seal::{Aead, NONCE_ZERO, TAG_LEN};

const SALT_LEN: usize = 32;

/// One kind of sealed record.
#[derive(Debug, Clone, Copy)]
pub struct RecordKind {
    /// What the object's header says.
    pub object: ObjectKind,
    /// What the key is derived for.
    pub key_context: &'static str,
    /// What people call it.
    pub name: &'static str,
    /// The largest object a reader takes, in bytes.
    pub len_max: u64,
}

impl RecordKind {
    /// The bytes of an object that holds `plain`.
    ///
    /// # Errors
    /// `Unauthenticated` without the structure key; `Invalid` when it would be too large.
    pub fn seal(&self, repository: &Repository, plain: Vec<u8>) -> Result<Vec<u8>> {
        let salt: [u8; SALT_LEN] = repository.entropy.bytes()?;
        let too_large = |len: usize| Error::invalid(format!("{} of {len} bytes is too large", self.name));
        let mut sealed = plain;
        let len = u32::try_from(sealed.len() + TAG_LEN).map_err(|_| too_large(sealed.len()))?;
        let mut object = ObjectHeader::new(self.object).as_bytes().to_vec();
        object.extend_from_slice(&salt);
        object.extend_from_slice(&len.to_le_bytes());
        self.sealer(repository, &salt)?.seal(&NONCE_ZERO, &context(repository, &object), &mut sealed);
        object.extend_from_slice(&sealed);
        if object.len() as u64 > self.len_max {
            return Err(too_large(object.len()));
        }
        Ok(object)
    }

    /// What the object named `id` holds.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged, `Unauthenticated` when it was written with another key, `Unsupported`.
    pub fn open(&self, repository: &Repository, id: &[u8; 32], object: &[u8]) -> Result<Vec<u8>> {
        if blake3::hash(object).as_bytes() != id {
            return Err(Error::corrupt("the record's bytes do not match its name"));
        }
        let rest = ObjectHeader::check(object, self.object)?;
        let (salt, rest) = split(rest, SALT_LEN, "salt of the record")?;
        let (len, sealed) = split_len(rest, "the record")?;
        if len != sealed.len() {
            return Err(Error::corrupt(format!("sealed record has {} bytes instead of {len}", sealed.len())));
        }
        let context = context(repository, &object[..object.len() - sealed.len()]);
        let mut record = sealed.to_vec();
        self.sealer(repository, salt)?
            .open(&NONCE_ZERO, &context, &mut record)
            .map_err(|error| Error::with_source(ErrorKind::Unauthenticated, "written with another key", error))?;
        Ok(record)
    }

    fn sealer(&self, repository: &Repository, salt: &[u8]) -> Result<Box<dyn Aead>> {
        let key = derive(self.key_context, &[&repository.keys.get(Role::Structure)?[..], salt]);
        Ok(repository.config.suite.sealer(&key))
    }
}

fn context(repository: &Repository, before: &[u8]) -> Vec<u8> {
    [repository.config.id.as_bytes(), before].concat()
}

/// Reads ids that stand one after another.
///
/// # Errors
/// `Corrupt` when the last one is cut short.
pub(crate) fn ids<Id>(bytes: &[u8], id: impl Fn([u8; 32]) -> Id, what: &str) -> Result<Vec<Id>> {
    let (ids, rest) = bytes.as_chunks::<32>();
    if !rest.is_empty() {
        return Err(Error::corrupt(format!("list of {what} of {} bytes is cut short", bytes.len())));
    }
    Ok(ids.iter().map(|bytes| id(*bytes)).collect())
}
