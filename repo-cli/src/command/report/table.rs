//! The report as text for a terminal.

use super::By;
use super::out::{CapacityOut, ExportsOut, ForecastOut, PolicyOut, ReportOut, RowOut};
use crate::output;

/// The repository, the rows asked for, and what policies would free.
pub(super) fn report(out: &ReportOut, by: By) -> String {
    let mut text = summary(out);
    if by != By::Repository {
        text.push('\n');
        text.push_str(&rows(out, by));
    }
    if !out.policies.is_empty() && out.repository.row.snapshots > 0 {
        text.push('\n');
        text.push_str(&policies(&out.policies));
    }
    text
}

/// A ratio: `3.4x`.
pub(super) fn ratio(ratio: Option<f64>) -> String {
    match ratio {
        None => "-".to_owned(),
        Some(ratio) if ratio < 99.95 => format!("{ratio:.1}x"),
        Some(ratio) => format!("{ratio:.0}x"),
    }
}

/// A size that may not be known.
pub(super) fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), output::size)
}

/// What is said of growth.
pub(super) fn growth(forecast: &ForecastOut) -> String {
    match forecast.growth_bytes_per_day {
        Some(growth) => format!("{} a day (median of {} days)", output::size(growth), forecast.window_days),
        None => "not known before the second day".to_owned(),
    }
}

/// What is said of when the room is used up.
fn full(forecast: &ForecastOut) -> String {
    let Some(capacity) = forecast.capacity_bytes else { return "not known".to_owned() };
    let from = match forecast.capacity_from {
        CapacityOut::Given => "",
        CapacityOut::FileSystem => ", all that is free here included",
    };
    let of = format!("of {}{from}", output::size(capacity));
    match (forecast.days_left, &forecast.full) {
        (Some(0), _) => format!("now: nothing is left {of}"),
        (Some(days), Some(date)) => format!("in {days} days, on {date}, {of}"),
        _ => format!("not in sight, {of}"),
    }
}

fn summary(out: &ReportOut) -> String {
    let repository = &out.repository;
    let row = &repository.row;
    let mut fields = vec![
        (
            "protected",
            format!(
                "{} in use in {} snapshots; their newest: {} of {}",
                output::size(row.allocated_bytes),
                row.snapshots,
                output::size(row.newest_allocated_bytes),
                output::size(row.newest_virtual_bytes)
            ),
        ),
        ("on disk", format!("{} in {} packs", output::size(repository.total_bytes), repository.packs)),
        (
            "of that",
            format!(
                "{} content, {} manifests, {} directories, {} records and keys",
                output::size(repository.data_bytes),
                output::size(repository.manifest_bytes),
                output::size(repository.overhead_bytes),
                output::size(repository.record_bytes + repository.other_bytes)
            ),
        ),
        ("reclaimable", format!("{} now, by gc", output::size(repository.reclaimable_bytes))),
        (
            "ratio",
            format!(
                "{} (deduplication {}, compression {})",
                ratio(row.total),
                ratio(row.deduplication),
                ratio(row.compression)
            ),
        ),
        ("growth", growth(&out.forecast)),
        ("full", full(&out.forecast)),
    ];
    if repository.unreadable_bytes > 0 || repository.damages > 0 {
        let text = format!(
            "{} in unreadable packs, {} damages",
            output::size(repository.unreadable_bytes),
            repository.damages
        );
        fields.push(("damaged", text));
    }
    format!("repository\n{}", output::fields(&fields))
}

fn rows(out: &ReportOut, by: By) -> String {
    let rows: Vec<&RowOut> = match by {
        By::Repository => Vec::new(),
        By::Vm => out.vms.iter().collect(),
        By::Vdi => out.vdis.iter().collect(),
        By::Snapshot => out.snapshots.iter().collect(),
        By::Day => out.days.iter().map(|day| &day.row).collect(),
    };
    let named: &[&str] = match by {
        By::Repository => &[],
        By::Vm => &["vm"],
        By::Vdi => &["vdi", "vm"],
        By::Snapshot => &["snapshot", "time", "vm", "vdi"],
        By::Day => &["day"],
    };
    let numbers =
        ["snaps", "size", "in use", "exported", "changed", "new", "stored", "dedup", "comp", "total", "unique"];
    let headings: Vec<&str> = named.iter().chain(&numbers).copied().collect();
    let right: Vec<usize> = (named.len()..headings.len()).collect();
    output::table(&headings, &right, rows.into_iter().map(|row| cells(row, by)))
}

