//! A repository in which things happen at chosen moments, each in a session of its own as in another process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use repo_core::disk::{BlockBuf, Delivery, DiskFormat, DiskSource};
use repo_core::id::SnapshotId;
use repo_core::monitor::Silent;
use repo_core::ops::backup::{BackupOptions, DiskInput, backup};
use repo_core::ops::gc::gc;
use repo_core::ops::open::{Reach, Session, rebuild_index};
use repo_core::ops::restore::RestoreOptions;
use repo_core::seal::Suite;
use repo_core::units::BlockIndex;
use repo_core::{Error, ErrorKind};
use repo_tests::fixture::{RepoFixture, gc_options, restore_stream};
use repo_tests::model::ModelDisk;

/// What may happen while something else is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Forget,
    Gc,
    Backup,
    Restore,
    Rebuild,
}

/// A repository, what is in it, and operations on it, each in a session of its own as another process would.
pub(super) struct World {
    pub(super) fixture: RepoFixture,
    clock_ms: AtomicI64,
    /// Snapshots that must restore.
    pub(super) live: Mutex<BTreeMap<SnapshotId, (String, ModelDisk)>>,
    /// Snapshots that may be forgotten, in that order, last first.
    pub(super) to_forget: Mutex<Vec<SnapshotId>>,
    /// Backups taken by `Op::Backup`.
    extra: AtomicI64,
}

/// The disk that is forgotten, and whose content the backup under way finds again.
pub(super) fn old_disk() -> ModelDisk {
    ModelDisk::scattered(5 << 20, 4, 11)
}

/// What the backup under way stores: half of the forgotten disk and something new.
pub(super) fn new_disk() -> ModelDisk {
    let mut disk = ModelDisk::scattered(5 << 20, 9, 12);
    disk.pages.extend(old_disk().pages.into_iter().filter(|(page, _)| page % 64 < 32));
    disk
}

impl World {
    pub(super) fn new() -> Arc<Self> {
        Self::with(Reach::Listed)
    }

    pub(super) fn with(reach: Reach) -> Arc<Self> {
        let mut fixture = RepoFixture::small(Suite::None);
        fixture.reach = reach;
        let session = fixture.session();
        let mut live = BTreeMap::new();
        let mut to_forget = Vec::new();
        for (vdi, disk) in [("old", old_disk()), ("kept", ModelDisk::scattered(3 << 20, 4, 13)), ("old", old_disk())] {
            let id = fixture.backup_model(&session, vdi, &disk).snapshot.id;
            live.insert(id, (vdi.to_owned(), disk));
            if vdi == "old" {
                to_forget.push(id);
            }
        }
        drop(session);
        let (live, to_forget) = (Mutex::new(live), Mutex::new(to_forget));
        Arc::new(Self { fixture, clock_ms: AtomicI64::new(10_000_000), live, to_forget, extra: AtomicI64::new(0) })
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.clock_ms.fetch_add(1000, Ordering::Relaxed)
    }

    pub(super) fn run(&self, op: Op) {
        let session = self.fixture.session();
        match op {
            Op::Forget => {
                // All at once: then nothing of the old disk is needed any more.
                for id in self.to_forget.lock().unwrap().drain(..) {
                    self.fixture.forget(&session, id);
                    self.live.lock().unwrap().remove(&id);
                }
            }
            Op::Gc => match gc(&session, &gc_options(self.now_ms()), &Silent) {
                // Within another collection.
                Err(error) if error.kind() == ErrorKind::Locked => {}
                done => drop(done.unwrap()),
            },
            Op::Backup => {
                let number = self.extra.fetch_add(1, Ordering::Relaxed);
                let mut disk = old_disk();
                disk.pages.retain(|page, _| page % 7 > number as u64);
                self.back_up(&session, "extra", &disk, |_| None);
            }
            Op::Restore => self.restore_all(&session),
            Op::Rebuild => {
                let store = repo_core::store::Store::open_local(&self.fixture.path()).unwrap();
                let unlock = repo_tests::fixture::unlock(Suite::None);
                let repository =
                    repo_core::repository::Repository::open(store, &unlock, repo_core::entropy::Entropy::system());
                drop(rebuild_index(repository.unwrap(), None, &Silent).unwrap());
            }
        }
    }

    pub(super) fn back_up(
        &self,
        session: &Session,
        vdi: &str,
        disk: &ModelDisk,
        hook: impl FnMut(u64) -> Option<Error> + Send + 'static,
    ) {
        let disks = vec![DiskInput::new(vdi, Hooked::source(disk, hook))];
        let options = BackupOptions { level: 1, ..BackupOptions::new(self.now_ms()) };
        let report = backup(session, disks, &options, &Silent).unwrap();
        self.live.lock().unwrap().insert(report.snapshot.id, (vdi.to_owned(), disk.clone()));
    }

    pub(super) fn restore_all(&self, session: &Session) {
        for (id, (vdi, disk)) in &*self.live.lock().unwrap() {
            let (bytes, _) = restore_stream(session, *id, vdi, RestoreOptions::default()).unwrap();
            assert!(bytes == disk.to_bytes(), "snapshot {id} of {vdi} differs");
        }
    }

    /// All live snapshots restore, nothing is damaged, and two more collections leave nothing that is not needed.
    pub(super) fn settle(&self) {
        self.restore_all(&self.fixture.session());
        let report = self.fixture.check_all();
        assert!(report.is_clean(), "{report:?}");
        self.run(Op::Gc);
        self.run(Op::Gc);
        let session = self.fixture.session();
        let rest = gc(&session, &gc_options(self.now_ms()), &Silent).unwrap();
        let left = (rest.waste_bytes, rest.waiting_packs, rest.young_packs, rest.condemned_packs, rest.deleted_packs);
        assert_eq!(left, (0, 0, 0, 0, 0), "{rest:?}");
        self.restore_all(&session);
        drop(session);
        assert!(self.fixture.check_all().is_clean());
        assert!(std::fs::read_dir(self.fixture.path().join("leases")).unwrap().next().is_none());
    }
}

/// A source that calls a function before each block; an error from it is the source's.
pub(super) struct Hooked<Hook> {
    inner: Box<dyn DiskSource>,
    hook: Hook,
    block: u64,
}

impl<Hook: FnMut(u64) -> Option<Error> + Send + 'static> Hooked<Hook> {
    pub(super) fn source(disk: &ModelDisk, hook: Hook) -> Box<dyn DiskSource> {
        Box::new(Self { inner: disk.source(Delivery::Ascending), hook, block: 0 })
    }
}

impl<Hook: FnMut(u64) -> Option<Error> + Send> DiskSource for Hooked<Hook> {
    fn virtual_size(&self) -> Option<u64> {
        self.inner.virtual_size()
    }

    fn format(&self) -> DiskFormat {
        self.inner.format()
    }

    fn delivery(&self) -> Delivery {
        self.inner.delivery()
    }

    fn next_block(&mut self, buf: &mut BlockBuf) -> repo_core::Result<Option<BlockIndex>> {
        if let Some(error) = (self.hook)(self.block) {
            return Err(error);
        }
        self.block += 1;
        self.inner.next_block(buf)
    }
}
