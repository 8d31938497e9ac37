//! Every position of a new dynamic VHD, known before its first byte is written.
//!
//! The profile that every reader takes (`docs/sources.md`, section "VHD"): 2 MiB blocks in ascending order without
//! gaps, exactly the BAT entries that the size needs, all sectors marked present, nothing behind the footer.

use super::bat::Bat;
use super::dynamic_header::{DYNAMIC_HEADER_LEN, DynamicHeader};
use super::footer::{FOOTER_LEN, Footer};
use crate::disk::PresentBlocks;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BLOCK_LEN, BlockIndex, SECTOR_LEN, block_count};

/// The largest disk a VHD is written for, in bytes: the limit of the storage manager and of qemu.
pub const VHD_SIZE_MAX: u64 = 2040 << 30;
/// Bytes of a 2 MiB block's sector bitmap.
pub const BITMAP_LEN: usize = SECTOR_LEN;

/// What a new VHD says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VhdParams {
    /// The disk's size in bytes, 1 to [`VHD_SIZE_MAX`]. A VHD has whole sectors: it is rounded up to 512.
    pub virtual_size: u64,
    /// The footer's unique id: random, not all zeros.
    pub unique_id: [u8; 16],
    /// The time of creation in seconds since 1970. Not in the future, or `vhd-util check` rejects the file; what lies
    /// before 2000 or after 2136 becomes the nearest that VHD can say.
    pub created_unix_s: u64,
}

/// The bytes a dynamic VHD takes, known without its content: the Content-Length of an import.
///
/// # Errors
/// `Unsupported` for a disk of zero bytes or above [`VHD_SIZE_MAX`], `Internal` for more blocks than the disk has.
pub fn stream_len_bytes(virtual_size: u64, present_count: u64) -> Result<u64> {
    check_size(virtual_size)?;
    let blocks = block_count(virtual_size);
    if present_count > blocks {
        return Err(Error::internal(format!("{present_count} blocks present of a disk of {blocks}")));
    }
    Ok(blocks_offset(blocks) + present_count * STORED_LEN + FOOTER_LEN as u64)
}

/// A new VHD without the content of its blocks.
pub(super) struct Plan {
    virtual_size: u64,
    /// Everything before the first block: footer copy, dynamic header, BAT.
    head: Vec<u8>,
    bat: Bat,
    end: u64,
}

impl Plan {
    /// # Errors
    /// As [`stream_len_bytes`], and `Invalid` for a unique id of zeros.
    pub(super) fn new(params: &VhdParams, present: &PresentBlocks) -> Result<Self> {
        let end = stream_len_bytes(params.virtual_size, present.count())?;
        if params.unique_id == [0; 16] {
            return Err(Error::invalid("the unique id of a VHD must not be all zeros"));
        }
        let blocks = block_count(params.virtual_size);
        if present.block_count() != blocks {
            let text = format!("present blocks of a disk of {} blocks for one of {blocks}", present.block_count());
            return Err(Error::internal(text));
        }
        let (bat, footer) = (place_blocks(blocks, present)?, footer(params));
        let entries = u32::try_from(blocks).expect("bounded by VHD_SIZE_MAX");
        let header = DynamicHeader::new(TABLE_OFFSET, entries);
        let head = [footer.encode(), header.encode(), &bat.encode()].concat();
        Ok(Self { virtual_size: params.virtual_size, head, bat, end })
    }

    pub(super) fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Footer copy, dynamic header and BAT.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// The footer: the same 512 bytes at the beginning and the end.
    pub(super) fn footer(&self) -> &[u8] {
        &self.head[..FOOTER_LEN]
    }

    /// The whole file's bytes.
    pub(super) fn len_bytes(&self) -> u64 {
        self.end
    }

    /// Where the bitmap of a present block begins; its content follows.
    pub(super) fn block_offset(&self, index: BlockIndex) -> Option<u64> {
        let sector = usize::try_from(index.0).ok().and_then(|index| self.bat.get(index))?;
        Some(u64::from(sector) * SECTOR_LEN as u64)
    }
}

fn check_size(virtual_size: u64) -> Result<()> {
    let text = match virtual_size {
        0 => "a VHD cannot hold a disk of zero bytes".to_owned(),
        1..=VHD_SIZE_MAX => return Ok(()),
        _ => {
            format!(
                "a VHD holds at most 2040 GiB ({VHD_SIZE_MAX} bytes), the disk has {virtual_size}: write it raw instead"
            )
        }
    };
    Err(Error::new(ErrorKind::Unsupported, text))
}

