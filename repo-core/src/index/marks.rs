//! What a replica noted: tombstones it read, and snapshots that are known to be stored whole.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use rocksdb::{IteratorMode, WriteBatch};

use super::{COMPLETE, IDENTITY, Index, TOMBSTONES, database_error, family};
use crate::error::Result;
use crate::id::{PackId, SnapshotId, TombstoneName};
use crate::tombstone::Tombstone;

/// Key of the serial among what identifies a replica.
const SERIAL_KEY: &[u8] = b"serial";

impl Index {
    /// The bytes of a tombstone that was read before.
    ///
    /// # Errors
    /// `Io` when the database cannot be read.
    pub fn known_tombstone(&self, name: TombstoneName) -> Result<Option<Vec<u8>>> {
        self.db.get_cf(family(&self.db, TOMBSTONES), name.to_bytes()).map_err(|error| database_error(&self.path, error))
    }

    /// Keeps a tombstone that was read, so that it need not be read again.
    ///
    /// # Errors
    /// `Io` when the database cannot be written.
    pub fn learn_tombstone(&self, name: TombstoneName, record: &[u8]) -> Result<()> {
        let put = self.db.put_cf(family(&self.db, TOMBSTONES), name.to_bytes(), record);
        put.map_err(|error| database_error(&self.path, error))
    }

    /// The packs that any tombstone names which this replica read at its last look, those too that were deleted since: a pack
    /// that gets such a name again may be taken for condemned.
    ///
    /// # Errors
    /// `Io` when the database cannot be read.
    pub fn packs_of_tombstones(&self) -> Result<BTreeSet<PackId>> {
        let mut packs = BTreeSet::new();
        for item in self.db.iterator_cf(family(&self.db, TOMBSTONES), IteratorMode::Start) {
            let (_, record) = item.map_err(|error| database_error(&self.path, error))?;
            packs.extend(Tombstone::decode(&record)?.packs);
        }
        Ok(packs)
    }

    /// The names of the tombstones that were read and kept, ascending.
    ///
    /// # Errors
    /// `Io` when the database fails.
    pub fn known_tombstones(&self) -> Result<Vec<TombstoneName>> {
        let mut names = Vec::new();
        for item in self.db.iterator_cf(family(&self.db, TOMBSTONES), IteratorMode::Start) {
            let (key, _) = item.map_err(|error| database_error(&self.path, error))?;
            names.extend(key.first_chunk().map(TombstoneName::from_bytes));
        }
        Ok(names)
    }

    /// Drops the tombstones that are not among `names`.
    ///
    /// # Errors
    /// `Io` when the database fails.
    pub fn retain_tombstones(&self, names: &BTreeSet<TombstoneName>) -> Result<()> {
        for gone in self.known_tombstones()?.into_iter().filter(|name| !names.contains(name)) {
            let deleted = self.db.delete_cf(family(&self.db, TOMBSTONES), gone.to_bytes());
            deleted.map_err(|error| database_error(&self.path, error))?;
        }
        Ok(())
    }

    /// The highest serial of a tombstone that was there when this replica last knew all packs; `None` when it never did.
    ///
    /// # Errors
    /// `Io` when the database cannot be read.
    pub fn seen_serial(&self) -> Result<Option<u64>> {
        let found = self.db.get_cf(family(&self.db, IDENTITY), SERIAL_KEY);
        let found = found.map_err(|error| database_error(&self.path, error))?;
        Ok(found.and_then(|bytes| bytes[..].try_into().ok()).map(u64::from_be_bytes))
    }

    /// Notes that this replica knows all packs up to the tombstone of that serial.
    ///
    /// # Errors
    /// `Io` when the database cannot be written.
    pub fn set_seen_serial(&self, serial: u64) -> Result<()> {
        let put = self.db.put_cf(family(&self.db, IDENTITY), SERIAL_KEY, serial.to_be_bytes());
        put.map_err(|error| database_error(&self.path, error))
    }

    /// Takes back that snapshots are complete, but for those of `but`.
    ///
    /// # Errors
    /// `Io` when the database fails.
    pub fn unmark_complete(&self, but: &BTreeSet<SnapshotId>) -> Result<()> {
        self.generation.fetch_add(1, Ordering::Relaxed);
        let complete = family(&self.db, COMPLETE);
        let mut batch = WriteBatch::default();
        for item in self.db.iterator_cf(complete, IteratorMode::Start) {
            let (key, _) = item.map_err(|error| database_error(&self.path, error))?;
            if key.first_chunk().is_none_or(|id| !but.contains(&SnapshotId(*id))) {
                batch.delete_cf(complete, &key);
            }
        }
        self.db.write(batch).map_err(|error| database_error(&self.path, error))
    }

    /// Whether every chunk and node of a snapshot is known to stand in a pack that is not condemned. Garbage collection
    /// keeps that so for as long as the snapshot is there; where it may not have seen the snapshot, the mark is taken back
    /// ([`sync`](super::sync)).
    ///
    /// # Errors
    /// `Io` when the database cannot be read.
    pub fn is_complete(&self, snapshot: SnapshotId) -> Result<bool> {
        let found = self.db.get_cf(family(&self.db, COMPLETE), snapshot.0);
        Ok(found.map_err(|error| database_error(&self.path, error))?.is_some())
    }

    /// Notes that every chunk and node of a snapshot was found here.
    ///
    /// # Errors
    /// `Io` when the database cannot be written.
    pub fn mark_complete(&self, snapshot: SnapshotId) -> Result<()> {
        let marked = self.db.put_cf(family(&self.db, COMPLETE), snapshot.0, []);
        marked.map_err(|error| database_error(&self.path, error))
    }
}
