//! Objects by name: where a repository's bytes live.
//!
//! Reading goes through `object_store`, so that every back end looks alike; writing to a local folder goes through
//! our own durable path ([`local`]), because what is acknowledged must survive a power cut; writing to an object store is
//! one request an object ([`remote`]). The store knows names and bytes, never keys. Calls block: they are made from CPU threads, and the waiting is done on a small runtime inside.
//!
//! "Does not answer" (`Unavailable`, `Io`) is kept apart from "is not there" (`NotFound`) and "is too short"
//! (`Corrupt`): only the last two are damage.

pub mod cloud;
mod each;
mod failure;
mod http;
mod kept;
mod listing;
pub mod local;
pub mod lock;
mod name;
mod probe;
pub mod reading;
pub mod remote;
mod s3;
pub mod server;
#[cfg(feature = "sftp")]
pub mod sftp;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::id::PackId;
use failure::{Doing, failure};
use kept::KeptPacks;
pub(crate) use listing::named;
pub use listing::{Catalog, Listed};
use local::{LocalDir, LocalObject};
use lock::Locks;
pub use name::ObjectName;
use remote::{LeaseTerms, Remote, RemoteObject, RemoteOptions};

/// A place that keeps objects. Copies are the same store.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    runtime: Arc<tokio::runtime::Runtime>,
    place: Place,
    kept: Option<Arc<KeptPacks>>,
}

#[derive(Clone)]
enum Place {
    Local(LocalDir),
    Remote(Remote),
}

impl Store {
    /// Opens the store in a local folder.
    ///
    /// # Errors
    /// `NotFound` when there is no such folder.
    pub fn open_local(root: &Path) -> Result<Self> {
        if !root.is_dir() {
            return Err(Error::new(ErrorKind::NotFound, format!("{} is not a folder", root.display())));
        }
        local::refuse_marked(root)?;
        let objects = object_store::local::LocalFileSystem::new_with_prefix(root)
            .map_err(|error| Error::with_source(ErrorKind::Io, format!("cannot open {}", root.display()), error))?;
        let place = Place::Local(LocalDir::new(root));
        Ok(Self { objects: Arc::new(objects), runtime: Arc::new(start_runtime()?), place, kept: None })
    }

    /// Makes the folders of a new repository and opens the store.
    ///
    /// # Errors
    /// `AlreadyExists` when the folder holds anything already; `Io`.
    pub fn create_local(root: &Path) -> Result<Self> {
        LocalDir::new(root).create_layout()?;
        Self::open_local(root)
    }

    /// Uses an object store. `objects` holds nothing else below it; `location` is what people call the place.
    ///
    /// # Errors
    /// `Io` when no thread can be started. Nothing is asked of the store yet.
    pub fn open_remote(objects: Arc<dyn ObjectStore>, location: String, options: RemoteOptions) -> Result<Self> {
        let runtime = Arc::new(start_runtime()?);
        let handle = runtime.handle().clone();
        let address = location.clone();
        let remote = Remote { objects: objects.clone(), runtime: handle, location, address, options, locks: None };
        let place = Place::Remote(remote);
        Ok(Self { objects, runtime, place, kept: None })
    }

    /// As [`open_remote`](Self::open_remote), for a new repository.
    ///
    /// # Errors
    /// `AlreadyExists` when the place holds anything already; `Unavailable`, `Io`.
    pub fn create_remote(objects: Arc<dyn ObjectStore>, location: String, options: RemoteOptions) -> Result<Self> {
        let store = Self::open_remote(objects, location, options)?;
        if let Place::Remote(remote) = &store.place {
            remote.refuse_occupied()?;
        }
        Ok(store)
    }

    /// The same store; where it is an object store, with copies of the packs that manifests are in, in a local folder that
    /// takes up to `len_max` bytes. They are read instead of the store's, so whoever checks what the store has does without.
    #[must_use]
    pub fn keeping_manifests(self, folder: &Path, len_max: u64) -> Self {
        let is_remote = self.root().is_none();
        Self { kept: is_remote.then(|| Arc::new(KeptPacks::new(folder, len_max))), ..self }
    }

    /// Fetches packs as a whole, to keep them, as far as they are not kept yet. What cannot be fetched is no matter here.
    pub fn keep(&self, packs: &[(PackId, u64)]) {
        let Some(kept) = &self.kept else { return };
        let missing: Vec<_> = packs.iter().filter(|(id, len)| !kept.has(*id, *len)).collect();
        self.each(&missing, |(id, len)| {
            if let Ok(bytes) = self.get(ObjectName::Pack(*id), *len)
                && *blake3::hash(&bytes).as_bytes() == id.0
            {
                kept.keep(*id, &bytes);
            }
        });
    }

