//! The same delta over disks of many sizes: its cost may not follow the disk's.

use std::path::Path;

use repo_core::chunk::ChunkParams;
use repo_core::ops::backup::BaseChoice;
use repo_core::units::PAGES_PER_BLOCK;

use super::disk::MadeUpDisk;
use super::lab::{Lab, peak_mib, reset_peak};
use super::{Outcome, row};

const CONTENT_BLOCKS: u64 = 2048;
const RUNS: usize = 5;

pub(super) fn run(folder: &Path) -> Outcome<()> {
    let mut lab = Lab::new(folder, ChunkParams::default())?;
    for gib in [4, 64, 2048] {
        let vdi = format!("{gib} GiB");
        // The disks hold the same, so that it is stored once; what changes is different for each.
        let mut disk = MadeUpDisk::new(gib << 30, CONTENT_BLOCKS, 256, 1);
        lab.import(&vdi, disk.full(), None, 1000)?;
        disk.tell_apart(gib);
        let mut best = None;
        for _ in 0..RUNS {
            reset_peak();
            let delta = disk.change(50, PAGES_PER_BLOCK);
            let (report, cost) = lab.import(&vdi, delta, Some(BaseChoice::Newest), 1000)?;
            if best.as_ref().is_none_or(|(_, best, _): &(_, super::lab::Cost, _)| cost.seconds < best.seconds) {
                best = Some((report, cost, peak_mib()));
            }
        }
        let (report, cost, peak) = best.ok_or("nothing was run")?;
        row(&format!("{vdi}: 100 MiB delta, ms wall"), format!("{:.0}", cost.seconds * 1e3));
        row("  ms CPU", format!("{:.0}", cost.cpu_seconds * 1e3));
        row("  peak memory, MiB", peak);
        row("  nodes read", cost.nodes);
        row("  index look-ups", cost.lookups);
        row("  bytes added, KiB", report.stored_bytes / 1024);
    }
    Ok(())
}
