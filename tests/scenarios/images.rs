//! Real file systems with real files, in and out in every format, judged by qemu-img.

use std::path::{Path, PathBuf};
use std::process::Command;

use repo_core::seal::Suite;
use repo_tests::cli::{cairn, json, run, tool};
use repo_tests::fixture::RepoFixture;

/// Makes an image of 1 GiB with the files of a folder.
fn ext4(path: &Path, files: &Path) {
    tool("truncate", ["-s", "1G", path.to_str().unwrap()]);
    let arguments = ["-q", "-t", "ext4", "-E", "hash_seed=6f0f6a4e-3ac1-4ea3-9f53-04e5e37fd5a4", "-d"];
    run(Command::new("mke2fs").args(arguments).arg(files).arg(path));
}

fn btrfs(path: &Path, files: &Path) {
    tool("truncate", ["-s", "1G", path.to_str().unwrap()]);
    run(Command::new("mkfs.btrfs").args(["-q", "--rootdir"]).arg(files).arg(path));
}

struct Images {
    fixture: RepoFixture,
    suite: Suite,
}

impl Images {
    fn new(suite: Suite) -> Self {
        Self { fixture: RepoFixture::ordinary(suite), suite }
    }

    fn cairn(&self) -> Command {
        let mut command = cairn(&self.fixture.path());
        if self.suite == Suite::None {
            command.env_remove("CAIRN_PASSPHRASE");
        }
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.fixture.folder.path().join(name)
    }

    fn import(&self, file: &Path, vdi: &str) -> serde_json::Value {
        json(self.cairn().arg("import").arg(file).args(["--vdi", vdi]))
    }

    /// Restores `what` as `format`, to a file and through a pipe, and compares both with the raw image by qemu-img.
    fn restores(&self, what: &str, format: &str, raw: &Path) {
        let file = self.path("restored-file");
        let piped = self.path("restored-pipe");
        run(self.cairn().args(["restore", what, "--format", format, "--force", "-o"]).arg(&file));
        let output = std::fs::File::create(&piped).unwrap();
        run(self.cairn().args(["restore", what, "--format", format, "-o", "-"]).stdout(output));
        let qemu_format = if format == "vhd" { "vpc" } else { format };
        for restored in [&file, &piped] {
            run(Command::new("qemu-img").args(["compare", "-f", qemu_format, "-F", "raw"]).arg(restored).arg(raw));
        }
        if format == "raw" {
            run(Command::new("cmp").arg(&file).arg(raw));
            run(Command::new("cmp").arg(&piped).arg(raw));
        }
    }
}

fn round_trip(suite: Suite, make: fn(&Path, &Path)) {
    let images = Images::new(suite);
    let raw = images.path("disk.raw");
    make(&raw, Path::new("/usr/share/doc"));
    let vhd = images.path("disk.vhd");
    let fixed = images.path("fixed.vhd");
    run(Command::new("qemu-img").args(["convert", "-O", "vpc", "-o", "force_size=on"]).arg(&raw).arg(&vhd));
    let options = "subformat=fixed,force_size=on";
    run(Command::new("qemu-img").args(["convert", "-O", "vpc", "-o", options]).arg(&raw).arg(&fixed));

    let first = images.import(&raw, "disk");
    assert_eq!(first["logical_bytes"], 1 << 30);
    let stored = first["stored_bytes"].as_u64().unwrap();
    assert!(stored > 0 && stored < first["allocated_bytes"].as_u64().unwrap());
    // The same disk in other wrappings is the same content.
    for (file, vdi) in [(&vhd, "from-vhd"), (&fixed, "from-fixed-vhd")] {
        let again = images.import(file, vdi);
        assert_eq!(again["new_bytes"], 0, "{vdi}");
        assert_eq!(again["allocated_bytes"], first["allocated_bytes"], "{vdi}");
    }
    let piped = run(images
        .cairn()
        .args(["import", "-", "--vdi", "from-pipe", "--json"])
        .stdin(std::fs::File::open(&vhd).unwrap()));
    let piped: serde_json::Value = serde_json::from_slice(&piped.stdout).unwrap();
    assert_eq!(piped["new_bytes"], 0);

    // What nothing new was stored for is the same manifest; the last of them stands for all.
    for vdi in ["disk", "from-pipe"] {
        images.restores(vdi, "raw", &raw);
        images.restores(vdi, "vhd", &raw);
    }
    images.restores("disk", "qcow2", &raw);
    images.restores("disk", "vhdx", &raw);
    let report = json(images.cairn().args(["check", "--read-data"]));
    assert_eq!(report["clean"], true);
}

#[test]
fn an_ext4_image_comes_back_identical_in_every_format() {
    round_trip(Suite::Aes256Gcm, ext4);
}

#[test]
fn a_btrfs_image_comes_back_identical_in_every_format_unencrypted() {
    round_trip(Suite::None, btrfs);
}

#[test]
fn changing_a_few_files_stores_about_as_much() {
    let images = Images::new(Suite::Aes256Gcm);
    let raw = images.path("disk.raw");
    ext4(&raw, Path::new("/usr/share/doc"));
    let first = images.import(&raw, "disk");
    let before = images.path("before.raw");
    std::fs::copy(&raw, &before).unwrap();
    let added = images.path("added");
    std::fs::write(&added, repo_tests::model::ModelDisk::scattered(2 << 20, 1, 5).to_bytes()).unwrap();
    run(Command::new("debugfs").args(["-w", "-R", &format!("write {} added", added.display())]).arg(&raw));
    let second = images.import(&raw, "disk");
    let new = second["new_bytes"].as_u64().unwrap();
    assert!((2 << 20..6 << 20).contains(&new), "2 MiB were added, {new} are new");
    assert!(second["stored_bytes"].as_u64().unwrap() < 4 << 20);
    images.restores(first["snapshot"].as_str().unwrap(), "raw", &before);
    images.restores(second["snapshot"].as_str().unwrap(), "raw", &raw);
}
