//! What a snapshot needs that TO lacks: one walk over what is new in its trees, with look-ups in both indexes.

use std::collections::BTreeSet;

use rayon::prelude::*;

use crate::content::ContentReader;
use crate::error::{Error, Result};
use crate::id::{EntryId, NodeId, PackId};
use crate::index::PackNumber;
use crate::manifest::diff::ChangedBlocks;
use crate::manifest::walk::leaf_runs;
use crate::manifest::{Node, NodeSource, Tree};
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::open::Session;

/// Leaves looked at as one batch, on all cores.
const LEAF_BATCH: usize = 256;

/// What a snapshot needs, beside what the one needs that it was compared with.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Packs of FROM that TO lacks.
    pub(super) packs: BTreeSet<PackNumber>,
    /// Packs of FROM that TO condemned under their names, whatever became of them: what stands in them is stored anew.
    pub(super) condemned: BTreeSet<PackNumber>,
    /// Packs of TO that something was found in.
    pub(super) found: BTreeSet<PackNumber>,
}

impl Needs {
    pub(super) fn merge(mut self, mut other: Self) -> Self {
        self.packs.append(&mut other.packs);
        self.condemned.append(&mut other.condemned);
        self.found.append(&mut other.found);
        self
    }
}

/// Where to look.
pub(super) struct Places<'a> {
    pub(super) from: &'a Session,
    /// `None` for an empty copy that is yet to be made.
    pub(super) to: Option<&'a Session>,
    /// Packs that TO's tombstones name.
    pub(super) condemned: BTreeSet<PackId>,
}

impl Places<'_> {
    /// What `after` needs beside `before`, all of which TO has, or will have.
    ///
    /// # Errors
    /// `Corrupt` or `NotFound` when a node is missing or damaged, or an entry is in no pack; `Unavailable`; `Interrupted`.
    pub(super) fn needs(&self, before: &Tree, after: &Tree, monitor: &dyn Monitor) -> Result<Needs> {
        let mut walk = ChangedBlocks::new(before, after, self).with_inner_nodes();
        let mut needs = Needs::default();
        loop {
            check_cancelled(monitor)?;
            let changed: Vec<_> = walk.by_ref().take(LEAF_BATCH).collect::<Result<_>>()?;
            let inner: Vec<EntryId> = walk.take_inner_nodes().into_iter().map(Into::into).collect();
            needs = needs.merge(self.look_up(&inner)?);
            if changed.is_empty() {
                return Ok(needs);
            }
            let leaves: Vec<NodeId> =
                changed.iter().map(|changed| changed.after).filter(|leaf| !leaf.is_none()).collect();
            let found: Vec<Needs> = leaves.par_iter().map(|leaf| self.of_leaf(*leaf)).collect::<Result<_>>()?;
            needs = found.into_iter().fold(needs, Needs::merge);
        }
    }

    fn of_leaf(&self, leaf: NodeId) -> Result<Needs> {
        let runs = leaf_runs(self, leaf)?;
        let mut ids: Vec<EntryId> = runs.iter().map(|run| run.id.into()).collect();
        ids.push(leaf.into());
        self.look_up(&ids)
    }

    fn look_up(&self, ids: &[EntryId]) -> Result<Needs> {
        let mut needs = Needs::default();
        let mut missing = Vec::new();
        let there = match self.to {
            Some(to) => to.content.locate_live(ids)?,
            None => vec![None; ids.len()],
        };
        for (id, found) in ids.iter().zip(there) {
            match found {
                Some(location) => drop(needs.found.insert(location.pack)),
                None => missing.push(*id),
            }
        }
        if missing.is_empty() {
            return Ok(needs);
        }
        for (id, found) in missing.iter().zip(self.from.content.locate_stored(&missing)?) {
            let Some(location) = found else {
                return Err(Error::corrupt(format!("{} is in no pack", id.short())));
            };
            let pack = self.from.index.pack(location.pack).id;
            match self.condemned.contains(&pack) {
                true => needs.condemned.insert(location.pack),
                false => needs.packs.insert(location.pack),
            };
        }
        Ok(needs)
    }
}

/// Nodes are the same in both under the same keys: what FROM lost or forgot, TO may have.
impl NodeSource for Places<'_> {
    fn node(&self, id: NodeId) -> Result<Node> {
        let other = |to: &Session| -> Result<Node> { NodeSource::node(&*to.content as &ContentReader, id) };
        match (self.from.content.node(id), self.to) {
            (Err(error), Some(to)) if error.is_loss() => other(to).map_err(|_| error),
            (read, _) => read,
        }
    }
}
