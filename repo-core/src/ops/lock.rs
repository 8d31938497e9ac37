//! Object lock over time: what is needed stays locked (docs/design/0015-object-lock.md).
//!
//! Whatever is stored is locked for the days of the terms. What snapshots need must not run out of its lock while they
//! stay, so it is locked anew when less than three quarters of the days are left: by an import and a sync whatever the new
//! snapshot was found to rely on; by garbage collection, and by the first import after a quarter of the days, whatever any snapshot
//! needs. So what a snapshot needs is locked for at least half of the days from its commit on.

mod needed;
mod status;

use std::collections::BTreeSet;

use crate::entropy::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::id::PackId;
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::open::{Access, Session};
use crate::repository::Repository;
use crate::snapshot::NamedSnapshot;
use crate::store::ObjectName;
use crate::store::lock::{LockMode, LockName, LockTerms};
pub(super) use needed::needed_packs;
pub use status::{LockStatus, Unlocked, status};

/// Objects whose locks are renewed between two looks at whether to stop.
const BATCH: usize = 256;

/// What a renewal did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Renewed {
    /// Objects that are needed.
    pub needed: u64,
    /// Of these, objects whose lock was renewed.
    pub renewed: u64,
}

/// Terms, and the time by which they are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    pub(super) terms: LockTerms,
    /// In milliseconds since the Unix epoch.
    pub(super) now_ms: i64,
}

impl Kept {
    /// None where nothing is locked.
    pub(super) fn of(session: &Session) -> Option<Self> {
        let store = &session.repository.store;
        Some(Self { terms: store.lock_terms()?, now_ms: store.lock_now_ms()? })
    }

    /// Until when an object is locked at least that was stored at a time, if its lock was never renewed.
    fn of_stored(self, stored_ms: i64) -> i64 {
        stored_ms.saturating_add(self.terms.len_ms())
    }

    /// Until when an object is locked at least: what is known of its last renewal counts if that is later.
    fn until(self, stored_ms: i64, known_ms: Option<i64>) -> i64 {
        known_ms.unwrap_or(i64::MIN).max(self.of_stored(stored_ms))
    }

    /// Whether so little is left that the lock is to be renewed.
    fn is_due(self, until_ms: i64) -> bool {
        until_ms.saturating_sub(self.now_ms) < self.terms.len_ms() / 4 * 3
    }

    fn all_is_due(self, renewed_ms: i64) -> bool {
        self.now_ms.saturating_sub(renewed_ms) > self.terms.len_ms() / 4
    }
}

