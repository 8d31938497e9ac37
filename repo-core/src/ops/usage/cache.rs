//! A finished measurement, kept beside the index: an unchanged repository is answered at once.
//!
//! The name of what is kept is a hash of all that the result depends on: the objects that are there, and how
//! the uses were grouped. Any change makes another name, so a stale result is never taken. The file is a cache like the
//! index: it holds numbers only, it may be deleted, and what cannot be read is measured anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use minicbor::{Decode, Encode};

use super::{Bytes, DIMENSIONS, TreeUse, Usage, measure};
use crate::error::Result;
use crate::monitor::Monitor;
use crate::repository::Repository;

/// Counted up when what is kept, or what it means, changes.
const CACHE_VERSION: u8 = 1;
/// The file's name in the folder of the index.
const FILE_NAME: &str = "usage";
/// The largest file that is read, in bytes: some 40 for each snapshot.
const FILE_LEN_MAX: u64 = 256 * 1024 * 1024;

type Key = [u8; 32];

#[derive(Encode, Decode)]
#[cbor(map)]
struct Kept {
    #[n(0)]
    key: minicbor::bytes::ByteArray<32>,
    /// The counters in the order of [`counters`].
    #[n(1)]
    counters: Vec<u64>,
    #[n(2)]
    owned: Vec<BTreeMap<u32, (u64, u64)>>,
    #[n(3)]
    freed: Vec<u64>,
    #[n(4)]
    present_blocks: Vec<u64>,
}

/// As [`measure`], but a result that was kept in `folder` is used when nothing changed since. That is told by the lists of
/// packs and records alone. A result with damage in it is never kept.
///
/// # Errors
/// As [`measure`]. A folder that cannot be read or written only costs the short cut.
pub fn measure_cached(
    repository: &Repository,
    uses: &[TreeUse],
    keep_sets: usize,
    folder: &Path,
    monitor: &dyn Monitor,
) -> Result<Usage> {
    let path = folder.join(FILE_NAME);
    let key = key(repository, uses, keep_sets)?;
    if let Some(usage) = read(&path, &key) {
        return Ok(usage);
    }
    let usage = measure(repository, uses, keep_sets, monitor)?;
    // The lists may have changed during the walk: what was counted then is of no state that either name stands for.
    if usage.damage_count == 0 && usage.unreadable == 0 && self::key(repository, uses, keep_sets)? == key {
        // Not being able to keep it costs the next report a walk.
        let _ = write(folder, &path, key, &usage);
    }
    Ok(usage)
}

fn key(repository: &Repository, uses: &[TreeUse], keep_sets: usize) -> Result<Key> {
    let store = &repository.store;
    let mut hasher = blake3::Hasher::new();
    let mut number = |number: u64| {
        hasher.update(&number.to_le_bytes());
    };
    number(u64::from(CACHE_VERSION));
    number(keep_sets as u64);
    number(uses.len() as u64);
    for TreeUse { tree, labels, kept } in uses {
        tree.root.0.as_chunks::<8>().0.iter().for_each(|word| number(u64::from_le_bytes(*word)));
        number(tree.virtual_size);
        labels.iter().for_each(|label| number(u64::from(*label)));
        number(u64::from(*kept));
    }
    let mut objects = |kind: u8, listed: Vec<([u8; 32], u64)>| {
        hasher.update(&[kind]).update(&(listed.len() as u64).to_le_bytes());
        for (id, len) in listed {
            hasher.update(&id).update(&len.to_le_bytes());
        }
    };
    objects(0, store.list_packs()?.iter().map(|pack| (pack.id.0, pack.len)).collect());
    objects(1, store.list_snapshots()?.iter().map(|record| (record.id.0, record.len)).collect());
    objects(2, store.list_slots()?.iter().map(|slot| (slot.id.0, slot.len)).collect());
    objects(3, store.list_annotations()?.iter().map(|annotation| (annotation.id.0, annotation.len)).collect());
    objects(4, store.list_tombstones()?.iter().map(|tombstone| (tombstone.id.id.0, tombstone.len)).collect());
    hasher.update(repository.config.id.as_bytes());
    Ok(*hasher.finalize().as_bytes())
}

