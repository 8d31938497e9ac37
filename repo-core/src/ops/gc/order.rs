//! Repacking by place: which packs to empty so that the newest snapshot of each disk is read fast.
//!
//! Each import leaves its new chunks in frames of their own. After many of them the newest snapshot has a little of each
//! frame, so that a restore decodes many frames for little, window after window. Packs are chosen whose chunks, written
//! anew in the order of the disks, bring that near to what it would be if everything stood in that order.
//!
//! The measure is always that best order, not an ideal: what is shared between disks, or within one, cannot stand in
//! order for all of them. So what was put in order once stays as it is until enough is imported that is not.

mod layout;
mod route;

use std::collections::BTreeSet;

use super::GcOptions;
use super::survey::PackUse;
use crate::error::{ErrorKind, Result};
use crate::index::PackState;
use crate::keys::Role;
use crate::monitor::Monitor;
use crate::ops::open::Session;
use crate::pack::Content;
use crate::snapshot::NamedSnapshot;
use layout::{Layout, pack_costs};
pub(super) use route::{Route, Stop};

/// Entries of packs that are thought about at once: 4 bytes each, 96 MiB.
const ENTRIES_MAX: u64 = 24 << 20;
/// A disk is left alone if no more than so many frames are decoded in vain.
const EXCESS_FRAMES_MIN: u64 = 16;
/// Stored bytes that may be moved for each byte that needs not be decoded any more when all disks are restored once.
const MOVED_PER_SAVED_MAX: u64 = 10;

/// What is to be put in order.
pub(super) struct Order {
    /// The way through the newest snapshots, in whose order entries are stored; none without the key to chunks.
    pub(super) route: Option<Route>,
    /// Packs to empty beside the wasteful ones, by their position in the survey.
    pub(super) packs: Vec<usize>,
    /// Disks whose newest snapshot was found scattered.
    pub(super) scattered_disks: u64,
}

impl Order {
    fn nothing() -> Self {
        Self { route: None, packs: Vec::new(), scattered_disks: 0 }
    }
}

/// Chooses packs to empty for the sake of order. `wasteful` are emptied in any case.
///
/// # Errors
/// `Corrupt` when a manifest cannot be read; `Unavailable`, `Interrupted`.
pub(super) fn plan(
    session: &Session,
    snapshots: &[NamedSnapshot],
    uses: &[PackUse],
    wasteful: &[usize],
    options: &GcOptions,
    monitor: &dyn Monitor,
) -> Result<Order> {
    if session.repository.keys.get(Role::Data).is_err() || options.move_bytes_max == 0 {
        return Ok(Order::nothing());
    }
    monitor.begin("following the newest snapshots", None);
    let route = match Route::follow(session, snapshots, uses, monitor) {
        // On a full disk what is needless has to be freed all the same.
        Err(error) if error.kind() == ErrorKind::Io => {
            monitor.warn(&format!("newest snapshots are not put in order: {}", error.chain()));
            return Ok(Order::nothing());
        }
        followed => followed?,
    };
    let frame_len = u64::from(session.repository.config.frame_len);
    let planner = Planner { route: &route, uses, wasteful, frame_len, options };
    let (packs, scattered_disks) = planner.plan()?;
    monitor.end();
    Ok(Order { route: Some(route), packs, scattered_disks })
}

struct Planner<'a> {
    route: &'a Route,
    uses: &'a [PackUse],
    wasteful: &'a [usize],
    frame_len: u64,
    options: &'a GcOptions,
}

