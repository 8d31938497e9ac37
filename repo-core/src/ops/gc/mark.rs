//! Marking: every node of every snapshot's trees once, and the names of all chunks they need.
//!
//! Nodes are read level by level in large groups, sorted by where they are stored, so that each frame is opened once a
//! group. Strict: a node that cannot be read ends the collection, since what is below it is unknown.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::content::{ContentReader, entry_range};
use crate::error::{Error, Result, ResultExt};
use crate::id::{EntryId, NodeId};
use crate::index::Location;
use crate::manifest::{LEVEL_MAX, Node, NodeHasher};
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::id_set::{IdSet, Part};
use crate::ops::open::Session;
use crate::pack::Content;
use crate::snapshot::NamedSnapshot;

/// Leaves read as one group: 32 bytes each, and 40 once they are located.
const LEAF_GROUP: usize = 1 << 17;
/// Inner nodes read as one group: each may add 128 names to the level below.
const INNER_GROUP: usize = 1 << 12;
/// Look-ups given to the index at once.
const LOOKUP_BATCH: usize = 4096;

/// What was walked, whichever part it belongs to.
pub(in crate::ops) struct Marked {
    /// Distinct nodes.
    pub(in crate::ops) nodes: u64,
    /// Chunks that they name, as often as they name them.
    pub(in crate::ops) references: u64,
}

/// Marks what `snapshots` need, as far as it belongs to `part`, in `live`.
///
/// # Errors
/// `Corrupt` when a node is missing or damaged; `Unavailable`; `Interrupted`.
pub(in crate::ops) fn mark(
    session: &Session,
    snapshots: &[NamedSnapshot],
    part: Part,
    live: &IdSet,
    monitor: &dyn Monitor,
) -> Result<Marked> {
    let packs = session.index.packs();
    let meta = packs.iter().filter(|pack| pack.content == Content::Meta);
    let mut walk = Walk {
        content: &session.content,
        hasher: NodeHasher::new(&session.repository.keys)?,
        part,
        live,
        seen: IdSet::new(meta.map(|pack| u64::from(pack.entries)).sum()),
        pending: vec![Vec::new(); usize::from(LEVEL_MAX) + 1],
        nodes: 0,
        references: AtomicU64::new(0),
    };
    for disk in snapshots.iter().flat_map(|named| &named.snapshot.disks) {
        walk.add(disk.tree.height(), disk.tree.root)?;
        if walk.pending.iter().any(|pending| pending.len() >= INNER_GROUP) {
            walk.run(false, monitor)?;
        }
    }
    walk.run(true, monitor)?;
    Ok(Marked { nodes: walk.nodes, references: walk.references.into_inner() })
}

struct Walk<'a> {
    content: &'a ContentReader,
    hasher: NodeHasher,
    part: Part,
    live: &'a IdSet,
    /// Nodes that were met.
    seen: IdSet,
    /// Nodes to be read, by level.
    pending: Vec<Vec<NodeId>>,
    nodes: u64,
    references: AtomicU64,
}

impl Walk<'_> {
    fn add(&mut self, level: u8, id: NodeId) -> Result<()> {
        if !id.is_none() && self.seen.insert(id.into())? {
            self.nodes += 1;
            if self.part.contains(id.into()) {
                self.live.insert(id.into())?;
            }
            self.pending[usize::from(level)].push(id);
        }
        Ok(())
    }

    /// Reads pending nodes: all of them, or until no level has a whole group.
    fn run(&mut self, to_the_end: bool, monitor: &dyn Monitor) -> Result<()> {
        loop {
            check_cancelled(monitor)?;
            // The lowest full level first: so no level grows far beyond a group.
            let full = (0..self.pending.len()).find(|level| self.pending[*level].len() >= group_len(*level));
            let any = || self.pending.iter().rposition(|pending| !pending.is_empty());
            let Some(level) = full.or_else(|| if to_the_end { any() } else { None }) else { return Ok(()) };
            let pending = &mut self.pending[level];
            let group = pending.split_off(pending.len().saturating_sub(group_len(level)));
            let below = self.read_group(level, &group)?;
            for id in below {
                self.add(u8::try_from(level - 1).expect("levels are few"), id)?;
            }
        }
    }

    /// Reads nodes of one level: marks the chunks of leaves, gives the children of inner nodes.
    fn read_group(&self, level: usize, group: &[NodeId]) -> Result<Vec<NodeId>> {
        let located: Vec<Vec<Option<Location>>> = group
            .par_chunks(LOOKUP_BATCH)
            .map(|ids| self.content.index().find(&ids.iter().map(|id| EntryId::from(*id)).collect::<Vec<_>>()))
            .collect::<Result<_>>()?;
        let mut placed = Vec::with_capacity(group.len());
        for (id, location) in group.iter().zip(located.into_iter().flatten()) {
            let location =
                location.ok_or_else(|| Error::corrupt(format!("manifest node {} is in no pack", id.short())))?;
            placed.push((location, *id));
        }
        placed.sort_unstable();
        let frames: Vec<_> = placed.chunk_by(|(a, _), (b, _)| (a.pack, a.frame) == (b.pack, b.frame)).collect();
        let children: Vec<Vec<NodeId>> =
            frames.par_iter().map(|nodes| self.read_frame(level, nodes)).collect::<Result<_>>()?;
        Ok(children.into_iter().flatten().collect())
    }

    fn read_frame(&self, level: usize, nodes: &[(Location, NodeId)]) -> Result<Vec<NodeId>> {
        let (first, _) = nodes[0];
        let frame = self.content.cached_frame(first.pack, first.frame)?;
        let pack = self.content.pack(first.pack)?;
        let mut below = Vec::new();
        for (location, id) in nodes {
            let bytes = frame
                .get(entry_range(&pack, *location, (*id).into())?)
                .filter(|bytes| self.hasher.id(bytes) == *id)
                .ok_or_else(|| Error::corrupt(format!("manifest node {} does not match its name", id.short())))?;
            match Node::decode(bytes).context(|| format!("manifest node {}", id.short()))? {
                Node::Leaf(runs) if level == 0 => {
                    self.references.fetch_add(runs.len() as u64, Ordering::Relaxed);
                    for run in runs.iter().filter(|run| self.part.contains(run.id.into())) {
                        self.live.insert(run.id.into())?;
                    }
                }
                Node::Inner { level: found, children } if usize::from(found) == level => {
                    below.extend(children.into_iter().filter(|child| !child.is_none()));
                }
                _ => return Err(Error::corrupt(format!("manifest node {} is not of level {level}", id.short()))),
            }
        }
        Ok(below)
    }
}

fn group_len(level: usize) -> usize {
    if level == 0 { LEAF_GROUP } else { INNER_GROUP }
}
