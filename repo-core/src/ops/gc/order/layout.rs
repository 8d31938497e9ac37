//! What reading the newest snapshots costs: with the packs as they are, and as they would be after some were repacked.
//!
//! The unit is bytes of decoded frames, each frame counting a little more than its content. A restore decodes a frame
//! once a window, and not again in the next one as long as it can keep it.

use super::route::{Route, Stop};
use crate::error::Result;
use crate::ops::gc::survey::PackUse;
use crate::ops::restore::KEPT_LEN_MAX;

/// What finding, reading and opening a frame costs beyond decoding it, in bytes decoded.
const FRAME_COST: u64 = 64 * 1024;

/// Marks frames that are yet to be written.
const NEW: u64 = 1 << 63;
/// The rank of packs that stay.
const STAYS: u32 = u32::MAX;

/// What reading cost of one pack.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PackCost {
    /// What its frames cost.
    pub(super) cost: u64,
    /// Bytes of it that were wanted, once a window.
    pub(super) wanted: u64,
}

impl PackCost {
    /// What would be saved if all that is wanted stood together.
    pub(super) fn excess(&self, frame_len: u64) -> u64 {
        let together = self.wanted + self.wanted * FRAME_COST / frame_len;
        self.cost.saturating_sub(together)
    }
}

/// What reading costs of each pack, over the disks for which `counts` says so.
pub(super) fn pack_costs(route: &Route, uses: &[PackUse], counts: &dyn Fn(usize) -> bool) -> Result<Vec<PackCost>> {
    let mut costs = vec![PackCost::default(); uses.len()];
    let mut reader = Reader::default();
    let mut sorted: Vec<Stop> = Vec::new();
    route.windows(&mut |disk, stops| {
        if !counts(disk) {
            return Ok(());
        }
        sorted.clear();
        sorted.extend_from_slice(stops);
        sorted.sort_unstable_by_key(|stop| (stop.used(), stop.frame(), stop.slot()));
        sorted.dedup();
        for stop in &sorted {
            costs[stop.used()].wanted += stop.len_bytes();
        }
        let keys = sorted.iter().map(|stop| old_frame(*stop));
        reader.read(disk, keys, &|key| frame_len_of(uses, key), &mut |key, cost| {
            costs[(key >> 16) as usize].cost += cost;
        });
        Ok(())
    })?;
    Ok(costs)
}

/// Packs in the order in which they would be repacked, and where their content would go.
pub(super) struct Layout<'a> {
    route: &'a Route,
    uses: &'a [PackUse],
    frame_len: u64,
    /// The rank of each pack: those of rank 0 are repacked in any case.
    ranks: Vec<u32>,
    /// Where each pack's entries begin in `placed`.
    first: Vec<usize>,
    /// The new frame of each entry of packs that have a rank, counted from 1; 0 for none yet.
    placed: Vec<u32>,
}

impl<'a> Layout<'a> {
    /// `always` are repacked in any case, then those of `pool`, one after another. Positions in the survey.
    pub(super) fn new(route: &'a Route, uses: &'a [PackUse], frame_len: u64, always: &[usize], pool: &[usize]) -> Self {
        let mut ranks = vec![STAYS; uses.len()];
        for (rank, used) in (1..).zip(pool) {
            ranks[*used] = rank;
        }
        for used in always {
            ranks[*used] = 0;
        }
        let mut first = Vec::with_capacity(uses.len());
        let mut len = 0;
        for (used, rank) in uses.iter().zip(&ranks) {
            first.push(len);
            len += if *rank == STAYS { 0 } else { used.pack.entries as usize };
        }
        Self { route, uses, frame_len, ranks, first, placed: vec![0; len] }
    }

    /// What reading each disk costs once the first `count` packs of the pool are repacked.
    pub(super) fn costs(&mut self, count: usize) -> Result<Vec<u64>> {
        let Self { route, uses, frame_len, ranks, first, placed } = self;
        placed.fill(0);
        let mut costs = vec![0; route.disk_count()];
        let mut reader = Reader::default();
        let mut end = NewFrames { frame_len: *frame_len, frame: 1, filled: 0 };
        let len_of = |key| if key & NEW == 0 { frame_len_of(uses, key) } else { *frame_len };
        let mut frame_of = |stop: Stop| {
            let used = &uses[stop.used()];
            let moves = (ranks[stop.used()] as usize) <= count;
            match used.entry(stop.frame(), stop.slot()).filter(|entry| moves && used.is_needed(*entry)) {
                None => old_frame(stop),
                Some(entry) => {
                    let place = &mut placed[first[stop.used()] + entry];
                    if *place == 0 {
                        *place = end.add(stop.len_bytes());
                    }
                    NEW | u64::from(*place)
                }
            }
        };
        route.windows(&mut |disk, stops| {
            let keys = stops.iter().map(|stop| frame_of(*stop));
            reader.read(disk, keys, &len_of, &mut |_, cost| costs[disk] += cost);
            Ok(())
        })?;
        Ok(costs)
    }
}

/// Where the next entry goes, by the rule by which a pack stream fills frames.
struct NewFrames {
    frame_len: u64,
    frame: u32,
    filled: u64,
}

impl NewFrames {
    fn add(&mut self, len: u64) -> u32 {
        if self.filled > 0 && self.filled + len > self.frame_len {
            self.frame += 1;
            self.filled = 0;
        }
        self.filled += len;
        self.frame
    }
}

