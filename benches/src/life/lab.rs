//! A repository to measure, and what is measured of each operation.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use parking_lot::Mutex;
use repo_core::chunk::ChunkParams;
use repo_core::disk::DiskSource;
use repo_core::disk::raw::file_sink::RawFileSink;
use repo_core::entropy::Entropy;
use repo_core::keys::slot::{Argon2Cost, Unlock};
use repo_core::monitor::{Monitor, Silent};
use repo_core::ops::backup::{BackupOptions, BackupReport, BaseChoice, DiskInput, backup};
use repo_core::ops::open::{Session, open_session};
use repo_core::ops::restore::{RestoreOptions, RestorePlan, Target, restore};
use repo_core::repository::{InitOptions, Repository};
use repo_core::seal::Suite;
use repo_core::snapshot::NamedSnapshot;
use repo_core::store::Store;
use tempfile::TempDir;

use super::Outcome;

const UNLOCK: Unlock<'static> = Unlock::Passphrase { text: "x", cost: Argon2Cost::CHEAPEST };

/// A repository in a folder that goes with it.
pub(super) struct Lab {
    pub(super) session: Session,
    /// The time of the newest snapshot, in milliseconds since the Unix epoch.
    pub(super) now_ms: i64,
    folder: TempDir,
}

/// What an operation cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) seconds: f64,
    pub(super) cpu_seconds: f64,
    /// Ids looked up in the index's database.
    pub(super) lookups: u64,
    /// Manifest nodes read.
    pub(super) nodes: u64,
    /// Frames read and decoded.
    pub(super) frames: u64,
}

impl Lab {
    pub(super) fn new(folder: &Path, chunk: ChunkParams) -> Outcome<Self> {
        let folder = tempfile::tempdir_in(folder)?;
        let store = Store::create_local(&folder.path().join("repository"))?;
        let options = InitOptions { chunk, ..InitOptions::new(Suite::Aes256Gcm, 0) };
        let repository = Repository::create(store, &options, &UNLOCK, "", Entropy::system())?;
        Ok(Self { session: open_session(repository, None, &Silent)?, now_ms: 0, folder })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Goes on as a new process would, with empty caches. Gives the seconds this took.
    pub(super) fn reopen(self) -> Outcome<(Self, f64)> {
        let Self { session, now_ms, folder } = self;
        let root = session
            .repository
            .store
            .root()
            .ok_or_else(|| repo_core::Error::internal("the lab is a folder"))?
            .to_owned();
        drop(session);
        let start = Instant::now();
        let repository = Repository::open(Store::open_local(&root)?, &UNLOCK, Entropy::system())?;
        let session = open_session(repository, None, &Silent)?;
        Ok((Self { session, now_ms, folder }, start.elapsed().as_secs_f64()))
    }

    /// Does some work and says what it cost.
    pub(super) fn measure<T>(&self, work: impl FnOnce(&Session) -> Outcome<T>) -> Outcome<(T, Cost)> {
        let count = || {
            let Session { index, content, .. } = &self.session;
            (index.lookup_count(), content.node_read_count(), content.decoded_frame_count())
        };
        let (before, cpu, start) = (count(), cpu_seconds(), Instant::now());
        let done = work(&self.session)?;
        let (seconds, cpu_seconds) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        let after = count();
        let (lookups, nodes, frames) = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
        Ok((done, Cost { seconds, cpu_seconds, lookups, nodes, frames }))
    }

    /// Imports a disk `step_ms` after the last one; a delta over the newest snapshot of its VDI.
    pub(super) fn import(
        &mut self,
        vdi: &str,
        source: Box<dyn DiskSource>,
        base: Option<BaseChoice>,
        step_ms: i64,
    ) -> Outcome<(BackupReport, Cost)> {
        self.now_ms += step_ms;
        let input = DiskInput { base, ..DiskInput::new(vdi, source) };
        let options = BackupOptions::new(self.now_ms);
        self.measure(|session| Ok(backup(session, vec![input], &options, &Silent)?))
    }

    /// Restores the disk of a snapshot to a file, which goes at once.
    pub(super) fn restore(&self, named: &NamedSnapshot) -> Outcome<Cost> {
        let path = self.path("restored");
        let tree = named.snapshot.disks[0].tree;
        let (done, cost) = self.measure(|session| {
            let plan = RestorePlan::new(session, tree, RestoreOptions::default(), &Silent)?;
            let sink = RawFileSink::create(File::create(&path)?, tree.virtual_size)?;
            Ok(restore(session, plan, Target::File(Box::new(sink)), RestoreOptions::default(), &Silent)?)
        })?;
        std::fs::remove_file(path)?;
        if !done.holes.is_empty() {
            return Err("a restore left holes".into());
        }
        Ok(cost)
    }
}

/// CPU time of this process so far, all threads.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Forgets the peak of memory so far, where the kernel lets a process do that.
pub(super) fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The most memory this process had since the last reset, in MiB.
pub(super) fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default() / 1024
}

/// Notes how long each task of an operation takes.
#[derive(Default)]
pub(super) struct Stopwatch(Mutex<Laps>);

/// Tasks that ended with their seconds, and the one that runs with its start.
type Laps = (Vec<(String, f64)>, Option<(String, Instant)>);

impl Stopwatch {
    /// Seconds of a task, all times it was done.
    pub(super) fn seconds(&self, task: &str) -> f64 {
        self.0.lock().0.iter().filter(|(name, _)| name == task).map(|(_, seconds)| seconds).sum()
    }
}

impl Monitor for Stopwatch {
    fn begin(&self, task: &str, _total_bytes: Option<u64>) {
        self.0.lock().1 = Some((task.to_owned(), Instant::now()));
    }
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {
        let mut noted = self.0.lock();
        if let Some((task, start)) = noted.1.take() {
            noted.0.push((task, start.elapsed().as_secs_f64()));
        }
    }
    fn warn(&self, text: &str) {
        println!("  warning: {text}");
    }
    fn damage(&self, error: &repo_core::Error) {
        println!("  damage: {error}");
    }
}
