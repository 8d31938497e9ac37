//! An object store as the place of a repository: whole objects by one request each, no locks, no renames.
//!
//! Nothing here relies on create-only puts. Every name but `config` is a hash of salted content, so that a second put of a
//! name brings the same bytes; `config` is guarded by `init` itself ([`Repository::create`](crate::repository::Repository::create)).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{CopyOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::runtime::Handle;

use crate::error::{Error, ErrorKind, Result};
use crate::id::PackId;
use crate::store::ObjectName;
use crate::store::failure::{Doing, failure};
use crate::store::kept::KeptPacks;
use crate::store::lock::Locks;

/// The longest object that is stored, in bytes: it is collected in memory.
pub const REMOTE_OBJECT_LEN_MAX: usize = 64 * 1024 * 1024;

/// How an object store is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemoteOptions {
    /// Whether a put that must not replace is refused by the store when the name is taken, also when several race.
    pub honours_create: bool,
    /// How leases are kept.
    pub leases: LeaseTerms,
}

/// How leases are kept where there are no file locks (docs/concurrency.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTerms {
    /// How often a holder puts its lease again; `None` when its owner does so itself.
    pub renew_every: Option<Duration>,
    /// How old a lease may get by the store's clock before others may revoke it, in milliseconds.
    pub expires_after_ms: i64,
}

impl Default for LeaseTerms {
    fn default() -> Self {
        Self { renew_every: Some(Duration::from_secs(3 * 60)), expires_after_ms: 30 * 60 * 1000 }
    }
}

/// A place in an object store.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) runtime: Handle,
    pub(super) location: String,
    pub(super) address: String,
    pub(super) options: RemoteOptions,
    /// What can be locked there.
    pub(super) locks: Option<Locks>,
}

impl Remote {
    /// Refuses a place that holds objects of a repository.
    pub(super) fn refuse_occupied(&self) -> Result<()> {
        let mut listing = self.objects.list(None);
        let first = self.runtime.block_on(listing.try_next());
        match first.map_err(|error| failure(Doing::Listing, &self.location, error))? {
            None => Ok(()),
            Some(found) if found.location.as_ref() == "config" || self.exists(ObjectName::Config)? => {
                Err(Error::new(ErrorKind::AlreadyExists, format!("{} is a repository already", self.location)))
            }
            Some(found) => {
                let text = format!("{} is not empty: {} is there", self.location, found.location);
                Err(Error::new(ErrorKind::AlreadyExists, text))
            }
        }
    }

    /// Whether an object is there.
    pub(super) fn exists(&self, name: ObjectName) -> Result<bool> {
        match self.runtime.block_on(self.objects.head(&path(name))) {
            Ok(_) => Ok(true),
            Err(error) => match failure(Doing::Reading, &name.path(), error) {
                missing if missing.kind() == ErrorKind::NotFound => Ok(false),
                other => Err(other),
            },
        }
    }

