//! A frame's content as it is after it was authenticated: exactly as long as the directory says, or refused.
//!
//! Input: codec (1), plaintext length (4), the rest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo_core::frame::{Codec, compress, decompress};
use repo_fuzz::{check_error, write_seeds};

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

fn accepts(input: &[u8]) -> bool {
    let Some(([codec, len @ ..], packed)) = input.split_first_chunk::<5>() else { return false };
    let codec = if codec % 2 == 0 { Codec::Stored } else { Codec::Zstd };
    let plain_len = u32::from_le_bytes(*len) as usize;
    let plain = match decompress(codec, packed.to_vec(), plain_len) {
        Ok(plain) => plain,
        Err(error) => {
            check_error(&error);
            return false;
        }
    };
    assert_eq!(plain.len(), plain_len);
    if codec == Codec::Stored {
        assert_eq!(plain, packed);
    }
    if plain_len <= 64 << 10 {
        let (codec, packed) = compress(&plain, 1, 16).expect("memory is enough");
        assert!(packed.len() <= plain.len());
        assert_eq!(decompress(codec, packed, plain_len).expect("just compressed"), plain);
    }
    true
}

fn seeds() -> Vec<Vec<u8>> {
    let text = b"pages of a disk, pages of a disk, and some more pages of the same disk".repeat(9);
    [&b""[..], b"short", &text, &[0; 4096]]
        .into_iter()
        .map(|plain| {
            let (codec, packed) = compress(plain, 3, 0).expect("memory is enough");
            let len = u32::try_from(plain.len()).expect("seeds are small").to_le_bytes();
            [&[codec.number()], &len[..], &packed].concat()
        })
        .collect()
}
