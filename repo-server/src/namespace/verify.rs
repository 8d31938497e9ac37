//! Whether a pack is what its name says. No key is needed for that.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use repo_core::store::ObjectName;

use crate::namespace::Namespace;
use crate::refusal::Refusal;

/// Bytes that are read at once.
const PIECE_LEN: usize = 1024 * 1024;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verified {
    /// Its bytes have the hash that its name says.
    Sound,
    /// They have another.
    Damaged,
    /// It is not there any more.
    Gone,
}

impl Namespace {
    /// Reads an object whose name is its hash. After each piece `pause` is told its length and how long it took.
    pub(crate) fn verify(&self, name: ObjectName, pause: impl Fn(u64, Duration)) -> Result<Verified, Refusal> {
        let (file, found) = match self.read(name) {
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND => return Ok(Verified::Gone),
            read => read?,
        };
        let (mut hasher, mut piece, mut at) = (blake3::Hasher::new(), vec![0; PIECE_LEN], 0);
        loop {
            let began = Instant::now();
            let read = file.read_at(&mut piece, at).map_err(|error| self.failed("read", &name.path(), &error))?;
            hasher.update(&piece[..read]);
            if read == 0 {
                break;
            }
            at += read as u64;
            pause(read as u64, began.elapsed());
        }
        let whole = at == found.bytes && name.path().ends_with(hasher.finalize().to_hex().as_str());
        Ok(if whole { Verified::Sound } else { Verified::Damaged })
    }
}
