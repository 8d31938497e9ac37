//! Leases, turns and commits where nothing can be locked: on an object store whose clock the test moves.

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use repo_core::disk::Delivery;
use repo_core::entropy::Entropy;
use repo_core::error::ErrorKind;
use repo_core::lease::{self, Lease, Turn};
use repo_core::monitor::Silent;
use repo_core::ops::backup::{BackupOptions, DiskInput, backup};
use repo_core::ops::gc::gc;
use repo_core::ops::open::{Session, open_session};
use repo_core::repository::{InitOptions, Repository};
use repo_core::seal::Suite;
use repo_core::store::Store;
use repo_core::store::remote::{LeaseTerms, RemoteOptions};
use repo_tests::fixture::{gc_options, restore_stream, unlock};
use repo_tests::memory_store::MemoryStore;
use repo_tests::model::ModelDisk;
use tempfile::TempDir;

const SUITE: Suite = Suite::Aes256Gcm;
const MINUTE: Duration = Duration::from_secs(60);

fn options() -> RemoteOptions {
    // Nobody renews but the test.
    let leases = LeaseTerms { renew_every: None, ..LeaseTerms::default() };
    RemoteOptions { honours_create: true, leases }
}

fn create(objects: &MemoryStore) -> Result<Repository, repo_core::Error> {
    let store = Store::create_remote(Arc::new(objects.clone()), "memory".to_owned(), options())?;
    let mut init = InitOptions::new(SUITE, 1000);
    (init.frame_len, init.pack_len) = (64 * 1024, 256 * 1024);
    Repository::create(store, &init, &unlock(SUITE), "first", Entropy::system())
}

/// A machine of its own: with its own index.
struct Machine {
    session: Session,
    _cache: TempDir,
}

fn machine(objects: &MemoryStore) -> Machine {
    let cache = tempfile::tempdir().unwrap();
    let store = Store::open_remote(Arc::new(objects.clone()), "memory".to_owned(), options()).unwrap();
    let repository = Repository::open(store, &unlock(SUITE), Entropy::system()).unwrap();
    Machine { session: open_session(repository, Some(cache.path()), &Silent).unwrap(), _cache: cache }
}

fn disk(seed: u8) -> ModelDisk {
    ModelDisk::scattered(3 << 20, 2, u64::from(seed))
}

fn import(machine: &Machine, seed: u8, now_ms: i64) -> repo_core::Result<repo_core::snapshot::NamedSnapshot> {
    let disks = vec![DiskInput::new("vdi", disk(seed).source(Delivery::Ascending))];
    let options = BackupOptions { level: 1, ..BackupOptions::new(now_ms) };
    Ok(backup(&machine.session, disks, &options, &Silent)?.snapshot)
}

#[test]
fn an_old_lease_is_revoked_and_no_renewal_brings_its_holder_back() {
    let objects = MemoryStore::default();
    create(&objects).unwrap();
    let [slow, other] = [machine(&objects), machine(&objects)];
    let old = Lease::put(&slow.session.repository, "import").unwrap();
    objects.pass(20 * MINUTE);
    let young = Lease::put(&slow.session.repository, "restore").unwrap();
    objects.pass(11 * MINUTE);

    let own = Lease::put(&other.session.repository, "gc").unwrap();
    let living = lease::living(&other.session.repository, Some(&own)).unwrap();
    assert!(living.contains(&young.id().unwrap()) && living.contains(&own.id().unwrap()));
    assert!(!living.contains(&old.id().unwrap()));
    young.check().unwrap();
    // It was only paused, and goes on.
    old.renew().unwrap();
    assert_eq!(old.check().unwrap_err().kind(), ErrorKind::Locked);
    let living = lease::living(&other.session.repository, Some(&own)).unwrap();
    assert!(!living.contains(&old.id().unwrap()), "what was revoked stays dead");
    assert_eq!(objects.names("revoked").len(), 1);
}

