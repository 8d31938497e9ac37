//! `kill -9` at any moment of an import: what was committed restores, what is left over is sound and is used again.

use std::process::Stdio;
use std::time::{Duration, Instant};

use repo_core::ops::restore::RestoreOptions;
use repo_core::seal::Suite;
use repo_core::snapshot;
use repo_tests::cli::{cairn, json, run};
use repo_tests::fixture::{RepoFixture, restore_stream};
use repo_tests::model::{ModelDisk, mix};

const KILLS: u64 = 200;
/// Moments are taken from this seed; what a moment hits depends on the machine all the same.
const SEED: u64 = 20_261_122;

#[test]
fn two_hundred_killed_imports_lose_nothing_that_was_committed() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let base = ModelDisk::scattered(24 << 20, 2, 0);
    let first = fixture.backup_model(&fixture.session(), "base", &base).snapshot.id;
    let image = fixture.folder.path().join("image.raw");

    // How long a whole import takes here decides from what range the moments come.
    ModelDisk::scattered(24 << 20, 2, 1).write_raw(&image);
    let start = Instant::now();
    json(cairn(&fixture.path()).arg("import").arg(&image).args(["--vdi", "measured"]));
    let whole = start.elapsed();
    println!("seed {SEED}, a whole import takes {whole:?}");

    let (mut killed, mut with_leftovers) = (0, 0);
    for round in 0..KILLS {
        if round % 8 == 0 {
            // New content, so that there is always something to write.
            ModelDisk::scattered(24 << 20, 2, 100 + round).write_raw(&image);
        }
        let mut child = cairn(&fixture.path())
            .arg("import")
            .arg(&image)
            .args(["--vdi", "victim"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let share = mix(SEED ^ round) % 1000;
        wait_until(Instant::now() + whole.mul_f64(share as f64 / 1000.0));
        let running = child.try_wait().unwrap().is_none();
        killed += u64::from(running);
        child.kill().unwrap();
        child.wait().unwrap();
        if round % 20 == 19 {
            let session = fixture.session();
            let restored = restore_stream(&session, first, "base", RestoreOptions::default()).unwrap();
            assert!(restored.0 == base.to_bytes(), "round {round}");
            drop(session);
            let report = fixture.check_all();
            assert!(report.is_clean(), "round {round}: {report:?}");
            with_leftovers += u64::from(leftovers(&fixture) > 0);
        }
    }
    assert!(killed >= KILLS / 4, "only {killed} imports were still running when they were killed");
    println!(
        "{killed} of {KILLS} imports were killed under way; packs of no snapshot were seen {with_leftovers} times"
    );
}

fn wait_until(moment: Instant) {
    // The moment of the kill is what this test is about, so it waits by the clock.
    std::thread::sleep(moment.saturating_duration_since(Instant::now()).min(Duration::from_secs(60)));
}

/// Packs that no snapshot names.
fn leftovers(fixture: &RepoFixture) -> usize {
    let session = fixture.session();
    let (snapshots, _) = snapshot::read_all(&session.repository).unwrap();
    let named: std::collections::HashSet<_> =
        snapshots.iter().flat_map(|named| named.snapshot.packs.iter().copied()).collect();
    session.repository.store.list_packs().unwrap().iter().filter(|pack| !named.contains(&pack.id)).count()
}

#[test]
fn an_import_that_was_killed_is_repeated_at_the_cost_of_what_it_had_not_finished() {
    let fixture = RepoFixture::small(Suite::Aes256Gcm);
    let disk = ModelDisk::scattered(48 << 20, 2, 7);
    let image = fixture.folder.path().join("image.raw");
    disk.write_raw(&image);
    // The input stops coming in the middle: the import waits, with finished packs, until it is killed.
    let mut child = cairn(&fixture.path())
        .args(["import", "-", "--vdi", "a", "--format", "raw"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let bytes = disk.to_bytes();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, &bytes[..40 << 20]).unwrap();
    let packs = fixture.path().join("packs");
    let count = || run(std::process::Command::new("find").arg(&packs).args(["-type", "f"])).stdout.len() / 65;
    let deadline = Instant::now() + Duration::from_secs(60);
    while count() < 8 {
        assert!(Instant::now() < deadline, "no packs were finished");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(json(cairn(&fixture.path()).arg("snapshots")).as_array().unwrap().len(), 0);
    assert!(fixture.check_all().is_clean());

    let finished: u64 = fixture.session().repository.store.list_packs().unwrap().iter().map(|pack| pack.len).sum();
    let report = json(cairn(&fixture.path()).arg("import").arg(&image).args(["--vdi", "a", "--level", "1"]));
    let stored = report["stored_bytes"].as_u64().unwrap();
    let again = RepoFixture::small(Suite::Aes256Gcm);
    let alone = json(cairn(&again.path()).arg("import").arg(&image).args(["--vdi", "a", "--level", "1"]));
    let whole = alone["stored_bytes"].as_u64().unwrap();
    assert!(stored < whole - finished / 2, "stored {stored} of {whole}, though {finished} were finished");
}
