//! What a replica noted of object lock: under which terms the repository was, and until when objects are locked whose lock was
//! renewed.

use std::collections::BTreeSet;

use rocksdb::{IteratorMode, WriteBatch};

use super::{IDENTITY, Index, LOCKS, PackNumber, PackState, database_error, family};
use crate::error::Result;
use crate::id::EntryId;
use crate::store::ObjectName;
use crate::store::lock::LockName;

/// Key of the terms among what identifies a replica.
const TERMS_KEY: &[u8] = b"lock";

impl Index {
    /// What the repository was found to be locked by the last time.
    ///
    /// # Errors
    /// `Io` when the database cannot be read.
    pub fn known_lock(&self) -> Result<Option<LockName>> {
        let found = self.db.get_cf(family(&self.db, IDENTITY), TERMS_KEY);
        let found = found.map_err(|error| database_error(&self.path, error))?;
        Ok(found.and_then(|bytes| LockName::parse(std::str::from_utf8(&bytes).ok()?).ok()))
    }

    /// Notes what the repository is locked by.
    ///
    /// # Errors
    /// `Io` when the database cannot be written.
    pub fn learn_lock(&self, name: LockName) -> Result<()> {
        let put = self.db.put_cf(family(&self.db, IDENTITY), TERMS_KEY, name.to_string());
        put.map_err(|error| database_error(&self.path, error))
    }

    /// Until when objects are locked, as far as it was noted, in milliseconds since the Unix epoch; in the order of `names`.
    ///
    /// # Errors
    /// `Io` when the database cannot be read.
    pub fn known_retentions(&self, names: &[ObjectName]) -> Result<Vec<Option<i64>>> {
        let keys: Vec<String> = names.iter().map(ObjectName::path).collect();
        let found = self.db.batched_multi_get_cf(family(&self.db, LOCKS), &keys, false);
        let until = |bytes: &[u8]| Some(i64::from_be_bytes(bytes.try_into().ok()?));
        let untils = found.into_iter().map(|found| found.map(|found| until(found.as_deref()?)));
        untils.map(|found| found.map_err(|error| database_error(&self.path, error))).collect()
    }

    /// Notes until when objects are locked, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// `Io` when the database cannot be written.
    pub fn learn_retentions(&self, untils: &[(ObjectName, i64)]) -> Result<()> {
        let mut batch = WriteBatch::default();
        for (name, until_ms) in untils {
            batch.put_cf(family(&self.db, LOCKS), name.path(), until_ms.to_be_bytes());
        }
        self.db.write(batch).map_err(|error| database_error(&self.path, error))
    }

    /// Drops what was noted of locks that are over.
    ///
    /// # Errors
    /// `Io` when the database fails.
    pub fn drop_retentions_before(&self, now_ms: i64) -> Result<()> {
        let mut batch = WriteBatch::default();
        for item in self.db.iterator_cf(family(&self.db, LOCKS), IteratorMode::Start) {
            let (key, value) = item.map_err(|error| database_error(&self.path, error))?;
            if value.first_chunk().is_none_or(|until| i64::from_be_bytes(*until) < now_ms) {
                batch.delete_cf(family(&self.db, LOCKS), &key);
            }
        }
        self.db.write(batch).map_err(|error| database_error(&self.path, error))
    }

    /// The live packs in which the entries stand that are wanted: of each entry one place. One pass over the whole index.
    ///
    /// # Errors
    /// `Io` when the database cannot be read.
    pub fn live_packs_with(&self, wanted: impl Fn(EntryId) -> bool) -> Result<BTreeSet<PackNumber>> {
        let packs = self.packs.read();
        let mut found = BTreeSet::new();
        for item in self.db.iterator_cf(self.entries(), IteratorMode::Start) {
            let (key, value) = item.map_err(|error| database_error(&self.path, error))?;
            let id = EntryId(key[..].try_into().map_err(|_| self.damaged("an entry's key is cut short"))?);
            if !wanted(id) {
                continue;
            }
            let first = self.location(&packs, &value)?;
            let place = match packs.get(first.pack).state {
                PackState::Live => Some(first),
                _ => self.best_place(&packs, id, first)?,
            };
            found.extend(place.map(|place| place.pack).filter(|pack| packs.get(*pack).state == PackState::Live));
        }
        Ok(found)
    }
}
