//! What is refused, and how that reads.

use proptest::prelude::*;

use super::*;
use crate::disk::open_stream;
use crate::error::{Error, ErrorKind};

/// A small image: 3 clusters of 512 bytes, of which qemu wrote the first and the last.
fn small() -> Vec<u8> {
    let folder = Folder::new();
    folder.qemu_img(&["create", "-f", "qcow2", "-o", "cluster_size=512", "disk.qcow2", "1536"]);
    folder.qemu_io(&["write -P 1 0 512", "write -P 3 1024 512"], "disk.qcow2");
    std::fs::read(folder.path("disk.qcow2")).unwrap()
}

fn read_bytes(bytes: &[u8], format: FormatHint) -> Result<(Vec<u8>, Vec<u64>)> {
    let folder = Folder::new();
    std::fs::write(folder.path("disk.qcow2"), bytes).unwrap();
    read(&folder.path("disk.qcow2"), &SourceOptions { format, ..SourceOptions::default() })
}

fn refusal(bytes: &[u8]) -> Error {
    read_bytes(bytes, FormatHint::Auto).expect_err("refused")
}

/// Asserts that the image with these bytes put in is refused.
fn refused_with(at: usize, bytes: &[u8], kind: ErrorKind, words: &str) {
    let mut image = small();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    let error = refusal(&image);
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(error.chain().contains(words), "{error:?} does not say: {words}");
}

fn u64_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap()
}

#[test]
fn the_small_image_is_sound() {
    let (content, blocks) = read_bytes(&small(), FormatHint::Auto).unwrap();
    assert!(content == [[1; 512], [0; 512], [3; 512]].concat());
    assert_eq!(blocks, [0]);
}

#[test]
fn fields_of_the_header() {
    use ErrorKind::{Invalid, Unsupported};
    refused_with(4, &4_u32.to_be_bytes(), Unsupported, "version 4 (byte 4); 2 and 3 are read");
    refused_with(20, &8_u32.to_be_bytes(), Invalid, "clusters of 2^8 bytes (byte 20)");
    refused_with(20, &22_u32.to_be_bytes(), Invalid, "clusters of 2^22 bytes");
    refused_with(20, &u32::MAX.to_be_bytes(), Invalid, "clusters of 2^4294967295 bytes");
    refused_with(24, &0_u64.to_be_bytes(), Invalid, "the disk has 0 bytes");
    refused_with(24, &((1_u64 << 50) + 1).to_be_bytes(), Unsupported, "more than the 1125899906842624");
    refused_with(24, &(1_u64 << 40).to_be_bytes(), Invalid, "needs 33554432");
    refused_with(32, &1_u32.to_be_bytes(), Unsupported, "the image is encrypted (method 1 at byte 32)");
    refused_with(32, &2_u32.to_be_bytes(), Unsupported, "the image is encrypted");
    refused_with(36, &0_u32.to_be_bytes(), Invalid, "an L1 table of 0 entries (byte 36)");
    refused_with(36, &u32::MAX.to_be_bytes(), Invalid, "an L1 table of 4294967295 entries");
    refused_with(40, &0_u64.to_be_bytes(), Invalid, "the L1 table (byte 40) has 8 bytes at byte 0");
    refused_with(40, &513_u64.to_be_bytes(), Invalid, "the L1 table (byte 40) has 8 bytes at byte 513");
    refused_with(40, &(1_u64 << 40).to_be_bytes(), Invalid, "damaged or truncated");
    refused_with(40, &(u64::MAX - 511).to_be_bytes(), Invalid, "damaged or truncated");
    refused_with(48, &0_u64.to_be_bytes(), Invalid, "the refcount table (byte 48)");
    refused_with(56, &0_u32.to_be_bytes(), Invalid, "a refcount table of 0 clusters (byte 56)");
    refused_with(56, &u32::MAX.to_be_bytes(), Invalid, "a refcount table of 4294967295 clusters");
    refused_with(79, &[2], Invalid, "the image is marked as corrupt: see what qemu-img check says");
    refused_with(79, &[4], Unsupported, "keeps its content in another file");
    refused_with(79, &[8], Unsupported, "compressed with something else than zlib");
    refused_with(79, &[16], Unsupported, "extended L2 entries");
    refused_with(79, &[32], Unsupported, "unknown incompatible features 0x20 (byte 72)");
    refused_with(72, &[128], Unsupported, "unknown incompatible features 0x8000000000000000");
    refused_with(96, &7_u32.to_be_bytes(), Invalid, "refcounts of 2^7 bits");
    refused_with(100, &103_u32.to_be_bytes(), Invalid, "a header of 103 bytes");
    refused_with(100, &513_u32.to_be_bytes(), Invalid, "a header of 513 bytes");
    refused_with(8, &[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0], Invalid, "the backing file has 0 bytes at byte 256");
    refused_with(8, &[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 4, 0], Invalid, "the backing file has 1024 bytes at byte 256");
    refused_with(8, &[255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 9], Invalid, "the backing file has 9 bytes");
}

