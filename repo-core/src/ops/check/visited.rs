//! The manifest nodes that a check has visited, in memory that does not grow beyond a bound: where there are more, some are
//! visited again instead.

use crate::error::Result;
use crate::id::NodeId;
use crate::ops::id_set::IdSet;

/// Where there is not room for all, one in so many places is for inner nodes alone: each of them spares a walk over all below
/// it, a leaf only itself.
const INNER_SHARE: u64 = 8;

/// Nodes visited, and whether all below them can be read.
pub(super) struct Visited {
    seen: IdSet,
    /// Those with something below that cannot be read. Made for the first of them.
    unsound: Option<IdSet>,
    /// Nodes remembered.
    len: u64,
    /// Nodes remembered at most.
    len_max: u64,
    /// Leaves and inner nodes are remembered up to here, and only inner nodes beyond.
    leaves_end: u64,
}

impl Visited {
    /// Room for `nodes` nodes, but not for more than `nodes_max`: 11 bytes each and some 500 more; as much again once one is
    /// not sound.
    pub(super) fn new(nodes: u64, nodes_max: u64) -> Self {
        let len_max = nodes.min(nodes_max);
        let leaves_end = if nodes <= nodes_max { len_max } else { len_max - len_max / INNER_SHARE };
        Self { seen: IdSet::new(len_max), unsound: None, len: 0, len_max, leaves_end }
    }

    /// Whether a node and all below it can be read; `None` when it was not visited or is not remembered.
    pub(super) fn is_sound(&self, id: NodeId) -> Option<bool> {
        let is_unsound = || self.unsound.as_ref().is_some_and(|unsound| unsound.contains(id.into()));
        self.seen.contains(id.into()).then(|| !is_unsound())
    }

    /// Notes what a visit of a node of this level found, if there is room.
    ///
    /// # Errors
    /// None: the sets are never full.
    pub(super) fn remember(&mut self, id: NodeId, level: u8, sound: bool) -> Result<()> {
        let end = if level == 0 { self.leaves_end } else { self.len_max };
        if self.len >= end || !self.seen.insert(id.into())? {
            return Ok(());
        }
        self.len += 1;
        if !sound {
            self.unsound.get_or_insert_with(|| IdSet::new(self.len_max)).insert(id.into())?;
        }
        Ok(())
    }

    /// The memory it takes, in bytes.
    #[cfg(test)]
    pub(super) fn len_bytes(&self) -> u64 {
        self.seen.len_bytes() + self.unsound.as_ref().map_or(0, IdSet::len_bytes)
    }
}
