//! Random sparse disks through every sink and back through every source.

use std::io::Seek;

use proptest::prelude::*;

use super::conformance::Kind;
use super::*;
use crate::disk::raw::file_sink::RawFileSink;
use crate::disk::raw::stream_sink::RawStreamSink;
use crate::disk::vhd::file_sink::VhdFileSink;
use crate::disk::vhd::fixed_sink::{FixedFileSink, FixedStreamSink};
use crate::disk::vhd::parent_locator::ParentName;
use crate::disk::vhd::plan::{VhdParams, stream_len_bytes};
use crate::disk::vhd::profile::{ParentDisk, Profile};
use crate::disk::vhd::stream_sink::VhdStreamSink;
use crate::disk::{DiskSink, PresentBlocks, StreamSink};
use crate::units::{PAGE_LEN, is_zero};

pub(super) const CREATED_UNIX_S: u64 = 1_700_000_000;
pub(super) const CREATED_SINCE_2000: u32 = 753_315_200;

/// Which blocks of a disk of this content are not zeros.
pub(super) fn present_of(content: &[u8]) -> PresentBlocks {
    let mut present = PresentBlocks::new(content.len() as u64);
    for (index, block) in (0..).zip(content.chunks(BLOCK_LEN)) {
        if !is_zero(block) {
            present.insert(BlockIndex(index));
        }
    }
    present
}

pub(super) fn params(size: usize) -> VhdParams {
    VhdParams { virtual_size: size as u64, unique_id: [0x5A; 16], created_unix_s: CREATED_UNIX_S }
}

/// Writes a disk of this content front to back.
pub(super) fn stream_into(mut sink: Box<dyn StreamSink>, content: &[u8], present: &PresentBlocks) {
    for index in present.iter() {
        let start = usize::try_from(index.offset_bytes()).unwrap();
        let end = start + index.len_on_disk_bytes(content.len() as u64);
        // What lies past the end is to be ignored.
        let mut block = vec![0xEE; BLOCK_LEN];
        block[..end - start].copy_from_slice(&content[start..end]);
        sink.write_block(index, &block).unwrap();
    }
    sink.finish().unwrap();
}

/// Writes the non-zero pages of this content from two threads, backwards.
fn scatter_into(sink: &dyn DiskSink, content: &[u8]) {
    let pages: Vec<_> = content.chunks(PAGE_LEN).enumerate().filter(|(_, page)| !is_zero(page)).collect();
    std::thread::scope(|scope| {
        for half in 0..2 {
            let pages = &pages;
            scope.spawn(move || {
                for (at, page) in pages.iter().rev().skip(half).step_by(2) {
                    sink.write_at((at * PAGE_LEN) as u64, page).unwrap();
                }
            });
        }
    });
    sink.finish().unwrap();
}

