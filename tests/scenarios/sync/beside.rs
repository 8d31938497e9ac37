//! A sync beside others: a collection at any moment, a lease that is taken away, another sync, an end at any step.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use repo_core::monitor::{Monitor, Silent};
use repo_core::ops::gc::gc;
use repo_core::ops::sync::{SyncOptions, sync};
use repo_core::seal::Suite;
use repo_core::{Error, ErrorKind};
use repo_tests::cli::{cairn, json, run};
use repo_tests::fixture::{RepoFixture, gc_options};
use repo_tests::model::ModelDisk;

use super::{ThreeDays, restore_all, sync_all};
use crate::kills::{CALLS, kill_at_each_step, strings};

/// Calls a function when it is told something for the n-th time.
struct At<F> {
    moment: u64,
    told: AtomicU64,
    act: F,
}

impl<F: Fn() + Send + Sync> At<F> {
    fn new(moment: u64, act: F) -> Self {
        Self { moment, told: AtomicU64::new(0), act }
    }

    fn count(&self) {
        if self.told.fetch_add(1, Ordering::Relaxed) == self.moment {
            (self.act)();
        }
    }
}

impl<F: Fn() + Send + Sync> Monitor for At<F> {
    fn begin(&self, _task: &str, _total_bytes: Option<u64>) {
        self.count();
    }
    fn advance(&self, _bytes: u64) {
        self.count();
    }
    fn end(&self) {
        self.count();
    }
    fn warn(&self, _text: &str) {}
    fn damage(&self, _error: &Error) {}
}

#[test]
fn whatever_is_collected_at_any_moment_of_a_sync_what_it_commits_restores() {
    let mut met = 0;
    for moment in 0.. {
        let days = ThreeDays::new(Suite::None);
        let to = days.from.empty_copy();
        // The first day was there and is forgotten; its packs are condemned already, or are about to be.
        let mut options = SyncOptions::new(1);
        options.filter.snapshots = [days.ids[0]].into();
        sync(&Arc::new(days.from.session()), &to.session(), &options, &Silent).unwrap();
        to.forget(&to.session(), days.ids[0]);
        let clock = AtomicU64::new(20_000_000);
        let collect = || {
            let now_ms = clock.fetch_add(1_000, Ordering::Relaxed) as i64;
            match gc(&to.session(), &gc_options(now_ms), &Silent) {
                Err(error) if error.kind() == ErrorKind::Locked => {}
                done => drop(done.unwrap()),
            }
        };
        if moment % 2 == 0 {
            let held = repo_core::lease::Lease::put(&to.session().repository, "import").unwrap();
            collect();
            drop(held);
        }
        let at = At::new(moment / 2, || (0..2).for_each(|_| collect()));
        let done = sync(&Arc::new(days.from.session()), &to.session(), &SyncOptions::new(2), &at).unwrap();
        assert_eq!(done.synced.len(), 3, "moment {moment}");
        restore_all(&to, &days.expected(0..3));
        collect();
        collect();
        restore_all(&to, &days.expected(0..3));
        assert!(to.check_all().is_clean(), "moment {moment}");
        if at.told.load(Ordering::Relaxed) <= moment / 2 {
            break;
        }
        met += 1;
    }
    println!("{met} moments");
    assert!(met >= 20, "only {met} moments");
}

#[test]
fn a_sync_whose_lease_was_taken_away_commits_nothing() {
    let days = ThreeDays::new(Suite::None);
    let to = days.from.empty_copy();
    let leases = to.path().join("leases");
    let at = At::new(1, || {
        for entry in std::fs::read_dir(&leases).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
    });
    let error = sync(&Arc::new(days.from.session()), &to.session(), &SyncOptions::new(1), &at).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{error:?}");
    assert!(to.session().repository.store.list_snapshots().unwrap().is_empty());
    let again = sync_all(&days.from, &to);
    assert_eq!((again.synced.len(), again.moved_packs), (3, 0), "what arrived stays");
    restore_all(&to, &days.expected(0..3));
}