fn cells(row: &RowOut, by: By) -> Vec<String> {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut cells = match by {
        By::Repository => Vec::new(),
        By::Vm => vec![text(&row.vm)],
        By::Vdi => vec![text(&row.vdi), text(&row.vm)],
        By::Snapshot => {
            let id = row.snapshot.as_deref().map_or("-", output::short).to_owned();
            vec![id, output::time_local(row.time_ms), text(&row.vm), text(&row.vdi)]
        }
        By::Day => vec![text(&row.day)],
    };
    cells.extend([
        row.snapshots.to_string(),
        output::size(row.newest_virtual_bytes),
        output::size(row.newest_allocated_bytes),
        size(row.exported_bytes),
        size(row.changed_bytes),
        output::size(row.new_bytes),
        output::size(row.stored_bytes),
        ratio(row.deduplication),
        ratio(row.compression),
        ratio(row.total),
        size(row.unique_bytes),
    ]);
    cells
}

fn policies(policies: &[PolicyOut]) -> String {
    let row = |policy: &PolicyOut| {
        vec![
            policy.policy.clone(),
            policy.kept.to_string(),
            policy.forgotten.to_string(),
            output::size(policy.freed_bytes),
        ]
    };
    output::table(&["keeping of each vdi", "keeps", "forgets", "would free"], &[1, 2, 3], policies.iter().map(row))
}

/// For each VDI, what its exports weigh beside what is stored.
pub(super) fn exports(out: &ReportOut) -> String {
    if out.exports.is_empty() {
        return "no snapshots\n".to_owned();
    }
    out.exports.iter().map(of_vdi).collect::<Vec<_>>().join("\n")
}

fn of_vdi(exports: &ExportsOut) -> String {
    let lvm = &exports.lvm;
    let pair = |used: u64, allocated: u64| format!("{} / {}", output::size(used), output::size(allocated));
    let rows = [
        ("disk: in use / size", pair(exports.allocated_bytes, exports.virtual_bytes)),
        ("thick LVM SR, used / allocated", pair(lvm.base_bytes, lvm.base_bytes)),
        ("  with one snapshot", pair(lvm.one_snapshot_used_bytes, lvm.one_snapshot_allocated_bytes)),
        ("  with a second, for the delta", pair(lvm.two_snapshots_used_bytes, lvm.two_snapshots_allocated_bytes)),
        ("stored here, all snapshots", output::size(exports.stored_bytes)),
    ];
    let vm = exports.vm.as_deref().map(|vm| format!(" of {}", output::printable(vm))).unwrap_or_default();
    let row = |export: &super::out::ExportOut| {
        vec![
            output::short(&export.snapshot).to_owned(),
            output::time_local(export.time_ms),
            size(export.full_vhd_bytes),
            size(export.delta_vhd_bytes),
            output::size(export.stored_bytes),
        ]
    };
    format!(
        "vdi {}{vm}\n{}{}",
        output::printable(&exports.vdi),
        output::fields(&rows),
        output::table(
            &["snapshot", "time", "full vhd export", "delta vhd export", "stored here"],
            &[2, 3, 4],
            exports.snapshots.iter().map(row)
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forecast(days_left: Option<u64>) -> ForecastOut {
        ForecastOut {
            growth_bytes_per_day: Some(1 << 30),
            window_days: 30,
            used_bytes: 1 << 40,
            capacity_bytes: Some(2 << 40),
            capacity_from: CapacityOut::Given,
            days_left,
            full: days_left.map(|_| "2029-09-10".to_owned()),
        }
    }

    #[test]
    fn the_forecast_says_when_and_of_what() {
        assert_eq!(full(&forecast(Some(1024))), "in 1024 days, on 2029-09-10, of 2.00 TiB");
        assert_eq!(full(&forecast(Some(0))), "now: nothing is left of 2.00 TiB");
        assert_eq!(full(&forecast(None)), "not in sight, of 2.00 TiB");
        assert_eq!(growth(&forecast(None)), "1.00 GiB a day (median of 30 days)");
        assert_eq!(
            growth(&ForecastOut { growth_bytes_per_day: None, ..forecast(None) }),
            "not known before the second day"
        );
    }
}
