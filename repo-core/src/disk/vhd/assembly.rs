//! Blocks of 2 MiB put together from smaller ones that come in any order.
//!
//! Memory is bounded: a few blocks are open at a time. When one more is begun, the one that was idle longest moves to
//! an anonymous temporary file and stays there until it is complete, so each block moves at most once.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::sector_bitmap::Held;
use crate::disk::{BlockBuf, SECTORS_PER_BLOCK};
use crate::error::{Error, Result, ResultExt};
use crate::spill::unnamed_file;
use crate::units::{BLOCK_LEN, BlockIndex, SECTOR_LEN};

/// 2 MiB blocks in the making.
pub struct Assembly {
    part_len: usize,
    /// Parts still to come, for each block.
    missing: Vec<u16>,
    open: Vec<OpenBlock>,
    idle: Vec<BlockBuf>,
    now: u64,
    spill_dir: PathBuf,
    spill: Option<Spill>,
}

struct OpenBlock {
    block: usize,
    buf: BlockBuf,
    held: Held,
    last_touched: u64,
}

/// A block that is complete.
#[derive(Debug)]
pub(super) struct Assembled {
    /// Which.
    pub(super) index: BlockIndex,
    /// The sectors that its parts hold.
    pub(super) held: Held,
}

impl Assembly {
    /// Blocks of a disk of `block_count`, made of parts of `part_len` bytes (a power of two from 512, below 2 MiB);
    /// `parts` are the numbers of those that will come, each once.
    pub fn new(part_len: usize, block_count: usize, parts: impl Iterator<Item = u32>, spill_dir: &Path) -> Self {
        let mut missing = vec![0; block_count];
        for part in parts {
            // At most 4096 parts of 512 bytes make a block.
            missing[place(part, part_len).0] += 1;
        }
        let spill_dir = spill_dir.to_owned();
        Self { part_len, missing, open: Vec::new(), idle: Vec::new(), now: 0, spill_dir, spill: None }
    }

    /// Adds a part, of which the bitmap says which sectors it holds. If it was the last of its block, `buf` receives the
    /// block, with zeros for parts that never come.
    ///
    /// # Errors
    /// `Io` when the temporary file cannot be made, written or read.
    pub(super) fn add(
        &mut self,
        part: u32,
        bitmap: &[u8],
        content: &[u8],
        buf: &mut BlockBuf,
    ) -> Result<Option<Assembled>> {
        let (block, at) = place(part, self.part_len);
        let add_to = |held: &mut Held| held.add(at / SECTOR_LEN, bitmap, 0, content.len() / SECTOR_LEN);
        let index = BlockIndex(block as u64);
        self.missing[block] -= 1;
        let complete = self.missing[block] == 0;
        if let Some(spill) = &mut self.spill
            && spill.slots.contains_key(&block)
        {
            spill.write(block, at, content)?;
            let mut held = spill.held(block)?;
            add_to(&mut held);
            if complete {
                spill.take(block, buf)?;
                return Ok(Some(Assembled { index, held }));
            }
            spill.note_held(block, &held)?;
        } else {
            let open = self.open_block(block)?;
            self.open[open].buf.bytes_mut()[at..at + content.len()].copy_from_slice(content);
            add_to(&mut self.open[open].held);
            if complete {
                let mut done = self.open.swap_remove(open);
                std::mem::swap(&mut done.buf, buf);
                self.idle.push(done.buf);
                return Ok(Some(Assembled { index, held: done.held }));
            }
        }
        Ok(None)
    }

    /// The place of a block among the open ones, begun if need be.
    fn open_block(&mut self, block: usize) -> Result<usize> {
        self.now += 1;
        if let Some(at) = self.open.iter().position(|open| open.block == block) {
            self.open[at].last_touched = self.now;
            return Ok(at);
        }
        if self.open.len() == OPEN_MAX {
            self.spill_one()?;
        }
        let mut buf = self.idle.pop().unwrap_or_default();
        buf.bytes_mut().fill(0);
        self.open.push(OpenBlock { block, buf, held: Held::nothing(), last_touched: self.now });
        Ok(self.open.len() - 1)
    }

    fn spill_one(&mut self) -> Result<()> {
        let idlest = self.open.iter().enumerate().min_by_key(|(_, open)| open.last_touched);
        let Some((at, _)) = idlest else { return Ok(()) };
        let OpenBlock { block, buf, held, .. } = self.open.swap_remove(at);
        let spill = match &mut self.spill {
            Some(spill) => spill,
            none => none.insert(Spill::create(&self.spill_dir)?),
        };
        spill.put(block, &buf, &held)?;
        self.idle.push(buf);
        Ok(())
    }
}

/// The block a part belongs to, and where in it.
fn place(part: u32, part_len: usize) -> (usize, usize) {
    let part = part as usize;
    let per_block = BLOCK_LEN / part_len;
    (part / per_block, part % per_block * part_len)
}

