//! Repacking by place: a disk that many imports scattered is put in order, once, and nothing is lost by it.

use std::sync::atomic::{AtomicU64, Ordering};

use repo_core::disk::Delivery;
use repo_core::id::SnapshotId;
use repo_core::monitor::{Monitor, Recording, Silent};
use repo_core::ops::gc::{GcOptions, GcReport, gc};
use repo_core::ops::open::Session;
use repo_core::ops::restore::RestoreOptions;
use repo_core::pack::Content;
use repo_core::seal::Suite;
use repo_core::units::PAGES_PER_BLOCK;
use repo_core::{Error, ErrorKind};
use repo_tests::fixture::{RepoFixture, first_frame_offset, gc_options, restore_stream};
use repo_tests::model::{ModelDisk, mix};

/// Blocks of a disk: more than a restore works through at once.
const BLOCKS: u64 = 50;
/// Pages with content in each.
const PAGES: u64 = 64;

/// A disk of even content. Equal seeds make equal disks.
fn disk(seed: u64) -> ModelDisk {
    let mut disk = ModelDisk::new(BLOCKS * (2 << 20));
    for (block, at) in (0..BLOCKS).flat_map(|block| (0..PAGES).map(move |at| (block, at))) {
        write(&mut disk, block * PAGES_PER_BLOCK as u64 + at, seed);
    }
    disk
}

fn write(disk: &mut ModelDisk, page: u64, seed: u64) {
    disk.pages.insert(page, (mix(page ^ seed << 40) >> 32) as u32);
}

/// Rewrites single pages anywhere.
fn scatter(disk: &mut ModelDisk, count: u64, seed: u64) {
    for at in 0..count {
        let place = mix(seed << 20 | at) % (BLOCKS * PAGES);
        write(disk, place / PAGES * PAGES_PER_BLOCK as u64 + place % PAGES, seed);
    }
}

/// A repository and all states of its disks.
struct Life {
    fixture: RepoFixture,
    states: Vec<(SnapshotId, String, ModelDisk)>,
}

impl Life {
    fn new() -> Self {
        Self { fixture: RepoFixture::small(Suite::Aes256Gcm), states: Vec::new() }
    }

    fn import(&mut self, session: &Session, vdi: &str, disk: ModelDisk) {
        let id = self.fixture.backup_model(session, vdi, &disk).snapshot.id;
        self.states.push((id, vdi.to_owned(), disk));
    }

    /// Imports so many deltas over the newest state of a disk.
    fn age(&mut self, session: &Session, vdi: &str, deltas: u64, seed: u64) {
        for at in 0..deltas {
            let (base, _, before) = self.newest(vdi);
            let mut disk = before.clone();
            scatter(&mut disk, 20, seed << 10 | at);
            let delta = disk.delta(before, Delivery::Ascending, true);
            let base = *base;
            let id = self.fixture.backup_delta(session, vdi, delta, base).unwrap().snapshot.id;
            self.states.push((id, vdi.to_owned(), disk));
        }
    }

    fn newest(&self, vdi: &str) -> &(SnapshotId, String, ModelDisk) {
        self.states.iter().rev().find(|(_, of, _)| of == vdi).unwrap()
    }

    /// Frames that a restore of the newest state decodes, by a process that begins with it.
    fn frames(&self, vdi: &str) -> u64 {
        let (id, _, disk) = self.newest(vdi);
        frames(&self.fixture.session(), *id, vdi, disk)
    }

    /// Frames that it would decode, were it imported alone.
    fn frames_alone(&self, vdi: &str) -> u64 {
        let (_, _, disk) = self.newest(vdi);
        let mut alone = RepoFixture::small(Suite::Aes256Gcm);
        let id = alone.backup_model(&alone.session(), vdi, disk).snapshot.id;
        frames(&alone.session(), id, vdi, disk)
    }

    /// Restores every eighth state, and the newest; that the others are whole too is left to `check`.
    fn restore_some(&self, session: &Session) {
        for (id, vdi, disk) in self.states.iter().rev().step_by(8) {
            let (bytes, _) = restore_stream(session, *id, vdi, RestoreOptions::default()).unwrap();
            assert!(bytes == disk.to_bytes(), "snapshot {id} of {vdi} differs");
        }
    }

