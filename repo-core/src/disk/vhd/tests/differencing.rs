//! Differencing disks: what they hold is laid over a parent sector by sector, all else is the parent's.

use proptest::prelude::*;

use super::image::{Image, Stored, patch_footers, patch_header};
use super::*;
use crate::disk::{ImageIds, SECTORS_PER_BLOCK, Undelivered};
use crate::units::SECTOR_LEN;

/// Tapdisk's, whose ids name each other.
const TAPDISK: [u8; 4] = *b"tap\0";
const PARENT: [u8; 16] = [3; 16];

/// The image as a differencing one.
fn differencing(image: &Image, creator: [u8; 4]) -> Vec<u8> {
    let mut bytes = image.bytes();
    patch_footers(&mut bytes, 60, &[0, 0, 0, 4]);
    patch_footers(&mut bytes, 28, &creator);
    patch_header(&mut bytes, 40, &PARENT);
    bytes
}

/// A source of each kind, for the same bytes.
fn sources(bytes: &[u8]) -> [Box<dyn DiskSource>; 2] {
    let options = options(FormatHint::Auto);
    [open_file(file_with(bytes), &options).unwrap(), open_stream(Cursor::new(bytes.to_vec()), &options).unwrap()]
}

/// Lays a delta over a parent as [`DiskSource`] says, and gives the blocks that were delivered.
fn lay_over(mut source: Box<dyn DiskSource>, parent: &[u8]) -> (Vec<u8>, Vec<u64>) {
    assert_eq!((source.format(), source.undelivered()), (DiskFormat::VhdDifferencing, Undelivered::Base));
    let size = usize::try_from(source.virtual_size().unwrap()).unwrap();
    let mut content = parent.to_vec();
    content.resize(size.next_multiple_of(BLOCK_LEN), 0);
    let (mut blocks, mut buf) = (Vec::new(), BlockBuf::new());
    loop {
        buf.bytes_mut().fill(0xEE);
        let Some(index) = source.next_block(&mut buf).unwrap() else { break };
        let block = &mut content[usize::try_from(index.offset_bytes()).unwrap()..][..BLOCK_LEN];
        let mask = source.held_sectors();
        assert!(
            mask.is_none_or(|mask| !mask.is_full() && !mask.is_empty()),
            "block {index} is said in a roundabout way"
        );
        for sector in (0..SECTORS_PER_BLOCK).filter(|sector| mask.is_none_or(|mask| mask.contains(*sector))) {
            let range = sector * SECTOR_LEN..(sector + 1) * SECTOR_LEN;
            block[range.clone()].copy_from_slice(&buf.bytes()[range]);
        }
        blocks.push(index.0);
    }
    assert!(source.held_sectors().is_none());
    assert!(content[size..].iter().all(|byte| *byte == 0), "bytes past the end are not zero");
    content.truncate(size);
    (content, blocks)
}

/// Asserts that both readers lay the image over a parent of `parent_len` bytes as the image's own model does.
fn agrees(image: &Image, parent_len: usize) -> [Vec<u64>; 2] {
    let parent: Vec<u8> = (0..parent_len).map(|at| u8::try_from(at / 97 % 251).unwrap() + 5).collect();
    let expected = image.content_over(&parent);
    sources(&differencing(image, *b"caml")).map(|source| {
        let (content, mut blocks) = lay_over(source, &parent);
        assert!(content == expected, "the content differs");
        blocks.sort_unstable();
        blocks
    })
}

#[test]
fn whole_blocks_as_xapi_writes_them() {
    let mut image = Image::new(9 << 20, 2 << 20, vec![Stored::whole(0), Stored::whole(3), Stored::whole(4)]);
    image.table_offset = 2048;
    assert_eq!(agrees(&image, 9 << 20), [[0, 3, 4], [0, 3, 4]]);
    for source in sources(&differencing(&image, *b"caml")) {
        assert_eq!(source.ids(), None, "XAPI's ids name nothing");
    }
}

