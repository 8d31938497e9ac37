//! Usage: whose the stored bytes are, by one walk over the manifests of all live snapshots.
//!
//! ```text
//! pack directories ──▶ every entry, with its share of its frame
//! snapshot records ──▶ roots ──level by level──▶ leaves ──▶ chunks        each node read once
//!                        └── who refers to it flows down the trees ──┘
//! ```
//!
//! A frame's sealed bytes are split over its entries in proportion to their plaintext, so that the shares of all
//! entries, and what is in no frame, add up to the bytes on disk exactly. Who refers to an entry is a small summary
//! (`owners`): in each of five dimensions the only one who does, or that several do. Nodes of one level are all
//! summed up before any of them is read, since they are named by nodes of higher levels only; that is why each is read
//! once, in the order it is stored in.
//!
//! Memory: some 150 bytes for each distinct node, that is 80 MiB for each TiB of different blocks over all snapshots, and at
//! most 240 MiB for chunks. A repository with more chunks than fit there (6 million, some 180 GiB of content at the
//! default length) is walked in several rounds, each for a part of the chunk ids; each round reads the directories of
//! the data packs and the leaves again.
//!
//! Chunks are told apart by the first 64 bits of their ids, which are keyed hashes: with 30 million of them, the chance
//! that any two are confused is below 1 in 10 000, and the report then errs by one chunk.

pub mod cache;
mod directories;
mod owners;
mod table;
mod trees;

pub use owners::{DIMENSIONS, Labels};

use std::collections::BTreeSet;

use crate::error::{ErrorKind, Result};
use crate::id::PackId;
use crate::manifest::Tree;
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::store::{Listed, ObjectName};
use crate::tombstone;

use directories::Directories;
use owners::OwnerTable;
use table::ChunkTable;
use trees::Trees;

/// The most keep sets that are looked at in one walk.
pub const KEEP_SETS_MAX: usize = 32;

/// One disk of one snapshot, and the groups it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeUse {
    /// The disk's manifest.
    pub tree: Tree,
    /// The group it is in, for each dimension: any numbers below [`u32::MAX`].
    pub labels: Labels,
    /// A bit for each keep set that the snapshot is in, at most [`KEEP_SETS_MAX`].
    pub kept: u32,
}

/// Stored bytes with one owner, and what they were before compression.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Stored, in bytes.
    pub stored: u64,
    /// Plaintext, in bytes; of chunks only.
    pub plain: u64,
}

/// Whose the bytes of a repository are. All sizes in bytes.
///
/// `live_data + live_meta + dead + duplicate + overhead + unreadable` is the length of all packs; with `records` and
/// `other` it is that of all objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Chunks that a snapshot refers to.
    pub live_data: Bytes,
    /// Nodes that a snapshot refers to.
    pub live_meta: u64,
    /// Chunks and nodes that no snapshot refers to.
    pub dead: u64,
    /// Further copies of chunks and nodes that are stored already.
    pub duplicate: u64,
    /// Headers, directories and trailers of packs.
    pub overhead: u64,
    /// Packs whose directory is damaged: whose they are is not known.
    pub unreadable: u64,
    /// Snapshot records.
    pub records: u64,
    /// The configuration, key slots, annotations and tombstones. Leases of running commands are not counted.
    pub other: u64,
    /// Packs that are there.
    pub pack_count: u64,
    /// Distinct chunks that a snapshot refers to.
    pub chunk_count: u64,
    /// Distinct nodes that a snapshot refers to.
    pub node_count: u64,
    /// For each dimension, what only one of its groups refers to, by label. Labels that are missing own nothing alone.
    pub owned: [std::collections::BTreeMap<u32, Bytes>; DIMENSIONS],
    /// For each keep set, what only snapshots outside of it refer to: freed when they are forgotten.
    pub freed: Vec<u64>,
    /// Blocks that each disk holds anything in, in the order of the uses.
    pub present_blocks: Vec<u64>,
    /// Nodes that could not be read and chunks that are in no readable pack. What is below such a node counts as dead,
    /// and what it owns is missing everywhere.
    pub damage_count: u64,
}

impl Usage {
    /// All packs, in bytes.
    pub fn packs(&self) -> u64 {
        self.live_data.stored + self.live_meta + self.dead + self.duplicate + self.overhead + self.unreadable
    }

