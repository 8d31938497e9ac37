//! Finer interleavings: at every moment of a collection or a backup at which it draws randomness, which is right before it
//! stores an object, or tells its monitor something. Others run in threads and sessions of their own, and hand over to each
//! other at these moments alone.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use repo_core::disk::Delivery;
use repo_core::disk::raw::stream_sink::RawStreamSink;
use repo_core::entropy::Entropy;
use repo_core::lease::Lease;
use repo_core::monitor::{Monitor, Silent};
use repo_core::ops::backup::{BackupOptions, BaseChoice, DiskInput, backup};
use repo_core::ops::gc::gc;
use repo_core::ops::open::{Session, open_session};
use repo_core::ops::restore::{RestoreOptions, RestorePlan, Target, restore};
use repo_core::repository::Repository;
use repo_core::seal::Suite;
use repo_core::store::{ObjectName, Store};
use repo_core::tombstone::{self, Stage, Tombstone};
use repo_core::{Error, ErrorKind, snapshot};
use repo_tests::fixture::{gc_options, unlock};
use repo_tests::model::{ModelDisk, SharedBuffer};

use super::world::{Hooked, Op, World, new_disk, old_disk};

/// Counts moments, and acts at them.
struct Observer {
    count: AtomicUsize,
    act: Box<dyn Fn(usize) + Send + Sync>,
}

impl Observer {
    fn new(act: impl Fn(usize) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { count: AtomicUsize::new(0), act: Box::new(act) })
    }

    fn moment(&self) {
        (self.act)(self.count.fetch_add(1, Ordering::SeqCst));
    }

    /// A session whose every draw of randomness is a moment.
    fn session(self: &Arc<Self>, world: &World) -> Session {
        let observer = self.clone();
        let store = Store::open_local(&world.fixture.path()).unwrap();
        let entropy = Entropy::observed(self.count.load(Ordering::SeqCst) as u64, move || observer.moment());
        let repository = Repository::open(store, &unlock(Suite::None), entropy).unwrap();
        open_session(repository, None, &Silent).unwrap()
    }
}

impl Monitor for Observer {
    fn begin(&self, _task: &str, _total_bytes: Option<u64>) {
        self.moment();
    }
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
    fn warn(&self, text: &str) {
        println!("warning: {text}");
    }
    fn damage(&self, _error: &Error) {
        self.moment();
    }
}

/// A tombstone that cannot be read: whoever lists tombstones tells its monitor of it, which is a moment there.
fn put_unreadable_tombstone(world: &World) {
    let folder = world.fixture.path().join("snapshots/tombstones");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(format!("{:016x}-{:08x}-{}", 1, 0, "ab".repeat(32))), b"no tombstone").unwrap();
}

/// A backup in a thread, which has put its lease and looked at everything, and has not read a block yet.
struct Paused {
    go_on: Sender<()>,
    thread: JoinHandle<()>,
}

impl Paused {
    fn begin(world: &Arc<World>, vdi: &'static str, disk: ModelDisk) -> Self {
        let (begun, has_begun): (Sender<()>, Receiver<()>) = channel();
        let (go_on, may_go_on): (Sender<()>, Receiver<()>) = channel();
        let world = world.clone();
        let thread = std::thread::spawn(move || {
            let session = world.fixture.session();
            world.back_up(&session, vdi, &disk, move |block| {
                if block == 0 {
                    begun.send(()).unwrap();
                    may_go_on.recv().unwrap();
                }
                None
            });
        });
        has_begun.recv().expect("the backup begins");
        Self { go_on, thread }
    }

    /// Lets it go on, to its commit.
    fn finish(self) {
        self.go_on.send(()).unwrap();
        self.thread.join().expect("the backup commits");
    }
}

