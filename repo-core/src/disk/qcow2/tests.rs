//! Images as a whole: written here, read by a reader that shares no code with the writer, and judged by qemu.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::layout::Qcow2Layout;
use crate::disk::image::tests::{Judged, SparseDisk, pages_of};
use crate::units::BLOCK_LEN;

/// The pages of an image of a disk of `size` bytes, after checking that it is of our profile and that every cluster of
/// it is used exactly once.
fn read(image: &[u8], size: u64) -> BTreeMap<u64, Vec<u8>> {
    assert_eq!(&image[..8], b"QFI\xfb\0\0\0\x03");
    assert_eq!(u32_at(image, 20), 16, "cluster bits");
    assert_eq!(u64_at(image, 24), size.next_multiple_of(512));
    assert_eq!((u32_at(image, 96), u32_at(image, 100)), (4, 112), "refcount order, header length");
    for zeros in [8..20, 32..36, 60..96, 104..65_536] {
        assert!(image[zeros.clone()].iter().all(|byte| *byte == 0), "bytes {zeros:?} of the header");
    }
    let mut used = Used::new(image.len());
    used.take(0);
    let table = u64_at(image, 48);
    let refcounts = (0..u64::from(u32_at(image, 56))).flat_map(|cluster| used.table(image, table + cluster * CLUSTER));
    let refcounts: Vec<_> = refcounts.collect();
    let l1 = u64_at(image, 40);
    let l1_entries = u32_at(image, 36) as usize;
    assert_eq!(l1_entries as u64, size.div_ceil(8192 * CLUSTER));
    let l1: Vec<_> =
        (0..l1_entries.div_ceil(8192) as u64).flat_map(|at| used.table(image, l1 + at * CLUSTER)).collect();
    assert!(l1[l1_entries..].iter().all(|entry| *entry == 0));
    let mut pages = BTreeMap::new();
    for (l2, first) in l1.iter().zip((0..).step_by(8192)).filter(|(l2, _)| **l2 != 0) {
        for (entry, cluster) in used.table(image, in_place(*l2)).into_iter().zip(first..).filter(|(at, _)| *at != 0) {
            let at = in_place(entry);
            used.take(at);
            pages.extend(pages_of(cluster * CLUSTER, &image[usize::try_from(at).unwrap()..][..65_536], size));
        }
    }
    used.check(image, &refcounts);
    pages
}

const CLUSTER: u64 = 65_536;

/// How often each cluster is used, in the order of reading.
struct Used(Vec<u16>);

impl Used {
    fn new(len: usize) -> Self {
        assert_eq!(len % 65_536, 0, "whole clusters");
        Self(vec![0; len / 65_536])
    }

    fn take(&mut self, offset: u64) {
        assert_eq!(offset % CLUSTER, 0);
        self.0[usize::try_from(offset / CLUSTER).unwrap()] += 1;
    }

    fn table(&mut self, image: &[u8], offset: u64) -> Vec<u64> {
        self.take(offset);
        let at = usize::try_from(offset).unwrap();
        image[at..at + 65_536].chunks(8).map(|entry| u64_at(entry, 0)).collect()
    }

    /// Compares with the refcounts of the image: its blocks are used too.
    fn check(mut self, image: &[u8], refcount_blocks: &[u64]) {
        let mut stored = Vec::new();
        for block in refcount_blocks.iter().filter(|block| **block != 0) {
            let counts = self.table(image, *block);
            stored.extend(counts.iter().flat_map(|four| four.to_be_bytes().chunks(2).map(u16_of).collect::<Vec<_>>()));
        }
        assert!(stored.len() >= self.0.len());
        assert!(self.0.iter().all(|count| *count == 1), "every cluster is used once");
        let (counted, past_end) = stored.split_at(self.0.len());
        assert!(counted == self.0 && past_end.iter().all(|count| *count == 0), "refcounts are exact");
    }
}

/// The offset of an entry that says its cluster is used once.
fn in_place(entry: u64) -> u64 {
    assert_eq!(entry >> 56, 0x80, "{entry:x}");
    entry & 0x00FF_FFFF_FFFF_FFFF
}

fn u16_of(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(bytes.try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn image(disk: &SparseDisk) -> Vec<u8> {
    disk.image(Qcow2Layout::new(disk.size, &disk.present()).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_disk_comes_back(disk in SparseDisk::any(9 << 40)) {
        prop_assert_eq!(read(&image(&disk), disk.size), disk.content());
    }
}

#[test]
fn qemu_reads_what_is_written_here_and_finds_neither_errors_nor_leaks() {
    let block = BLOCK_LEN as u64;
    let many: Vec<_> = (0..40 * 512).filter(|page| page % 7 < 3 && !(512..1536).contains(page)).collect();
    for disk in [
        SparseDisk::new(1, []),
        SparseDisk::new(1, [0]),
        SparseDisk::new(512, [0]),
        SparseDisk::new(5 * block + 70_001, many.clone()),
        SparseDisk::new(40 * block, many),
        SparseDisk::new((512 << 20) + 1000, [0, 511, 512, 131_071, 131_072]),
        SparseDisk::new(2 << 40, [0, 1 << 20, (1 << 29) - 1]),
        SparseDisk::new((9 << 40) + 513, [7, 1 << 30, (9 << 28) + 1]),
    ] {
        let judged = Judged::new(&disk, &image(&disk), "qcow2");
        judged.compare(&disk);
        let info = judged.info;
        assert!(info.contains("\"corrupt\": false") && info.contains("\"refcount-bits\": 16"), "{info}");
    }
}

#[test]
fn a_full_disk_whose_refcounts_take_two_blocks_is_sound() {
    // 1100 blocks are 35200 clusters, more than the 32768 of one refcount block; only their tables hold anything here.
    let disk = SparseDisk::new(1100 * BLOCK_LEN as u64, (0..1100).map(|block| block * 512));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    let file = std::fs::File::create(&path).unwrap();
    let layout = Qcow2Layout::new(disk.size, &disk.present()).unwrap();
    let sink = crate::disk::image::file_sink::ImageFileSink::create(file, layout).unwrap();
    crate::disk::DiskSink::finish(&sink).unwrap();
    let check = std::process::Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&path).output().unwrap();
    let text = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success() && text.contains("35200/35200 = 100.00% allocated"), "{text}");
}
