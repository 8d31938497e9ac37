//! Every position of a new VHD with blocks, known before its first byte is written.
//!
//! Common to all profiles: 2 MiB blocks in ascending order, exactly the BAT entries that the size needs, all sectors
//! marked present, nothing behind the footer.

use super::bat::Bat;
use super::batmap;
use super::dynamic_header::DynamicHeader;
use super::footer::{FOOTER_LEN, Footer};
use super::profile::{ParentDisk, Positions, Profile};
use crate::disk::PresentBlocks;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockIndex, SECTOR_LEN, block_count};

/// The largest disk a VHD is written for, in bytes: the limit of the storage manager and of qemu.
pub const VHD_SIZE_MAX: u64 = 2040 << 30;
/// Bytes of a 2 MiB block's sector bitmap.
pub const BITMAP_LEN: usize = SECTOR_LEN;

/// What a new VHD of any profile says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VhdParams {
    /// The disk's size in bytes, 1 to [`VHD_SIZE_MAX`]. A VHD has whole sectors: it is rounded up to 512.
    pub virtual_size: u64,
    /// The footer's unique id: random, not all zeros.
    pub unique_id: [u8; 16],
    /// The time of creation in seconds since 1970. Not in the future, or `vhd-util check` rejects the file; what lies
    /// before 2000 or after 2136 becomes the nearest that VHD can say.
    pub created_unix_s: u64,
}

/// The bytes a VHD takes, known without its content: the Content-Length of an import.
///
/// # Errors
/// `Unsupported` for a disk of zero bytes or above [`VHD_SIZE_MAX`], `Internal` for more blocks than the disk has.
pub fn stream_len_bytes(virtual_size: u64, present_count: u64, profile: &Profile) -> Result<u64> {
    check_size(virtual_size)?;
    let blocks = block_count(virtual_size);
    if present_count > blocks {
        return Err(Error::internal(format!("{present_count} blocks present of a disk of {blocks}")));
    }
    Ok(profile.positions(blocks).len_bytes(present_count))
}

/// The footer of a fixed VHD; its size is the disk's, rounded up to 512.
pub(super) fn fixed_footer(params: &VhdParams) -> Result<Footer> {
    params.check()?;
    Ok(params.footer(SECTOR_LEN as u64).into_fixed())
}

/// A new VHD without the content of its blocks.
pub(super) struct Plan {
    virtual_size: u64,
    /// Everything before the first block: footer copy, dynamic header, BAT, and what the profile adds.
    head: Vec<u8>,
    bat: Bat,
    end: u64,
}

impl Plan {
    /// # Errors
    /// As [`stream_len_bytes`], and `Invalid` for a unique id of zeros.
    pub(super) fn new(params: &VhdParams, profile: &Profile, present: &PresentBlocks) -> Result<Self> {
        params.check()?;
        let end = stream_len_bytes(params.virtual_size, present.count(), profile)?;
        let blocks = block_count(params.virtual_size);
        if present.block_count() != blocks {
            let text = format!("present blocks of a disk of {} blocks for one of {blocks}", present.block_count());
            return Err(Error::internal(text));
        }
        let positions = profile.positions(blocks);
        let bat = place_blocks(&positions, present)?;
        let footer = params.footer(profile.size_grain());
        let entries = u32::try_from(blocks).expect("bounded by VHD_SIZE_MAX");
        let header = DynamicHeader::new(positions.table, entries);
        let mut head = match profile {
            Profile::Portable => [footer.encode(), header.encode(), &bat.encode()].concat(),
            Profile::StorageRepository => {
                let batmap = batmap::encode(positions.table_end, present);
                [footer.into_tapdisk().encode(), header.encode(), &bat.encode(), &batmap].concat()
            }
            Profile::Differencing(parent) => {
                differencing_head(&footer.into_differencing(), header, &bat, parent, &positions)
            }
        };
        head.resize(usize::try_from(positions.first_block).expect("a head has at most 5 MiB"), 0);
        Ok(Self { virtual_size: params.virtual_size, head, bat, end })
    }

