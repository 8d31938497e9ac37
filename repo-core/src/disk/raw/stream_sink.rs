//! A raw disk written front to back.

use std::io::Write;

use crate::disk::StreamSink;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::units::{BLOCK_LEN, BlockIndex, VIRTUAL_SIZE_MAX, block_count};

/// Writes every byte of the disk, zeros for the blocks that are absent.
pub struct RawStreamSink<W> {
    writer: W,
    virtual_size: u64,
    written: u64,
}

impl<W: Write + Send> RawStreamSink<W> {
    /// A disk of `virtual_size` bytes: exactly so many will be written.
    ///
    /// # Errors
    /// `Unsupported` when that is above [`VIRTUAL_SIZE_MAX`].
    pub fn create(writer: W, virtual_size: u64) -> Result<Self> {
        if virtual_size > VIRTUAL_SIZE_MAX {
            let text = format!("a disk of {virtual_size} bytes, more than {VIRTUAL_SIZE_MAX}");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        Ok(Self { writer, virtual_size, written: 0 })
    }

    /// Writes zeros up to the disk's end.
    pub(in crate::disk) fn write_rest(&mut self) -> Result<()> {
        self.write_zeros_to(self.virtual_size)
    }

    /// Writes what comes next.
    pub(in crate::disk) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).context(|| format!("cannot write byte {} of the disk", self.written))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn write_zeros_to(&mut self, end: u64) -> Result<()> {
        if self.written >= end {
            return Ok(());
        }
        let zeros = vec![0; ZEROS_LEN];
        while self.written < end {
            let step = usize::try_from(end - self.written).unwrap_or(usize::MAX).min(zeros.len());
            self.write(&zeros[..step])?;
        }
        Ok(())
    }
}

impl<W: Write + Send> StreamSink for RawStreamSink<W> {
    fn write_block(&mut self, index: BlockIndex, content: &[u8]) -> Result<()> {
        // In this order: a block the disk does not have has no offset either.
        let in_turn = index.0 < block_count(self.virtual_size) && index.offset_bytes() >= self.written;
        if !in_turn || content.len() != BLOCK_LEN {
            let text = format!("block {index} of {} bytes out of turn at byte {}", content.len(), self.written);
            return Err(Error::internal(text));
        }
        self.write_zeros_to(index.offset_bytes())?;
        self.write(&content[..index.len_on_disk_bytes(self.virtual_size)])
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.write_rest()?;
        self.writer.flush().context(|| "cannot flush the disk")
    }
}

/// How many zeros are written at once, in bytes.
const ZEROS_LEN: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_filled_with_zeros_and_the_last_block_is_cut() {
        let mut out = Vec::new();
        let size = 3 * BLOCK_LEN + 100;
        let mut sink = Box::new(RawStreamSink::create(&mut out, size as u64).unwrap());
        sink.write_block(BlockIndex(1), &vec![1; BLOCK_LEN]).unwrap();
        sink.write_block(BlockIndex(3), &vec![3; BLOCK_LEN]).unwrap();
        sink.finish().unwrap();
        let expected = [vec![0; BLOCK_LEN], vec![1; BLOCK_LEN], vec![0; BLOCK_LEN], vec![3; 100]].concat();
        assert!(out == expected);
    }

    #[test]
    fn blocks_out_of_turn_are_refused() {
        let mut sink = RawStreamSink::create(Vec::new(), 2 * BLOCK_LEN as u64).unwrap();
        sink.write_block(BlockIndex(1), &vec![1; BLOCK_LEN]).unwrap();
        for index in [0, 1, 2, u64::MAX] {
            let error = sink.write_block(BlockIndex(index), &vec![1; BLOCK_LEN]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Internal, "block {index}");
        }
    }
}
