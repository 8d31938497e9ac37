//! `cairn check`.

use repo_core::ErrorKind;
use repo_core::error::ResultExt;
use repo_core::ops::check::{self, CheckOptions, CheckReport};
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::Invocation;
use crate::output;

/// Look for damage, and name the snapshots and parts of disks that it hits
///
/// Reads every snapshot, manifest and pack directory, and with --read-data every stored byte. Damage gives exit code 3.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Also read, open and hash all stored content, which takes as long as reading all packs
    #[arg(long)]
    read_data: bool,
}

const EXAMPLES: &str = "\
Examples:
  cairn check
  cairn check --read-data
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
    let options = CheckOptions { read_data: args.read_data };
    let report = check::check(&session, options, &invocation.terminal).context(|| "cannot check the repository")?;
    let checked = Checked::from(report);
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

impl From<CheckReport> for Checked {
    fn from(report: CheckReport) -> Self {
        Self {
            clean: report.is_clean(),
            snapshots: report.snapshots,
            packs: report.packs,
            nodes: report.nodes,
            chunks: report.chunks,
            read_bytes: report.read_bytes,
            damages: report
                .damages
                .into_iter()
                .map(|damage| DamageOut { object: damage.object, frame: damage.frame, error: damage.error })
                .collect(),
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
    let mut text = String::new();
    for damage in &checked.damages {
        let frame = damage.frame.map(|frame| format!(", frame {frame}")).unwrap_or_default();
        text.push_str(&format!("damaged: {}{frame}: {}\n", damage.object, output::printable(&damage.error)));
    }
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
        (true, _) => "no damage found\n",
        (false, true) => "the repository is damaged\n",
        (false, false) => "the check is not complete\n",
    });
    let read = match checked.read_bytes {
        0 if checked.packs > 0 => "not read: only directories were, see --read-data".to_owned(),
        bytes => format!("{} read and verified", output::size(bytes)),
    };
    text.push_str(&output::fields(&[
        ("snapshots", checked.snapshots.to_string()),
        ("packs", checked.packs.to_string()),
        ("manifest nodes", checked.nodes.to_string()),
        ("chunks", format!("{} looked up", checked.chunks)),
        ("content", read),
    ]));
    text
}

#[cfg(test)]
mod tests {
    use repo_core::id::SnapshotId;
    use repo_core::ops::check::{Affected, Damage};

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
            "unavailable": [],
        });
        assert_eq!(value, expected);
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
