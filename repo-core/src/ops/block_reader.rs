//! Single blocks of a stored disk, in any order: for what needs a little of a disk. A whole one is [restored](super::restore).

use std::sync::Arc;

use crate::chunk::{ChunkHasher, Run};
use crate::content::{ContentReader, entry_range};
use crate::disk::BlockBuf;
use crate::error::{Error, Result, ResultExt};
use crate::id::EntryId;
use crate::index::Location;
use crate::keys::Role;
use crate::manifest::Tree;
use crate::manifest::walk::{LeafCursor, leaf_runs};
use crate::units::BlockIndex;

/// Reads blocks of one disk of a snapshot. Frames are decoded once and kept for a while by the [`ContentReader`].
pub struct BlockReader {
    content: Arc<ContentReader>,
    hasher: ChunkHasher,
    tree: Tree,
}

impl BlockReader {
    /// A reader of the disk `tree`.
    ///
    /// # Errors
    /// `Forbidden` without the data key, or the identity key that names chunks.
    pub fn new(content: Arc<ContentReader>, tree: Tree) -> Result<Self> {
        let keys = &content.repository().keys;
        keys.get(Role::Data)?;
        let hasher = ChunkHasher::new(keys)?;
        Ok(Self { content, hasher, tree })
    }

    /// Fills `buf` with a block: zeros past the disk's end. Every chunk is checked against its name.
    ///
    /// # Errors
    /// `Corrupt` or `NotFound` when a node or a chunk is missing or damaged; `Unavailable`. What `buf` holds then is not to
    /// be used.
    pub fn read(&self, block: BlockIndex, buf: &mut BlockBuf) -> Result<()> {
        self.fill(block, buf).context(|| format!("cannot read block {block} of the stored disk"))
    }

    fn fill(&self, block: BlockIndex, buf: &mut BlockBuf) -> Result<()> {
        buf.bytes_mut().fill(0);
        // The nodes on the way are few, and in memory after the first block.
        let leaf = LeafCursor::new(self.tree, &*self.content).leaf(block)?;
        if leaf.is_none() {
            return Ok(());
        }
        for (location, run) in self.locate(leaf_runs(&*self.content, leaf)?)? {
            self.copy(location, &run, buf)?;
        }
        // The last page of a disk is stored whole, padded.
        buf.clear_past_end(block, self.tree.virtual_size);
        Ok(())
    }

    /// Where the runs' chunks are stored, in the order of packs and frames.
    fn locate(&self, runs: Vec<Run>) -> Result<Vec<(Location, Run)>> {
        let ids: Vec<EntryId> = runs.iter().map(|run| run.id.into()).collect();
        let found = self.content.locate_stored(&ids)?.into_iter().zip(runs);
        let mut located = found
            .map(|(location, run)| {
                let missing = || Error::corrupt(format!("chunk {} is in no pack", run.id.short()));
                Ok((location.ok_or_else(missing)?, run))
            })
            .collect::<Result<Vec<_>>>()?;
        located.sort_unstable_by_key(|(location, _)| *location);
        Ok(located)
    }

    fn copy(&self, location: Location, run: &Run, buf: &mut BlockBuf) -> Result<()> {
        let frame = self.content.cached_frame(location.pack, location.frame)?;
        let pack = self.content.pack(location.pack)?;
        let range = entry_range(&pack, location, run.id.into())?;
        let chunk = frame.get(range).ok_or_else(|| Error::internal("a frame is shorter than its directory says"))?;
        if chunk.len() != run.len_bytes() || self.hasher.id(chunk) != run.id {
            return Err(Error::corrupt(format!("chunk {} does not match its name", run.id.short())));
        }
        buf.bytes_mut()[run.range()].copy_from_slice(chunk);
        Ok(())
    }
}
