//! `cairn diff`.

use std::ops::Range;

use repo_core::error::ResultExt;
use repo_core::id::NodeId;
use repo_core::manifest::Tree;
use repo_core::ops::diff::{self, DiffReport};
use repo_core::ops::open::Access;
use repo_core::snapshot::{Disk, NamedSnapshot};
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::Result;
use crate::invocation::Invocation;
use crate::output;
use crate::select::{self, Point};

/// Show in which ranges two states of a disk differ
///
/// Only the manifests are read, and of these only what differs. Pages are compared by the chunks that cover them, so around a
/// change up to one chunk of equal pages may be listed, too. What lies past a disk's end counts as zeros.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The state before: a snapshot (id, its first digits, `latest`), a VDI (its newest snapshot) or VDI@WHEN
    #[arg(value_name = "A")]
    before: String,
    /// The state after, named likewise. It need not be younger, nor be of the same VDI
    #[arg(value_name = "B")]
    after: String,
    /// Only this disk of snapshots that have several
    #[arg(long, value_name = "ID")]
    vdi: Option<String>,
    /// List all ranges and not only the first
    #[arg(long)]
    ranges: bool,
}

const EXAMPLES: &str = "\
Examples:
  cairn diff $VDI@yesterday $VDI
  cairn diff 9f3c0a 77ab12 --vdi web-01-data --ranges
  cairn diff $VDI@2026-11-01 $VDI@2026-11-20 --json";

/// Ranges of a disk that are listed unless all are asked for.
const LISTED_MAX: usize = 10;

#[derive(Debug, Serialize)]
struct Diff {
    from: State,
    to: State,
    disks: Vec<DiskDiff>,
}

#[derive(Debug, Serialize)]
struct State {
    snapshot: String,
    time: String,
    vm: Option<String>,
}

#[derive(Debug, Serialize)]
struct DiskDiff {
    vdi_from: Option<String>,
    vdi_to: Option<String>,
    size_from: u64,
    size_to: u64,
    changed_blocks: u64,
    changed_bytes: u64,
    ranges: Vec<[u64; 2]>,
    gap_bytes: u64,
}

/// A disk on one side and its counterpart on the other.
type Pair<'a> = (Option<&'a Disk>, Option<&'a Disk>);

pub(super) fn run(args: &Args, invocation: &Invocation) -> Result<Exit> {
    let session = invocation.open_session()?;
    let (_working, all) = invocation.begin(&session, "diff", Access::Read)?;
    let before = select::point(&all.snapshots, &args.before, &invocation.now)?;
    let after = select::point(&all.snapshots, &args.after, &invocation.now)?;
    let mut disks = Vec::new();
    for (from, to) in pairs(before, after, args.vdi.as_deref())? {
        let report = diff::diff(&session, &tree(from), &tree(to), &invocation.terminal);
        let name = from.or(to).map_or("", |disk| disk.vdi.as_str());
        disks.push(DiskDiff::new(from, to, report.context(|| format!("cannot compare VDI {name}"))?));
    }
    let diff = Diff { from: State::from(before.snapshot), to: State::from(after.snapshot), disks };
    invocation.print(&diff, || text(&diff, before.snapshot, after.snapshot, args.ranges))?;
    Ok(Exit::Done)
}

/// Which disks are compared with which: those named; else, of two snapshots, those of the same name, or the only ones.
fn pairs<'a>(before: Point<'a>, after: Point<'a>, vdi: Option<&str>) -> Result<Vec<Pair<'a>>> {
    let (from, to) = (&before.snapshot.snapshot.disks, &after.snapshot.snapshot.disks);
    // What one side names is meant on the other side, too, where it is there.
    let other = |point: Point<'a>, named: Option<&Disk>| {
        let same = named.and_then(|named| point.snapshot.snapshot.disk(&named.vdi));
        same.map_or_else(|| point.chosen(vdi).map(|chosen| chosen.disk), Ok)
    };
    match (before.disk, after.disk) {
        _ if vdi.is_some() => {}
        (None, None) if from.len() > 1 || to.len() > 1 => {
            let only_after = to.iter().filter(|disk| before.snapshot.snapshot.disk(&disk.vdi).is_none());
            let first = from.iter().map(|disk| (Some(disk), after.snapshot.snapshot.disk(&disk.vdi)));
            return Ok(first.chain(only_after.map(|disk| (None, Some(disk)))).collect());
        }
        (Some(disk), None) => return Ok(vec![(Some(disk), Some(other(after, Some(disk))?))]),
        (None, Some(disk)) => return Ok(vec![(Some(other(before, Some(disk))?), Some(disk))]),
        _ => {}
    }
    Ok(vec![(Some(before.chosen(vdi)?.disk), Some(after.chosen(vdi)?.disk))])
}

fn tree(disk: Option<&Disk>) -> Tree {
    disk.map_or(Tree { root: NodeId::NONE, virtual_size: 0 }, |disk| disk.tree)
}

impl From<&NamedSnapshot> for State {
    fn from(named: &NamedSnapshot) -> Self {
        Self {
            snapshot: named.id.to_hex(),
            time: output::time_utc(named.snapshot.time_ms),
            vm: named.snapshot.vm.clone(),
        }
    }
}

