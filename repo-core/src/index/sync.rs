//! Bringing a replica up to date from the packs, which are the truth.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use crate::error::{ErrorKind, Result, ResultExt};
use crate::id::{PackId, TombstoneName};
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

/// Brings `index` up to date with the tombstones and packs of `repository`, all of which are listed.
///
/// What stands in packs that are gone is not found any more. A pack whose directory cannot be read is told to the monitor
/// and passed over; what it holds is then not findable.
///
/// # Errors
/// `Unavailable` when the store cannot be listed; `Io` when the database cannot be written.
pub fn sync(index: &Index, repository: &Repository, monitor: &dyn Monitor) -> Result<SyncStats> {
    // Tombstones first: a pack that is condemned later is not deleted while this process holds a lease.
    let tombstones = read_tombstones(index, repository, repository.catalog()?.tombstones, monitor)?;
    take_in_packs(index, repository, tombstones, monitor)
}

/// Brings `index` up to date without a listing of packs: with those that tombstones, all that were listed, and snapshot
/// records name. `false` when they do not tell everything: then nothing but a listing does ([`sync`]).
///
/// The chain of tombstones tells what became of packs. It has a gap when this replica is new, when it slept until
/// tombstones were dropped that it never saw, and when one cannot be read.
///
/// # Errors
/// `Unavailable`; `Io` when the database fails.
pub fn sync_as_told(
    index: &Index,
    repository: &Repository,
    listed: Vec<TombstoneName>,
    named: impl Iterator<Item = PackId>,
    monitor: &dyn Monitor,
) -> Result<bool> {
    let Some(seen) = index.seen_serial()? else { return Ok(false) };
    if !can_follow(index, seen, &listed)? {
        return Ok(false);
    }
    let told = read_tombstones(index, repository, listed, monitor)?;
    if told.unreadable {
        return Ok(false);
    }
    index.set_states_as_told(&told.condemned, &told.deleted)?;
    let new = index.never_met(named.chain(told.written.iter().copied()));
    let packs: Vec<PackId> = new.iter().copied().filter(|pack| !told.deleted.contains(pack)).collect();
    let added = add_missing(index, repository, &packs, monitor)?;
    if added.unreadable_packs == 0 {
        index.note_gone(new)?;
    }
    if added.added_packs > 0 && !told.condemned.is_empty() {
        index.set_states_as_told(&told.condemned, &told.deleted)?;
    }
    index.set_seen_serial(told.serial.max(seen))?;
    Ok(true)
}

/// Whether no tombstone was dropped that this replica never saw, or whose end it did not see.
fn can_follow(index: &Index, seen: u64, listed: &[TombstoneName]) -> Result<bool> {
    let serials: BTreeSet<u64> = listed.iter().map(|name| name.serial).collect();
    // The newest one is never dropped.
    if serials.first().map_or(seen != 0, |first| *first > seen + 1) {
        return Ok(false);
    }
    for name in index.known_tombstones()?.into_iter().filter(|name| !serials.contains(&name.serial)) {
        let known = index.known_tombstone(name)?.map(|bytes| Tombstone::decode(&bytes)).transpose()?;
        if known.is_none_or(|known| known.stage != Stage::Deleted) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn take_in_packs(index: &Index, repository: &Repository, mut told: Told, monitor: &dyn Monitor) -> Result<SyncStats> {
    let known = index.known_count();
    let listed = repository.store.pack_ids()?;
    if index.misses_a_pack(known, &listed, &told.dead()) {
        // Without a lease a pack may have been condemned and deleted between the two looks: nothing is wrong then.
        let again = read_tombstones(index, repository, repository.catalog()?.tombstones, monitor)?;
        told.condemned.extend(again.condemned);
        told.deleted.extend(again.deleted);
    }
    let condemned = told.dead();
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
    index.set_seen_serial(told.serial)?;
    index.listed.store(true, Ordering::Relaxed);
    Ok(SyncStats { vanished_packs: changes.vanished, ..stats })
}

/// What tombstones say of packs.
#[derive(Debug, Clone, Default)]
struct Told {
    condemned: BTreeSet<PackId>,
    deleted: BTreeSet<PackId>,
    written: BTreeSet<PackId>,
    /// The highest serial.
    serial: u64,
    /// Whether one could not be read.
    unreadable: bool,
}

impl Told {
    /// Condemned or gone.
    fn dead(&self) -> BTreeSet<PackId> {
        self.condemned.union(&self.deleted).copied().collect()
    }
}

/// Reads the tombstones that were listed; or that are there now, where one of them is not any more. From a tombstone that is new
/// to this replica it follows that snapshots which it did not consider may need condemned packs: they no longer count as
/// complete.
fn read_tombstones(
    index: &Index,
    repository: &Repository,
    mut listed: Vec<TombstoneName>,
    monitor: &dyn Monitor,
) -> Result<Told> {
    'listing: loop {
        let mut told = Told { serial: listed.iter().map(|name| name.serial).max().unwrap_or(0), ..Told::default() };
        for name in &listed {
            let tombstone = match index.known_tombstone(*name)? {
                Some(known) => Tombstone::decode(&known)?,
                None => match tombstone::read(repository, *name) {
                    Ok(tombstone) => {
                        learn(index, *name, &tombstone)?;
                        tombstone
                    }
                    // Replaced by another one since it was listed: which one, the next listing tells.
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        listed = repository.catalog()?.tombstones;
                        continue 'listing;
                    }
                    // Nothing is deleted on the word of a tombstone that cannot be read.
                    Err(error) if error.is_damage() => {
                        monitor.damage(&error);
                        told.unreadable = true;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            told.written.extend(tombstone.written);
            match tombstone.stage {
                Stage::Announced { .. } => told.condemned.extend(tombstone.packs),
                Stage::Deleted => told.deleted.extend(tombstone.packs),
            }
        }
        index.retain_tombstones(&listed.iter().copied().collect())?;
        return Ok(told);
    }
}

fn learn(index: &Index, name: TombstoneName, tombstone: &Tombstone) -> Result<()> {
    match &tombstone.stage {
        Stage::Announced { considered, .. } => index.unmark_complete(considered)?,
        // This replica slept through all of it.
        Stage::Deleted if tombstone.packs.iter().any(|pack| index.is_live(*pack)) => {
            index.unmark_complete(&BTreeSet::new())?;
        }
        Stage::Deleted => {}
    }
    index.learn_tombstone(name, &tombstone.encode())
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
        let opened: Vec<_> = repository.store.each(batch, |pack| read(repository, *pack));
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

        let look = read_tombstones(&index, &repository, Vec::new(), &Silent).unwrap();
        let packs = BTreeSet::from([condemned]);
        let tombstone = Tombstone { serial: 1, packs, stage: Stage::Deleted, ..Tombstone::default() };
        tombstone::put(&repository, &tombstone).unwrap();
        repository.store.delete(ObjectName::Pack(condemned)).unwrap();
        assert_eq!(take_in_packs(&index, &repository, look.clone(), &Silent).unwrap().vanished_packs, 0);
        // A pack that nobody condemned is.
        repository.store.delete(ObjectName::Pack(lost)).unwrap();
        assert_eq!(take_in_packs(&index, &repository, look, &Silent).unwrap().vanished_packs, 1);
    }
}
