//! The whole life of a repository against a model of its disks: full backups, deltas, resizes, broken imports, forgetting,
//! collecting garbage and rebuilding the index, in any order. Every live snapshot restores at any time; in the end what is
//! stored is what is needed, and nothing else.

use std::collections::BTreeMap;

use proptest::prelude::*;
use repo_core::Error;
use repo_core::disk::{BlockBuf, Delivery, DiskFormat, DiskSource, SectorMask, Undelivered};
use repo_core::id::SnapshotId;
use repo_core::ops::open::Reach;
use repo_core::ops::restore::RestoreOptions;
use repo_core::seal::Suite;
use repo_core::units::BlockIndex;
use repo_tests::fixture::{RepoFixture, restore_stream};
use repo_tests::model::ModelDisk;

use crate::model::{Edit, apply, edit};

#[derive(Debug, Clone)]
enum Step {
    /// The disk is changed and read in full.
    Full {
        disk: usize,
        edits: Vec<Edit>,
        any_order: bool,
    },
    /// The disk is changed, and what differs from its newest snapshot is read, whole blocks or single sectors.
    Delta {
        disk: usize,
        edits: Vec<Edit>,
        any_order: bool,
        whole_blocks: bool,
    },
    /// An import breaks off before its block of that number.
    Broken {
        disk: usize,
        edits: Vec<Edit>,
        at: u64,
    },
    /// One of the live snapshots is forgotten.
    Forget {
        which: prop::sample::Index,
    },
    Gc,
    /// Another process goes on, with the index as it is or without one.
    Reopen {
        lose_index: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let edits = || prop::collection::vec(edit(), 0..4);
    prop_oneof![
        3 => (0..2_usize, edits(), any::<bool>())
            .prop_map(|(disk, edits, any_order)| Step::Full { disk, edits, any_order }),
        5 => (0..2_usize, edits(), any::<bool>(), any::<bool>())
            .prop_map(|(disk, edits, any_order, whole_blocks)| Step::Delta { disk, edits, any_order, whole_blocks }),
        1 => (0..2_usize, edits(), 0..4_u64).prop_map(|(disk, edits, at)| Step::Broken { disk, edits, at }),
        4 => any::<prop::sample::Index>().prop_map(|which| Step::Forget { which }),
        3 => Just(Step::Gc),
        1 => any::<bool>().prop_map(|lose_index| Step::Reopen { lose_index }),
    ]
}

fn reach() -> impl Strategy<Value = Reach> {
    prop_oneof![Just(Reach::Listed), Just(Reach::Named)]
}

const VDIS: [&str; 2] = ["first", "second"];

struct Life {
    fixture: RepoFixture,
    session: Option<repo_core::ops::open::Session>,
    disks: [ModelDisk; 2],
    live: BTreeMap<SnapshotId, (usize, ModelDisk)>,
    newest: [Vec<SnapshotId>; 2],
}

impl Life {
    fn run(&mut self, step: &Step) {
        if let Step::Reopen { lose_index } = step {
            self.session = None;
            if *lose_index {
                std::fs::remove_dir_all(self.fixture.path().join("index")).unwrap();
            }
            self.session = Some(self.fixture.session());
            return;
        }
        let session = self.session.take().unwrap();
        match step {
            Step::Full { disk, edits, any_order } => {
                edits.iter().for_each(|edit| apply(&mut self.disks[*disk], edit));
                let source = self.disks[*disk].source(delivery(*any_order));
                let report = self.fixture.backup(&session, vec![(VDIS[*disk], source)]).unwrap();
                self.committed(*disk, report.snapshot.id);
            }
            Step::Delta { disk, edits, any_order, whole_blocks } => {
                let Some(base) = self.newest[*disk].last().copied() else {
                    self.session = Some(session);
                    return;
                };
                let (_, before) = &self.live[&base];
                let mut after = self.disks[*disk].clone();
                edits.iter().for_each(|edit| apply(&mut after, edit));
                // Disks do not shrink on Xen, and a delta that says so is refused.
                if after.virtual_size >= before.virtual_size {
                    let source = after.delta(before, delivery(*any_order), *whole_blocks);
                    let report = self.fixture.backup_delta(&session, VDIS[*disk], source, base).unwrap();
                    assert_eq!(report.allocated_bytes, after.pages.len() as u64 * 4096);
                    self.disks[*disk] = after;
                    self.committed(*disk, report.snapshot.id);
                }
            }
            Step::Broken { disk, edits, at } => {
                let mut disk_now = self.disks[*disk].clone();
                edits.iter().for_each(|edit| apply(&mut disk_now, edit));
                let inner = disk_now.source(Delivery::Ascending);
                let source = Box::new(Broken { inner, left: *at });
                assert!(self.fixture.backup(&session, vec![(VDIS[*disk], source)]).is_err());
            }
            Step::Forget { which } => {
                if !self.live.is_empty() {
                    let id = *which.get(&self.live.keys().copied().collect::<Vec<_>>());
                    let (disk, _) = self.live.remove(&id).unwrap();
                    self.newest[disk].retain(|other| *other != id);
                    self.fixture.forget(&session, id);
                }
            }
            Step::Gc => drop(self.fixture.gc(&session)),
            Step::Reopen { .. } => unreachable!("done above"),
        }
        self.session = Some(session);
    }

