//! Reading packs again, a share of them a run, to compare their bytes with their names. No key is needed for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use repo_core::store::ObjectName;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::Verify;
use crate::log;
use crate::namespace::{Namespace, Verified};
use crate::refusal::Refusal;

use super::notes::Notes;
use super::schedule::Schedule;

/// Packs that are listed at once.
const PAGE: usize = 1000;

/// Reads packs again.
pub(crate) struct Verifier {
    schedule: Schedule,
    /// After so many runs all packs were read.
    runs: u32,
    /// How fast they are read.
    bytes_per_second: u64,
    notes: Arc<Notes>,
}

/// Where a namespace is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// When its last run began, in milliseconds since the Unix epoch.
    pub(super) last_ms: i64,
    /// The pack that was read last.
    after: String,
    /// Packs that are not what their names say.
    pub(super) damaged: BTreeSet<String>,
}

impl Verifier {
    /// Takes up where the server ended.
    pub(crate) fn open(verify: &Verify, schedule: Schedule, notes: Arc<Notes>) -> Self {
        let bytes_per_second = u64::from(verify.mib_per_second) * 1024 * 1024;
        Self { schedule, runs: verify.runs, bytes_per_second, notes }
    }

    /// Makes the run of a namespace if it is due. Blocks for as long as it takes.
    pub(crate) fn verify_if_due(&self, namespace: &Arc<Namespace>, now_ms: i64) {
        let Some(mut note) = self.due(&namespace.name, now_ms) else { return };
        let began = Instant::now();
        match self.run(namespace, &mut note) {
            Ok((packs, bytes)) => {
                let fields = json!({
                    "namespace": namespace.name, "packs": packs, "bytes": bytes, "damaged": note.damaged,
                    "seconds": began.elapsed().as_secs(),
                });
                log::line(if note.damaged.is_empty() { "info" } else { "error" }, "verified", &fields);
            }
            Err(refusal) => {
                let fields = json!({ "namespace": namespace.name, "error": refusal.message });
                log::line("error", "cannot verify", &fields);
            }
        }
        self.write(&namespace.name, note);
    }

    /// How many packs of a namespace are known to be damaged.
    pub(crate) fn damaged(&self, namespace: &str) -> usize {
        self.notes.of(namespace).verify.map_or(0, |note| note.damaged.len())
    }

    fn due(&self, namespace: &str, now_ms: i64) -> Option<Note> {
        let Some(mut note) = self.notes.of(namespace).verify else {
            // A new one waits for its time.
            self.write(namespace, Note { last_ms: now_ms, ..Note::default() });
            return None;
        };
        if !self.schedule.is_due(note.last_ms, now_ms) {
            return None;
        }
        note.last_ms = now_ms;
        Some(note)
    }

    /// Gives how many packs, and bytes of them, were read.
    fn run(&self, namespace: &Namespace, note: &mut Note) -> Result<(u64, u64), Refusal> {
        for path in std::mem::take(&mut note.damaged) {
            self.read(namespace, &path, note)?;
        }
        let (count, total) = survey(namespace)?;
        let share = total.div_ceil(u64::from(self.runs));
        let (mut packs, mut bytes) = (0, 0);
        while packs < count && bytes < share {
            let (page, more) = namespace.list("packs", &note.after, PAGE)?;
            if page.is_empty() && note.after.is_empty() {
                // All were deleted meanwhile.
                break;
            }
            for found in &page {
                if packs == count || bytes >= share {
                    return Ok((packs, bytes));
                }
                let path = found.name.path();
                self.read(namespace, &path, note)?;
                (packs, bytes) = (packs + 1, bytes + found.bytes);
                note.after = path;
            }
            if !more {
                // From the first on again.
                note.after.clear();
            }
        }
        Ok((packs, bytes))
    }

    fn read(&self, namespace: &Namespace, path: &str, note: &mut Note) -> Result<(), Refusal> {
        let Ok(name) = ObjectName::parse(path) else { return Ok(()) };
        let pause = |bytes: u64, took: Duration| {
            let least = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            std::thread::sleep(least.saturating_sub(took));
        };
        if namespace.verify(name, pause)? == Verified::Damaged {
            log::line("error", "pack is damaged", &json!({ "namespace": namespace.name, "pack": path }));
            note.damaged.insert(path.to_owned());
        }
        Ok(())
    }

