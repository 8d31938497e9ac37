//! The footer: what a VHD is, how large, and the proof that it is complete.

use std::mem::offset_of;

use zerocopy::byteorder::{BE, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::geometry::Geometry;
use super::{VERSION_1_0, checksum};
use crate::error::{Error, ErrorKind, Result};
use crate::units::VIRTUAL_SIZE_MAX;

/// Bytes of a footer.
pub const FOOTER_LEN: usize = 512;
/// Bytes of a footer as very old versions of Virtual PC wrote it: the last one, a zero, is missing.
pub const SHORT_FOOTER_LEN: usize = 511;

/// The record at the end of every VHD, with a copy at the beginning of dynamic ones. Checked when it was decoded.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Footer {
    cookie: [u8; 8],
    features: U32<BE>,
    version: U32<BE>,
    data_offset: U64<BE>,
    timestamp: U32<BE>,
    creator: [u8; 4],
    creator_version: U32<BE>,
    creator_os: [u8; 4],
    original_size: U64<BE>,
    current_size: U64<BE>,
    geometry: Geometry,
    disk_type: U32<BE>,
    checksum: U32<BE>,
    unique_id: [u8; 16],
    saved_state: u8,
    hidden: u8,
    reserved: [u8; 426],
}

/// The kinds of VHD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskType {
    /// All bytes of the disk, then the footer.
    Fixed,
    /// Blocks found through a BAT.
    Dynamic,
    /// As dynamic, over a parent disk.
    Differencing,
}

impl Footer {
    /// Whether the bytes claim to be a footer.
    pub fn has_cookie(bytes: &[u8]) -> bool {
        bytes.starts_with(COOKIE) || bytes.starts_with(POISON_COOKIE)
    }

