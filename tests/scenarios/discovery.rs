//! Indexes that do not list packs: what snapshot records and tombstones name is all they see, as on an object store.

use repo_core::disk::Delivery;
use repo_core::entropy::Entropy;
use repo_core::id::SnapshotId;
use repo_core::monitor::Silent;
use repo_core::ops::backup::{BackupOptions, DiskInput, backup};
use repo_core::ops::gc::{GcOptions, gc};
use repo_core::ops::open::{Access, Reach, Session, open_session};
use repo_core::ops::restore::RestoreOptions;
use repo_core::repository::Repository;
use repo_core::seal::Suite;
use repo_core::store::Store;
use repo_tests::fixture::{RepoFixture, gc_options, restore_stream, unlock};
use repo_tests::model::ModelDisk;

const SUITE: Suite = Suite::None;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// A machine with an index of its own, which comes back for each command.
struct Machine<'a> {
    fixture: &'a RepoFixture,
    cache: std::path::PathBuf,
}

impl<'a> Machine<'a> {
    fn new(fixture: &'a RepoFixture, name: &str) -> Self {
        // A file in the place of the folder `index`: each machine's index is in its own cache.
        let index = fixture.path().join("index");
        if index.is_dir() {
            std::fs::remove_dir_all(&index).unwrap();
            std::fs::write(&index, b"").unwrap();
        }
        Self { fixture, cache: fixture.folder.path().join(name) }
    }

    fn session(&self) -> Session {
        let store = Store::open_local(&self.fixture.path()).unwrap();
        let repository = Repository::open(store, &unlock(SUITE), Entropy::system()).unwrap();
        let mut session = open_session(repository, Some(&self.cache), &Silent).unwrap();
        session.reach = Reach::Named;
        session
    }

    fn back_up(&self, vdi: &str, disk: &ModelDisk, time_ms: i64) -> (SnapshotId, u64) {
        let options = BackupOptions { level: 1, ..BackupOptions::new(time_ms) };
        let session = self.session();
        let report =
            backup(&session, vec![DiskInput::new(vdi, disk.source(Delivery::Ascending))], &options, &Silent).unwrap();
        (report.snapshot.id, report.new_bytes)
    }

    /// Restores a snapshot, and tells whether all packs were listed for it.
    fn restores(&self, id: SnapshotId, vdi: &str, disk: &ModelDisk) -> bool {
        let session = self.session();
        let (bytes, _) = restore_stream(&session, id, vdi, RestoreOptions::default()).unwrap();
        assert!(bytes == disk.to_bytes());
        session.index.has_listed()
    }

    fn collect(&self, now_ms: i64) {
        gc(&self.session(), &gc_options(now_ms), &Silent).unwrap();
    }

    fn forget(&self, id: SnapshotId) {
        self.fixture.forget(&self.session(), id);
    }

    /// Begins work, and tells whether all packs were listed for it.
    fn looks(&self) -> bool {
        let session = self.session();
        session.begin("look", Access::Read, &Silent).unwrap();
        session.index.has_listed()
    }
}

#[test]
fn what_others_store_and_move_is_found_without_a_listing_of_packs() {
    let fixture = RepoFixture::small(SUITE);
    let (one, other) = (Machine::new(&fixture, "one"), Machine::new(&fixture, "other"));
    let disk = ModelDisk::scattered(9 << 20, 3, 1);
    let (first, _) = one.back_up("a", &disk, 1_000);
    assert!(other.looks(), "an index that is new lists once");
    assert!(!other.looks());

    let mut changed = disk.clone();
    changed.pages.extend(ModelDisk::scattered(9 << 20, 2, 2).pages);
    let (second, _) = one.back_up("a", &changed, 2_000);
    assert!(!other.restores(second, "a", &changed));
    assert_eq!(other.back_up("b", &changed, 3_000).1, 0, "what another machine stored is not stored again");

    // What is left of the packs moves, and the old packs go.
    one.forget(first);
    one.collect(4_000);
    one.collect(5_000);
    assert!(!other.restores(second, "a", &changed));
    assert_eq!(other.back_up("c", &changed, 6_000).1, 0);
    drop((one, other));
    std::fs::remove_file(fixture.path().join("index")).unwrap();
    assert!(fixture.check_all().is_clean());
}

#[test]
fn an_index_that_slept_until_tombstones_were_dropped_lists_once() {
    let fixture = RepoFixture::small(SUITE);
    let (one, sleeper) = (Machine::new(&fixture, "one"), Machine::new(&fixture, "sleeper"));
    let kept = ModelDisk::scattered(5 << 20, 3, 1);
    let (id, _) = one.back_up("kept", &kept, 1_000);
    sleeper.looks();
    for round in 0..3_u64 {
        let now_ms = 10_000 + round as i64 * 40 * DAY_MS;
        let (waste, _) = one.back_up("waste", &ModelDisk::scattered(5 << 20, 3, 10 + round), now_ms);
        one.forget(waste);
        one.collect(now_ms + 1_000);
        one.collect(now_ms + 2_000);
    }
    assert!(sleeper.looks(), "tombstones are gone that it never saw");
    assert!(!sleeper.looks());
    assert!(!sleeper.restores(id, "kept", &kept));
    assert_eq!(sleeper.back_up("again", &kept, 200 * DAY_MS).1, 0);
}

/// A snapshot does not name what it shares with a complete parent. When that was forgotten before another machine saw it,
/// nothing names the packs.
#[test]
fn what_nothing_names_is_found_by_a_listing_before_it_counts_as_missing() {
    let fixture = RepoFixture::small(SUITE);
    let (one, other) = (Machine::new(&fixture, "one"), Machine::new(&fixture, "other"));
    one.back_up("else", &ModelDisk::scattered(3 << 20, 3, 9), 500);
    other.looks();
    let disk = ModelDisk::scattered(9 << 20, 3, 1);
    let (parent, _) = one.back_up("a", &disk, 1_000);
    let mut changed = disk.clone();
    changed.pages.insert(5, ModelDisk::scattered(1 << 20, 1, 4).pages.into_values().next().unwrap());
    let (child, _) = one.back_up("a", &changed, 2_000);
    one.forget(parent);
    assert!(other.restores(child, "a", &changed), "it had to list");
    let options = GcOptions { dry_run: true, ..gc_options(3_000) };
    assert_eq!(gc(&one.session(), &options, &Silent).unwrap().snapshots, 2);
}
