//! The report for programs; docs/cli.md lists the fields. Table, CSV and page are made from it, so that all agree.

use repo_core::ops::report::exports::{Export, VdiExports};
use repo_core::ops::report::figures::{Figures, Ratios};
use repo_core::ops::report::{DayRow, DiskRow, PolicyRow, Report, SnapshotRow, VdiRow, VmRow};
use serde::Serialize;

use crate::output;

/// A report.
#[derive(Debug, Serialize)]
pub(super) struct ReportOut {
    pub(super) time: String,
    #[serde(skip)]
    pub(super) time_ms: i64,
    pub(super) repository: RepositoryOut,
    pub(super) vms: Vec<RowOut>,
    pub(super) vdis: Vec<RowOut>,
    pub(super) snapshots: Vec<RowOut>,
    pub(super) days: Vec<DayOut>,
    pub(super) policies: Vec<PolicyOut>,
    pub(super) forecast: ForecastOut,
    pub(super) exports: Vec<ExportsOut>,
}

/// The repository.
#[derive(Debug, Serialize)]
pub(super) struct RepositoryOut {
    pub(super) total_bytes: u64,
    pub(super) live_bytes: u64,
    pub(super) reclaimable_bytes: u64,
    pub(super) data_bytes: u64,
    pub(super) manifest_bytes: u64,
    pub(super) overhead_bytes: u64,
    pub(super) record_bytes: u64,
    pub(super) other_bytes: u64,
    pub(super) unreadable_bytes: u64,
    pub(super) dead_bytes: u64,
    pub(super) duplicate_bytes: u64,
    pub(super) distinct_bytes: u64,
    pub(super) packs: u64,
    pub(super) chunks: u64,
    pub(super) nodes: u64,
    pub(super) damages: u64,
    #[serde(flatten)]
    pub(super) row: RowOut,
}

/// A row of any kind. What names it is there where it means something, otherwise null.
#[derive(Debug, Default, Serialize)]
pub(super) struct RowOut {
    pub(super) vm: Option<String>,
    pub(super) vdi: Option<String>,
    pub(super) snapshot: Option<String>,
    pub(super) time: Option<String>,
    #[serde(skip)]
    pub(super) time_ms: i64,
    pub(super) day: Option<String>,
    pub(super) snapshots: u64,
    pub(super) newest_virtual_bytes: u64,
    pub(super) newest_allocated_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) allocated_bytes: u64,
    pub(super) exported_bytes: Option<u64>,
    pub(super) changed_bytes: Option<u64>,
    pub(super) unknown_disks: u64,
    pub(super) new_bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) unique_bytes: Option<u64>,
    pub(super) deduplication: Option<f64>,
    pub(super) compression: Option<f64>,
    pub(super) total: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) disks: Vec<RowOut>,
}

/// A day.
#[derive(Debug, Serialize)]
pub(super) struct DayOut {
    #[serde(skip)]
    pub(super) number: i64,
    #[serde(flatten)]
    pub(super) row: RowOut,
    pub(super) stored_so_far_bytes: u64,
    pub(super) allocated_so_far_bytes: u64,
}

/// What a policy would do.
#[derive(Debug, Serialize)]
pub(super) struct PolicyOut {
    pub(super) policy: String,
    pub(super) kept: u64,
    pub(super) forgotten: u64,
    pub(super) freed_bytes: u64,
}

/// Growth, and when the room is used up.
#[derive(Debug, Serialize)]
pub(super) struct ForecastOut {
    pub(super) growth_bytes_per_day: Option<u64>,
    pub(super) window_days: u32,
    pub(super) used_bytes: u64,
    pub(super) capacity_bytes: Option<u64>,
    pub(super) capacity_from: CapacityOut,
    pub(super) days_left: Option<u64>,
    pub(super) full: Option<String>,
}

/// Where the capacity comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CapacityOut {
    Given,
    FileSystem,
}

