//! qemu and libvhdi as judges. They must be there (apt `qemu-utils`, `libvhdi-utils`, `python3-libvhdi`): a missing one
//! fails.

use std::path::Path;
use std::process::Command;

use super::model::{params, present_of, stream_into};
use super::*;
use crate::disk::vhd::profile::Profile;
use crate::disk::vhd::stream_sink::VhdStreamSink;
use crate::units::PAGE_LEN;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}, which these tests need: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary paths are ASCII")
}

/// Content with data, zero pages inside blocks, and zero blocks.
fn content(len: usize) -> Vec<u8> {
    let mut content = vec![0; len];
    for (at, page) in content.chunks_mut(PAGE_LEN).enumerate() {
        if at % 7 < 3 && !(512..1536).contains(&at) {
            page.iter_mut().zip(0_usize..).for_each(|(byte, n)| *byte = u8::try_from((n * 13 + at) % 255).unwrap() + 1);
        }
    }
    content
}

fn write_ours(content: &[u8], target: &Path) {
    let present = present_of(content);
    let sink =
        VhdStreamSink::create(File::create(target).unwrap(), &params(content.len()), &Profile::Portable, &present)
            .unwrap();
    stream_into(Box::new(sink), content, &present);
}

#[test]
fn what_qemu_writes_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, vhd) = (dir.path().join("disk.raw"), dir.path().join("disk.vhd"));
    let expected = content(11 * (1 << 20) + 5 * 512);
    std::fs::write(&raw, &expected).unwrap();
    for (settings, format, exact) in [
        ("subformat=dynamic,force_size=on", DiskFormat::VhdDynamic, true),
        ("subformat=dynamic", DiskFormat::VhdDynamic, false),
        ("subformat=fixed,force_size=on", DiskFormat::VhdFixed, true),
        ("subformat=fixed", DiskFormat::VhdFixed, false),
    ] {
        run("qemu-img", &["convert", "-f", "raw", "-O", "vpc", "-o", settings, path(&raw), path(&vhd)]);
        let bytes = std::fs::read(&vhd).unwrap();
        for disk in [read_file(&bytes, FormatHint::Auto).unwrap(), read_stream(&bytes, FormatHint::Auto).unwrap()] {
            assert_eq!(disk.format, format, "{settings}");
            // Without force_size, qemu rounds the disk up to whole cylinders.
            assert_eq!(disk.content.len() == expected.len(), exact, "{settings}");
            let (start, rest) = disk.content.split_at(expected.len());
            assert!(start == expected && crate::units::is_zero(rest), "{settings}");
        }
    }
}

#[test]
fn what_is_written_here_is_read_by_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, vhd) = (dir.path().join("disk.raw"), dir.path().join("disk.vhd"));
    for len in [512, 1 << 20, 8 << 20, 11 * (1 << 20) + 5 * 512] {
        let content = content(len);
        std::fs::write(&raw, &content).unwrap();
        write_ours(&content, &vhd);
        let info = run("qemu-img", &["info", "--output=json", "-f", "vpc", path(&vhd)]);
        assert!(info.contains(&format!("\"virtual-size\": {len},")), "{info}");
        let verdict = run("qemu-img", &["compare", "-f", "vpc", "-F", "raw", path(&vhd), path(&raw)]);
        assert_eq!(verdict, "Images are identical.\n");
    }
}

#[test]
fn what_is_written_here_is_read_by_libvhdi() {
    let dir = tempfile::tempdir().unwrap();
    let (copy, vhd) = (dir.path().join("copy.raw"), dir.path().join("disk.vhd"));
    let content = content(11 * (1 << 20) + 5 * 512);
    write_ours(&content, &vhd);
    let info = run("vhdiinfo", &[path(&vhd)]);
    assert!(info.contains("Dynamic") && info.contains(&format!("({} bytes)", content.len())), "{info}");
    let script = "import pyvhdi, sys\n\
                  disk = pyvhdi.file()\n\
                  disk.open(sys.argv[1])\n\
                  open(sys.argv[2], 'wb').write(disk.read_buffer_at_offset(disk.get_media_size(), 0))";
    run(python_with_libvhdi(), &["-c", script, path(&vhd), path(&copy)]);
    assert!(std::fs::read(&copy).unwrap() == content);
}

/// The module comes from the distribution, which may not be the Python that is found first.
fn python_with_libvhdi() -> &'static str {
    let has_module = |python: &&str| {
        Command::new(python).args(["-c", "import pyvhdi"]).output().is_ok_and(|output| output.status.success())
    };
    ["python3", "/usr/bin/python3"]
        .into_iter()
        .find(has_module)
        .expect("a python3 with the module pyvhdi, which this test needs")
}
