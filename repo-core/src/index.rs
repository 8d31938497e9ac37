//! The index: where each chunk and each manifest node stands. A cache in RocksDB; packs are the truth.
//!
//! RocksDB admits one process to a database, and several processes work on one repository. So the index is kept in
//! *replicas*: each process locks a free one, brings it up to date from the packs it lacks, and uses it alone
//! (docs/concurrency.md). Losing all of them loses nothing.

mod replica;
pub mod sync;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use rocksdb::{DB, IteratorMode, WriteBatch};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Error, ErrorKind, Result};
use crate::id::{EntryId, PackId, RepositoryId, SnapshotId};
use crate::pack::Content;
use crate::pack::writer::DurablePack;

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
}

/// One replica of the index, held by this process alone.
pub struct Index {
    db: DB,
    packs: RwLock<PackTable>,
    path: PathBuf,
    lookups: AtomicU64,
    /// Held for as long as the replica is in use.
    _lock: File,
}

#[derive(Default)]
struct PackTable {
    by_number: Vec<KnownPack>,
    by_id: HashMap<PackId, PackNumber>,
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
}

/// Column family of packs by number.
const PACKS: &str = "packs";
/// Column family of snapshots of which nothing is missing.
const COMPLETE: &str = "complete";
/// Column family with the one record that says whose replica this is.
const IDENTITY: &str = "identity";
/// Key of that record.
const IDENTITY_KEY: &[u8] = b"identity";
/// Counted up when what is stored here changes: a replica of another version is made anew.
const INDEX_VERSION: u8 = 2;

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
                    let lookups = AtomicU64::new(0);
                    return Ok((Self { db, packs: RwLock::new(packs), path, lookups, _lock: lock }, Origin::Found));
                }
                // Foreign, unreadable or of another version: a cache is made anew rather than mended.
                Ok(None) | Err(_) => replica::remove(&path)?,
            }
        }
        let db = replica::create(&path)?;
        let identity = identity(repository);
        db.put_cf(family(&db, IDENTITY), IDENTITY_KEY, identity).map_err(|error| database_error(&path, error))?;
        let origin = if existed { Origin::Replaced } else { Origin::New };
        Ok((Self { db, packs: RwLock::default(), path, lookups: AtomicU64::new(0), _lock: lock }, origin))
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
            let Ok(stored) = StoredPack::read_from_bytes(&value) else { return Ok(None) };
            let Ok(content) = Content::from_number(stored.content) else { return Ok(None) };
            table.push(KnownPack { id: PackId(stored.id), len: stored.len.get(), content });
        }
        Ok(Some((db, table)))
    }

    /// Makes this replica empty.
    ///
    /// # Errors
    /// `Io`.
    pub fn clear(self, repository: RepositoryId) -> Result<Self> {
        let Self { db, path, lookups, _lock, .. } = self;
        drop(db);
        replica::remove(&path)?;
        let db = replica::create(&path)?;
        db.put_cf(family(&db, IDENTITY), IDENTITY_KEY, identity(repository))
            .map_err(|error| database_error(&path, error))?;
        Ok(Self { db, packs: RwLock::default(), path, lookups, _lock })
    }

    /// Where each of `ids` stands, in their order; `None` for what is not stored.
    ///
    /// # Errors
    /// `Io` when the database cannot be read.
    pub fn find(&self, ids: &[EntryId]) -> Result<Vec<Option<Location>>> {
        self.lookups.fetch_add(ids.len() as u64, Ordering::Relaxed);
        let mut order: Vec<u32> = (0..u32::try_from(ids.len()).expect("look-ups come in small batches")).collect();
        order.sort_unstable_by_key(|at| ids[*at as usize]);
        let entries = family(&self.db, rocksdb::DEFAULT_COLUMN_FAMILY_NAME);
        let keys = order.iter().map(|at| &ids[*at as usize].0);
        let found = self.db.batched_multi_get_cf(entries, keys, true);
        let mut locations = vec![None; ids.len()];
        for (at, value) in order.into_iter().zip(found) {
            let value = value.map_err(|error| database_error(&self.path, error))?;
            locations[at as usize] = value.map(|value| self.location(&value)).transpose()?;
        }
        Ok(locations)
    }

    fn location(&self, value: &[u8]) -> Result<Location> {
        let stored = StoredLocation::read_from_bytes(value)
            .map_err(|_| self.damaged(&format!("a location has {} bytes", value.len())))?;
        let pack = PackNumber(stored.pack.get());
        if pack >= self.packs.read().next() {
            return Err(self.damaged(&format!("a location names pack number {}", pack.0)));
        }
        Ok(Location { pack, frame: stored.frame.get(), slot: stored.slot.get() })
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
        if packs.by_id.contains_key(&pack.id) {
            return Ok(());
        }
        let number = packs.next();
        let small = |value: usize| U16::new(u16::try_from(value).expect("a directory's counts are bounded"));
        let mut batch = WriteBatch::default();
        for (frame_at, frame) in pack.directory.frames().iter().enumerate() {
            for (slot, entry) in pack.directory.entries_of(frame).iter().enumerate() {
                let stored = StoredLocation { pack: number.0.into(), frame: small(frame_at), slot: small(slot) };
                batch.put(entry.id.0, stored.as_bytes());
            }
        }
        let stored = StoredPack { id: pack.id.0, len: pack.len.into(), content: pack.content.number() };
        batch.put_cf(family(&self.db, PACKS), number.0.to_be_bytes(), stored.as_bytes());
        // The log makes a batch survive a killed process; a power cut may lose it, and the pack is then read again.
        self.db.write(batch).map_err(|error| database_error(&self.path, error))?;
        packs.push(KnownPack { id: pack.id, len: pack.len, content: pack.content });
        Ok(())
    }

    /// Whether every chunk and node of a snapshot was found here once. Nothing is ever dropped but all at once, so it
    /// still is.
    ///
    /// # Errors
    /// `Io` when the database cannot be read.
    pub fn is_complete(&self, snapshot: SnapshotId) -> Result<bool> {
        let found = self.db.get_cf(family(&self.db, COMPLETE), snapshot.0);
        Ok(found.map_err(|error| database_error(&self.path, error))?.is_some())
    }

    /// Notes that every chunk and node of a snapshot was found here.
    ///
    /// # Errors
    /// `Io` when the database cannot be written.
    pub fn mark_complete(&self, snapshot: SnapshotId) -> Result<()> {
        let marked = self.db.put_cf(family(&self.db, COMPLETE), snapshot.0, []);
        marked.map_err(|error| database_error(&self.path, error))
    }

    /// A pack by its number.
    pub fn pack(&self, number: PackNumber) -> KnownPack {
        self.packs.read().by_number[number.0 as usize]
    }

    /// The number of a pack.
    pub fn number_of(&self, id: PackId) -> Option<PackNumber> {
        self.packs.read().by_id.get(&id).copied()
    }

    /// All packs the index knows.
    pub fn packs(&self) -> Vec<KnownPack> {
        self.packs.read().by_number.clone()
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

impl PackTable {
    fn next(&self) -> PackNumber {
        PackNumber(u32::try_from(self.by_number.len()).expect("there are far fewer than 2^32 packs"))
    }

    fn push(&mut self, pack: KnownPack) {
        self.by_id.insert(pack.id, self.next());
        self.by_number.push(pack);
    }
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
mod tests {
    use super::*;
    use crate::frame::Codec;
    use crate::pack::FrameRecord;
    use crate::pack::directory::{Directory, Entry};

    const REPOSITORY: RepositoryId = RepositoryId([1; 16]);

    fn pack(id: u8, entries: &[u8]) -> DurablePack {
        let mut directory = Directory::new(64);
        for entry in entries {
            let record = FrameRecord { sealed_len: 20, plain_len: 4, entry_count: 1, codec: Codec::Stored };
            directory.push(record, &[Entry { id: EntryId([*entry; 32]), len: 4 }]);
        }
        DurablePack { id: PackId([id; 32]), len: 1000, content: Content::Data, directory }
    }

    fn id(byte: u8) -> EntryId {
        EntryId([byte; 32])
    }

    #[test]
    fn what_was_inserted_is_found_also_after_opening_again() {
        let folder = tempfile::tempdir().unwrap();
        let (index, origin) = Index::open(folder.path(), REPOSITORY).unwrap();
        assert_eq!(origin, Origin::New);
        index.insert(&pack(1, &[5, 9])).unwrap();
        index.insert(&pack(2, &[7])).unwrap();
        drop(index);
        let (index, origin) = Index::open(folder.path(), REPOSITORY).unwrap();
        assert_eq!(origin, Origin::Found);
        let found = index.find(&[id(9), id(1), id(7), id(5), id(9)]).unwrap();
        let frames: Vec<_> = found.iter().map(|found| found.map(|found| (found.pack.0, found.frame))).collect();
        assert_eq!(frames, [Some((0, 1)), None, Some((1, 0)), Some((0, 0)), Some((0, 1))]);
        assert_eq!(index.number_of(PackId([2; 32])), Some(PackNumber(1)));
    }

    #[test]
    fn two_users_at_once_get_a_replica_each_and_a_free_one_is_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let (first, _) = Index::open(folder.path(), REPOSITORY).unwrap();
        let (second, origin) = Index::open(folder.path(), REPOSITORY).unwrap();
        assert_eq!(origin, Origin::New);
        assert_ne!(first.path(), second.path());
        let path = first.path().to_owned();
        drop(first);
        let (third, origin) = Index::open(folder.path(), REPOSITORY).unwrap();
        assert_eq!((third.path(), origin), (path.as_path(), Origin::Found));
    }

    #[test]
    fn a_foreign_or_broken_replica_is_replaced_by_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let (index, _) = Index::open(folder.path(), REPOSITORY).unwrap();
        index.insert(&pack(1, &[5])).unwrap();
        let path = index.path().to_owned();
        drop(index);
        let (index, origin) = Index::open(folder.path(), RepositoryId([2; 16])).unwrap();
        assert_eq!(origin, Origin::Replaced);
        assert_eq!(index.find(&[id(5)]).unwrap(), [None]);
        drop(index);
        std::fs::write(path.join("CURRENT"), b"nonsense").unwrap();
        let (_, origin) = Index::open(folder.path(), RepositoryId([2; 16])).unwrap();
        assert_eq!(origin, Origin::Replaced);
    }
}
