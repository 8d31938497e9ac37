//! What is there: names, with lengths and times where they are asked for.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStoreExt};

use crate::error::{Error, ErrorKind, Result};
use crate::id::{AnnotationId, LeaseId, PackId, SlotId, SnapshotId, TombstoneName};
use crate::store::failure::{Doing, failure};
use crate::store::local::LocalDir;
use crate::store::lock::LockName;
use crate::store::{ObjectName, Place, Store};

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
    /// When each of them was stored, by the store's clock, in milliseconds since the Unix epoch. In a folder only where it was
    /// asked for ([`Store::dated_catalog`]).
    pub stored_ms: BTreeMap<SnapshotId, i64>,
    /// Annotations, ascending.
    pub annotations: Vec<AnnotationId>,
    /// Tombstones, ascending.
    pub tombstones: Vec<TombstoneName>,
    /// What says that the repository's objects are locked, ascending, each with the time at which it was stored last, by the
    /// store's clock, in milliseconds since the Unix epoch. None in a folder, where it would mean nothing.
    pub locks: Vec<(LockName, i64)>,
}

impl Store {
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

    /// The renewals that are there, by the id of the lease.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn list_renewals(&self) -> Result<Vec<Listed<LeaseId>>> {
        self.list("renewals", LeaseId::from_hex, ObjectName::Renewal)
    }

    /// The revocations that are there, by the id of the lease.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn list_revocations(&self) -> Result<Vec<Listed<LeaseId>>> {
        self.list("revoked", LeaseId::from_hex, ObjectName::Revocation)
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
        match &self.place {
            // There a time is a system call for each record.
            Place::Local(local) => Ok(Catalog::new(&local_names(local, "snapshots")?, BTreeMap::new())),
            Place::Remote(_) => self.dated_catalog(),
        }
    }

    /// As [`catalog`](Self::catalog), with the times at which snapshot records were stored.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn dated_catalog(&self) -> Result<Catalog> {
        let metas = self.metas("snapshots")?;
        let stored_ms = dated(&metas, SnapshotId::from_hex, ObjectName::Snapshot).collect();
        let locks = match self.place {
            Place::Local(_) => Vec::new(),
            Place::Remote(_) => dated(&metas, LockName::parse, ObjectName::Lock).collect(),
        };
        let names: Vec<_> = metas.iter().map(|meta| meta.location.to_string()).collect();
        Ok(Catalog { locks, ..Catalog::new(&names, stored_ms) })
    }

    /// The objects below a folder in the order of their names, from the first after `after` on, at most `limit` of them; and
    /// whether there are more. For object stores, which can begin a listing anywhere; they are asked for a little more than is given.
    ///
    /// # Errors
    /// `Unavailable`; also when the store lists in another order, which would leave some out.
    pub fn page(&self, folder: &str, after: &str, limit: usize) -> Result<(Vec<Listed<ObjectName>>, bool)> {
        let below = ObjectPath::from(folder);
        // What is no path of an object's cannot be put into a request as it is: everything is listed then.
        let offset = ObjectPath::parse(after).ok().filter(|path| path.as_ref() == after && !after.is_empty());
        let mut listing = match &offset {
            Some(offset) => self.objects.list_with_offset(Some(&below), offset),
            None => self.objects.list(Some(&below)),
        };
        let mut found: Vec<Listed<ObjectName>> = Vec::new();
        let mut last = String::new();
        self.runtime
            .block_on(async {
                let next = async |listing: &mut BoxStream<'_, object_store::Result<ObjectMeta>>| {
                    listing.try_next().await.map_err(|error| failure(Doing::Listing, &format!("{folder}/"), error))
                };
                while let Some(meta) = next(&mut listing).await? {
                    let path = meta.location.as_ref();
                    if path <= last.as_str() {
                        let text =
                            format!("cannot list {folder}/: the object store does not list in the order of names");
                        return Err(Error::new(ErrorKind::Unavailable, text));
                    }
                    path.clone_into(&mut last);
                    let Some(id) = ObjectName::parse(path).ok().filter(|_| path > after) else { continue };
                    if found.len() == limit {
                        return Ok(true);
                    }
                    found.push(Listed { id, len: meta.size, stored_ms: meta.last_modified.timestamp_millis() });
                }
                Ok(false)
            })
            .map(|more| (found, more))
    }

    /// When an object was stored, by the store's clock, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub fn stored_ms(&self, name: ObjectName) -> Result<i64> {
        let found = self.runtime.block_on(self.objects.head(&ObjectPath::from(name.path())));
        let found = found.map_err(|error| failure(Doing::Reading, &name.path(), error))?;
        Ok(found.last_modified.timestamp_millis())
    }

    /// The paths of all objects below a folder.
    fn names(&self, folder: &str) -> Result<Vec<String>> {
        match &self.place {
            Place::Local(local) => local_names(local, folder),
            Place::Remote(_) => Ok(self.metas(folder)?.into_iter().map(|meta| meta.location.into()).collect()),
        }
    }

    fn metas(&self, folder: &str) -> Result<Vec<ObjectMeta>> {
        let listing = self.objects.list(Some(&ObjectPath::from(folder))).try_collect();
        self.runtime.block_on(listing).map_err(|error| failure(Doing::Listing, &format!("{folder}/"), error))
    }

    fn list<Id: Ord + Copy>(
        &self,
        folder: &str,
        parse: fn(&str) -> Result<Id>,
        name: fn(Id) -> ObjectName,
    ) -> Result<Vec<Listed<Id>>> {
        let metas = self.metas(folder)?;
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
}

impl Catalog {
    fn new(names: &[String], stored_ms: BTreeMap<SnapshotId, i64>) -> Self {
        Self {
            snapshots: ids(names, SnapshotId::from_hex, ObjectName::Snapshot),
            stored_ms,
            annotations: ids(names, AnnotationId::from_hex, ObjectName::Annotation),
            tombstones: ids(names, TombstoneName::parse, ObjectName::Tombstone),
            locks: Vec::new(),
        }
    }
}

/// What a listing says of the objects of one kind, with the times at which they were stored.
fn dated<Id: Copy>(
    metas: &[ObjectMeta],
    parse: fn(&str) -> Result<Id>,
    name: fn(Id) -> ObjectName,
) -> impl Iterator<Item = (Id, i64)> {
    metas.iter().filter_map(move |meta| {
        let id = named(meta.location.as_ref(), parse, name)?;
        Some((id, meta.last_modified.timestamp_millis()))
    })
}

fn local_names(local: &LocalDir, folder: &str) -> Result<Vec<String>> {
    let paths = local.file_names(folder)?.into_iter();
    Ok(paths.filter_map(|path| path.into_os_string().into_string().ok()).collect())
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
