//! Deltas over a base: chains of them against the disks themselves, what they cost, and what is refused.

use std::io::{Cursor, Write};

use proptest::prelude::*;
use repo_core::disk::{
    self, BlockBuf, Delivery, DiskFormat, DiskSource, FormatHint, SourceOptions, Undelivered, open_file,
};
use repo_core::entropy::Entropy;
use repo_core::error::{ErrorKind, Result};
use repo_core::id::SnapshotId;
use repo_core::keys::Role;
use repo_core::monitor::Silent;
use repo_core::ops::backup::BaseChoice;
use repo_core::ops::block_reader::BlockReader;
use repo_core::ops::open::open_session;
use repo_core::ops::restore::RestoreOptions;
use repo_core::repository::Repository;
use repo_core::seal::Suite;
use repo_core::store::{ObjectName, Store};
use repo_core::units::{BLOCK_LEN, BlockIndex, PAGE_LEN, SECTOR_LEN};
use repo_tests::fixture::{RepoFixture, restore_stream, unlock};
use repo_tests::model::{BLOCK_PAGES, ModelDisk, mix};
use repo_tests::vhd::{Vhd, Writer, id};

fn options() -> SourceOptions {
    SourceOptions { format: FormatHint::Auto, spill_dir: std::env::temp_dir(), ..SourceOptions::default() }
}

fn stream(bytes: Vec<u8>) -> Box<dyn DiskSource> {
    disk::open_stream(Cursor::new(bytes), &options()).unwrap()
}

fn file(bytes: &[u8]) -> Box<dyn DiskSource> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    open_file(file, &options()).unwrap()
}

/// How the next state of a disk is imported.
#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    Full,
    Xapi,
    /// With blocks of that size.
    Tapdisk(u32),
}

#[derive(Debug, Clone)]
struct Step {
    how: How,
    /// Which earlier state the delta is against.
    base: prop::sample::Index,
    /// First sector, number of sectors, content; 0 is zeros.
    writes: Vec<(prop::sample::Index, usize, u8)>,
    /// Sectors that the delta holds though they did not change.
    rewritten: Vec<(prop::sample::Index, usize)>,
    grow_bytes: u64,
    streamed: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let how = prop_oneof![
        1 => Just(How::Full),
        3 => Just(How::Xapi),
        6 => prop::sample::select(vec![2 << 20, 2 << 20, 4 << 20, 512 << 10, 16 << 10]).prop_map(How::Tapdisk),
    ];
    let write = (any::<prop::sample::Index>(), prop_oneof![1..20_usize, 1..6000_usize], 0..5_u8);
    let rewritten = (any::<prop::sample::Index>(), 1..3000_usize);
    let step = (
        how,
        any::<prop::sample::Index>(),
        prop::collection::vec(write, 0..5),
        prop::collection::vec(rewritten, 0..2),
        prop_oneof![4 => Just(0), 1 => (1..6000_u64).prop_map(|sectors| sectors * 512)],
        any::<bool>(),
    );
    let step = step.prop_map(|(how, base, writes, rewritten, grow_bytes, streamed)| Step {
        how,
        base,
        writes,
        rewritten,
        grow_bytes,
        streamed,
    });
    prop::collection::vec(step, 1..7)
}

fn write_sector(sector: &mut [u8], at: usize, content: u8) {
    if content == 0 {
        return sector.fill(0);
    }
    for (word, n) in sector.as_chunks_mut::<8>().0.iter_mut().zip(0_u64..) {
        *word = mix((at as u64) << 16 | u64::from(content) << 8 | (n % 16)).to_le_bytes();
    }
}

/// The disk after a step, and which sectors a delta against the disk before holds.
fn next_state(before: &[u8], step: &Step) -> (Vec<u8>, Vec<bool>) {
    let mut disk = before.to_vec();
    disk.resize(before.len() + usize::try_from(step.grow_bytes).unwrap(), 0);
    let sectors = disk.len() / SECTOR_LEN;
    let mut held = vec![false; sectors];
    for (at, count, content) in &step.writes {
        let at = at.index(sectors);
        for sector in at..(at + count).min(sectors) {
            write_sector(&mut disk[sector * SECTOR_LEN..(sector + 1) * SECTOR_LEN], sector, *content);
            held[sector] = true;
        }
    }
    for (at, count) in &step.rewritten {
        let at = at.index(sectors);
        held[at..(at + count).min(sectors)].fill(true);
    }
    (disk, held)
}

