//! Snapshots go from one repository to another: what is synced restores there when the first one is gone, nothing that is damaged is
//! taken for good, and nothing moves twice.

mod beside;
mod command;
mod histories;
mod places;

use std::collections::BTreeMap;
use std::sync::Arc;

use repo_core::id::SnapshotId;
use repo_core::monitor::{Recording, Silent};
use repo_core::ops::restore::RestoreOptions;
use repo_core::ops::sync::{SyncOptions, SyncReport, plan, sync};
use repo_core::seal::Suite;
use repo_core::store::ObjectName;
use repo_core::{annotation, snapshot};
use repo_tests::fixture::{RepoFixture, restore_stream};
use repo_tests::model::ModelDisk;

/// What snapshots have to be: VDI and content.
type Expected = BTreeMap<SnapshotId, (String, ModelDisk)>;

fn sync_all(from: &RepoFixture, to: &RepoFixture) -> SyncReport {
    sync(&Arc::new(from.session()), &to.session(), &SyncOptions::new(9_000_000), &Silent).unwrap()
}

fn restore_all(fixture: &RepoFixture, expected: &Expected) {
    let session = fixture.session();
    for (id, (vdi, disk)) in expected {
        let (bytes, _) = restore_stream(&session, *id, vdi, RestoreOptions::default()).unwrap();
        assert!(bytes == disk.to_bytes(), "snapshot {id} of {vdi} differs");
    }
}

/// Three snapshots of one disk: a base, a few pages changed, and other content altogether.
struct ThreeDays {
    from: RepoFixture,
    ids: [SnapshotId; 3],
    disks: [ModelDisk; 3],
}

impl ThreeDays {
    fn new(suite: Suite) -> Self {
        Self::of_size(suite, 6_000_100)
    }

    fn of_size(suite: Suite, virtual_size: u64) -> Self {
        let mut from = RepoFixture::small(suite);
        let session = from.session();
        let first = ModelDisk::scattered(virtual_size, 2, 1);
        let mut second = first.clone();
        second.pages.extend((200..260).map(|page| (page, 77_000 + page as u32)));
        let third = ModelDisk::scattered(virtual_size, 2, 3);
        let disks = [first, second, third];
        let ids = [0, 1, 2].map(|at| from.backup_model(&session, "a", &disks[at]).snapshot.id);
        drop(session);
        Self { from, ids, disks }
    }

    fn expected(&self, days: impl IntoIterator<Item = usize>) -> Expected {
        days.into_iter().map(|day| (self.ids[day], ("a".to_owned(), self.disks[day].clone()))).collect()
    }

    /// A pack that only one day needs: of those that its backup wrote.
    fn pack_of(&self, day: usize) -> std::path::PathBuf {
        let session = self.from.session();
        let packs = |day: usize| snapshot::read(&session.repository, self.ids[day]).unwrap().snapshot.packs;
        let others: Vec<_> = (0..3).filter(|other| *other != day).flat_map(packs).collect();
        let own = packs(day).into_iter().find(|pack| {
            let known = session.index.pack(session.index.number_of(*pack).unwrap());
            known.content == repo_core::pack::Content::Data && !others.contains(pack)
        });
        self.from.path().join(ObjectName::Pack(own.expect("a pack of its own")).path())
    }
}

