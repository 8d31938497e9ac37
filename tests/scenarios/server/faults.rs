//! Everything breaks: connections after any byte, the server and its clients by SIGKILL at any moment. What was committed is there and
//! whole, what was not is not there at all, and everything goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use repo_tests::cli::{cairn, json, run};
use repo_tests::model::{ModelDisk, mix};
use repo_tests::s3::S3Server;
use repo_tests::server::Server;
use repo_tests::wire::Wire;
use serde_json::Value;
use tempfile::TempDir;

use super::{Machine, disk, files};

/// What a client is about to do.
#[derive(Debug, Clone)]
enum Operation {
    /// Stores the disk of this seed, under the VM's name `seed-N`.
    Import(u64),
    /// Reads this snapshot back.
    Restore(String),
    /// Lets this snapshot go.
    Forget(String),
    Collect,
    Check,
}

struct World {
    /// Where the namespace is, if not in a folder.
    bucket: Option<S3Server>,
    server: Server,
    wire: Wire,
    homes: Vec<TempDir>,
    tokens: BTreeMap<&'static str, String>,
    /// Snapshots that a client was told are stored: the seeds of their disks.
    committed: BTreeMap<String, u64>,
    /// Snapshots that may be gone: a client began to forget them.
    let_go: BTreeSet<String>,
    /// Seeds of disks that were begun to be stored.
    begun: BTreeSet<u64>,
}

impl World {
    fn new(seed: u64, bucket: Option<S3Server>) -> Self {
        let server = bucket.as_ref().map_or_else(|| Server::start(""), |s3| Server::start_on(s3, ""));
        let Machine { tokens, home, .. } = Machine::new(&server);
        run(server.cairn(home.path(), "office", &tokens["admin"]).arg("init"));
        let wire = Wire::lay(&server.address, seed);
        let homes = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let (committed, let_go, begun) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self { bucket, server, wire, homes, tokens, committed, let_go, begun }
    }

    fn image(&self, client: usize) -> PathBuf {
        self.homes[client].path().join("disk.raw")
    }

    fn cairn(&self, client: usize, role: &str) -> Command {
        let home = self.homes[client].path();
        let mut command = Server::cairn_at(&self.wire.address, home, "office", &self.tokens[role]);
        command.args(["--retry-for", "5"]).env("CAIRN_FINGERPRINT", &self.server.fingerprint);
        command
    }

    fn draw(&self, draw: u64, seed: u64) -> Operation {
        let known: Vec<_> = self.committed.keys().filter(|id| !self.let_go.contains(*id)).collect();
        let some = |draw: u64| (*known[(draw % known.len() as u64) as usize]).clone();
        match draw % 16 {
            8..=10 if !known.is_empty() => Operation::Restore(some(mix(draw))),
            11..=12 if known.len() > 3 => Operation::Forget(some(mix(draw))),
            13..=14 => Operation::Collect,
            15 => Operation::Check,
            _ => Operation::Import(seed),
        }
    }

