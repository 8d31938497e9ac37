//! A temporary repository, used through the library.

use std::path::{Path, PathBuf};

use repo_core::chunk::ChunkParams;
use repo_core::disk::raw::file_sink::RawFileSink;
use repo_core::disk::raw::stream_sink::RawStreamSink;
use repo_core::disk::{Delivery, DiskSource};
use repo_core::entropy::Entropy;
use repo_core::id::SnapshotId;
use repo_core::keys::slot::{Argon2Cost, Unlock};
use repo_core::monitor::Silent;
use repo_core::ops::backup::{BackupOptions, BackupReport, BaseChoice, DiskInput, backup};
use repo_core::ops::check::{CheckOptions, CheckReport, check};
use repo_core::ops::gc::{GcOptions, GcReport, gc};
use repo_core::ops::open::{Access, Reach, Session, open_session};
use repo_core::ops::restore::{RestoreOptions, RestorePlan, RestoreReport, Target, restore};
use repo_core::repository::{InitOptions, Repository};
use repo_core::seal::Suite;
use repo_core::store::{ObjectName, Store};
use repo_core::{Result, snapshot};
use tempfile::TempDir;

use crate::model::{ModelDisk, SharedBuffer};

/// The passphrase of encrypted fixtures.
pub const PASSPHRASE: &str = "correct horse battery staple";

/// A repository in a folder that goes with it.
pub struct RepoFixture {
    /// Keeps the folder; other files of a test go here too.
    pub folder: TempDir,
    /// How its sessions learn what packs there are.
    pub reach: Reach,
    suite: Suite,
    clock_ms: i64,
}

impl RepoFixture {
    /// A repository with sizes so small that a few MiB of disk cross every boundary: frames of 64 KiB, packs of 256 KiB.
    pub fn small(suite: Suite) -> Self {
        Self::create(suite, |options| {
            options.frame_len = 64 * 1024;
            options.pack_len = 256 * 1024;
            options.chunk = ChunkParams { cut_bits: 1, pages_max: 8 };
        })
    }

    /// A repository as `init` makes it.
    pub fn ordinary(suite: Suite) -> Self {
        Self::create(suite, |_| {})
    }

    fn create(suite: Suite, change: impl FnOnce(&mut InitOptions)) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut options = InitOptions::new(suite, 1_000);
        change(&mut options);
        let store = Store::create_local(&folder.path().join("repository")).expect("create store");
        Repository::create(store, &options, &unlock(suite), "first", Entropy::system()).expect("create repository");
        Self { folder, reach: Reach::Listed, suite, clock_ms: 1_000_000 }
    }

    /// An empty repository with the same keys, in a folder of its own.
    pub fn empty_copy(&self) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let store = Store::create_local(&folder.path().join("repository")).expect("create store");
        self.session().repository.copy_to(&store).expect("copy configuration and key slots");
        Self { folder, suite: self.suite, clock_ms: self.clock_ms, reach: self.reach }
    }

    /// The repository's folder.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    /// Opens the repository, as a new process would.
    pub fn session(&self) -> Session {
        self.try_session().expect("open repository")
    }

    /// Opens the repository, or says why not.
    pub fn try_session(&self) -> Result<Session> {
        let store = Store::open_local(&self.path())?;
        let repository = Repository::open(store, &unlock(self.suite), Entropy::system())?;
        let mut session = open_session(repository, None, &Silent)?;
        session.reach = self.reach;
        match self.reach {
            Reach::Listed => drop(session.catch_up(&Silent)?),
            Reach::Named => drop(session.begin("open", Access::Read, &Silent)?),
        }
        Ok(session)
    }

    /// Backs up disks as one snapshot, one second after the last.
    pub fn backup(&mut self, session: &Session, disks: Vec<(&str, Box<dyn DiskSource>)>) -> Result<BackupReport> {
        self.backup_inputs(session, disks.into_iter().map(|(vdi, source)| DiskInput::new(vdi, source)).collect())
    }

    /// Backs up one disk over a base.
    pub fn backup_over(
        &mut self,
        session: &Session,
        vdi: &str,
        source: Box<dyn DiskSource>,
        base: BaseChoice,
    ) -> Result<BackupReport> {
        self.backup_inputs(session, vec![DiskInput { base: Some(base), ..DiskInput::new(vdi, source) }])
    }

    fn backup_inputs(&mut self, session: &Session, disks: Vec<DiskInput>) -> Result<BackupReport> {
        self.clock_ms += 1_000;
        backup(session, disks, &BackupOptions { level: 1, ..BackupOptions::new(self.clock_ms) }, &Silent)
    }

    /// Backs up one model disk in ascending order.
    pub fn backup_model(&mut self, session: &Session, vdi: &str, disk: &ModelDisk) -> BackupReport {
        self.backup(session, vec![(vdi, disk.source(Delivery::Ascending))]).expect("backup")
    }

    /// Backs up one delta over a snapshot.
    ///
    /// # Errors
    /// Those of the backup.
    pub fn backup_delta(
        &mut self,
        session: &Session,
        vdi: &str,
        source: Box<dyn DiskSource>,
        base: SnapshotId,
    ) -> Result<BackupReport> {
        self.clock_ms += 1_000;
        let disks = vec![DiskInput { base: Some(BaseChoice::Snapshot(base)), ..DiskInput::new(vdi, source) }];
        backup(session, disks, &BackupOptions { level: 1, ..BackupOptions::new(self.clock_ms) }, &Silent)
    }

    /// Deletes a snapshot record.
    pub fn forget(&self, session: &Session, id: SnapshotId) {
        session.repository.store.delete(ObjectName::Snapshot(id)).expect("forget");
    }

    /// Collects garbage without grace time, one second after the last backup or collection.
    pub fn gc(&mut self, session: &Session) -> GcReport {
        self.clock_ms += 1_000;
        gc(session, &gc_options(self.clock_ms), &Silent).expect("gc")
    }

    /// Checks the repository, reading everything.
    pub fn check_all(&self) -> CheckReport {
        check(&self.session(), CheckOptions { read_data: true }, &Silent).expect("check runs")
    }
}

