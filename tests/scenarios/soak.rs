//! Everything at once, for a while, with `kill -9`: imports, deltas, restores, forgetting, collecting, checking and rebuilding
//! the index, each a process of its own on one repository. What was committed and not forgotten restores, always.
//!
//! It ends after a number of operations: `CAIRN_SOAK_OPERATIONS`, and those follow from `CAIRN_SOAK_SEED`; what meets what
//! depends on the machine all the same.

mod ledger;
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use repo_core::seal::Suite;
use repo_core::units::{PAGE_LEN, SECTOR_LEN};
use repo_tests::cli::{cairn, json, run};
use repo_tests::fixture::RepoFixture;
use repo_tests::model::{ModelDisk, mix};
use repo_tests::vhd::{Vhd, Writer, id};
use serde_json::Value;

use ledger::{Ledger, Sighting};
use process::{Outcome, Runner};

const OPERATIONS: u64 = 120;
const SEED: u64 = 20_261_123;
/// As many work at once, each on a VDI of its own.
const WORKERS: usize = 4;
/// Unexpected outcomes after which nothing more is tried.
const FAILURES_MAX: usize = 6;
/// Operations told when something failed.
const TOLD: usize = 60;

#[test]
fn all_operations_at_once_with_kills_lose_nothing_and_leak_nothing() {
    let soak = Soak::new();
    println!("seed {}, {} operations", soak.seed, soak.operations);
    std::thread::scope(|scope| {
        for vdi in 0..WORKERS {
            let soak = &soak;
            scope.spawn(move || Worker::new(soak, vdi).work());
        }
    });
    let failures = soak.failures.lock().unwrap().clone();
    if !failures.is_empty() {
        let history = soak.history.lock().unwrap();
        let told = history[history.len().saturating_sub(TOLD)..].join("\n");
        panic!("seed {}\n{told}\n\n{}", soak.seed, failures.join("\n\n"));
    }
    soak.settle();
    soak.tell();
}

/// The repository, who works on it, and what they know.
struct Soak {
    fixture: RepoFixture,
    seed: u64,
    operations: u64,
    begun: AtomicU64,
    runner: Runner,
    ledger: Mutex<Ledger>,
    failures: Mutex<Vec<String>>,
    history: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<String, u64>>,
}

impl Soak {
    fn new() -> Self {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
        Self {
            fixture: RepoFixture::small(Suite::Aes256Gcm),
            seed: number("CAIRN_SOAK_SEED").unwrap_or(SEED),
            operations: number("CAIRN_SOAK_OPERATIONS").unwrap_or(OPERATIONS),
            begun: AtomicU64::new(0),
            runner: Runner::default(),
            ledger: Mutex::default(),
            failures: Mutex::default(),
            history: Mutex::default(),
            counts: Mutex::default(),
        }
    }

