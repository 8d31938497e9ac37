//! Disks whose content is made up as it is read, and deltas of them.

use repo_core::Result;
use repo_core::disk::{BlockBuf, Delivery, DiskFormat, DiskSource, Undelivered};
use repo_core::units::{BLOCK_LEN, BlockIndex, PAGE_LEN, PAGES_PER_BLOCK};

/// A disk of pages that are made from numbers. Equal numbers are equal pages.
pub(super) struct MadeUpDisk {
    virtual_size: u64,
    /// Blocks with content, ascending.
    blocks: Vec<u64>,
    /// The number of each of their pages.
    pages: Vec<u64>,
    /// Bytes of a page that do not compress.
    noise_len: usize,
    next: u64,
}

impl MadeUpDisk {
    /// A disk with content in `block_count` blocks spread evenly over it; `seed` tells disks apart.
    pub(super) fn new(virtual_size: u64, block_count: u64, noise_len: usize, seed: u64) -> Self {
        let stride = virtual_size / BLOCK_LEN as u64 / block_count;
        let page_count = block_count * PAGES_PER_BLOCK as u64;
        let first = seed << 40;
        Self {
            virtual_size,
            blocks: (0..block_count).map(|at| at * stride).collect(),
            pages: (first..first + page_count).collect(),
            noise_len,
            next: first + page_count,
        }
    }

    /// All of it.
    pub(super) fn full(&self) -> Box<dyn DiskSource> {
        self.source(0..self.blocks.len(), Undelivered::Zeros)
    }

    /// Makes what is written from now on differ from what disks of the same seed write.
    pub(super) fn tell_apart(&mut self, seed: u64) {
        self.next = (self.next & !(0xFFF << 48)) | (seed & 0xFFF) << 48;
    }

    /// Writes `page_count` neighbouring pages anew in each of `block_count` blocks, and gives these blocks as a delta.
    pub(super) fn change(&mut self, block_count: usize, page_count: usize) -> Box<dyn DiskSource> {
        let mut changed: Vec<usize> = Vec::new();
        while changed.len() < block_count {
            self.next += 1;
            let at = (mix(self.next) % self.blocks.len() as u64) as usize;
            if changed.contains(&at) {
                continue;
            }
            changed.push(at);
            let first_page = (mix(!self.next) % (PAGES_PER_BLOCK - page_count + 1) as u64) as usize;
            for page in &mut self.pages[at * PAGES_PER_BLOCK + first_page..][..page_count] {
                self.next += 1;
                *page = self.next;
            }
        }
        changed.sort_unstable();
        self.source(changed, Undelivered::Base)
    }

    fn source(&self, which: impl IntoIterator<Item = usize>, undelivered: Undelivered) -> Box<dyn DiskSource> {
        let numbers = |at: usize| self.pages[at * PAGES_PER_BLOCK..][..PAGES_PER_BLOCK].to_vec();
        let blocks: Vec<_> = which.into_iter().map(|at| (self.blocks[at], numbers(at))).collect();
        let (virtual_size, noise_len) = (self.virtual_size, self.noise_len);
        Box::new(MadeUpSource { virtual_size, undelivered, noise_len, blocks: blocks.into_iter() })
    }
}

struct MadeUpSource {
    virtual_size: u64,
    undelivered: Undelivered,
    noise_len: usize,
    blocks: std::vec::IntoIter<(u64, Vec<u64>)>,
}

impl DiskSource for MadeUpSource {
    fn virtual_size(&self) -> Option<u64> {
        Some(self.virtual_size)
    }

    fn format(&self) -> DiskFormat {
        match self.undelivered {
            Undelivered::Zeros => DiskFormat::VhdDynamic,
            Undelivered::Base => DiskFormat::VhdDifferencing,
        }
    }

    fn delivery(&self) -> Delivery {
        Delivery::Ascending
    }

    fn undelivered(&self) -> Undelivered {
        self.undelivered
    }

    fn next_block(&mut self, buf: &mut BlockBuf) -> Result<Option<BlockIndex>> {
        let Some((block, numbers)) = self.blocks.next() else { return Ok(None) };
        for (page, number) in buf.bytes_mut().chunks_exact_mut(PAGE_LEN).zip(numbers) {
            let (noise, rest) = page.split_at_mut(self.noise_len);
            let mut state = number;
            for word in noise.as_chunks_mut::<8>().0 {
                state = mix(state);
                *word = state.to_le_bytes();
            }
            rest.fill(number as u8 | 1);
        }
        Ok(Some(BlockIndex(block)))
    }
}

/// A well-spread function of a number (the finaliser of SplitMix64).
pub(super) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
