//! What is there: names, with lengths and times where they are asked for.

use futures::TryStreamExt;
use object_store::path::Path as ObjectPath;

use crate::error::Result;
use crate::id::{AnnotationId, LeaseId, PackId, SlotId, SnapshotId, TombstoneId};
use crate::store::failure::{Doing, failure};
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
        self.list("annotations", AnnotationId::from_hex, ObjectName::Annotation)
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
    pub fn list_tombstones(&self) -> Result<Vec<Listed<TombstoneId>>> {
        self.list("tombstones", TombstoneId::from_hex, ObjectName::Tombstone)
    }

    /// The names of the packs that are there, ascending.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn pack_ids(&self) -> Result<Vec<PackId>> {
        self.ids("packs", PackId::from_hex, ObjectName::Pack)
    }

    /// The names of the snapshot records that are there, ascending.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn snapshot_ids(&self) -> Result<Vec<SnapshotId>> {
        self.ids("snapshots", SnapshotId::from_hex, ObjectName::Snapshot)
    }

    /// The names of the tombstones that are there, ascending.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn tombstone_ids(&self) -> Result<Vec<TombstoneId>> {
        self.ids("tombstones", TombstoneId::from_hex, ObjectName::Tombstone)
    }

    fn ids<Id: Ord + Copy>(
        &self,
        folder: &str,
        parse: fn(&str) -> Result<Id>,
        name: fn(Id) -> ObjectName,
    ) -> Result<Vec<Id>> {
        let Place::Local(local) = &self.place else {
            return Ok(self.list(folder, parse, name)?.into_iter().map(|listed| listed.id).collect());
        };
        let paths = local.file_names(folder)?;
        let mut ids: Vec<Id> = paths.iter().filter_map(|path| named(path.to_str()?, parse, name)).collect();
        ids.sort_unstable();
        Ok(ids)
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
            .map_err(|error| failure(Doing::Listing, &format!("{folder}/"), error))?;
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

/// The id of the object at `path`. Other names are no objects of a repository (docs/format.md §1).
fn named<Id: Copy>(path: &str, parse: fn(&str) -> Result<Id>, name: fn(Id) -> ObjectName) -> Option<Id> {
    let id = parse(path.rsplit('/').next()?).ok()?;
    (name(id).path() == path).then_some(id)
}
