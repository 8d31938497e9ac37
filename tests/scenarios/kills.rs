//! `kill -9` before every single step that changes what is stored or restored: a second run ends as an undisturbed first
//! one would have, and nothing is lost on the way.
//!
//! The steps are system calls, and strace kills the process when it is about to make its n-th call of a kind. With one worker
//! thread these are the same calls each time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use repo_core::ops::restore::RestoreOptions;
use repo_core::seal::Suite;
use repo_core::store::ObjectName;
use repo_core::units::PAGE_LEN;
use repo_tests::cli::{Ended, cairn, cairn_killed_at, run};
use repo_tests::fixture::{RepoFixture, restore_stream};
use repo_tests::model::ModelDisk;
use serde_json::Value;

/// What changes files of a repository: content, names, and names that go.
pub(crate) const CALLS: [&str; 4] = ["pwrite64", "linkat", "unlink", "mkdir"];

/// Runs `arguments` on what `prepare` makes, killed before its first call of each kind, its second and so on until it gets
/// to its end; `judge` is told of each kill. Gives how many kills there were.
pub(crate) fn kill_at_each_step(
    calls: &[&str],
    only: Option<&Path>,
    mut prepare: impl FnMut() -> (PathBuf, Vec<String>),
    mut judge: impl FnMut(&str),
) -> usize {
    let mut kills = 0;
    for call in calls {
        for number in 1.. {
            assert!(number < 200, "{call} has no end");
            let (repository, arguments) = prepare();
            match cairn_killed_at(&repository, &arguments, call, number, only) {
                Ended::Killed => judge(&format!("killed before {call} number {number}")),
                Ended::Exit(0 | 3) => break,
                Ended::Exit(code) => panic!("{arguments:?} ended with {code} without being killed"),
            }
            kills += 1;
        }
    }
    kills
}

pub(crate) fn strings<const N: usize>(arguments: [&str; N]) -> Vec<String> {
    arguments.map(str::to_owned).into()
}

fn copy(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).unwrap();
    }
    run(Command::new("cp").arg("-a").arg(from).arg(to));
}

/// A restore in place: the disk, the state that the target holds, and where the target is.
struct InPlace {
    fixture: RepoFixture,
    found: Vec<u8>,
    wanted: Vec<u8>,
    target: PathBuf,
    arguments: Vec<String>,
}

impl InPlace {
    fn new() -> Self {
        let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
        let wanted = ModelDisk::scattered(5 << 20, 3, 1);
        fixture.backup_model(&fixture.session(), "disk", &wanted);
        // Content that differs, content that is to go, and content that is missing, in places of their own; and too long.
        let mut found = wanted.clone();
        found.virtual_size += 4096;
        found.pages.retain(|page, _| !page.is_multiple_of(100));
        found
            .pages
            .extend((0..1280).step_by(300).flat_map(|page| page..page + 6).map(|page| (page, 9_000 + page as u32)));
        let target = fixture.folder.path().join("target");
        let path = target.to_str().unwrap();
        let arguments = strings(["restore", "disk", "--in-place", path]);
        Self { found: found.to_bytes(), wanted: wanted.to_bytes(), target, arguments, fixture }
    }

    fn put_target(&self) -> (PathBuf, Vec<String>) {
        std::fs::write(&self.target, &self.found).unwrap();
        (self.fixture.path(), self.arguments.clone())
    }

    /// Each page of the target is as it was, or as it is to be.
    fn check_target(&self, when: &str) {
        let target = std::fs::read(&self.target).unwrap();
        assert!(target.len() == self.found.len() || target.len() == self.wanted.len(), "{when}: {}", target.len());
        for (at, page) in target.chunks(PAGE_LEN).enumerate() {
            let of = |state: &[u8]| state.chunks(PAGE_LEN).nth(at).is_some_and(|other| other == page);
            assert!(of(&self.found) || of(&self.wanted), "{when}: page {at} is neither old nor new");
        }
    }

    fn finish(&self, when: &str) {
        run(cairn(&self.fixture.path()).args(&self.arguments));
        assert!(std::fs::read(&self.target).unwrap() == self.wanted, "{when}: the second run did not complete it");
    }
}

