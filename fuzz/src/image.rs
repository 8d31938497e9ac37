//! Disk images from fuzz inputs, and what every source of blocks must keep to.
//!
//! | offset | size | field of the input |
//! |---:|---:|---|
//! | 0 | 1 | control |
//! | 1 | 2 | where in the image the filling is put in |
//! | 3 | 1 | its length in units of 64 KiB, so that a short input describes large blocks |
//! | 4 | | the image |
//!
//! Bits of the control byte: 0 and 1 the format hint; 2 repair footers, 3 repair the header; 4 end in a copy of the
//! first sector; 5 compare with a slow stream; 6 the filling is ones, not zeros.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Cursor, Read, Result as IoResult};
use std::os::unix::fs::FileExt;

use repo_core::Result;
use repo_core::disk::vhd::dynamic_header::{DYNAMIC_HEADER_LEN, DynamicHeader};
use repo_core::disk::vhd::footer::{FOOTER_LEN, Footer};
use repo_core::disk::vhd::sector_bitmap::bitmap_len;
use repo_core::disk::{
    BlockBuf, Delivery, DiskFormat, DiskSource, FormatHint, SECTORS_PER_BLOCK, SectorMask, SourceOptions, Undelivered,
};
use repo_core::units::{PAGE_LEN, SECTOR_LEN, block_count, is_zero};
use rustix::fs::MemfdFlags;

use crate::has;

/// Where a footer keeps its checksum.
pub const FOOTER_CHECKSUM: usize = 64;
/// Where a dynamic header keeps its checksum.
pub const HEADER_CHECKSUM: usize = 36;

const PREFIX_LEN: usize = 4;
const FILLING_UNIT: usize = 64 * 1024;
const HINT_RAW: u8 = 2;
const REPAIR: u8 = 0b1100;
const SLOWLY_TOO: u8 = 1 << 5;
const ONES: u8 = 1 << 6;

/// An image: `head`, filling, `tail`.
pub struct Image {
    head: Vec<u8>,
    filling: u8,
    filling_len: u64,
    tail: Vec<u8>,
    hint: FormatHint,
    /// Whether a stream of it is to be read a second time, a little at a time.
    pub slowly_too: bool,
}

impl Image {
    /// The image of an input.
    pub fn parse(input: &[u8]) -> Option<Self> {
        let ([control, at_low, at_high, filling], bytes) = input.split_first_chunk::<PREFIX_LEN>()?;
        let mut head = bytes.to_vec();
        if has(*control, 4) && head.len() >= 2 * FOOTER_LEN {
            let at = head.len() - FOOTER_LEN;
            head.copy_within(..FOOTER_LEN, at);
        }
        if has(*control, 3) && head.len() >= FOOTER_LEN {
            let header_at = head.get(16..24).map_or(0, |at| u64::from_be_bytes(at.try_into().expect("8 bytes")));
            if let Some(header) = usize::try_from(header_at).ok().and_then(|at| head.get_mut(at..)) {
                repair(header, DYNAMIC_HEADER_LEN, HEADER_CHECKSUM);
            }
        }
        if has(*control, 2) {
            repair(&mut head, FOOTER_LEN, FOOTER_CHECKSUM);
            let at = head.len().saturating_sub(FOOTER_LEN);
            repair(&mut head[at..], FOOTER_LEN, FOOTER_CHECKSUM);
        }
        let at = usize::from(u16::from_le_bytes([*at_low, *at_high])).min(head.len());
        let tail = head.split_off(at);
        let hint = match control & 3 {
            1 => FormatHint::Vhd,
            HINT_RAW => FormatHint::Raw,
            _ => FormatHint::Auto,
        };
        Some(Self {
            head,
            filling: if has(*control, 6) { 0xFF } else { 0 },
            filling_len: u64::from(*filling) * FILLING_UNIT as u64,
            tail,
            hint,
            slowly_too: has(*control, 5),
        })
    }

