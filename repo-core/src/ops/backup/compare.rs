//! A disk compared with its parent block by block, and the non-zero pages that this tells.

use crate::chunk::Run;
use crate::content::ContentReader;
use crate::error::Result;
use crate::id::NodeId;
use crate::manifest::walk::{LeafCursor, leaf_runs};
use crate::monitor::Monitor;
use crate::ops::backup::base::{Parent, damaged};
use crate::units::BlockIndex;

/// A parent's leaves, being compared with.
pub(super) struct Comparison<'a> {
    content: &'a ContentReader,
    /// `None` without a parent, or with one that could not be read.
    cursor: Option<LeafCursor<'a>>,
    /// Whether the disk is laid over the parent: then the backup ends when that cannot be read.
    is_base: bool,
    allocated_bytes: u64,
    /// Pages of the base in blocks that were laid over.
    replaced_bytes: u64,
}

impl<'a> Comparison<'a> {
    /// Of a disk with its parent, over which it is laid when that is its base.
    pub(super) fn new(parent: Option<&Parent>, is_base: bool, content: &'a ContentReader) -> Self {
        let cursor = parent.map(|parent| LeafCursor::new(parent.disk.tree, content));
        let allocated_bytes = parent.filter(|_| is_base).map_or(0, |parent| parent.disk.allocated_bytes);
        Self { content, cursor, is_base, allocated_bytes, replaced_bytes: 0 }
    }

    /// Whether the leaf of a block, which has these runs, is the one that the parent has there. One comparison of names.
    ///
    /// # Errors
    /// `Corrupt`, `NotFound` or `Unavailable` when a base cannot be read. Any other parent that cannot be read only costs
    /// the short cut.
    pub(super) fn is_unchanged(
        &mut self,
        block: BlockIndex,
        leaf: NodeId,
        runs: &[Run],
        monitor: &dyn Monitor,
    ) -> Result<bool> {
        let before = self.leaf_before(block, monitor)?;
        let unchanged = before == Some(leaf);
        if !self.is_base || !unchanged {
            self.allocated_bytes += run_bytes(runs);
        }
        if let (true, false, Some(before)) = (self.is_base, unchanged, before.filter(|leaf| !leaf.is_none())) {
            self.replaced_bytes += run_bytes(&leaf_runs(self.content, before).map_err(damaged)?);
        }
        Ok(unchanged)
    }

    /// The non-zero pages of the whole disk in bytes, once all of its blocks were compared.
    pub(super) fn allocated_bytes(&self) -> u64 {
        // Saturating: the base's number comes from a record.
        self.allocated_bytes.saturating_sub(self.replaced_bytes)
    }

    fn leaf_before(&mut self, block: BlockIndex, monitor: &dyn Monitor) -> Result<Option<NodeId>> {
        let Some(cursor) = &mut self.cursor else { return Ok(None) };
        match cursor.leaf(block) {
            Ok(leaf) => Ok(Some(leaf)),
            Err(error) if self.is_base => Err(damaged(error)),
            Err(error) => {
                monitor.damage(&error.context("the earlier snapshot's manifest cannot be read: comparing without it"));
                self.cursor = None;
                Ok(None)
            }
        }
    }
}

fn run_bytes(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.len_bytes() as u64).sum()
}
