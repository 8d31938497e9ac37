//! Any bytes as a qcow2 image in a file: read to the end or refused.
//!
//! Input: control (1; bit 0 puts in a sound header), the image (the rest).
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use repo_core::disk::{BlockBuf, DiskSource, FormatHint, SourceOptions, open_file};
use repo_core::units::block_count;
use repo_fuzz::{check_error, has, write_seeds};
use rustix::fs::MemfdFlags;

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

/// Most bytes of disk that are read: small images can describe large disks, through compression and clusters that are
/// named often.
const READ_MAX: u64 = 64 << 20;

fn accepts(input: &[u8]) -> bool {
    let Some((control, bytes)) = input.split_first() else { return false };
    let mut image = bytes.to_vec();
    if has(*control, 0) {
        let header = header();
        let len = header.len().min(image.len());
        image[..len].copy_from_slice(&header[..len]);
    }
    let file = File::from(rustix::fs::memfd_create("image", MemfdFlags::CLOEXEC).expect("memory for a file"));
    file.write_all_at(&image, 0).expect("memory for a file");
    let options = SourceOptions { format: FormatHint::Qcow2, ..SourceOptions::default() };
    let read = open_file(file, &options).and_then(|mut source| drain(&mut *source));
    read.inspect_err(check_error).is_ok()
}

fn drain(source: &mut dyn DiskSource) -> repo_core::Result<()> {
    let size = source.virtual_size().expect("known at once");
    let mut buf = BlockBuf::new();
    let mut last = None;
    let mut read = 0;
    while let Some(index) = source.next_block(&mut buf)? {
        assert!(last.is_none_or(|last| last < index.0) && index.0 < block_count(size));
        assert!(buf.bytes()[index.len_on_disk_bytes(size)..].iter().all(|byte| *byte == 0));
        last = Some(index.0);
        read += buf.bytes().len() as u64;
        if read >= READ_MAX {
            return Ok(());
        }
    }
    Ok(())
}

const CLUSTER_LEN: usize = 512;
const L1_OFFSET: usize = 2 * CLUSTER_LEN;
const L2_OFFSET: usize = 3 * CLUSTER_LEN;
const DATA_OFFSET: usize = 4 * CLUSTER_LEN;

/// The header of a disk of 64 KiB less one sector, clusters of 512 bytes, with room for two L2 tables.
fn header() -> Vec<u8> {
    let mut header = b"QFI\xfb".to_vec();
    header.extend(3_u32.to_be_bytes());
    header.extend([0; 12]); // no backing file
    header.extend(9_u32.to_be_bytes());
    header.extend((65_536_u64 - 512).to_be_bytes());
    header.extend([0; 4]); // not encrypted
    header.extend(2_u32.to_be_bytes());
    header.extend((L1_OFFSET as u64).to_be_bytes());
    header.extend((CLUSTER_LEN as u64).to_be_bytes());
    header.extend(1_u32.to_be_bytes());
    header.extend([0; 12]); // no snapshots
    header.extend([0; 24]); // no features
    header.extend(4_u32.to_be_bytes());
    header.extend(104_u32.to_be_bytes());
    header
}

/// An image whose only L2 table has these entries; its data clusters begin at byte 2048.
fn image(version: u32, entries: &[u64], data: &[u8]) -> Vec<u8> {
    let mut image = header();
    image[4..8].copy_from_slice(&version.to_be_bytes());
    image.resize(DATA_OFFSET, 0);
    image[L1_OFFSET..L1_OFFSET + 8].copy_from_slice(&((1_u64 << 63) | L2_OFFSET as u64).to_be_bytes());
    for (entry, at) in entries.iter().zip((L2_OFFSET..).step_by(8)) {
        image[at..at + 8].copy_from_slice(&entry.to_be_bytes());
    }
    image.extend(data);
    image
}

fn seeds() -> Vec<Vec<u8>> {
    let data = |number: usize| (1_u64 << 63) | (DATA_OFFSET + number * CLUSTER_LEN) as u64;
    // Deflate in one stored block, and in one of fixed codes that repeats a byte.
    let stored = [&[1, 0, 2, 0xFF, 0xFD], &[7; 512][..], &[0; 507]].concat();
    let compressed = (1_u64 << 62) | (1 << 61) | DATA_OFFSET as u64;
    let mut backing = image(3, &[data(0)], &[5; CLUSTER_LEN]);
    backing[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 200, 0, 0, 0, 9]);
    let images = [
        image(3, &[data(0), 0, 1, data(1)], &[5; 2 * CLUSTER_LEN]),
        image(2, &[0, data(1), data(0)], &[5; 2 * CLUSTER_LEN]),
        image(3, &[compressed, data(2)], &[stored, vec![3; CLUSTER_LEN]].concat()),
        image(3, &[], &[]),
        backing,
    ];
    images.iter().flat_map(|image| [0, 1].map(|control| [&[control], &image[..]].concat())).collect()
}
