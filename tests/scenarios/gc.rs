//! Garbage collection: it frees what nobody needs, loses nothing, and does so while others work.
//!
//! Interleavings are explored without threads: a backup is stopped between two blocks, a collection between two of its
//! steps, and other operations run in sessions of their own before it goes on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use repo_core::disk::{BlockBuf, Delivery, DiskFormat, DiskSource};
use repo_core::id::SnapshotId;
use repo_core::lease::Lease;
use repo_core::monitor::{Monitor, Silent};
use repo_core::ops::backup::{BackupOptions, DiskInput, backup};
use repo_core::ops::gc::{GcOptions, gc};
use repo_core::ops::open::{Session, rebuild_index};
use repo_core::ops::restore::RestoreOptions;
use repo_core::seal::Suite;
use repo_core::units::BlockIndex;
use repo_core::{Error, ErrorKind};
use repo_tests::fixture::{RepoFixture, gc_options, restore_stream};
use repo_tests::model::ModelDisk;

fn pack_bytes(session: &Session) -> u64 {
    session.repository.store.list_packs().unwrap().iter().map(|pack| pack.len).sum()
}

#[test]
fn what_was_forgotten_is_freed_and_the_rest_stays() {
    for suite in [Suite::Aes256Gcm, Suite::None] {
        let mut fixture = RepoFixture::small(suite);
        let session = fixture.session();
        let kept = ModelDisk::scattered(9 << 20, 3, 1);
        let mut dropped = kept.clone();
        // Half of the dropped disk is its own: packs of both halves are mixed, since it comes first.
        dropped.pages.extend(ModelDisk::scattered(9 << 20, 2, 2).pages);
        let first = fixture.backup_model(&session, "a", &dropped).snapshot.id;
        let second = fixture.backup_model(&session, "a", &kept).snapshot.id;
        let only_kept = {
            let mut other = RepoFixture::small(suite);
            let session = other.session();
            other.backup_model(&session, "a", &kept);
            pack_bytes(&session)
        };
        fixture.forget(&session, first);
        let before = pack_bytes(&session);
        let report = fixture.gc(&session);
        assert!(report.deleted_packs > 0 && report.repacked_packs > 0, "{report:?}");
        assert_eq!((report.waiting_packs, report.waste_bytes), (0, 0));
        let after = pack_bytes(&session);
        assert!(after < before && after < only_kept * 21 / 20, "{before} before, {after} after, {only_kept} alone");
        assert!(restore_stream(&session, second, "a", RestoreOptions::default()).unwrap().0 == kept.to_bytes());
        // Nothing is left to do, and the same index goes on.
        let again = fixture.gc(&session);
        assert_eq!((again.condemned_packs, again.repacked_packs, again.deleted_packs), (0, 0, 0));
        let next = fixture.backup_model(&session, "a", &kept);
        assert_eq!((next.new_bytes, next.unchanged_blocks), (0, next.blocks));
        drop(session);
        assert!(fixture.check_all().is_clean());
    }
}

#[test]
fn packs_of_an_import_that_was_never_finished_are_freed() {
    let mut fixture = RepoFixture::small(Suite::None);
    let session = fixture.session();
    let disk = ModelDisk::scattered(9 << 20, 2, 1);
    let source = Hooked::source(&disk, |block| (block == 3).then(|| Error::invalid("the source broke off")));
    assert!(fixture.backup(&session, vec![("a", source)]).is_err());
    assert!(pack_bytes(&session) > 0);
    let report = fixture.gc(&session);
    assert_eq!((pack_bytes(&session), report.snapshots), (0, 0));
}

#[test]
fn condemned_packs_wait_for_the_grace_time_and_for_who_is_at_work() {
    let mut fixture = RepoFixture::small(Suite::None);
    let session = fixture.session();
    let disk = ModelDisk::scattered(5 << 20, 2, 1);
    let id = fixture.backup_model(&session, "a", &disk).snapshot.id;
    fixture.forget(&session, id);
    let options = |now_ms, grace_ms| GcOptions { grace_ms, ..gc_options(now_ms) };
    let report = gc(&session, &options(5_000_000, 60_000), &Silent).unwrap();
    assert!(report.condemned_packs > 0 && report.waiting_packs == report.condemned_packs, "{report:?}");
    assert_eq!(gc(&session, &options(5_059_999, 60_000), &Silent).unwrap().deleted_packs, 0);

    let other = fixture.session();
    let lease = Lease::put(other.repository.clone(), "restore").unwrap();
    // This lease is younger than the tombstone: whoever holds it has seen it, and is not waited for.
    let report = gc(&session, &options(5_060_000, 60_000), &Silent).unwrap();
    assert!(report.deleted_packs > 0 && pack_bytes(&session) == 0, "{report:?}");

    // With another disk, the lease is older than the tombstone.
    let id = fixture.backup_model(&session, "a", &ModelDisk::scattered(5 << 20, 2, 7)).snapshot.id;
    fixture.forget(&session, id);
    let report = fixture.gc(&session);
    assert_eq!(report.deleted_packs, 0, "packs younger than the lease are not even condemned");
    assert!(report.young_packs > 0);
    drop(lease);
    let lease = Lease::put(other.repository.clone(), "restore").unwrap();
    let report = fixture.gc(&session);
    assert!(report.condemned_packs > 0 && report.deleted_packs == 0, "{report:?}");
    assert_eq!(report.waits_for[0].operation, "restore");
    assert_eq!(fixture.gc(&session).deleted_packs, 0);
    drop(lease);
    assert!(fixture.gc(&session).deleted_packs > 0);
    assert_eq!(pack_bytes(&session), 0);
}

