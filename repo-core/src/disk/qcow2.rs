//! qcow2, QEMU's copy-on-write format: read through the crate imago, written by our own layout.
//!
//! All numbers are big-endian; a cluster has 64 KiB as written here. An image as written here (`docs/sources.md`, section
//! "qcow2"), the order of elements that lets it be streamed:
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
//!
//! Reading, versions 2 and 3: an image is untrusted and imago trusts it in places, so the two meet only after a check.
//! `header` reads the header and the L1 table and refuses what does not fit the file; imago is then shown a header made
//! anew from the checked fields, through `image_file`, which lets nothing be read past the end of the file. `chain` is
//! an image with its backing files, `file_source` the disk, what the image does not hold skipped.

mod chain;
mod file_source;
mod header;
mod image_file;
pub mod layout;

#[cfg(test)]
mod source_tests;
#[cfg(test)]
mod tests;

use crate::error::{Error, ErrorKind};

pub use file_source::Qcow2FileSource;

/// "QFI" and 0xFB, the first bytes of every image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Whether the bytes begin as a qcow2 image does.
pub fn has_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// The error of an image that comes on a stream.
pub(super) fn no_stream() -> Error {
    let text = "a qcow2 image cannot be read from a stream: its tables may stand anywhere; write it to a file first";
    Error::new(ErrorKind::Unsupported, text)
}
