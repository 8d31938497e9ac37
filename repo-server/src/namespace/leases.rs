//! Leases of clients beside those of processes on this machine (docs/concurrency.md).
//!
//! In a folder: a client renews its lease; a process on this machine keeps its own locked. So that either sees the other live, the
//! server locks the leases that its clients put for as long as they renew them, and gives those that others have locked
//! the present as their time. In an object store everybody renews, and nothing is locked.
//!
//! Whose lease it is stands in a small file for each in the server's own folder: it outlives the server.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use repo_core::error::ErrorKind;
use repo_core::id::LeaseId;
use repo_core::store::remote::LeaseTerms;
use repo_core::store::{ObjectName, Store};

use crate::namespace::Stored;
use crate::refusal::Refusal;
use crate::token::replace_private;

pub(super) struct Leases {
    /// A file for each lease, which has its owner's id in it.
    owners: PathBuf,
    held: Mutex<HashMap<LeaseId, Held>>,
}

struct Held {
    /// Id of the token that put it.
    owner: String,
    hold: Hold,
}

enum Hold {
    /// In a folder, as long as it is renewed.
    Locked { _file: File },
    /// In an object store.
    Renewed,
    /// Others may have taken it for dead.
    GivenUp,
}

impl Held {
    fn is_good(&self) -> bool {
        !matches!(self.hold, Hold::GivenUp)
    }
}

impl Leases {
    /// Takes up the leases that clients had put before the server ended.
    pub(super) fn open(store: &Store, owners: &Path) -> Result<Self, String> {
        let cannot = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", owners.display());
        fs::create_dir_all(owners).map_err(|error| cannot(&error))?;
        let mut held = HashMap::new();
        for entry in fs::read_dir(owners).map_err(|error| cannot(&error))? {
            let path = entry.map_err(|error| cannot(&error))?.path();
            let Some(id) = path.file_name().and_then(|name| LeaseId::from_hex(name.to_str()?).ok()) else { continue };
            let owner = || fs::read_to_string(&path).map_err(|error| cannot(&error));
            let Some(root) = store.root() else {
                // Whether it is still there is found out later.
                held.insert(id, Held { owner: owner()?, hold: Hold::Renewed });
                continue;
            };
            match File::options().read(true).write(true).open(root.join(ObjectName::Lease(id).path())) {
                Ok(file) => {
                    // Others hold it for the moment of their look.
                    file.lock().map_err(|error| cannot(&error))?;
                    held.insert(id, Held { owner: owner()?, hold: Hold::Locked { _file: file } });
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    fs::remove_file(&path).map_err(|error| cannot(&error))?;
                }
                Err(error) => return Err(cannot(&error)),
            }
        }
        Ok(Self { owners: owners.to_owned(), held: Mutex::new(held) })
    }

