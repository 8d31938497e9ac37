//! Sector bitmaps: which sectors of a stored block count. Sector 0 is the highest bit of byte 0.

use crate::disk::{SECTORS_PER_BLOCK, SectorMask};
use crate::units::{BlockIndex, SECTOR_LEN};

/// Bytes a block of `block_size` bytes keeps before its content: a bit a sector, whole sectors of them.
pub fn bitmap_len(block_size: usize) -> usize {
    block_size.div_ceil(SECTOR_LEN).div_ceil(8).next_multiple_of(SECTOR_LEN)
}

/// Zeroes the sectors of `data` whose bit is 0. `data` starts at `first_sector` of the block, whose bitmap has a bit
/// for every sector of it.
///
/// In a dynamic disk such a sector reads as zeros whatever is stored; libvhd stores zeros there too, which is why
/// readers that ignore the bitmap get away with it (`docs/sources.md`, section "VHD").
pub fn clear_unset(bitmap: &[u8], first_sector: usize, data: &mut [u8]) {
    let sectors = data.len().div_ceil(SECTOR_LEN);
    let bits = &bitmap[first_sector / 8..(first_sector + sectors).div_ceil(8)];
    if bits.iter().all(|byte| *byte == u8::MAX) {
        return;
    }
    for (sector, content) in (first_sector..).zip(data.chunks_mut(SECTOR_LEN)) {
        if !is_set(bitmap, sector) {
            content.fill(0);
        }
    }
}

/// What a differencing disk holds of a 2 MiB block, put together from bitmaps of one or more blocks of the VHD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held(SectorMask);

impl Held {
    /// Nothing.
    pub(super) fn nothing() -> Self {
        Self(SectorMask::NONE)
    }

    /// Adds `count` sectors from sector `at` of the 2 MiB block on, as far as their bits are 1: those from
    /// `first_sector` of the bitmap on.
    pub(super) fn add(&mut self, at: usize, bitmap: &[u8], first_sector: usize, count: usize) {
        if count == SECTORS_PER_BLOCK && bitmap[first_sector / 8..][..count / 8].iter().all(|byte| *byte == u8::MAX) {
            return self.0.insert_from(0);
        }
        for sector in (0..count).filter(|sector| is_set(bitmap, first_sector + sector)) {
            self.0.insert(at + sector);
        }
    }

    /// What a source says of block `index` of a disk of `virtual_size` bytes: `Some(None)` when it holds all that is on
    /// the disk, `None` when it holds nothing and there is nothing to deliver.
    pub(super) fn judge(mut self, index: BlockIndex, virtual_size: u64) -> Option<Option<SectorMask>> {
        let on_disk = index.len_on_disk_bytes(virtual_size).div_ceil(SECTOR_LEN);
        if !(0..on_disk).any(|sector| self.0.contains(sector)) {
            return None;
        }
        self.0.insert_from(on_disk.min(SECTORS_PER_BLOCK));
        Some((!self.0.is_full()).then_some(self.0))
    }

    /// As bytes, for the temporary file.
    pub(super) fn encode(&self) -> [u8; SECTORS_PER_BLOCK / 8] {
        std::array::from_fn(|byte| {
            (0..8).filter(|bit| self.0.contains(byte * 8 + bit)).fold(0, |byte, bit| byte | 0x80 >> bit)
        })
    }

    /// From those bytes.
    pub(super) fn decode(bytes: &[u8; SECTORS_PER_BLOCK / 8]) -> Self {
        let mut held = Self::nothing();
        held.add(0, bytes, 0, SECTORS_PER_BLOCK);
        held
    }
}

fn is_set(bitmap: &[u8], sector: usize) -> bool {
    bitmap[sector / 8] & (0x80 >> (sector % 8)) != 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bitmaps_are_whole_sectors() {
        assert_eq!(bitmap_len(512), 512);
        assert_eq!(bitmap_len(512 * 1024), 512);
        assert_eq!(bitmap_len(2 << 20), 512);
        assert_eq!(bitmap_len(4 << 20), 1024);
        assert_eq!(bitmap_len(256 << 20), 64 << 10);
    }

    #[test]
    fn the_highest_bit_is_the_first_sector() {
        let mut data = vec![1; 16 * SECTOR_LEN];
        clear_unset(&[0b1000_0001, 0b0100_0000], 0, &mut data);
        let set: Vec<_> = (0..16).filter(|sector| data[sector * SECTOR_LEN] == 1).collect();
        assert_eq!(set, [0, 7, 9]);
    }

    #[test]
    fn a_block_is_delivered_when_a_sector_on_the_disk_is_held_and_masked_when_one_is_not() {
        let size = 2 * 4096 * 512 + 9 * 512 + 1;
        let judge = |set: &[usize], index| {
            let mut held = Held::nothing();
            for sector in set {
                held.add(*sector, &[0x80], 0, 1);
            }
            assert_eq!(Held::decode(&held.encode()), held);
            held.judge(BlockIndex(index), size)
        };
        assert_eq!(judge(&[], 0), None);
        let partly = judge(&[7], 0).unwrap().unwrap();
        assert!(partly.contains(7) && !partly.contains(8));
        // Ten sectors of the last block are on the disk.
        assert_eq!(judge(&[10, 4095], 2), None);
        assert!(judge(&[0, 1, 2, 3, 4, 5, 6, 7, 8], 2).unwrap().is_some());
        assert_eq!(judge(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 2), Some(None));
        assert_eq!(judge(&(0..4096).collect::<Vec<_>>(), 1), Some(None));
    }

    proptest! {
        #[test]
        fn each_bit_decides_its_sector(
            bitmap in prop::collection::vec(prop_oneof![Just(0_u8), Just(255), any::<u8>()], 8),
            first in 0_usize..64,
            len in 0_usize..64 * 512,
        ) {
            let len = len.min((64 - first) * 512);
            let mut data = vec![9; len];
            clear_unset(&bitmap, first, &mut data);
            for (sector, content) in (first..).zip(data.chunks(512)) {
                let set = bitmap[sector / 8] >> (7 - sector % 8) & 1 == 1;
                let expected = [if set { 9 } else { 0 }; 512];
                prop_assert_eq!(content, &expected[..content.len()], "sector {}", sector);
            }
        }
    }
}
