//! Building a tree from leaves that come in any order, over nothing or over the tree of an earlier snapshot.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::id::NodeId;
use crate::manifest::walk::{LeafCursor, inner};
use crate::manifest::{FANOUT, NodeHasher, NodeSource, Tree, encode_inner, height, span};
use crate::units::{BlockIndex, block_count};

/// A tree being built. Holds one node of 4 KiB per 256 MiB of disk that was set at most, and 32 bytes once a node was
/// closed.
pub struct TreeBuilder<'a> {
    hasher: NodeHasher,
    /// Nodes of level 1 in which a leaf was set, by number.
    groups: BTreeMap<u64, Group>,
    base: Option<Base<'a>>,
}

enum Group {
    Open(Box<OpenGroup>),
    Closed(NodeId),
}

struct OpenGroup {
    children: [NodeId; FANOUT],
    /// Which children were set, a bit each; the others are the base's.
    set: u128,
}

/// The tree whose leaves stay where none is set.
struct Base<'a> {
    tree: Tree,
    source: &'a dyn NodeSource,
    cursor: LeafCursor<'a>,
}

/// What the base has in the place of a node.
#[derive(Clone, Copy)]
enum Beneath {
    /// This node, or none.
    Node(NodeId),
    /// Its whole tree, the root of which stands further down.
    Raised,
}

/// Takes a node's name and bytes. Nodes come before their parents; one may come more than once.
pub type NodeSink<'a> = dyn FnMut(NodeId, &[u8]) -> Result<()> + 'a;

impl<'a> TreeBuilder<'a> {
    /// An empty tree: all zeros.
    pub fn new(hasher: NodeHasher) -> Self {
        Self { hasher, groups: BTreeMap::new(), base: None }
    }

    /// The tree `base`, of which only nodes above leaves that are set will be read from `source`. The new disk may be
    /// larger, with zeros behind the base's end, or smaller. What the base's last block holds past a new end *inside* that
    /// block is not cut off: the caller sets that leaf.
    pub fn over(hasher: NodeHasher, base: Tree, source: &'a dyn NodeSource) -> Self {
        let base = Base { tree: base, source, cursor: LeafCursor::new(base, source) };
        Self { hasher, groups: BTreeMap::new(), base: Some(base) }
    }

    /// Sets the leaf of a block; none for a block of zeros.
    ///
    /// # Panics
    /// When the block lies in a part that was closed.
    pub fn set(&mut self, block: BlockIndex, leaf: NodeId) {
        let group = self
            .groups
            .entry(block.0 / FANOUT as u64)
            .or_insert_with(|| Group::Open(Box::new(OpenGroup { children: [NodeId::NONE; FANOUT], set: 0 })));
        let Group::Open(group) = group else { panic!("block {block} lies before the part that is still open") };
        let at = (block.0 % FANOUT as u64) as usize;
        group.children[at] = leaf;
        group.set |= 1 << at;
    }

    /// Closes all that lies before a block, when no earlier block will come: frees its memory.
    ///
    /// # Errors
    /// Those of `sink`; `Corrupt` or `Unavailable` when a node of the base cannot be read.
    pub fn close_before(&mut self, block: BlockIndex, sink: &mut NodeSink<'_>) -> Result<()> {
        let limit = block.0 / FANOUT as u64;
        // Only the newest groups can be open: everything before was closed by an earlier call.
        let open = self.groups.range_mut(..limit).rev().take_while(|(_, group)| matches!(group, Group::Open(_)));
        for (number, group) in open {
            if let Group::Open(open) = group {
                if let Some(base) = &mut self.base {
                    open.inherit(base.cursor.siblings(BlockIndex(number * FANOUT as u64))?);
                }
                *group = Group::Closed(store(&self.hasher, 1, &open.children, sink)?);
            }
        }
        Ok(())
    }

    /// Builds what is above the leaves, and gives the root of a disk of `virtual_size` bytes.
    ///
    /// # Errors
    /// Those of `sink`; `Corrupt` or `Unavailable` when a node of the base cannot be read.
    pub fn finish(mut self, virtual_size: u64, sink: &mut NodeSink<'_>) -> Result<NodeId> {
        let blocks = block_count(virtual_size);
        let top = height(blocks);
        let beneath = self.beneath_top(top)?;
        let root = self.node(Place { level: top, number: 0 }, blocks, beneath, sink)?;
        debug_assert!(self.groups.is_empty(), "a block past the disk's end was set");
        Ok(root)
    }

