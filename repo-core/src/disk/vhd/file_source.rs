//! A dynamic or differencing VHD in a file or on a block device, read in virtual order.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use super::bat::Bat;
use super::dynamic_header::{DYNAMIC_HEADER_LEN, DynamicHeader};
use super::footer::{FOOTER_LEN, Footer};
use super::layout::Layout;
use super::sector_bitmap::{self, Held};
use super::trailer;
use crate::disk::{BlockBuf, Delivery, DiskFormat, DiskSource, ImageIds, SECTORS_PER_BLOCK, SectorMask, Undelivered};
use crate::error::{Error, Result, ResultExt};
use crate::units::{BLOCK_LEN, BlockIndex, SECTOR_LEN, block_count};

/// Reads the stored blocks, ascending.
pub struct VhdFileSource {
    file: File,
    layout: Layout,
    bat: Bat,
    next: u64,
    /// The sector bitmap last read: of a block above 2 MiB it serves for all its parts.
    bitmap: Vec<u8>,
    /// Of a differencing disk, what the block just delivered holds when that is not all.
    held: Option<SectorMask>,
}

impl VhdFileSource {
    /// Opens a VHD that takes up the first `end` bytes of `file`; checks both footers, the header and every BAT entry.
    ///
    /// # Errors
    /// `Invalid` when anything of that is malformed or truncated, `Unsupported` when it is not read here.
    pub fn open(file: File, end: u64) -> Result<Self> {
        let tail_offset = end.saturating_sub(FOOTER_LEN as u64);
        let tail = read(&file, tail_offset, FOOTER_LEN, end, "the footer")?;
        let copy = read(&file, 0, FOOTER_LEN, end, "the footer copy")?;
        let copy = Footer::decode(&copy).map_err(|error| {
            // Either footer would do to read the disk, but two that disagree mean that somebody else wrote to the file.
            let other = if trailer::is_sound(&tail, end) { " (the footer at the end is sound)" } else { "" };
            Error::new(error.kind(), format!("footer copy at byte 0{other}: {error}"))
        })?;
        let header_offset = Layout::header_offset(&copy)?;
        let blocks_end = trailer::check(&copy, &tail, end)?;
        let header = read(&file, header_offset, DYNAMIC_HEADER_LEN, blocks_end, "the dynamic header")?;
        let header = DynamicHeader::decode(&header).context(|| format!("dynamic header at byte {header_offset}"))?;
        let layout = Layout::of(&copy, &header)?;
        if layout.table_end > blocks_end {
            let text = format!(
                "dynamic header: the BAT of {} entries reaches to byte {}, past the footer at byte {blocks_end}",
                header.max_table_entries(),
                layout.table_end
            );
            return Err(Error::invalid(text));
        }
        let bat = Bat::decode(&read(&file, layout.table_offset, layout.used_entries * 4, blocks_end, "the BAT")?)?;
        bat.stored_order(&layout, Some(blocks_end))?;
        Ok(Self { file, layout, bat, next: 0, bitmap: vec![0; layout.bitmap_len], held: None })
    }

    /// Fills `buf` with block `index`, and tells which sectors are held; `None` if nothing of it is stored.
    fn read_block(&mut self, index: BlockIndex, buf: &mut BlockBuf) -> Result<Option<Held>> {
        let mut held = Held::nothing();
        let block_size = self.layout.block_size;
        let offset = index.offset_bytes();
        let first = usize::try_from(offset / block_size as u64).expect("below the number of entries");
        if block_size >= BLOCK_LEN {
            let Some(sector) = self.bat.get(first) else { return Ok(None) };
            let skip = usize::try_from(offset % block_size as u64).expect("below the block size");
            self.read_stored(sector, skip, buf.bytes_mut())?;
            held.add(0, &self.bitmap, skip / SECTOR_LEN, SECTORS_PER_BLOCK);
            return Ok(Some(held));
        }
        let parts = first..first + BLOCK_LEN / block_size;
        if parts.clone().all(|part| self.bat.get(part).is_none()) {
            return Ok(None);
        }
        let sectors = block_size / SECTOR_LEN;
        for ((part, dest), at) in parts.zip(buf.bytes_mut().chunks_mut(block_size)).zip((0..).step_by(sectors)) {
            match self.bat.get(part) {
                Some(sector) => {
                    self.read_stored(sector, 0, dest)?;
                    held.add(at, &self.bitmap, 0, sectors);
                }
                None => dest.fill(0),
            }
        }
        Ok(Some(held))
    }

    /// Reads content of the block stored at `sector`, from byte `skip` of it, and its bitmap if that is 0.
    fn read_stored(&mut self, sector: u32, skip: usize, dest: &mut [u8]) -> Result<()> {
        let offset = u64::from(sector) * SECTOR_LEN as u64;
        if skip == 0 {
            // Bitmap and content in one call, the content to where it belongs.
            read_two(&self.file, &mut self.bitmap, dest, offset)
        } else {
            self.file.read_exact_at(dest, offset + (self.layout.bitmap_len + skip) as u64)
        }
        .context(|| format!("cannot read the block at byte {offset} of the VHD"))?;
        sector_bitmap::clear_unset(&self.bitmap, skip / SECTOR_LEN, dest);
        Ok(())
    }
}

impl DiskSource for VhdFileSource {
    fn virtual_size(&self) -> Option<u64> {
        Some(self.layout.virtual_size)
    }

    fn format(&self) -> DiskFormat {
        self.layout.format()
    }

    fn undelivered(&self) -> Undelivered {
        self.layout.undelivered()
    }

    fn ids(&self) -> Option<ImageIds> {
        self.layout.ids
    }

    fn held_sectors(&self) -> Option<&SectorMask> {
        self.held.as_ref()
    }

    fn delivery(&self) -> Delivery {
        Delivery::Ascending
    }

    fn next_block(&mut self, buf: &mut BlockBuf) -> Result<Option<BlockIndex>> {
        while self.next < block_count(self.layout.virtual_size) {
            let index = BlockIndex(self.next);
            self.next += 1;
            let Some(held) = self.read_block(index, buf)? else { continue };
            if self.layout.differencing {
                let Some(mask) = held.judge(index, self.layout.virtual_size) else { continue };
                self.held = mask;
            }
            buf.clear_past_end(index, self.layout.virtual_size);
            return Ok(Some(index));
        }
        self.held = None;
        Ok(None)
    }
}

/// Reads `what`, which must end before `end`; only then is anything allocated.
fn read(file: &File, offset: u64, len: usize, end: u64, what: &str) -> Result<Vec<u8>> {
    if offset.checked_add(len as u64).is_none_or(|reach| reach > end) {
        let text = format!("the VHD is truncated: {what} at byte {offset} has {len} bytes, but only {end} are there");
        return Err(Error::invalid(text));
    }
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).context(|| format!("cannot read {what} at byte {offset}"))?;
    Ok(bytes)
}

/// Fills `first`, then `second`, from `offset` on.
fn read_two(file: &File, first: &mut [u8], second: &mut [u8], offset: u64) -> io::Result<()> {
    let count = loop {
        match rustix::io::preadv(file, &mut [IoSliceMut::new(first), IoSliceMut::new(second)], offset) {
            Err(Errno::INTR) => {}
            count => break count?,
        }
    };
    let (first_done, second_done) = (count.min(first.len()), count.saturating_sub(first.len()));
    file.read_exact_at(&mut first[first_done..], offset + first_done as u64)?;
    file.read_exact_at(&mut second[second_done..], offset + (first.len() + second_done) as u64)
}
