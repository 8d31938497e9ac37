//! Reading a stream forward, with the position known for every error.

use std::fmt;
use std::io::{BufReader, ErrorKind, Read};

use super::http_head;
use crate::error::{Error, Result};

/// A stream with its position. Large reads go straight to the caller's buffer.
pub(super) struct ForwardReader {
    inner: BufReader<Box<dyn Read + Send>>,
    position: u64,
}

impl ForwardReader {
    pub(super) fn new(reader: impl Read + Send + 'static) -> Self {
        // Enough to fetch a sector bitmap together with the beginning of its data; the rest of a 2 MiB block bypasses
        // the buffer.
        Self { inner: BufReader::with_capacity(16 * 1024, Box::new(reader)), position: 0 }
    }

    /// Bytes taken from the stream so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Fills `dest` as far as the stream reaches and tells how far that is.
    pub(super) fn fill_some(&mut self, dest: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < dest.len() {
            match self.inner.read(&mut dest[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let at = self.position + filled as u64;
                    return Err(Error::io(format!("cannot read the stream at byte {at}"), error));
                }
            }
        }
        self.position += filled as u64;
        Ok(filled)
    }

    /// Fills `dest`, in which `what` is expected.
    ///
    /// # Errors
    /// `Invalid` when the stream ends before.
    pub(super) fn fill(&mut self, dest: &mut [u8], what: fmt::Arguments<'_>) -> Result<()> {
        let start = self.position;
        let filled = self.fill_some(dest)?;
        if filled == dest.len() {
            return Ok(());
        }
        Err(http_head::error_at_end(&dest[..filled], start).unwrap_or_else(|| {
            Error::invalid(format!(
                "the stream is truncated: it ends at byte {}, inside {what}, which begins at byte {start} and has {} \
                 bytes",
                self.position,
                dest.len()
            ))
        }))
    }

    /// Reads past everything up to byte `target`, where `what` begins.
    ///
    /// # Errors
    /// `Invalid` when the stream ends before.
    pub(super) fn skip_to(&mut self, target: u64, what: fmt::Arguments<'_>) -> Result<()> {
        let mut scratch = [0; 8192];
        while self.position < target {
            let rest = usize::try_from(target - self.position).unwrap_or(usize::MAX).min(scratch.len());
            let start = self.position;
            let filled = self.fill_some(&mut scratch[..rest])?;
            if filled < rest {
                return Err(http_head::error_at_end(&scratch[..filled], start).unwrap_or_else(|| {
                    Error::invalid(format!(
                        "the stream is truncated: it ends at byte {}, before {what} at byte {target}",
                        self.position
                    ))
                }));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_stream_is_reported_with_positions() {
        let mut reader = ForwardReader::new(&[5_u8; 20_000][..]);
        let mut dest = [0; 10];
        reader.fill(&mut dest, format_args!("the head")).unwrap();
        reader.skip_to(19_995, format_args!("the tail")).unwrap();
        assert_eq!(reader.position(), 19_995);
        let error = reader.fill(&mut dest, format_args!("the tail")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the stream is truncated: it ends at byte 20000, inside the tail, which begins at byte 19995 and has 10 \
             bytes"
        );
        let error = reader.skip_to(30_000, format_args!("more")).unwrap_err();
        assert_eq!(error.to_string(), "the stream is truncated: it ends at byte 20000, before more at byte 30000");
    }
}