    fn restore_newest(&self, session: &Session, vdi: &str) {
        let (id, _, disk) = self.newest(vdi);
        frames(session, *id, vdi, disk);
    }
}

fn frames(session: &Session, id: SnapshotId, vdi: &str, disk: &ModelDisk) -> u64 {
    let before = session.content.decoded_frame_count();
    let (bytes, _) = restore_stream(session, id, vdi, RestoreOptions::default()).unwrap();
    assert!(bytes == disk.to_bytes(), "snapshot {id} of {vdi} differs");
    session.content.decoded_frame_count() - before
}

fn assert_idle(report: &GcReport) {
    let moved = (report.repacked_packs, report.ordered_packs, report.moved_bytes, report.condemned_packs);
    assert_eq!(moved, (0, 0, 0, 0), "{report:?}");
}

#[test]
fn a_scattered_disk_is_put_in_order_once_and_every_snapshot_restores() {
    let mut life = Life::new();
    let session = life.fixture.session();
    life.import(&session, "a", disk(1));
    assert_idle(&life.fixture.gc(&session));
    life.age(&session, "a", 90, 2);
    let (before, alone) = (life.frames("a"), life.frames_alone("a"));
    assert!(before > alone * 3 / 2, "{before} frames, {alone} alone: not scattered enough to show anything");

    let dry = gc(&session, &GcOptions { dry_run: true, ..gc_options(9_000_000) }, &Silent).unwrap();
    let report = life.fixture.gc(&session);
    assert!(report.scattered_disks == 1 && report.ordered_packs > 0 && report.waste_bytes == 0, "{report:?}");
    assert_eq!((dry.scattered_disks, dry.ordered_packs), (report.scattered_disks, report.ordered_packs));
    let after = life.frames("a");
    assert!(after * 4 <= alone * 5, "{after} frames, {before} before, {alone} alone");
    life.restore_some(&session);
    assert_idle(&life.fixture.gc(&session));
    assert_idle(&life.fixture.gc(&life.fixture.session()));

    // It goes on as before: some more scattered imports are too few to move anything, many are not.
    life.age(&session, "a", 3, 3);
    assert_eq!(life.fixture.gc(&session).ordered_packs, 0);
    life.age(&session, "a", 60, 4);
    assert!(life.fixture.gc(&session).ordered_packs > 0);
    assert_idle(&life.fixture.gc(&session));
    life.restore_newest(&session, "a");
    drop(session);
    assert!(life.fixture.check_all().is_clean());
}

#[test]
fn disks_that_share_their_chunks_come_to_rest_too() {
    let mut life = Life::new();
    let session = life.fixture.session();
    // A fleet of one golden image, each scattered in its own way, their imports mixed.
    for vdi in ["a", "b", "c", "d"] {
        life.import(&session, vdi, disk(1));
    }
    for round in 0..44 {
        for (number, vdi) in (1..).zip(["a", "b", "c", "d"]) {
            life.age(&session, vdi, 1, number << 8 | round);
        }
    }
    // Another one has the same pages in another order.
    let mut turned = ModelDisk::new(BLOCKS * (2 << 20));
    let golden = disk(1);
    for ((page, _), (_, number)) in golden.pages.iter().zip(golden.pages.iter().rev()) {
        turned.pages.insert(*page, *number);
    }
    life.import(&session, "turned", turned);
    let before: Vec<u64> = ["a", "b", "c", "d"].map(|vdi| life.frames(vdi)).into();
    let report = life.fixture.gc(&session);
    assert!(report.scattered_disks > 0 && report.ordered_packs > 0, "{report:?}");
    let after: Vec<u64> = ["a", "b", "c", "d"].map(|vdi| life.frames(vdi)).into();
    assert!(after.iter().sum::<u64>() < before.iter().sum(), "{after:?} frames after, {before:?} before");
    assert_idle(&life.fixture.gc(&session));
    life.restore_some(&session);
    drop(session);
    assert!(life.fixture.check_all().is_clean());
}

