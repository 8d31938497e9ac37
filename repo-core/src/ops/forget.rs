//! Forget: deletes snapshot records, by name or by policy. What only they needed is garbage from then on.
//!
//! Nothing but records and their annotations is touched, so it is quick and does not depend on how large the disks are.
//! A policy decides for each disk; a snapshot of several disks goes only when all of them let it go.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::annotation::{self, Annotations};
use crate::error::{Error, ErrorKind, Result};
use crate::id::SnapshotId;
use crate::lease::{FORGET, Turn};
use crate::monitor::{Monitor, check_cancelled};
use crate::remarks::Remarks;
use crate::repository::Repository;
use crate::retention::calendar::Clock;
use crate::retention::{self, Candidate, Policy, Reason};
use crate::snapshot::{self, NamedSnapshot};
use crate::store::ObjectName;

/// Records deleted between two looks at the monitor.
const BATCH: usize = 512;

/// Which snapshots to forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// These.
    Named {
        /// Their names.
        snapshots: BTreeSet<SnapshotId>,
        /// Whether the last snapshot of a disk may be among them.
        allow_last: bool,
    },
    /// All that a policy does not keep.
    Policy {
        /// The policy.
        policy: Policy,
        /// What it is applied to.
        scope: Scope,
        /// By which times.
        times: Times,
    },
}

/// The times by which a policy decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Times {
    /// Those that snapshots stand for, as their records say.
    #[default]
    Recorded,
    /// Those, and the times at which the store got the records: what either keeps is kept. A client that writes other times into
    /// its records cannot make a snapshot go that was stored at its time (docs/design/0013).
    Both,
}

/// What a policy is applied to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Disks of these names; of all names when empty.
    pub vdis: BTreeSet<String>,
    /// Snapshots of the VM of this name; of all when `None`.
    pub vm: Option<String>,
}

/// What to forget and what to keep, oldest snapshot first, and why.
#[derive(Debug)]
pub struct Plan {
    /// The snapshots that the request is about.
    pub snapshots: Vec<Planned>,
    /// Snapshot records that cannot be read: nothing is decided about them.
    pub unreadable: Vec<(SnapshotId, Error)>,
    annotations: Annotations,
}

/// A snapshot in a plan.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Its name.
    pub id: SnapshotId,
    /// The moment it stands for, in milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// The VM's name.
    pub vm: Option<String>,
    /// Its disks.
    pub disks: Vec<PlannedDisk>,
}

/// A disk of a snapshot in a plan.
#[derive(Debug, Clone)]
pub struct PlannedDisk {
    /// The VDI's name.
    pub vdi: String,
    /// Why it is kept, for people; empty when it is not.
    pub reasons: Vec<String>,
}

impl Planned {
    /// Whether the snapshot is to be forgotten: no disk of it is kept.
    pub fn is_forgotten(&self) -> bool {
        self.disks.iter().all(|disk| disk.reasons.is_empty())
    }
}

impl Plan {
    /// The snapshots to be forgotten.
    pub fn forgotten(&self) -> impl Iterator<Item = &Planned> {
        self.snapshots.iter().filter(|planned| planned.is_forgotten())
    }
}

/// Decides, and changes nothing.
///
/// # Errors
/// `NotFound` when the request is about nothing; `Invalid` when it may not be done; `Corrupt` when an annotation cannot be
/// read, since it may protect; `Unavailable`.
pub fn plan(repository: &Repository, request: &Request, clock: &Clock<'_>) -> Result<Plan> {
    let catalog = match request {
        Request::Policy { times: Times::Both, .. } => repository.dated_catalog()?,
        _ => repository.catalog()?,
    };
    let (annotations, errors) = annotation::read_listed(repository, catalog.annotations)?;
    if let Some((_, error)) = errors.into_iter().next() {
        return Err(error.context("an annotation cannot be read, and may protect a snapshot"));
    }
    let (snapshots, unreadable) = snapshot::read_listed(repository, &catalog.snapshots);
    let planned = match request {
        Request::Named { snapshots: named, allow_last } => {
            check_named(named, &snapshots, &annotations, *allow_last)?;
            let named = snapshots.iter().filter(|snapshot| named.contains(&snapshot.id));
            named.map(|named| planned(named, |_| Vec::new())).collect()
        }
        Request::Policy { policy, scope, times } => {
            let stored = (*times == Times::Both).then_some(&catalog.stored_ms);
            by_policy(policy, scope, &Dated { snapshots: &snapshots, stored }, &annotations, clock)?
        }
    };
    Ok(Plan { snapshots: planned, unreadable, annotations })
}

/// Decides, and forgets. Another process that forgets or annotates waits meanwhile.
///
/// # Errors
/// Those of [`plan`]; `Io`; `Interrupted`, when part of them is forgotten.
pub fn forget(repository: &Repository, request: &Request, clock: &Clock<'_>, monitor: &dyn Monitor) -> Result<Plan> {
    let turn = Turn::at_snapshots(repository, FORGET)?;
    let plan = plan(repository, request, clock)?;
    let ids: Vec<_> = plan.forgotten().map(|planned| planned.id).collect();
    for batch in ids.chunks(BATCH) {
        check_cancelled(monitor)?;
        turn.check()?;
        let records: Vec<_> = batch.iter().map(|id| ObjectName::Snapshot(*id)).collect();
        repository.store.delete_all(&records)?;
        // After the records: without them annotations say nothing.
        let annotations = batch.iter().flat_map(|id| plan.annotations.ids_of(*id));
        repository.store.delete_all(&annotations.map(ObjectName::Annotation).collect::<Vec<_>>())?;
    }
    Ok(plan)
}

