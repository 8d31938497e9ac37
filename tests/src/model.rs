//! A disk as a test knows it: pages by number, nothing else.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use repo_core::disk::{
    self, BlockBuf, Delivery, DiskFormat, DiskSource, FormatHint, SectorMask, SourceOptions, Undelivered,
};
use repo_core::error::Result;
use repo_core::units::{BLOCK_LEN, BlockIndex, PAGE_LEN, PAGES_PER_BLOCK, SECTOR_LEN};

/// A sparse disk of pages. Page content is made from a number, so that equal numbers are equal pages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelDisk {
    /// Bytes; not necessarily a multiple of anything.
    pub virtual_size: u64,
    /// Pages that are not all zeros: page number → content number.
    pub pages: BTreeMap<u64, u32>,
}

impl ModelDisk {
    /// An empty disk.
    pub fn new(virtual_size: u64) -> Self {
        Self { virtual_size, pages: BTreeMap::new() }
    }

    /// A disk of pseudo-random pages, one in `every` of them set.
    pub fn scattered(virtual_size: u64, every: u64, seed: u64) -> Self {
        let pages = (0..virtual_size.div_ceil(PAGE_LEN as u64))
            .filter(|page| mix(page ^ (seed << 32)).is_multiple_of(every))
            .map(|page| (page, (mix(page.wrapping_mul(31).wrapping_add(seed)) >> 33) as u32))
            .collect();
        Self { virtual_size, pages }
    }

    /// The content of a page: 4 KiB, half of it compressible, never all zeros.
    pub fn page_content(number: u32) -> [u8; PAGE_LEN] {
        let mut page = [0_u8; PAGE_LEN];
        let mut state = u64::from(number) + 1;
        for word in page[..PAGE_LEN / 2].as_chunks_mut::<8>().0 {
            state = mix(state);
            *word = state.to_le_bytes();
        }
        page[PAGE_LEN / 2..].fill(number as u8 | 1);
        page
    }

    /// The bytes of the disk in `start..start + len`, zeros past its end.
    fn fill(&self, start_page: u64, buffer: &mut [u8]) {
        buffer.fill(0);
        let pages = (buffer.len() / PAGE_LEN) as u64;
        for (page, number) in self.pages.range(start_page..start_page + pages) {
            let at = (page - start_page) as usize * PAGE_LEN;
            let offset = page * PAGE_LEN as u64;
            let len = (self.virtual_size.saturating_sub(offset)).min(PAGE_LEN as u64) as usize;
            buffer[at..at + len].copy_from_slice(&Self::page_content(*number)[..len]);
        }
    }

    /// The whole disk in memory.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.virtual_size.next_multiple_of(PAGE_LEN as u64) as usize];
        self.fill(0, &mut bytes);
        bytes.truncate(self.virtual_size as usize);
        bytes
    }

    /// Writes the disk as a sparse raw image.
    pub fn write_raw(&self, path: &Path) {
        let file = std::fs::File::create(path).expect("create image");
        file.set_len(self.virtual_size).expect("set length");
        for (page, number) in &self.pages {
            let offset = page * PAGE_LEN as u64;
            let len = (self.virtual_size.saturating_sub(offset)).min(PAGE_LEN as u64) as usize;
            file.write_all_at(&Self::page_content(*number)[..len], offset).expect("write page");
        }
    }

    /// The disk as a source, read from memory by the library's own raw stream reader.
    pub fn stream(&self) -> Box<dyn DiskSource> {
        let options = SourceOptions { format: FormatHint::Raw, ..SourceOptions::default() };
        disk::open_stream(Cursor::new(self.to_bytes()), &options).expect("open stream")
    }

    /// The disk as a source that makes its blocks up, in ascending or in scrambled order, without its bytes in memory.
    pub fn source(&self, delivery: Delivery) -> Box<dyn DiskSource> {
        let mut blocks: Vec<u64> = self.pages.keys().map(|page| page / PAGES_PER_BLOCK as u64).collect();
        blocks.dedup();
        if delivery == Delivery::AnyOrder {
            blocks.sort_by_key(|block| mix(*block));
        }
        blocks.reverse();
        Box::new(ModelSource { disk: self.clone(), blocks, delivery })
    }
}

