//! Damage of every kind in every kind of object: found, named, never restored silently.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use repo_core::Result;
use repo_core::annotation;
use repo_core::disk::{self, FormatHint, SourceOptions};
use repo_core::entropy::Entropy;
use repo_core::id::SnapshotId;
use repo_core::monitor::Silent;
use repo_core::ops::backup::{BackupOptions, DiskInput, backup};
use repo_core::ops::check::{CheckOptions, CheckReport, check};
use repo_core::ops::open::{Session, open_session};
use repo_core::ops::repair::repair;
use repo_core::ops::restore::RestoreOptions;
use repo_core::repository::Repository;
use repo_core::seal::Suite;
use repo_core::store::Store;
use repo_tests::fixture::{RepoFixture, restore_stream, unlock};
use repo_tests::model::ModelDisk;

/// A repository with three snapshots of two disks, and what is in them.
struct Subject {
    fixture: RepoFixture,
    suite: Suite,
    snapshots: Vec<(SnapshotId, &'static str, Vec<u8>)>,
}

impl Subject {
    fn new(suite: Suite) -> Self {
        let mut fixture = RepoFixture::small(suite);
        let session = fixture.session();
        let mut first = ModelDisk::scattered(6_000_100, 4, 1);
        let other = ModelDisk::scattered(3 << 20, 3, 2);
        let mut snapshots = Vec::new();
        for (vdi, disk) in [("a", first.clone()), ("b", other)] {
            let id = fixture.backup_model(&session, vdi, &disk).snapshot.id;
            snapshots.push((id, vdi, disk.to_bytes()));
        }
        first.pages.extend((200..260).map(|page| (page, 77_000 + page as u32)));
        let last = fixture.backup_model(&session, "a", &first).snapshot;
        annotation::annotate(&session.repository, &last, 1, |remarks| remarks.protected = true).unwrap();
        snapshots.push((last.id, "a", first.to_bytes()));
        drop(session);
        Self { fixture, suite, snapshots }
    }

    /// Objects of the repository, by path below its folder.
    fn objects(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(self.fixture.path().join(&folder)).unwrap() {
                let entry = entry.unwrap();
                let path = folder.join(entry.file_name());
                match entry.file_type().unwrap().is_dir() {
                    true if path != Path::new("index") && path != Path::new("tmp") => folders.push(path),
                    false => found.push(path),
                    _ => {}
                }
            }
        }
        found.sort();
        found
    }

    /// A copy of the repository with its index, or without.
    fn copy(&self, with_index: bool) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        let status = std::process::Command::new("cp").arg("-r").arg(self.fixture.path()).arg(copy.path()).status();
        assert!(status.unwrap().success());
        if !with_index {
            std::fs::remove_dir_all(copy.path().join("repository/index")).unwrap();
        }
        copy
    }

    fn open(&self, copy: &tempfile::TempDir) -> Result<Session> {
        let store = Store::open_local(&copy.path().join("repository"))?;
        open_session(Repository::open(store, &unlock(self.suite), Entropy::system())?, None, &Silent)
    }

    /// Restores everything: each snapshot comes back exactly, or fails. How many came back.
    fn restorable(&self, session: &Session, what: &str) -> usize {
        let mut count = 0;
        for (id, vdi, expected) in &self.snapshots {
            match restore_stream(session, *id, vdi, RestoreOptions::default()) {
                Ok((bytes, _)) => {
                    assert!(bytes == *expected, "{what}: wrong bytes were restored silently");
                    count += 1;
                }
                Err(error) => assert!(error.is_loss(), "{what}: not called damage: {error:?}"),
            }
        }
        count
    }

    /// Damages one object of a copy, and demands that opening or checking finds it and names it.
    fn try_damage(&self, object: &Path, with_index: bool, what: &str, damage: impl FnOnce(&Path)) {
        let what = format!("{} {what}, index {with_index}", object.display());
        let copy = self.copy(with_index);
        damage(&copy.path().join("repository").join(object));
        let session = match self.open(&copy) {
            Ok(session) => session,
            Err(error) => {
                let vital = object == Path::new("config") || object.starts_with("keys");
                assert!(vital, "{what}: the repository does not open: {error:?}");
                assert!(error.is_loss(), "{what}: {error:?}");
                return;
            }
        };
        let restorable = self.restorable(&session, &what);
        let report = check(&session, CheckOptions { read_data: true }, &Silent).unwrap();
        self.assert_named(&report, object, &what);
        if object.starts_with("packs") {
            // Whom it hits is told exactly: the snapshots that do not restore.
            assert_eq!(report.affected.len(), self.snapshots.len() - restorable, "{what}: {report:?}");
            self.heal(session, &report, &what);
        }
    }

    /// Moves damaged packs to quarantine and imports the same disks again: every snapshot is whole.
    fn heal(&self, session: Session, report: &CheckReport, what: &str) {
        let repaired = repair(&session, report, &Silent).unwrap();
        let moved = if what.contains("deleted") { 0 } else { 1 };
        assert_eq!(repaired.quarantined.len(), moved, "{what}: {repaired:?}");
        let raw = SourceOptions { format: FormatHint::Raw, ..SourceOptions::default() };
        for (_, vdi, bytes) in &self.snapshots {
            let source = disk::open_stream(Cursor::new(bytes.clone()), &raw).unwrap();
            let disks = vec![DiskInput::new(*vdi, source)];
            backup(&session, disks, &BackupOptions { level: 1, ..BackupOptions::new(5_000_000) }, &Silent).unwrap();
        }
        assert_eq!(self.restorable(&session, what), self.snapshots.len(), "{what}: not healed");
        let healed = check(&session, CheckOptions { read_data: true }, &Silent).unwrap();
        assert!(healed.is_clean(), "{what}: {healed:?}");
    }

    fn assert_named(&self, report: &CheckReport, object: &Path, what: &str) {
        let object = object.to_str().unwrap();
        let deleted_snapshot = object.starts_with("snapshots") && what.contains("deleted");
        let deleted_slot = object.starts_with("keys") && what.contains("deleted");
        let deleted_annotation = object.starts_with("snapshots/annotations") && what.contains("deleted");
        // A record that is gone leaves no trace: its absence is the same as its never having been.
        if deleted_snapshot || deleted_slot || deleted_annotation {
            return;
        }
        assert!(!report.is_clean(), "{what}: check found nothing");
        let named = report.damages.iter().any(|damage| damage.object == object);
        assert!(named, "{what}: check did not name it: {:?}", report.damages);
    }
}

