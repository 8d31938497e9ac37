//! Sets of ids in little memory, for walks over all manifests: the first eight bytes of each, in a table of fixed size.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::id::EntryId;

/// Ids held at once; 8 bytes each, and room to spare: 270 MiB.
pub(in crate::ops) const IDS_MAX: u64 = 24 << 20;

/// The part of all ids that one pass deals with. With more ids than fit into memory there are several passes.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Part {
    number: u64,
    of: u64,
}

impl Part {
    /// All parts of `ids` ids.
    pub(in crate::ops) fn all(ids: u64) -> impl Iterator<Item = Self> {
        Self::split(ids, IDS_MAX)
    }

    fn split(ids: u64, ids_max: u64) -> impl Iterator<Item = Self> {
        let of = ids.div_ceil(ids_max).max(1);
        (0..of).map(move |number| Self { number, of })
    }

    /// Whether the id belongs to this part.
    pub(in crate::ops) fn contains(self, id: EntryId) -> bool {
        // The last bytes, so that a part's fingerprints still spread over the whole table.
        let last = id.0.last_chunk().expect("an id has 32 bytes");
        u64::from_le_bytes(*last) % self.of == self.number
    }

    /// How many of `ids` ids belong to one part, at most, but for a hair: they are hashes and spread evenly.
    pub(in crate::ops) fn share(self, ids: u64) -> u64 {
        ids.div_ceil(self.of)
    }
}

/// A set of ids that only grows, shared between threads.
///
/// Two ids with equal first bytes count as one: for garbage collection, one that is dead may be taken for live, and stays.
/// Ids are keyed hashes: nobody can make such pairs, and by chance there are none.
pub(in crate::ops) struct IdSet {
    slots: Vec<AtomicU64>,
}

impl IdSet {
    /// A set with room for `ids` ids.
    pub(in crate::ops) fn new(ids: u64) -> Self {
        // A quarter and a bit empty, so that chains stay short, and never full.
        let len = usize::try_from(ids + ids / 5 * 2 + 64).expect("parts fit into memory");
        Self { slots: std::iter::repeat_with(|| AtomicU64::new(0)).take(len).collect() }
    }

    /// Adds an id; whether it was new.
    ///
    /// # Errors
    /// `Corrupt` when there is no room: then more is needed than is stored.
    pub(in crate::ops) fn insert(&self, id: EntryId) -> Result<bool> {
        let wanted = fingerprint(id);
        for slot in self.chain(wanted) {
            match slot.compare_exchange(0, wanted, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(true),
                Err(taken) if taken == wanted => return Ok(false),
                Err(_) => {}
            }
        }
        Err(Error::corrupt("snapshots need more chunks and nodes than are stored"))
    }

    /// Whether an id was added.
    pub(in crate::ops) fn contains(&self, id: EntryId) -> bool {
        let wanted = fingerprint(id);
        for slot in self.chain(wanted) {
            match slot.load(Ordering::Relaxed) {
                0 => return false,
                taken if taken == wanted => return true,
                _ => {}
            }
        }
        false
    }

    /// The memory it takes, in bytes: the same from its making on.
    #[cfg(test)]
    pub(in crate::ops) fn len_bytes(&self) -> u64 {
        (self.slots.len() * size_of::<AtomicU64>()) as u64
    }

    /// The slots that a fingerprint may stand in, in the order they are tried.
    fn chain(&self, fingerprint: u64) -> impl Iterator<Item = &AtomicU64> {
        let start = (u128::from(fingerprint) * self.slots.len() as u128) >> 64;
        let start = usize::try_from(start).expect("below the table's length");
        self.slots[start..].iter().chain(&self.slots[..start])
    }
}

/// The id's first bytes; never 0, which marks an empty slot.
fn fingerprint(id: EntryId) -> u64 {
    let first = id.0.first_chunk().expect("an id has 32 bytes");
    u64::from_be_bytes(*first).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    fn id(number: u64) -> EntryId {
        EntryId(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    proptest! {
        #[test]
        fn an_id_set_is_a_set(added in prop::collection::vec(0_u64..3000, 0..3000)) {
            let set = IdSet::new(3000);
            let mut model = HashSet::new();
            for number in &added {
                prop_assert_eq!(set.insert(id(*number)).unwrap(), model.insert(*number));
            }
            for number in 0..3000 {
                prop_assert_eq!(set.contains(id(number)), model.contains(&number));
            }
        }
    }

    #[test]
    fn a_set_that_is_full_says_so() {
        let set = IdSet::new(0);
        let added = (0..1000).find(|number| set.insert(id(*number)).is_err());
        assert_eq!(added, Some(64));
        assert!(!set.contains(id(1000)) && set.contains(id(63)));
    }

    #[test]
    fn every_id_belongs_to_exactly_one_part() {
        let parts: Vec<_> = Part::split(1000, 300).collect();
        assert_eq!(parts.len(), 4);
        for number in 0..1000 {
            assert_eq!(parts.iter().filter(|part| part.contains(id(number))).count(), 1);
        }
        assert_eq!(Part::split(0, 300).count(), 1);
    }
}
