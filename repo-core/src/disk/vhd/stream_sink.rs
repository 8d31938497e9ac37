//! A dynamic VHD written front to back, of a length known beforehand: what XAPI's import demands.

use std::io::Write;

use super::plan::{BITMAP_LEN, Plan, VhdParams};
use crate::disk::{PresentBlocks, StreamSink};
use crate::error::{Error, Result, ResultExt};
use crate::units::{BLOCK_LEN, BlockIndex};

/// Writes the present blocks one after the other.
pub struct VhdStreamSink<W> {
    writer: W,
    plan: Plan,
    written: u64,
}

impl<W: Write + Send> VhdStreamSink<W> {
    /// Writes everything before the first block.
    ///
    /// # Errors
    /// `Unsupported` for disks a VHD cannot hold, `Invalid` for a unique id of zeros, `Io` when writing fails.
    pub fn create(writer: W, params: &VhdParams, present: &PresentBlocks) -> Result<Self> {
        let plan = Plan::new(params, present)?;
        let mut sink = Self { writer, plan, written: 0 };
        sink.writer.write_all(sink.plan.head()).context(|| "cannot write the head of the VHD")?;
        sink.written = sink.plan.head().len() as u64;
        Ok(sink)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).context(|| format!("cannot write byte {} of the VHD", self.written))?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

impl<W: Write + Send> StreamSink for VhdStreamSink<W> {
    fn write_block(&mut self, index: BlockIndex, content: &[u8]) -> Result<()> {
        // Blocks are stored ascending without gaps: the one whose turn it is begins where the last one ended.
        if self.plan.block_offset(index) != Some(self.written) || content.len() != BLOCK_LEN {
            let text =
                format!("block {index} of {} bytes out of turn at byte {} of the VHD", content.len(), self.written);
            return Err(Error::internal(text));
        }
        let (on_disk, past_end) = content.split_at(index.len_on_disk_bytes(self.plan.virtual_size()));
        self.write(&[0xFF; BITMAP_LEN])?;
        self.write(on_disk)?;
        if past_end.is_empty() { Ok(()) } else { self.write(&vec![0; past_end.len()]) }
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        let footer = self.plan.footer().to_vec();
        let blocks_end = self.plan.len_bytes() - footer.len() as u64;
        if self.written != blocks_end {
            let text = format!("the blocks of the VHD end at byte {}, planned was {blocks_end}", self.written);
            return Err(Error::internal(text));
        }
        self.write(&footer)?;
        self.writer.flush().context(|| "cannot flush the VHD")
    }
}
