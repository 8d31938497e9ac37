//! Check: reads what is stored and names what is damaged, down to the snapshots and disk ranges that it hits.
//!
//! Three passes. Objects: every key slot, snapshot record and pack is read as far as asked. Trees: every manifest node is
//! visited once, every chunk it names is looked up. Only where damage was found, a third pass finds out whom it hits.

pub mod cursor;
pub(in crate::ops) mod packs;
mod trees;
mod visited;

use std::ops::Range;

use crate::annotation;
use crate::error::{Error, ErrorKind, Result};
use crate::id::SnapshotId;
use crate::keys::Role;
use crate::keys::slot::{self, SLOT_LEN_MAX};
use crate::monitor::Monitor;
use crate::ops::open::{Access, Session};
use crate::snapshot::{self, NamedSnapshot};
use crate::store::ObjectName;
use cursor::{Coverage, Share};

/// How much to check.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// Also read, open and re-hash every frame of every pack.
    pub read_data: bool,
}

/// A damaged or missing object, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The object's path in the repository.
    pub object: String,
    /// The frame of the pack, when it is one.
    pub frame: Option<u32>,
    /// What is wrong.
    pub error: String,
}

/// What of a snapshot damage hits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affected {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The disk.
    pub vdi: String,
    /// Ranges of the disk in bytes, ascending, that cannot be restored.
    pub ranges: Vec<Range<u64>>,
}

/// What a check found.
#[derive(Debug, Clone, Default)]
pub struct CheckReport {
    /// Snapshot records that could be read.
    pub snapshots: u64,
    /// Packs looked at.
    pub packs: u64,
    /// Bytes of packs that were read and verified.
    pub read_bytes: u64,
    /// Manifest nodes visited, each once; above 24 million, those that could not be remembered as often as they were met.
    pub nodes: u64,
    /// Chunks looked up.
    pub chunks: u64,
    /// What is damaged.
    pub damages: Vec<Damage>,
    /// What that hits.
    pub affected: Vec<Affected>,
    /// Objects that could not be read now, which says nothing about their bytes.
    pub unavailable: Vec<String>,
    /// How far the round has come, when only a share of the content was read.
    pub coverage: Option<Coverage>,
}

impl CheckReport {
    /// Whether all that was looked at is sound.
    pub fn is_clean(&self) -> bool {
        self.damages.is_empty() && self.affected.is_empty() && self.unavailable.is_empty()
    }

    fn note(&mut self, monitor: &dyn Monitor, object: impl Into<String>, frame: Option<u32>, error: &Error) {
        let object = object.into();
        if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Io) {
            monitor.warn(&format!("{object} cannot be read now: {}", error.chain()));
            self.unavailable.push(object);
            return;
        }
        monitor.damage(error);
        self.damages.push(Damage { object, frame, error: error.chain() });
    }
}

/// Checks a repository.
///
/// # Errors
/// `Forbidden` when `read_data` is asked for without the keys it takes; `Unavailable` when the store cannot be listed;
/// `Interrupted`. Damage is no error: it is in the report.
pub fn check(session: &Session, options: CheckOptions, monitor: &dyn Monitor) -> Result<CheckReport> {
    run(session, if options.read_data { Reading::Everything } else { Reading::Directories }, monitor)
}

/// Checks a repository, and reads the next share of the content: runs one after another read all of it, going round. A
/// killed run is taken up where it was.
///
/// # Errors
/// As [`check`], as with `read_data`.
pub fn check_share(session: &Session, share: Share, now_ms: i64, monitor: &dyn Monitor) -> Result<CheckReport> {
    run(session, Reading::Share(share, now_ms), monitor)
}

/// Which packs are read as a whole.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reading {
    Directories,
    Everything,
    /// So much, at this time.
    Share(Share, i64),
}

fn run(session: &Session, reading: Reading, monitor: &dyn Monitor) -> Result<CheckReport> {
    if reading != Reading::Directories {
        session.repository.keys.get(Role::Identity)?;
        session.repository.keys.get(Role::Data)?;
    }
    let _working = session.begin("check", Access::Read, monitor)?;
    let mut report = CheckReport::default();
    check_slots(session, &mut report, monitor)?;
    check_annotations(session, &mut report, monitor)?;
    let snapshots = check_snapshots(session, &mut report, monitor)?;
    let bad = packs::check(session, reading, &mut report, monitor)?;
    trees::check(session, &snapshots, &bad, &mut report, monitor)?;
    if !report.affected.is_empty() {
        packs::note_missing(session, &snapshots, &mut report, monitor)?;
    }
    Ok(report)
}

fn check_slots(session: &Session, report: &mut CheckReport, monitor: &dyn Monitor) -> Result<()> {
    for listed in session.repository.store.list_slots()? {
        let name = ObjectName::Slot(listed.id);
        let inspected =
            session.repository.store.get(name, SLOT_LEN_MAX).and_then(|bytes| slot::inspect(listed.id, &bytes));
        if let Err(error) = inspected {
            report.note(monitor, name.path(), None, &error);
        }
    }
    Ok(())
}

fn check_annotations(session: &Session, report: &mut CheckReport, monitor: &dyn Monitor) -> Result<()> {
    for (id, error) in annotation::read_all(&session.repository)?.1 {
        report.note(monitor, ObjectName::Annotation(id).path(), None, &error);
    }
    Ok(())
}

fn check_snapshots(session: &Session, report: &mut CheckReport, monitor: &dyn Monitor) -> Result<Vec<NamedSnapshot>> {
    // From the store, whatever the index kept of them.
    let (snapshots, errors) = snapshot::read_all(&session.repository)?;
    session.catch_up(monitor)?;
    for (id, error) in errors {
        report.note(monitor, ObjectName::Snapshot(id).path(), None, &error);
    }
    report.snapshots = snapshots.len() as u64;
    Ok(snapshots)
}
