//! Which blocks an image stores, and the how-manieth of them each one is.

use crate::disk::PresentBlocks;
use crate::units::BlockIndex;

/// The present blocks of a disk with their ranks: 4 bytes beside each 64 blocks, so 32 MiB for the largest disk.
#[derive(Debug, Clone)]
pub struct StoredBlocks {
    present: PresentBlocks,
    /// For each word of bits, how many blocks before it are present.
    before: Vec<u32>,
    count: u64,
}

impl StoredBlocks {
    /// Counts the blocks.
    pub fn new(present: PresentBlocks) -> Self {
        let mut count = 0;
        let mut before = Vec::with_capacity(present.words.len());
        for word in &present.words {
            before.push(count);
            count += word.count_ones();
        }
        Self { present, before, count: u64::from(count) }
    }

    /// Blocks the disk has, stored or not.
    pub fn block_count(&self) -> u64 {
        self.present.block_count()
    }

    /// How many blocks are stored.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many blocks before this one are stored, if it is stored itself.
    pub fn rank(&self, index: BlockIndex) -> Option<u64> {
        self.present.contains(index).then(|| self.count_before(index))
    }

    /// How many blocks before this one are stored. `index` may be any number.
    pub fn count_before(&self, index: BlockIndex) -> u64 {
        let at = usize::try_from(index.0 / 64).unwrap_or(usize::MAX);
        let (Some(word), Some(before)) = (self.present.words.get(at), self.before.get(at)) else {
            return self.count;
        };
        let lower = word & ((1 << (index.0 % 64)) - 1);
        u64::from(*before) + u64::from(lower.count_ones())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::BLOCK_LEN;

    proptest! {
        #[test]
        fn ranks_agree_with_a_sorted_list(indices in prop::collection::btree_set(0_u64..300, 0..60)) {
            let mut present = PresentBlocks::new(300 * BLOCK_LEN as u64);
            indices.iter().for_each(|index| present.insert(BlockIndex(*index)));
            let stored = StoredBlocks::new(present);
            prop_assert_eq!(stored.count(), indices.len() as u64);
            for index in (0..400).chain([u64::MAX]) {
                let before = indices.range(..index).count() as u64;
                prop_assert_eq!(stored.count_before(BlockIndex(index)), before);
                prop_assert_eq!(stored.rank(BlockIndex(index)), indices.contains(&index).then_some(before));
            }
        }
    }
}
