//! Repositories on a cairn-server: the two programs as users run them, and clients that mean no good.

mod attempts;
mod bucket;
mod duties;
mod faults;
mod silence;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use repo_tests::cli::{fails, json, run};
use repo_tests::model::ModelDisk;
use repo_tests::s3::venv;
use repo_tests::server::{Server, answer, request};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// A machine with its own home, and tokens for the namespace `office`.
struct Machine<'a> {
    server: &'a Server,
    home: TempDir,
    tokens: BTreeMap<&'static str, String>,
}

impl<'a> Machine<'a> {
    fn new(server: &'a Server) -> Self {
        let roles = ["backup", "restore", "operator", "admin"];
        let tokens = roles.map(|role| (role, server.token(role, "office"))).into();
        Self { server, home: tempfile::tempdir().unwrap(), tokens }
    }

    fn cairn(&self, role: &str, arguments: &[&str]) -> Command {
        let mut command = self.server.cairn(self.home.path(), "office", &self.tokens[role]);
        command.args(arguments);
        command
    }

    fn import(&self, disk: &ModelDisk) -> Command {
        let image = self.home.path().join("disk.raw");
        disk.write_raw(&image);
        self.cairn("backup", &["import", image.to_str().unwrap(), "--vdi", "vdi"])
    }

    fn restore(&self, snapshot: &str) -> Vec<u8> {
        let target = self.home.path().join(format!("restored-{snapshot}"));
        let output = target.to_str().unwrap();
        run(&mut self.cairn("restore", &["restore", snapshot, "--format", "raw", "--output", output, "--force"]));
        std::fs::read(target).unwrap()
    }

    fn snapshots(&self) -> Vec<String> {
        let listed = json(&mut self.cairn("restore", &["snapshots"]));
        listed.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    }
}

fn disk(seed: u64) -> ModelDisk {
    ModelDisk::scattered(6 << 20, 3, seed)
}

fn id(imported: &Value) -> String {
    imported["snapshot"].as_str().unwrap_or_else(|| panic!("{imported}")).to_owned()
}

/// Every file of a repository, with its bytes.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => drop(found.insert(path.clone(), std::fs::read(path).unwrap())),
            }
        }
    }
    found
}

#[test]
fn the_life_of_a_repository_on_a_server_each_role_doing_its_part() {
    let server = Server::start("");
    let machine = Machine::new(&server);
    let first = run(&mut machine.cairn("admin", &["init"]));
    let said = String::from_utf8(first.stderr).unwrap();
    assert!(said.contains("is new here") && said.contains(&server.fingerprint), "{said}");
    let (_, text) = fails(&mut machine.cairn("admin", &["init"]));
    assert!(text.contains("is a repository already") && !text.contains("is new here"), "{text}");

    let mut second = disk(1);
    second.pages.insert(5, 77);
    let ids: Vec<_> = [disk(1), second.clone()].iter().map(|disk| id(&json(&mut machine.import(disk)))).collect();
    assert_eq!(machine.snapshots(), ids);
    assert_eq!(machine.restore(&ids[0]), disk(1).to_bytes());
    assert_eq!(machine.restore(&ids[1]), second.to_bytes());

    for (role, arguments) in [
        ("restore", vec!["import", machine.home.path().join("disk.raw").to_str().unwrap(), "--vdi", "x"]),
        ("backup", vec!["forget", &ids[0]]),
        ("restore", vec!["forget", &ids[0]]),
        ("backup", vec!["protect", &ids[0]]),
    ] {
        let (code, text) = fails(&mut machine.cairn(role, &arguments));
        assert!(code == 1 && text.contains("the server does not allow it"), "{role} {arguments:?}: {text}");
    }
    assert_eq!(machine.snapshots(), ids);
    run(&mut machine.cairn("operator", &["protect", &ids[1]]));
    run(&mut machine.cairn("operator", &["forget", &ids[0]]));
    let collected = json(&mut machine.cairn("operator", &["gc", "--grace", "0s", "--max-waste", "0"]));
    assert!(collected["deleted_packs"].as_u64().unwrap() > 0, "{collected}");
    run(&mut machine.cairn("operator", &["check", "--read-data"]));
    assert_eq!(machine.restore(&ids[1]), second.to_bytes());
    // What the server keeps is a repository like any other.
    let folder = server.path("office");
    run(repo_tests::cli::cairn(&folder).args(["check", "--read-data"]));
    assert!(std::fs::read_dir(folder.join("leases")).unwrap().next().is_none());
    assert!(std::fs::read_dir(server.path("state/leases/office")).unwrap().next().is_none());
}

