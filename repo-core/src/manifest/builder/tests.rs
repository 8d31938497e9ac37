//! Trees from scratch and over a base, against maps of leaves.

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
pub(crate) struct Memory {
    pub(crate) nodes: HashMap<NodeId, Vec<u8>>,
    reads: Cell<u64>,
}

impl Memory {
    /// How often nodes were read.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.get()
    }
}

impl NodeSource for Memory {
    fn node(&self, id: NodeId) -> Result<Node> {
        self.reads.set(self.reads.get() + 1);
        Node::decode(self.nodes.get(&id).ok_or_else(|| Error::corrupt("missing"))?)
    }
}

fn hasher() -> NodeHasher {
    NodeHasher::new(&RoleKeys::from_master(&Zeroizing::new([1; 32]))).unwrap()
}

pub(crate) fn build(blocks: u64, leaves: &BTreeMap<u64, u8>, close: bool) -> (Tree, Memory) {
    let mut memory = Memory::default();
    let mut sink = |id, bytes: &[u8]| {
        memory.nodes.insert(id, bytes.to_vec());
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
    let at = |at: &prop::sample::Index, off: u64| (at.index(usize::try_from(blocks).unwrap()) as u64 + off) % blocks;
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
            made.nodes.insert(id, bytes.to_vec());
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
        let read = memory.reads();
        leaves.retain(|block, _| *block < blocks);
        leaves.extend(&changes);
        leaves.retain(|_, leaf| *leaf != 0);
        let (scratch, all) = build(blocks, &leaves, false);
        prop_assert_eq!(root, scratch.root);
        // What was not made anew is the base's.
        for (id, bytes) in &all.nodes {
            prop_assert!(made.nodes.get(id).or_else(|| memory.nodes.get(id)) == Some(bytes));
        }
        // The way to each changed leaf, once to close it and once for what is above it, and the way to the end.
        let height = u64::from(base.height());
        prop_assert!(read <= (2 * changes.len() as u64 + 2) * height, "{} nodes read", read);
        prop_assert!(made.nodes.len() as u64 <= (changes.len() as u64 + 1) * 7);
        if changes.is_empty() && blocks == base_blocks {
            prop_assert_eq!((read, made.nodes.len()), (0, 0));
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
    memory.nodes.remove(&children[0]);
    let walked: Vec<_> = Leaves::new(&tree, &memory).collect();
    assert_eq!(walked.iter().filter(|leaf| leaf.is_err()).count(), 3);
    assert_eq!(walked.iter().flatten().map(|(block, _)| block.0).collect::<Vec<_>>(), (384..400).collect::<Vec<_>>());
}

#[test]
fn a_disk_of_zeros_has_no_root() {
    let (tree, memory) = build(100_000, &BTreeMap::new(), false);
    assert!(tree.root.is_none() && memory.nodes.is_empty());
    assert_eq!(Leaves::new(&tree, &memory).count(), 0);
}
