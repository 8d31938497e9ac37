//! A snapshot's later life: remarks, retention, forgetting; and the repository's: reading in shares, repair.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use repo_core::annotation;
use repo_core::id::SnapshotId;
use repo_core::monitor::Silent;
use repo_core::ops::check::cursor::Share;
use repo_core::ops::check::{CheckOptions, check, check_share};
use repo_core::ops::forget::{Request, Scope, Times, forget, plan};
use repo_core::ops::repair::{RepairReport, repair};
use repo_core::ops::restore::RestoreOptions;
use repo_core::remarks::Remarks;
use repo_core::retention::calendar::{Clock, Period};
use repo_core::retention::{Policy, Reach, Rule};
use repo_core::seal::Suite;
use repo_core::snapshot::{self, NamedSnapshot, Snapshot};
use repo_core::store::ObjectName;
use repo_tests::cli::{cairn, fails, json, run};
use repo_tests::fixture::{RepoFixture, first_frame_offset, restore_stream};
use repo_tests::model::ModelDisk;

const UTC: Clock<'static> = Clock { now_ms: 2_000_000_000_000, offset: &|_| 0 };
const DAY_MS: i64 = 86_400_000;

fn remarks(tags: &[&str], note: Option<&str>, protected: bool) -> Remarks {
    Remarks { tags: tags.iter().map(|tag| (*tag).to_owned()).collect(), note: note.map(str::to_owned), protected }
}

/// Stores records alike, as if a backup of nothing new had been made at each time.
fn commit_like(fixture: &RepoFixture, like: &Snapshot, times_ms: impl Iterator<Item = i64>) -> Vec<NamedSnapshot> {
    let session = fixture.session();
    times_ms
        .map(|time_ms| {
            snapshot::commit(&session.repository, &session.index, Snapshot { time_ms, ..like.clone() }).unwrap()
        })
        .collect()
}

fn daily(count: u32) -> Request {
    let rules = vec![Rule { period: Period::Day, reach: Reach::Count(count) }];
    Request::Policy { policy: Policy { rules, ..Policy::default() }, scope: Scope::default(), times: Times::Recorded }
}

fn named(snapshots: impl IntoIterator<Item = SnapshotId>, allow_last: bool) -> Request {
    Request::Named { snapshots: snapshots.into_iter().collect(), allow_last }
}

fn left(fixture: &RepoFixture) -> BTreeSet<SnapshotId> {
    let session = fixture.session();
    session.repository.store.list_snapshots().unwrap().into_iter().map(|listed| listed.id).collect()
}

/// A repository with one disk `a` of one snapshot.
fn one_disk() -> (RepoFixture, NamedSnapshot, ModelDisk) {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let disk = ModelDisk::scattered(5_000_100, 4, 1);
    let session = fixture.session();
    let snapshot = fixture.backup_model(&session, "a", &disk).snapshot;
    drop(session);
    (fixture, snapshot, disk)
}

#[test]
fn remarks_follow_one_another_and_leave_one_annotation() {
    let (fixture, named, _) = one_disk();
    let repository = &fixture.session().repository;
    let now = |repository| annotation::read_all(repository).unwrap().0.remarks(&named).into_owned();
    assert_eq!(now(repository), Remarks::default());
    annotation::annotate(repository, &named, 5, |remarks| remarks.tags.extend(["gold".to_owned()])).unwrap();
    annotation::annotate(repository, &named, 4, |remarks| remarks.protected = true).unwrap();
    annotation::annotate(repository, &named, 3, |remarks| remarks.note = Some("why".to_owned())).unwrap();
    assert_eq!(now(repository), remarks(&["gold"], Some("why"), true));
    assert_eq!(repository.store.list_annotations().unwrap().len(), 1);
    let listed = repository.store.list_annotations().unwrap();
    annotation::annotate(repository, &named, 9, |remarks| remarks.protected = true).unwrap();
    assert_eq!(repository.store.list_annotations().unwrap(), listed, "nothing changed, nothing is written");
    let too_long = annotation::annotate(repository, &named, 9, |remarks| remarks.note = Some("x".repeat(5000)));
    assert!(too_long.is_err());
    assert!(fixture.check_all().is_clean());
}