/// Where the first frame stands in a pack: after the header and, in a data pack of an encrypted repository, the encapsulation.
///
/// # Panics
/// When the bytes are shorter than a header.
pub fn first_frame_offset(pack: &[u8]) -> usize {
    64 + usize::from(u16::from_le_bytes([pack[18], pack[19]]))
}

/// A collection without grace time that leaves no waste.
pub fn gc_options(now_ms: i64) -> GcOptions {
    GcOptions { grace_ms: 0, dead_share_max: 0.0, level: 1, ..GcOptions::new(now_ms) }
}

/// What opens a fixture of a suite.
pub fn unlock(suite: Suite) -> Unlock<'static> {
    match suite {
        Suite::None => Unlock::Open,
        Suite::Aes256Gcm => Unlock::Passphrase { text: PASSPHRASE, cost: Argon2Cost::CHEAPEST },
    }
}

/// Restores a disk of a snapshot into memory through the stream path.
///
/// # Errors
/// Those of the restore.
pub fn restore_stream(
    session: &Session,
    id: SnapshotId,
    vdi: &str,
    options: RestoreOptions,
) -> Result<(Vec<u8>, RestoreReport)> {
    let named = snapshot::read(&session.repository, id)?;
    let tree = named.snapshot.disk(vdi).expect("the disk is in the snapshot").tree;
    let plan = RestorePlan::new(session, tree, options, &Silent)?;
    let buffer = SharedBuffer::default();
    let sink = RawStreamSink::create(buffer.clone(), tree.virtual_size)?;
    let report = restore(session, plan, Target::Stream(Box::new(sink)), options, &Silent)?;
    let bytes = std::mem::take(&mut *buffer.0.lock().expect("no writer panicked"));
    Ok((bytes, report))
}

/// Restores a disk of a snapshot into a raw file, and gives its bytes.
///
/// # Errors
/// Those of the restore.
pub fn restore_file(session: &Session, id: SnapshotId, vdi: &str, path: &Path) -> Result<Vec<u8>> {
    let named = snapshot::read(&session.repository, id)?;
    let tree = named.snapshot.disk(vdi).expect("the disk is in the snapshot").tree;
    let options = RestoreOptions::default();
    let plan = RestorePlan::new(session, tree, options, &Silent)?;
    let file = std::fs::File::create(path).expect("create target");
    let sink = RawFileSink::create(file, tree.virtual_size)?;
    restore(session, plan, Target::File(Box::new(sink)), options, &Silent)?;
    Ok(std::fs::read(path).expect("read target"))
}
