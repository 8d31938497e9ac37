//! Repositories over SFTP: OpenSSH's own client and server, and lines that break.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use repo_tests::cli::{cairn, fails, json, run};
use repo_tests::model::ModelDisk;
use repo_tests::sftp::{BrokenLine, Sshd, over_sftp};
use serde_json::Value;
use tempfile::TempDir;

fn disk(seed: u64) -> ModelDisk {
    ModelDisk::scattered(6 << 20, 3, seed)
}

fn id(imported: &Value) -> String {
    imported["snapshot"].as_str().unwrap_or_else(|| panic!("{imported}")).to_owned()
}

/// A machine, and the folder of the other one.
struct Machine {
    home: TempDir,
    there: TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), there: tempfile::tempdir().unwrap() }
    }

    /// It is not there yet, nor is what it is in.
    fn folder(&self) -> PathBuf {
        self.there.path().join("backups/pool 1")
    }

    fn image(&self, disk: &ModelDisk) -> String {
        let image = self.home.path().join("disk.raw");
        disk.write_raw(&image);
        image.to_str().unwrap().to_owned()
    }

    fn restore(&self, cairn: impl Fn(&[&str]) -> Command, snapshot: &str) -> Vec<u8> {
        let target = self.home.path().join("restored");
        let output = target.to_str().unwrap();
        run(&mut cairn(&["restore", snapshot, "--format", "raw", "--output", output, "--force"]));
        std::fs::read(target).unwrap()
    }

    /// Files in the other machine's folder, by their paths in it.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let (root, mut found) = (self.folder(), BTreeMap::new());
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => {
                        found.insert(path.strip_prefix(&root).unwrap().to_owned(), std::fs::read(&path).unwrap());
                    }
                }
            }
        }
        found
    }

    fn every_object_is_what_its_name_says(&self) {
        let files = self.files();
        let named = files.iter().filter(|(path, _)| path.starts_with("packs") || path.starts_with("snapshots"));
        for (path, bytes) in named {
            let name = path.file_name().unwrap().to_str().unwrap();
            let hash = name.rsplit(['-', '.']).next().unwrap();
            assert_eq!(blake3::hash(bytes).to_hex().as_str(), hash, "{}", path.display());
        }
    }
}

#[test]
fn the_life_of_a_repository_over_sftp_is_that_of_one_in_a_folder() {
    let (sshd, machine) = (Sshd::start(), Machine::new());
    let folder = machine.folder();
    let cairn_there = |arguments: &[&str]| sshd.cairn(machine.home.path(), &folder, arguments);
    let made = json(&mut cairn_there(&["init"]));
    assert_eq!(made["store"]["create_only"], true, "OpenSSH's server replaces nothing when it renames");
    let (_, text) = fails(&mut cairn_there(&["init"]));
    assert!(text.contains("is a repository already"), "{text}");
    let mut second = disk(1);
    second.pages.insert(5, 77);
    let import = |disk: &ModelDisk| {
        let image = machine.image(disk);
        json(&mut cairn_there(&["import", &image, "--vdi", "vdi"]))
    };
    let first = import(&disk(1));
    assert!(first["traffic"]["put"].as_u64().unwrap() > 2, "{first}");
    let ids = [id(&first), id(&import(&second))];
    assert_eq!(import(&second)["stored_bytes"].as_u64().unwrap() / 4096, 0);
    assert_eq!(machine.restore(cairn_there, &ids[0]), disk(1).to_bytes());
    assert_eq!(machine.restore(cairn_there, &ids[1]), second.to_bytes());
    let delta = machine.home.path().join("delta.vhd");
    run(&mut cairn_there(&[
        "restore",
        &ids[1],
        "--delta-from",
        &ids[0],
        "--format",
        "vhd",
        "--output",
        delta.to_str().unwrap(),
    ]));
    let stored = json(&mut cairn_there(&["show", &ids[0]]))["stored"].clone();
    assert!(!stored.is_null(), "the other machine's clock says when");
    run(&mut cairn_there(&["protect", &ids[1]]));
    run(&mut cairn_there(&["forget", &ids[0]]));
    let collected = json(&mut cairn_there(&["gc", "--grace", "0s", "--max-waste", "0"]));
    assert!(collected["deleted_packs"].as_u64().unwrap() > 0, "{collected}");
    assert_eq!(json(&mut cairn_there(&["check", "--read-data"]))["clean"], true);

    // A copy in a folder of this machine, and one of that over SFTP.
    let copy = machine.home.path().join("copy");
    run(&mut cairn_there(&["sync", &sshd.place(&folder), copy.to_str().unwrap(), "--init"]));
    run(cairn(&copy).args(["check", "--read-data"]));
    let third = machine.there.path().join("third");
    run(&mut cairn_there(&["sync", copy.to_str().unwrap(), &sshd.place(&third), "--init"]));
    let third_there = |arguments: &[&str]| sshd.cairn(machine.home.path(), &third, arguments);
    assert_eq!(machine.restore(third_there, &ids[1]), second.to_bytes());

    machine.every_object_is_what_its_name_says();
    // What is damaged moves out of the way there, too, and the disk heals it.
    let packs: Vec<_> = machine.files().into_iter().filter(|(path, _)| path.starts_with("packs")).collect();
    let (damaged, mut bytes) = packs.into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(folder.join(&damaged), bytes).unwrap();
    assert_eq!(cairn_there(&["check", "--read-data"]).output().unwrap().status.code(), Some(3));
    cairn_there(&["check", "--read-data", "--repair"]).output().unwrap();
    assert!(folder.join("quarantine").join(damaged.file_name().unwrap()).exists());
    import(&second);
    assert_eq!(json(&mut cairn_there(&["check", "--read-data"]))["clean"], true);
    machine.every_object_is_what_its_name_says();
    let config = std::fs::metadata(folder.join("config")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&config) & 0o777, 0o600);
    let left: Vec<_> =
        machine.files().into_keys().filter(|path| path.starts_with("tmp") || path.starts_with("leases")).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

