//! Objects by name: where a repository's bytes live.
//!
//! Reading goes through `object_store`, so that every back end looks alike; writing to a local folder goes through
//! our own durable path ([`local`]), because what is acknowledged must survive a power cut. The store knows names and
//! bytes, never keys. Calls block: they are made from CPU threads, and the waiting is done on a small runtime inside.
//!
//! "Does not answer" (`Unavailable`, `Io`) is kept apart from "is not there" (`NotFound`) and "is too short"
//! (`Corrupt`): only the last two are damage.

pub mod local;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::id::{AnnotationId, LeaseId, PackId, SlotId, SnapshotId, TombstoneName};
use local::{LocalDir, NewObject};

/// An object's name (docs/format.md §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// The configuration.
    Config,
    /// A key slot.
    Slot(SlotId),
    /// A pack.
    Pack(PackId),
    /// A snapshot record.
    Snapshot(SnapshotId),
    /// A lease.
    Lease(LeaseId),
    /// A tombstone.
    Tombstone(TombstoneName),
    /// An annotation of a snapshot.
    Annotation(AnnotationId),
}

impl ObjectName {
    /// The path below the repository's root, with forward slashes.
    pub fn path(&self) -> String {
        match self {
            Self::Config => "config".to_owned(),
            Self::Slot(id) => format!("keys/{id}"),
            Self::Pack(id) => {
                let hex = id.to_hex();
                format!("packs/{}/{hex}", &hex[..2])
            }
            Self::Snapshot(id) => format!("snapshots/{id}"),
            Self::Lease(id) => format!("leases/{id}"),
            Self::Tombstone(id) => format!("snapshots/tombstones/{id}"),
            Self::Annotation(id) => format!("snapshots/annotations/{id}"),
        }
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path())
    }
}

/// An object that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed<Id> {
    /// Its name.
    pub id: Id,
    /// Its length in bytes.
    pub len: u64,
    /// When it was stored, by the store's clock, in milliseconds since the Unix epoch. Never decides what is safe.
    pub stored_ms: i64,
}

/// The small objects that say what a repository holds. They share a folder, so that one listing finds all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Snapshot records, ascending.
    pub snapshots: Vec<SnapshotId>,
    /// Annotations, ascending.
    pub annotations: Vec<AnnotationId>,
    /// Tombstones, ascending.
    pub tombstones: Vec<TombstoneName>,
}

