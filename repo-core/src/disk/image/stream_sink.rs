//! An image written front to back, of a length known beforehand.

use std::io::Write;

use super::ImageLayout;
use crate::disk::StreamSink;
use crate::error::{Error, Result, ResultExt};
use crate::units::{BLOCK_LEN, BlockIndex};

/// Writes the head and then the present blocks, one after the other.
pub struct ImageStreamSink<W, L> {
    writer: W,
    layout: L,
    written: u64,
}

impl<W: Write + Send, L: ImageLayout> ImageStreamSink<W, L> {
    /// Writes everything before the first block.
    ///
    /// # Errors
    /// `Io` when writing fails.
    pub fn create(mut writer: W, layout: L) -> Result<Self> {
        let mut written = 0;
        for piece in layout.head() {
            writer.write_all(&piece).context(|| cannot_write(&layout, written))?;
            written += piece.len() as u64;
        }
        Ok(Self { writer, layout, written })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).context(|| cannot_write(&self.layout, self.written))?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

fn cannot_write(layout: &impl ImageLayout, offset: u64) -> String {
    format!("cannot write byte {offset} of the {}", layout.name())
}

impl<W: Write + Send, L: ImageLayout> StreamSink for ImageStreamSink<W, L> {
    fn write_block(&mut self, index: BlockIndex, content: &[u8]) -> Result<()> {
        // Blocks are stored ascending without gaps: the one whose turn it is begins where the last one ended.
        if self.layout.block_offset(index) != Some(self.written) || content.len() != BLOCK_LEN {
            let (len, name, written) = (content.len(), self.layout.name(), self.written);
            return Err(Error::internal(format!(
                "block {index} of {len} bytes out of turn at byte {written} of the {name}"
            )));
        }
        let on_disk = index.len_on_disk_bytes(self.layout.virtual_size());
        self.write(&content[..on_disk])?;
        let padding = self.layout.stored_len(index) - on_disk;
        if padding == 0 { Ok(()) } else { self.write(&vec![0; padding]) }
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        let (planned, name) = (self.layout.len_bytes(), self.layout.name());
        if self.written != planned {
            let text = format!("the {name} ends at byte {}, planned was {planned}", self.written);
            return Err(Error::internal(text));
        }
        self.writer.flush().context(|| format!("cannot flush the {name}"))
    }
}
