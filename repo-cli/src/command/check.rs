//! `cairn check`.

use repo_core::ErrorKind;
use repo_core::error::ResultExt;
use repo_core::ops::check::cursor::{Coverage, Share};
use repo_core::ops::check::{self, CheckOptions, CheckReport, Damage};
use repo_core::ops::repair::{RepairReport, check_roles, repair};
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::Invocation;
use crate::output;

/// Look for damage, and name the snapshots and parts of disks that it hits
///
/// Reads every snapshot, manifest and pack directory, and with --read-data every stored byte, or the next share of them:
/// runs one after another go round. Damage gives exit code 3; with --repair, only what is left of it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Also read, open and hash all stored content, or a share of it, going round from run to run: 10%, 20GiB
    #[arg(long, value_name = "SHARE", num_args = 0..=1, require_equals = true, default_missing_value = "100%",
        value_parser = parse_share)]
    read_data: Option<Share>,
    /// Copy what is sound in damaged packs, and move the packs to the folder `quarantine`: an import of the same disks
    /// then heals the snapshots that were hit. Nothing is deleted
    #[arg(long)]
    repair: bool,
}

const EXAMPLES: &str = "\
Examples:
  cairn check
  cairn check --read-data
  cairn check --read-data=10%
  cairn check --read-data --repair
  cairn check --json | jq '.affected'";

#[derive(Debug, Serialize)]
struct Checked {
    clean: bool,
    snapshots: u64,
    packs: u64,
    nodes: u64,
    chunks: u64,
    read_bytes: u64,
    damages: Vec<DamageOut>,
    affected: Vec<AffectedOut>,
    unavailable: Vec<String>,
    coverage: Option<CoverageOut>,
    repair: Option<RepairOut>,
}

#[derive(Debug, Serialize)]
struct CoverageOut {
    covered_bytes: u64,
    total_bytes: u64,
    round_began: String,
    all_read_since: Option<String>,
}

#[derive(Debug, Serialize)]
struct RepairOut {
    found: Vec<DamageOut>,
    quarantined: Vec<QuarantinedOut>,
    copied_entries: u64,
    copied_bytes: u64,
    new_packs: u64,
    healed_records: u64,
}

#[derive(Debug, Serialize)]
struct QuarantinedOut {
    object: String,
    to: String,
}

#[derive(Debug, Serialize)]
struct DamageOut {
    object: String,
    frame: Option<u32>,
    error: String,
}

#[derive(Debug, Serialize)]
struct AffectedOut {
    snapshot: String,
    vdi: String,
    ranges: Vec<[u64; 2]>,
}

pub(super) fn run(args: &Args, invocation: &Invocation) -> Result<Exit> {
    invocation.terminal.leave_damage_to_result();
    let session = invocation.open_session()?;
    let monitor = &invocation.terminal;
    if args.repair {
        check_roles(&session).context(|| "cannot repair the repository")?;
    }
    let found = match args.read_data {
        Some(share) if share != ALL => check::check_share(&session, share, invocation.now_ms(), monitor),
        all => check::check(&session, CheckOptions { read_data: all.is_some() }, monitor),
    };
    let found = found.context(|| "cannot check the repository")?;
    let checked = match args.repair && !found.damages.is_empty() {
        false => Checked::from(found),
        true => {
            let report = repair(&session, &found, monitor).context(|| "cannot repair the repository")?;
            Checked::repaired(found, report)
        }
    };
    if checked.clean {
        invocation.print_summary(&checked, || text(&checked))?;
    } else {
        invocation.print(&checked, || text(&checked))?;
    }
    exit(&checked)
}

/// What could not be read now is neither sound nor damaged: the check did not finish.
fn exit(checked: &Checked) -> Result<Exit> {
    if checked.clean {
        return Ok(Exit::Done);
    }
    if checked.has_damage() {
        return Ok(Exit::Damage);
    }
    let text = format!("cannot check everything: {} objects could not be read", checked.unavailable.len());
    Err(Failure::new(ErrorKind::Unavailable, text).hint("see to the storage and its permissions, and check again"))
}

impl Checked {
    /// Whether anything is damaged, and not only out of reach.
    fn has_damage(&self) -> bool {
        !self.damages.is_empty() || (!self.affected.is_empty() && self.unavailable.is_empty())
    }
}

impl Checked {
    /// What is left after a repair, beside what was found and read before.
    fn repaired(found: CheckReport, report: RepairReport) -> Self {
        let quarantined = report.quarantined.into_iter();
        let repair = RepairOut {
            found: found.damages.into_iter().map(DamageOut::from).collect(),
            quarantined: quarantined.map(|moved| QuarantinedOut { object: moved.object, to: moved.to }).collect(),
            copied_entries: report.copied_entries,
            copied_bytes: report.copied_bytes,
            new_packs: report.new_packs.len() as u64,
            healed_records: report.healed_records,
        };
        let mut after = CheckReport { read_bytes: found.read_bytes, coverage: found.coverage, ..report.after };
        after.unavailable.extend(found.unavailable);
        after.unavailable.sort_unstable();
        after.unavailable.dedup();
        Self { repair: Some(repair), ..Self::from(after) }
    }
}

