//! A sync between repositories with different keys: each snapshot is backed up anew.
//!
//! Chunks have other names there, and end in other places. So blocks are read, opened and checked, and go through a backup in TO:
//! all blocks of a disk, or those that differ in FROM from a snapshot of the same disk that was synced before, over which they are
//! laid. Records say where a snapshot was made, and so it is known again.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::remarks::{self, Said};
use super::stored_disk::{Damaged, StoredDisk};
use super::{SyncOptions, SyncReport, Synced};
use crate::annotation::{self, Annotations};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{NodeId, SnapshotId};
use crate::keys::Role;
use crate::manifest::Tree;
use crate::manifest::diff::ChangedBlocks;
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::backup::{BackupOptions, BaseChoice, DiskInput, backup};
use crate::ops::open::Session;
use crate::repository::Repository;
use crate::snapshot::{Disk, NamedSnapshot, SnapshotOrigin};
use crate::units::BLOCK_LEN;

/// A snapshot that both have: its name in FROM, its disks there, and its name in TO.
struct Pair {
    time_ms: i64,
    disks: Vec<(String, Tree)>,
    /// `None` when it would only be there.
    to: Option<SnapshotId>,
}

impl Pair {
    fn new(from: &NamedSnapshot, to: Option<SnapshotId>) -> Self {
        let disk = |disk: &Disk| (disk.vdi.clone(), disk.tree);
        Self { time_ms: from.snapshot.time_ms, disks: from.snapshot.disks.iter().map(disk).collect(), to }
    }
}

/// What both have.
struct Known<'t> {
    /// Snapshots of TO, by where they were made.
    there: BTreeMap<SnapshotOrigin, &'t NamedSnapshot>,
    pairs: Vec<Pair>,
}

/// Where a snapshot was made.
fn origin(repository: &Repository, named: &NamedSnapshot) -> SnapshotOrigin {
    let here = SnapshotOrigin { repository: repository.config.id, snapshot: named.id };
    named.snapshot.origin.unwrap_or(here)
}

