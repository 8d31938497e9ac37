//! Building a tree from leaves that come in any order.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::id::NodeId;
use crate::manifest::{FANOUT, NodeHasher, encode_inner, height, span};
use crate::units::{BlockIndex, block_count};

/// A tree being built. Holds one node of 4 KiB per 256 MiB of disk at most, and 32 bytes once a node was closed.
pub struct TreeBuilder {
    hasher: NodeHasher,
    /// Nodes of level 1 by number.
    groups: BTreeMap<u64, Group>,
}

enum Group {
    Open(Box<[NodeId; FANOUT]>),
    Closed(NodeId),
}

/// Takes a node's name and bytes. Nodes come before their parents; one may come more than once.
pub type NodeSink<'a> = dyn FnMut(NodeId, &[u8]) -> Result<()> + 'a;

impl TreeBuilder {
    /// An empty tree: all zeros.
    pub fn new(hasher: NodeHasher) -> Self {
        Self { hasher, groups: BTreeMap::new() }
    }

    /// Sets the leaf of a block.
    ///
    /// # Panics
    /// When the block lies in a part that was closed.
    pub fn set(&mut self, block: BlockIndex, leaf: NodeId) {
        let group = self.groups.entry(block.0 / FANOUT as u64).or_insert_with(|| {
            let none = vec![NodeId::NONE; FANOUT].into_boxed_slice();
            Group::Open(none.try_into().expect("just made with that length"))
        });
        let Group::Open(children) = group else { panic!("block {block} lies before the part that is still open") };
        children[(block.0 % FANOUT as u64) as usize] = leaf;
    }

    /// Closes all that lies before a block, when no earlier block will come: frees its memory.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn close_before(&mut self, block: BlockIndex, sink: &mut NodeSink<'_>) -> Result<()> {
        let limit = block.0 / FANOUT as u64;
        // Only the newest groups can be open: everything before was closed by an earlier call.
        let open = self.groups.range_mut(..limit).rev().take_while(|(_, group)| matches!(group, Group::Open(_)));
        for (_, group) in open {
            if let Group::Open(children) = group {
                let id = store(&self.hasher, 1, &children[..], sink)?;
                *group = Group::Closed(id);
            }
        }
        Ok(())
    }

    /// Builds what is above the leaves, and gives the root of a disk of `virtual_size` bytes.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn finish(mut self, virtual_size: u64, sink: &mut NodeSink<'_>) -> Result<NodeId> {
        let top = height(block_count(virtual_size));
        let mut level_ids = BTreeMap::new();
        for (number, group) in std::mem::take(&mut self.groups) {
            let id = match group {
                Group::Open(children) => store(&self.hasher, 1, &children[..], sink)?,
                Group::Closed(id) => id,
            };
            level_ids.insert(number, id);
        }
        for level in 2..=top {
            level_ids = self.parents(level, &level_ids, sink)?;
        }
        debug_assert!(level_ids.keys().all(|number| *number * span(top) < block_count(virtual_size).max(1)));
        Ok(level_ids.remove(&0).unwrap_or(NodeId::NONE))
    }

    fn parents(
        &self,
        level: u8,
        below: &BTreeMap<u64, NodeId>,
        sink: &mut NodeSink<'_>,
    ) -> Result<BTreeMap<u64, NodeId>> {
        let mut parents = BTreeMap::new();
        let mut children = vec![NodeId::NONE; FANOUT];
        let mut below = below.iter().peekable();
        while let Some((number, id)) = below.next() {
            children[(number % FANOUT as u64) as usize] = *id;
            let parent = number / FANOUT as u64;
            if below.peek().is_none_or(|(next, _)| *next / FANOUT as u64 != parent) {
                parents.insert(parent, store(&self.hasher, level, &children, sink)?);
                children.fill(NodeId::NONE);
            }
        }
        Ok(parents)
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
    struct Memory(HashMap<NodeId, Vec<u8>>);

    impl NodeSource for Memory {
        fn node(&self, id: NodeId) -> Result<Node> {
            Node::decode(self.0.get(&id).ok_or_else(|| Error::corrupt("missing"))?)
        }
    }

    fn build(blocks: u64, leaves: &BTreeMap<u64, u8>, close: bool) -> (Tree, Memory) {
        let hasher = NodeHasher::new(&RoleKeys::from_master(&Zeroizing::new([1; 32]))).unwrap();
        let mut memory = Memory::default();
        let mut sink = |id, bytes: &[u8]| {
            memory.0.insert(id, bytes.to_vec());
            Ok(())
        };
        let mut builder = TreeBuilder::new(hasher);
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

    proptest! {
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
