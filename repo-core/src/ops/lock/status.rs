//! Whether what is needed is locked, as the store says of each object.

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::lock::{BATCH, Kept, needed, refuse_unreadable};
use crate::ops::open::{Access, Session};
use crate::store::ObjectName;
use crate::store::lock::{LockTerms, Retention};

/// How a repository is locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockStatus {
    /// What is agreed.
    pub terms: LockTerms,
    /// When all locks were last looked after, in milliseconds since the Unix epoch.
    pub renewed_ms: Option<i64>,
    /// Objects that snapshots need.
    pub objects: u64,
    /// Of these, packs.
    pub packs: u64,
    /// When the first lock of any of them ends, in milliseconds since the Unix epoch.
    pub first_end_ms: Option<i64>,
    /// Objects that are not locked, or by weaker a lock than was agreed.
    pub unlocked: Vec<Unlocked>,
}

/// An object that is not locked as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlocked {
    /// Which.
    pub name: ObjectName,
    /// How it is locked.
    pub found: Option<Retention>,
}

/// Asks the store how each object that is needed is locked: one request each.
///
/// # Errors
/// `Unsupported` when the repository is not locked; `Corrupt` when what a snapshot needs cannot be found out; `Unavailable`;
/// `Interrupted`.
pub fn status(session: &Session, monitor: &dyn Monitor) -> Result<LockStatus> {
    let working = session.begin("lock", Access::Read, monitor)?;
    let Some(kept) = Kept::of(session) else {
        let text = format!("{} is not locked", session.repository.store.location());
        return Err(Error::new(ErrorKind::Unsupported, text));
    };
    let (snapshots, errors) = working.snapshots();
    refuse_unreadable(errors)?;
    let packs = needed::needed_packs(session, snapshots, monitor)?;
    let names: Vec<ObjectName> = needed::objects(session, snapshots, &packs)?.into_keys().collect();
    let mut status = LockStatus {
        terms: kept.terms,
        renewed_ms: working.locks_renewed_ms(),
        objects: names.len() as u64,
        packs: packs.len() as u64,
        first_end_ms: None,
        unlocked: Vec::new(),
    };
    monitor.begin("asking for locks", None);
    let store = &session.repository.store;
    for batch in names.chunks(BATCH) {
        check_cancelled(monitor)?;
        for (name, found) in batch.iter().zip(store.each(batch, |name| store.retention(*name))) {
            let found = found?;
            status.take(*name, found, kept);
        }
    }
    monitor.end();
    Ok(status)
}

impl LockStatus {
    fn take(&mut self, name: ObjectName, found: Option<Retention>, kept: Kept) {
        match found.filter(|lock| lock.mode >= kept.terms.mode && lock.until_ms > kept.now_ms) {
            Some(lock) => {
                self.first_end_ms = Some(self.first_end_ms.map_or(lock.until_ms, |first| first.min(lock.until_ms)));
            }
            None => self.unlocked.push(Unlocked { name, found }),
        }
    }
}
