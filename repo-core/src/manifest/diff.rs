//! Two trees compared by the names of their nodes: what is equal is never read.

use std::ops::Range;

use crate::chunk::Run;
use crate::error::{Error, Result, ResultExt};
use crate::id::{ChunkId, NodeId};
use crate::manifest::walk::inner;
use crate::manifest::{NodeSource, Tree, span};
use crate::units::{BlockIndex, PAGES_PER_BLOCK, block_count};

/// A block whose content differs between two trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangedBlock {
    /// The block.
    pub block: BlockIndex,
    /// Its leaf before; none for zeros and past the disk's end.
    pub before: NodeId,
    /// Its leaf after; none for zeros and past the disk's end.
    pub after: NodeId,
}

/// The blocks in which two trees differ, ascending. What lies past the end of the smaller disk counts as zeros.
///
/// Goes down only where names differ: it reads at most two nodes per level above each changed block, and one more for
/// each level that one tree is higher than the other.
pub struct ChangedBlocks<'a> {
    source: &'a dyn NodeSource,
    /// Blocks of the disk before and of the disk after.
    block_counts: [u64; 2],
    /// Pairs on the way down, the next one last.
    pending: Vec<Pair>,
    /// Inner nodes of the tree after that were read and do not stand at the same place before; `None` when nobody asks.
    inner_nodes: Option<Vec<NodeId>>,
}

/// What stands at one place of the two trees. Their roots may be of different levels: a lower one is what the higher one
/// has at its beginning.
struct Pair {
    level: u8,
    first_block: u64,
    before: Side,
    after: Side,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Side {
    id: NodeId,
    /// The node's own level, at most that of its pair.
    level: u8,
}

impl<'a> ChangedBlocks<'a> {
    /// What `after` changes of `before`.
    pub fn new(before: &Tree, after: &Tree, source: &'a dyn NodeSource) -> Self {
        let root = |tree: &Tree| Side { id: tree.root, level: tree.height() };
        let level = before.height().max(after.height());
        let mut changed = Self {
            source,
            block_counts: [block_count(before.virtual_size), block_count(after.virtual_size)],
            pending: Vec::new(),
            inner_nodes: None,
        };
        changed.push(Pair { level, first_block: 0, before: root(before), after: root(after) });
        changed
    }

    /// Notes inner nodes for [`take_inner_nodes`](Self::take_inner_nodes).
    #[must_use]
    pub fn with_inner_nodes(self) -> Self {
        Self { inner_nodes: Some(Vec::new()), ..self }
    }

    /// The inner nodes of the tree after that were met since the last call and are not in the same place before: with the
    /// changed leaves, all nodes that a tree needs when the other one is there.
    pub fn take_inner_nodes(&mut self) -> Vec<NodeId> {
        self.inner_nodes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn push(&mut self, pair: Pair) {
        let equal = pair.before == pair.after || pair.before.id.is_none() && pair.after.id.is_none();
        if !equal {
            self.pending.push(pair);
        }
    }

    fn advance(&mut self) -> Result<Option<ChangedBlock>> {
        while let Some(pair) = self.pending.pop() {
            if pair.level == 0 {
                return self.changed_block(&pair).map(Some);
            }
            let cannot = || format!("cannot read the manifest from block {}", pair.first_block);
            let before = pair.before.children(pair.level, self.source).context(cannot)?;
            let after = pair.after.children(pair.level, self.source).context(cannot)?;
            if let Some(nodes) = &mut self.inner_nodes
                && pair.after.level == pair.level
                && !pair.after.id.is_none()
            {
                nodes.push(pair.after.id);
            }
            let level = pair.level - 1;
            for at in (0..before.len().max(after.len())).rev() {
                let child = |side: &[Side]| side.get(at).copied().unwrap_or(Side { id: NodeId::NONE, level });
                let first_block = pair.first_block + at as u64 * span(level);
                self.push(Pair { level, first_block, before: child(&before), after: child(&after) });
            }
        }
        Ok(None)
    }

    fn changed_block(&self, pair: &Pair) -> Result<ChangedBlock> {
        for (side, count) in [pair.before, pair.after].iter().zip(self.block_counts) {
            if !side.id.is_none() && pair.first_block >= count {
                return Err(Error::corrupt(format!(
                    "the manifest has a block {} past the disk's end",
                    pair.first_block
                )));
            }
        }
        Ok(ChangedBlock { block: BlockIndex(pair.first_block), before: pair.before.id, after: pair.after.id })
    }
}

impl Side {
    /// What stands one level below `level`.
    fn children(self, level: u8, source: &dyn NodeSource) -> Result<Vec<Self>> {
        if self.id.is_none() {
            return Ok(Vec::new());
        }
        if self.level < level {
            return Ok(vec![self]);
        }
        let children = inner(source, self.id, level)?;
        Ok(children.into_iter().map(|id| Self { id, level: level - 1 }).collect())
    }
}

impl Iterator for ChangedBlocks<'_> {
    type Item = Result<ChangedBlock>;

