//! A raw disk written to a file or block device in any order.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::direct::DirectFile;
use crate::disk::DiskSink;
use crate::error::{Error, ErrorKind, Result, ResultExt};

/// Writes at the positions of the virtual disk. What is never written reads as zeros.
pub struct RawFileSink {
    file: DirectFile,
    virtual_size: u64,
}

impl RawFileSink {
    /// Prepares `file` for a disk of `virtual_size` bytes: what it held is gone. A regular file becomes a hole of that
    /// size. A block device is zeroed over that size, without writing where the device can; what it has beyond stays.
    ///
    /// # Errors
    /// `Invalid` when the block device is too small, `Unsupported` for what is neither, `Io` when preparing fails.
    pub fn create(mut file: File, virtual_size: u64) -> Result<Self> {
        let file_type = file.metadata().context(|| "cannot examine the target")?.file_type();
        if file_type.is_file() {
            file.set_len(0).context(|| "cannot empty the target file")?;
            file.set_len(virtual_size).context(|| format!("cannot make the target file {virtual_size} bytes long"))?;
        } else if file_type.is_block_device() {
            let device_len = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0));
            let device_len = device_len.context(|| "cannot find the size of the block device")?;
            if device_len < virtual_size {
                let text = format!("the disk has {virtual_size} bytes, but the block device only {device_len}");
                return Err(Error::invalid(text));
            }
            zero(&file, 0..virtual_size)?;
        } else {
            let text = "the target is neither a regular file nor a block device: write it as a stream";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        Ok(Self { file: DirectFile::new(file), virtual_size })
    }
}

impl DiskSink for RawFileSink {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.virtual_size) {
            let text = format!("{} bytes at byte {offset} of a disk of {}", bytes.len(), self.virtual_size);
            return Err(Error::internal(text));
        }
        let written = self.file.write_all_at(bytes, offset);
        written.context(|| format!("cannot write {} bytes at byte {offset} of the disk", bytes.len()))
    }

    fn finish(&self) -> Result<()> {
        self.file.file().sync_all().context(|| "cannot make the disk durable")
    }
}

/// Makes a range read as zeros, by the cheapest way the target offers: a hole of a file, a call to the device, or zeros
/// written. It begins at a multiple of 4 KiB.
pub(super) fn zero(file: &File, range: Range<u64>) -> Result<()> {
    // Both calls promise zeros; ranges must be whole logical sectors, which have at most 4 KiB. They go in steps, because
    // the kernel does not let itself be interrupted inside one.
    let by_kernel = range.end / ZERO_ALIGN * ZERO_ALIGN;
    let ways = [FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, FallocateFlags::ZERO_RANGE];
    let mut done = range.start;
    for way in ways {
        while done < by_kernel {
            let step = (by_kernel - done).min(ZERO_STEP);
            match rustix::fs::fallocate(file, way, done, step) {
                Ok(()) => done += step,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => break,
                Err(error) => return Err(Error::io(format!("cannot zero the target at byte {done}"), error.into())),
            }
        }
    }
    if done == range.end {
        return Ok(());
    }
    let zeros = vec![0; usize::try_from(range.end - done).unwrap_or(usize::MAX).min(ZERO_WRITE_LEN)];
    while done < range.end {
        let step = usize::try_from(range.end - done).unwrap_or(usize::MAX).min(zeros.len());
        file.write_all_at(&zeros[..step], done).context(|| format!("cannot write zeros at byte {done}"))?;
        done += step as u64;
    }
    Ok(())
}

/// A multiple of every logical sector size, in bytes.
const ZERO_ALIGN: u64 = 4096;
/// How much the kernel is asked to zero at once, in bytes.
const ZERO_STEP: u64 = 1 << 30;
/// How much is written at once where the kernel can't zero, in bytes.
const ZERO_WRITE_LEN: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn nothing_of_what_the_file_held_shines_through() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[9; 10_000], 0).unwrap();
        let sink = RawFileSink::create(file.try_clone().unwrap(), 5_000).unwrap();
        sink.write_at(4_096, &[1; 904]).unwrap();
        sink.finish().unwrap();
        let mut expected = vec![0; 5_000];
        expected[4_096..].fill(1);
        assert_eq!(content(&file), expected);
    }

    #[test]
    fn writing_past_the_end_is_a_bug_that_is_reported() {
        let sink = RawFileSink::create(tempfile::tempfile().unwrap(), 5_000).unwrap();
        for offset in [4_096, 5_000, u64::MAX] {
            assert_eq!(sink.write_at(offset, &[1; 905]).unwrap_err().kind(), ErrorKind::Internal);
        }
    }

    #[test]
    fn zeroing_covers_a_range_that_is_no_multiple_of_anything() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[9; 4 * 4096], 0).unwrap();
        zero(&file, 4096..3 * 4096 + 513).unwrap();
        let bytes = content(&file);
        assert!(bytes[4096..3 * 4096 + 513].iter().all(|byte| *byte == 0));
        assert!(bytes[..4096].iter().chain(&bytes[3 * 4096 + 513..]).all(|byte| *byte == 9));
    }

    #[test]
    fn a_pipe_is_no_target_for_scattered_writes() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let error = RawFileSink::create(File::from(std::os::fd::OwnedFd::from(writer)), 512).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
