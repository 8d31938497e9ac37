//! What a hinted source delivers and what it does not.

use std::fs::File;
use std::io::Write;

use super::*;
use crate::disk::{BlockBuf, Delivery, DiskFormat, DiskSource, FormatHint, SourceOptions, Undelivered, open_hinted};
use crate::units::block_count;

/// A disk whose blocks hold their number, the last one 700 bytes.
fn disk() -> Vec<u8> {
    let len = 5 * BLOCK_LEN + 700;
    (0..len).map(|at| u8::try_from(at / BLOCK_LEN).unwrap() + 1).collect()
}

fn file_with(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn list_of(extents: &[(u64, u64)]) -> ChangedList {
    let objects: Vec<_> = extents
        .iter()
        .map(|(offset, len)| format!("{{\"offset\":{offset},\"length\":{len},\"exists\":\"true\"}}"))
        .collect();
    ChangedList::parse(format!("[{}]", objects.join(",")).as_bytes()).unwrap()
}

fn open(bytes: &[u8], list: &ChangedList, base_size: u64) -> crate::error::Result<Box<dyn DiskSource>> {
    open_hinted(file_with(bytes), &SourceOptions::default(), list, base_size)
}

fn delivered(source: &mut dyn DiskSource) -> Vec<u64> {
    let mut buf = BlockBuf::new();
    let mut indices = Vec::new();
    loop {
        buf.bytes_mut().fill(0xEE);
        let Some(index) = source.next_block(&mut buf).unwrap() else { return indices };
        check(&buf, index);
        indices.push(index.0);
    }
}

/// All of the block on the disk, and zeros behind it.
fn check(buf: &BlockBuf, index: BlockIndex) {
    let len = index.len_on_disk_bytes(disk().len() as u64);
    let number = u8::try_from(index.0).unwrap() + 1;
    assert!(buf.bytes()[..len].iter().all(|byte| *byte == number), "block {index}");
    assert!(buf.bytes()[len..].iter().all(|byte| *byte == 0), "block {index}");
}

#[test]
fn only_the_blocks_of_the_list_are_delivered_and_any_is_a_sample() {
    let disk = disk();
    let size = disk.len() as u64;
    let mut source = open(&disk, &list_of(&[(size - 1, 1), (BLOCK_LEN as u64 * 2 - 1, 2)]), size).unwrap();
    assert_eq!((source.virtual_size(), source.format()), (Some(size), DiskFormat::Raw));
    assert_eq!((source.delivery(), source.undelivered()), (Delivery::Ascending, Undelivered::Base));
    assert!(source.is_hinted());
    let mut buf = BlockBuf::new();
    let mut sample = |source: &mut dyn DiskSource, index: u64| {
        buf.bytes_mut().fill(0xEE);
        let read = source.sample(BlockIndex(index), &mut buf).unwrap();
        if read {
            check(&buf, BlockIndex(index));
        }
        read
    };
    assert!(sample(&mut *source, 3));
    assert_eq!(delivered(&mut *source), [1, 2, 5]);
    for index in 0..block_count(size) {
        assert!(sample(&mut *source, index));
    }
    assert!(!sample(&mut *source, block_count(size)));
    assert!(!sample(&mut *source, u64::MAX / BLOCK_LEN as u64));
    assert!(source.next_block(&mut BlockBuf::new()).unwrap().is_none());
}

#[test]
fn zeros_that_changed_are_delivered() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 << 20).unwrap();
    let list = list_of(&[(4 << 20, 1)]);
    let mut source = open_hinted(file, &SourceOptions::default(), &list, 8 << 20).unwrap();
    let mut buf = BlockBuf::new();
    assert_eq!(source.next_block(&mut buf).unwrap(), Some(BlockIndex(2)));
    assert!(buf.bytes().iter().all(|byte| *byte == 0));
    assert!(source.next_block(&mut buf).unwrap().is_none());
}

#[test]
fn a_source_without_a_list_is_not_hinted_and_gives_no_sample() {
    let mut source = crate::disk::open_file(file_with(&disk()), &SourceOptions::default()).unwrap();
    assert!(!source.is_hinted());
    assert!(!source.sample(BlockIndex(0), &mut BlockBuf::new()).unwrap());
}

#[test]
fn the_footer_of_a_fixed_vhd_is_no_content() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, vhd) = (folder.path().join("disk.raw"), folder.path().join("disk.vhd"));
    std::fs::write(&raw, &disk()[..4 * BLOCK_LEN]).unwrap();
    let output = std::process::Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size=on"])
        .args([&raw, &vhd])
        .output()
        .expect("qemu-img, which this test needs, runs");
    assert!(output.status.success(), "{output:?}");
    let size = 4 * BLOCK_LEN as u64;
    let list = list_of(&[(size - 1, 1)]);
    let mut source = open_hinted(File::open(&vhd).unwrap(), &SourceOptions::default(), &list, size).unwrap();
    assert_eq!((source.virtual_size(), source.format()), (Some(size), DiskFormat::VhdFixed));
    assert_eq!(delivered(&mut *source), [3]);
    // With the footer it would be another disk.
    let raw = SourceOptions { format: FormatHint::Raw, ..SourceOptions::default() };
    let source = open_hinted(File::open(&vhd).unwrap(), &raw, &list, size).unwrap();
    assert_eq!(source.virtual_size(), Some(size + 512));
}

#[test]
fn sources_that_are_read_forward_and_formats_with_a_map_are_refused() {
    let (reader, _writer) = std::io::pipe().unwrap();
    let pipe = File::from(std::os::fd::OwnedFd::from(reader));
    let error = open_hinted(pipe, &SourceOptions::default(), &list_of(&[]), 0).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(
        error.to_string(),
        "the changed list needs a source that can be read anywhere: a file or a block device"
    );
    let vhd = SourceOptions { format: FormatHint::Vhd, ..SourceOptions::default() };
    assert!(open_hinted(file_with(&disk()), &vhd, &list_of(&[]), 0).is_err());
    let error = open(&disk(), &list_of(&[(1 << 30, 1)]), 5).err().unwrap();
    assert!(error.to_string().contains("past the end of the disk"), "{error}");
    assert!(open(&[], &list_of(&[]), 0).err().unwrap().to_string().contains("the input is empty"));
}
