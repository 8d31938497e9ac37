//! VHDs as XAPI and tapdisk write them, made byte by byte from the specification: no code of the library's.

use crate::model::mix;

/// Who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// An export of XAPI's: whole blocks ascending without gaps, a new id each time, the BAT at byte 2048.
    Xapi,
    /// A file of tapdisk's: single sectors, a batmap, content on page boundaries, ids that name each other.
    Tapdisk,
}

/// A VHD to be built. Sectors that are not set hold junk.
#[derive(Debug, Clone)]
pub struct Vhd {
    /// Who writes it.
    pub writer: Writer,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// The footer's id.
    pub id: [u8; 16],
    /// The id of the parent's footer: makes the disk a differencing one.
    pub parent: Option<[u8; 16]>,
    /// BAT entries beyond those the size needs.
    pub spare_entries: u32,
    /// Stored blocks in their order in the file.
    pub blocks: Vec<VhdBlock>,
}

/// A stored block.
#[derive(Debug, Clone)]
pub struct VhdBlock {
    /// Its number on the disk, in blocks of this VHD.
    pub index: u32,
    /// All its content.
    pub content: Vec<u8>,
    /// Which sectors are set.
    pub set: Vec<bool>,
}

impl Vhd {
    /// A VHD without blocks, of 2 MiB blocks.
    pub fn new(writer: Writer, size: u64, id: [u8; 16], parent: Option<[u8; 16]>) -> Self {
        Self { writer, size, block_size: 2 << 20, id, parent, spare_entries: 0, blocks: Vec::new() }
    }

    /// Stores the blocks of `disk` that have a sector for which `set` says so; XAPI's then whole, with all sectors set.
    pub fn store(&mut self, disk: &[u8], set: impl Fn(usize) -> bool) {
        let per_block = self.block_size as usize / SECTOR;
        for (index, content) in (0..).zip(disk.chunks(self.block_size as usize)) {
            let first = index as usize * per_block;
            let mut sectors: Vec<bool> = (0..per_block).map(|sector| set(first + sector)).collect();
            if !sectors.contains(&true) {
                continue;
            }
            if self.writer == Writer::Xapi {
                sectors.fill(true);
            }
            let mut content = content.to_vec();
            content.resize(self.block_size as usize, 0);
            self.blocks.push(VhdBlock { index, content, set: sectors });
        }
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let needed = self.size.div_ceil(u64::from(self.block_size)) as usize;
        let entries = needed + self.spare_entries as usize;
        let table_at = if self.writer == Writer::Xapi { 2048 } else { 1536 };
        let table_end = (table_at + entries * 4).next_multiple_of(SECTOR);
        let footer = self.footer();
        let mut file = [&footer[..], &self.header(table_at as u64, entries as u32)].concat();
        file.resize(table_end, 0);
        file[table_at..].fill(0xFF);
        if self.writer == Writer::Tapdisk {
            file.extend_from_slice(&self.batmap(table_end, entries));
        }
        for block in &self.blocks {
            let bitmap = self.bitmap(block);
            if self.writer == Writer::Tapdisk {
                // The content starts on a page.
                let start = (file.len() + bitmap.len()).next_multiple_of(4096) - bitmap.len();
                file.resize(start, JUNK);
            }
            let entry = table_at + 4 * block.index as usize;
            let sector = (file.len() / SECTOR) as u32;
            file[entry..entry + 4].copy_from_slice(&sector.to_be_bytes());
            file.extend_from_slice(&bitmap);
            for (content, set) in block.content.chunks(SECTOR).zip(&block.set) {
                file.extend_from_slice(if *set { content } else { &[JUNK; SECTOR] });
            }
        }
        file.extend_from_slice(&footer);
        file
    }

    fn footer(&self) -> [u8; 512] {
        let mut footer = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| footer[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"conectix");
        put(8, &2_u32.to_be_bytes());
        put(12, &0x0001_0000_u32.to_be_bytes());
        put(16, &512_u64.to_be_bytes());
        match self.writer {
            Writer::Xapi => put(28, b"caml\0\0\0\x01"),
            Writer::Tapdisk => put(28, b"tap\0\0\x01\0\x03"),
        }
        put(40, &self.size.to_be_bytes());
        put(48, &self.size.to_be_bytes());
        put(60, &(if self.parent.is_some() { 4_u32 } else { 3 }).to_be_bytes());
        put(68, &self.id);
        sum(&mut footer, 64);
        footer
    }

    fn header(&self, table_at: u64, entries: u32) -> [u8; 1024] {
        let mut header = [0; 1024];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"cxsparse");
        put(8, &u64::MAX.to_be_bytes());
        put(16, &table_at.to_be_bytes());
        put(24, &0x0001_0000_u32.to_be_bytes());
        put(28, &entries.to_be_bytes());
        put(32, &self.block_size.to_be_bytes());
        if let Some(parent) = self.parent {
            put(40, &parent);
            let name: Vec<u8> = "parent.vhd".encode_utf16().flat_map(u16::to_be_bytes).collect();
            put(64, &name);
        }
        sum(&mut header, 36);
        header
    }

    /// One sector of header, then a bit for each entry: 1 where every sector of the block is set.
    fn batmap(&self, at: usize, entries: usize) -> Vec<u8> {
        let mut map = vec![0; entries.div_ceil(8).next_multiple_of(SECTOR)];
        for block in self.blocks.iter().filter(|block| !block.set.contains(&false)) {
            map[block.index as usize / 8] |= 0x80 >> (block.index % 8);
        }
        let mut header = vec![0; SECTOR];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"tdbatmap");
        put(8, &((at + SECTOR) as u64).to_be_bytes());
        put(16, &((map.len() / SECTOR) as u32).to_be_bytes());
        put(20, &0x0001_0002_u32.to_be_bytes());
        put(24, &(!map.iter().map(|byte| u32::from(*byte)).sum::<u32>()).to_be_bytes());
        header.extend_from_slice(&map);
        header
    }

    fn bitmap(&self, block: &VhdBlock) -> Vec<u8> {
        let mut bitmap = vec![0; block.set.len().div_ceil(8).next_multiple_of(SECTOR)];
        for (sector, _) in block.set.iter().enumerate().filter(|(_, set)| **set) {
            bitmap[sector / 8] |= 0x80 >> (sector % 8);
        }
        bitmap
    }
}

/// An id for a number.
pub fn id(number: u64) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&mix(number).to_be_bytes());
    id[8..].copy_from_slice(&mix(!number).to_be_bytes());
    id
}

/// Puts a record's checksum at byte `at`.
fn sum(record: &mut [u8], at: usize) {
    let sum = !record.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    record[at..at + 4].copy_from_slice(&sum.to_be_bytes());
}

const SECTOR: usize = 512;
/// What no reader may take for content.
const JUNK: u8 = 0xAB;
