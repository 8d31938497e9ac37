//! Cylinders, heads and sectors, which only old programs still look at.

use zerocopy::byteorder::{BE, U16};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::units::SECTOR_LEN;

/// The footer's four bytes of geometry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Geometry {
    cylinders: U16<BE>,
    heads: u8,
    sectors_per_track: u8,
}

impl Geometry {
    /// The geometry the VHD specification (appendix "CHS Calculation") gives a disk of `size` bytes: never larger than
    /// the disk, often a little smaller.
    pub fn of_size(size: u64) -> Self {
        let total = (size / SECTOR_LEN as u64).min(65535 * 16 * 255);
        let (sectors_per_track, heads, tracks) = if total >= 65535 * 16 * 63 {
            (255, 16, total / 255)
        } else {
            let tracks = total / 17;
            let heads = tracks.div_ceil(1024).max(4);
            if tracks < heads * 1024 && heads <= 16 {
                (17, heads, tracks)
            } else if total / 31 < 16 * 1024 {
                (31, 16, total / 31)
            } else {
                (63, 16, total / 63)
            }
        };
        let cylinders = u16::try_from(tracks / heads).expect("the total is capped at 65535 cylinders");
        let heads = u8::try_from(heads).expect("no branch gives more than 16 heads");
        Self { cylinders: U16::new(cylinders), heads, sectors_per_track }
    }

    /// How many bytes the geometry addresses.
    pub fn size_bytes(&self) -> u64 {
        let sectors = u64::from(self.cylinders.get()) * u64::from(self.heads) * u64::from(self.sectors_per_track);
        sectors * SECTOR_LEN as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of_sectors(sectors: u64) -> (u16, u8, u8) {
        let geometry = Geometry::of_size(sectors * 512);
        (geometry.cylinders.get(), geometry.heads, geometry.sectors_per_track)
    }

    #[test]
    fn each_branch_of_the_algorithm_at_its_edges() {
        assert_eq!(of_sectors(0), (0, 4, 17));
        assert_eq!(of_sectors(204_800), (1003, 12, 17), "100 MiB, as Virtual PC makes it");
        assert_eq!(of_sectors(17 * 16 * 1024 - 1), (1023, 16, 17));
        assert_eq!(of_sectors(17 * 16 * 1024), (561, 16, 31));
        assert_eq!(of_sectors(31 * 16 * 1024 - 1), (1023, 16, 31));
        assert_eq!(of_sectors(31 * 16 * 1024), (503, 16, 63));
        assert_eq!(of_sectors(65535 * 16 * 63 - 1), (65534, 16, 63));
        assert_eq!(of_sectors(65535 * 16 * 63), (16191, 16, 255));
        assert_eq!(of_sectors(65535 * 16 * 255), (65535, 16, 255));
        assert_eq!(of_sectors(u64::MAX / 512), (65535, 16, 255));
    }

    proptest! {
        #[test]
        fn never_larger_than_the_disk(size in prop_oneof![0_u64..1 << 32, 0..1_u64 << 50]) {
            prop_assert!(Geometry::of_size(size).size_bytes() <= size);
        }
    }
}
