//! Object lock: a bucket whose objects cannot be deleted, somebody who tries, and time that passes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use repo_core::disk::Delivery;
use repo_core::entropy::Entropy;
use repo_core::monitor::{Recording, Silent};
use repo_core::ops::backup::{BackupOptions, DiskInput, backup};
use repo_core::ops::gc::{GcOptions, GcReport, gc};
use repo_core::ops::lock;
use repo_core::ops::open::{Session, open_session};
use repo_core::repository::Repository;
use repo_core::seal::Suite;
use repo_core::store::Store;
use repo_core::store::cloud::{self, CloudPlace, CloudSettings};
use repo_core::store::lock::{LockMode, LockTerms};
use repo_core::store::remote::RemoteOptions;
use repo_core::traffic::{Traffic, TrafficLimits};
use repo_tests::cli::{cairn, fails, json, run};
use repo_tests::fixture::unlock;
use repo_tests::model::ModelDisk;
use repo_tests::s3::{S3Server, is_lax, variables};
use serde_json::Value;
use tempfile::TempDir;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
const DAYS: u16 = 40;

/// Python that lists all versions and marks below the prefix `p/`.
const VERSIONS: &str = "pages = list(s3.get_paginator('list_object_versions').paginate(Bucket=bucket, Prefix='p/'))
versions = [v for page in pages for v in page.get('Versions', [])]
marks = [m for page in pages for m in page.get('DeleteMarkers', [])]
";

struct World {
    server: S3Server,
    home: TempDir,
}

impl World {
    fn new() -> Self {
        Self { server: S3Server::start().with_locks(), home: tempfile::tempdir().unwrap() }
    }

