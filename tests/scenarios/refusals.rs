//! What goes wrong in daily life: each with its own clear error, and nothing lost.

use std::path::{Path, PathBuf};
use std::process::Command;

use repo_core::ops::restore::RestoreOptions;
use repo_core::seal::Suite;
use repo_tests::cli::{cairn, fails, json, run};
use repo_tests::fixture::{RepoFixture, restore_stream};
use repo_tests::model::ModelDisk;

const FAILED: i32 = 1;
const USAGE: i32 = 2;

struct Subject {
    fixture: RepoFixture,
    disk: ModelDisk,
    image: PathBuf,
}

impl Subject {
    fn new() -> Self {
        let fixture = RepoFixture::small(Suite::Aes256Gcm);
        let disk = ModelDisk::scattered(6 << 20, 2, 1);
        let image = fixture.folder.path().join("image.raw");
        disk.write_raw(&image);
        run(cairn(&fixture.path()).arg("import").arg(&image).args(["--vdi", "a"]));
        Self { fixture, disk, image }
    }

    fn cairn(&self) -> Command {
        cairn(&self.fixture.path())
    }

    /// The one snapshot there is restores, and there is no other.
    fn assert_untouched(&self) {
        let session = self.fixture.session();
        let (snapshots, _) = repo_core::snapshot::read_all(&session.repository).unwrap();
        assert_eq!(snapshots.len(), 1);
        let restored = restore_stream(&session, snapshots[0].id, "a", RestoreOptions::default()).unwrap();
        assert!(restored.0 == self.disk.to_bytes());
        drop(session);
        assert!(self.fixture.check_all().is_clean());
    }
}

fn assert_says(outcome: &(i32, String), code: i32, texts: &[&str]) {
    assert_eq!(outcome.0, code, "{}", outcome.1);
    for text in texts {
        assert!(outcome.1.contains(text), "{text:?} is not in: {}", outcome.1);
    }
    assert!(!outcome.1.contains("panicked"), "{}", outcome.1);
}

#[test]
fn keys_repositories_and_versions_that_do_not_fit_have_errors_of_their_own() {
    let subject = Subject::new();
    let wrong = fails(subject.cairn().env("CAIRN_PASSPHRASE", "wrong").arg("snapshots"));
    assert_says(&wrong, FAILED, &["wrong passphrase", "hint:"]);

    let empty = fails(cairn(subject.fixture.folder.path()).arg("snapshots"));
    assert_says(&empty, FAILED, &["is not a repository", "hint:", "cairn init"]);
    let missing = fails(cairn(Path::new("/nonexistent/repository")).arg("snapshots"));
    assert_says(&missing, FAILED, &["/nonexistent/repository"]);

    // Another repository's configuration over this one's keys.
    let foreign = Subject::new();
    let config = subject.fixture.path().join("config");
    let own = std::fs::read(&config).unwrap();
    std::fs::copy(foreign.fixture.path().join("config"), &config).unwrap();
    let swapped = fails(subject.cairn().arg("snapshots"));
    assert_says(&swapped, FAILED, &["opens no key slot of this repository"]);

    let mut newer = own.clone();
    newer[6] = 9;
    std::fs::write(&config, newer).unwrap();
    assert_says(&fails(subject.cairn().arg("snapshots")), FAILED, &["format version 9 is newer"]);
    let mut feature = own.clone();
    feature[12] = 1;
    std::fs::write(&config, feature).unwrap();
    assert_says(&fails(subject.cairn().arg("snapshots")), FAILED, &["required feature bits 0x100000000 are not known"]);
    std::fs::write(&config, own).unwrap();
    subject.assert_untouched();
}

#[test]
fn nothing_is_overwritten_unasked() {
    let subject = Subject::new();
    let target = subject.fixture.folder.path().join("target");
    std::fs::write(&target, "precious").unwrap();
    let restore = |force: &[&str]| {
        let mut command = subject.cairn();
        command.args(["restore", "a", "--format", "raw", "-o"]).arg(&target).args(force);
        command
    };
    assert_says(&fails(&mut restore(&[])), FAILED, &["target", "--force"]);
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    run(&mut restore(&["--force"]));
    assert!(std::fs::read(&target).unwrap() == subject.disk.to_bytes());
    let init = fails(subject.cairn().arg("init"));
    assert_says(&init, FAILED, &["is a repository already"]);
    subject.assert_untouched();
}

