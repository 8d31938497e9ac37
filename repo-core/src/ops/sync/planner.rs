//! What has to move for a snapshot when packs move as they are: what is new beside the nearest snapshot that TO has whole.

use std::collections::{BTreeMap, BTreeSet};

use super::needs::{Needs, Places};
use crate::error::{Error, Result};
use crate::id::{NodeId, PackId, SnapshotId};
use crate::manifest::Tree;
use crate::monitor::Monitor;
use crate::ops::open::Session;
use crate::snapshot::{Disk, NamedSnapshot};

/// A snapshot that TO has whole, or will have: what a later one is compared with.
pub(super) struct Base {
    pub(super) id: SnapshotId,
    order: (i64, i64, SnapshotId),
    disks: Vec<(String, Tree)>,
}

impl Base {
    pub(super) fn new(named: &NamedSnapshot) -> Self {
        let disk = |disk: &Disk| (disk.vdi.clone(), disk.tree);
        Self { id: named.id, order: order(named), disks: named.snapshot.disks.iter().map(disk).collect() }
    }

    fn tree(&self, vdi: &str) -> Option<Tree> {
        self.disks.iter().find(|(name, _)| name == vdi).map(|(_, tree)| *tree)
    }
}

fn order(named: &NamedSnapshot) -> (i64, i64, SnapshotId) {
    (named.snapshot.time_ms, named.snapshot.committed_ms, named.id)
}

/// A snapshot to be synced, and what has to move for it.
pub(super) struct Planned<'a> {
    pub(super) named: &'a NamedSnapshot,
    pub(super) needs: Needs,
    /// Snapshots of the same group that it was compared with.
    pub(super) bases: BTreeSet<SnapshotId>,
}

/// Tells what has to move for one snapshot after another.
pub(super) struct Planner<'a> {
    places: Places<'a>,
    /// What a snapshot may be compared with.
    pub(super) bases: Vec<Base>,
    /// Packs of FROM that cannot be had, and why.
    pub(super) lost: BTreeMap<PackId, String>,
    pub(super) monitor: &'a dyn Monitor,
}

impl<'a> Planner<'a> {
    /// One that compares with the snapshots `there` which TO is known to have whole.
    pub(super) fn new(
        from: &'a Session,
        to: Option<&'a Session>,
        there: &[NamedSnapshot],
        monitor: &'a dyn Monitor,
    ) -> Result<Self> {
        let condemned = to.map(|to| to.index.packs_of_tombstones()).transpose()?.unwrap_or_default();
        let mut bases = Vec::new();
        for named in there {
            if let Some(to) = to
                && to.index.is_complete(named.id)?
            {
                bases.push(Base::new(named));
            }
        }
        Ok(Self { places: Places { from, to, condemned }, bases, lost: BTreeMap::new(), monitor })
    }

    /// What a snapshot needs. Of the snapshots it may be compared with, `group` are yet to come.
    pub(super) fn look_at<'n>(&self, named: &'n NamedSnapshot, group: &BTreeSet<SnapshotId>) -> Result<Planned<'n>> {
        let mut planned = Planned { named, needs: Needs::default(), bases: BTreeSet::new() };
        for disk in &named.snapshot.disks {
            let base = self.base(named, &disk.vdi);
            let before = base.map_or(Tree { root: NodeId::NONE, virtual_size: 0 }, |(_, tree)| tree);
            let needs = match self.places.needs(&before, &disk.tree, self.monitor) {
                // The base may have been forgotten in FROM, and be damaged in TO: then it is of no use.
                Err(error) if error.is_loss() && base.is_some() => {
                    let nothing = Tree { root: NodeId::NONE, virtual_size: 0 };
                    self.places.needs(&nothing, &disk.tree, self.monitor)?
                }
                needs => {
                    planned.bases.extend(base.map(|(id, _)| id).filter(|id| group.contains(id)));
                    needs?
                }
            };
            planned.needs = planned.needs.merge(needs);
        }
        if let Some(why) = self.all_packs(&planned.needs).find_map(|pack| self.lost.get(&pack)) {
            return Err(Error::corrupt(why.clone()));
        }
        Ok(planned)
    }

    /// The snapshot of a disk that is nearest: the newest that is not newer, or else the oldest.
    fn base(&self, named: &NamedSnapshot, vdi: &str) -> Option<(SnapshotId, Tree)> {
        let with = || self.bases.iter().filter_map(|base| Some((base, base.tree(vdi)?)));
        let before = with().filter(|(base, _)| base.order <= order(named)).max_by_key(|(base, _)| base.order);
        let nearest = before.or_else(|| with().min_by_key(|(base, _)| base.order));
        nearest.map(|(base, tree)| (base.id, tree))
    }

    /// The packs of FROM that are needed.
    pub(super) fn all_packs<'n>(&'n self, needs: &'n Needs) -> impl Iterator<Item = PackId> + 'n {
        needs.packs.iter().chain(&needs.condemned).map(|number| self.places.from.index.pack(*number).id)
    }
}
