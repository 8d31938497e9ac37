//! The block allocation table.

use zerocopy::FromBytes;
use zerocopy::byteorder::{BE, U32};

use super::layout::Layout;
use crate::error::{Error, Result};
use crate::units::SECTOR_LEN;

/// For each block of the disk, the sector of the file where its bitmap begins, if it is stored at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bat {
    entries: Vec<u32>,
}

/// A block and where it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredBlock {
    /// The sector of the file where the block's bitmap begins.
    pub sector: u32,
    /// The block's number on the virtual disk, in blocks of this VHD.
    pub index: u32,
}

impl Bat {
    /// A table of absent blocks.
    pub fn new(len: usize) -> Self {
        Self { entries: vec![ABSENT; len] }
    }

    /// Decodes a table of 4-byte entries.
    ///
    /// # Errors
    /// `Invalid` when the bytes are no whole entries.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let entries = <[U32<BE>]>::ref_from_bytes(bytes)
            .map_err(|_| Error::invalid(format!("truncated: {} bytes are no whole entries of 4", bytes.len())))?;
        Ok(Self { entries: entries.iter().map(|entry| entry.get()).collect() })
    }

    /// The table's bytes, padded to a sector with 0xFF, as absent entries.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(SECTOR_LEN), 0xFF);
        bytes
    }

    /// The sector where a block is stored.
    pub fn get(&self, index: usize) -> Option<u32> {
        self.entries.get(index).copied().filter(|sector| *sector != ABSENT)
    }

    /// Stores a block at a sector.
    pub fn set(&mut self, index: usize, sector: u32) {
        self.entries[index] = sector;
    }

    /// The stored blocks by position, after checking that each lies behind the table and before `end` (if that is
    /// known), and none over another.
    ///
    /// # Errors
    /// `Invalid` naming the entry, its offset in the file, and what it collides with.
    pub fn stored_order(&self, layout: &Layout, end: Option<u64>) -> Result<Vec<StoredBlock>> {
        let present = self.entries.iter().filter(|sector| **sector != ABSENT).count();
        let mut order = Vec::with_capacity(present);
        for (index, sector) in (0..).zip(self.entries.iter().copied()) {
            if sector == ABSENT {
                continue;
            }
            let stored = StoredBlock { sector, index };
            if stored.offset() < layout.table_end {
                return Err(stored.refused(
                    layout,
                    format_args!("inside the header or the BAT, which end at byte {}", layout.table_end),
                ));
            }
            order.push(stored);
        }
        order.sort_unstable_by_key(|stored| (stored.sector, stored.index));
        for pair in order.windows(2) {
            let [first, second] = pair else { continue };
            if first.sector == second.sector {
                return Err(second.refused(layout, format_args!("the same as entry {}", first.index)));
            }
            let first_end = first.offset() + layout.stored_len();
            if second.offset() < first_end {
                let what = format_args!("inside block {}, which ends at byte {first_end}", first.index);
                return Err(second.refused(layout, what));
            }
        }
        // In this order, if one reaches past the end the last one does.
        if let (Some(last), Some(end)) = (order.last(), end)
            && last.offset() + layout.stored_len() > end
        {
            let what = format_args!(
                "so that its {} bytes reach past byte {end}, where the footer begins",
                layout.stored_len()
            );
            return Err(last.refused(layout, what));
        }
        Ok(order)
    }
}

impl StoredBlock {
    /// Where the block's bitmap begins, in bytes.
    pub fn offset(self) -> u64 {
        u64::from(self.sector) * SECTOR_LEN as u64
    }

    fn refused(self, layout: &Layout, why: std::fmt::Arguments<'_>) -> Error {
        let at = layout.table_offset + u64::from(self.index) * 4;
        let Self { sector, index } = self;
        Error::invalid(format!("BAT: entry {index} (at byte {at}) is sector {sector}, byte {}, {why}", self.offset()))
    }
}

/// An entry without a block.
const ABSENT: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LAYOUT: Layout = Layout {
        virtual_size: 3 * 4096,
        block_size: 4096,
        bitmap_len: 512,
        table_offset: 1536,
        table_end: 1548,
        differencing: false,
        ids: None,
        used_entries: 3,
    };

    fn order(entries: &[u32], end: Option<u64>) -> Result<Vec<(u32, u32)>> {
        let order = Bat { entries: entries.to_vec() }.stored_order(&LAYOUT, end)?;
        Ok(order.into_iter().map(|stored| (stored.sector, stored.index)).collect())
    }

    #[test]
    fn blocks_come_by_position() {
        assert_eq!(order(&[20, ABSENT, 4], Some(29 * 512)).unwrap(), [(4, 2), (20, 0)]);
        assert_eq!(order(&[4, 13, 22], Some(31 * 512)).unwrap(), [(4, 0), (13, 1), (22, 2)]);
        assert_eq!(order(&[ABSENT - 1], None).unwrap(), [(ABSENT - 1, 0)]);
    }

    #[test]
    fn colliding_entries_are_named_with_their_place() {
        let text = |entries: &[u32]| order(entries, Some(29 * 512)).unwrap_err().to_string();
        assert_eq!(
            text(&[3]),
            "BAT: entry 0 (at byte 1536) is sector 3, byte 1536, inside the header or the BAT, which end at byte 1548"
        );
        assert_eq!(
            text(&[0]),
            "BAT: entry 0 (at byte 1536) is sector 0, byte 0, inside the header or the BAT, which end at byte 1548"
        );
        assert_eq!(text(&[4, ABSENT, 4]), "BAT: entry 2 (at byte 1544) is sector 4, byte 2048, the same as entry 0");
        assert_eq!(
            text(&[12, 4]),
            "BAT: entry 0 (at byte 1536) is sector 12, byte 6144, inside block 1, which ends at byte 6656"
        );
        assert_eq!(
            text(&[21]),
            "BAT: entry 0 (at byte 1536) is sector 21, byte 10752, so that its 4608 bytes reach past byte 14848, \
             where the footer begins"
        );
    }

    proptest! {
        #[test]
        fn a_table_comes_back(entries in prop::collection::vec(any::<u32>(), 0..300)) {
            let bat = Bat { entries };
            let bytes = bat.encode();
            prop_assert_eq!(bytes.len() % SECTOR_LEN, 0);
            prop_assert!(bytes[bat.entries.len() * 4..].iter().all(|byte| *byte == 0xFF));
            prop_assert_eq!(Bat::decode(&bytes[..bat.entries.len() * 4]).unwrap(), bat);
        }
    }

    #[test]
    fn part_of_an_entry_is_refused() {
        assert_eq!(Bat::decode(&[0; 7]).unwrap_err().to_string(), "truncated: 7 bytes are no whole entries of 4");
    }
}
