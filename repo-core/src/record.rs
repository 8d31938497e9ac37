//! Records: small sealed objects under the structure key (docs/format.md §9 to §11).
//!
//! ```text
//! header (16) ‖ salt (32) ‖ sealed length (4) ‖ sealed record
//! ```
//!
//! The name is the BLAKE3 of all bytes, so that a record is known to be whole before any key is used.

use zerocopy::IntoBytes;

use crate::error::{Error, ErrorKind, Result};
use crate::keys::{Role, derive};
use crate::object::{ObjectHeader, ObjectKind, split, split_len};
use crate::repository::Repository;
use crate::seal::{Aead, NONCE_ZERO, TAG_LEN};

const SALT_LEN: usize = 32;

/// A kind of record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordKind {
    /// The kind in the header.
    pub(crate) object: ObjectKind,
    /// The context its keys are derived in.
    pub(crate) key_context: &'static str,
    /// The largest object a reader takes, in bytes.
    pub(crate) len_max: u64,
}

impl RecordKind {
    /// Seals a record: the object's name and its bytes.
    ///
    /// # Errors
    /// `Forbidden` without the structure key; `Invalid` when it is too large; `Io` without randomness.
    pub(crate) fn seal(&self, repository: &Repository, mut record: Vec<u8>) -> Result<([u8; 32], Vec<u8>)> {
        let salt: [u8; SALT_LEN] = repository.entropy.bytes()?;
        let too_large = |len: usize| Error::invalid(format!("a record of {len} bytes is too large"));
        let len = u32::try_from(record.len() + TAG_LEN).map_err(|_| too_large(record.len()))?;
        let mut object = ObjectHeader::new(self.object).as_bytes().to_vec();
        object.extend_from_slice(&salt);
        object.extend_from_slice(&len.to_le_bytes());
        self.sealer(repository, &salt)?.seal(&NONCE_ZERO, &context(repository, &object), &mut record);
        object.extend_from_slice(&record);
        if object.len() as u64 > self.len_max {
            return Err(too_large(object.len()));
        }
        Ok((*blake3::hash(&object).as_bytes(), object))
    }

    /// Opens the object named `id`.
    ///
    /// # Errors
    /// `Corrupt` when the bytes do not match the name or are no record of this kind; `Unsupported` when they need a
    /// newer reader; `Unauthenticated` when another key sealed them.
    pub(crate) fn open(&self, repository: &Repository, id: &[u8; 32], object: &[u8]) -> Result<Vec<u8>> {
        if blake3::hash(object).as_bytes() != id {
            return Err(Error::corrupt("the record's bytes do not match its name"));
        }
        let rest = ObjectHeader::check(object, self.object)?;
        let (salt, rest) = split(rest, SALT_LEN, "salt of the record")?;
        let (len, sealed) = split_len(rest, "record")?;
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