    /// How to open it.
    pub fn options(&self) -> SourceOptions {
        SourceOptions { format: self.hint, spill_dir: std::env::temp_dir(), ..SourceOptions::default() }
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        (self.head.len() + self.tail.len()) as u64 + self.filling_len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As a stream that hands out as much as is asked for.
    pub fn stream(&self) -> impl Read + Send + 'static {
        let filling = std::io::repeat(self.filling).take(self.filling_len);
        Cursor::new(self.head.clone()).chain(filling).chain(Cursor::new(self.tail.clone()))
    }

    /// As a stream that hands out little at a time, as a pipe does.
    pub fn slow_stream(&self) -> impl Read + Send + 'static {
        Slow(self.stream())
    }

    /// As a file in memory, zeros of the filling a hole.
    pub fn file(&self) -> File {
        let file = File::from(rustix::fs::memfd_create("image", MemfdFlags::CLOEXEC).expect("memory for a file"));
        file.set_len(self.len()).expect("memory for a file");
        file.write_all_at(&self.head, 0).expect("memory for a file");
        let head_end = self.head.len() as u64;
        if self.filling != 0 {
            for offset in (head_end..head_end + self.filling_len).step_by(FILLING_UNIT) {
                file.write_all_at(&[self.filling; FILLING_UNIT], offset).expect("memory for a file");
            }
        }
        file.write_all_at(&self.tail, head_end + self.filling_len).expect("memory for a file");
        file
    }
}

struct Slow<R>(R);

impl<R: Read> Read for Slow<R> {
    fn read(&mut self, dest: &mut [u8]) -> IoResult<usize> {
        let len = dest.len().min(7777);
        self.0.read(&mut dest[..len])
    }
}

/// A disk read to its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Disk {
    size: u64,
    format: DiskFormat,
    /// Of a delta, the blocks it holds, and which of their sectors when not all.
    held: BTreeMap<u64, Option<SectorMask>>,
    /// Hashes of the pages that are not all zeros, by their offset. Sectors that a delta does not hold count as zeros.
    pages: BTreeMap<u64, blake3::Hash>,
}

/// Reads a source of an image of `len` bytes to its end, holding it to what [`DiskSource`] promises. `junk` is what
/// buffers hold before they are filled.
pub fn drain(mut source: Box<dyn DiskSource>, len: u64, junk: u8) -> Result<Disk> {
    let delivery = source.delivery();
    let size_at_start = source.virtual_size();
    let mut delivered = BTreeSet::new();
    let mut held = BTreeMap::new();
    let mut pages = BTreeMap::new();
    let mut content_end = 0;
    let mut buf = BlockBuf::new();
    loop {
        buf.bytes_mut().fill(junk);
        let Some(index) = source.next_block(&mut buf)? else { break };
        if delivery == Delivery::Ascending {
            assert!(delivered.last().is_none_or(|last| *last < index.0), "block {index} came out of order");
        }
        assert!(delivered.insert(index.0), "block {index} came twice");
        // A stored block takes at least its bitmap and a sector; a raw one all of its bytes but for the last. Blocks of
        // a qcow2 image may be compressed, or the same.
        let bounded = source.format() != DiskFormat::Qcow2;
        assert!(!bounded || delivered.len() as u64 <= len / 1024 + 1, "more blocks than the image can hold");
        if let Some(size) = size_at_start {
            assert!(index.0 < block_count(size), "block {index} of a disk of {size} bytes");
        }
        if source.undelivered() == Undelivered::Base {
            held.insert(
                index.0,
                check_held(&*source, index.len_on_disk_bytes(size_at_start.expect("of a delta")), &mut buf),
            );
        } else {
            assert!(source.held_sectors().is_none(), "a whole disk holds all sectors");
        }
        for (page, offset) in buf.bytes().chunks(PAGE_LEN).zip((index.offset_bytes()..).step_by(PAGE_LEN)) {
            if is_zero(page) {
                continue;
            }
            let used = page.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
            content_end = content_end.max(offset + used);
            pages.insert(offset, blake3::hash(page));
        }
    }
    assert!(source.next_block(&mut buf)?.is_none(), "the end is not the end");
    let size = source.virtual_size().expect("the size is known at the end");
    assert!(size > 0, "a disk of zero bytes");
    assert!(size_at_start.is_none_or(|before| before == size), "the size changed");
    assert!(content_end <= size, "content ends at {content_end}, behind the disk's end at {size}");
    assert!(delivered.last().is_none_or(|last| *last < block_count(size)), "a block is behind the disk's end");
    Ok(Disk { size, format: source.format(), held, pages })
}

