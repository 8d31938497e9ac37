//! Whole directories kept in memory, because look-ups have locality.
//!
//! Chunks that were backed up together are looked up together, and a pack's directory names thousands of them. Once a few
//! look-ups hit one pack, its whole directory is taken into memory, and the look-ups that follow need no database. On a large
//! index that is one read of 100 KB instead of thousands of random ones (Zhu, Li and Patterson, "Avoiding the Disk
//! Bottleneck in the Data Domain Deduplication File System", FAST 2008).

use std::collections::{HashMap, VecDeque};

use parking_lot::RwLock;

use crate::id::EntryId;
use crate::index::{Location, PackNumber};
use crate::pack::directory::Directory;

/// Look-ups that hit one pack before its directory is taken in.
const HITS_WANTED: u32 = 16;
/// Entries held, about 60 bytes each.
const ENTRIES_MAX: usize = 1 << 18;
/// Packs whose hits are counted at once.
const COUNTED_MAX: usize = 1 << 12;

/// Directories in memory. Shared between threads.
#[derive(Default)]
pub(super) struct Prefetch(RwLock<Held>);

#[derive(Default)]
struct Held {
    entries: HashMap<EntryId, Location>,
    /// The packs held, oldest first, with their entries.
    packs: VecDeque<(PackNumber, Vec<EntryId>)>,
    hits: HashMap<PackNumber, u32>,
}

impl Prefetch {
    /// Where each of `ids` stands, as far as directories in memory tell.
    pub(super) fn find(&self, ids: &[EntryId]) -> Vec<Option<Location>> {
        let held = self.0.read();
        if held.entries.is_empty() {
            return vec![None; ids.len()];
        }
        ids.iter().map(|id| held.entries.get(id).copied()).collect()
    }

    /// Counts what the database found, and gives the packs that are now worth taking in.
    pub(super) fn count(&self, found: impl Iterator<Item = PackNumber>) -> Vec<PackNumber> {
        let mut held = self.0.write();
        if held.hits.len() > COUNTED_MAX {
            held.hits.clear();
        }
        found
            .filter(|pack| {
                let hits = held.hits.entry(*pack).or_default();
                *hits += 1;
                *hits == HITS_WANTED
            })
            .collect()
    }

    /// Takes a directory in; the oldest ones go when there is no room.
    pub(super) fn take_in(&self, pack: PackNumber, directory: &Directory) {
        let mut held = self.0.write();
        let ids: Vec<EntryId> = directory.entries().iter().map(|entry| entry.id).collect();
        while held.entries.len() + ids.len() > ENTRIES_MAX {
            let Some((oldest, ids)) = held.packs.pop_front() else { break };
            held.hits.remove(&oldest);
            for id in ids {
                held.entries.remove(&id);
            }
        }
        // Inclusive: a frame may have 65 536 entries, a pack as many frames.
        for (frame_at, frame) in (0..=u16::MAX).zip(directory.frames()) {
            for (slot, entry) in (0..=u16::MAX).zip(directory.entries_of(frame)) {
                held.entries.insert(entry.id, Location { pack, frame: frame_at, slot });
            }
        }
        held.packs.push_back((pack, ids));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Codec;
    use crate::pack::FrameRecord;
    use crate::pack::directory::Entry;

    #[test]
    fn a_pack_is_worth_it_once_and_old_ones_make_room() {
        let prefetch = Prefetch::default();
        let pack = PackNumber::for_test(7);
        let before = prefetch.count(std::iter::repeat_n(pack, HITS_WANTED as usize - 1));
        assert_eq!((before, prefetch.count([pack, pack].into_iter())), (vec![], vec![pack]));

        let id = |number: u32| EntryId(std::array::from_fn(|at| number.to_le_bytes()[at % 4]));
        let per_pack = 1 << 16;
        for number in 0..5_u32 {
            let mut directory = Directory::new(64);
            let entries: Vec<_> =
                (0..per_pack).map(|entry| Entry { id: id(number * per_pack + entry), len: 1 }).collect();
            let record = FrameRecord { sealed_len: 20, plain_len: per_pack, entry_count: per_pack, codec: Codec::Zstd };
            directory.push(record, &entries);
            prefetch.take_in(PackNumber::for_test(number), &directory);
        }
        let found = prefetch.find(&[id(0), id(per_pack), id(5 * per_pack - 1), id(5 * per_pack)]);
        let packs: Vec<_> = found.iter().map(|found| found.map(|location| location.pack)).collect();
        assert_eq!(packs, [None, Some(PackNumber::for_test(1)), Some(PackNumber::for_test(4)), None]);
        assert_eq!(found[2].map(|location| location.slot), Some(u16::MAX));
    }
}
