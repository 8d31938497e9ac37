//! Restore onto a target that holds another state of the disk, older or damaged: only pages that differ are written.
//!
//! A window of blocks of the target is read, cut and hashed on all cores. A block whose leaf has the name that the manifest
//! has is equal. Of the others, only chunks are fetched that the target does not have at that place, and of these only pages
//! are written whose bytes differ. What is written twice is the same, so a run that was cut off is completed by another.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::window::{FrameKeeper, Loss, WindowBuffer, WindowPlan, disk_range};
use super::{Holes, RestoreOptions, RestorePlan};
use crate::chunk::{ChunkHasher, Chunker, Run};
use crate::disk::BlockBuf;
use crate::disk::raw::in_place::InPlaceFile;
use crate::error::Result;
use crate::id::{ChunkId, NodeId};
use crate::keys::Role;
use crate::manifest::diff::changed_pages;
use crate::manifest::walk::leaf_runs;
use crate::manifest::{NodeHasher, encode_leaf};
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::open::Session;
use crate::units::{BLOCK_LEN, BlockIndex, PAGE_LEN, block_count, is_zero};

/// Blocks compared at once: so many of the target and as many of what it should be are in memory.
const WINDOW: usize = 32;

/// How to restore in place.
#[derive(Debug, Clone, Copy, Default)]
pub struct InPlaceOptions {
    /// Go on past damage, leaving zeros where content differs and cannot be read.
    pub keep_going: bool,
    /// Only tell what would be written.
    pub dry_run: bool,
}

/// What an in-place restore did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InPlaceReport {
    /// Bytes of the target that were read; holes of a file are not.
    pub read_bytes: u64,
    /// Pages with content that differed and were written, in bytes.
    pub written_bytes: u64,
    /// Pages that had content and became zeros, in bytes.
    pub zeroed_bytes: u64,
    /// Ranges of the disk, in bytes, ascending, that could not be read and are zeros now. Empty unless
    /// [`InPlaceOptions::keep_going`].
    pub holes: Vec<Range<u64>>,
}

/// Makes a target the disk that `plan`, a whole one, describes.
///
/// # Errors
/// `Corrupt` naming the range when content is damaged, unless told to go on; `Io` when the target cannot be read or
/// written. The target is then part old, part new.
pub fn restore_in_place(
    session: &Session,
    plan: RestorePlan,
    target: &InPlaceFile,
    options: InPlaceOptions,
    monitor: &dyn Monitor,
) -> Result<InPlaceReport> {
    session.repository.keys.get(Role::Data)?;
    let keys = &session.repository.keys;
    let virtual_size = plan.tree.virtual_size;
    monitor.begin(if options.dry_run { "comparing" } else { "restoring in place" }, Some(virtual_size));
    if !options.dry_run {
        target.resize()?;
    }
    let mut restore = InPlace {
        session,
        target,
        chunker: Chunker::new(session.repository.config.chunk, keys)?,
        node_hasher: NodeHasher::new(keys)?,
        chunk_hasher: ChunkHasher::new(keys)?,
        options,
        monitor,
        virtual_size,
        buffers: (0..WINDOW).map(|_| BlockBuf::new()).collect(),
        wanted: WindowBuffer::new(),
        report: InPlaceReport::default(),
        holes: Holes(plan.holes),
    };
    let mut told = 0;
    let mut blocks = Blocks::new(&plan.leaves, target);
    loop {
        let window: Vec<Compared> = blocks.by_ref().take(WINDOW).collect::<Result<_>>()?;
        let Some(last) = window.last() else { break };
        let done = (last.block.0 + 1).min(block_count(virtual_size));
        restore.window(&window)?;
        monitor.advance((done - told) * BLOCK_LEN as u64);
        told = done;
    }
    if !options.dry_run {
        target.finish()?;
    }
    monitor.end();
    Ok(InPlaceReport { holes: restore.holes.merged(), ..restore.report })
}

/// A block that has content, as it is or as it should be.
#[derive(Clone, Copy)]
struct Compared {
    block: BlockIndex,
    /// The leaf it should have.
    leaf: NodeId,
    /// Whether the target may have anything there.
    has_data: bool,
}

/// The blocks that either side has, ascending.
struct Blocks<'a, D: Iterator<Item = Result<BlockIndex>>> {
    leaves: std::iter::Peekable<std::iter::Copied<std::slice::Iter<'a, (BlockIndex, NodeId)>>>,
    data: std::iter::Peekable<D>,
}

