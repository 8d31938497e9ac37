//! An image written to a file in any order.

use std::fs::File;

use super::ImageLayout;
use crate::direct::DirectFile;
use crate::disk::DiskSink;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::units::{BLOCK_LEN, BlockIndex, is_zero};

/// Writes content to its place; what is never written inside a stored block is a hole of the file.
///
/// The first piece of the head is written last, after everything else is durable: until then no reader takes the file
/// for an image.
pub struct ImageFileSink<L> {
    file: DirectFile,
    layout: L,
}

impl<L: ImageLayout> ImageFileSink<L> {
    /// Prepares `file`, a regular one: what it held is gone.
    ///
    /// # Errors
    /// `Unsupported` for what is no regular file, `Io` when preparing fails.
    pub fn create(file: File, layout: L) -> Result<Self> {
        if !file.metadata().context(|| "cannot examine the target")?.is_file() {
            // On a device, holes would not be zeros.
            let text = format!("the target is no regular file: write the {} as a stream, or a raw disk", layout.name());
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let len = layout.len_bytes();
        file.set_len(0).context(|| "cannot empty the target file")?;
        file.set_len(len).context(|| format!("cannot make the target file {len} bytes long"))?;
        let sink = Self { file: DirectFile::new(file), layout };
        let mut offset = 0;
        for (at, piece) in sink.layout.head().enumerate() {
            if at > 0 {
                sink.write_sparsely(&piece, offset)?;
            }
            offset += piece.len() as u64;
        }
        Ok(sink)
    }

    /// Writes from the end to the beginning, and leaves out what is zeros.
    fn write_sparsely(&self, bytes: &[u8], offset: u64) -> Result<()> {
        for (at, step) in bytes.chunks(SPARSE_STEP).enumerate().rev().filter(|(_, step)| !is_zero(step)) {
            self.write(step, offset + (at * SPARSE_STEP) as u64)?;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let written = self.file.write_all_at(bytes, offset);
        written.context(|| format!("cannot write {} bytes at byte {offset} of the {}", bytes.len(), self.layout.name()))
    }
}

impl<L: ImageLayout> DiskSink for ImageFileSink<L> {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let size = self.layout.virtual_size();
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > size) {
            let text = format!("{} bytes at byte {offset} of a disk of {size}", bytes.len());
            return Err(Error::internal(text));
        }
        let (mut offset, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let index = BlockIndex(offset / BLOCK_LEN as u64);
            let block = self.layout.block_offset(index);
            let block = block
                .ok_or_else(|| Error::internal(format!("block {index} is written but was not said to be present")))?;
            let within = offset - index.offset_bytes();
            let room = usize::try_from(BLOCK_LEN as u64 - within).expect("within a block");
            let (now, later) = rest.split_at(rest.len().min(room));
            self.write(now, block + within)?;
            offset += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        let sync = || self.file.file().sync_all().context(|| format!("cannot make the {} durable", self.layout.name()));
        sync()?;
        let first = self.layout.head().next().ok_or_else(|| Error::internal("an image without a head"))?;
        self.write_sparsely(&first, 0)?;
        sync()
    }
}

/// Zeros of a head are left out in steps of this many bytes.
const SPARSE_STEP: usize = 64 * 1024;
