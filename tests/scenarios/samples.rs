//! Repositories that earlier versions wrote, restored for ever. `tests/data/<name>/expected` lists, for each snapshot,
//! its time in milliseconds, its VDI, and the BLAKE3 of the disk's bytes; `records`, what the independent reader finds in each
//! snapshot's record, by the numbers of the keys (docs/format.md §9).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use repo_core::annotation;
use repo_core::chunk::ChunkParams;
use repo_core::disk::{BlockBuf, Delivery, DiskFormat, DiskSource, ImageIds};
use repo_core::entropy::Entropy;
use repo_core::monitor::Silent;
use repo_core::ops::backup::{BackupOptions, DiskInput, backup};
use repo_core::ops::check::{CheckOptions, check};
use repo_core::ops::open::{Session, open_session};
use repo_core::ops::restore::RestoreOptions;
use repo_core::ops::sync::{SyncOptions, sync};
use repo_core::repository::{InitOptions, Repository};
use repo_core::seal::Suite;
use repo_core::snapshot::{self, Disk, Snapshot, SnapshotOrigin};
use repo_core::store::Store;
use repo_core::units::BlockIndex;
use repo_tests::cli::run;
use repo_tests::fixture::{PASSPHRASE, restore_stream, unlock};
use repo_tests::model::ModelDisk;
use serde_json::{Value, json};

use crate::oracle::python;

/// Every folder of `tests/data`, and the suite of the repository in it.
const SAMPLES: [(&str, Suite); 3] =
    [("v2-aes-256-gcm", Suite::Aes256Gcm), ("v2-none", Suite::None), (SYNCED, Suite::Aes256Gcm)];

/// Its snapshots came from a repository with other keys, and have all that a record can have.
const SYNCED: &str = "v2-synced";

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

#[test]
fn repositories_of_every_version_restore_bit_for_bit() {
    for (name, suite) in SAMPLES {
        // A copy: git keeps no empty folders, and the index goes into the repository.
        let copy = tempfile::tempdir().unwrap();
        let copied = std::process::Command::new("cp").arg("-r").arg(data().join(name)).arg(copy.path()).status();
        assert!(copied.unwrap().success());
        let root = copy.path().join(name).join("repository");
        let repository =
            Repository::open(Store::open_local(&root).unwrap(), &unlock(suite), Entropy::system()).unwrap();
        let session = open_session(repository, None, &Silent).unwrap();
        let (snapshots, errors) = session.snapshots(&Silent).unwrap();
        assert!(errors.is_empty());
        let mut found = String::new();
        for named in &snapshots {
            for disk in &named.snapshot.disks {
                let options = RestoreOptions::default();
                let (bytes, _) = restore_stream(&session, named.id, &disk.vdi, options).unwrap();
                let line = format!("{} {} {}\n", named.snapshot.time_ms, disk.vdi, blake3::hash(&bytes));
                found.push_str(&line);
            }
        }
        assert_eq!(found, std::fs::read_to_string(data().join(name).join("expected")).unwrap(), "{name}");
        assert!(check(&session, CheckOptions { read_data: true }, &Silent).unwrap().is_clean());
    }
}

#[test]
fn no_sample_is_left_untested() {
    let mut names: Vec<_> =
        std::fs::read_dir(data()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, SAMPLES.map(|(name, _)| name));
}