    /// All objects of the repository, in bytes.
    pub fn total(&self) -> u64 {
        self.packs() + self.records + self.other
    }

    /// What a garbage collection that rewrites everything could free now, in bytes, the directories' shrinking not
    /// counted.
    pub fn reclaimable(&self) -> u64 {
        self.dead + self.duplicate
    }

    /// What must be kept for the snapshots there are: all but what is reclaimable, in bytes.
    pub fn live(&self) -> u64 {
        self.total() - self.reclaimable()
    }
}

/// Walks all manifests of `uses`. The snapshots must have been listed before this is called: packs are listed now, and
/// whatever a snapshot names was durable before it.
///
/// `keep_sets` is how many bits of [`TreeUse::kept`] mean anything.
///
/// # Errors
/// `Forbidden` without the structure key; `Unavailable`; `Interrupted`. Damage is told to the monitor and counted.
/// Packs that are deleted meanwhile are not counted; without a lease of the caller, some that are needed may be.
pub fn measure(repository: &Repository, uses: &[TreeUse], keep_sets: usize, monitor: &dyn Monitor) -> Result<Usage> {
    assert!(keep_sets <= KEEP_SETS_MAX, "a summary has {KEEP_SETS_MAX} bits");
    let mut usage = object_lengths(repository)?;
    let packs = packs(repository, monitor)?;
    let mut owners = OwnerTable::default();

    let mut chunks = ChunkTable::new(0, 1);
    let mut directories = Directories::read(repository, packs, &mut chunks, &mut usage, monitor)?;
    let rounds = chunks.rounds_needed();
    let mut trees = Trees::walk(repository, &mut directories, uses, &mut owners, monitor)?;
    for round in 0..rounds {
        if rounds > 1 {
            chunks = ChunkTable::new(round, rounds);
            directories.read_data_again(repository, &mut chunks, monitor)?;
        }
        trees.read_leaves(repository, &directories, &mut chunks, &mut owners, monitor)?;
        usage.duplicate += chunks.duplicate_bytes();
        for (owner, bytes) in chunks.iter() {
            usage.chunk_count += u64::from(owners.is_owned(owner));
            owners.add(owner, bytes);
        }
    }
    usage.live_data = owners.live();
    usage.dead = owners.dead();
    for (owner, stored) in directories.node_owners() {
        usage.node_count += u64::from(owners.is_owned(owner));
        if owners.is_owned(owner) {
            usage.live_meta += stored;
        } else {
            usage.dead += stored;
        }
        owners.add(owner, Bytes { stored, plain: 0 });
    }
    usage.owned = owners.owned();
    usage.freed = owners.freed(keep_sets);
    usage.present_blocks = trees.present_blocks(&directories, uses);
    usage.damage_count = trees.damage_count();
    Ok(usage)
}

fn object_lengths(repository: &Repository) -> Result<Usage> {
    let store = &repository.store;
    let records = lengths(&store.list_snapshots()?);
    let config = store.len(ObjectName::Config)?;
    let small =
        [lengths(&store.list_slots()?), lengths(&store.list_annotations()?), lengths(&store.list_tombstones()?)];
    let other = config + small.iter().sum::<u64>();
    Ok(Usage { records, other, ..Usage::default() })
}

fn lengths<Id>(listed: &[Listed<Id>]) -> u64 {
    listed.iter().map(|object| object.len).sum()
}

/// The packs that are there, condemned ones last: of copies the first counts, and those in condemned packs are to go.
fn packs(repository: &Repository, monitor: &dyn Monitor) -> Result<Vec<Listed<PackId>>> {
    let mut condemned = BTreeSet::new();
    for listed in repository.store.list_tombstones()? {
        match tombstone::read(repository, listed.id) {
            Ok(tombstone) => condemned.extend(tombstone.packs),
            // Another process was done with it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.is_damage() => monitor.damage(&error),
            Err(error) => return Err(error),
        }
    }
    let mut packs = repository.store.list_packs()?;
    packs.sort_by_key(|pack| (condemned.contains(&pack.id), pack.id));
    Ok(packs)
}

#[cfg(test)]
mod tests;
