//! The walk against a model that asks, for every stored entry, which uses reach it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;

use proptest::prelude::*;

use super::*;
use crate::chunk::ChunkParams;
use crate::disk::{FormatHint, SourceOptions, open_stream};
use crate::entropy::Entropy;
use crate::id::{EntryId, NodeId};
use crate::keys::slot::Unlock;
use crate::manifest::{Node, NodeSource};
use crate::monitor::{Recording, Silent};
use crate::ops::backup::{BackupOptions, DiskInput, backup};
use crate::ops::open::{Session, open_session};
use crate::pack::reader::PackReader;
use crate::repository::InitOptions;
use crate::seal::Suite;
use crate::snapshot::NamedSnapshot;
use crate::store::Store;
use crate::units::PAGE_LEN;

struct Fixture {
    folder: tempfile::TempDir,
    session: Session,
    now_ms: i64,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create_local(&folder.path().join("r")).unwrap();
        let mut options = InitOptions::new(Suite::None, 0);
        options.frame_len = 64 * 1024;
        options.pack_len = 256 * 1024;
        options.chunk = ChunkParams { cut_bits: 1, pages_max: 8 };
        let repository = Repository::create(store, &options, &Unlock::Open, "", Entropy::system()).unwrap();
        let session = open_session(repository, None, &Silent).unwrap();
        Self { folder, session, now_ms: 0 }
    }

    fn backup(&mut self, disks: &[(&str, &Vec<u8>)]) -> NamedSnapshot {
        self.now_ms += 1000;
        let disks = disks.iter().map(|(vdi, bytes)| {
            let options = SourceOptions { format: FormatHint::Raw, ..SourceOptions::default() };
            let source = open_stream(Cursor::new((*bytes).clone()), &options).unwrap();
            DiskInput::new(*vdi, source)
        });
        let options = BackupOptions { level: 1, ..BackupOptions::new(self.now_ms) };
        backup(&self.session, disks.collect(), &options, &Silent).unwrap().snapshot
    }

    fn measure(&self, uses: &[TreeUse], keep_sets: usize) -> Usage {
        measure(&self.session.repository, uses, keep_sets, &Silent).unwrap()
    }

    /// Chunks and nodes below a root.
    fn reached(&self, id: NodeId, into: &mut BTreeSet<EntryId>) -> u64 {
        if id.is_none() {
            return 0;
        }
        into.insert(id.into());
        match self.session.content.node(id).unwrap() {
            Node::Leaf(runs) => {
                into.extend(runs.iter().map(|run| EntryId::from(run.id)));
                1
            }
            Node::Inner { children, .. } => children.into_iter().map(|child| self.reached(child, into)).sum(),
        }
    }

    /// Every stored entry once, with its share of its frame, found as a difference of roundings; and the length of the packs.
    fn stored(&self) -> (BTreeMap<EntryId, u64>, u64) {
        let Repository { store, config, keys, .. } = &*self.session.repository;
        let (mut entries, mut total) = (BTreeMap::new(), 0);
        for listed in store.list_packs().unwrap() {
            total += listed.len;
            let pack = PackReader::open(store, listed.id, listed.len, config, keys).unwrap();
            for frame in pack.directory().frames() {
                let (sealed, plain) = (u128::from(frame.record.sealed_len), u128::from(frame.record.plain_len));
                let mut end = 0_u128;
                for entry in pack.directory().entries_of(frame) {
                    let start = end;
                    end += u128::from(entry.len);
                    entries.entry(entry.id).or_insert((sealed * end / plain - sealed * start / plain) as u64);
                }
            }
        }
        (entries, total)
    }
}

/// A disk whose pages have these contents; 0 is a page of zeros.
fn disk(pages: &[u8]) -> Vec<u8> {
    let page = |content: &u8| {
        let mut page = vec![*content; PAGE_LEN];
        if *content != 0 {
            let seed = blake3::hash(&[*content]);
            page.chunks_exact_mut(32).take(100).for_each(|part| part.copy_from_slice(seed.as_bytes()));
        }
        page
    };
    pages.iter().flat_map(page).collect()
}

