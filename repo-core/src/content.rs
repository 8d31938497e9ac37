//! From ids to bytes: look-up in the index, directory of the pack, frame, entry; with bounded caches.

mod ahead;
mod prefetch;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::id::{EntryId, NodeId};
use crate::index::sync::sync;
use crate::index::{Index, Location, PackNumber, PackState};
use crate::manifest::{NODE_LEN_MAX, Node, NodeHasher, NodeSource};
use crate::monitor::Silent;
use crate::pack::reader::PackReader;
use crate::repository::Repository;
use prefetch::Prefetch;

/// Directory entries held in memory: 40 bytes each.
const DIRECTORY_ENTRIES_MAX: u64 = 1 << 20;
/// Decoded frames held in memory, in bytes.
const FRAMES_LEN_MAX: u64 = 48 * 1024 * 1024;
/// Packs and frames the caches make room for.
const CACHE_ITEMS: usize = 1024;

/// Reads stored content. Shared between threads.
pub struct ContentReader {
    repository: Arc<Repository>,
    index: Arc<Index>,
    hasher: NodeHasher,
    prefetch: Prefetch,
    packs: Cache<PackNumber, Arc<PackReader>, DirectoryEntries>,
    frames: Cache<(PackNumber, u16), Arc<Vec<u8>>, FrameBytes>,
    decoded: AtomicU64,
    nodes_read: AtomicU64,
    listing: Mutex<()>,
}

#[derive(Clone)]
struct DirectoryEntries;

impl Weighter<PackNumber, Arc<PackReader>> for DirectoryEntries {
    fn weight(&self, _pack: &PackNumber, reader: &Arc<PackReader>) -> u64 {
        reader.directory().entries().len() as u64 + 1
    }
}

#[derive(Clone)]
struct FrameBytes;

impl Weighter<(PackNumber, u16), Arc<Vec<u8>>> for FrameBytes {
    fn weight(&self, _frame: &(PackNumber, u16), bytes: &Arc<Vec<u8>>) -> u64 {
        bytes.len() as u64 + 1
    }
}

impl ContentReader {
    /// A reader with empty caches.
    ///
    /// # Errors
    /// `Forbidden` without the structure key.
    pub fn new(repository: Arc<Repository>, index: Arc<Index>) -> Result<Self> {
        let hasher = NodeHasher::new(&repository.keys)?;
        let packs = Cache::with_weighter(CACHE_ITEMS, DIRECTORY_ENTRIES_MAX, DirectoryEntries);
        let frames = Cache::with_weighter(CACHE_ITEMS, FRAMES_LEN_MAX, FrameBytes);
        let (prefetch, decoded, nodes_read) = (Prefetch::default(), AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { repository, index, hasher, prefetch, packs, frames, decoded, nodes_read, listing: Mutex::default() })
    }

    /// The index that entries are looked up in.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The repository that is read.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// An open pack.
    ///
    /// # Errors
    /// `NotFound` or `Corrupt` when it is missing or damaged; `Unavailable`.
    pub fn pack(&self, number: PackNumber) -> Result<Arc<PackReader>> {
        self.packs.get_or_insert_with(&number, || {
            let known = self.index.pack(number);
            let Repository { store, config, keys, .. } = &*self.repository;
            PackReader::open(store, known.id, known.len, config, keys).map(Arc::new)
        })
    }

    /// Frames read and decoded so far: what a plan costs shows here.
    pub fn decoded_frame_count(&self) -> u64 {
        self.decoded.load(Ordering::Relaxed)
    }

    /// Manifest nodes read so far, one by one: what a walk, a diff or an import over a base costs shows here.
    pub fn node_read_count(&self) -> u64 {
        self.nodes_read.load(Ordering::Relaxed)
    }

    /// A decoded frame, not kept in memory.
    ///
    /// # Errors
    /// `Corrupt` naming pack and frame; `NotFound`, `Unavailable`.
    pub fn read_frame(&self, pack: PackNumber, frame: u16) -> Result<Vec<u8>> {
        self.decoded.fetch_add(1, Ordering::Relaxed);
        self.pack(pack)?.read_frame(&self.repository.store, u32::from(frame))
    }

    /// Decoded frames that stand side by side in a pack, read by one request and not kept in memory.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Corrupt` when they cannot be read together; in their places those of single frames, as
    /// [`read_frame`](Self::read_frame).
    pub fn read_frames(&self, pack: PackNumber, frames: RangeInclusive<u16>) -> Result<Vec<Result<Vec<u8>>>> {
        self.decoded.fetch_add(frames.len() as u64, Ordering::Relaxed);
        let frames = u32::from(*frames.start())..=u32::from(*frames.end());
        self.pack(pack)?.read_frames(&self.repository.store, frames)
    }

