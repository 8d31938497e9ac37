//! One window of a restore: its chunks sorted by where they are stored, then read and checked on all cores into a
//! buffer, which is written in order and in large pieces.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use rayon::prelude::*;

use crate::chunk::{ChunkHasher, Run};
use crate::content::{ContentReader, entry_range};
use crate::disk::BlockBuf;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ChunkId, EntryId, NodeId};
use crate::index::{Location, PackNumber};
use crate::manifest::walk::leaf_runs;
use crate::monitor::Monitor;
use crate::ops::restore::Target;
use crate::units::{BLOCK_LEN, BlockIndex, PAGE_LEN, PAGES_PER_BLOCK};

/// Look-ups given to the index at once.
const LOOKUP_BATCH: usize = 4096;

/// Decoded frames kept from one window to the next, in bytes.
pub(in crate::ops) const KEPT_LEN_MAX: usize = 56 * 1024 * 1024;

/// Frames side by side that one request reads.
const STRETCH_FRAMES: usize = 4;

/// A frame: its pack, and its position there.
type FrameKey = (PackNumber, u16);

/// A chunk and one place where it goes.
struct Placed {
    location: Location,
    id: ChunkId,
    /// Where it goes on the disk, in bytes; cut at the disk's end.
    range: Range<u64>,
}

/// The chunks of a window, by where they are stored.
pub(super) struct WindowPlan {
    placed: Vec<Placed>,
}

/// What came of a window.
#[derive(Default)]
pub(super) struct WindowOutcome {
    pub(super) written_bytes: u64,
    pub(super) losses: Vec<Loss>,
}

/// Ranges of the disk, in bytes, that could not be restored for one reason.
pub(super) struct Loss {
    pub(super) ranges: Vec<Range<u64>>,
    pub(super) error: Error,
}

impl WindowOutcome {
    fn add(&mut self, other: Self) {
        self.written_bytes += other.written_bytes;
        self.losses.extend(other.losses);
    }
}

impl Loss {
    fn of(placed: &[Placed], error: Error) -> Self {
        Self { ranges: placed.iter().map(|placed| placed.range.clone()).collect(), error }
    }
}

pub(super) type OnLoss<'a> = dyn FnMut(Loss) -> Result<()> + 'a;

impl WindowPlan {
    /// Reads the leaves and finds their chunks.
    pub(super) fn new(
        content: &ContentReader,
        leaves: &[(BlockIndex, NodeId)],
        virtual_size: u64,
        on_loss: &mut OnLoss<'_>,
    ) -> Result<Self> {
        let mut wanted: Vec<(ChunkId, Range<u64>)> = Vec::new();
        for (block, leaf) in leaves {
            match leaf_runs(content, *leaf) {
                Ok(runs) => {
                    for run in &runs {
                        wanted.push((run.id, disk_range(*block, run, virtual_size)?));
                    }
                }
                Err(error) => {
                    let end = (block.offset_bytes() + BLOCK_LEN as u64).min(virtual_size);
                    let range = block.offset_bytes()..end;
                    on_loss(Loss { ranges: vec![range], error })?;
                }
            }
        }
        Self::locate(content, wanted, on_loss)
    }

    /// Finds chunks that go to ranges of the disk, each within one block.
    pub(super) fn locate(
        content: &ContentReader,
        wanted: Vec<(ChunkId, Range<u64>)>,
        on_loss: &mut OnLoss<'_>,
    ) -> Result<Self> {
        let located: Vec<Vec<Option<Location>>> = wanted
            .par_chunks(LOOKUP_BATCH)
            .map(|batch| content.locate_stored(&batch.iter().map(|(id, _)| EntryId::from(*id)).collect::<Vec<_>>()))
            .collect::<Result<_>>()?;
        let mut placed = Vec::with_capacity(wanted.len());
        for ((id, range), location) in wanted.into_iter().zip(located.into_iter().flatten()) {
            match location {
                Some(location) => placed.push(Placed { location, id, range }),
                None => {
                    let error = Error::corrupt(format!("chunk {} is in no pack", id.short()));
                    on_loss(Loss { ranges: vec![range], error })?;
                }
            }
        }
        placed.sort_unstable_by_key(|placed| (placed.location, placed.range.start));
        Ok(Self { placed })
    }