#[test]
fn the_folder_of_annotations_is_made_when_it_is_needed() {
    let (fixture, named, _) = one_disk();
    let folder = fixture.path().join("snapshots/annotations");
    assert!(!folder.exists() && fixture.check_all().is_clean());
    let repository = &fixture.session().repository;
    assert_eq!(annotation::read_all(repository).unwrap().1.len(), 0);
    annotation::annotate(repository, &named, 1, |remarks| remarks.protected = true).unwrap();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

/// A writer killed between storing the new annotation and deleting the old one leaves both: the new one counts.
#[test]
fn an_annotation_that_was_replaced_and_is_still_there_does_not_count() {
    let (fixture, named, _) = one_disk();
    let repository = &fixture.session().repository;
    let folder = fixture.path().join("snapshots/annotations");
    annotation::annotate(repository, &named, 1, |remarks| remarks.protected = true).unwrap();
    let old = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&old).unwrap();
    annotation::annotate(repository, &named, 2, |remarks| remarks.protected = false).unwrap();
    assert!(!old.exists());
    std::fs::write(&old, bytes).unwrap();
    let (annotations, _) = annotation::read_all(repository).unwrap();
    assert!(!annotations.remarks(&named).protected);
    annotation::annotate(repository, &named, 3, |remarks| remarks.tags.extend(["x".to_owned()])).unwrap();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "the next writer clears both");
}