#[test]
fn two_syncs_at_once_into_one_repository_both_succeed() {
    let mut from = RepoFixture::small(Suite::Aes256Gcm);
    let session = from.session();
    let disk = ModelDisk::scattered(24 << 20, 2, 5);
    let id = from.backup_model(&session, "a", &disk).snapshot.id;
    drop(session);
    for round in 0..4 {
        let to = from.empty_copy();
        let start = || {
            let mut command = cairn(&from.path());
            command.arg("sync").arg(from.path()).arg(to.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        };
        let both = [start(), start()];
        for child in both {
            let ended = child.wait_with_output().unwrap();
            assert!(ended.status.success(), "round {round}: {}", String::from_utf8_lossy(&ended.stderr));
        }
        restore_all(&to, &[(id, ("a".to_owned(), disk.clone()))].into());
        assert!(to.check_all().is_clean());
    }
}

#[test]
fn a_sync_that_was_killed_at_any_step_is_gone_on_with() {
    // Each thread counts its own calls, so there are more packs than threads by far.
    let days = ThreeDays::of_size(Suite::Aes256Gcm, 14_000_100);
    let mut to = days.from.empty_copy();
    let place = to.path();
    let all = days.from.session().repository.store.list_packs().unwrap().len() as u64;
    let mut resumed = 0;
    let kills = kill_at_each_step(
        &CALLS,
        None,
        || {
            if place.exists() {
                std::fs::remove_dir_all(&place).unwrap();
            }
            let (from, to) = (days.from.path(), place.clone());
            (days.from.path(), strings(["sync", "--init", from.to_str().unwrap(), to.to_str().unwrap()]))
        },
        |when| {
            // What is visible is whole.
            if place.join("config").exists() {
                let session = to.session();
                let there: Vec<_> =
                    session.repository.store.list_snapshots().unwrap().iter().map(|listed| listed.id).collect();
                drop(session);
                restore_all(&to, &days.expected((0..3).filter(|day| there.contains(&days.ids[*day]))));
            }
            let again = json(cairn(&days.from.path()).args(["sync", "--init"]).arg(days.from.path()).arg(&place));
            resumed += u64::from(again["moved_packs"].as_u64().unwrap() < all);
            restore_all(&to, &days.expected(0..3));
            let checked = to.check_all();
            assert!(checked.is_clean(), "{when}: {checked:?}");
        },
    );
    println!("{kills} kills, {resumed} went on with what had arrived");
    assert!(kills >= 20 && resumed >= 3, "{kills} kills, {resumed} resumed");
    // What the killed ones left behind holds nothing up.
    to.gc(&to.session());
    restore_all(&to, &days.expected(0..3));
}

#[test]
fn a_sync_under_other_keys_that_was_killed_at_any_step_is_gone_on_with() {
    let days = ThreeDays::new(Suite::Aes256Gcm);
    let to = RepoFixture::small(Suite::None);
    let empty = to.folder.path().join("empty");
    run(std::process::Command::new("cp").arg("-a").arg(to.path()).arg(&empty));
    let synced = || {
        let session = to.session();
        let (snapshots, _) = repo_core::snapshot::read_all(&session.repository).unwrap();
        snapshots.into_iter().map(|named| {
            let day = days.ids.iter().position(|id| *id == named.snapshot.origin.unwrap().snapshot).unwrap();
            (named.id, ("a".to_owned(), days.disks[day].clone()))
        })
    };
    let kills = kill_at_each_step(
        &["linkat"],
        None,
        || {
            std::fs::remove_dir_all(to.path()).unwrap();
            run(std::process::Command::new("cp").arg("-a").arg(&empty).arg(to.path()));
            let (from, to) = (days.from.path(), to.path());
            (days.from.path(), strings(["sync", from.to_str().unwrap(), to.to_str().unwrap()]))
        },
        |when| {
            restore_all(&to, &synced().collect());
            run(cairn(&days.from.path()).arg("sync").arg(days.from.path()).arg(to.path()));
            assert_eq!(synced().len(), 3, "{when}");
            restore_all(&to, &synced().collect());
            assert!(to.check_all().is_clean(), "{when}");
        },
    );
    println!("{kills} kills");
    assert!(kills >= 5, "only {kills} steps were met");
}