/// Which sectors of the block just delivered a delta holds, of which `len_on_disk` bytes are on the disk; the others are
/// made zeros.
fn check_held(source: &dyn DiskSource, len_on_disk: usize, buf: &mut BlockBuf) -> Option<SectorMask> {
    let mask = source.held_sectors()?.clone();
    let on_disk = len_on_disk.div_ceil(SECTOR_LEN);
    assert!((0..on_disk).any(|sector| mask.contains(sector)), "a block of which nothing is held");
    assert!((0..on_disk).any(|sector| !mask.contains(sector)), "a mask of a block of which all is held");
    assert!((on_disk..SECTORS_PER_BLOCK).all(|sector| mask.contains(sector)), "the base has nothing past the end");
    for (sector, bytes) in buf.bytes_mut().chunks_mut(SECTOR_LEN).enumerate() {
        if !mask.contains(sector) {
            bytes.fill(0);
        }
    }
    Some(mask)
}

/// Makes the checksum of the record at the beginning of `bytes` right, if there is a whole one.
pub fn repair(bytes: &mut [u8], len: usize, checksum_at: usize) {
    let Some(record) = bytes.get_mut(..len) else { return };
    record[checksum_at..checksum_at + 4].fill(0);
    let sum = !record.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    record[checksum_at..checksum_at + 4].copy_from_slice(&sum.to_be_bytes());
}

/// A dynamic or differencing VHD for a seed, blocks in stored order: all of it up to the first block, the blocks, the footer. Blocks up
/// to 4 KiB are all set and filled; larger ones have no bytes here but [`filling`](Vhd::filling) ones.
pub struct Vhd {
    /// Footer copy, header, BAT, small blocks, footer.
    pub bytes: Vec<u8>,
    /// Where the large blocks belong.
    pub filling_at: usize,
    /// How many units of filling they need.
    pub filling: u8,
}

impl Vhd {
    /// A disk of `size` bytes on which `blocks` are stored.
    pub fn dynamic(size: u64, block_size: usize, blocks: impl IntoIterator<Item = usize>) -> Self {
        Self::with_bitmaps(size, block_size, blocks, 0xFF)
    }

    /// The same over a parent, as tapdisk writes it; `bitmap` is each byte of the sector bitmaps of small blocks.
    pub fn differencing(size: u64, block_size: usize, blocks: impl IntoIterator<Item = usize>, bitmap: u8) -> Self {
        let mut vhd = Self::with_bitmaps(size, block_size, blocks, bitmap);
        let end = vhd.bytes.len() - FOOTER_LEN;
        for at in [0, end] {
            let footer = &mut vhd.bytes[at..at + FOOTER_LEN];
            footer[28..32].copy_from_slice(b"tap\0");
            footer[60..64].copy_from_slice(&4_u32.to_be_bytes());
            repair(footer, FOOTER_LEN, FOOTER_CHECKSUM);
        }
        let header = &mut vhd.bytes[FOOTER_LEN..FOOTER_LEN + DYNAMIC_HEADER_LEN];
        header[40..56].fill(9);
        repair(header, DYNAMIC_HEADER_LEN, HEADER_CHECKSUM);
        vhd
    }

