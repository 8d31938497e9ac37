//! A dynamic or differencing VHD in a stream, read in the order in which its blocks are stored.
//!
//! The position only moves forward: the BAT, sorted, tells what comes where; gaps are read past, a batmap among them.
//! The source is complete when the footer at the very end was seen and agrees with the copy at the beginning.

use std::path::Path;

use super::assembly::{Assembled, Assembly};
use super::bat::{Bat, StoredBlock};
use super::dynamic_header::{DYNAMIC_HEADER_LEN, DynamicHeader};
use super::footer::{FOOTER_LEN, Footer};
use super::layout::Layout;
use super::sector_bitmap::{self, Held};
use super::trailer;
use crate::disk::forward::ForwardReader;
use crate::disk::{
    BlockBuf, Delivery, DiskFormat, DiskSource, ImageIds, SECTORS_PER_BLOCK, SectorMask, Undelivered, http_head,
};
use crate::error::{Error, Result, ResultExt};
use crate::units::{BLOCK_LEN, BlockIndex, block_count};

/// Reads the stored blocks as they come.
pub struct VhdStreamSource {
    reader: ForwardReader,
    copy: Footer,
    layout: Layout,
    order: Vec<StoredBlock>,
    /// The place in `order` of the block that comes next, or of which parts are still to come.
    next: usize,
    /// 2 MiB parts of that block already read, if blocks are larger.
    parts_done: usize,
    bitmap: Vec<u8>,
    small_blocks: Option<SmallBlocks>,
    /// Of a differencing disk, what the block just delivered holds when that is not all.
    held: Option<SectorMask>,
    complete: bool,
}

/// What blocks below 2 MiB need.
struct SmallBlocks {
    assembly: Assembly,
    content: Vec<u8>,
}

impl VhdStreamSource {
    /// Reads a VHD up to its first block. `head` are the first (up to) 512 bytes, already taken from `reader`.
    pub(in crate::disk) fn open(mut reader: ForwardReader, head: &[u8], spill_dir: &Path) -> Result<Self> {
        let copy = Footer::decode(head).context(|| "footer copy at byte 0")?;
        let header_offset = Layout::header_offset(&copy)?;
        reader.skip_to(header_offset, format_args!("the dynamic header"))?;
        let mut header = [0; DYNAMIC_HEADER_LEN];
        reader.fill(&mut header, format_args!("the dynamic header"))?;
        http_head::refuse(&header, header_offset)?;
        let header = DynamicHeader::decode(&header).context(|| format!("dynamic header at byte {header_offset}"))?;
        let layout = Layout::of(&copy, &header)?;
        reader.skip_to(layout.table_offset, format_args!("the BAT"))?;
        let mut table = vec![0; layout.used_entries * 4];
        reader.fill(&mut table, format_args!("the BAT"))?;
        http_head::refuse(&table, layout.table_offset)?;
        let order = Bat::decode(&table)?.stored_order(&layout, None)?;
        let small_blocks = (layout.block_size < BLOCK_LEN).then(|| {
            let blocks = usize::try_from(block_count(layout.virtual_size)).expect("fewer than BAT entries");
            let parts = order.iter().map(|stored| stored.index);
            let assembly = Assembly::new(layout.block_size, blocks, parts, spill_dir);
            SmallBlocks { assembly, content: vec![0; layout.block_size] }
        });
        let bitmap = vec![0; layout.bitmap_len];
        Ok(Self {
            reader,
            copy,
            layout,
            order,
            next: 0,
            parts_done: 0,
            bitmap,
            small_blocks,
            held: None,
            complete: false,
        })
    }

    /// The 2 MiB block in which a block of this VHD lies or begins.
    fn block_of(&self, stored: StoredBlock) -> BlockIndex {
        BlockIndex(u64::from(stored.index) * self.layout.block_size as u64 / BLOCK_LEN as u64)
    }

    /// Reads the bitmap of a block.
    fn begin(&mut self, stored: StoredBlock) -> Result<()> {
        let index = stored.index;
        self.reader.skip_to(stored.offset(), format_args!("the sector bitmap of block {index}"))?;
        self.reader.fill(&mut self.bitmap, format_args!("the sector bitmap of block {index}"))?;
        http_head::refuse(&self.bitmap, stored.offset())
    }