impl<'a> Blocks<'a, std::iter::Empty<Result<BlockIndex>>> {
    fn new(
        leaves: &'a [(BlockIndex, NodeId)],
        target: &'a InPlaceFile,
    ) -> Blocks<'a, impl Iterator<Item = Result<BlockIndex>> + 'a> {
        Blocks { leaves: leaves.iter().copied().peekable(), data: target.data_blocks().peekable() }
    }
}

impl<D: Iterator<Item = Result<BlockIndex>>> Iterator for Blocks<'_, D> {
    type Item = Result<Compared>;

    fn next(&mut self) -> Option<Self::Item> {
        let leaf = self.leaves.peek().map(|(block, _)| *block);
        if let Some(Err(error)) = self.data.next_if(Result::is_err) {
            return Some(Err(error));
        }
        let data = self.data.peek().and_then(|data| data.as_ref().ok()).copied();
        let block = leaf.into_iter().chain(data).min()?;
        let leaf = self.leaves.next_if(|(at, _)| *at == block).map_or(NodeId::NONE, |(_, id)| id);
        let has_data = self.data.next_if(|data| data.as_ref().is_ok_and(|at| *at == block)).is_some();
        Some(Ok(Compared { block, leaf, has_data }))
    }
}

/// A block that is not what it should be.
struct Differing<'a> {
    block: BlockIndex,
    leaf: NodeId,
    content: &'a [u8],
    runs: Vec<Run>,
    /// Pages that may differ.
    pages: Vec<Range<usize>>,
}

struct InPlace<'a> {
    session: &'a Session,
    target: &'a InPlaceFile,
    chunker: Chunker,
    node_hasher: NodeHasher,
    chunk_hasher: ChunkHasher,
    options: InPlaceOptions,
    monitor: &'a dyn Monitor,
    virtual_size: u64,
    buffers: Vec<BlockBuf>,
    wanted: WindowBuffer,
    report: InPlaceReport,
    holes: Holes,
}

impl InPlace<'_> {
    fn window(&mut self, window: &[Compared]) -> Result<()> {
        check_cancelled(self.monitor)?;
        let mut buffers = std::mem::take(&mut self.buffers);
        let read = window.iter().filter(|compared| compared.has_data);
        self.report.read_bytes += read.map(|at| at.block.len_on_disk_bytes(self.virtual_size) as u64).sum::<u64>();
        let differing: Vec<Option<Differing<'_>>> = window
            .par_iter()
            .zip(&mut buffers)
            .map(|(compared, buffer)| self.compare(*compared, buffer))
            .collect::<Result<_>>()?;
        let mut differing: Vec<_> = differing.into_iter().flatten().collect();
        self.fetch(&mut differing)?;
        let (written, zeroed) = (AtomicU64::new(0), AtomicU64::new(0));
        differing.par_iter().try_for_each(|block| {
            let (now_written, now_zeroed) = self.wanted.read(block.block, |wanted| self.change(block, wanted))?;
            written.fetch_add(now_written, Ordering::Relaxed);
            zeroed.fetch_add(now_zeroed, Ordering::Relaxed);
            Ok(())
        })?;
        drop(differing);
        self.buffers = buffers;
        self.report.written_bytes += written.into_inner();
        self.report.zeroed_bytes += zeroed.into_inner();
        Ok(())
    }

    /// Reads a block of the target and says what it has, unless that is what it should be.
    fn compare<'b>(&self, compared: Compared, buffer: &'b mut BlockBuf) -> Result<Option<Differing<'b>>> {
        let Compared { block, leaf, has_data } = compared;
        if has_data {
            self.target.read_block(block, buffer)?;
        } else {
            buffer.bytes_mut().fill(0);
        }
        let content = buffer.bytes();
        let runs = if has_data { self.chunker.cut(content) } else { Vec::new() };
        let found = if runs.is_empty() { NodeId::NONE } else { self.node_hasher.id(&encode_leaf(&runs)) };
        Ok((found != leaf).then_some(Differing { block, leaf, content, runs, pages: Vec::new() }))
    }

    /// Fills the window with the chunks that the target lacks.
    fn fetch(&mut self, differing: &mut [Differing<'_>]) -> Result<()> {
        self.wanted.reset(differing.iter().map(|differing| differing.block));
        let Self { session, monitor, virtual_size, holes, options, .. } = self;
        let options = RestoreOptions { keep_going: options.keep_going };
        let mut lose = |loss: Loss| options.lose(*monitor, holes, loss);
        let leaves: Vec<_> =
            differing.par_iter().map(|differing| leaf_runs(&*session.content, differing.leaf)).collect();
        let mut chunks: Vec<(ChunkId, Range<u64>)> = Vec::new();
        for (differing, leaf) in differing.iter_mut().zip(leaves) {
            let block = differing.block;
            let runs = match leaf {
                Ok(runs) => runs,
                Err(error) => {
                    let end = (block.offset_bytes() + BLOCK_LEN as u64).min(*virtual_size);
                    let range = block.offset_bytes()..end;
                    lose(Loss { ranges: vec![range], error })?;
                    Vec::new()
                }
            };
            differing.pages = changed_pages(&differing.runs, &runs);
            for run in runs.iter().filter(|run| touches(run, &differing.pages)) {
                chunks.push((run.id, disk_range(block, run, *virtual_size)?));
            }
        }
        let plan = WindowPlan::locate(&session.content, chunks, &mut lose)?;
        let outcome = plan.run(&session.content, &FrameKeeper::default(), &self.chunk_hasher, &self.wanted, *monitor);
        outcome.losses.into_iter().try_for_each(lose)
    }

    /// Writes the pages of a block that differ from what they should be. Gives the bytes written and the bytes zeroed.
    fn change(&self, differing: &Differing<'_>, wanted: &[u8]) -> Result<(u64, u64)> {
        let end = differing.block.len_on_disk_bytes(self.virtual_size);
        let mut counts = (0, 0);
        for (bytes, kind) in changes(&differing.pages, differing.content, wanted, end) {
            let start = differing.block.offset_bytes() + bytes.start as u64;
            let len = bytes.len() as u64;
            match kind {
                Change::Write => counts.0 += len,
                Change::Zero => counts.1 += len,
            }
            match kind {
                _ if self.options.dry_run => {}
                Change::Write => self.target.write_at(start, &wanted[bytes])?,
                Change::Zero => self.target.zero(start..start + len)?,
            }
        }
        Ok(counts)
    }
}