    fn cairn(&self, arguments: &[&str]) -> Command {
        let mut command = cairn(&self.fixture.path());
        command.args(arguments);
        command
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    fn count(&self, what: &str, number: u64) {
        *self.counts.lock().unwrap().entry(what.to_owned()).or_default() += number;
    }

    fn counted(&self, what: &str) -> u64 {
        self.counts.lock().unwrap().get(what).copied().unwrap_or(0)
    }

    fn fail(&self, text: String) {
        self.failures.lock().unwrap().push(text);
    }

    /// Nobody is left, nothing was lost, and what is not needed goes.
    fn settle(&self) {
        assert_eq!(processes_on(&self.fixture.path()), Vec::<String>::new());
        self.collect_twice();
        let checked = json(&mut self.cairn(&["check", "--read-data"]));
        assert_eq!(checked["clean"], true, "{checked}");
        let snapshots = self.ledger().all();
        let expected: BTreeSet<_> = snapshots.iter().map(|seen| seen.id.clone()).collect();
        let listed = listed(&json(&mut self.cairn(&["snapshots"])));
        assert_eq!(listed.into_keys().collect::<BTreeSet<_>>(), expected);
        for seen in &snapshots {
            let restored = run(&mut self.cairn(&["restore", &seen.id, "--format", "raw", "-o", "-"])).stdout;
            assert!(restored == seen.expected.disk.to_bytes(), "snapshot {} differs", seen.id);
        }
        self.count("snapshots at the end", snapshots.len() as u64);
        if !snapshots.is_empty() {
            let ids = expected.iter().map(String::as_str);
            run(self.cairn(&["forget", "--allow-last"]).args(ids));
        }
        self.collect_twice();
        let store = &self.fixture.session().repository.store;
        assert_eq!(store.list_packs().unwrap().len(), 0, "packs that nothing needs were not deleted");
        assert_eq!(store.list_leases().unwrap().len(), 0, "leases of processes that are gone");
        assert!(self.fixture.check_all().is_clean());
    }

    fn collect_twice(&self) {
        for _ in 0..2 {
            json(&mut self.cairn(&["gc", "--grace", "0s", "--max-waste", "0"]));
        }
    }

    /// Says what happened, and demands that enough did.
    fn tell(&self) {
        for (what, number) in &*self.counts.lock().unwrap() {
            println!("{number:6} {what}");
        }
        if self.operations >= OPERATIONS {
            let killed = self.counted("killed");
            assert!(killed >= self.operations / 12, "only {killed} processes were killed under way");
            for what in ["deleted packs", "repacked packs", "full: done", "delta: done", "restore: done"] {
                assert!(self.counted(what) > 0, "no {what}");
            }
        }
    }
}

/// Snapshots by name, with their VDI's.
fn listed(snapshots: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let named = |snapshot: &Value| (text(&snapshot["id"]), text(&snapshot["disks"][0]["vdi"]));
    snapshots.as_array().unwrap().iter().map(named).collect()
}

/// Command lines of processes that have the repository in their environment.
fn processes_on(repository: &Path) -> Vec<String> {
    let variable = format!("CAIRN_REPO={}", repository.display());
    let processes = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let of_repository = processes.filter(|process| {
        let environment = std::fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
    });
    let line = |process: std::path::PathBuf| std::fs::read_to_string(process.join("cmdline")).unwrap_or_default();
    of_repository.map(|process| line(process).replace('\0', " ")).collect()
}

/// One that runs a process after another. Only it imports its VDI.
struct Worker<'a> {
    soak: &'a Soak,
    vdi: usize,
    name: String,
    disk: ModelDisk,
    /// The operation's number.
    number: u64,
    draws: u64,
}

impl<'a> Worker<'a> {
    fn new(soak: &'a Soak, vdi: usize) -> Self {
        let disk = ModelDisk::new(6 << 20);
        Self { soak, vdi, name: format!("vdi-{vdi}"), disk, number: 0, draws: 0 }
    }

    /// A pseudo-random number below `end`.
    fn draw(&mut self, end: u64) -> u64 {
        self.draws += 1;
        mix(self.soak.seed ^ mix(self.number << 16 | self.draws)) % end
    }

    fn kill_at(&mut self) -> Option<f64> {
        let share = self.draw(1200) as f64 / 1000.0;
        (self.draw(5) < 2).then_some(share)
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.soak.fixture.folder.path().join(format!("{}.{name}", self.name))
    }

    fn work(&mut self) {
        loop {
            self.number = self.soak.begun.fetch_add(1, Ordering::Relaxed);
            self.draws = 0;
            if self.number >= self.soak.operations || self.soak.failures.lock().unwrap().len() >= FAILURES_MAX {
                return;
            }
            let snapshots = self.soak.ledger().of_vdi(self.vdi).len();
            match self.draw(100) {
                _ if snapshots > 6 => self.keep_last(),
                0..18 => self.full(),
                18..36 => self.delta(),
                36..50 => self.forget(),
                50..56 => self.keep_last(),
                56..72 => self.collect(),
                72..88 => self.restore(),
                88..93 => drop(self.plain("check", &["check", "--read-data"])),
                93..97 => drop(self.plain("rebuild", &["rebuild-index"])),
                _ => drop(self.list()),
            }
        }
    }

    /// Notes how an operation ended. `Some` with its JSON when it was done; failures are for `excuse` to judge.
    fn done(&self, what: &str, outcome: &Outcome, excuse: impl FnOnce(i32, &str) -> bool) -> Option<Value> {
        let (verdict, value) = match outcome {
            Outcome::Done(stdout) => ("done", Some(serde_json::from_slice(stdout).unwrap_or(Value::Null))),
            Outcome::Killed => {
                self.soak.count("killed", 1);
                ("killed", None)
            }
            Outcome::Failed(code, said) if excuse(*code, said) => ("refused", None),
            Outcome::Failed(code, said) => {
                self.soak.fail(format!("{} of {}: {what} ended with {code}\n{said}", self.number, self.name));
                ("FAILED", None)
            }
        };
        self.soak.count(&format!("{what}: {verdict}"), 1);
        self.soak.history.lock().unwrap().push(format!("{:4} {} {what}: {verdict}", self.number, self.name));
        value
    }

