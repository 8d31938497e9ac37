//! Sync: snapshots of one repository are stored in another one, which lacks them.
//!
//! ```text
//! same keys   choice ──▶ walk: which packs of FROM, and what TO has ──▶ packs as they are ──▶ annotations ──▶ records
//! other keys  choice ──▶ blocks that differ from what was synced before ──▶ a backup in TO
//! ```
//!
//! A repository with the id, the configuration and so the keys of the other one is a *copy* of it: packs move there sealed, and
//! snapshots keep their names. Nothing of TO is ever deleted. What arrived stays, so that a sync that was broken off goes on
//! where it was. A record comes last: who sees it in TO can read all that it needs there (docs/concurrency.md).

mod choice;
mod entries;
mod needs;
mod other_keys;
mod packs;
mod planner;
mod remarks;
mod same_keys;
mod stored_disk;

use std::sync::Arc;

use crate::annotation;
use crate::error::{Error, ErrorKind, Result};
use crate::id::SnapshotId;
use crate::index::PackState;
use crate::monitor::Monitor;
use crate::ops::open::{Access, Session};
use crate::snapshot::{NamedSnapshot, Snapshots};
pub use choice::Filter;

const OPERATION: &str = "sync";

/// How to sync.
#[derive(Debug, Clone)]
pub struct SyncOptions {
    /// Which snapshots.
    pub filter: Filter,
    /// zstd level of what is stored anew.
    pub level: i32,
    /// The time now, in milliseconds since the Unix epoch.
    pub now_ms: i64,
}

impl SyncOptions {
    /// A sync of all snapshots at a time.
    pub fn new(now_ms: i64) -> Self {
        Self { filter: Filter::default(), level: 3, now_ms }
    }
}

/// What a sync did, or would do.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// Whether packs move as they are: TO is a copy of FROM.
    pub same_keys: bool,
    /// Snapshots that were chosen.
    pub chosen_snapshots: u64,
    /// Of these, snapshots that TO had already.
    pub present_snapshots: u64,
    /// Snapshots that TO lacked and has now, or would have, oldest first.
    pub synced: Vec<Synced>,
    /// Snapshots that could not be synced because something they need is damaged or missing, and what.
    pub failed: Vec<(SnapshotId, Error)>,
    /// Records and annotations that could not be read: which disks they are of is not known.
    pub unreadable_records: u64,
    /// Packs that moved as they are.
    pub moved_packs: u64,
    /// Their bytes.
    pub moved_bytes: u64,
    /// Packs of FROM that TO had before, under the same name.
    pub present_packs: u64,
    /// Their bytes.
    pub present_bytes: u64,
    /// Bytes of blocks of FROM's disks that were read, or would be, to store them under other keys: 2 MiB each.
    pub read_bytes: u64,
    /// Bytes that were sealed anew for TO: under other keys; or under the same, because TO condemned the packs they stand in.
    pub stored_bytes: u64,
    /// Annotations that TO got.
    pub annotations: u64,
}

/// A snapshot that was synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synced {
    /// Its name in FROM.
    pub id: SnapshotId,
    /// Its name in TO: the same under the same keys. `None` when it would only be synced under other ones.
    pub stored_as: Option<SnapshotId>,
    /// The moment it stands for, in milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// The VM's name.
    pub vm: Option<String>,
    /// Its disks' names.
    pub vdis: Vec<String>,
}

impl Synced {
    fn new(named: &NamedSnapshot, stored_as: Option<SnapshotId>) -> Self {
        Self {
            id: named.id,
            stored_as,
            time_ms: named.snapshot.time_ms,
            vm: named.snapshot.vm.clone(),
            vdis: named.snapshot.disks.iter().map(|disk| disk.vdi.clone()).collect(),
        }
    }
}

impl SyncReport {
    /// Whether nothing that was asked for is damaged or missing.
    pub fn is_clean(&self) -> bool {
        self.failed.is_empty() && self.unreadable_records == 0
    }

