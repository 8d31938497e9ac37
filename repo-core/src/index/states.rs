//! Which packs are there and which are condemned; and the entries of packs that are gone.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use rocksdb::{IteratorMode, WriteBatch};
use zerocopy::IntoBytes;

use super::{
    COPIES, Index, KnownPack, PACKS, PackState, StateChanges, StoredLocation, StoredPack, copy_key, database_error,
    family,
};
use crate::error::Result;
use crate::id::{EntryId, PackId};
use crate::pack::Content;

impl Index {
    /// How many packs were ever known. What is inserted from here on gets numbers from this one on.
    pub fn known_count(&self) -> u32 {
        self.packs.read().next().0
    }

    /// Whether a pack is gone that nobody condemned. The arguments are those of [`set_states`](Self::set_states).
    pub fn misses_a_pack(&self, known: u32, listed: &[PackId], condemned: &BTreeSet<PackId>) -> bool {
        let packs = self.packs.read();
        packs.iter().take(known as usize).any(|pack| {
            pack.state == PackState::Live && !condemned.contains(&pack.id) && listed.binary_search(&pack.id).is_err()
        })
    }

    /// Takes in which packs the store has, ascending, and which are condemned. `known` is the
    /// [`known_count`](Self::known_count) from before the packs were listed: of what was inserted since, the list says
    /// nothing. When a pack is gone that nobody condemned, no snapshot counts as complete any more.
    ///
    /// # Errors
    /// `Io` when the database cannot be written.
    pub fn set_states(&self, known: u32, listed: &[PackId], condemned: &BTreeSet<PackId>) -> Result<StateChanges> {
        let mut packs = self.packs.write();
        let mut changes = StateChanges::default();
        let mut batch = WriteBatch::default();
        for (number, pack) in packs.iter_mut().take(known as usize) {
            let there = listed.binary_search(&pack.id).is_ok();
            let was_condemned = condemned.contains(&pack.id);
            let state = match (pack.state, there, was_condemned) {
                (PackState::Gone, ..) | (_, false, _) => PackState::Gone,
                (_, true, true) => PackState::Condemned,
                (_, true, false) => PackState::Live,
            };
            if state == pack.state {
                continue;
            }
            if state == PackState::Gone {
                let known = was_condemned || pack.state == PackState::Condemned;
                *(if known { &mut changes.deleted } else { &mut changes.vanished }) += 1;
            }
            if pack.state == PackState::Live {
                self.generation.fetch_add(1, Ordering::Relaxed);
            }
            pack.state = state;
            batch.put_cf(family(&self.db, PACKS), number.0.to_be_bytes(), StoredPack::new(pack).as_bytes());
        }
        self.db.write(batch).map_err(|error| database_error(&self.path, error))?;
        drop(packs);
        if changes.vanished > 0 {
            self.unmark_complete(&BTreeSet::new())?;
        }
        self.purge_if_worthwhile()?;
        Ok(changes)
    }

    /// Takes in what tombstones say, where packs were not listed: those of `deleted` are gone, those of `condemned` are
    /// condemned, and all others that are not gone are live.
    ///
    /// # Errors
    /// `Io` when the database cannot be written.
    pub fn set_states_as_told(&self, condemned: &BTreeSet<PackId>, deleted: &BTreeSet<PackId>) -> Result<()> {
        let mut packs = self.packs.write();
        let mut batch = WriteBatch::default();
        for (number, pack) in packs.iter_mut() {
            let state = match pack.state {
                _ if deleted.contains(&pack.id) => PackState::Gone,
                PackState::Gone => PackState::Gone,
                _ if condemned.contains(&pack.id) => PackState::Condemned,
                _ => PackState::Live,
            };
            if state == pack.state {
                continue;
            }
            if pack.state == PackState::Live {
                self.generation.fetch_add(1, Ordering::Relaxed);
            }
            pack.state = state;
            batch.put_cf(family(&self.db, PACKS), number.0.to_be_bytes(), StoredPack::new(pack).as_bytes());
        }
        self.db.write(batch).map_err(|error| database_error(&self.path, error))?;
        drop(packs);
        self.purge_if_worthwhile()
    }

    /// Whether this process listed all packs, and took them in.
    pub fn has_listed(&self) -> bool {
        self.listed.load(Ordering::Relaxed)
    }

