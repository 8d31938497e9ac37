//! Restore: snapshot → manifest → plan sorted by pack → ranged reads → open, decompress, verify → writer.
//!
//! The disk is worked through in windows of blocks. Within a window every frame is read and decoded once, whatever the order
//! its chunks have on the disk, on all cores; so an old snapshot restores as fast as a new one.

pub mod in_place;
mod window;

use std::ops::Range;
use std::sync::Arc;

use crate::chunk::ChunkHasher;
use crate::disk::{DiskSink, PresentBlocks, StreamSink};
use crate::error::{Error, ErrorKind, Result};
use crate::id::NodeId;
use crate::keys::Role;
use crate::manifest::Tree;
use crate::manifest::diff::ChangedBlocks;
use crate::manifest::walk::Leaves;
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::open::{Access, Session, Working};
use crate::units::{BLOCK_LEN, BlockIndex, block_count};
pub(in crate::ops) use window::KEPT_LEN_MAX;
use window::{FrameKeeper, Loss, WindowBuffer, WindowPlan};

/// Blocks in one window. Two windows are in memory: one being filled, one being written.
pub(in crate::ops) const WINDOW: usize = 40;

/// Where a disk is restored to.
pub enum Target {
    /// Writes may come in any order: a file, a device.
    File(Box<dyn DiskSink>),
    /// Writes must come in order: a pipe.
    Stream(Box<dyn StreamSink>),
}

/// How to restore.
#[derive(Debug, Clone, Copy, Default)]
pub struct RestoreOptions {
    /// Go on past damage, leaving zeros where content cannot be read. Otherwise the first damage ends the restore.
    pub keep_going: bool,
}

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Content written, in bytes, without zeros.
    pub written_bytes: u64,
    /// Ranges of the disk, in bytes, ascending, that could not be read and are zeros now. Empty unless
    /// [`RestoreOptions::keep_going`].
    pub holes: Vec<Range<u64>>,
}

/// What is to be restored of a disk: all of it, or the blocks that differ from a base.
pub struct RestorePlan {
    tree: Tree,
    leaves: Vec<(BlockIndex, NodeId)>,
    holes: Vec<Range<u64>>,
    present: PresentBlocks,
    /// Keeps garbage collection from deleting what the plan found.
    working: Arc<Working>,
}

impl RestorePlan {
    /// Walks the tree down to the names of its leaves.
    ///
    /// # Errors
    /// `Corrupt` when a node is missing or damaged, unless `keep_going`; `Unavailable`.
    pub fn new(session: &Session, tree: Tree, options: RestoreOptions, monitor: &dyn Monitor) -> Result<Self> {
        let working = session.begin("restore", Access::Read, monitor)?;
        let mut leaves = Vec::new();
        let mut holes = Holes::default();
        let mut present = PresentBlocks::new(tree.virtual_size);
        let mut next_block = 0;
        let mut unread = false;
        for leaf in Leaves::new(&tree, &*session.content) {
            match leaf {
                Ok((block, id)) => {
                    if block.0 >= present.block_count() {
                        return Err(Error::corrupt(format!("the manifest has a block {block} past the disk's end")));
                    }
                    if std::mem::take(&mut unread) {
                        holes.add(BlockIndex(next_block).offset_bytes()..block.offset_bytes());
                    }
                    next_block = block.0 + 1;
                    present.insert(block);
                    leaves.push((block, id));
                }
                Err(error) if options.keep_going && error.is_loss() => {
                    monitor.damage(&error);
                    unread = true;
                }
                Err(error) => return Err(error),
            }
        }
        if unread {
            holes.add(BlockIndex(next_block).offset_bytes()..tree.virtual_size);
        }
        Ok(Self { tree, leaves, holes: holes.0, present, working })
    }

    /// Only the blocks in which a disk differs from `base`, those among them that are zeros now included. Blocks past the
    /// disk's own end are not.
    ///
    /// # Errors
    /// `Corrupt` when a node is missing or damaged: what differs is then not known; `Unavailable`.
    pub fn delta(session: &Session, base: &Tree, tree: Tree, monitor: &dyn Monitor) -> Result<Self> {
        let working = session.begin("restore", Access::Read, monitor)?;
        let mut leaves = Vec::new();
        let mut present = PresentBlocks::new(tree.virtual_size);
        for changed in ChangedBlocks::new(base, &tree, &*session.content) {
            let changed = changed?;
            if changed.block.0 < block_count(tree.virtual_size) {
                present.insert(changed.block);
                leaves.push((changed.block, changed.after));
            }
        }
        Ok(Self { tree, leaves, holes: Vec::new(), present, working })
    }

    /// Which blocks are written. A target that must know its length beforehand needs this.
    pub fn present(&self) -> &PresentBlocks {
        &self.present
    }
}