#[test]
fn bad_sources_commit_nothing() {
    let subject = Subject::new();
    let vhd = subject.fixture.folder.path().join("image.vhd");
    run(Command::new("qemu-img").args(["convert", "-O", "vpc", "-o", "force_size=on"]).arg(&subject.image).arg(&vhd));
    let good = std::fs::read(&vhd).unwrap();
    let head = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
    let mut differencing = good.clone();
    for footer in [0, good.len() - 512] {
        differencing[footer + 63] = 4;
        let sum: u32 =
            (0..512).filter(|at| !(64..68).contains(at)).map(|at| u32::from(differencing[footer + at])).sum();
        differencing[footer + 64..footer + 68].copy_from_slice(&(!sum).to_be_bytes());
    }
    let mut checksum = good.clone();
    checksum[70] ^= 1;
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("cut in the middle", good[..good.len() / 2].to_vec(), ""),
        ("without its trailer", good[..good.len() - 512].to_vec(), ""),
        ("with a wrong checksum", checksum, "checksum"),
        ("differencing", differencing, "differencing"),
        ("ending in an error of the server", [&good[..good.len() / 2], head].concat(), ""),
        ("being an error of the server", head.to_vec(), "HTTP/1.1 500"),
    ];
    for (what, bytes, text) in cases {
        let file = subject.fixture.folder.path().join("bad.vhd");
        std::fs::write(&file, bytes).unwrap();
        let from_file = fails(subject.cairn().arg("import").arg(&file).args(["--vdi", "a"]));
        assert_says(&from_file, FAILED, &[text, "error: "]);
        let stdin = std::fs::File::open(&file).unwrap();
        let from_pipe = fails(subject.cairn().args(["import", "-", "--vdi", "a"]).stdin(stdin));
        assert_says(&from_pipe, FAILED, &[text, "error: "]);
        println!("{what}: {} / {}", from_file.1.trim(), from_pipe.1.trim());
    }
    assert_says(&fails(subject.cairn().args(["import", "/nonexistent", "--vdi", "a"])), FAILED, &["/nonexistent"]);
    assert_says(&fails(subject.cairn().args(["import", "-"])), USAGE, &["--vdi"]);
    subject.assert_untouched();
}

/// A file system of its own, gone when dropped.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub(crate) fn tmpfs(at: &Path, size: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at));
        Self(at.to_owned())
    }

    fn read_only(folder: &Path) -> Self {
        run(Command::new("mount").arg("--bind").arg(folder).arg(folder));
        run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(folder));
        Self(folder.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_ends_an_import_and_a_restore_clearly_and_loses_nothing() {
    let subject = Subject::new();
    let place = subject.fixture.folder.path().join("small");
    let mounted = Mounted::tmpfs(&place, "40m");
    let repository = place.join("repository");
    run(Command::new("cp").arg("-r").arg(subject.fixture.path()).arg(&repository));
    let large = ModelDisk::scattered(160 << 20, 2, 9);
    let image = subject.fixture.folder.path().join("large.raw");
    large.write_raw(&image);
    let full = fails(cairn(&repository).arg("import").arg(&image).args(["--vdi", "large"]));
    assert_says(&full, FAILED, &["No space left on device", "hint:"]);
    let snapshots = json(cairn(&repository).arg("snapshots"));
    assert_eq!(snapshots.as_array().unwrap().len(), 1);
    let restored = subject.fixture.folder.path().join("restored");
    run(cairn(&repository).args(["restore", "a", "--format", "raw", "-o"]).arg(&restored));
    assert!(std::fs::read(&restored).unwrap() == subject.disk.to_bytes());
    assert_eq!(json(cairn(&repository).args(["check", "--read-data"]))["clean"], true);

    // Whatever room is left goes to a file of zeros.
    let filler = std::fs::File::create(place.join("filler")).unwrap();
    assert!(std::io::copy(&mut std::io::repeat(0), &mut &filler).is_err());
    drop(filler);
    let output = place.join("out.raw");
    for format in ["raw", "vhd"] {
        let restore = fails(subject.cairn().args(["restore", "a", "--format", format, "-o"]).arg(&output));
        assert_says(&restore, FAILED, &["No space left on device"]);
        assert!(!output.exists(), "half a disk was left behind");
    }
    let device = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let piped = fails(subject.cairn().args(["restore", "a", "--format", "raw", "-o", "-"]).stdout(device));
    assert_says(&piped, FAILED, &["No space left on device"]);
    drop(mounted);
    subject.assert_untouched();
}

#[test]
fn a_read_only_repository_restores_and_refuses_an_import() {
    let subject = Subject::new();
    let mounted = Mounted::read_only(&subject.fixture.path());
    let cache = subject.fixture.folder.path().join("cache");
    let cairn = || {
        let mut command = subject.cairn();
        command.env("XDG_CACHE_HOME", &cache);
        command
    };
    let restored = subject.fixture.folder.path().join("restored");
    run(cairn().args(["restore", "a", "--format", "raw", "-o"]).arg(&restored));
    assert!(std::fs::read(&restored).unwrap() == subject.disk.to_bytes());
    std::fs::write(&subject.image, vec![7_u8; 4 << 20]).unwrap();
    let import = fails(cairn().arg("import").arg(&subject.image).args(["--vdi", "a"]));
    assert_says(&import, FAILED, &["Read-only file system", "hint:"]);
    drop(mounted);
    subject.assert_untouched();
}

#[test]
fn key_slots_come_and_go_and_the_last_one_stays() {
    let subject = Subject::new();
    let file = subject.fixture.folder.path().join("second");
    std::fs::write(&file, "another passphrase\n").unwrap();
    run(subject.cairn().args(["key", "add", "--label", "second", "--new-passphrase-file"]).arg(&file));
    let slots = json(subject.cairn().args(["key", "list"]));
    let ids: Vec<_> = slots.as_array().unwrap().iter().map(|slot| slot["key"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 2);
    run(subject.cairn().env("CAIRN_PASSPHRASE", "another passphrase").arg("snapshots"));
    run(subject.cairn().env("CAIRN_PASSPHRASE", "another passphrase").args(["key", "remove", &ids[0]]));
    assert_says(&fails(subject.cairn().arg("snapshots")), FAILED, &["wrong passphrase"]);
    let last = fails(subject.cairn().env("CAIRN_PASSPHRASE", "another passphrase").args(["key", "remove", &ids[1]]));
    assert_says(&last, FAILED, &["last key slot"]);
}
