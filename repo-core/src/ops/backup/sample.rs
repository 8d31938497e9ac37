//! Whether a list of changes can be believed: some blocks that it calls unchanged are read and compared with the base.

use std::collections::BTreeSet;

use crate::chunk::Chunker;
use crate::content::ContentReader;
use crate::disk::{BlockBuf, DiskSource, PresentBlocks};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::id::NodeId;
use crate::manifest::walk::LeafCursor;
use crate::manifest::{NodeHasher, Tree, encode_leaf};
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::backup::base::damaged;
use crate::units::{BLOCK_LEN, BlockIndex};

/// Blocks that are read at least, if there are as many.
const SAMPLE_MIN: u64 = 64;
/// Blocks that are read at most: 512 MiB.
const SAMPLE_MAX: u64 = 256;
/// One in so many is read, between those bounds.
const SAMPLE_EVERY: u64 = 100;

/// What a sample is compared with, and how.
pub(super) struct HintCheck<'a> {
    pub(super) base: Tree,
    pub(super) content: &'a ContentReader,
    pub(super) chunker: &'a Chunker,
    pub(super) hasher: &'a NodeHasher,
    /// Which blocks are taken follows from this.
    pub(super) seed: [u8; 32],
}

impl HintCheck<'_> {
    /// Compares some of the blocks that were not delivered with the base's.
    ///
    /// # Errors
    /// `Invalid` when one differs: nothing may be committed then. `Unsupported` when the source cannot be sampled; errors
    /// of reading it and the base's manifest.
    pub(super) fn run(
        &self,
        source: &mut dyn DiskSource,
        delivered: &PresentBlocks,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        let blocks = choose(delivered, &self.seed);
        monitor.begin("checking the list of changes", Some(blocks.len() as u64 * BLOCK_LEN as u64));
        let mut cursor = LeafCursor::new(self.base, self.content);
        let mut buf = BlockBuf::new();
        for block in blocks {
            check_cancelled(monitor)?;
            let read = source.sample(block, &mut buf);
            if !read.context(|| format!("cannot read block {block} to check the list of changes"))? {
                let text = "the list of changes cannot be checked against this input: import without --changed";
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
            if self.leaf(&buf) != cursor.leaf(block).map_err(damaged)? {
                let (start, end) = (block.offset_bytes(), block.offset_bytes() + BLOCK_LEN as u64);
                return Err(Error::invalid(format!(
                    "the list of changes is wrong for this base: bytes {start} to {end} of the disk differ from the \
                     base, and the list says that they do not; import without --changed"
                )));
            }
            monitor.advance(BLOCK_LEN as u64);
        }
        monitor.end();
        Ok(())
    }

    fn leaf(&self, buf: &BlockBuf) -> NodeId {
        let runs = self.chunker.cut(buf.bytes());
        if runs.is_empty() { NodeId::NONE } else { self.hasher.id(&encode_leaf(&runs)) }
    }
}

/// Blocks that were not delivered, ascending: 1 in 100, at least 64, at most 256, never more than there are.
fn choose(delivered: &PresentBlocks, seed: &[u8; 32]) -> Vec<BlockIndex> {
    let total = delivered.block_count() - delivered.count();
    let wanted = (total / SAMPLE_EVERY).clamp(SAMPLE_MIN, SAMPLE_MAX).min(total);
    let ranks = ranks(total, wanted, seed);
    let undelivered = (0..delivered.block_count()).map(BlockIndex).filter(|block| !delivered.contains(*block));
    let mut next = ranks.into_iter().peekable();
    (0..).zip(undelivered).filter(|(rank, _)| next.next_if_eq(rank).is_some()).map(|(_, block)| block).collect()
}

/// `wanted` different numbers below `total`, each set as likely as any other (Floyd's algorithm).
fn ranks(total: u64, wanted: u64, seed: &[u8; 32]) -> BTreeSet<u64> {
    let mut stream = blake3::Hasher::new_keyed(seed).finalize_xof();
    let mut below = |limit: u64| {
        let mut bytes = [0; 8];
        stream.fill(&mut bytes);
        // Far more bits than the limit has: the unevenness of the remainder does not count.
        u64::from_le_bytes(bytes) % limit
    };
    let mut ranks = BTreeSet::new();
    for last in total - wanted..total {
        let rank = below(last + 1);
        if !ranks.insert(rank) {
            ranks.insert(last);
        }
    }
    ranks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_sample_has_the_size_that_is_promised_and_no_delivered_block(
            blocks in prop_oneof![1..200_u64, 1000..100_000_u64],
            delivered in prop::collection::vec(any::<prop::sample::Index>(), 0..150),
            seed: [u8; 32],
        ) {
            let mut present = PresentBlocks::new(blocks * BLOCK_LEN as u64);
            for at in &delivered {
                present.insert(BlockIndex(at.index(usize::try_from(blocks).unwrap()) as u64));
            }
            let chosen = choose(&present, &seed);
            let left = blocks - present.count();
            prop_assert_eq!(chosen.len() as u64, (left / 100).clamp(64, 256).min(left));
            prop_assert!(chosen.is_sorted_by(|a, b| a < b));
            prop_assert!(chosen.iter().all(|block| block.0 < blocks && !present.contains(*block)));
            prop_assert_eq!(&choose(&present, &seed), &chosen);
        }
    }

    #[test]
    fn other_seeds_take_other_blocks() {
        let present = PresentBlocks::new(10_000 * BLOCK_LEN as u64);
        assert_ne!(choose(&present, &[1; 32]), choose(&present, &[2; 32]));
        assert!(choose(&PresentBlocks::new(0), &[1; 32]).is_empty());
    }
}