#[test]
fn no_run_moves_more_than_it_may_and_many_runs_come_to_an_end() {
    let mut life = Life::new();
    let session = life.fixture.session();
    life.import(&session, "a", disk(1));
    life.age(&session, "a", 90, 2);
    let (before, alone) = (life.frames("a"), life.frames_alone("a"));
    let options = |move_bytes_max| GcOptions { move_bytes_max, ..gc_options(9_000_000) };
    assert_idle(&gc(&session, &options(0), &Silent).unwrap());
    let (limit, mut runs) = (1 << 20, 0);
    loop {
        let report = gc(&session, &options(limit), &Silent).unwrap();
        // What is counted are frames; each new pack adds a directory and what surrounds it.
        assert!(report.moved_bytes <= limit + limit / 4, "{report:?}");
        if report.repacked_packs == 0 {
            break;
        }
        runs += 1;
        assert!(runs < 40, "{report:?}");
    }
    let after = life.frames("a");
    assert!(runs > 1 && after < before, "{runs} runs, {after} frames, {before} before, {alone} alone");
    life.restore_some(&session);
    drop(session);
    assert!(life.fixture.check_all().is_clean());
}

#[test]
fn an_ordering_that_is_broken_off_anywhere_loses_nothing_and_is_made_up_for() {
    let mut life = Life::new();
    let session = life.fixture.session();
    life.import(&session, "a", disk(1));
    life.age(&session, "a", 60, 2);
    drop(session);
    let mut broken_off = 0;
    for steps in (0..).map(|at| at * 7) {
        let session = life.fixture.session();
        match gc(&session, &gc_options(9_000_000), &BreaksOff { steps: AtomicU64::new(steps) }) {
            Ok(report) => {
                assert!(report.ordered_packs > 0 || report.repacked_packs > 0, "{report:?}");
                break;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted, "{error:?}"),
        }
        broken_off += 1;
        life.restore_newest(&life.fixture.session(), "a");
    }
    assert!(broken_off > 5, "broken off {broken_off} times");
    // What the broken ones left behind goes; then all is at rest.
    let session = life.fixture.session();
    life.fixture.gc(&session);
    let rest = life.fixture.gc(&session);
    assert_idle(&rest);
    assert_eq!((rest.waste_bytes, rest.waiting_packs), (0, 0), "{rest:?}");
    life.restore_some(&session);
    drop(session);
    assert!(life.fixture.check_all().is_clean());
}

#[test]
fn a_pack_with_a_damaged_frame_stays_and_the_others_are_put_in_order() {
    let mut life = Life::new();
    let session = life.fixture.session();
    life.import(&session, "a", disk(1));
    life.age(&session, "a", 90, 2);
    let dry = gc(&session, &GcOptions { dry_run: true, ..gc_options(9_000_000) }, &Silent).unwrap();
    // Packs of imports in the middle: some of them will be chosen, and cannot be read.
    let packs: Vec<_> = session.index.packs().into_iter().filter(|pack| pack.content == Content::Data).collect();
    let middle = packs.len() / 2;
    let damaged: Vec<_> = packs[middle..middle + 12]
        .iter()
        .map(|pack| {
            let path = life.fixture.path().join("packs").join(&pack.id.to_hex()[..2]).join(pack.id.to_hex());
            let whole = std::fs::read(&path).unwrap();
            let mut bytes = whole.clone();
            let at = first_frame_offset(&bytes) + 136;
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            (path, whole)
        })
        .collect();
    let monitor = Recording::default();
    let report = gc(&session, &gc_options(9_000_000), &monitor).unwrap();
    let lost = monitor.damages.lock().len() as u64;
    assert!(lost > 0 && report.repacked_packs > 0, "{lost} lost, {report:?}");
    assert_eq!(report.repacked_packs + lost, dry.repacked_packs, "{report:?}");
    assert!(report.ordered_packs > 0 && report.ordered_packs <= dry.ordered_packs, "{report:?}");
    for (path, whole) in damaged.into_iter().filter(|(path, _)| path.exists()) {
        std::fs::write(&path, whole).unwrap();
    }
    life.restore_some(&life.fixture.session());
    assert!(life.fixture.check_all().is_clean());
}

/// Asks to stop after so many questions whether to.
struct BreaksOff {
    steps: AtomicU64,
}

impl Monitor for BreaksOff {
    fn begin(&self, _task: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
    fn warn(&self, text: &str) {
        println!("warning: {text}");
    }
    fn damage(&self, error: &Error) {
        panic!("damage: {error:?}");
    }
    fn is_cancelled(&self) -> bool {
        let left = self.steps.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.is_err()
    }
}