    /// The same store; where it is an object store, with an address that tells it apart from all others, also from one that
    /// people call the same. Without it what people call it is taken.
    #[must_use]
    pub fn at_address(mut self, address: String) -> Self {
        if let Place::Remote(remote) = &mut self.place {
            remote.address = address;
        }
        self
    }

    /// The same store, where objects can be locked.
    #[must_use]
    pub fn with_locks(mut self, locks: Option<Locks>) -> Self {
        if let Place::Remote(remote) = &mut self.place {
            remote.locks = locks;
        }
        self
    }

    /// What tells this place apart from all others, for what is kept of it elsewhere. Not for people.
    pub fn address(&self) -> String {
        match &self.place {
            Place::Local(local) => {
                let root = local.root();
                root.canonicalize().unwrap_or_else(|_| root.to_owned()).display().to_string()
            }
            Place::Remote(remote) => remote.address.clone(),
        }
    }

    /// The local folder, if it is one.
    pub fn root(&self) -> Option<&Path> {
        match &self.place {
            Place::Local(local) => Some(local.root()),
            Place::Remote(_) => None,
        }
    }

    /// Bytes that are free where a folder is; none where that is not known.
    pub fn free_bytes(&self) -> Option<u64> {
        let found = rustix::fs::statvfs(self.root()?).ok()?;
        found.f_bavail.checked_mul(found.f_frsize)
    }

    /// What people call the place: a path or a URL.
    pub fn location(&self) -> String {
        match &self.place {
            Place::Local(local) => local.root().display().to_string(),
            Place::Remote(remote) => remote.location.clone(),
        }
    }

    /// How leases are kept where processes cannot lock objects; `None` where they can.
    pub fn lease_terms(&self) -> Option<LeaseTerms> {
        match &self.place {
            Place::Local(_) => None,
            Place::Remote(remote) => Some(remote.options.leases),
        }
    }

    /// A whole object of at most `len_max` bytes.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt` when it is longer, `Unavailable`.
    pub fn get(&self, name: ObjectName, len_max: u64) -> Result<Vec<u8>> {
        let location = ObjectPath::from(name.path());
        self.runtime.block_on(async {
            let found =
                self.objects.get(&location).await.map_err(|error| failure(Doing::Reading, &name.path(), error))?;
            if found.meta.size > len_max {
                return Err(Error::corrupt(format!(
                    "{name} has {} bytes, more than the {len_max} allowed",
                    found.meta.size
                )));
            }
            let len = found.meta.size;
            let bytes = found.bytes().await.map_err(|error| failure(Doing::Reading, &name.path(), error))?;
            if bytes.len() as u64 == len { Ok(bytes.into()) } else { Err(answer_cut_short(name)) }
        })
    }

    /// The bytes of an object in `range`.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt` when the object ends before the range does, `Unavailable`.
    pub fn get_range(&self, name: ObjectName, range: Range<u64>) -> Result<Vec<u8>> {
        if let (Some(kept), ObjectName::Pack(id)) = (&self.kept, name)
            && let Some(bytes) = kept.read(id, &range)
        {
            return Ok(bytes);
        }
        let location = ObjectPath::from(name.path());
        self.runtime.block_on(async {
            match self.objects.get_range(&location, range.clone()).await {
                Ok(bytes) if bytes.len() as u64 == range.end - range.start => Ok(bytes.into()),
                Err(error @ object_store::Error::NotFound { .. }) => Err(failure(Doing::Reading, &name.path(), error)),
                // A range past the end is told apart from other failures by asking for the length.
                outcome => {
                    let meta = self
                        .objects
                        .head(&location)
                        .await
                        .map_err(|error| failure(Doing::Reading, &name.path(), error))?;
                    match outcome {
                        Err(error) if meta.size >= range.end => Err(failure(Doing::Reading, &name.path(), error)),
                        Ok(_) if meta.size >= range.end => Err(answer_cut_short(name)),
                        _ => Err(Error::corrupt(format!(
                            "{name} is cut short: {} bytes there, bytes up to {} expected",
                            meta.size, range.end
                        ))),
                    }
                }
            }
        })
    }