/// The image of a step, in the way it is imported.
fn image(step: &Step, number: u64, disk: &[u8], held: &[bool], parent: [u8; 16]) -> Vec<u8> {
    let (writer, block_size) = match step.how {
        How::Full => {
            let mut vhd = Vhd::new(Writer::Xapi, disk.len() as u64, id(number), None);
            vhd.store(disk, |sector| disk.get(sector * SECTOR_LEN).is_some_and(|byte| *byte != 0));
            return vhd.bytes();
        }
        How::Xapi => (Writer::Xapi, 2 << 20),
        How::Tapdisk(block_size) => (Writer::Tapdisk, block_size),
    };
    let mut vhd = Vhd::new(writer, disk.len() as u64, id(number), Some(parent));
    vhd.block_size = block_size;
    vhd.spare_entries = 100;
    vhd.store(disk, |sector| held.get(sector).is_some_and(|held| *held));
    if writer == Writer::Tapdisk {
        // Tapdisk stores blocks in the order in which they were first written.
        vhd.blocks.sort_by_key(|block| mix(u64::from(block.index)));
    }
    vhd.bytes()
}

fn allocated(disk: &[u8]) -> u64 {
    disk.chunks(PAGE_LEN).filter(|page| page.iter().any(|byte| *byte != 0)).count() as u64 * PAGE_LEN as u64
}

struct State {
    snapshot: SnapshotId,
    /// The id of the image it was imported from, where that lasts.
    image: Option<[u8; 16]>,
    disk: Vec<u8>,
}

fn run_chain(suite: Suite, steps: &[Step]) {
    let mut fixture = RepoFixture::small(suite);
    let session = fixture.session();
    let mut first = vec![0; 5 * (1 << 20) + 3 * SECTOR_LEN];
    for (at, sector) in first.chunks_mut(SECTOR_LEN).enumerate().filter(|(at, _)| at / 100 % 3 != 1) {
        write_sector(sector, at, 1);
    }
    let raw = SourceOptions { format: FormatHint::Raw, ..options() };
    let source = disk::open_stream(Cursor::new(first.clone()), &raw).unwrap();
    let report = fixture.backup(&session, vec![("disk", source)]).unwrap();
    let mut states = vec![State { snapshot: report.snapshot.id, image: None, disk: first }];
    for (number, step) in (1..).zip(steps) {
        let base = &states[step.base.index(states.len())];
        let (next, held) = next_state(&base.disk, step);
        let bytes = image(step, number, &next, &held, base.image.unwrap_or([9; 16]));
        let source = if step.streamed { stream(bytes) } else { file(&bytes) };
        let choice = BaseChoice::Snapshot(base.snapshot);
        let delta = source.undelivered() == Undelivered::Base;
        assert_eq!(delta, step.how != How::Full);
        let report = fixture.backup_over(&session, "disk", source, choice).unwrap();
        let stored = &report.snapshot.snapshot.disks[0];
        assert_eq!((stored.parent, stored.reading.delta), (Some(base.snapshot), delta));
        assert_eq!((report.allocated_bytes, report.logical_bytes), (allocated(&next), next.len() as u64));
        let image = matches!(step.how, How::Tapdisk(_)).then(|| id(number));
        assert_eq!(stored.source_id, image);
        states.push(State { snapshot: report.snapshot.id, image, disk: next });
    }
    for (number, State { snapshot, disk, .. }) in states.iter().enumerate() {
        let (restored, _) = restore_stream(&session, *snapshot, "disk", RestoreOptions::default()).unwrap();
        assert!(restored == *disk, "state {number} differs");
    }
    // The newest, imported in full, is the very same tree and stores nothing.
    let last = states.last().unwrap();
    let source = disk::open_stream(Cursor::new(last.disk.clone()), &raw).unwrap();
    let again = fixture.backup(&session, vec![("again", source)]).unwrap();
    let tree = repo_core::snapshot::read(&session.repository, last.snapshot).unwrap().snapshot.disks[0].tree;
    assert_eq!((again.snapshot.snapshot.disks[0].tree, again.new_bytes), (tree, 0));
    drop(session);
    let report = fixture.check_all();
    assert!(report.is_clean(), "{report:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_chain_of_deltas_restores_every_state(steps in steps()) {
        run_chain(Suite::Aes256Gcm, &steps);
    }
}

