//! Sizes and positions of a virtual disk.

use std::fmt;

/// A page of a virtual disk, aligned: the grain of zero detection and of chunk boundaries, in bytes.
pub const PAGE_LEN: usize = 4096;
/// A block of a virtual disk, aligned: VHD's unit and a manifest leaf's, in bytes.
pub const BLOCK_LEN: usize = 2 * 1024 * 1024;
/// Pages in a block.
pub const PAGES_PER_BLOCK: usize = BLOCK_LEN / PAGE_LEN;
/// A disk sector in VHD, in bytes.
pub const SECTOR_LEN: usize = 512;
/// The largest virtual disk a repository takes, in bytes: 1 PiB, far above any SR's limit, and low
/// enough that no arithmetic on positions can overflow.
pub const VIRTUAL_SIZE_MAX: u64 = 1 << 50;

/// The number of a 2 MiB block within a virtual disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);

impl BlockIndex {
    /// The block's first byte on the virtual disk.
    pub fn offset_bytes(self) -> u64 {
        self.0 * BLOCK_LEN as u64
    }

    /// How many bytes of the block lie on a disk of `virtual_size` bytes: 2 MiB, less in the last block.
    pub fn len_on_disk_bytes(self, virtual_size: u64) -> usize {
        let rest = virtual_size.saturating_sub(self.offset_bytes());
        usize::try_from(rest).map_or(BLOCK_LEN, |rest| rest.min(BLOCK_LEN))
    }
}

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Blocks that a disk of `virtual_size` bytes has, the last one perhaps partial.
pub fn block_count(virtual_size: u64) -> u64 {
    virtual_size.div_ceil(BLOCK_LEN as u64)
}

/// Whether every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Wide accumulation over fixed steps is what the compiler turns into vector code.
    let (steps, rest) = bytes.as_chunks::<128>();
    steps.iter().all(|step| step.iter().fold(0, |acc, byte| acc | byte) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_is_as_long_as_the_disk_lets_it() {
        let size = 3 * BLOCK_LEN as u64 + 512;
        assert_eq!(block_count(size), 4);
        assert_eq!(BlockIndex(2).len_on_disk_bytes(size), BLOCK_LEN);
        assert_eq!(BlockIndex(3).len_on_disk_bytes(size), 512);
        assert_eq!(BlockIndex(4).len_on_disk_bytes(size), 0);
    }

    #[test]
    fn one_set_bit_anywhere_is_not_zero() {
        let mut bytes = vec![0_u8; 1000];
        assert!(is_zero(&bytes));
        for at in [0, 127, 128, 895, 896, 999] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "byte {at}");
            bytes[at] = 0;
        }
        assert!(is_zero(&[]));
    }
}
