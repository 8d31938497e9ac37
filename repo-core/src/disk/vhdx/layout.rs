//! Everything of a new dynamic VHDX but the content of its blocks.

use super::header::{self, BAT_REGION, HEADER_SECTION_LEN, HeaderFields, METADATA_REGION, Region};
use super::metadata::{self, METADATA_LEN};
use super::{Guid, MIB, random_guid};
use crate::disk::PresentBlocks;
use crate::disk::image::ImageLayout;
use crate::disk::image::stored_blocks::StoredBlocks;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BLOCK_LEN, BlockIndex, SECTOR_LEN, block_count};

/// The largest disk the format knows, in bytes: 64 TiB.
pub const VHDX_SIZE_MAX: u64 = 64 << 40;

/// What a new VHDX says of itself. The ids are random bytes; those that mark a random GUID are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VhdxParams {
    /// The disk's size in bytes, 1 to [`VHDX_SIZE_MAX`]. A VHDX has whole sectors: it is rounded up to 512.
    pub virtual_size: u64,
    /// Identifies the disk to guests.
    pub disk_id: Guid,
    /// Identifies the bytes of the file.
    pub file_write_guid: Guid,
    /// Identifies the content of the disk.
    pub data_write_guid: Guid,
}

/// Where everything of a new VHDX stands. Its blocks are those of Cairn: 2 MiB.
#[derive(Debug, Clone)]
pub struct VhdxLayout {
    params: VhdxParams,
    blocks: StoredBlocks,
    bat_len: u32,
}

impl VhdxLayout {
    /// An image of which only `present` blocks are stored.
    ///
    /// # Errors
    /// `Unsupported` for a disk of zero bytes or above [`VHDX_SIZE_MAX`], `Internal` when `present` is of a disk of
    /// another size.
    pub fn new(params: &VhdxParams, present: &PresentBlocks) -> Result<Self> {
        let size = params.virtual_size;
        if size == 0 {
            return Err(Error::new(ErrorKind::Unsupported, "a VHDX cannot hold a disk of zero bytes"));
        }
        if size > VHDX_SIZE_MAX {
            let text = format!("a VHDX holds at most 64 TiB ({VHDX_SIZE_MAX} bytes), the disk has {size}");
            return Err(Error::new(ErrorKind::Unsupported, format!("{text}: write it raw or as qcow2 instead")));
        }
        let blocks = block_count(size);
        if present.block_count() != blocks {
            let text = format!("present blocks of a disk of {} blocks for one of {blocks}", present.block_count());
            return Err(Error::internal(text));
        }
        let bat_len = (bat_entries(blocks) * ENTRY_LEN as u64).next_multiple_of(MIB);
        let bat_len = u32::try_from(bat_len).expect("257 MiB for the largest disk");
        Ok(Self { params: *params, blocks: StoredBlocks::new(present.clone()), bat_len })
    }

    fn header_section(&self) -> Vec<u8> {
        let fields = HeaderFields {
            file_write_guid: random_guid(self.params.file_write_guid),
            data_write_guid: random_guid(self.params.data_write_guid),
            log_offset: LOG_OFFSET,
            log_len: LOG_LEN as u32,
        };
        let metadata = Region { id: METADATA_REGION, offset: METADATA_OFFSET, len: METADATA_LEN as u32 };
        let bat = Region { id: BAT_REGION, offset: BAT_OFFSET, len: self.bat_len };
        header::encode(&fields, &[bat, metadata])
    }

    fn bat(&self) -> impl Iterator<Item = Vec<u8>> + Send + '_ {
        let pieces = u64::from(self.bat_len) / MIB;
        (0..pieces).map(|piece| {
            let mut bytes = vec![0; MIB as usize];
            for (slot, number) in bytes.as_chunks_mut::<ENTRY_LEN>().0.iter_mut().zip(piece * ENTRIES_PER_MIB..) {
                *slot = self.bat_entry(number).to_le_bytes();
            }
            bytes
        })
    }

    /// After the entries of each chunk of blocks comes one for their sector bitmap, which only differencing disks have.
    fn bat_entry(&self, number: u64) -> u64 {
        let (chunk, within) = (number / (CHUNK_RATIO + 1), number % (CHUNK_RATIO + 1));
        let index = BlockIndex(chunk * CHUNK_RATIO + within);
        if within == CHUNK_RATIO || index.0 >= self.blocks.block_count() {
            return BITMAP_NOT_PRESENT;
        }
        match self.block_offset(index) {
            // Whole MiB: the lower bits are free for the state.
            Some(offset) => offset | BLOCK_FULLY_PRESENT,
            None => BLOCK_ZERO,
        }
    }
}

