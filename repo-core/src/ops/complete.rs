//! Whether all that a snapshot consists of is known to be stored.
//!
//! A delta says nothing of most of its disk: what it does not say is taken from the base unread, so the base must be whole.
//! A replica of the index notes the snapshots it knows to be; one that was made anew knows of none, and learns it by one
//! walk.

use rayon::prelude::*;

use crate::content::ContentReader;
use crate::error::{Error, Result};
use crate::id::{EntryId, NodeId};
use crate::manifest::Tree;
use crate::manifest::walk::{Leaves, leaf_runs};
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
/// `Corrupt` when something is missing or a node is damaged; `Unavailable`; `Io` when the index fails; `Interrupted`.
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
    let mut leaves = Leaves::new(tree, content);
    let mut told = 0;
    loop {
        check_cancelled(monitor)?;
        let batch: Vec<(BlockIndex, NodeId)> = leaves.by_ref().take(LEAF_BATCH).collect::<Result<_>>()?;
        let Some((last, _)) = batch.last() else { break };
        batch.par_iter().try_for_each(|(_, leaf)| find_all(content, *leaf))?;
        let done = last.offset_bytes() + BLOCK_LEN as u64;
        monitor.advance(done - told);
        told = done;
    }
    monitor.advance(tree.virtual_size.saturating_sub(told));
    Ok(())
}

fn find_all(content: &ContentReader, leaf: NodeId) -> Result<()> {
    let runs = leaf_runs(content, leaf)?;
    let ids: Vec<EntryId> = runs.iter().map(|run| run.id.into()).collect();
    let found = content.locate(&ids)?;
    match runs.iter().zip(found).find(|(_, found)| found.is_none()) {
        Some((run, _)) => Err(Error::corrupt(format!("chunk {} is in no pack", run.id.short()))),
        None => Ok(()),
    }
}
