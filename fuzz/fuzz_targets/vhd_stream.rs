//! Any bytes as a disk image in a stream: read to the end or refused, the same however few bytes come at a time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo_core::disk::open_stream;
use repo_fuzz::image::{Image, drain, seeds};
use repo_fuzz::{check_error, write_seeds};

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

fn accepts(input: &[u8]) -> bool {
    let Some(image) = Image::parse(input) else { return false };
    let at_once = open_stream(image.stream(), &image.options()).and_then(|source| drain(source, image.len(), 0xEE));
    let at_once = at_once.inspect_err(check_error);
    let accepted = at_once.is_ok();
    if image.slowly_too {
        let slowly = open_stream(image.slow_stream(), &image.options());
        let slowly = slowly.and_then(|source| drain(source, image.len(), 0x11));
        match (at_once, slowly) {
            (Err(at_once), Err(slowly)) => assert_eq!(format!("{at_once:?}"), format!("{slowly:?}")),
            (at_once, slowly) => assert_eq!(at_once.ok(), slowly.ok()),
        }
    }
    accepted
}