    pub(super) fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// All that stands before the first block.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// The footer: the same 512 bytes at the beginning and the end.
    pub(super) fn footer(&self) -> &[u8] {
        &self.head[..FOOTER_LEN]
    }

    /// The whole file's bytes.
    pub(super) fn len_bytes(&self) -> u64 {
        self.end
    }

    /// Where the bitmap of a present block begins; its content follows.
    pub(super) fn block_offset(&self, index: BlockIndex) -> Option<u64> {
        let sector = usize::try_from(index.0).ok().and_then(|index| self.bat.get(index))?;
        Some(u64::from(sector) * SECTOR_LEN as u64)
    }
}

fn check_size(virtual_size: u64) -> Result<()> {
    let text = match virtual_size {
        0 => "a VHD cannot hold a disk of zero bytes".to_owned(),
        1..=VHD_SIZE_MAX => return Ok(()),
        _ => {
            format!(
                "a VHD holds at most 2040 GiB ({VHD_SIZE_MAX} bytes), the disk has {virtual_size}: write it raw instead"
            )
        }
    };
    Err(Error::new(ErrorKind::Unsupported, text))
}

impl VhdParams {
    fn check(&self) -> Result<()> {
        check_size(self.virtual_size)?;
        if self.unique_id == [0; 16] {
            return Err(Error::invalid("the unique id of a VHD must not be all zeros"));
        }
        Ok(())
    }

    /// The footer of a dynamic disk whose size is rounded up to a multiple of `grain`.
    fn footer(&self, grain: u64) -> Footer {
        let size = self.virtual_size.next_multiple_of(grain);
        Footer::new_dynamic(size, self.unique_id, timestamp(self.created_unix_s), FOOTER_LEN as u64)
    }
}

/// Seconds since 2000, as near as VHD can say.
fn timestamp(unix_s: u64) -> u32 {
    u32::try_from(unix_s.saturating_sub(EPOCH_UNIX_S)).unwrap_or(u32::MAX)
}

fn differencing_head(
    footer: &Footer,
    header: DynamicHeader,
    bat: &Bat,
    parent: &ParentDisk,
    positions: &Positions,
) -> Vec<u8> {
    let timestamp = timestamp(parent.created_unix_s);
    let Some(name) = &parent.name else {
        let header = header.over_parent(parent.unique_id, timestamp, &[], &[]);
        return [footer.encode(), header.encode(), &[0; SECTOR_LEN], &bat.encode()].concat();
    };
    // One locator where XAPI's streams announce theirs, the other behind the BAT.
    let locators = name.locators(positions.table - SECTOR_LEN as u64, positions.table_end);
    let header = header.over_parent(parent.unique_id, timestamp, &name.units(), &locators);
    [footer.encode(), header.encode(), &name.url_sector(), &bat.encode(), &name.windows_path_sector()].concat()
}

fn place_blocks(positions: &Positions, present: &PresentBlocks) -> Result<Bat> {
    let out_of_range = |_| Error::internal("a block of the VHD lies past the last sector it can name");
    let mut bat = Bat::new(usize::try_from(present.block_count()).expect("bounded by VHD_SIZE_MAX"));
    for (index, rank) in present.iter().zip(0_u64..) {
        let sector = (positions.first_block + rank * positions.stride) / SECTOR_LEN as u64;
        bat.set(
            usize::try_from(index.0).expect("below the number of blocks"),
            u32::try_from(sector).map_err(out_of_range)?,
        );
    }
    Ok(bat)
}