/// What the independent reader finds in the records of the repository in `folder`.
fn records(folder: &Path) -> Value {
    let mut listing = python();
    listing.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/oracle/extract.py")).arg(folder.join("repository"));
    let listed = run(listing.env("CAIRN_PASSPHRASE", PASSPHRASE).args(["list", "--json"]));
    let listed: Vec<Value> = serde_json::from_slice(&listed.stdout).unwrap();
    listed.into_iter().map(|each| json!({ "id": each["id"], "record": each["record"] })).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A record as docs/format.md §9 has it, by the numbers of the keys.
fn as_stored(snapshot: &Snapshot) -> Value {
    let stats = snapshot.stats;
    let packs: Vec<u8> = snapshot.packs.iter().flat_map(|pack| pack.0).collect();
    let mut record = json!({
        "0": snapshot.time_ms,
        "1": snapshot.committed_ms,
        "3": snapshot.disks.iter().map(disk_as_stored).collect::<Vec<_>>(),
        "4": hex(&packs),
        "5": { "0": stats.new_bytes, "1": stats.new_chunks, "2": stats.pack_bytes },
        "6": snapshot.program,
    });
    let mut optional = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            record[key] = value;
        }
    };
    let remarks = &snapshot.remarks;
    let metadata: BTreeMap<_, _> = snapshot.metadata.iter().map(|(name, bytes)| (name, hex(bytes))).collect();
    optional("2", snapshot.vm.as_ref().map(|vm| json!(vm)));
    optional("7", (!metadata.is_empty()).then(|| json!(metadata)));
    optional("8", (!remarks.tags.is_empty()).then(|| json!(remarks.tags)));
    optional("9", remarks.note.as_ref().map(|note| json!(note)));
    optional("10", remarks.protected.then_some(Value::Bool(true)));
    let origin = |origin: SnapshotOrigin| json!({ "0": hex(&origin.repository.0), "1": hex(&origin.snapshot.0) });
    optional("11", snapshot.origin.map(origin));
    record
}

fn disk_as_stored(disk: &Disk) -> Value {
    let reading = disk.reading;
    let mut stored = json!({
        "0": disk.vdi,
        "1": disk.tree.virtual_size,
        "2": hex(&disk.tree.root.0),
        "3": disk.source_format,
        "4": disk.allocated_bytes,
        "6": { "0": reading.delta, "1": reading.read_bytes, "2": reading.changed_bytes },
    });
    if let Some(parent) = disk.parent {
        stored["5"] = json!(hex(&parent.0));
    }
    if let Some(id) = disk.source_id {
        stored["7"] = json!(hex(&id));
    }
    stored
}

#[test]
fn records_of_every_version_say_to_us_what_they_say_to_the_independent_reader() {
    for (name, suite) in SAMPLES {
        let folder = data().join(name);
        let found = records(&folder);
        let kept: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("records")).unwrap()).unwrap();
        assert_eq!(found, kept, "{name}");
        let store = Store::open_local(&folder.join("repository")).unwrap();
        let repository = Repository::open(store, &unlock(suite), Entropy::system()).unwrap();
        let (snapshots, errors) = snapshot::read_all(&repository).unwrap();
        assert!(errors.is_empty(), "{name}: {errors:?}");
        let ours =
            snapshots.iter().map(|named| json!({ "id": hex(&named.id.0), "record": as_stored(&named.snapshot) }));
        assert_eq!(ours.collect::<Value>(), kept, "{name}");
    }
}

#[test]
fn the_sample_of_synced_snapshots_has_every_key_that_a_record_can_have() {
    let text = std::fs::read_to_string(data().join(SYNCED).join("records")).unwrap();
    let records: Vec<Value> = serde_json::from_str(&text).unwrap();
    let keys = |values: Vec<&Value>| -> BTreeSet<u32> {
        values.into_iter().flat_map(|value| value.as_object().unwrap().keys()).map(|key| key.parse().unwrap()).collect()
    };
    assert_eq!(keys(records.iter().map(|each| &each["record"]).collect()), (0..=11).collect());
    let disks = records.iter().flat_map(|each| each["record"]["3"].as_array().unwrap());
    assert_eq!(keys(disks.collect()), (0..=7).collect());
    let annotations = data().join(SYNCED).join("repository/snapshots/annotations");
    assert_eq!(std::fs::read_dir(annotations).unwrap().count(), 1);
}

/// An image of tapdisk's, whose footer has an id.
struct Tapdisk(Box<dyn DiskSource>);

impl DiskSource for Tapdisk {
    fn virtual_size(&self) -> Option<u64> {
        self.0.virtual_size()
    }
    fn format(&self) -> DiskFormat {
        DiskFormat::VhdDynamic
    }
    fn delivery(&self) -> Delivery {
        self.0.delivery()
    }
    fn ids(&self) -> Option<ImageIds> {
        Some(ImageIds { own: *b"an id of an imag", parent: None })
    }
    fn next_block(&mut self, buf: &mut BlockBuf) -> repo_core::Result<Option<BlockIndex>> {
        self.0.next_block(buf)
    }
}

