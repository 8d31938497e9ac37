//! Leases: who is at work in a repository (docs/format.md §11, docs/concurrency.md).
//!
//! Whoever relies on packs staying where they are, to read them or to name them in a snapshot, first puts a lease, then
//! looks at tombstones, packs and snapshots, and takes the lease away when it is done. Garbage collection condemns packs
//! first, then looks at the leases, and deletes only once all leases it saw then are gone. So whoever overlooked a tombstone is
//! waited for, and whoever is not waited for has seen it.
//!
//! In a folder a holder keeps its lease locked, and dies with the lock. On an object store it puts a renewal every few
//! minutes; a lease that grew old is *revoked* before it counts as gone, by an object that renewals do not touch and that the
//! holder looks for around its commit.

mod renewal;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use minicbor::{Decode, Encode};
use zerocopy::IntoBytes;

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::id::LeaseId;
use crate::object::{ObjectHeader, ObjectKind};
use crate::record::RecordKind;
use crate::repository::Repository;
use crate::store::remote::LeaseTerms;
use crate::store::{Listed, ObjectName, Store};
use renewal::Renewal;

const RECORD: RecordKind =
    RecordKind { object: ObjectKind::Lease, key_context: "cairn v1 lease key", len_max: 64 * 1024 };

/// What a lease says of its holder. For people; and by the operation, one garbage collection sees another.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LeaseInfo {
    /// What the holder does.
    #[n(0)]
    pub operation: String,
    /// Its process number, on its own machine.
    #[n(1)]
    pub process: u32,
}

impl LeaseInfo {
    /// The record's CBOR.
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("writing CBOR into memory cannot fail")
    }

    /// Reads a record's CBOR.
    ///
    /// # Errors
    /// `Corrupt` when it is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        minicbor::decode(bytes).map_err(|error| Error::with_source(ErrorKind::Corrupt, "lease is malformed", error))
    }
}

/// How long revocations are kept, by the store's clock, in milliseconds: 90 days. Longer than any process works.
const REVOKED_MS: i64 = 90 * 24 * 60 * 60 * 1000;

/// A lease of this process; taken away when dropped.
pub struct Lease {
    store: Store,
    held: Option<(LeaseId, Hold)>,
}

/// What tells others that the holder lives.
enum Hold {
    /// The lock on its file, which ends with the process.
    Locked { _file: File },
    /// Its age by the store's clock.
    Renewed(Renewal),
}

impl Lease {
    /// Puts a lease.
    ///
    /// # Errors
    /// `Forbidden` without the structure key; `Io`, `Unavailable` when the repository cannot be written.
    pub fn put(repository: &Repository, operation: &str) -> Result<Self> {
        let info = LeaseInfo { operation: operation.to_owned(), process: std::process::id() };
        let (id, object) = RECORD.seal(repository, info.encode())?;
        let (id, store) = (LeaseId(id), repository.store.clone());
        let hold = match (store.put_held(ObjectName::Lease(id), &object)?, store.lease_terms()) {
            (Some(file), _) => Hold::Locked { _file: file },
            (None, terms) => {
                let renew_every = terms.and_then(|terms| terms.renew_every);
                Hold::Renewed(Renewal::start(store.clone(), id, object, renew_every)?)
            }
        };
        Ok(Self { store, held: Some((id, hold)) })
    }

