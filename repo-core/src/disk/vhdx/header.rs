//! The first MiB: what the file is, where its log is, and where its regions are.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes, KnownLayout, Unaligned};

use super::crc32c::crc32c;
use super::{Guid, MIB};

/// Bytes of the first part of the file.
pub const HEADER_SECTION_LEN: usize = MIB as usize;

/// A part of the file that the region table names. Positions and lengths are in bytes, multiples of 1 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Which region this is.
    pub id: Guid,
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len: u32,
}

/// What the headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderFields {
    /// Changes whenever the file is opened for writing.
    pub file_write_guid: Guid,
    /// Changes whenever the content of the disk does.
    pub data_write_guid: Guid,
    /// Where the log is, in bytes.
    pub log_offset: u64,
    /// Bytes of the log.
    pub log_len: u32,
}

/// The region id of the BAT: 2DC27766-F623-4200-9D64-115E9BFD4A08.
pub const BAT_REGION: Guid =
    [0x66, 0x77, 0xC2, 0x2D, 0x23, 0xF6, 0x00, 0x42, 0x9D, 0x64, 0x11, 0x5E, 0x9B, 0xFD, 0x4A, 0x08];
/// The region id of the metadata: 8B7CA206-4790-4B9A-B8FE-575F050F886E.
pub const METADATA_REGION: Guid =
    [0x06, 0xA2, 0x7C, 0x8B, 0x90, 0x47, 0x9A, 0x4B, 0xB8, 0xFE, 0x57, 0x5F, 0x05, 0x0F, 0x88, 0x6E];

/// The header section of a file whose log is empty.
pub fn encode(fields: &HeaderFields, regions: &[Region]) -> Vec<u8> {
    let mut section = vec![0; HEADER_SECTION_LEN];
    section[..8].copy_from_slice(b"vhdxfile");
    for (slot, unit) in section[8..520].as_chunks_mut::<2>().0.iter_mut().zip(CREATOR.encode_utf16()) {
        *slot = unit.to_le_bytes();
    }
    for (number, part) in [(1, HEADER_1), (2, HEADER_2)] {
        let header = Header::new(fields, number);
        put_summed(&mut section[part * PART_LEN..][..HEADER_LEN], header.as_bytes());
    }
    let table = region_table(regions);
    for part in [REGION_TABLE_1, REGION_TABLE_2] {
        put_summed(&mut section[part * PART_LEN..][..PART_LEN], &table);
    }
    section
}

/// One of two; the one with the higher sequence number counts.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    signature: [u8; 4],
    checksum: U32,
    sequence_number: U64,
    file_write_guid: Guid,
    data_write_guid: Guid,
    /// All zeros: there is nothing in the log.
    log_guid: Guid,
    log_version: U16,
    version: U16,
    log_len: U32,
    log_offset: U64,
}

impl Header {
    fn new(fields: &HeaderFields, sequence_number: u64) -> Self {
        Self {
            signature: *b"head",
            checksum: U32::new(0),
            sequence_number: U64::new(sequence_number),
            file_write_guid: fields.file_write_guid,
            data_write_guid: fields.data_write_guid,
            log_guid: [0; 16],
            log_version: U16::new(0),
            version: U16::new(1),
            log_len: U32::new(fields.log_len),
            log_offset: U64::new(fields.log_offset),
        }
    }
}

#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RegionTableHeader {
    signature: [u8; 4],
    checksum: U32,
    entry_count: U32,
    reserved: U32,
}

#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RegionTableEntry {
    id: Guid,
    offset: U64,
    len: U32,
    required: U32,
}

fn region_table(regions: &[Region]) -> Vec<u8> {
    let entry_count = U32::new(u32::try_from(regions.len()).expect("a handful of regions"));
    let header = RegionTableHeader { signature: *b"regi", checksum: U32::new(0), entry_count, reserved: U32::new(0) };
    let mut table = header.as_bytes().to_vec();
    for region in regions {
        let (offset, len) = (U64::new(region.offset), U32::new(region.len));
        let entry = RegionTableEntry { id: region.id, offset, len, required: U32::new(1) };
        table.extend_from_slice(entry.as_bytes());
    }
    table
}

/// Puts a record into its place, and the checksum of the whole place into bytes 4 to 7.
fn put_summed(place: &mut [u8], record: &[u8]) {
    place[..record.len()].copy_from_slice(record);
    let sum = crc32c(place);
    place[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// For whoever looks into the file: no reader goes by it.
const CREATOR: &str = "Cairn";
/// The section has parts of 64 KiB: the file type identifier, and these.
const PART_LEN: usize = 64 * 1024;
const HEADER_1: usize = 1;
const HEADER_2: usize = 2;
const REGION_TABLE_1: usize = 3;
const REGION_TABLE_2: usize = 4;
/// Bytes of a header that its checksum covers.
const HEADER_LEN: usize = 4096;

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn records_have_the_sizes_and_offsets_of_the_specification() {
        assert_eq!(size_of::<Header>(), 80);
        assert_eq!(
            [offset_of!(Header, log_guid), offset_of!(Header, version), offset_of!(Header, log_offset)],
            [48, 66, 72]
        );
        assert_eq!([size_of::<RegionTableHeader>(), size_of::<RegionTableEntry>()], [16, 32]);
    }
}
