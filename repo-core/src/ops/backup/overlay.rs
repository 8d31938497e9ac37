//! Blocks of which a delta holds only some sectors, completed with those of the base.

use std::sync::Arc;

use crate::content::ContentReader;
use crate::disk::{BlockBuf, SectorMask};
use crate::error::Result;
use crate::manifest::Tree;
use crate::ops::backup::base::damaged;
use crate::ops::block_reader::BlockReader;
use crate::units::{BlockIndex, SECTOR_LEN};

/// The base under a delta.
pub(super) struct Overlay {
    content: Arc<ContentReader>,
    base: Tree,
    /// Made for the first block that needs it: a delta of whole blocks does without the data key.
    opened: Option<(BlockReader, BlockBuf)>,
}

impl Overlay {
    /// The disk `base`, as yet unread.
    pub(super) fn new(content: Arc<ContentReader>, base: Tree) -> Self {
        Self { content, base, opened: None }
    }

    /// Puts the base's sectors where `held` says that `content`, the block of that index, has none.
    ///
    /// # Errors
    /// `Forbidden` without the data key; `Corrupt`, `NotFound` when the base is damaged; `Unavailable`.
    pub(super) fn complete(&mut self, block: BlockIndex, held: &SectorMask, content: &mut BlockBuf) -> Result<()> {
        let (reader, base) = match &mut self.opened {
            Some(opened) => opened,
            none => {
                let reader = BlockReader::new(self.content.clone(), self.base).map_err(|error| {
                    error.context(
                        "the delta holds parts of blocks, the rest of which must be read from the base, and the key in \
                         use does not read content: import the disk in full",
                    )
                })?;
                none.insert((reader, BlockBuf::new()))
            }
        };
        reader.read(block, base).map_err(damaged)?;
        let sectors = content.bytes_mut().as_chunks_mut::<SECTOR_LEN>().0.iter_mut();
        for (at, (sector, below)) in sectors.zip(base.bytes().as_chunks::<SECTOR_LEN>().0).enumerate() {
            if !held.contains(at) {
                *sector = *below;
            }
        }
        Ok(())
    }
}
