//! `cairn sync` as people and scripts use it.

use std::path::Path;
use std::process::Command;

use repo_core::seal::Suite;
use repo_tests::cli::{cairn, fails, json, run};
use repo_tests::fixture::RepoFixture;
use repo_tests::model::ModelDisk;

use super::{ThreeDays, restore_all};
use crate::refusals::Mounted;

fn sync(from: &Path, to: &Path, arguments: &[&str]) -> Command {
    let mut command = cairn(Path::new("/nowhere"));
    command.arg("sync").arg(from).arg(to).args(arguments);
    command
}

#[test]
fn a_copy_is_made_planned_filtered_and_brought_up_to_date() {
    let mut days = ThreeDays::new(Suite::Aes256Gcm);
    let (from, place) = (days.from.path(), days.from.folder.path().join("offsite"));
    let (code, text) = fails(&mut sync(&from, &place, &[]));
    assert!(code == 1 && text.contains("--init"), "{text}");
    assert!(!place.exists());
    let planned = json(&mut sync(&from, &place, &["--init", "--dry-run"]));
    assert!(!place.exists(), "planned only");
    let done = json(&mut sync(&from, &place, &["--init"]));
    for field in ["moved_packs", "moved_bytes", "synced"] {
        assert_eq!(planned[field], done[field], "{field}");
    }
    assert_eq!((&done["same_keys"], &done["chosen_snapshots"]), (&true.into(), &3.into()));
    let again = json(&mut sync(&from, &place, &[]));
    assert_eq!((&again["moved_packs"], &again["present_snapshots"]), (&0.into(), &3.into()));
    // TO can be read with the same passphrase, and with that alone.
    assert_eq!(json(cairn(&place).arg("snapshots")).as_array().unwrap().len(), 3);
    assert_eq!(json(cairn(&place).args(["check", "--read-data"]))["clean"], true);
    // By name and by time.
    let other = days.from.folder.path().join("other");
    let id = days.ids[1].to_hex();
    let one = json(&mut sync(&from, &other, &["--init", &id[..8]]));
    assert_eq!(one["synced"].as_array().unwrap().len(), 1);
    assert_eq!(one["synced"][0]["id"], id);
    assert_eq!(json(&mut sync(&from, &other, &["--since", "yesterday"]))["chosen_snapshots"], 0);
    let (code, text) = fails(&mut sync(&from, &other, &["--vdi", "b"]));
    assert!(code == 1 && text.contains("there is no snapshot with VDI b"), "{text}");
    assert_eq!(fails(&mut sync(&from, &from, &[])).0, 2);
    // The summary is for people, and silent when that is wished.
    let disk = ModelDisk::scattered(3 << 20, 4, 9);
    days.from.backup_model(&days.from.session(), "new", &disk);
    let text = String::from_utf8(run(&mut sync(&from, &place, &[])).stdout).unwrap();
    assert!(text.contains("1 copied") && text.contains("there before"), "{text}");
    assert!(run(&mut sync(&from, &place, &["--quiet"])).stdout.is_empty());
}

#[test]
fn other_keys_want_their_own_passphrase() {
    let days = ThreeDays::new(Suite::Aes256Gcm);
    let folder = days.from.folder.path();
    let place = folder.join("other");
    let (right, wrong) = (folder.join("right"), folder.join("wrong"));
    std::fs::write(&right, "quite another passphrase\n").unwrap();
    std::fs::write(&wrong, "not that one\n").unwrap();
    run(cairn(&place).env_remove("CAIRN_PASSPHRASE").arg("init").arg("--passphrase-file").arg(&right));
    let with = |file: &Path| {
        let mut command = sync(&days.from.path(), &place, &[]);
        command.arg("--to-passphrase-file").arg(file);
        command
    };
    let (code, text) = fails(&mut with(&wrong));
    assert!(code == 1 && text.contains("wrong passphrase"), "{text}");
    let none = fails(sync(&days.from.path(), &place, &[]).stdin(std::process::Stdio::null()));
    assert!(none.1.contains("CAIRN_TO_PASSPHRASE"), "{}", none.1);
    let done = json(&mut with(&right));
    assert_eq!((&done["same_keys"], done["synced"].as_array().unwrap().len()), (&false.into(), 3));
    assert!(done["stored_bytes"].as_u64().unwrap() > 0);
    let shown = cairn(&place)
        .env_remove("CAIRN_PASSPHRASE")
        .args(["restore", "a", "--format", "raw", "-o", "-", "--passphrase-file"])
        .arg(&right)
        .output()
        .unwrap();
    assert!(shown.stdout == days.disks[2].to_bytes());
    assert_eq!(json(&mut with(&right))["synced"].as_array().unwrap().len(), 0);
}

#[test]
fn damage_is_named_and_is_exit_code_3() {
    let days = ThreeDays::new(Suite::Aes256Gcm);
    let to = days.from.empty_copy();
    let path = days.pack_of(2);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let output = sync(&days.from.path(), &to.path(), &["--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["failed"][0]["id"], days.ids[2].to_hex());
    assert_eq!(report["synced"].as_array().unwrap().len(), 2);
    let pack = path.file_name().unwrap().to_str().unwrap()[..12].to_owned();
    assert!(report["failed"][0]["error"].as_str().unwrap().contains(&pack), "{report}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(&pack));
    restore_all(&to, &days.expected(0..2));
}

#[test]
fn a_full_disk_ends_a_sync_clearly_and_the_next_one_goes_on() {
    let mut from = RepoFixture::small(Suite::Aes256Gcm);
    let session = from.session();
    let small = ModelDisk::scattered(4 << 20, 2, 1);
    let large = ModelDisk::scattered(160 << 20, 2, 2);
    let ids =
        [("small", &small), ("large", &large)].map(|(vdi, disk)| from.backup_model(&session, vdi, disk).snapshot.id);
    drop(session);
    let place = from.folder.path().join("mounted");
    let mounted = Mounted::tmpfs(&place, "40m");
    let to = place.join("repository");
    let short = ids[0].to_hex();
    run(&mut sync(&from.path(), &to, &["--init", &short]));
    let (code, text) = fails(&mut sync(&from.path(), &to, &[]));
    assert!(code == 1 && text.contains("No space left on device"), "{text}");
    assert_eq!(json(cairn(&to).arg("snapshots")).as_array().unwrap().len(), 1);
    assert_eq!(json(cairn(&to).args(["check", "--read-data"]))["clean"], true);
    run(Command::new("mount").args(["-o", "remount,size=400m"]).arg(&place));
    let arrived = json(cairn(&to).args(["gc", "--dry-run"]))["condemned_packs"].as_u64().unwrap();
    let done = json(&mut sync(&from.path(), &to, &[]));
    let all = from.session().repository.store.list_packs().unwrap().len() as u64;
    assert!(arrived > 0 && done["moved_packs"].as_u64().unwrap() < all, "{arrived} had arrived: {done}");
    let restored = run(cairn(&to).args(["restore", "large", "--format", "raw", "-o", "-"])).stdout;
    assert!(restored == large.to_bytes());
    drop(mounted);
}