    /// Those of `packs` that this replica never met, present or gone.
    pub fn never_met(&self, packs: impl IntoIterator<Item = PackId>) -> BTreeSet<PackId> {
        let known = self.packs.read();
        packs.into_iter().filter(|id| !known.was_known(*id)).collect()
    }

    /// Notes that packs which old records name are gone, so that nobody asks for them again. One that comes back all the same
    /// is found by a listing.
    ///
    /// # Errors
    /// `Io` when the database cannot be written.
    pub fn note_gone(&self, packs: impl IntoIterator<Item = PackId>) -> Result<()> {
        let mut known = self.packs.write();
        let mut batch = WriteBatch::default();
        for id in packs.into_iter().filter(|id| !known.was_known(*id)).collect::<BTreeSet<_>>() {
            let pack = KnownPack { id, len: 0, content: Content::Data, entries: 0, state: PackState::Gone };
            batch.put_cf(family(&self.db, PACKS), known.next().0.to_be_bytes(), StoredPack::new(&pack).as_bytes());
            known.push(pack);
        }
        self.db.write(batch).map_err(|error| database_error(&self.path, error))
    }

    /// Treats packs as condemned until the next look at the tombstones: they are about to be.
    ///
    /// # Errors
    /// `Io` when the database cannot be written.
    pub fn condemn(&self, condemned: &BTreeSet<PackId>) -> Result<()> {
        let mut packs = self.packs.write();
        let mut batch = WriteBatch::default();
        let hit = |pack: &KnownPack| pack.state == PackState::Live && condemned.contains(&pack.id);
        for (number, pack) in packs.iter_mut().filter(|(_, pack)| hit(pack)) {
            pack.state = PackState::Condemned;
            batch.put_cf(family(&self.db, PACKS), number.0.to_be_bytes(), StoredPack::new(pack).as_bytes());
        }
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.db.write(batch).map_err(|error| database_error(&self.path, error))
    }

    /// Removes the entries of packs that are gone, when they are more than a quarter.
    fn purge_if_worthwhile(&self) -> Result<()> {
        let packs = self.packs.read();
        let (mut all, mut gone) = (0, 0);
        for pack in packs.iter() {
            all += u64::from(pack.entries);
            gone += if pack.state == PackState::Gone { u64::from(pack.entries) } else { 0 };
        }
        drop(packs);
        if gone * 4 > all { self.purge() } else { Ok(()) }
    }

    /// Removes the entries of packs that are gone: one pass over the whole index.
    ///
    /// # Errors
    /// `Io` when the database fails.
    pub fn purge(&self) -> Result<()> {
        let mut packs = self.packs.write();
        let mut batch = WriteBatch::default();
        let copies = family(&self.db, COPIES);
        for item in self.db.iterator_cf(self.entries(), IteratorMode::Start) {
            let (key, value) = item.map_err(|error| database_error(&self.path, error))?;
            let first = self.location(&packs, &value)?;
            if packs.get(first.pack).state != PackState::Gone {
                continue;
            }
            let id = EntryId(key[..].try_into().map_err(|_| self.damaged("an entry's key is cut short"))?);
            match self.best_place(&packs, id, first)? {
                Some(place) => {
                    let place = StoredLocation::from(place);
                    batch.put_cf(self.entries(), id.0, place.as_bytes());
                    batch.delete_cf(copies, copy_key(id, &place));
                }
                None => batch.delete_cf(self.entries(), id.0),
            }
            self.write_when_large(&mut batch)?;
        }
        for item in self.db.iterator_cf(copies, IteratorMode::Start) {
            let (key, _) = item.map_err(|error| database_error(&self.path, error))?;
            let Some((_, place)) = key.split_first_chunk::<32>() else {
                return Err(self.damaged("a copy's key is cut short"));
            };
            if packs.get(self.location(&packs, place)?.pack).state == PackState::Gone {
                batch.delete_cf(copies, &key);
                self.write_when_large(&mut batch)?;
            }
        }
        for (number, pack) in packs.iter_mut().filter(|(_, pack)| pack.state == PackState::Gone) {
            pack.entries = 0;
            batch.put_cf(family(&self.db, PACKS), number.0.to_be_bytes(), StoredPack::new(pack).as_bytes());
        }
        self.db.write(batch).map_err(|error| database_error(&self.path, error))
    }

    fn write_when_large(&self, batch: &mut WriteBatch) -> Result<()> {
        if batch.len() < 10_000 {
            return Ok(());
        }
        self.db.write(std::mem::take(batch)).map_err(|error| database_error(&self.path, error))
    }
}