#[test]
fn entries_of_the_tables() {
    let image = small();
    let l1 = u64_at(&image, 40);
    let l2 = u64_at(&image, l1) & 0xFF_FFFF;
    let end = image.len() as u64;
    refused_with(l1, &((1_u64 << 63) | (512 * 9999)).to_be_bytes(), ErrorKind::Invalid, "L1 table: entry 0");
    refused_with(l1, &0x7F00_0000_0000_0000_u64.to_be_bytes(), ErrorKind::Invalid, "reserved bits set");
    let past_the_end = ((1_u64 << 63) | end.next_multiple_of(512)).to_be_bytes();
    refused_with(l2, &past_the_end, ErrorKind::Invalid, "byte 0 of the disk and the 512 from there should stand at");
    refused_with(l2, &((0x3F00_u64 << 48) | 512).to_be_bytes(), ErrorKind::Invalid, "reserved bits set");
    // Compressed data past the end, and data that is not compressed.
    refused_with(l2, &((1_u64 << 62) | (1 << 40)).to_be_bytes(), ErrorKind::Invalid, "past the end of the image");
    refused_with(l2, &((1_u64 << 62) | l1 as u64).to_be_bytes(), ErrorKind::Invalid, "Failed to decompress");
}

#[test]
fn tables_that_are_shared() {
    let folder = Folder::new();
    folder.qemu_img(&["create", "-f", "qcow2", "-o", "cluster_size=512", "disk.qcow2", "64k"]);
    folder.qemu_io(&["write -P 1 0 64k"], "disk.qcow2");
    let mut bytes = std::fs::read(folder.path("disk.qcow2")).unwrap();
    let l1 = u64_at(&bytes, 40);
    bytes.copy_within(l1..l1 + 8, l1 + 8);
    assert!(refusal(&bytes).to_string().contains("two entries name the same L2 table"));
}

#[test]
fn a_table_of_names_that_imago_cannot_take_is_never_shown_to_it() {
    // One byte where entries have 48: imago 0.2.6 panics on it, qemu reads it.
    let mut image = small();
    let extensions = usize::try_from(u32::from_be_bytes(image[100..104].try_into().unwrap())).unwrap();
    image[extensions..extensions + 24].fill(0);
    image[extensions..extensions + 4].copy_from_slice(&0x6803_F857_u32.to_be_bytes());
    image[extensions + 7] = 1;
    assert_eq!(read_bytes(&image, FormatHint::Auto).unwrap().1, [0]);
}

#[test]
fn truncated_images() {
    let image = small();
    for len in 0..image.len() {
        let error = read_bytes(&image[..len], FormatHint::Qcow2).expect_err("cut");
        assert_eq!(error.kind(), ErrorKind::Invalid, "cut to {len} bytes: {error:?}");
    }
    let folder = Folder::new();
    std::fs::write(folder.path("disk.raw"), disk(3 << 20)).unwrap();
    folder.qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"]);
    let bytes = std::fs::read(folder.path("disk.qcow2")).unwrap();
    for cut in [1024, 4096, bytes.len() / 2] {
        assert_eq!(refusal(&bytes[..bytes.len() - cut]).kind(), ErrorKind::Invalid, "{cut} bytes cut off");
    }
}

