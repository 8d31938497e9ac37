//! How much a repository holds, held against its quota. Nothing is counted where there is none.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use repo_core::store::ObjectName;

use crate::refusal::Refusal;

/// How often all files are counted again when the quota seems to be used up: others may have deleted some.
const RECOUNT: Duration = Duration::from_secs(60);

pub(super) struct Usage {
    root: PathBuf,
    quota: Option<u64>,
    state: Mutex<State>,
}

struct State {
    /// Bytes of objects, and of those that are coming.
    used: u64,
    counted: Instant,
}

impl Usage {
    pub(super) fn new(root: &Path, quota: Option<u64>) -> Self {
        let used = quota.map_or(0, |_| count(root));
        Self { root: root.to_owned(), quota, state: Mutex::new(State { used, counted: Instant::now() }) }
    }

    pub(super) fn told(&self) -> (Option<u64>, Option<u64>) {
        (self.quota.map(|_| self.state.lock().used), self.quota)
    }

    pub(super) fn reserve(&self) -> Reserved<'_> {
        Reserved { usage: self, bytes: 0 }
    }

    pub(super) fn free(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.used = state.used.saturating_sub(bytes);
    }

    fn take(&self, bytes: u64, reserved: u64, whole: u64) -> Result<(), Refusal> {
        let Some(quota) = self.quota else { return Ok(()) };
        let mut state = self.state.lock();
        if state.used.saturating_add(bytes) > quota && state.counted.elapsed() > RECOUNT {
            // What others have reserved is missing in it: too little by a few objects, until they are stored.
            *state = State { used: count(&self.root).saturating_add(reserved), counted: Instant::now() };
        }
        let used = state.used.saturating_add(bytes);
        if used > quota {
            let text = format!(
                "the namespace is full: it holds {} of {quota} bytes, and {whole} more do not fit",
                state.used.saturating_sub(reserved)
            );
            return Err(Refusal::full(text));
        }
        state.used = used;
        Ok(())
    }
}

/// Room for an object that is coming; given back when dropped.
pub(super) struct Reserved<'a> {
    usage: &'a Usage,
    bytes: u64,
}

impl Reserved<'_> {
    /// Makes it at least `bytes`, for an object of which `whole` bytes are known to come.
    pub(super) fn grow(&mut self, bytes: u64, whole: u64) -> Result<(), Refusal> {
        if let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) {
            self.usage.take(more, self.bytes, whole)?;
            self.bytes = bytes;
        }
        Ok(())
    }

    /// The object is stored, and has `bytes`.
    pub(super) fn keep(mut self, bytes: u64) {
        self.usage.free(self.bytes.saturating_sub(bytes));
        self.bytes = 0;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.usage.free(self.bytes);
    }
}

/// Bytes of all objects. What cannot be read now does not count.
fn count(root: &Path) -> u64 {
    let mut folders: Vec<PathBuf> = ObjectName::FOLDERS.iter().map(|folder| root.join(folder)).collect();
    let mut bytes = fs::metadata(root.join("config")).map_or(0, |meta| meta.len());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) => bytes += meta.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_reserved_kept_given_back_and_runs_out() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("packs/ab")).unwrap();
        fs::write(folder.path().join("packs/ab/x"), [0; 40]).unwrap();
        let usage = Usage::new(folder.path(), Some(100));
        assert_eq!(usage.told(), (Some(40), Some(100)));
        let mut first = usage.reserve();
        first.grow(50, 50).unwrap();
        let mut second = usage.reserve();
        let refusal = second.grow(11, 11).unwrap_err();
        assert_eq!(refusal.status, axum::http::StatusCode::INSUFFICIENT_STORAGE);
        assert!(refusal.message.contains("full"), "{}", refusal.message);
        second.grow(10, 10).unwrap();
        first.keep(30);
        assert_eq!(usage.told().0, Some(80));
        drop(second);
        assert_eq!(usage.told().0, Some(70));
        usage.free(30);
        assert_eq!(usage.told().0, Some(40));
    }

    #[test]
    fn without_a_quota_nothing_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let usage = Usage::new(folder.path(), None);
        usage.reserve().grow(u64::MAX, u64::MAX).unwrap();
        assert_eq!(usage.told(), (None, None));
    }
}
