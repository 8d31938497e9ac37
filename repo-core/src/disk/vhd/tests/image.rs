//! Dynamic VHDs built by hand, as odd as other programs may write them, beside the content they stand for.

use zerocopy::IntoBytes;

use crate::disk::vhd::checksum;
use crate::disk::vhd::dynamic_header::DynamicHeader;
use crate::disk::vhd::footer::{FOOTER_LEN, Footer};
use crate::disk::vhd::sector_bitmap::bitmap_len;

/// What to build. Everything that is not content is filled with junk, so that a reader that takes it for some is found.
pub(super) struct Image {
    pub(super) size: u64,
    pub(super) block_size: u32,
    pub(super) table_offset: u64,
    /// BAT entries beyond those that the size needs.
    pub(super) spare_entries: u32,
    /// In the order in which they are stored.
    pub(super) blocks: Vec<Stored>,
    pub(super) footer_len: usize,
}

/// One stored block.
pub(super) struct Stored {
    pub(super) index: u32,
    /// Sectors of junk before it.
    pub(super) gap: u64,
    /// Which sectors count; the others are junk in the file.
    pub(super) set: fn(usize) -> bool,
}

impl Stored {
    pub(super) fn whole(index: u32) -> Self {
        Self { index, gap: 0, set: |_| true }
    }
}

impl Image {
    pub(super) fn new(size: u64, block_size: u32, blocks: Vec<Stored>) -> Self {
        Self { size, block_size, table_offset: 1536, spare_entries: 0, blocks, footer_len: FOOTER_LEN }
    }

    fn needed(&self) -> u32 {
        u32::try_from(self.size.div_ceil(u64::from(self.block_size))).unwrap()
    }

    fn table_end(&self) -> usize {
        usize::try_from(self.table_offset).unwrap() + 4 * (self.needed() + self.spare_entries) as usize
    }

    /// Where the footer at the end begins.
    pub(super) fn footer_offset(&self) -> usize {
        self.build().0.len() - self.footer_len
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.build().0
    }

    /// Where the bitmap of the n-th stored block begins.
    pub(super) fn block_offset(&self, rank: usize) -> usize {
        self.build().1[rank]
    }

    fn build(&self) -> (Vec<u8>, Vec<usize>) {
        let footer = Footer::new_dynamic(self.size, [7; 16], 1, FOOTER_LEN as u64);
        let entries = self.needed() + self.spare_entries;
        let header = DynamicHeader::with_block_size(self.table_offset, entries, self.block_size);
        let mut bytes = [footer.encode(), header.encode()].concat();
        let mut bat = vec![u32::MAX; self.needed() as usize];
        // Spare entries mean nothing: they point into the header.
        bat.resize(entries as usize, 1);
        let mut body = Vec::new();
        let body_start = self.table_end().next_multiple_of(512);
        let mut offsets = Vec::new();
        for stored in &self.blocks {
            body.resize(body.len() + usize::try_from(stored.gap).unwrap() * 512, JUNK);
            let offset = body_start + body.len();
            offsets.push(offset);
            bat[stored.index as usize] = u32::try_from(offset / 512).unwrap();
            let sectors = self.block_size as usize / 512;
            let mut bitmap = vec![0; bitmap_len(self.block_size as usize)];
            for sector in (0..sectors).filter(|sector| (stored.set)(*sector)) {
                bitmap[sector / 8] |= 0x80 >> (sector % 8);
            }
            body.extend_from_slice(&bitmap);
            for sector in 0..sectors {
                let byte = if (stored.set)(sector) { content_byte(stored.index, sector) } else { JUNK };
                body.extend_from_slice(&[byte; 512]);
            }
        }
        bytes.resize(usize::try_from(self.table_offset).unwrap(), JUNK);
        bytes.extend(bat.iter().flat_map(|entry| entry.to_be_bytes()));
        bytes.resize(body_start, 0);
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(&footer.encode()[..self.footer_len]);
        (bytes, offsets)
    }

    /// What the image stands for.
    pub(super) fn content(&self) -> Vec<u8> {
        self.content_over(&[])
    }

    /// What the image stands for over that of a parent, as a differencing disk.
    pub(super) fn content_over(&self, parent: &[u8]) -> Vec<u8> {
        let size = usize::try_from(self.size).unwrap();
        let mut content = vec![0; self.needed() as usize * self.block_size as usize];
        content[..parent.len()].copy_from_slice(parent);
        for stored in &self.blocks {
            let block = &mut content[stored.index as usize * self.block_size as usize..];
            for (sector, bytes) in block.chunks_mut(512).take(self.block_size as usize / 512).enumerate() {
                if (stored.set)(sector) {
                    bytes.fill(content_byte(stored.index, sector));
                }
            }
        }
        content.truncate(size);
        content
    }
}

/// Writes into both footers of an image and makes their checksums right again.
pub(super) fn patch_footers(bytes: &mut [u8], at: usize, value: &[u8]) {
    let end = bytes.len() - FOOTER_LEN;
    for start in [0, end] {
        patch_record(&mut bytes[start..start + FOOTER_LEN], at, value, 64);
    }
}

/// Writes into the dynamic header at byte 512 and makes its checksum right again.
pub(super) fn patch_header(bytes: &mut [u8], at: usize, value: &[u8]) {
    patch_record(&mut bytes[512..1536], at, value, 36);
}

/// Writes into a record whose checksum stands at byte `sum_at`, and makes that right again.
pub(super) fn patch_record(record: &mut [u8], at: usize, value: &[u8], sum_at: usize) {
    record[at..at + value.len()].copy_from_slice(value);
    record[sum_at..sum_at + 4].fill(0);
    let sum = checksum(record, 0);
    record[sum_at..sum_at + 4].copy_from_slice(sum.to_be_bytes().as_bytes());
}

fn content_byte(index: u32, sector: usize) -> u8 {
    // Some are zeros: in a differencing disk they are content like any other.
    u8::try_from((index as usize * 31 + sector * 7) % 25 * 10).unwrap()
}

const JUNK: u8 = 0xAB;
