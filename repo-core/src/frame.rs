//! A frame's content and its two codecs: stored, or one zstd frame (docs/format.md §7).
//!
//! Small chunks dedup well and compress badly; compressed together in stream order they do both. Pure and
//! synchronous: zstd contexts belong to the thread and are used again.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

use crate::error::{Error, ErrorKind, Result};

/// The most plaintext a frame may hold, in bytes. A reader allocates no more for one.
pub const PLAIN_LEN_MAX: usize = 32 * 1024 * 1024;

/// How a frame's content is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Stored,
    /// One zstd frame.
    Zstd,
}

impl Codec {
    /// The number in a directory.
    pub fn number(self) -> u8 {
        match self {
            Self::Stored => 0,
            Self::Zstd => 1,
        }
    }

    /// The codec of a number.
    ///
    /// # Errors
    /// `Unsupported` for a number this version does not know.
    pub fn from_number(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Stored),
            1 => Ok(Self::Zstd),
            other => Err(Error::new(ErrorKind::Unsupported, format!("frame codec {other} is not known"))),
        }
    }
}

thread_local! {
    static COMPRESSOR: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Compresses `plain` at a zstd `level`; keeps it as it is when that is not larger. `spare` is room for a tag, in bytes.
///
/// # Errors
/// `Internal` when zstd fails, which on input in memory it does not.
pub fn compress(plain: &[u8], level: i32, spare: usize) -> Result<(Codec, Vec<u8>)> {
    let failed = |error| Error::with_source(ErrorKind::Internal, "zstd cannot compress", error);
    let mut packed = Vec::with_capacity(zstd::zstd_safe::compress_bound(plain.len()) + spare);
    COMPRESSOR.with_borrow_mut(|slot| {
        let compressor = match slot {
            Some((of_level, compressor)) if *of_level == level => compressor,
            _ => &mut slot.insert((level, Compressor::new(level).map_err(failed)?)).1,
        };
        compressor.compress_to_buffer(plain, &mut packed).map_err(failed)
    })?;
    if packed.len() < plain.len() {
        return Ok((Codec::Zstd, packed));
    }
    packed.clear();
    packed.extend_from_slice(plain);
    Ok((Codec::Stored, packed))
}

/// Gives back the `plain_len` bytes of content that `packed` holds.
///
/// # Errors
/// `Corrupt` when it does not hold exactly that.
pub fn decompress(codec: Codec, packed: Vec<u8>, plain_len: usize) -> Result<Vec<u8>> {
    if plain_len > PLAIN_LEN_MAX {
        return Err(Error::corrupt(format!("frame of {plain_len} bytes is longer than {PLAIN_LEN_MAX}")));
    }
    let plain = match codec {
        Codec::Stored => packed,
        Codec::Zstd => {
            let mut plain = Vec::with_capacity(plain_len);
            DECOMPRESSOR
                .with_borrow_mut(|slot| {
                    if slot.is_none() {
                        *slot = Some(Decompressor::new()?);
                    }
                    slot.as_mut().expect("just made").decompress_to_buffer(&packed, &mut plain)
                })
                .map_err(|error| Error::with_source(ErrorKind::Corrupt, "frame does not decompress", error))?;
            plain
        }
    };
    if plain.len() != plain_len {
        return Err(Error::corrupt(format!("frame holds {} bytes instead of {plain_len}", plain.len())));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_content_comes_back(plain: Vec<u8>, repeat in 1..50_usize, level in prop::sample::select(vec![-1, 1, 3, 9])) {
            let plain = plain.repeat(repeat);
            let (codec, packed) = compress(&plain, level, 16).unwrap();
            prop_assert!(packed.len() <= plain.len());
            prop_assert_eq!(decompress(codec, packed, plain.len()).unwrap(), plain);
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_never_pass_at_another_length(packed: Vec<u8>, plain_len in 0..100_000_usize) {
            if let Ok(plain) = decompress(Codec::Zstd, packed, plain_len) {
                prop_assert_eq!(plain.len(), plain_len);
            }
        }
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_anything_is_allocated() {
        let error = decompress(Codec::Zstd, vec![], usize::MAX).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}
