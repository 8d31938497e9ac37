//! What is refused, and how that reads.

use proptest::prelude::*;

use super::image::{Image, Stored, patch_footers, patch_header, patch_record};
use super::*;
use crate::disk::vhd::footer::Footer;
use crate::error::ErrorKind;

/// A disk of 4 blocks of 4 KiB, the last short, of which 3 and 1 are stored: small enough to try everything on it.
fn small() -> Image {
    Image::new(4 * 4096 - 1000, 4096, vec![Stored::whole(3), Stored { gap: 2, ..Stored::whole(1) }])
}

/// Asserts that both readers refuse with the same kind and with these words, in the error or its causes.
fn refused(bytes: &[u8], kind: ErrorKind, words: &str) {
    for error in refusals(bytes) {
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(format!("{error:?}").contains(words), "{error:?} does not say: {words}");
    }
}

#[test]
fn disabled_images() {
    let mut bytes = small().bytes();
    patch_footers(&mut bytes, 0, b"v_poison");
    refused(&bytes, ErrorKind::Unsupported, "the image was disabled on purpose: the cookie at byte 0 is `v_poison`");
}

#[test]
fn damaged_heads() {
    let mut bytes = small().bytes();
    bytes[40] ^= 1;
    refused(&bytes, ErrorKind::Invalid, "footer copy at byte 0");
    refused(&bytes, ErrorKind::Invalid, "the checksum at byte 64 is");
    let mut bytes = small().bytes();
    bytes[700] ^= 1;
    refused(&bytes, ErrorKind::Invalid, "dynamic header at byte 512");
    refused(&bytes, ErrorKind::Invalid, "the checksum at byte 36 is");
    let mut bytes = small().bytes();
    patch_header(&mut bytes, 8, &[0; 8]);
    refused(&bytes, ErrorKind::Invalid, "the data offset at byte 8 is 0x0, not all ones");
}

#[test]
fn a_lost_cookie_does_not_turn_a_vhd_into_a_raw_disk() {
    let mut bytes = small().bytes();
    bytes[0] = b'C';
    refused(
        &bytes,
        ErrorKind::Invalid,
        "are the footer of a dynamic VHD, but the copy of it at byte 0 is damaged or missing",
    );
    assert!(read_file(&bytes, FormatHint::Raw).unwrap().content == bytes);
    let mut bytes = [&[5; 4096], Footer::new_fixed(4096).encode()].concat();
    bytes[4096 + 70] ^= 1;
    refused(
        &bytes,
        ErrorKind::Invalid,
        "the last 512 bytes (byte 4096) look like a VHD footer and are none: the checksum",
    );
    assert!(read_stream(&bytes, FormatHint::Raw).unwrap().content == bytes);
}

#[test]
fn tables_that_do_not_fit() {
    let patched = |at, value: &[u8]| {
        let mut bytes = small().bytes();
        patch_header(&mut bytes, at, value);
        bytes
    };
    let bytes = patched(28, &3_u32.to_be_bytes());
    refused(
        &bytes,
        ErrorKind::Invalid,
        "max table entries at byte 540 are 3, but 15384 bytes in blocks of 4096 need 4",
    );
    let bytes = patched(28, &u32::MAX.to_be_bytes());
    refused(
        &bytes,
        ErrorKind::Unsupported,
        "are 4294967295 (of blocks of 4096 bytes), above the 4194304 that are read",
    );
    for offset in [0, 512, 1535, u64::MAX - 3] {
        let bytes = patched(16, &offset.to_be_bytes());
        refused(&bytes, ErrorKind::Invalid, "the table offset at byte 528 is");
    }
    refused(&patched(16, &(1_u64 << 40).to_be_bytes()), ErrorKind::Invalid, "");
    let mut bytes = small().bytes();
    patch_footers(&mut bytes, 16, &511_u64.to_be_bytes());
    refused(&bytes, ErrorKind::Invalid, "the data offset at byte 16 is 0x1ff, not behind the footer copy");
}

#[test]
fn entries_that_collide() {
    let with_entry = |index: usize, sector: u32| {
        let mut bytes = small().bytes();
        bytes[1536 + 4 * index..][..4].copy_from_slice(&sector.to_be_bytes());
        bytes
    };
    // Blocks are at sectors 4 (block 3) and 15 (block 1).
    refused(
        &with_entry(0, 1),
        ErrorKind::Invalid,
        "BAT: entry 0 (at byte 1536) is sector 1, byte 512, inside the header",
    );
    refused(
        &with_entry(2, 15),
        ErrorKind::Invalid,
        "BAT: entry 2 (at byte 1544) is sector 15, byte 7680, the same as entry 1",
    );
    refused(
        &with_entry(2, 10),
        ErrorKind::Invalid,
        "BAT: entry 2 (at byte 1544) is sector 10, byte 5120, inside block 3",
    );
    let [file, stream] = refusals(&with_entry(2, 1000));
    assert!(file.to_string().contains("BAT: entry 2 (at byte 1544) is sector 1000, byte 512000"), "{file}");
    assert!(stream.to_string().contains("truncated"), "{stream}");
}

