//! A repository of very many snapshots: forgetting, collecting, comparing.

use std::path::Path;

use repo_core::chunk::ChunkParams;
use repo_core::monitor::Silent;
use repo_core::ops::backup::BaseChoice;
use repo_core::ops::diff::diff;
use repo_core::ops::forget::{Request, Scope, Times, forget};
use repo_core::ops::gc::{GcOptions, gc};
use repo_core::retention::calendar::{Clock, Period};
use repo_core::retention::{Policy, Reach, Rule};
use repo_core::snapshot::{self, NamedSnapshot, Snapshot};

use super::disk::MadeUpDisk;
use super::lab::{Lab, Stopwatch, peak_mib, reset_peak};
use super::{Outcome, median, ms, row};

const VDIS: u64 = 20;
const STEP_MS: i64 = 3_600_000;

/// Makes a repository of so many snapshots, of which so many are imports that brought something; the others are records of
/// a disk that did not change. Then forgets half of them, and collects.
pub(super) fn run(folder: &Path, count: u64, imports: u64) -> Outcome<()> {
    let mut lab = Lab::new(folder, ChunkParams::default())?;
    let mut disks: Vec<_> = (0..VDIS).map(|seed| MadeUpDisk::new(8 << 30, 64, 256, seed + 1)).collect();
    for (number, disk) in disks.iter().enumerate() {
        lab.import(&format!("disk {number}"), disk.full(), None, STEP_MS)?;
    }
    let imports = imports.clamp(VDIS + 1, count);
    let copies = count / imports;
    let (mut seconds, mut reports) = (Vec::new(), Vec::new());
    for at in VDIS..imports {
        let number = (at % VDIS) as usize;
        let delta = disks[number].change(2, 16);
        let (report, cost) = lab.import(&format!("disk {number}"), delta, Some(BaseChoice::Newest), STEP_MS)?;
        seconds.push(cost.seconds);
        reports.push(report);
    }
    // As imports of a disk that did not change leave them. After the others, since each import reads all records.
    for report in reports {
        for copy in 1..copies {
            let time_ms = report.snapshot.snapshot.time_ms + i64::try_from(copy)?;
            snapshot::commit(
                &lab.session.repository,
                &lab.session.index,
                Snapshot { time_ms, ..report.snapshot.snapshot.clone() },
            )?;
        }
    }
    let count = lab.session.repository.store.list_snapshots()?.len() as u64;
    row("imports of something new", imports);
    row("snapshots built", count);
    row("building, s", format!("{:.0}", seconds.iter().sum::<f64>()));
    row("one import at the beginning", ms(median(seconds.iter().take(100).copied())));
    row("one import at the end", ms(median(seconds.iter().rev().take(100).copied())));
    let (lab, opened) = lab.reopen()?;
    row("open repository and index", ms(opened));
    compare(&lab)?;
    let lab = forget_half(lab, count)?;
    let (mut lab, _) = lab.reopen()?;
    for name in ["gc", "gc again", "gc with nothing to do"] {
        lab = collect(lab, name)?;
    }
    Ok(())
}

fn compare(lab: &Lab) -> Outcome<()> {
    let (snapshots, cost) = lab.measure(|session| Ok(snapshot::read_all(&session.repository)?.0))?;
    row("list all snapshots", ms(cost.seconds));
    let of_one: Vec<&NamedSnapshot> =
        snapshots.iter().filter(|named| named.snapshot.disks[0].vdi == "disk 0").collect();
    let [.., before, last] = &of_one[..] else { return Err("too few snapshots".into()) };
    for (name, one) in [("neighbours", before), ("neighbours, again", before), ("first and last", &of_one[0])] {
        let (one, other) = (one.snapshot.disks[0].tree, last.snapshot.disks[0].tree);
        let (report, cost) = lab.measure(|session| Ok(diff(session, &one, &other, &Silent)?))?;
        row(&format!("diff of {name}"), ms(cost.seconds));
        row("  nodes read, blocks that differ", format!("{}, {}", cost.nodes, report.changed_blocks));
    }
    Ok(())
}

fn forget_half(lab: Lab, count: u64) -> Outcome<Lab> {
    let (lab, _) = lab.reopen()?;
    reset_peak();
    let rules = vec![Rule { period: Period::Each, reach: Reach::Count(u32::try_from(count / VDIS / 2)?) }];
    let request = Request::Policy {
        policy: Policy { rules, ..Policy::default() },
        scope: Scope::default(),
        times: Times::Recorded,
    };
    let clock = Clock { now_ms: lab.now_ms, offset: &|_| 0 };
    let (plan, cost) = lab.measure(|session| Ok(forget(&session.repository, &request, &clock, &Silent)?))?;
    row("forget by policy", ms(cost.seconds));
    row("  forgotten, of", format!("{}, {}", plan.forgotten().count(), plan.snapshots.len()));
    row("  peak memory, MiB", peak_mib());
    Ok(lab)
}

fn collect(lab: Lab, name: &str) -> Outcome<Lab> {
    let (lab, _) = lab.reopen()?;
    let packs = lab.session.repository.store.list_packs()?;
    row(&format!("{name}: packs before"), packs.len());
    row("  MiB before", packs.iter().map(|pack| pack.len).sum::<u64>() >> 20);
    reset_peak();
    let watch = Stopwatch::default();
    let options = GcOptions { grace_ms: 0, ..GcOptions::new(lab.now_ms) };
    let (report, cost) = lab.measure(|session| Ok(gc(session, &options, &watch)?))?;
    row("  s wall, s CPU", format!("{:.2}, {:.2}", cost.seconds, cost.cpu_seconds));
    let marking = watch.seconds("walking manifests");
    row("  marking, s", format!("{marking:.2}"));
    row("  references marked, nodes", format!("{}, {}", report.references, report.nodes));
    row("  references a second", format!("{:.0}", report.references as f64 / marking));
    row("  reading pack directories, s", format!("{:.2}", watch.seconds("reading pack directories")));
    row("  condemned packs, KiB", format!("{}, {}", report.condemned_packs, report.condemned_bytes >> 10));
    row("  deleted packs, KiB", format!("{}, {}", report.deleted_packs, report.deleted_bytes >> 10));
    row("  repacked packs, moved KiB", format!("{}, {}", report.repacked_packs, report.moved_bytes >> 10));
    row("  needed, dead KiB", format!("{}, {}", report.needed_bytes >> 10, report.waste_bytes >> 10));
    row("  peak memory, MiB", peak_mib());
    Ok(lab)
}
