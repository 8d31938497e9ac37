//! A backup whose lease is gone commits nothing, whenever it went.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use repo_core::entropy::Entropy;
use repo_core::monitor::Silent;
use repo_core::ops::backup::{BackupOptions, BackupReport, DiskInput, backup};
use repo_core::ops::open::open_session;
use repo_core::repository::Repository;
use repo_core::seal::Suite;
use repo_core::store::Store;
use repo_core::{ErrorKind, Result};
use repo_tests::fixture::{RepoFixture, unlock};
use repo_tests::model::ModelDisk;

/// A backup into a new repository, in the course of which a function is called before each draw of randomness with its
/// number and the repository's folder. Nothing in it is left to chance.
fn observed_backup(observe: impl Fn(usize, &Path) + Send + Sync + 'static) -> (RepoFixture, Result<BackupReport>) {
    let fixture = RepoFixture::small(Suite::None);
    let folder = fixture.path();
    let draws = AtomicUsize::new(0);
    let observed = folder.clone();
    let entropy = Entropy::observed(1, move || observe(draws.fetch_add(1, Ordering::SeqCst), &observed));
    let store = Store::open_local(&folder).unwrap();
    let repository = Repository::open(store, &unlock(Suite::None), entropy).unwrap();
    let session = open_session(repository, None, &Silent).unwrap();
    let disk = ModelDisk::scattered(5 << 20, 2, 1);
    let disks = vec![DiskInput::new("a", disk.source(repo_core::disk::Delivery::Ascending))];
    let done = backup(&session, disks, &BackupOptions { level: 1, ..BackupOptions::new(5) }, &Silent);
    drop(session);
    (fixture, done)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_lease_that_went_between_the_last_check_and_the_commit_takes_the_snapshot_with_it() {
    let draws = Arc::new(AtomicUsize::new(0));
    let count = draws.clone();
    let (fixture, done) = observed_backup(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let packs = fixture.session().repository.store.list_packs().unwrap().len();
    let snapshot = done.unwrap().snapshot.id;
    assert_eq!(files(&fixture.path().join("snapshots")), [fixture.path().join("snapshots").join(snapshot.to_hex())]);

    // The last draw is the salt of the snapshot record: the lease was found to be there, and the record is not stored yet.
    let last = draws.load(Ordering::SeqCst) - 1;
    let packs_then = Arc::new(AtomicUsize::new(0));
    let seen = packs_then.clone();
    let (fixture, done) = observed_backup(move |draw, folder| {
        assert!(draw <= last, "the backup went on");
        if draw == last {
            seen.store(files(&folder.join("packs")).iter().map(|folder| files(folder).len()).sum(), Ordering::SeqCst);
            let leases = files(&folder.join("leases"));
            assert_eq!(leases.len(), 1);
            std::fs::remove_file(&leases[0]).unwrap();
        }
    });
    let error = done.map(|done| done.snapshot.id).unwrap_err();
    assert!(error.kind() == ErrorKind::Locked && error.to_string().contains("took this one for dead"), "{error}");
    assert_eq!(packs_then.load(Ordering::SeqCst), packs, "all packs were stored: only the record was missing");
    assert!(fixture.session().repository.store.list_snapshots().unwrap().is_empty());
}

#[test]
fn a_lease_that_went_before_the_last_check_keeps_the_record_from_being_made() {
    let draws = Arc::new(AtomicUsize::new(0));
    let count = draws.clone();
    let (_, done) = observed_backup(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    assert!(done.is_ok());
    let last = draws.load(Ordering::SeqCst) - 1;
    let (fixture, done) = observed_backup(move |draw, folder| {
        assert!(draw < last, "a record was made for all to see");
        if draw == last - 1 {
            std::fs::remove_file(&files(&folder.join("leases"))[0]).unwrap();
        }
    });
    assert_eq!(done.map(|done| done.snapshot.id).unwrap_err().kind(), ErrorKind::Locked);
    assert!(fixture.session().repository.store.list_snapshots().unwrap().is_empty());
}