/// Locks a repository from now on: what is stored, and its configuration and key slots. The place is known to keep locks
/// ([`Store::probe_lock`](crate::store::Store::probe_lock)).
///
/// # Errors
/// `Unsupported` where nothing can be locked; `Invalid` for terms that cannot be; `Forbidden` without the structure key; `Io`,
/// `Unavailable`.
pub fn establish(repository: &Repository, terms: LockTerms) -> Result<()> {
    let store = &repository.store;
    terms.check()?;
    let name = LockName::new(terms, &repository.keys)?;
    let before = store.catalog()?.locks;
    let is_ours = |there: &LockName| matches!(there.open(&repository.keys), Ok(Some(_)));
    if terms.mode == LockMode::Governance
        && before.iter().any(|(there, _)| is_ours(there) && there.terms.mode == LockMode::Compliance)
    {
        return Err(Error::invalid("a repository that is locked in compliance mode stays so"));
    }
    store.set_lock_terms(Some(terms));
    store.put_new(ObjectName::Lock(name), &name.object())?;
    for object in fixed(repository)? {
        store.retain(object, terms)?;
    }
    // The others would be taken for the stricter ones.
    let others: Vec<_> = before.iter().filter(|(there, _)| *there != name).map(|(there, _)| *there).collect();
    if !others.is_empty() {
        store.delete_all(&others.into_iter().map(ObjectName::Lock).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// As [`establish`], for a repository that is in use: the place is tried first, and what its snapshots need is locked, too.
///
/// # Errors
/// As [`establish`]; `Unsupported` when the place does not keep locks; `Corrupt` when a manifest cannot be read; `Interrupted`.
pub fn change(session: &Session, terms: LockTerms, entropy: &Entropy, monitor: &dyn Monitor) -> Result<Renewed> {
    session.repository.store.probe_lock(terms.mode, entropy)?;
    establish(&session.repository, terms)?;
    session.index.learn_lock(LockName::new(terms, &session.repository.keys)?)?;
    let working = session.begin("lock", Access::Write, monitor)?;
    let (snapshots, errors) = working.snapshots();
    refuse_unreadable(errors)?;
    let packs = needed_packs(session, snapshots, monitor)?;
    // What was stored before the terms were there is not locked, whatever its age says.
    renew_those(session, snapshots, &packs, |_, _| i64::MIN, monitor)
}

/// Objects that every snapshot needs.
fn fixed(repository: &Repository) -> Result<Vec<ObjectName>> {
    let slots = repository.store.list_slots()?;
    Ok(slots.iter().map(|listed| ObjectName::Slot(listed.id)).chain([ObjectName::Config]).collect())
}

fn refuse_unreadable<Id>(errors: &[(Id, Error)]) -> Result<()> {
    match errors.iter().find(|(_, error)| error.kind() != ErrorKind::NotFound) {
        None => Ok(()),
        Some((_, error)) => {
            let text =
                format!("a snapshot cannot be read, so what it needs cannot be locked: {error}; run cairn check");
            Err(Error::new(error.kind(), text))
        }
    }
}

/// Makes sure that packs which a snapshot is to rely on stay locked for most of the days from now on. Does nothing in a repository that is not locked.
///
/// # Errors
/// `NotFound` when a pack is gone; `Io` when the credentials do not suffice; `Unavailable`.
pub(super) fn cover(session: &Session, packs: impl Iterator<Item = PackId>) -> Result<()> {
    let Some(kept) = Kept::of(session) else { return Ok(()) };
    let store = &session.repository.store;
    let names: Vec<_> = packs.map(ObjectName::Pack).collect();
    let known = session.index.known_retentions(&names)?;
    let asked: Vec<_> = names.into_iter().zip(known).collect();
    let found = store.each(&asked, |(name, known)| match known {
        Some(until_ms) => Ok((*name, *until_ms)),
        None => Ok((*name, kept.of_stored(store.stored_ms(*name)?))),
    });
    let found: Vec<_> = found.into_iter().collect::<Result<_>>()?;
    lock_anew(session, kept, found).map(drop)
}

/// Locks anew whatever is due of what is needed: the snapshots' records and annotations, these packs, and what every snapshot needs.
/// Then notes in the repository that it was done.
///
/// # Errors
/// As [`cover`]; `Interrupted`.
pub(super) fn renew(
    session: &Session,
    snapshots: &[NamedSnapshot],
    packs: &BTreeSet<PackId>,
    monitor: &dyn Monitor,
) -> Result<Renewed> {
    let Some(kept) = Kept::of(session) else { return Ok(Renewed::default()) };
    renew_those(session, snapshots, packs, |stored_ms, known_ms| kept.until(stored_ms, known_ms), monitor)
}

/// As [`renew`]; `until` says how long an object is taken to be locked, by when it was stored and what is known of its renewal.
fn renew_those(
    session: &Session,
    snapshots: &[NamedSnapshot],
    packs: &BTreeSet<PackId>,
    until: impl Fn(i64, Option<i64>) -> i64,
    monitor: &dyn Monitor,
) -> Result<Renewed> {
    let Some(kept) = Kept::of(session) else { return Ok(Renewed::default()) };
    let needed = needed::objects(session, snapshots, packs)?;
    let names: Vec<_> = needed.keys().copied().collect();
    let known = session.index.known_retentions(&names)?;
    let untils: Vec<_> =
        needed.into_iter().zip(known).map(|((name, stored_ms), known)| (name, until(stored_ms, known))).collect();
    let mut report = Renewed { needed: untils.len() as u64, renewed: 0 };
    monitor.begin("renewing locks", None);
    for batch in untils.chunks(BATCH) {
        check_cancelled(monitor)?;
        report.renewed += lock_anew(session, kept, batch.to_vec())?;
    }
    session.index.drop_retentions_before(kept.now_ms)?;
    // Its own time tells when that was.
    let name = LockName::new(kept.terms, &session.repository.keys)?;
    session.repository.store.put_new(ObjectName::Lock(name), &name.object())?;
    monitor.end();
    Ok(report)
}

/// As [`renew`], when the last time is long ago; `renewed_ms` is when that was.
///
/// # Errors
/// As [`renew`]; `Corrupt` when a manifest cannot be read.
pub(super) fn renew_when_due(
    session: &Session,
    snapshots: &[NamedSnapshot],
    renewed_ms: Option<i64>,
    monitor: &dyn Monitor,
) -> Result<()> {
    match (Kept::of(session), renewed_ms) {
        (Some(kept), Some(renewed_ms)) if kept.all_is_due(renewed_ms) => {
            let packs = needed_packs(session, snapshots, monitor)?;
            renew(session, snapshots, &packs, monitor).map(drop)
        }
        _ => Ok(()),
    }
}

/// Locks those objects anew that are due, and gives how many these are.
fn lock_anew(session: &Session, kept: Kept, untils: Vec<(ObjectName, i64)>) -> Result<u64> {
    let (due, fresh): (Vec<_>, Vec<_>) = untils.into_iter().partition(|(_, until_ms)| kept.is_due(*until_ms));
    session.index.learn_retentions(&fresh)?;
    let store = &session.repository.store;
    let renewed = store.each(&due, |(name, _)| Ok((*name, store.retain(*name, kept.terms)?)));
    let renewed: Vec<_> = renewed.into_iter().collect::<Result<_>>()?;
    session.index.learn_retentions(&renewed)?;
    Ok(renewed.len() as u64)
}

/// Packs that nothing can delete before a time, as far as is known; of those that are listed.
///
/// # Errors
/// `Unavailable` when the store cannot be listed; `Io` when the index fails.
pub(super) fn locked_beyond(session: &Session, time_ms: i64) -> Result<Vec<(PackId, i64)>> {
    let Some(kept) = Kept::of(session) else { return Ok(Vec::new()) };
    let packs = session.repository.store.list_packs()?;
    let names: Vec<_> = packs.iter().map(|listed| ObjectName::Pack(listed.id)).collect();
    let known = session.index.known_retentions(&names)?;
    let untils = packs.iter().zip(known).map(|(listed, known)| (listed.id, kept.until(listed.stored_ms, known)));
    Ok(untils.filter(|(_, until_ms)| *until_ms > time_ms).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 60 * 60 * 1000;

    #[test]
    fn a_lock_is_renewed_when_a_quarter_of_its_days_is_over() {
        let kept = |day: i64| Kept { terms: LockTerms { mode: LockMode::Governance, days: 40 }, now_ms: day * DAY };
        let until = kept(0).of_stored(0);
        let due: Vec<i64> = (0..50).filter(|day| kept(*day).is_due(until)).collect();
        assert_eq!(due, (11..50).collect::<Vec<_>>());
        assert!(!kept(10).all_is_due(0) && kept(11).all_is_due(0));
    }
}