impl From<Damage> for DamageOut {
    fn from(damage: Damage) -> Self {
        Self { object: damage.object, frame: damage.frame, error: damage.error }
    }
}

impl From<Coverage> for CoverageOut {
    fn from(coverage: Coverage) -> Self {
        Self {
            covered_bytes: coverage.covered_bytes,
            total_bytes: coverage.total_bytes,
            round_began: output::time_utc(coverage.round_began_ms),
            all_read_since: coverage.all_read_since_ms.map(output::time_utc),
        }
    }
}

impl From<CheckReport> for Checked {
    fn from(report: CheckReport) -> Self {
        Self {
            clean: report.is_clean(),
            snapshots: report.snapshots,
            packs: report.packs,
            nodes: report.nodes,
            chunks: report.chunks,
            read_bytes: report.read_bytes,
            damages: report.damages.into_iter().map(DamageOut::from).collect(),
            coverage: report.coverage.map(CoverageOut::from),
            repair: None,
            affected: report
                .affected
                .into_iter()
                .map(|affected| AffectedOut {
                    snapshot: affected.snapshot.to_hex(),
                    vdi: affected.vdi,
                    ranges: affected.ranges.iter().map(|range| [range.start, range.end]).collect(),
                })
                .collect(),
            unavailable: report.unavailable,
        }
    }
}

fn text(checked: &Checked) -> String {
    let mut text = checked.repair.as_ref().map(repair_text).unwrap_or_default();
    text.extend(checked.damages.iter().map(damage_text));
    for object in &checked.unavailable {
        text.push_str(&format!("cannot be read now: {object}\n"));
    }
    let lost = if checked.has_damage() { "lost" } else { "out of reach" };
    for affected in &checked.affected {
        let vdi = output::printable(&affected.vdi);
        text.push_str(&format!("{lost} in snapshot {}, VDI {vdi}:\n", output::short(&affected.snapshot)));
        for [start, end] in &affected.ranges {
            text.push_str(&format!("  bytes {start} to {end} ({})\n", output::size(end.saturating_sub(*start))));
        }
    }
    text.push_str(match (checked.clean, checked.has_damage()) {
        (true, _) if checked.repair.is_some() => "no damage is left\n",
        (true, _) => "no damage found\n",
        (false, true) if checked.repair.is_some() && !checked.affected.is_empty() => {
            "the repository is damaged: import these disks again, what they still hold of it is then stored anew\n"
        }
        (false, true) => "the repository is damaged\n",
        (false, false) => "the check is not complete\n",
    });
    let read = match checked.read_bytes {
        0 if checked.packs > 0 => "not read: only directories were, see --read-data".to_owned(),
        bytes => format!("{} read and verified", output::size(bytes)),
    };
    let mut rows = vec![
        ("snapshots", checked.snapshots.to_string()),
        ("packs", checked.packs.to_string()),
        ("manifest nodes", checked.nodes.to_string()),
        ("chunks", format!("{} looked up", checked.chunks)),
        ("content", read),
    ];
    rows.extend(checked.coverage.as_ref().map(|coverage| ("round", coverage_text(coverage))));
    text.push_str(&output::fields(&rows));
    text
}

fn damage_text(damage: &DamageOut) -> String {
    let frame = damage.frame.map(|frame| format!(", frame {frame}")).unwrap_or_default();
    format!("damaged: {}{frame}: {}\n", damage.object, output::printable(&damage.error))
}

fn repair_text(repair: &RepairOut) -> String {
    let mut text: String = repair.found.iter().map(|damage| format!("found {}", damage_text(damage))).collect();
    for moved in &repair.quarantined {
        text.push_str(&format!("moved {} to {}\n", moved.object, moved.to));
    }
    if repair.new_packs > 0 {
        let (copied, packs) = (output::size(repair.copied_bytes), output::count(repair.new_packs as usize, "new pack"));
        text.push_str(&format!("copied {copied} that was sound in them to {packs}\n"));
    }
    if repair.healed_records > 0 {
        let records = output::count(repair.healed_records as usize, "snapshot record");
        text.push_str(&format!("stored {records} again from the index\n"));
    }
    text
}

