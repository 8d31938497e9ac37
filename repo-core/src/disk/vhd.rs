//! VHD, the disk format of XenServer and XCP-ng: read and written.
//!
//! All numbers are big-endian, a sector is 512 bytes. A dynamic VHD as most often written here (`docs/sources.md`, section "VHD"):
//!
//! | at byte | bytes | what | module |
//! |---:|---:|---|---|
//! | 0 | 512 | copy of the footer | [`footer`] |
//! | 512 | 1024 | dynamic header: block size, position and length of the BAT | [`dynamic_header`] |
//! | 1536 | 4 a block | BAT: the sector where each block is stored, padded to a sector | [`bat`] |
//! | then, a present block | 512 + 2 MiB | sector bitmap and content of the block | [`sector_bitmap`] |
//! | last | 512 | footer | [`footer`], [`trailer`] |
//!
//! As read, the header and the BAT may stand further on, blocks may have any power of two of bytes, come in any order
//! and leave gaps. A differencing VHD is laid out as a dynamic one and holds what differs from a parent: a 1 bit in a sector
//! bitmap is content of the disk, zeros too, all else is the parent's. A fixed VHD is a raw disk with a footer behind it and is read by [`raw`](super::raw).
//!
//! Reading: [`file_source`] in virtual order with positioned reads, [`stream_source`] in stored order, both after
//! [`layout`] and [`bat`] have checked every position; [`assembly`] puts blocks smaller than 2 MiB together.
//! Writing: [`profile`] knows the three shapes (with [`parent_locator`] of a delta, `batmap` of a file in an SR), [`plan`]
//! fixes every position beforehand, [`file_sink`] and [`stream_sink`] fill them in; [`fixed_sink`] writes fixed ones;
//! [`geometry`] is the footer's cylinders, heads and sectors.
//!
//! Invariants: nothing is allocated from a number that was not bounded first; a source says it is complete only after
//! the footer at the end was seen and agrees with the copy; where a 0 bit is in a sector bitmap, nothing that is stored
//! gets out: a dynamic disk has zeros there, a differencing one says that it does not hold the sector.

pub mod assembly;
pub mod bat;
mod batmap;
pub mod dynamic_header;
pub mod file_sink;
pub mod file_source;
pub mod fixed_sink;
pub mod footer;
pub mod geometry;
pub mod layout;
pub mod parent_locator;
pub mod plan;
pub mod profile;
pub mod sector_bitmap;
pub mod stream_sink;
pub mod stream_source;
pub mod trailer;

#[cfg(test)]
mod tests;

/// The checksum of a footer or dynamic header, `stored` being what its checksum field holds: the one's complement of
/// the sum of all bytes, that field counted as zero.
fn checksum(record: &[u8], stored: u32) -> u32 {
    let sum_of = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    // The longest record has 1024 bytes: neither sum comes near the limit, and the part is never above the whole.
    !(sum_of(record) - sum_of(&stored.to_be_bytes()))
}

/// "No such position" in 8-byte offset fields.
const NO_OFFSET: u64 = u64::MAX;
/// Version 1.0 of both records; readers look at the upper half only.
const VERSION_1_0: u32 = 0x0001_0000;