    /// An operation that nothing may disturb and nobody kills.
    fn plain(&self, what: &'static str, arguments: &[&str]) -> Option<Value> {
        let outcome = self.soak.runner.run(what, self.soak.cairn(arguments).arg("--json"), None);
        self.done(what, &outcome, |_, _| false)
    }

    /// The snapshots that are there. Those that nobody is forgetting must be.
    fn list(&self) -> Option<BTreeMap<String, String>> {
        let before = self.soak.ledger().all();
        let listed = listed(&self.plain("list", &["snapshots"])?);
        let ledger = self.soak.ledger();
        for lost in before.iter().filter(|seen| !listed.contains_key(&seen.id) && !ledger.is_disturbed(seen)) {
            self.soak.fail(format!("{} of {}: snapshot {} is not listed", self.number, self.name, lost.id));
        }
        Some(listed)
    }

    /// Changes the disk. Content comes from few places, so that other disks have it too and what was forgotten comes again.
    fn change(&mut self) -> ModelDisk {
        let mut disk = self.disk.clone();
        if self.draw(8) == 0 {
            disk.virtual_size += (self.draw(64) + 1) * PAGE_LEN as u64;
        }
        let pages = disk.virtual_size / PAGE_LEN as u64;
        for _ in 0..=self.draw(4) {
            let (start, len) = (self.draw(pages), 32 + self.draw(400));
            let library = ModelDisk::scattered(disk.virtual_size, 2, self.draw(6));
            let end = (start + len).min(pages);
            disk.pages.retain(|page, _| !(start..end).contains(page));
            disk.pages.extend(library.pages.range(start..end));
        }
        // Something that nobody has had.
        let (at, new) = (self.draw(pages - 24), self.draw(u64::from(u32::MAX)) as u32);
        disk.pages.extend((0..24).map(|page| (at + page, new ^ page as u32)));
        disk
    }

    fn import(&mut self, what: &str, outcome: &Outcome, disk: ModelDisk, image: Option<u64>, base: Option<&Sighting>) {
        let imported = self.done(what, outcome, |code, said| {
            let condemned = code == 4 && said.contains("garbage collection condemned");
            base.is_some_and(|base| condemned || code == 1 && self.soak.ledger().is_disturbed(base))
        });
        let id = match (imported, outcome) {
            (Some(imported), _) => imported["snapshot"].as_str().map(str::to_owned),
            // It may have been killed after its commit; then nobody but this one knows.
            (None, Outcome::Killed) => {
                let Some(listed) = self.list() else { return };
                let ledger = self.soak.ledger();
                let mut unknown = listed.into_iter().filter(|(id, vdi)| *vdi == self.name && !ledger.knows(id));
                let (id, more) = (unknown.next().map(|(id, _)| id), unknown.count());
                assert_eq!(more, 0, "one import made several snapshots");
                self.soak.count("killed after the commit", u64::from(id.is_some()));
                id
            }
            _ => None,
        };
        if let Some(id) = id {
            self.disk = disk.clone();
            self.soak.ledger().commit(id, self.vdi, Arc::new(disk), image);
        }
    }

    fn full(&mut self) {
        let disk = self.change();
        let kill_at = self.kill_at();
        let arguments = ["import", "--vdi", &self.name, "--level", "1", "--json", "--format", "raw"];
        let mut command = self.soak.cairn(&arguments);
        let outcome = if self.draw(2) == 0 {
            self.soak.runner.feed(command.arg("-"), &disk.to_bytes(), kill_at)
        } else {
            let image = self.file("raw");
            disk.write_raw(&image);
            self.soak.runner.run("full", command.arg(image), kill_at)
        };
        self.import("full", &outcome, disk, None, None);
    }

    /// A delta over the newest snapshot, whole blocks or single sectors.
    fn delta(&mut self) {
        let Some(base) = self.soak.ledger().of_vdi(self.vdi).pop() else { return self.full() };
        self.disk = (*base.expected.disk).clone();
        let disk = self.change();
        let kill_at = self.kill_at();
        let own = self.number + 1;
        let parent = base.expected.image.unwrap_or(u64::MAX);
        let (writer, image) = if self.draw(2) == 0 { (Writer::Xapi, None) } else { (Writer::Tapdisk, Some(own)) };
        let mut vhd = Vhd::new(writer, disk.virtual_size, id(own), Some(id(parent)));
        let before = &base.expected.disk;
        let differs = |page: u64| disk.pages.get(&page) != before.pages.get(&page);
        vhd.store(&disk.to_bytes(), |sector| differs((sector * SECTOR_LEN / PAGE_LEN) as u64));
        let path = self.file("vhd");
        std::fs::write(&path, vhd.bytes()).unwrap();
        let arguments = ["import", "--vdi", &self.name, "--base", &base.id, "--level", "1", "--json"];
        let outcome = self.soak.runner.run("delta", self.soak.cairn(&arguments).arg(path), kill_at);
        self.import("delta", &outcome, disk, image, Some(&base));
    }