    /// Decodes and checks a footer of 512 bytes, or 511.
    ///
    /// # Errors
    /// `Invalid` naming the field that is wrong and its offset in the footer; `Unsupported` for a disabled image, an
    /// obsolete type, or a disk larger than a repository takes.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut whole = [0; FOOTER_LEN];
        if bytes.len() != FOOTER_LEN && bytes.len() != SHORT_FOOTER_LEN {
            return Err(Error::invalid(format!(
                "truncated: a footer has {FOOTER_LEN} bytes, here are {}",
                bytes.len()
            )));
        }
        whole[..bytes.len()].copy_from_slice(bytes);
        let footer: Self = zerocopy::transmute!(whole);
        footer.check()?;
        Ok(footer)
    }

    /// The footer's 512 bytes.
    pub fn encode(&self) -> &[u8] {
        self.as_bytes()
    }

    /// The footer of a new dynamic disk of `size` bytes: the profile that Windows writes, because it is the one whose
    /// current size every version of qemu honours and for which libvhd expects no batmap.
    ///
    /// `timestamp` is in seconds since the year 2000.
    pub fn new_dynamic(size: u64, unique_id: [u8; 16], timestamp: u32, header_offset: u64) -> Self {
        let footer = Self {
            cookie: *COOKIE,
            features: U32::new(FEATURES),
            version: U32::new(VERSION_1_0),
            data_offset: U64::new(header_offset),
            timestamp: U32::new(timestamp),
            creator: *b"win ",
            creator_version: U32::new(0x0006_0001),
            creator_os: *b"Wi2k",
            original_size: U64::new(size),
            current_size: U64::new(size),
            geometry: Geometry::of_size(size),
            disk_type: U32::new(DiskType::Dynamic.code()),
            checksum: U32::new(0),
            unique_id,
            saved_state: 0,
            hidden: 0,
            reserved: [0; 426],
        };
        footer.summed()
    }

    /// The same of a fixed disk.
    #[must_use]
    pub fn into_fixed(mut self) -> Self {
        self.disk_type = U32::new(DiskType::Fixed.code());
        self.data_offset = U64::new(super::NO_OFFSET);
        self.summed()
    }

    /// The same of a differencing disk.
    #[must_use]
    pub fn into_differencing(mut self) -> Self {
        self.disk_type = U32::new(DiskType::Differencing.code());
        self.summed()
    }

    /// The same in the profile that tapdisk writes. It promises a batmap behind the BAT, and only such files can be resized
    /// by the storage manager.
    #[must_use]
    pub fn into_tapdisk(mut self) -> Self {
        self.creator = *b"tap\0";
        self.creator_version = U32::new(0x0001_0003);
        self.creator_os = [0; 4];
        self.summed()
    }

    #[cfg(test)]
    pub(crate) fn new_fixed(size: u64) -> Self {
        Self::new_dynamic(size, [1; 16], 0, super::NO_OFFSET).into_fixed()
    }

    fn summed(mut self) -> Self {
        self.checksum = U32::new(checksum(self.as_bytes(), self.checksum.get()));
        self
    }

    /// The size of the virtual disk in bytes.
    pub fn current_size(&self) -> u64 {
        self.current_size.get()
    }

    /// Where the dynamic header stands, in bytes; meaningless for fixed disks.
    pub fn data_offset(&self) -> u64 {
        self.data_offset.get()
    }

    /// The kind of VHD.
    pub fn disk_type(&self) -> DiskType {
        DiskType::from_code(self.disk_type.get()).expect("checked by decode")
    }

    /// The id of this image.
    pub fn unique_id(&self) -> [u8; 16] {
        self.unique_id
    }

    /// Whether tapdisk or its tools wrote the image: their differencing disks name the id of their parent's footer. What
    /// XAPI exports has a new random id each time, and names no export (`docs/sources.md`, section "VHD").
    pub fn has_lasting_id(&self) -> bool {
        self.creator == *b"tap\0"
    }

    /// The first field in which another footer of the same image differs in a way that matters, with its offset.
    ///
    /// The hidden byte may differ, and with it the checksum: tapdisk changes it in one of the two alone
    /// (`docs/sources.md`, section "VHD").
    pub fn difference(&self, other: &Self) -> Option<(&'static str, usize)> {
        let ours = Self { checksum: U32::new(0), hidden: 0, ..self.clone() };
        let theirs = Self { checksum: U32::new(0), hidden: 0, ..other.clone() };
        let at = ours.as_bytes().iter().zip(theirs.as_bytes()).position(|(our, their)| our != their)?;
        let (start, name) = *FIELDS.iter().rfind(|(start, _)| *start <= at)?;
        Some((name, start))
    }

    fn check(&self) -> Result<()> {
        if self.cookie == *POISON_COOKIE {
            let text = "the image was disabled on purpose: the cookie at byte 0 is `v_poison`";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if self.cookie != *COOKIE {
            let cookie = self.cookie.escape_ascii();
            return Err(Error::invalid(format!("the cookie at byte 0 is `{cookie}`, not `conectix`")));
        }
        self.check_checksum()?;
        let version = self.version.get();
        if version >> 16 != VERSION_1_0 >> 16 {
            let text = format!("the format version at byte 12 is {version:#010x}, not {VERSION_1_0:#010x}");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let disk_type = self.disk_type.get();
        if DiskType::from_code(disk_type).is_none() {
            let text =
                format!("the disk type at byte 60 is {disk_type}, not 2 (fixed), 3 (dynamic) or 4 (differencing)");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let size = self.current_size();
        if size == 0 {
            return Err(Error::invalid("the current size at byte 48 is 0: no disk has zero bytes"));
        }
        if size > VIRTUAL_SIZE_MAX {
            let text =
                format!("the current size at byte 48 is {size}, above the {VIRTUAL_SIZE_MAX} a repository takes");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        Ok(())
    }

    fn check_checksum(&self) -> Result<()> {
        let stored = self.checksum.get();
        let computed = checksum(self.as_bytes(), stored);
        // Early tapdisks set the hidden byte and left the checksum as it was.
        let early_tap = self.creator == *b"tap\0" && matches!(self.creator_version.get(), 0x0000_0001 | 0x0001_0001);
        let not_hidden = Self { hidden: 0, ..self.clone() };
        if stored == computed || early_tap && stored == checksum(not_hidden.as_bytes(), stored) {
            return Ok(());
        }
        let text = format!("the checksum at byte 64 is {stored:#010x}, but the bytes give {computed:#010x}");
        Err(Error::invalid(text))
    }
}

impl DiskType {
    fn code(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        [Self::Fixed, Self::Dynamic, Self::Differencing].into_iter().find(|disk_type| disk_type.code() == code)
    }
}

const COOKIE: &[u8; 8] = b"conectix";
/// libvhd writes this over the cookie of an image nobody must use any more.
const POISON_COOKIE: &[u8; 8] = b"v_poison";
/// Bit 1 is reserved and must be set.
const FEATURES: u32 = 2;
const FIELDS: [(usize, &str); 17] = [
    (offset_of!(Footer, cookie), "cookie"),
    (offset_of!(Footer, features), "features"),
    (offset_of!(Footer, version), "format version"),
    (offset_of!(Footer, data_offset), "data offset"),
    (offset_of!(Footer, timestamp), "timestamp"),
    (offset_of!(Footer, creator), "creator application"),
    (offset_of!(Footer, creator_version), "creator version"),
    (offset_of!(Footer, creator_os), "creator host OS"),
    (offset_of!(Footer, original_size), "original size"),
    (offset_of!(Footer, current_size), "current size"),
    (offset_of!(Footer, geometry), "geometry"),
    (offset_of!(Footer, disk_type), "disk type"),
    (offset_of!(Footer, checksum), "checksum"),
    (offset_of!(Footer, unique_id), "unique id"),
    (offset_of!(Footer, saved_state), "saved state"),
    (offset_of!(Footer, hidden), "hidden"),
    (offset_of!(Footer, reserved), "reserved"),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_stand_where_the_specification_puts_them() {
        assert_eq!(size_of::<Footer>(), FOOTER_LEN);
        assert_eq!(
            FIELDS.map(|(offset, _)| offset),
            [0, 8, 12, 16, 24, 28, 32, 36, 40, 48, 56, 60, 64, 68, 84, 85, 86]
        );
    }

    #[test]
    fn a_footer_comes_back_from_512_bytes_and_from_511() {
        let footer = Footer::new_dynamic(12345 * 512, [7; 16], 99, 512);
        assert_eq!(Footer::decode(footer.encode()).unwrap(), footer);
        assert_eq!(Footer::decode(&footer.encode()[..SHORT_FOOTER_LEN]).unwrap(), footer);
        for len in [0, 8, 510, 513, 1024] {
            assert!(Footer::decode(&vec![0; len]).is_err(), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn one_flipped_bit_is_refused(bit in 0..FOOTER_LEN * 8) {
            let mut bytes = Footer::new_dynamic(12345 * 512, [7; 16], 99, 512).encode().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Footer::decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_decode_or_fail(mut bytes in prop::collection::vec(any::<u8>(), 0..600), cookie: bool) {
            if cookie && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(COOKIE);
            }
            let _ = Footer::decode(&bytes);
        }
    }

    #[test]
    fn a_hidden_byte_without_its_checksum_is_accepted_from_early_tapdisks_only() {
        for (creator, version, good) in [
            (b"tap\0", 0x0000_0001, true),
            (b"tap\0", 0x0001_0001, true),
            (b"tap\0", 0x0001_0003, false),
            (b"win ", 1, false),
        ] {
            let mut footer = Footer::new_dynamic(1 << 30, [7; 16], 99, 512);
            footer.creator = *creator;
            footer.creator_version = U32::new(version);
            footer.checksum = U32::new(checksum(footer.as_bytes(), footer.checksum.get()));
            let hidden = Footer { hidden: 1, ..footer.clone() };
            assert_eq!(Footer::decode(hidden.encode()).is_ok(), good, "{creator:?} {version:#x}");
            assert_eq!(footer.difference(&hidden), None);
        }
    }

    #[test]
    fn a_difference_is_named() {
        let footer = Footer::new_dynamic(1 << 30, [7; 16], 99, 512);
        let other = Footer { timestamp: U32::new(100), ..footer.clone() };
        assert_eq!(footer.difference(&other), Some(("timestamp", 24)));
        assert_eq!(footer.difference(&footer), None);
    }

    #[test]
    fn what_cannot_be_a_disk_here_is_refused_with_the_field() {
        let refusal = |change: fn(&mut Footer)| {
            let mut footer = Footer::new_dynamic(1 << 30, [7; 16], 99, 512);
            change(&mut footer);
            footer.checksum = U32::new(checksum(footer.as_bytes(), footer.checksum.get()));
            let error = Footer::decode(footer.encode()).unwrap_err();
            (error.kind(), error.to_string())
        };
        let (kind, text) = refusal(|footer| footer.cookie = *POISON_COOKIE);
        assert_eq!(kind, ErrorKind::Unsupported);
        assert_eq!(text, "the image was disabled on purpose: the cookie at byte 0 is `v_poison`");
        let (kind, text) = refusal(|footer| footer.cookie = *b"conectiy");
        assert_eq!((kind, text.as_str()), (ErrorKind::Invalid, "the cookie at byte 0 is `conectiy`, not `conectix`"));
        // A disk of zero bytes could be backed up and never be restored as a VHD, nor its raw form be backed up.
        let (kind, text) = refusal(|footer| footer.current_size = U64::new(0));
        assert_eq!(
            (kind, text.as_str()),
            (ErrorKind::Invalid, "the current size at byte 48 is 0: no disk has zero bytes")
        );
        let (kind, text) = refusal(|footer| footer.version = U32::new(0x0002_0000));
        assert_eq!(kind, ErrorKind::Unsupported);
        assert_eq!(text, "the format version at byte 12 is 0x00020000, not 0x00010000");
        let (kind, text) = refusal(|footer| footer.disk_type = U32::new(5));
        assert_eq!(kind, ErrorKind::Unsupported);
        assert_eq!(text, "the disk type at byte 60 is 5, not 2 (fixed), 3 (dynamic) or 4 (differencing)");
        let (kind, text) = refusal(|footer| footer.current_size = U64::new(VIRTUAL_SIZE_MAX + 1));
        assert_eq!(kind, ErrorKind::Unsupported);
        assert_eq!(
            text,
            "the current size at byte 48 is 1125899906842625, above the 1125899906842624 a repository takes"
        );
    }
}