fn footer(params: &VhdParams) -> Footer {
    let size = params.virtual_size.next_multiple_of(SECTOR_LEN as u64);
    let since_2000 = params.created_unix_s.saturating_sub(EPOCH_UNIX_S);
    let timestamp = u32::try_from(since_2000).unwrap_or(u32::MAX);
    Footer::new_dynamic(size, params.unique_id, timestamp, FOOTER_LEN as u64)
}

fn place_blocks(blocks: u64, present: &PresentBlocks) -> Result<Bat> {
    let out_of_range = |_| Error::internal("a block of the VHD lies past the last sector it can name");
    let mut bat = Bat::new(usize::try_from(blocks).expect("bounded by VHD_SIZE_MAX"));
    let first = blocks_offset(blocks);
    for (index, rank) in present.iter().zip(0_u64..) {
        let sector = (first + rank * STORED_LEN) / SECTOR_LEN as u64;
        bat.set(
            usize::try_from(index.0).expect("below the number of blocks"),
            u32::try_from(sector).map_err(out_of_range)?,
        );
    }
    Ok(bat)
}

/// Where the first block goes: behind the BAT, which is padded to a sector.
fn blocks_offset(blocks: u64) -> u64 {
    TABLE_OFFSET + (blocks * 4).next_multiple_of(SECTOR_LEN as u64)
}

const TABLE_OFFSET: u64 = (FOOTER_LEN + DYNAMIC_HEADER_LEN) as u64;
/// Bytes of a block in the file: bitmap and content.
const STORED_LEN: u64 = (BITMAP_LEN + BLOCK_LEN) as u64;
/// 2000-01-01 00:00:00 UTC, where VHD's time begins, in seconds since 1970.
const EPOCH_UNIX_S: u64 = 946_684_800;

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: VhdParams = VhdParams { virtual_size: 1, unique_id: [1; 16], created_unix_s: 0 };

    #[test]
    fn the_length_is_that_of_the_parts() {
        assert_eq!(stream_len_bytes(1, 0).unwrap(), 1536 + 512 + 512);
        assert_eq!(stream_len_bytes(1, 1).unwrap(), 1536 + 512 + 512 + (2 << 20) + 512);
        assert_eq!(stream_len_bytes(128 * BLOCK_LEN as u64, 0).unwrap(), 1536 + 512 + 512);
        assert_eq!(stream_len_bytes(128 * BLOCK_LEN as u64 + 1, 0).unwrap(), 1536 + 1024 + 512);
        assert_eq!(stream_len_bytes(1, 2).unwrap_err().kind(), ErrorKind::Internal);
    }

    #[test]
    fn a_full_disk_of_the_largest_size_can_name_its_last_block() {
        let mut present = PresentBlocks::new(VHD_SIZE_MAX);
        (0..present.block_count()).for_each(|index| present.insert(BlockIndex(index)));
        let plan = Plan::new(&VhdParams { virtual_size: VHD_SIZE_MAX, ..PARAMS }, &present).unwrap();
        let last = plan.block_offset(BlockIndex(present.block_count() - 1)).unwrap();
        assert_eq!(last + STORED_LEN + FOOTER_LEN as u64, plan.len_bytes());
    }

    #[test]
    fn sizes_a_vhd_cannot_have_are_refused() {
        let text = |size| {
            let error = stream_len_bytes(size, 0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            error.to_string()
        };
        assert_eq!(text(0), "a VHD cannot hold a disk of zero bytes");
        assert_eq!(
            text(VHD_SIZE_MAX + 1),
            "a VHD holds at most 2040 GiB (2190433320960 bytes), the disk has 2190433320961: write it raw instead"
        );
    }

    #[test]
    fn a_unique_id_of_zeros_is_refused() {
        let error = Plan::new(&VhdParams { unique_id: [0; 16], ..PARAMS }, &PresentBlocks::new(1)).err().unwrap();
        assert_eq!(error.to_string(), "the unique id of a VHD must not be all zeros");
    }

    #[test]
    fn time_begins_in_2000() {
        let timestamp = |created_unix_s| {
            let footer = footer(&VhdParams { created_unix_s, ..PARAMS });
            u32::from_be_bytes(footer.encode()[24..28].try_into().unwrap())
        };
        assert_eq!(timestamp(EPOCH_UNIX_S + 5), 5);
        assert_eq!(timestamp(5), 0);
        assert_eq!(timestamp(u64::MAX), u32::MAX);
    }
}
