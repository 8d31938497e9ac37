//! A raw disk of which only the blocks are read that a changed list names.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::disk::{BlockBuf, Delivery, DiskFormat, DiskSource, PresentBlocks, Undelivered};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::units::{BlockIndex, VIRTUAL_SIZE_MAX, block_count};

use super::ChangedList;

/// Reads the changed blocks, ascending, zeros and all; the others are the base's, and can be read as a sample.
pub struct HintedSource {
    file: File,
    format: DiskFormat,
    virtual_size: u64,
    changed: PresentBlocks,
    next: u64,
}

impl HintedSource {
    /// The first `virtual_size` bytes of a file or block device, raw or the content of a fixed VHD, against a base of
    /// `base_size` bytes.
    ///
    /// # Errors
    /// `Unsupported` when the disk is larger than a repository takes, `Invalid` when the list does not fit it.
    pub fn open(file: File, format: DiskFormat, virtual_size: u64, list: &ChangedList, base_size: u64) -> Result<Self> {
        if virtual_size > VIRTUAL_SIZE_MAX {
            let text =
                format!("the disk has {virtual_size} bytes, more than the {VIRTUAL_SIZE_MAX} a repository takes");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        Ok(Self { file, format, virtual_size, changed: list.blocks(virtual_size, base_size)?, next: 0 })
    }

    fn read(&self, index: BlockIndex, buf: &mut BlockBuf) -> Result<()> {
        let offset = index.offset_bytes();
        let len = index.len_on_disk_bytes(self.virtual_size);
        self.file
            .read_exact_at(&mut buf.bytes_mut()[..len], offset)
            .context(|| format!("cannot read {len} bytes at byte {offset} of the disk"))?;
        buf.clear_past_end(index, self.virtual_size);
        Ok(())
    }
}

impl DiskSource for HintedSource {
    fn virtual_size(&self) -> Option<u64> {
        Some(self.virtual_size)
    }

    fn format(&self) -> DiskFormat {
        self.format
    }

    fn delivery(&self) -> Delivery {
        Delivery::Ascending
    }

    fn undelivered(&self) -> Undelivered {
        Undelivered::Base
    }

    fn is_hinted(&self) -> bool {
        true
    }

    fn sample(&mut self, index: BlockIndex, buf: &mut BlockBuf) -> Result<bool> {
        if index.0 >= block_count(self.virtual_size) {
            return Ok(false);
        }
        self.read(index, buf)?;
        Ok(true)
    }

    fn next_block(&mut self, buf: &mut BlockBuf) -> Result<Option<BlockIndex>> {
        let Some(index) = (self.next..self.changed.block_count()).map(BlockIndex).find(|at| self.changed.contains(*at))
        else {
            self.next = self.changed.block_count();
            return Ok(None);
        };
        self.next = index.0 + 1;
        self.read(index, buf)?;
        Ok(Some(index))
    }
}
