//! `cairn snapshots`.

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
}

const EXAMPLES: &str = "\
Examples:
  cairn snapshots
  cairn snapshots --vm web-01
  cairn snapshots --vdi $VDI --json | jq -r '.[-1].id'";

pub(super) fn run(args: &Args, invocation: &Invocation) -> Result<Exit> {
    let repository = invocation.open_repository()?;
    let all = invocation.snapshots(&repository)?;
    let listed: Vec<_> = all.snapshots.iter().filter(|named| args.wants(named)).collect();
    let out: Vec<_> = listed.iter().map(|named| SnapshotOut::from(*named)).collect();
    invocation.print(&out, || text(&listed))?;
    all.exit()
}

impl Args {
    fn wants(&self, named: &NamedSnapshot) -> bool {
        let vdi_fits = self.vdi.as_ref().is_none_or(|vdi| named.snapshot.disk(vdi).is_some());
        let vm_fits = self.vm.as_ref().is_none_or(|vm| named.snapshot.vm.as_ref() == Some(vm));
        vdi_fits && vm_fits
    }
}

fn text(listed: &[&NamedSnapshot]) -> String {
    if listed.is_empty() {
        return "no snapshots\n".to_owned();
    }
    let rows = listed.iter().flat_map(|named| rows(named));
    output::table(&["snapshot", "time", "vm", "vdi", "size", "in use", "new", "stored"], &[4, 5, 6, 7], rows)
}

/// A row a disk; what is of the snapshot stands in the first.
fn rows(named: &NamedSnapshot) -> Vec<Vec<String>> {
    let shown = SnapshotOut::from(named);
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
        ]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::tests::made;

    #[test]
    fn filters_by_vdi_and_vm_are_exact() {
        let named = made([1, 2, 3, 4], 0, &["root", "data"]);
        let wants = |vdi: Option<&str>, vm: Option<&str>| {
            Args { vdi: vdi.map(str::to_owned), vm: vm.map(str::to_owned) }.wants(&named)
        };
        assert!(wants(None, None));
        assert!(wants(Some("data"), Some("web-01")));
        assert!(!wants(Some("dat"), None));
        assert!(!wants(None, Some("web")));
    }

    #[test]
    fn a_snapshot_of_two_disks_has_two_rows_and_names_itself_once() {
        let named = made([1, 2, 3, 4], 0, &["root", "data"]);
        let text = text(&[&named]);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert_eq!(text.matches("010203040000").count(), 1, "{text}");
    }
}
