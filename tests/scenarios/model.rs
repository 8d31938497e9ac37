//! Any sequence of backups restores every snapshot exactly, against the simplest model there is: the disks themselves.

use proptest::prelude::*;
use repo_core::disk::Delivery;
use repo_core::ops::restore::RestoreOptions;
use repo_core::seal::Suite;
use repo_core::units::PAGE_LEN;
use repo_tests::fixture::{RepoFixture, restore_file, restore_stream};
use repo_tests::model::ModelDisk;

/// A change to a disk before its next backup.
#[derive(Debug, Clone)]
pub(crate) enum Edit {
    /// Pages from a place on get new content; 0 is zeros.
    Write { at: prop::sample::Index, pages: u64, content: u32 },
    /// A range of the disk is copied elsewhere: equal content at other pages.
    Copy { from: prop::sample::Index, to: prop::sample::Index, pages: u64 },
    /// The disk gets another size.
    Resize { bytes: u64 },
}

#[derive(Debug, Clone)]
struct Step {
    disk: usize,
    edits: Vec<Edit>,
    any_order: bool,
    reopen: bool,
}

pub(crate) fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        6 => (any::<prop::sample::Index>(), 1..700_u64, 0..6_u32)
            .prop_map(|(at, pages, content)| Edit::Write { at, pages, content }),
        2 => (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1..300_u64)
            .prop_map(|(from, to, pages)| Edit::Copy { from, to, pages }),
        1 => (0..9_000_000_u64).prop_map(|bytes| Edit::Resize { bytes }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..2_usize, prop::collection::vec(edit(), 0..5), any::<bool>(), any::<bool>())
        .prop_map(|(disk, edits, any_order, reopen)| Step { disk, edits, any_order, reopen });
    prop::collection::vec(step, 1..7)
}

pub(crate) fn apply(disk: &mut ModelDisk, edit: &Edit) {
    let pages = disk.virtual_size.div_ceil(PAGE_LEN as u64);
    let place = |index: &prop::sample::Index| index.index(usize::try_from(pages.max(1)).unwrap()) as u64;
    match edit {
        Edit::Write { at, pages: count, content } => {
            let at = place(at);
            for page in at..(at + count).min(pages) {
                match content {
                    0 => drop(disk.pages.remove(&page)),
                    // Content differs from page to page, and repeats after a while.
                    content => drop(disk.pages.insert(page, content * 1000 + (page % 50) as u32)),
                }
            }
        }
        Edit::Copy { from, to, pages: count } => {
            let (from, to) = (place(from), place(to));
            let copied: Vec<_> =
                disk.pages.range(from..from + count).map(|(page, content)| (*page, *content)).collect();
            for (page, content) in copied {
                let target = to + (page - from);
                if target < pages {
                    disk.pages.insert(target, content);
                }
            }
        }
        Edit::Resize { bytes } => {
            disk.virtual_size = *bytes;
            disk.pages.retain(|page, _| page * (PAGE_LEN as u64) < *bytes);
        }
    }
}

fn run(suite: Suite, steps: &[Step]) {
    let mut fixture = RepoFixture::small(suite);
    let mut session = fixture.session();
    let mut disks = [ModelDisk::new(5_000_123), ModelDisk::new(3 << 20)];
    let mut taken = Vec::new();
    for step in steps {
        let vdi = ["first", "second"][step.disk];
        let disk = &mut disks[step.disk];
        step.edits.iter().for_each(|edit| apply(disk, edit));
        if step.reopen {
            drop(session);
            session = fixture.session();
        }
        let delivery = if step.any_order { Delivery::AnyOrder } else { Delivery::Ascending };
        let report = fixture.backup(&session, vec![(vdi, disk.source(delivery))]).unwrap();
        assert_eq!(report.logical_bytes, disk.virtual_size);
        assert_eq!(report.allocated_bytes, disk.pages.len() as u64 * PAGE_LEN as u64);
        taken.push((report.snapshot.id, vdi, disk.clone()));
    }
    let target = fixture.folder.path().join("restored");
    for (id, vdi, disk) in &taken {
        let expected = disk.to_bytes();
        let (streamed, report) = restore_stream(&session, *id, vdi, RestoreOptions::default()).unwrap();
        assert!(streamed == expected, "stream restore of {id} differs");
        assert!(report.holes.is_empty());
        assert!(restore_file(&session, *id, vdi, &target).unwrap() == expected, "file restore of {id} differs");
    }
    drop(session);
    let report = fixture.check_all();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.snapshots, taken.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_sequence_of_backups_restores_every_snapshot_encrypted(steps in steps()) {
        run(Suite::Aes256Gcm, &steps);
    }

    #[test]
    fn any_sequence_of_backups_restores_every_snapshot_unencrypted(steps in steps()) {
        run(Suite::None, &steps);
    }
}

#[test]
fn an_unchanged_disk_adds_nothing_but_a_snapshot_record() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let session = fixture.session();
    let disk = ModelDisk::scattered(20 << 20, 3, 1);
    let first = fixture.backup_model(&session, "a", &disk);
    let packs = session.repository.store.list_packs().unwrap();
    let second = fixture.backup_model(&session, "a", &disk);
    assert_eq!(session.repository.store.list_packs().unwrap(), packs);
    assert_eq!((second.new_bytes, second.unchanged_blocks), (0, first.blocks));
    assert_eq!(second.snapshot.snapshot.disks[0].tree, first.snapshot.snapshot.disks[0].tree);
}

#[test]
fn the_same_content_under_another_name_stores_no_chunk_twice() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let session = fixture.session();
    let disk = ModelDisk::scattered(20 << 20, 3, 1);
    fixture.backup_model(&session, "a", &disk);
    let clone = fixture.backup_model(&session, "b", &disk);
    assert_eq!((clone.new_bytes, clone.unchanged_blocks), (0, 0));
    assert!(clone.stored_bytes < 64 * 1024, "{}", clone.stored_bytes);
}

#[test]
fn several_disks_of_a_vm_are_one_snapshot() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let session = fixture.session();
    let disks = [ModelDisk::scattered(5 << 20, 2, 1), ModelDisk::scattered(7_000_001, 5, 2)];
    let inputs = vec![("sda", disks[0].source(Delivery::Ascending)), ("sdb", disks[1].stream())];
    let report = fixture.backup(&session, inputs).unwrap();
    for (vdi, disk) in ["sda", "sdb"].into_iter().zip(&disks) {
        let (bytes, _) = restore_stream(&session, report.snapshot.id, vdi, RestoreOptions::default()).unwrap();
        assert!(bytes == disk.to_bytes());
    }
    assert!(fixture.backup(&session, vec![("x", disks[0].stream()), ("x", disks[1].stream())]).is_err());
}

#[test]
fn several_sessions_work_on_one_repository_at_once() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let (first, second) = (fixture.session(), fixture.session());
    assert_ne!(first.index.path(), second.index.path());
    let (a, b) = (ModelDisk::scattered(9 << 20, 3, 1), ModelDisk::scattered(9 << 20, 3, 2));
    let one = fixture.backup_model(&first, "a", &a).snapshot.id;
    let two = fixture.backup_model(&second, "b", &b).snapshot.id;
    // A session opened later sees both; its replica is whichever is free.
    drop((first, second));
    let session = fixture.session();
    for (id, vdi, disk) in [(one, "a", &a), (two, "b", &b)] {
        assert!(restore_stream(&session, id, vdi, RestoreOptions::default()).unwrap().0 == disk.to_bytes());
    }
}