/// A delta of XAPI's of a disk, that holds these blocks with the content they have.
fn xapi_delta(disk: &ModelDisk, blocks: &[u64]) -> Vec<u8> {
    let mut vhd = Vhd::new(Writer::Xapi, disk.virtual_size, id(77), Some(id(78)));
    let mut source = disk.source(Delivery::Ascending);
    let mut buf = BlockBuf::new();
    let mut contents = std::collections::BTreeMap::new();
    while let Some(index) = source.next_block(&mut buf).unwrap() {
        if blocks.contains(&index.0) {
            contents.insert(index.0, buf.bytes().to_vec());
        }
    }
    for index in blocks {
        let content = contents.remove(index).unwrap_or_else(|| vec![0; BLOCK_LEN]);
        let set = vec![true; BLOCK_LEN / SECTOR_LEN];
        vhd.blocks.push(repo_tests::vhd::VhdBlock { index: u32::try_from(*index).unwrap(), content, set });
    }
    vhd.bytes()
}

#[test]
fn an_unchanged_delta_adds_nothing_but_a_record_and_shares_every_node() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let session = fixture.session();
    let disk = ModelDisk::scattered(20 << 20, 3, 1);
    let full = fixture.backup_model(&session, "disk", &disk);
    let packs = session.repository.store.list_packs().unwrap();
    for blocks in [&[][..], &[0, 3, 9]] {
        let source = stream(xapi_delta(&disk, blocks));
        let delta = fixture.backup_over(&session, "disk", source, BaseChoice::Newest).unwrap();
        assert_eq!(session.repository.store.list_packs().unwrap(), packs);
        assert_eq!((delta.new_bytes, delta.allocated_bytes), (0, full.allocated_bytes));
        assert!(delta.stored_bytes < 1024, "{}", delta.stored_bytes);
        assert_eq!(delta.snapshot.snapshot.disks[0].tree, full.snapshot.snapshot.disks[0].tree);
        let reading = delta.snapshot.snapshot.disks[0].reading;
        assert_eq!((reading.read_bytes, reading.changed_bytes), (blocks.len() as u64 * BLOCK_LEN as u64, 0));
    }
}

#[test]
fn a_zero_block_of_a_delta_overwrites() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let session = fixture.session();
    let mut disk = ModelDisk::scattered(20 << 20, 3, 1);
    fixture.backup_model(&session, "disk", &disk);
    disk.pages.retain(|page, _| page / BLOCK_PAGES != 4);
    let source = stream(xapi_delta(&disk, &[4]));
    let report = fixture.backup_over(&session, "disk", source, BaseChoice::Newest).unwrap();
    let (restored, _) = restore_stream(&session, report.snapshot.id, "disk", RestoreOptions::default()).unwrap();
    assert!(restored == disk.to_bytes());
    assert_eq!(report.allocated_bytes, disk.pages.len() as u64 * PAGE_LEN as u64);
}

