//! The batmap: tapdisk's extension that says which blocks have all of their sectors, so that it need not read their bitmaps.
//!
//! It follows the padded BAT: a header of one sector, then one bit a block, the most significant one first.

use std::mem::offset_of;

use zerocopy::byteorder::{BE, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use crate::disk::PresentBlocks;
use crate::units::SECTOR_LEN;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    cookie: [u8; 8],
    map_offset: U64<BE>,
    map_sectors: U32<BE>,
    version: U32<BE>,
    checksum: U32<BE>,
    marker: u8,
    key_hash: [u8; 65],
    reserved: [u8; 418],
}

const _: () = assert!(size_of::<Header>() == SECTOR_LEN && offset_of!(Header, marker) == 28);

/// Bytes of the batmap of a disk of so many blocks, its header included.
pub(super) fn len_bytes(blocks: u64) -> u64 {
    SECTOR_LEN as u64 + map_len(blocks)
}

/// The batmap that stands at byte `offset`: the present blocks have all of their sectors.
pub(super) fn encode(offset: u64, present: &PresentBlocks) -> Vec<u8> {
    let map_len = map_len(present.block_count());
    let mut map = vec![0_u8; usize::try_from(map_len).expect("a VHD has about a million blocks at most")];
    for index in present.iter() {
        let at = usize::try_from(index.0).expect("a VHD has about a million blocks at most");
        map[at / 8] |= 0x80 >> (at % 8);
    }
    let header = Header {
        cookie: *b"tdbatmap",
        map_offset: U64::new(offset + SECTOR_LEN as u64),
        map_sectors: U32::new(u32::try_from(map_len / SECTOR_LEN as u64).expect("at most 255 sectors")),
        version: U32::new(VERSION),
        checksum: U32::new(!map.iter().map(|byte| u32::from(*byte)).sum::<u32>()),
        marker: 0,
        key_hash: [0; 65],
        reserved: [0; 418],
    };
    [header.as_bytes(), &map].concat()
}

fn map_len(blocks: u64) -> u64 {
    blocks.div_ceil(8).max(1).next_multiple_of(SECTOR_LEN as u64)
}

/// From this version on the checksum adds up unsigned bytes.
const VERSION: u32 = 0x0001_0002;
