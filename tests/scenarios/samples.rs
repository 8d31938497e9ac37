//! Repositories that earlier versions wrote, restored for ever. `tests/data/<name>/expected` lists, for each snapshot,
//! its time in milliseconds, its VDI, and the BLAKE3 of the disk's bytes.

use std::path::{Path, PathBuf};

use repo_core::chunk::ChunkParams;
use repo_core::disk::Delivery;
use repo_core::entropy::Entropy;
use repo_core::monitor::Silent;
use repo_core::ops::backup::{BackupOptions, DiskInput, backup};
use repo_core::ops::check::{CheckOptions, check};
use repo_core::ops::open::open_session;
use repo_core::ops::restore::RestoreOptions;
use repo_core::repository::{InitOptions, Repository};
use repo_core::seal::Suite;
use repo_core::store::Store;
use repo_tests::fixture::{restore_stream, unlock};
use repo_tests::model::ModelDisk;

/// Every folder of `tests/data`, and the suite of the repository in it.
const SAMPLES: [(&str, Suite); 2] = [("v2-aes-256-gcm", Suite::Aes256Gcm), ("v2-none", Suite::None)];

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

/// Writes the samples of this version: `cargo test --release --workspace --test scenarios -- --ignored write_samples`.
/// Only for a new version of the format: what is there is never replaced.
#[test]
#[ignore = "writes the samples of a new format version"]
fn write_samples() {
    for (name, suite) in SAMPLES {
        let folder = data().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let store = Store::create_local(&folder.join("repository")).unwrap();
        let mut options = InitOptions::new(suite, 1_000);
        options.frame_len = 32 * 1024;
        options.pack_len = 64 * 1024;
        options.chunk = ChunkParams { cut_bits: 1, pages_max: 8 };
        let entropy = Entropy::seeded(1);
        let repository = Repository::create(store, &options, &unlock(suite), "sample", entropy).unwrap();
        let session = open_session(repository, None, &Silent).unwrap();
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
            backup(&session, disks, &options, &Silent).unwrap();
            for (vdi, bytes) in
                [("system", disk.to_bytes()), ("data", ModelDisk::scattered(600_000, 20, day).to_bytes())]
            {
                expected.push_str(&format!("{} {vdi} {}\n", options.time_ms, blake3::hash(&bytes)));
            }
            disk.pages.extend((day * 100..day * 100 + 5).map(|page| (page, 9)));
        }
        drop(session);
        std::fs::write(folder.join("expected"), expected).unwrap();
        for folder_name in ["index", "tmp"] {
            std::fs::remove_dir_all(folder.join("repository").join(folder_name)).unwrap();
        }
    }
}
