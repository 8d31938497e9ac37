//! Two trees of any nodes, compared: the comparison ends, goes one way, and names only blocks that differ.
//!
//! Input: the sizes of both disks in blocks (4), then nodes. Which of them an id names is its first byte, and each is of any
//! level, so that a tree may hold a node anywhere, even in itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo_core::chunk::Run;
use repo_core::error::{Error, Result};
use repo_core::id::{ChunkId, NodeId};
use repo_core::manifest::diff::{ChangedBlocks, changed_pages};
use repo_core::manifest::walk::{LeafCursor, leaf_runs};
use repo_core::manifest::{Node, NodeSource, Tree};
use repo_core::units::{BLOCK_LEN, PAGES_PER_BLOCK};
use repo_fuzz::{check_error, write_seeds};

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

/// Changed blocks that are looked at.
const BLOCKS_MAX: usize = 500;

fn accepts(input: &[u8]) -> bool {
    let Some(([low, high, other_low, other_high], nodes)) = input.split_first_chunk() else { return false };
    let tree = |root, blocks: [u8; 2]| Tree {
        root: NodeId([root; 32]),
        virtual_size: u64::from(u16::from_le_bytes(blocks)) * BLOCK_LEN as u64,
    };
    let nodes = Nodes(nodes);
    let (before, after) = (tree(1, [*low, *high]), tree(2, [*other_low, *other_high]));
    let mut last = None;
    for changed in ChangedBlocks::new(&before, &after, &nodes).take(BLOCKS_MAX) {
        let changed = match changed {
            Ok(changed) => changed,
            Err(error) => {
                check_error(&error);
                continue;
            }
        };
        assert!(last.is_none_or(|last| last < changed.block), "block {} after {last:?}", changed.block);
        assert_ne!(changed.before, changed.after);
        last = Some(changed.block);
        for (tree, id) in [(before, changed.before), (after, changed.after)] {
            let found = LeafCursor::new(tree, &nodes).leaf(changed.block).expect("the way down was read");
            assert_eq!(found, id, "block {}", changed.block);
        }
        let runs = |id| leaf_runs(&nodes, id).inspect_err(check_error);
        if let (Ok(before), Ok(after)) = (runs(changed.before), runs(changed.after)) {
            let pages = changed_pages(&before, &after);
            assert!(pages.windows(2).all(|pair| pair[0].end < pair[1].start));
            assert!(pages.last().is_none_or(|last| last.end <= PAGES_PER_BLOCK));
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
    let inner =
        |level, names: &[u8]| Node::Inner { level, children: names.iter().map(|name| NodeId([*name; 32])).collect() };
    let run = |first_page, page_count| Run { first_page, page_count, id: ChunkId([4; 32]) };
    let leaves = [Node::Leaf(vec![run(0, 3), run(500, 12)]), Node::Leaf(vec![run(0, 3), run(3, 1)])];
    let stored = |node: &Node| {
        let bytes = node.encode();
        [&u16::try_from(bytes.len()).expect("seeds are small").to_le_bytes()[..], &bytes].concat()
    };
    let input = |sizes: [u16; 2], nodes: &[Node]| {
        let sizes = sizes.map(u16::to_le_bytes).concat();
        [sizes, nodes.iter().flat_map(stored).collect()].concat()
    };
    let [one, other] = leaves;
    vec![
        input([3, 3], &[inner(1, &[3, 0, 4]), inner(1, &[3, 4]), one.clone(), other.clone()]),
        input([300, 300], &[inner(2, &[3, 0, 4]), inner(2, &[3, 4, 4]), inner(1, &[5, 6]), inner(1, &[6]), one, other]),
        input([5, 300], &[inner(1, &[3]), inner(2, &[1, 0, 1])]),
        input([200, 200], &[inner(2, &[1]), inner(2, &[2])]),
    ]
}
