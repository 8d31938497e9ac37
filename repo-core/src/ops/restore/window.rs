//! One window of a restore: its chunks sorted by where they are stored, then read, checked and written on all cores.

use std::ops::Range;

use parking_lot::Mutex;
use rayon::prelude::*;

use crate::chunk::{ChunkHasher, Run};
use crate::content::{ContentReader, entry_range};
use crate::disk::{BlockBuf, DiskSink, StreamSink};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ChunkId, EntryId, NodeId};
use crate::index::{Location, PackNumber};
use crate::manifest::walk::leaf_runs;
use crate::monitor::Monitor;
use crate::units::{BLOCK_LEN, BlockIndex};

/// Look-ups given to the index at once.
const LOOKUP_BATCH: usize = 4096;

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
    /// Ranges of the disk, in bytes, that could not be restored, and why.
    pub(super) damages: Vec<(Range<u64>, Error)>,
}

type OnDamage<'a> = dyn FnMut(Range<u64>, Error) -> Result<()> + 'a;

impl WindowPlan {
    /// Reads the leaves and finds their chunks.
    pub(super) fn new(
        content: &ContentReader,
        leaves: &[(BlockIndex, NodeId)],
        virtual_size: u64,
        on_damage: &mut OnDamage<'_>,
    ) -> Result<Self> {
        let mut wanted: Vec<(ChunkId, Range<u64>)> = Vec::new();
        for (block, leaf) in leaves {
            match leaf_runs(content, *leaf) {
                Ok(runs) => wanted.extend(runs.iter().map(|run| (run.id, disk_range(*block, run, virtual_size)))),
                Err(error) => {
                    let end = (block.offset_bytes() + BLOCK_LEN as u64).min(virtual_size);
                    on_damage(block.offset_bytes()..end, error)?;
                }
            }
        }
        let located: Vec<Vec<Option<Location>>> = wanted
            .par_chunks(LOOKUP_BATCH)
            .map(|batch| content.locate(&batch.iter().map(|(id, _)| EntryId::from(*id)).collect::<Vec<_>>()))
            .collect::<Result<_>>()?;
        let mut placed = Vec::with_capacity(wanted.len());
        for ((id, range), location) in wanted.into_iter().zip(located.into_iter().flatten()) {
            match location {
                Some(location) => placed.push(Placed { location, id, range }),
                None => on_damage(range, Error::corrupt(format!("chunk {} is in no pack", id.short())))?,
            }
        }
        placed.sort_unstable_by_key(|placed| (placed.location, placed.range.start));
        Ok(Self { placed })
    }

    /// Reads each frame once and writes what the window wants of it.
    pub(super) fn run(
        &self,
        content: &ContentReader,
        hasher: &ChunkHasher,
        sink: &dyn DiskSink,
        monitor: &dyn Monitor,
    ) -> WindowOutcome {
        let frames: Vec<&[Placed]> = self.placed.chunk_by(|a, b| frame_of(a) == frame_of(b)).collect();
        frames
            .par_iter()
            .map(|placed| {
                if monitor.is_cancelled() {
                    let error = Error::new(ErrorKind::Interrupted, "interrupted");
                    return WindowOutcome { written_bytes: 0, damages: vec![(whole(placed), error)] };
                }
                restore_frame(content, hasher, sink, placed)
            })
            .reduce(WindowOutcome::default, |mut all, one| {
                all.written_bytes += one.written_bytes;
                all.damages.extend(one.damages);
                all
            })
    }
}

fn frame_of(placed: &Placed) -> (PackNumber, u16) {
    (placed.location.pack, placed.location.frame)
}

fn whole(placed: &[Placed]) -> Range<u64> {
    placed.first().map_or(0, |first| first.range.start)..placed.last().map_or(0, |last| last.range.end)
}

fn disk_range(block: BlockIndex, run: &Run, virtual_size: u64) -> Range<u64> {
    let start = block.offset_bytes() + run.offset_bytes() as u64;
    let end = start + run.len_bytes() as u64;
    // Past its end a disk is padded with zeros for hashing; a run that begins there would be malformed.
    start.min(virtual_size)..end.min(virtual_size)
}

fn restore_frame(
    content: &ContentReader,
    hasher: &ChunkHasher,
    sink: &dyn DiskSink,
    placed: &[Placed],
) -> WindowOutcome {
    let mut outcome = WindowOutcome::default();
    let (pack, frame) = frame_of(&placed[0]);
    let decoded = match content.cached_frame(pack, frame) {
        Ok(decoded) => decoded,
        Err(error) => {
            let text = format!("{error:?}");
            let damages = placed.iter().map(|placed| (placed.range.clone(), Error::new(error.kind(), text.clone())));
            outcome.damages.extend(damages);
            return outcome;
        }
    };
    // One chunk may go to several places: it is checked once.
    for same in placed.chunk_by(|a, b| a.location == b.location) {
        match checked_chunk(content, hasher, &decoded, &same[0]) {
            Ok(chunk) => {
                for Placed { range, .. } in same {
                    let len = usize::try_from(range.end - range.start).expect("a chunk is at most 2 MiB");
                    match sink.write_at(range.start, &chunk[..len]) {
                        Ok(()) => outcome.written_bytes += len as u64,
                        Err(error) => {
                            outcome.damages.push((range.clone(), error));
                            return outcome;
                        }
                    }
                }
            }
            Err(error) => {
                let text = format!("{error:?}");
                let damages = same.iter().map(|placed| (placed.range.clone(), Error::new(error.kind(), text.clone())));
                outcome.damages.extend(damages);
            }
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

/// Blocks of one window in memory, for a target that takes them in order.
pub(super) struct WindowBuffer {
    blocks: Vec<(BlockIndex, Mutex<BlockBuf>)>,
    spare: Vec<BlockBuf>,
}

impl WindowBuffer {
    pub(super) fn new() -> Self {
        Self { blocks: Vec::new(), spare: Vec::new() }
    }

    /// Makes room for these blocks, ascending, all zeros.
    pub(super) fn reset(&mut self, blocks: impl Iterator<Item = BlockIndex>) {
        self.spare.extend(self.blocks.drain(..).map(|(_, buffer)| buffer.into_inner()));
        for block in blocks {
            let mut buffer = self.spare.pop().unwrap_or_default();
            buffer.bytes_mut().fill(0);
            self.blocks.push((block, Mutex::new(buffer)));
        }
    }

    pub(super) fn write_to(&self, sink: &mut dyn StreamSink) -> Result<()> {
        self.blocks.iter().try_for_each(|(block, buffer)| sink.write_block(*block, buffer.lock().bytes()))
    }
}

impl DiskSink for WindowBuffer {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let block = BlockIndex(offset / BLOCK_LEN as u64);
        let at = self
            .blocks
            .binary_search_by_key(&block, |(block, _)| *block)
            .map_err(|_| Error::internal("a write outside the window"))?;
        let start = usize::try_from(offset - block.offset_bytes()).expect("within a block");
        self.blocks[at].1.lock().bytes_mut()[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }
}
