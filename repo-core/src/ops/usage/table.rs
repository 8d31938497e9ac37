//! The chunks of a repository in little memory: 64 bits of an id, what it takes, and who refers to it.

use super::Bytes;
use super::owners::{NOBODY, OwnerId};
use crate::id::EntryId;

/// Chunks held at once. More are looked at in several rounds.
const CHUNKS_MAX: usize = if cfg!(test) { 200 } else { 6 << 20 };
/// Slots to begin with.
const SLOTS_MIN: usize = 64;
/// The key of an empty slot. The one id in 2^64 that begins so is taken for its neighbour.
const EMPTY: u64 = 0;

/// An open-addressing table: 20 bytes a slot, at most three slots in four taken.
pub(super) struct ChunkTable {
    keys: Vec<u64>,
    values: Vec<Value>,
    len: usize,
    round: u32,
    rounds: u32,
    /// Distinct chunks seen, held or not, while there is one round; some twice once the table was full.
    seen: u64,
    duplicate_bytes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Value {
    owner: OwnerId,
    stored: u32,
    plain: u32,
}

impl ChunkTable {
    /// A table for the part `round` of `rounds` equal parts of all ids.
    pub(super) fn new(round: u32, rounds: u32) -> Self {
        let (keys, values) = (vec![EMPTY; SLOTS_MIN], vec![Value::default(); SLOTS_MIN]);
        Self { keys, values, len: 0, round, rounds, seen: 0, duplicate_bytes: 0 }
    }

    /// The part of an id that tells chunks apart, if it belongs into this round.
    pub(super) fn key(&self, id: EntryId) -> Option<u64> {
        let key = u64::from_le_bytes(*id.0.first_chunk().expect("an id has 32 bytes")).max(1);
        let part = (u128::from(key) * u128::from(self.rounds)) >> 64;
        (part == u128::from(self.round)).then_some(key)
    }

    /// Adds a chunk that is stored. A further copy only counts as such.
    pub(super) fn insert(&mut self, id: EntryId, stored: u32, plain: u32) {
        let Some(key) = self.key(id) else { return };
        let slot = self.slot(key);
        if self.keys[slot] == key {
            self.duplicate_bytes += u64::from(stored);
            return;
        }
        self.seen += 1;
        if self.len >= CHUNKS_MAX && self.rounds == 1 {
            // Full: the rest is only counted, to know how many rounds it takes.
            return;
        }
        self.keys[slot] = key;
        self.values[slot] = Value { owner: NOBODY, stored, plain };
        self.len += 1;
        if self.len * 4 > self.keys.len() * 3 {
            self.grow();
        }
    }

    /// The owner of a chunk of this round, to be read and changed; none when it is not stored.
    pub(super) fn owner_mut(&mut self, key: u64) -> Option<&mut OwnerId> {
        let slot = self.slot(key);
        (self.keys[slot] == key).then(|| &mut self.values[slot].owner)
    }

    /// In how many rounds the chunks that were inserted can be held.
    pub(super) fn rounds_needed(&self) -> u32 {
        if self.seen <= CHUNKS_MAX as u64 {
            return 1;
        }
        // Room for parts that are larger than the average.
        let rounds = self.seen.div_ceil(CHUNKS_MAX as u64 * 15 / 16);
        u32::try_from(rounds).expect("there are far fewer than 2^48 chunks")
    }

    /// Copies of chunks that were stored already, in bytes.
    pub(super) fn duplicate_bytes(&self) -> u64 {
        self.duplicate_bytes
    }

    /// Who owns each chunk, and what it takes.
    pub(super) fn iter(&self) -> impl Iterator<Item = (OwnerId, Bytes)> {
        let taken = self.keys.iter().zip(&self.values).filter(|(key, _)| **key != EMPTY);
        taken.map(|(_, value)| (value.owner, Bytes { stored: u64::from(value.stored), plain: u64::from(value.plain) }))
    }

    /// Where a key stands or would stand. Keys are hashes: their high bits, which rounds do not cut by, are the place.
    fn slot(&self, key: u64) -> usize {
        let mask = self.keys.len() - 1;
        let mut slot = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize & mask;
        while self.keys[slot] != EMPTY && self.keys[slot] != key {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        let slots = self.keys.len() * 2;
        let keys = std::mem::replace(&mut self.keys, vec![EMPTY; slots]);
        let values = std::mem::replace(&mut self.values, vec![Value::default(); slots]);
        for (key, value) in keys.into_iter().zip(values).filter(|(key, _)| *key != EMPTY) {
            let slot = self.slot(key);
            self.keys[slot] = key;
            self.values[slot] = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> EntryId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
        EntryId(bytes)
    }

    #[test]
    fn chunks_are_found_and_copies_counted_apart() {
        let mut table = ChunkTable::new(0, 1);
        for number in 0..CHUNKS_MAX as u64 {
            table.insert(id(number), 10, 20);
        }
        table.insert(id(7), 12, 20);
        assert_eq!((table.duplicate_bytes(), table.rounds_needed()), (12, 1));
        for number in 0..2 * CHUNKS_MAX as u64 {
            let key = table.key(id(number)).unwrap();
            assert_eq!(table.owner_mut(key).is_some(), number < CHUNKS_MAX as u64, "{number}");
        }
        let sum: u64 = table.iter().map(|(_, bytes)| bytes.stored).sum();
        assert_eq!(sum, 10 * CHUNKS_MAX as u64);
    }

    #[test]
    fn what_does_not_fit_is_split_over_rounds_without_loss() {
        let count = 5 * CHUNKS_MAX as u64;
        let mut table = ChunkTable::new(0, 1);
        (0..count).for_each(|number| table.insert(id(number), 1, 1));
        let rounds = table.rounds_needed();
        assert!(rounds > 5, "{rounds}");
        let held: usize = (0..rounds)
            .map(|round| {
                let mut part = ChunkTable::new(round, rounds);
                (0..count).for_each(|number| part.insert(id(number), 1, 1));
                assert!(part.len < CHUNKS_MAX * 2);
                part.iter().count()
            })
            .sum();
        assert_eq!(held as u64, count);
    }
}
