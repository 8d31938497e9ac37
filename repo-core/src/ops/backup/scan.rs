//! The first half of a backup: blocks are read in one thread, cut and hashed on all cores, handed on in order.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::chunk::{Chunker, Run};
use crate::disk::{BlockBuf, DiskSource};
use crate::error::{Error, Result};
use crate::id::NodeId;
use crate::manifest::{NodeHasher, encode_leaf};
use crate::ops::backup::overlay::Overlay;
use crate::units::BlockIndex;

/// A block, cut and named.
pub(super) struct ScannedBlock {
    /// Which block.
    pub(super) block: BlockIndex,
    /// Its 2 MiB.
    pub(super) content: BlockBuf,
    /// Its chunks.
    pub(super) runs: Vec<Run>,
    /// The bytes of its manifest leaf.
    pub(super) leaf: Vec<u8>,
    /// The leaf's name; none when the block is all zeros.
    pub(super) leaf_id: NodeId,
}

/// A disk being scanned.
pub(super) struct Scan {
    /// Blocks in the order they were read, each still being worked on.
    blocks: Receiver<Receiver<ScannedBlock>>,
    /// Buffers to be used again.
    buffers: Sender<BlockBuf>,
    reader: Option<JoinHandle<Result<Box<dyn DiskSource>>>>,
    source: Option<Box<dyn DiskSource>>,
}

impl Scan {
    /// Starts reading. Blocks of which a delta holds only some sectors are completed from `overlay`.
    pub(super) fn start(
        mut source: Box<dyn DiskSource>,
        mut overlay: Option<Overlay>,
        chunker: Arc<Chunker>,
        hasher: NodeHasher,
    ) -> Self {
        let window = 2 * rayon::current_num_threads() + 2;
        let (block_sender, blocks) = bounded(window);
        let (buffers, free) = bounded::<BlockBuf>(window);
        let reader = std::thread::spawn(move || {
            loop {
                let mut content = free.try_recv().unwrap_or_default();
                let Some(block) = source.next_block(&mut content)? else { return Ok(source) };
                if let (Some(held), Some(overlay)) = (source.held_sectors(), &mut overlay) {
                    overlay.complete(block, held, &mut content)?;
                }
                let (sender, receiver) = bounded(1);
                let (chunker, hasher) = (chunker.clone(), hasher.clone());
                rayon::spawn(move || {
                    // The other end is gone only when the backup failed already.
                    let _ = sender.send(scan_block(block, content, &chunker, &hasher));
                });
                if block_sender.send(receiver).is_err() {
                    return Ok(source);
                }
            }
        });
        Self { blocks, buffers, reader: Some(reader), source: None }
    }

    /// The next block, or `None` when the source was proven complete.
    pub(super) fn next(&mut self) -> Result<Option<ScannedBlock>> {
        if let Ok(block) = self.blocks.recv() {
            return block.recv().map(Some).map_err(|_| Error::internal("a worker ended without an answer"));
        }
        let reader = self.reader.take().ok_or_else(|| Error::internal("the source was read past its end"))?;
        let source = reader.join().map_err(|_| Error::internal("the reading thread panicked"))??;
        self.source = Some(source);
        Ok(None)
    }

    /// Gives a block's buffer back.
    pub(super) fn recycle(&self, block: ScannedBlock) {
        // A full queue means that there are buffers enough.
        let _ = self.buffers.try_send(block.content);
    }

    /// The source after its last block, and the size of the disk.
    pub(super) fn finish(self) -> Result<(Box<dyn DiskSource>, u64)> {
        let source = self.source.ok_or_else(|| Error::internal("a source was finished before its end"))?;
        let size = source.virtual_size().ok_or_else(|| Error::internal("a source ended without a size"))?;
        Ok((source, size))
    }
}

fn scan_block(block: BlockIndex, content: BlockBuf, chunker: &Chunker, hasher: &NodeHasher) -> ScannedBlock {
    let runs = chunker.cut(content.bytes());
    if runs.is_empty() {
        return ScannedBlock { block, content, runs, leaf: Vec::new(), leaf_id: NodeId::NONE };
    }
    let leaf = encode_leaf(&runs);
    let leaf_id = hasher.id(&leaf);
    ScannedBlock { block, content, runs, leaf, leaf_id }
}