/// What one snapshot is made of: which of two VDIs, and the pages of their disks. A disk may have another length each time.
fn snapshots() -> impl Strategy<Value = Vec<(usize, Vec<u8>, Vec<u8>)>> {
    let pages = || {
        prop_oneof![
            prop::collection::vec(0..9_u8, 1..60),
            // Some of several blocks, with enough distinct chunks for several rounds.
            (500..1100_usize, any::<u8>())
                .prop_map(|(len, step)| (0..len).map(|at| (at * usize::from(step) / 7) as u8).collect()),
        ]
    };
    prop::collection::vec((0..3_usize, pages(), pages()), 1..6)
}

fn agrees_with_the_model(taken: &[(usize, Vec<u8>, Vec<u8>)], forgotten: &[bool], kept: &[u32]) {
    let mut fixture = Fixture::new();
    let (mut uses, mut all) = (Vec::new(), Vec::new());
    for (number, (which, one, other)) in taken.iter().enumerate() {
        let (one, other) = (disk(one), disk(other));
        let named = match which {
            0 => fixture.backup(&[("a", &one)]),
            1 => fixture.backup(&[("b", &one)]),
            _ => fixture.backup(&[("a", &one), ("b", &other)]),
        };
        for disk in named.snapshot.disks {
            let vdi = u32::from(disk.vdi == "b");
            let number = number as u32;
            let label = all.len() as u32;
            let labels = [label, number, vdi, number % 2, number / 2];
            all.push((number as usize, TreeUse { tree: disk.tree, labels, kept: kept[number as usize] & 3 }));
        }
    }
    uses.extend(all.into_iter().filter(|(number, _)| !forgotten[*number]).map(|(_, one)| one));
    let usage = fixture.measure(&uses, 2);

    let reached: Vec<(BTreeSet<EntryId>, u64)> = uses
        .iter()
        .map(|one| {
            let mut entries = BTreeSet::new();
            let blocks = fixture.reached(one.tree.root, &mut entries);
            (entries, blocks)
        })
        .collect();
    let (stored, packs) = fixture.stored();
    let mut expected = Usage::default();
    for (id, share) in &stored {
        let by: Vec<&TreeUse> =
            uses.iter().zip(&reached).filter(|(_, (ids, _))| ids.contains(id)).map(|(one, _)| one).collect();
        if by.is_empty() {
            expected.dead += share;
            continue;
        }
        for dimension in 0..DIMENSIONS {
            let labels: BTreeSet<u32> = by.iter().map(|one| one.labels[dimension]).collect();
            if labels.len() == 1 {
                let label = *labels.first().unwrap();
                expected.owned[dimension].entry(label).or_default().stored += share;
            }
        }
        expected.live_meta += share;
    }
    let freed = |set: u32| {
        let kept = |id: &EntryId| {
            uses.iter().zip(&reached).any(|(one, (ids, _))| one.kept & (1 << set) != 0 && ids.contains(id))
        };
        let live = |id: &EntryId| reached.iter().any(|(ids, _)| ids.contains(id));
        stored.iter().filter(|(id, _)| live(id) && !kept(id)).map(|(_, share)| share).sum::<u64>()
    };

    assert_eq!(usage.packs(), packs);
    assert_eq!((usage.dead, usage.duplicate, usage.unreadable, usage.damage_count), (expected.dead, 0, 0, 0));
    assert_eq!(usage.live_data.stored + usage.live_meta, expected.live_meta);
    for (dimension, expected) in expected.owned.iter().enumerate() {
        let found: BTreeMap<u32, u64> =
            usage.owned[dimension].iter().map(|(label, bytes)| (*label, bytes.stored)).collect();
        let expected: BTreeMap<u32, u64> = expected.iter().map(|(label, bytes)| (*label, bytes.stored)).collect();
        assert_eq!(found, expected, "dimension {dimension}");
    }
    assert_eq!(usage.freed, [freed(0), freed(1)]);
    assert_eq!(usage.present_blocks, reached.iter().map(|(_, blocks)| *blocks).collect::<Vec<_>>());
    let live: BTreeSet<&EntryId> = reached.iter().flat_map(|(ids, _)| ids).collect();
    assert_eq!(usage.chunk_count + usage.node_count, live.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_byte_has_the_owners_that_the_model_finds(
        taken in snapshots(),
        forgotten in prop::collection::vec(prop::bool::weighted(0.3), 6),
        kept in prop::collection::vec(any::<u32>(), 6),
    ) {
        agrees_with_the_model(&taken, &forgotten, &kept);
    }
}

#[test]
fn more_chunks_than_the_table_holds_are_counted_in_several_rounds() {
    // In tests the table holds 200 chunks; pages that all differ make some 400 of them.
    let pages = |seed: u8| {
        (0..1500_u32)
            .flat_map(|page| {
                let mut content = vec![seed; PAGE_LEN];
                content[..4].copy_from_slice(&page.to_le_bytes());
                content
            })
            .collect::<Vec<u8>>()
    };
    let mut fixture = Fixture::new();
    let (one, other) = (fixture.backup(&[("a", &pages(1))]), fixture.backup(&[("b", &pages(2))]));
    let uses: Vec<_> = [&one, &other]
        .iter()
        .zip(0..)
        .map(|(named, label)| TreeUse { tree: named.snapshot.disks[0].tree, labels: [label; DIMENSIONS], kept: 0 })
        .collect();
    let usage = fixture.measure(&uses, 0);
    assert!(usage.chunk_count > 400, "{}", usage.chunk_count);
    assert_eq!(usage.live_data.plain, 2 * 1500 * PAGE_LEN as u64);
    assert_eq!((usage.dead, usage.duplicate), (0, 0));
    let owned: u64 = usage.owned[0].values().map(|bytes| bytes.stored).sum();
    assert_eq!(owned, usage.live_data.stored + usage.live_meta);
    assert_eq!(usage.packs(), fixture.stored().1);
}

#[test]
fn damage_is_told_and_counted_and_is_no_error() {
    let mut fixture = Fixture::new();
    let named = fixture.backup(&[("a", &disk(&(0..200).map(|page| page as u8).collect::<Vec<_>>()))]);
    let uses = [TreeUse { tree: named.snapshot.disks[0].tree, labels: [0; DIMENSIONS], kept: 0 }];
    let before = fixture.measure(&uses, 0);
    let store = &fixture.session.repository.store;
    let pack = store.list_packs().unwrap()[0];
    let path = fixture.folder.path().join("r").join(ObjectName::Pack(pack.id).path());
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len() - 100;
    bytes[end] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let monitor = Recording::default();
    let usage = measure(&fixture.session.repository, &uses, 0, &monitor).unwrap();
    assert_eq!((usage.unreadable, usage.total()), (pack.len, before.total()));
    assert!(usage.damage_count > 0 && !monitor.damages.lock().is_empty());
}

#[test]
fn a_result_is_kept_until_anything_changes() {
    let mut fixture = Fixture::new();
    let named = fixture.backup(&[("a", &disk(&[1, 2, 3]))]);
    let uses = [TreeUse { tree: named.snapshot.disks[0].tree, labels: [0; DIMENSIONS], kept: 1 }];
    let cache = fixture.folder.path().join("cache");
    let cached =
        |keep_sets| cache::measure_cached(&fixture.session.repository, &uses, keep_sets, &cache, &Silent).unwrap();
    let first = cached(1);
    assert_eq!(first, fixture.measure(&uses, 1));
    // A pack that can no longer be read is not noticed: nothing was read.
    let store = &fixture.session.repository.store;
    let pack = store.list_packs().unwrap()[0];
    let path = fixture.folder.path().join("r").join(ObjectName::Pack(pack.id).path());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, vec![0; bytes.len()]).unwrap();
    assert_eq!(cached(1), first);
    assert_ne!(cached(0).unreadable, 0, "another question");
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(cached(1), first);
    store.delete(ObjectName::Snapshot(named.id)).unwrap();
    assert_eq!(cached(1).records, 0);
}