#[test]
fn footers_missing_damaged_or_different() {
    let good = small().bytes();
    let end = good.len() - 512;
    let mut zeroed = good.clone();
    zeroed[end..].fill(0);
    refused(&zeroed, ErrorKind::Invalid, "no footer in the last 512 bytes");
    refused(&good[..end], ErrorKind::Invalid, "");
    let mut damaged = good.clone();
    damaged[end + 50] ^= 1;
    refused(
        &damaged,
        ErrorKind::Invalid,
        &format!("the footer at byte {end} is damaged (the copy at byte 0 is sound)"),
    );
    let mut different = good.clone();
    patch_record(&mut different[end..], 24, &[9; 4], 64);
    refused(&different, ErrorKind::Invalid, "both sound, differ in the timestamp");
    for garbage in [1, 511, 512, 70_000] {
        let longer = [&good[..], &vec![0x11; garbage]].concat();
        refused(&longer, ErrorKind::Invalid, "no footer in the last 512 bytes");
        let stream = read_stream(&longer, FormatHint::Auto).unwrap_err();
        assert!(
            stream.to_string().starts_with(&format!("{garbage} bytes follow the footer at byte {end}")),
            "{stream}"
        );
    }
}

#[test]
fn a_server_error_inside_the_body() {
    const HEAD: &[u8] = b"HTTP/1.1 500 Internal Error\r\ncontent-length: 0\r\n\r\n";
    // Of a head inside a BAT of 16 bytes, no more was read.
    const WORDS: &str = "the server reported an error inside the body: HTTP/1.1 500 Int";
    let image = small();
    let good = image.bytes();
    refused(HEAD, ErrorKind::Invalid, WORDS);
    // Where the header, the table, a bitmap or the footer should be, and inside a block.
    let positions =
        [512, 1536, image.block_offset(0), image.block_offset(1), image.footer_offset(), image.block_offset(0) + 2000];
    for at in positions {
        let stream = read_stream(&[&good[..at], HEAD].concat(), FormatHint::Auto).unwrap_err();
        assert!(format!("{stream:?}").contains(WORDS), "byte {at}: {stream:?}");
    }
    let at = image.block_offset(1);
    let stream = read_stream(&[&good[..at], HEAD, &good[at + HEAD.len()..]].concat(), FormatHint::Auto).unwrap_err();
    assert!(format!("{stream:?}").contains(WORDS), "{stream:?}");
}

#[test]
fn empty_inputs() {
    refused(&[], ErrorKind::Invalid, "the input is empty");
}

#[test]
fn what_is_no_vhd_though_the_caller_says_so() {
    for read in [read_file(&[5; 4096], FormatHint::Vhd), read_stream(&[5; 4096], FormatHint::Vhd)] {
        assert!(
            read.unwrap_err().to_string().starts_with("no VHD footer, neither in the first nor in the last 512 bytes")
        );
    }
}

#[test]
fn a_truncated_vhd_is_refused_wherever_it_is_cut() {
    let good = small().bytes();
    for len in 0..good.len() {
        // The short footer is a sound one that very old writers left.
        if len == good.len() - 1 {
            continue;
        }
        for read in [read_file(&good[..len], FormatHint::Vhd), read_stream(&good[..len], FormatHint::Vhd)] {
            assert!(read.is_err(), "{len} of {} bytes", good.len());
        }
        if len >= 8 {
            refusals(&good[..len]);
        }
    }
}

proptest! {
    #[test]
    fn changed_bytes_give_an_error_or_a_disk(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = small().bytes();
        for (at, value) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        for format in [FormatHint::Auto, FormatHint::Vhd] {
            let _ = (read_file(&bytes, format), read_stream(&bytes, format));
        }
    }

    #[test]
    fn any_table_gives_an_error_or_a_disk(
        entries in prop::array::uniform4(prop_oneof![0_u32..40, any::<u32>(), Just(u32::MAX)]),
    ) {
        let mut bytes = small().bytes();
        for (at, entry) in (1536..).step_by(4).zip(entries) {
            bytes[at..at + 4].copy_from_slice(&entry.to_be_bytes());
        }
        let (file, stream) = (read_file(&bytes, FormatHint::Auto), read_stream(&bytes, FormatHint::Auto));
        prop_assert_eq!(file.map(|disk| disk.content).ok(), stream.map(|disk| disk.content).ok());
    }

    /// Records that are sound in themselves and say anything: neither a panic nor memory that the input does not
    /// justify.
    #[test]
    fn any_numbers_in_sound_records_give_an_error_or_a_disk(
        header_offset in edges(), table_offset in edges(), size in edges(), entries in edges(), block_size in edges(),
    ) {
        let mut bytes = small().bytes();
        patch_footers(&mut bytes, 16, &header_offset.to_be_bytes());
        patch_footers(&mut bytes, 48, &size.to_be_bytes());
        patch_header(&mut bytes, 16, &table_offset.to_be_bytes());
        patch_header(&mut bytes, 28, &entries.to_be_bytes()[4..]);
        patch_header(&mut bytes, 32, &block_size.to_be_bytes()[4..]);
        let options = options(FormatHint::Auto);
        for source in [open_file(file_with(&bytes), &options), open_stream(Cursor::new(bytes), &options)] {
            let Ok(mut source) = source else { continue };
            while let Ok(Some(_)) = source.next_block(&mut BlockBuf::new()) {}
        }
    }
}

/// Numbers at which arithmetic goes wrong, and the right ones often enough to get past the first check.
fn edges() -> impl Strategy<Value = u64> {
    let good = prop::sample::select(vec![512, 1536, 4, 4096, 15_384, 2 << 20, 4 << 20]);
    prop_oneof![
        4 => good,
        1 => any::<u64>(),
        1 => (0_u32..64, -2_i64..3).prop_map(|(bit, off)| (1_u64 << bit).wrapping_add_signed(off)),
        1 => (u64::MAX - 2048)..=u64::MAX,
    ]
}
