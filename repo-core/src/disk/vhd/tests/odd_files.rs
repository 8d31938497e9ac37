//! What other programs write, and what the specification allows.

use super::image::{Image, Stored, patch_footers};
use super::*;
use crate::disk::vhd::footer::{Footer, SHORT_FOOTER_LEN};

/// Both readers see the content, and the readers that know nothing of the format beforehand see what it is.
fn reads(image: &Image) -> [Disk; 2] {
    let bytes = image.bytes();
    let disks = [read_file(&bytes, FormatHint::Auto).unwrap(), read_stream(&bytes, FormatHint::Auto).unwrap()];
    for disk in &disks {
        assert_eq!(disk.format, DiskFormat::VhdDynamic);
        assert!(disk.content == image.content(), "the content differs");
    }
    assert_eq!(disks[0].delivery, Delivery::Ascending, "a file is read in virtual order");
    disks
}

#[test]
fn blocks_out_of_order_with_gaps() {
    let block = |index, gap| Stored { gap, ..Stored::whole(index) };
    let image = Image::new(9 << 20, 2 << 20, vec![block(3, 7), block(0, 0), block(4, 200), block(1, 1)]);
    let [file, stream] = reads(&image);
    assert_eq!(file.blocks, [0, 1, 3, 4]);
    assert_eq!((stream.blocks.as_slice(), stream.delivery), (&[3, 0, 4, 1][..], Delivery::AnyOrder));
}

#[test]
fn ascending_blocks_are_announced_as_such() {
    let image = Image::new(9 << 20, 2 << 20, vec![Stored::whole(0), Stored::whole(2), Stored::whole(4)]);
    assert_eq!(reads(&image)[1].delivery, Delivery::Ascending);
    let image = Image::new(6 << 20, 1 << 19, vec![Stored::whole(1), Stored::whole(0), Stored::whole(9)]);
    assert_eq!(reads(&image)[1].delivery, Delivery::Ascending, "out of order only inside a 2 MiB block");
}

#[test]
fn the_table_where_xapi_puts_it() {
    let mut image = Image::new(5 << 20, 2 << 20, vec![Stored::whole(0), Stored::whole(2)]);
    image.table_offset = 2048;
    reads(&image);
}

#[test]
fn a_table_preallocated_for_2_tib() {
    let mut image = Image::new(5 << 20, 2 << 20, vec![Stored::whole(2), Stored::whole(0)]);
    image.spare_entries = 1_048_576 - 3;
    reads(&image);
}

#[test]
fn a_disk_without_any_block() {
    for size in [512, (5 << 20) + 512] {
        let disks = reads(&Image::new(size, 2 << 20, vec![]));
        assert!(disks.iter().all(|disk| disk.blocks.is_empty()));
    }
}

#[test]
fn small_blocks_scattered() {
    // 20 blocks of 2 MiB are begun before the first is complete: more than are held in memory.
    let order = (0..4).flat_map(|part| (0..20).map(move |block| (19 - block) * 4 + part));
    let image = Image::new(40 << 20, 512 << 10, order.map(Stored::whole).collect());
    let [_, stream] = reads(&image);
    assert_eq!(stream.delivery, Delivery::AnyOrder);
    let image = Image::new(6_500_000, 4096, (0..1580).step_by(3).map(|n| Stored::whole(n * 7 % 1580)).collect());
    reads(&image);
    let image = Image::new(5_000, 512, [8, 2, 5].map(Stored::whole).into());
    reads(&image);
}

#[test]
fn blocks_larger_than_2_mib() {
    let image = Image::new((13 << 20) + 512, 4 << 20, vec![Stored::whole(3), Stored::whole(1)]);
    let [file, stream] = reads(&image);
    assert_eq!(file.blocks, [2, 3, 6], "the part of the last block past the disk's end is none of the disk's");
    assert_eq!(stream.blocks, [6, 2, 3]);
    reads(&Image::new(20 << 20, 16 << 20, vec![Stored { index: 1, gap: 3, set: |sector| sector % 3 == 0 }]));
}

#[test]
fn unset_sectors_read_as_zeros_whatever_is_stored() {
    let sets: [fn(usize) -> bool; 4] =
        [|sector| sector % 2 == 1, |sector| sector < 9, |_| false, |sector| sector > 4000];
    let stored = (0..4).zip(sets).map(|(index, set)| Stored { index, gap: 1, set });
    reads(&Image::new((7 << 20) + 300, 2 << 20, stored.collect()));
    let stored = (0..4).zip(sets).map(|(index, set)| Stored { index, gap: 0, set });
    reads(&Image::new(4 << 12, 4096, stored.collect()));
}

