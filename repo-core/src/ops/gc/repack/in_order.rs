//! What newest snapshots need of packs to be emptied, copied in the order of the route.
//!
//! A stretch of the route at a time is read, sorted by where it is stored, each frame once; then it is stored in order.

use std::collections::HashMap;

use rayon::prelude::*;

use super::{Repacker, Task};
use crate::error::{Error, Result};
use crate::id::EntryId;
use crate::index::PackNumber;
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::gc::order::{Route, Stop};
use crate::pack::Content;

/// Content in memory at once, in bytes.
const STRETCH_LEN: u64 = 64 * 1024 * 1024;

/// What was copied of each pack.
#[derive(Default)]
pub(super) struct CopiedInOrder {
    /// By position in the survey.
    packs: HashMap<usize, CopiedOfPack>,
}

struct CopiedOfPack {
    number: PackNumber,
    /// Entries that were copied or are about to be, one bit each.
    entries: Vec<u64>,
    /// Whether something of it cannot be read.
    is_lost: bool,
}

impl CopiedInOrder {
    /// Whether an entry was copied.
    pub(super) fn has(&self, used: usize, entry: usize) -> bool {
        self.packs.get(&used).is_some_and(|pack| pack.entries[entry / 64] >> (entry % 64) & 1 == 1)
    }

    /// Whether something of a pack cannot be read.
    pub(super) fn is_lost(&self, used: usize) -> bool {
        self.packs.get(&used).is_some_and(|pack| pack.is_lost)
    }
}

/// Copies what lies on the route of the packs to be emptied, and ends the last pack after it.
pub(super) fn copy_in_order(
    repacker: &mut Repacker<'_>,
    task: &Task<'_>,
    route: &Route,
    monitor: &dyn Monitor,
) -> Result<CopiedInOrder> {
    let mut copied = CopiedInOrder::default();
    for at in task.packs.iter().filter(|at| task.uses[**at].pack.content == Content::Data) {
        let pack = &task.uses[*at].pack;
        let number = repacker.session.index.number_of(pack.id);
        let number = number.ok_or_else(|| Error::internal(format!("pack {} is not known", pack.id.short())))?;
        let entries = vec![0; (pack.entries as usize).div_ceil(64)];
        copied.packs.insert(*at, CopiedOfPack { number, entries, is_lost: false });
    }
    let (mut stretch, mut len) = (Vec::new(), 0);
    route.windows(&mut |_, stops| {
        check_cancelled(monitor)?;
        for stop in stops {
            if copied.take(task, *stop) {
                stretch.push(*stop);
                len += stop.len_bytes();
            }
            if len >= STRETCH_LEN {
                store(repacker, &mut copied, &std::mem::take(&mut stretch), monitor)?;
                len = 0;
            }
        }
        Ok(())
    })?;
    store(repacker, &mut copied, &stretch, monitor)?;
    repacker.flush()?;
    Ok(copied)
}

impl CopiedInOrder {
    /// Whether a chunk is to be copied now: it is then taken to be copied.
    fn take(&mut self, task: &Task<'_>, stop: Stop) -> bool {
        let used = &task.uses[stop.used()];
        let Some(pack) = self.packs.get_mut(&stop.used()) else { return false };
        let Some(entry) = used.entry(stop.frame(), stop.slot()) else { return false };
        let (word, bit) = (&mut pack.entries[entry / 64], 1 << (entry % 64));
        let is_new = !pack.is_lost && used.is_needed(entry) && *word & bit == 0;
        *word |= if is_new { bit } else { 0 };
        is_new
    }
}

/// Reads chunks by where they stand, and stores them in the order in which they come.
fn store(
    repacker: &mut Repacker<'_>,
    copied: &mut CopiedInOrder,
    stretch: &[Stop],
    monitor: &dyn Monitor,
) -> Result<()> {
    let mut by_place: Vec<usize> = (0..stretch.len()).collect();
    by_place.sort_unstable_by_key(|at| (stretch[*at].used(), stretch[*at].frame(), stretch[*at].slot()));
    let frame_of = |at: &usize| (stretch[*at].used(), stretch[*at].frame());
    let frames: Vec<&[usize]> = by_place.chunk_by(|a, b| frame_of(a) == frame_of(b)).collect();
    let number_of = |frame: &[usize]| copied.packs[&stretch[frame[0]].used()].number;
    let read: Vec<Result<Vec<_>>> =
        frames.par_iter().map(|frame| read(repacker, number_of(frame), stretch, frame)).collect();
    let mut in_order: Vec<Option<(EntryId, Vec<u8>)>> = vec![None; stretch.len()];
    for (frame, read) in frames.into_iter().zip(read) {
        match read {
            Ok(entries) => {
                for (at, entry) in frame.iter().zip(entries) {
                    in_order[*at] = Some(entry);
                }
            }
            Err(error) if error.is_loss() => {
                let pack = copied.packs.get_mut(&stretch[frame[0]].used()).expect("only these packs are read");
                if !std::mem::replace(&mut pack.is_lost, true) {
                    monitor.damage(&error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    for (id, bytes) in in_order.into_iter().flatten() {
        repacker.stream.add(id, &bytes)?;
    }
    Ok(())
}

/// Reads chunks of one frame and checks each against its name.
fn read(
    repacker: &Repacker<'_>,
    number: PackNumber,
    stretch: &[Stop],
    frame: &[usize],
) -> Result<Vec<(EntryId, Vec<u8>)>> {
    let content = &repacker.session.content;
    let position = stretch[frame[0]].frame();
    let pack = content.pack(number)?;
    let plain = content.cached_frame(number, position)?;
    let entries = pack.directory().entries_of(pack.frame(u32::from(position))?);
    let mut ends = Vec::with_capacity(entries.len());
    ends.extend(entries.iter().scan(0, |end, entry| {
        *end += entry.len as usize;
        Some(*end)
    }));
    frame
        .iter()
        .map(|at| {
            let slot = usize::from(stretch[*at].slot());
            let cut_short = || Error::internal("a frame is shorter than its directory says");
            let (entry, end) = entries.get(slot).zip(ends.get(slot)).ok_or_else(cut_short)?;
            let bytes = plain.get(end - entry.len as usize..*end).ok_or_else(cut_short)?;
            repacker.check(&pack, u32::from(position), entry.id, bytes)?;
            Ok((entry.id, bytes.to_vec()))
        })
        .collect()
}