impl ImageLayout for VhdxLayout {
    fn name(&self) -> &'static str {
        "VHDX"
    }

    fn virtual_size(&self) -> u64 {
        self.params.virtual_size
    }

    fn blocks(&self) -> &StoredBlocks {
        &self.blocks
    }

    fn unit_len(&self) -> usize {
        BLOCK_LEN
    }

    fn blocks_offset(&self) -> u64 {
        BAT_OFFSET + u64::from(self.bat_len)
    }

    fn head(&self) -> Box<dyn Iterator<Item = Vec<u8>> + Send + '_> {
        let header = std::iter::once_with(|| self.header_section());
        let log = std::iter::once_with(|| vec![0; LOG_LEN]);
        let metadata = std::iter::once_with(|| metadata::encode(self.image_size(), &random_guid(self.params.disk_id)));
        Box::new(header.chain(log).chain(metadata).chain(self.bat()))
    }
}

/// Entries of the BAT: it ends with that of the last block.
fn bat_entries(blocks: u64) -> u64 {
    blocks + (blocks - 1) / CHUNK_RATIO
}

const LOG_OFFSET: u64 = HEADER_SECTION_LEN as u64;
const LOG_LEN: usize = MIB as usize;
const METADATA_OFFSET: u64 = LOG_OFFSET + LOG_LEN as u64;
const BAT_OFFSET: u64 = METADATA_OFFSET + METADATA_LEN as u64;
const ENTRY_LEN: usize = 8;
const ENTRIES_PER_MIB: u64 = MIB / ENTRY_LEN as u64;
/// Blocks for which one sector bitmap of 1 MiB, a bit a sector, would do.
const CHUNK_RATIO: u64 = (1 << 23) * SECTOR_LEN as u64 / BLOCK_LEN as u64;
/// "Not present" would leave it to the reader what an absent block holds.
const BLOCK_ZERO: u64 = 2;
const BLOCK_FULLY_PRESENT: u64 = 6;
const BITMAP_NOT_PRESENT: u64 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: VhdxParams =
        VhdxParams { virtual_size: 1, disk_id: [1; 16], file_write_guid: [2; 16], data_write_guid: [3; 16] };

    fn layout(virtual_size: u64) -> Result<VhdxLayout> {
        VhdxLayout::new(&VhdxParams { virtual_size, ..PARAMS }, &PresentBlocks::new(virtual_size))
    }

    #[test]
    fn the_length_is_that_of_the_parts() {
        assert_eq!(layout(1).unwrap().len_bytes(), 4 * MIB);
        // A MiB of BAT has 131072 entries, 63 of them for sector bitmaps.
        assert_eq!(layout(131_009 * BLOCK_LEN as u64).unwrap().len_bytes(), 4 * MIB);
        assert_eq!(layout(131_009 * BLOCK_LEN as u64 + 1).unwrap().len_bytes(), 5 * MIB);
        assert_eq!(layout(VHDX_SIZE_MAX).unwrap().len_bytes(), (3 + 257) * MIB);
        let mut present = PresentBlocks::new(1);
        present.insert(BlockIndex(0));
        assert_eq!(VhdxLayout::new(&PARAMS, &present).unwrap().len_bytes(), 6 * MIB);
    }

    #[test]
    fn an_entry_for_a_sector_bitmap_follows_each_2048_blocks() {
        let layout = layout(4097 * BLOCK_LEN as u64).unwrap();
        let states: Vec<_> = (0..4101).map(|number| layout.bat_entry(number)).collect();
        let bitmaps: Vec<_> = (0..4101).filter(|number| states[*number] != BLOCK_ZERO).collect();
        assert_eq!(bitmaps, [2048, 4097, 4099, 4100], "two bitmaps, and what lies past the end");
        assert_eq!(bat_entries(4097), 4099);
    }

    #[test]
    fn sizes_a_vhdx_cannot_have_are_refused() {
        let text = |size| {
            let error = VhdxLayout::new(&VhdxParams { virtual_size: size, ..PARAMS }, &PresentBlocks::new(1));
            let error = error.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            error.to_string()
        };
        assert_eq!(text(0), "a VHDX cannot hold a disk of zero bytes");
        assert_eq!(
            text(VHDX_SIZE_MAX + 1),
            "a VHDX holds at most 64 TiB (70368744177664 bytes), the disk has 70368744177665: write it raw or as \
             qcow2 instead"
        );
    }
}