impl ModelDisk {
    /// What turns `base` into this disk, as a delta: whole blocks, or only the sectors of pages that differ with garbage
    /// between them.
    pub fn delta(&self, base: &Self, delivery: Delivery, whole_blocks: bool) -> Box<dyn DiskSource> {
        let mut changed: Vec<u64> = (self.pages.keys().chain(base.pages.keys()))
            .filter(|page| self.pages.get(page) != base.pages.get(page) || self.is_cut(**page) != base.is_cut(**page))
            .filter(|page| **page * (PAGE_LEN as u64) < self.virtual_size)
            .copied()
            .collect();
        changed.sort_unstable();
        changed.dedup();
        let mut blocks: Vec<u64> = changed.iter().map(|page| page / PAGES_PER_BLOCK as u64).collect();
        blocks.dedup();
        if delivery == Delivery::AnyOrder {
            blocks.sort_by_key(|block| mix(*block));
        }
        blocks.reverse();
        let disk = self.clone();
        Box::new(ModelDelta { disk, blocks, changed, whole_blocks, held: SectorMask::NONE, delivery })
    }

    /// How much of a page lies on the disk, in bytes.
    fn is_cut(&self, page: u64) -> u64 {
        self.virtual_size.saturating_sub(page * PAGE_LEN as u64).min(PAGE_LEN as u64)
    }
}

struct ModelDelta {
    disk: ModelDisk,
    /// Blocks to come, last first.
    blocks: Vec<u64>,
    /// Pages that differ, ascending.
    changed: Vec<u64>,
    whole_blocks: bool,
    held: SectorMask,
    delivery: Delivery,
}

impl DiskSource for ModelDelta {
    fn virtual_size(&self) -> Option<u64> {
        Some(self.disk.virtual_size)
    }

    fn format(&self) -> DiskFormat {
        DiskFormat::VhdDifferencing
    }

    fn delivery(&self) -> Delivery {
        self.delivery
    }

    fn undelivered(&self) -> Undelivered {
        Undelivered::Base
    }

    fn held_sectors(&self) -> Option<&SectorMask> {
        (!self.whole_blocks).then_some(&self.held)
    }

    fn next_block(&mut self, buf: &mut BlockBuf) -> Result<Option<BlockIndex>> {
        let Some(block) = self.blocks.pop() else { return Ok(None) };
        let first_page = block * PAGES_PER_BLOCK as u64;
        self.disk.fill(first_page, buf.bytes_mut());
        self.held = SectorMask::NONE;
        if !self.whole_blocks {
            for page in first_page..first_page + PAGES_PER_BLOCK as u64 {
                let at = (page - first_page) as usize;
                let sectors = PAGE_LEN / SECTOR_LEN;
                if self.changed.binary_search(&page).is_ok() {
                    (at * sectors..(at + 1) * sectors).for_each(|sector| self.held.insert(sector));
                } else if page * (PAGE_LEN as u64) < self.disk.virtual_size {
                    buf.bytes_mut()[at * PAGE_LEN..(at + 1) * PAGE_LEN].fill(0xA5);
                }
            }
        }
        Ok(Some(BlockIndex(block)))
    }
}

struct ModelSource {
    disk: ModelDisk,
    /// Blocks to come, last first.
    blocks: Vec<u64>,
    delivery: Delivery,
}

impl DiskSource for ModelSource {
    fn virtual_size(&self) -> Option<u64> {
        Some(self.disk.virtual_size)
    }

    fn format(&self) -> DiskFormat {
        DiskFormat::Raw
    }

    fn delivery(&self) -> Delivery {
        self.delivery
    }

    fn next_block(&mut self, buf: &mut BlockBuf) -> Result<Option<BlockIndex>> {
        let Some(block) = self.blocks.pop() else { return Ok(None) };
        self.disk.fill(block * PAGES_PER_BLOCK as u64, buf.bytes_mut());
        Ok(Some(BlockIndex(block)))
    }
}

/// A writer into shared memory, for restores to a stream.
#[derive(Clone, Default)]
pub struct SharedBuffer(pub std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Write for SharedBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no writer panicked").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A well-spread function of a number (the finaliser of SplitMix64).
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Pages in a block, as a page number.
pub const BLOCK_PAGES: u64 = (BLOCK_LEN / PAGE_LEN) as u64;
