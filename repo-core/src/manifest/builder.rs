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
mod tests {
    use std::cell::Cell;
    use std::collections::HashMap;

    use super::*;
    use crate::error::Error;
    use crate::keys::RoleKeys;
    use crate::manifest::walk::{LeafCursor, Leaves};
    use crate::manifest::{Node, NodeSource, Tree};
    use crate::units::BLOCK_LEN;
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    #[derive(Default)]
    struct Memory(HashMap<NodeId, Vec<u8>>, Cell<u64>);

    impl NodeSource for Memory {
        fn node(&self, id: NodeId) -> Result<Node> {
            self.1.set(self.1.get() + 1);
            Node::decode(self.0.get(&id).ok_or_else(|| Error::corrupt("missing"))?)
        }
    }

    fn hasher() -> NodeHasher {
        NodeHasher::new(&RoleKeys::from_master(&Zeroizing::new([1; 32]))).unwrap()
    }

    fn build(blocks: u64, leaves: &BTreeMap<u64, u8>, close: bool) -> (Tree, Memory) {
        let mut memory = Memory::default();
        let mut sink = |id, bytes: &[u8]| {
            memory.0.insert(id, bytes.to_vec());
            Ok(())
        };
        let mut builder = TreeBuilder::new(hasher());
        for (block, leaf) in leaves {
            if close {
                builder.close_before(BlockIndex(*block), &mut sink).unwrap();
            }
            builder.set(BlockIndex(*block), NodeId([*leaf; 32]));
        }
        let virtual_size = blocks * BLOCK_LEN as u64;
        let root = builder.finish(virtual_size, &mut sink).unwrap();
        (Tree { root, virtual_size }, memory)
    }

    /// A number of blocks at and around the sizes where a tree gets higher.
    fn sizes() -> impl Strategy<Value = u64> {
        prop::sample::select(vec![1_u64, 5, 127, 128, 129, 700, 16_384, 16_385, 100_000, 3_000_000])
    }

    /// Leaves of a disk, many of them near each other.
    fn picks(max: usize) -> impl Strategy<Value = Vec<(prop::sample::Index, u64, u8)>> {
        prop::collection::vec((any::<prop::sample::Index>(), 0..200_u64, 0..=255_u8), 0..max)
    }

    fn placed(picks: &[(prop::sample::Index, u64, u8)], blocks: u64) -> BTreeMap<u64, u8> {
        let at =
            |at: &prop::sample::Index, off: u64| (at.index(usize::try_from(blocks).unwrap()) as u64 + off) % blocks;
        picks.iter().map(|(index, off, leaf)| (at(index, *off), *leaf)).collect()
    }

    fn leaf(number: u8) -> NodeId {
        if number == 0 { NodeId::NONE } else { NodeId([number; 32]) }
    }

    proptest! {
        #[test]
        fn a_tree_over_a_base_is_the_tree_built_from_scratch(
            (base_blocks, blocks) in (sizes(), sizes(), any::<bool>())
                .prop_map(|(base, other, same)| (base, if same { base } else { other })),
            (base_picks, picks) in (picks(60), picks(12)),
            order in prop::sample::select(vec!["ascending", "closing", "descending"]),
        ) {
            let mut leaves = placed(&base_picks, base_blocks);
            leaves.retain(|_, leaf| *leaf != 0);
            let (base, memory) = build(base_blocks, &leaves, false);
            let changes = placed(&picks, blocks);
            let mut made = Memory::default();
            let mut sink = |id, bytes: &[u8]| {
                made.0.insert(id, bytes.to_vec());
                Ok(())
            };
            let mut builder = TreeBuilder::over(hasher(), base, &memory);
            let mut set: Vec<_> = changes.iter().collect();
            if order == "descending" {
                set.reverse();
            }
            for (block, number) in set {
                if order == "closing" {
                    builder.close_before(BlockIndex(*block), &mut sink).unwrap();
                }
                builder.set(BlockIndex(*block), leaf(*number));
            }
            let virtual_size = blocks * BLOCK_LEN as u64;
            let root = builder.finish(virtual_size, &mut sink).unwrap();
            let read = memory.1.get();
            leaves.retain(|block, _| *block < blocks);
            leaves.extend(&changes);
            leaves.retain(|_, leaf| *leaf != 0);
            let (scratch, all) = build(blocks, &leaves, false);
            prop_assert_eq!(root, scratch.root);
            // What was not made anew is the base's.
            for (id, bytes) in &all.0 {
                prop_assert!(made.0.get(id).or_else(|| memory.0.get(id)) == Some(bytes));
            }
            // The way to each changed leaf, once to close it and once for what is above it, and the way to the end.
            let height = u64::from(base.height());
            prop_assert!(read <= (2 * changes.len() as u64 + 2) * height, "{} nodes read", read);
            prop_assert!(made.0.len() as u64 <= (changes.len() as u64 + 1) * 7);
            if changes.is_empty() && blocks == base_blocks {
                prop_assert_eq!((read, made.0.len()), (0, 0));
            }
        }

        #[test]
        fn a_tree_gives_back_its_leaves_by_walk_and_by_cursor(
            blocks in prop::sample::select(vec![1_u64, 5, 128, 129, 700, 16384, 16385, 100_000, 3_000_000]),
            picks in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 0..60),
        ) {
            let leaves: BTreeMap<u64, u8> = picks
                .iter()
                .map(|(at, leaf)| (at.index(usize::try_from(blocks).unwrap()) as u64, *leaf))
                .collect();
            let (tree, memory) = build(blocks, &leaves, false);
            let walked: BTreeMap<u64, u8> = Leaves::new(&tree, &memory)
                .map(|leaf| leaf.map(|(block, id)| (block.0, id.0[0])).unwrap())
                .collect();
            prop_assert_eq!(&walked, &leaves);
            let mut cursor = LeafCursor::new(tree, &memory);
            for (at, _) in &picks {
                let block = at.index(usize::try_from(blocks).unwrap()) as u64;
                prop_assert_eq!(cursor.leaf(BlockIndex(block)).unwrap().0[0], leaves[&block]);
                let next = leaves.get(&(block + 1)).copied().unwrap_or(0);
                prop_assert_eq!(cursor.leaf(BlockIndex(block + 1)).unwrap().0[0], next);
            }
            prop_assert_eq!(build(blocks, &leaves, true).0, tree);
        }
    }

    #[test]
    fn a_missing_node_hides_only_what_is_below_it() {
        let leaves = (0..400).map(|block| (block, 7)).collect();
        let (tree, mut memory) = build(400, &leaves, false);
        let Node::Inner { children, .. } = memory.node(tree.root).unwrap() else { panic!() };
        // The leaves are all equal, so nodes 0 to 2 are one; the last, shorter one stays.
        memory.0.remove(&children[0]);
        let walked: Vec<_> = Leaves::new(&tree, &memory).collect();
        assert_eq!(walked.iter().filter(|leaf| leaf.is_err()).count(), 3);
        assert_eq!(
            walked.iter().flatten().map(|(block, _)| block.0).collect::<Vec<_>>(),
            (384..400).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_disk_of_zeros_has_no_root() {
        let (tree, memory) = build(100_000, &BTreeMap::new(), false);
        assert!(tree.root.is_none() && memory.0.is_empty());
        assert_eq!(Leaves::new(&tree, &memory).count(), 0);
    }
}