    fn committed(&mut self, disk: usize, id: SnapshotId) {
        self.live.insert(id, (disk, self.disks[disk].clone()));
        self.newest[disk].push(id);
    }

    fn restore_all(&self) {
        let session = self.session.as_ref().unwrap();
        for (id, (disk, content)) in &self.live {
            let (bytes, _) = restore_stream(session, *id, VDIS[*disk], RestoreOptions::default()).unwrap();
            assert!(bytes == content.to_bytes(), "snapshot {id} differs");
        }
    }

    /// Collects until nothing is left to do, and compares what is stored with a repository that never held anything else.
    fn settle(&mut self) {
        self.restore_all();
        let session = self.session.take().unwrap();
        self.fixture.gc(&session);
        let rest = self.fixture.gc(&session);
        assert_eq!((rest.waste_bytes, rest.waiting_packs, rest.condemned_packs, rest.deleted_packs), (0, 0, 0, 0));
        let stored: u64 = session.repository.store.list_packs().unwrap().iter().map(|pack| pack.len).sum();
        if self.live.is_empty() {
            assert_eq!(stored, 0);
        }
        let mut alone = RepoFixture::small(Suite::None);
        let other = alone.session();
        for (disk, content) in self.live.values() {
            alone.backup_model(&other, VDIS[*disk], content);
        }
        let needed: u64 = other.repository.store.list_packs().unwrap().iter().map(|pack| pack.len).sum();
        // Directories and tags come in more or fewer packs and frames, and compression works on other neighbours.
        let packs = session.repository.store.list_packs().unwrap().len() as u64;
        assert!(stored <= needed * 5 / 4 + packs * 8192, "{stored} bytes in {packs} packs, {needed} are needed");
        self.session = Some(session);
        self.restore_all();
        self.session = None;
        let report = self.fixture.check_all();
        assert!(report.is_clean(), "{report:?}");
    }
}

fn delivery(any_order: bool) -> Delivery {
    if any_order { Delivery::AnyOrder } else { Delivery::Ascending }
}

fn live(suite: Suite, reach: Reach, steps: &[Step]) {
    let mut fixture = RepoFixture::small(suite);
    fixture.reach = reach;
    let session = Some(fixture.session());
    let disks = [ModelDisk::scattered(5_000_123, 7, 1), ModelDisk::new(3 << 20)];
    let mut life = Life { fixture, session, disks, live: BTreeMap::new(), newest: [Vec::new(), Vec::new()] };
    for step in steps {
        life.run(step);
        if matches!(step, Step::Gc) {
            life.restore_all();
        }
    }
    life.settle();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_live_snapshot_restores_and_no_byte_leaks(reach in reach(), steps in prop::collection::vec(step(), 1..20)) {
        live(Suite::None, reach, &steps);
    }

    #[test]
    fn every_live_snapshot_restores_and_no_byte_leaks_encrypted(reach in reach(), steps in prop::collection::vec(step(), 1..8)) {
        live(Suite::Aes256Gcm, reach, &steps);
    }
}

/// A source that breaks off.
struct Broken {
    inner: Box<dyn DiskSource>,
    /// Blocks until then.
    left: u64,
}

impl DiskSource for Broken {
    fn virtual_size(&self) -> Option<u64> {
        self.inner.virtual_size()
    }

    fn format(&self) -> DiskFormat {
        self.inner.format()
    }

    fn delivery(&self) -> Delivery {
        self.inner.delivery()
    }

    fn undelivered(&self) -> Undelivered {
        self.inner.undelivered()
    }

    fn held_sectors(&self) -> Option<&SectorMask> {
        self.inner.held_sectors()
    }

    fn next_block(&mut self, buf: &mut BlockBuf) -> repo_core::Result<Option<BlockIndex>> {
        if self.left == 0 {
            return Err(Error::invalid("the source broke off"));
        }
        self.left -= 1;
        match self.inner.next_block(buf)? {
            None => Err(Error::invalid("the source broke off at its end")),
            some => Ok(some),
        }
    }
}