#[test]
fn a_footer_of_511_bytes() {
    let mut image = Image::new(5 << 20, 2 << 20, vec![Stored::whole(1)]);
    image.footer_len = SHORT_FOOTER_LEN;
    reads(&image);
}

#[test]
fn sizes_that_are_a_multiple_of_nothing() {
    for size in [1, 511, 513, (2 << 20) - 1, (2 << 20) + 1, (4 << 20) + 12_345] {
        let last = u32::try_from((size - 1) >> 21).unwrap();
        reads(&Image::new(size, 2 << 20, vec![Stored::whole(last)]));
        reads(&Image::new(size, 4 << 20, vec![Stored::whole(last / 2)]));
    }
}

/// tapdisk puts a batmap behind the BAT, and the data of each block on a page: up to seven sectors before its bitmap.
#[test]
fn a_file_as_tapdisk_writes_it() {
    let block = |index, gap| Stored { gap, ..Stored::whole(index) };
    let image = Image::new(8 << 20, 2 << 20, vec![block(1, 2 + 7), block(0, 7)]);
    let mut bytes = image.bytes();
    bytes[2048..2056].copy_from_slice(b"tdbatmap");
    patch_footers(&mut bytes, 28, b"tap\0\x00\x01\x00\x03\0\0\0\0");
    assert!(read_file(&bytes, FormatHint::Auto).unwrap().content == image.content());
    assert!(read_stream(&bytes, FormatHint::Auto).unwrap().content == image.content());
    // Hidden in the footer at the end alone, as snapshots become.
    let end = bytes.len() - 512;
    super::image::patch_record(&mut bytes[end..], 85, &[1], 64);
    assert!(read_file(&bytes, FormatHint::Auto).unwrap().content == image.content());
    assert!(read_stream(&bytes, FormatHint::Auto).unwrap().content == image.content());
}

#[test]
fn the_footer_stands_at_the_end_of_the_device_and_not_behind_the_last_block() {
    let image = Image::new(4 << 20, 2 << 20, vec![Stored::whole(1)]);
    let mut bytes = image.bytes();
    let footer = bytes.split_off(image.footer_offset());
    // A footer that was at the end once, before the volume grew.
    bytes.extend_from_slice(&footer);
    bytes.resize(bytes.len() + 300_000, 0);
    bytes.resize(bytes.len().next_multiple_of(4096) - 512, 0);
    bytes.extend_from_slice(&footer);
    assert!(read_file(&bytes, FormatHint::Auto).unwrap().content == image.content());
    assert!(read_stream(&bytes, FormatHint::Auto).unwrap().content == image.content());
}

#[test]
fn a_fixed_vhd_in_a_file_even_if_its_content_begins_like_a_vhd() {
    for content in
        [vec![5; 3_000_000], [Footer::new_dynamic(1 << 20, [1; 16], 0, 512).encode(), &[5; 2 << 20]].concat()]
    {
        let bytes = [&content, Footer::new_fixed(content.len() as u64).encode()].concat();
        for format in [FormatHint::Auto, FormatHint::Vhd] {
            let disk = read_file(&bytes, format).unwrap();
            assert_eq!((disk.format, disk.content == content), (DiskFormat::VhdFixed, true));
        }
        assert!(read_file(&bytes, FormatHint::Raw).unwrap().content == bytes);
    }
}

#[test]
fn a_fifo_is_read_as_a_stream() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let image = Image::new(5 << 20, 2 << 20, vec![Stored::whole(2), Stored::whole(0)]);
    let (bytes, target) = (image.bytes(), path.clone());
    let writer = std::thread::spawn(move || std::fs::write(target, bytes).unwrap());
    let disk = drain(open_file(File::open(path).unwrap(), &options(FormatHint::Auto)).unwrap()).unwrap();
    writer.join().unwrap();
    assert!(disk.content == image.content());
    assert_eq!(disk.blocks, [2, 0]);
}

/// A reader that hands out a few bytes at a time, and is interrupted now and then.
struct Trickle(Cursor<Vec<u8>>, usize);

impl Read for Trickle {
    fn read(&mut self, dest: &mut [u8]) -> std::io::Result<usize> {
        self.1 += 1;
        if self.1.is_multiple_of(5) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        let len = dest.len().min(1 + self.1 * 97 % 4000);
        self.0.read(&mut dest[..len])
    }
}

#[test]
fn a_stream_that_comes_in_small_pieces() {
    let image =
        Image::new(5 << 20, 2 << 20, vec![Stored::whole(2), Stored { index: 0, gap: 5, set: |sector| sector > 3 }]);
    let source = open_stream(Trickle(Cursor::new(image.bytes()), 0), &options(FormatHint::Auto)).unwrap();
    assert!(drain(source).unwrap().content == image.content());
    assert_eq!(BlockIndex(2).len_on_disk_bytes(5 << 20), 1 << 20);
}
