//! A snapshot record as it is after it was authenticated: what decodes comes back from its encoding.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use repo_core::id::{NodeId, PackId, RepositoryId, SnapshotId};
use repo_core::manifest::Tree;
use repo_core::remarks::Remarks;
use repo_core::snapshot::{Disk, Snapshot, SnapshotOrigin, SnapshotStats};
use repo_core::units::VIRTUAL_SIZE_MAX;
use repo_fuzz::{check_error, write_seeds};

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

fn accepts(input: &[u8]) -> bool {
    let snapshot = match Snapshot::decode(input) {
        Ok(snapshot) => snapshot,
        Err(error) => {
            check_error(&error);
            return false;
        }
    };
    assert!(!snapshot.disks.is_empty());
    for disk in &snapshot.disks {
        assert!(disk.tree.virtual_size <= VIRTUAL_SIZE_MAX);
        let _ = disk.tree.height();
        assert!(snapshot.disk(&disk.vdi).is_some());
    }
    let encoded = snapshot.encode();
    let again = Snapshot::decode(&encoded).expect("what was encoded decodes");
    assert_eq!(again, snapshot);
    assert_eq!(again.encode(), encoded, "a record has one encoding");
    true
}

fn seeds() -> Vec<Vec<u8>> {
    let disk = Disk {
        vdi: "0b3a".to_owned(),
        tree: Tree { root: NodeId([3; 32]), virtual_size: 12345 },
        source_format: "vhd-dynamic".to_owned(),
        allocated_bytes: 4096,
        parent: None,
        reading: Default::default(),
        source_id: Some([5; 16]),
    };
    let largest = Tree { virtual_size: VIRTUAL_SIZE_MAX, ..disk.tree };
    let with_parent = Disk { vdi: "b".to_owned(), tree: largest, parent: Some(SnapshotId([4; 32])), ..disk.clone() };
    let full = Snapshot {
        time_ms: -5,
        committed_ms: 1_700_000_000_000,
        vm: Some("web-01".to_owned()),
        disks: vec![disk.clone(), with_parent],
        packs: vec![PackId([1; 32]), PackId([2; 32])],
        stats: SnapshotStats { new_bytes: 1 << 40, new_chunks: 70_000, pack_bytes: 300 },
        program: "cairn".to_owned(),
        metadata: BTreeMap::from([("vm.json".to_owned(), b"{}".to_vec()), ("x".to_owned(), vec![])]),
        remarks: Remarks { tags: ["gold".to_owned()].into(), note: Some("why".to_owned()), protected: true },
        origin: Some(SnapshotOrigin { repository: RepositoryId([7; 16]), snapshot: SnapshotId([8; 32]) }),
    };
    let bare = Snapshot {
        vm: None,
        disks: vec![disk],
        packs: vec![],
        metadata: BTreeMap::new(),
        remarks: Remarks::default(),
        origin: None,
        ..full.clone()
    };
    vec![full.encode(), bare.encode()]
}