fn planned(named: &NamedSnapshot, reasons: impl Fn(&str) -> Vec<String>) -> Planned {
    let disks = named.snapshot.disks.iter();
    Planned {
        id: named.id,
        time_ms: named.snapshot.time_ms,
        vm: named.snapshot.vm.clone(),
        disks: disks.map(|disk| PlannedDisk { vdi: disk.vdi.clone(), reasons: reasons(&disk.vdi) }).collect(),
    }
}

fn check_named(
    named: &BTreeSet<SnapshotId>,
    snapshots: &[NamedSnapshot],
    annotations: &Annotations,
    allow_last: bool,
) -> Result<()> {
    let known: HashSet<_> = snapshots.iter().map(|snapshot| snapshot.id).collect();
    if let Some(id) = named.iter().find(|id| !known.contains(id)) {
        return Err(Error::new(ErrorKind::NotFound, format!("snapshot {} is not there", id.short())));
    }
    let (going, staying): (Vec<_>, Vec<_>) = snapshots.iter().partition(|snapshot| named.contains(&snapshot.id));
    if let Some(protected) = going.iter().find(|named| annotations.remarks(named).protected) {
        return Err(Error::invalid(format!("snapshot {} is protected", protected.id.short())));
    }
    let staying: HashSet<_> = disk_names(&staying).collect();
    match disk_names(&going).find(|vdi| !staying.contains(vdi)) {
        Some(vdi) if !allow_last => Err(Error::invalid(format!("no snapshot of VDI {vdi} would be left"))),
        _ => Ok(()),
    }
}

fn disk_names<'a>(snapshots: &[&'a NamedSnapshot]) -> impl Iterator<Item = &'a str> {
    snapshots.iter().flat_map(|named| &named.snapshot.disks).map(|disk| disk.vdi.as_str())
}

/// Snapshots, and when each was stored, where that is asked for, too.
struct Dated<'a> {
    snapshots: &'a [NamedSnapshot],
    stored: Option<&'a BTreeMap<SnapshotId, i64>>,
}

fn by_policy(
    policy: &Policy,
    scope: &Scope,
    dated: &Dated<'_>,
    annotations: &Annotations,
    clock: &Clock<'_>,
) -> Result<Vec<Planned>> {
    if policy.is_empty() {
        return Err(Error::invalid("a policy that keeps nothing would forget everything"));
    }
    let of_vm = |named: &&NamedSnapshot| scope.vm.is_none() || named.snapshot.vm == scope.vm;
    let selected = |vdi: &str| scope.vdis.is_empty() || scope.vdis.contains(vdi);
    let snapshots: Vec<_> = dated.snapshots.iter().filter(of_vm).collect();
    scope.check(&snapshots)?;
    let remarks: Vec<_> = snapshots.iter().map(|named| annotations.remarks(named)).collect();
    let mut of_disk: BTreeMap<&str, Vec<(usize, Candidate<'_>)>> = BTreeMap::new();
    for (at, named) in snapshots.iter().enumerate() {
        let remarks: &Remarks = &remarks[at];
        for disk in named.snapshot.disks.iter().filter(|disk| selected(&disk.vdi)) {
            let time_ms = named.snapshot.time_ms;
            let candidate = Candidate { id: named.id, time_ms, order_ms: time_ms, remarks };
            of_disk.entry(&disk.vdi).or_default().push((at, candidate));
        }
    }
    let mut reasons: BTreeMap<(usize, &str), Vec<String>> = BTreeMap::new();
    for (vdi, candidates) in of_disk {
        let (places, mut candidates): (Vec<_>, Vec<_>) = candidates.into_iter().unzip();
        for (at, kept) in places.iter().zip(retention::decide(policy, &candidates, clock)) {
            reasons.insert((*at, vdi), kept.iter().map(ToString::to_string).collect());
        }
        let Some(stored) = dated.stored else { continue };
        for candidate in &mut candidates {
            // Each was in the same listing as its time.
            candidate.time_ms = stored.get(&candidate.id).copied().unwrap_or(candidate.time_ms);
        }
        for (at, kept) in places.iter().zip(retention::decide(policy, &candidates, clock)) {
            let reasons = reasons.entry((*at, vdi)).or_default();
            for reason in kept.iter().filter(|reason| matches!(reason, Reason::Rule { .. } | Reason::Newest)) {
                let reason = reason.to_string();
                if !reasons.contains(&reason) {
                    reasons.push(format!("{reason}, by when it was stored"));
                }
            }
        }
    }
    let not_selected = || vec!["this disk is not selected".to_owned()];
    let of_selected = |(at, named): (usize, &&NamedSnapshot)| {
        let any = named.snapshot.disks.iter().any(|disk| selected(&disk.vdi));
        any.then(|| planned(named, |vdi| reasons.get(&(at, vdi)).cloned().unwrap_or_else(not_selected)))
    };
    Ok(snapshots.iter().enumerate().filter_map(of_selected).collect())
}

impl Scope {
    /// Refuses names that no snapshot has: a policy that silently does nothing lets a repository fill up.
    fn check(&self, snapshots: &[&NamedSnapshot]) -> Result<()> {
        let of_vm = self.vm.as_ref().map(|vm| format!(" of VM {vm}")).unwrap_or_default();
        if self.vm.is_some() && snapshots.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no snapshot{of_vm}")));
        }
        let there: HashSet<_> = disk_names(snapshots).collect();
        match self.vdis.iter().find(|vdi| !there.contains(vdi.as_str())) {
            Some(vdi) => Err(Error::new(ErrorKind::NotFound, format!("there is no snapshot{of_vm} with VDI {vdi}"))),
            None => Ok(()),
        }
    }
}
