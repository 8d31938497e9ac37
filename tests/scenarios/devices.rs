//! Block devices as source and as target: loop devices, which root can make on any Linux.

use std::path::{Path, PathBuf};
use std::process::Command;

use repo_core::seal::Suite;
use repo_tests::cli::{cairn, fails, json, run};
use repo_tests::fixture::RepoFixture;
use repo_tests::model::ModelDisk;

/// A loop device over a file, gone when dropped.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path) -> Self {
        let output = run(Command::new("losetup").args(["--find", "--show"]).arg(file));
        Self(String::from_utf8(output.stdout).unwrap().trim().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_is_imported_and_restored_over_whatever_it_held() {
    let fixture = RepoFixture::small(Suite::Aes256Gcm);
    let disk = ModelDisk::scattered(20 << 20, 5, 1);
    let image = fixture.folder.path().join("image.raw");
    disk.write_raw(&image);
    let source = Loop::over(&image);
    let report = json(cairn(&fixture.path()).arg("import").arg(&source.0).args(["--vdi", "device"]));
    assert_eq!(report["logical_bytes"], 20 << 20);

    let junk = fixture.folder.path().join("junk");
    std::fs::write(&junk, vec![0xa5; 21 << 20]).unwrap();
    let target = Loop::over(&junk);
    let restore = |force: &[&str]| {
        let mut command = cairn(&fixture.path());
        command.args(["restore", "device", "--format", "raw", "-o"]).arg(&target.0).args(force);
        command
    };
    let (code, text) = fails(&mut restore(&[]));
    assert!(code == 1 && text.contains("--force"), "{text}");
    run(&mut restore(&["--force"]));
    let restored = std::fs::read(&target.0).unwrap();
    assert!(restored[..20 << 20] == disk.to_bytes());
    assert!(restored[20 << 20..].iter().all(|byte| *byte == 0xa5), "bytes past the disk's end were touched");

    let small = fixture.folder.path().join("small");
    std::fs::write(&small, vec![0xa5; 19 << 20]).unwrap();
    let too_small = Loop::over(&small);
    let mut command = cairn(&fixture.path());
    command.args(["restore", "device", "--format", "raw", "--force", "-o"]).arg(&too_small.0);
    let (code, text) = fails(&mut command);
    assert!(code == 1 && text.contains("20971520") && text.contains("19922944"), "{text}");
}

#[test]
fn a_block_device_takes_raw_disks_alone() {
    let fixture = RepoFixture::small(Suite::Aes256Gcm);
    let image = fixture.folder.path().join("image.raw");
    ModelDisk::scattered(4 << 20, 5, 1).write_raw(&image);
    json(cairn(&fixture.path()).arg("import").arg(&image).args(["--vdi", "disk"]));
    let junk = fixture.folder.path().join("junk");
    std::fs::write(&junk, vec![0xa5; 8 << 20]).unwrap();
    let target = Loop::over(&junk);
    for format in ["vhd", "qcow2", "vhdx"] {
        let mut command = cairn(&fixture.path());
        command.args(["restore", "disk", "--format", format, "--force", "-o"]).arg(&target.0);
        let (code, text) = fails(&mut command);
        assert!(code == 1 && text.contains(&format!("not a {format}: give --format raw")), "{text}");
    }
    assert!(std::fs::read(&junk).unwrap().iter().all(|byte| *byte == 0xa5), "the device was written to");
}

#[test]
fn a_block_device_is_restored_in_place_and_keeps_what_lies_past_the_disk() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let session = fixture.session();
    let mut disk = ModelDisk::scattered((20 << 20) + 1000, 5, 1);
    let old = disk.clone();
    disk.pages.extend((100..130).map(|page| (page, 7)));
    disk.pages.retain(|page, _| !(1000..3000).contains(page));
    fixture.backup_model(&session, "device", &disk);
    drop(session);
    let file = fixture.folder.path().join("device");
    let mut bytes = old.to_bytes();
    bytes.resize(21 << 20, 0xa5);
    std::fs::write(&file, bytes).unwrap();
    let target = Loop::over(&file);
    let restore = || {
        let mut command = cairn(&fixture.path());
        command.args(["restore", "device", "--in-place"]).arg(&target.0);
        command
    };
    let foretold = json(restore().arg("--dry-run"));
    let report = json(&mut restore());
    assert_eq!(report["written_bytes"], 30 * 4096);
    assert_eq!(report["written_bytes"], foretold["written_bytes"]);
    assert_eq!(report["in_place"]["zeroed_bytes"], foretold["in_place"]["zeroed_bytes"]);
    let restored = std::fs::read(&target.0).unwrap();
    let (content, rest) = restored.split_at((20 << 20) + 1000);
    assert!(content == disk.to_bytes());
    assert!(rest.iter().all(|byte| *byte == 0xa5), "bytes past the disk's end were touched");

    let small = fixture.folder.path().join("small");
    std::fs::write(&small, vec![0xa5; 19 << 20]).unwrap();
    let too_small = Loop::over(&small);
    let (code, text) = fails(cairn(&fixture.path()).args(["restore", "device", "--in-place"]).arg(&too_small.0));
    assert!(code == 1 && text.contains("20972520") && text.contains("19922944"), "{text}");
}