/// Each would take the other's leases for those of the dead.
#[test]
fn a_folder_is_used_over_sftp_or_as_a_folder_and_never_as_both() {
    let (sshd, machine) = (Sshd::start(), Machine::new());
    let folder = machine.folder();
    let cairn_there = |arguments: &[&str]| sshd.cairn(machine.home.path(), &folder, arguments);
    run(&mut cairn_there(&["init"]));
    let (_, text) = fails(cairn(&folder).arg("snapshots"));
    assert!(text.contains("is used over SFTP: name it sftp://HOST/"), "{text}");
    std::fs::remove_file(folder.join("sftp-only")).unwrap();
    run(cairn(&folder).arg("snapshots"));
    let (_, text) = fails(&mut cairn_there(&["snapshots"]));
    assert!(text.contains("make an empty file sftp-only"), "{text}");
    std::fs::write(folder.join("sftp-only"), "").unwrap();
    run(&mut cairn_there(&["snapshots"]));
}

#[test]
fn what_keeps_a_client_from_the_other_machine_is_said_at_once() {
    let (sshd, machine) = (Sshd::start(), Machine::new());
    let place = sshd.place(&machine.folder());
    let said = |ssh: &str, retry_for: &str| {
        fails(&mut over_sftp(&place, ssh, machine.home.path(), &["snapshots", "--retry-for", retry_for])).1
    };
    // None of these is tried for ten minutes.
    let text = said(&sshd.ssh("other", "known"), "600");
    assert!(text.contains("Permission denied") && text.contains("by hand"), "{text}");
    let text = said(&sshd.ssh("user", "unknown"), "600");
    assert!(text.contains("Host key verification failed") && text.contains("not known yet"), "{text}");
    let text = said("/there/is/no/such/program", "600");
    assert!(text.contains("cannot start /there/is/no/such/program"), "{text}");
    // A login that prints something of its own.
    let text = said("echo", "0");
    assert!(text.contains("no SFTP server answers"), "{text}");
    let text = said("ssh -F none -oProxyCommand=false", "0");
    assert!(text.contains("reach the SFTP server"), "{text}");
    let text = said(&sshd.ssh("user", "known"), "0");
    assert!(text.contains("is not a repository"), "{text}");
}

#[test]
fn a_line_that_breaks_again_and_again_costs_time_and_nothing_else() {
    let (line, machine) = (BrokenLine::lay(), Machine::new());
    let place = format!("sftp://host{}", machine.folder().display());
    for seed in 1..4 {
        println!("seed {seed}");
        let cairn_there = |arguments: &[&str]| over_sftp(&place, &line.ssh(seed), machine.home.path(), arguments);
        if seed == 1 {
            run(&mut cairn_there(&["init"]));
        }
        let image = machine.image(&disk(seed));
        let imported = id(&json(&mut cairn_there(&["import", &image, "--vdi", "vdi"])));
        assert!(machine.restore(cairn_there, &imported) == disk(seed).to_bytes());
        run(&mut cairn_there(&["forget", "--keep-last", "1"]));
        run(&mut cairn_there(&["gc", "--grace", "0s"]));
        machine.every_object_is_what_its_name_says();
        assert_eq!(json(&mut cairn_there(&["check", "--read-data"]))["clean"], true);
    }
    assert!(line.lines() > 12, "only {} lines", line.lines());
}

#[test]
fn a_client_that_is_killed_leaves_whole_objects_and_goes_on() {
    let (sshd, machine) = (Sshd::start(), Machine::new());
    let folder = machine.folder();
    let cairn_there = |arguments: &[&str]| sshd.cairn(machine.home.path(), &folder, arguments);
    run(&mut cairn_there(&["init"]));
    let count = |folder: &Path| std::fs::read_dir(folder).map_or(0, Iterator::count);
    let mut killed = 0;
    for (seed, below) in (1..).zip(["leases", "tmp", "packs", "tmp", "snapshots"]) {
        let image = machine.image(&ModelDisk::scattered(24 << 20, 1, seed));
        let before = count(&folder.join(below));
        let mut command = cairn_there(&["import", &image, "--vdi", "vdi", "--limit-upload", "8MiB"]);
        let mut importing = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while importing.try_wait().unwrap().is_none() && count(&folder.join(below)) <= before {}
        let _ = importing.kill();
        killed += u64::from(!importing.wait().unwrap().success());
        machine.every_object_is_what_its_name_says();
        assert_eq!(json(&mut cairn_there(&["check", "--read-data"]))["clean"], true, "{below}");
    }
    assert!(killed > 2, "{killed}");
    // What was not finished is removed when it is a day old.
    let old = folder.join("tmp/0123456789abcdef0123456789abcdef");
    std::fs::write(&old, "half").unwrap();
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000);
    std::fs::File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
    let image = machine.image(&disk(99));
    let last = id(&json(&mut cairn_there(&["import", &image, "--vdi", "vdi"])));
    assert!(!old.exists());
    assert!(machine.restore(cairn_there, &last) == disk(99).to_bytes());
}