/// Two collections, moment by moment: the first condemns and moves, the second deletes or rescues. At moment `begin` a
/// backup begins that finds chunks of what was forgotten, and at `end` it ends. Gives the number of moments.
fn two_collections(begin: usize, end: usize) -> usize {
    let world = World::new();
    world.run(Op::Backup);
    world.run(Op::Forget);
    put_unreadable_tombstone(&world);
    let paused: Arc<Mutex<Option<Paused>>> = Arc::default();
    let (inner, slot) = (world.clone(), paused.clone());
    let observer = Observer::new(move |moment| {
        if moment == begin {
            *slot.lock().unwrap() = Some(Paused::begin(&inner, "new", new_disk()));
        }
        if moment == end {
            slot.lock().unwrap().take().unwrap().finish();
        }
    });
    for _ in 0..2 {
        // Before it, too.
        observer.moment();
        let session = observer.session(&world);
        gc(&session, &gc_options(world.now_ms()), &*observer).unwrap();
    }
    if let Some(paused) = paused.lock().unwrap().take() {
        paused.finish();
    }
    println!("a backup from moment {begin} to moment {end} of two collections");
    world.settle();
    observer.count.load(Ordering::SeqCst)
}

#[test]
fn a_backup_from_any_moment_to_any_other_of_two_collections_restores() {
    let moments = two_collections(usize::MAX, usize::MAX);
    println!("{moments} moments");
    assert!(moments >= 12, "only {moments} moments");
    for moment in 0..moments {
        two_collections(0, moment);
        two_collections(moment, moments);
        two_collections(moment, moment + 1);
    }
}

/// A backup of `disk` in a session that was opened before anything else happened; at one of its moments, `ops` do. Gives
/// the number of its moments.
fn interrupted_backup(vdi: &str, disk: &ModelDisk, at: usize, ops: &[Op]) -> usize {
    let world = World::new();
    put_unreadable_tombstone(&world);
    let (inner, ops) = (world.clone(), ops.to_vec());
    let told = format!("a backup of {vdi} with {ops:?} at its moment {at}");
    let observer = Observer::new(move |moment| {
        if moment == at {
            ops.iter().for_each(|op| inner.run(*op));
        }
    });
    let session = observer.session(&world);
    let disks = vec![DiskInput::new(vdi, Hooked::source(disk, |_| None))];
    let options = BackupOptions { level: 1, ..BackupOptions::new(world.now_ms()) };
    let report = backup(&session, disks, &options, &*observer).unwrap();
    drop(session);
    world.live.lock().unwrap().insert(report.snapshot.id, (vdi.to_owned(), disk.clone()));
    println!("{told}");
    world.settle();
    observer.count.load(Ordering::SeqCst)
}

#[test]
fn whatever_is_collected_at_any_moment_of_a_backup_what_it_commits_restores() {
    use Op::{Forget, Gc};
    // One that finds half of its chunks, and one that is equal to its parent, which is known to be complete.
    for (vdi, disk) in [("new", new_disk()), ("old", old_disk())] {
        let moments = interrupted_backup(vdi, &disk, usize::MAX, &[]);
        println!("{moments} moments");
        for ops in [&[Forget, Gc][..], &[Forget, Gc, Gc]] {
            for at in 0..moments {
                interrupted_backup(vdi, &disk, at, ops);
            }
        }
    }
}

/// A snapshot that was committed while what it needs was being condemned is not known to be complete: neither where the
/// collection ran in the same session, nor where another process did it and its tombstone was seen later.
#[test]
fn what_was_committed_while_its_packs_were_condemned_is_not_taken_over_unread() {
    for same_session in [true, false] {
        let world = World::new();
        let session = Arc::new(world.fixture.session());
        let (inner, inner_session) = (world.clone(), session.clone());
        // It finds all of its chunks in packs that are condemned right then, and that wait for it.
        world.back_up(&session, "first", &old_disk(), move |block| {
            if block == 1 {
                inner.run(Op::Forget);
                match same_session {
                    true => drop(gc(&inner_session, &gc_options(inner.now_ms()), &Silent).unwrap()),
                    false => inner.run(Op::Gc),
                }
            }
            None
        });
        drop(session);
        let first = *world.live.lock().unwrap().iter().find(|(_, (vdi, _))| vdi == "first").unwrap().0;
        // Its equal child is not committed yet when it is forgotten, and nobody waits for that.
        let (inner, session) = (world.clone(), world.fixture.session());
        world.back_up(&session, "first", &old_disk(), move |block| {
            if block == 1 {
                inner.to_forget.lock().unwrap().push(first);
                inner.run(Op::Forget);
                inner.run(Op::Gc);
            }
            None
        });
        drop(session);
        println!("collected in the same session: {same_session}");
        world.settle();
    }
}

