//! Any history of two repositories against a model of both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use repo_core::disk::Delivery;
use repo_core::id::SnapshotId;
use repo_core::monitor::Silent;
use repo_core::ops::sync::{Filter, SyncOptions, sync};
use repo_core::seal::Suite;
use repo_tests::fixture::RepoFixture;
use repo_tests::model::ModelDisk;

use super::{Expected, restore_all};
use crate::model::{Edit, apply, edit};

#[derive(Debug, Clone)]
enum Step {
    Full { disk: usize, edits: Vec<Edit> },
    Delta { disk: usize, edits: Vec<Edit> },
    ForgetFrom(prop::sample::Index),
    ForgetTo(prop::sample::Index),
    GcFrom,
    GcTo,
    LoseIndexes,
    Sync { disk: Option<usize>, newest: Option<usize>, since: Option<prop::sample::Index> },
}

fn step() -> impl Strategy<Value = Step> {
    let edits = || prop::collection::vec(edit(), 0..3);
    prop_oneof![
        3 => (0..2_usize, edits()).prop_map(|(disk, edits)| Step::Full { disk, edits }),
        3 => (0..2_usize, edits()).prop_map(|(disk, edits)| Step::Delta { disk, edits }),
        2 => any::<prop::sample::Index>().prop_map(Step::ForgetFrom),
        2 => any::<prop::sample::Index>().prop_map(Step::ForgetTo),
        1 => Just(Step::GcFrom),
        2 => Just(Step::GcTo),
        1 => Just(Step::LoseIndexes),
        4 => (prop::option::of(0..2_usize), prop::option::of(1..3_usize), prop::option::of(any::<prop::sample::Index>()))
            .prop_map(|(disk, newest, since)| Step::Sync { disk, newest, since }),
    ]
}

const VDIS: [&str; 2] = ["first", "second"];

struct Two {
    from: RepoFixture,
    to: RepoFixture,
    disks: [ModelDisk; 2],
    /// Snapshots of FROM with their numbers, oldest first, and of TO.
    live: Vec<(SnapshotId, usize)>,
    content: BTreeMap<SnapshotId, ModelDisk>,
    times: BTreeMap<SnapshotId, i64>,
    /// What TO has, by name there; and the names there of those of FROM.
    there: Expected,
    stored_as: BTreeMap<SnapshotId, SnapshotId>,
}

impl Two {
    fn run(&mut self, step: &Step) {
        match step {
            Step::Full { disk, edits } => {
                edits.iter().for_each(|edit| apply(&mut self.disks[*disk], edit));
                let done = self.from.backup_model(&self.from.session(), VDIS[*disk], &self.disks[*disk].clone());
                self.committed(*disk, &done.snapshot);
            }
            Step::Delta { disk, edits } => {
                let base = self.live.iter().rev().find(|(_, of)| of == disk).map(|(id, _)| *id);
                let Some(base) = base else { return };
                let before = &self.content[&base];
                let mut after = self.disks[*disk].clone();
                edits.iter().for_each(|edit| apply(&mut after, edit));
                if after.virtual_size < before.virtual_size {
                    return;
                }
                let source = after.delta(before, Delivery::Ascending, true);
                let done = self.from.backup_delta(&self.from.session(), VDIS[*disk], source, base).unwrap();
                self.disks[*disk] = after;
                self.committed(*disk, &done.snapshot);
            }
            Step::ForgetFrom(which) if !self.live.is_empty() => {
                let (id, _) = self.live.remove(which.index(self.live.len()));
                self.from.forget(&self.from.session(), id);
            }
            Step::ForgetTo(which) if !self.there.is_empty() => {
                let id = *which.get(&self.there.keys().copied().collect::<Vec<_>>());
                self.there.remove(&id);
                self.stored_as.retain(|_, other| *other != id);
                self.to.forget(&self.to.session(), id);
            }
            Step::ForgetFrom(_) | Step::ForgetTo(_) => {}
            Step::GcFrom => drop(self.from.gc(&self.from.session())),
            Step::GcTo => drop(self.to.gc(&self.to.session())),
            Step::LoseIndexes => {
                for fixture in [&self.from, &self.to] {
                    let index = fixture.path().join("index");
                    if index.exists() {
                        std::fs::remove_dir_all(index).unwrap();
                    }
                }
            }
            Step::Sync { disk, newest, since } => self.sync(*disk, *newest, since.as_ref()),
        }
    }

