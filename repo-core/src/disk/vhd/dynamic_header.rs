//! The dynamic header: where the BAT stands and how large blocks are.

use std::mem::offset_of;

use zerocopy::byteorder::{BE, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{NO_OFFSET, VERSION_1_0, checksum};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BLOCK_LEN, SECTOR_LEN};

/// Bytes of a dynamic header.
pub const DYNAMIC_HEADER_LEN: usize = 1024;
/// The largest block that is read, in bytes: its sector bitmap has 64 KiB. Nobody is known to write more than 4 MiB.
pub const VHD_BLOCK_LEN_MAX: u32 = 256 << 20;

/// The record that follows the footer copy of a dynamic VHD. Checked when it was decoded.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DynamicHeader {
    cookie: [u8; 8],
    data_offset: U64<BE>,
    table_offset: U64<BE>,
    version: U32<BE>,
    max_table_entries: U32<BE>,
    block_size: U32<BE>,
    checksum: U32<BE>,
    parent_unique_id: [u8; 16],
    parent_timestamp: U32<BE>,
    reserved: [u8; 4],
    parent_name: [u8; 512],
    parent_locators: [[u8; 24]; 8],
    reserved_end: [u8; 256],
}

impl DynamicHeader {
    /// Decodes and checks a header of 1024 bytes.
    ///
    /// # Errors
    /// `Invalid` naming the field that is wrong and its offset in the header, `Unsupported` for another version or
    /// blocks that are too large.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let header = Self::read_from_bytes(bytes).map_err(|_| {
            let text = format!("truncated: a dynamic header has {DYNAMIC_HEADER_LEN} bytes, here are {}", bytes.len());
            Error::invalid(text)
        })?;
        header.check()?;
        Ok(header)
    }

    /// The header's 1024 bytes.
    pub fn encode(&self) -> &[u8] {
        self.as_bytes()
    }

    /// The header of a disk without parent whose BAT stands at byte `table_offset` and has `entries` entries of 2 MiB.
    pub fn new(table_offset: u64, entries: u32) -> Self {
        Self::with_block_size(table_offset, entries, u32::try_from(BLOCK_LEN).expect("2 MiB"))
    }

    /// The same of a differencing disk. `name` is the parent's file name in UTF-16, at most 256 units; `locators` say where
    /// else in the file it stands.
    #[must_use]
    pub(super) fn over_parent(
        mut self,
        unique_id: [u8; 16],
        timestamp: u32,
        name: &[u16],
        locators: &[[u8; 24]],
    ) -> Self {
        self.parent_unique_id = unique_id;
        self.parent_timestamp = U32::new(timestamp);
        for (place, unit) in self.parent_name.as_chunks_mut::<2>().0.iter_mut().zip(name) {
            *place = unit.to_be_bytes();
        }
        for (place, locator) in self.parent_locators.iter_mut().zip(locators) {
            *place = *locator;
        }
        self.checksum = U32::new(checksum(self.as_bytes(), self.checksum.get()));
        self
    }

    pub(super) fn with_block_size(table_offset: u64, entries: u32, block_size: u32) -> Self {
        let mut header = Self {
            cookie: *COOKIE,
            data_offset: U64::new(NO_OFFSET),
            table_offset: U64::new(table_offset),
            version: U32::new(VERSION_1_0),
            max_table_entries: U32::new(entries),
            block_size: U32::new(block_size),
            checksum: U32::new(0),
            parent_unique_id: [0; 16],
            parent_timestamp: U32::new(0),
            reserved: [0; 4],
            parent_name: [0; 512],
            parent_locators: [[0; 24]; 8],
            reserved_end: [0; 256],
        };
        header.checksum = U32::new(checksum(header.as_bytes(), 0));
        header
    }

    /// Where the BAT stands, in bytes.
    pub fn table_offset(&self) -> u64 {
        self.table_offset.get()
    }

    /// How many entries the BAT has room for.
    pub fn max_table_entries(&self) -> u32 {
        self.max_table_entries.get()
    }

    /// Bytes of content in a block: a power of two, 512 to [`VHD_BLOCK_LEN_MAX`].
    pub fn block_size(&self) -> u32 {
        self.block_size.get()
    }

    /// The footer's id of the parent; none when the disk has no parent, or a raw one.
    pub fn parent_unique_id(&self) -> Option<[u8; 16]> {
        (self.parent_unique_id != [0; 16]).then_some(self.parent_unique_id)
    }

    fn check(&self) -> Result<()> {
        if self.cookie != *COOKIE {
            let cookie = self.cookie.escape_ascii();
            return Err(Error::invalid(format!("the cookie at byte 0 is `{cookie}`, not `cxsparse`")));
        }
        let stored = self.checksum.get();
        let computed = checksum(self.as_bytes(), stored);
        if stored != computed {
            let at = offset_of!(Self, checksum);
            let text = format!("the checksum at byte {at} is {stored:#010x}, but the bytes give {computed:#010x}");
            return Err(Error::invalid(text));
        }
        let version = self.version.get();
        if version >> 16 != VERSION_1_0 >> 16 {
            let text = format!("the version at byte 24 is {version:#010x}, not {VERSION_1_0:#010x}");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let data_offset = self.data_offset.get();
        if data_offset != NO_OFFSET {
            let text = format!("the data offset at byte 8 is {data_offset:#x}, not all ones");
            return Err(Error::invalid(text));
        }
        let block_size = self.block_size();
        if !block_size.is_power_of_two() || block_size < SECTOR_LEN as u32 {
            let text =
                format!("the block size at byte 32 is {block_size}, not a power of two of at least {SECTOR_LEN}");
            return Err(Error::invalid(text));
        }
        if block_size > VHD_BLOCK_LEN_MAX {
            let text =
                format!("the block size at byte 32 is {block_size}, above the {VHD_BLOCK_LEN_MAX} that are read");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        Ok(())
    }
}

const COOKIE: &[u8; 8] = b"cxsparse";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_stand_where_the_specification_puts_them() {
        assert_eq!(size_of::<DynamicHeader>(), DYNAMIC_HEADER_LEN);
        let offsets = [
            offset_of!(DynamicHeader, data_offset),
            offset_of!(DynamicHeader, table_offset),
            offset_of!(DynamicHeader, version),
            offset_of!(DynamicHeader, max_table_entries),
            offset_of!(DynamicHeader, block_size),
            offset_of!(DynamicHeader, checksum),
            offset_of!(DynamicHeader, parent_unique_id),
            offset_of!(DynamicHeader, parent_timestamp),
            offset_of!(DynamicHeader, reserved),
            offset_of!(DynamicHeader, parent_name),
            offset_of!(DynamicHeader, parent_locators),
            offset_of!(DynamicHeader, reserved_end),
        ];
        assert_eq!(offsets, [8, 16, 24, 28, 32, 36, 40, 56, 60, 64, 576, 768]);
    }

    #[test]
    fn a_header_comes_back() {
        let header = DynamicHeader::new(1536, 17);
        assert_eq!(DynamicHeader::decode(header.encode()).unwrap(), header);
        assert!(DynamicHeader::decode(&header.encode()[..1023]).is_err());
    }

    proptest! {
        #[test]
        fn one_flipped_bit_is_refused(bit in 0..DYNAMIC_HEADER_LEN * 8) {
            let mut bytes = DynamicHeader::new(1536, 17).encode().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(DynamicHeader::decode(&bytes).is_err());
        }
    }

    #[test]
    fn block_sizes_are_bounded_powers_of_two() {
        for (block_size, good) in
            [(0, false), (256, false), (512, true), (1536, false), (4096, true), (1 << 28, true), (1 << 29, false)]
        {
            let header = DynamicHeader::with_block_size(1536, 1, block_size);
            let decoded = DynamicHeader::decode(header.encode());
            assert_eq!(decoded.is_ok(), good, "{block_size}");
        }
    }
}
