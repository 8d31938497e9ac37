//! Incrementals without end: nothing of an import or a restore may grow with the number of snapshots.

use std::path::Path;
use std::time::Instant;

use repo_core::chunk::ChunkParams;
use repo_core::monitor::Silent;
use repo_core::ops::backup::BackupReport;
use repo_core::ops::backup::BaseChoice;
use repo_core::snapshot;

use super::disk::MadeUpDisk;
use super::lab::{Cost, Lab, peak_mib, reset_peak};
use super::ordering::collect_twice;
use super::{Outcome, median, ms, row};

/// Imports whose median stands for the beginning and for the end.
const AT_EACH_END: usize = 20;
const HOUR_MS: i64 = 3_600_000;

pub(super) fn run(folder: &Path, count: u64) -> Outcome<()> {
    let mut lab = Lab::new(folder, ChunkParams::default())?;
    let mut disk = MadeUpDisk::new(64 << 30, 512, 2048, 1);
    let (first, _) = lab.import("disk", disk.full(), None, HOUR_MS)?;
    let mut restores = vec![("first, alone", restore_twice(&lab, &first)?)];
    reset_peak();
    let mut imports = Vec::new();
    for _ in 0..count {
        imports.push(lab.import("disk", disk.change(20, 4), Some(BaseChoice::Newest), HOUR_MS)?);
    }
    row("peak memory of incrementals, MiB", peak_mib());
    let (head, tail) =
        (&imports[..AT_EACH_END.min(imports.len())], &imports[imports.len().saturating_sub(AT_EACH_END)..]);
    let both = |name: &str, figure: &dyn Fn(&(BackupReport, Cost)) -> f64| {
        let of = |part: &[(BackupReport, Cost)]| median(part.iter().map(figure));
        let (head, tail) = (of(head), of(tail));
        row(name, format!("{head:.1} → {tail:.1}, × {:.2}", tail / head));
    };
    both("import, ms", &|(_, cost)| cost.seconds * 1e3);
    both("import, CPU ms", &|(_, cost)| cost.cpu_seconds * 1e3);
    both("bytes added, KiB", &|(report, _)| report.stored_bytes as f64 / 1024.0);
    both("snapshot record, bytes", &|(report, _)| report.snapshot.len as f64);
    both("index look-ups", &|(_, cost)| cost.lookups as f64);
    both("manifest nodes read", &|(_, cost)| cost.nodes as f64);
    both("frames decoded", &|(_, cost)| cost.frames as f64);
    overheads(&lab, count)?;
    let (newest, _) = imports.last().ok_or("no incrementals")?;
    restores.push(("newest", restore_twice(&lab, newest)?));
    restores.push(("first, again", restore_twice(&lab, &first)?));
    for (name, cost) in &restores {
        row(&format!("restore, {name}: frames decoded"), cost.frames);
        row(&format!("restore, {name}: s wall, s CPU"), format!("{:.2}, {:.2}", cost.seconds, cost.cpu_seconds));
    }
    row(
        "speed of the newest / of the first alone, wall",
        format!("{:.2}", restores[0].1.seconds / restores[1].1.seconds),
    );
    row("the same, CPU", format!("{:.2}", restores[0].1.cpu_seconds / restores[1].1.cpu_seconds));
    let (lab, opened) = lab.reopen()?;
    row("open repository and index anew", ms(opened));
    let alone = lab.restore(&newest.snapshot)?;
    row("restore, newest, after that: s wall, frames", format!("{:.2}, {}", alone.seconds, alone.frames));
    let lab = collect_twice(lab)?;
    for (name, report, before) in [("newest", newest, &restores[1].1), ("first", &first, &restores[2].1)] {
        let after = restore_twice(&lab, report)?;
        row(&format!("restore, {name}, after gc: frames decoded"), after.frames);
        row("  s wall, s CPU", format!("{:.2}, {:.2}", after.seconds, after.cpu_seconds));
        row("  speed beside that before gc, wall", format!("{:.2}", before.seconds / after.seconds));
        row("  speed beside the first before gc, wall", format!("{:.2}", restores[2].1.seconds / after.seconds));
        row("  the same, CPU", format!("{:.2}", restores[2].1.cpu_seconds / after.cpu_seconds));
    }
    Ok(())
}

/// The better of two, since others use the machine, too.
fn restore_twice(lab: &Lab, report: &BackupReport) -> Outcome<Cost> {
    let (one, other) = (lab.restore(&report.snapshot)?, lab.restore(&report.snapshot)?);
    Ok(if one.seconds < other.seconds { one } else { other })
}

/// What each import does once for every snapshot, whatever it imports.
fn overheads(lab: &Lab, count: u64) -> Outcome<()> {
    let each = |name: &str, work: &dyn Fn() -> Outcome<()>| {
        let mut times = Vec::new();
        for _ in 0..5 {
            let start = Instant::now();
            work()?;
            times.push(start.elapsed().as_secs_f64());
        }
        let seconds = median(times);
        row(name, format!("{}, {:.1} µs each", ms(seconds), seconds * 1e6 / count as f64));
        Ok::<_, Box<dyn std::error::Error>>(())
    };
    each("of which: reading all snapshot records from the store", &|| {
        snapshot::read_all(&lab.session.repository)?;
        Ok(())
    })?;
    each("of which: snapshots as an import reads them, with sync", &|| {
        lab.session.snapshots(&Silent)?;
        Ok(())
    })?;
    each("of which: sync, listing packs", &|| {
        lab.session.catch_up(&Silent)?;
        Ok(())
    })
}