    fn committed(&mut self, disk: usize, named: &repo_core::snapshot::NamedSnapshot) {
        self.live.push((named.id, disk));
        self.content.insert(named.id, self.disks[disk].clone());
        self.times.insert(named.id, named.snapshot.time_ms);
    }

    /// What a filter means, disk by disk.
    fn chosen(&self, disk: Option<usize>, newest: Option<usize>, since_ms: Option<i64>) -> Vec<(SnapshotId, usize)> {
        let mut chosen = Vec::new();
        for of in (0..VDIS.len()).filter(|of| disk.is_none_or(|disk| disk == *of)) {
            let in_time = |id: &SnapshotId| since_ms.is_none_or(|since| self.times[id] >= since);
            let meant: Vec<_> = self.live.iter().filter(|(id, other)| *other == of && in_time(id)).copied().collect();
            let passed = newest.map_or(0, |newest| meant.len().saturating_sub(newest));
            chosen.extend(meant.into_iter().skip(passed));
        }
        chosen
    }

    fn sync(&mut self, disk: Option<usize>, newest: Option<usize>, since: Option<&prop::sample::Index>) {
        // A filter that names what is not there is refused.
        let disk = disk.filter(|disk| self.live.iter().any(|(_, of)| of == disk));
        let since_ms = since.filter(|_| !self.live.is_empty()).map(|at| self.times[&at.get(&self.live).0]);
        let filter = Filter {
            vdis: disk.map(|disk| VDIS[disk].to_owned()).into_iter().collect::<BTreeSet<_>>(),
            newest,
            since_ms,
            ..Filter::default()
        };
        let options = SyncOptions { filter, level: 1, ..SyncOptions::new(5_000_000) };
        let chosen = self.chosen(disk, newest, since_ms);
        let done = sync(&Arc::new(self.from.session()), &self.to.session(), &options, &Silent).unwrap();
        assert!(done.is_clean(), "{:?}", done.failed);
        let synced: BTreeMap<_, _> = done.synced.iter().map(|synced| (synced.id, synced.stored_as.unwrap())).collect();
        let expected: BTreeSet<_> =
            chosen.iter().map(|(id, _)| *id).filter(|id| !self.stored_as.contains_key(id)).collect();
        assert_eq!(synced.keys().copied().collect::<BTreeSet<_>>(), expected);
        for (id, disk) in chosen.into_iter().filter(|(id, _)| synced.contains_key(id)) {
            self.there.insert(synced[&id], (VDIS[disk].to_owned(), self.content[&id].clone()));
            self.stored_as.insert(id, synced[&id]);
        }
        restore_all(&self.to, &self.there);
        let again = sync(&Arc::new(self.from.session()), &self.to.session(), &options, &Silent).unwrap();
        let moved = (again.synced.len(), again.moved_packs, again.stored_bytes, again.read_bytes);
        assert_eq!(moved, (0, 0, 0, 0), "a second sync moves nothing");
    }
}

fn live(from: RepoFixture, to: RepoFixture, steps: &[Step]) {
    let disks = [ModelDisk::scattered(5_000_123, 7, 1), ModelDisk::new(3 << 20)];
    let mut two = Two {
        from,
        to,
        disks,
        live: Vec::new(),
        content: BTreeMap::new(),
        times: BTreeMap::new(),
        there: Expected::new(),
        stored_as: BTreeMap::new(),
    };
    for step in steps {
        two.run(step);
    }
    two.sync(None, None, None);
    std::fs::remove_dir_all(two.from.path()).unwrap();
    two.to.gc(&two.to.session());
    two.to.gc(&two.to.session());
    restore_all(&two.to, &two.there);
    let report = two.to.check_all();
    assert!(report.is_clean(), "{report:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_happens_to_two_copies_what_is_synced_restores(steps in prop::collection::vec(step(), 1..16)) {
        let from = RepoFixture::small(Suite::None);
        let to = from.empty_copy();
        live(from, to, &steps);
    }

    #[test]
    fn whatever_happens_to_repositories_with_other_keys_what_is_synced_restores(
        steps in prop::collection::vec(step(), 1..12), encrypted: [bool; 2],
    ) {
        let [from, to] = encrypted.map(|is| RepoFixture::small(if is { Suite::Aes256Gcm } else { Suite::None }));
        live(from, to, &steps);
    }
}