    /// The last `len_max` bytes of an object, or all of a shorter one, and its length.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub fn get_tail(&self, name: ObjectName, len_max: u64) -> Result<(Vec<u8>, u64)> {
        let options = GetOptions { range: Some(GetRange::Suffix(len_max)), ..GetOptions::default() };
        let got = self.runtime.block_on(async {
            let found = self.objects.get_opts(&ObjectPath::from(name.path()), options).await?;
            let len = found.meta.size;
            Ok((found.bytes().await?, len))
        });
        match got {
            Ok((bytes, len)) if bytes.len() as u64 == len.min(len_max) => Ok((bytes.into(), len)),
            Err(error @ object_store::Error::NotFound { .. }) => Err(failure(Doing::Reading, &name.path(), error)),
            // Azure counts from the front only; and an empty object has no last byte.
            _ => {
                let len = self.len(name)?;
                Ok((self.get_range(name, len.saturating_sub(len_max)..len)?, len))
            }
        }
    }

    /// The length of an object in bytes.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub fn len(&self, name: ObjectName) -> Result<u64> {
        let location = ObjectPath::from(name.path());
        let found = self.runtime.block_on(self.objects.head(&location));
        match found.map_err(|error| failure(Doing::Reading, &name.path(), error)) {
            // An answer to HEAD has no body that would tell a missing bucket from a missing object.
            Err(error) if error.kind() == ErrorKind::NotFound && self.root().is_none() => {
                self.get_range(name, 0..1).and(Err(error))
            }
            found => Ok(found?.size),
        }
    }

    /// Begins an object whose name is known only at its end.
    ///
    /// # Errors
    /// `Io` when the repository cannot be written.
    pub fn new_object(&self) -> Result<NewObject> {
        Ok(match &self.place {
            Place::Local(local) => NewObject::Local(Box::new(local.new_object()?)),
            Place::Remote(remote) => NewObject::Remote(RemoteObject::new(remote, self.kept.clone())),
        })
    }

    /// Stores a small object under a name that is not taken, durably.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken; on an object store only when the bytes there are other ones, and for
    /// `config` alone. `Io`, `Unavailable`.
    pub fn put_new(&self, name: ObjectName, bytes: &[u8]) -> Result<()> {
        let mut object = self.new_object()?;
        object.append(bytes).context(|| format!("cannot write {name}"))?;
        object.publish(name)
    }

    /// Stores a small object durably in a local folder, and keeps it locked for as long as the result lives: others can
    /// tell whether its writer is still at work ([`is_held`](Self::is_held)). On an object store nothing is locked.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken; `Io`, `Unavailable`.
    pub fn put_held(&self, name: ObjectName, bytes: &[u8]) -> Result<Option<std::fs::File>> {
        let Place::Local(local) = &self.place else { return self.put_new(name, bytes).map(|()| None) };
        let mut object = local.new_object()?;
        object.append(bytes).context(|| format!("cannot write {name}"))?;
        object.publish_locked(name).map(Some)
    }

    /// Whether the writer of an object stored by [`put_held`](Self::put_held) still holds it. An object that is gone is
    /// not held. Where the file system cannot tell, and on an object store, it counts as held.
    ///
    /// # Errors
    /// `Io` when the object cannot be opened.
    pub fn is_held(&self, name: ObjectName) -> Result<bool> {
        match &self.place {
            Place::Local(local) => local.is_locked(name),
            Place::Remote(remote) => remote.exists(name),
        }
    }

    /// Whether an object is there.
    ///
    /// # Errors
    /// `Unavailable`, `Io`.
    pub fn exists(&self, name: ObjectName) -> Result<bool> {
        match &self.place {
            Place::Local(local) => Ok(local.root().join(name.path()).exists()),
            Place::Remote(remote) => remote.exists(name),
        }
    }

    /// Waits until no other process removes key slots, and keeps others waiting for as long as the result lives. On an
    /// object store nothing is locked.
    ///
    /// # Errors
    /// `Io` when the folder cannot be locked.
    pub fn lock_slots(&self) -> Result<Option<std::fs::File>> {
        self.lock("keys")
    }

    /// Waits until no other process forgets or annotates snapshots, and keeps others waiting for as long as the result
    /// lives. On an object store nothing is locked.
    ///
    /// # Errors
    /// `Io` when the folder cannot be locked.
    pub fn lock_snapshots(&self) -> Result<Option<std::fs::File>> {
        self.lock("snapshots")
    }

    fn lock(&self, folder: &str) -> Result<Option<std::fs::File>> {
        match &self.place {
            Place::Local(local) => local.lock(folder).map(Some),
            Place::Remote(_) => Ok(None),
        }
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// `NotFound`, except on object stores that do not tell; `Io`, `Unavailable`.
    pub fn delete(&self, name: ObjectName) -> Result<()> {
        match &self.place {
            Place::Local(local) => local.delete(name),
            Place::Remote(remote) => remote.delete(name),
        }
    }

    /// Deletes objects, and gives how many were there; object stores may count missing ones. One wait for the disk for
    /// each folder, or one request for many.
    ///
    /// # Errors
    /// `Io`, `Unavailable`; some of them may be gone.
    pub fn delete_all(&self, names: &[ObjectName]) -> Result<usize> {
        match &self.place {
            Place::Local(local) => local.delete_all(names),
            Place::Remote(remote) => remote.delete_all(names),
        }
    }

    /// Moves an object out of the way into the folder `quarantine`, and gives its path there.
    ///
    /// # Errors
    /// `NotFound`, `Io`, `Unavailable`.
    pub fn quarantine(&self, name: ObjectName) -> Result<String> {
        match &self.place {
            Place::Local(local) => local.quarantine(name),
            Place::Remote(remote) => remote.quarantine(name),
        }
    }
}

