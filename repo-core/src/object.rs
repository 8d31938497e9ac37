//! The sixteen bytes that every object of a repository begins with (docs/format.md §2).

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Error, ErrorKind, Result};

/// The format version this code writes, and the only one it reads.
pub const FORMAT_VERSION: u16 = 2;

const MAGIC: [u8; 5] = *b"CAIRN";
/// Feature bits a reader of this version understands: none yet.
const KNOWN_FEATURES: u64 = 0;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// `config`.
    Config,
    /// A key slot.
    KeySlot,
    /// A pack.
    Pack,
    /// A snapshot record.
    Snapshot,
    /// A lease.
    Lease,
    /// A revocation.
    Revocation,
    /// A tombstone.
    Tombstone,
    /// An annotation of a snapshot.
    Annotation,
    /// Lock terms.
    Lock,
}

impl ObjectKind {
    fn byte(self) -> u8 {
        match self {
            Self::Config => b'c',
            Self::KeySlot => b'k',
            Self::Pack => b'p',
            Self::Snapshot => b's',
            Self::Lease => b'l',
            Self::Revocation => b'r',
            Self::Tombstone => b't',
            Self::Annotation => b'a',
            Self::Lock => b'o',
        }
    }
}

/// The header as it stands in the object.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ObjectHeader {
    magic: [u8; 5],
    kind: u8,
    version: U16,
    required_features: U64,
}

impl ObjectHeader {
    /// The header of a new object.
    pub fn new(kind: ObjectKind) -> Self {
        Self { magic: MAGIC, kind: kind.byte(), version: FORMAT_VERSION.into(), required_features: 0.into() }
    }

    /// Checks the header at the start of `bytes`, and gives what follows it.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are no object of that kind; `Unsupported` when they need a newer reader.
    pub fn check(bytes: &[u8], kind: ObjectKind) -> Result<&[u8]> {
        let (header, rest) = Self::ref_from_prefix(bytes)
            .map_err(|_| Error::corrupt(format!("object of {} bytes is shorter than its header", bytes.len())))?;
        if header.magic != MAGIC || header.kind != kind.byte() {
            return Err(Error::corrupt("magic bytes of the object are wrong"));
        }
        if header.version.get() == 0 {
            return Err(Error::corrupt("format version 0 does not exist"));
        }
        if header.version.get() < FORMAT_VERSION {
            let text = format!(
                "format version {} was only written before the first release, and is not read any more",
                header.version
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if header.version.get() > FORMAT_VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("format version {} is newer than this program's {FORMAT_VERSION}", header.version),
            ));
        }
        let unknown = header.required_features.get() & !KNOWN_FEATURES;
        if unknown != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("required feature bits {unknown:#x} are not known to this program"),
            ));
        }
        Ok(rest)
    }
}

/// Splits `len` bytes off the front of `bytes`.
///
/// # Errors
/// `Corrupt` naming `what` when there are fewer.
pub(crate) fn split<'a>(bytes: &'a [u8], len: usize, what: &str) -> Result<(&'a [u8], &'a [u8])> {
    bytes
        .split_at_checked(len)
        .ok_or_else(|| Error::corrupt(format!("{what} is cut short: {len} bytes expected, {} there", bytes.len())))
}

/// Reads a four-byte length off the front of `bytes`.
///
/// # Errors
/// `Corrupt` naming `what` when there are fewer.
pub(crate) fn split_len<'a>(bytes: &'a [u8], what: &str) -> Result<(usize, &'a [u8])> {
    let (len, rest) =
        bytes.split_first_chunk::<4>().ok_or_else(|| Error::corrupt(format!("length of {what} is cut short")))?;
    Ok((u32::from_le_bytes(*len) as usize, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_layout_of_the_format_page() {
        let header = ObjectHeader::new(ObjectKind::Pack);
        assert_eq!(header.as_bytes(), b"CAIRNp\x02\x00\0\0\0\0\0\0\0\0");
        assert_eq!(ObjectHeader::check(header.as_bytes(), ObjectKind::Pack).unwrap(), b"");
    }

    #[test]
    fn other_kinds_newer_versions_and_unknown_features_are_refused_distinctly() {
        let header = ObjectHeader::new(ObjectKind::Pack);
        let kind = |bytes: &[u8]| ObjectHeader::check(bytes, ObjectKind::Pack).unwrap_err().kind();
        assert_eq!(kind(ObjectHeader::new(ObjectKind::Config).as_bytes()), ErrorKind::Corrupt);
        assert_eq!(kind(&header.as_bytes()[..15]), ErrorKind::Corrupt);
        for version in [1, 3] {
            let other = ObjectHeader { version: version.into(), ..header };
            assert_eq!(kind(other.as_bytes()), ErrorKind::Unsupported);
        }
        let unknown = ObjectHeader { required_features: (1 << 40).into(), ..header };
        assert_eq!(kind(unknown.as_bytes()), ErrorKind::Unsupported);
    }
}