#[test]
fn a_second_collection_at_once_is_refused() {
    let fixture = RepoFixture::small(Suite::None);
    let (session, other) = (fixture.session(), fixture.session());
    let lease = Lease::put(other.repository.clone(), "gc").unwrap();
    let error = gc(&session, &gc_options(5_000_000), &Silent).unwrap_err();
    assert!(error.kind() == ErrorKind::Locked && error.to_string().contains("another collection"), "{error}");
    assert!(gc(&session, &GcOptions { dry_run: true, ..gc_options(5_000_000) }, &Silent).is_ok());
    drop(lease);
    assert!(gc(&session, &gc_options(5_000_000), &Silent).is_ok());
}

#[test]
fn the_lease_of_a_dead_process_holds_nothing_up() {
    let mut fixture = RepoFixture::small(Suite::None);
    let session = fixture.session();
    let id = fixture.backup_model(&session, "a", &ModelDisk::scattered(5 << 20, 2, 1)).snapshot.id;
    fixture.forget(&session, id);
    // A killed process leaves its lease, which nobody holds any more.
    let lease = Lease::put(session.repository.clone(), "import").unwrap();
    let left = fixture.path().join("leases").join(lease.id().unwrap().to_hex());
    let bytes = std::fs::read(&left).unwrap();
    drop(lease);
    std::fs::write(&left, bytes).unwrap();
    assert!(fixture.gc(&session).deleted_packs > 0);
    assert!(!left.exists());
}

#[test]
fn a_backup_whose_lease_was_taken_away_does_not_commit() {
    let fixture = RepoFixture::small(Suite::None);
    let session = fixture.session();
    let folder = fixture.path().join("leases");
    let source = Hooked::source(&ModelDisk::scattered(5 << 20, 2, 1), move |block| {
        if block == 1 {
            for lease in std::fs::read_dir(&folder).unwrap() {
                std::fs::remove_file(lease.unwrap().path()).unwrap();
            }
        }
        None
    });
    let disks = vec![DiskInput::new("a", source)];
    let error = backup(&session, disks, &BackupOptions::new(5), &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(session.repository.store.list_snapshots().unwrap().is_empty());
}

#[test]
fn what_cannot_be_read_stops_the_collection_before_it_deletes_anything() {
    let mut fixture = RepoFixture::small(Suite::None);
    let session = fixture.session();
    let first = fixture.backup_model(&session, "a", &ModelDisk::scattered(5 << 20, 2, 1)).snapshot.id;
    let second = fixture.backup_model(&session, "b", &ModelDisk::scattered(5 << 20, 2, 2)).snapshot.id;
    fixture.forget(&session, first);
    let record = fixture.path().join("snapshots").join(second.to_hex());
    let whole = std::fs::read(&record).unwrap();
    std::fs::write(&record, &whole[..whole.len() - 1]).unwrap();
    let before = pack_bytes(&session);
    let error = gc(&session, &gc_options(9_000_000), &Silent).unwrap_err();
    assert!(error.to_string().contains("nothing was deleted"), "{error}");
    std::fs::write(&record, &whole).unwrap();

    // Manifests that are gone: their snapshot's chunks must not be taken for garbage.
    let metas: Vec<_> =
        session.index.packs().into_iter().filter(|pack| pack.content == repo_core::pack::Content::Meta).collect();
    for pack in &metas {
        let path = fixture.path().join("packs").join(&pack.id.to_hex()[..2]).join(pack.id.to_hex());
        std::fs::remove_file(path).unwrap();
    }
    let error = gc(&session, &gc_options(9_000_000), &Silent).unwrap_err();
    assert!(error.to_string().contains("nothing was deleted"), "{error}");
    let missing: u64 = metas.iter().map(|pack| pack.len).sum();
    assert_eq!(pack_bytes(&session), before - missing);
}

/// What may happen while something else is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Forget,
    Gc,
    Backup,
    Restore,
    Rebuild,
}