    fn place(&self) -> String {
        self.server.place("p")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn cairn(&self, arguments: &[&str]) -> Command {
        let mut command = cairn(Path::new(&self.place()));
        command.envs(variables(&self.server.address)).env("HOME", self.home.path());
        command.env("XDG_CACHE_HOME", self.path("cache")).args(arguments);
        command
    }

    fn import(&self, disk: &ModelDisk) -> Value {
        let image = self.path("disk.raw");
        disk.write_raw(&image);
        json(&mut self.cairn(&["import", image.to_str().unwrap(), "--vdi", "vdi"]))
    }

    fn restored(&self, snapshot: &str) -> Vec<u8> {
        let target = self.path("restored");
        let output = ["--format", "raw", "--output", target.to_str().unwrap(), "--force"];
        run(&mut self.cairn(&[&["restore", snapshot], &output[..]].concat()));
        std::fs::read(target).unwrap()
    }

    /// The store as seen by a clock that is ahead of the server's by some days, and the account of what is asked of it.
    fn store(&self, days: i64) -> (Store, Arc<Traffic>) {
        let values = variables(&self.server.address).map(|(name, value)| (name.to_ascii_lowercase(), value));
        let traffic = Arc::new(Traffic::new(TrafficLimits::default()));
        let mut values = values.to_vec();
        values.push(("aws_allow_http".to_owned(), "true".to_owned()));
        let settings = CloudSettings { values, retry_for: Duration::ZERO, traffic: traffic.clone() };
        let place = CloudPlace::parse(&self.place()).unwrap().unwrap();
        let objects = cloud::connect(&place, &settings).unwrap();
        let locks = cloud::locks(&place, &settings, now_ms() + days * DAY_MS);
        let store = Store::open_remote(objects, self.place(), RemoteOptions::default()).unwrap();
        (store.with_locks(locks), traffic)
    }

    fn session(&self, days: i64) -> (Session, Arc<Traffic>) {
        let (store, traffic) = self.store(days);
        let repository = Repository::open(store, &unlock(Suite::Aes256Gcm), Entropy::system()).unwrap();
        (open_session(repository, Some(&self.path("days")), &Silent).unwrap(), traffic)
    }

    /// Imports some days from now, and gives how many requests were neither reads nor writes: renewals.
    fn import_later(&self, days: i64, disk: &ModelDisk) -> u64 {
        let (session, traffic) = self.session(days);
        let disks = vec![DiskInput::new("vdi", disk.source(Delivery::Ascending))];
        let options = BackupOptions { level: 1, ..BackupOptions::new(now_ms() + days * DAY_MS) };
        let monitor = Recording::default();
        backup(&session, disks, &options, &monitor).unwrap();
        assert!(monitor.warnings.lock().is_empty(), "{:?}", monitor.warnings.lock());
        traffic.report().others
    }

    fn gc_later(&self, days: i64) -> GcReport {
        self.try_gc_later(days).unwrap()
    }

    fn try_gc_later(&self, days: i64) -> repo_core::Result<GcReport> {
        let options = GcOptions { grace_ms: 0, dead_share_max: 0.0, ..GcOptions::new(now_ms() + days * DAY_MS) };
        gc(&self.session(days).0, &options, &Silent)
    }

    /// Sets the end of all locks of packs, by the right to bypass governance.
    fn set_locks(&self, end: &str) {
        let code = "for v in versions:
    if '/packs/' in v['Key']:
        s3.put_object_retention(Bucket=bucket, Key=v['Key'], VersionId=v['VersionId'], BypassGovernanceRetention=True,
            Retention={'Mode': 'GOVERNANCE', 'RetainUntilDate': end})";
        self.server.boto(&format!("{VERSIONS}end = {end}\n{code}"));
    }

    /// How many versions there are of packs, and marks of deleted ones.
    fn pack_versions(&self) -> (u64, u64) {
        let code = "print(sum('/packs/' in v['Key'] for v in versions), sum('/packs/' in m['Key'] for m in marks))";
        let printed = self.server.boto(&format!("{VERSIONS}{code}"));
        let mut numbers = printed.split_whitespace().map(|number| number.parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    /// The day from now on which the first lock of a needed object ends; all of them are locked.
    fn first_end_day(&self, days: i64) -> i64 {
        let status = lock::status(&self.session(days).0, &Silent).unwrap();
        assert_eq!(status.unlocked, []);
        (status.first_end_ms.unwrap() - now_ms() + DAY_MS / 2) / DAY_MS
    }
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn disk(seed: u64) -> ModelDisk {
    ModelDisk::scattered(6 << 20, 3, seed)
}

fn id(imported: &Value) -> String {
    imported["snapshot"].as_str().unwrap_or_else(|| panic!("{imported}")).to_owned()
}

#[test]
fn what_somebody_with_all_credentials_deletes_and_overwrites_comes_back() {
    if is_lax() {
        return;
    }
    let world = World::new();
    let made = json(&mut world.cairn(&["init", "--lock-days", "30"]));
    assert_eq!(made["lock"], serde_json::json!({ "days": 30, "mode": "governance" }));
    let first = id(&world.import(&disk(1)));
    let second = id(&world.import(&disk(2)));
    run(&mut world.cairn(&["tag", &second, "--add", "monthly"]));
    let locked = json(&mut world.cairn(&["lock"]));
    assert_eq!(locked["unlocked"], serde_json::json!([]), "{locked}");
    assert!(locked["packs"].as_u64().unwrap() >= 4, "{locked}");

    // No version of anything that matters can be deleted, with the very credentials that wrote it.
    let code = "kept = 0
for v in versions:
    if any(part in v['Key'] for part in ['/leases/', '/renewals/', '/revoked/', '/tombstones/', '/probe/']): continue
    try:
        s3.delete_object(Bucket=bucket, Key=v['Key'], VersionId=v['VersionId'])
        print('deleted', v['Key'])
    except botocore.exceptions.ClientError as error:
        assert 'AccessDenied' in str(error), error
        kept += 1
print(kept > 8)";
    assert_eq!(world.server.boto(&format!("{VERSIONS}{code}")), "True\n");
    // But all can be covered.
    let code = "keys = sorted({v['Key'] for v in versions})
for n, key in enumerate(k for k in keys if '/packs/' in k or k.endswith('/config')):
    if n % 2 == 0: s3.put_object(Bucket=bucket, Key=key, Body=b'ransom', ChecksumAlgorithm='SHA256')
for n, key in enumerate(keys):
    if '/packs/' not in key or n % 3 == 0: s3.delete_object(Bucket=bucket, Key=key)";
    world.server.boto(&format!("{VERSIONS}{code}"));
    fails(&mut world.cairn(&["snapshots"]));

    let (found, done) = (
        json(&mut world.cairn(&["undelete", "--dry-run"])),
        json(&mut world.cairn(&["undelete", "--since", "1 hour ago"])),
    );
    assert_eq!(found["objects"], done["objects"]);
    assert_eq!(done["failed"], serde_json::json!([]));
    let befell =
        |what: &str| done["objects"].as_array().unwrap().iter().filter(|object| object["befell"] == what).count();
    assert!(befell("deleted") >= 5 && befell("replaced") >= 1, "{done}");
    assert_eq!(json(&mut world.cairn(&["undelete"]))["objects"], serde_json::json!([]), "it is as it was");
    run(&mut world.cairn(&["check", "--read-data"]));
    assert_eq!(world.restored(&first), disk(1).to_bytes());
    assert_eq!(world.restored(&second), disk(2).to_bytes());
    let shown = json(&mut world.cairn(&["show", &second]));
    assert!(shown.to_string().contains("monthly"), "{shown}");
    // What covers other bytes again is locked, too.
    assert_eq!(json(&mut world.cairn(&["lock"]))["unlocked"], serde_json::json!([]));
}

#[test]
fn a_removed_passphrase_does_not_come_back_unless_it_is_asked_for() {
    if is_lax() {
        return;
    }
    let world = World::new();
    run(&mut world.cairn(&["init", "--lock-days", "30"]));
    let other = world.path("other");
    std::fs::write(&other, "another passphrase\n").unwrap();
    let new = ["key", "add", "--label", "other", "--new-passphrase-file", other.to_str().unwrap()];
    let added = json(&mut world.cairn(&new));
    run(&mut world.cairn(&["key", "remove", added["key"].as_str().unwrap()]));
    let undeleted = json(&mut world.cairn(&["undelete"]));
    assert_eq!((&undeleted["slots_left"], undeleted["objects"].as_array().unwrap().len()), (&Value::from(1), 0));
    assert_eq!(json(&mut world.cairn(&["key", "list"])).as_array().unwrap().len(), 1);
    json(&mut world.cairn(&["undelete", "--keys"]));
    assert_eq!(json(&mut world.cairn(&["key", "list"])).as_array().unwrap().len(), 2);
}

#[test]
fn collection_waits_for_locks_to_end_and_then_deletes_every_version() {
    if is_lax() {
        return;
    }
    let world = World::new();
    run(&mut world.cairn(&["init", "--lock-days", &DAYS.to_string()]));
    let first = id(&world.import(&disk(1)));
    world.import(&disk(2));
    let (before, _) = world.pack_versions();
    run(&mut world.cairn(&["forget", &first]));
    let collected = json(&mut world.cairn(&["gc", "--grace", "0s", "--max-waste", "0"]));
    let locked = collected["locked_packs"].as_u64().unwrap();
    assert!(locked >= 2 && collected["condemned_packs"] == 0 && collected["deleted_packs"] == 0, "{collected}");
    assert!(collected["unlocked_from"].is_string(), "{collected}");
    assert_eq!(world.pack_versions(), (before, 0));

    // The store keeps its promise even if somebody's clock is wrong.
    let early = world.try_gc_later(i64::from(DAYS) + 1).unwrap_err();
    assert!(early.to_string().contains("whose locks are over by this machine's clock"), "{early}");
    // Somebody locked them for longer since.
    world.set_locks("datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=100)");
    let longer = world.gc_later(i64::from(DAYS) + 2);
    assert_eq!((longer.deleted_packs, longer.waiting_packs), (0, locked), "{longer:?}");
    assert_eq!(world.pack_versions(), (before, 0));
    // No store takes an end that is over.
    world.set_locks("datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=2)");
    let until = Instant::now() + Duration::from_secs(60);
    while world.pack_versions() != (before - locked, 0) {
        assert!(Instant::now() < until, "{:?}, {before}, {locked}", world.pack_versions());
        // Refused as long as one lock is not over; what went before that is gone.
        let _ = world.try_gc_later(i64::from(DAYS) + 3);
    }
    let done = world.gc_later(i64::from(DAYS) + 4);
    assert_eq!((done.deleted_packs, done.waiting_packs), (0, 0), "{done:?}");
    assert_eq!(world.pack_versions(), (before - locked, 0));
    run(&mut world.cairn(&["check", "--read-data"]));
}

#[test]
fn what_is_needed_stays_locked_for_half_of_the_days_and_nothing_is_asked_in_the_steady_state() {
    if is_lax() {
        return;
    }
    let world = World::new();
    run(&mut world.cairn(&["init", "--lock-days", &DAYS.to_string()]));
    world.import_later(0, &disk(1));
    assert_eq!(world.first_end_day(0), 40);
    // Within a quarter of the days nothing is renewed.
    let mut changed = disk(1);
    for day in 1..=9 {
        changed.pages.insert(day as u64, 100 + day as u32);
        assert_eq!(world.import_later(day, &changed), 0, "day {day}");
    }
    assert_eq!(world.first_end_day(9), 40);
    // After it all is that is still needed.
    changed.pages.insert(100, 7);
    assert!(world.import_later(11, &changed) > 0);
    assert_eq!(world.first_end_day(11), 51);
    for day in (15..=90).step_by(5) {
        changed.pages.insert(50, 1000 + day as u32);
        world.import_later(day, &changed);
        assert!(world.first_end_day(day) >= day + 20, "day {day}");
    }
    // Collection looks after all locks, whenever that was done last.
    world.gc_later(105);
    assert!(world.first_end_day(105) >= 105 + 30);
}

#[test]
fn terms_that_were_taken_away_still_count_for_who_knew_them() {
    if is_lax() {
        return;
    }
    let world = World::new();
    run(&mut world.cairn(&["init"]));
    world.import(&disk(1));
    let (code, text) = fails(&mut world.cairn(&["lock"]));
    assert!(code == 1 && text.contains("is not locked") && text.contains("cairn lock --days"), "{text}");
    let locked = json(&mut world.cairn(&["lock", "--days", "7"]));
    assert!(locked["objects"] == locked["renewed"] && locked["objects"].as_u64().unwrap() >= 4, "{locked}");
    run(&mut world.cairn(&["lock", "--days", "14"]));
    let status = json(&mut world.cairn(&["lock"]));
    assert_eq!((&status["lock"]["days"], &status["unlocked"]), (&Value::from(14), &serde_json::json!([])));

    // Terms that once were there are no secret: stored again by an outsider they count, and everybody is told.
    let code = "name = [v['Key'] for v in versions if '/locks/governance-14-' in v['Key']][0]
old = [v for v in versions if '/locks/governance-7-' in v['Key']][-1]
body = s3.get_object(Bucket=bucket, Key=old['Key'], VersionId=old['VersionId'])['Body'].read()
s3.put_object(Bucket=bucket, Key=old['Key'], Body=body, ChecksumAlgorithm='SHA256')
s3.delete_object(Bucket=bucket, Key=name)";
    world.server.boto(&format!("{VERSIONS}{code}"));
    let output = run(&mut world.cairn(&["lock"]));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("7 days, governance, and not 14 days"), "{text}");
    run(&mut world.cairn(&["lock", "--days", "14"]));

    let code = "for v in versions:
    if '/locks/' in v['Key']: s3.delete_object(Bucket=bucket, Key=v['Key'])";
    world.server.boto(&format!("{VERSIONS}{code}"));
    let image = world.path("disk.raw");
    disk(2).write_raw(&image);
    let output = run(&mut world.cairn(&["import", image.to_str().unwrap(), "--vdi", "other"]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("was taken away"), "{output:?}");
    run(&mut world.cairn(&["undelete"]));
    assert_eq!(json(&mut world.cairn(&["lock"]))["unlocked"], serde_json::json!([]));
}

#[test]
fn a_bucket_without_locks_is_not_trusted_with_them() {
    let server = S3Server::start();
    let home = tempfile::tempdir().unwrap();
    let run_in = |repository: &str, arguments: &[&str]| {
        let mut command = cairn(Path::new(repository));
        command.envs(variables(&server.address)).env("HOME", home.path()).env("XDG_CACHE_HOME", home.path());
        command.args(arguments);
        command
    };
    let place = server.place("plain");
    let (code, text) = fails(&mut run_in(&place, &["init", "--lock-days", "30"]));
    assert!(code == 1 && text.contains("has no object lock") && text.contains("make a bucket"), "{text}");
    run(&mut run_in(&place, &["init"]));
    let (_, text) = fails(&mut run_in(&place, &["lock", "--days", "30"]));
    assert!(text.contains("has no object lock"), "{text}");
    let folder = home.path().join("r");
    let (code, text) = fails(&mut run_in(folder.to_str().unwrap(), &["init", "--lock-days", "30"]));
    assert!(code == 2 && text.contains("takes a repository on S3"), "{text}");
    run(&mut run_in(folder.to_str().unwrap(), &["init"]));
    let (_, text) = fails(&mut run_in(folder.to_str().unwrap(), &["lock", "--days", "30"]));
    assert!(text.contains("nothing can be locked"), "{text}");
    let (_, text) = fails(&mut run_in(folder.to_str().unwrap(), &["undelete"]));
    assert!(text.contains("nothing can be locked"), "{text}");
}

#[test]
fn what_was_locked_for_good_cannot_be_locked_less() {
    if is_lax() {
        return;
    }
    let world = World::new();
    run(&mut world.cairn(&["init", "--lock-days", "1", "--lock-mode", "compliance"]));
    let (_, text) = fails(&mut world.cairn(&["lock", "--days", "9"]));
    assert!(text.contains("compliance mode stays so"), "{text}");
    let (session, _) = world.session(0);
    let terms = LockTerms { mode: LockMode::Compliance, days: 2 };
    lock::change(&session, terms, &Entropy::system(), &Silent).unwrap();
    assert_eq!(session.repository.store.lock_terms(), Some(terms));
}