/// 2000-01-01 00:00:00 UTC, where VHD's time begins, in seconds since 1970.
const EPOCH_UNIX_S: u64 = 946_684_800;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::vhd::parent_locator::ParentName;
    use crate::units::BLOCK_LEN;

    const PARAMS: VhdParams = VhdParams { virtual_size: 1, unique_id: [1; 16], created_unix_s: 0 };

    fn stream_len_bytes(virtual_size: u64, present_count: u64) -> Result<u64> {
        super::stream_len_bytes(virtual_size, present_count, &Profile::Portable)
    }

    fn differencing(name: Option<&str>) -> Profile {
        let name = name.map(|name| ParentName::new(name).unwrap());
        Profile::Differencing(ParentDisk { unique_id: [2; 16], created_unix_s: 0, name })
    }

    #[test]
    fn each_profile_adds_its_parts() {
        let len = |profile: &Profile, present| super::stream_len_bytes(1, present, profile).unwrap();
        let block = 512 + (2 << 20);
        assert_eq!(len(&differencing(None), 0), 2048 + 512 + 512);
        assert_eq!(len(&differencing(None), 1), 2048 + 512 + block + 512);
        assert_eq!(len(&differencing(Some("base.vhd")), 1), 2048 + 512 + 512 + block + 512);
        // BAT, batmap header and map end at byte 3072; content begins at 4096.
        assert_eq!(len(&Profile::StorageRepository, 1), 4096 - 512 + block + 512);
        let two = super::stream_len_bytes(4 << 20, 2, &Profile::StorageRepository).unwrap();
        assert_eq!(two, 4096 + (2 << 20) + 4096 + (2 << 20) + 512);
    }

    #[test]
    fn the_length_is_that_of_the_parts() {
        assert_eq!(stream_len_bytes(1, 0).unwrap(), 1536 + 512 + 512);
        assert_eq!(stream_len_bytes(1, 1).unwrap(), 1536 + 512 + 512 + (2 << 20) + 512);
        assert_eq!(stream_len_bytes(128 * BLOCK_LEN as u64, 0).unwrap(), 1536 + 512 + 512);
        assert_eq!(stream_len_bytes(128 * BLOCK_LEN as u64 + 1, 0).unwrap(), 1536 + 1024 + 512);
        assert_eq!(stream_len_bytes(1, 2).unwrap_err().kind(), ErrorKind::Internal);
    }

    #[test]
    fn a_full_disk_of_the_largest_size_can_name_its_last_block() {
        let mut present = PresentBlocks::new(VHD_SIZE_MAX);
        (0..present.block_count()).for_each(|index| present.insert(BlockIndex(index)));
        for profile in [Profile::Portable, Profile::StorageRepository, differencing(Some("base.vhd"))] {
            let plan = Plan::new(&VhdParams { virtual_size: VHD_SIZE_MAX, ..PARAMS }, &profile, &present).unwrap();
            let last = plan.block_offset(BlockIndex(present.block_count() - 1)).unwrap();
            assert_eq!(last + (BITMAP_LEN + BLOCK_LEN + FOOTER_LEN) as u64, plan.len_bytes());
        }
    }

    #[test]
    fn sizes_a_vhd_cannot_have_are_refused() {
        let text = |size| {
            let error = stream_len_bytes(size, 0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            error.to_string()
        };
        assert_eq!(text(0), "a VHD cannot hold a disk of zero bytes");
        assert_eq!(
            text(VHD_SIZE_MAX + 1),
            "a VHD holds at most 2040 GiB (2190433320960 bytes), the disk has 2190433320961: write it raw instead"
        );
    }

    #[test]
    fn a_unique_id_of_zeros_is_refused() {
        let params = VhdParams { unique_id: [0; 16], ..PARAMS };
        let block = Plan::new(&params, &Profile::Portable, &PresentBlocks::new(1)).err().unwrap();
        for error in [block, fixed_footer(&params).unwrap_err()] {
            assert_eq!(error.to_string(), "the unique id of a VHD must not be all zeros");
        }
    }

    #[test]
    fn time_begins_in_2000() {
        assert_eq!(timestamp(EPOCH_UNIX_S + 5), 5);
        assert_eq!(timestamp(5), 0);
        assert_eq!(timestamp(u64::MAX), u32::MAX);
    }
}