/// A place that keeps objects.
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    runtime: tokio::runtime::Runtime,
    local: LocalDir,
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
        let objects = object_store::local::LocalFileSystem::new_with_prefix(root)
            .map_err(|error| Error::with_source(ErrorKind::Io, format!("cannot open {}", root.display()), error))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context(|| "cannot start the store's runtime")?;
        Ok(Self { objects: Arc::new(objects), runtime, local: LocalDir::new(root) })
    }

    /// Makes the folders of a new repository and opens the store.
    ///
    /// # Errors
    /// `AlreadyExists` when the folder holds anything already; `Io`.
    pub fn create_local(root: &Path) -> Result<Self> {
        LocalDir::new(root).create_layout()?;
        Self::open_local(root)
    }

    /// The local folder.
    pub fn root(&self) -> &Path {
        self.local.root()
    }

    /// A whole object of at most `len_max` bytes.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt` when it is longer, `Unavailable`.
    pub fn get(&self, name: ObjectName, len_max: u64) -> Result<Vec<u8>> {
        let location = ObjectPath::from(name.path());
        self.runtime.block_on(async {
            let found = self.objects.get(&location).await.map_err(|error| read_error(name, error))?;
            if found.meta.size > len_max {
                return Err(Error::corrupt(format!(
                    "{name} has {} bytes, more than the {len_max} allowed",
                    found.meta.size
                )));
            }
            let bytes = found.bytes().await.map_err(|error| read_error(name, error))?;
            Ok(bytes.into())
        })
    }

    /// The bytes of an object in `range`.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt` when the object ends before the range does, `Unavailable`.
    pub fn get_range(&self, name: ObjectName, range: Range<u64>) -> Result<Vec<u8>> {
        let location = ObjectPath::from(name.path());
        self.runtime.block_on(async {
            match self.objects.get_range(&location, range.clone()).await {
                Ok(bytes) if bytes.len() as u64 == range.end - range.start => Ok(bytes.into()),
                // A range past the end is told apart from other failures by asking for the length.
                outcome => {
                    let meta = self.objects.head(&location).await.map_err(|error| read_error(name, error))?;
                    match outcome {
                        Err(error) if meta.size >= range.end => Err(read_error(name, error)),
                        _ => Err(Error::corrupt(format!(
                            "{name} is cut short: {} bytes there, bytes up to {} expected",
                            meta.size, range.end
                        ))),
                    }
                }
            }
        })
    }

    /// The length of an object in bytes.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub fn len(&self, name: ObjectName) -> Result<u64> {
        let location = ObjectPath::from(name.path());
        let meta = self.runtime.block_on(self.objects.head(&location)).map_err(|error| read_error(name, error))?;
        Ok(meta.size)
    }

    /// The packs that are there, by id.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn list_packs(&self) -> Result<Vec<Listed<PackId>>> {
        self.list("packs", PackId::from_hex, ObjectName::Pack)
    }

    /// The snapshot records that are there, by id.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn list_snapshots(&self) -> Result<Vec<Listed<SnapshotId>>> {
        self.list("snapshots", SnapshotId::from_hex, ObjectName::Snapshot)
    }

    /// The annotations that are there, by id. A repository without the folder has none.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn list_annotations(&self) -> Result<Vec<Listed<AnnotationId>>> {
        self.list("snapshots/annotations", AnnotationId::from_hex, ObjectName::Annotation)
    }

    /// The key slots that are there, by id.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn list_slots(&self) -> Result<Vec<Listed<SlotId>>> {
        self.list("keys", SlotId::from_hex, ObjectName::Slot)
    }

    /// The leases that are there, by id.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn list_leases(&self) -> Result<Vec<Listed<LeaseId>>> {
        self.list("leases", LeaseId::from_hex, ObjectName::Lease)
    }

    /// The tombstones that are there, by id.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn list_tombstones(&self) -> Result<Vec<Listed<TombstoneName>>> {
        self.list("snapshots/tombstones", TombstoneName::parse, ObjectName::Tombstone)
    }

    /// The names of the packs that are there, ascending.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn pack_ids(&self) -> Result<Vec<PackId>> {
        Ok(ids(&self.names("packs")?, PackId::from_hex, ObjectName::Pack))
    }

    /// What is below `snapshots/`, by one listing.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn catalog(&self) -> Result<Catalog> {
        let names = self.names("snapshots")?;
        Ok(Catalog {
            snapshots: ids(&names, SnapshotId::from_hex, ObjectName::Snapshot),
            annotations: ids(&names, AnnotationId::from_hex, ObjectName::Annotation),
            tombstones: ids(&names, TombstoneName::parse, ObjectName::Tombstone),
        })
    }

    /// The paths of all objects below a folder.
    fn names(&self, folder: &str) -> Result<Vec<String>> {
        let paths = self.local.file_names(folder)?;
        Ok(paths.into_iter().filter_map(|path| path.into_os_string().into_string().ok()).collect())
    }

    fn list<Id: Ord + Copy>(
        &self,
        folder: &str,
        parse: fn(&str) -> Result<Id>,
        name: fn(Id) -> ObjectName,
    ) -> Result<Vec<Listed<Id>>> {
        let prefix = ObjectPath::from(folder);
        let metas: Vec<_> = self
            .runtime
            .block_on(self.objects.list(Some(&prefix)).try_collect())
            .map_err(|error| Error::with_source(ErrorKind::Unavailable, format!("cannot list {folder}/"), error))?;
        let mut listed: Vec<_> = metas
            .iter()
            .filter_map(|meta| {
                let id = named(meta.location.as_ref(), parse, name)?;
                Some(Listed { id, len: meta.size, stored_ms: meta.last_modified.timestamp_millis() })
            })
            .collect();
        listed.sort_unstable_by_key(|listed| listed.id);
        Ok(listed)
    }

    /// Begins an object whose name is known only at its end.
    ///
    /// # Errors
    /// `Io` when the repository cannot be written.
    pub fn new_object(&self) -> Result<NewObject> {
        self.local.new_object()
    }

    /// Stores a small object under a name that is not taken, durably.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken; `Io`.
    pub fn put_new(&self, name: ObjectName, bytes: &[u8]) -> Result<()> {
        let mut object = self.new_object()?;
        object.append(bytes).context(|| format!("cannot write {name}"))?;
        object.publish(name)
    }

    /// Stores a small object durably, and keeps it locked for as long as the result lives: others can tell whether its
    /// writer is still at work ([`is_held`](Self::is_held)).
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken; `Io`.
    pub fn put_held(&self, name: ObjectName, bytes: &[u8]) -> Result<std::fs::File> {
        let mut object = self.new_object()?;
        object.append(bytes).context(|| format!("cannot write {name}"))?;
        object.publish_locked(name)
    }

    /// Whether the writer of an object stored by [`put_held`](Self::put_held) still holds it. An object that is gone is
    /// not held. Where the file system cannot tell, it counts as held.
    ///
    /// # Errors
    /// `Io` when the object cannot be opened.
    pub fn is_held(&self, name: ObjectName) -> Result<bool> {
        self.local.is_locked(name)
    }

    /// Waits until no other process removes key slots, and keeps others waiting for as long as the result lives.
    ///
    /// # Errors
    /// `Io` when the folder cannot be locked.
    pub fn lock_slots(&self) -> Result<std::fs::File> {
        self.local.lock("keys")
    }

    /// Waits until no other process forgets or annotates snapshots, and keeps others waiting for as long as the result lives.
    ///
    /// # Errors
    /// `Io` when the folder cannot be locked.
    pub fn lock_snapshots(&self) -> Result<std::fs::File> {
        self.local.lock("snapshots")
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn delete(&self, name: ObjectName) -> Result<()> {
        self.local.delete(name)
    }

    /// Deletes objects, and gives how many were there. One wait for the disk for each folder.
    ///
    /// # Errors
    /// `Io`; those before the one that failed are gone.
    pub fn delete_all(&self, names: &[ObjectName]) -> Result<usize> {
        self.local.delete_all(names)
    }

    /// Moves an object out of the way into the folder `quarantine`, and gives its path there.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn quarantine(&self, name: ObjectName) -> Result<String> {
        self.local.quarantine(name)
    }
}

fn ids<Id: Ord + Copy>(paths: &[String], parse: fn(&str) -> Result<Id>, name: fn(Id) -> ObjectName) -> Vec<Id> {
    let mut ids: Vec<Id> = paths.iter().filter_map(|path| named(path, parse, name)).collect();
    ids.sort_unstable();
    ids
}

/// The id of the object at `path`. Other names are no objects of a repository (docs/format.md §1).
pub(crate) fn named<Id: Copy>(path: &str, parse: fn(&str) -> Result<Id>, name: fn(Id) -> ObjectName) -> Option<Id> {
    let id = parse(path.rsplit('/').next()?).ok()?;
    (name(id).path() == path).then_some(id)
}

fn read_error(name: ObjectName, error: object_store::Error) -> Error {
    let kind = match &error {
        object_store::Error::NotFound { .. } => ErrorKind::NotFound,
        _ => ErrorKind::Unavailable,
    };
    let text = if kind == ErrorKind::NotFound { format!("{name} is missing") } else { format!("cannot read {name}") };
    Error::with_source(kind, text, error)
}

#[cfg(test)]
mod tests {
    use super::*;

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