    /// Reads each frame once and puts what the window wants of it into the buffer.
    pub(super) fn run(
        &self,
        content: &ContentReader,
        keeper: &FrameKeeper,
        hasher: &ChunkHasher,
        buffer: &WindowBuffer,
        monitor: &dyn Monitor,
    ) -> WindowOutcome {
        let frames: Vec<&[Placed]> = self.placed.chunk_by(|a, b| frame_of(a) == frame_of(b)).collect();
        // In a folder a read costs next to nothing, and single frames share the cores better.
        let longest = if content.repository().store.root().is_some() { 1 } else { STRETCH_FRAMES };
        let side_by_side = frames.chunk_by(|a, b| follows(frame_of(&a[0]), frame_of(&b[0])));
        let stretches: Vec<&[&[Placed]]> = side_by_side.flat_map(|stretch| stretch.chunks(longest)).collect();
        let outcomes = content.repository().store.each(&stretches, |stretch| {
            let mut outcome = WindowOutcome::default();
            if monitor.is_cancelled() {
                let error = || Error::new(ErrorKind::Interrupted, "interrupted");
                outcome.losses.extend(stretch.iter().map(|placed| Loss::of(placed, error())));
                return outcome;
            }
            let keys: Vec<FrameKey> = stretch.iter().map(|placed| frame_of(&placed[0])).collect();
            for (placed, decoded) in stretch.iter().zip(keeper.frames(content, &keys)) {
                outcome.add(restore_frame(content, decoded, hasher, buffer, placed));
            }
            outcome
        });
        outcomes.into_iter().fold(WindowOutcome::default(), |mut all, one| {
            all.add(one);
            all
        })
    }
}

/// Frames that two windows running need. A frame holds what was new in one stretch of the disk in one backup, and where a
/// window ends, one of each backup is cut in two.
#[derive(Default)]
pub(super) struct FrameKeeper {
    /// What the window after this one needs.
    wanted: HashSet<FrameKey>,
    kept: Mutex<Kept>,
}

/// A window needs each of its frames once: what was kept for it goes as it is used, and makes room for the next one's.
#[derive(Default)]
struct Kept {
    for_this: HashMap<FrameKey, Arc<Vec<u8>>>,
    for_next: HashMap<FrameKey, Arc<Vec<u8>>>,
    /// Bytes in both.
    len: usize,
}

impl FrameKeeper {
    /// A window begins, and `next` comes after it.
    pub(super) fn turn(&mut self, next: Option<&WindowPlan>) {
        let kept = self.kept.get_mut();
        kept.for_this = std::mem::take(&mut kept.for_next);
        kept.len = kept.for_this.values().map(|frame| frame.len()).sum();
        self.wanted = next.map(|plan| plan.placed.iter().map(frame_of).collect()).unwrap_or_default();
    }

    fn frame(&self, content: &ContentReader, key: FrameKey) -> Result<Arc<Vec<u8>>> {
        // Not in the match: its lock would last through the reading.
        let kept = self.kept.lock().take(key);
        let frame = match kept {
            Some(frame) => frame,
            None => content.cached_frame(key.0, key.1)?,
        };
        self.keep_if_wanted(key, &frame);
        Ok(frame)
    }