/// A collection that was killed between its tombstone and its look at the leases leaves a tombstone that waits for an unknown
/// set: whoever was at work then may be at work still.
#[test]
fn a_tombstone_that_does_not_say_whom_it_waits_for_waits_for_all_who_are_at_work() {
    let world = World::new();
    let paused = Paused::begin(&world, "new", new_disk());
    world.run(Op::Forget);
    let session = world.fixture.session();
    // All packs, as if nothing were needed: what is, a second look rescues.
    let packs = session.repository.store.list_packs().unwrap().into_iter().map(|pack| pack.id).collect();
    let considered = world.live.lock().unwrap().keys().copied().collect();
    let stage = Stage::Announced { considered, waits_for: None };
    tombstone::put(&session.repository, &Tombstone { serial: 1, packs, stage, ..Tombstone::default() }).unwrap();
    let report = gc(&session, &gc_options(world.now_ms()), &Silent).unwrap();
    assert_eq!((report.deleted_packs, report.waits_for.len()), (0, 1), "{report:?}");
    paused.finish();
    drop(session);
    world.settle();
}

/// Packs condemned before a backup began are not kept for it: it has seen the tombstone, and stores again what stands in them.
#[test]
fn a_backup_that_began_after_packs_were_condemned_relies_on_none_of_them() {
    let world = World::new();
    world.run(Op::Forget);
    let at_work = world.fixture.session();
    let lease = Lease::put(&at_work.repository, "restore").unwrap();
    let session = world.fixture.session();
    // As if it had come when the lease was there and the packs were older.
    let packs = session.index.packs().into_iter().map(|pack| pack.id).collect();
    let considered = world.live.lock().unwrap().keys().copied().collect();
    let waits_for = Some([lease.id().unwrap()].into());
    let stage = Stage::Announced { considered, waits_for };
    tombstone::put(&session.repository, &Tombstone { serial: 1, packs, stage, ..Tombstone::default() }).unwrap();
    drop(lease);
    let paused = Paused::begin(&world, "new", new_disk());
    let report = gc(&session, &gc_options(world.now_ms()), &Silent).unwrap();
    assert!(report.deleted_packs > 0, "{report:?}");
    paused.finish();
    drop(session);
    world.settle();
}

#[test]
fn what_was_rescued_counts_as_stored_again() {
    let world = World::new();
    let paused = Paused::begin(&world, "new", old_disk());
    world.run(Op::Forget);
    let session = world.fixture.session();
    let packs = session.index.packs().into_iter().map(|pack| pack.id).collect();
    let considered = world.live.lock().unwrap().keys().copied().collect();
    let stage = Stage::Announced { considered, waits_for: None };
    tombstone::put(&session.repository, &Tombstone { serial: 1, packs, stage, ..Tombstone::default() }).unwrap();
    assert_eq!(gc(&session, &gc_options(world.now_ms()), &Silent).unwrap().deleted_packs, 0);
    paused.finish();
    let report = gc(&session, &gc_options(world.now_ms()), &Silent).unwrap();
    assert_eq!((report.deleted_packs, report.waiting_packs), (0, 0), "{report:?}");
    let disks = vec![DiskInput::new("again", Hooked::source(&old_disk(), |_| None))];
    let again = backup(&session, disks, &BackupOptions::new(world.now_ms()), &Silent).unwrap();
    assert_eq!(again.new_bytes, 0, "what was rescued was not found");
    world.live.lock().unwrap().insert(again.snapshot.id, ("again".to_owned(), old_disk()));
    drop(session);
    world.settle();
}

