//! `cairn show`.

use repo_core::ErrorKind;
use repo_core::remarks::Remarks;
use repo_core::snapshot::NamedSnapshot;
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::Invocation;
use crate::output::{self, SnapshotOut};
use crate::select;

/// Show all that is known of a snapshot
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// An id, its first digits (at least 4), or `latest`
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// Write the file that was kept under this name to stdout, and nothing else
    #[arg(long, value_name = "NAME", conflicts_with = "json")]
    metadata: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  cairn show latest
  cairn show 9f3c0a --json
  cairn show 9f3c0a --metadata vm.json > vm.json";

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    snapshot: SnapshotOut,
    program: String,
    packs: usize,
    metadata: Vec<MetadataOut>,
}

#[derive(Debug, Serialize)]
struct MetadataOut {
    name: String,
    bytes: usize,
}

pub(super) fn run(args: &Args, invocation: &Invocation) -> Result<Exit> {
    let repository = invocation.open_repository()?;
    let (all, annotations) = invocation.remarked_snapshots(&repository)?;
    let named = select::snapshot(&all.snapshots, &args.snapshot)?;
    match &args.metadata {
        Some(name) => write_metadata(named, name)?,
        None => {
            let shown = Shown::new(named, &annotations.remarks(named), all.stored_ms(named));
            invocation.print(&shown, || text(&shown, named, all.stored_ms(named)))?;
        }
    }
    Ok(Exit::Done)
}

fn write_metadata(named: &NamedSnapshot, name: &str) -> Result<()> {
    let metadata = &named.snapshot.metadata;
    let bytes = metadata.get(name).ok_or_else(|| {
        let failure =
            Failure::new(ErrorKind::NotFound, format!("snapshot {} has no metadata {name}", named.id.short()));
        match metadata.is_empty() {
            true => failure,
            false => failure.hint(format!("it has {}", metadata.keys().cloned().collect::<Vec<_>>().join(", "))),
        }
    })?;
    output::write(std::io::stdout().lock(), bytes)
}

impl Shown {
    fn new(named: &NamedSnapshot, remarks: &Remarks, stored_ms: Option<i64>) -> Self {
        let metadata = &named.snapshot.metadata;
        Self {
            snapshot: SnapshotOut::new(named, remarks, stored_ms),
            program: named.snapshot.program.clone(),
            packs: named.snapshot.packs.len(),
            metadata: metadata
                .iter()
                .map(|(name, bytes)| MetadataOut { name: name.clone(), bytes: bytes.len() })
                .collect(),
        }
    }
}

fn text(shown: &Shown, named: &NamedSnapshot, stored_ms: Option<i64>) -> String {
    let snapshot = &shown.snapshot;
    let mut text = format!("snapshot {}\n", snapshot.id);
    text.push_str(&output::fields(&[
        ("vm", snapshot.vm.clone().unwrap_or_else(|| "-".to_owned())),
        ("time", output::time_local(named.snapshot.time_ms)),
        ("committed", format!("{} by {}", output::time_local(named.snapshot.committed_ms), shown.program)),
        ("stored at", stored_ms.map_or("-".to_owned(), output::time_local)),
        ("new", format!("{} in {} chunks", output::size(snapshot.new_bytes), snapshot.new_chunks)),
        ("stored", output::size(snapshot.stored_bytes)),
        ("packs", format!("{} written or used", shown.packs)),
        ("tags", if snapshot.tags.is_empty() { "-".to_owned() } else { snapshot.tags.join(", ") }),
        ("note", snapshot.note.clone().unwrap_or_else(|| "-".to_owned())),
        ("protected", if snapshot.protected { "yes" } else { "no" }.to_owned()),
    ]));
    for disk in &snapshot.disks {
        text.push_str(&format!("disk {}\n", output::printable(&disk.vdi)));
        text.push_str(&output::fields(&[
            ("size", format!("{} ({} bytes)", output::size(disk.virtual_size), disk.virtual_size)),
            ("in use", output::size(disk.allocated_bytes)),
            ("read from", disk.source_format.clone()),
            ("compared with", disk.parent.as_deref().map_or("-", output::short).to_owned()),
        ]));
    }
    if !shown.metadata.is_empty() {
        text.push_str("metadata\n");
        let rows: Vec<_> =
            shown.metadata.iter().map(|kept| (kept.name.as_str(), output::size(kept.bytes as u64))).collect();
        text.push_str(&output::fields(&rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::tests::made;

    #[test]
    fn the_json_is_that_of_the_list_with_more_fields() {
        let mut named = made([1, 2, 3, 4], 0, &["root"]);
        named.snapshot.metadata.insert("vm.json".to_owned(), b"{}".to_vec());
        let value = serde_json::to_value(Shown::new(&named, &Remarks::default(), Some(7))).unwrap();
        let listed = serde_json::to_value(SnapshotOut::new(&named, &Remarks::default(), Some(7))).unwrap();
        for (name, field) in listed.as_object().unwrap() {
            assert_eq!(&value[name], field);
        }
        assert_eq!(value["metadata"], serde_json::json!([{ "name": "vm.json", "bytes": 2 }]));
        assert_eq!((&value["packs"], &value["program"]), (&0.into(), &"cairn".into()));
    }
}