impl Planner<'_> {
    fn plan(&self) -> Result<(Vec<usize>, u64)> {
        let pool = self.pool(&|_| true)?;
        let mut layout = self.layout(&pool);
        let (now, best) = (layout.costs(0)?, layout.costs(pool.len())?);
        let scattered: Vec<bool> = now.iter().zip(&best).map(|(now, best)| self.is_scattered(*now, *best)).collect();
        let count = scattered.iter().filter(|scattered| **scattered).count() as u64;
        if count == 0 {
            return Ok((Vec::new(), 0));
        }
        let pool = self.pool(&|disk| scattered[disk])?;
        Ok((self.choose(pool, &now, &scattered)?, count))
    }

    fn is_scattered(&self, now: u64, best: u64) -> bool {
        now as f64 > best as f64 * self.options.scatter_max && now > best + EXCESS_FRAMES_MIN * self.frame_len
    }

    /// Packs that the disks are read from, those first that are read in vain most for each byte that would be moved.
    fn pool(&self, counts: &dyn Fn(usize) -> bool) -> Result<Vec<usize>> {
        let costs = pack_costs(self.route, self.uses, counts)?;
        let can_move = |at: usize| {
            let used = &self.uses[at];
            used.pack.state == PackState::Live && used.pack.content == Content::Data && used.readable
        };
        let is_read = |at: usize| costs[at].wanted > 0 && self.uses[at].needed_entries > 0;
        let wasteful: BTreeSet<usize> = self.wasteful.iter().copied().collect();
        let mut pool: Vec<usize> =
            (0..self.uses.len()).filter(|at| can_move(*at) && is_read(*at) && !wasteful.contains(at)).collect();
        let worth = |at: usize| costs[at].excess(self.frame_len) as f64 / self.uses[at].needed_bytes.max(1) as f64;
        pool.sort_by(|a, b| worth(*b).total_cmp(&worth(*a)).then(self.uses[*a].pack.id.cmp(&self.uses[*b].pack.id)));
        let mut room = ENTRIES_MAX.saturating_sub(self.wasteful_in_order().map(|at| self.entries(at)).sum());
        pool.retain(|at| {
            let fits = self.entries(*at) <= room;
            room -= if fits { self.entries(*at) } else { 0 };
            fits
        });
        Ok(pool)
    }

    fn entries(&self, at: usize) -> u64 {
        u64::from(self.uses[at].pack.entries)
    }

    /// The wasteful packs of chunks, as far as memory lets them be thought about.
    fn wasteful_in_order(&self) -> impl Iterator<Item = usize> {
        let mut room = ENTRIES_MAX;
        let data = self.wasteful.iter().copied().filter(|at| self.uses[*at].pack.content == Content::Data);
        data.take_while(move |at| {
            let fits = self.entries(*at) <= room;
            room -= if fits { self.entries(*at) } else { 0 };
            fits
        })
    }

    fn layout(&self, pool: &[usize]) -> Layout<'_> {
        let always: Vec<usize> = self.wasteful_in_order().collect();
        Layout::new(self.route, self.uses, self.frame_len, &always, pool)
    }

    /// As few packs of the pool, from its beginning, as make all scattered disks read well, and as many as there is
    /// room for.
    fn choose(&self, mut pool: Vec<usize>, now: &[u64], scattered: &[bool]) -> Result<Vec<usize>> {
        let mut layout = self.layout(&pool);
        let allowed = 1.0 + (self.options.scatter_max - 1.0) / 2.0;
        let best = layout.costs(pool.len())?;
        let is_enough = |costs: &[u64]| {
            let mut disks = costs.iter().zip(&best).zip(scattered);
            disks.all(|((cost, best), scattered)| !scattered || *cost as f64 <= *best as f64 * allowed)
        };
        let (mut low, mut high) = (0, self.fitting(&pool));
        let mut after = layout.costs(high)?;
        while low < high {
            let middle = low.midpoint(high);
            let costs = layout.costs(middle)?;
            if is_enough(&costs) {
                (high, after) = (middle, costs);
            } else {
                low = middle + 1;
            }
        }
        pool.truncate(high);
        // So each run lowers a sum that only imports raise, and runs that are cut short by their room come to an end, too.
        let saved = now.iter().sum::<u64>().saturating_sub(after.iter().sum());
        if saved * MOVED_PER_SAVED_MAX < self.bytes(&pool).max(1) {
            pool.clear();
        }
        Ok(pool)
    }

    fn bytes(&self, packs: &[usize]) -> u64 {
        packs.iter().map(|at| self.uses[*at].needed_bytes).sum()
    }

    /// How many packs of the pool, from its beginning, may be moved beside the wasteful ones.
    fn fitting(&self, pool: &[usize]) -> usize {
        let mut room = self.options.move_bytes_max.saturating_sub(self.bytes(self.wasteful));
        let has_room = |at: &&usize| {
            let bytes = self.uses[**at].needed_bytes;
            let fits = bytes <= room;
            room = room.saturating_sub(bytes);
            fits
        };
        pool.iter().take_while(has_room).count()
    }
}