#[test]
fn a_copy_gets_what_it_lacks_and_nothing_twice() {
    let days = ThreeDays::new(Suite::Aes256Gcm);
    let to = days.from.empty_copy();
    let planned = plan(&days.from.session(), Some(&to.session()), &SyncOptions::new(1), &Silent).unwrap();
    let done = sync_all(&days.from, &to);
    assert_eq!((planned.moved_packs, planned.moved_bytes), (done.moved_packs, done.moved_bytes));
    assert_eq!(planned.synced, done.synced);
    assert_eq!(done.synced.len(), 3);
    let packs = |fixture: &RepoFixture| fixture.session().repository.store.list_packs().unwrap();
    let names = |fixture: &RepoFixture| packs(fixture).iter().map(|pack| (pack.id, pack.len)).collect::<Vec<_>>();
    assert_eq!(names(&days.from), names(&to), "packs moved as they are");
    assert_eq!(done.moved_bytes, packs(&to).iter().map(|pack| pack.len).sum::<u64>());
    let again = sync_all(&days.from, &to);
    assert_eq!((again.moved_packs, again.synced.len(), again.present_snapshots, again.annotations), (0, 0, 3, 0));
    assert_eq!(again.present_packs, packs(&to).len() as u64);
    std::fs::remove_dir_all(days.from.path()).unwrap();
    restore_all(&to, &days.expected(0..3));
    assert!(to.check_all().is_clean());
}

#[test]
fn a_later_snapshot_alone_takes_only_the_packs_it_needs() {
    let days = ThreeDays::new(Suite::None);
    let to = days.from.empty_copy();
    let mut options = SyncOptions::new(1);
    options.filter.newest = Some(1);
    let done = sync(&Arc::new(days.from.session()), &to.session(), &options, &Silent).unwrap();
    assert_eq!(done.synced.iter().map(|synced| synced.id).collect::<Vec<_>>(), [days.ids[2]]);
    assert!(done.moved_packs < days.from.session().repository.store.list_packs().unwrap().len() as u64);
    restore_all(&to, &days.expected([2]));
    assert!(to.check_all().is_clean());
}

#[test]
fn what_both_repacked_in_their_own_ways_does_not_move_again() {
    let mut days = ThreeDays::new(Suite::None);
    let mut to = days.from.empty_copy();
    sync_all(&days.from, &to);
    // FROM forgets the first and the last day and stores what is left of its packs in others.
    let session = days.from.session();
    days.from.forget(&session, days.ids[0]);
    days.from.forget(&session, days.ids[2]);
    days.from.gc(&session);
    days.from.gc(&session);
    let mut fourth = days.disks[1].clone();
    fourth.pages.insert(7, 123_456);
    let id = days.from.backup_model(&session, "a", &fourth).snapshot.id;
    let new: u64 = snapshot::read(&session.repository, id).unwrap().snapshot.stats.pack_bytes;
    drop(session);
    to.gc(&to.session());
    let done = sync_all(&days.from, &to);
    assert_eq!(done.synced.len(), 1);
    assert_eq!(done.moved_bytes, new, "what is new, and nothing that was repacked");
    restore_all(&to, &[(id, ("a".to_owned(), fourth))].into());
    restore_all(&to, &days.expected(0..3));
}

#[test]
fn a_damaged_pack_keeps_back_what_needs_it_and_nothing_else() {
    for suite in [Suite::Aes256Gcm, Suite::None] {
        for day in 0..3 {
            for missing in [false, true] {
                let days = ThreeDays::new(suite);
                let to = days.from.empty_copy();
                // With a directory that is sound: only reading all of the pack finds it.
                let path = days.pack_of(day);
                let mut bytes = std::fs::read(&path).unwrap();
                bytes[100] ^= 1;
                match missing {
                    true => std::fs::remove_file(&path).unwrap(),
                    false => std::fs::write(&path, &bytes).unwrap(),
                }
                let told = Recording::default();
                let session = Arc::new(days.from.session());
                let done = sync(&session, &to.session(), &SyncOptions::new(1), &told).unwrap();
                let failed: Vec<_> = done.failed.iter().map(|(id, _)| *id).collect();
                // The second day is a few pages over the first.
                let expected: &[usize] = if day == 0 { &[0, 1] } else { &[day] };
                assert_eq!(failed, expected.iter().map(|at| days.ids[*at]).collect::<Vec<_>>(), "day {day} {missing}");
                assert!(!done.is_clean() && !told.damages.lock().is_empty());
                restore_all(&to, &days.expected((0..3).filter(|at| !expected.contains(at))));
                assert!(to.check_all().is_clean(), "day {day}");
                assert!(!to.path().join(path.strip_prefix(days.from.path()).unwrap()).exists());
                // Once FROM is mended the rest follows.
                bytes[100] ^= 1;
                std::fs::write(&path, &bytes).unwrap();
                let done = sync_all(&days.from, &to);
                assert_eq!(done.synced.len(), expected.len());
                restore_all(&to, &days.expected(0..3));
            }
        }
    }
}

