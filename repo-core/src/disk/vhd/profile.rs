//! The three shapes in which a VHD with blocks is written, and where the parts of each stand.
//!
//! | profile | creator | BAT at | between BAT and blocks | blocks |
//! |---|---|---:|---|---|
//! | portable | `win ` | 1536 | nothing | without gaps |
//! | differencing | `win ` | 2048 | a sector of a parent locator, if there is a name | without gaps |
//! | storage repository | `tap\0` | 1536 | batmap | content on 4 KiB boundaries |
//!
//! Differencing is the layout of XAPI's own exports (`docs/sources.md`, section "VHD"): between header and BAT lies one
//! sector that may hold a parent locator.

use super::batmap;
use super::dynamic_header::DYNAMIC_HEADER_LEN;
use super::footer::FOOTER_LEN;
use super::parent_locator::ParentName;
use crate::units::{BLOCK_LEN, SECTOR_LEN};

/// The shape of a new VHD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// What every reader takes, and every import.
    Portable,
    /// A file in the folder of a storage repository, as tapdisk writes them: other creators could never be resized
    /// there. Its size is rounded up to 2 MiB, as the storage manager does.
    StorageRepository,
    /// What differs from a parent, in whole blocks: importable over the parent's state, blocks of zeros included.
    Differencing(ParentDisk),
}

/// What a differencing VHD says of the disk it is to be laid over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentDisk {
    /// The unique id in the parent's footer.
    pub unique_id: [u8; 16],
    /// When the parent was made, in seconds since 1970.
    pub created_unix_s: u64,
    /// The parent's file name, when it will stand in the same folder.
    pub name: Option<ParentName>,
}

/// Where the parts of a VHD of one profile and one number of blocks stand, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Positions {
    pub(super) table: u64,
    /// Where the padded BAT ends and what stands between it and the blocks begins.
    pub(super) table_end: u64,
    /// The bitmap of the first block.
    pub(super) first_block: u64,
    /// From one block's bitmap to the next one's.
    pub(super) stride: u64,
}

impl Profile {
    /// What the virtual size is rounded up to, in bytes.
    pub(super) fn size_grain(&self) -> u64 {
        match self {
            Self::Portable | Self::Differencing(_) => SECTOR_LEN as u64,
            Self::StorageRepository => BLOCK_LEN as u64,
        }
    }

    pub(super) fn positions(&self, blocks: u64) -> Positions {
        let sector = SECTOR_LEN as u64;
        let header_end = (FOOTER_LEN + DYNAMIC_HEADER_LEN) as u64;
        let table = match self {
            Self::Portable | Self::StorageRepository => header_end,
            Self::Differencing(_) => header_end + sector,
        };
        let table_end = table + (blocks * 4).next_multiple_of(sector);
        let (first_block, stride) = match self {
            Self::Portable | Self::Differencing(ParentDisk { name: None, .. }) => (table_end, STORED_LEN),
            Self::Differencing(ParentDisk { name: Some(_), .. }) => (table_end + sector, STORED_LEN),
            Self::StorageRepository => {
                let content = (table_end + batmap::len_bytes(blocks) + sector).next_multiple_of(CONTENT_ALIGN);
                (content - sector, STORED_LEN.next_multiple_of(CONTENT_ALIGN))
            }
        };
        Positions { table, table_end, first_block, stride }
    }
}

impl Positions {
    /// The whole file's bytes when `present` blocks are stored.
    pub(super) fn len_bytes(&self, present: u64) -> u64 {
        // Behind the last block nothing is left free.
        let blocks = (present * self.stride).saturating_sub(self.stride - STORED_LEN);
        self.first_block + blocks + FOOTER_LEN as u64
    }
}

/// Bytes of a block in the file: bitmap and content.
const STORED_LEN: u64 = (super::plan::BITMAP_LEN + BLOCK_LEN) as u64;
/// Where tapdisk puts content, in bytes: it reads and writes past the page cache.
const CONTENT_ALIGN: u64 = 4096;
