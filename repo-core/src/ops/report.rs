//! Report: what is stored, for whom, at what ratio, and when the room is used up. docs/operations.md defines every number.
//!
//! Two sources, kept apart: what snapshot records say of their import (exported, changed, new, stored), which costs
//! nothing, and what the packs hold now (live, dead, unique), which takes the walk of [`usage`](super::usage).

pub mod exports;
pub mod figures;
pub mod forecast;
mod parts;
pub mod policy;

use std::path::Path;
use std::sync::Arc;

use crate::annotation::{self, Annotations};
use crate::error::Result;
use crate::id::SnapshotId;
use crate::lease::Lease;
use crate::monitor::Monitor;
use crate::ops::usage::cache::measure_cached;
use crate::ops::usage::{Usage, measure};
use crate::repository::Repository;
use crate::retention::calendar::Clock;
use crate::snapshot::NamedSnapshot;

use exports::VdiExports;
use figures::{Figures, Ratios};
use forecast::Forecast;
use parts::Parts;
use policy::NamedPolicy;

/// How much room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    /// All objects together may take so many bytes.
    Total(u64),
    /// So many bytes are free beside what is stored.
    Free(u64),
    /// Not known.
    Unknown,
}

/// What to report.
pub struct ReportOptions<'a> {
    /// The time now, and the time zone that days begin in.
    pub clock: &'a Clock<'a>,
    /// Only rows of this VDI. The repository, policies and forecast stay those of all.
    pub vdi: Option<&'a str>,
    /// What would be kept by these policies, at most [`KEEP_SETS_MAX`](super::usage::KEEP_SETS_MAX).
    pub policies: &'a [NamedPolicy],
    /// The bytes that all objects together may take.
    pub capacity: Capacity,
    /// How many days back from the newest snapshot growth is looked at.
    pub window_days: u32,
    /// The folder of the index, where the result of a walk is kept for the next report.
    pub cache: Option<&'a Path>,
}

/// A report.
#[derive(Debug, Clone)]
pub struct Report {
    /// Whose the stored bytes are.
    pub usage: Usage,
    /// The repository as a whole. Its `unique_bytes` are all that a snapshot refers to.
    pub repository: Figures,
    /// By VM, by name; disks without one last.
    pub vms: Vec<VmRow>,
    /// By VDI, by name.
    pub vdis: Vec<VdiRow>,
    /// By snapshot, oldest first.
    pub snapshots: Vec<SnapshotRow>,
    /// By day, oldest first; days without a snapshot are left out.
    pub days: Vec<DayRow>,
    /// What each policy would free.
    pub policies: Vec<PolicyRow>,
    /// When the room is used up.
    pub forecast: Forecast,
    /// What exports of each VDI weigh, by name.
    pub exports: Vec<VdiExports>,
}

impl Report {
    /// The ratios of the repository: of all that its snapshots refer to.
    pub fn ratios(&self) -> Ratios {
        Ratios::new(self.repository.allocated_bytes, self.usage.live_data.plain, self.usage.live())
    }
}

/// A VM.
#[derive(Debug, Clone)]
pub struct VmRow {
    /// Its name.
    pub vm: Option<String>,
    /// Its figures.
    pub figures: Figures,
}

/// A VDI.
#[derive(Debug, Clone)]
pub struct VdiRow {
    /// Its id.
    pub vdi: String,
    /// The VM that its newest snapshot names.
    pub vm: Option<String>,
    /// Its figures.
    pub figures: Figures,
}

/// A snapshot.
#[derive(Debug, Clone)]
pub struct SnapshotRow {
    /// Its id.
    pub id: SnapshotId,
    /// Its time.
    pub time_ms: i64,
    /// Its VM.
    pub vm: Option<String>,
    /// Its figures; of one disk only, when a VDI was asked for.
    pub figures: Figures,
    /// Its disks. Their `unique_bytes` do not include the record.
    pub disks: Vec<DiskRow>,
}

/// A disk of a snapshot.
#[derive(Debug, Clone)]
pub struct DiskRow {
    /// Its VDI.
    pub vdi: String,
    /// Its figures.
    pub figures: Figures,
}

/// A day.
#[derive(Debug, Clone)]
pub struct DayRow {
    /// Its number, counted from 1970-01-01.
    pub day: i64,
    /// Figures of the snapshots of the day.
    pub figures: Figures,
    /// `stored_bytes` of this day and all before.
    pub stored_so_far: u64,
    /// `allocated_bytes` of this day and all before.
    pub allocated_so_far: u64,
}

/// What a policy would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRow {
    /// Its name.
    pub name: String,
    /// Snapshots it keeps.
    pub kept_count: u64,
    /// Snapshots it forgets.
    pub forgotten_count: u64,
    /// What only those refer to, with their records, in bytes.
    pub freed_bytes: u64,
}

/// Makes a report of `snapshots`, all there are, oldest first.
///
/// # Errors
/// Those of [`measure`].
pub fn report(
    repository: &Arc<Repository>,
    snapshots: &[NamedSnapshot],
    options: &ReportOptions<'_>,
    monitor: &dyn Monitor,
) -> Result<Report> {
    let _lease = Lease::put_if_writable(repository, "report")?;
    let annotations = read_annotations(repository, monitor)?;
    let keeps = |policy: &NamedPolicy| policy.keeps(snapshots, &annotations, options.clock);
    let keeps: Vec<Vec<bool>> = options.policies.iter().map(keeps).collect();
    let parts = Parts::new(snapshots, options.clock);
    let uses = parts.uses(snapshots, &keeps);
    let usage = match options.cache {
        Some(folder) => measure_cached(repository, &uses, keeps.len(), folder, monitor)?,
        None => measure(repository, &uses, keeps.len(), monitor)?,
    };
    let policies = policy_rows(options.policies, &keeps, snapshots, &usage);
    let capacity = match options.capacity {
        Capacity::Total(bytes) => Some(bytes),
        Capacity::Free(bytes) => Some(usage.total().saturating_add(bytes)),
        Capacity::Unknown => None,
    };
    let forecast = forecast::forecast(&parts, options.window_days, usage.total(), capacity);
    let rows = parts.rows(snapshots, &usage, options.vdi);
    let exports = exports::exports(&parts, snapshots, &usage, options.vdi);
    Ok(Report {
        repository: parts.repository(&usage),
        vms: rows.vms,
        vdis: rows.vdis,
        snapshots: rows.snapshots,
        days: rows.days,
        policies,
        forecast,
        exports,
        usage,
    })
}

/// What is said of snapshots. What cannot be read is told: it may protect some, and a policy then frees less.
fn read_annotations(repository: &Repository, monitor: &dyn Monitor) -> Result<Annotations> {
    let (annotations, errors) = annotation::read_all(repository)?;
    errors.iter().for_each(|(_, error)| monitor.damage(error));
    Ok(annotations)
}

fn policy_rows(
    policies: &[NamedPolicy],
    keeps: &[Vec<bool>],
    snapshots: &[NamedSnapshot],
    usage: &Usage,
) -> Vec<PolicyRow> {
    let row = |((policy, keeps), freed): ((&NamedPolicy, &Vec<bool>), &u64)| {
        let kept = keeps.iter().filter(|keep| **keep).count() as u64;
        let records: u64 = snapshots.iter().zip(keeps).filter(|(_, keep)| !**keep).map(|(named, _)| named.len).sum();
        PolicyRow {
            name: policy.name.clone(),
            kept_count: kept,
            forgotten_count: keeps.len() as u64 - kept,
            freed_bytes: freed + records,
        }
    };
    policies.iter().zip(keeps).zip(&usage.freed).map(row).collect()
}
