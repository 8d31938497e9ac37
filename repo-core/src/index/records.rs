//! Snapshot records that were read before, kept as they are stored: sealed, and checked against their names when they are
//! opened. So what an operation does for every snapshot is a look-up, not a file or a request.

use std::collections::BTreeSet;

use rocksdb::{IteratorMode, WriteBatch};

use super::{Index, RECORDS, database_error, family};
use crate::error::Result;
use crate::id::SnapshotId;

/// Records above this many bytes, with large VM metadata in them, are read from the store each time.
const RECORD_LEN_MAX: usize = 64 * 1024;

impl Index {
    /// The bytes of snapshot records that were kept, in the order of `ids`; `None` for what was not.
    ///
    /// # Errors
    /// `Io` when the database cannot be read.
    pub fn kept_records(&self, ids: &[SnapshotId]) -> Result<Vec<Option<Vec<u8>>>> {
        let found = self.db.batched_multi_get_cf(family(&self.db, RECORDS), ids.iter().map(|id| &id.0), false);
        let bytes = found.into_iter().map(|found| found.map(|found| found.map(|record| record.to_vec())));
        bytes.map(|bytes| bytes.map_err(|error| database_error(&self.path, error))).collect()
    }

    /// Keeps the record of a snapshot that was just made.
    ///
    /// # Errors
    /// `Io` when the database fails.
    pub fn keep_record(&self, id: SnapshotId, record: &[u8]) -> Result<()> {
        if record.len() > RECORD_LEN_MAX {
            return Ok(());
        }
        let put = self.db.put_cf(family(&self.db, RECORDS), id.0, record);
        put.map_err(|error| database_error(&self.path, error))
    }

    /// Keeps snapshot records, and drops those that are not among `there`, ascending.
    ///
    /// # Errors
    /// `Io` when the database fails.
    pub fn keep_records(&self, new: &[(SnapshotId, Vec<u8>)], there: &[SnapshotId]) -> Result<()> {
        let records = family(&self.db, RECORDS);
        let mut batch = WriteBatch::default();
        for (id, record) in new.iter().filter(|(_, record)| record.len() <= RECORD_LEN_MAX) {
            batch.put_cf(records, id.0, record);
        }
        for gone in self.kept_ids()?.into_iter().filter(|id| there.binary_search(id).is_err()) {
            batch.delete_cf(records, gone.0);
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.db.write(batch).map_err(|error| database_error(&self.path, error))
    }

    fn kept_ids(&self) -> Result<BTreeSet<SnapshotId>> {
        let mut ids = BTreeSet::new();
        for item in self.db.iterator_cf(family(&self.db, RECORDS), IteratorMode::Start) {
            let (key, _) = item.map_err(|error| database_error(&self.path, error))?;
            ids.extend(key.first_chunk().map(|id| SnapshotId(*id)));
        }
        Ok(ids)
    }
}
