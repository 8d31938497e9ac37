//! Sparse disks as tests know them, written by both sinks, and the programs that judge the images.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::ImageLayout;
use super::file_sink::ImageFileSink;
use super::stream_sink::ImageStreamSink;
use crate::disk::qcow2::layout::Qcow2Layout;
use crate::disk::{DiskSink, PresentBlocks, StreamSink};
use crate::error::ErrorKind;
use crate::units::{BLOCK_LEN, BlockIndex, PAGE_LEN, PAGES_PER_BLOCK, is_zero};

/// A disk of which a few pages hold anything: page number → number of its content.
#[derive(Debug, Clone)]
pub(in crate::disk) struct SparseDisk {
    pub(in crate::disk) size: u64,
    pub(in crate::disk) pages: BTreeMap<u64, u8>,
}

impl SparseDisk {
    /// A disk with these pages, those past its end left out.
    pub(in crate::disk) fn new(size: u64, pages: impl IntoIterator<Item = u64>) -> Self {
        let count = size.div_ceil(PAGE_LEN as u64);
        let pages = pages.into_iter().filter(|page| *page < count).map(|page| (page, (page % 200) as u8)).collect();
        Self { size, pages }
    }

    /// Disks of at most `size_max` bytes with at most eight blocks.
    pub(in crate::disk) fn any(size_max: u64) -> impl Strategy<Value = Self> {
        let blocks = |count: u64| count * BLOCK_LEN as u64;
        let size = prop_oneof![
            1_u64..10_000_000,
            (1_u64..6).prop_map(blocks),
            1..blocks(300),
            (1..blocks(200_000)),
            1..=size_max,
            Just(size_max),
        ];
        let page = prop_oneof![any::<u64>(), (0_u64..4).prop_map(|back| u64::MAX - back)];
        (size, prop::collection::btree_map(page, 0_u8..200, 0..8)).prop_map(|(size, pages)| {
            // Scaled, so that the last pages of a disk are as likely as any.
            let count = u128::from(size.div_ceil(PAGE_LEN as u64));
            let scaled = |page| ((u128::from(page) * count) >> 64) as u64;
            Self { size, pages: pages.into_iter().map(|(page, number)| (scaled(page), number)).collect() }
        })
    }

    pub(in crate::disk) fn present(&self) -> PresentBlocks {
        let mut present = PresentBlocks::new(self.size);
        self.pages.keys().for_each(|page| present.insert(BlockIndex(page / PAGES_PER_BLOCK as u64)));
        present
    }

    /// The non-zero pages, cut at the disk's end.
    pub(in crate::disk) fn content(&self) -> BTreeMap<u64, Vec<u8>> {
        let page = |(page, number): (&u64, &u8)| {
            let len = (self.size - page * PAGE_LEN as u64).min(PAGE_LEN as u64);
            let mut bytes = vec![number + 1; PAGE_LEN];
            bytes[1..9].copy_from_slice(&page.to_le_bytes());
            bytes.truncate(usize::try_from(len).unwrap());
            (*page, bytes)
        };
        self.pages.iter().map(page).collect()
    }

    /// The image that both sinks write.
    pub(in crate::disk) fn image(&self, layout: impl ImageLayout + Clone + 'static) -> Vec<u8> {
        let streamed = self.stream(layout.clone());
        assert_eq!(streamed.len() as u64, layout.len_bytes());
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[0xEE; 5000], 0).unwrap();
        self.scatter(&ImageFileSink::create(file.try_clone().unwrap(), layout).unwrap());
        assert!(streamed == bytes_of(file), "both sinks write the same bytes");
        streamed
    }

    fn stream(&self, layout: impl ImageLayout + 'static) -> Vec<u8> {
        let out = Shared::default();
        let mut sink: Box<dyn StreamSink> = Box::new(ImageStreamSink::create(out.clone(), layout).unwrap());
        let content = self.content();
        for index in self.present().iter() {
            // What lies past the end is to be ignored.
            let mut block = vec![0; BLOCK_LEN];
            block[index.len_on_disk_bytes(self.size)..].fill(0xEE);
            let first = index.0 * PAGES_PER_BLOCK as u64;
            for (page, bytes) in content.range(first..first + PAGES_PER_BLOCK as u64) {
                let at = usize::try_from(page - first).unwrap() * PAGE_LEN;
                block[at..at + bytes.len()].copy_from_slice(bytes);
            }
            sink.write_block(index, &block).unwrap();
        }
        sink.finish().unwrap();
        std::mem::take(&mut *out.0.lock().unwrap())
    }

    /// Writes the pages from two threads, backwards.
    fn scatter(&self, sink: &dyn DiskSink) {
        let content = self.content();
        std::thread::scope(|scope| {
            for half in 0..2 {
                let content = &content;
                scope.spawn(move || {
                    for (page, bytes) in content.iter().rev().skip(half).step_by(2) {
                        sink.write_at(page * PAGE_LEN as u64, bytes).unwrap();
                    }
                });
            }
        });
        sink.finish().unwrap();
    }

    /// Writes the disk as a sparse raw image, its end rounded up to whole sectors.
    pub(in crate::disk) fn write_raw(&self, path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(self.size.next_multiple_of(512)).unwrap();
        for (page, bytes) in self.content() {
            file.write_all_at(&bytes, page * PAGE_LEN as u64).unwrap();
        }
    }
}