const TARGET_CALLS: [&str; 4] = ["pwrite64", "fallocate", "ftruncate", "fsync"];

#[test]
fn a_restore_in_place_that_was_killed_at_any_step_is_completed_by_another() {
    let case = InPlace::new();
    let kills = kill_at_each_step(
        &TARGET_CALLS,
        Some(&case.target),
        || case.put_target(),
        |when| {
            case.check_target(when);
            case.finish(when);
        },
    );
    println!("{kills} kills");
    assert!(kills >= 12, "only {kills} steps were met");
}

#[test]
fn a_restore_in_place_that_is_killed_again_and_again_comes_to_its_end() {
    let case = InPlace::new();
    let (repository, arguments) = case.put_target();
    let mut kills = 0;
    while cairn_killed_at(&repository, &arguments, "pwrite64", 2, Some(&case.target)) == Ended::Killed {
        kills += 1;
        case.check_target(&format!("after {kills} kills"));
        assert!(kills < 200, "a run makes no progress");
    }
    assert!(kills >= 5, "only {kills} kills");
    assert!(std::fs::read(&case.target).unwrap() == case.wanted);
}

/// A damaged repository: of its packs some are hurt in a frame, some in the directory; and an annotation is.
struct Damaged {
    fixture: RepoFixture,
    disk: ModelDisk,
    /// The repository as it was found.
    found: PathBuf,
    /// Damaged objects, and their bytes.
    objects: BTreeMap<String, Vec<u8>>,
}

impl Damaged {
    fn new() -> Self {
        let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
        let disk = ModelDisk::scattered(3 << 20, 3, 1);
        fixture.backup_model(&fixture.session(), "disk", &disk);
        run(cairn(&fixture.path()).args(["tag", "latest", "--add", "gold"]));
        let session = fixture.session();
        let store = &session.repository.store;
        let packs = store.list_packs().unwrap();
        let mut names: Vec<_> = packs.iter().step_by(2).map(|pack| ObjectName::Pack(pack.id)).collect();
        names.extend(store.list_annotations().unwrap().iter().map(|listed| ObjectName::Annotation(listed.id)));
        drop(session);
        let mut objects = BTreeMap::new();
        for (at, name) in names.into_iter().enumerate() {
            let path = fixture.path().join(name.path());
            let mut bytes = std::fs::read(&path).unwrap();
            let place = if at == 1 { bytes.len() - 100 } else { 70 };
            bytes[place] ^= 0x40;
            std::fs::write(&path, &bytes).unwrap();
            objects.insert(name.path(), bytes);
        }
        let found = fixture.folder.path().join("found");
        copy(&fixture.path(), &found);
        Self { fixture, disk, found, objects }
    }

    fn put_repository(&self) -> (PathBuf, Vec<String>) {
        copy(&self.found, &self.fixture.path());
        (self.fixture.path(), strings(["check", "--read-data", "--repair", "--json"]))
    }

    /// Every damaged object is there with the bytes it had: under its name, or in quarantine.
    fn check_objects(&self, when: &str) {
        let root = self.fixture.path();
        for (object, bytes) in &self.objects {
            let places = [root.join(object), root.join("quarantine").join(object.rsplit('/').next().unwrap())];
            let kept = places.iter().any(|path| std::fs::read(path).is_ok_and(|found| found == *bytes));
            assert!(kept, "{when}: {object} is lost");
        }
    }