    /// The next changed block. After an error the walk goes on behind the part that could not be read.
    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

/// The pages, ascending and merged, in which two leaves differ by what their runs tell.
///
/// Every page that differs is among them. Pages of different chunks count as changed although some may be equal: a chunk that
/// differs in one page is another chunk, and the chunks behind it are others, too, up to the next place where both blocks
/// are cut.
pub fn changed_pages(before: &[Run], after: &[Run]) -> Vec<Range<usize>> {
    let (before, after) = (coverage(before), coverage(after));
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for page in (0..PAGES_PER_BLOCK).filter(|page| before[*page] != after[*page]) {
        match ranges.last_mut() {
            Some(last) if last.end == page => last.end += 1,
            _ => ranges.push(page..page + 1),
        }
    }
    ranges
}

/// What stands at each page of a block: a chunk and which of its pages, or zeros.
fn coverage(runs: &[Run]) -> Vec<Option<(ChunkId, u16)>> {
    let mut pages = vec![None; PAGES_PER_BLOCK];
    for run in runs {
        let at = usize::from(run.first_page);
        // Runs of a leaf lie within its block: decoding checked that.
        for (page, number) in pages.iter_mut().skip(at).zip(0..run.page_count) {
            *page = Some((run.id, number));
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::manifest::builder::tests::{Memory, build};

    fn walk(before: &Tree, after: &Tree, source: &dyn NodeSource) -> BTreeMap<u64, (u8, u8)> {
        let changed: Vec<_> = ChangedBlocks::new(before, after, source).map(Result::unwrap).collect();
        assert!(changed.is_sorted_by_key(|changed| changed.block));
        changed.iter().map(|changed| (changed.block.0, (changed.before.0[0], changed.after.0[0]))).collect()
    }

    fn merged(one: Memory, other: Memory) -> Memory {
        let mut memory = one;
        memory.nodes.extend(other.nodes);
        memory
    }

    fn disk() -> impl Strategy<Value = (u64, Vec<(prop::sample::Index, u8)>)> {
        let blocks = prop::sample::select(vec![0_u64, 1, 5, 128, 129, 700, 16384, 16385, 100_000, 3_000_000]);
        (blocks, prop::collection::vec((any::<prop::sample::Index>(), 1..4_u8), 0..40))
    }

    proptest! {
        #[test]
        fn trees_of_any_sizes_differ_where_their_leaves_do(
            (blocks_before, picks_before) in disk(), (blocks_after, picks_after) in disk(), shared in 0..40_usize,
        ) {
            // Both have some leaves in common, as two snapshots of one disk do.
            let shared: Vec<_> = picks_before.iter().take(shared).collect();
            let smaller = blocks_before.min(blocks_after);
            let place = |index: &prop::sample::Index, blocks: u64| index.index(usize::try_from(blocks).unwrap()) as u64;
            let leaves = |blocks: u64, own: &[(prop::sample::Index, u8)]| {
                let mut leaves = BTreeMap::new();
                if blocks > 0 {
                    leaves.extend(own.iter().map(|(at, leaf)| (place(at, blocks), *leaf)));
                }
                if smaller > 0 {
                    leaves.extend(shared.iter().map(|(at, leaf)| (place(at, smaller), *leaf)));
                }
                leaves
            };
            let (before, after) = (leaves(blocks_before, &picks_before), leaves(blocks_after, &picks_after));
            let (tree_before, memory_before) = build(blocks_before, &before, false);
            let (tree_after, memory_after) = build(blocks_after, &after, false);
            let memory = merged(memory_before, memory_after);
            let at = |leaves: &BTreeMap<u64, u8>, block: &u64| leaves.get(block).copied().unwrap_or(0);
            let expected: BTreeMap<u64, (u8, u8)> = before.keys().chain(after.keys())
                .filter(|block| at(&before, block) != at(&after, block))
                .map(|block| (*block, (at(&before, block), at(&after, block))))
                .collect();
            prop_assert_eq!(walk(&tree_before, &tree_after, &memory), expected.clone());
            let height = u64::from(tree_before.height().max(tree_after.height()));
            prop_assert!(memory.reads() <= 2 * height * expected.len() as u64 + height, "{} reads", memory.reads());
        }
    }

    #[test]
    fn the_nodes_that_only_the_tree_after_has_are_told_whichever_is_higher() {
        for (blocks_before, blocks_after) in [(3000, 3000), (100, 3000), (3000, 100), (0, 3000)] {
            let (before, one) = build(blocks_before, &(0..blocks_before).map(|block| (block, 7)).collect(), false);
            let leaves = (0..blocks_after).map(|block| (block, if block == 90 { 9 } else { 7 })).collect();
            let (after, other) = build(blocks_after, &leaves, false);
            let known = one.nodes.clone();
            let expected: std::collections::BTreeSet<NodeId> =
                other.nodes.keys().filter(|id| !known.contains_key(*id)).copied().collect();
            let memory = merged(one, other);
            let mut walk = ChangedBlocks::new(&before, &after, &memory).with_inner_nodes();
            assert!(walk.by_ref().all(|changed| changed.is_ok()));
            let found: std::collections::BTreeSet<NodeId> = walk.take_inner_nodes().into_iter().collect();
            assert!(found.is_superset(&expected), "{blocks_before} to {blocks_after}");
            let (few, height) = (found.len(), usize::from(after.height()));
            assert!(blocks_before != blocks_after || few <= height, "{few} nodes for one block");
        }
    }

    #[test]
    fn equal_trees_are_not_read_at_all() {
        let leaves = (0..3000).map(|block| (block, 7)).collect();
        let (tree, memory) = build(3000, &leaves, false);
        assert!(walk(&tree, &tree, &memory).is_empty());
        assert_eq!(memory.reads(), 0);
    }

    #[test]
    fn a_missing_node_hides_only_what_is_below_it() {
        let leaves = (0..400).map(|block| (block, (block / 128 + 1) as u8)).collect();
        let (before, _) = build(400, &BTreeMap::new(), false);
        let (after, mut memory) = build(400, &leaves, false);
        let second = inner(&memory, after.root, 2).unwrap()[1];
        memory.nodes.remove(&second);
        let walked: Vec<_> = ChangedBlocks::new(&before, &after, &memory).collect();
        assert_eq!(walked.iter().filter(|block| block.is_err()).count(), 1);
        assert_eq!(walked.iter().flatten().count(), 400 - 128);
    }

    #[test]
    fn a_leaf_past_the_disks_end_is_damage() {
        let (longer, memory) = build(128, &BTreeMap::from([(100, 1)]), false);
        let before = Tree { virtual_size: 1 << 20, ..longer };
        let nothing = Tree { root: NodeId::NONE, virtual_size: 1 << 20 };
        let walked: Vec<_> = ChangedBlocks::new(&nothing, &before, &memory).collect();
        assert!(walked.len() == 1 && walked[0].as_ref().is_err_and(Error::is_damage));
    }

    fn run(first_page: u16, page_count: u16, id: u8) -> Run {
        Run { first_page, page_count, id: ChunkId([id; 32]) }
    }

    #[test]
    fn pages_differ_where_their_chunks_do() {
        let before = [run(0, 4, 1), run(10, 8, 2), run(500, 12, 3)];
        assert!(changed_pages(&before, &before).is_empty());
        let after = [run(0, 4, 1), run(12, 8, 2), run(20, 1, 9)];
        assert_eq!(changed_pages(&before, &after), [10..21, 500..512]);
        assert_eq!(changed_pages(&before, &[]), [0..4, 10..18, 500..512]);
        assert_eq!(changed_pages(&[], &[]), []);
    }
}
