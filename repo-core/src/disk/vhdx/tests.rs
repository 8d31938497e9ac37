//! Images as a whole: written here, read by a reader that shares no code with the writer, and judged by qemu.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::layout::{VHDX_SIZE_MAX, VhdxLayout, VhdxParams};
use crate::disk::image::ImageLayout;
use crate::disk::image::tests::{Judged, SparseDisk, pages_of};
use crate::units::BLOCK_LEN;

const MIB: usize = 1 << 20;

/// The pages of an image of a disk of `size` bytes, after checking every rule of the specification that a dynamic disk
/// which nobody has written to since must keep.
fn read(image: &[u8], size: u64) -> BTreeMap<u64, Vec<u8>> {
    assert_eq!(&image[..18], b"vhdxfileC\0a\0i\0r\0n\0");
    check_headers(image);
    let [bat, metadata] = regions(image);
    assert_eq!((metadata.0, metadata.1), (2 * MIB, MIB));
    assert!(image[MIB..2 * MIB].iter().all(|byte| *byte == 0), "the log is empty");
    check_metadata(&image[2 * MIB..3 * MIB], size);
    let blocks = usize::try_from(size.div_ceil(2 << 20)).unwrap();
    let entries = blocks + (blocks - 1) / 2048;
    assert_eq!(bat.1, (entries * 8).next_multiple_of(MIB), "length of the BAT");
    let bat_bytes = &image[bat.0..bat.0 + bat.1];
    assert!(bat_bytes[entries * 8..].iter().all(|byte| *byte == 0), "nothing behind the last entry");
    let mut next = bat.0 + bat.1;
    let mut pages = BTreeMap::new();
    let mut block = 0;
    for number in 0..entries {
        let entry = u64_at(bat_bytes, number * 8);
        if number % 2049 == 2048 {
            assert_eq!(entry, 0, "sector bitmap");
            continue;
        }
        if entry != 2 {
            assert_eq!(entry, next as u64 | 6, "ascending, without gap or overlap");
            pages.extend(pages_of(block * (2 << 20), &image[next..next + 2 * MIB], size));
            next += 2 * MIB;
        }
        block += 1;
    }
    assert_eq!((block, next), (blocks as u64, image.len()));
    pages
}

fn check_headers(image: &[u8]) {
    let headers = [64, 128].map(|at| &image[at << 10..(at << 10) + 4096]);
    for header in headers {
        assert_eq!(&header[..4], b"head");
        assert_eq!(u32_at(header, 4), sum(header));
        assert!(header[48..66].iter().all(|byte| *byte == 0), "no log, its version 0");
        assert_eq!(u32_at(header, 66) & 0xFFFF, 1, "version");
        assert_eq!((u32_at(header, 68), u64_at(header, 72)), (1 << 20, 1 << 20), "log");
        assert!(header[80..].iter().all(|byte| *byte == 0), "reserved");
        assert_eq!((header[23] >> 4, header[24] >> 6), (4, 2), "a random GUID");
    }
    assert!(u64_at(headers[0], 8) < u64_at(headers[1], 8), "the second counts");
    assert_eq!(headers[0][16..], headers[1][16..]);
}

/// Position and length of BAT and metadata.
fn regions(image: &[u8]) -> [(usize, usize); 2] {
    let [table, copy] = [192, 256].map(|at| &image[at << 10..(at + 64) << 10]);
    assert!(table == copy);
    assert_eq!(&table[..4], b"regi");
    assert_eq!(u32_at(table, 4), sum(table));
    assert_eq!((u32_at(table, 8), u32_at(table, 12)), (2, 0), "two regions");
    assert!(table[80..].iter().all(|byte| *byte == 0));
    let guids = ["2dc27766f62342009d64115e9bfd4a08", "8b7ca20647904b9ab8fe575f050f886e"];
    [0, 1].map(|number| {
        let entry = &table[16 + 32 * number..][..32];
        assert_eq!(guid(entry), guids[number]);
        assert_eq!(u32_at(entry, 28), 1, "required");
        (usize::try_from(u64_at(entry, 16)).unwrap(), u32_at(entry, 24) as usize)
    })
}