impl DiskDiff {
    fn new(from: Option<&Disk>, to: Option<&Disk>, report: DiffReport) -> Self {
        Self {
            vdi_from: from.map(|disk| disk.vdi.clone()),
            vdi_to: to.map(|disk| disk.vdi.clone()),
            size_from: tree(from).virtual_size,
            size_to: tree(to).virtual_size,
            changed_blocks: report.changed_blocks,
            changed_bytes: report.changed_bytes,
            ranges: report.ranges.iter().map(|Range { start, end }| [*start, *end]).collect(),
            gap_bytes: report.gap_bytes,
        }
    }

    fn title(&self) -> String {
        match (self.vdi_from.as_deref(), self.vdi_to.as_deref()) {
            (Some(from), Some(to)) if from == to => format!("disk {from}"),
            (Some(from), Some(to)) => format!("disk {from}, then {to}"),
            (Some(from), None) => format!("disk {from}, only in the first"),
            (None, to) => format!("disk {}, only in the second", to.unwrap_or_default()),
        }
    }

    fn size(&self) -> String {
        match (self.size_from, self.size_to) {
            (from, to) if from == to => output::size(to),
            (from, to) => format!("{} ({from} bytes), then {} ({to} bytes)", output::size(from), output::size(to)),
        }
    }
}

fn text(diff: &Diff, before: &NamedSnapshot, after: &NamedSnapshot, list_all: bool) -> String {
    let state = |named: &NamedSnapshot| {
        let vm = named.snapshot.vm.as_ref().map(|vm| format!(" of {vm}")).unwrap_or_default();
        format!("{}{vm}, {}", named.id.short(), output::time_local(named.snapshot.time_ms))
    };
    let mut text = output::fields(&[("from", state(before)), ("to", state(after))]);
    for disk in &diff.disks {
        text.push_str(&format!("{}\n", output::printable(&disk.title())));
        let blocks = format!(
            "{} in {} ranges of {} blocks",
            output::size(disk.changed_bytes),
            disk.ranges.len(),
            disk.changed_blocks
        );
        text.push_str(&output::fields(&[("size", disk.size()), ("changed", blocks)]));
        let listed = if list_all { disk.ranges.len() } else { disk.ranges.len().min(LISTED_MAX) };
        for [start, end] in &disk.ranges[..listed] {
            text.push_str(&format!("    bytes {start} to {end}\n"));
        }
        if listed < disk.ranges.len() {
            text.push_str(&format!("    and {} more; --ranges lists all\n", disk.ranges.len() - listed));
        }
        if disk.gap_bytes > 0 {
            text.push_str(&format!(
                "    (there are too many: those up to {} apart are shown as one)\n",
                output::size(disk.gap_bytes)
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::tests::made;

    fn names<'a>(before: &'a NamedSnapshot, after: &'a NamedSnapshot, vdi: Option<&str>) -> Vec<(&'a str, &'a str)> {
        let point = |snapshot| Point { snapshot, disk: None };
        let name = |disk: Option<&'a Disk>| disk.map_or("-", |disk| disk.vdi.as_str());
        pairs(point(before), point(after), vdi).unwrap().into_iter().map(|(from, to)| (name(from), name(to))).collect()
    }

    #[test]
    fn disks_are_paired_by_name_and_single_ones_with_each_other() {
        let several = made([1, 0, 0, 0], 0, &["root", "data"]);
        let later = made([2, 0, 0, 0], 1, &["root", "more"]);
        let (one, clone) = (made([3, 0, 0, 0], 2, &["root"]), made([4, 0, 0, 0], 3, &["clone"]));
        assert_eq!(names(&several, &later, None), [("root", "root"), ("data", "-"), ("-", "more")]);
        assert_eq!(names(&several, &later, Some("root")), [("root", "root")]);
        assert_eq!(names(&one, &clone, None), [("root", "clone")]);
        assert_eq!(names(&one, &several, None), [("root", "root"), ("-", "data")]);
        let named = Point { snapshot: &several, disk: several.snapshot.disk("data") };
        let unnamed = |snapshot| Point { snapshot, disk: None };
        let paired = pairs(named, unnamed(&clone), None).unwrap();
        assert_eq!(paired[0].1.unwrap().vdi, "clone");
        assert!(pairs(named, unnamed(&later), None).is_err(), "it has several others");
    }

    #[test]
    fn people_see_the_first_ranges_and_programs_see_all_as_pairs() {
        let named = made([1, 2, 3, 4], 0, &["root"]);
        let ranges = (0..12).map(|at| at * 8192..at * 8192 + 4096).collect();
        let report = DiffReport { changed_blocks: 1, changed_bytes: 12 * 4096, ranges, gap_bytes: 0 };
        let disk = DiskDiff::new(named.snapshot.disks.first(), None, report);
        let diff = Diff { from: State::from(&named), to: State::from(&named), disks: vec![disk] };
        let short = text(&diff, &named, &named, false);
        assert!(short.contains("48.0 KiB in 12 ranges of 1 blocks"), "{short}");
        assert!(short.ends_with("    bytes 73728 to 77824\n    and 2 more; --ranges lists all\n"), "{short}");
        assert!(text(&diff, &named, &named, true).ends_with("    bytes 90112 to 94208\n"));
        let value = serde_json::to_value(&diff).unwrap();
        assert_eq!(value["disks"][0]["ranges"][1], serde_json::json!([8192, 12288]));
        assert_eq!(value["disks"][0]["vdi_to"], serde_json::Value::Null);
    }
}
