//! A dynamic VHD written to a file in any order.

use std::fs::File;

use super::footer::FOOTER_LEN;
use super::plan::{BITMAP_LEN, Plan, VhdParams};
use super::profile::Profile;
use crate::direct::{AlignedBuf, DirectFile};
use crate::disk::{DiskSink, PresentBlocks};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::units::{BLOCK_LEN, BlockIndex};

/// Writes content to its place; what is never written inside a present block is zeros.
///
/// Both footers are written last, after everything else is durable: until then no reader takes the file for a VHD.
pub struct VhdFileSink {
    file: DirectFile,
    plan: Plan,
}

impl VhdFileSink {
    /// Prepares `file`, a regular one, for a disk of which only `present` blocks will be written: what it held is gone.
    ///
    /// # Errors
    /// `Unsupported` for what is no regular file and for disks a VHD cannot hold, `Invalid` for a unique id of zeros,
    /// `Io` when preparing fails.
    pub fn create(file: File, params: &VhdParams, profile: &Profile, present: &PresentBlocks) -> Result<Self> {
        let plan = Plan::new(params, profile, present)?;
        if !file.metadata().context(|| "cannot examine the target")?.is_file() {
            // On a device the footer would have to stand at the device's end, and holes would not be zeros.
            let text = "the target is no regular file: write the VHD as a stream, or a raw disk";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let len = plan.len_bytes();
        file.set_len(0).context(|| "cannot empty the target file")?;
        file.set_len(len).context(|| format!("cannot make the target file {len} bytes long"))?;
        let sink = Self { file: DirectFile::new(file), plan };
        sink.write(&sink.plan.head()[FOOTER_LEN..], FOOTER_LEN as u64)?;
        // Aligned like the blocks between them, so that no page of the file is written both ways.
        let mut bitmap = AlignedBuf::zeroed(BITMAP_LEN);
        bitmap.fill(0xFF);
        for index in present.iter() {
            sink.write(&bitmap, sink.block_offset(index)?)?;
        }
        Ok(sink)
    }

    fn block_offset(&self, index: BlockIndex) -> Result<u64> {
        let offset = self.plan.block_offset(index);
        offset.ok_or_else(|| Error::internal(format!("block {index} is written but was not said to be present")))
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let written = self.file.write_all_at(bytes, offset);
        written.context(|| format!("cannot write {} bytes at byte {offset} of the VHD", bytes.len()))
    }
}

impl DiskSink for VhdFileSink {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let size = self.plan.virtual_size();
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > size) {
            let text = format!("{} bytes at byte {offset} of a disk of {size}", bytes.len());
            return Err(Error::internal(text));
        }
        let (mut offset, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let index = BlockIndex(offset / BLOCK_LEN as u64);
            let within = offset - index.offset_bytes();
            let room = index.len_on_disk_bytes(size).saturating_sub(usize::try_from(within).unwrap_or(BLOCK_LEN));
            let (now, later) = rest.split_at(rest.len().min(room));
            self.write(now, self.block_offset(index)? + BITMAP_LEN as u64 + within)?;
            offset += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        let sync = || self.file.file().sync_all().context(|| "cannot make the VHD durable");
        sync()?;
        self.write(self.plan.footer(), self.plan.len_bytes() - FOOTER_LEN as u64)?;
        self.write(self.plan.footer(), 0)?;
        sync()
    }
}
