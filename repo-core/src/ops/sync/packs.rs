//! Packs moved as they are: read whole, checked against their names, stored, and made findable.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::id::PackId;
use crate::index::KnownPack;
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::open::Session;
use crate::pack::writer::DurablePack;
use crate::store::ObjectName;

/// Packs under way at once: a place far away answers late, and hashing and waiting for the disk take turns.
const WORKERS: usize = 4;
/// Bytes of a pack in memory at once; a pack of the usual length is read in one piece.
const PIECE_LEN: u64 = 48 * 1024 * 1024;

/// What came of moving packs.
#[derive(Default)]
pub(super) struct Moved {
    /// Packs that arrived.
    pub(super) packs: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Packs that cannot be had, and why.
    pub(super) lost: Vec<(PackId, Error)>,
}

/// Moves packs of `from`. Those that are damaged or missing there are told, and do not arrive.
///
/// # Errors
/// `Io` when TO cannot be written; `Unavailable`; `Interrupted`. Packs that arrived by then stay.
pub(super) fn move_packs(from: &Session, to: &Session, packs: &[KnownPack], monitor: &dyn Monitor) -> Result<Moved> {
    let next = AtomicUsize::new(0);
    let moved = Mutex::new(Moved::default());
    let failed = Mutex::new(None);
    let work = || {
        while let Some(pack) = packs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let done = check_cancelled(monitor).and_then(|()| move_pack(from, to, pack));
            match done {
                Ok(Outcome::Arrived) => {
                    let mut moved = moved.lock();
                    moved.packs += 1;
                    moved.bytes += pack.len;
                }
                Ok(Outcome::There) => {}
                Ok(Outcome::Lost(error)) => {
                    monitor.damage(&error);
                    moved.lock().lost.push((pack.id, error));
                }
                Err(error) => {
                    failed.lock().get_or_insert(error);
                    // Nobody begins another one.
                    next.store(packs.len(), Ordering::Relaxed);
                    return;
                }
            }
            monitor.advance(pack.len);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WORKERS.min(packs.len()) {
            scope.spawn(work);
        }
    });
    match failed.into_inner() {
        Some(error) => Err(error),
        None => Ok(moved.into_inner()),
    }
}

enum Outcome {
    Arrived,
    /// Another sync was faster.
    There,
    /// Damaged, or gone.
    Lost(Error),
}

fn move_pack(from: &Session, to: &Session, pack: &KnownPack) -> Result<Outcome> {
    let lost = |error: Error| match error.is_loss() {
        true => Ok(Outcome::Lost(error)),
        false => Err(error),
    };
    // Its directory, which the index of TO takes in: opened with the keys, from FROM; the name says that TO's is the same.
    let directory = match from.index.number_of(pack.id).map(|number| from.content.pack(number)) {
        Some(Ok(reader)) => reader.directory().clone(),
        Some(Err(error)) => return lost(error),
        None => return lost(Error::new(ErrorKind::NotFound, format!("pack {} is gone", pack.id.short()))),
    };
    let mut object = to.repository.store.new_object()?;
    let mut hasher = blake3::Hasher::new();
    for start in (0..pack.len).step_by(usize::try_from(PIECE_LEN).expect("a piece fits into memory")) {
        let range = start..pack.len.min(start + PIECE_LEN);
        let read = from.repository.store.get_range(ObjectName::Pack(pack.id), range);
        let piece = match read.context(|| format!("pack {}", pack.id.short())) {
            Ok(piece) => piece,
            Err(error) => return lost(error),
        };
        hasher.update(&piece);
        object.append(&piece).context(|| format!("cannot write pack {}", pack.id.short()))?;
    }
    // Before it has a name anybody could find it by.
    if *hasher.finalize().as_bytes() != pack.id.0 {
        return lost(Error::corrupt(format!("pack {} does not match its name", pack.id.short())));
    }
    let outcome = match object.publish(ObjectName::Pack(pack.id)) {
        Ok(()) => Outcome::Arrived,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => match check_there(to, pack) {
            Ok(()) => Outcome::There,
            Err(error) => return lost(error),
        },
        Err(error) => return Err(error),
    };
    to.index.insert(&DurablePack { id: pack.id, len: pack.len, content: pack.content, directory })?;
    Ok(outcome)
}

/// Checks a pack that TO has, though its index does not know of it: it may have been stored at this moment, or be damaged.
fn check_there(to: &Session, pack: &KnownPack) -> Result<()> {
    let mut hasher = blake3::Hasher::new();
    for start in (0..pack.len).step_by(usize::try_from(PIECE_LEN).expect("a piece fits into memory")) {
        let range = start..pack.len.min(start + PIECE_LEN);
        hasher.update(&to.repository.store.get_range(ObjectName::Pack(pack.id), range)?);
    }
    if *hasher.finalize().as_bytes() == pack.id.0 && to.repository.store.len(ObjectName::Pack(pack.id))? == pack.len {
        return Ok(());
    }
    let id = pack.id.short();
    Err(Error::corrupt(format!("pack {id} is damaged where it is to go: run cairn check --repair there")))
}
