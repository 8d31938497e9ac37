//! A tombstone as it is after it was authenticated: what decodes comes back from its encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo_core::id::{LeaseId, PackId, SnapshotId};
use repo_core::tombstone::{Stage, Tombstone};
use repo_fuzz::{check_error, write_seeds};

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

fn accepts(input: &[u8]) -> bool {
    let tombstone = match Tombstone::decode(input) {
        Ok(tombstone) => tombstone,
        Err(error) => {
            check_error(&error);
            return false;
        }
    };
    assert!(tombstone.packs.len() * 32 <= input.len(), "packs that are not in the record");
    let encoded = tombstone.encode();
    let again = Tombstone::decode(&encoded).expect("what was encoded decodes");
    assert_eq!(again, tombstone);
    assert_eq!(again.encode(), encoded, "a tombstone has one encoding");
    true
}

fn seeds() -> Vec<Vec<u8>> {
    let announced = |waits_for| Stage::Announced { considered: [SnapshotId([3; 32])].into(), waits_for };
    let stages = [
        announced(None),
        announced(Some([].into())),
        announced(Some([LeaseId([4; 32]), LeaseId([5; 32])].into())),
        Stage::Deleted,
    ];
    let packs = || [PackId([1; 32]), PackId([2; 32])].into();
    let full = stages.map(|stage| {
        Tombstone { serial: 9, step: 1, written: packs(), created_ms: -7, packs: packs(), stage }.encode()
    });
    [&full[..], &[Tombstone::default().encode()]].concat()
}
