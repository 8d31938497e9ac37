//! A qcow2 image in a file or on a block device.

use std::fs::File;
use std::path::Path;

use imago::{FormatAccess, Mapping};

use super::chain::{self, failed};
use super::image_file::ImageFile;
use crate::disk::{BlockBuf, Delivery, DiskFormat, DiskSource};
use crate::error::{Error, Result};
use crate::units::{BLOCK_LEN, BlockIndex, block_count};

/// How far ahead the map is looked at where the image holds nothing, in bytes.
const SKIP_LEN: u64 = 64 << 20;

/// Reads every block of which the image, or a backing file, holds anything, ascending.
pub struct Qcow2FileSource {
    image: FormatAccess<ImageFile>,
    virtual_size: u64,
    next: u64,
}

impl Qcow2FileSource {
    /// Opens an image that takes up the first `end` bytes of `file`. With `backing`, the folder that relative names
    /// are resolved from, backing files are opened too.
    ///
    /// # Errors
    /// `Invalid` when header or L1 table are malformed or truncated, `Unsupported` for features that are not read
    /// here and for backing files that are not allowed; `NotFound` and `Io` when a backing file cannot be opened.
    pub fn open(file: File, end: u64, backing: Option<&Path>) -> Result<Self> {
        let (image, header) = chain::open(file, end, backing)?;
        Ok(Self { image, virtual_size: header.virtual_size(), next: 0 })
    }

    /// How many blocks from `index` on hold nothing, as far as the map says at one look.
    fn absent_blocks(&self, index: BlockIndex) -> Result<u64> {
        let offset = index.offset_bytes();
        let rest = self.virtual_size - offset;
        match self.mapping(offset, rest.min(SKIP_LEN))? {
            (Mapping::Zero { .. }, len) if len == rest => Ok(block_count(self.virtual_size) - index.0),
            (Mapping::Zero { .. }, len) => Ok(len / BLOCK_LEN as u64),
            _ => Ok(0),
        }
    }

    /// Fills `buf` with block `index`; false if nothing of it is held.
    fn read_block(&self, index: BlockIndex, buf: &mut BlockBuf) -> Result<bool> {
        let start = index.offset_bytes();
        let mut rest = &mut buf.bytes_mut()[..index.len_on_disk_bytes(self.virtual_size)];
        let mut offset = start;
        let mut any = false;
        while !rest.is_empty() {
            let (mapping, len) = self.mapping(offset, rest.len() as u64)?;
            let (part, behind) = rest.split_at_mut(usize::try_from(len).expect("not longer than asked for"));
            match mapping {
                Mapping::Zero { .. } => part.fill(0),
                mapping => {
                    check_held(&mapping, offset, len)?;
                    self.image.read(part, offset).map_err(|error| {
                        failed(format!("cannot read {len} bytes at byte {offset} of the disk"), error)
                    })?;
                    any = true;
                }
            }
            offset += len;
            rest = behind;
        }
        Ok(any)
    }

    /// Where the bytes from `offset` on stand, and how many of them: at least one.
    fn mapping(&self, offset: u64, len_max: u64) -> Result<(Mapping<'_, ImageFile>, u64)> {
        let (mapping, len) = self
            .image
            .get_mapping(offset, len_max)
            .map_err(|error| failed(format!("cannot find byte {offset} of the disk in the image"), error))?;
        if len == 0 || len > len_max {
            return Err(Error::internal(format!("the map of the image is of no use at byte {offset} of the disk")));
        }
        Ok((mapping, len))
    }
}

/// Refuses content past the end of its file: such an image was cut short.
fn check_held(mapping: &Mapping<'_, ImageFile>, offset: u64, len: u64) -> Result<()> {
    match mapping {
        Mapping::Raw { storage, offset: stored, .. } if !storage.holds(*stored, len) => Err(Error::invalid(format!(
            "byte {offset} of the disk and the {len} from there should stand at byte {stored} of {storage}: it is \
             truncated or damaged"
        ))),
        _ => Ok(()),
    }
}

impl DiskSource for Qcow2FileSource {
    fn virtual_size(&self) -> Option<u64> {
        Some(self.virtual_size)
    }

    fn format(&self) -> DiskFormat {
        DiskFormat::Qcow2
    }

    fn delivery(&self) -> Delivery {
        Delivery::Ascending
    }

    fn next_block(&mut self, buf: &mut BlockBuf) -> Result<Option<BlockIndex>> {
        while self.next < block_count(self.virtual_size) {
            let index = BlockIndex(self.next);
            let absent = self.absent_blocks(index)?;
            if absent > 0 {
                self.next += absent;
                continue;
            }
            self.next += 1;
            if self.read_block(index, buf)? {
                buf.clear_past_end(index, self.virtual_size);
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}
