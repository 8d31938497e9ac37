//! The metadata region: a table of items, and the items.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Guid, MIB};
use crate::units::{BLOCK_LEN, SECTOR_LEN};

/// Bytes of the region.
pub const METADATA_LEN: usize = MIB as usize;

/// The region of a dynamic disk of `size` bytes, whole sectors.
pub fn encode(size: u64, disk_id: &Guid) -> Vec<u8> {
    // The second word of the file parameters has no bit set: blocks come and go, and there is no parent.
    let parameters = [(BLOCK_LEN as u32).to_le_bytes(), [0; 4]].concat();
    let items: [(Guid, u32, Vec<u8>); 5] = [
        (FILE_PARAMETERS, REQUIRED, parameters),
        (VIRTUAL_DISK_SIZE, REQUIRED | OF_THE_DISK, size.to_le_bytes().to_vec()),
        (VIRTUAL_DISK_ID, REQUIRED | OF_THE_DISK, disk_id.to_vec()),
        (LOGICAL_SECTOR_SIZE, REQUIRED | OF_THE_DISK, (SECTOR_LEN as u32).to_le_bytes().to_vec()),
        (PHYSICAL_SECTOR_SIZE, REQUIRED | OF_THE_DISK, PHYSICAL_SECTOR_LEN.to_le_bytes().to_vec()),
    ];
    let header = TableHeader {
        signature: *b"metadata",
        reserved: U16::new(0),
        entry_count: U16::new(items.len() as u16),
        reserved_2: [0; 20],
    };
    let mut region = header.as_bytes().to_vec();
    let mut content = Vec::new();
    for (id, flags, item) in items {
        let offset = TABLE_LEN + content.len();
        let [offset, len] = [offset, item.len()].map(|n| U32::new(u32::try_from(n).expect("within the region")));
        let entry = TableEntry { id, offset, len, flags: U32::new(flags), reserved: U32::new(0) };
        region.extend_from_slice(entry.as_bytes());
        content.extend_from_slice(&item);
    }
    region.resize(TABLE_LEN, 0);
    region.extend_from_slice(&content);
    region.resize(METADATA_LEN, 0);
    region
}

#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct TableHeader {
    signature: [u8; 8],
    reserved: U16,
    entry_count: U16,
    reserved_2: [u8; 20],
}

#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct TableEntry {
    id: Guid,
    /// From the beginning of the region, in bytes.
    offset: U32,
    len: U32,
    flags: U32,
    reserved: U32,
}

/// The table has this many bytes, entries or not; the items follow.
const TABLE_LEN: usize = 64 * 1024;
/// Who does not know the item must not open the file.
const REQUIRED: u32 = 1 << 2;
/// The item belongs to the disk, not to the file.
const OF_THE_DISK: u32 = 1 << 1;
/// What guests are told to align to, in bytes: a page.
const PHYSICAL_SECTOR_LEN: u32 = 4096;

/// CAA16737-FA36-4D43-B3B6-33F0AA44E76B
const FILE_PARAMETERS: Guid =
    [0x37, 0x67, 0xA1, 0xCA, 0x36, 0xFA, 0x43, 0x4D, 0xB3, 0xB6, 0x33, 0xF0, 0xAA, 0x44, 0xE7, 0x6B];
/// 2FA54224-CD1B-4876-B211-5DBED83BF4B8
const VIRTUAL_DISK_SIZE: Guid =
    [0x24, 0x42, 0xA5, 0x2F, 0x1B, 0xCD, 0x76, 0x48, 0xB2, 0x11, 0x5D, 0xBE, 0xD8, 0x3B, 0xF4, 0xB8];
/// BECA12AB-B2E6-4523-93EF-C309E000C746
const VIRTUAL_DISK_ID: Guid =
    [0xAB, 0x12, 0xCA, 0xBE, 0xE6, 0xB2, 0x23, 0x45, 0x93, 0xEF, 0xC3, 0x09, 0xE0, 0x00, 0xC7, 0x46];
/// 8141BF1D-A96F-4709-BA47-F233A8FAAB5F
const LOGICAL_SECTOR_SIZE: Guid =
    [0x1D, 0xBF, 0x41, 0x81, 0x6F, 0xA9, 0x09, 0x47, 0xBA, 0x47, 0xF2, 0x33, 0xA8, 0xFA, 0xAB, 0x5F];
/// CDA348C7-445D-4471-9CC9-E9885251C556
const PHYSICAL_SECTOR_SIZE: Guid =
    [0xC7, 0x48, 0xA3, 0xCD, 0x5D, 0x44, 0x71, 0x44, 0x9C, 0xC9, 0xE9, 0x88, 0x52, 0x51, 0xC5, 0x56];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_sizes_of_the_specification() {
        assert_eq!([size_of::<TableHeader>(), size_of::<TableEntry>()], [32, 32]);
    }
}