/// Places to flip a byte: all of a small object's structure, and a spread over the rest.
fn places(len: u64) -> Vec<u64> {
    let spread = (0..12).map(|step| step * len / 12);
    let edges = [0, 5, 6, 8, 16, 17, 18, 20, 32, 63, 64, 80];
    let tail = [1, 8, 9, 16, 24, 28, 32, 33, 48, 49, 100].map(|back| len.saturating_sub(back));
    let mut places: Vec<u64> = spread.chain(edges).chain(tail).filter(|at| *at < len).collect();
    places.sort_unstable();
    places.dedup();
    places
}

fn flip(path: &Path, at: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at as usize] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}

fn campaign(suite: Suite) {
    let subject = Subject::new(suite);
    let objects = subject.objects();
    for kind in ["config", "keys", "packs", "snapshots", "snapshots/annotations"] {
        assert!(objects.iter().any(|object| object.starts_with(kind)), "the subject has no {kind}");
    }
    for (number, object) in objects.iter().enumerate() {
        let len = std::fs::metadata(subject.fixture.path().join(object)).unwrap().len();
        for (round, at) in places(len).into_iter().enumerate() {
            // Of many packs alike, each gets some of the places.
            if object.starts_with("packs") && round % objects.len().min(6) != number % 6 {
                continue;
            }
            subject.try_damage(object, round % 2 == 0, &format!("flipped at {at} of {len}"), |path| flip(path, at));
        }
        for cut in [0, len / 2, len - 1] {
            subject.try_damage(object, cut % 2 == 0, &format!("cut to {cut}"), |path| {
                let bytes = std::fs::read(path).unwrap();
                std::fs::write(path, &bytes[..cut as usize]).unwrap();
            });
        }
        for with_index in [false, true] {
            subject.try_damage(object, with_index, "deleted", |path| std::fs::remove_file(path).unwrap());
        }
    }
}

#[test]
fn every_kind_of_damage_is_found_and_named_in_an_encrypted_repository() {
    campaign(Suite::Aes256Gcm);
}

#[test]
fn every_kind_of_damage_is_found_and_named_in_an_unencrypted_repository() {
    campaign(Suite::None);
}

#[test]
fn going_on_past_damage_restores_all_but_the_holes_it_lists() {
    let subject = Subject::new(Suite::Aes256Gcm);
    let packs: Vec<_> = subject.objects().into_iter().filter(|object| object.starts_with("packs")).collect();
    for pack in packs {
        let copy = subject.copy(true);
        let path = copy.path().join("repository").join(&pack);
        let len = std::fs::metadata(&path).unwrap().len();
        flip(&path, (len / 3).max(64));
        let session = subject.open(&copy).unwrap();
        let report = check(&session, CheckOptions { read_data: true }, &Silent).unwrap();
        for (id, vdi, expected) in &subject.snapshots {
            let options = RestoreOptions { keep_going: true };
            let (mut bytes, restored) = restore_stream(&session, *id, vdi, options).unwrap();
            let affected: Vec<_> = report
                .affected
                .iter()
                .filter(|affected| affected.snapshot == *id)
                .flat_map(|a| a.ranges.clone())
                .collect();
            assert_eq!(restored.holes, affected, "restore and check disagree about {}", pack.display());
            for hole in &restored.holes {
                let hole = hole.start as usize..hole.end as usize;
                assert!(bytes[hole.clone()].iter().all(|byte| *byte == 0));
                bytes[hole.clone()].copy_from_slice(&expected[hole]);
            }
            assert!(bytes == *expected, "something outside the holes is wrong");
        }
    }
}