    /// Takes note of records of FROM that cannot be read. One that is gone was forgotten meanwhile.
    fn take_unreadable<'e>(&mut self, errors: impl Iterator<Item = &'e Error>, monitor: &dyn Monitor) -> Result<()> {
        for error in errors.filter(|error| error.kind() != ErrorKind::NotFound) {
            if !error.is_loss() {
                return Err(Error::new(error.kind(), error.chain()).context("a record cannot be read now"));
            }
            monitor.damage(error);
            self.unreadable_records += 1;
        }
        Ok(())
    }

    /// Goes on without a snapshot.
    fn fail(&mut self, id: SnapshotId, error: Error, monitor: &dyn Monitor) {
        let error = error.context(format!("snapshot {} is not synced", id.short()));
        monitor.damage(&error);
        self.failed.push((id, error));
    }
}

/// Whether TO is a copy of FROM: the same id, configuration and keys.
pub fn is_copy(from: &Session, to: &Session) -> bool {
    from.repository.config == to.repository.config
}

/// Stores the chosen snapshots of `from` in `to`, as far as that lacks them.
///
/// Damage in `from` keeps back the snapshots that need what is damaged, which the report names; the others are synced.
///
/// # Errors
/// `NotFound` when the filter names what is not there; `Locked` when a lease was taken away; `Unauthenticated` without a key
/// that is needed; `Io`, `Unavailable`, `Interrupted`. What was committed by then stays, and the next run goes on.
pub fn sync(from: &Arc<Session>, to: &Session, options: &SyncOptions, monitor: &dyn Monitor) -> Result<SyncReport> {
    let source = from.begin(OPERATION, Access::Read, monitor)?;
    let (mut report, chosen) = prepare(source.snapshots(), options, monitor)?;
    let (annotations, errors) = annotation::read_all(&from.repository)?;
    report.take_unreadable(errors.iter().map(|(_, error)| error), monitor)?;
    report.same_keys = is_copy(from, to);
    if report.same_keys {
        let target = to.begin(OPERATION, Access::Write, monitor)?;
        report.count_present(from, to);
        same_keys::sync(from, to, &target, &chosen, &annotations, options, &mut report, monitor)?;
    } else {
        let all = &source.snapshots().0;
        other_keys::sync(from, to, all, &chosen, &annotations, options, &mut report, monitor)?;
    }
    Ok(report)
}

/// Finds out what [`sync`] would do, and changes nothing. Without `to`: into an empty copy.
///
/// # Errors
/// As [`sync`].
pub fn plan(from: &Session, to: Option<&Session>, options: &SyncOptions, monitor: &dyn Monitor) -> Result<SyncReport> {
    let source = from.begin(OPERATION, Access::Read, monitor)?;
    let (mut report, chosen) = prepare(source.snapshots(), options, monitor)?;
    report.same_keys = to.is_none_or(|to| is_copy(from, to));
    let target = to.map(|to| to.begin(OPERATION, Access::Read, monitor)).transpose()?;
    let there = target.as_ref().map_or(&[][..], |target| &target.snapshots().0);
    if let Some(to) = to.filter(|_| report.same_keys) {
        report.count_present(from, to);
    }
    match report.same_keys {
        true => same_keys::plan(from, to, there, &chosen, &mut report, monitor)?,
        false => other_keys::plan(from, to, &source.snapshots().0, there, &chosen, &mut report, monitor)?,
    }
    Ok(report)
}

fn prepare<'a>(
    snapshots: &'a Snapshots,
    options: &SyncOptions,
    monitor: &dyn Monitor,
) -> Result<(SyncReport, Vec<&'a NamedSnapshot>)> {
    let (all, errors) = snapshots;
    let mut report = SyncReport::default();
    report.take_unreadable(errors.iter().map(|(_, error)| error), monitor)?;
    let chosen = options.filter.choose(all)?;
    report.chosen_snapshots = chosen.len() as u64;
    Ok((report, chosen))
}

impl SyncReport {
    fn count_present(&mut self, from: &Session, to: &Session) {
        let live = from.index.packs().into_iter().filter(|pack| pack.state == PackState::Live);
        for pack in live.filter(|pack| to.index.number_of(pack.id).is_some()) {
            self.present_packs += 1;
            self.present_bytes += pack.len;
        }
    }
}
