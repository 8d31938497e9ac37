//! Packs of an object store that are kept on this machine, too: the manifests that its next backup is compared with.
//!
//! Names are hashes of the bytes, so a kept pack is right or is not taken, whichever repository it is of. Nothing depends on
//! one: what is not here is asked of the store. Whether the *store* has a pack, this never says.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};

use crate::id::PackId;
use crate::store::remote::REMOTE_OBJECT_LEN_MAX;

/// Packs kept in a folder. Processes may share it.
#[derive(Debug)]
pub(super) struct KeptPacks {
    folder: PathBuf,
    /// All of them together, in bytes; those used longest ago go first.
    len_max: u64,
    /// Packs asked for so far, and how long each is; `None` for what is not kept.
    known: Mutex<HashMap<PackId, Option<u64>>>,
}

impl KeptPacks {
    pub(super) fn new(folder: &Path, len_max: u64) -> Self {
        Self { folder: folder.to_owned(), len_max, known: Mutex::default() }
    }

    /// Whether a pack is kept, sound, and of this length.
    pub(super) fn has(&self, id: PackId, len: u64) -> bool {
        self.len(id) == Some(len)
    }

    /// Bytes of a pack; none when it is not kept, or is shorter.
    pub(super) fn read(&self, id: PackId, range: &Range<u64>) -> Option<Vec<u8>> {
        self.len(id).filter(|len| range.start <= range.end && range.end <= *len)?;
        let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
        // It may have made room meanwhile.
        File::open(self.path(id)).ok()?.read_exact_at(&mut bytes, range.start).ok()?;
        Some(bytes)
    }

    /// Keeps a pack. That this fails costs requests later, and nothing else.
    pub(super) fn keep(&self, id: PackId, bytes: &[u8]) {
        let len = bytes.len() as u64;
        if len <= self.len_max && !self.has(id, len) && self.make_room(len).and_then(|()| self.put(id, bytes)).is_ok() {
            self.known.lock().insert(id, Some(len));
        }
    }

    fn put(&self, id: PackId, bytes: &[u8]) -> std::io::Result<()> {
        let new = self.folder.join(format!("{}.{}", id.to_hex(), std::process::id()));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let put = file.write_all(bytes).and_then(|()| fs::rename(&new, self.path(id)));
        put.inspect_err(|_| drop(fs::remove_file(&new)))
    }

    /// Makes the folder, and deletes what was not used for longest until so much more fits.
    fn make_room(&self, len: u64) -> std::io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            // One that is gone made room already.
            if let Ok((path, meta)) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))) {
                kept.push((meta.modified()?, meta.len(), path));
            }
        }
        let mut sum = kept.iter().map(|(_, len, _)| len).sum::<u64>() + len;
        kept.sort_unstable();
        for (_, len, path) in kept {
            if sum <= self.len_max {
                break;
            }
            fs::remove_file(path)?;
            sum -= len;
        }
        Ok(())
    }

    fn len(&self, id: PackId) -> Option<u64> {
        let mut known = self.known.lock();
        *known.entry(id).or_insert_with(|| self.check(id))
    }

    /// The length of a pack whose bytes have the hash that its name says. Any other one is deleted.
    fn check(&self, id: PackId) -> Option<u64> {
        let path = self.path(id);
        let file = File::open(&path).ok()?;
        if file.metadata().ok()?.len() > REMOTE_OBJECT_LEN_MAX as u64 {
            return None;
        }
        let bytes = fs::read(&path).ok()?;
        if *blake3::hash(&bytes).as_bytes() != id.0 {
            let _ = fs::remove_file(&path);
            return None;
        }
        // Used now: others go before it.
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let _ = futimens(&file, &Timestamps { last_access: now, last_modification: now });
        Some(bytes.len() as u64)
    }

    fn path(&self, id: PackId) -> PathBuf {
        self.folder.join(id.to_hex())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn pack(byte: u8, len: usize) -> (PackId, Vec<u8>) {
        let bytes = vec![byte; len];
        (PackId(*blake3::hash(&bytes).as_bytes()), bytes)
    }

    #[test]
    fn what_is_kept_is_read_by_whoever_comes_later() {
        let folder = tempfile::tempdir().unwrap();
        let (id, bytes) = pack(1, 100);
        let kept = KeptPacks::new(folder.path(), 1000);
        assert_eq!(kept.read(id, &(0..1)), None);
        kept.keep(id, &bytes);
        for kept in [kept, KeptPacks::new(folder.path(), 1000)] {
            assert_eq!(kept.read(id, &(10..100)), Some(vec![1; 90]));
            assert_eq!(kept.read(id, &(10..101)), None);
            assert!(kept.has(id, 100) && !kept.has(id, 99));
        }
    }

    #[test]
    fn a_damaged_one_is_not_taken_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let (id, mut bytes) = pack(1, 100);
        KeptPacks::new(folder.path(), 1000).keep(id, &bytes);
        bytes[50] ^= 1;
        let path = folder.path().join(id.to_hex());
        fs::write(&path, &bytes).unwrap();
        assert_eq!(KeptPacks::new(folder.path(), 1000).read(id, &(0..1)), None);
        assert!(!path.exists());
    }

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let packs = [1, 2, 3, 4].map(|byte| pack(byte, 100));
        let kept = KeptPacks::new(folder.path(), 300);
        let age = |id: PackId, seconds| {
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            File::open(folder.path().join(id.to_hex())).unwrap().set_modified(time).unwrap();
        };
        for ((id, bytes), seconds) in packs[..3].iter().zip([7, 5, 6]) {
            kept.keep(*id, bytes);
            age(*id, seconds);
        }
        kept.keep(packs[3].0, &packs[3].1);
        kept.keep(pack(5, 301).0, &pack(5, 301).1);
        let later = KeptPacks::new(folder.path(), 300);
        let there = packs.map(|(id, _)| later.has(id, 100));
        assert_eq!(there, [true, false, true, true]);
    }
}
