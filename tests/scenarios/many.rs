//! Incrementals without end: what an import, a diff and a restore cost follows what changed, not how many snapshots
//! there are. By counts, which are the same on every machine.

use std::ops::RangeInclusive;

use repo_core::disk::Delivery;
use repo_core::id::SnapshotId;
use repo_core::monitor::Silent;
use repo_core::ops::backup::BaseChoice;
use repo_core::ops::diff::diff;
use repo_core::ops::open::Session;
use repo_core::ops::restore::RestoreOptions;
use repo_core::seal::Suite;
use repo_core::snapshot;
use repo_tests::fixture::{RepoFixture, restore_stream};
use repo_tests::model::{BLOCK_PAGES, ModelDisk, mix};

const BLOCKS: u64 = 16;
/// Blocks that each incremental changes a little.
const CHANGED: u64 = 4;

/// What an operation cost.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    added_bytes: u64,
    record_bytes: u64,
    lookups: u64,
    nodes: u64,
    frames: u64,
}

impl Counts {
    fn of(session: &Session) -> Self {
        let Session { index, content, .. } = session;
        let (lookups, nodes, frames) = (index.lookup_count(), content.node_read_count(), content.decoded_frame_count());
        Self { lookups, nodes, frames, ..Self::default() }
    }
}

/// A disk that goes from one incremental to the next: each writes a page anew in a few blocks, the same pages again and
/// again after a while, as guests do.
fn change(disk: &ModelDisk, number: u64) -> ModelDisk {
    let mut next = disk.clone();
    for at in 0..CHANGED {
        let block = (number * CHANGED + at) % BLOCKS;
        let page = mix(number / (BLOCKS / CHANGED) % 8) % BLOCK_PAGES;
        next.pages.insert(block * BLOCK_PAGES + page, (mix(number << 8 | at) >> 33) as u32);
    }
    next
}

struct Life {
    fixture: RepoFixture,
    disk: ModelDisk,
    ids: Vec<SnapshotId>,
}

impl Life {
    fn import(&mut self, session: &Session, number: u64) -> Counts {
        let next = change(&self.disk, number);
        let delta = next.delta(&self.disk, Delivery::Ascending, true);
        let done = self.fixture.backup_over(session, "disk", delta, BaseChoice::Newest).unwrap();
        self.disk = next;
        self.ids.push(done.snapshot.id);
        let (added_bytes, record_bytes) = (done.stored_bytes, done.snapshot.len);
        Counts { added_bytes, record_bytes, ..Counts::of(session) }
    }

    /// Imports, each by a process of its own, with caches that are empty: the most that any of them cost.
    fn import_alone(&mut self, numbers: RangeInclusive<u64>) -> Counts {
        let each = numbers.map(|number| {
            let session = self.fixture.session();
            self.import(&session, number)
        });
        each.reduce(|one, other| Counts {
            added_bytes: one.added_bytes + other.added_bytes,
            record_bytes: one.record_bytes.max(other.record_bytes),
            lookups: one.lookups.max(other.lookups),
            nodes: one.nodes.max(other.nodes),
            frames: one.frames.max(other.frames),
        })
        .unwrap_or_default()
    }

    /// What it costs to compare the two newest snapshots.
    fn compare_newest(&self) -> Counts {
        let session = self.fixture.session();
        let tree = |at: usize| snapshot::read(&session.repository, self.ids[at]).unwrap().snapshot.disks[0].tree;
        let (before, after) = (tree(self.ids.len() - 2), tree(self.ids.len() - 1));
        let report = diff(&session, &before, &after, &Silent).unwrap();
        assert_eq!(report.changed_blocks, CHANGED);
        Counts::of(&session)
    }

    /// What it costs to restore the newest snapshot, which is as the disk is.
    fn restore_newest(&self) -> Counts {
        let session = self.fixture.session();
        let newest = *self.ids.last().unwrap();
        let (bytes, _) = restore_stream(&session, newest, "disk", RestoreOptions::default()).unwrap();
        assert!(bytes == self.disk.to_bytes(), "the newest snapshot is the disk");
        Counts::of(&session)
    }
}

#[test]
fn two_hundred_incrementals_cost_no_more_each_than_twenty() {
    let mut fixture = RepoFixture::ordinary(Suite::None);
    let disk = ModelDisk::scattered(BLOCKS * BLOCK_PAGES * 4096, 2, 7);
    let session = fixture.session();
    let first = fixture.backup_model(&session, "disk", &disk).snapshot.id;
    let mut life = Life { fixture, disk, ids: vec![first] };
    // What is changed repeats itself after 32 imports. Chunks around a page that is written end here or there, so bytes are
    // summed over such a round.
    let round = |life: &mut Life, numbers: RangeInclusive<u64>| {
        let session = life.fixture.session();
        numbers.map(|number| life.import(&session, number).added_bytes).sum::<u64>()
    };
    drop(session);
    round(&mut life, 1..=32);
    let early_bytes = round(&mut life, 33..=64);
    let early = life.import_alone(65..=68);
    let (early_diff, early_restore) = (life.compare_newest(), life.restore_newest());
    round(&mut life, 69..=160);
    let late_bytes = round(&mut life, 161..=192);
    let late = life.import_alone(193..=196);
    let (late_diff, late_restore) = (life.compare_newest(), life.restore_newest());

    let flat = |what: &str, early: u64, late: u64| {
        assert!(late * 10 <= early * 11, "{what}: {early} after 64 incrementals, {late} after 192");
    };
    flat("bytes added by 32 imports", early_bytes, late_bytes);
    // 32 bytes a pack: in how many a changed chunk's neighbours stand differs a little, by the keys of this run.
    let (early_record, late_record) = (early.record_bytes, late.record_bytes);
    assert!(
        late_record <= early_record + 4 * 32,
        "{early_record} bytes after 64 incrementals, {late_record} after 192"
    );
    flat("index look-ups", early.lookups, late.lookups);
    flat("manifest nodes read", early.nodes, late.nodes);
    flat("frames decoded", early.frames, late.frames);
    flat("nodes that a diff reads", early_diff.nodes, late_diff.nodes);
    flat("nodes that a restore reads", early_restore.nodes, late_restore.nodes);
    // Which frames are decoded twice depends on the keys of this run and on which of two threads comes first.
    let (early_frames, late_frames) = (early_restore.frames, late_restore.frames);
    assert!(
        late_frames * 4 <= early_frames * 5,
        "frames that a restore decodes: {early_frames} after 64 incrementals, {late_frames} after 192"
    );
}
