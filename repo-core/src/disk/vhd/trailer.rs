//! The footer at the end of a file or stream: the proof that it is complete.
//!
//! Judgements, all on the side of refusing, because a backup of a damaged or truncated image is worse than none: a
//! dynamic VHD needs both footers, sound and alike; what looks like a VHD's footer and does not fit is never taken for
//! content of a raw disk unless the caller says so.

use super::footer::{DiskType, FOOTER_LEN, Footer, SHORT_FOOTER_LEN};
use crate::error::{Error, ErrorKind, Result};
use crate::units::SECTOR_LEN;

/// What a seekable file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// No footer at either end.
    NoVhd,
    /// A fixed VHD.
    Fixed {
        /// How many bytes of content precede the footer.
        content_len_bytes: u64,
    },
    /// It begins with what should be the footer of a dynamic VHD.
    Dynamic,
}

/// Tells what a file of `end` bytes is from its first and last (up to) 512.
///
/// # Errors
/// `Invalid` or `Unsupported` when it ends in a footer that does not fit and does not begin with one.
pub fn file_kind(head: &[u8], tail: &[u8], end: u64) -> Result<FileKind> {
    // The footer at the end decides: a fixed disk's own content may begin with anything, even with a footer.
    let at_end = fixed_content_len(tail, end);
    match at_end {
        Ok(Some(content_len_bytes)) => Ok(FileKind::Fixed { content_len_bytes }),
        _ if Footer::has_cookie(head) => Ok(FileKind::Dynamic),
        Ok(None) => Ok(FileKind::NoVhd),
        Err(error) => Err(error),
    }
}

/// How many bytes precede the footer of a fixed VHD, in `end` bytes of which the last (up to) 512 are `tail`; `None`
/// when they end in no footer at all.
///
/// # Errors
/// `Invalid` or `Unsupported` when they end in a footer that is damaged, of another size, or of another kind of VHD.
pub fn fixed_content_len(tail: &[u8], end: u64) -> Result<Option<u64>> {
    const SAY_RAW: &str = "if they are content of the disk, say that the format is raw";
    let Some((bytes, offset)) = find(tail, end) else { return Ok(None) };
    let len = bytes.len();
    let footer = Footer::decode(bytes).map_err(|error| {
        let text =
            format!("the last {len} bytes (byte {offset}) look like a VHD footer and are none: {error}; {SAY_RAW}");
        Error::new(error.kind(), text)
    })?;
    let size = footer.current_size();
    match footer.disk_type() {
        DiskType::Fixed if size == offset => Ok(Some(size)),
        DiskType::Fixed => Err(Error::invalid(format!(
            "the last {len} bytes are the footer of a fixed VHD of {size} bytes (current size at byte {}), but \
             {offset} bytes precede it; {SAY_RAW}",
            offset + 48,
        ))),
        DiskType::Dynamic | DiskType::Differencing => Err(Error::invalid(format!(
            "the last {len} bytes (byte {offset}) are the footer of a dynamic VHD, but the copy of it at byte 0 is \
             damaged or missing; {SAY_RAW}"
        ))),
    }
}

/// Checks the footer at the end of a dynamic VHD of `end` bytes, of which the last (up to) 512 are `tail`, against its
/// copy at the beginning. Returns where it stands.
///
/// # Errors
/// `Invalid` when it is missing, damaged or different.
pub fn check(copy: &Footer, tail: &[u8], end: u64) -> Result<u64> {
    let Some((bytes, offset)) = find(tail, end) else {
        return Err(Error::invalid(format!(
            "no footer in the last {} bytes: the VHD is truncated, or something follows its end (it ends at byte \
             {end}; the footer copy at byte 0 is sound)",
            FOOTER_LEN.min(tail.len()),
        )));
    };
    let footer = Footer::decode(bytes).map_err(|error| {
        let text = format!("the footer at byte {offset} is damaged (the copy at byte 0 is sound): {error}");
        Error::new(ErrorKind::Invalid, text)
    })?;
    match copy.difference(&footer) {
        None => Ok(offset),
        Some((field, at)) => Err(Error::invalid(format!(
            "the footer at byte {offset} and its copy at byte 0, both sound, differ in the {field} (byte {} and byte \
             {at})",
            offset + at as u64,
        ))),
    }
}

/// Whether the last (up to) 512 of `end` bytes hold a sound footer of any kind.
pub fn is_sound(tail: &[u8], end: u64) -> bool {
    find(tail, end).is_some_and(|(bytes, _)| Footer::decode(bytes).is_ok())
}

/// The error of something that should be a VHD and has no footer at either end.
pub fn no_footer(end: u64) -> Error {
    let last = SECTOR_LEN.min(usize::try_from(end).unwrap_or(SECTOR_LEN));
    Error::invalid(format!(
        "no VHD footer, neither in the first nor in the last {last} bytes (it ends at byte {end}): the VHD is \
         truncated, or this is something else"
    ))
}

/// The bytes at the end that claim to be a footer, 512 or 511, and where they start.
fn find(tail: &[u8], end: u64) -> Option<(&[u8], u64)> {
    let sector = SECTOR_LEN as u64;
    [FOOTER_LEN, SHORT_FOOTER_LEN].into_iter().find_map(|len| {
        let bytes = &tail[tail.len().checked_sub(len)?..];
        let offset = end.checked_sub(len as u64)?;
        // A short footer follows whole sectors; a full one may follow a disk of any length.
        let aligned = len == FOOTER_LEN || offset % sector == 0;
        (aligned && Footer::has_cookie(bytes)).then_some((bytes, offset))
    })
}