#[test]
fn a_record_that_is_damaged_in_the_copy_is_told_and_comes_back_once_it_is_moved_away() {
    let days = ThreeDays::new(Suite::Aes256Gcm);
    let to = days.from.empty_copy();
    sync_all(&days.from, &to);
    let path = to.path().join(ObjectName::Snapshot(days.ids[1]).path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    std::fs::remove_dir_all(to.path().join("index")).unwrap();
    let done = sync_all(&days.from, &to);
    assert_eq!(done.failed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [days.ids[1]]);
    assert_eq!((done.synced.len(), done.moved_packs), (0, 0));
    to.session().repository.store.quarantine(ObjectName::Snapshot(days.ids[1])).unwrap();
    assert_eq!(sync_all(&days.from, &to).synced.len(), 1);
    restore_all(&to, &days.expected(0..3));
    assert!(to.check_all().is_clean());
}

#[test]
fn a_damaged_pack_under_other_keys_keeps_back_what_needs_it_and_nothing_else() {
    let days = ThreeDays::new(Suite::Aes256Gcm);
    let to = RepoFixture::small(Suite::None);
    let path = days.pack_of(1);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let done = sync_all(&days.from, &to);
    assert_eq!(done.failed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [days.ids[1]]);
    assert_eq!(done.synced.len(), 2);
    for synced in &done.synced {
        let day = days.ids.iter().position(|id| *id == synced.id).unwrap();
        restore_all(&to, &[(synced.stored_as.unwrap(), ("a".to_owned(), days.disks[day].clone()))].into());
    }
    assert!(to.check_all().is_clean());
}

#[test]
fn under_other_keys_a_days_change_is_read_and_everything_is_kept() {
    let mut days = ThreeDays::new(Suite::None);
    let to = RepoFixture::small(Suite::Aes256Gcm);
    let session = days.from.session();
    let named = snapshot::read(&session.repository, days.ids[0]).unwrap();
    annotation::annotate(&session.repository, &named, 1, |remarks| remarks.protected = true).unwrap();
    drop(session);
    sync_all(&days.from, &to);
    let mut fourth = days.disks[2].clone();
    fourth.pages.insert(7, 123_456);
    let id = days.from.backup_model(&days.from.session(), "a", &fourth).snapshot.id;
    let planned = plan(&days.from.session(), Some(&to.session()), &SyncOptions::new(1), &Silent).unwrap();
    let done = sync_all(&days.from, &to);
    assert_eq!((done.read_bytes, planned.read_bytes), (2 << 20, 2 << 20), "one block");
    assert_eq!((done.synced.len(), done.synced[0].id, done.present_snapshots), (1, id, 3));
    let session = to.session();
    let (snapshots, _) = snapshot::read_all(&session.repository).unwrap();
    let (annotations, _) = annotation::read_all(&session.repository).unwrap();
    let from = days.from.session();
    for (named, (id, disk)) in
        snapshots.iter().zip(days.ids.iter().copied().chain([id]).zip(days.disks.iter().chain([&fourth])))
    {
        let original = snapshot::read(&from.repository, id).unwrap().snapshot;
        let origin = named.snapshot.origin.unwrap();
        assert_eq!((origin.repository, origin.snapshot), (from.repository.config.id, id));
        assert_eq!(named.snapshot.time_ms, original.time_ms);
        assert_eq!(named.snapshot.disks[0].source_format, original.disks[0].source_format);
        assert_eq!(annotations.remarks(named).protected, id == days.ids[0]);
        restore_all(&to, &[(named.id, ("a".to_owned(), disk.clone()))].into());
    }
    drop((session, from));
    // And back: FROM knows its own again.
    let back = sync_all(&to, &days.from);
    assert_eq!((back.present_snapshots, back.synced.len(), back.stored_bytes), (4, 0, 0));
    // A third repository knows them, whichever of the two they come from.
    let third = RepoFixture::small(Suite::None);
    assert_eq!(sync_all(&to, &third).synced.len(), 4);
    assert_eq!(sync_all(&days.from, &third).synced.len(), 0);
}

fn tags(fixture: &RepoFixture, id: SnapshotId) -> (Vec<String>, bool) {
    let session = fixture.session();
    let named = snapshot::read(&session.repository, id).unwrap();
    let (annotations, _) = annotation::read_all(&session.repository).unwrap();
    let remarks = annotations.remarks(&named);
    (remarks.tags.iter().cloned().collect(), remarks.protected)
}

fn say(fixture: &RepoFixture, id: SnapshotId, now_ms: i64, add: &[&str], remove: &[&str], protected: bool) {
    let session = fixture.session();
    let named = snapshot::read(&session.repository, id).unwrap();
    annotation::annotate(&session.repository, &named, now_ms, |remarks| {
        remarks.tags.retain(|tag| !remove.contains(&tag.as_str()));
        remarks.tags.extend(add.iter().map(|tag| (*tag).to_owned()));
        remarks.protected = protected;
    })
    .unwrap();
}

#[test]
fn remarks_follow_and_what_was_taken_back_stays_so() {
    let days = ThreeDays::new(Suite::Aes256Gcm);
    let (to, id) = (days.from.empty_copy(), days.ids[0]);
    let word = |text: &str| text.to_owned();
    say(&days.from, id, 10, &["one"], &[], true);
    assert_eq!(sync_all(&days.from, &to).annotations, 1);
    assert_eq!(tags(&to, id), (vec![word("one")], true));
    // The one in between never reaches TO, which has the first one still.
    say(&days.from, id, 20, &["two"], &[], true);
    say(&days.from, id, 30, &[], &["one"], false);
    assert_eq!(sync_all(&days.from, &to).annotations, 1);
    assert_eq!(tags(&to, id), (vec![word("two")], false));
    assert_eq!(sync_all(&days.from, &to).annotations, 0);
    // What TO's own people say meanwhile counts, too, and replaces what came before.
    say(&to, id, 40, &["there"], &["two"], false);
    assert_eq!(sync_all(&days.from, &to).annotations, 0);
    assert_eq!(tags(&to, id), (vec![word("there")], false));
    say(&days.from, id, 50, &["five"], &[], true);
    sync_all(&days.from, &to);
    assert_eq!(tags(&to, id), (vec![word("five"), word("there"), word("two")], true));
}

#[test]
fn under_other_keys_what_is_said_later_is_added() {
    let days = ThreeDays::new(Suite::None);
    let to = RepoFixture::small(Suite::None);
    say(&days.from, days.ids[0], 10, &["one"], &[], false);
    let done = sync_all(&days.from, &to);
    let id = done.synced[0].stored_as.unwrap();
    assert_eq!(tags(&to, id), (vec!["one".to_owned()], false));
    say(&to, id, 20, &["there"], &[], false);
    say(&days.from, days.ids[0], 30, &["two"], &["one"], true);
    assert_eq!(sync_all(&days.from, &to).annotations, 1);
    assert_eq!(tags(&to, id), (vec!["one".to_owned(), "there".to_owned(), "two".to_owned()], true));
    assert_eq!(sync_all(&days.from, &to).annotations, 0);
}