    /// Forgets a snapshot of any VDI.
    fn forget(&mut self) {
        let all = self.soak.ledger().all();
        if all.is_empty() {
            return self.full();
        }
        let chosen = all[self.draw(all.len() as u64) as usize].clone();
        let mut arguments = vec!["forget", &chosen.id, "--json"];
        if self.draw(3) == 0 {
            arguments.push("--allow-last");
        }
        let soak = self.soak;
        self.forgetting("forget", &arguments, vec![chosen.id.clone()], |code, said| {
            code == 1 && (said.contains("would be left") || soak.ledger().others_forget(&chosen, 1))
        });
    }

    fn keep_last(&mut self) {
        let snapshots = self.soak.ledger().of_vdi(self.vdi);
        if snapshots.is_empty() {
            return self.full();
        }
        let count = (1 + self.draw(3)).to_string();
        let ids = snapshots.into_iter().map(|seen| seen.id).collect();
        let name = self.name.clone();
        let arguments = ["forget", "--keep-last", &count, "--vdi", &name, "--json"];
        // Others may have forgotten the last one meanwhile.
        self.forgetting("keep-last", &arguments, ids, |code, said| code == 1 && said.contains("there is no snapshot"));
    }

    /// Runs a process that forgets all of `ids` or some.
    fn forgetting(
        &mut self,
        what: &'static str,
        arguments: &[&str],
        ids: Vec<String>,
        excuse: impl FnOnce(i32, &str) -> bool,
    ) {
        let kill_at = self.kill_at();
        self.soak.ledger().begin_forget(&ids);
        let outcome = self.soak.runner.run(what, &mut self.soak.cairn(arguments), kill_at);
        let forgotten = self.done(what, &outcome, excuse);
        let Some(listed) = self.list() else { return };
        let there: BTreeSet<_> = listed.into_keys().collect();
        for snapshot in forgotten.iter().flat_map(|plan| plan["snapshots"].as_array().into_iter().flatten()) {
            if snapshot["forget"] == true && there.contains(snapshot["id"].as_str().unwrap()) {
                self.soak.fail(format!("{} of {}: {what} did not forget {snapshot}", self.number, self.name));
            }
        }
        self.soak.ledger().end_forget(&ids, &there);
    }

    fn collect(&mut self) {
        let kill_at = self.kill_at();
        let grace = ["0s", "0s", "0s", "200ms"][self.draw(4) as usize];
        let arguments = ["gc", "--grace", grace, "--max-waste", "0", "--level", "1", "--json"];
        let outcome = self.soak.runner.run("gc", &mut self.soak.cairn(&arguments), kill_at);
        // One at a time.
        let another = |code, said: &str| code == 4 && said.contains("another collection is at work");
        let Some(report) = self.done("gc", &outcome, another) else { return };
        for field in ["deleted_packs", "repacked_packs", "rescued_packs", "condemned_packs", "waiting_packs"] {
            self.soak.count(&field.replace('_', " "), report[field].as_u64().unwrap());
        }
    }

    /// Restores a snapshot of any VDI, to a file or to a pipe.
    fn restore(&mut self) {
        let all = self.soak.ledger().all();
        if all.is_empty() {
            return self.full();
        }
        let seen = all[self.draw(all.len() as u64) as usize].clone();
        let path = self.file("restored");
        let to_file = self.draw(2) == 0;
        let target = if to_file { path.to_str().unwrap() } else { "-" };
        let kill_at = self.kill_at();
        let arguments = ["restore", &seen.id, "--format", "raw", "--force", "-o", target];
        // To a pipe that nobody reads until it is killed, it stops in the middle.
        let outcome = self.soak.runner.run("restore", &mut self.soak.cairn(&arguments), kill_at);
        self.done("restore", &outcome, |_, _| self.soak.ledger().is_disturbed(&seen));
        if let Outcome::Done(stdout) = outcome {
            let restored = if to_file { std::fs::read(&path).unwrap() } else { stdout };
            if restored != seen.expected.disk.to_bytes() {
                self.soak.fail(format!("{} of {}: snapshot {} differs", self.number, self.name, seen.id));
            }
        }
    }
}