#[test]
fn a_client_says_clearly_what_keeps_it_from_the_server() {
    let mut server = Server::start("");
    let machine = Machine::new(&server);
    run(&mut machine.cairn("admin", &["init"]));
    let said = |command: &mut Command| fails(command).1;
    let text = said(machine.cairn("backup", &["snapshots"]).env("CAIRN_TOKEN", "cairn.00000000.x"));
    assert!(text.contains("does not know the token"), "{text}");
    let text = said(machine.cairn("backup", &["snapshots"]).env_remove("CAIRN_TOKEN"));
    assert!(text.contains("there is no token"), "{text}");
    let url = format!("https://{}/lab", server.address);
    let text = said(machine.cairn("backup", &["snapshots"]).env("CAIRN_REPO", url));
    assert!(text.contains("is not good for namespace"), "{text}");
    let wrong = format!("sha256:{}", "0".repeat(64));
    let text = said(machine.cairn("backup", &["snapshots"]).env("CAIRN_FINGERPRINT", wrong));
    assert!(text.contains("another certificate than the pinned one"), "{text}");
    assert!(text.contains(&server.fingerprint), "{text}");
    let pinned = server.fingerprint.clone();
    let elsewhere = tempfile::tempdir().unwrap();
    run(machine.cairn("backup", &["snapshots"]).env("CAIRN_FINGERPRINT", &pinned).env("HOME", elsewhere.path()));
    assert!(!elsewhere.path().join(".config").exists(), "what is said is not remembered");
    // More than there is room for; what came of it is freed again.
    let text = said(&mut machine.import(&ModelDisk::scattered(160 << 20, 1, 9)));
    assert!(text.contains("the namespace is full"), "{text}");
    assert!(machine.snapshots().is_empty());
    run(&mut machine.cairn("operator", &["gc", "--grace", "0s"]));
    run(&mut machine.import(&disk(1)));

    // A new certificate: whoever remembers the old one goes no further.
    let token = server.command(&["token", "list"]).output().unwrap();
    let listed = String::from_utf8(token.stdout).unwrap();
    assert!(machine.tokens.values().all(|token| listed.contains(token.split('.').nth(1).unwrap())), "{listed}");
    let backup = machine.tokens["backup"].clone();
    let home = machine.home;
    server.signal(Signal::TERM);
    assert!(server.wait(), "{}", server.log());
    std::fs::remove_dir_all(server.path("state/tls")).unwrap();
    server.start_again();
    let text = said(server.cairn(home.path(), "office", &backup).arg("snapshots"));
    assert!(text.contains("another certificate than the pinned one"), "{text}");
    run(&mut server.command(&["token", "revoke", backup.split('.').nth(1).unwrap()]));
    let text = said(
        server.cairn(home.path(), "office", &backup).arg("snapshots").env("CAIRN_FINGERPRINT", &server.fingerprint),
    );
    assert!(text.contains("does not know the token"), "{text}");
    server.kill();
    let text = said(server.cairn(home.path(), "office", &backup).arg("snapshots"));
    assert!(text.contains("cannot be reached"), "{text}");
}

/// An object of a kind, which a header and some bytes make, and its path.
fn object(kind: u8, folder: &str, bytes: &[u8]) -> (String, Vec<u8>) {
    let mut object = b"CAIRN".to_vec();
    object.extend([kind, 2, 0]);
    object.extend([0; 8]);
    object.extend(bytes);
    let hash = blake3::hash(&object).to_hex();
    let path = match folder {
        "packs" => format!("packs/{}/{hash}", &hash[..2]),
        "snapshots/tombstones" => format!("{folder}/{:016x}-{:08x}-{hash}", 1, 0),
        _ => format!("{folder}/{hash}"),
    };
    (path, object)
}

/// When a server is killed.
#[derive(Debug, Clone, Copy)]
enum Point {
    /// The client has its lease.
    Lease,
    /// A pack is coming in.
    Upload,
    /// So many packs are there.
    Pack(usize),
    /// The record is there; the client may not know it yet.
    Record,
}

