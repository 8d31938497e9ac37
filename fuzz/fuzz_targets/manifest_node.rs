//! A manifest node, and a tree of nodes: what decodes is canonical, a walk ends and goes one way.
//!
//! Input: a node for the first check. For the second, its first two bytes are a disk's size in blocks, the others
//! nodes: which of them an id names is its first byte, so that a tree may hold a node anywhere, even in itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo_core::chunk::Run;
use repo_core::error::{Error, Result};
use repo_core::id::{ChunkId, NodeId};
use repo_core::manifest::walk::Leaves;
use repo_core::manifest::{Node, NodeSource, Tree};
use repo_core::units::{BLOCK_LEN, PAGES_PER_BLOCK};
use repo_fuzz::{check_error, write_seeds};

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

fn accepts(input: &[u8]) -> bool {
    let node = Node::decode(input).inspect(|node| check_node(node, input)).inspect_err(check_error);
    let has_leaves =
        input.split_first_chunk().is_some_and(|(size, nodes)| check_walk(u16::from_le_bytes(*size), nodes));
    node.is_ok() || has_leaves
}

fn check_node(node: &Node, bytes: &[u8]) {
    assert_eq!(node.encode(), bytes, "a node has one form only");
    if let Node::Leaf(runs) = node {
        let mut free = 0;
        for run in runs {
            assert!(run.first_page >= free && run.page_count > 0, "runs overlap");
            free = run.first_page + run.page_count;
        }
        assert!(usize::from(free) <= PAGES_PER_BLOCK);
    }
}

fn check_walk(blocks: u16, nodes: &[u8]) -> bool {
    let tree = Tree { root: NodeId([1; 32]), virtual_size: u64::from(blocks) * BLOCK_LEN as u64 };
    let mut last = None;
    let nodes = Nodes(nodes);
    for leaf in Leaves::new(&tree, &nodes).take(1000) {
        match leaf {
            Ok((block, id)) => {
                assert!(last.is_none_or(|last| last < block), "block {block} after {last:?}");
                assert!(!id.is_none());
                last = Some(block);
            }
            Err(error) => check_error(&error),
        }
    }
    last.is_some()
}

/// Nodes one after another, each behind its length in two bytes.
struct Nodes<'a>(&'a [u8]);

impl NodeSource for Nodes<'_> {
    fn node(&self, id: NodeId) -> Result<Node> {
        let mut rest = self.0;
        for _ in 1..id.0[0] {
            rest = split(rest)?.1;
        }
        Node::decode(split(rest)?.0)
    }
}

fn split(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let missing = || Error::corrupt("no such node");
    let (len, rest) = bytes.split_first_chunk::<2>().ok_or_else(missing)?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*len))).ok_or_else(missing)
}

fn seeds() -> Vec<Vec<u8>> {
    let run = |first_page, page_count| Run { first_page, page_count, id: ChunkId([4; 32]) };
    let leaf = Node::Leaf(vec![run(0, 3), run(3, 1), run(500, 12)]).encode();
    let inner =
        |level, names: &[u8]| Node::Inner { level, children: names.iter().map(|name| NodeId([*name; 32])).collect() };
    let (low, high) = (inner(1, &[9, 0, 7]).encode(), inner(2, &[2, 0, 2]).encode());
    let stored = |node: &[u8]| [&u16::try_from(node.len()).expect("seeds are small").to_le_bytes(), node].concat();
    let tree = [&300_u16.to_le_bytes()[..], &stored(&high), &stored(&low)].concat();
    vec![leaf, low.clone(), high, [&3_u16.to_le_bytes()[..], &stored(&low)].concat(), tree]
}