#[test]
fn the_cost_of_a_delta_follows_the_delta_and_not_the_disk() {
    let mut costs = Vec::new();
    for size in [4_u64 << 30, 64 << 30, 2 << 40] {
        let mut fixture = RepoFixture::ordinary(Suite::Aes256Gcm);
        let session = fixture.session();
        let mut disk = ModelDisk::new(size);
        // Two thousand blocks, spread over the disk.
        let every = size / BLOCK_LEN as u64 / 2000;
        disk.pages = (0..2000).map(|n| (n * every * BLOCK_PAGES + n % 512, n as u32)).collect();
        fixture.backup_model(&session, "disk", &disk);
        // A new process: nothing is in memory.
        drop(session);
        let session = fixture.session();
        let last = size / BLOCK_LEN as u64 - 1;
        let changed = [0, last / 3, last];
        for block in changed {
            disk.pages.insert(block * BLOCK_PAGES + 7, 123);
        }
        let source = stream(xapi_delta(&disk, &changed));
        let before = session.index.lookup_count();
        let report = fixture.backup_over(&session, "disk", source, BaseChoice::Newest).unwrap();
        costs.push((session.index.lookup_count() - before, report.stored_bytes));
        assert_eq!(report.snapshot.snapshot.disks[0].reading.read_bytes, 3 * BLOCK_LEN as u64);
        assert_eq!(report.allocated_bytes, disk.pages.len() as u64 * PAGE_LEN as u64);
    }
    // Each changed block looks up its way down and its new way up, one level more on the larger disks.
    for (lookups, stored) in &costs {
        assert!(*lookups <= 60 && *stored < 64 * 1024, "{costs:?}");
    }
}

#[test]
fn the_base_is_known_to_be_whole_or_looked_up_once_or_refused() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let session = fixture.session();
    let disk = ModelDisk::scattered(20 << 20, 3, 1);
    let full = fixture.backup_model(&session, "disk", &disk).snapshot.id;
    drop(session);
    std::fs::remove_dir_all(fixture.path().join("index")).unwrap();
    let session = fixture.session();
    assert!(!session.index.is_complete(full).unwrap());
    let source = || stream(xapi_delta(&disk, &[2]));
    let before = session.index.lookup_count();
    let second = fixture.backup_over(&session, "disk", source(), BaseChoice::Newest).unwrap().snapshot.id;
    assert!(session.index.lookup_count() > before + 100, "the base was looked up");
    assert!(session.index.is_complete(full).unwrap() && session.index.is_complete(second).unwrap());
    drop(session);

    // A pack of the base is lost, and with the index the memory of it.
    let session = fixture.session();
    let data = session.index.packs().into_iter().find(|pack| pack.content == repo_core::pack::Content::Data);
    std::fs::remove_file(fixture.path().join(ObjectName::Pack(data.unwrap().id).path())).unwrap();
    drop(session);
    std::fs::remove_dir_all(fixture.path().join("index")).unwrap();
    let session = fixture.session();
    let error = fixture.backup_over(&session, "disk", source(), BaseChoice::Newest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().starts_with("the base is damaged: run cairn check"), "{error:?}");
    assert!(format!("{error:?}").contains("is in no pack"), "{error:?}");
}

/// A whole disk, of which only some blocks are read because a list says that no others changed.
struct Hinted {
    disk: ModelDisk,
    listed: Vec<u64>,
    can_be_sampled: bool,
}

impl Hinted {
    fn fill(&self, block: u64, buf: &mut BlockBuf) {
        let bytes = self.disk.to_bytes();
        buf.bytes_mut().fill(0);
        let start = usize::try_from(block).unwrap() * BLOCK_LEN;
        let end = bytes.len().min(start + BLOCK_LEN);
        buf.bytes_mut()[..end - start].copy_from_slice(&bytes[start..end]);
    }
}

impl DiskSource for Hinted {
    fn virtual_size(&self) -> Option<u64> {
        Some(self.disk.virtual_size)
    }

    fn format(&self) -> DiskFormat {
        DiskFormat::Raw
    }

    fn delivery(&self) -> Delivery {
        Delivery::AnyOrder
    }

    fn undelivered(&self) -> Undelivered {
        Undelivered::Base
    }

    fn is_hinted(&self) -> bool {
        true
    }

    fn sample(&mut self, index: BlockIndex, buf: &mut BlockBuf) -> Result<bool> {
        self.fill(index.0, buf);
        Ok(self.can_be_sampled)
    }