#[test]
fn what_a_restore_reads_stays_until_its_end_although_its_snapshot_is_forgotten() {
    let world = World::new();
    let session = world.fixture.session();
    let id = *world.to_forget.lock().unwrap().last().unwrap();
    let tree = snapshot::read(&session.repository, id).unwrap().snapshot.disk("old").unwrap().tree;
    let options = RestoreOptions::default();
    let plan = RestorePlan::new(&session, tree, options, &Silent).unwrap();
    [Op::Forget, Op::Gc, Op::Gc].iter().for_each(|op| world.run(*op));
    let buffer = SharedBuffer::default();
    let sink = RawStreamSink::create(buffer.clone(), tree.virtual_size).unwrap();
    restore(&session, plan, Target::Stream(Box::new(sink)), options, &Silent).unwrap();
    assert!(*buffer.0.lock().unwrap() == old_disk().to_bytes());
    drop(session);
    world.settle();
}

#[test]
fn of_what_two_backups_stored_at_once_one_copy_goes_and_the_other_stays() {
    let world = World::new();
    let disk = ModelDisk::scattered(5 << 20, 3, 77);
    let session = world.fixture.session();
    let before = super::pack_bytes(&session);
    let paused = Paused::begin(&world, "twice", disk.clone());
    world.back_up(&session, "once", &disk, |_| None);
    let once = super::pack_bytes(&session) - before;
    paused.finish();
    let twice = super::pack_bytes(&session) - before;
    assert!(twice > once * 19 / 10, "{twice} bytes, of which one copy has {once}");
    drop(session);
    world.run(Op::Gc);
    world.run(Op::Gc);
    let left = super::pack_bytes(&world.fixture.session()) - before;
    assert!(left < once * 11 / 10, "{left} bytes are left, and one copy has {once}");
    world.settle();
}

#[test]
fn a_delta_over_a_base_in_condemned_packs_is_refused_until_they_were_rescued() {
    let world = World::new();
    let paused = Paused::begin(&world, "base", old_disk());
    world.run(Op::Forget);
    world.run(Op::Gc);
    paused.finish();
    let base = *world.live.lock().unwrap().iter().find(|(_, (vdi, _))| vdi == "base").unwrap().0;
    let mut disk = old_disk();
    disk.pages.insert(7, 123_456);
    let delta = || {
        let session = world.fixture.session();
        let source = disk.delta(&old_disk(), Delivery::Ascending, true);
        let disks = vec![DiskInput { base: Some(BaseChoice::Snapshot(base)), ..DiskInput::new("base", source) }];
        backup(&session, disks, &BackupOptions::new(world.now_ms()), &Silent)
    };
    let error = delta().map(|done| done.snapshot.id).unwrap_err();
    assert!(error.kind() == ErrorKind::Locked && error.chain().contains("run cairn gc"), "{error:?}");
    world.run(Op::Gc);
    let done = delta().unwrap();
    world.live.lock().unwrap().insert(done.snapshot.id, ("base".to_owned(), disk.clone()));
    world.settle();
}

/// Repair waits for nobody: a pack in which a backup found chunks may be moved away before the backup commits.
#[test]
fn a_backup_whose_packs_were_moved_away_commits_nothing() {
    let world = World::new();
    let session = world.fixture.session();
    let (store_session, packs) = (world.fixture.session(), session.repository.store.list_packs().unwrap());
    let source = Hooked::source(&old_disk(), move |block| {
        if block == 1 {
            for pack in &packs {
                store_session.repository.store.quarantine(ObjectName::Pack(pack.id)).unwrap();
            }
        }
        None
    });
    let before = session.repository.store.list_snapshots().unwrap();
    let options = BackupOptions::new(world.now_ms());
    let error = backup(&session, vec![DiskInput::new("new", source)], &options, &Silent);
    assert_eq!(error.map(|done| done.snapshot.id).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(session.repository.store.list_snapshots().unwrap(), before);
}
