//! Snapshot records: the only commit point (docs/format.md §9).

use std::collections::BTreeMap;

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::id::{NodeId, PackId, RepositoryId, SnapshotId};
use crate::index::Index;
use crate::manifest::Tree;
use crate::object::ObjectKind;
use crate::record::{self, RecordKind};
use crate::remarks::Remarks;
use crate::repository::Repository;
use crate::store::ObjectName;
use crate::units::VIRTUAL_SIZE_MAX;

/// The largest record a reader takes, in bytes: VM metadata and the pack list of a backup of hundreds of TiB fit.
pub const RECORD_LEN_MAX: u64 = 256 * 1024 * 1024;

const KIND: RecordKind =
    RecordKind { object: ObjectKind::Snapshot, key_context: "cairn v1 snapshot key", len_max: RECORD_LEN_MAX };

/// One committed backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The moment the disks' content stands for, in milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// When it was committed, in milliseconds since the Unix epoch.
    pub committed_ms: i64,
    /// The VM's name.
    pub vm: Option<String>,
    /// The disks, at least one.
    pub disks: Vec<Disk>,
    /// Packs that this backup wrote or found chunks in.
    pub packs: Vec<PackId>,
    /// What the backup added.
    pub stats: SnapshotStats,
    /// The program that wrote it.
    pub program: String,
    /// VM metadata, as given by the caller.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// What was said of it when it was made. Annotations, if there are any, say what holds now.
    pub remarks: Remarks,
    /// Where the snapshot was made, when a sync stored it anew from a repository with other keys.
    pub origin: Option<SnapshotOrigin>,
}

/// Where a snapshot was made. It stays the same from sync to sync, so that a snapshot is known again wherever it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotOrigin {
    /// The repository.
    pub repository: RepositoryId,
    /// Its name there.
    pub snapshot: SnapshotId,
}

/// One disk of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The VDI's identity, chosen by the user.
    pub vdi: String,
    /// Its content.
    pub tree: Tree,
    /// The format it was read from.
    pub source_format: String,
    /// Its non-zero pages, in bytes.
    pub allocated_bytes: u64,
    /// The snapshot it was compared with; the base, when the source was a delta.
    pub parent: Option<SnapshotId>,
    /// How much was read.
    pub reading: DiskReading,
    /// The id of the image it was read from, where such ids last: a delta against that image names it.
    pub source_id: Option<[u8; 16]>,
}

/// How much of a disk a backup had to read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DiskReading {
    /// Whether the source held only what differs from the base.
    #[n(0)]
    pub delta: bool,
    /// Blocks the source delivered, in bytes.
    #[n(1)]
    pub read_bytes: u64,
    /// Blocks of the disk that differ from the snapshot it was compared with, in bytes: 2 MiB for each that a diff of the two
    /// names, also those that had content there and are zeros now, delivered or not. Without a parent, all with content.
    #[n(2)]
    pub changed_bytes: u64,
}

/// What a backup added to the repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SnapshotStats {
    /// Plaintext of chunks stored anew, in bytes.
    #[n(0)]
    pub new_bytes: u64,
    /// Chunks stored anew.
    #[n(1)]
    pub new_chunks: u64,
    /// Packs written, in bytes.
    #[n(2)]
    pub pack_bytes: u64,
}

