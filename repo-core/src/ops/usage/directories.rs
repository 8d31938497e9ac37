//! What is stored, from the packs' own directories: nodes with their places, chunks into a table.

use std::collections::HashMap;

use rayon::prelude::*;

use super::Usage;
use super::owners::{NOBODY, OwnerId};
use super::table::ChunkTable;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{NodeId, PackId};
use crate::monitor::{Monitor, check_cancelled};
use crate::pack::Content;
use crate::pack::directory::{Entry, Frame};
use crate::pack::reader::PackReader;
use crate::repository::Repository;
use crate::store::Listed;

/// Packs whose directories are in memory at once.
const BATCH: usize = 32;

/// The number of a stored node.
pub(super) type NodeNumber = u32;

/// A node in its pack.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoredNode {
    /// Who refers to it.
    pub(super) owner: OwnerId,
    /// Its share of its frame, in bytes.
    stored: u32,
    /// The number of its pack in `meta`.
    pub(super) pack: u32,
    /// Its frame's position in the pack.
    pub(super) frame: u16,
    /// Its position in the frame.
    pub(super) slot: u16,
}

/// The directories of all packs: those of meta packs in memory, those of data packs passed on.
pub(super) struct Directories {
    /// Meta packs, open.
    pub(super) meta: Vec<PackReader>,
    /// Nodes by number.
    pub(super) nodes: Vec<StoredNode>,
    by_id: HashMap<NodeId, NodeNumber>,
    data: Vec<Listed<PackId>>,
}

