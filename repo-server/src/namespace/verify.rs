//! Whether a pack is what its name says. No key is needed for that.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use repo_core::store::ObjectName;
use repo_core::store::reading::Part;

use crate::namespace::Namespace;
use crate::refusal::Refusal;

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
        let (found, content) = match self.read(name, &Part::Whole) {
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND => return Ok(Verified::Gone),
            read => read?,
        };
        let mut content = content.ok_or_else(|| Refusal::unavailable(format!("{name} cannot be read")))?;
        let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
        loop {
            let began = Instant::now();
            let piece = content.next_piece().map_err(|error| self.failed("read", &name.path(), &error))?;
            let Some(piece) = piece else { break };
            hasher.update(&piece);
            at += piece.len() as u64;
            pause(piece.len() as u64, began.elapsed());
        }
        let whole = at == found.bytes && name.path().ends_with(hasher.finalize().to_hex().as_str());
        Ok(if whole { Verified::Sound } else { Verified::Damaged })
    }
}