fn bytes_of(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn disks() -> impl Strategy<Value = Vec<u8>> {
    let size = prop_oneof![1_usize..10_000_000, (1_usize..5).prop_map(|blocks| blocks * BLOCK_LEN), 1_usize..2000];
    let write = (any::<prop::sample::Index>(), 1_usize..200_000, 1_u8..);
    (size, prop::collection::vec(write, 0..6)).prop_map(|(size, writes)| {
        let mut content = vec![0; size];
        for (at, len, byte) in writes {
            let at = at.index(size);
            content[at..size.min(at + len)].fill(byte);
        }
        content
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_disk_comes_back_from_vhd(content in disks()) {
        let present = present_of(&content);
        let params = params(content.len());
        let out = Shared::default();
        stream_into(Box::new(VhdStreamSink::create(out.clone(), &params, &Profile::Portable, &present).unwrap()), &content, &present);
        let streamed = out.bytes();
        let file = file_with(&[0xEE; 5000]);
        scatter_into(&VhdFileSink::create(file.try_clone().unwrap(), &params, &Profile::Portable, &present).unwrap(), &content);
        prop_assert!(streamed == bytes_of(&file), "both sinks write the same bytes");
        prop_assert_eq!(streamed.len() as u64, stream_len_bytes(params.virtual_size, present.count(), &Profile::Portable).unwrap());
        let vhd_size = params.virtual_size.next_multiple_of(512);
        conformance::check(&streamed, vhd_size, CREATED_SINCE_2000, Kind::Dynamic);
        let mut expected = content;
        expected.resize(usize::try_from(vhd_size).unwrap(), 0);
        let reads = [read_file(&streamed, FormatHint::Auto), read_stream(&streamed, FormatHint::Auto)];
        for disk in reads.map(|disk| disk.unwrap()) {
            prop_assert!(disk.content == expected);
            prop_assert_eq!(disk.format, DiskFormat::VhdDynamic);
            prop_assert_eq!(disk.delivery, Delivery::Ascending);
            prop_assert_eq!(disk.blocks, present.iter().map(|index| index.0).collect::<Vec<_>>());
        }
    }

    #[test]
    fn any_disk_comes_back_from_fixed_vhd(content in disks()) {
        let (present, params) = (present_of(&content), params(content.len()));
        let out = Shared::default();
        stream_into(Box::new(FixedStreamSink::create(out.clone(), &params).unwrap()), &content, &present);
        let file = file_with(&[0xEE; 5000]);
        scatter_into(&FixedFileSink::create(file.try_clone().unwrap(), &params).unwrap(), &content);
        let bytes = out.bytes();
        prop_assert!(bytes == bytes_of(&file), "both sinks write the same bytes");
        let mut expected = content;
        expected.resize(expected.len().next_multiple_of(512), 0);
        conformance::check_fixed(&bytes, expected.len() as u64, CREATED_SINCE_2000);
        for disk in [read_file(&bytes, FormatHint::Auto), read_stream(&bytes, FormatHint::Auto)].map(Result::unwrap) {
            prop_assert!(disk.content == expected);
            prop_assert_eq!(disk.format, DiskFormat::VhdFixed);
        }
    }

    #[test]
    fn a_file_for_a_storage_repository_has_a_batmap_and_comes_back(content in disks()) {
        let (present, params) = (present_of(&content), params(content.len()));
        let file = file_with(&[0xEE; 5000]);
        let profile = Profile::StorageRepository;
        scatter_into(&VhdFileSink::create(file.try_clone().unwrap(), &params, &profile, &present).unwrap(), &content);
        let out = Shared::default();
        let sink = VhdStreamSink::create(out.clone(), &params, &profile, &present).unwrap();
        stream_into(Box::new(sink), &content, &present);
        let bytes = bytes_of(&file);
        prop_assert!(out.bytes() == bytes, "both sinks write the same bytes");
        let size = content.len().next_multiple_of(BLOCK_LEN);
        conformance::check(&bytes, size as u64, CREATED_SINCE_2000, Kind::WithBatmap);
        let mut expected = content;
        expected.resize(size, 0);
        prop_assert!(read_file(&bytes, FormatHint::Auto).unwrap().content == expected);
    }

    #[test]
    fn a_differencing_vhd_holds_exactly_the_blocks_it_was_told_of(
        content in disks(), zero_blocks in prop::collection::vec(any::<prop::sample::Index>(), 0..3), named: bool,
    ) {
        // Blocks of zeros are content, too: they may lie over something.
        let (mut present, params) = (present_of(&content), params(content.len()));
        for index in &zero_blocks {
            present.insert(BlockIndex(index.index(content.len().div_ceil(BLOCK_LEN)) as u64));
        }
        let parent_name = named.then_some("base of web-01.vhd");
        let profile = Profile::Differencing(ParentDisk {
            unique_id: [0xA5; 16],
            created_unix_s: CREATED_UNIX_S,
            name: parent_name.map(|name| ParentName::new(name).unwrap()),
        });
        let out = Shared::default();
        let sink = VhdStreamSink::create(out.clone(), &params, &profile, &present).unwrap();
        stream_into(Box::new(sink), &content, &present);
        let file = file_with(&[0xEE; 5000]);
        scatter_into(&VhdFileSink::create(file.try_clone().unwrap(), &params, &profile, &present).unwrap(), &content);
        let bytes = out.bytes();
        prop_assert!(bytes == bytes_of(&file), "both sinks write the same bytes");
        prop_assert_eq!(
            bytes.len() as u64,
            stream_len_bytes(params.virtual_size, present.count(), &profile).unwrap()
        );
        let size = params.virtual_size.next_multiple_of(512);
        let kind = Kind::Differencing { parent_id: [0xA5; 16], parent_name };
        conformance::check(&bytes, size, CREATED_SINCE_2000, kind);
    }

    #[test]
    fn any_disk_comes_back_from_raw(content in disks()) {
        let present = present_of(&content);
        let out = Shared::default();
        let size = content.len() as u64;
        stream_into(Box::new(RawStreamSink::create(out.clone(), size).unwrap()), &content, &present);
        prop_assert!(out.bytes() == content);
        let file = file_with(&[0xEE; 5000]);
        scatter_into(&RawFileSink::create(file.try_clone().unwrap(), size).unwrap(), &content);
        prop_assert!(bytes_of(&file) == content);
        // This file has holes, and what the stream holds has none.
        let from_file = drain(open_file(file, &options(FormatHint::Auto)).unwrap()).unwrap();
        for disk in [from_file, read_stream(&content, FormatHint::Auto).unwrap()] {
            prop_assert!(disk.content == content);
            prop_assert_eq!(disk.format, DiskFormat::Raw);
            prop_assert_eq!(disk.delivery, Delivery::Ascending);
        }
    }
}

#[test]
fn a_file_is_no_vhd_before_it_is_finished() {
    let content = vec![1; BLOCK_LEN];
    let file = tempfile::tempfile().unwrap();
    let sink =
        VhdFileSink::create(file.try_clone().unwrap(), &params(BLOCK_LEN), &Profile::Portable, &present_of(&content))
            .unwrap();
    sink.write_at(0, &content).unwrap();
    assert!(open_file(file.try_clone().unwrap(), &options(FormatHint::Vhd)).is_err());
    sink.finish().unwrap();
    assert!(open_file(file, &options(FormatHint::Vhd)).is_ok());
}

#[test]
fn sinks_refuse_what_was_not_planned() {
    let present = present_of(&[vec![0; BLOCK_LEN], vec![1; BLOCK_LEN]].concat());
    let params = params(2 * BLOCK_LEN);
    let file = VhdFileSink::create(tempfile::tempfile().unwrap(), &params, &Profile::Portable, &present).unwrap();
    for offset in [0, BLOCK_LEN as u64 - 512, 2 * BLOCK_LEN as u64 - 512, u64::MAX] {
        assert_eq!(
            file.write_at(offset, &[1; 1024]).unwrap_err().kind(),
            crate::error::ErrorKind::Internal,
            "{offset}"
        );
    }
    let mut stream = VhdStreamSink::create(Vec::new(), &params, &Profile::Portable, &present).unwrap();
    for index in [0, 2, u64::MAX] {
        assert!(stream.write_block(BlockIndex(index), &vec![1; BLOCK_LEN]).is_err(), "block {index} is not present");
    }
    assert!(Box::new(stream).finish().is_err(), "block 1 is missing");
}