    /// The next 2 MiB of blocks that have at least as many.
    fn next_part(&mut self, buf: &mut BlockBuf) -> Result<Option<Assembled>> {
        let Some(stored) = self.order.get(self.next).copied() else { return Ok(None) };
        if self.parts_done == 0 {
            self.begin(stored)?;
        }
        let index = BlockIndex(self.block_of(stored).0 + self.parts_done as u64);
        self.reader.fill(buf.bytes_mut(), format_args!("the content of block {}", stored.index))?;
        let first_sector = self.parts_done * SECTORS_PER_BLOCK;
        sector_bitmap::clear_unset(&self.bitmap, first_sector, buf.bytes_mut());
        let mut held = Held::nothing();
        held.add(0, &self.bitmap, first_sector, SECTORS_PER_BLOCK);
        self.parts_done += 1;
        // The last block is stored whole; parts of it past the disk's end are just a gap.
        let parts = self.layout.block_size / BLOCK_LEN;
        if self.parts_done == parts || index.0 + 1 == block_count(self.layout.virtual_size) {
            self.parts_done = 0;
            self.next += 1;
        }
        Ok(Some(Assembled { index, held }))
    }

    /// The next 2 MiB that are complete, of blocks that have less.
    fn next_assembled(&mut self, buf: &mut BlockBuf) -> Result<Option<Assembled>> {
        while let Some(stored) = self.order.get(self.next).copied() {
            self.begin(stored)?;
            self.next += 1;
            let Some(SmallBlocks { assembly, content }) = &mut self.small_blocks else { break };
            self.reader.fill(content, format_args!("the content of block {}", stored.index))?;
            sector_bitmap::clear_unset(&self.bitmap, 0, content);
            if let Some(assembled) = assembly.add(stored.index, &self.bitmap, content, buf)? {
                return Ok(Some(assembled));
            }
        }
        Ok(None)
    }

    /// Reads to the end and checks the footer there.
    fn check_end(&mut self) -> Result<()> {
        let last_end = self.order.last().map_or(0, |last| last.offset() + self.layout.stored_len());
        let content_end = last_end.max(self.layout.table_end);
        self.reader.skip_to(content_end, format_args!("the end of the last block"))?;
        // Whatever follows is a gap, up to the last 512 bytes. Each turn keeps those and reads behind them.
        let mut window = vec![0; FOOTER_LEN + WINDOW_STEP];
        let mut kept = 0;
        let mut footer_at_once = false;
        loop {
            let start = self.reader.position();
            let filled = kept + self.reader.fill_some(&mut window[kept..])?;
            if start == content_end {
                http_head::refuse(&window[..filled], start)?;
                let first = &window[..filled.min(FOOTER_LEN)];
                footer_at_once = Footer::decode(first).is_ok_and(|footer| self.copy.difference(&footer).is_none());
            }
            let at_end = filled < window.len();
            window.copy_within(filled.saturating_sub(FOOTER_LEN)..filled, 0);
            kept = filled.min(FOOTER_LEN);
            if at_end {
                break;
            }
        }
        let end = self.reader.position();
        let tail = &window[..kept];
        if let Err(error) = trailer::check(&self.copy, tail, end) {
            let offset = end - kept as u64;
            let error = http_head::error_at_end(tail, offset).unwrap_or(error);
            let behind = content_end + FOOTER_LEN as u64;
            if footer_at_once && end > behind {
                let text = format!("{} bytes follow the footer at byte {content_end}: {error}", end - behind);
                return Err(Error::new(error.kind(), text));
            }
            return Err(error);
        }
        Ok(())
    }
}

impl DiskSource for VhdStreamSource {
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
        // Where each block is begun after the one before is complete, they are delivered in the order they are stored.
        if self.order.is_sorted_by_key(|stored| self.block_of(*stored)) {
            Delivery::Ascending
        } else {
            Delivery::AnyOrder
        }
    }

    fn next_block(&mut self, buf: &mut BlockBuf) -> Result<Option<BlockIndex>> {
        self.held = None;
        loop {
            let next = if self.small_blocks.is_some() { self.next_assembled(buf) } else { self.next_part(buf) }?;
            let Some(Assembled { index, held }) = next else { break };
            if self.layout.differencing {
                let Some(mask) = held.judge(index, self.layout.virtual_size) else { continue };
                self.held = mask;
            }
            buf.clear_past_end(index, self.layout.virtual_size);
            return Ok(Some(index));
        }
        if !self.complete {
            self.check_end()?;
            self.complete = true;
        }
        Ok(None)
    }
}

/// How much of the gap before the footer is read at once, in bytes.
const WINDOW_STEP: usize = 64 * 1024;