impl Directories {
    /// Reads the directories of `packs`, puts chunks into `chunks`, and adds what is in no entry to `usage`.
    ///
    /// Of copies the first counts.
    pub(super) fn read(
        repository: &Repository,
        packs: Vec<Listed<PackId>>,
        chunks: &mut ChunkTable,
        usage: &mut Usage,
        monitor: &dyn Monitor,
    ) -> Result<Self> {
        let mut all = Self { meta: Vec::new(), nodes: Vec::new(), by_id: HashMap::new(), data: Vec::new() };
        for_each(repository, &packs, monitor, |listed, opened| {
            let pack = match opened {
                Ok(pack) => pack,
                Err(error) if error.is_damage() => {
                    usage.unreadable += listed.len;
                    usage.pack_count += 1;
                    monitor.damage(&error);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let sealed: u64 =
                pack.directory().frames().iter().map(frame_overhead).map(|(in_entries, _)| in_entries).sum();
            usage.overhead += listed.len - sealed;
            usage.pack_count += 1;
            match pack.content() {
                Content::Data => {
                    add_chunks(&pack, chunks);
                    all.data.push(*listed);
                }
                Content::Meta => usage.duplicate += all.add_nodes(pack)?,
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Reads the directories of data packs once more, for another round.
    pub(super) fn read_data_again(
        &self,
        repository: &Repository,
        chunks: &mut ChunkTable,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        for_each(repository, &self.data, monitor, |_, opened| {
            add_chunks(&opened?, chunks);
            Ok(())
        })
    }

    /// Takes the nodes of a meta pack in; the bytes of those that are there already.
    fn add_nodes(&mut self, reader: PackReader) -> Result<u64> {
        let too_many = |_| Error::invalid("there are more manifest nodes than can be accounted for");
        let pack = u32::try_from(self.meta.len()).map_err(too_many)?;
        let mut duplicate = 0;
        // Inclusive: a pack may have 65 536 frames, a frame as many entries.
        for (frame_at, frame) in (0..=u16::MAX).zip(reader.directory().frames()) {
            let entries = reader.directory().entries_of(frame);
            for (slot, (entry, stored)) in (0..=u16::MAX).zip(shares(frame, entries)) {
                let number = u32::try_from(self.nodes.len()).map_err(too_many)?;
                match self.by_id.entry(NodeId(entry.id.0)) {
                    std::collections::hash_map::Entry::Occupied(_) => duplicate += u64::from(stored),
                    std::collections::hash_map::Entry::Vacant(vacant) => {
                        vacant.insert(number);
                        self.nodes.push(StoredNode { owner: NOBODY, stored, pack, frame: frame_at, slot });
                    }
                }
            }
        }
        self.meta.push(reader);
        Ok(duplicate)
    }

    /// The number of a node; none when it is in no readable pack.
    pub(super) fn number(&self, id: NodeId) -> Option<NodeNumber> {
        self.by_id.get(&id).copied()
    }

    /// Who refers to each node, and what it takes.
    pub(super) fn node_owners(&self) -> impl Iterator<Item = (OwnerId, u64)> {
        self.nodes.iter().map(|node| (node.owner, u64::from(node.stored)))
    }
}

/// Opens `packs` in batches on all cores and hands them out in their order. Those that are gone are left out.
fn for_each(
    repository: &Repository,
    packs: &[Listed<PackId>],
    monitor: &dyn Monitor,
    mut take: impl FnMut(&Listed<PackId>, Result<PackReader>) -> Result<()>,
) -> Result<()> {
    let Repository { store, config, keys, .. } = repository;
    monitor.begin("reading pack directories", Some(packs.iter().map(|pack| pack.len).sum()));
    for batch in packs.chunks(BATCH) {
        check_cancelled(monitor)?;
        let opened: Vec<_> =
            batch.par_iter().map(|pack| PackReader::open(store, pack.id, pack.len, config, keys)).collect();
        for (listed, opened) in batch.iter().zip(opened) {
            match opened {
                // Condemned, and deleted since it was listed.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                opened => take(listed, opened)?,
            }
            monitor.advance(listed.len);
        }
    }
    monitor.end();
    Ok(())
}

fn add_chunks(pack: &PackReader, chunks: &mut ChunkTable) {
    for frame in pack.directory().frames() {
        for (entry, stored) in shares(frame, pack.directory().entries_of(frame)) {
            chunks.insert(entry.id, stored, entry.len);
        }
    }
}

/// Of a frame's sealed bytes, those split over its entries, and those that belong to none.
fn frame_overhead(frame: &Frame) -> (u64, u64) {
    let sealed = u64::from(frame.record.sealed_len);
    // A frame of nothing has no entry to give its bytes to.
    if frame.record.plain_len == 0 { (0, sealed) } else { (sealed, 0) }
}

/// The entries of a frame, each with its share of the sealed bytes in proportion to its plaintext. The shares add up to
/// the frame exactly.
fn shares<'a>(frame: &Frame, entries: &'a [Entry]) -> impl Iterator<Item = (&'a Entry, u32)> {
    let (sealed, plain) = (u64::from(frame.record.sealed_len), u64::from(frame.record.plain_len));
    let mut before = 0_u64;
    entries.iter().map(move |entry| {
        // Both factors are below 2^32. A frame of nothing has no shares.
        let up_to = |plain_end: u64| (sealed * plain_end).checked_div(plain).unwrap_or(0);
        let start = up_to(before);
        before += u64::from(entry.len);
        (entry, u32::try_from(up_to(before) - start).expect("a share is at most the frame"))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::Codec;
    use crate::id::EntryId;
    use crate::pack::FrameRecord;
    use crate::pack::directory::Directory;

    proptest! {
        #[test]
        fn shares_add_up_to_the_frame(sealed_len: u32, lens in prop::collection::vec(0..100_000_u32, 0..50)) {
            let entries: Vec<_> = lens.iter().map(|len| Entry { id: EntryId([1; 32]), len: *len }).collect();
            let plain_len: u32 = lens.iter().sum();
            let record = FrameRecord { sealed_len, plain_len, entry_count: lens.len() as u32, codec: Codec::Zstd };
            let mut directory = Directory::new(0);
            directory.push(record, &entries);
            let frame = &directory.frames()[0];
            let sum: u64 = shares(frame, &entries).map(|(_, share)| u64::from(share)).sum();
            let (in_entries, in_none) = frame_overhead(frame);
            prop_assert_eq!((sum, sum + in_none), (in_entries, u64::from(sealed_len)));
        }
    }
}