/// Restores a disk.
///
/// # Errors
/// `Corrupt` naming the range when content is damaged, unless told to go on; `Io` when the target cannot be written.
pub fn restore(
    session: &Session,
    plan: RestorePlan,
    target: Target,
    options: RestoreOptions,
    monitor: &dyn Monitor,
) -> Result<RestoreReport> {
    let total = plan.leaves.len() as u64 * BLOCK_LEN as u64;
    monitor.begin("restoring", Some(total));
    // Said once and clearly, rather than as damage of every frame.
    session.repository.keys.get(Role::Data)?;
    let hasher = ChunkHasher::new(&session.repository.keys)?;
    let mut restore = Restore {
        session,
        hasher,
        options,
        monitor,
        virtual_size: plan.tree.virtual_size,
        written_bytes: 0,
        holes: Holes(plan.holes),
    };
    restore.run(&plan.leaves, target)?;
    drop(plan.working);
    monitor.end();
    Ok(RestoreReport { written_bytes: restore.written_bytes, holes: restore.holes.merged() })
}

struct Restore<'a> {
    session: &'a Session,
    hasher: ChunkHasher,
    options: RestoreOptions,
    monitor: &'a dyn Monitor,
    virtual_size: u64,
    written_bytes: u64,
    holes: Holes,
}

impl Restore<'_> {
    /// Fills windows on all cores while another thread writes the one before.
    fn run(&mut self, leaves: &[(BlockIndex, NodeId)], target: Target) -> Result<()> {
        std::thread::scope(|scope| {
            let (filled, to_write) = crossbeam_channel::bounded::<WindowBuffer>(1);
            let (written, free) = crossbeam_channel::bounded(2);
            let virtual_size = self.virtual_size;
            let writer = scope.spawn(move || {
                let mut target = target;
                for buffer in to_write {
                    buffer.write_to(&mut target, virtual_size)?;
                    // The other end is gone only when the restore failed already.
                    let _ = written.send(buffer);
                }
                Ok::<_, Error>(target)
            });
            let mut spare = vec![WindowBuffer::new(), WindowBuffer::new()];
            let mut keeper = FrameKeeper::default();
            let mut windows = leaves.chunks(WINDOW);
            let mut next = windows.next().map(|window| self.plan(window)).transpose()?;
            while let Some((window, plan)) = next.take() {
                // Planned one ahead: frames are kept that the window after this one needs, too.
                next = windows.next().map(|window| self.plan(window)).transpose()?;
                keeper.turn(next.as_ref().map(|(_, plan)| plan));
                // No buffer comes back from a writer that failed: its error is taken below.
                let Some(mut buffer) = spare.pop().or_else(|| free.recv().ok()) else { break };
                buffer.reset(window.iter().map(|(block, _)| *block));
                self.window(window, &plan, &keeper, &buffer)?;
                if filled.send(buffer).is_err() {
                    break;
                }
            }
            drop(filled);
            let target = writer.join().map_err(|_| Error::internal("the writing thread panicked"))??;
            target.finish()
        })
    }

    fn plan<'w>(&mut self, window: &'w [(BlockIndex, NodeId)]) -> Result<(&'w [(BlockIndex, NodeId)], WindowPlan)> {
        check_cancelled(self.monitor)?;
        let plan = WindowPlan::new(&self.session.content, window, self.virtual_size, &mut |loss| {
            self.options.lose(self.monitor, &mut self.holes, loss)
        })?;
        Ok((window, plan))
    }

    fn window(
        &mut self,
        leaves: &[(BlockIndex, NodeId)],
        plan: &WindowPlan,
        keeper: &FrameKeeper,
        buffer: &WindowBuffer,
    ) -> Result<()> {
        let outcome = plan.run(&self.session.content, keeper, &self.hasher, buffer, self.monitor);
        for loss in outcome.losses {
            self.options.lose(self.monitor, &mut self.holes, loss)?;
        }
        self.written_bytes += outcome.written_bytes;
        self.monitor.advance(leaves.len() as u64 * BLOCK_LEN as u64);
        Ok(())
    }
}

impl Target {
    fn finish(self) -> Result<()> {
        match self {
            Self::File(sink) => sink.finish(),
            Self::Stream(sink) => sink.finish(),
        }
    }
}

impl RestoreOptions {
    /// Notes what is lost and goes on, or ends the restore.
    fn lose(self, monitor: &dyn Monitor, holes: &mut Holes, loss: Loss) -> Result<()> {
        let Loss { ranges, error } = loss;
        if !error.is_loss() {
            return Err(error);
        }
        let ranges = Holes(ranges).merged();
        let Some(Range { start, end }) = ranges.first() else { return Ok(()) };
        let more = match ranges.len() {
            1 => String::new(),
            count => format!(" and {} more ranges", count - 1),
        };
        let text = format!("bytes {start} to {end}{more} of the disk cannot be restored");
        let error = Error::with_source(ErrorKind::Corrupt, text, error);
        if !self.keep_going {
            return Err(error);
        }
        monitor.damage(&error);
        holes.0.extend(ranges);
        Ok(())
    }
}

/// Ranges collected in any order.
#[derive(Default)]
struct Holes(Vec<Range<u64>>);

impl Holes {
    fn add(&mut self, range: Range<u64>) {
        self.0.push(range);
    }

    /// The ranges ascending, those that touch made one.
    fn merged(mut self) -> Vec<Range<u64>> {
        self.0.sort_unstable_by_key(|range| (range.start, range.end));
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in self.0 {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_that_touch_are_one() {
        let holes = Holes(vec![20..30, 0..10, 10..20, 40..50, 45..47]);
        assert_eq!(holes.merged(), [0..30, 40..50]);
    }
}
