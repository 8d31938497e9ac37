//! Leases: who is at work in a repository (docs/format.md §11, docs/concurrency.md).
//!
//! Whoever relies on packs staying where they are, to read them or to name them in a snapshot, first puts a lease, then
//! looks at tombstones, packs and snapshots, and takes the lease away when it is done. Garbage collection condemns packs
//! first, then looks at the leases, and deletes only once all leases it saw then are gone. So whoever overlooked a tombstone is
//! waited for, and whoever is not waited for has seen it.

use std::fs::File;
use std::sync::Arc;

use minicbor::{Decode, Encode};

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::id::LeaseId;
use crate::object::ObjectKind;
use crate::record::RecordKind;
use crate::repository::Repository;
use crate::store::ObjectName;

const RECORD: RecordKind =
    RecordKind { object: ObjectKind::Lease, key_context: "cairn v1 lease key", len_max: 64 * 1024 };

/// What a lease says of its holder. For people; and by the operation, one garbage collection sees another.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LeaseInfo {
    /// What the holder does.
    #[n(0)]
    pub operation: String,
    /// Its process number, on its own machine.
    #[n(1)]
    pub process: u32,
}

impl LeaseInfo {
    /// The record's CBOR.
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("writing CBOR into memory cannot fail")
    }

    /// Reads a record's CBOR.
    ///
    /// # Errors
    /// `Corrupt` when it is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        minicbor::decode(bytes).map_err(|error| Error::with_source(ErrorKind::Corrupt, "lease is malformed", error))
    }
}

/// A lease of this process; taken away when dropped.
pub struct Lease {
    repository: Arc<Repository>,
    held: Option<(LeaseId, File)>,
}

impl Lease {
    /// Puts a lease.
    ///
    /// # Errors
    /// `Forbidden` without the structure key; `Io` when the repository cannot be written.
    pub fn put(repository: Arc<Repository>, operation: &str) -> Result<Self> {
        let info = LeaseInfo { operation: operation.to_owned(), process: std::process::id() };
        let (id, object) = RECORD.seal(&repository, info.encode())?;
        let id = LeaseId(id);
        let file = repository.store.put_held(ObjectName::Lease(id), &object)?;
        Ok(Self { repository, held: Some((id, file)) })
    }

    /// Puts a lease, or does without where the repository cannot be written: a reader of a read-only medium is not
    /// in danger, and a reader elsewhere only of a clear error.
    ///
    /// # Errors
    /// `Forbidden` without the structure key.
    pub fn put_if_writable(repository: Arc<Repository>, operation: &str) -> Result<Self> {
        match Self::put(repository.clone(), operation) {
            Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::NotFound) => {
                Ok(Self { repository, held: None })
            }
            put => put,
        }
    }

    /// The lease's name; none when the repository cannot be written.
    pub fn id(&self) -> Option<LeaseId> {
        self.held.as_ref().map(|(id, _)| *id)
    }

    /// Fails when somebody took the lease away: what was found in the repository may be gone.
    ///
    /// # Errors
    /// `Locked` when the lease is gone; `Unavailable`.
    pub fn check(&self) -> Result<()> {
        let Some((id, _)) = &self.held else { return Ok(()) };
        match self.repository.store.len(ObjectName::Lease(*id)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let text = "another process took this one for dead and removed its lease: run it again";
                Err(Error::with_source(ErrorKind::Locked, text, error))
            }
            found => found.map(drop),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((id, _)) = &self.held {
            // One that stays is found to be dead by whoever looks next: its file is no longer locked.
            let _ = self.repository.store.delete(ObjectName::Lease(*id));
        }
    }
}

/// What a lease says of its holder.
///
/// # Errors
/// `NotFound` when it is gone; `Corrupt`, `Unavailable`.
pub fn read(repository: &Repository, id: LeaseId) -> Result<LeaseInfo> {
    let object = repository.store.get(ObjectName::Lease(id), RECORD.len_max)?;
    let record = RECORD.open(repository, &id.0, &object).context(|| format!("lease {}", id.short()))?;
    LeaseInfo::decode(&record)
}

/// The leases whose holders may be at work. Those that processes left behind when they died are deleted.
///
/// # Errors
/// `Unavailable`, `Io`.
pub fn living(repository: &Repository) -> Result<Vec<LeaseId>> {
    let mut living = Vec::new();
    for listed in repository.store.list_leases()? {
        let name = ObjectName::Lease(listed.id);
        if repository.store.is_held(name)? {
            living.push(listed.id);
        } else {
            match repository.store.delete(name) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(living)
}
