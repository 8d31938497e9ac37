//! The walk over repositories of many nodes, with room to remember all of them, some, or none.

use std::collections::BTreeSet;

use super::*;
use crate::entropy::Entropy;
use crate::id::{ChunkId, SnapshotId};
use crate::keys::slot::Unlock;
use crate::manifest::builder::TreeBuilder;
use crate::manifest::{NodeHasher, encode_leaf};
use crate::monitor::Silent;
use crate::ops::open::open_session;
use crate::ops::pack_stream::{PackStream, StreamOptions};
use crate::remarks::Remarks;
use crate::repository::{InitOptions, Repository};
use crate::seal::Suite;
use crate::snapshot::{Disk, DiskReading, Snapshot, SnapshotStats};
use crate::store::Store;
use crate::units::PAGE_LEN;

/// Blocks of the disk, each with a leaf of its own.
const BLOCKS: u64 = 60_000;
/// Nodes that are remembered when there is not room for all.
const ROOM: u64 = 4_000;

struct Fixture {
    _folder: tempfile::TempDir,
    session: Session,
    snapshots: Vec<NamedSnapshot>,
    /// Distinct nodes of all snapshots.
    nodes: u64,
}

impl Fixture {
    /// Three states of a disk, each with every thousandth block changed. Nodes alone: of all the chunks that they name, one
    /// is stored.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create_local(&folder.path().join("r")).unwrap();
        let options = InitOptions::new(Suite::None, 0);
        let repository = Repository::create(store, &options, &Unlock::Open, "", Entropy::seeded(1)).unwrap();
        let session = open_session(repository, None, &Silent).unwrap();
        let mut data = PackStream::new(&session, StreamOptions::data(&session.repository.config, 1));
        data.add(ChunkId([7; 32]).into(), &[7; PAGE_LEN]).unwrap();
        data.flush().unwrap();
        let mut meta = PackStream::new(&session, StreamOptions::meta(&session.repository.config));
        let mut stored = BTreeSet::new();
        let mut snapshots = Vec::new();
        for state in 0..3 {
            let hasher = NodeHasher::new(&session.repository.keys).unwrap();
            let mut builder = TreeBuilder::new(hasher.clone());
            let mut put = |id: NodeId, bytes: &[u8]| {
                if stored.insert(id) {
                    meta.add(id.into(), bytes)?;
                }
                Ok(())
            };
            for block in 0..BLOCKS {
                let leaf = encode_leaf(&leaf(block, if block % 1000 == 0 { state } else { 0 }));
                put(hasher.id(&leaf), &leaf).unwrap();
                builder.set(BlockIndex(block), hasher.id(&leaf));
            }
            let virtual_size = BLOCKS * BLOCK_LEN as u64;
            let root = builder.finish(virtual_size, &mut put).unwrap();
            snapshots.push(named(u8::try_from(state).unwrap(), Tree { root, virtual_size }));
        }
        meta.flush().unwrap();
        Self { _folder: folder, session, snapshots, nodes: stored.len() as u64 }
    }

    /// What a walk with room for so many nodes finds, how many it visited, and the memory that it remembered them in.
    fn walk(&self, bad: &BadParts, nodes_max: u64) -> (Vec<Affected>, u64, u64) {
        let mut report = CheckReport::default();
        let mut walk = Walk::new(&self.session, bad, nodes_max);
        walk.run(&self.snapshots, &mut report, &Silent).unwrap();
        (report.affected, report.nodes, walk.visited.len_bytes())
    }
}

/// A leaf that no other block has: its pages tell it apart.
fn leaf(block: u64, state: u64) -> Vec<Run> {
    let bits = block | state << 20;
    let run = |page: u16| Run { first_page: page, page_count: 1, id: ChunkId([7; 32]) };
    (0..22).filter(|bit| bits >> bit & 1 == 1).chain([30]).map(run).collect()
}

fn named(number: u8, tree: Tree) -> NamedSnapshot {
    let disk = Disk {
        vdi: "disk".to_owned(),
        tree,
        source_format: "raw".to_owned(),
        allocated_bytes: 0,
        parent: None,
        reading: DiskReading::default(),
        source_id: None,
    };
    let snapshot = Snapshot {
        time_ms: 0,
        committed_ms: 0,
        vm: None,
        disks: vec![disk],
        packs: Vec::new(),
        stats: SnapshotStats::default(),
        program: String::new(),
        metadata: Default::default(),
        remarks: Remarks::default(),
        origin: None,
    };
    NamedSnapshot { id: SnapshotId([number; 32]), len: 0, snapshot }
}

#[test]
fn nodes_that_there_is_no_room_to_remember_are_walked_again_and_memory_keeps_its_bound() {
    let fixture = Fixture::new();
    let bound = |nodes: u64| nodes * 7 / 5 * 8 + 64 * 8;
    let sound = BadParts::default();
    let (affected, visited, bytes) = fixture.walk(&sound, u64::MAX);
    assert_eq!((affected, visited), (Vec::new(), fixture.nodes));
    assert!(bytes <= bound(fixture.nodes), "{bytes} bytes for {} nodes", fixture.nodes);

    let (affected, visited, bytes) = fixture.walk(&sound, ROOM);
    assert!(affected.is_empty() && bytes <= bound(ROOM), "{affected:?}, {bytes} bytes");
    // Inner nodes are remembered to the last, so what the states share is walked once all the same.
    let changed = 3 * BLOCKS / 1000 * 128;
    assert!((fixture.nodes..=fixture.nodes + changed).contains(&visited), "{visited} of {}", fixture.nodes);
    assert_eq!(fixture.walk(&sound, 0).1, 3 * (BLOCKS + 469 + 4 + 1));

    // With damage in every part, the same is found, in twice the memory.
    let places = fixture.session.index.find(&[ChunkId([7; 32]).into()]).unwrap();
    let place = places[0].unwrap();
    let mut bad = BadParts::default();
    bad.frames.insert((place.pack, place.frame));
    let (found, _, bytes) = fixture.walk(&bad, u64::MAX);
    assert!(found.len() == 3 && bytes <= 2 * bound(fixture.nodes), "{bytes} bytes");
    let (found_with_less, _, bytes) = fixture.walk(&bad, ROOM);
    assert!(found_with_less == found && bytes <= 2 * bound(ROOM), "{bytes} bytes");
}
