//! Bytes of an object on their way out, a piece at a time.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use axum::body::Bytes;
use repo_core::store::reading::Reading;

/// Bytes that are read from a file at once.
const PIECE_LEN: u64 = 256 * 1024;

/// Where the bytes come from. Either can be read to its end even if the object is deleted meanwhile.
pub(crate) enum Content {
    /// What is left of a file.
    File(File, Range<u64>),
    /// As an object store sends them.
    Streamed(Box<Reading>),
}

impl Content {
    /// The next bytes; none after the last ones. Blocks.
    pub(crate) fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::File(_, left) if left.start >= left.end => Ok(None),
            Self::File(file, left) => {
                let mut piece = vec![0; PIECE_LEN.min(left.end - left.start) as usize];
                file.read_exact_at(&mut piece, left.start)?;
                left.start += piece.len() as u64;
                Ok(Some(piece.into()))
            }
            Self::Streamed(reading) => reading.next_piece().map_err(|error| io::Error::other(error.chain())),
        }
    }
}