#[test]
fn single_sectors_and_holes_as_tapdisk_writes_them() {
    let sets: [fn(usize) -> bool; 4] =
        [|sector| sector % 3 == 1, |sector| sector / 8 % 2 == 0, |_| false, |sector| sector == 4095];
    let stored = (0..4).zip(sets).map(|(index, set)| Stored { index: index * 2, gap: 7, set });
    let image = Image::new(14 << 20, 2 << 20, stored.collect());
    assert_eq!(agrees(&image, 13 << 20), [[0, 2, 6], [0, 2, 6]], "a block of which no sector is set changes nothing");
    for source in sources(&differencing(&image, TAPDISK)) {
        assert_eq!(source.ids(), Some(ImageIds { own: [7; 16], parent: Some(PARENT) }));
    }
}

#[test]
fn a_disk_without_any_block_changes_nothing() {
    assert_eq!(agrees(&Image::new(5 << 20, 2 << 20, vec![]), 5 << 20), [[0; 0], [0; 0]]);
    let unset = Stored { index: 1, gap: 0, set: |_| false };
    assert_eq!(agrees(&Image::new(5 << 20, 4096, vec![unset]), 5 << 20), [[0; 0], [0; 0]]);
}

#[test]
fn sectors_past_the_disks_end_do_not_make_a_block_partial() {
    let size = (2 << 20) + 5 * 512 + 100;
    let stored = Stored { index: 1, gap: 0, set: |sector| sector < 6 };
    let image = Image::new(size, 2 << 20, vec![stored]);
    agrees(&image, 3000);
    for mut source in sources(&differencing(&image, TAPDISK)) {
        assert_eq!(source.next_block(&mut BlockBuf::new()).unwrap(), Some(BlockIndex(1)));
        assert_eq!(source.held_sectors(), None);
    }
    let past_the_end = Stored { index: 1, gap: 0, set: |sector| sector > 6 };
    assert_eq!(agrees(&Image::new(size, 2 << 20, vec![past_the_end]), 3000), [[0; 0], [0; 0]]);
}

#[test]
fn small_blocks_scattered_over_more_blocks_than_are_held_in_memory() {
    let order = (0..4).flat_map(|part| (0..20).map(move |block| (19 - block) * 4 + part)).filter(|n| n % 11 != 3);
    let stored = order.map(|index| Stored { set: |sector| sector % 16 < 9, ..Stored::whole(index) });
    agrees(&Image::new(40 << 20, 512 << 10, stored.collect()), 40 << 20);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_image_is_laid_over_any_parent(
        (block_size, size) in prop_oneof![
            (Just(2_u32 << 20), 1..9_u64 << 20),
            (Just(4 << 20), 1..13_u64 << 20),
            (Just(1 << 20), 1..9_u64 << 20),
            (Just(64 << 10), 1..5_u64 << 20),
            (Just(4096), 1..3_u64 << 20),
            (Just(512), 1..300_000_u64),
        ],
        picks in prop::collection::vec((any::<prop::sample::Index>(), 0..3_u64, 0..6_usize), 0..40),
        parent in any::<prop::sample::Index>(),
    ) {
        const SETS: [fn(usize) -> bool; 6] =
            [|_| true, |_| false, |n| n % 2 == 1, |n| n < 9, |n| n / 8 % 3 == 0, |n| n > 1000];
        let blocks = usize::try_from(size.div_ceil(u64::from(block_size))).unwrap();
        let mut stored: Vec<Stored> = Vec::new();
        for (at, gap, set) in picks {
            let index = u32::try_from(at.index(blocks)).unwrap();
            if stored.iter().all(|other| other.index != index) {
                stored.push(Stored { index, gap, set: SETS[set] });
            }
        }
        agrees(&Image::new(size, block_size, stored), parent.index(usize::try_from(size).unwrap() + 1));
    }
}