/// A repository, what is in it, and operations on it, each in a session of its own as another process would.
struct World {
    fixture: RepoFixture,
    clock_ms: AtomicI64,
    /// Snapshots that must restore.
    live: Mutex<BTreeMap<SnapshotId, (String, ModelDisk)>>,
    /// Snapshots that may be forgotten, in that order, last first.
    to_forget: Mutex<Vec<SnapshotId>>,
    /// Backups taken by `Op::Backup`.
    extra: AtomicI64,
}

/// The disk that is forgotten, and whose content the backup under way finds again.
fn old_disk() -> ModelDisk {
    ModelDisk::scattered(5 << 20, 4, 11)
}

/// What the backup under way stores: half of the forgotten disk and something new.
fn new_disk() -> ModelDisk {
    let mut disk = ModelDisk::scattered(5 << 20, 9, 12);
    disk.pages.extend(old_disk().pages.into_iter().filter(|(page, _)| page % 64 < 32));
    disk
}

impl World {
    fn new() -> Arc<Self> {
        let mut fixture = RepoFixture::small(Suite::None);
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

    fn now_ms(&self) -> i64 {
        self.clock_ms.fetch_add(1000, Ordering::Relaxed)
    }

    fn run(&self, op: Op) {
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

    fn back_up(
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

    fn restore_all(&self, session: &Session) {
        for (id, (vdi, disk)) in &*self.live.lock().unwrap() {
            let (bytes, _) = restore_stream(session, *id, vdi, RestoreOptions::default()).unwrap();
            assert!(bytes == disk.to_bytes(), "snapshot {id} of {vdi} differs");
        }
    }

    /// All live snapshots restore, nothing is damaged, and two more collections leave nothing that is not needed.
    fn settle(&self) {
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

/// Sequences of operations up to a length.
fn words(alphabet: &[Op], len_max: usize) -> Vec<Vec<Op>> {
    let mut words: Vec<Vec<Op>> = vec![vec![]];
    let mut last = words.clone();
    for _ in 0..len_max {
        last = last.iter().flat_map(|word| alphabet.iter().map(move |op| [&word[..], &[*op]].concat())).collect();
        words.extend(last.iter().cloned());
    }
    words
}

/// Sequences worth trying while something else is under way.
fn interruptions() -> Vec<Vec<Op>> {
    use Op::{Backup, Forget, Gc, Rebuild, Restore};
    let mut all = words(&[Forget, Gc, Backup], 2);
    all.extend([
        vec![Forget, Gc, Gc],
        vec![Gc, Forget, Gc],
        vec![Forget, Gc, Backup, Gc],
        vec![Forget, Gc, Rebuild, Gc],
        vec![Forget, Restore, Gc, Restore],
    ]);
    all
}

#[test]
fn whatever_happens_during_a_backup_every_live_snapshot_restores() {
    for before in [&[][..], &[Op::Forget], &[Op::Forget, Op::Gc]] {
        for at in [0, 2] {
            for during in interruptions() {
                let world = World::new();
                before.iter().for_each(|op| world.run(*op));
                let (inner, ops) = (world.clone(), during.clone());
                let session = world.fixture.session();
                world.back_up(&session, "new", &new_disk(), move |block| {
                    if block == at {
                        ops.iter().for_each(|op| inner.run(*op));
                    }
                    None
                });
                drop(session);
                println!("{before:?}, then a backup with {during:?} before its block {at}");
                world.settle();
            }
        }
    }
}

#[test]
fn whatever_happens_during_a_collection_every_live_snapshot_restores() {
    for task in ["walking manifests", "reading pack directories", "repacking"] {
        for during in interruptions() {
            let world = World::new();
            // A second, smaller backup leaves packs that are partly needed.
            world.run(Op::Backup);
            world.run(Op::Forget);
            let hook = HookedMonitor { task, world: world.clone(), ops: Mutex::new(during.clone()) };
            let session = world.fixture.session();
            gc(&session, &gc_options(world.now_ms()), &hook).unwrap();
            drop(session);
            println!("a collection with {during:?} when it began {task:?}");
            world.settle();
        }
    }
}

/// Runs operations when a task begins, once.
struct HookedMonitor {
    task: &'static str,
    world: Arc<World>,
    ops: Mutex<Vec<Op>>,
}

impl Monitor for HookedMonitor {
    fn begin(&self, task: &str, _total_bytes: Option<u64>) {
        if task == self.task {
            let ops = std::mem::take(&mut *self.ops.lock().unwrap());
            ops.into_iter().for_each(|op| self.world.run(op));
        }
    }
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
    fn warn(&self, text: &str) {
        println!("warning: {text}");
    }
    fn damage(&self, error: &Error) {
        panic!("damage: {error:?}");
    }
}

/// A source that calls a function before each block; an error from it is the source's.
struct Hooked<Hook> {
    inner: Box<dyn DiskSource>,
    hook: Hook,
    block: u64,
}

impl<Hook: FnMut(u64) -> Option<Error> + Send + 'static> Hooked<Hook> {
    fn source(disk: &ModelDisk, hook: Hook) -> Box<dyn DiskSource> {
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