    fn with_bitmaps(size: u64, block_size: usize, blocks: impl IntoIterator<Item = usize>, bitmap: u8) -> Self {
        let footer = Footer::new_dynamic(size, [7; 16], 1, FOOTER_LEN as u64);
        let entries = usize::try_from(size).expect("seeds are small").div_ceil(block_size);
        let mut header = DynamicHeader::new(1536, small_u32(entries)).encode().to_vec();
        header[32..36].copy_from_slice(&small_u32(block_size).to_be_bytes());
        repair(&mut header, DYNAMIC_HEADER_LEN, HEADER_CHECKSUM);
        let mut table = vec![u32::MAX; entries];
        let table_end = (1536 + entries * 4).next_multiple_of(512);
        let stored_len = bitmap_len(block_size) + block_size;
        let mut body = Vec::new();
        let mut body_len = 0;
        for index in blocks {
            table[index] = small_u32((table_end + body_len) / 512);
            body_len += stored_len;
            if block_size <= 4096 {
                body.resize(body.len() + bitmap_len(block_size), bitmap);
                body.resize(body_len, u8::try_from(index % 255).expect("below 255") + 1);
            }
        }
        let filling = (body_len - body.len()).div_ceil(FILLING_UNIT);
        let mut bytes = [footer.encode(), &header].concat();
        bytes.extend(table.iter().flat_map(|entry| entry.to_be_bytes()));
        bytes.resize(table_end, 0xFF);
        let filling_at = bytes.len();
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(footer.encode());
        Self { bytes, filling_at, filling: u8::try_from(filling).expect("seeds are small") }
    }

    fn input(&self, control: u8) -> Vec<u8> {
        input(control | REPAIR | ONES, self.filling_at, self.filling, &self.bytes)
    }
}

/// Seeds for both readers of images: raw, fixed, dynamic and differencing with blocks of several sizes, and an HTTP error.
pub fn seeds() -> Vec<Vec<u8>> {
    let small = Vhd::dynamic(5000, 512, [8, 2, 5]);
    let pages = Vhd::dynamic(3 << 20, 4096, [600, 1]);
    let whole = Vhd::dynamic((5 << 20) + 512, 2 << 20, [1, 0]);
    let large = Vhd::dynamic(13 << 20, 4 << 20, [3, 1]);
    // More blocks of 2 MiB begun before the first is complete than are held in memory.
    let scattered =
        Vhd::dynamic(40 << 20, 64 << 10, (0..2).flat_map(|part| (0..18).map(move |block| block * 32 + part)));
    let delta_sectors = Vhd::differencing(5000, 512, [8, 2, 5], 0x80);
    let delta_pages = Vhd::differencing(3 << 20, 4096, [600, 1, 602], 0b1010_0110);
    let delta_whole = Vhd::differencing((5 << 20) + 512, 2 << 20, [2, 0], 0xFF);
    let delta_large = Vhd::differencing(13 << 20, 4 << 20, [3, 1], 0xFF);
    let delta_scattered = Vhd::differencing(
        40 << 20,
        64 << 10,
        (0..2).flat_map(|part| (0..18).map(move |block| block * 32 + part)),
        0xFF,
    );
    let mut fixed = vec![9; 1024];
    let mut footer = Footer::new_dynamic(1024, [7; 16], 1, u64::MAX).encode().to_vec();
    footer[60..64].copy_from_slice(&2_u32.to_be_bytes());
    repair(&mut footer, FOOTER_LEN, FOOTER_CHECKSUM);
    fixed.extend_from_slice(&footer);
    let mut broken = small.bytes[..small.bytes.len() - FOOTER_LEN].to_vec();
    broken.extend_from_slice(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n");
    vec![
        small.input(0),
        pages.input(SLOWLY_TOO),
        whole.input(0),
        large.input(0),
        scattered.input(0),
        delta_sectors.input(SLOWLY_TOO),
        delta_pages.input(SLOWLY_TOO),
        delta_whole.input(0),
        delta_large.input(0),
        delta_scattered.input(0),
        // Of zeros, bitmaps too: nothing is set.
        input(REPAIR, delta_whole.filling_at, delta_whole.filling, &delta_whole.bytes),
        input(1 | REPAIR | SLOWLY_TOO, 0, 0, &fixed),
        input(0, 0, 0, &fixed[..1535]),
        input(HINT_RAW | SLOWLY_TOO, 700, 33, &[5; 1000]),
        input(0, 0, 0, &broken),
    ]
}

fn input(control: u8, filling_at: usize, filling: u8, image: &[u8]) -> Vec<u8> {
    let at = u16::try_from(filling_at).expect("seeds are small").to_le_bytes();
    [&[control, at[0], at[1], filling], image].concat()
}

fn small_u32(number: usize) -> u32 {
    u32::try_from(number).expect("seeds are small")
}
