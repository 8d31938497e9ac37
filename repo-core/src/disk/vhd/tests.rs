//! Dynamic VHDs as a whole: written here and read back, built by hand, damaged, and judged by other programs.

mod conformance;
mod differencing;
mod image;
mod model;
mod odd_files;
mod oracles;
mod refusals;

use std::fs::File;
use std::io::{Cursor, Read, Write};
use std::sync::{Arc, Mutex};

use crate::disk::{BlockBuf, Delivery, DiskFormat, DiskSource, FormatHint, SourceOptions, open_file, open_stream};
use crate::error::Result;
use crate::units::{BLOCK_LEN, BlockIndex};

/// A disk read to its end.
#[derive(Debug, PartialEq, Eq)]
struct Disk {
    content: Vec<u8>,
    format: DiskFormat,
    delivery: Delivery,
    blocks: Vec<u64>,
}

/// Reads a source to its end and checks what it promises of its blocks.
fn drain(mut source: Box<dyn DiskSource>) -> Result<Disk> {
    let delivery = source.delivery();
    let mut content = Vec::new();
    let mut blocks = Vec::new();
    let mut buf = BlockBuf::new();
    buf.bytes_mut().fill(0xEE);
    while let Some(index) = source.next_block(&mut buf)? {
        assert!(!blocks.contains(&index.0), "block {index} came twice");
        blocks.push(index.0);
        let start = usize::try_from(index.offset_bytes()).unwrap();
        content.resize(content.len().max(start + BLOCK_LEN), 0);
        content[start..start + BLOCK_LEN].copy_from_slice(buf.bytes());
        // The next block must not show any of this.
        buf.bytes_mut().fill(0xEE);
    }
    assert!(source.next_block(&mut buf)?.is_none(), "the end is not the end");
    assert!(delivery == Delivery::AnyOrder || blocks.is_sorted(), "ascending was promised");
    let size = usize::try_from(source.virtual_size().expect("known at the end")).unwrap();
    assert!(content.iter().skip(size).all(|byte| *byte == 0), "bytes past the end are not zero");
    content.resize(size, 0);
    Ok(Disk { content, format: source.format(), delivery, blocks })
}

fn options(format: FormatHint) -> SourceOptions {
    SourceOptions { format, spill_dir: std::env::temp_dir(), ..SourceOptions::default() }
}

fn file_with(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn read_file(bytes: &[u8], format: FormatHint) -> Result<Disk> {
    drain(open_file(file_with(bytes), &options(format))?)
}

fn read_stream(bytes: &[u8], format: FormatHint) -> Result<Disk> {
    drain(open_stream(Cursor::new(bytes.to_vec()), &options(format))?)
}

/// Asserts that both readers refuse `bytes`, and returns what each says.
fn refusals(bytes: &[u8]) -> [crate::error::Error; 2] {
    [read_file(bytes, FormatHint::Auto), read_stream(bytes, FormatHint::Auto)].map(|read| read.expect_err("refused"))
}

/// A writer whose bytes can be looked at after a sink took it.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