#[test]
fn features_that_are_not_read_as_qemu_makes_them() {
    for (options, words) in [
        ("compression_type=zstd", "compressed with something else than zlib"),
        ("extended_l2=on,cluster_size=128k", "extended L2 entries"),
        ("data_file=content,data_file_raw=on", "keeps its content in another file"),
    ] {
        let folder = Folder::new();
        folder.qemu_img(&["create", "-f", "qcow2", "-o", options, "disk.qcow2", "4M"]);
        let error = folder.read("disk.qcow2").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(words) && error.to_string().contains("qemu-img convert"), "{error}");
    }
    let folder = Folder::new();
    let secret = ["--object", "secret,id=key,data=secret"];
    let options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";
    folder.qemu_img(&[&["create"], &secret[..], &["-f", "qcow2", "-o", options, "disk.qcow2", "4M"]].concat());
    assert!(folder.read("disk.qcow2").unwrap_err().to_string().contains("the image is encrypted (method 2"));
}

#[test]
fn streams_are_refused_with_the_next_step() {
    for format in [FormatHint::Auto, FormatHint::Qcow2] {
        let options = SourceOptions { format, ..SourceOptions::default() };
        let error = open_stream(std::io::Cursor::new(small()), &options).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("cannot be read from a stream"), "{error}");
        assert!(error.to_string().ends_with("write it to a file first"), "{error}");
    }
}

#[test]
fn what_is_said_of_the_format_counts() {
    let folder = Folder::new();
    std::fs::write(folder.path("disk"), small()).unwrap();
    let open = |format| {
        let options = SourceOptions { format, ..SourceOptions::default() };
        open_file(File::open(folder.path("disk")).unwrap(), &options).map(|source| source.format())
    };
    assert_eq!(open(FormatHint::Auto).unwrap(), DiskFormat::Qcow2);
    assert_eq!(open(FormatHint::Qcow2).unwrap(), DiskFormat::Qcow2);
    assert_eq!(open(FormatHint::Raw).unwrap(), DiskFormat::Raw);
    assert!(open(FormatHint::Vhd).unwrap_err().to_string().starts_with("no VHD footer"));
    std::fs::write(folder.path("disk"), [7; 4096]).unwrap();
    assert!(open(FormatHint::Qcow2).unwrap_err().to_string().starts_with("this is no qcow2 image"));
    assert_eq!(open(FormatHint::Auto).unwrap(), DiskFormat::Raw);
}

#[test]
fn a_vhd_at_either_end_does_not_mislead() {
    // A qcow2 image whose last cluster ends in the footer of some VHD that the guest keeps.
    let folder = Folder::new();
    folder.qemu_img(&["create", "-f", "vpc", "-o", "subformat=fixed,force_size=on", "inner.vhd", "1M"]);
    let footer = std::fs::read(folder.path("inner.vhd")).unwrap();
    let footer = &footer[footer.len() - 512..];
    let mut image = small();
    let end = image.len();
    image[end - 512..].copy_from_slice(footer);
    let (content, _) = read_bytes(&image, FormatHint::Auto).unwrap();
    assert!(content[1024..] == *footer);
    // A fixed VHD whose disk begins as a qcow2 image does.
    let mut fixed = std::fs::read(folder.path("inner.vhd")).unwrap();
    fixed[..4].copy_from_slice(b"QFI\xfb");
    std::fs::write(folder.path("inner.vhd"), fixed).unwrap();
    let source = open_file(File::open(folder.path("inner.vhd")).unwrap(), &SourceOptions::default()).unwrap();
    assert_eq!(source.format(), DiskFormat::VhdFixed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_damaged_image_is_read_or_refused(
        damage in prop::collection::vec((0_usize..4096, any::<u8>()), 1..6),
    ) {
        thread_local!(static SMALL: Vec<u8> = small());
        let mut image = SMALL.with(Clone::clone);
        for (at, byte) in damage {
            let at = at % image.len();
            image[at] = byte;
        }
        if let Ok((content, _)) = read_bytes(&image, FormatHint::Qcow2) {
            prop_assert!(content.len() <= 1 << 30);
        }
    }
}