/// A VDI's exports.
#[derive(Debug, Serialize)]
pub(super) struct ExportsOut {
    pub(super) vdi: String,
    pub(super) vm: Option<String>,
    pub(super) virtual_bytes: u64,
    pub(super) allocated_bytes: u64,
    pub(super) lvm: LvmOut,
    pub(super) stored_bytes: u64,
    pub(super) snapshots: Vec<ExportOut>,
}

/// What a thick LVM SR holds for a VDI.
#[derive(Debug, Serialize)]
pub(super) struct LvmOut {
    pub(super) base_bytes: u64,
    pub(super) one_snapshot_used_bytes: u64,
    pub(super) one_snapshot_allocated_bytes: u64,
    pub(super) two_snapshots_used_bytes: u64,
    pub(super) two_snapshots_allocated_bytes: u64,
}

/// A snapshot's exports.
#[derive(Debug, Serialize)]
pub(super) struct ExportOut {
    pub(super) snapshot: String,
    pub(super) time: String,
    #[serde(skip)]
    pub(super) time_ms: i64,
    pub(super) full_vhd_bytes: Option<u64>,
    pub(super) delta_vhd_bytes: Option<u64>,
    pub(super) stored_bytes: u64,
}

impl ReportOut {
    /// A report made at a time, in milliseconds since the Unix epoch.
    pub(super) fn new(report: &Report, capacity_from: CapacityOut, now_ms: i64) -> Self {
        let forecast = &report.forecast;
        let days_left = forecast.days_left.filter(|days| *days < 1e6).map(|days| days as u64);
        let full_ms = days_left.and_then(|days| now_ms.checked_add(i64::try_from(days).ok()?.checked_mul(DAY_MS)?));
        Self {
            time: output::time_utc(now_ms),
            time_ms: now_ms,
            repository: RepositoryOut::from(report),
            vms: report.vms.iter().map(RowOut::from).collect(),
            vdis: report.vdis.iter().map(RowOut::from).collect(),
            snapshots: report.snapshots.iter().map(RowOut::from).collect(),
            days: report.days.iter().map(DayOut::from).collect(),
            policies: report.policies.iter().map(PolicyOut::from).collect(),
            forecast: ForecastOut {
                growth_bytes_per_day: forecast.growth_bytes_per_day.map(|growth| growth.round() as u64),
                window_days: forecast.window_days,
                used_bytes: forecast.used_bytes,
                capacity_bytes: forecast.capacity_bytes,
                capacity_from,
                days_left,
                full: full_ms.map(|ms| output::time_local(ms).split(' ').next().unwrap_or_default().to_owned()),
            },
            exports: report.exports.iter().map(ExportsOut::from).collect(),
        }
    }
}

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

impl From<&Report> for RepositoryOut {
    fn from(report: &Report) -> Self {
        let usage = &report.usage;
        Self {
            total_bytes: usage.total(),
            live_bytes: usage.live(),
            reclaimable_bytes: usage.reclaimable(),
            data_bytes: usage.live_data.stored,
            manifest_bytes: usage.live_meta,
            overhead_bytes: usage.overhead,
            record_bytes: usage.records,
            other_bytes: usage.other,
            unreadable_bytes: usage.unreadable,
            dead_bytes: usage.dead,
            duplicate_bytes: usage.duplicate,
            distinct_bytes: usage.live_data.plain,
            packs: usage.pack_count,
            chunks: usage.chunk_count,
            nodes: usage.node_count,
            damages: usage.damage_count,
            row: RowOut::new(&report.repository, report.ratios()),
        }
    }
}