fn read(path: &Path, key: &Key) -> Option<Usage> {
    let len = fs::metadata(path).ok()?.len();
    if len > FILE_LEN_MAX {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    // A checksum, since disks lie: a wrong number in a report would be believed.
    let (bytes, checksum) = bytes.split_last_chunk::<32>()?;
    if blake3::hash(bytes) != blake3::Hash::from(*checksum) {
        return None;
    }
    let kept: Kept = minicbor::decode(bytes).ok()?;
    (Key::from(kept.key) == *key).then_some(())?;
    let mut usage = Usage::default();
    let counters = counters(&mut usage);
    let values: [u64; COUNTERS] = kept.counters.try_into().ok()?;
    for (counter, value) in counters.into_iter().zip(values) {
        *counter = value;
    }
    let owned: [_; DIMENSIONS] = kept.owned.try_into().ok()?;
    usage.owned = owned
        .map(|groups| groups.into_iter().map(|(label, (stored, plain))| (label, Bytes { stored, plain })).collect());
    usage.freed = kept.freed;
    usage.present_blocks = kept.present_blocks;
    Some(usage)
}

fn write(folder: &Path, path: &Path, key: Key, usage: &Usage) -> std::io::Result<()> {
    let mut copy = usage.clone();
    let owned = |groups: &BTreeMap<u32, Bytes>| {
        groups.iter().map(|(label, bytes)| (*label, (bytes.stored, bytes.plain))).collect()
    };
    let kept = Kept {
        key: key.into(),
        counters: counters(&mut copy).map(|counter| *counter).to_vec(),
        owned: usage.owned.iter().map(owned).collect(),
        freed: usage.freed.clone(),
        present_blocks: usage.present_blocks.clone(),
    };
    let mut bytes = minicbor::to_vec(&kept).expect("writing CBOR into memory cannot fail");
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    fs::create_dir_all(folder)?;
    let part: PathBuf = folder.join(format!("{FILE_NAME}.{}.part", std::process::id()));
    fs::write(&part, bytes)?;
    fs::rename(&part, path).inspect_err(|_| drop(fs::remove_file(&part)))
}

const COUNTERS: usize = 13;

/// Every plain number of a result, in the order they are kept in.
fn counters(usage: &mut Usage) -> [&mut u64; COUNTERS] {
    [
        &mut usage.live_data.stored,
        &mut usage.live_data.plain,
        &mut usage.live_meta,
        &mut usage.dead,
        &mut usage.duplicate,
        &mut usage.overhead,
        &mut usage.unreadable,
        &mut usage.records,
        &mut usage.other,
        &mut usage.pack_count,
        &mut usage.chunk_count,
        &mut usage.node_count,
        &mut usage.damage_count,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Usage {
        let mut usage = Usage { freed: vec![5, 0], present_blocks: vec![7, 8, 9], ..Usage::default() };
        for (number, counter) in (1..).zip(counters(&mut usage)) {
            *counter = number;
        }
        usage.owned[3].insert(4, Bytes { stored: 1, plain: 2 });
        usage
    }

    #[test]
    fn a_kept_result_comes_back_under_its_own_name_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        write(folder.path(), &path, [1; 32], &sample()).unwrap();
        assert_eq!(read(&path, &[1; 32]), Some(sample()));
        assert_eq!(read(&path, &[2; 32]), None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_or_cut_file_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        write(folder.path(), &path, [1; 32], &sample()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            std::fs::write(&path, &changed).unwrap();
            assert_eq!(read(&path, &[1; 32]), None, "byte {at}");
            std::fs::write(&path, &bytes[..at]).unwrap();
            assert_eq!(read(&path, &[1; 32]), None, "cut at {at}");
        }
    }
}
