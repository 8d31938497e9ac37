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
    take_in_packs(index, repository, condemned, monitor)
}

fn take_in_packs(
    index: &Index,
    repository: &Repository,
    mut condemned: BTreeSet<PackId>,
    monitor: &dyn Monitor,
) -> Result<SyncStats> {
    let known = index.known_count();
    let listed = repository.store.pack_ids()?;
    if index.misses_a_pack(known, &listed, &condemned) {
        // Without a lease a pack may have been condemned and deleted between the two looks: nothing is wrong then.
        condemned.append(&mut condemned_packs(index, repository, monitor)?);
    }
    let changes = index.set_states(known, &listed, &condemned)?;
    let stats = add_missing(index, repository, &listed, monitor)?;
    if stats.added_packs > 0 && !condemned.is_empty() {
        // New packs may be condemned ones that this replica had never seen.
        let known = index.known_count();
        index.set_states(known, &repository.store.pack_ids()?, &condemned)?;
    }
    if changes.vanished > 0 {
        let text =
            format!("{} packs that the index knew are gone from the repository: run cairn check", changes.vanished);
        monitor.warn(&text);
    }
    Ok(SyncStats { vanished_packs: changes.vanished, ..stats })
}

/// The packs that tombstones name. From a tombstone that is new to this replica it follows that snapshots which it did
/// not consider may need condemned packs: they no longer count as complete.
fn condemned_packs(index: &Index, repository: &Repository, monitor: &dyn Monitor) -> Result<BTreeSet<PackId>> {
    'listing: loop {
        let ids: BTreeSet<_> = repository.store.tombstone_ids()?.into_iter().collect();
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
    listed: &[PackId],
    monitor: &dyn Monitor,
) -> Result<SyncStats> {
    let mut stats = SyncStats::default();
    let missing: Vec<PackId> = listed.iter().copied().filter(|pack| index.number_of(*pack).is_none()).collect();
    if missing.len() > BATCH {
        // Directories grow with their packs, and a pack's length is known only once it is opened.
        monitor.begin("reading pack directories", Some(missing.len() as u64 * u64::from(repository.config.pack_len)));
    }
    for batch in missing.chunks(BATCH) {
        let opened: Vec<_> = batch.par_iter().map(|pack| read(repository, *pack)).collect();
        for opened in opened {
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
                monitor.advance(u64::from(repository.config.pack_len));
            }
        }
    }
    if missing.len() > BATCH {
        monitor.end();
    }
    Ok(stats)
}

fn read(repository: &Repository, id: PackId) -> Result<DurablePack> {
    let Repository { store, config, keys, .. } = repository;
    let (reader, len) = PackReader::open_unknown(store, id, config, keys).context(|| "cannot index a pack")?;
    Ok(DurablePack { id, len, content: reader.content(), directory: reader.directory().clone() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::entropy::Entropy;
    use crate::id::EntryId;
    use crate::keys::slot::Unlock;
    use crate::monitor::Silent;
    use crate::pack::directory::Entry;
    use crate::pack::writer::PackWriter;
    use crate::pack::{Content, PackCipher};
    use crate::repository::InitOptions;
    use crate::seal::Suite;
    use crate::store::{ObjectName, Store};

    fn pack_with(repository: &Repository, entry: u8) -> DurablePack {
        let Repository { store, config, keys, entropy, .. } = repository;
        let cipher = Arc::new(PackCipher::create(Content::Data, config, keys, entropy).unwrap());
        let mut writer = PackWriter::create(cipher.clone(), store).unwrap();
        let entry = Entry { id: EntryId([entry; 32]), len: 4096 };
        writer.append(&cipher.seal_frame(0, &[entry.id.0[0]; 4096], 1).unwrap(), &[entry]).unwrap();
        writer.finish().unwrap()
    }

    /// It was taken for a loss: opening a repository during a collection warned of packs that are gone.
    #[test]
    fn a_pack_condemned_and_deleted_between_two_looks_is_not_missed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create_local(&folder.path().join("r")).unwrap();
        let options = InitOptions::new(Suite::None, 0);
        let repository = Repository::create(store, &options, &Unlock::Open, "", Entropy::system()).unwrap();
        let (index, _) = Index::open(&folder.path().join("index"), repository.config.id).unwrap();
        let [condemned, lost, _kept] = [1, 2, 3].map(|entry| pack_with(&repository, entry).id);
        assert_eq!(sync(&index, &repository, &Silent).unwrap().added_packs, 3);

        let look = condemned_packs(&index, &repository, &Silent).unwrap();
        let packs = BTreeSet::from([condemned]);
        tombstone::put(&repository, &Tombstone { created_ms: 1, packs, stage: Stage::Deleted }).unwrap();
        repository.store.delete(ObjectName::Pack(condemned)).unwrap();
        assert_eq!(take_in_packs(&index, &repository, look.clone(), &Silent).unwrap().vanished_packs, 0);
        // A pack that nobody condemned is.
        repository.store.delete(ObjectName::Pack(lost)).unwrap();
        assert_eq!(take_in_packs(&index, &repository, look, &Silent).unwrap().vanished_packs, 1);
    }
}
