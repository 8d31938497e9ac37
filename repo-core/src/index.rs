//! The index: where each chunk and each manifest node stands. A cache in RocksDB; packs are the truth.
//!
//! RocksDB admits one process to a database, and several processes work on one repository. So the index is kept in
//! *replicas*: each process locks a free one, brings it up to date from the packs it lacks, and uses it alone
//! (docs/concurrency.md). Losing all of them loses nothing.

mod locks;
mod marks;
mod pack_table;
mod records;
mod replica;
mod states;
pub mod sync;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;
use rocksdb::{DB, Direction, IteratorMode, WriteBatch};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Error, ErrorKind, Result};
use crate::id::{EntryId, PackId, RepositoryId};
use crate::pack::Content;
use crate::pack::writer::DurablePack;
use pack_table::PackTable;

/// A pack's number within one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackNumber(u32);

#[cfg(test)]
impl PackNumber {
    pub(crate) fn for_test(number: u32) -> Self {
        Self(number)
    }
}

/// Where an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The pack.
    pub pack: PackNumber,
    /// The frame's position in the pack.
    pub frame: u16,
    /// The entry's position in the frame.
    pub slot: u16,
}

/// A pack the index knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownPack {
    /// Its name.
    pub id: PackId,
    /// Its length in bytes.
    pub len: u64,
    /// What its entries are.
    pub content: Content,
    /// How many entries it has; 0 once those of a pack that is gone were purged.
    pub entries: u32,
    /// Whether its entries may be used.
    pub state: PackState,
}

/// Whether a pack's entries may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackState {
    /// They may.
    Live,
    /// A tombstone names it: its entries may be read, but nothing new may rely on them.
    Condemned,
    /// The store no longer has it.
    Gone,
}

/// What a new look at the packs of the store changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateChanges {
    /// Packs that are gone and were condemned before.
    pub deleted: u64,
    /// Packs that are gone though nobody condemned them.
    pub vanished: u64,
}

/// One replica of the index, held by this process alone.
pub struct Index {
    db: DB,
    packs: RwLock<PackTable>,
    path: PathBuf,
    lookups: AtomicU64,
    /// Counted up whenever something that was found may have stopped counting.
    generation: AtomicU64,
    /// Whether this process listed all packs.
    listed: AtomicBool,
    /// Held for as long as the replica is in use.
    _lock: File,
}