/// A restore as far as it reads frames.
#[derive(Default)]
struct Reader {
    disk: usize,
    /// Frames of the window before, ascending.
    previous: Vec<u64>,
    /// Frames of this one.
    current: Vec<u64>,
}

impl Reader {
    /// Reads the next window, and tells each frame that has to be decoded for it.
    fn read(
        &mut self,
        disk: usize,
        frames: impl Iterator<Item = u64>,
        len_of: &dyn Fn(u64) -> u64,
        decoded: &mut dyn FnMut(u64, u64),
    ) {
        self.current.clear();
        for frame in frames {
            // Neighbours mostly stand together.
            if self.current.last() != Some(&frame) {
                self.current.push(frame);
            }
        }
        self.current.sort_unstable();
        self.current.dedup();
        if disk != self.disk {
            (self.disk, self.previous) = (disk, Vec::new());
        }
        let mut kept = 0;
        for frame in &self.current {
            let len = len_of(*frame);
            if self.previous.binary_search(frame).is_ok() && kept + len <= KEPT_LEN_MAX as u64 {
                kept += len;
            } else {
                decoded(*frame, len + FRAME_COST);
            }
        }
        std::mem::swap(&mut self.previous, &mut self.current);
    }
}

fn old_frame(stop: Stop) -> u64 {
    (stop.used() as u64) << 16 | u64::from(stop.frame())
}

fn frame_len_of(uses: &[PackUse], key: u64) -> u64 {
    uses[(key >> 16) as usize].frame(key as u16).map_or(0, |frame| u64::from(frame.plain_len))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME_LEN: u64 = 4 * 4096;

    /// A chunk of one page in a pack of single pages, four a frame.
    fn stop(used: u32, entry: u16) -> Stop {
        Stop::new(used, entry / 4, entry % 4, 1)
    }

    /// A pack of `frames` frames of four pages each.
    fn pack(name: u8, frames: usize) -> PackUse {
        PackUse::for_test(name, &vec![(4, 4 * 4096); frames])
    }

    fn decoded(frames: u64) -> u64 {
        frames * (FRAME_LEN + FRAME_COST)
    }

    #[test]
    fn a_frame_costs_once_a_run_of_windows_and_again_after_a_gap() {
        let uses = [pack(1, 3)];
        let windows = [vec![stop(0, 0), stop(0, 4)], vec![stop(0, 1), stop(0, 0)], vec![stop(0, 8)], vec![stop(0, 2)]];
        let route = Route::for_test(&[windows.to_vec(), vec![vec![stop(0, 3)]]]);
        let costs = Layout::new(&route, &uses, FRAME_LEN, &[], &[]).costs(0).unwrap();
        assert_eq!(costs, [decoded(4), decoded(1)]);
        let [cost] = pack_costs(&route, &uses, &|disk| disk == 0).unwrap()[..] else { panic!("one pack") };
        // Six stops, each page once a window.
        assert_eq!((cost.cost, cost.wanted), (decoded(4), 6 * 4096));
        assert_eq!(cost.excess(FRAME_LEN), decoded(4) - 6 * 4096 - 6 * FRAME_COST / 4);
    }

    #[test]
    fn what_is_kept_for_the_next_window_is_bounded() {
        let len = KEPT_LEN_MAX as u64 / 4 * 3;
        let uses = [PackUse::for_test(1, &[(1, len as u32), (1, len as u32)])];
        let both = vec![Stop::new(0, 0, 0, 1), Stop::new(0, 1, 0, 1)];
        let route = Route::for_test(&[vec![both.clone(), both]]);
        let costs = Layout::new(&route, &uses, FRAME_LEN, &[], &[]).costs(0).unwrap();
        assert_eq!(costs, [3 * (len + FRAME_COST)]);
    }

    #[test]
    fn packs_are_moved_in_their_rank_and_filled_in_the_order_of_the_route() {
        // Pages of two packs in turns: all eight frames are wanted by each of two windows, far apart.
        let uses = [pack(1, 4), pack(2, 4)];
        let turns: Vec<Stop> = (0..16).flat_map(|entry| [stop(0, entry * 7 % 16), stop(1, entry * 7 % 16)]).collect();
        let route = Route::for_test(&[vec![turns[..16].to_vec(), vec![], turns[16..].to_vec()]]);
        let mut layout = Layout::new(&route, &uses, FRAME_LEN, &[], &[1, 0]);
        assert_eq!(layout.costs(0).unwrap(), [decoded(16)]);
        // Half of either window is in order then.
        assert_eq!(layout.costs(1).unwrap(), [decoded(8 + 4)]);
        assert_eq!(layout.costs(2).unwrap(), [decoded(8)]);
        assert_eq!(layout.costs(0).unwrap(), [decoded(16)]);
        assert_eq!(Layout::new(&route, &uses, FRAME_LEN, &[1], &[0]).costs(0).unwrap(), [decoded(12)]);
    }

    #[test]
    fn a_chunk_that_returns_stands_where_it_came_first() {
        let uses = [pack(1, 2)];
        let first: Vec<Stop> = (0..8).map(|entry| stop(0, entry)).collect();
        let route = Route::for_test(&[vec![first, vec![], vec![stop(0, 7), stop(0, 0)]]]);
        let mut layout = Layout::new(&route, &uses, FRAME_LEN, &[], &[0]);
        assert_eq!((layout.costs(0).unwrap(), layout.costs(1).unwrap()), (vec![decoded(4)], vec![decoded(4)]));
    }
}
