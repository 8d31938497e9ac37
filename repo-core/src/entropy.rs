//! Randomness, injected: the system's in programs, a seeded stream in tests.

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};

/// A source of random bytes for keys, salts and ids.
pub struct Entropy(Source);

enum Source {
    System,
    Seeded(Mutex<blake3::OutputReader>, Box<dyn Fn() + Send + Sync>),
}

impl Entropy {
    /// The operating system's randomness.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A reproducible stream, for tests alone: whoever knows the seed knows every key.
    pub fn seeded(seed: u64) -> Self {
        Self::observed(seed, || {})
    }

    /// The stream of [`seeded`](Self::seeded) that calls a function before each draw: nearly every object has a salt, so
    /// that a test can act right before one is stored.
    pub fn observed(seed: u64, before_draw: impl Fn() + Send + Sync + 'static) -> Self {
        let stream = blake3::Hasher::new_derive_key("cairn v1 test entropy").update(&seed.to_le_bytes()).finalize_xof();
        Self(Source::Seeded(Mutex::new(stream), Box::new(before_draw)))
    }

    /// Fresh random bytes.
    ///
    /// # Errors
    /// `Io` when the operating system has none to give.
    pub fn bytes<const N: usize>(&self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        match &self.0 {
            Source::System => getrandom::fill(&mut bytes)
                .map_err(|error| Error::with_source(ErrorKind::Io, "cannot get random bytes", error.to_string()))?,
            Source::Seeded(stream, before_draw) => {
                before_draw();
                stream.lock().fill(&mut bytes);
            }
        }
        Ok(bytes)
    }
}
