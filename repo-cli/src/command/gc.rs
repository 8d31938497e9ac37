//! `cairn gc`.

use jiff::SignedDuration;
use repo_core::error::ResultExt;
use repo_core::ops::gc::{self, GcOptions, GcReport};
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::Result;
use crate::invocation::Invocation;
use crate::output;

/// Delete what no snapshot needs any more, while backups and restores go on
///
/// Packs of which nothing is needed are condemned first, and deleted after the grace time, once everybody who was at work
/// by then is done: usually by the next run. What is needed of packs that are mostly waste is moved to new ones, and so is
/// the newest state of a disk that many imports scattered, so that it restores fast. Run it after `cairn forget`, or daily. It can be interrupted at any time: the next run goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only find out what would be freed
    #[arg(long)]
    dry_run: bool,
    /// How long condemned packs stay before they are deleted; 0s deletes at once what nobody at work can need
    #[arg(long, value_name = "TIME", default_value = "1h")]
    grace: SignedDuration,
    /// Move what is needed of a pack when more than this share of it is not, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u8).range(0..=100))]
    max_waste: u8,
    /// Put a disk's newest snapshot in order when a restore of it decodes this much more than it had to, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    max_scatter: u16,
    /// Move at most about this much in one run, in GiB; the next run goes on
    #[arg(long, value_name = "GIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    max_move: u32,
    /// zstd level of what is moved, 1 (fast) to 19 (small)
    #[arg(long, value_name = "LEVEL", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=19))]
    level: i32,
}

const EXAMPLES: &str = "\
Examples:
  cairn gc
  cairn gc --dry-run
  cairn gc --grace 0s
  cairn gc --max-waste 5 --level 9";

#[derive(Debug, Serialize)]
struct Collected {
    dry_run: bool,
    snapshots: u64,
    nodes: u64,
    needed_bytes: u64,
    waste_bytes: u64,
    deleted_packs: u64,
    deleted_bytes: u64,
    condemned_packs: u64,
    condemned_bytes: u64,
    repacked_packs: u64,
    ordered_packs: u64,
    scattered_disks: u64,
    moved_bytes: u64,
    unreadable_packs: u64,
    unreadable_waste_bytes: u64,
    rescued_packs: u64,
    waiting_packs: u64,
    waiting_bytes: u64,
    waits_for: Vec<Worker>,
    young_packs: u64,
    locked_packs: u64,
    locked_bytes: u64,
    unlocked_from: Option<String>,
    renewed_locks: u64,
}

#[derive(Debug, Serialize)]
struct Worker {
    operation: String,
    process: u32,
}

pub(super) fn run(args: &Args, invocation: &Invocation) -> Result<Exit> {
    let session = invocation.open_session()?;
    let options = GcOptions {
        grace_ms: i64::try_from(args.grace.as_millis()).unwrap_or(i64::MAX).max(0),
        dead_share_max: f64::from(args.max_waste) / 100.0,
        scatter_max: 1.0 + f64::from(args.max_scatter) / 100.0,
        move_bytes_max: u64::from(args.max_move) << 30,
        level: args.level,
        dry_run: args.dry_run,
        ..GcOptions::new(invocation.now_ms())
    };
    let report = gc::gc(&session, &options, &invocation.terminal).context(|| "cannot collect garbage")?;
    let collected = Collected::new(args.dry_run, report);
    invocation.print_summary(&collected, || text(&collected))?;
    Ok(Exit::Done)
}