    fn write(&self, namespace: &str, note: Note) {
        self.notes.update(namespace, |notes| notes.verify = Some(note));
    }
}

/// How many packs there are, and how many bytes.
fn survey(namespace: &Namespace) -> Result<(u64, u64), Refusal> {
    let (mut count, mut bytes, mut after) = (0, 0, String::new());
    loop {
        let (page, more) = namespace.list("packs", &after, PAGE)?;
        count += page.len() as u64;
        bytes += page.iter().map(|found| found.bytes).sum::<u64>();
        match page.last() {
            Some(last) if more => after = last.name.path(),
            _ => return Ok((count, bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;
    use crate::config::NamespaceConfig;

    const DAY_MS: i64 = 24 * 60 * 60 * 1000;

    struct World {
        folder: tempfile::TempDir,
        namespace: Arc<Namespace>,
    }

    impl World {
        fn new(packs: u8) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let config = NamespaceConfig { path: Some(folder.path().join("r")), ..NamespaceConfig::default() };
            let namespace = Arc::new(Namespace::open("office", &config, folder.path()).unwrap());
            for number in 0..packs {
                let bytes = [b"CAIRNp\x02\x00\0\0\0\0\0\0\0\0".as_slice(), &[number; 1000]].concat();
                let hash = blake3::hash(&bytes).to_hex();
                let name = ObjectName::parse(&format!("packs/{}/{hash}", &hash[..2])).unwrap();
                let mut incoming = namespace.begin(name, None).unwrap();
                incoming.append(&bytes).unwrap();
                incoming.finish("backup").unwrap();
            }
            Self { folder, namespace }
        }

        fn open(&self, runs: u32) -> Verifier {
            let verify = Verify { schedule: "0 3 * * *".to_owned(), runs, mib_per_second: 1000 };
            let schedule = Schedule::parse(&verify.schedule, TimeZone::UTC).unwrap();
            Verifier::open(&verify, schedule, Arc::new(Notes::open(self.folder.path()).unwrap()))
        }

        fn note(&self, verifier: &Verifier) -> Note {
            verifier.notes.of("office").verify.unwrap()
        }
    }

    #[test]
    fn a_run_that_was_missed_is_made_up_for_once() {
        let world = World::new(3);
        let mut ran = Vec::new();
        // Midnight, and hours after it; the server is down from the second day to the fifth.
        for hour in [0, 2, 4, 5, 23, 26, 28, 120, 121, 122, 124] {
            // Another one each time, as after a restart.
            let verifier = world.open(1);
            let now_ms = 100 * DAY_MS + hour * 60 * 60 * 1000;
            verifier.verify_if_due(&world.namespace, now_ms);
            if hour > 0 && world.note(&verifier).last_ms == now_ms {
                ran.push(hour);
            }
        }
        assert_eq!(ran, [4, 28, 120, 124]);
    }

    #[test]
    fn all_packs_are_read_in_so_many_runs_and_damage_is_found_and_forgotten_when_it_is_mended() {
        let world = World::new(10);
        let names = world.namespace.list("packs", "", 100).unwrap().0;
        let path = |at: usize| world.folder.path().join("r").join(names[at].name.path());
        for at in [0, 4, 9] {
            let mut bytes = std::fs::read(path(at)).unwrap();
            bytes[500] ^= 1;
            std::fs::write(path(at), bytes).unwrap();
        }
        let run = |day: i64| {
            let verifier = world.open(5);
            verifier.verify_if_due(&world.namespace, day * DAY_MS);
            verifier.damaged("office")
        };
        assert_eq!((1..=7).map(run).collect::<Vec<_>>(), [0, 1, 1, 2, 2, 3, 3]);
        std::fs::remove_file(path(0)).unwrap();
        let mut bytes = std::fs::read(path(4)).unwrap();
        bytes[500] ^= 1;
        std::fs::write(path(4), bytes).unwrap();
        assert_eq!(run(8), 1);
    }
}