fn touches(run: &Run, pages: &[Range<usize>]) -> bool {
    let (first, end) = (usize::from(run.first_page), usize::from(run.first_page + run.page_count));
    pages.iter().any(|pages| pages.start < end && first < pages.end)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Write,
    Zero,
}

/// What is to be done to the first `end` bytes of a block, of whose pages only `pages` may differ: ranges of bytes, runs of
/// pages made one.
fn changes(pages: &[Range<usize>], found: &[u8], wanted: &[u8], end: usize) -> Vec<(Range<usize>, Change)> {
    let mut changes: Vec<(Range<usize>, Change)> = Vec::new();
    for page in pages.iter().cloned().flatten() {
        let bytes = page * PAGE_LEN..((page + 1) * PAGE_LEN).min(end);
        if bytes.start >= end || found[bytes.clone()] == wanted[bytes.clone()] {
            continue;
        }
        let kind = if is_zero(&wanted[bytes.clone()]) { Change::Zero } else { Change::Write };
        match changes.last_mut() {
            Some((last, last_kind)) if last.end == bytes.start && *last_kind == kind => last.end = bytes.end,
            _ => changes.push((bytes, kind)),
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_differ_are_changed_and_runs_of_them_at_once() {
        let (mut found, mut wanted) = (vec![1; 8 * PAGE_LEN], vec![1; 8 * PAGE_LEN]);
        wanted[2 * PAGE_LEN] = 2;
        wanted[4 * PAGE_LEN - 1] = 2;
        wanted[4 * PAGE_LEN..6 * PAGE_LEN].fill(0);
        found[5 * PAGE_LEN..6 * PAGE_LEN].fill(0);
        wanted[7 * PAGE_LEN] = 9;
        let end = 7 * PAGE_LEN + 100;
        let expected = vec![
            (2 * PAGE_LEN..4 * PAGE_LEN, Change::Write),
            (4 * PAGE_LEN..5 * PAGE_LEN, Change::Zero),
            (7 * PAGE_LEN..end, Change::Write),
        ];
        assert_eq!(changes(&[0..6, 7..8], &found, &wanted, end), expected);
        // Pages that are said to be equal are not looked at.
        assert_eq!(changes(&[0..1, 1..2], &found, &wanted, end), []);
    }
}