impl Point {
    fn is_reached(self, before: &Seen, now: &Seen) -> bool {
        match self {
            Self::Lease => now.leases > before.leases,
            Self::Upload => now.unnamed > 0,
            Self::Pack(count) => now.packs >= before.packs + count,
            Self::Record => now.records > before.records,
        }
    }
}

/// What a server's folder shows from outside.
struct Seen {
    leases: usize,
    packs: usize,
    records: usize,
    unnamed: usize,
}

impl Seen {
    fn of(server: &Server) -> Self {
        let count = |folder: PathBuf| std::fs::read_dir(folder).map_or(0, Iterator::count);
        let packs = server.path("office/packs");
        let folders = std::fs::read_dir(packs).unwrap().flatten();
        Self {
            leases: count(server.path("office/leases")),
            packs: folders.map(|folder| count(folder.path())).sum(),
            records: count(server.path("office/snapshots")),
            unnamed: server.unnamed_files(),
        }
    }
}

#[test]
fn a_server_that_is_killed_at_any_step_loses_nothing_that_was_committed() {
    let mut server = Server::start("");
    let tokens = {
        let machine = Machine::new(&server);
        run(&mut machine.cairn("admin", &["init"]));
        machine.tokens.clone()
    };
    let home = tempfile::tempdir().unwrap();
    let image = home.path().join("disk.raw");
    let import = |server: &Server, seed: u64| {
        disk(seed).write_raw(&image);
        let mut command = server.cairn(home.path(), "office", &tokens["backup"]);
        command.args(["import", image.to_str().unwrap(), "--vdi", "vdi"]);
        command
    };
    let fingerprint = server.fingerprint.clone();
    let first = id(&json(import(&server, 1).env("CAIRN_FINGERPRINT", &fingerprint)));
    let mut committed = vec![(first, 1)];
    let mut killed = 0;
    for (point, seed) in [Point::Lease, Point::Upload, Point::Pack(1), Point::Upload, Point::Pack(2), Point::Record]
        .into_iter()
        .zip(10..)
    {
        let before = Seen::of(&server);
        let mut command = import(&server, seed);
        command.args(["--json", "--limit-upload", "4MiB"]).env("CAIRN_FINGERPRINT", &fingerprint);
        let mut importing = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while importing.try_wait().unwrap().is_none() && !point.is_reached(&before, &Seen::of(&server)) {}
        server.kill();
        let output = importing.wait_with_output().unwrap();
        if output.status.success() {
            committed.push((id(&serde_json::from_slice(&output.stdout).unwrap()), seed));
        } else {
            killed += 1;
        }
        server.start_again();
        let pinned = |role: &str, arguments: &[&str]| {
            let mut command = server.cairn(home.path(), "office", &tokens[role]);
            command.args(arguments).env("CAIRN_FINGERPRINT", &fingerprint);
            command
        };
        run(&mut pinned("operator", &["check", "--read-data"]));
        let listed = json(&mut pinned("restore", &["snapshots"]));
        let listed: Vec<_> = listed.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
        assert!(committed.iter().all(|(id, _)| listed.contains(&id.as_str())), "{listed:?} {committed:?}");
        assert!(listed.len() <= committed.len() + 1, "a record whose answer was lost is the most there can be");
        if listed.len() > committed.len() {
            let lost = listed.iter().find(|id| committed.iter().all(|(known, _)| known != *id)).unwrap();
            committed.push(((*lost).to_owned(), seed));
        }
    }
    for (snapshot, seed) in &committed {
        let target = home.path().join("restored");
        let mut command = server.cairn(home.path(), "office", &tokens["restore"]);
        command.args(["restore", snapshot, "--format", "raw", "--force", "--output"]).arg(&target);
        run(command.env("CAIRN_FINGERPRINT", &fingerprint));
        assert!(std::fs::read(&target).unwrap() == disk(*seed).to_bytes(), "{snapshot}");
    }
    assert!(killed >= 4, "{killed} imports were broken off");
    // What an import leaves that its server did not survive stands in nobody's way.
    run(import(&server, 99).env("CAIRN_FINGERPRINT", &fingerprint));
}

