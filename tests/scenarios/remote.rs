//! Repositories on S3: the command line against a real server, through a proxy that breaks things.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use repo_tests::cli::{cairn, fails, json, run};
use repo_tests::model::{ModelDisk, mix};
use repo_tests::proxy::{Behaviour, Fault, Proxy};
use repo_tests::s3::{S3Server, is_lax, variables};
use serde_json::Value;
use tempfile::TempDir;

const FAULTS: [Fault; 5] = [Fault::SlowDown, Fault::LostAnswer, Fault::Reset, Fault::Truncated, Fault::Twice];

/// A machine: with a cache of its own.
struct Machine {
    folder: TempDir,
    address: String,
    repository: String,
}

impl Machine {
    fn new(address: &str, repository: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, address: address.to_owned(), repository: repository.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command with nothing of the caller's environment that could lead it elsewhere.
    fn cairn(&self, arguments: &[&str]) -> Command {
        let mut command = cairn(Path::new(&self.repository));
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("AWS_") || name.to_lowercase().ends_with("_proxy")) {
                command.env_remove(name);
            }
        }
        command.envs(variables(&self.address)).env("HOME", self.folder.path());
        command.env("XDG_CACHE_HOME", self.path("cache")).args(arguments);
        command
    }

    fn import(&self, disk: &ModelDisk, vdi: &str) -> Command {
        let image = self.path("disk.raw");
        disk.write_raw(&image);
        self.cairn(&["import", image.to_str().unwrap(), "--vdi", vdi])
    }

    fn restore(&self, snapshot: &str) -> Vec<u8> {
        let target = self.path(&format!("restored-{snapshot}"));
        run(&mut self.cairn(&[
            "restore",
            snapshot,
            "--format",
            "raw",
            "--output",
            target.to_str().unwrap(),
            "--force",
        ]));
        std::fs::read(target).unwrap()
    }

    fn snapshots(&self) -> Vec<String> {
        let listed = json(&mut self.cairn(&["snapshots"]));
        listed.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    }
}

fn disk(seed: u64) -> ModelDisk {
    ModelDisk::scattered(6 << 20, 3, seed)
}

fn id(imported: &Value) -> String {
    imported["snapshot"].as_str().unwrap_or_else(|| panic!("{imported}")).to_owned()
}

#[test]
fn the_life_of_a_repository_on_s3_is_that_of_one_in_a_folder() {
    let server = S3Server::start();
    let remote = Machine::new(&server.address, &server.place("pool/one"));
    let local = Machine::new(&server.address, tempfile::tempdir().unwrap().keep().join("r").to_str().unwrap());
    let made = json(&mut remote.cairn(&["init"]));
    assert_eq!(made["store"], serde_json::json!({ "create_only": !is_lax(), "read_after_write": true }));
    json(&mut local.cairn(&["init"]));
    let (code, text) = fails(&mut remote.cairn(&["init"]));
    assert!(code == 1 && text.contains("is a repository already"), "{text}");

    let mut second = disk(1);
    second.pages.insert(5, 77);
    let mut ids = Vec::new();
    for disk in [disk(1), second.clone()] {
        let [there, here] = [&remote, &local].map(|machine| json(&mut machine.import(&disk, "vdi")));
        // How long the chunks are that changed is a matter of the repository's key.
        for field in ["logical_bytes", "allocated_bytes", "blocks", "unchanged_blocks"] {
            assert_eq!(there[field], here[field], "{field}");
        }
        let sent = there["traffic"]["uploaded_bytes"].as_u64().unwrap();
        assert!(sent >= there["stored_bytes"].as_u64().unwrap(), "{there}");
        assert!(here.get("traffic").is_none());
        ids.push(id(&there));
    }
    assert_eq!(remote.snapshots(), ids);
    // Another machine, which has seen none of it.
    let other = Machine::new(&server.address, &server.place("pool/one"));
    assert_eq!(other.restore(&ids[0]), disk(1).to_bytes());
    assert_eq!(other.restore(&ids[1]), second.to_bytes());

    run(&mut other.cairn(&["protect", &ids[1]]));
    let (_, text) = fails(&mut remote.cairn(&["forget", &ids[1]]));
    assert!(text.contains("protected"), "{text}");
    run(&mut other.cairn(&["forget", &ids[0]]));
    let collected = json(&mut other.cairn(&["gc", "--grace", "0s", "--max-waste", "0"]));
    assert!(collected["deleted_packs"].as_u64().unwrap() > 0, "{collected}");
    run(&mut remote.cairn(&["check", "--read-data"]));
    assert_eq!(remote.snapshots(), [ids[1].clone()]);
    assert_eq!(remote.restore(&ids[1]), second.to_bytes());
    run(&mut remote.cairn(&["rebuild-index"]));
    run(&mut remote.cairn(&["report"]));
    std::fs::remove_dir_all(Path::new(&local.repository).parent().unwrap()).unwrap();
}

