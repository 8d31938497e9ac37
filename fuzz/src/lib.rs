//! What Cairn's fuzz targets share: how an input becomes a disk image or a pack, the promises a reader is held to, and
//! a bound on memory.
//!
//! Checksums and authentication tags keep a fuzzer out of everything behind them. So an input begins with a control
//! byte, bits of which say what is to be made right before it is read: a target then reaches both the refusal
//! and what is parsed after it.
//!
//! Each target makes its own seeds with the core's encoders, so that they never lag behind the format: see
//! [`write_seeds`].

pub mod image;
pub mod pack;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;

use repo_core::config::Config;
use repo_core::id::RepositoryId;
use repo_core::keys::RoleKeys;
use repo_core::seal::{KEY_LEN, Suite};
use zeroize::Zeroizing;

/// Writes a target's seeds into the folder that `CAIRN_FUZZ_SEEDS` names and ends the process; does nothing when the
/// variable is not set. Called before the first input.
///
/// # Panics
/// When the target accepts none of them: seeds that are all refused do not show the fuzzer what lies behind.
pub fn write_seeds(seeds: impl FnOnce() -> Vec<Vec<u8>>, accepts: impl Fn(&[u8]) -> bool) {
    let Some(folder) = std::env::var_os("CAIRN_FUZZ_SEEDS").map(PathBuf::from) else { return };
    let seeds = seeds();
    for (seed, number) in seeds.iter().zip(0..) {
        std::fs::write(folder.join(format!("seed-{number:02}")), seed).expect("the folder can be written");
    }
    let accepted = seeds.iter().filter(|seed| accepts(seed)).count();
    assert!(accepted > 0, "all {} seeds are refused", seeds.len());
    println!("{accepted} of {} seeds are accepted", seeds.len());
    std::process::exit(0);
}

/// The configuration of the repository that inputs are said to come from. Without encryption, so that what the fuzzer
/// changes stays what is parsed.
pub fn config() -> Config {
    Config {
        id: RepositoryId([1; 16]),
        created_ms: 1_700_000_000_000,
        suite: Suite::None,
        chunk: Default::default(),
        frame_len: 1 << 20,
        pack_len: 1 << 25,
        store: None,
    }
}

/// Its keys.
pub fn keys() -> RoleKeys {
    RoleKeys::from_master(&Zeroizing::new([7; KEY_LEN]))
}

/// Whether bit `bit` of a control byte is set.
pub fn has(control: u8, bit: u32) -> bool {
    control >> bit & 1 == 1
}

/// Asserts that an error's texts can be shown on a terminal, whatever they quote.
pub fn check_error(error: &repo_core::Error) {
    let text = format!("{error} {error:?}");
    assert!(!text.chars().any(char::is_control), "an error text holds control characters: {text:?}");
}

/// The most that one allocation may ask for. What is read claims any length; the largest that a reader may believe, a
/// BAT or a frame, is 32 MiB.
const ALLOCATION_MAX: usize = 128 << 20;

/// The system's allocator, ending the process at an allocation that no input justifies. libFuzzer's own
/// `-malloc_limit_mb` works with a sanitizer only.
struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

fn check_len(len: usize) {
    if len > ALLOCATION_MAX {
        // Nothing here may allocate; the stack is libFuzzer's to print.
        std::process::abort();
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check_len(layout.size());
        // SAFETY: the caller's promises are the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check_len(layout.size());
        // SAFETY: the caller's promises are the callee's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        check_len(len);
        // SAFETY: the caller's promises are the callee's.
        unsafe { System.realloc(at, layout, len) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the callee's.
        unsafe { System.dealloc(at, layout) }
    }
}
