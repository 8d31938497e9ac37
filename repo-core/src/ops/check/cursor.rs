//! Which packs a check reads: none, all, or the next share of them, going round.
//!
//! Packs are named by hashes, so their order by name is a fair shuffle. A small file beside the index remembers the last one read;
//! losing it only begins a new round.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};

use crate::error::{Result, ResultExt};
use crate::id::PackId;
use crate::store::Listed;

/// How much of the packs' content one run of a sampling check reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Share {
    /// A part of all bytes, above 0 and up to 1.
    Fraction(f64),
    /// Bytes.
    Bytes(u64),
}

/// How far a round has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Bytes of packs read in this round; all of them when the run ended it.
    pub covered_bytes: u64,
    /// Bytes of all packs.
    pub total_bytes: u64,
    /// When the round began, in milliseconds since the Unix epoch.
    pub round_began_ms: i64,
    /// Every pack that was there at this time was read since, in milliseconds since the Unix epoch. `None` when no round has
    /// ended yet.
    pub all_read_since_ms: Option<i64>,
}

/// What is remembered between runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct Position {
    /// The last pack read in this round.
    #[n(0)]
    after: Option<ByteArray<32>>,
    #[n(1)]
    round_began_ms: i64,
    #[n(2)]
    all_read_since_ms: Option<i64>,
}

/// The packs to be read, and the file that remembers them.
pub(super) struct Cursor {
    path: PathBuf,
    position: Position,
    now_ms: i64,
    /// Packs to be read, in order; those from `wrapped` on belong to the next round.
    queue: Vec<PackId>,
    wrapped: usize,
    chosen: HashSet<PackId>,
}

impl Cursor {
    /// Chooses among `packs`, which come in order of their names.
    pub(super) fn open(path: PathBuf, share: Share, packs: &[Listed<PackId>], now_ms: i64) -> Self {
        let fresh = Position { after: None, round_began_ms: now_ms, all_read_since_ms: None };
        let position = std::fs::read(&path).ok().and_then(|bytes| minicbor::decode(&bytes).ok()).unwrap_or(fresh);
        let total: u64 = packs.iter().map(|pack| pack.len).sum();
        let wanted = match share {
            // Rounded up, so that ten tenths are all.
            Share::Fraction(fraction) => (total as f64 * fraction).ceil() as u64,
            Share::Bytes(bytes) => bytes,
        };
        let start = position.after.map_or(0, |after| packs.partition_point(|pack| pack.id.0 <= *after));
        let mut queue = Vec::new();
        let mut bytes = 0;
        for pack in packs[start..].iter().chain(&packs[..start]) {
            if bytes >= wanted {
                break;
            }
            bytes += pack.len;
            queue.push(pack.id);
        }
        let chosen = queue.iter().copied().collect();
        Self { path, position, now_ms, wrapped: packs.len() - start, queue, chosen }
    }

    /// The packs to be read, in the order in which they are to be.
    pub(super) fn queue(&self) -> &[PackId] {
        &self.queue
    }

    pub(super) fn contains(&self, pack: PackId) -> bool {
        self.chosen.contains(&pack)
    }

    /// Remembers that the first `count` packs of the queue were read.
    ///
    /// # Errors
    /// `Io` when the file cannot be written.
    pub(super) fn read_up_to(&mut self, count: usize) -> Result<()> {
        let mut position = self.position;
        if count >= self.wrapped {
            position.all_read_since_ms = Some(position.round_began_ms);
            position.round_began_ms = self.now_ms;
            position.after = None;
        }
        if let Some(last) = self.queue[..count].last().filter(|_| count != self.wrapped) {
            position.after = Some(last.0.into());
        }
        write(&self.path, &position)
    }

    /// How far the round has come, once all of the queue was read.
    pub(super) fn coverage(&self, packs: &[Listed<PackId>]) -> Coverage {
        let len = |packs: &[Listed<PackId>]| packs.iter().map(|pack| pack.len).sum::<u64>();
        let start = packs.len().saturating_sub(self.wrapped);
        let ended = self.queue.len() >= self.wrapped;
        let covered = match ended {
            true => packs.len(),
            false => start + self.queue.len(),
        };
        Coverage {
            covered_bytes: len(&packs[..covered.min(packs.len())]),
            total_bytes: len(packs),
            round_began_ms: self.position.round_began_ms,
            all_read_since_ms: if ended { Some(self.position.round_began_ms) } else { self.position.all_read_since_ms },
        }
    }
}

/// Replaced at once, so that a killed run leaves the old or the new one.
fn write(path: &Path, position: &Position) -> Result<()> {
    let bytes = minicbor::to_vec(position).expect("writing CBOR into memory cannot fail");
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let written = std::fs::write(&new, bytes).and_then(|()| std::fs::rename(&new, path));
    written.context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packs(lens: &[u64]) -> Vec<Listed<PackId>> {
        (0..).zip(lens).map(|(at, len)| Listed { id: PackId([at; 32]), len: *len, stored_ms: 0 }).collect()
    }

    proptest! {
        /// Runs of a share of one n-th cover everything in n of them, also when runs are killed on the way.
        #[test]
        fn runs_cover_all_packs_and_resume_after_a_kill(
            lens in prop::collection::vec(1..1000_u64, 1..40), parts in 1..12_u32, kill_at in prop::option::of(0..40_usize),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("check-cursor");
            let packs = packs(&lens);
            let mut read = Vec::new();
            if let Some(count) = kill_at {
                let mut cursor = Cursor::open(path.clone(), Share::Fraction(1.0), &packs, 5);
                let count = count.min(packs.len() - 1);
                read.extend_from_slice(&cursor.queue()[..count]);
                cursor.read_up_to(count).unwrap();
            }
            let mut ended = None;
            for run in 0..parts {
                let mut cursor =
                    Cursor::open(path.clone(), Share::Fraction(1.0 / f64::from(parts)), &packs, 10 + i64::from(run));
                read.extend_from_slice(cursor.queue());
                cursor.read_up_to(cursor.queue().len()).unwrap();
                let coverage = cursor.coverage(&packs);
                prop_assert!(coverage.covered_bytes <= coverage.total_bytes);
                ended = ended.or(coverage.all_read_since_ms);
            }
            let distinct: HashSet<_> = read.iter().collect();
            prop_assert_eq!(distinct.len(), packs.len());
            prop_assert_eq!(ended, Some(if kill_at.is_some() { 5 } else { 10 }));
        }
    }

    #[test]
    fn a_broken_file_begins_a_new_round_and_a_full_run_ends_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("check-cursor");
        std::fs::write(&path, b"nonsense").unwrap();
        let packs = packs(&[10, 10, 10]);
        let mut cursor = Cursor::open(path.clone(), Share::Bytes(u64::MAX), &packs, 7);
        cursor.read_up_to(3).unwrap();
        let coverage = cursor.coverage(&packs);
        assert_eq!((coverage.covered_bytes, coverage.all_read_since_ms), (30, Some(7)));
        let next = Cursor::open(path, Share::Bytes(1), &packs, 8);
        assert_eq!(next.queue(), [PackId([0; 32])]);
        assert_eq!(
            next.coverage(&packs),
            Coverage { covered_bytes: 10, total_bytes: 30, round_began_ms: 7, all_read_since_ms: Some(7) }
        );
    }
}