impl Collected {
    fn new(dry_run: bool, report: GcReport) -> Self {
        let worker = |info: repo_core::lease::LeaseInfo| Worker { operation: info.operation, process: info.process };
        Self {
            dry_run,
            snapshots: report.snapshots,
            nodes: report.nodes,
            needed_bytes: report.needed_bytes,
            waste_bytes: report.waste_bytes,
            deleted_packs: report.deleted_packs,
            deleted_bytes: report.deleted_bytes,
            condemned_packs: report.condemned_packs,
            condemned_bytes: report.condemned_bytes,
            repacked_packs: report.repacked_packs,
            ordered_packs: report.ordered_packs,
            scattered_disks: report.scattered_disks,
            moved_bytes: report.moved_bytes,
            unreadable_packs: report.unreadable_packs,
            unreadable_waste_bytes: report.unreadable_waste_bytes,
            rescued_packs: report.rescued_packs,
            waiting_packs: report.waiting_packs,
            waiting_bytes: report.waiting_bytes,
            waits_for: report.waits_for.into_iter().map(worker).collect(),
            young_packs: report.young_packs,
            locked_packs: report.locked_packs,
            locked_bytes: report.locked_bytes,
            unlocked_from: report.unlocked_from_ms.map(output::time_utc),
            renewed_locks: report.renewed_locks,
        }
    }
}

fn text(collected: &Collected) -> String {
    let packs = |count: u64, bytes: u64| format!("{} in {count} packs", output::size(bytes));
    let (condemned, moved, put) = match collected.dry_run {
        true => ("would be condemned", "would be moved", "would be put in order"),
        false => ("condemned now", "moved", "were put in order"),
    };
    let mut rows = vec![
        ("snapshots", collected.snapshots.to_string()),
        ("needed", output::size(collected.needed_bytes)),
        ("deleted", packs(collected.deleted_packs, collected.deleted_bytes)),
        (condemned, packs(collected.condemned_packs, collected.condemned_bytes)),
        (moved, format!("{} out of {} packs", output::size(collected.moved_bytes), collected.repacked_packs)),
        ("waste that stays", output::size(collected.waste_bytes)),
    ];
    if collected.scattered_disks > 0 {
        let (disks, packs) = (collected.scattered_disks, collected.ordered_packs);
        rows.push(("scattered disks", format!("{disks}, of which {packs} packs {put}")));
    }
    if collected.unreadable_packs > 0 {
        let text = format!(
            "{}, of which {} are waste: the key in use does not read content, run gc with an admin or restore key",
            output::count(collected.unreadable_packs as usize, "pack"),
            output::size(collected.unreadable_waste_bytes)
        );
        rows.push(("not moved", text));
    }
    if collected.waiting_packs > 0 {
        rows.push(("waiting", packs(collected.waiting_packs, collected.waiting_bytes)));
    }
    for worker in &collected.waits_for {
        rows.push(("waits for", format!("{}, process {}", output::printable(&worker.operation), worker.process)));
    }
    if collected.rescued_packs > 0 {
        rows.push(("needed again", format!("{} packs", collected.rescued_packs)));
    }
    if collected.young_packs > 0 {
        rows.push(("left for later", format!("{} packs that may belong to a backup at work", collected.young_packs)));
    }
    if let Some(from) = &collected.unlocked_from {
        let locked = packs(collected.locked_packs, collected.locked_bytes);
        rows.push(("locked", format!("{locked}, which nothing needs; the first lock ends at {from}")));
    }
    if collected.renewed_locks > 0 {
        rows.push(("locks renewed", collected.renewed_locks.to_string()));
    }
    output::fields(&rows)
}

#[cfg(test)]
mod tests {
    use repo_core::lease::LeaseInfo;

    use super::*;

    #[test]
    fn the_text_says_what_waits_and_for_whom() {
        let info = LeaseInfo { operation: "import".to_owned(), process: 77 };
        let report =
            GcReport { waiting_packs: 2, waiting_bytes: 3 << 20, waits_for: vec![info], ..GcReport::default() };
        let text = text(&Collected::new(false, report));
        assert!(text.contains("3.00 MiB in 2 packs") && text.contains("import, process 77"), "{text}");
        assert!(!text.contains("scattered"), "{text}");
    }

    #[test]
    fn the_text_says_what_was_put_in_order_or_would_be() {
        let report = GcReport { scattered_disks: 2, ordered_packs: 31, ..GcReport::default() };
        for (dry_run, expected) in
            [(false, "2, of which 31 packs were put in order"), (true, "2, of which 31 packs would be put in order")]
        {
            let text = text(&Collected::new(dry_run, report.clone()));
            assert!(text.contains(expected), "{text}");
        }
    }
}