#[test]
fn several_machines_back_up_to_one_repository_at_once() {
    let server = S3Server::start();
    let machines: Vec<_> = (0..3).map(|_| Machine::new(&server.address, &server.place(""))).collect();
    run(&mut machines[0].cairn(&["init"]));
    let running: Vec<_> = (0..)
        .zip(&machines)
        .map(|(seed, machine)| {
            let mut import = machine.import(&disk(seed), &format!("vdi{seed}"));
            import.arg("--json").stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (seed, import) in (0..).zip(running) {
        let output = import.wait_with_output().unwrap();
        assert!(output.status.success());
        let id = id(&serde_json::from_slice(&output.stdout).unwrap());
        assert_eq!(machines[(seed as usize + 1) % 3].restore(&id), disk(seed).to_bytes());
    }
    run(&mut machines[0].cairn(&["check", "--read-data"]));
}

#[test]
fn racing_inits_and_imports_are_safe_on_a_store_that_replaces_what_it_should_not() {
    let server = S3Server::start();
    let behaviour = Behaviour { ignore_create: true, ..Behaviour::default() };
    let proxy = Proxy::start(&server.address, behaviour);
    for round in 0..3 {
        let place = server.place(&format!("round{round}"));
        let machines = [Machine::new(&proxy.address, &place), Machine::new(&proxy.address, &place)];
        let inits = [0, 1].map(|at: usize| {
            let mut init = machines[at].cairn(&["init", "--json"]);
            init.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
        });
        let made: Vec<Value> = inits
            .into_iter()
            .map(|init| init.wait_with_output().unwrap())
            .filter(|output| output.status.success())
            .map(|output| serde_json::from_slice(&output.stdout).unwrap())
            .collect();
        assert!(made.len() <= 1, "round {round}: both won");
        if made.is_empty() {
            continue;
        }
        assert_eq!(made[0]["store"]["create_only"], false);
        let running = [0, 1].map(|at| machines[at].import(&disk(at as u64), "vdi").spawn().unwrap());
        for mut import in running {
            assert!(import.wait().unwrap().success());
        }
        assert_eq!(machines[0].snapshots().len(), 2);
        run(&mut machines[1].cairn(&["check", "--read-data"]));
    }
}

#[test]
fn whatever_the_network_does_nothing_committed_is_lost_and_nothing_is_called_damaged() {
    let server = S3Server::start();
    let proxy = Proxy::start(&server.address, Behaviour::default());
    let machine = Machine::new(&proxy.address, &server.place("x"));
    run(&mut machine.cairn(&["init"]));
    let mut committed = Vec::new();
    for seed in 0..6 {
        println!("seed {seed}");
        // A listing that lags may show fewer packs than a record names, and too few snapshots to collect without grace.
        let lags = seed >= 3;
        let faults = FAULTS.into_iter().chain(lags.then_some(Fault::StaleList)).collect();
        proxy.behave(Behaviour { seed, fault_every: 9, faults, ..Behaviour::default() });
        let output = machine.import(&disk(seed), "vdi").arg("--json").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => committed.push((id(&serde_json::from_slice(&output.stdout).unwrap()), seed)),
            Some(1 | 4) => assert!(lags || !text.contains("\"kind\":\"corrupt\""), "{text}"),
            other => panic!("{other:?}: {text}"),
        }
        if let Some((id, seed)) = committed.last() {
            let target = machine.path("out");
            let arguments = ["restore", id, "--format", "raw", "--output", target.to_str().unwrap(), "--force"];
            let output = machine.cairn(&arguments).output().unwrap();
            match output.status.code() {
                Some(0) => assert_eq!(std::fs::read(&target).unwrap(), disk(*seed).to_bytes()),
                other => assert_eq!(other, Some(1), "{}", String::from_utf8_lossy(&output.stderr)),
            }
        }
        let output = machine.cairn(&["gc", "--grace", if lags { "1h" } else { "0s" }]).output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 1 | 4)), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(proxy.faults_met() > 20 && committed.len() > 1, "{} faults, {committed:?}", proxy.faults_met());
    proxy.behave(Behaviour::default());
    run(&mut machine.cairn(&["check", "--read-data"]));
    for (id, seed) in &committed {
        assert_eq!(machine.restore(id), disk(*seed).to_bytes());
    }
}

