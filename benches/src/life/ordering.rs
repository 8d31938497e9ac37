//! What a collection does for the newest snapshot of a disk, and what that costs.

use repo_core::monitor::Silent;
use repo_core::ops::gc::{GcOptions, GcReport, gc};

use super::lab::{Cost, Lab, Stopwatch, peak_mib, reset_peak};
use super::{Outcome, row};

/// Collects twice, and says what each did; the second time there should be nothing to do.
pub(super) fn collect_twice(mut lab: Lab) -> Outcome<Lab> {
    for name in ["gc", "gc again"] {
        (lab, _) = lab.reopen()?;
        let stored = lab.session.repository.store.list_packs()?.iter().map(|pack| pack.len).sum::<u64>();
        reset_peak();
        let before = peak_mib();
        let watch = Stopwatch::default();
        let options = GcOptions { grace_ms: 0, ..GcOptions::new(lab.now_ms) };
        let (report, cost) = lab.measure(|session| Ok(gc(session, &options, &watch)?))?;
        show(name, stored, &report, cost, &watch);
        row("  memory before, peak, MiB", format!("{before}, {}", peak_mib()));
    }
    Ok(lab)
}

/// Collects once, and gives the bytes that were moved and the seconds it took.
pub(super) fn collect(lab: &Lab) -> Outcome<(u64, f64)> {
    let options = GcOptions { grace_ms: 0, ..GcOptions::new(lab.now_ms) };
    let (report, cost) = lab.measure(|session| Ok(gc(session, &options, &Silent)?))?;
    Ok((report.moved_bytes, cost.seconds))
}

fn show(name: &str, stored: u64, report: &GcReport, cost: Cost, watch: &Stopwatch) {
    row(&format!("{name}: s wall, s CPU"), format!("{:.2}, {:.2}", cost.seconds, cost.cpu_seconds));
    for task in ["walking manifests", "reading pack directories", "following the newest snapshots", "repacking"] {
        row(&format!("  of which {task}, s"), format!("{:.2}", watch.seconds(task)));
    }
    row("  frames decoded", cost.frames);
    row("  packs repacked; for order", format!("{}; {}", report.repacked_packs, report.ordered_packs));
    row("  moved, MiB, of MiB stored", format!("{:.1} of {:.1}", mib(report.moved_bytes), mib(stored)));
}

pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