    /// What the base has in the place of a root of level `top`.
    fn beneath_top(&self, top: u8) -> Result<Beneath> {
        let Some(Base { tree, source, .. }) = &self.base else { return Ok(Beneath::Node(NodeId::NONE)) };
        if top > tree.height() && !tree.root.is_none() {
            return Ok(Beneath::Raised);
        }
        let mut id = tree.root;
        for level in (top + 1..=tree.height()).rev() {
            if !id.is_none() {
                id = inner(*source, id, level)?.first().copied().unwrap_or(NodeId::NONE);
            }
        }
        Ok(Beneath::Node(id))
    }

    /// The node of a place on a disk of `blocks`. Depth is at most 7.
    fn node(&mut self, place: Place, blocks: u64, beneath: Beneath, sink: &mut NodeSink<'_>) -> Result<NodeId> {
        let first = place.number * span(place.level);
        if first >= blocks {
            return Ok(NodeId::NONE);
        }
        let groups = place.number * span(place.level - 1)..(place.number + 1) * span(place.level - 1);
        let touched = self.groups.range(groups).next().is_some();
        let base_blocks = self.base.as_ref().map_or(0, |base| block_count(base.tree.virtual_size));
        let cut = first + span(place.level) > blocks && base_blocks > blocks;
        if let Beneath::Node(id) = beneath
            && (id.is_none() || !cut)
            && !touched
        {
            return Ok(id);
        }
        if place.level == 1 {
            return self.group(place.number, blocks, beneath, sink);
        }
        let below = self.children(place.level, beneath)?;
        let mut children = Vec::with_capacity(FANOUT);
        for (at, beneath) in (0..).zip(below) {
            let child = Place { level: place.level - 1, number: place.number * FANOUT as u64 + at };
            children.push(self.node(child, blocks, beneath, sink)?);
        }
        store(&self.hasher, place.level, &children, sink)
    }

    /// The node of level 1 of that number.
    fn group(&mut self, number: u64, blocks: u64, beneath: Beneath, sink: &mut NodeSink<'_>) -> Result<NodeId> {
        let mut open = match self.groups.remove(&number) {
            // All that was closed lies before a block of the disk: nothing of it is to be cut off.
            Some(Group::Closed(id)) => return Ok(id),
            Some(Group::Open(open)) => open,
            None => Box::new(OpenGroup { children: [NodeId::NONE; FANOUT], set: 0 }),
        };
        if let (Beneath::Node(id), Some(base)) = (beneath, &self.base)
            && !id.is_none()
        {
            open.inherit(&inner(base.source, id, 1)?);
        }
        let left = usize::try_from(blocks - number * FANOUT as u64).unwrap_or(FANOUT).min(FANOUT);
        open.children[left..].fill(NodeId::NONE);
        store(&self.hasher, 1, &open.children, sink)
    }

    /// What the base has in the places of the children of a node of `level`, all 128 of them.
    fn children(&self, level: u8, beneath: Beneath) -> Result<Vec<Beneath>> {
        let mut children = match (beneath, &self.base) {
            (Beneath::Raised, Some(base)) if level - 1 == base.tree.height() => vec![Beneath::Node(base.tree.root)],
            (Beneath::Raised, _) => vec![Beneath::Raised],
            (Beneath::Node(id), Some(base)) if !id.is_none() => {
                inner(base.source, id, level)?.into_iter().map(Beneath::Node).collect()
            }
            (Beneath::Node(_), _) => Vec::new(),
        };
        children.resize(FANOUT, Beneath::Node(NodeId::NONE));
        Ok(children)
    }
}

/// Where a node stands: its level, and its number among those of its level.
#[derive(Clone, Copy)]
struct Place {
    level: u8,
    number: u64,
}

impl OpenGroup {
    /// Takes what was not set from the base's children.
    fn inherit(&mut self, base: &[NodeId]) {
        for (at, (child, inherited)) in self.children.iter_mut().zip(base).enumerate() {
            if self.set >> at & 1 == 0 {
                *child = *inherited;
            }
        }
    }
}

fn store(hasher: &NodeHasher, level: u8, children: &[NodeId], sink: &mut NodeSink<'_>) -> Result<NodeId> {
    if children.iter().all(NodeId::is_none) {
        return Ok(NodeId::NONE);
    }
    let bytes = encode_inner(level, children);
    let id = hasher.id(&bytes);
    sink(id, &bytes)?;
    Ok(id)
}

#[cfg(test)]
pub(super) mod tests;