#[test]
fn a_client_that_is_killed_at_any_request_loses_nothing_that_was_committed() {
    let server = S3Server::start();
    let proxy = Proxy::start(&server.address, Behaviour::default());
    let machine = Machine::new(&proxy.address, &server.place("x"));
    run(&mut machine.cairn(&["init"]));
    let first = id(&json(&mut machine.import(&disk(100), "vdi")));
    for seed in 0..6 {
        let after = 1 + mix(seed) % 16;
        println!("seed {seed}: killed after {after} requests");
        let before = proxy.requests();
        let mut import = machine.import(&disk(seed), "vdi");
        let mut import = import.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        proxy.wait_for(before + after);
        import.kill().unwrap();
        import.wait().unwrap();
    }
    run(&mut machine.cairn(&["check", "--read-data"]));
    assert_eq!(machine.restore(&first), disk(100).to_bytes());
    let last = id(&json(&mut machine.import(&disk(101), "vdi")));
    assert_eq!(machine.restore(&last), disk(101).to_bytes());
    // Who was killed left a lease, for which collections wait until it is old: they end well and say so.
    let collected = json(&mut machine.cairn(&["gc", "--grace", "0s"]));
    assert!(collected["deleted_packs"].is_u64(), "{collected}");
}

#[test]
fn what_is_wrong_with_the_place_or_the_key_is_said_plainly() {
    let server = S3Server::start();
    let machine = Machine::new(&server.address, "s3://nowhere/x");
    let (code, text) = fails(&mut machine.cairn(&["snapshots"]));
    if is_lax() {
        assert!(code == 1 && text.contains("has no config"), "{text}");
    } else {
        assert!(code == 1 && text.contains("no such bucket"), "{text}");
        let (_, text) = fails(&mut machine.cairn(&["init"]));
        assert!(text.contains("no such bucket") && text.contains("make the bucket first"), "{text}");
    }
    let machine = Machine::new(&server.address, &server.place("x"));
    let (code, text) = fails(&mut machine.cairn(&["snapshots"]));
    assert!(code == 1 && text.contains("is not a repository"), "{text}");
    let (_, text) = fails(machine.cairn(&["snapshots"]).env_remove("AWS_ACCESS_KEY_ID"));
    assert!(text.contains("no credentials") && text.contains("AWS_PROFILE"), "{text}");
    // Port 1 of loopback: nobody listens there.
    let (_, text) =
        fails(machine.cairn(&["snapshots", "--retry-for", "0"]).env("AWS_ENDPOINT_URL", "http://127.0.0.1:1"));
    assert!(text.contains("cannot be reached"), "{text}");
}

#[test]
fn the_requests_of_everyday_commands_are_few() {
    let server = S3Server::start();
    let machine = Machine::new(&server.address, &server.place("x"));
    run(&mut machine.cairn(&["init"]));
    for number in 0..5 {
        let mut disk = disk(1);
        disk.pages.insert(number, 1);
        json(&mut machine.import(&disk, "vdi"));
    }
    let mut changed = disk(1);
    changed.pages.insert(9, 9);
    let imported = json(&mut machine.import(&changed, "vdi"));
    println!("incremental import: {}", imported["traffic"]);
    let count = |value: &Value, field: &str| value["traffic"][field].as_u64().unwrap();
    assert!(count(&imported, "requests") <= 20, "{imported}");
    // Of `snapshots/`, where all is that may have changed.
    assert_eq!(count(&imported, "list"), 1, "{imported}");
    // Two packs, the record, the lease.
    assert_eq!(count(&imported, "put"), 4, "{imported}");

    // About 24 MiB in frames of 1 MiB: those that stand side by side come by one request.
    let large = ModelDisk::scattered(48 << 20, 2, 9);
    let snapshot = id(&json(&mut machine.import(&large, "large")));
    let target = machine.path("large");
    let arguments = ["restore", &snapshot, "--format", "raw", "--output", target.to_str().unwrap()];
    let restored = json(&mut machine.cairn(&arguments));
    println!("restore: {}", restored["traffic"]);
    assert_eq!(std::fs::read(target).unwrap(), large.to_bytes());
    assert!(count(&restored, "get") <= 18, "{restored}");
    assert_eq!(count(&restored, "list"), 1, "{restored}");
    let shown = json(&mut machine.cairn(&["show", &snapshot]));
    assert_eq!(count(&shown, "list"), 1, "{shown}");
}

