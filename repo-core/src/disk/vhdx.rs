//! VHDX, the disk format of Hyper-V: dynamic disks written.
//!
//! All numbers are little-endian, GUIDs have their first three fields so too. An image as written here
//! (`docs/sources.md`, section "VHDX"):
//!
//! | at MiB | MiB | what | module |
//! |---:|---:|---|---|
//! | 0 | 1 | file type identifier, two headers, two region tables | [`header`] |
//! | 1 | 1 | log, empty | |
//! | 2 | 1 | metadata: block size, disk size, disk id, sector sizes | [`metadata`] |
//! | 3 | 8 bytes a block | BAT, padded to a MiB: state and position of each block | [`layout`] |
//! | then, a present block | 2 | its content | |
//!
//! Writing: [`layout`] says what stands where, the sinks of [`image`](super::image) write it.

pub mod crc32c;
pub mod header;
pub mod layout;
pub mod metadata;

#[cfg(test)]
mod tests;

/// A GUID in the bytes that the format stores.
pub type Guid = [u8; 16];

/// What regions and payload blocks are aligned to, in bytes.
const MIB: u64 = 1 << 20;

/// Random bytes made a random GUID: version 4, the usual variant.
fn random_guid(mut bytes: Guid) -> Guid {
    bytes[7] = (bytes[7] & 0x0F) | 0x40;
    bytes[8] = (bytes[8] & 0x3F) | 0x80;
    bytes
}
