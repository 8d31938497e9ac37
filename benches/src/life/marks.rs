//! How fast a collection marks: references of manifests, from stored nodes to the set of what is needed.

use std::path::Path;

use repo_core::chunk::ChunkParams;
use repo_core::ops::gc::{GcOptions, gc};

use super::disk::MadeUpDisk;
use super::lab::{Lab, Stopwatch, peak_mib, reset_peak};
use super::{Outcome, row};

/// The goal is a time for so many.
const GOAL: f64 = 30e6;

pub(super) fn run(folder: &Path, gib: u64) -> Outcome<()> {
    // Chunks of one page: a reference for every 4 KiB.
    let mut lab = Lab::new(folder, ChunkParams { cut_bits: 0, pages_max: 1 })?;
    let disk = MadeUpDisk::new(gib << 30, gib * 512, 16, 1);
    let (report, cost) = lab.import("disk", disk.full(), None, 1000)?;
    row("import, s", format!("{:.1}", cost.seconds));
    row("stored, MiB", report.stored_bytes >> 20);
    for run in ["first", "second"] {
        let (reopened, opened) = lab.reopen()?;
        lab = reopened;
        reset_peak();
        let watch = Stopwatch::default();
        let options = GcOptions { dry_run: true, ..GcOptions::new(lab.now_ms) };
        let (found, cost) = lab.measure(|session| Ok(gc(session, &options, &watch)?))?;
        let seconds = watch.seconds("walking manifests");
        row(&format!("{run} run: open, s"), format!("{opened:.2}"));
        row("  references marked", found.references);
        row("  nodes", found.nodes);
        row("  marking, s", format!("{seconds:.2}"));
        row("  references a second", format!("{:.0}", found.references as f64 / seconds));
        row("  marking 30 M at this rate, s", format!("{:.1}", seconds * GOAL / found.references as f64));
        row("  reading pack directories, s", format!("{:.2}", watch.seconds("reading pack directories")));
        row("  all of gc, s wall, s CPU", format!("{:.2}, {:.2}", cost.seconds, cost.cpu_seconds));
        row("  peak memory, MiB", peak_mib());
    }
    Ok(())
}