/// A snapshot with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSnapshot {
    /// The name.
    pub id: SnapshotId,
    /// The record's length in bytes.
    pub len: u64,
    /// The record.
    pub snapshot: Snapshot,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct StoredSnapshot {
    #[n(0)]
    time_ms: i64,
    #[n(1)]
    committed_ms: i64,
    #[n(2)]
    vm: Option<String>,
    #[n(3)]
    disks: Vec<StoredDisk>,
    #[n(4)]
    packs: ByteVec,
    #[n(5)]
    stats: SnapshotStats,
    #[n(6)]
    program: String,
    #[n(7)]
    metadata: Option<BTreeMap<String, ByteVec>>,
    #[n(8)]
    tags: Option<Vec<String>>,
    #[n(9)]
    note: Option<String>,
    #[n(10)]
    protected: Option<bool>,
    #[n(11)]
    origin: Option<StoredOrigin>,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct StoredOrigin {
    #[n(0)]
    repository: ByteArray<16>,
    #[n(1)]
    snapshot: ByteArray<32>,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct StoredDisk {
    #[n(0)]
    vdi: String,
    #[n(1)]
    virtual_size: u64,
    #[n(2)]
    root: ByteArray<32>,
    #[n(3)]
    source_format: String,
    #[n(4)]
    allocated_bytes: u64,
    #[n(5)]
    parent: Option<ByteArray<32>>,
    #[n(6)]
    reading: Option<DiskReading>,
    #[n(7)]
    source_id: Option<ByteArray<16>>,
}

impl NamedSnapshot {
    /// The unique id that images of a disk of this snapshot carry: always the same, so that a differencing VHD finds its
    /// parent among them. A UUID of version 8 (RFC 9562, section 5.8).
    pub fn image_id(&self, vdi: &str) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_derive_key("cairn v1 image id");
        let mut id = [0; 16];
        hasher.update(&self.id.0).update(vdi.as_bytes()).finalize_xof().fill(&mut id);
        id[6] = id[6] & 0x0F | 0x80;
        id[8] = id[8] & 0x3F | 0x80;
        id
    }
}

impl Snapshot {
    /// The disk of a VDI, if the snapshot has it.
    pub fn disk(&self, vdi: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.vdi == vdi)
    }

    /// The record's CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let metadata: BTreeMap<_, _> =
            self.metadata.iter().map(|(name, bytes)| (name.clone(), ByteVec::from(bytes.clone()))).collect();
        let stored = StoredSnapshot {
            time_ms: self.time_ms,
            committed_ms: self.committed_ms,
            vm: self.vm.clone(),
            disks: self.disks.iter().map(StoredDisk::from).collect(),
            packs: self.packs.iter().flat_map(|pack| pack.0).collect::<Vec<_>>().into(),
            stats: self.stats,
            program: self.program.clone(),
            metadata: (!metadata.is_empty()).then_some(metadata),
            tags: (!self.remarks.tags.is_empty()).then(|| self.remarks.tags.iter().cloned().collect()),
            note: self.remarks.note.clone(),
            protected: self.remarks.protected.then_some(true),
            origin: self.origin.map(|origin| StoredOrigin {
                repository: origin.repository.0.into(),
                snapshot: origin.snapshot.0.into(),
            }),
        };
        minicbor::to_vec(&stored).expect("writing CBOR into memory cannot fail")
    }

    /// Reads a record's CBOR.
    ///
    /// # Errors
    /// `Corrupt` when it is malformed or a value is out of range.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let stored: StoredSnapshot = minicbor::decode(bytes)
            .map_err(|error| Error::with_source(ErrorKind::Corrupt, "snapshot record is malformed", error))?;
        let packs = record::ids(&stored.packs, PackId, "packs")?;
        let disks: Vec<_> = stored.disks.into_iter().map(Disk::try_from).collect::<Result<_>>()?;
        if disks.is_empty() {
            return Err(Error::corrupt("snapshot record has no disk"));
        }
        let remarks = Remarks {
            tags: stored.tags.unwrap_or_default().into_iter().collect(),
            note: stored.note,
            protected: stored.protected.unwrap_or_default(),
        };
        remarks.check().map_err(|error| Error::corrupt(error.to_string()))?;
        Ok(Self {
            time_ms: stored.time_ms,
            committed_ms: stored.committed_ms,
            vm: stored.vm,
            disks,
            remarks,
            origin: stored.origin.map(|origin| SnapshotOrigin {
                repository: RepositoryId(origin.repository.into()),
                snapshot: SnapshotId(origin.snapshot.into()),
            }),
            packs,
            stats: stored.stats,
            program: stored.program,
            metadata: stored
                .metadata
                .unwrap_or_default()
                .into_iter()
                .map(|(name, bytes)| (name, bytes.into()))
                .collect(),
        })
    }
}

impl From<&Disk> for StoredDisk {
    fn from(disk: &Disk) -> Self {
        Self {
            vdi: disk.vdi.clone(),
            virtual_size: disk.tree.virtual_size,
            root: disk.tree.root.0.into(),
            source_format: disk.source_format.clone(),
            allocated_bytes: disk.allocated_bytes,
            parent: disk.parent.map(|parent| parent.0.into()),
            reading: Some(disk.reading),
            source_id: disk.source_id.map(Into::into),
        }
    }
}