    fn next_block(&mut self, buf: &mut BlockBuf) -> Result<Option<BlockIndex>> {
        let Some(block) = self.listed.pop() else { return Ok(None) };
        self.fill(block, buf);
        Ok(Some(BlockIndex(block)))
    }
}

#[test]
fn a_list_of_changes_is_believed_when_a_sample_agrees_and_refused_when_it_does_not() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let session = fixture.session();
    let mut disk = ModelDisk::scattered(21 << 20, 3, 1);
    fixture.backup_model(&session, "disk", &disk);
    disk.pages.extend([(3 * BLOCK_PAGES, 5), (9 * BLOCK_PAGES + 500, 6)]);
    let hinted =
        |listed: &[u64]| Box::new(Hinted { disk: disk.clone(), listed: listed.to_vec(), can_be_sampled: true });
    // Of so small a disk all unchanged blocks are the sample.
    let error = fixture.backup_over(&session, "disk", hinted(&[9, 0]), BaseChoice::Newest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let (start, end) = (3 * BLOCK_LEN, 4 * BLOCK_LEN);
    let words = format!("the list of changes is wrong for this base: bytes {start} to {end} of the disk differ");
    assert!(error.to_string().starts_with(&words), "{error}");
    let blind = Box::new(Hinted { can_be_sampled: false, ..*hinted(&[9, 3]) });
    let error = fixture.backup_over(&session, "disk", blind, BaseChoice::Newest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "what cannot be checked is not believed");
    assert_eq!(session.repository.store.list_snapshots().unwrap().len(), 1);
    let report = fixture.backup_over(&session, "disk", hinted(&[9, 3]), BaseChoice::Newest).unwrap();
    let (restored, _) = restore_stream(&session, report.snapshot.id, "disk", RestoreOptions::default()).unwrap();
    assert!(restored == disk.to_bytes());
}

#[test]
fn single_blocks_of_a_stored_disk_are_read_in_any_order() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let session = fixture.session();
    let mut disk = ModelDisk::scattered((21 << 20) + 777, 3, 1);
    disk.pages.retain(|page, _| page / BLOCK_PAGES != 4);
    let tree = fixture.backup_model(&session, "disk", &disk).snapshot.snapshot.disks[0].tree;
    let mut expected = disk.to_bytes();
    expected.resize(12 * BLOCK_LEN, 0);
    let reader = BlockReader::new(session.content.clone(), tree).unwrap();
    let mut buf = BlockBuf::new();
    for block in [10, 0, 4, 11, 3, 3, 9] {
        buf.bytes_mut().fill(0xEE);
        reader.read(BlockIndex(block), &mut buf).unwrap();
        let start = usize::try_from(block).unwrap() * BLOCK_LEN;
        assert!(buf.bytes() == &expected[start..start + BLOCK_LEN], "block {block}");
    }
    reader.read(BlockIndex(1 << 40), &mut buf).unwrap();
    assert!(buf.bytes().iter().all(|byte| *byte == 0), "past the end are zeros");

    // Who holds no data key is told at once.
    let store = Store::open_local(&fixture.path()).unwrap();
    let mut repository = Repository::open(store, &unlock(Suite::Aes256Gcm), Entropy::system()).unwrap();
    repository.keys = repository.keys.without(Role::Data);
    let without = open_session(repository, None, &Silent).unwrap();
    let error = BlockReader::new(without.content.clone(), tree).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Forbidden);
    // Damage is found, and nothing of it read.
    for pack in session.index.packs().into_iter().filter(|pack| pack.content == repo_core::pack::Content::Data) {
        let path = fixture.path().join(ObjectName::Pack(pack.id).path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.iter_mut().skip(100).step_by(1000).for_each(|byte| *byte ^= 1);
        std::fs::write(path, bytes).unwrap();
    }
    let session = fixture.session();
    let reader = BlockReader::new(session.content.clone(), tree).unwrap();
    assert!(reader.read(BlockIndex(0), &mut buf).unwrap_err().is_loss());
}
