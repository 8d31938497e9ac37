//! Which snapshots of a repository are meant.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::error::{Error, ErrorKind, Result};
use crate::id::SnapshotId;
use crate::snapshot::NamedSnapshot;

/// What a snapshot has to be to be chosen. A plain filter chooses all; a snapshot of several disks is chosen as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// One of these; any when empty.
    pub snapshots: BTreeSet<SnapshotId>,
    /// Of the VM of this name.
    pub vm: Option<String>,
    /// With a disk of one of these names; of any when empty.
    pub vdis: BTreeSet<String>,
    /// Among the so many newest of one of its disks, of those that the other conditions leave.
    pub newest: Option<usize>,
    /// Not older than this, in milliseconds since the Unix epoch.
    pub since_ms: Option<i64>,
}

impl Filter {
    /// The snapshots that are chosen of `all`, in their order: oldest first.
    ///
    /// # Errors
    /// `NotFound` when no snapshot has a name that the filter has: a sync that silently does nothing is found out too late.
    pub(super) fn choose<'a>(&self, all: &'a [NamedSnapshot]) -> Result<Vec<&'a NamedSnapshot>> {
        self.check(all)?;
        let is_meant = |named: &&NamedSnapshot| {
            (self.snapshots.is_empty() || self.snapshots.contains(&named.id))
                && (self.vm.is_none() || named.snapshot.vm == self.vm)
                && named.snapshot.disks.iter().any(|disk| self.is_selected(&disk.vdi))
                && self.since_ms.is_none_or(|since| named.snapshot.time_ms >= since)
        };
        let meant: Vec<_> = all.iter().filter(is_meant).collect();
        let Some(newest) = self.newest else { return Ok(meant) };
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut chosen: Vec<_> = meant
            .into_iter()
            .rev()
            .filter(|named| {
                let disks = named.snapshot.disks.iter().filter(|disk| self.is_selected(&disk.vdi));
                let places: Vec<_> = disks
                    .map(|disk| {
                        let count = counts.entry(&disk.vdi).or_default();
                        *count += 1;
                        *count
                    })
                    .collect();
                places.into_iter().any(|place| place <= newest)
            })
            .collect();
        chosen.reverse();
        Ok(chosen)
    }

    fn is_selected(&self, vdi: &str) -> bool {
        self.vdis.is_empty() || self.vdis.contains(vdi)
    }

    fn check(&self, all: &[NamedSnapshot]) -> Result<()> {
        let not_found = |what: String| Err(Error::new(ErrorKind::NotFound, what));
        let ids: HashSet<_> = all.iter().map(|named| named.id).collect();
        if let Some(id) = self.snapshots.iter().find(|id| !ids.contains(id)) {
            return not_found(format!("snapshot {} is not there", id.short()));
        }
        let of_vm = || all.iter().filter(|named| self.vm.is_none() || named.snapshot.vm == self.vm);
        if let Some(vm) = self.vm.as_ref().filter(|_| of_vm().next().is_none()) {
            return not_found(format!("there is no snapshot of VM {vm}"));
        }
        match self.vdis.iter().find(|vdi| !of_vm().any(|named| named.snapshot.disk(vdi).is_some())) {
            Some(vdi) => not_found(format!("there is no snapshot with VDI {vdi}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;
    use crate::manifest::Tree;
    use crate::snapshot::{Disk, Snapshot};

    fn made(number: u8, vm: &str, vdis: &[&str]) -> NamedSnapshot {
        let disk = |vdi: &&str| Disk {
            vdi: (*vdi).to_owned(),
            tree: Tree { root: NodeId::NONE, virtual_size: 0 },
            source_format: "raw".to_owned(),
            allocated_bytes: 0,
            parent: None,
            reading: Default::default(),
            source_id: None,
        };
        let snapshot = Snapshot {
            time_ms: i64::from(number),
            committed_ms: 0,
            vm: Some(vm.to_owned()),
            disks: vdis.iter().map(disk).collect(),
            packs: Vec::new(),
            stats: Default::default(),
            program: String::new(),
            metadata: BTreeMap::new(),
            remarks: Default::default(),
            origin: None,
        };
        NamedSnapshot { id: SnapshotId([number; 32]), len: 0, snapshot }
    }

    #[test]
    fn all_conditions_hold_at_once_and_the_newest_are_counted_for_each_disk() {
        let all = [
            made(1, "web", &["root"]),
            made(2, "web", &["root", "data"]),
            made(3, "db", &["big"]),
            made(4, "web", &["root"]),
            made(5, "db", &["big"]),
        ];
        let chosen = |filter: Filter| {
            filter.choose(&all).map(|chosen| chosen.iter().map(|named| named.id.0[0]).collect::<Vec<_>>())
        };
        let plain = Filter::default();
        let vdis = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(chosen(plain.clone()).unwrap(), [1, 2, 3, 4, 5]);
        assert_eq!(chosen(Filter { newest: Some(1), ..plain.clone() }).unwrap(), [2, 4, 5], "2 is the newest of data");
        assert_eq!(chosen(Filter { vdis: vdis(&["root"]), newest: Some(1), ..plain.clone() }).unwrap(), [4]);
        assert_eq!(chosen(Filter { vm: Some("db".to_owned()), since_ms: Some(4), ..plain.clone() }).unwrap(), [5]);
        let ids = [SnapshotId([1; 32]), SnapshotId([3; 32])].into();
        assert_eq!(chosen(Filter { snapshots: ids, vm: Some("web".to_owned()), ..plain.clone() }).unwrap(), [1]);
        assert_eq!(chosen(Filter { newest: Some(0), ..plain.clone() }).unwrap(), [0_u8; 0]);
        for wrong in [
            Filter { snapshots: [SnapshotId([9; 32])].into(), ..plain.clone() },
            Filter { vm: Some("x".to_owned()), ..plain.clone() },
            Filter { vm: Some("db".to_owned()), vdis: vdis(&["root"]), ..plain },
        ] {
            assert_eq!(chosen(wrong).unwrap_err().kind(), ErrorKind::NotFound);
        }
    }
}