impl TryFrom<StoredDisk> for Disk {
    type Error = Error;

    fn try_from(stored: StoredDisk) -> Result<Self> {
        if stored.virtual_size > VIRTUAL_SIZE_MAX {
            return Err(Error::corrupt(format!("virtual size {} is out of range", stored.virtual_size)));
        }
        Ok(Self {
            vdi: stored.vdi,
            tree: Tree { root: NodeId(stored.root.into()), virtual_size: stored.virtual_size },
            source_format: stored.source_format,
            allocated_bytes: stored.allocated_bytes,
            parent: stored.parent.map(|parent| SnapshotId(parent.into())),
            reading: stored.reading.unwrap_or_default(),
            source_id: stored.source_id.map(Into::into),
        })
    }
}

/// Seals a record and stores it: from here on the snapshot exists. Everything it names must be durable. The index keeps the record.
///
/// # Errors
/// `Forbidden` without the structure key; `Io`.
pub fn commit(repository: &Repository, index: &Index, snapshot: Snapshot) -> Result<NamedSnapshot> {
    let (id, object) = seal(repository, &snapshot)?;
    repository.store.put_new(ObjectName::Snapshot(id), &object)?;
    // So that the next one need not fetch it. The snapshot exists, whatever becomes of the cache.
    let _ = index.keep_record(id, &object);
    Ok(NamedSnapshot { id, len: object.len() as u64, snapshot })
}

/// Seals a record: its name and its bytes, not yet stored.
///
/// # Errors
/// `Forbidden` without the structure key; `Invalid` when it is too large or its remarks are.
pub fn seal(repository: &Repository, snapshot: &Snapshot) -> Result<(SnapshotId, Vec<u8>)> {
    snapshot.remarks.check()?;
    let sealed = KIND.seal(repository, snapshot.encode());
    let (id, object) = sealed.context(|| "snapshot record, with VM metadata and list of packs")?;
    Ok((SnapshotId(id), object))
}

/// Reads one snapshot record.
///
/// # Errors
/// `NotFound`; `Corrupt` when it is damaged; `Unavailable`.
pub fn read(repository: &Repository, id: SnapshotId) -> Result<NamedSnapshot> {
    open(repository, id, &get(repository, id)?)
}

fn get(repository: &Repository, id: SnapshotId) -> Result<Vec<u8>> {
    repository.store.get(ObjectName::Snapshot(id), RECORD_LEN_MAX)
}

/// Opens the record named `id`, whose bytes are checked against that name.
fn open(repository: &Repository, id: SnapshotId, object: &[u8]) -> Result<NamedSnapshot> {
    let opened = KIND.open(repository, &id.0, object).and_then(|record| Snapshot::decode(&record));
    let snapshot = opened.context(|| format!("snapshot {}", id.short()))?;
    Ok(NamedSnapshot { id, len: object.len() as u64, snapshot })
}

/// Snapshots, oldest first, and an error for each record that cannot be read.
pub type Snapshots = (Vec<NamedSnapshot>, Vec<(SnapshotId, Error)>);

/// All snapshots, oldest first, and an error for each record that cannot be read.
///
/// # Errors
/// `Unavailable` when the store cannot be listed.
pub fn read_all(repository: &Repository) -> Result<Snapshots> {
    Ok(read_listed(repository, &repository.catalog()?.snapshots))
}

/// As [`read_all`], of those that were listed.
pub fn read_listed(repository: &Repository, ids: &[SnapshotId]) -> Snapshots {
    sorted(repository.store.each(ids, |id| (*id, read(repository, *id))))
}

/// As [`read_listed`] of all there are, for who has an index: records that it kept are not read from the store again. They are
/// no less checked, and whether a snapshot is there only the store says.
///
/// # Errors
/// `Io` when the index fails.
pub fn read_listed_with(repository: &Repository, index: &Index, ids: &[SnapshotId]) -> Result<Snapshots> {
    let kept = index.kept_records(ids)?;
    let kept: Vec<_> = ids.iter().zip(kept).collect();
    let read = repository.store.each(&kept, |(id, kept)| (**id, read_kept(repository, **id, kept.as_deref())));
    let mut new = Vec::new();
    let mut opened = Vec::with_capacity(read.len());
    for (id, outcome) in read {
        opened.push((
            id,
            outcome.map(|(named, object)| {
                new.extend(object.map(|object| (id, object)));
                named
            }),
        ));
    }
    index.keep_records(&new, ids)?;
    Ok(sorted(opened))
}

