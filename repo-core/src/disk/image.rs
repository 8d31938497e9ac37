//! Images of which everything is known before the first byte: a head of tables, then the present blocks, ascending and
//! without gaps.
//!
//! An [`ImageLayout`] says what stands where; [`qcow2`](super::qcow2) and [`vhdx`](super::vhdx) have one each. The two
//! sinks write any of them: [`stream_sink`] front to back, [`file_sink`] in any order. Both write the same bytes.

pub mod file_sink;
pub mod stored_blocks;
pub mod stream_sink;

#[cfg(test)]
pub(in crate::disk) mod tests;

use self::stored_blocks::StoredBlocks;
use crate::units::{BLOCK_LEN, BlockIndex, SECTOR_LEN};

/// Where everything of a new image stands. Positions and lengths are in bytes.
pub trait ImageLayout: Send + Sync {
    /// The format's name, for messages.
    fn name(&self) -> &'static str;

    /// The size of the disk, as it was given.
    fn virtual_size(&self) -> u64;

    /// The blocks that are stored.
    fn blocks(&self) -> &StoredBlocks;

    /// What blocks are stored in multiples of: the disk's last block is no longer than it needs to be.
    fn unit_len(&self) -> usize;

    /// Where the first block begins: behind the head.
    fn blocks_offset(&self) -> u64;

    /// The head in order, in pieces of at most some MiB that are made as they are asked for. Without the first piece
    /// nobody takes the file for an image of the format.
    fn head(&self) -> Box<dyn Iterator<Item = Vec<u8>> + Send + '_>;

    /// The size that the image says the disk has: whole sectors.
    fn image_size(&self) -> u64 {
        self.virtual_size().next_multiple_of(SECTOR_LEN as u64)
    }

    /// Where a stored block begins; `None` for the others.
    fn block_offset(&self, index: BlockIndex) -> Option<u64> {
        Some(self.blocks_offset() + self.blocks().rank(index)? * BLOCK_LEN as u64)
    }

    /// The bytes that a stored block takes.
    fn stored_len(&self, index: BlockIndex) -> usize {
        index.len_on_disk_bytes(self.virtual_size()).next_multiple_of(self.unit_len())
    }

    /// The bytes of the whole image, known without the content of its blocks: the Content-Length of an import.
    fn len_bytes(&self) -> u64 {
        // Only the disk's last block can be short, and it is stored last.
        let last = BlockIndex(self.blocks().block_count().saturating_sub(1));
        match self.block_offset(last) {
            Some(offset) => offset + self.stored_len(last) as u64,
            None => self.blocks_offset() + self.blocks().count() * BLOCK_LEN as u64,
        }
    }
}