#[test]
fn a_damaged_annotation_is_found_and_stops_forgetting_until_it_is_moved_away() {
    let (fixture, first, _) = one_disk();
    commit_like(&fixture, &first.snapshot, [first.snapshot.time_ms + 1].into_iter());
    annotation::annotate(&fixture.session().repository, &first, 1, |remarks| remarks.protected = true).unwrap();
    let path = std::fs::read_dir(fixture.path().join("snapshots/annotations")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[60] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let session = fixture.session();
    assert!(forget(&session.repository, &daily(1), &UTC, &Silent).unwrap_err().is_damage());
    let found = check(&session, CheckOptions::default(), &Silent).unwrap();
    assert!(found.damages.len() == 1 && found.damages[0].object.starts_with("snapshots/annotations/"), "{found:?}");
    let report = repair(&session, &found, &Silent).unwrap();
    assert_eq!(report.quarantined.len(), 1);
    assert!(report.after.is_clean());
    forget(&session.repository, &daily(1), &UTC, &Silent).unwrap();
    assert_eq!(session.repository.store.list_snapshots().unwrap().len(), 1);
}

#[test]
fn a_damaged_record_that_the_index_has_read_is_healed_and_another_is_moved_away() {
    let (fixture, first, disk) = one_disk();
    let flip = || {
        let path = fixture.path().join(ObjectName::Snapshot(first.id).path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[60] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    let session = fixture.session();
    assert_eq!(session.snapshots(&Silent).unwrap().0.len(), 1);
    flip();
    let found = check(&session, CheckOptions::default(), &Silent).unwrap();
    assert_eq!(found.damages.len(), 1, "what the index keeps hides no damage: {found:?}");
    let report = repair(&session, &found, &Silent).unwrap();
    assert_eq!((report.quarantined.len(), report.healed_records), (1, 1));
    assert!(report.after.is_clean());
    assert!(restore_stream(&session, first.id, "a", RestoreOptions::default()).unwrap().0 == disk.to_bytes());

    // A replica that never read the record has nothing to heal it with.
    flip();
    let other = fixture.session();
    let found = check(&other, CheckOptions::default(), &Silent).unwrap();
    let report = repair(&other, &found, &Silent).unwrap();
    assert_eq!((report.quarantined.len(), report.healed_records), (1, 0));
    assert!(left(&fixture).is_empty());
}

#[test]
fn a_policy_forgets_what_it_does_not_keep_and_doing_it_again_does_nothing() {
    let (fixture, first, disk) = one_disk();
    let times = (0..40).map(|step| 1_700_000_000_000 + step * DAY_MS / 2);
    let all = commit_like(&fixture, &first.snapshot, times);
    let session = fixture.session();
    annotation::annotate(&session.repository, &all[3], 1, |remarks| remarks.protected = true).unwrap();
    annotation::annotate(&session.repository, &all[4], 1, |remarks| remarks.tags.extend(["x".to_owned()])).unwrap();
    let dry = plan(&session.repository, &daily(7), &UTC).unwrap();
    assert_eq!(left(&fixture).len(), 41, "a plan changes nothing");
    let done = forget(&session.repository, &daily(7), &UTC, &Silent).unwrap();
    let ids = |plan: &repo_core::ops::forget::Plan| plan.forgotten().map(|one| one.id).collect::<BTreeSet<_>>();
    assert_eq!(ids(&dry), ids(&done));
    let kept = left(&fixture);
    assert_eq!(kept.len(), 8, "seven days and the protected one");
    assert!(kept.contains(&all[3].id) && kept.contains(&all[39].id));
    assert_eq!(session.repository.store.list_annotations().unwrap().len(), 1, "those of forgotten snapshots go too");
    assert_eq!(forget(&session.repository, &daily(7), &UTC, &Silent).unwrap().forgotten().count(), 0);
    for id in kept {
        assert!(restore_stream(&session, id, "a", RestoreOptions::default()).unwrap().0 == disk.to_bytes());
    }
    drop(session);
    assert!(fixture.check_all().is_clean());
}

#[test]
fn a_snapshot_of_several_disks_goes_only_when_all_let_it_go() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let session = fixture.session();
    let disk = ModelDisk::scattered(1 << 20, 2, 1);
    let both = fixture.backup(&session, vec![("a", disk.stream()), ("b", disk.stream())]).unwrap().snapshot;
    drop(session);
    let only_a = Snapshot { disks: both.snapshot.disks[..1].to_vec(), ..both.snapshot.clone() };
    let later = commit_like(&fixture, &only_a, [both.snapshot.time_ms + 2 * DAY_MS].into_iter());
    let repository = &fixture.session().repository;
    // For `a` the older one may go, for `b` it is the newest.
    let plan_all = plan(repository, &daily(1), &UTC).unwrap();
    assert_eq!(plan_all.forgotten().count(), 0);
    let reasons: BTreeMap<_, _> =
        plan_all.snapshots[0].disks.iter().map(|disk| (disk.vdi.as_str(), disk.reasons.len())).collect();
    assert_eq!(reasons, BTreeMap::from([("a", 0), ("b", 1)]));
    let Request::Policy { policy, .. } = daily(1) else { unreachable!() };
    let scope = |vdi: &str| Scope { vdis: [vdi.to_owned()].into(), vm: None };
    let only = |vdi: &str| {
        plan(repository, &Request::Policy { policy: policy.clone(), scope: scope(vdi), times: Times::Recorded }, &UTC)
    };
    assert_eq!(only("a").unwrap().forgotten().count(), 0, "b is not selected");
    assert_eq!(only("b").unwrap().snapshots.len(), 1);
    assert!(only("c").unwrap_err().to_string().contains("no snapshot with VDI c"));
    let named_both = forget(repository, &named([both.id], false), &UTC, &Silent).unwrap_err();
    assert!(named_both.to_string().contains("no snapshot of VDI b would be left"), "{named_both}");
    forget(repository, &named([both.id], true), &UTC, &Silent).unwrap();
    assert_eq!(left(&fixture), BTreeSet::from([later[0].id]));
}

/// Records that share one tree, as a disk that never changes makes them. The time goes to the output: run with --nocapture.
#[test]
fn ten_thousand_snapshots_are_forgotten_in_seconds() {
    let (fixture, first, _) = one_disk();
    let session = fixture.session();
    let folder = fixture.path().join("snapshots");
    // Written without waiting for the disk: what is measured is forgetting.
    for step in 0..9_999_i64 {
        let record = Snapshot { time_ms: 1_700_000_000_000 + step * 3_600_000, ..first.snapshot.clone() };
        let (id, bytes) = snapshot::seal(&session.repository, &record).unwrap();
        std::fs::write(folder.join(id.to_hex()), bytes).unwrap();
    }
    let start = std::time::Instant::now();
    let dry = plan(&session.repository, &daily(30), &UTC).unwrap();
    let planned = start.elapsed();
    assert_eq!(dry.snapshots.len(), 10_000);
    let start = std::time::Instant::now();
    forget(&session.repository, &daily(30), &UTC, &Silent).unwrap();
    println!("10,000 snapshots: planned in {planned:?}, planned and forgotten in {:?}", start.elapsed());
    assert_eq!(session.repository.store.list_snapshots().unwrap().len(), 30);
    assert!(start.elapsed().as_secs() < 60);
}

fn flip(path: &Path, at: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at as usize] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}

fn first_frame(path: &Path) -> u64 {
    first_frame_offset(&std::fs::read(path).unwrap()) as u64
}

fn packs(fixture: &RepoFixture) -> Vec<PathBuf> {
    let listed = fixture.session().repository.store.list_packs().unwrap();
    let path = |id| fixture.path().join(repo_core::store::ObjectName::Pack(id).path());
    listed.into_iter().map(|pack| path(pack.id)).collect()
}

fn check_and_repair(fixture: &RepoFixture) -> RepairReport {
    let session = fixture.session();
    let found = check(&session, CheckOptions { read_data: true }, &Silent).unwrap();
    assert!(!found.damages.is_empty());
    repair(&session, &found, &Silent).unwrap()
}

/// For each pack, and damage in its first frame, in the middle and in its directory: what can be saved is, and the same disks
/// imported again make every snapshot whole.
#[test]
fn damage_is_quarantined_and_an_import_of_the_same_disk_heals_every_snapshot() {
    for suite in [Suite::Aes256Gcm, Suite::None] {
        for place in 0..3 {
            let mut fixture = RepoFixture::small(suite);
            let session = fixture.session();
            let old = ModelDisk::scattered(6_000_100, 3, 1);
            let mut new = old.clone();
            new.pages.extend((200..260).map(|page| (page, 77_000 + page as u32)));
            let ids = [&old, &new].map(|disk| fixture.backup_model(&session, "a", disk).snapshot.id);
            drop(session);
            let packs = packs(&fixture);
            assert!(packs.len() > 4);
            let untouched = packs.len() / 2;
            for (at, path) in packs.iter().enumerate().filter(|(at, _)| *at != untouched) {
                let len = std::fs::metadata(path).unwrap().len();
                let where_in = [first_frame(path) + 6, len / 2 - at as u64, len - 100][place];
                flip(path, where_in);
            }
            let report = check_and_repair(&fixture);
            assert_eq!(report.quarantined.len(), packs.len() - 1, "{report:?}");
            for moved in &report.quarantined {
                assert!(!fixture.path().join(&moved.object).exists());
                assert!(fixture.path().join(&moved.to).exists());
            }
            assert_eq!(report.copied_bytes > 0, place < 2, "a pack without a directory saves nothing");
            assert!(!report.after.is_clean(), "something is lost");

            let session = fixture.session();
            for disk in [&old, &new] {
                fixture.backup_model(&session, "a", disk);
            }
            for (id, disk) in ids.iter().zip([&old, &new]) {
                let restored = restore_stream(&session, *id, "a", RestoreOptions::default()).unwrap();
                assert!(restored.0 == disk.to_bytes(), "{id} is not healed");
            }
            drop(session);
            let after = fixture.check_all();
            assert!(after.is_clean(), "{after:?}");
        }
    }
}

#[test]
fn one_damaged_frame_costs_no_other_and_a_sound_repository_is_not_touched() {
    let (fixture, snapshot, disk) = one_disk();
    let clean = fixture.check_all();
    let report = repair(&fixture.session(), &clean, &Silent).unwrap();
    assert!(report.quarantined.is_empty() && report.new_packs.is_empty() && report.after.is_clean());
    // Reported as damage while it was out of reach, and sound when it is looked at again.
    let path = packs(&fixture).into_iter().max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    let at = first_frame(&path) + 36;
    flip(&path, at);
    let session = fixture.session();
    let found = check(&session, CheckOptions { read_data: true }, &Silent).unwrap();
    flip(&path, at);
    let report = repair(&session, &found, &Silent).unwrap();
    assert!(report.quarantined.is_empty() && path.exists());
    drop(session);
    flip(&path, at);
    let before = check(&fixture.session(), CheckOptions { read_data: true }, &Silent).unwrap();
    let report = check_and_repair(&fixture);
    assert_eq!(before.affected[0].ranges, report.after.affected[0].ranges, "what was sound was saved");
    let session = fixture.session();
    let going_on = RestoreOptions { keep_going: true };
    let (bytes, restored) = restore_stream(&session, snapshot.id, "a", going_on).unwrap();
    let mut expected = disk.to_bytes();
    for hole in &restored.holes {
        expected[hole.start as usize..hole.end as usize].fill(0);
    }
    assert!(bytes == expected);
}

#[test]
fn a_damaged_record_moves_to_quarantine_and_a_newer_pack_stays() {
    let (fixture, snapshot, _) = one_disk();
    let record = fixture.path().join("snapshots").join(snapshot.id.to_hex());
    flip(&record, 60);
    // With an index that kept the record it would be healed.
    std::fs::remove_dir_all(fixture.path().join("index")).unwrap();
    // A pack of a later version: whole, under its name, and not to be opened.
    let mut bytes = std::fs::read(&packs(&fixture)[0]).unwrap();
    bytes[6] = 9;
    let id = blake3::hash(&bytes).to_hex().to_string();
    let newer = fixture.path().join("packs").join(&id[..2]).join(&id);
    std::fs::create_dir_all(newer.parent().unwrap()).unwrap();
    std::fs::write(&newer, bytes).unwrap();
    let report = check_and_repair(&fixture);
    assert_eq!(report.quarantined.len(), 1, "{report:?}");
    assert!(!record.exists() && fixture.path().join("quarantine").join(snapshot.id.to_hex()).exists());
    assert!(newer.exists());
    assert!(report.after.damages.iter().all(|damage| damage.object.contains(&id)));
}

#[test]
fn reading_in_shares_finds_damage_within_a_round() {
    let (fixture, ..) = one_disk();
    let paths = packs(&fixture);
    let last = &paths[paths.len() - 1];
    flip(last, first_frame(last) + 36);
    let mut found = 0;
    let mut read_bytes = 0;
    for run in 0..10 {
        let session = fixture.session();
        let report = check_share(&session, Share::Fraction(0.1), 100 + run, &Silent).unwrap();
        found += report.damages.len();
        read_bytes += report.read_bytes;
        let coverage = report.coverage.unwrap();
        assert!(coverage.covered_bytes <= coverage.total_bytes);
        if coverage.all_read_since_ms.is_some() {
            assert_eq!(coverage.all_read_since_ms, Some(100));
            assert!(read_bytes >= coverage.total_bytes);
            assert_eq!(found, 1);
            return;
        }
    }
    panic!("ten tenths are not all");
}

#[test]
fn the_command_line_leads_through_a_snapshots_life() {
    let fixture = RepoFixture::small(Suite::Aes256Gcm);
    let image = fixture.folder.path().join("image.raw");
    let cairn = |line: &str| {
        let mut command: Command = cairn(&fixture.path());
        command.args(line.split_whitespace());
        command
    };
    let import = |day: u32, options: &str| {
        ModelDisk::scattered(3 << 20, 3, u64::from(day)).write_raw(&image);
        let line = format!("import {} --vdi a --vm web --time 2026-11-{day:02} {options}", image.display());
        json(&mut cairn(&line))["snapshot"].as_str().unwrap().to_owned()
    };
    let ids: Vec<_> =
        (1..=9).map(|day| import(day, if day == 2 { "--tag gold --note first --protect" } else { "" })).collect();
    let shown = json(&mut cairn(&format!("show {}", ids[1])));
    assert_eq!(
        (&shown["tags"][0], &shown["note"], &shown["protected"]),
        (&"gold".into(), &"first".into(), &true.into())
    );
    run(&mut cairn(&format!("tag {} --add gold --add audit", ids[4])));
    run(&mut cairn(&format!("note {} moved", ids[4])));
    assert_eq!(json(&mut cairn("snapshots --tag gold")).as_array().unwrap().len(), 2);
    let remarked = json(&mut cairn(&format!("tag {} --remove gold", ids[4])));
    assert_eq!((&remarked["tags"], &remarked["note"]), (&serde_json::json!(["audit"]), &"moved".into()));

    for line in ["forget", "forget --vdi a", "forget --keep-daily 0", "forget abcd --keep-last 1"] {
        assert_eq!(fails(&mut cairn(line)).0, 2, "{line}");
    }
    let (code, text) = fails(&mut cairn(&format!("forget {}", ids[1])));
    assert!(code == 1 && text.contains("is protected") && text.contains("protect SNAPSHOT --off"), "{text}");
    let (code, text) = fails(&mut cairn("forget --keep-last 1 --vdi b"));
    assert!(code == 1 && text.contains("VDI b"), "{text}");

    let dry = run(&mut cairn("forget --keep-daily 3 --keep-tag audit --dry-run"));
    let text = String::from_utf8(dry.stdout).unwrap();
    assert!(
        text.contains("daily 1 of 3: 2026-11-09") && text.contains("tag audit") && text.contains("protected"),
        "{text}"
    );
    assert!(text.contains("4 snapshots would be forgotten, 5 kept"), "{text}");
    let done = json(&mut cairn("forget --keep-daily 3 --keep-tag audit"));
    assert_eq!((&done["forgotten"], &done["kept"], &done["dry_run"]), (&4.into(), &5.into(), &false.into()));
    let listed = json(&mut cairn("snapshots"));
    let listed: Vec<_> = listed.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(listed, [&ids[1], &ids[4], &ids[6], &ids[7], &ids[8]]);

    run(&mut cairn(&format!("protect {} --off", ids[1])));
    run(&mut cairn(&format!("forget {} {}", ids[1], ids[4])));
    let rest = format!("forget {} {} {}", ids[6], ids[7], ids[8]);
    let (code, text) = fails(&mut cairn(&rest));
    assert!(
        code == 1 && text.contains("no snapshot of VDI a would be left") && text.contains("--allow-last"),
        "{text}"
    );
    run(&mut cairn(&format!("{rest} --allow-last")));
    assert_eq!(json(&mut cairn("snapshots")), serde_json::json!([]));

    let kept = import(10, "");
    let pack = packs(&fixture).into_iter().find(|path| {
        flip(path, 80);
        let hit = fails_or_clean(&mut cairn("check --read-data")).contains(&kept[..12]);
        flip(path, 80);
        hit
    });
    flip(&pack.unwrap(), 80);
    let (code, _) = fails(&mut cairn("check --read-data --repair"));
    assert_eq!(code, 3, "something is lost");
    import(10, "");
    let clean = json(&mut cairn("check --read-data=100%"));
    assert_eq!(clean["clean"], true);
    let share = json(&mut cairn("check --read-data=1MiB"));
    assert!(share["coverage"]["covered_bytes"].as_u64().unwrap() > 0, "{share}");
}

/// What a command printed to stdout, whatever its exit code.
fn fails_or_clean(command: &mut Command) -> String {
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}