    fn begin(&mut self, client: usize, operation: &Operation) -> Child {
        let mut command = match operation {
            Operation::Import(seed) => {
                self.begun.insert(*seed);
                content(*seed).write_raw(&self.image(client));
                let mut command = self.cairn(client, "backup");
                command.arg("import").arg(self.image(client));
                command.args(["--vdi", &format!("vdi-{}", seed % 2), "--vm", &format!("seed-{seed}")]);
                command
            }
            Operation::Restore(id) => {
                let mut command = self.cairn(client, "restore");
                let target = self.homes[client].path().join("restored");
                command.args(["restore", id, "--format", "raw", "--force", "--output"]).arg(target);
                command
            }
            Operation::Forget(id) => {
                self.let_go.insert(id.clone());
                let mut command = self.cairn(client, "operator");
                command.args(["forget", id, "--allow-last"]);
                command
            }
            Operation::Collect => {
                let mut command = self.cairn(client, "operator");
                command.args(["gc", "--grace", "0s"]);
                command
            }
            Operation::Check => {
                let mut command = self.cairn(client, "restore");
                command.args(["check", "--read-data"]);
                command
            }
        };
        command.arg("--json").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn end(&mut self, client: usize, operation: &Operation, output: &Output) {
        let said = || format!("{operation:?}: {}", String::from_utf8_lossy(&output.stderr));
        // Broken lines and dead servers are failures, and never damage.
        assert_ne!(output.status.code(), Some(3), "{}", said());
        assert_ne!(output.status.code(), Some(101), "{}", said());
        if !output.status.success() {
            return;
        }
        match operation {
            Operation::Import(seed) => {
                let done: Value = serde_json::from_slice(&output.stdout).unwrap();
                self.committed.insert(super::id(&done), *seed);
            }
            Operation::Restore(id) => {
                let restored = std::fs::read(self.homes[client].path().join("restored")).unwrap();
                assert!(restored == content(self.committed[id]).to_bytes(), "{id}");
            }
            Operation::Forget(_) | Operation::Collect | Operation::Check => {}
        }
    }

    /// Three clients at once. When so many bytes were carried the server dies, when so many others a client does.
    fn round(&mut self, round: u64, draw: u64) -> (bool, bool) {
        let operations: Vec<_> = (0..3).map(|client| self.draw(mix(draw ^ client), round * 3 + client)).collect();
        let mut clients: Vec<_> =
            operations.iter().enumerate().map(|(client, operation)| self.begin(client, operation)).collect();
        let from = self.wire.carried();
        let moment = |draw: u64| from + mix(draw) % (4 << 20);
        let (mut server_dies, mut client_dies) = (Some(moment(draw ^ 77)), Some(moment(draw ^ 99)));
        while clients.iter_mut().any(|client| client.try_wait().unwrap().is_none()) {
            let now = self.wire.carried();
            if server_dies.take_if(|at| now >= *at).is_some() {
                self.server.kill();
                self.server.start_again();
            }
            if client_dies.take_if(|at| now >= *at).is_some() {
                let _ = clients[(draw % 3) as usize].kill();
            }
            std::thread::yield_now();
        }
        for (client, (child, operation)) in clients.into_iter().zip(&operations).enumerate() {
            let output = child.wait_with_output().unwrap();
            self.end(client, operation, &output);
        }
        (server_dies.is_none(), client_dies.is_none())
    }

    /// All of them, by their paths in the repository.
    fn objects(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let root = match &self.bucket {
            None => self.server.path("office"),
            Some(s3) => {
                let root = self.server.path("downloaded");
                let code = format!(
                    "import os\nroot = {root:?}\npages = s3.get_paginator('list_objects_v2').paginate(Bucket=bucket, Prefix='office/')\n\
                     for key in [one['Key'] for page in pages for one in page['Contents']]:\n    \
                     path = os.path.join(root, key[7:])\n    os.makedirs(os.path.dirname(path), exist_ok=True)\n    \
                     s3.download_file(bucket, key, path)"
                );
                s3.boto(&code);
                root
            }
        };
        let found = files(&root).into_iter();
        found.map(|(path, bytes)| (path.strip_prefix(&root).unwrap().to_owned(), bytes)).collect()
    }

    /// With nothing broken any more.
    fn verify(&mut self) {
        self.wire.calm();
        every_object_is_what_its_name_says(&self.objects());
        assert_eq!(json(self.cairn(0, "restore").args(["check", "--read-data"]))["clean"], true);
        let listed = json(self.cairn(0, "restore").arg("snapshots"));
        let listed: BTreeMap<String, u64> = listed.as_array().unwrap().iter().map(seed_of).collect();
        for id in self.committed.keys() {
            assert!(listed.contains_key(id) || self.let_go.contains(id), "{id} was committed and is gone");
        }
        // An import that was not told of its end may have committed. What is there is whole.
        let target = self.homes[0].path().join("restored");
        for (id, seed) in &listed {
            assert!(self.begun.contains(seed));
            run(self.cairn(0, "restore").args(["restore", id, "--format", "raw", "--force", "-o"]).arg(&target));
            assert!(std::fs::read(&target).unwrap() == content(*seed).to_bytes(), "{id}");
        }
    }
}

/// Disks that share some of their content.
fn content(seed: u64) -> ModelDisk {
    let mut common = disk(seed % 2);
    common.pages.extend(ModelDisk::scattered(6 << 20, 9, 100 + seed).pages);
    common
}

fn seed_of(snapshot: &Value) -> (String, u64) {
    let vm = snapshot["vm"].as_str().unwrap();
    (snapshot["id"].as_str().unwrap().to_owned(), vm.strip_prefix("seed-").unwrap().parse().unwrap())
}

/// Of leases, too: none is half there.
fn every_object_is_what_its_name_says(objects: &BTreeMap<PathBuf, Vec<u8>>) {
    for (path, bytes) in objects {
        let folder = path.iter().next().unwrap().to_str().unwrap();
        if !["packs", "snapshots", "keys", "leases"].contains(&folder) {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let hash = name.rsplit(['-', '.']).next().unwrap();
        assert_eq!(blake3::hash(bytes).to_hex().as_str(), hash, "{}", path.display());
    }
}

#[test]
fn whatever_breaks_nothing_committed_is_lost_and_nothing_is_half_there() {
    let world = campaign(None, 4, 10);
    // Who was killed with a turn holds clients up for half an hour; on the folder, with the server down, dead is dead.
    let folder = world.server.path("office");
    let World { mut server, .. } = world;
    server.kill();
    run(cairn(&folder).args(["forget", "--keep-last", "1"]));
    let collected = json(cairn(&folder).args(["gc", "--grace", "0s"]));
    assert_eq!(collected["waiting_packs"], 0, "{collected}");
    assert_eq!(json(cairn(&folder).args(["check", "--read-data"]))["clean"], true);
}

#[test]
fn whatever_breaks_before_a_bucket_nothing_committed_is_lost_and_nothing_is_half_there() {
    let world = campaign(Some(S3Server::start()), 5, 5);
    let home = tempfile::tempdir().unwrap();
    let s3 = world.bucket.as_ref().unwrap();
    assert_eq!(json(&mut super::bucket::beside(s3, home.path(), &["check", "--read-data"]))["clean"], true);
}

fn campaign(bucket: Option<S3Server>, seed: u64, rounds: u64) -> World {
    let number = |name: &str, usual| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    let (seed, rounds) = (number("CAIRN_FAULT_SEED", seed), number("CAIRN_FAULT_ROUNDS", rounds));
    println!("CAIRN_FAULT_SEED={seed} CAIRN_FAULT_ROUNDS={rounds}");
    let mut world = World::new(seed, bucket);
    let (mut servers, mut clients) = (0, 0);
    for round in 0..rounds {
        let (server_died, client_died) = world.round(round, mix(seed ^ mix(round)));
        servers += u64::from(server_died);
        clients += u64::from(client_died);
    }
    world.verify();
    println!(
        "{} committed, {} let go, {} begun; servers killed {servers}, clients {clients}, connections broken {}, {} MiB carried",
        world.committed.len(),
        world.let_go.len(),
        world.begun.len(),
        world.wire.broken(),
        world.wire.carried() >> 20,
    );
    assert!(servers > 0 && clients > 0 && world.wire.broken() > 0, "the test is about something");
    // And everything goes on.
    let (image, fresh) = (world.image(0), content(1_000_000));
    fresh.write_raw(&image);
    let done =
        json(world.cairn(0, "backup").arg("import").arg(&image).args(["--vdi", "vdi-0", "--vm", "seed-1000000"]));
    let id = super::id(&done);
    let target = world.homes[0].path().join("restored");
    run(world.cairn(0, "restore").args(["restore", &id, "--format", "raw", "--force", "-o"]).arg(&target));
    assert!(std::fs::read(&target).unwrap() == fresh.to_bytes());
    world
}