/// An object being written. Dropped before it is published, it leaves nothing.
pub enum NewObject {
    /// In a local folder: on the disk as it comes.
    Local(Box<LocalObject>),
    /// For an object store: in memory until it is whole.
    Remote(RemoteObject),
}

impl NewObject {
    /// Adds bytes at the end.
    ///
    /// # Errors
    /// `Io`, with the operating system's reason: a full disk, above all. `Unsupported` when an object store takes no
    /// object so long.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Local(object) => object.append(bytes),
            Self::Remote(object) => object.append(bytes),
        }
    }

    /// As [`publish`](Self::publish), for a pack that holds manifest nodes: it may be kept on this machine, too.
    ///
    /// # Errors
    /// Those of [`publish`](Self::publish).
    pub fn publish_manifests(self, id: PackId) -> Result<()> {
        match self {
            Self::Local(object) => object.publish(ObjectName::Pack(id)),
            Self::Remote(object) => object.publish_manifests(id),
        }
    }

    /// Makes the bytes durable and gives them their name.
    ///
    /// # Errors
    /// `AlreadyExists` as [`Store::put_new`]; `Io`, `Unavailable`.
    pub fn publish(self, name: ObjectName) -> Result<()> {
        match self {
            Self::Local(object) => object.publish(name),
            Self::Remote(object) => object.publish(name),
        }
    }
}

/// The object is longer than what came: that says nothing about its bytes.
fn answer_cut_short(name: ObjectName) -> Error {
    Error::new(ErrorKind::Unavailable, format!("cannot read {name}: the store's answer was cut short"))
}

fn start_runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().context(|| "cannot start the store's runtime")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SnapshotId;

    #[test]
    fn an_object_is_there_whole_or_not_at_all_and_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("repository");
        let store = Store::create_local(&root).unwrap();
        let name = ObjectName::Pack(PackId([0xab; 32]));

        let mut object = store.new_object().unwrap();
        object.append(b"half of it").unwrap();
        assert!(store.list_packs().unwrap().is_empty());
        assert_eq!(store.get(name, 100).unwrap_err().kind(), ErrorKind::NotFound);
        drop(object);
        assert!(store.list_packs().unwrap().is_empty());

        store.put_new(name, b"whole").unwrap();
        assert_eq!(store.put_new(name, b"other").unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(store.get(name, 100).unwrap(), b"whole");
        // Names in other folders or in capitals are no objects.
        std::fs::create_dir(root.join("packs/zz")).unwrap();
        std::fs::write(root.join("packs/zz").join("cd".repeat(32)), b"x").unwrap();
        std::fs::write(root.join("packs/ab").join("AB".repeat(32)), b"x").unwrap();
        let listed: Vec<_> = store.list_packs().unwrap().iter().map(|pack| (pack.id, pack.len)).collect();
        assert_eq!(listed, [(PackId([0xab; 32]), 5)]);
        assert!(root.join("packs/ab").join("ab".repeat(32)).is_file());
    }

    #[test]
    fn short_long_and_missing_objects_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create_local(&folder.path().join("r")).unwrap();
        let name = ObjectName::Snapshot(SnapshotId([1; 32]));
        assert_eq!(store.get_range(name, 0..1).unwrap_err().kind(), ErrorKind::NotFound);
        store.put_new(name, b"0123456789").unwrap();
        assert_eq!(store.get_range(name, 2..5).unwrap(), b"234");
        assert_eq!(store.get_range(name, 2..11).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(store.get_range(name, 20..21).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(store.get(name, 9).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_folder_with_anything_in_it_is_not_made_a_repository() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("precious"), b"x").unwrap();
        let error = Store::create_local(folder.path()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    }
}
