//! A file or block device that holds another state of a raw disk and is changed into a new one.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};

use super::file_sink;
use super::file_source::DataBlocks;
use crate::disk::BlockBuf;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::units::BlockIndex;

/// The target of an in-place restore: read, compared and changed where it differs.
pub struct InPlaceFile {
    file: File,
    virtual_size: u64,
    /// Bytes it had when it was opened.
    found_len: u64,
    is_device: bool,
}

impl InPlaceFile {
    /// Takes a target, open for reading, and for writing unless it is only looked at. Nothing is changed yet.
    ///
    /// # Errors
    /// `Invalid` when a block device is smaller than the disk, `Unsupported` for what is neither file nor block device,
    /// `Io`.
    pub fn open(mut file: File, virtual_size: u64) -> Result<Self> {
        let file_type = file.metadata().context(|| "cannot examine the target")?.file_type();
        let is_device = file_type.is_block_device();
        if !file_type.is_file() && !is_device {
            let text = "the target is neither a regular file nor a block device: nothing on it can be compared";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let found_len = file.seek(SeekFrom::End(0)).context(|| "cannot find the end of the target")?;
        if is_device && found_len < virtual_size {
            let text = format!("the disk has {virtual_size} bytes, but the block device only {found_len}");
            return Err(Error::invalid(text));
        }
        Ok(Self { file, virtual_size, found_len, is_device })
    }

    /// Bytes the target had when it was opened.
    pub fn found_len_bytes(&self) -> u64 {
        self.found_len
    }

    /// Blocks that may hold something, ascending; the others are zeros.
    pub fn data_blocks(&self) -> impl Iterator<Item = Result<BlockIndex>> + '_ {
        let mut blocks = DataBlocks::new(self.content_len());
        std::iter::from_fn(move || blocks.next(&self.file).transpose())
    }

    /// Reads a block; what lies past the target's or the disk's end is zeros.
    ///
    /// # Errors
    /// `Io`.
    pub fn read_block(&self, index: BlockIndex, buf: &mut BlockBuf) -> Result<()> {
        let len = index.len_on_disk_bytes(self.content_len());
        let (content, rest) = buf.bytes_mut().split_at_mut(len);
        rest.fill(0);
        let offset = index.offset_bytes();
        self.file.read_exact_at(content, offset).context(|| format!("cannot read the target at byte {offset}"))
    }

    /// Gives a file the disk's length. A block device has its own.
    ///
    /// # Errors
    /// `Io`.
    pub fn resize(&self) -> Result<()> {
        if self.is_device || self.found_len == self.virtual_size {
            return Ok(());
        }
        let size = self.virtual_size;
        self.file.set_len(size).context(|| format!("cannot make the target file {size} bytes long"))
    }

    /// Writes content.
    ///
    /// # Errors
    /// `Io`.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(bytes, offset);
        written.context(|| format!("cannot write {} bytes at byte {offset} of the disk", bytes.len()))
    }

    /// Makes a range, which begins with a page, zeros.
    ///
    /// # Errors
    /// `Io`.
    pub fn zero(&self, range: Range<u64>) -> Result<()> {
        file_sink::zero(&self.file, range)
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(&self) -> Result<()> {
        self.file.sync_all().context(|| "cannot make the disk durable")
    }

    /// How much of the disk the target has.
    fn content_len(&self) -> u64 {
        self.found_len.min(self.virtual_size)
    }
}
