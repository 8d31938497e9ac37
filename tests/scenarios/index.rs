//! The index is a cache: lost, stale or foreign, it is noticed and made anew from the packs.

use repo_core::entropy::Entropy;
use repo_core::keys::Role;
use repo_core::monitor::{Recording, Silent};
use repo_core::ops::open::{Session, open_session, rebuild_index};
use repo_core::ops::restore::RestoreOptions;
use repo_core::pack::Content;
use repo_core::repository::Repository;
use repo_core::seal::Suite;
use repo_core::store::{ObjectName, Store};
use repo_tests::fixture::{RepoFixture, restore_stream, unlock};
use repo_tests::model::ModelDisk;

const SUITE: Suite = Suite::Aes256Gcm;

fn open(fixture: &RepoFixture) -> Repository {
    Repository::open(Store::open_local(&fixture.path()).unwrap(), &unlock(SUITE), Entropy::system()).unwrap()
}

#[test]
fn a_deleted_index_comes_back_with_everything() {
    let mut fixture = RepoFixture::small(SUITE);
    let disk = ModelDisk::scattered(9 << 20, 3, 1);
    let id = fixture.backup_model(&fixture.session(), "a", &disk).snapshot.id;
    std::fs::remove_dir_all(fixture.path().join("index")).unwrap();
    let session = open_session(open(&fixture), None, &Silent).unwrap();
    assert!(session.catch_up(&Silent).unwrap().added_packs > 1);
    assert!(restore_stream(&session, id, "a", RestoreOptions::default()).unwrap().0 == disk.to_bytes());
    assert_eq!(fixture.backup_model(&session, "b", &disk).new_bytes, 0);
}

#[test]
fn look_ups_of_chunks_stored_together_need_the_database_only_for_the_first_few() {
    let mut fixture = RepoFixture::ordinary(SUITE);
    let disk = ModelDisk::scattered(64 << 20, 3, 1);
    let id = fixture.backup_model(&fixture.session(), "a", &disk).snapshot.id;
    let session = fixture.session();
    let chunks = session.index.packs().len() as u64 * 16;
    assert_eq!(fixture.backup_model(&session, "clone", &disk).new_bytes, 0);
    // Each block asks for its chunks at once, so some more than the first few are asked for before a directory is there.
    let asked = session.index.lookup_count();
    assert!(asked < chunks + 2_000, "{asked} look-ups");
    assert!(restore_stream(&session, id, "a", RestoreOptions::default()).unwrap().0 == disk.to_bytes());
    assert_eq!(session.index.lookup_count(), asked, "the restore found all in memory");
}

#[test]
fn an_index_of_another_repository_is_replaced_with_a_warning() {
    let mut fixture = RepoFixture::small(SUITE);
    let disk = ModelDisk::scattered(3 << 20, 3, 1);
    let id = fixture.backup_model(&fixture.session(), "a", &disk).snapshot.id;
    let mut foreign = RepoFixture::small(SUITE);
    foreign.backup_model(&foreign.session(), "a", &ModelDisk::scattered(3 << 20, 3, 2));
    let index = fixture.path().join("index");
    std::fs::remove_dir_all(&index).unwrap();
    std::fs::rename(foreign.path().join("index"), &index).unwrap();

    let monitor = Recording::default();
    let session = open_session(open(&fixture), None, &monitor).unwrap();
    assert!(monitor.warnings.lock()[0].contains("not of this repository"));
    assert!(restore_stream(&session, id, "a", RestoreOptions::default()).unwrap().0 == disk.to_bytes());
}

