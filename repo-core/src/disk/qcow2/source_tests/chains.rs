//! Images with backing files.

use super::*;
use crate::error::ErrorKind;

/// A raw file, a qcow2 image over it, and one more over that, each with content of its own.
fn chain_of_three() -> Folder {
    let folder = Folder::new();
    std::fs::write(folder.path("bottom.raw"), disk(7 * (1 << 20) + 512)).unwrap();
    let create = |name: &str, below: &str, format: &str, options: &str, size: &str| {
        folder.qemu_img(&["create", "-f", "qcow2", "-b", below, "-F", format, "-o", options, name, size]);
    };
    create("middle.qcow2", "bottom.raw", "raw", "cluster_size=4k", "9M");
    folder.qemu_io(&["write -P 11 1M 8k", "write -z 3M 64k", "write -P 12 8M 700k"], "middle.qcow2");
    create("top.qcow2", "middle.qcow2", "qcow2", "cluster_size=512k,compat=0.10", "12M");
    folder.qemu_io(&["write -P 13 1M 4k", "write -P 14 11M 1M"], "top.qcow2");
    folder
}

#[test]
fn a_chain_reads_as_qemu_reads_it() {
    let folder = chain_of_three();
    for name in ["middle.qcow2", "top.qcow2"] {
        let (content, _) = folder.read_chain(name).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert!(content == folder.raw_by_qemu(name), "{name}");
    }
}

#[test]
fn an_image_that_is_smaller_than_its_backing_file_ends_where_it_says() {
    let folder = Folder::new();
    std::fs::write(folder.path("bottom.raw"), disk(7 << 20)).unwrap();
    folder.qemu_img(&["create", "-f", "qcow2", "-b", "bottom.raw", "-F", "raw", "top.qcow2", "3584"]);
    let (content, _) = folder.read_chain("top.qcow2").unwrap();
    assert_eq!(content, disk(7 << 20)[..3584]);
}

#[test]
fn names_are_resolved_from_the_folder_of_the_image_that_has_them() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("below")).unwrap();
    std::fs::write(folder.path("below/bottom.raw"), disk(3 << 20)).unwrap();
    folder.qemu_img(&["create", "-f", "qcow2", "-b", "bottom.raw", "-F", "raw", "below/middle.qcow2"]);
    folder.qemu_img(&["create", "-f", "qcow2", "-b", "below/middle.qcow2", "-F", "qcow2", "top.qcow2"]);
    assert!(folder.read_chain("top.qcow2").unwrap().0 == disk(3 << 20));
    let absolute = folder.path("below/middle.qcow2");
    folder.qemu_img(&["rebase", "-u", "-b", absolute.to_str().unwrap(), "-F", "qcow2", "top.qcow2"]);
    assert!(folder.read_chain("top.qcow2").unwrap().0 == disk(3 << 20));
}

#[test]
fn backing_files_are_refused_unless_allowed() {
    let folder = chain_of_three();
    let error = folder.read("top.qcow2").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().starts_with("the image has a backing file, \"middle.qcow2\", which is read only when"));
}

#[test]
fn backing_files_that_are_no_files_are_refused() {
    let folder = chain_of_three();
    std::fs::create_dir(folder.path("folder")).unwrap();
    let status = Command::new("mkfifo").arg(folder.path("fifo")).status().unwrap();
    assert!(status.success());
    for (name, format, kind, words) in [
        ("nbd://host/export", "raw", ErrorKind::Unsupported, "is no file name: only local files are read"),
        ("json:{\"driver\":\"null-co\"}", "raw", ErrorKind::Unsupported, "is no file name"),
        ("folder", "raw", ErrorKind::Unsupported, "is neither a regular file nor a block device"),
        ("fifo", "raw", ErrorKind::Unsupported, "is neither a regular file nor a block device"),
        ("missing.raw", "raw", ErrorKind::NotFound, "backing file \"missing.raw\""),
        ("bottom.raw", "vpc", ErrorKind::Unsupported, "has the format \"vpc\"; qcow2 and raw are read"),
        ("bottom.raw", "qcow2", ErrorKind::Invalid, "backing file \"bottom.raw\": this is no qcow2 image"),
    ] {
        folder.qemu_img(&["rebase", "-u", "-b", name, "-F", format, "top.qcow2"]);
        let error = folder.read_chain("top.qcow2").unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.chain().contains(words), "{error:?} does not say: {words}");
    }
}

#[test]
fn a_backing_file_of_unknown_format_is_not_guessed() {
    let folder = chain_of_three();
    let mut bytes = std::fs::read(folder.path("top.qcow2")).unwrap();
    let extension = bytes.windows(4).position(|bytes| bytes == 0xE279_2ACA_u32.to_be_bytes()).unwrap();
    bytes[extension] ^= 1;
    std::fs::write(folder.path("top.qcow2"), bytes).unwrap();
    let error = folder.read_chain("top.qcow2").unwrap_err();
    assert!(error.to_string().contains("qemu-img rebase -u -b FILE -F FORMAT IMAGE"), "{error}");
}

#[test]
fn a_loop_of_backing_files_ends() {
    let folder = chain_of_three();
    folder.qemu_img(&["rebase", "-u", "-b", "top.qcow2", "-F", "qcow2", "middle.qcow2"]);
    let error = folder.read_chain("top.qcow2").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.chain().contains("more than 32 backing files below each other, or a loop of them"), "{error:?}");
}
