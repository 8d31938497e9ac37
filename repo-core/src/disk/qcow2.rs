//! qcow2, QEMU's copy-on-write format.
//!
//! All numbers are big-endian; a cluster has 64 KiB. An image as written here (`docs/sources.md`, section "qcow2"), the
//! order of elements that lets it be streamed:
//!
//! | clusters | what |
//! |---:|---|
//! | 1 | header |
//! | 1 for 16 TiB of the image | refcount table: where each refcount block stands |
//! | 1 for 2 GiB of the image | refcount blocks: 1 for each cluster of the image |
//! | 1 for 4 TiB of the disk | L1 table: where each L2 table stands |
//! | 1 for 512 MiB of the disk that hold anything | L2 tables: where each cluster of the disk stands |
//! | 32 a present block | the content, ascending |
//!
//! Writing: [`layout`] says what stands where, the sinks of [`image`](super::image) write it.

pub mod layout;

#[cfg(test)]
mod tests;

/// "QFI" and 0xFB, the first bytes of every image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