    /// Frames that stand side by side, by one request when none of them was kept.
    fn frames(&self, content: &ContentReader, keys: &[FrameKey]) -> Vec<Result<Arc<Vec<u8>>>> {
        let one_by_one = || keys.iter().map(|key| self.frame(content, *key)).collect();
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return Vec::new() };
        if keys.len() == 1 || keys.iter().any(|key| self.kept.lock().for_this.contains_key(key)) {
            return one_by_one();
        }
        // What is wrong with one of them must not hit the others.
        let Ok(read) = content.read_frames(first.0, first.1..=last.1) else { return one_by_one() };
        let keep = |(key, frame): (&FrameKey, Result<Vec<u8>>)| {
            let frame = Arc::new(frame?);
            self.keep_if_wanted(*key, &frame);
            Ok(frame)
        };
        keys.iter().zip(read).map(keep).collect()
    }

    fn keep_if_wanted(&self, key: FrameKey, frame: &Arc<Vec<u8>>) {
        if self.wanted.contains(&key) {
            self.kept.lock().keep(key, frame);
        }
    }
}

impl Kept {
    fn take(&mut self, key: FrameKey) -> Option<Arc<Vec<u8>>> {
        let frame = self.for_this.remove(&key)?;
        self.len -= frame.len();
        Some(frame)
    }

    fn keep(&mut self, key: FrameKey, frame: &Arc<Vec<u8>>) {
        if self.len + frame.len() <= KEPT_LEN_MAX && self.for_next.insert(key, frame.clone()).is_none() {
            self.len += frame.len();
        }
    }
}

/// Whether `b` is the frame after `a`.
fn follows(a: FrameKey, b: FrameKey) -> bool {
    a.0 == b.0 && a.1.checked_add(1) == Some(b.1)
}

fn frame_of(placed: &Placed) -> FrameKey {
    (placed.location.pack, placed.location.frame)
}

/// Where a run goes on the disk, in bytes, cut at the disk's end: past it the last page is padding.
pub(super) fn disk_range(block: BlockIndex, run: &Run, virtual_size: u64) -> Result<Range<u64>> {
    let start = block.offset_bytes() + run.offset_bytes() as u64;
    let end = start + run.len_bytes() as u64;
    if end > virtual_size.next_multiple_of(PAGE_LEN as u64) {
        return Err(Error::corrupt(format!("the manifest has a chunk at byte {start}, past the disk's end")));
    }
    Ok(start..end.min(virtual_size))
}

fn restore_frame(
    content: &ContentReader,
    decoded: Result<Arc<Vec<u8>>>,
    hasher: &ChunkHasher,
    buffer: &WindowBuffer,
    placed: &[Placed],
) -> WindowOutcome {
    let mut outcome = WindowOutcome::default();
    let decoded = match decoded {
        Ok(decoded) => decoded,
        Err(error) => {
            outcome.losses.push(Loss::of(placed, error));
            return outcome;
        }
    };
    // One chunk may go to several places: it is checked once.
    for same in placed.chunk_by(|a, b| a.location == b.location) {
        match checked_chunk(content, hasher, &decoded, &same[0]) {
            Ok(chunk) => {
                for Placed { range, .. } in same {
                    let len = usize::try_from(range.end - range.start).expect("a chunk is at most 2 MiB");
                    buffer.fill(range.start, &chunk[..len]);
                    outcome.written_bytes += len as u64;
                }
            }
            Err(error) => outcome.losses.push(Loss::of(same, error)),
        }
    }
    outcome
}

fn checked_chunk<'a>(
    content: &ContentReader,
    hasher: &ChunkHasher,
    frame: &'a [u8],
    placed: &Placed,
) -> Result<&'a [u8]> {
    let pack = content.pack(placed.location.pack)?;
    let range = entry_range(&pack, placed.location, placed.id.into())?;
    let chunk = frame.get(range).ok_or_else(|| Error::internal("a frame is shorter than its directory says"))?;
    if (chunk.len() as u64) < placed.range.end - placed.range.start || hasher.id(chunk) != placed.id {
        return Err(Error::corrupt(format!("chunk {} does not match its name", placed.id.short())));
    }
    Ok(chunk)
}

/// Blocks of one window in memory.
pub(super) struct WindowBuffer {
    blocks: Vec<(BlockIndex, Mutex<FilledBlock>)>,
    spare: Vec<FilledBlock>,
}

