//! A raw disk, or the content of a fixed VHD, in a file or on a block device.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::disk::{BlockBuf, Delivery, DiskFormat, DiskSource};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::units::{BLOCK_LEN, BlockIndex, VIRTUAL_SIZE_MAX, block_count};

/// Reads every block that is not wholly inside a hole of the file, ascending.
pub struct RawFileSource {
    file: File,
    format: DiskFormat,
    virtual_size: u64,
    blocks: DataBlocks,
}

/// The blocks of the first `len` bytes of a file or block device that are not wholly inside a hole, ascending.
pub(super) struct DataBlocks {
    len: u64,
    next: u64,
    /// The end of the run of data last found: up to here no hole needs to be looked for.
    data_end: u64,
}

impl RawFileSource {
    /// A raw disk of `len` bytes.
    ///
    /// # Errors
    /// `Unsupported` when it is larger than a repository takes.
    pub fn open(file: File, len: u64) -> Result<Self> {
        Self::with_format(file, len, DiskFormat::Raw)
    }

    /// The first `len` bytes of a fixed VHD, whose footer was checked.
    ///
    /// # Errors
    /// `Unsupported` when the disk is larger than a repository takes.
    pub fn open_fixed_vhd(file: File, len: u64) -> Result<Self> {
        Self::with_format(file, len, DiskFormat::VhdFixed)
    }

    fn with_format(file: File, virtual_size: u64, format: DiskFormat) -> Result<Self> {
        if virtual_size > VIRTUAL_SIZE_MAX {
            let text =
                format!("the disk has {virtual_size} bytes, more than the {VIRTUAL_SIZE_MAX} a repository takes");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        Ok(Self { file, format, virtual_size, blocks: DataBlocks::new(virtual_size) })
    }
}

impl DataBlocks {
    pub(super) fn new(len: u64) -> Self {
        Self { len, next: 0, data_end: 0 }
    }

    /// The next block with data.
    ///
    /// # Errors
    /// `Io` when the file cannot be looked through.
    pub(super) fn next(&mut self, file: &File) -> Result<Option<BlockIndex>> {
        let found = self.find(file)?;
        self.next = found.map_or(u64::MAX, |index| index.0 + 1);
        Ok(found)
    }

    fn find(&mut self, file: &File) -> Result<Option<BlockIndex>> {
        if self.next >= block_count(self.len) {
            return Ok(None);
        }
        let from = BlockIndex(self.next).offset_bytes();
        if from < self.data_end {
            return Ok(Some(BlockIndex(self.next)));
        }
        let data = match rustix::fs::seek(file, SeekFrom::Data(from)) {
            Ok(data) => data,
            // Nothing but a hole up to the end of the file.
            Err(Errno::NXIO) => return Ok(None),
            // Block devices and some file systems know no holes: everything is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                self.data_end = u64::MAX;
                return Ok(Some(BlockIndex(self.next)));
            }
            Err(error) => return Err(Error::io(format!("cannot look for data from byte {from}"), error.into())),
        };
        if data >= self.len {
            return Ok(None);
        }
        // When the end of the data cannot be found, the next block is simply looked for again.
        self.data_end = rustix::fs::seek(file, SeekFrom::Hole(data)).unwrap_or(data);
        Ok(Some(BlockIndex(data / BLOCK_LEN as u64)))
    }
}

impl DiskSource for RawFileSource {
    fn virtual_size(&self) -> Option<u64> {
        Some(self.virtual_size)
    }

    fn format(&self) -> DiskFormat {
        self.format
    }

    fn delivery(&self) -> Delivery {
        Delivery::Ascending
    }

    fn next_block(&mut self, buf: &mut BlockBuf) -> Result<Option<BlockIndex>> {
        let Some(index) = self.blocks.next(&self.file)? else { return Ok(None) };
        let offset = index.offset_bytes();
        let len = index.len_on_disk_bytes(self.virtual_size);
        self.file
            .read_exact_at(&mut buf.bytes_mut()[..len], offset)
            .context(|| format!("cannot read {len} bytes at byte {offset} of the disk"))?;
        buf.clear_past_end(index, self.virtual_size);
        Ok(Some(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_skipped_and_everything_else_is_delivered() {
        let file = tempfile::tempfile().unwrap();
        let size = 9 * BLOCK_LEN as u64 + 700;
        file.set_len(size).unwrap();
        file.write_all_at(&[1; 10], 3 * BLOCK_LEN as u64 - 5).unwrap();
        file.write_all_at(&[2; 700], 9 * BLOCK_LEN as u64).unwrap();
        let mut source = RawFileSource::open(file, size).unwrap();
        let mut buf = BlockBuf::new();
        let mut seen = Vec::new();
        while let Some(index) = source.next_block(&mut buf).unwrap() {
            let set = buf.bytes().iter().filter(|byte| **byte != 0).count();
            if set > 0 {
                seen.push((index.0, set));
            }
        }
        assert_eq!(seen, [(2, 5), (3, 5), (9, 700)]);
        assert!(source.next_block(&mut buf).unwrap().is_none());
    }

    #[test]
    fn a_disk_that_is_one_hole_delivers_nothing() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        let mut source = RawFileSource::open(file, 1 << 40).unwrap();
        assert!(source.next_block(&mut BlockBuf::new()).unwrap().is_none());
    }
}