#[test]
fn a_lease_that_is_renewed_is_never_revoked() {
    let objects = MemoryStore::default();
    create(&objects).unwrap();
    let [slow, other] = [machine(&objects), machine(&objects)];
    let held = Lease::put(&slow.session.repository, "import").unwrap();
    let own = Lease::put(&other.session.repository, "gc").unwrap();
    for _ in 0..20 {
        objects.pass(10 * MINUTE);
        held.renew().unwrap();
        assert_eq!(lease::living(&other.session.repository, Some(&own)).unwrap().len(), 2);
    }
    assert!(objects.names("revoked").is_empty());
}

#[test]
fn a_backup_whose_lease_is_revoked_between_record_and_last_check_takes_the_record_back() {
    let objects = MemoryStore::default();
    create(&objects).unwrap();
    let machine = machine(&objects);
    let first = import(&machine, 1, 2000).unwrap();
    let names = objects.clone();
    objects.after_put("snapshots/", move |inner| {
        for lease in names.names("leases") {
            let revoked = Path::from(lease.replace("leases/", "revoked/"));
            futures::executor::block_on(inner.put(&revoked, PutPayload::from_static(b"x"))).unwrap();
        }
    });
    let error = import(&machine, 2, 3000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert_eq!(objects.names("snapshots"), [format!("snapshots/{}", first.id)]);
    assert!(objects.names("leases").is_empty());
}

#[test]
fn a_backup_whose_lease_was_revoked_before_commits_nothing() {
    let objects = MemoryStore::default();
    create(&objects).unwrap();
    let machine = machine(&objects);
    let (names, clock) = (objects.clone(), objects.clone());
    objects.after_put("packs/", move |inner| {
        clock.pass(31 * MINUTE);
        let lease = names.names("leases").pop().unwrap();
        let revoked = Path::from(lease.replace("leases/", "revoked/"));
        futures::executor::block_on(inner.put(&revoked, PutPayload::from_static(b"x"))).unwrap();
    });
    assert_eq!(import(&machine, 1, 2000).unwrap_err().kind(), ErrorKind::Locked);
    assert!(objects.names("snapshots").is_empty());
    import(&machine, 1, 3000).unwrap();
}

#[test]
fn only_one_collects_or_forgets_and_who_died_holds_nobody_up_for_long() {
    let objects = MemoryStore::default();
    create(&objects).unwrap();
    let [one, two] = [machine(&objects), machine(&objects)];
    let held = Lease::put_alone(&one.session.repository, "gc", &["gc"]).unwrap();
    let error = gc(&two.session, &gc_options(5000), &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    // As if it was killed.
    std::mem::forget(held);
    objects.pass(29 * MINUTE);
    assert!(gc(&two.session, &gc_options(6000), &Silent).is_err());
    objects.pass(2 * MINUTE);
    gc(&two.session, &gc_options(7000), &Silent).unwrap();

    let turn = Turn::at_snapshots(&one.session.repository, lease::FORGET).unwrap();
    let refused = Turn::at_snapshots(&two.session.repository, lease::REMARKS).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Locked);
    drop(turn);
    Turn::at_snapshots(&two.session.repository, lease::REMARKS).unwrap().check().unwrap();
    assert!(objects.names("leases").is_empty());
}

#[test]
fn a_stale_listing_of_leases_stops_a_collection() {
    let objects = MemoryStore::default();
    create(&objects).unwrap();
    let machine = machine(&objects);
    objects.hide("leases/", true);
    assert_eq!(gc(&machine.session, &gc_options(5000), &Silent).unwrap_err().kind(), ErrorKind::Unavailable);
    objects.hide("leases/", false);
    gc(&machine.session, &gc_options(6000), &Silent).unwrap();
}

#[test]
fn old_revocations_are_dropped_after_ninety_days() {
    let objects = MemoryStore::default();
    create(&objects).unwrap();
    let machine = machine(&objects);
    std::mem::forget(Lease::put(&machine.session.repository, "import").unwrap());
    objects.pass(31 * MINUTE);
    gc(&machine.session, &gc_options(5000), &Silent).unwrap();
    assert_eq!(objects.names("revoked").len(), 1);
    objects.pass(89 * 24 * 60 * MINUTE);
    gc(&machine.session, &gc_options(6000), &Silent).unwrap();
    assert_eq!(objects.names("revoked").len(), 1);
    objects.pass(2 * 24 * 60 * MINUTE);
    gc(&machine.session, &gc_options(7000), &Silent).unwrap();
    assert!(objects.names("revoked").is_empty());
}

/// A collection that sleeps between its decision and a deletion may wake up after another one found the pack needed again.
#[test]
fn a_condemned_pack_never_comes_back_and_what_is_needed_of_it_moves() {
    let objects = MemoryStore::default();
    create(&objects).unwrap();
    let [writer, collector] = [machine(&objects), machine(&objects)];
    let first = import(&writer, 1, 2000).unwrap();
    let old = objects.names("packs");
    objects.pass(MINUTE);
    // A backup of the same disk is under way, and relies on the packs, when they are condemned.
    let other = machine(&objects);
    let second = {
        let first_id = first.id;
        objects.after_put("packs/", move |inner| {
            futures::executor::block_on(inner.delete(&Path::from(format!("snapshots/{first_id}")))).unwrap();
            // On another thread: this one is the store's own.
            std::thread::spawn(move || {
                let mut options = gc_options(4000);
                options.grace_ms = 0;
                gc(&other.session, &options, &Silent).unwrap()
            })
            .join()
            .map(|report| assert!(report.condemned_packs > 0, "{report:?}"))
            .unwrap();
        });
        let mut changed = disk(1);
        changed.pages.insert(0, 7);
        let disks = vec![DiskInput::new("vdi", changed.source(Delivery::Ascending))];
        let options = BackupOptions { level: 1, ..BackupOptions::new(3000) };
        (backup(&writer.session, disks, &options, &Silent).unwrap().snapshot, changed)
    };
    gc(&collector.session, &gc_options(5000), &Silent).unwrap();
    gc(&collector.session, &gc_options(6000), &Silent).unwrap();
    let left = objects.names("packs");
    assert!(old.iter().all(|pack| !left.contains(pack)), "{old:?} {left:?}");
    assert!(!objects.names("snapshots/tombstones").is_empty(), "others learn from it why packs are gone");
    let fresh = machine(&objects);
    let restored = restore_stream(&fresh.session, second.0.id, "vdi", Default::default()).unwrap().0;
    assert_eq!(restored, second.1.to_bytes());
}

#[test]
fn of_two_inits_in_one_place_at_most_one_wins_also_where_create_only_is_ignored() {
    for ignores in [false, true] {
        let objects = MemoryStore::default();
        if ignores {
            objects.ignore_create();
        }
        // The second one runs whole between the first one's key slot and its look at the slots.
        let (second, outcome) = (objects.clone(), Arc::new(parking_lot::Mutex::new(None)));
        let told = outcome.clone();
        objects.after_put("keys/", move |_| {
            let made = std::thread::spawn(move || create(&second).err().map(|error| error.kind())).join().unwrap();
            *told.lock() = Some(made);
        });
        let first = create(&objects).err().map(|error| error.kind());
        let second = outcome.lock().take().unwrap();
        assert!(first.is_some() || second.is_some(), "both won");
        assert_eq!(second, Some(ErrorKind::AlreadyExists));
        // What is left is a repository, or a place where the next one succeeds.
        match first {
            None => assert_eq!(create(&objects).err().unwrap().kind(), ErrorKind::AlreadyExists),
            Some(_) => drop(create(&objects).unwrap()),
        }
    }
}

#[test]
fn the_probe_tells_a_store_that_replaces_from_one_that_does_not_and_leaves_nothing() {
    let objects = MemoryStore::default();
    let store = Store::open_remote(Arc::new(objects.clone()), "memory".to_owned(), options()).unwrap();
    let found = store.probe(&Entropy::system()).unwrap();
    assert!(found.create_only && found.read_after_write);
    objects.ignore_create();
    assert!(!store.probe(&Entropy::system()).unwrap().create_only);
    objects.hide("probe/", true);
    assert!(!store.probe(&Entropy::system()).unwrap().read_after_write);
    assert!(objects.names("probe").is_empty());
}