#[derive(Default)]
struct FilledBlock {
    content: BlockBuf,
    /// Pages that hold content, one bit each.
    pages: [u64; PAGES_PER_BLOCK / 64],
}

/// Zeros between two runs of pages that are written rather than left out, in pages: a write call costs about as much.
const GAP_MAX: usize = 4;

impl WindowBuffer {
    pub(super) fn new() -> Self {
        Self { blocks: Vec::new(), spare: Vec::new() }
    }

    /// Makes room for these blocks, ascending, all zeros.
    pub(super) fn reset(&mut self, blocks: impl Iterator<Item = BlockIndex>) {
        self.spare.extend(self.blocks.drain(..).map(|(_, block)| block.into_inner()));
        for index in blocks {
            let block = match self.spare.pop() {
                None => FilledBlock::default(),
                Some(mut block) => {
                    block.clear();
                    block
                }
            };
            self.blocks.push((index, Mutex::new(block)));
        }
    }

    /// Puts content at `offset` bytes of the disk, whole pages but at the disk's end, within one block.
    fn fill(&self, offset: u64, bytes: &[u8]) {
        let index = BlockIndex(offset / BLOCK_LEN as u64);
        let at =
            self.blocks.binary_search_by_key(&index, |(index, _)| *index).expect("a window's chunks lie in its blocks");
        let start = usize::try_from(offset - index.offset_bytes()).expect("within a block");
        self.blocks[at].1.lock().fill(start, bytes);
    }

    /// Looks at the content of one of the blocks.
    pub(super) fn read<T>(&self, index: BlockIndex, look: impl FnOnce(&[u8]) -> T) -> T {
        let at = self.blocks.binary_search_by_key(&index, |(index, _)| *index).expect("one of the window's blocks");
        look(self.blocks[at].1.lock().content.bytes())
    }

    pub(super) fn write_to(&self, target: &mut Target, virtual_size: u64) -> Result<()> {
        for (index, block) in &self.blocks {
            let block = block.lock();
            match target {
                Target::Stream(sink) => sink.write_block(*index, block.content.bytes())?,
                Target::File(sink) => {
                    let end = index.len_on_disk_bytes(virtual_size);
                    for pages in block.extents() {
                        let bytes = pages.start * PAGE_LEN..(pages.end * PAGE_LEN).min(end);
                        let offset = index.offset_bytes() + bytes.start as u64;
                        sink.write_at(offset, &block.content.bytes()[bytes])?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl FilledBlock {
    fn clear(&mut self) {
        self.content.bytes_mut().fill(0);
        self.pages = [0; PAGES_PER_BLOCK / 64];
    }

    fn fill(&mut self, start: usize, bytes: &[u8]) {
        self.content.bytes_mut()[start..start + bytes.len()].copy_from_slice(bytes);
        for page in start / PAGE_LEN..(start + bytes.len()).div_ceil(PAGE_LEN) {
            self.pages[page / 64] |= 1 << (page % 64);
        }
    }

    /// Runs of pages with content, ascending, those that nearly touch made one.
    fn extents(&self) -> Vec<Range<usize>> {
        let mut extents: Vec<Range<usize>> = Vec::new();
        for page in (0..PAGES_PER_BLOCK).filter(|page| self.pages[page / 64] >> (page % 64) & 1 == 1) {
            match extents.last_mut() {
                Some(last) if page - last.end <= GAP_MAX => last.end = page + 1,
                _ => extents.push(page..page + 1),
            }
        }
        extents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_cover_the_filled_pages_and_pass_over_wide_gaps() {
        let mut block = FilledBlock::default();
        for page in [0, 1, 3, 100, 511] {
            block.fill(page * PAGE_LEN, &[1; PAGE_LEN]);
        }
        assert_eq!(block.extents(), [0..4, 100..101, 511..512]);
        block.clear();
        assert!(block.extents().is_empty());
    }
}
