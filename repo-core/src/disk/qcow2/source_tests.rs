//! Images as qemu-img and qemu-io make them, and damaged ones.

mod chains;
mod oracles;
mod refusals;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::disk::{BlockBuf, Delivery, DiskFormat, FormatHint, SourceOptions, open_file};
use crate::error::Result;
use crate::units::BLOCK_LEN;

/// Images in a folder of their own, and the raw disk they were made from.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// qemu-img, with names of files in this folder.
    fn qemu_img(&self, arguments: &[&str]) -> String {
        self.run("qemu-img", arguments)
    }

    /// qemu-io on an image; the program's own exit code says little.
    fn qemu_io(&self, commands: &[&str], name: &str) {
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        self.run("qemu-io", &["-f", "qcow2"].into_iter().chain(commands).chain([name]).collect::<Vec<_>>());
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).current_dir(self.0.path()).output();
        let output = output.unwrap_or_else(|error| panic!("cannot run {program}, which these tests need: {error}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// The disk of an image as qemu reads it.
    fn raw_by_qemu(&self, name: &str) -> Vec<u8> {
        self.qemu_img(&["convert", "-f", "qcow2", "-O", "raw", name, "by-qemu.raw"]);
        std::fs::read(self.path("by-qemu.raw")).unwrap()
    }

    /// The disk of an image as it is read here, and the blocks that were delivered.
    fn read(&self, name: &str) -> Result<(Vec<u8>, Vec<u64>)> {
        read(&self.path(name), &SourceOptions::default())
    }

    /// The same with backing files.
    fn read_chain(&self, name: &str) -> Result<(Vec<u8>, Vec<u64>)> {
        let backing = Some(self.0.path().to_owned());
        read(&self.path(name), &SourceOptions { backing, ..SourceOptions::default() })
    }
}

fn read(path: &Path, options: &SourceOptions) -> Result<(Vec<u8>, Vec<u64>)> {
    let mut source = open_file(File::open(path).unwrap(), options)?;
    assert_eq!((source.format(), source.delivery()), (DiskFormat::Qcow2, Delivery::Ascending));
    let size = usize::try_from(source.virtual_size().expect("known at once")).unwrap();
    let mut content = vec![0; size];
    let mut blocks = Vec::new();
    let mut buf = BlockBuf::new();
    loop {
        buf.bytes_mut().fill(0xEE);
        let Some(index) = source.next_block(&mut buf)? else { break };
        assert!(blocks.last().is_none_or(|last| *last < index.0), "ascending was promised");
        blocks.push(index.0);
        let start = usize::try_from(index.offset_bytes()).unwrap();
        let end = (start + BLOCK_LEN).min(size);
        content[start..end].copy_from_slice(&buf.bytes()[..end - start]);
        assert!(buf.bytes()[end - start..].iter().all(|byte| *byte == 0), "bytes past the end are not zero");
    }
    assert!(source.next_block(&mut buf)?.is_none(), "the end is not the end");
    Ok((content, blocks))
}

/// Content that compresses, with zero pages and a zero block.
fn disk(len: usize) -> Vec<u8> {
    let mut disk = vec![0; len];
    for (at, page) in disk.chunks_mut(4096).enumerate() {
        if at % 5 < 3 && !(500..1700).contains(&at) {
            page.iter_mut()
                .zip(0_usize..)
                .for_each(|(byte, n)| *byte = u8::try_from((n / 9 * 7 + at) % 250).unwrap() + 1);
        }
    }
    disk
}