    /// A decoded frame, kept in memory for a while.
    ///
    /// # Errors
    /// As [`read_frame`](Self::read_frame).
    pub fn cached_frame(&self, pack: PackNumber, frame: u16) -> Result<Arc<Vec<u8>>> {
        self.frames.get_or_insert_with(&(pack, frame), || self.read_frame(pack, frame).map(Arc::new))
    }

    /// Where each of `ids` stands, in their order; `None` for what is not stored.
    ///
    /// # Errors
    /// `Io` when the index fails.
    pub fn locate(&self, ids: &[EntryId]) -> Result<Vec<Option<Location>>> {
        let mut located = self.prefetch.find(ids);
        for found in &mut located {
            *found = found.filter(|found| self.index.pack(found.pack).state == PackState::Live);
        }
        let asked: Vec<usize> = (0..ids.len()).filter(|at| located[*at].is_none()).collect();
        if asked.is_empty() {
            return Ok(located);
        }
        let found = self.index.find(&asked.iter().map(|at| ids[*at]).collect::<Vec<_>>())?;
        // A directory from an object store costs two round trips, and look-ups that are saved next to nothing.
        let is_cheap = self.repository.store.root().is_some();
        let packs = found.iter().flatten().map(|location| location.pack).filter(|_| is_cheap);
        for pack in self.prefetch.count(packs) {
            // A directory that cannot be read only saves no look-ups; what needs it will say so.
            if let Ok(reader) = self.pack(pack) {
                self.prefetch.take_in(pack, reader.directory());
            }
        }
        for (at, found) in asked.into_iter().zip(found) {
            located[at] = found;
        }
        Ok(located)
    }

    /// As [`locate`](Self::locate), for what a new snapshot is to rely on: what stands in condemned packs alone is not
    /// found.
    ///
    /// # Errors
    /// `Io` when the index fails.
    pub fn locate_live(&self, ids: &[EntryId]) -> Result<Vec<Option<Location>>> {
        let mut located = self.locate(ids)?;
        for found in &mut located {
            *found = found.filter(|found| self.index.pack(found.pack).state == PackState::Live);
        }
        Ok(located)
    }

    /// As [`locate`](Self::locate), for what must be stored: before something counts as missing, all packs are listed once.
    ///
    /// # Errors
    /// `Io` when the index fails; `Unavailable` when packs cannot be listed.
    pub fn locate_stored(&self, ids: &[EntryId]) -> Result<Vec<Option<Location>>> {
        let located = self.locate(ids)?;
        if located.iter().all(Option::is_some) || self.index.has_listed() {
            return Ok(located);
        }
        let _one_at_a_time = self.listing.lock();
        if !self.index.has_listed() {
            sync(&self.index, &self.repository, &Silent)?;
        }
        self.locate(ids)
    }

    fn node_bytes(&self, id: NodeId) -> Result<Vec<u8>> {
        let missing = || Error::corrupt(format!("manifest node {} is in no pack", id.short()));
        let location = self.locate_stored(&[id.into()])?[0].ok_or_else(missing)?;
        let pack = self.pack(location.pack)?;
        let range = entry_range(&pack, location, id.into())?;
        if range.len() > NODE_LEN_MAX {
            return Err(Error::corrupt(format!("manifest node {} has {} bytes", id.short(), range.len())));
        }
        let frame = self.cached_frame(location.pack, location.frame)?;
        let bytes = frame.get(range).ok_or_else(|| Error::internal("a frame is shorter than its directory says"))?;
        if self.hasher.id(bytes) != id {
            return Err(Error::corrupt(format!("manifest node {} does not match its name", id.short())));
        }
        Ok(bytes.to_vec())
    }
}

impl NodeSource for ContentReader {
    fn node(&self, id: NodeId) -> Result<Node> {
        self.nodes_read.fetch_add(1, Ordering::Relaxed);
        let bytes = self.node_bytes(id)?;
        Node::decode(&bytes).context(|| format!("manifest node {}", id.short()))
    }
}

/// Where an entry stands in its decoded frame, checked against the pack's own directory.
///
/// # Errors
/// `Io` when index and directory disagree: the index is stale or damaged, the repository is not.
pub fn entry_range(pack: &PackReader, location: Location, id: EntryId) -> Result<std::ops::Range<usize>> {
    let disagree = || {
        let text = format!("index and directory of pack {} disagree: run cairn rebuild-index", pack.id().short());
        Error::new(ErrorKind::Io, text)
    };
    let frame = pack.frame(u32::from(location.frame)).map_err(|_| disagree())?;
    let entries = pack.directory().entries_of(frame);
    let (before, rest) = entries.split_at_checked(usize::from(location.slot)).ok_or_else(disagree)?;
    let entry = rest.first().filter(|entry| entry.id == id).ok_or_else(disagree)?;
    let start: usize = before.iter().map(|entry| entry.len as usize).sum();
    Ok(start..start + entry.len as usize)
}