/// A snapshot, and its record's bytes when they came from the store.
fn read_kept(repository: &Repository, id: SnapshotId, kept: Option<&[u8]>) -> Result<(NamedSnapshot, Option<Vec<u8>>)> {
    // What a cache holds proves nothing: bytes that are not the record's are read anew.
    if let Some(named) = kept.and_then(|object| open(repository, id, object).ok()) {
        return Ok((named, None));
    }
    let object = get(repository, id)?;
    Ok((open(repository, id, &object)?, Some(object)))
}

fn sorted(read: Vec<(SnapshotId, Result<NamedSnapshot>)>) -> Snapshots {
    let (mut snapshots, mut errors) = (Vec::new(), Vec::new());
    for (id, result) in read {
        match result {
            Ok(snapshot) => snapshots.push(snapshot),
            // Forgotten since it was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => errors.push((id, error)),
        }
    }
    snapshots.sort_by_key(|named| (named.snapshot.time_ms, named.snapshot.committed_ms, named.id));
    (snapshots, errors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Snapshot {
        Snapshot {
            time_ms: -5,
            committed_ms: 1_700_000_000_000,
            vm: Some("web-01".to_owned()),
            disks: vec![Disk {
                vdi: "a".to_owned(),
                tree: Tree { root: NodeId([3; 32]), virtual_size: 12345 },
                source_format: "raw".to_owned(),
                allocated_bytes: 4096,
                parent: Some(SnapshotId([4; 32])),
                reading: DiskReading { delta: true, read_bytes: 4096, changed_bytes: 512 },
                source_id: Some([9; 16]),
            }],
            packs: vec![PackId([1; 32]), PackId([2; 32])],
            stats: SnapshotStats { new_bytes: 1, new_chunks: 2, pack_bytes: 3 },
            program: "cairn".to_owned(),
            metadata: BTreeMap::from([("vm.json".to_owned(), b"{}".to_vec())]),
            remarks: Remarks::default(),
            origin: None,
        }
    }

    #[test]
    fn a_record_round_trips() {
        let snapshot = sample();
        assert_eq!(Snapshot::decode(&snapshot.encode()).unwrap(), snapshot);
        let bare = Snapshot { vm: None, metadata: BTreeMap::new(), packs: vec![], ..snapshot };
        assert_eq!(Snapshot::decode(&bare.encode()).unwrap(), bare);
        let remarks = Remarks { tags: ["a".to_owned()].into(), note: Some("b".to_owned()), protected: true };
        let remarked = Snapshot { remarks, ..bare };
        assert_eq!(Snapshot::decode(&remarked.encode()).unwrap(), remarked);
        let origin = SnapshotOrigin { repository: RepositoryId([5; 16]), snapshot: SnapshotId([6; 32]) };
        let synced = Snapshot { origin: Some(origin), ..remarked };
        assert_eq!(Snapshot::decode(&synced.encode()).unwrap(), synced);
    }

    #[test]
    fn a_field_of_a_later_version_is_skipped() {
        let mut bytes = sample().encode();
        assert_eq!(bytes[0], 0xa8, "a map of 8 fields");
        bytes[0] = 0xa9;
        bytes.extend_from_slice(&[0x18, 99, 0x01]);
        assert_eq!(Snapshot::decode(&bytes).unwrap(), sample());
    }

    proptest! {
        #[test]
        fn changed_and_arbitrary_bytes_never_panic(at: prop::sample::Index, value: u8, noise: Vec<u8>) {
            let origin = SnapshotOrigin { repository: RepositoryId([5; 16]), snapshot: SnapshotId([6; 32]) };
            let mut bytes = Snapshot { origin: Some(origin), ..sample() }.encode();
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = Snapshot::decode(&bytes);
            let _ = Snapshot::decode(&bytes[..at]);
            let _ = Snapshot::decode(&noise);
        }
    }
}