fn create(root: &Path, suite: Suite, seed: u64) -> Session {
    let store = Store::create_local(root).unwrap();
    let mut options = InitOptions::new(suite, 1_000);
    options.frame_len = 32 * 1024;
    options.pack_len = 64 * 1024;
    options.chunk = ChunkParams { cut_bits: 1, pages_max: 8 };
    let repository = Repository::create(store, &options, &unlock(suite), "sample", Entropy::seeded(seed)).unwrap();
    open_session(repository, None, &Silent).unwrap()
}

/// Stores three days of two disks; gives what `expected` says of them.
fn three_days(session: &Session) -> String {
    let mut disk = ModelDisk::scattered(5_000_100, 30, 1);
    let mut expected = String::new();
    for day in 1..=3 {
        let disks = vec![
            DiskInput::new("system", disk.source(Delivery::Ascending)),
            DiskInput::new("data", ModelDisk::scattered(600_000, 20, day).stream()),
        ];
        let mut options = BackupOptions::new(day as i64 * 86_400_000);
        options.vm = Some("sample".to_owned());
        options.metadata.insert("vm.json".to_owned(), b"{}".to_vec());
        backup(session, disks, &options, &Silent).unwrap();
        for (vdi, bytes) in [("system", disk.to_bytes()), ("data", ModelDisk::scattered(600_000, 20, day).to_bytes())] {
            expected.push_str(&format!("{} {vdi} {}\n", options.time_ms, blake3::hash(&bytes)));
        }
        disk.pages.extend((day * 100..day * 100 + 5).map(|page| (page, 9)));
    }
    expected
}

/// Two days of a disk that were made elsewhere, with remarks of their first hour and later ones.
fn synced_days(session: &Session) -> String {
    let folder = tempfile::tempdir().unwrap();
    let from = create(&folder.path().join("elsewhere"), Suite::None, 2);
    let mut disk = ModelDisk::scattered(3_000_100, 30, 7);
    let mut expected = String::new();
    for day in 1..=2 {
        let mut options = BackupOptions::new(day * 86_400_000);
        options.vm = Some("elsewhere".to_owned());
        options.metadata.insert("vm.json".to_owned(), b"{}".to_vec());
        options.remarks.tags = ["gold".to_owned(), "monthly".to_owned()].into();
        options.remarks.note = Some("before the upgrade".to_owned());
        options.remarks.protected = true;
        let source = Box::new(Tapdisk(disk.source(Delivery::Ascending)));
        backup(&from, vec![DiskInput::new("system", source)], &options, &Silent).unwrap();
        expected.push_str(&format!("{} system {}\n", options.time_ms, blake3::hash(&disk.to_bytes())));
        disk.pages.extend((100..105).map(|page| (page, 9)));
    }
    sync(&Arc::new(from), session, &SyncOptions::new(300_000_000), &Silent).unwrap();
    let (snapshots, _) = snapshot::read_all(&session.repository).unwrap();
    annotation::annotate(&session.repository, &snapshots[0], 400_000_000, |remarks| remarks.protected = false).unwrap();
    expected
}

/// Writes the samples that are not there: `cargo test --release --workspace --test scenarios -- --ignored write_samples`.
/// What is there is never replaced.
#[test]
#[ignore = "writes the samples of a new format version"]
fn write_samples() {
    for (name, suite) in SAMPLES {
        let folder = data().join(name);
        if !folder.exists() {
            std::fs::create_dir_all(&folder).unwrap();
            let session = create(&folder.join("repository"), suite, 1);
            let expected = if name == SYNCED { synced_days(&session) } else { three_days(&session) };
            drop(session);
            std::fs::write(folder.join("expected"), expected).unwrap();
            for folder_name in ["index", "tmp"] {
                std::fs::remove_dir_all(folder.join("repository").join(folder_name)).unwrap();
            }
        }
        if !folder.join("records").exists() {
            let text = serde_json::to_string_pretty(&records(&folder)).unwrap();
            std::fs::write(folder.join("records"), text + "\n").unwrap();
        }
    }
}
