//! A namespace in an object store, which this server alone asks on behalf of its clients.
//!
//! Nothing is kept of what is there: whoever else works on the store, other servers and processes with its keys, is seen at
//! once. Objects on their way in are collected in files without a name, so that slow clients cost no memory; it is taken for
//! the time of the one request that stores them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use repo_core::store::remote::REMOTE_OBJECT_LEN_MAX;
use repo_core::store::{NewObject, ObjectName, Store};

use crate::refusal::Refusal;

/// Bytes of objects that are being stored at once, of all clients of a namespace: their memory.
const STORING_MAX: u64 = 128 * 1024 * 1024;
/// How long the store counts as it was found.
const LOOK: Duration = Duration::from_secs(10);
/// Objects that are listed at once when all are counted.
const PAGE: usize = 10_000;
/// Bytes of a file that are read at once.
const PIECE_LEN: usize = 256 * 1024;

pub(super) struct Bucket {
    spool: PathBuf,
    storing: Mutex<u64>,
    stored: Condvar,
    ready: Mutex<Option<(Instant, bool)>>,
}

/// Memory for an object; given back when dropped.
struct Room<'a> {
    bucket: &'a Bucket,
    bytes: u64,
}

impl Bucket {
    /// Collects objects in files in that folder.
    pub(super) fn new(spool: &Path) -> Self {
        Self { spool: spool.to_owned(), storing: Mutex::new(0), stored: Condvar::new(), ready: Mutex::new(None) }
    }

    /// The longest object that can be kept, in bytes.
    pub(super) const LEN_MAX: u64 = REMOTE_OBJECT_LEN_MAX as u64;

    /// Whether the store answers. Asked by anybody, it is looked at now and then.
    pub(super) fn is_ready(&self, store: &Store) -> bool {
        let mut ready = self.ready.lock();
        match *ready {
            Some((at, found)) if at.elapsed() < LOOK => found,
            _ => {
                // A listing tells a missing bucket from one that holds nothing yet.
                let found = store.page("keys", "", 1).is_ok();
                *ready = Some((Instant::now(), found));
                found
            }
        }
    }

    /// A file for an object that is coming.
    pub(super) fn collect(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.spool)
    }

    /// Stores what was collected.
    pub(super) fn put(&self, store: &Store, name: ObjectName, mut file: File, len: u64) -> Result<(), Refusal> {
        let cannot = |error| repo_core::Error::io(format!("cannot read {name} again"), error);
        let _room = self.room(len);
        let mut object: NewObject = store.new_object()?;
        file.seek(SeekFrom::Start(0)).map_err(cannot)?;
        let mut piece = vec![0; PIECE_LEN];
        loop {
            match file.read(&mut piece).map_err(cannot)? {
                0 => break,
                read => object.append(&piece[..read])?,
            }
        }
        Ok(object.publish(name)?)
    }

    /// Waits until there is memory. Those who have it do not wait for their clients.
    fn room(&self, bytes: u64) -> Room<'_> {
        let mut storing = self.storing.lock();
        while *storing > 0 && storing.saturating_add(bytes) > STORING_MAX {
            self.stored.wait(&mut storing);
        }
        *storing = storing.saturating_add(bytes);
        Room { bucket: self, bytes }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let mut storing = self.bucket.storing.lock();
        *storing = storing.saturating_sub(self.bytes);
        self.bucket.stored.notify_all();
    }
}

/// Bytes of all objects.
pub(super) fn used_bytes(store: &Store) -> repo_core::Result<u64> {
    let mut bytes = match store.exists(ObjectName::Config)? {
        true => store.len(ObjectName::Config)?,
        false => 0,
    };
    for folder in ObjectName::FOLDERS {
        let mut after = String::new();
        loop {
            let (page, more) = store.page(folder, &after, PAGE)?;
            bytes += page.iter().map(|found| found.len).sum::<u64>();
            match page.last() {
                Some(last) if more => after = last.id.path(),
                _ => break,
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn what_is_being_stored_at_once_is_bounded_and_one_alone_always_fits() {
        let folder = tempfile::tempdir().unwrap();
        let bucket = Bucket::new(folder.path());
        drop(bucket.room(2 * STORING_MAX));
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for bytes in [STORING_MAX / 3, STORING_MAX / 2, 1] {
                        let _room = bucket.room(bytes);
                        most.fetch_max(now.fetch_add(bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
                        std::thread::yield_now();
                        now.fetch_sub(bytes, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(most.into_inner() <= STORING_MAX);
        assert_eq!(*bucket.storing.lock(), 0);
    }
}
