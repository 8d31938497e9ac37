//! A file of an image chain as imago sees it: never past its end, and with a checked header.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

use crate::units::SECTOR_LEN;

/// One file, read only.
#[derive(Debug)]
pub(super) struct ImageFile {
    file: File,
    end: u64,
    /// What is read in place of the first bytes.
    head: Vec<u8>,
    name: String,
    helper: CommonStorageHelper,
}

impl ImageFile {
    /// The first `end` bytes of `file`, of which the first read as `head`. `name` is for messages.
    pub(super) fn new(file: File, end: u64, head: Vec<u8>, name: String) -> Self {
        Self { file, end, head, name, helper: CommonStorageHelper::default() }
    }

    /// Whether all of these bytes are in the file.
    pub(super) fn holds(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|reach| reach <= self.end)
    }

    fn read_at(&self, dest: &mut [u8], offset: u64) -> io::Result<()> {
        let reach = offset.saturating_add(dest.len() as u64);
        // The length of compressed data is known in sectors only, so a file may end inside the last one.
        if offset >= self.end || reach - self.end.min(reach) >= SECTOR_LEN as u64 {
            let text = format!("bytes {offset} to {reach} are past the end of {self}: it is truncated or damaged");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let here = usize::try_from(self.end - offset).unwrap_or(usize::MAX).min(dest.len());
        let (held, past) = dest.split_at_mut(here);
        past.fill(0);
        self.file.read_exact_at(held, offset)?;
        let head = usize::try_from(offset).ok().and_then(|offset| self.head.get(offset..)).unwrap_or_default();
        held.iter_mut().zip(head).for_each(|(byte, shown)| *byte = *shown);
        Ok(())
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.end)
    }
}

#[expect(unsafe_code, reason = "the trait declares these methods unsafe; nothing in them is")]
impl Storage for ImageFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.end)
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        for mut part in bufv.into_inner() {
            self.read_at(&mut part, offset)?;
            offset = offset.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, _bufv: IoVector<'_>, _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}