/// The non-zero pages among these bytes, which stand at `offset` of the disk, cut at the disk's end.
pub(in crate::disk) fn pages_of(offset: u64, bytes: &[u8], size: u64) -> BTreeMap<u64, Vec<u8>> {
    let on_disk = usize::try_from((size - offset).min(bytes.len() as u64)).unwrap();
    assert!(is_zero(&bytes[on_disk..]), "bytes past the end are not zero");
    let pages = (offset / PAGE_LEN as u64..).zip(bytes[..on_disk].chunks(PAGE_LEN));
    pages.filter(|(_, page)| !is_zero(page)).map(|(at, page)| (at, page.to_vec())).collect()
}

/// An image in a file, judged by qemu.
pub(in crate::disk) struct Judged {
    folder: tempfile::TempDir,
    format: &'static str,
    /// What `qemu-img info` tells of it.
    pub(in crate::disk) info: String,
}

impl Judged {
    /// Has qemu check the image and tell the size of its disk.
    pub(in crate::disk) fn new(disk: &SparseDisk, image: &[u8], format: &'static str) -> Self {
        let mut judged = Self { folder: tempfile::tempdir().unwrap(), format, info: String::new() };
        std::fs::write(judged.path("image"), image).unwrap();
        let check = qemu("qemu-img", &["check", "-f", format, &judged.path("image")]);
        assert!(check.contains("No errors were found on the image."), "{check}");
        judged.info = qemu("qemu-img", &["info", "--output=json", "-f", format, &judged.path("image")]);
        let size = format!("\"virtual-size\": {},", disk.size.next_multiple_of(512));
        assert!(judged.info.contains(&size), "{}", judged.info);
        judged
    }

    /// Compares the whole disk.
    pub(in crate::disk) fn compare(&self, disk: &SparseDisk) {
        disk.write_raw(Path::new(&self.path("raw")));
        let arguments = ["compare", "-f", self.format, "-F", "raw", &self.path("image"), &self.path("raw")];
        assert_eq!(qemu("qemu-img", &arguments), "Images are identical.\n");
    }

    /// Reads the pages of the disk, and those beside them.
    pub(in crate::disk) fn probe(&self, disk: &SparseDisk) {
        let content = disk.content();
        let around = content.keys().flat_map(|page| page.saturating_sub(1)..=page + 1);
        let whole = around.filter(|page| (page + 1) * PAGE_LEN as u64 <= disk.size);
        let image = self.path("image");
        let mut arguments = vec!["-r".to_owned(), "-f".to_owned(), self.format.to_owned()];
        for page in whole {
            // All bytes but the first few of a page are the same.
            let byte = content.get(&page).map_or(0, |bytes| bytes[512]);
            let offset = page * PAGE_LEN as u64 + 512;
            arguments.extend(["-c".to_owned(), format!("read -P {byte} {offset} 3584")]);
        }
        arguments.push(image);
        let text = qemu("qemu-io", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(text.contains("read 3584/3584") && !text.contains("failed"), "{text}");
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("temporary paths are ASCII").to_owned()
    }
}

fn qemu(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}, which these tests need: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn bytes_of(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// A writer whose bytes can be looked at after a sink took it.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn second_of_two_blocks() -> Qcow2Layout {
    let disk = SparseDisk::new(2 * BLOCK_LEN as u64, [512]);
    Qcow2Layout::new(disk.size, &disk.present()).unwrap()
}

#[test]
fn a_file_is_no_image_before_it_is_finished() {
    let file = tempfile::tempfile().unwrap();
    let sink = ImageFileSink::create(file.try_clone().unwrap(), second_of_two_blocks()).unwrap();
    sink.write_at(BLOCK_LEN as u64, &[1; 4096]).unwrap();
    assert!(is_zero(&bytes_of(file.try_clone().unwrap())[..65_536]));
    sink.finish().unwrap();
    assert!(bytes_of(file).starts_with(b"QFI\xfb"));
}

#[test]
fn sinks_refuse_what_was_not_planned() {
    let file = ImageFileSink::create(tempfile::tempfile().unwrap(), second_of_two_blocks()).unwrap();
    for offset in [0, BLOCK_LEN as u64 - 512, 2 * BLOCK_LEN as u64 - 512, u64::MAX] {
        assert_eq!(file.write_at(offset, &[1; 1024]).unwrap_err().kind(), ErrorKind::Internal, "{offset}");
    }
    let mut stream = ImageStreamSink::create(Vec::new(), second_of_two_blocks()).unwrap();
    for index in [0, 2, u64::MAX] {
        assert!(stream.write_block(BlockIndex(index), &vec![1; BLOCK_LEN]).is_err(), "block {index} is not present");
    }
    assert!(Box::new(stream).finish().is_err(), "block 1 is missing");
}

#[test]
fn a_pipe_is_no_target_for_scattered_writes() {
    let (_reader, writer) = std::io::pipe().unwrap();
    let file = File::from(std::os::fd::OwnedFd::from(writer));
    let error = ImageFileSink::create(file, second_of_two_blocks()).err().unwrap();
    assert_eq!(error.to_string(), "the target is no regular file: write the qcow2 as a stream, or a raw disk");
}
