//! What qemu writes reads here as it reads there.

use super::*;

/// Writes `disk` with qemu-img and reads it here and there.
fn agrees(disk: &[u8], convert: &[&str], options: &str) -> Vec<u64> {
    let folder = Folder::new();
    std::fs::write(folder.path("disk.raw"), disk).unwrap();
    let arguments = [&["convert", "-f", "raw", "-O", "qcow2"], convert, &["-o", options, "disk.raw", "disk.qcow2"]];
    folder.qemu_img(&arguments.concat());
    let (content, blocks) = folder.read("disk.qcow2").unwrap_or_else(|error| panic!("{options}: {error:?}"));
    assert!(content == folder.raw_by_qemu("disk.qcow2"), "{options}");
    assert!(content[..disk.len()] == *disk, "{options}");
    blocks
}

#[test]
fn all_cluster_sizes_of_both_versions() {
    let disk = disk(11 * (1 << 20) + 5 * 512);
    for cluster_size in ["512", "4k", "64k", "1M", "2M"] {
        for compat in ["0.10", "1.1"] {
            let options = format!("cluster_size={cluster_size},compat={compat}");
            agrees(&disk, &[], &options);
            agrees(&disk, &["-c"], &options);
        }
    }
}

#[test]
fn sizes_down_to_one_sector() {
    for len in [512, 1024, 4096, 65_536, 66_048, BLOCK_LEN, BLOCK_LEN + 512] {
        for convert in [&[][..], &["-c"]] {
            assert_eq!(agrees(&vec![7; len], convert, "cluster_size=64k").len(), len.div_ceil(BLOCK_LEN));
        }
    }
}

#[test]
fn other_refcounts_and_preallocation() {
    let disk = disk(5 << 20);
    for options in [
        "refcount_bits=1",
        "refcount_bits=64",
        "lazy_refcounts=on,compat=1.1",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full,cluster_size=2M",
    ] {
        agrees(&disk, &[], options);
    }
}

#[test]
fn blocks_that_the_image_does_not_hold_are_skipped() {
    let folder = Folder::new();
    folder.qemu_img(&["create", "-f", "qcow2", "disk.qcow2", "64T"]);
    let tib = 1_u64 << 40;
    let writes: Vec<_> = [0, 5 * tib, 64 * tib - 512].iter().map(|at| format!("write -P 9 {at} 512")).collect();
    folder.qemu_io(&writes.iter().map(String::as_str).collect::<Vec<_>>(), "disk.qcow2");
    folder.qemu_io(&["write -z 4M 2M", "write -P 3 8M 64k", "write -P 3 12M 64k", "discard 12M 64k"], "disk.qcow2");
    let mut source = open_file(File::open(folder.path("disk.qcow2")).unwrap(), &SourceOptions::default()).unwrap();
    let mut buf = BlockBuf::new();
    let mut seen = Vec::new();
    while let Some(index) = source.next_block(&mut buf).unwrap() {
        let set = buf.bytes().iter().filter(|byte| **byte != 0).count();
        seen.push((index.offset_bytes(), set));
    }
    let last_block = 64 * tib - BLOCK_LEN as u64;
    assert_eq!(seen, [(0, 512), (8 << 20, 65_536), (5 * tib, 512), (last_block, 512)]);
}

#[test]
fn zero_clusters_hide_what_was_there() {
    let folder = Folder::new();
    std::fs::write(folder.path("disk.raw"), vec![5; 6 << 20]).unwrap();
    folder.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"]);
    folder.qemu_io(&["write -z 0 2M", "write -z -u 2M 1M", "discard 5M 64k", "write -P 8 100k 3k"], "disk.qcow2");
    let (content, blocks) = folder.read("disk.qcow2").unwrap();
    assert!(content == folder.raw_by_qemu("disk.qcow2"));
    assert_eq!(blocks, [0, 1, 2]);
}

#[test]
fn internal_snapshots_do_not_show() {
    let folder = Folder::new();
    std::fs::write(folder.path("disk.raw"), disk(5 << 20)).unwrap();
    folder.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"]);
    folder.qemu_img(&["snapshot", "-c", "before", "disk.qcow2"]);
    folder.qemu_io(&["write -P 77 1M 1M"], "disk.qcow2");
    let (content, _) = folder.read("disk.qcow2").unwrap();
    assert!(content == folder.raw_by_qemu("disk.qcow2"));
    assert!(content[1 << 20..2 << 20].iter().all(|byte| *byte == 77));
}

#[test]
fn an_image_that_was_not_closed_is_read() {
    let folder = Folder::new();
    folder.qemu_img(&["create", "-f", "qcow2", "-o", "lazy_refcounts=on", "disk.qcow2", "8M"]);
    // Ends without closing the image, as a crash does: the refcounts on disk are behind.
    let output = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 6 3M 100k", "-c", "flush", "-c", "sigraise 9", "disk.qcow2"])
        .current_dir(folder.0.path())
        .output()
        .expect("qemu-io, which these tests need, runs");
    assert!(!output.status.success());
    let header = std::fs::read(folder.path("disk.qcow2")).unwrap();
    assert_eq!(header[79] & 1, 1, "the image is not marked as dirty");
    let (content, blocks) = folder.read("disk.qcow2").unwrap();
    let written = (3 << 20)..(3 << 20) + 100 * 1024;
    assert!(content.iter().enumerate().all(|(at, byte)| *byte == if written.contains(&at) { 6 } else { 0 }));
    assert_eq!(blocks, [1]);
}

#[test]
fn a_disk_that_is_zeros_delivers_nothing() {
    let folder = Folder::new();
    folder.qemu_img(&["create", "-f", "qcow2", "-o", "cluster_size=2M", "disk.qcow2", "1P"]);
    let (path, options) = (folder.path("disk.qcow2"), SourceOptions::default());
    let mut source = open_file(File::open(path).unwrap(), &options).unwrap();
    assert_eq!(source.virtual_size(), Some(1 << 50));
    assert!(source.next_block(&mut BlockBuf::new()).unwrap().is_none());
}
