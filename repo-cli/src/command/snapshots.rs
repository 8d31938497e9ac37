//! `cairn snapshots`.

use repo_core::remarks::Remarks;
use repo_core::snapshot::NamedSnapshot;

use crate::exit::Exit;
use crate::failure::Result;
use crate::invocation::Invocation;
use crate::output::{self, SnapshotOut};

/// List snapshots, oldest first
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only those with this disk
    #[arg(long, value_name = "ID")]
    vdi: Option<String>,
    /// Only those of this VM
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,
    /// Only those with this tag
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
}

/// Characters of a note that a list shows.
const NOTE_SHOWN: usize = 40;

const EXAMPLES: &str = "\
Examples:
  cairn snapshots
  cairn snapshots --vm web-01
  cairn snapshots --tag gold
  cairn snapshots --vdi $VDI --json | jq -r '.[-1].id'";

pub(super) fn run(args: &Args, invocation: &Invocation) -> Result<Exit> {
    let repository = invocation.open_repository()?;
    let (all, annotations) = invocation.remarked_snapshots(&repository)?;
    let remarked = all.snapshots.iter().map(|named| (named, annotations.remarks(named).into_owned()));
    let listed: Vec<_> = remarked.filter(|(named, remarks)| args.wants(named, remarks)).collect();
    let out: Vec<_> =
        listed.iter().map(|(named, remarks)| SnapshotOut::new(named, remarks, all.stored_ms(named))).collect();
    invocation.print(&out, || text(&listed))?;
    all.exit()
}

impl Args {
    fn wants(&self, named: &NamedSnapshot, remarks: &Remarks) -> bool {
        let vdi_fits = self.vdi.as_ref().is_none_or(|vdi| named.snapshot.disk(vdi).is_some());
        let vm_fits = self.vm.as_ref().is_none_or(|vm| named.snapshot.vm.as_ref() == Some(vm));
        let tag_fits = self.tag.as_ref().is_none_or(|tag| remarks.tags.contains(tag));
        vdi_fits && vm_fits && tag_fits
    }
}

fn text(listed: &[(&NamedSnapshot, Remarks)]) -> String {
    if listed.is_empty() {
        return "no snapshots\n".to_owned();
    }
    let mut headings = vec!["snapshot", "time", "vm", "vdi", "size", "in use", "new", "stored"];
    let with_remarks = listed.iter().any(|(_, remarks)| !remarks.is_empty());
    headings.extend(with_remarks.then_some("remarks"));
    let rows = listed.iter().flat_map(|(named, remarks)| rows(named, remarks));
    let cut = rows.map(|row| row.into_iter().take(headings.len()).collect());
    output::table(&headings, &[4, 5, 6, 7], cut)
}

/// A row a disk; what is of the snapshot stands in the first.
fn rows(named: &NamedSnapshot, remarks: &Remarks) -> Vec<Vec<String>> {
    let shown = SnapshotOut::new(named, remarks, None);
    let mut rows = Vec::new();
    for (at, disk) in shown.disks.iter().enumerate() {
        let once = |text: String| if at == 0 { text } else { String::new() };
        rows.push(vec![
            once(output::short(&shown.id).to_owned()),
            once(output::time_local(named.snapshot.time_ms)),
            once(shown.vm.clone().unwrap_or_else(|| "-".to_owned())),
            disk.vdi.clone(),
            output::size(disk.virtual_size),
            output::size(disk.allocated_bytes),
            once(output::size(shown.new_bytes)),
            once(output::size(shown.stored_bytes)),
            once(output::remarks(remarks, NOTE_SHOWN)),
        ]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::tests::made;

    #[test]
    fn filters_are_exact() {
        let named = made([1, 2, 3, 4], 0, &["root", "data"]);
        let remarks = Remarks { tags: ["gold".to_owned()].into(), ..Remarks::default() };
        let wants = |vdi: Option<&str>, vm: Option<&str>, tag: Option<&str>| {
            let [vdi, vm, tag] = [vdi, vm, tag].map(|text| text.map(str::to_owned));
            Args { vdi, vm, tag }.wants(&named, &remarks)
        };
        assert!(wants(None, None, None));
        assert!(wants(Some("data"), Some("web-01"), Some("gold")));
        assert!(!wants(Some("dat"), None, None));
        assert!(!wants(None, Some("web"), None));
        assert!(!wants(None, None, Some("gol")));
    }

    #[test]
    fn a_snapshot_of_two_disks_has_two_rows_and_names_itself_once() {
        let named = made([1, 2, 3, 4], 0, &["root", "data"]);
        let plain = text(&[(&named, Remarks::default())]);
        assert_eq!(plain.lines().count(), 3, "{plain}");
        assert_eq!(plain.matches("010203040000").count(), 1, "{plain}");
        assert!(!plain.contains("REMARKS"), "{plain}");
        let remarked = text(&[(&named, Remarks { protected: true, ..Remarks::default() })]);
        assert_eq!(remarked.matches("protected").count(), 1, "{remarked}");
    }
}