    /// What a repair ends with: what is lost for good, what is in quarantine, and what can still be restored.
    fn repaired(&self) -> (Value, BTreeMap<String, Vec<u8>>, Vec<u8>) {
        let (repository, arguments) = (self.fixture.path(), strings(["check", "--read-data", "--repair", "--json"]));
        let output = cairn(&repository).args(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let quarantine = std::fs::read_dir(repository.join("quarantine")).unwrap().map(|entry| entry.unwrap());
        let quarantine = quarantine
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
            .collect();
        let session = self.fixture.session();
        let id = session.repository.store.list_snapshots().unwrap()[0].id;
        let restored = restore_stream(&session, id, "disk", RestoreOptions { keep_going: true }).unwrap().0;
        (serde_json::json!([report["affected"], report["damages"]]), quarantine, restored)
    }
}

#[test]
fn a_repair_that_was_killed_at_any_step_is_completed_by_another_and_loses_nothing() {
    let mut case = Damaged::new();
    case.put_repository();
    let expected = case.repaired();
    assert_eq!(expected.1.len(), case.objects.len());
    assert!(!expected.0[0].as_array().unwrap().is_empty(), "something is lost for good: {}", expected.0);
    let kills = kill_at_each_step(
        &CALLS,
        None,
        || case.put_repository(),
        |when| {
            case.check_objects(when);
            let repaired = case.repaired();
            assert_eq!(repaired.0, expected.0, "{when}");
            assert!(repaired.1 == expected.1, "{when}: quarantine differs");
            assert!(repaired.2 == expected.2, "{when}: what can be restored differs");
        },
    );
    println!("{kills} kills");
    assert!(kills >= 20, "only {kills} steps were met");
    // The last of them is healed as an undisturbed one is.
    let session = case.fixture.session();
    let disk = case.disk.clone();
    case.fixture.backup_model(&session, "disk", &disk);
    drop(session);
    let after = case.fixture.check_all();
    assert!(after.is_clean(), "{after:?}");
}

/// A repository in which a collection has everything to do: packs condemned earlier that are to go, packs that nothing
/// needs, and packs that are half needed.
struct Garbage {
    fixture: RepoFixture,
    kept: ModelDisk,
    found: PathBuf,
}

impl Garbage {
    fn new() -> Self {
        let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
        let session = fixture.session();
        let kept = ModelDisk::scattered(3 << 20, 3, 1);
        let mut mixed = kept.clone();
        mixed.pages.extend(ModelDisk::scattered(3 << 20, 4, 2).pages);
        let condemned = fixture.backup_model(&session, "condemned", &ModelDisk::scattered(3 << 20, 4, 3)).snapshot.id;
        let mixed = fixture.backup_model(&session, "mixed", &mixed).snapshot.id;
        let needless = fixture.backup_model(&session, "needless", &ModelDisk::scattered(3 << 20, 4, 5)).snapshot.id;
        fixture.backup_model(&session, "kept", &kept);
        fixture.forget(&session, condemned);
        drop(session);
        // Its grace time has not come yet.
        run(cairn(&fixture.path()).args(["gc", "--max-waste", "100", "--grace", "1h"]));
        let session = fixture.session();
        for id in [mixed, needless] {
            fixture.forget(&session, id);
        }
        drop(session);
        let found = fixture.folder.path().join("found");
        copy(&fixture.path(), &found);
        Self { fixture, kept, found }
    }

    fn arguments() -> Vec<String> {
        strings(["gc", "--grace", "0s", "--max-waste", "0", "--json"])
    }

    fn collect(&self) -> Value {
        let output = run(cairn(&self.fixture.path()).args(Self::arguments()));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn check_kept(&self, when: &str) {
        let session = self.fixture.session();
        let id = session.repository.store.list_snapshots().unwrap()[0].id;
        let restored = restore_stream(&session, id, "kept", RestoreOptions::default());
        assert!(restored.unwrap().0 == self.kept.to_bytes(), "{when}: a live snapshot lost something");
    }
}

#[test]
fn a_collection_that_was_killed_at_any_step_loses_nothing_and_the_next_ones_leave_nothing() {
    let case = Garbage::new();
    let kills = kill_at_each_step(
        &CALLS,
        None,
        || {
            copy(&case.found, &case.fixture.path());
            (case.fixture.path(), Garbage::arguments())
        },
        |when| {
            case.check_kept(when);
            case.collect();
            case.collect();
            let rest = case.collect();
            for field in ["waste_bytes", "waiting_packs", "condemned_packs", "deleted_packs", "repacked_packs"] {
                assert_eq!(rest.get(field).unwrap_or(&0.into()), 0, "{when}: {rest}");
            }
            case.check_kept(when);
            let checked = case.fixture.check_all();
            assert!(checked.is_clean(), "{when}: {checked:?}");
        },
    );
    println!("{kills} kills");
    assert!(kills >= 20, "only {kills} steps were met");
}