/// Where the replica came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was there.
    Found,
    /// There was none.
    New,
    /// It was unreadable, of another repository or of another version, and was made anew.
    Replaced,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct StoredLocation {
    pack: U32,
    frame: U16,
    slot: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct StoredPack {
    id: [u8; 32],
    len: U64,
    content: u8,
    state: u8,
    entries: U32,
}

/// Column family of further places of entries that stand in more than one: id ‖ location.
const COPIES: &str = "copies";
/// Column family of tombstones that were read, by id.
const TOMBSTONES: &str = "tombstones";
/// Column family of snapshot records as they are stored, sealed, by id.
const RECORDS: &str = "records";
/// Column family of packs by number.
const PACKS: &str = "packs";
/// Column family of snapshots of which nothing is missing.
const COMPLETE: &str = "complete";
/// Column family of the ends of locks that were renewed, by the object's path.
const LOCKS: &str = "locks";
/// Column family with the one record that says whose replica this is.
const IDENTITY: &str = "identity";
/// Key of that record.
const IDENTITY_KEY: &[u8] = b"identity";
/// Counted up when what is stored here changes: a replica of another version is made anew.
const INDEX_VERSION: u8 = 6;

impl Index {
    /// Opens a free replica under `folder`, or makes one.
    ///
    /// # Errors
    /// `Io` when the folder cannot be written; `Locked` when all replicas are in use.
    pub fn open(folder: &Path, repository: RepositoryId) -> Result<(Self, Origin)> {
        let (lock, path) = replica::lock_free(folder)?;
        let existed = path.exists();
        if existed {
            match Self::open_database(&path, repository) {
                Ok(Some((db, packs))) => {
                    return Ok((Self::new(db, packs, path, lock), Origin::Found));
                }
                // Foreign, unreadable or of another version: a cache is made anew rather than mended.
                Ok(None) | Err(_) => replica::remove(&path)?,
            }
        }
        let db = replica::create(&path)?;
        let identity = identity(repository);
        db.put_cf(family(&db, IDENTITY), IDENTITY_KEY, identity).map_err(|error| database_error(&path, error))?;
        let origin = if existed { Origin::Replaced } else { Origin::New };
        Ok((Self::new(db, PackTable::default(), path, lock), origin))
    }

    fn new(db: DB, packs: PackTable, path: PathBuf, lock: File) -> Self {
        let (packs, lookups, generation) = (RwLock::new(packs), AtomicU64::new(0), AtomicU64::new(0));
        let listed = AtomicBool::new(false);
        Self { db, packs, path, lookups, generation, listed, _lock: lock }
    }

    fn open_database(path: &Path, repository: RepositoryId) -> Result<Option<(DB, PackTable)>> {
        let db = replica::create(path)?;
        let found = db.get_cf(family(&db, IDENTITY), IDENTITY_KEY).map_err(|error| database_error(path, error))?;
        if found.as_deref() != Some(&identity(repository)[..]) {
            return Ok(None);
        }
        let mut table = PackTable::default();
        for item in db.iterator_cf(family(&db, PACKS), IteratorMode::Start) {
            let (key, value) = item.map_err(|error| database_error(path, error))?;
            let number = key.first_chunk().map(|key| u32::from_be_bytes(*key));
            if number != Some(table.next().0) {
                return Ok(None);
            }
            let Some(pack) = StoredPack::read_from_bytes(&value).ok().and_then(|stored| stored.known()) else {
                return Ok(None);
            };
            table.push(pack);
        }
        Ok(Some((db, table)))
    }

    /// Makes this replica empty.
    ///
    /// # Errors
    /// `Io`.
    pub fn clear(self, repository: RepositoryId) -> Result<Self> {
        let Self { db, path, _lock, .. } = self;
        drop(db);
        replica::remove(&path)?;
        let db = replica::create(&path)?;
        db.put_cf(family(&db, IDENTITY), IDENTITY_KEY, identity(repository))
            .map_err(|error| database_error(&path, error))?;
        Ok(Self::new(db, PackTable::default(), path, _lock))
    }

    /// Where each of `ids` stands, in their order; `None` for what is not stored. Of several places the best: one in a
    /// live pack before one in a condemned pack.
    ///
    /// # Errors
    /// `Io` when the database cannot be read.
    pub fn find(&self, ids: &[EntryId]) -> Result<Vec<Option<Location>>> {
        self.lookups.fetch_add(ids.len() as u64, Ordering::Relaxed);
        let mut order: Vec<u32> = (0..u32::try_from(ids.len()).expect("look-ups come in small batches")).collect();
        order.sort_unstable_by_key(|at| ids[*at as usize]);
        let keys = order.iter().map(|at| &ids[*at as usize].0);
        let found = self.db.batched_multi_get_cf(self.entries(), keys, true);
        let mut locations = vec![None; ids.len()];
        let packs = self.packs.read();
        for (at, value) in order.into_iter().zip(found) {
            let Some(value) = value.map_err(|error| database_error(&self.path, error))? else { continue };
            let first = self.location(&packs, &value)?;
            locations[at as usize] = match packs.get(first.pack).state {
                PackState::Live => Some(first),
                _ => self.best_place(&packs, ids[at as usize], first)?,
            };
        }
        Ok(locations)
    }

    /// The best of all places of an entry. Of several in condemned packs it is that in the pack of the lowest name: all
    /// replicas choose alike, so that two collections at once do not each delete the copy that the other one keeps.
    fn best_place(&self, packs: &PackTable, id: EntryId, first: Location) -> Result<Option<Location>> {
        let mut best: Option<Location> = None;
        for place in std::iter::once(first).chain(self.copies_of(packs, id)?) {
            let pack = packs.get(place.pack);
            match pack.state {
                PackState::Live => return Ok(Some(place)),
                PackState::Condemned if best.is_none_or(|best| pack.id < packs.get(best.pack).id) => best = Some(place),
                PackState::Condemned | PackState::Gone => {}
            }
        }
        Ok(best)
    }

    /// The further places of an entry.
    fn copies_of(&self, packs: &PackTable, id: EntryId) -> Result<Vec<Location>> {
        let copies = family(&self.db, COPIES);
        let mut places = Vec::new();
        for item in self.db.iterator_cf(copies, IteratorMode::From(&id.0, Direction::Forward)) {
            let (key, _) = item.map_err(|error| database_error(&self.path, error))?;
            let Some(place) = key.strip_prefix(&id.0) else { break };
            places.push(self.location(packs, place)?);
        }
        Ok(places)
    }

    fn location(&self, packs: &PackTable, value: &[u8]) -> Result<Location> {
        let stored = StoredLocation::read_from_bytes(value)
            .map_err(|_| self.damaged(&format!("a location has {} bytes", value.len())))?;
        let pack = PackNumber(stored.pack.get());
        if pack >= packs.next() {
            return Err(self.damaged(&format!("a location names pack number {}", pack.0)));
        }
        Ok(Location { pack, frame: stored.frame.get(), slot: stored.slot.get() })
    }

    /// Ids that stand in several places.
    ///
    /// # Errors
    /// `Io` when the database cannot be read.
    pub fn ids_with_copies(&self) -> Result<BTreeSet<EntryId>> {
        let mut ids = BTreeSet::new();
        for item in self.db.iterator_cf(family(&self.db, COPIES), IteratorMode::Start) {
            let (key, _) = item.map_err(|error| database_error(&self.path, error))?;
            ids.extend(key.first_chunk().map(|id| EntryId(*id)));
        }
        Ok(ids)
    }

    fn damaged(&self, what: &str) -> Error {
        Error::new(ErrorKind::Io, format!("index {} is damaged: {what}", self.path.display()))
    }

    /// Makes a durable pack's entries findable.
    ///
    /// # Errors
    /// `Io` when the database cannot be written.
    pub fn insert(&self, pack: &DurablePack) -> Result<()> {
        let mut packs = self.packs.write();
        if packs.number_of(pack.id).is_some() {
            return Ok(());
        }
        let number = packs.next();
        let small = |value: usize| U16::new(u16::try_from(value).expect("a directory's counts are bounded"));
        let mut batch = WriteBatch::default();
        for (frame_at, frame) in pack.directory.frames().iter().enumerate() {
            let entries = pack.directory.entries_of(frame);
            let ids: Vec<EntryId> = entries.iter().map(|entry| entry.id).collect();
            for (slot, (id, first)) in ids.iter().zip(self.first_places(&packs, &ids)?).enumerate() {
                let place = StoredLocation { pack: number.0.into(), frame: small(frame_at), slot: small(slot) };
                self.add_place(&mut batch, &packs, *id, first, &place);
            }
        }
        let entries = u32::try_from(pack.directory.entries().len()).expect("a pack has fewer than 2^32 entries");
        let (content, state) = (pack.content, PackState::Live);
        let known = KnownPack { id: pack.id, len: pack.len, content, entries, state };
        batch.put_cf(family(&self.db, PACKS), number.0.to_be_bytes(), StoredPack::new(&known).as_bytes());
        // The log makes a batch survive a killed process; a power cut may lose it, and the pack is then read again.
        self.db.write(batch).map_err(|error| database_error(&self.path, error))?;
        packs.push(known);
        Ok(())
    }

    /// Where each of `ids` stands according to the main family alone.
    fn first_places(&self, packs: &PackTable, ids: &[EntryId]) -> Result<Vec<Option<Location>>> {
        let found = self.db.batched_multi_get_cf(self.entries(), ids.iter().map(|id| &id.0), false);
        found
            .into_iter()
            .map(|value| {
                let value = value.map_err(|error| database_error(&self.path, error))?;
                value.map(|value| self.location(packs, &value)).transpose()
            })
            .collect()
    }

    /// Adds a place of an entry in a live pack. The main family has the entry's first place in a live pack.
    fn add_place(
        &self,
        batch: &mut WriteBatch,
        packs: &PackTable,
        id: EntryId,
        first: Option<Location>,
        place: &StoredLocation,
    ) {
        let copies = family(&self.db, COPIES);
        match first.map(|first| (first, packs.get(first.pack).state)) {
            Some((_, PackState::Live)) => {
                batch.put_cf(copies, copy_key(id, place), []);
                return;
            }
            Some((first, PackState::Condemned)) => batch.put_cf(copies, copy_key(id, &first.into()), []),
            Some((_, PackState::Gone)) | None => {}
        }
        batch.put_cf(self.entries(), id.0, place.as_bytes());
    }

    fn entries(&self) -> &rocksdb::ColumnFamily {
        family(&self.db, rocksdb::DEFAULT_COLUMN_FAMILY_NAME)
    }

    /// A pack by its number.
    pub fn pack(&self, number: PackNumber) -> KnownPack {
        *self.packs.read().get(number)
    }

    /// The number of a pack that is not gone.
    pub fn number_of(&self, id: PackId) -> Option<PackNumber> {
        self.packs.read().number_of(id)
    }

    /// Whether a pack is known, and neither condemned nor gone as far as is known.
    pub fn is_live(&self, id: PackId) -> bool {
        let packs = self.packs.read();
        packs.number_of(id).is_some_and(|number| packs.get(number).state == PackState::Live)
    }

    /// The packs that are not gone.
    pub fn packs(&self) -> Vec<KnownPack> {
        self.packs.read().iter().filter(|pack| pack.state != PackState::Gone).copied().collect()
    }

    /// Differs from an earlier answer when, in between, something that was found may have stopped counting: packs were
    /// condemned or are gone.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Ids that the database was asked for so far: what prefetching saves shows here.
    pub fn lookup_count(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }

    /// The replica's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl StoredPack {
    fn new(pack: &KnownPack) -> Self {
        let state = match pack.state {
            PackState::Live => 0,
            PackState::Condemned => 1,
            PackState::Gone => 2,
        };
        let content = pack.content.number();
        Self { id: pack.id.0, len: pack.len.into(), content, state, entries: pack.entries.into() }
    }

    fn known(&self) -> Option<KnownPack> {
        let state = match self.state {
            0 => PackState::Live,
            1 => PackState::Condemned,
            2 => PackState::Gone,
            _ => return None,
        };
        let content = Content::from_number(self.content).ok()?;
        Some(KnownPack { id: PackId(self.id), len: self.len.get(), content, entries: self.entries.get(), state })
    }
}

impl From<Location> for StoredLocation {
    fn from(location: Location) -> Self {
        Self { pack: location.pack.0.into(), frame: location.frame.into(), slot: location.slot.into() }
    }
}

fn copy_key(id: EntryId, place: &StoredLocation) -> Vec<u8> {
    [&id.0[..], place.as_bytes()].concat()
}

fn identity(repository: RepositoryId) -> [u8; 17] {
    let mut identity = [INDEX_VERSION; 17];
    identity[1..].copy_from_slice(repository.as_bytes());
    identity
}

fn family<'db>(db: &'db DB, name: &str) -> &'db rocksdb::ColumnFamily {
    db.cf_handle(name).expect("all families are made when the database is opened")
}

fn database_error(path: &Path, error: rocksdb::Error) -> Error {
    Error::with_source(ErrorKind::Io, format!("index {} failed", path.display()), error)
}

#[cfg(test)]
mod tests;
