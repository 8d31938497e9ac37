//! Whether all that a snapshot consists of is known to be stored.
//!
//! A delta says nothing of most of its disk: what it does not say is taken from the base unread, so the base must be whole.
//! A replica of the index notes the snapshots it knows to be; one that was made anew knows of none, and learns it by one
//! walk.

use rayon::prelude::*;

use crate::content::ContentReader;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{EntryId, NodeId};
use crate::manifest::walk::{Leaves, leaf_runs};
use crate::manifest::{Node, NodeSource, Tree};
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::open::Session;
use crate::snapshot::NamedSnapshot;
use crate::units::{BLOCK_LEN, BlockIndex};

/// Leaves looked up at once, on all cores.
const LEAF_BATCH: usize = 256;

/// Makes sure that every node and chunk of a snapshot is in the index, and notes that there. Costs nothing when it is
/// noted already, and else one look-up for each chunk of its disks; no content is read.
///
/// # Errors
/// `Corrupt` when something is missing or a node is damaged; `Locked` when something stands in condemned packs alone;
/// `Unavailable`; `Io` when the index fails; `Interrupted`.
pub fn ensure_complete(session: &Session, named: &NamedSnapshot, monitor: &dyn Monitor) -> Result<()> {
    if session.index.is_complete(named.id)? {
        return Ok(());
    }
    let total = named.snapshot.disks.iter().map(|disk| disk.tree.virtual_size).sum();
    monitor.begin(&format!("looking up all of snapshot {}", named.id.short()), Some(total));
    for disk in &named.snapshot.disks {
        walk(&session.content, &disk.tree, monitor).map_err(|error| {
            if !error.is_loss() {
                return error;
            }
            let (id, vdi) = (named.id.short(), &disk.vdi);
            Error::with_source(error.kind(), format!("VDI {vdi} of snapshot {id} is not stored whole"), error)
        })?;
    }
    session.index.mark_complete(named.id)?;
    monitor.end();
    Ok(())
}

fn walk(content: &ContentReader, tree: &Tree, monitor: &dyn Monitor) -> Result<()> {
    let nodes = LiveNodes(content);
    let mut leaves = Leaves::new(tree, &nodes);
    let mut told = 0;
    loop {
        check_cancelled(monitor)?;
        let batch: Vec<(BlockIndex, NodeId)> = leaves.by_ref().take(LEAF_BATCH).collect::<Result<_>>()?;
        let Some((last, _)) = batch.last() else { break };
        batch.par_iter().try_for_each(|(_, leaf)| find_all(&nodes, *leaf))?;
        let done = last.offset_bytes() + BLOCK_LEN as u64;
        monitor.advance(done - told);
        told = done;
    }
    monitor.advance(tree.virtual_size.saturating_sub(told));
    Ok(())
}

/// Nodes that stand in packs that are not condemned.
struct LiveNodes<'a>(&'a ContentReader);

impl LiveNodes<'_> {
    /// Fails when one of `ids` is not stored, or is about to be no more.
    fn demand(&self, ids: &[EntryId]) -> Result<()> {
        if self.0.locate_live(ids)?.iter().all(Option::is_some) {
            return Ok(());
        }
        // What is not found may stand in a pack that nothing names.
        let stored = self.0.locate_stored(ids)?;
        let Some(at) = self.0.locate_live(ids)?.iter().position(Option::is_none) else { return Ok(()) };
        let short = ids[at].short();
        if stored[at].is_some() {
            let text = format!(
                "{short} stands in a pack that garbage collection condemned before this snapshot was committed: \
                 run cairn gc, which takes that back, and try again"
            );
            return Err(Error::new(ErrorKind::Locked, text));
        }
        Err(Error::corrupt(format!("{short} is in no pack")))
    }
}

impl NodeSource for LiveNodes<'_> {
    fn node(&self, id: NodeId) -> Result<Node> {
        self.demand(&[id.into()])?;
        self.0.node(id)
    }
}

fn find_all(nodes: &LiveNodes<'_>, leaf: NodeId) -> Result<()> {
    let runs = leaf_runs(nodes, leaf)?;
    nodes.demand(&runs.iter().map(|run| run.id.into()).collect::<Vec<_>>())
}
