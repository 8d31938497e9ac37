//! A pack's directory as it is after it was authenticated.
//!
//! Input: control (1; bit 0 makes the numbers add up), end of the frames (4), number of frames (1), the plaintext.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo_core::frame::{Codec, PLAIN_LEN_MAX};
use repo_core::id::EntryId;
use repo_core::pack::directory::{Directory, Entry};
use repo_core::pack::{FrameRecord, HEADER_LEN};
use repo_core::units::is_zero;
use repo_fuzz::pack::repair_directory_plain;
use repo_fuzz::{check_error, has, write_seeds};

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

fn accepts(input: &[u8]) -> bool {
    let Some(([control, end @ .., frame_count], plain)) = input.split_first_chunk::<6>() else { return false };
    let end = u64::from(u32::from_le_bytes(*end));
    let mut plain = plain.to_vec();
    if has(*control, 0) {
        repair_directory_plain(&mut plain, u32::from(*frame_count), HEADER_LEN as u64, end);
    }
    let directory = match Directory::decode(&plain, HEADER_LEN as u64, end) {
        Ok(directory) => directory,
        Err(error) => {
            check_error(&error);
            return false;
        }
    };
    let encoded = directory.encode();
    let (short, long) = if encoded.len() < plain.len() { (&encoded, &plain) } else { (&plain, &encoded) };
    let padding = long.strip_prefix(&short[..]).expect("a directory has one form only, but for its padding");
    assert!(is_zero(padding) && padding.len() < 4096, "{} bytes of padding", padding.len());
    let (mut offset, mut entries) = (HEADER_LEN as u64, 0);
    for frame in directory.frames() {
        assert_eq!(frame.offset, offset, "frames have gaps");
        assert!(frame.record.plain_len as usize <= PLAIN_LEN_MAX);
        let own = directory.entries_of(frame);
        assert_eq!(own, &directory.entries()[entries..entries + own.len()]);
        assert_eq!(own.iter().map(|entry| u64::from(entry.len)).sum::<u64>(), u64::from(frame.record.plain_len));
        offset += u64::from(frame.record.sealed_len);
        entries += own.len();
    }
    assert_eq!((offset, entries), (end, directory.entries().len()));
    assert_eq!(directory.end(), end);
    true
}

fn seeds() -> Vec<Vec<u8>> {
    let mut directory = Directory::new(HEADER_LEN as u64);
    let input = |control: u8, directory: &Directory| {
        let end = u32::try_from(directory.end()).expect("seeds are small").to_le_bytes();
        let count = u8::try_from(directory.frames().len()).expect("seeds are small");
        [&[control], &end[..], &[count], &directory.encode()].concat()
    };
    let mut seeds = vec![input(0, &directory)];
    for (codec, lens) in [(Codec::Stored, &[4096, 8192][..]), (Codec::Zstd, &[100]), (Codec::Zstd, &[])] {
        let entries: Vec<_> = lens.iter().map(|len| Entry { id: EntryId([9; 32]), len: *len }).collect();
        let plain_len = lens.iter().sum();
        let entry_count = u32::try_from(lens.len()).expect("seeds are small");
        directory.push(FrameRecord { sealed_len: 16 + plain_len / 2, plain_len, entry_count, codec }, &entries);
        seeds.extend([input(0, &directory), input(1, &directory)]);
    }
    seeds
}