    /// Puts a lease. The owner is written down first: a lease without an owner could be taken away by nobody.
    pub(super) fn put(
        &self,
        id: LeaseId,
        token: &str,
        put: impl FnOnce() -> repo_core::Result<Option<File>>,
    ) -> Result<Stored, Refusal> {
        let mut held = self.held.lock();
        if held.contains_key(&id) {
            return Ok(Stored::Existed);
        }
        let path = self.owners.join(id.to_hex());
        replace_private(&path, token.as_bytes())
            .map_err(|error| repo_core::Error::io("cannot write down whose lease it is", error))?;
        match put() {
            Ok(lock) => {
                let hold = lock.map_or(Hold::Renewed, |file| Hold::Locked { _file: file });
                held.insert(id, Held { owner: token.to_owned(), hold });
                Ok(Stored::New)
            }
            // One of a process on this machine: it stays that one's.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                remove(&path);
                Ok(Stored::Existed)
            }
            Err(error) => {
                remove(&path);
                Err(error.into())
            }
        }
    }

    /// Renews a lease of that token's: stores the renewal, or makes one that is there young.
    pub(super) fn renew(
        &self,
        id: LeaseId,
        token: &str,
        put: impl FnOnce() -> Result<Stored, Refusal>,
    ) -> Result<Stored, Refusal> {
        let held = self.held.lock();
        let Some(lease) = held.get(&id).filter(|lease| lease.owner == token) else {
            return Err(Refusal::conflict("there is no such lease of this token's: it was taken away"));
        };
        if !lease.is_good() {
            return Err(Refusal::conflict("the lease was not renewed for too long"));
        }
        put()
    }

    /// Does something that only who holds a lease may do: who holds none may name packs that are being deleted, or delete what was
    /// taken back.
    pub(super) fn while_held<T>(
        &self,
        store: &Store,
        token: &str,
        what: &str,
        work: impl FnOnce() -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        // As long as this is locked no lease comes or goes through the server.
        let held = self.held.lock();
        let mut holds = false;
        for (id, _) in held.iter().filter(|(_, lease)| lease.owner == token && lease.is_good()) {
            holds |= store.exists(ObjectName::Lease(*id))? && !store.exists(ObjectName::Revocation(*id))?;
        }
        if !holds {
            return Err(Refusal::conflict(format!("{what} only by who holds a lease, and this token holds none")));
        }
        work()
    }

    /// Does something while no lease comes, goes, or is relied on.
    pub(super) fn undisturbed<T>(&self, work: impl FnOnce() -> T) -> T {
        let _held = self.held.lock();
        work()
    }

    pub(super) fn is_owned_by(&self, id: LeaseId, token: &str) -> bool {
        self.held.lock().get(&id).is_some_and(|lease| lease.owner == token)
    }

    /// Deletes a lease, and its renewal.
    pub(super) fn forget(&self, store: &Store, id: LeaseId) -> Result<(), Refusal> {
        let mut held = self.held.lock();
        store.delete(ObjectName::Lease(id))?;
        store.delete_all(&[ObjectName::Renewal(id)])?;
        if held.remove(&id).is_some() {
            remove(&self.owners.join(id.to_hex()));
        }
        Ok(())
    }

    pub(super) fn is_of_a_local_process(&self, store: &Store, id: LeaseId) -> bool {
        !self.held.lock().contains_key(&id) && store.is_held(ObjectName::Lease(id)).unwrap_or(true)
    }

    pub(super) fn expire(&self, store: &Store, now_ms: i64) {
        let Some(root) = store.root() else { return self.forget_gone(store) };
        let after_ms = LeaseTerms::default().expires_after_ms;
        let lived_ms = |name: ObjectName| {
            let modified = fs::metadata(root.join(name.path())).and_then(|meta| meta.modified()).ok()?;
            jiff::Timestamp::try_from(modified).ok().map(|time| time.as_millisecond())
        };
        let mut held = self.held.lock();
        held.retain(|id, lease| {
            let Some(put_ms) = lived_ms(ObjectName::Lease(*id)) else {
                // Somebody on this machine deleted it.
                remove(&self.owners.join(id.to_hex()));
                return false;
            };
            let lived_ms = lived_ms(ObjectName::Renewal(*id)).map_or(put_ms, |renewed| renewed.max(put_ms));
            let revoked = store.exists(ObjectName::Revocation(*id)).unwrap_or(false);
            if revoked || now_ms.saturating_sub(lived_ms) > after_ms {
                lease.hold = Hold::GivenUp;
            }
            true
        });
    }

    /// Forgets the leases that others took away. How old one may get is for those to say who would revoke it: theirs is the store's
    /// clock, and this server need not know the time.
    fn forget_gone(&self, store: &Store) {
        let ids: Vec<LeaseId> = self.held.lock().keys().copied().collect();
        for id in ids {
            // One of which the store says nothing stays. Between put and this question it was locked by nobody, but its put had
            // been answered: it is there unless it was deleted.
            if let Ok(false) = store.exists(ObjectName::Lease(id))
                && self.held.lock().remove(&id).is_some()
            {
                remove(&self.owners.join(id.to_hex()));
            }
        }
    }
}

/// A file that stays belongs to no lease, and goes when the server starts.
fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}