    /// Stores an object. One of the same name and content counts as stored: a request may be answered "taken" because its
    /// first try, of which no answer came, was carried out.
    pub(super) fn put(&self, name: ObjectName, bytes: Bytes) -> Result<()> {
        let mut options = PutOptions::default();
        if name == ObjectName::Config {
            if self.options.honours_create {
                options.mode = PutMode::Create;
            } else if self.exists(name)? {
                return self.compare(name, &bytes);
            }
        }
        let put = async {
            let locks = self.locks.as_ref().and_then(|locks| Some((locks, locks.of_new(name)?)));
            match locks {
                Some((locks, lock)) => {
                    let create_only = options.mode == PutMode::Create;
                    locks.s3.put(&path(name), bytes.clone(), create_only, Some(lock)).await
                }
                None => self.objects.put_opts(&path(name), PutPayload::from(bytes.clone()), options).await.map(drop),
            }
        };
        match self.runtime.block_on(put) {
            Ok(()) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                self.compare(name, &bytes)
            }
            Err(error) => Err(failure(Doing::Storing, &name.path(), error)),
        }
    }

    fn compare(&self, name: ObjectName, bytes: &Bytes) -> Result<()> {
        let found = self.runtime.block_on(async { self.objects.get(&path(name)).await?.bytes().await });
        let found = found.map_err(|error| failure(Doing::Reading, &name.path(), error))?;
        match found == *bytes {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::AlreadyExists, format!("cannot store {name}: it is there already"))),
        }
    }

    /// Deletes objects, and gives how many the store says it deleted. Object stores do not tell of missing ones.
    pub(super) fn delete_all(&self, names: &[ObjectName]) -> Result<usize> {
        let paths: Vec<_> = names.iter().map(|name| Ok(path(*name))).collect();
        let deleting = self.objects.delete_stream(futures::stream::iter(paths).boxed());
        let count = deleting.try_fold(0, |count, _| async move { Ok(count + 1) });
        match self.runtime.block_on(count) {
            Ok(count) => Ok(count),
            Err(object_store::Error::NotFound { .. }) => self.delete_one_by_one(names),
            Err(error) => Err(failure(Doing::Deleting, "objects", error)),
        }
    }

    /// For stores that tell of missing objects, and stop there.
    fn delete_one_by_one(&self, names: &[ObjectName]) -> Result<usize> {
        let mut count = 0;
        for name in names {
            match self.delete(*name) {
                Ok(()) => count += 1,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    /// Deletes one object. Where the store does not tell, a missing one counts as deleted.
    pub(super) fn delete(&self, name: ObjectName) -> Result<()> {
        let deleted = self.runtime.block_on(self.objects.delete(&path(name)));
        deleted.map_err(|error| failure(Doing::Deleting, &name.path(), error))
    }

    /// Copies an object to `quarantine/` and deletes it. Nothing there is replaced by other bytes.
    pub(super) fn quarantine(&self, name: ObjectName) -> Result<String> {
        let from = path(name);
        let size_of = |path: &ObjectPath| {
            let found = self.runtime.block_on(self.objects.head(path));
            found.map(|meta| (meta.size, meta.e_tag)).map_err(|error| failure(Doing::Reading, path.as_ref(), error))
        };
        let (len, _) = size_of(&from)?;
        let file_name = from.filename().expect("an object has a name").to_owned();
        let mut target = ObjectPath::from(format!("quarantine/{file_name}"));
        let mut copies = 1_u64;
        loop {
            match size_of(&target) {
                Err(error) if error.kind() == ErrorKind::NotFound => break,
                Err(error) => return Err(error),
                // Of an earlier try that ended between copy and delete.
                Ok((there, _)) if there == len && self.same(&from, &target)? => break,
                Ok(_) => {
                    copies += 1;
                    target = ObjectPath::from(format!("quarantine/{file_name}.{copies}"));
                }
            }
        }
        let copied = self.runtime.block_on(self.objects.copy_opts(&from, &target, CopyOptions::default()));
        copied.map_err(|error| failure(Doing::Storing, target.as_ref(), error))?;
        self.delete(name)?;
        Ok(target.to_string())
    }

    fn same(&self, a: &ObjectPath, b: &ObjectPath) -> Result<bool> {
        let read = |path: &ObjectPath| {
            let read = self.runtime.block_on(async { self.objects.get(path).await?.bytes().await });
            read.map_err(|error| failure(Doing::Reading, path.as_ref(), error))
        };
        Ok(read(a)? == read(b)?)
    }
}

/// Where an object is, below the place.
pub(super) fn path(name: ObjectName) -> ObjectPath {
    ObjectPath::from(name.path())
}

/// An object being collected.
pub struct RemoteObject {
    remote: Remote,
    kept: Option<Arc<KeptPacks>>,
    bytes: Vec<u8>,
}

impl RemoteObject {
    pub(super) fn new(remote: &Remote, kept: Option<Arc<KeptPacks>>) -> Self {
        Self { remote: remote.clone(), kept, bytes: Vec::new() }
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.bytes.len() + bytes.len() > REMOTE_OBJECT_LEN_MAX {
            let text =
                format!("an object of more than {REMOTE_OBJECT_LEN_MAX} bytes cannot be kept in an object store");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn publish(self, name: ObjectName) -> Result<()> {
        self.remote.put(name, self.bytes.into())
    }

    pub(super) fn publish_manifests(self, id: PackId) -> Result<()> {
        let bytes = Bytes::from(self.bytes);
        self.remote.put(ObjectName::Pack(id), bytes.clone())?;
        if let Some(kept) = self.kept {
            kept.keep(id, &bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::id::SnapshotId;
    use crate::store::Store;

    fn store() -> (Arc<InMemory>, Store) {
        let objects = Arc::new(InMemory::new());
        let store = Store::open_remote(objects.clone(), "memory".to_owned(), RemoteOptions::default()).unwrap();
        (objects, store)
    }

    #[test]
    fn an_object_store_behaves_like_a_folder() {
        let (_, store) = store();
        let name = ObjectName::Pack(PackId([0xab; 32]));
        assert_eq!(store.get(name, 9).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(store.len(name).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(store.get_tail(name, 9).unwrap_err().kind(), ErrorKind::NotFound);
        let mut object = store.new_object().unwrap();
        object.append(b"01234").unwrap();
        object.append(b"56789").unwrap();
        assert!(store.list_packs().unwrap().is_empty());
        object.publish(name).unwrap();
        assert_eq!(store.get_range(name, 2..5).unwrap(), b"234");
        assert_eq!(store.get_range(name, 2..11).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(store.get_tail(name, 3).unwrap(), (b"789".to_vec(), 10));
        assert_eq!(store.get_tail(name, 30).unwrap().0.len(), 10);
        assert_eq!(store.pack_ids().unwrap(), [PackId([0xab; 32])]);
        // The same again is no second object.
        store.put_new(name, b"0123456789").unwrap();
        store.delete_all(&[name, ObjectName::Snapshot(SnapshotId([1; 32]))]).unwrap();
        assert!(store.pack_ids().unwrap().is_empty());
    }

    #[test]
    fn a_configuration_that_is_there_is_never_replaced() {
        for honours_create in [false, true] {
            let options = RemoteOptions { honours_create, ..RemoteOptions::default() };
            let store = Store::create_remote(Arc::new(InMemory::new()), "memory".to_owned(), options).unwrap();
            store.put_new(ObjectName::Config, b"one").unwrap();
            // A put whose answer was lost is made again.
            store.put_new(ObjectName::Config, b"one").unwrap();
            assert_eq!(store.put_new(ObjectName::Config, b"two").unwrap_err().kind(), ErrorKind::AlreadyExists);
            assert_eq!(store.get(ObjectName::Config, 9).unwrap(), b"one");
        }
    }

    #[test]
    fn quarantine_keeps_all_that_ever_had_a_name() {
        let (_, store) = store();
        let name = ObjectName::Pack(PackId([1; 32]));
        assert_eq!(store.quarantine(name).unwrap_err().kind(), ErrorKind::NotFound);
        let moved = [b"first", b"other"].map(|bytes| {
            store.put_new(name, bytes).unwrap();
            store.quarantine(name).unwrap()
        });
        assert_eq!(moved[1], format!("{}.2", moved[0]));
        assert!(!store.exists(name).unwrap());
    }

    #[test]
    fn what_would_not_fit_into_one_request_is_refused() {
        let (_, store) = store();
        let mut object = store.new_object().unwrap();
        object.append(&vec![0; REMOTE_OBJECT_LEN_MAX]).unwrap();
        assert_eq!(object.append(b"x").unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn a_place_with_anything_in_it_is_not_made_a_repository() {
        let (objects, _) = store();
        futures::executor::block_on(objects.put(&ObjectPath::from("x/y"), PutPayload::from_static(b"z"))).unwrap();
        let error = Store::create_remote(objects, "memory".to_owned(), RemoteOptions::default()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    }
}
