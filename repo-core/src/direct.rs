//! Files written past the page cache, where the file system lets them be.
//!
//! Packs and restored disks are large, written once and then fsynced. Through the page cache every byte is copied, dirtied and
//! written back page by page before the fsync returns; docs/design/0003-direct-io.md has what that costs. Writes that
//! are not aligned, and file systems that refuse, go through the page cache: slower, never different.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

/// The alignment of an [`AlignedBuf`] in memory, in bytes: a multiple of what any device asks for.
pub const ALIGNMENT: usize = 4096;

/// A file for positioned writes.
pub struct DirectFile {
    file: File,
    direct: Option<Direct>,
}

struct Direct {
    file: File,
    /// What offsets and lengths must be multiples of, in bytes.
    offset_alignment: u64,
    /// What addresses in memory must be multiples of, in bytes.
    memory_alignment: usize,
    /// Set when the file system refused a write that it should have taken.
    refused: AtomicBool,
}

impl DirectFile {
    /// Takes a file that is open for writing.
    pub fn new(file: File) -> Self {
        let direct = Direct::open(&file);
        Self { file, direct }
    }

    /// The file, for everything but writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Some(direct) = &self.direct
            && direct.takes(bytes, offset)
        {
            match direct.file.write_all_at(bytes, offset) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    direct.refused.store(true, Ordering::Relaxed);
                }
                outcome => return outcome,
            }
        }
        self.file.write_all_at(bytes, offset)
    }
}

impl Direct {
    /// A second descriptor of the same file: on one alone, the flag would hold for every write.
    fn open(file: &File) -> Option<Self> {
        let status = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
        let reported = StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::DIOALIGN);
        if !reported || status.stx_dio_offset_align == 0 {
            return None;
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        Some(Self {
            file: file.into(),
            offset_alignment: u64::from(status.stx_dio_offset_align),
            memory_alignment: status.stx_dio_mem_align.max(1) as usize,
            refused: AtomicBool::new(false),
        })
    }

    fn takes(&self, bytes: &[u8], offset: u64) -> bool {
        !self.refused.load(Ordering::Relaxed)
            && offset.is_multiple_of(self.offset_alignment)
            && (bytes.len() as u64).is_multiple_of(self.offset_alignment)
            && bytes.as_ptr().addr().is_multiple_of(self.memory_alignment)
    }
}

/// Bytes in memory at an address that direct writes take.
pub struct AlignedBuf {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` bytes of zeros.
    pub fn zeroed(len: usize) -> Self {
        let memory = vec![0; len + ALIGNMENT];
        let start = memory.as_ptr().addr().next_multiple_of(ALIGNMENT) - memory.as_ptr().addr();
        Self { memory, start, len }
    }
}

impl Clone for AlignedBuf {
    /// Copies the bytes to an aligned address of their own.
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_unaligned_writes_end_up_in_one_file() {
        let path = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let file = DirectFile::new(File::options().write(true).open(path.path()).unwrap());
        let mut buffer = AlignedBuf::zeroed(64 * 1024);
        assert!(buffer.as_ptr().addr().is_multiple_of(ALIGNMENT));
        buffer.fill(7);
        file.write_all_at(&buffer, 0).unwrap();
        file.write_all_at(b"odd", 65_536).unwrap();
        file.write_all_at(&buffer[1..4097], 4096).unwrap();
        file.write_all_at(&buffer[..512], 70_000).unwrap();
        let mut expected = [&[7; 65_536][..], b"odd"].concat();
        expected.resize(70_000, 0);
        expected.extend_from_slice(&[7; 512]);
        assert!(std::fs::read(path.path()).unwrap() == expected);
    }
}