#[test]
fn a_server_that_is_told_to_end_finishes_what_comes_and_drops_what_does_not() {
    let mut server = Server::start("grace_seconds = 2");
    let admin = server.token("admin", "office");
    let (name, bytes) = object(b'p', "packs", &vec![5; 1 << 20]);
    let (lost, lost_bytes) = object(b'p', "packs", &vec![6; 1 << 20]);
    let path = |name: &str| format!("/v1/office/{name}");
    let [mut coming, mut stuck] = [(&name, &bytes), (&lost, &lost_bytes)].map(|(name, bytes)| {
        let mut connection = server.connect();
        connection.write_all(&request("PUT", &path(name), &admin, bytes.len(), &bytes[..bytes.len() / 2])).unwrap();
        connection.flush().unwrap();
        connection
    });
    while server.unnamed_files() < 2 {}
    server.signal(Signal::TERM);
    coming.write_all(&bytes[bytes.len() / 2..]).unwrap();
    assert_eq!(answer(&mut coming).0, 201);
    assert!(server.wait(), "{}", server.log());
    let _ = stuck.write_all(b"too late");
    let kept: Vec<_> = files(&server.path("office")).into_keys().collect();
    assert_eq!(kept, [server.path("office").join(name)], "{}", server.log());
}

/// It did not say so, and clients sent their next request into the end now and then.
#[test]
fn a_connection_that_ends_after_a_refusal_says_so() {
    let server = Server::start("");
    let backup = server.token("backup", "office");
    let (name, bytes) = object(b'p', "packs", b"something");
    let put = |body: &[u8]| request("PUT", &format!("/v1/office/{name}"), &backup, body.len(), body);
    let staying = |request: Vec<u8>| {
        let text = String::from_utf8_lossy(&request).replace("connection: close\r\n", "");
        text.into_bytes()
    };
    assert!(bytes.is_ascii(), "it is sent as text");
    let (status, answer) = server.raw(&staying(put(&bytes[1..])));
    assert!(status == 400 && answer.to_lowercase().contains("\r\nconnection: close\r\n"), "{answer}");
    // One that is taken goes on.
    let (status, answers) = server.raw(&[staying(put(&bytes)), put(&bytes)].concat());
    assert!(status == 201 && answers.matches("HTTP/1.1 20").count() == 2, "{answers}");
}

#[test]
fn a_certificate_that_was_changed_is_shown_after_a_signal() {
    let server = Server::start("");
    let other = Server::start("");
    let machine = Machine::new(&server);
    run(&mut machine.cairn("admin", &["init"]));
    let snapshots = || {
        let mut command = machine.cairn("backup", &["snapshots"]);
        command.env("CAIRN_FINGERPRINT", &other.fingerprint).output().unwrap().status.success()
    };
    assert!(!snapshots());
    for file in ["state/tls/certificate.pem", "state/tls/key.pem"] {
        std::fs::copy(other.path(file), server.path(file)).unwrap();
    }
    server.signal(Signal::HUP);
    // Signals are taken up soon, not at once.
    assert!((0..100).any(|_| snapshots()), "{}", server.log());
}

const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";

#[test]
fn a_program_that_tries_what_the_description_allows_finds_no_failure_of_the_server() {
    let server = Server::start("requests_per_second = 100000\nburst = 100000\nobject_mib = 1");
    let machine = Machine::new(&server);
    run(&mut machine.cairn("admin", &["init"]));
    id(&json(&mut machine.import(&disk(1))));
    // Whatever else is made up, it is this namespace's.
    std::fs::write(server.path("schemathesis.toml"), "[parameters]\n\"path.namespace\" = \"office\"\n").unwrap();
    let mut command = Command::new(venv().join("bin/schemathesis"));
    command
        .args(["run", &format!("https://{}/v1/openapi.json", server.address), "--tls-verify", "false"])
        .args(["--checks", CHECKS, "--phases", "coverage,fuzzing", "--max-examples", "60"])
        // One worker: with more, CPython 3.11 now and then fails in its own parser ("AST constructor recursion depth mismatch").
        .args(["--seed", "1", "--workers", "1", "--generation-database", "none", "--no-color"])
        .args(["--header", &format!("Authorization: Bearer {}", server.token("operator", "office"))])
        .current_dir(server.path(""));
    let ran = run(&mut command);
    println!("{}", String::from_utf8_lossy(&ran.stdout));
    let failed: Vec<_> =
        server.log().lines().filter(|line| line.contains("\"level\":\"error\"")).map(str::to_owned).collect();
    assert!(failed.is_empty(), "{failed:?}");
    run(&mut machine.cairn("operator", &["check", "--read-data"]));
}
