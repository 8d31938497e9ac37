//! A sync between places of any two kinds, killed before any word of its arrives: a handshake, a request, whatever it says. What is
//! in TO is whole, and another sync goes on with it; also when what was under way arrives after the death of its sender.

use std::process::Stdio;

use repo_tests::cli::{json, run};
use repo_tests::model::{ModelDisk, mix};
use repo_tests::server::Server;
use repo_tests::wire::Wire;
use serde_json::Value;

use super::{Where, World};

/// FROM, TO, and the end whose line is held up.
const PAIRS: [(Where, Where, Where); 5] = [
    (Where::Folder, Where::Near, Where::Near),
    (Where::Near, Where::Here, Where::Here),
    (Where::Here, Where::There, Where::There),
    (Where::There, Where::Far, Where::Far),
    (Where::There, Where::Folder, Where::There),
];

/// Copies that are made in one place at most.
const COPIES_MAX: u64 = 400;

/// Three snapshots that are in a folder, an object store and two servers.
struct Days {
    world: World,
    snapshots: Vec<(String, ModelDisk)>,
    /// Copies that were begun.
    copies: u64,
}

impl Days {
    fn new() -> Self {
        let mut world = World::new();
        for server in [&mut world.here, &mut world.there] {
            allow_copies(server);
        }
        let key_file = world.path("key");
        run(world.cairn(Where::Folder).args(["key", "generate"]).arg(&key_file));
        world.key_file = Some(key_file);
        run(world.cairn(Where::Folder).arg("init"));
        let snapshots = (1..4).map(|seed| {
            let disk = ModelDisk::scattered(6 << 20, 3, seed);
            (world.import(Where::Folder, &disk), disk)
        });
        let snapshots = snapshots.collect();
        for pair in [Where::Folder, Where::Near, Where::Here, Where::There].windows(2) {
            run(world.sync(pair[0], pair[1]).arg("--init"));
        }
        Self { world, snapshots, copies: 0 }
    }

    /// Syncs into a new copy. The client is killed once `word` of it is held up, and that arrives late, or never. Gives the words
    /// there were, and whether the client was killed.
    fn sync(&mut self, from: Where, to: Where, line: &Wire, word: u64) -> (u64, bool) {
        self.copies += 1;
        assert!(self.copies < COPIES_MAX);
        self.world.copies.insert(to, format!("n{}", self.copies));
        line.hold_from(word);
        let mut command = self.world.sync(from, to);
        let mut client = command.arg("--init").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let ended = loop {
            if line.is_holding() {
                break None;
            }
            if let Some(status) = client.try_wait().unwrap() {
                break Some(status);
            }
        };
        if let Some(status) = ended {
            assert!(status.success(), "{from:?} to {to:?}: {status}");
        } else {
            client.kill().unwrap();
            client.wait().unwrap();
        }
        (line.let_go(self.copies.is_multiple_of(2)), ended.is_none())
    }

    /// The snapshots that the last copy has, each of them whole; `None` when it is no repository yet.
    fn visible(&self, to: Where) -> Option<Vec<String>> {
        let listed = self.world.cairn(to).args(["snapshots", "--json"]).output().unwrap();
        if !listed.status.success() {
            let text = String::from_utf8_lossy(&listed.stderr);
            assert!(listed.status.code() == Some(1) && !text.contains("panic"), "{text}");
            return None;
        }
        assert_eq!(json(self.world.cairn(to).args(["check", "--read-data"]))["clean"], true);
        let listed: Vec<Value> = serde_json::from_slice(&listed.stdout).unwrap();
        Some(listed.iter().map(|snapshot| snapshot["id"].as_str().unwrap().to_owned()).collect())
    }

    fn restore_all(&self, to: Where) {
        for (id, disk) in &self.snapshots {
            assert!(self.world.restored(to, id) == disk.to_bytes(), "{to:?}: {id}");
        }
    }
}

/// Gives a server namespaces for copies, and starts it again.
fn allow_copies(server: &mut Server) {
    server.office = (0..COPIES_MAX).map(|number| format!("[namespaces.n{number}]\npath = \"n{number}\"\n")).collect();
    server.kill();
    server.start_again();
}

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

#[test]
fn a_sync_between_places_that_was_killed_at_any_word_is_gone_on_with() {
    let (seed, each) = (number("CAIRN_FAULT_SEED", 4), number("CAIRN_FAULT_ROUNDS", 2));
    println!("CAIRN_FAULT_SEED={seed} CAIRN_FAULT_ROUNDS={each}");
    let mut days = Days::new();
    let (mut kills, mut partly, mut resumed) = (0, 0, 0);
    for (at, (from, to, held)) in PAIRS.into_iter().enumerate() {
        let line = Wire::lay(days.world.address(held), seed);
        line.calm();
        days.world.lines.insert(held, line.address.clone());
        days.world.write_profiles();
        let (words, _) = days.sync(from, to, &line, u64::MAX);
        let mut ids = days.visible(to).unwrap();
        assert_eq!(ids.len(), 3);
        let all = json(&mut days.world.sync(from, to))["present_packs"].as_u64().unwrap();
        let (rounds, offset) = (each.min(words), mix(seed ^ mix(at as u64)) % words);
        for round in 0..rounds {
            let word = (offset + round * words / rounds) % words;
            let (_, is_killed) = days.sync(from, to, &line, word);
            kills += u64::from(is_killed);
            let when = format!("{from:?} to {to:?}, killed at word {word} of {words}");
            println!("{when}");
            let visible = days.visible(to).unwrap_or_default();
            partly += u64::from(!visible.is_empty() && visible.len() < 3);
            assert!(visible.iter().all(|id| ids.contains(id)), "{when}");
            let again = json(days.world.sync(from, to).arg("--init"));
            resumed += u64::from(is_killed && again["moved_packs"].as_u64().unwrap() < all);
            let mut there = days.visible(to).unwrap();
            there.sort();
            ids.sort();
            assert_eq!(there, ids, "{when}");
            days.restore_all(to);
        }
        days.world.lines.remove(&held);
        days.world.copies.remove(&to);
        days.world.write_profiles();
    }
    println!("{kills} kills, {partly} with some of the snapshots there, {resumed} went on with packs that had arrived");
    assert!(kills >= 2 * each.min(10) && resumed > 0, "{kills} kills, {resumed} went on");
}
