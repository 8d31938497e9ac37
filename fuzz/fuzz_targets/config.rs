//! A repository's configuration, read before any key is known.
//!
//! Input: control (1; bit 0 makes lengths and checksum right), the object.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo_core::config::Config;
use repo_fuzz::{check_error, config, has, keys, write_seeds};

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

fn accepts(input: &[u8]) -> bool {
    let Some((control, bytes)) = input.split_first() else { return false };
    let mut bytes = bytes.to_vec();
    if has(*control, 0) {
        repair(&mut bytes);
    }
    if let Err(error) = Config::authenticate(&bytes, &keys()) {
        check_error(&error);
    }
    let config = match Config::decode(&bytes) {
        Ok(config) => config,
        Err(error) => {
            check_error(&error);
            return false;
        }
    };
    assert!((4096..=16 << 20).contains(&config.frame_len));
    assert!((64 << 10..=1 << 30).contains(&config.pack_len));
    config.chunk.check().expect("was checked");
    let encoded = config.encode(&keys()).expect("all roles are there");
    assert_eq!(Config::decode(&encoded).expect("what was encoded decodes"), config);
    Config::authenticate(&encoded, &keys()).expect("just written with these keys");
    true
}

/// Header (16) ‖ body length (4) ‖ body ‖ checksum (32) ‖ authentication (32).
fn repair(bytes: &mut [u8]) {
    let Some(body_len) = bytes.len().checked_sub(16 + 4 + 64) else { return };
    bytes[16..20].copy_from_slice(&u32::try_from(body_len).unwrap_or(u32::MAX).to_le_bytes());
    let (message, rest) = bytes.split_at_mut(20 + body_len);
    rest[..32].copy_from_slice(blake3::hash(message).as_bytes());
}

fn seeds() -> Vec<Vec<u8>> {
    let bytes = config().encode(&keys()).expect("all roles are there");
    [0, 1].map(|control| [&[control], &bytes[..]].concat()).into()
}
