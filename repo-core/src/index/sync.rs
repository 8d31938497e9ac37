//! Bringing a replica up to date from the packs, which are the truth.

use rayon::prelude::*;

use crate::error::{Result, ResultExt};
use crate::id::PackId;
use crate::index::Index;
use crate::monitor::Monitor;
use crate::pack::reader::PackReader;
use crate::pack::writer::DurablePack;
use crate::repository::Repository;
use crate::store::Listed;

/// Packs whose directories are in memory at once while a replica is filled.
const BATCH: usize = 64;

/// What bringing a replica up to date did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncStats {
    /// Packs whose directories were read.
    pub added_packs: u64,
    /// Packs that the replica knew and the store no longer has.
    pub vanished_packs: u64,
    /// Packs that could not be read; each was told to the monitor.
    pub unreadable_packs: u64,
}

/// Brings `index` up to date with the packs of `repository`.
///
/// Packs that vanished since make the whole replica be filled anew: what it says of them must not be believed. A pack
/// whose directory cannot be read is told to the monitor and passed over; what it holds is then not findable.
///
/// # Errors
/// `Unavailable` when the store cannot be listed; `Io` when the database cannot be written.
pub fn sync(mut index: Index, repository: &Repository, monitor: &dyn Monitor) -> Result<(Index, SyncStats)> {
    let listed = repository.store.list_packs()?;
    let vanished_packs = vanished(&index, &listed);
    if vanished_packs > 0 {
        index = index.clear(repository.config.id)?;
    }
    let stats = add_missing(&index, repository, listed, monitor)?;
    Ok((index, SyncStats { vanished_packs, ..stats }))
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

fn vanished(index: &Index, listed: &[Listed<PackId>]) -> u64 {
    let there = |pack: &PackId| listed.binary_search_by_key(pack, |listed| listed.id).is_ok();
    index.packs().iter().filter(|pack| !there(&pack.id)).count() as u64
}

fn read(repository: &Repository, pack: Listed<PackId>) -> Result<DurablePack> {
    let reader = PackReader::open(&repository.store, pack.id, pack.len, &repository.config, &repository.keys)
        .context(|| "cannot index a pack")?;
    Ok(DurablePack { id: pack.id, len: pack.len, content: reader.content(), directory: reader.directory().clone() })
}
