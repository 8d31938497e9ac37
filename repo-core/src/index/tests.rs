use std::collections::BTreeSet;

use super::*;
use crate::frame::Codec;
use crate::id::SnapshotId;
use crate::pack::FrameRecord;
use crate::pack::directory::{Directory, Entry};

const REPOSITORY: RepositoryId = RepositoryId([1; 16]);

fn pack(id: u8, entries: &[u8]) -> DurablePack {
    let mut directory = Directory::new(64);
    for entry in entries {
        let record = FrameRecord { sealed_len: 20, plain_len: 4, entry_count: 1, codec: Codec::Stored };
        directory.push(record, &[Entry { id: EntryId([*entry; 32]), len: 4 }]);
    }
    DurablePack { id: PackId([id; 32]), len: 1000, content: Content::Data, directory }
}

fn id(byte: u8) -> EntryId {
    EntryId([byte; 32])
}

#[test]
fn what_was_inserted_is_found_also_after_opening_again() {
    let folder = tempfile::tempdir().unwrap();
    let (index, origin) = Index::open(folder.path(), REPOSITORY).unwrap();
    assert_eq!(origin, Origin::New);
    index.insert(&pack(1, &[5, 9])).unwrap();
    index.insert(&pack(2, &[7])).unwrap();
    drop(index);
    let (index, origin) = Index::open(folder.path(), REPOSITORY).unwrap();
    assert_eq!(origin, Origin::Found);
    let found = index.find(&[id(9), id(1), id(7), id(5), id(9)]).unwrap();
    let frames: Vec<_> = found.iter().map(|found| found.map(|found| (found.pack.0, found.frame))).collect();
    assert_eq!(frames, [Some((0, 1)), None, Some((1, 0)), Some((0, 0)), Some((0, 1))]);
    assert_eq!(index.number_of(PackId([2; 32])), Some(PackNumber(1)));
}

fn listed(ids: &[u8]) -> Vec<PackId> {
    ids.iter().map(|id| PackId([*id; 32])).collect()
}

fn place_of(index: &Index, entry: u8) -> Option<u8> {
    index.find(&[id(entry)]).unwrap()[0].map(|found| index.pack(found.pack).id.0[0])
}

#[test]
fn of_several_copies_the_best_is_found_whatever_happens_to_the_packs() {
    let folder = tempfile::tempdir().unwrap();
    let (index, _) = Index::open(folder.path(), REPOSITORY).unwrap();
    index.insert(&pack(1, &[5, 6])).unwrap();
    index.insert(&pack(2, &[5])).unwrap();
    let snapshot = SnapshotId([9; 32]);
    index.mark_complete(snapshot).unwrap();
    assert_eq!(place_of(&index, 5), Some(1));
    assert_eq!(index.ids_with_copies().unwrap(), BTreeSet::from([id(5)]));
    let states = |listed_ids: &[u8], condemned: &[u8]| {
        let condemned = condemned.iter().map(|id| PackId([*id; 32])).collect();
        index.set_states(index.known_count(), &listed(listed_ids), &condemned).unwrap()
    };
    states(&[1, 2], &[1]);
    assert_eq!((place_of(&index, 5), place_of(&index, 6)), (Some(2), Some(1)), "condemned is better than nothing");
    states(&[1, 2], &[]);
    assert_eq!(place_of(&index, 5), Some(1), "rescued");
    states(&[1, 2], &[1, 2]);
    assert_eq!(place_of(&index, 5), Some(1), "all replicas choose the lowest name");
    index.insert(&pack(3, &[5])).unwrap();
    assert_eq!(place_of(&index, 5), Some(3));
    assert_eq!(states(&[3], &[1, 2]), StateChanges { deleted: 2, vanished: 0 });
    assert_eq!((place_of(&index, 5), place_of(&index, 6)), (Some(3), None));
    assert!(index.ids_with_copies().unwrap().is_empty(), "the places in packs that are gone were purged");
    assert!(index.is_complete(snapshot).unwrap(), "who condemned them saw to it that nothing is missing");
    // A pack that nobody condemned is a loss; when it comes back it is a new one.
    assert_eq!(states(&[], &[]), StateChanges { deleted: 0, vanished: 1 });
    assert!(!index.is_complete(snapshot).unwrap());
    index.insert(&pack(3, &[5])).unwrap();
    assert_eq!(place_of(&index, 5), Some(3));
    // What is inserted after the packs were listed is not taken for lost.
    let known = index.known_count();
    index.insert(&pack(4, &[7])).unwrap();
    assert_eq!(index.set_states(known, &listed(&[3]), &BTreeSet::new()).unwrap(), StateChanges::default());
    assert_eq!(place_of(&index, 7), Some(4));
    drop(index);
    let (index, origin) = Index::open(folder.path(), REPOSITORY).unwrap();
    assert_eq!((origin, place_of(&index, 5), place_of(&index, 7)), (Origin::Found, Some(3), Some(4)));
}

#[test]
fn records_are_kept_while_they_are_there_and_large_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let (index, _) = Index::open(folder.path(), REPOSITORY).unwrap();
    let ids = [1, 2, 3].map(|id| SnapshotId([id; 32]));
    let records = [(ids[0], vec![7; 300]), (ids[1], vec![8; 64 * 1024 + 1]), (ids[2], vec![9])];
    index.keep_records(&records, &ids).unwrap();
    assert_eq!(index.kept_records(&ids).unwrap(), [Some(vec![7; 300]), None, Some(vec![9])]);
    index.keep_records(&[], &ids[1..]).unwrap();
    assert_eq!(index.kept_records(&ids).unwrap(), [None, None, Some(vec![9])]);
}

#[test]
fn two_users_at_once_get_a_replica_each_and_a_free_one_is_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let (first, _) = Index::open(folder.path(), REPOSITORY).unwrap();
    let (second, origin) = Index::open(folder.path(), REPOSITORY).unwrap();
    assert_eq!(origin, Origin::New);
    assert_ne!(first.path(), second.path());
    let path = first.path().to_owned();
    drop(first);
    let (third, origin) = Index::open(folder.path(), REPOSITORY).unwrap();
    assert_eq!((third.path(), origin), (path.as_path(), Origin::Found));
}

#[test]
fn a_foreign_or_broken_replica_is_replaced_by_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let (index, _) = Index::open(folder.path(), REPOSITORY).unwrap();
    index.insert(&pack(1, &[5])).unwrap();
    let path = index.path().to_owned();
    drop(index);
    let (index, origin) = Index::open(folder.path(), RepositoryId([2; 16])).unwrap();
    assert_eq!(origin, Origin::Replaced);
    assert_eq!(index.find(&[id(5)]).unwrap(), [None]);
    drop(index);
    std::fs::write(path.join("CURRENT"), b"nonsense").unwrap();
    let (_, origin) = Index::open(folder.path(), RepositoryId([2; 16])).unwrap();
    assert_eq!(origin, Origin::Replaced);
}
