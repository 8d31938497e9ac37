//! The survey: what of each pack is needed, from its directory.

use std::collections::BTreeSet;

use rayon::prelude::*;

use crate::error::Result;
use crate::id::EntryId;
use crate::index::{KnownPack, PackNumber, PackState};
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::id_set::{IdSet, Part};
use crate::ops::open::Session;
use crate::pack::Content;
use crate::pack::directory::Directory;
use crate::pack::reader::PackReader;
use crate::repository::Repository;

/// Packs whose directories are in memory at once.
const BATCH: usize = 64;

/// What of a pack is needed.
pub(super) struct PackUse {
    pub(super) pack: KnownPack,
    /// Entries that are needed and count here, one bit each. Of a chunk in several packs one copy counts.
    needed: Vec<u64>,
    /// How many those are.
    pub(super) needed_entries: u64,
    /// Stored bytes of needed entries: of each frame the share of its plaintext.
    pub(super) needed_bytes: u64,
    /// Stored bytes of all entries.
    pub(super) frame_bytes: u64,
    /// Whether the directory could be read. A pack that cannot be read is left alone.
    pub(super) readable: bool,
    /// Its frames, of data packs only.
    frames: Vec<FrameUse>,
}

/// A frame of a data pack.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameUse {
    /// The position of its first entry in the directory.
    first_entry: u32,
    /// Bytes it decodes to.
    pub(super) plain_len: u32,
}

impl PackUse {
    fn new(pack: KnownPack) -> Self {
        let needed = vec![0; (pack.entries as usize).div_ceil(64)];
        Self { pack, needed, needed_entries: 0, needed_bytes: 0, frame_bytes: 0, readable: true, frames: Vec::new() }
    }

    #[cfg(test)]
    pub(super) fn for_test(name: u8, frames: &[(u32, u32)]) -> Self {
        let entries = frames.iter().map(|(entries, _)| entries).sum();
        let id = crate::id::PackId([name; 32]);
        let mut used = Self::new(KnownPack { id, len: 0, content: Content::Data, entries, state: PackState::Live });
        used.needed.fill(u64::MAX);
        used.needed_entries = u64::from(entries);
        let mut first_entry = 0;
        for (entries, plain_len) in frames {
            used.frames.push(FrameUse { first_entry, plain_len: *plain_len });
            used.needed_bytes += u64::from(*plain_len);
            first_entry += entries;
        }
        used
    }

    /// Whether the entry at a position of the directory is needed.
    pub(super) fn is_needed(&self, entry: usize) -> bool {
        self.needed.get(entry / 64).is_some_and(|word| word >> (entry % 64) & 1 == 1)
    }

    /// A frame of a data pack that could be read.
    pub(super) fn frame(&self, position: u16) -> Option<FrameUse> {
        self.frames.get(usize::from(position)).copied()
    }

    /// The position of an entry in the directory of a data pack, by frame and slot.
    pub(super) fn entry(&self, frame: u16, slot: u16) -> Option<usize> {
        let entry = self.frame(frame)?.first_entry as usize + usize::from(slot);
        (entry < self.pack.entries as usize).then_some(entry)
    }

    /// Whether nothing of it is needed.
    pub(super) fn is_dead(&self) -> bool {
        self.readable && self.needed_entries == 0
    }

    /// The share of its stored bytes that nothing needs, 0 to 1.
    pub(super) fn dead_share(&self) -> f64 {
        if self.frame_bytes == 0 {
            return 0.0;
        }
        (self.frame_bytes - self.needed_bytes) as f64 / self.frame_bytes as f64
    }
}

/// Surveys all packs, with `mark` filling a set for each part of the ids.
pub(super) fn survey(
    session: &Session,
    mark: &mut dyn FnMut(Part, &IdSet) -> Result<()>,
    monitor: &dyn Monitor,
) -> Result<Vec<PackUse>> {
    let mut uses: Vec<_> = session.index.packs().into_iter().map(PackUse::new).collect();
    let entries = uses.iter().map(|used| u64::from(used.pack.entries)).sum();
    let with_copies = session.index.ids_with_copies()?;
    for (at, part) in Part::all(entries).enumerate() {
        let live = IdSet::new(part.share(entries));
        mark(part, &live)?;
        let survey = Survey { session, part, live: &live, with_copies: &with_copies, first: at == 0 };
        monitor.begin("reading pack directories", Some(uses.iter().map(|used| used.pack.len).sum()));
        for batch in uses.chunks_mut(BATCH) {
            check_cancelled(monitor)?;
            batch.par_iter_mut().try_for_each(|used| {
                survey.look_at(used, monitor)?;
                monitor.advance(used.pack.len);
                Ok::<_, crate::Error>(())
            })?;
        }
        monitor.end();
    }
    Ok(uses)
}

struct Survey<'a> {
    session: &'a Session,
    part: Part,
    live: &'a IdSet,
    with_copies: &'a BTreeSet<EntryId>,
    /// Whether this is the first part: what is the same for all parts is counted then.
    first: bool,
}

impl Survey<'_> {
    fn look_at(&self, used: &mut PackUse, monitor: &dyn Monitor) -> Result<()> {
        let Repository { store, config, keys, .. } = &*self.session.repository;
        match PackReader::open(store, used.pack.id, used.pack.len, config, keys) {
            Ok(reader) => self.count(used, reader.directory()),
            Err(error) if error.is_loss() => {
                if self.first {
                    monitor.damage(&error);
                }
                used.readable = false;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn count(&self, used: &mut PackUse, directory: &Directory) -> Result<()> {
        let Some(number) = self.session.index.number_of(used.pack.id) else { return Ok(()) };
        let mut at = 0;
        for frame in directory.frames() {
            if self.first && used.pack.content == Content::Data {
                let first_entry = u32::try_from(at).expect("a pack has fewer than 2^32 entries");
                used.frames.push(FrameUse { first_entry, plain_len: frame.record.plain_len });
            }
            let mut needed_plain = 0;
            for entry in directory.entries_of(frame) {
                if self.part.contains(entry.id)
                    && self.live.contains(entry.id)
                    && self.counts(entry.id, number, used)?
                {
                    // The index knew the pack's entries when it was surveyed; a directory never changes.
                    used.needed[at / 64] |= 1 << (at % 64);
                    used.needed_entries += 1;
                    needed_plain += u64::from(entry.len);
                }
                at += 1;
            }
            let sealed = u64::from(frame.record.sealed_len);
            used.needed_bytes += sealed * needed_plain / u64::from(frame.record.plain_len).max(1);
            used.frame_bytes += if self.first { sealed } else { 0 };
        }
        Ok(())
    }

    /// Whether this copy of an entry is the one that counts.
    fn counts(&self, id: EntryId, number: PackNumber, used: &PackUse) -> Result<bool> {
        // With a single place there is no choice. A condemned pack's entry may have got a copy since.
        if used.pack.state == PackState::Live && !self.with_copies.contains(&id) {
            return Ok(true);
        }
        let best = self.session.index.find(&[id])?[0];
        Ok(best.is_some_and(|best| best.pack == number))
    }
}