impl RowOut {
    fn new(figures: &Figures, ratios: Ratios) -> Self {
        // Three digits after the point: more would be noise, and every program prints them alike.
        let rounded = |ratio: Option<f64>| ratio.map(|ratio| (ratio * 1000.0).round() / 1000.0);
        Self {
            snapshots: figures.snapshot_count,
            newest_virtual_bytes: figures.newest_virtual_bytes,
            newest_allocated_bytes: figures.newest_allocated_bytes,
            virtual_bytes: figures.virtual_bytes,
            allocated_bytes: figures.allocated_bytes,
            exported_bytes: figures.exported_bytes,
            changed_bytes: figures.changed_bytes,
            unknown_disks: figures.unknown_count,
            new_bytes: figures.new_bytes,
            stored_bytes: figures.stored_bytes,
            unique_bytes: figures.unique_bytes,
            deduplication: rounded(ratios.deduplication),
            compression: rounded(ratios.compression),
            total: rounded(ratios.total),
            ..Self::default()
        }
    }

    fn of(figures: &Figures) -> Self {
        Self::new(figures, figures.ratios())
    }
}

impl From<&VmRow> for RowOut {
    fn from(row: &VmRow) -> Self {
        Self { vm: row.vm.clone(), ..Self::of(&row.figures) }
    }
}

impl From<&VdiRow> for RowOut {
    fn from(row: &VdiRow) -> Self {
        Self { vdi: Some(row.vdi.clone()), vm: row.vm.clone(), ..Self::of(&row.figures) }
    }
}

impl From<&DiskRow> for RowOut {
    fn from(row: &DiskRow) -> Self {
        Self { vdi: Some(row.vdi.clone()), ..Self::of(&row.figures) }
    }
}

impl From<&SnapshotRow> for RowOut {
    fn from(row: &SnapshotRow) -> Self {
        let vdis: Vec<_> = row.disks.iter().map(|disk| disk.vdi.as_str()).collect();
        Self {
            snapshot: Some(row.id.to_hex()),
            time: Some(output::time_utc(row.time_ms)),
            time_ms: row.time_ms,
            vm: row.vm.clone(),
            vdi: Some(vdis.join(", ")),
            disks: row.disks.iter().map(Self::from).collect(),
            ..Self::of(&row.figures)
        }
    }
}

impl From<&DayRow> for DayOut {
    fn from(row: &DayRow) -> Self {
        Self {
            number: row.day,
            row: RowOut { day: Some(super::date(row.day).to_string()), ..RowOut::of(&row.figures) },
            stored_so_far_bytes: row.stored_so_far,
            allocated_so_far_bytes: row.allocated_so_far,
        }
    }
}

impl From<&PolicyRow> for PolicyOut {
    fn from(row: &PolicyRow) -> Self {
        Self {
            policy: row.name.clone(),
            kept: row.kept_count,
            forgotten: row.forgotten_count,
            freed_bytes: row.freed_bytes,
        }
    }
}

impl From<&VdiExports> for ExportsOut {
    fn from(exports: &VdiExports) -> Self {
        let lvm = &exports.lvm;
        Self {
            vdi: exports.vdi.clone(),
            vm: exports.vm.clone(),
            virtual_bytes: exports.virtual_bytes,
            allocated_bytes: exports.allocated_bytes,
            lvm: LvmOut {
                base_bytes: lvm.base_bytes,
                one_snapshot_used_bytes: lvm.one_snapshot_used_bytes,
                one_snapshot_allocated_bytes: lvm.one_snapshot_allocated_bytes,
                two_snapshots_used_bytes: lvm.two_snapshots_used_bytes,
                two_snapshots_allocated_bytes: lvm.two_snapshots_allocated_bytes,
            },
            stored_bytes: exports.stored_bytes,
            snapshots: exports.snapshots.iter().map(ExportOut::from).collect(),
        }
    }
}

impl From<&Export> for ExportOut {
    fn from(export: &Export) -> Self {
        Self {
            snapshot: export.snapshot.to_hex(),
            time: output::time_utc(export.time_ms),
            time_ms: export.time_ms,
            full_vhd_bytes: export.full_bytes,
            delta_vhd_bytes: export.delta_bytes,
            stored_bytes: export.stored_bytes,
        }
    }
}
