//! Any bytes as a disk image in a file: read to the end or refused, and never other content than the stream reader sees.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo_core::disk::{open_file, open_stream};
use repo_fuzz::image::{Image, drain, seeds};
use repo_fuzz::{check_error, write_seeds};

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

fn accepts(input: &[u8]) -> bool {
    let Some(image) = Image::parse(input) else { return false };
    let from_file = match open_file(image.file(), &image.options()).and_then(|source| drain(source, image.len(), 0xEE))
    {
        Ok(disk) => disk,
        Err(error) => {
            check_error(&error);
            return false;
        }
    };
    // The stream reader may refuse more: it cannot look ahead.
    if let Ok(from_stream) =
        open_stream(image.stream(), &image.options()).and_then(|source| drain(source, image.len(), 0x11))
    {
        assert_eq!(from_file, from_stream);
    }
    true
}
