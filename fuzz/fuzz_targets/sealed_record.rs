//! Any bytes as a stored snapshot record, annotation, lease or tombstone, under the name that is theirs: refused or read.
//!
//! Input: control (1; bits 0 and 1 the kind, bit 2 puts in a sound header, bit 3 makes the length right, bit 4 the seal),
//! the object (the rest).
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use repo_core::annotation::{self, Annotation};
use repo_core::entropy::Entropy;
use repo_core::id::{AnnotationId, LeaseId, NodeId, SnapshotId, TombstoneId, TombstoneName};
use repo_core::keys::slot::Unlock;
use repo_core::keys::{Role, derive};
use repo_core::lease::{self, LeaseInfo};
use repo_core::manifest::Tree;
use repo_core::object::FORMAT_VERSION;
use repo_core::remarks::Remarks;
use repo_core::repository::{InitOptions, Repository};
use repo_core::seal::{Aead, NONCE_ZERO, Suite, TAG_LEN};
use repo_core::snapshot::{self, Disk, Snapshot, SnapshotStats};
use repo_core::store::{ObjectName, Store};
use repo_core::tombstone::{self, Tombstone};
use repo_fuzz::{check_error, has, write_seeds};

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

const HEADER_LEN: usize = 16;
const SALT_LEN: usize = 32;
const SEALED_AT: usize = HEADER_LEN + SALT_LEN + 4;

/// Kinds by number: the byte in the header, and the context of their keys.
const KINDS: [(u8, &str); 4] = [
    (b's', "cairn v1 snapshot key"),
    (b'a', "cairn v1 annotation key"),
    (b'l', "cairn v1 lease key"),
    (b't', "cairn v1 tombstone key"),
];

fn accepts(input: &[u8]) -> bool {
    let Some((control, bytes)) = input.split_first() else { return false };
    let kind = usize::from(control & 3);
    let mut object = bytes.to_vec();
    if has(*control, 2) && object.len() >= HEADER_LEN {
        object[..HEADER_LEN].fill(0);
        object[..5].copy_from_slice(b"CAIRN");
        let [low, high] = FORMAT_VERSION.to_le_bytes();
        object[5..8].copy_from_slice(&[KINDS[kind].0, low, high]);
    }
    if has(*control, 3) && object.len() >= SEALED_AT {
        let len = u32::try_from(object.len() - SEALED_AT).expect("inputs are small");
        object[HEADER_LEN + SALT_LEN..SEALED_AT].copy_from_slice(&len.to_le_bytes());
    }
    if has(*control, 4) {
        seal(KINDS[kind].1, &mut object);
    }
    read(kind, &object).inspect_err(check_error).is_ok()
}

fn tombstone_name(id: [u8; 32]) -> TombstoneName {
    TombstoneName { serial: 0, step: 0, id: TombstoneId(id) }
}

/// Stores an object, reads it, and deletes it.
fn read(kind: usize, object: &[u8]) -> repo_core::Result<()> {
    let repository = repository();
    let id = *blake3::hash(object).as_bytes();
    let name = match kind {
        0 => ObjectName::Snapshot(SnapshotId(id)),
        1 => ObjectName::Annotation(AnnotationId(id)),
        2 => ObjectName::Lease(LeaseId(id)),
        _ => ObjectName::Tombstone(tombstone_name(id)),
    };
    let path = repository.store.root().expect("it is a folder").join(name.path());
    std::fs::create_dir_all(path.parent().expect("an object is in a folder")).expect("the folder can be written");
    std::fs::write(&path, object).expect("the folder can be written");
    let read = match kind {
        0 => snapshot::read(repository, SnapshotId(id)).map(|named| assert_eq!(named.len, object.len() as u64)),
        1 => annotation::read(repository, AnnotationId(id)).map(drop),
        2 => lease::read(repository, LeaseId(id)).map(drop),
        _ => tombstone::read(repository, tombstone_name(id)).map(drop),
    };
    std::fs::remove_file(path).expect("just written");
    read
}

/// Makes the last 16 bytes the tag of what stands before them.
fn seal(context: &str, object: &mut [u8]) {
    let Some((head, sealed)) = object.split_at_mut_checked(SEALED_AT) else { return };
    let Some((record, tag)) = sealed.split_last_chunk_mut::<TAG_LEN>() else { return };
    let associated = [repository().config.id.as_bytes(), &*head].concat();
    let key = repository().keys.get(Role::Structure).expect("all roles are there");
    let sealer: Box<dyn Aead> = Suite::None.sealer(&derive(context, &[&key[..], &head[HEADER_LEN..][..SALT_LEN]]));
    *tag = sealer.seal_in_place(&NONCE_ZERO, &associated, record);
}

/// A repository without encryption in a folder of this process.
fn repository() -> &'static Repository {
    static REPOSITORY: OnceLock<Repository> = OnceLock::new();
    REPOSITORY.get_or_init(|| {
        let folder: PathBuf = std::env::temp_dir().join(format!("sealed_record-{}", std::process::id()));
        let store = Store::create_local(&folder).expect("the folder can be made");
        let options = InitOptions::new(Suite::None, 0);
        for kind in ["snapshots", "leases"] {
            std::fs::create_dir_all(folder.join(kind)).expect("the folder can be made");
        }
        Repository::create(store, &options, &Unlock::Open, "", Entropy::seeded(1)).expect("the folder is empty")
    })
}

fn seeds() -> Vec<Vec<u8>> {
    let disk = Disk {
        vdi: "0b3a".to_owned(),
        tree: Tree { root: NodeId([3; 32]), virtual_size: 12345 },
        source_format: "raw".to_owned(),
        allocated_bytes: 4096,
        parent: None,
        reading: Default::default(),
        source_id: None,
    };
    let snapshot = Snapshot {
        time_ms: 1,
        committed_ms: 2,
        vm: None,
        disks: vec![disk],
        packs: vec![],
        stats: SnapshotStats::default(),
        program: "cairn".to_owned(),
        metadata: Default::default(),
        remarks: Remarks::default(),
        origin: None,
    };
    let annotation =
        Annotation { snapshot: SnapshotId([9; 32]), time_ms: 5, remarks: Remarks::default(), replaces: vec![] };
    let lease = LeaseInfo { operation: "gc".to_owned(), process: 7 };
    let records = [snapshot.encode(), annotation.encode(), lease.encode(), Tombstone::default().encode()];
    let objects =
        (0_u8..).zip(&records).map(|(kind, record)| (kind, [&[0; SEALED_AT], &record[..], &[0; TAG_LEN]].concat()));
    objects.flat_map(|(kind, object)| [0, 0b1_1100].map(|repair| [&[kind | repair], &object[..]].concat())).collect()
}
