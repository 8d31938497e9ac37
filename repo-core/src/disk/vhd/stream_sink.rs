//! A dynamic VHD written front to back, of a length known beforehand: what XAPI's import demands.

use std::io::Write;

use super::plan::{BITMAP_LEN, Plan, VhdParams};
use super::profile::Profile;
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
    pub fn create(writer: W, params: &VhdParams, profile: &Profile, present: &PresentBlocks) -> Result<Self> {
        let plan = Plan::new(params, profile, present)?;
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
        // Blocks are stored ascending: the one whose turn it is begins where the last one ended, or a few sectors further on
        // where the profile aligns content. Behind a block that was passed over, the gap is larger than a block.
        let offset = self.plan.block_offset(index).filter(|offset| *offset >= self.written);
        let gap = offset.map(|offset| offset - self.written).filter(|gap| *gap < BLOCK_LEN as u64);
        let (Some(gap), true) = (gap, content.len() == BLOCK_LEN) else {
            let text =
                format!("block {index} of {} bytes out of turn at byte {} of the VHD", content.len(), self.written);
            return Err(Error::internal(text));
        };
        self.write(&vec![0; usize::try_from(gap).expect("below the length of a block")])?;
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
