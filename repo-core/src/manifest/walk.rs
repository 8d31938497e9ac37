//! Reading trees: all leaves in order, or the leaf of one block.

use crate::error::{Error, Result, ResultExt};
use crate::id::NodeId;
use crate::manifest::{FANOUT, Node, NodeSource, Tree, span};
use crate::units::BlockIndex;

/// The leaves of a tree in ascending order of their blocks. Blocks of zeros have none and are passed over.
pub struct Leaves<'a> {
    source: &'a dyn NodeSource,
    /// Inner nodes on the way down: level, first block, children not yet visited.
    path: Vec<(u8, u64, std::vec::IntoIter<NodeId>)>,
    failed: bool,
    root: Option<(u8, NodeId)>,
}

impl<'a> Leaves<'a> {
    /// All leaves of `tree`.
    pub fn new(tree: &Tree, source: &'a dyn NodeSource) -> Self {
        let root = (!tree.root.is_none()).then(|| (tree.height(), tree.root));
        Self { source, path: Vec::new(), failed: false, root }
    }

    fn enter(&mut self, level: u8, first_block: u64, id: NodeId) -> Result<()> {
        let children =
            inner(self.source, id, level).context(|| format!("cannot read the manifest from block {first_block}"))?;
        self.path.push((level, first_block, children.into_iter()));
        Ok(())
    }

    fn advance(&mut self) -> Result<Option<(BlockIndex, NodeId)>> {
        if let Some((level, root)) = self.root.take() {
            self.enter(level, 0, root)?;
        }
        while let Some((level, first_block, children)) = self.path.last_mut() {
            let Some(child) = children.next() else {
                self.path.pop();
                continue;
            };
            let (level, block) = (*level, *first_block);
            *first_block += span(level - 1);
            match (child.is_none(), level) {
                (true, _) => {}
                (false, 1) => return Ok(Some((BlockIndex(block), child))),
                (false, _) => self.enter(level - 1, block, child)?,
            }
        }
        Ok(None)
    }
}

impl Iterator for Leaves<'_> {
    type Item = Result<(BlockIndex, NodeId)>;

    /// The next leaf. After an error the walk goes on behind the subtree that could not be read.
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed && self.path.is_empty() {
            return None;
        }
        let next = self.advance();
        self.failed |= next.is_err();
        next.transpose()
    }
}

/// Looks up leaves of single blocks, fast when the blocks come in ascending order.
pub struct LeafCursor<'a> {
    source: &'a dyn NodeSource,
    tree: Tree,
    /// The way down to the last block asked for: level, first block, children.
    path: Vec<(u8, u64, Vec<NodeId>)>,
}

impl<'a> LeafCursor<'a> {
    /// A cursor over `tree`.
    pub fn new(tree: Tree, source: &'a dyn NodeSource) -> Self {
        Self { source, tree, path: Vec::new() }
    }

    /// The leaf of a block; none for zeros and past the disk's end.
    ///
    /// # Errors
    /// `Corrupt` when a node on the way is missing or damaged; `Unavailable`.
    pub fn leaf(&mut self, block: BlockIndex) -> Result<NodeId> {
        let at = usize::try_from(block.0 % FANOUT as u64).expect("below the fan-out");
        Ok(self.siblings(block)?.get(at).copied().unwrap_or(NodeId::NONE))
    }

    /// The children of the node of level 1 that a block's leaf hangs on, trailing absent ones left out; none where all
    /// of that node is zeros or past the disk's end.
    ///
    /// # Errors
    /// As [`leaf`](Self::leaf).
    pub(super) fn siblings(&mut self, block: BlockIndex) -> Result<&[NodeId]> {
        let height = self.tree.height();
        if self.tree.root.is_none() || block.0 >= span(height) {
            return Ok(&[]);
        }
        while self.path.last().is_some_and(|(level, first, _)| !(*first..first + span(*level)).contains(&block.0)) {
            self.path.pop();
        }
        if self.path.is_empty() {
            self.path.push((height, 0, inner(self.source, self.tree.root, height)?));
        }
        while let Some((level @ 2.., first, children)) = self.path.last() {
            let child_span = span(level - 1);
            let at = (block.0 - first) / child_span;
            let child = usize::try_from(at).ok().and_then(|at| children.get(at)).copied().unwrap_or(NodeId::NONE);
            if child.is_none() {
                return Ok(&[]);
            }
            let (level, first) = (level - 1, first + at * child_span);
            self.path.push((level, first, inner(self.source, child, level)?));
        }
        Ok(self.path.last().map_or(&[], |(_, _, children)| children))
    }
}

/// The children of the inner node `id`, which must be of `level`.
pub(super) fn inner(source: &dyn NodeSource, id: NodeId, level: u8) -> Result<Vec<NodeId>> {
    match source.node(id)? {
        Node::Inner { level: found, children } if found == level => Ok(children),
        _ => Err(Error::corrupt(format!("manifest node {} is not an inner node of level {level}", id.short()))),
    }
}

/// The runs of the leaf `id`; there are none when it is none.
///
/// # Errors
/// `Corrupt` when it is missing, damaged or no leaf; `Unavailable`.
pub fn leaf_runs(source: &dyn NodeSource, id: NodeId) -> Result<Vec<crate::chunk::Run>> {
    if id.is_none() {
        return Ok(Vec::new());
    }
    match source.node(id)? {
        Node::Leaf(runs) => Ok(runs),
        Node::Inner { .. } => Err(Error::corrupt(format!("manifest node {} is not a leaf", id.short()))),
    }
}