impl<'t> Known<'t> {
    fn new(from: (&Repository, &[NamedSnapshot]), to: (&Repository, &'t [NamedSnapshot])) -> Self {
        let there: BTreeMap<_, _> = to.1.iter().map(|named| (origin(to.0, named), named)).collect();
        let in_both = from.1.iter().filter_map(|named| Some((named, there.get(&origin(from.0, named))?)));
        let pairs = in_both.map(|(named, there)| Pair::new(named, Some(there.id))).collect();
        Self { there, pairs }
    }

    /// The disk of a snapshot that is nearest: the newest that is not newer, or else the oldest. Disks do not shrink over a base.
    fn base(&self, time_ms: i64, disk: &Disk) -> Option<(Tree, Option<SnapshotId>)> {
        let with = || {
            self.pairs.iter().filter_map(|pair| {
                let (_, tree) = pair.disks.iter().find(|(vdi, _)| *vdi == disk.vdi)?;
                (tree.virtual_size <= disk.tree.virtual_size).then_some((pair.time_ms, *tree, pair.to))
            })
        };
        let before = with().filter(|(time, ..)| *time <= time_ms).max_by_key(|(time, ..)| *time);
        let nearest = before.or_else(|| with().min_by_key(|(time, ..)| *time));
        nearest.map(|(_, tree, to)| (tree, to))
    }
}

/// Finds out how much would be read.
pub(super) fn plan(
    from: &Session,
    to: Option<&Session>,
    all: &[NamedSnapshot],
    there: &[NamedSnapshot],
    chosen: &[&NamedSnapshot],
    report: &mut SyncReport,
    monitor: &dyn Monitor,
) -> Result<()> {
    let Some(to) = to else { return Ok(()) };
    let mut known = Known::new((&from.repository, all), (&to.repository, there));
    monitor.begin("finding what differs", None);
    for named in chosen {
        check_cancelled(monitor)?;
        if known.there.contains_key(&origin(&from.repository, named)) {
            report.present_snapshots += 1;
            continue;
        }
        let blocks = named.snapshot.disks.iter().try_fold(0, |sum, disk| {
            let nothing = Tree { root: NodeId::NONE, virtual_size: 0 };
            let base = known.base(named.snapshot.time_ms, disk).map_or(nothing, |(tree, _)| tree);
            ChangedBlocks::new(&base, &disk.tree, &*from.content).try_fold(sum, |sum, block| block.map(|_| sum + 1))
        });
        match blocks {
            Ok(blocks) => {
                report.read_bytes += blocks * BLOCK_LEN as u64;
                report.synced.push(Synced::new(named, None));
                known.pairs.push(Pair::new(named, None));
            }
            Err(error) if error.is_loss() => report.fail(named.id, error, monitor),
            Err(error) => return Err(error),
        }
    }
    monitor.end();
    Ok(())
}

/// Backs up in TO what it lacks.
#[expect(clippy::too_many_arguments, reason = "both sides, what is chosen of one, and how")]
pub(super) fn sync(
    from: &Arc<Session>,
    to: &Session,
    all: &[NamedSnapshot],
    chosen: &[&NamedSnapshot],
    annotations: &Annotations,
    options: &SyncOptions,
    report: &mut SyncReport,
    monitor: &dyn Monitor,
) -> Result<()> {
    // Said once and clearly, rather than as damage of every snapshot.
    from.repository.keys.get(Role::Data)?;
    from.repository.keys.get(Role::Identity)?;
    // Each backup puts a lease of its own: a long sync holds up no collection.
    let (there, errors) = to.snapshots(monitor)?;
    report.take_unreadable(errors.iter().map(|(_, error)| error), monitor)?;
    let (annotations_there, errors) = annotation::read_all(&to.repository)?;
    report.take_unreadable(errors.iter().map(|(_, error)| error), monitor)?;
    let mut known = Known::new((&from.repository, all), (&to.repository, &there));
    for named in chosen {
        check_cancelled(monitor)?;
        let origin = origin(&from.repository, named);
        let remarks = annotations.remarks(named);
        if let Some(other) = known.there.get(&origin) {
            report.present_snapshots += 1;
            let said = Said::new(&remarks, (named.id, annotations), (other.id, &annotations_there));
            let now = annotations_there.remarks(other);
            report.annotations += u64::from(remarks::add(&to.repository, other, &now, &said, options.now_ms)?);
            continue;
        }
        let backup = BackupOptions {
            level: options.level,
            time_ms: named.snapshot.time_ms,
            vm: named.snapshot.vm.clone(),
            metadata: named.snapshot.metadata.clone(),
            remarks: remarks.into_owned(),
            origin: Some(origin),
            ..BackupOptions::new(options.now_ms)
        };
        match store(from, to, named, &known, &backup, report, monitor) {
            Ok(id) => {
                report.synced.push(Synced::new(named, Some(id)));
                known.pairs.push(Pair::new(named, Some(id)));
            }
            Err(Storing::Damaged(error)) => report.fail(named.id, error, monitor),
            Err(Storing::Failed(error)) => return Err(error),
        }
    }
    Ok(())
}

/// Why a snapshot was not stored.
enum Storing {
    /// What is read is damaged.
    Damaged(Error),
    Failed(Error),
}

fn store(
    from: &Arc<Session>,
    to: &Session,
    named: &NamedSnapshot,
    known: &Known<'_>,
    options: &BackupOptions,
    report: &mut SyncReport,
    monitor: &dyn Monitor,
) -> Result<SnapshotId, Storing> {
    let mut over_base = true;
    loop {
        let damaged = Damaged::default();
        let mut has_base = false;
        let inputs = named.snapshot.disks.iter().map(|disk| {
            let base = known.base(named.snapshot.time_ms, disk).filter(|_| over_base);
            let base = base.and_then(|(tree, to)| Some((tree, to?)));
            has_base |= base.is_some();
            let source = StoredDisk::new(from.clone(), disk, base.map(|(tree, _)| tree), damaged.clone());
            let choice = base.map(|(_, id)| BaseChoice::Snapshot(id));
            DiskInput { base: choice, ..DiskInput::new(disk.vdi.clone(), Box::new(source)) }
        });
        let error = match backup(to, inputs.collect(), options, monitor) {
            Ok(done) => {
                let disks = &done.snapshot.snapshot.disks;
                report.read_bytes += disks.iter().map(|disk| disk.reading.read_bytes).sum::<u64>();
                report.stored_bytes += done.stored_bytes;
                return Ok(done.snapshot.id);
            }
            Err(error) => error,
        };
        let of_base = error.is_loss() || matches!(error.kind(), ErrorKind::Locked | ErrorKind::Invalid);
        if has_base && over_base && of_base {
            // The base was forgotten meanwhile, or is not whole, on either side: the whole disk needs none.
            over_base = false;
        } else if damaged.is_told() {
            return Err(Storing::Damaged(error));
        } else {
            return Err(Storing::Failed(error));
        }
    }
}
