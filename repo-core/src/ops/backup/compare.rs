//! A disk compared with its parent block by block, and the non-zero pages that this tells.

use std::collections::HashSet;

use crate::chunk::Run;
use crate::content::ContentReader;
use crate::error::{Error, Result};
use crate::id::{ChunkId, NodeId};
use crate::manifest::Tree;
use crate::manifest::walk::{LeafCursor, Leaves, leaf_runs};
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::backup::base::{Parent, damaged};
use crate::units::BlockIndex;

/// A parent's leaves, being compared with.
pub(super) struct Comparison<'a> {
    content: &'a ContentReader,
    /// `None` without a parent, or with one that could not be read.
    cursor: Option<LeafCursor<'a>>,
    /// What the source leaves out and is therefore zeros may be content there; `None` where it is the parent's.
    replaced: Option<Tree>,
    /// Whether the disk is laid over the parent: then the backup ends when that cannot be read.
    is_base: bool,
    /// Whether all of the parent is known to be stored.
    is_complete: bool,
    allocated_bytes: u64,
    /// Pages of the base in blocks that were laid over.
    replaced_bytes: u64,
    /// Blocks compared that differ.
    changed_blocks: u64,
    /// Blocks compared where the parent has content.
    met_blocks: u64,
}

/// A block beside the parent's.
pub(super) struct Compared {
    /// Whether it is equal to it; what a parent lacks, or no parent has, is zeros.
    pub(super) unchanged: bool,
    /// Chunks of the parent's block that are known to be stored. Those of a block that is equal are not listed.
    pub(super) stored: HashSet<ChunkId>,
}

impl<'a> Comparison<'a> {
    /// Of a disk with its parent, over which it is laid when that is its base.
    pub(super) fn new(parent: Option<&Parent>, is_base: bool, content: &'a ContentReader) -> Self {
        let allocated_bytes = parent.filter(|_| is_base).map_or(0, |parent| parent.disk.allocated_bytes);
        Self {
            content,
            cursor: parent.map(|parent| LeafCursor::new(parent.disk.tree, content)),
            replaced: parent.filter(|_| !is_base).map(|parent| parent.disk.tree),
            is_base,
            is_complete: parent.is_some_and(|parent| parent.complete),
            allocated_bytes,
            replaced_bytes: 0,
            changed_blocks: 0,
            met_blocks: 0,
        }
    }

    /// Compares the leaf of a block, which has these runs, with the one that the parent has there: one comparison of names,
    /// and one leaf read where they differ.
    ///
    /// # Errors
    /// `Corrupt`, `NotFound` or `Unavailable` when a base cannot be read. Any other parent that cannot be read only costs
    /// the short cut.
    pub(super) fn compare(
        &mut self,
        block: BlockIndex,
        leaf: NodeId,
        runs: &[Run],
        monitor: &dyn Monitor,
    ) -> Result<Compared> {
        let before = self.leaf_before(block, monitor)?;
        let unchanged = before == leaf;
        self.changed_blocks += u64::from(!unchanged);
        self.met_blocks += u64::from(!before.is_none());
        if !self.is_base || !unchanged {
            self.allocated_bytes += run_bytes(runs);
        }
        let runs_before = if unchanged { Vec::new() } else { self.runs_before(before, monitor)? };
        self.replaced_bytes += if self.is_base { run_bytes(&runs_before) } else { 0 };
        let stored = runs_before.iter().filter(|_| self.is_complete).map(|run| run.id).collect();
        Ok(Compared { unchanged, stored })
    }

    /// The non-zero pages of the whole disk in bytes, once all of its blocks were compared.
    pub(super) fn allocated_bytes(&self) -> u64 {
        // Saturating: the base's number comes from a record.
        self.allocated_bytes.saturating_sub(self.replaced_bytes)
    }

    /// The blocks in which the disk, whose root is `root`, differs from the parent, once all that was delivered was compared:
    /// also those that a full source did not deliver and the parent has. Reads the parent's inner nodes for these. Without a
    /// parent, or past a place where it cannot be read, blocks with content count.
    ///
    /// # Errors
    /// `Interrupted`.
    pub(super) fn changed_blocks(&mut self, root: NodeId, monitor: &dyn Monitor) -> Result<u64> {
        let replaced = self.replaced.filter(|tree| self.cursor.is_some() && tree.root != root);
        let Some(tree) = replaced else { return Ok(self.changed_blocks) };
        let mut blocks = 0_u64;
        for leaf in Leaves::new(&tree, self.content) {
            check_cancelled(monitor)?;
            match leaf {
                Ok(_) => blocks += 1,
                Err(error) => {
                    self.do_without(error, monitor)?;
                    return Ok(self.changed_blocks);
                }
            }
        }
        // Saturating: a source may deliver a block twice.
        Ok(self.changed_blocks + blocks.saturating_sub(self.met_blocks))
    }

    /// What the parent has there; none also without one.
    fn leaf_before(&mut self, block: BlockIndex, monitor: &dyn Monitor) -> Result<NodeId> {
        let Some(cursor) = &mut self.cursor else { return Ok(NodeId::NONE) };
        match cursor.leaf(block) {
            Ok(leaf) => Ok(leaf),
            Err(error) => self.do_without(error, monitor).map(|()| NodeId::NONE),
        }
    }

    /// What the parent has in a block that differs, where that is of use.
    fn runs_before(&mut self, leaf: NodeId, monitor: &dyn Monitor) -> Result<Vec<Run>> {
        if leaf.is_none() || !self.is_base && !self.is_complete {
            return Ok(Vec::new());
        }
        match leaf_runs(self.content, leaf) {
            Ok(runs) => Ok(runs),
            Err(error) => self.do_without(error, monitor).map(|()| Vec::new()),
        }
    }

    /// Goes on without a parent that cannot be read, unless it is the base.
    fn do_without(&mut self, error: Error, monitor: &dyn Monitor) -> Result<()> {
        if self.is_base {
            return Err(damaged(error));
        }
        monitor.damage(&error.context("the earlier snapshot's manifest cannot be read: comparing without it"));
        self.cursor = None;
        Ok(())
    }
}

fn run_bytes(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.len_bytes() as u64).sum()
}
