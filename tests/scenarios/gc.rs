//! Garbage collection: it frees what nobody needs, loses nothing, and does so while others work.
//!
//! Interleavings are explored without threads: a backup is stopped between two blocks, a collection between two of its
//! steps, and other operations run in sessions of their own before it goes on.

mod moments;
mod world;

use std::sync::{Arc, Mutex};

use repo_core::disk::Delivery;
use repo_core::lease::Lease;
use repo_core::monitor::{Monitor, Silent};
use repo_core::ops::backup::{BackupOptions, DiskInput, backup};
use repo_core::ops::gc::{GcOptions, gc};
use repo_core::ops::open::{Reach, Session};
use repo_core::ops::restore::RestoreOptions;
use repo_core::seal::Suite;
use repo_core::{Error, ErrorKind};
use repo_tests::fixture::{RepoFixture, first_frame_offset, gc_options, restore_stream};
use repo_tests::model::ModelDisk;

use world::{Hooked, Op, World, new_disk};

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
    let lease = Lease::put(&other.repository, "restore").unwrap();
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
    let lease = Lease::put(&other.repository, "restore").unwrap();
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
    let lease = Lease::put(&other.repository, "gc").unwrap();
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
    let lease = Lease::put(&session.repository, "import").unwrap();
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
    // An index that kept the record would do.
    drop(session);
    std::fs::remove_dir_all(fixture.path().join("index")).unwrap();
    let session = fixture.session();
    session.catch_up(&Silent).unwrap();
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

#[test]
fn every_disk_of_a_snapshot_is_needed() {
    let mut fixture = RepoFixture::small(Suite::None);
    let session = fixture.session();
    let disks = [1, 2, 3].map(|seed| ModelDisk::scattered(3 << 20, 3, seed));
    let inputs = ["a", "b", "c"].into_iter().zip(&disks).map(|(vdi, disk)| (vdi, disk.source(Delivery::Ascending)));
    let id = fixture.backup(&session, inputs.collect()).unwrap().snapshot.id;
    fixture.gc(&session);
    fixture.gc(&session);
    for (vdi, disk) in ["a", "b", "c"].into_iter().zip(&disks) {
        assert!(restore_stream(&session, id, vdi, RestoreOptions::default()).unwrap().0 == disk.to_bytes(), "{vdi}");
    }
}

/// A wasteful pack with a damaged frame cannot be emptied, so it stays, with all that is sound in it.
#[test]
fn a_pack_that_cannot_be_moved_whole_stays_where_it_is() {
    let mut fixture = RepoFixture::small(Suite::None);
    let session = fixture.session();
    let kept = ModelDisk::scattered(3 << 20, 3, 1);
    let mut dropped = kept.clone();
    dropped.pages.extend(ModelDisk::scattered(3 << 20, 2, 2).pages);
    let first = fixture.backup_model(&session, "a", &dropped).snapshot.id;
    let id = fixture.backup_model(&session, "a", &kept).snapshot.id;
    fixture.forget(&session, first);
    for pack in session.index.packs().iter().filter(|pack| pack.content == repo_core::pack::Content::Data).take(2) {
        let path = fixture.path().join(repo_core::store::ObjectName::Pack(pack.id).path());
        let mut bytes = std::fs::read(&path).unwrap();
        let at = first_frame_offset(&bytes) + 6;
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
    drop(session);
    let session = fixture.session();
    let going_on = RestoreOptions { keep_going: true };
    let before = restore_stream(&session, id, "a", going_on).unwrap();
    let holes: u64 = before.1.holes.iter().map(|hole| hole.end - hole.start).sum();
    assert!(holes > 0 && holes < kept.virtual_size / 4, "{holes} bytes are damaged");
    let report = fixture.gc(&session);
    assert!(report.repacked_packs > 0, "{report:?}");
    fixture.gc(&session);
    drop(session);
    let after = restore_stream(&fixture.session(), id, "a", going_on).unwrap();
    assert!(after.0 == before.0 && after.1.holes == before.1.holes, "what was sound beside the damage is gone");
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

fn in_both_reaches(ops: Vec<Op>) -> [(Vec<Op>, Reach); 2] {
    [(ops.clone(), Reach::Listed), (ops, Reach::Named)]
}

#[test]
fn whatever_happens_during_a_backup_every_live_snapshot_restores() {
    for before in [&[][..], &[Op::Forget], &[Op::Forget, Op::Gc]] {
        for at in [0, 2] {
            for (during, reach) in interruptions().into_iter().flat_map(in_both_reaches) {
                let world = World::with(reach);
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
                println!("{reach:?}: {before:?}, then a backup with {during:?} before its block {at}");
                world.settle();
            }
        }
    }
}

#[test]
fn whatever_happens_during_a_collection_every_live_snapshot_restores() {
    for task in ["walking manifests", "reading pack directories", "following the newest snapshots", "repacking"] {
        for (during, reach) in interruptions().into_iter().flat_map(in_both_reaches) {
            let world = World::with(reach);
            // A second, smaller backup leaves packs that are partly needed.
            world.run(Op::Backup);
            world.run(Op::Forget);
            let hook = HookedMonitor { task, world: world.clone(), ops: Mutex::new(during.clone()) };
            let session = world.fixture.session();
            gc(&session, &gc_options(world.now_ms()), &hook).unwrap();
            drop(session);
            println!("{reach:?}: a collection with {during:?} when it began {task:?}");
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
