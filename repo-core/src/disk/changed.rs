//! Changed lists: what a storage system says has changed on a disk since a base.
//!
//! Three kinds are read, told apart by their first character:
//!
//! - `cbt`: the bitmap of `xe vdi-list-changed-blocks`
//! - `thin_delta`: the XML of `thin_delta`, for LVM thin volumes
//! - `rbd_diff`: the JSON of `rbd diff`, for Ceph images
//!
//! A list is a claim. One of another disk, or made against another base, passes for the right one, so whoever relies
//! on it compares a sample of what it calls unchanged. What is certain is refused here: a list that is cut, that
//! contradicts itself, or that reaches past the disk.

mod cbt;
mod hinted_source;
mod rbd_diff;
#[cfg(test)]
mod tests;
mod thin_delta;

use crate::error::{Error, Result};
use crate::units::{BLOCK_LEN, BlockIndex};

use super::PresentBlocks;
use super::quoted::quoted;

pub use hinted_source::HintedSource;

/// The longest list that is taken, in bytes: a bitmap of 64 TiB has 171 MiB.
pub const LIST_LEN_MAX: u64 = 256 * 1024 * 1024;

/// Which program made a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListKind {
    /// A bitmap of changed block tracking, in base64.
    Cbt,
    /// XML of `thin_delta`.
    ThinDelta,
    /// JSON of `rbd diff --format json`.
    RbdDiff,
}

impl ListKind {
    /// The name used in JSON and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cbt => "cbt",
            Self::ThinDelta => "thin-delta",
            Self::RbdDiff => "rbd-diff",
        }
    }
}

/// A changed list, read and not yet compared with a disk.
#[derive(Debug, Clone)]
pub struct ChangedList(List);

#[derive(Debug, Clone)]
enum List {
    Bitmap(Vec<u8>),
    Extents(ListKind, Extents),
}

/// Changed ranges of a disk, in any order.
#[derive(Debug, Clone, Default)]
struct Extents {
    extents: Vec<Extent>,
    /// What the program counts in, in bytes: the last extent of a disk may reach past its end to a multiple of this.
    grain_len: u64,
}

/// Bytes of a disk; never empty, and its end is below 2^64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Extent {
    start: u64,
    end: u64,
}

impl Extent {
    fn new(start: u64, len: u64) -> Result<Self> {
        match start.checked_add(len) {
            Some(end) if len > 0 => Ok(Self { start, end }),
            _ => Err(Error::invalid(format!("an extent of {len} bytes at byte {start} is none"))),
        }
    }
}

impl ChangedList {
    /// Reads a list; what kind it is shows in its content.
    ///
    /// # Errors
    /// `Invalid` when it is none of the kinds, cut short, or contradicts itself.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
        match first {
            None => Err(Error::invalid("the changed list is empty")),
            Some(b'<') => thin_delta::parse(text).map(|extents| Self(List::Extents(ListKind::ThinDelta, extents))),
            Some(b'[') => rbd_diff::parse(text).map(|extents| Self(List::Extents(ListKind::RbdDiff, extents))),
            Some(byte) if cbt::is_digit(*byte) => cbt::parse(text).map(|bitmap| Self(List::Bitmap(bitmap))),
            Some(_) => Err(Error::invalid(format!(
                "the changed list is neither the base64 of xe vdi-list-changed-blocks, nor the XML of thin_delta, nor \
                 the JSON of rbd diff: it begins with \"{}\"",
                quoted(&text[..text.len().min(16)])
            ))),
        }
    }

    /// Which program made it.
    pub fn kind(&self) -> ListKind {
        match &self.0 {
            List::Bitmap(_) => ListKind::Cbt,
            List::Extents(kind, _) => *kind,
        }
    }

    /// The 2 MiB blocks of a disk of `virtual_size` bytes that the list touches, and all that lies past the end of its
    /// base of `base_size` bytes, of which lists say nothing or the wrong thing.
    ///
    /// # Errors
    /// `Invalid` when the list does not fit a disk of this size.
    ///
    /// # Panics
    /// When `virtual_size` is above [`VIRTUAL_SIZE_MAX`](crate::units::VIRTUAL_SIZE_MAX).
    pub fn blocks(&self, virtual_size: u64, base_size: u64) -> Result<PresentBlocks> {
        let mut blocks = PresentBlocks::new(virtual_size);
        match &self.0 {
            List::Bitmap(bitmap) => cbt::mark(bitmap, virtual_size, base_size, &mut blocks)?,
            List::Extents(kind, extents) => extents.mark(*kind, virtual_size, base_size, &mut blocks)?,
        }
        if virtual_size > base_size {
            mark(&mut blocks, Extent { start: base_size, end: virtual_size });
        }
        Ok(blocks)
    }
}

impl Extents {
    fn mark(&self, kind: ListKind, virtual_size: u64, base_size: u64, blocks: &mut PresentBlocks) -> Result<()> {
        // A disk that shrank has changes past its end.
        let limit = virtual_size.max(base_size).checked_next_multiple_of(self.grain_len).unwrap_or(u64::MAX);
        let mut sorted = self.extents.clone();
        sorted.sort_unstable();
        // Each block is marked once, however many extents name it.
        let mut marked_to = 0;
        for extent in sorted {
            if extent.end > limit {
                return Err(Error::invalid(format!(
                    "the changed list ({}) reaches to byte {}, past the end of the disk of {virtual_size} bytes: it is \
                     of another disk",
                    kind.name(),
                    extent.end
                )));
            }
            let rest = Extent { start: extent.start.max(marked_to), end: extent.end.min(virtual_size) };
            if rest.start < rest.end {
                mark(blocks, rest);
                marked_to = rest.end;
            }
        }
        Ok(())
    }
}

/// Marks the blocks of an extent that ends on the disk.
fn mark(blocks: &mut PresentBlocks, extent: Extent) {
    let first = extent.start / BLOCK_LEN as u64;
    for index in first..extent.end.div_ceil(BLOCK_LEN as u64) {
        blocks.insert(BlockIndex(index));
    }
}