fn check_metadata(region: &[u8], size: u64) {
    assert_eq!(&region[..12], b"metadata\0\0\x05\0");
    let mut items = BTreeMap::new();
    for entry in region[32..32 + 5 * 32].chunks(32) {
        let (at, len) = (u32_at(entry, 16) as usize, u32_at(entry, 20) as usize);
        assert!(at >= 65_536);
        items.insert(guid(entry), (u32_at(entry, 24), region[at..at + len].to_vec()));
    }
    let expected = [
        ("caa16737fa364d43b3b633f0aa44e76b", 4, vec![0, 0, 0x20, 0, 0, 0, 0, 0]),
        ("2fa54224cd1b4876b2115dbed83bf4b8", 6, size.next_multiple_of(512).to_le_bytes().to_vec()),
        ("8141bf1da96f4709ba47f233a8faab5f", 6, vec![0, 2, 0, 0]),
        ("cda348c7445d44719cc9e9885251c556", 6, vec![0, 16, 0, 0]),
    ];
    for (id, flags, item) in expected {
        assert_eq!(items[id], (flags, item), "{id}");
    }
    assert_eq!(items["beca12abb2e6452393efc309e000c746"].1.len(), 16, "disk id");
}

/// A GUID as text without dashes: the first three fields are little-endian.
fn guid(bytes: &[u8]) -> String {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    order.map(|at| format!("{:02x}", bytes[at])).concat()
}

/// CRC-32C with its own field counted as zero, bit by bit.
fn sum(record: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for (at, byte) in record.iter().enumerate() {
        crc ^= if (4..8).contains(&at) { 0 } else { u32::from(*byte) };
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    !crc
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn layout(disk: &SparseDisk) -> VhdxLayout {
    let params = VhdxParams {
        virtual_size: disk.size,
        disk_id: [0x5A; 16],
        file_write_guid: [0xFF; 16],
        data_write_guid: [0; 16],
    };
    VhdxLayout::new(&params, &disk.present()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_disk_comes_back(disk in SparseDisk::any(3 << 40)) {
        prop_assert_eq!(read(&disk.image(layout(&disk)), disk.size), disk.content());
    }
}

#[test]
fn qemu_reads_what_is_written_here() {
    let block = BLOCK_LEN as u64;
    let many: Vec<_> = (0..40 * 512).filter(|page| page % 7 < 3 && !(512..1536).contains(page)).collect();
    for disk in [
        SparseDisk::new(1, []),
        SparseDisk::new(1, [0]),
        SparseDisk::new(512, [0]),
        SparseDisk::new(5 * block + 70_001, many.clone()),
        SparseDisk::new(40 * block, many),
    ] {
        let judged = Judged::new(&disk, &disk.image(layout(&disk)), "vhdx");
        judged.compare(&disk);
        assert!(judged.info.contains("\"cluster-size\": 2097152"), "{}", judged.info);
    }
}

#[test]
fn qemu_finds_the_blocks_of_large_disks_between_the_sector_bitmaps() {
    // 4 GiB of the disk share a sector bitmap. qemu knows no holes of VHDX and would read all of such a disk to compare.
    for disk in [
        SparseDisk::new((12 << 30) + 1000, [0, (1 << 20) - 1, 1 << 20, (2 << 20) + 512, 3 << 20]),
        SparseDisk::new(2 << 40, [0, 1 << 20, (1 << 29) - 1]),
    ] {
        Judged::new(&disk, &disk.image(layout(&disk)), "vhdx").probe(&disk);
    }
}

#[test]
fn the_largest_disk_can_name_its_last_block() {
    let disk = SparseDisk::new(VHDX_SIZE_MAX, [(VHDX_SIZE_MAX >> 12) - 1]);
    let layout = layout(&disk);
    let bat = layout.head().nth(3 + 256).unwrap();
    // 33554432 blocks and 16383 sector bitmaps before the last entry, 131072 entries a MiB.
    let last = (33_554_431 + 16_383) % 131_072;
    assert_eq!(u64_at(&bat, last * 8), (260 << 20) | 6);
    assert_eq!(layout.len_bytes(), 262 << 20);
}