fn coverage_text(coverage: &CoverageOut) -> String {
    let (covered, total) = (coverage.covered_bytes, coverage.total_bytes);
    let percent = if total == 0 { 100.0 } else { covered as f64 * 100.0 / total as f64 };
    let since = match &coverage.all_read_since {
        Some(time) => format!("all that was there at {time} was read since"),
        None => "no round has ended yet".to_owned(),
    };
    format!("{percent:.0} % of {} read since {}; {since}", output::size(total), coverage.round_began)
}

/// A part of all content, or bytes.
fn parse_share(text: &str) -> std::result::Result<Share, String> {
    let bad = || "a share such as 10% or 20GiB is needed".to_owned();
    if let Some(percent) = text.strip_suffix('%') {
        let percent: f64 = percent.trim().parse().map_err(|_| bad())?;
        return if percent > 0.0 && percent <= 100.0 { Ok(Share::Fraction(percent / 100.0)) } else { Err(bad()) };
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let factor = match text[digits..].trim() {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1_u64 << 40,
        _ => return Err(bad()),
    };
    let count: u64 = text[..digits].parse().map_err(|_| bad())?;
    count.checked_mul(factor).filter(|bytes| *bytes > 0).map(Share::Bytes).ok_or_else(bad)
}

/// Everything: read at once, whatever was read before.
const ALL: Share = Share::Fraction(1.0);

#[cfg(test)]
mod tests {
    use repo_core::id::SnapshotId;
    use repo_core::ops::check::Affected;
    use repo_core::ops::repair::Quarantined;

    use super::*;

    fn damaged() -> CheckReport {
        CheckReport {
            damages: vec![Damage { object: "packs/ab/cd".to_owned(), frame: Some(7), error: "wrong".to_owned() }],
            affected: vec![Affected {
                snapshot: SnapshotId([1; 32]),
                vdi: "root".to_owned(),
                ranges: vec![0..4096, 8192..8193],
            }],
            ..CheckReport::default()
        }
    }

    #[test]
    fn the_json_of_a_check_keeps_its_field_names() {
        let value = serde_json::to_value(Checked::from(damaged())).unwrap();
        let expected = serde_json::json!({
            "clean": false, "snapshots": 0, "packs": 0, "nodes": 0, "chunks": 0, "read_bytes": 0,
            "damages": [{ "object": "packs/ab/cd", "frame": 7, "error": "wrong" }],
            "affected": [{ "snapshot": "01".repeat(32), "vdi": "root", "ranges": [[0, 4096], [8192, 8193]] }],
            "unavailable": [], "coverage": null, "repair": null,
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn a_share_is_a_percentage_or_a_size() {
        assert_eq!(parse_share("10%"), Ok(Share::Fraction(0.1)));
        assert_eq!(parse_share("100%"), Ok(ALL));
        assert_eq!(parse_share("20GiB"), Ok(Share::Bytes(20 << 30)));
        for bad in ["", "0%", "101%", "-1%", "NaN%", "10", "0MiB", "5 parsec", "GiB", "99999999999TiB"] {
            assert!(parse_share(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn after_a_repair_only_what_is_left_counts() {
        let moved = Quarantined { object: "packs/ab/cd".to_owned(), to: "quarantine/cd".to_owned() };
        let report = RepairReport { quarantined: vec![moved], ..RepairReport::default() };
        let healed = Checked::repaired(damaged(), report.clone());
        assert_eq!(exit(&healed).unwrap(), Exit::Done);
        assert!(text(&healed).contains("moved packs/ab/cd to quarantine/cd\nno damage is left\n"), "{}", text(&healed));
        let left = Checked::repaired(damaged(), RepairReport { after: damaged(), ..report });
        assert_eq!(exit(&left).unwrap(), Exit::Damage);
        assert!(text(&left).contains("import these disks again"), "{}", text(&left));
    }

    #[test]
    fn damage_is_code_3_and_what_cannot_be_read_now_is_a_failure() {
        assert_eq!(exit(&damaged().into()).unwrap(), Exit::Damage);
        assert_eq!(exit(&CheckReport::default().into()).unwrap(), Exit::Done);
        let unavailable = CheckReport { unavailable: vec!["packs/ab/cd".to_owned()], ..CheckReport::default() };
        assert_eq!(exit(&unavailable.into()).unwrap_err().exit(), Exit::Failed);
        let hit = Affected { snapshot: SnapshotId([1; 32]), vdi: "root".to_owned(), ranges: vec![0..1, 2..3] };
        let out_of_reach =
            CheckReport { unavailable: vec!["packs/ab/cd".to_owned()], affected: vec![hit], ..CheckReport::default() };
        assert_eq!(exit(&out_of_reach.into()).unwrap_err().exit(), Exit::Failed);
        let both = CheckReport { unavailable: vec!["packs/ab/cd".to_owned()], ..damaged() };
        assert_eq!(exit(&both.into()).unwrap(), Exit::Damage);
    }
}