#[test]
fn packs_that_vanished_make_the_index_be_filled_anew_so_that_their_chunks_are_stored_again() {
    let mut fixture = RepoFixture::small(SUITE);
    let disk = ModelDisk::scattered(9 << 20, 3, 1);
    let session = fixture.session();
    let first = fixture.backup_model(&session, "a", &disk);
    lose_a_data_pack(&fixture, session);

    let monitor = Recording::default();
    let session = open_session(open(&fixture), None, &Silent).unwrap();
    session.catch_up(&monitor).unwrap();
    assert!(monitor.warnings.lock()[0].contains("1 packs that the index knew are gone"));
    // Another disk of the same content: what was lost is new again, and the snapshot is whole.
    let second = fixture.backup_model(&session, "b", &disk);
    assert!(second.new_bytes > 0 && second.new_bytes < first.new_bytes);
    let restored = restore_stream(&session, second.snapshot.id, "b", RestoreOptions::default()).unwrap();
    assert!(restored.0 == disk.to_bytes());
}

/// Deletes a pack with chunks behind the index's back.
fn lose_a_data_pack(fixture: &RepoFixture, session: Session) {
    let packs = session.index.packs();
    let pack = packs.iter().find(|pack| pack.content == Content::Data).unwrap();
    std::fs::remove_file(fixture.path().join(ObjectName::Pack(pack.id).path())).unwrap();
}

/// Blocks equal to the last snapshot's were taken as stored without a look: the new snapshot then lacked what the old
/// one had lost, and said nothing.
#[test]
fn a_disk_whose_last_snapshot_lost_a_pack_is_stored_whole_again() {
    let mut fixture = RepoFixture::small(SUITE);
    let disk = ModelDisk::scattered(9 << 20, 3, 1);
    let session = fixture.session();
    fixture.backup_model(&session, "a", &disk);
    lose_a_data_pack(&fixture, session);
    // Something else notices the loss first, so that nothing is left to notice for the backup.
    drop(fixture.session());
    let session = fixture.session();
    let again = fixture.backup_model(&session, "a", &disk);
    assert!(again.new_bytes > 0);
    let restored = restore_stream(&session, again.snapshot.id, "a", RestoreOptions::default()).unwrap();
    assert!(restored.0 == disk.to_bytes());
    drop(session);
    assert!(fixture.check_all().is_clean());
}

#[test]
fn the_index_is_rebuilt_with_the_structure_key_alone() {
    let mut fixture = RepoFixture::small(SUITE);
    let disk = ModelDisk::scattered(9 << 20, 3, 1);
    let id = fixture.backup_model(&fixture.session(), "a", &disk).snapshot.id;
    let mut repository = open(&fixture);
    repository.keys = repository.keys.without(Role::Data).without(Role::Identity);
    let (session, sync) = rebuild_index(repository, None, &Silent).unwrap();
    assert!(sync.added_packs > 1 && sync.unreadable_packs == 0);
    // Such a holder sees structure and no content.
    let error = restore_stream(&session, id, "a", RestoreOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "the key in use does not grant the data role");
    drop(session);
    let session = open_session(open(&fixture), None, &Silent).unwrap();
    assert_eq!(session.catch_up(&Silent).unwrap().added_packs, 0);
    assert!(restore_stream(&session, id, "a", RestoreOptions::default()).unwrap().0 == disk.to_bytes());
}

#[test]
fn an_index_that_cannot_be_kept_in_the_repository_is_kept_in_the_cache() {
    let mut fixture = RepoFixture::small(SUITE);
    let disk = ModelDisk::scattered(3 << 20, 3, 1);
    let id = fixture.backup_model(&fixture.session(), "a", &disk).snapshot.id;
    // A file in the folder's place: no permission stops root.
    std::fs::remove_dir_all(fixture.path().join("index")).unwrap();
    std::fs::write(fixture.path().join("index"), b"").unwrap();
    let cache = fixture.folder.path().join("cache");
    assert!(open_session(open(&fixture), None, &Silent).is_err());
    let session = open_session(open(&fixture), Some(&cache), &Silent).unwrap();
    assert!(session.index.path().starts_with(&cache));
    assert!(restore_stream(&session, id, "a", RestoreOptions::default()).unwrap().0 == disk.to_bytes());
}