    /// Puts a lease, or does without where the repository cannot be written: a reader of a read-only medium is not
    /// in danger, and a reader elsewhere only of a clear error.
    ///
    /// # Errors
    /// `Forbidden` without the structure key; `Unavailable`.
    pub fn put_if_writable(repository: &Repository, operation: &str) -> Result<Self> {
        match Self::put(repository, operation) {
            Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::NotFound) => {
                Ok(Self { store: repository.store.clone(), held: None })
            }
            put => put,
        }
    }

    /// Puts a lease, unless others hold one for any of the operations `rivals`. Each puts its own before it looks, so of
    /// two that begin at once at least one sees the other; both may, and then both fail.
    ///
    /// # Errors
    /// `Locked` when there is another; those of [`put`](Self::put) and [`living`].
    pub fn put_alone(repository: &Repository, operation: &str, rivals: &[&str]) -> Result<Self> {
        let lease = Self::put(repository, operation)?;
        lease.refuse_others(repository, rivals)?;
        Ok(lease)
    }

    fn refuse_others(&self, repository: &Repository, rivals: &[&str]) -> Result<()> {
        for id in living(repository, Some(self))?.into_iter().filter(|id| Some(*id) != self.id()) {
            match read(repository, id) {
                Ok(info) if !rivals.contains(&info.operation.as_str()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Ok(info) => {
                    let what = if info.operation == "gc" { "collection" } else { info.operation.as_str() };
                    let text = format!("another {what} is at work, process {}", info.process);
                    return Err(Error::new(ErrorKind::Locked, text));
                }
                // It may be one.
                Err(error) => return Err(error.context("cannot tell what another process is doing")),
            }
        }
        Ok(())
    }

    /// The lease's name; none when the repository cannot be written.
    pub fn id(&self) -> Option<LeaseId> {
        self.held.as_ref().map(|(id, _)| *id)
    }

    /// Fails when somebody took the lease away: what was found in the repository may be gone.
    ///
    /// # Errors
    /// `Locked` when the lease is gone or revoked; `Unavailable`.
    pub fn check(&self) -> Result<()> {
        let lost = "another process took this one for dead and removed its lease: run it again";
        match &self.held {
            None => Ok(()),
            Some((id, Hold::Locked { .. })) => match self.store.len(ObjectName::Lease(*id)) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    Err(Error::with_source(ErrorKind::Locked, lost, error))
                }
                found => found.map(drop),
            },
            // Whether the lease is there says nothing: it goes after the revocation.
            Some((id, Hold::Renewed(_))) => match self.store.exists(ObjectName::Revocation(*id))? {
                true => Err(Error::new(ErrorKind::Locked, lost)),
                false => Ok(()),
            },
        }
    }

    /// Renews the lease where its age counts, so that it is as young as can be.
    ///
    /// # Errors
    /// `Io`, `Unavailable`.
    pub fn renew(&self) -> Result<()> {
        match &self.held {
            Some((_, Hold::Renewed(renewal))) => renewal.renew(),
            _ => Ok(()),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((id, hold)) = self.held.take() {
            if let Hold::Renewed(renewal) = &hold {
                renewal.stop();
            }
            let names = [ObjectName::Lease(id), ObjectName::Renewal(id)];
            let names = if self.store.lease_terms().is_some() { &names[..] } else { &names[..1] };
            // One that stays is found to be dead by whoever looks: its file is no longer locked, or it grows old.
            let _ = self.store.delete_all(names);
        }
    }
}

/// What a lease says of its holder.
///
/// # Errors
/// `NotFound` when it is gone; `Corrupt`, `Unavailable`.
pub fn read(repository: &Repository, id: LeaseId) -> Result<LeaseInfo> {
    let object = repository.store.get(ObjectName::Lease(id), RECORD.len_max)?;
    let record = RECORD.open(repository, &id.0, &object).context(|| format!("lease {}", id.short()))?;
    LeaseInfo::decode(&record)
}

/// The leases whose holders may be at work. Those that processes left behind when they died are deleted; on an object
/// store, whose clock alone is asked, they are revoked first. `own` is the caller's lease, against which the age of others
/// is measured there: without it all of them count as living.
///
/// # Errors
/// `Unavailable`, `Io`; `Locked` when the caller's own lease was revoked.
pub fn living(repository: &Repository, own: Option<&Lease>) -> Result<Vec<LeaseId>> {
    if let Some(terms) = repository.store.lease_terms() {
        return living_by_age(&repository.store, terms, own);
    }
    let mut living = Vec::new();
    for listed in repository.store.list_leases()? {
        let name = ObjectName::Lease(listed.id);
        if repository.store.is_held(name)? {
            living.push(listed.id);
        } else {
            delete_if_there(&repository.store, name)?;
        }
    }
    Ok(living)
}

