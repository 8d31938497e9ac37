//! A disk of a snapshot as the source of a backup elsewhere: all of it, or the blocks that differ from another snapshot.
//!
//! It is restored on all cores in a thread of its own, a few blocks ahead of who reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::disk::{BlockBuf, Delivery, DiskFormat, DiskSource, ImageIds, StreamSink, Undelivered};
use crate::error::{Error, Result, ResultExt};
use crate::manifest::Tree;
use crate::monitor::Silent;
use crate::ops::open::Session;
use crate::ops::restore::{RestoreOptions, RestorePlan, Target, restore};
use crate::snapshot::Disk;
use crate::units::BlockIndex;

/// Blocks that wait to be read.
const QUEUE: usize = 4;

/// Whether what ended a backup was damage of what it read.
#[derive(Clone, Default)]
pub(super) struct Damaged(Arc<AtomicBool>);

impl Damaged {
    pub(super) fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub(super) struct StoredDisk {
    session: Arc<Session>,
    tree: Tree,
    base: Option<Tree>,
    format: DiskFormat,
    source_id: Option<[u8; 16]>,
    damaged: Damaged,
    state: State,
}

enum State {
    Waiting,
    Reading(Reading),
    Done,
}

struct Reading {
    blocks: Receiver<(BlockIndex, BlockBuf)>,
    free: Sender<BlockBuf>,
    thread: JoinHandle<Result<()>>,
}

impl StoredDisk {
    /// The disk; only what differs from `base`, when there is one.
    pub(super) fn new(session: Arc<Session>, disk: &Disk, base: Option<Tree>, damaged: Damaged) -> Self {
        let formats = [
            DiskFormat::Raw,
            DiskFormat::VhdFixed,
            DiskFormat::VhdDynamic,
            DiskFormat::VhdDifferencing,
            DiskFormat::Qcow2,
        ];
        let format = formats.into_iter().find(|format| format.name() == disk.source_format).unwrap_or(DiskFormat::Raw);
        Self { session, tree: disk.tree, base, format, source_id: disk.source_id, damaged, state: State::Waiting }
    }

    fn start(&self) -> Reading {
        let (sender, blocks) = bounded(QUEUE);
        let (free, spare) = bounded(QUEUE + 1);
        let (session, tree, base) = (self.session.clone(), self.tree, self.base);
        let thread = std::thread::spawn(move || {
            let plan = match base {
                Some(base) => RestorePlan::delta(&session, &base, tree, &Silent)?,
                None => RestorePlan::new(&session, tree, RestoreOptions::default(), &Silent)?,
            };
            let sink = Relay { blocks: sender, spare };
            let target = Target::Stream(Box::new(sink));
            restore(&session, plan, target, RestoreOptions::default(), &Silent).map(drop)
        });
        Reading { blocks, free, thread }
    }

    fn end(&mut self) -> Result<()> {
        let State::Reading(Reading { blocks, free, thread }) = std::mem::replace(&mut self.state, State::Done) else {
            return Ok(());
        };
        drop((blocks, free));
        let ended = thread.join().map_err(|_| Error::internal("the reading thread panicked"))?;
        if ended.as_ref().is_err_and(Error::is_loss) {
            self.damaged.0.store(true, Ordering::Relaxed);
        }
        ended.context(|| "cannot read the disk that is to be synced")
    }
}

impl DiskSource for StoredDisk {
    fn virtual_size(&self) -> Option<u64> {
        Some(self.tree.virtual_size)
    }

    fn format(&self) -> DiskFormat {
        self.format
    }

    fn delivery(&self) -> Delivery {
        Delivery::Ascending
    }

    fn undelivered(&self) -> Undelivered {
        if self.base.is_some() { Undelivered::Base } else { Undelivered::Zeros }
    }

    fn ids(&self) -> Option<ImageIds> {
        self.source_id.map(|own| ImageIds { own, parent: None })
    }

    fn next_block(&mut self, buf: &mut BlockBuf) -> Result<Option<BlockIndex>> {
        if matches!(self.state, State::Waiting) {
            self.state = State::Reading(self.start());
        }
        let State::Reading(reading) = &self.state else { return Ok(None) };
        match reading.blocks.recv() {
            Ok((index, mut block)) => {
                std::mem::swap(buf, &mut block);
                // The other end is gone when the last block was read.
                let _ = reading.free.try_send(block);
                Ok(Some(index))
            }
            Err(_) => self.end().map(|()| None),
        }
    }
}

impl Drop for StoredDisk {
    fn drop(&mut self) {
        // What went wrong is of no interest to who reads no further.
        let _ = self.end();
    }
}

/// Hands blocks over to who reads.
struct Relay {
    blocks: Sender<(BlockIndex, BlockBuf)>,
    spare: Receiver<BlockBuf>,
}

impl StreamSink for Relay {
    fn write_block(&mut self, index: BlockIndex, content: &[u8]) -> Result<()> {
        let mut block = self.spare.try_recv().unwrap_or_default();
        block.bytes_mut().copy_from_slice(content);
        self.blocks.send((index, block)).map_err(|_| Error::internal("nobody reads the disk any more"))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
