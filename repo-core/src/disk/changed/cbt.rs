//! The bitmap of changed block tracking, as `xe vdi-list-changed-blocks` prints it.
//!
//! Base64 of one bit for each 64 KiB of the newer disk, 1 when it changed; the highest bit of the first byte is the
//! first 64 KiB. When the disk grew since the base, the bits of what is new may be missing or 0.

use data_encoding::BASE64;

use crate::disk::PresentBlocks;
use crate::error::{Error, Result};
use crate::units::{BLOCK_LEN, BlockIndex};

/// Bytes of the disk that one bit stands for.
const GRAIN_LEN: u64 = 64 * 1024;
/// Bytes of the bitmap for one block.
const BYTES_PER_BLOCK: usize = BLOCK_LEN / (8 * GRAIN_LEN as usize);

/// Whether the byte may stand in base64.
pub(super) fn is_digit(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

/// The bitmap.
///
/// # Errors
/// `Invalid` when the text is no base64 or cut inside a group of four.
pub(super) fn parse(text: &[u8]) -> Result<Vec<u8>> {
    let digits: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let none = |why: String| Error::invalid(format!("the changed list begins like base64 and is none: {why}"));
    // Two texts one after the other would be decoded, too.
    if digits.iter().rev().skip(2).any(|digit| *digit == b'=') {
        return Err(none("padding stands before its end".to_owned()));
    }
    BASE64.decode(&digits).map_err(|error| none(format!("{error} (white space not counted)")))
}

/// Bytes that the bitmap of a disk of `virtual_size` bytes has.
pub(super) fn bitmap_len(virtual_size: u64) -> u64 {
    virtual_size.div_ceil(GRAIN_LEN).div_ceil(8)
}

/// Marks the blocks of which any bit is set. Those past the base are the caller's.
///
/// # Errors
/// `Invalid` when the bitmap's length does not fit a disk of `virtual_size` bytes with a base of `base_size`.
pub(super) fn mark(bitmap: &[u8], virtual_size: u64, base_size: u64, blocks: &mut PresentBlocks) -> Result<()> {
    let (len, expected) = (bitmap.len() as u64, bitmap_len(virtual_size));
    let least = bitmap_len(virtual_size.min(base_size));
    if len > expected || len < least {
        let why = if len > expected { "it is of another, larger disk" } else { "it is cut short, or of another disk" };
        return Err(Error::invalid(format!(
            "the changed list (cbt) has {len} bytes, and a disk of {virtual_size} bytes takes {expected}: {why}"
        )));
    }
    for (bytes, index) in bitmap.chunks(BYTES_PER_BLOCK).zip(0..) {
        if bytes.iter().any(|byte| *byte != 0) {
            blocks.insert(BlockIndex(index));
        }
    }
    Ok(())
}
