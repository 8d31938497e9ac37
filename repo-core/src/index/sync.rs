//! Bringing a replica up to date from the packs, which are the truth.

use std::collections::BTreeSet;

use rayon::prelude::*;

use crate::error::{ErrorKind, Result, ResultExt};
use crate::id::PackId;
use crate::index::Index;
use crate::monitor::Monitor;
use crate::pack::reader::PackReader;
use crate::pack::writer::DurablePack;
use crate::repository::Repository;
use crate::store::Listed;
use crate::tombstone::{self, Stage, Tombstone};

/// Packs whose directories are in memory at once while a replica is filled.
const BATCH: usize = 64;

/// What bringing a replica up to date did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncStats {
    /// Packs whose directories were read.
    pub added_packs: u64,
    /// Packs that the replica knew, that nobody condemned, and that the store no longer has.
    pub vanished_packs: u64,
    /// Packs that could not be read; each was told to the monitor.
    pub unreadable_packs: u64,
}

/// Brings `index` up to date with the tombstones and packs of `repository`.
///
/// What stands in packs that are gone is not found any more. A pack whose directory cannot be read is told to the monitor
/// and passed over; what it holds is then not findable.
///
/// # Errors
/// `Unavailable` when the store cannot be listed; `Io` when the database cannot be written.
pub fn sync(index: &Index, repository: &Repository, monitor: &dyn Monitor) -> Result<SyncStats> {
    // Tombstones first: a pack that is condemned later is not deleted while this process holds a lease.
    let condemned = condemned_packs(index, repository, monitor)?;
    let known = index.known_count();
    let listed = repository.store.list_packs()?;
    let changes = index.set_states(known, &listed, &condemned)?;
    let stats = add_missing(index, repository, listed, monitor)?;
    if stats.added_packs > 0 && !condemned.is_empty() {
        // New packs may be condemned ones that this replica had never seen.
        let known = index.known_count();
        index.set_states(known, &repository.store.list_packs()?, &condemned)?;
    }
    Ok(SyncStats { vanished_packs: changes.vanished, ..stats })
}

/// The packs that tombstones name. From a tombstone that is new to this replica it follows that snapshots which it did
/// not consider may need condemned packs: they no longer count as complete.
fn condemned_packs(index: &Index, repository: &Repository, monitor: &dyn Monitor) -> Result<BTreeSet<PackId>> {
    'listing: loop {
        let ids: BTreeSet<_> = repository.store.list_tombstones()?.into_iter().map(|listed| listed.id).collect();
        let mut condemned = BTreeSet::new();
        for id in &ids {
            if let Some(known) = index.known_tombstone(*id)? {
                condemned.extend(Tombstone::decode(&known)?.packs);
                continue;
            }
            match tombstone::read(repository, *id) {
                Ok(tombstone) => {
                    match &tombstone.stage {
                        Stage::Announced { considered, .. } => index.unmark_complete(considered)?,
                        // This replica slept through all of it.
                        Stage::Deleted if tombstone.packs.iter().any(|pack| index.is_live(*pack)) => {
                            index.unmark_complete(&BTreeSet::new())?;
                        }
                        Stage::Deleted => {}
                    }
                    index.learn_tombstone(*id, &tombstone.encode())?;
                    condemned.extend(tombstone.packs);
                }
                // Replaced by another one since it was listed: which one, the next listing tells.
                Err(error) if error.kind() == ErrorKind::NotFound => continue 'listing,
                // Nothing is deleted on the word of a tombstone that cannot be read.
                Err(error) if error.is_damage() => monitor.damage(&error),
                Err(error) => return Err(error),
            }
        }
        index.retain_tombstones(&ids)?;
        return Ok(condemned);
    }
}

/// Adds the packs of `listed` that `index` lacks.
///
/// # Errors
/// `Io` when the database cannot be written.
pub fn add_missing(
    index: &Index,
    repository: &Repository,
    listed: Vec<Listed<PackId>>,
    monitor: &dyn Monitor,
) -> Result<SyncStats> {
    let mut stats = SyncStats::default();
    let missing: Vec<_> = listed.into_iter().filter(|pack| index.number_of(pack.id).is_none()).collect();
    if missing.len() > BATCH {
        monitor.begin("reading pack directories", Some(missing.iter().map(|pack| pack.len).sum()));
    }
    for batch in missing.chunks(BATCH) {
        let opened: Vec<_> = batch.par_iter().map(|pack| read(repository, *pack)).collect();
        for (pack, opened) in batch.iter().zip(opened) {
            match opened {
                Ok(pack) => {
                    index.insert(&pack)?;
                    stats.added_packs += 1;
                }
                // Garbage collection deleted it since it was listed.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    stats.unreadable_packs += 1;
                    monitor.damage(&error);
                }
            }
            if missing.len() > BATCH {
                monitor.advance(pack.len);
            }
        }
    }
    if missing.len() > BATCH {
        monitor.end();
    }
    Ok(stats)
}

fn read(repository: &Repository, pack: Listed<PackId>) -> Result<DurablePack> {
    let reader = PackReader::open(&repository.store, pack.id, pack.len, &repository.config, &repository.keys)
        .context(|| "cannot index a pack")?;
    Ok(DurablePack { id: pack.id, len: pack.len, content: reader.content(), directory: reader.directory().clone() })
}