fn living_by_age(store: &Store, terms: LeaseTerms, own: Option<&Lease>) -> Result<Vec<LeaseId>> {
    let own_id = own.and_then(Lease::id);
    if let Some(own) = own {
        own.check()?;
    }
    let revoked: BTreeSet<LeaseId> = store.list_revocations()?.into_iter().map(|listed| listed.id).collect();
    // Renewals after leases: of whoever is listed the newest sign of life is, too.
    let listed = store.list_leases()?;
    let renewals = store.list_renewals()?;
    let renewed: BTreeMap<LeaseId, i64> = renewals.iter().map(|listed| (listed.id, listed.stored_ms)).collect();
    let lived_ms =
        |lease: &Listed<LeaseId>| renewed.get(&lease.id).map_or(lease.stored_ms, |at| lease.stored_ms.max(*at));
    // The caller's own last sign of life: a little early, which makes others seem younger.
    let now_ms = listed.iter().find(|listed| Some(listed.id) == own_id).map(lived_ms);
    if own_id.is_some() && now_ms.is_none() {
        // Who else is missing then? On such a listing nothing may be deleted.
        let text = "the object store does not list the lease that was just put: its listings are stale";
        return Err(Error::new(ErrorKind::Unavailable, text));
    }
    let mut living = Vec::new();
    for lease in listed {
        let expired = now_ms.is_some_and(|now| now.saturating_sub(lived_ms(&lease)) > terms.expires_after_ms);
        let dead = Some(lease.id) != own_id && (expired || revoked.contains(&lease.id));
        if dead && own_id.is_some() {
            revoke(store, lease.id)?;
        } else if !dead {
            living.push(lease.id);
        }
    }
    Ok(living)
}

/// Revokes a lease and takes it away, in this order: from the revocation on its holder cannot commit, whatever it puts.
fn revoke(store: &Store, id: LeaseId) -> Result<()> {
    let mut object = ObjectHeader::new(ObjectKind::Revocation).as_bytes().to_vec();
    object.extend_from_slice(id.as_bytes());
    store.put_new(ObjectName::Revocation(id), &object)?;
    store.delete_all(&[ObjectName::Lease(id), ObjectName::Renewal(id)]).map(drop)
}

/// Deletes revocations that are so old that nobody can still work under the lease, and renewals without a lease.
///
/// # Errors
/// `Unavailable`, `Io`.
pub fn tidy(store: &Store, own: &Lease) -> Result<()> {
    if store.lease_terms().is_none() {
        return Ok(());
    }
    let (revocations, renewals) = (store.list_revocations()?, store.list_renewals()?);
    let leases = store.list_leases()?;
    let Some(now) = leases.iter().find(|listed| Some(listed.id) == own.id()) else { return Ok(()) };
    let older = |listed: &&Listed<LeaseId>| now.stored_ms.saturating_sub(listed.stored_ms) > REVOKED_MS;
    let alone = |listed: &&Listed<LeaseId>| !leases.iter().any(|lease| lease.id == listed.id);
    let revocations = revocations.iter().filter(older).map(|listed| ObjectName::Revocation(listed.id));
    let renewals = renewals.iter().filter(older).filter(alone).map(|listed| ObjectName::Renewal(listed.id));
    let old: Vec<_> = revocations.chain(renewals).collect();
    if old.is_empty() { Ok(()) } else { store.delete_all(&old).map(drop) }
}

fn delete_if_there(store: &Store, name: ObjectName) -> Result<()> {
    match store.delete(name) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A turn at what only one process may do at a time; over when dropped. Processes on one folder wait for each other by a lock;
/// others, clients of a server of that folder included, see the lease and end.
pub struct Turn {
    lease: Lease,
    _lock: Option<File>,
}

impl Turn {
    /// Waits for a turn at forgetting and annotating; where nothing can be locked it is refused while somebody else has it.
    ///
    /// # Errors
    /// `Locked` when somebody else has it; `Io`, `Unavailable`.
    pub fn at_snapshots(repository: &Repository, operation: &str) -> Result<Self> {
        let lock = repository.store.lock_snapshots()?;
        let lease = Lease::put_alone(repository, operation, &[FORGET, REMARKS])?;
        Ok(Self { lease, _lock: lock })
    }

    /// Fails when the turn was taken away from a process that seemed dead.
    ///
    /// # Errors
    /// `Locked`; `Unavailable`.
    pub fn check(&self) -> Result<()> {
        self.lease.check()
    }
}

/// A turn at removing key slots. In a folder removal takes a lock besides, which processes there wait for.
///
/// # Errors
/// `Locked` when somebody else has it; `Io`, `Unavailable`.
pub fn turn_at_slots(repository: &Repository) -> Result<Option<Lease>> {
    match repository.store.lease_terms() {
        None => Ok(None),
        Some(_) => Lease::put_alone(repository, REMOVE_KEY, &[REMOVE_KEY]).map(Some),
    }
}

/// The operation of a turn that forgets.
pub const FORGET: &str = "forget";
/// The operation of a turn that annotates.
pub const REMARKS: &str = "remarks";
const REMOVE_KEY: &str = "key remove";