#[test]
fn an_upload_that_is_held_to_a_rate_takes_its_time() {
    let server = S3Server::start();
    let machine = Machine::new(&server.address, &server.place("x"));
    run(&mut machine.cairn(&["init"]));
    let start = std::time::Instant::now();
    let imported = json(machine.import(&disk(1), "vdi").args(["--limit-upload", "512KiB"]));
    let sent = imported["traffic"]["uploaded_bytes"].as_u64().unwrap();
    // The last piece is sent at once.
    let least = (sent as f64 - 65536.0) / (512.0 * 1024.0);
    assert!(least > 1.0 && start.elapsed().as_secs_f64() >= least, "{sent} bytes in {:?}", start.elapsed());
}

/// What an import takes on a long line: the time of its bytes, and a round trip for each answer that has to be waited for.
#[test]
fn an_import_on_a_long_line_waits_for_few_answers() {
    let server = S3Server::start();
    let proxy = Proxy::start(&server.address, Behaviour::default());
    let machine = Machine::new(&proxy.address, &server.place("x"));
    run(&mut machine.cairn(&["init"]));
    json(&mut machine.import(&ModelDisk::scattered(96 << 20, 2, 9), "vdi"));
    for number in 0..4 {
        let mut disk = ModelDisk::scattered(96 << 20, 2, 9);
        disk.pages.insert(number, 1);
        json(&mut machine.import(&disk, "vdi"));
    }
    proxy.behave(Behaviour { latency: Duration::from_millis(100), ..Behaviour::default() });
    proxy.rounds();
    let mut day = ModelDisk::scattered(96 << 20, 2, 9);
    day.pages.extend((0..24u32 << 8).map(|page| (u64::from(page), 1_000_000 + page)));
    let imported = json(&mut machine.import(&day, "vdi"));
    let rounds = proxy.rounds();
    println!("{rounds} rounds, {}", imported["traffic"]);
    assert!(rounds <= 12, "{rounds}: {imported}");
    let of = |field: &str| imported["traffic"][field].as_u64().unwrap();
    // Nothing of the content is read back: only the configuration, the key slot, and a listing.
    assert!(of("get") == 2 && of("downloaded_bytes") < 64 << 10, "{imported}");
    let stored = imported["stored_bytes"].as_u64().unwrap();
    assert!(stored > 12 << 20 && of("uploaded_bytes") < stored + (16 << 10), "{imported}");
    // Data was sent while the disk was read, in packs that do not get many: each twice as long as all before it.
    let packs = of("put") - 3;
    assert!((2..=4).contains(&packs), "{imported}");
    assert_eq!(machine.restore(&id(&imported)), day.to_bytes());
}

#[test]
fn manifests_kept_on_this_machine_are_taken_for_what_they_are_and_never_for_the_stores() {
    let server = S3Server::start();
    let machine = Machine::new(&server.address, &server.place("x"));
    run(&mut machine.cairn(&["init"]));
    json(&mut machine.import(&disk(1), "vdi"));
    let folder = machine.path("cache/cairn/manifests");
    let kept: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 1);
    let mut bytes = std::fs::read(&kept[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&kept[0], &bytes).unwrap();
    let mut second = disk(1);
    second.pages.insert(5, 77);
    let imported = json(&mut machine.import(&second, "vdi"));
    assert!(imported["traffic"]["get"].as_u64().unwrap() > 2, "{imported}");
    assert_eq!(machine.restore(&id(&imported)), second.to_bytes());

    // Another machine fetches them once.
    let other = Machine::new(&server.address, &server.place("x"));
    let gets = [(), ()].map(|()| json(&mut other.import(&second, "vdi"))["traffic"]["get"].as_u64().unwrap());
    assert!(gets[1] < gets[0] && gets[1] == 2, "{gets:?}");

    // What the store lost is missed, although the copy is here.
    let id = kept[0].file_name().unwrap().to_str().unwrap().to_owned();
    let key = format!("x/packs/{}/{id}", &id[..2]);
    let delete = "import sys, boto3; boto3.client('s3', endpoint_url='http://' + sys.argv[1]).delete_object(Bucket=sys.argv[2], Key=sys.argv[3])";
    let python = repo_tests::s3::venv().join("bin/python");
    run(Command::new(python)
        .args(["-c", delete, &server.address, &server.bucket, &key])
        .envs(variables(&server.address)));
    let (code, text) = fails(&mut machine.cairn(&["check"]));
    assert_eq!(code, 3, "{text}");
}