/// Incomplete blocks in a file without a name. A slot is first filled whole and freed when its block is complete. It has
/// the block, then which of its sectors are held: memory would not do for that, a disk may have millions of blocks.
struct Spill {
    file: File,
    slots: HashMap<usize, u64>,
    free: Vec<u64>,
    slot_count: u64,
}

impl Spill {
    fn create(dir: &Path) -> Result<Self> {
        let file = unnamed_file(dir).context(|| {
            format!("cannot make a temporary file in {} for the scattered blocks of the VHD", dir.display())
        })?;
        Ok(Self { file, slots: HashMap::new(), free: Vec::new(), slot_count: 0 })
    }

    fn put(&mut self, block: usize, buf: &BlockBuf, held: &Held) -> Result<()> {
        let slot = self.free.pop().unwrap_or(self.slot_count);
        self.slot_count = self.slot_count.max(slot + 1);
        self.slots.insert(block, slot);
        self.write(block, 0, buf.bytes())?;
        self.note_held(block, held)
    }

    fn note_held(&self, block: usize, held: &Held) -> Result<()> {
        self.write(block, BLOCK_LEN, &held.encode())
    }

    fn held(&self, block: usize) -> Result<Held> {
        let mut bytes = [0; HELD_LEN];
        let read = self.file.read_exact_at(&mut bytes, self.slot_offset(block)? + BLOCK_LEN as u64);
        read.context(|| CANNOT_READ_BACK)?;
        Ok(Held::decode(&bytes))
    }

    fn write(&self, block: usize, at: usize, bytes: &[u8]) -> Result<()> {
        let offset = self.slot_offset(block)? + at as u64;
        self.file
            .write_all_at(bytes, offset)
            .context(|| "cannot write scattered blocks of the VHD to the temporary file")
    }

    fn take(&mut self, block: usize, buf: &mut BlockBuf) -> Result<()> {
        let offset = self.slot_offset(block)?;
        let read = self.file.read_exact_at(buf.bytes_mut(), offset);
        read.context(|| CANNOT_READ_BACK)?;
        self.free.extend(self.slots.remove(&block));
        Ok(())
    }

    fn slot_offset(&self, block: usize) -> Result<u64> {
        let slot = self.slots.get(&block).ok_or_else(|| Error::internal(format!("block {block} was not spilled")))?;
        Ok(slot * (BLOCK_LEN + HELD_LEN) as u64)
    }
}

/// How many blocks are put together in memory at a time: 32 MiB.
const OPEN_MAX: usize = 16;
/// Bytes of a slot that say which sectors are held.
const HELD_LEN: usize = SECTORS_PER_BLOCK / 8;
const CANNOT_READ_BACK: &str = "cannot read scattered blocks of the VHD back from the temporary file";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of twice as many blocks as are held in memory.
    const PARTS: u32 = OPEN_MAX as u32 * 2 * 4;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn parts_in_any_order_make_the_same_blocks(
            parts in prop::collection::hash_set(0..PARTS, 1..60).prop_map(Vec::from_iter).prop_shuffle(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let part_len = BLOCK_LEN / 4;
            let mut assembly = Assembly::new(part_len, OPEN_MAX * 2, parts.iter().copied(), dir.path());
            let mut buf = BlockBuf::new();
            let mut seen = Vec::new();
            for part in &parts {
                let content = vec![u8::try_from(*part).unwrap() + 1; part_len];
                // Of each part, the first and the last eight sectors are held.
                let mut bitmap = [0; BLOCK_LEN / 4 / SECTOR_LEN / 8];
                (bitmap[0], bitmap[127]) = (0xFF, 0xFF);
                if let Some(Assembled { index, held }) = assembly.add(*part, &bitmap, &content, &mut buf).unwrap() {
                    let mut expected = Held::nothing();
                    for at in (0..4).filter(|at| parts.contains(&(u32::try_from(index.0).unwrap() * 4 + at))) {
                        expected.add(at as usize * 1024, &bitmap, 0, 1024);
                    }
                    prop_assert_eq!(held, expected);
                    for (at, got) in (u32::try_from(index.0).unwrap() * 4..).zip(buf.bytes().chunks(part_len)) {
                        let expected = if parts.contains(&at) { u8::try_from(at).unwrap() + 1 } else { 0 };
                        prop_assert!(got == vec![expected; part_len], "part {}", at);
                    }
                    seen.push(index.0);
                    buf.bytes_mut().fill(0xEE);
                }
            }
            seen.sort_unstable();
            let mut expected: Vec<_> = parts.iter().map(|part| u64::from(part / 4)).collect();
            expected.sort_unstable();
            expected.dedup();
            prop_assert_eq!(seen, expected);
            prop_assert!(assembly.open.is_empty());
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the temporary file has a name");
        }
    }
}
