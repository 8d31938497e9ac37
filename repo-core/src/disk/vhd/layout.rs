//! Where everything before the blocks of a dynamic or differencing VHD stands, checked before anything is allocated or read by it.

use super::dynamic_header::{DYNAMIC_HEADER_LEN, DynamicHeader};
use super::footer::{DiskType, FOOTER_LEN, Footer};
use super::sector_bitmap::bitmap_len;
use crate::disk::{DiskFormat, ImageIds, Undelivered};
use crate::error::{Error, ErrorKind, Result};

/// The most BAT entries that are read: 8 TiB of the usual 2 MiB blocks, 16 GiB of 4 KiB ones. It bounds memory to 64 MiB
/// while a VHD is opened (table, entries, order on disk). The largest BAT anybody is known to write has 1 048 576 entries:
/// an LVM SR preallocates for 2 TiB.
pub const BAT_ENTRIES_MAX: u32 = 4 << 20;

/// What the reader of a dynamic or differencing VHD works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The disk's size in bytes.
    pub virtual_size: u64,
    /// Bytes of content in a block.
    pub block_size: usize,
    /// Bytes of the sector bitmap before a block's content.
    pub bitmap_len: usize,
    /// Where the BAT begins, in bytes.
    pub table_offset: u64,
    /// Where the BAT ends, entries that mean nothing included.
    pub table_end: u64,
    /// Entries that mean something: as many blocks as the disk has. The rest is to be ignored.
    pub used_entries: usize,
    /// Whether the disk is differencing: what it does not hold is its parent's, not zeros.
    pub differencing: bool,
    /// The ids of the image, where they last.
    pub ids: Option<ImageIds>,
}

impl Layout {
    /// Where the dynamic header of a disk begins.
    ///
    /// # Errors
    /// `Invalid` for a fixed disk, and when the position cannot be.
    pub fn header_offset(footer: &Footer) -> Result<u64> {
        match footer.disk_type() {
            DiskType::Dynamic | DiskType::Differencing => {}
            DiskType::Fixed => {
                return Err(Error::invalid(
                    "the footer at byte 0 says that the disk is fixed (disk type 2 at byte 60), but a fixed VHD has \
                     none there; if it is content of the disk, say that the format is raw",
                ));
            }
        }
        let offset = footer.data_offset();
        let end = offset.checked_add(DYNAMIC_HEADER_LEN as u64);
        if offset < FOOTER_LEN as u64 || end.is_none() {
            let text = format!("footer copy: the data offset at byte 16 is {offset:#x}, not behind the footer copy");
            return Err(Error::invalid(text));
        }
        Ok(offset)
    }

    /// The layout of a disk whose header was read from [`header_offset`](Self::header_offset).
    ///
    /// # Errors
    /// `Invalid` when the BAT is too short or overlaps the header, `Unsupported` when it is too long.
    pub fn of(footer: &Footer, header: &DynamicHeader) -> Result<Self> {
        let header_offset = Self::header_offset(footer)?;
        let header_end = header_offset + DYNAMIC_HEADER_LEN as u64;
        let table_offset = header.table_offset();
        let entries = header.max_table_entries();
        let table_end = table_offset.checked_add(u64::from(entries) * 4);
        // No writer is known that puts the table elsewhere, and a stream could not be read so.
        let Some(table_end) = table_end.filter(|_| table_offset >= header_end) else {
            let at = header_offset + 16;
            let text =
                format!("dynamic header: the table offset at byte {at} is {table_offset:#x}, not behind the header");
            return Err(Error::invalid(text));
        };
        let block_size = header.block_size();
        let virtual_size = footer.current_size();
        let needed = virtual_size.div_ceil(u64::from(block_size));
        let at = header_offset + 28;
        if needed > u64::from(entries) {
            return Err(Error::invalid(format!(
                "dynamic header: the max table entries at byte {at} are {entries}, but {virtual_size} bytes in blocks \
                 of {block_size} need {needed}"
            )));
        }
        if entries > BAT_ENTRIES_MAX {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "dynamic header: the max table entries at byte {at} are {entries} (of blocks of {block_size} \
                     bytes), above the {BAT_ENTRIES_MAX} that are read to bound memory"
                ),
            ));
        }
        let block_size = usize::try_from(block_size).expect("the header bounds it");
        let used_entries = usize::try_from(needed).expect("at most BAT_ENTRIES_MAX");
        let bitmap_len = bitmap_len(block_size);
        let ids =
            footer.has_lasting_id().then(|| ImageIds { own: footer.unique_id(), parent: header.parent_unique_id() });
        let differencing = footer.disk_type() == DiskType::Differencing;
        Ok(Self { virtual_size, block_size, bitmap_len, table_offset, table_end, used_entries, differencing, ids })
    }

    /// The format of the image.
    pub(super) fn format(&self) -> DiskFormat {
        if self.differencing { DiskFormat::VhdDifferencing } else { DiskFormat::VhdDynamic }
    }

    /// What the blocks are that are not stored.
    pub(super) fn undelivered(&self) -> Undelivered {
        if self.differencing { Undelivered::Base } else { Undelivered::Zeros }
    }

    /// Bytes a stored block takes: bitmap and content.
    pub fn stored_len(&self) -> u64 {
        (self.bitmap_len + self.block_size) as u64
    }
}
