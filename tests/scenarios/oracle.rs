//! A reader that was written from docs/format.md alone, in another language, restores the same bytes.

use std::path::PathBuf;
use std::process::Command;

use repo_core::annotation;
use repo_core::remarks::Remarks;
use repo_core::seal::Suite;
use repo_core::snapshot::{self, Snapshot};
use repo_tests::cli::{fails, run};
use repo_tests::fixture::{PASSPHRASE, RepoFixture};
use repo_tests::model::ModelDisk;

/// Python in the environment that `make oracles` installs.
pub(crate) fn python() -> Command {
    let venv = std::env::var_os("CAIRN_VENV").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/cairn/venv"),
        PathBuf::from,
    );
    Command::new(venv.join("bin/python"))
}

/// `extract.py` on a repository.
pub(crate) fn extract(fixture: &RepoFixture) -> Command {
    let mut command = python();
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/oracle/extract.py")).arg(fixture.path());
    command.env("CAIRN_PASSPHRASE", PASSPHRASE);
    command
}

fn agrees(suite: Suite) {
    let mut fixture = RepoFixture::small(suite);
    let session = fixture.session();
    let mut disk = ModelDisk::scattered(300 << 20, 40, 1);
    disk.virtual_size -= 1000;
    let first = fixture.backup_model(&session, "disk", &disk).snapshot.id;
    let before = disk.to_bytes();
    disk.pages.extend((1000..1400).map(|page| (page, 5)));
    let second = fixture.backup_model(&session, "disk", &disk).snapshot;
    // What people say of a snapshot is no concern of a reader of disks.
    let remarks = Remarks { tags: ["gold".to_owned()].into(), note: Some("why".to_owned()), protected: true };
    let third =
        snapshot::commit(&session.repository, &session.index, Snapshot { remarks, ..second.snapshot.clone() }).unwrap();
    annotation::annotate(&session.repository, &third, 1, |remarks| remarks.protected = false).unwrap();
    // Packs alone must do: without an index, and with nothing but the objects of the format.
    drop(session);
    std::fs::remove_dir_all(fixture.path().join("index")).unwrap();
    for (id, expected) in [(first, before), (second.id, disk.to_bytes()), (third.id, disk.to_bytes())] {
        let target = fixture.folder.path().join("extracted.raw");
        run(extract(&fixture).args(["extract", &id.to_hex(), "disk", "-o"]).arg(&target));
        assert!(std::fs::read(&target).unwrap() == expected);
        std::fs::remove_file(&target).unwrap();
    }
    run(extract(&fixture).arg("verify"));
}

#[test]
fn the_independent_reader_restores_an_encrypted_repository() {
    agrees(Suite::Aes256Gcm);
}

#[test]
fn the_independent_reader_restores_an_unencrypted_repository() {
    agrees(Suite::None);
}

#[test]
fn the_independent_reader_finds_a_flipped_byte() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let session = fixture.session();
    fixture.backup_model(&session, "disk", &ModelDisk::scattered(3 << 20, 2, 1));
    let pack = repo_core::store::ObjectName::Pack(session.repository.store.list_packs().unwrap()[0].id);
    let path = fixture.path().join(pack.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (code, text) = fails(extract(&fixture).arg("verify"));
    let name = pack.path().rsplit('/').next().unwrap().to_owned();
    assert!(code == 3 && text.contains(&name[..12]), "{code}: {text}");
}
