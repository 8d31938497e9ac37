//! What a replica noted: tombstones it read, and snapshots that are known to be stored whole.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use rocksdb::{IteratorMode, WriteBatch};

use super::{COMPLETE, Index, TOMBSTONES, database_error, family};
use crate::error::Result;
use crate::id::{SnapshotId, TombstoneId};

impl Index {
    /// The bytes of a tombstone that was read before.
    ///
    /// # Errors
    /// `Io` when the database cannot be read.
    pub fn known_tombstone(&self, id: TombstoneId) -> Result<Option<Vec<u8>>> {
        self.db.get_cf(family(&self.db, TOMBSTONES), id.0).map_err(|error| database_error(&self.path, error))
    }

    /// Keeps a tombstone that was read, so that it need not be read again.
    ///
    /// # Errors
    /// `Io` when the database cannot be written.
    pub fn learn_tombstone(&self, id: TombstoneId, record: &[u8]) -> Result<()> {
        let put = self.db.put_cf(family(&self.db, TOMBSTONES), id.0, record);
        put.map_err(|error| database_error(&self.path, error))
    }

    /// Drops the tombstones that are not among `ids`.
    ///
    /// # Errors
    /// `Io` when the database fails.
    pub fn retain_tombstones(&self, ids: &BTreeSet<TombstoneId>) -> Result<()> {
        let tombstones = family(&self.db, TOMBSTONES);
        for item in self.db.iterator_cf(tombstones, IteratorMode::Start) {
            let (key, _) = item.map_err(|error| database_error(&self.path, error))?;
            if key.first_chunk().is_none_or(|id| !ids.contains(&TombstoneId(*id))) {
                self.db.delete_cf(tombstones, &key).map_err(|error| database_error(&self.path, error))?;
            }
        }
        Ok(())
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
