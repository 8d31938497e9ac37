//! Sector bitmaps: which sectors of a stored block count. Sector 0 is the highest bit of byte 0.

use crate::units::SECTOR_LEN;

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
        if bitmap[sector / 8] & (0x80 >> (sector % 8)) == 0 {
            content.fill(0);
        }
    }
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
