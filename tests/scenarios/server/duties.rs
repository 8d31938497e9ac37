//! What a server does by itself: with the structure key, and not more than that.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use jiff::{SignedDuration, Timestamp};
use repo_tests::cli::{cairn, fails, json, run};
use repo_tests::model::ModelDisk;
use repo_tests::server::Server;
use serde_json::Value;
use tempfile::TempDir;

use super::{Machine, disk, id};

/// A client of the namespace `office`, while the server is stopped and started.
pub(super) struct Client {
    address: String,
    home: TempDir,
    tokens: BTreeMap<&'static str, String>,
}

impl Client {
    pub(super) fn of(server: &Server) -> Self {
        let Machine { home, tokens, .. } = Machine::new(server);
        Self { address: server.address.clone(), home, tokens }
    }

    pub(super) fn cairn(&self, role: &str, arguments: &[&str]) -> Command {
        let mut command = Server::cairn_at(&self.address, self.home.path(), "office", &self.tokens[role]);
        command.args(["--retry-for", "0"]).args(arguments);
        command
    }
}

/// Makes a key of a role, and tells the server to do its duties with it.
pub(super) fn give_key(server: &mut Server, client: &Client, role: &str, duties: &str) {
    let key = server.path(&format!("{role}.key"));
    let public = run(&mut client.cairn("admin", &["key", "generate", key.to_str().unwrap()]));
    let public = String::from_utf8(public.stdout).unwrap();
    run(&mut client.cairn("admin", &["key", "add", "--role", role, "--recipient", public.trim()]));
    server.office = format!("[namespaces.office.duties]\nkey_file = \"{role}.key\"\n{duties}");
}

/// Runs duties now.
pub(super) fn run_duties(server: &Server, which: &[&str]) -> Vec<Value> {
    let arguments = [&["duties", "run", "office"], which].concat();
    json(&mut server.command(&arguments)).as_array().unwrap().clone()
}

pub(super) fn duty(ran: &[Value], name: &str) -> Value {
    ran.iter().find(|one| one["duty"] == name).unwrap_or_else(|| panic!("{name}: {ran:?}")).clone()
}

/// What the server itself does once a run is overdue, as after it was down.
fn done_by_itself(server: &mut Server, name: &str) -> Value {
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait());
    let path = server.path("state/duties.json");
    let long_ago = serde_json::json!({ "began_ms": 0, "took_ms": 1, "error": null, "result": {} });
    let noted = serde_json::json!({ "office": { "duties": { name: long_ago } } });
    std::fs::write(&path, noted.to_string()).unwrap();
    server.start_again();
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let noted: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let done = &noted["office"]["duties"][name];
        if done["began_ms"] != 0 {
            return done.clone();
        }
        assert!(Instant::now() < until, "{noted}\n{}", server.log());
        std::thread::yield_now();
    }
}

#[test]
fn with_the_structure_key_a_server_forgets_collects_and_measures() {
    let mut server = Server::start("");
    let client = Client::of(&server);
    run(&mut client.cairn("admin", &["init"]));
    let image = server.path("disk.raw");
    let import = |disk: &ModelDisk| {
        disk.write_raw(&image);
        id(&json(&mut client.cairn("backup", &["import", image.to_str().unwrap(), "--vdi", "vdi"])))
    };
    let disks: Vec<ModelDisk> = (1..=3).map(disk).collect();
    let ids: Vec<String> = disks.iter().map(import).collect();
    let duties = "gc = \"0 4 * * *\"\ngc_grace_minutes = 0\ncapacity = \"0 5 * * *\"\n\
                  retention = { schedule = \"0 3 * * *\", keep_last = 2 }\n";
    give_key(&mut server, &client, "structure", duties);

    let forgotten = done_by_itself(&mut server, "retention");
    assert_eq!((&forgotten["result"]["forgotten"], &forgotten["error"]), (&1.into(), &Value::Null), "{forgotten}");
    assert_eq!(forgotten["result"]["forgotten_ids"][0], ids[0].as_str());
    let text = String::from_utf8(run(&mut server.command(&["check"])).stdout).unwrap();
    assert!(text.contains("duties of office: key of the role structure\n"), "{text}");
    // Beside the server, by hand.
    let ran = run_duties(&server, &[]);
    let (collected, measured) = (duty(&ran, "gc"), duty(&ran, "capacity"));
    assert!(collected["result"]["deleted_packs"].as_u64().unwrap() > 0, "{collected}");
    assert_eq!(measured["result"]["snapshots"], 2, "{measured}");
    let report = json(&mut client.cairn("restore", &["report"]));
    for field in ["total_bytes", "live_bytes", "reclaimable_bytes"] {
        assert_eq!(measured["result"][field], report["repository"][field], "{field}");
    }
    let (status, told) = server.request("GET", "/v1/office", &server.token("restore", "office"), b"");
    let told: Value = serde_json::from_str(told.rsplit("\r\n\r\n").next().unwrap()).unwrap();
    assert_eq!((status, &told["capacity"]["snapshots"]), (200, &2.into()), "{told}");
    assert_eq!(told["capacity"]["capacity_bytes"], 64 << 20, "the quota");
    let shown = json(&mut server.command(&["duties", "show"]));
    assert!(shown.as_array().unwrap().iter().all(|one| one["next_ms"].is_number()), "{shown}");

    // What was kept restores, and goes on being backed up.
    for (id, disk) in ids.iter().zip(&disks).skip(1) {
        let target = server.path("restored");
        let output = target.to_str().unwrap();
        run(&mut client.cairn("restore", &["restore", id, "--format", "raw", "--output", output, "--force"]));
        assert!(std::fs::read(&target).unwrap() == disk.to_bytes());
    }
    import(&disks[0]);
    assert_eq!(json(&mut client.cairn("restore", &["check", "--read-data"]))["clean"], true);
}

/// By the times in the records alone the attacker's snapshots would push the honest ones out.
#[test]
fn snapshots_with_invented_times_push_no_honest_one_out() {
    let mut server = Server::start("");
    let client = Client::of(&server);
    run(&mut client.cairn("admin", &["init"]));
    let image = server.path("disk.raw");
    let days_ago = |days: i64| Timestamp::now() - SignedDuration::from_hours(24 * days);
    let import = |seed: u64, days: i64| {
        disk(seed).write_raw(&image);
        let time = days_ago(days).to_string();
        let arguments = ["import", image.to_str().unwrap(), "--vdi", "vdi", "--time", &time];
        id(&json(&mut client.cairn("backup", &arguments)))
    };
    // Three honest days, and what a stolen token adds today: seven days that pretend to be later ones, and one long past.
    let honest: Vec<String> = [30, 29, 28].map(|day| import(day, day as i64)).into();
    for (day, id) in [30, 29, 28].into_iter().zip(&honest) {
        let record = server.path("office/snapshots").join(id);
        File::options().write(true).open(record).unwrap().set_modified(SystemTime::from(days_ago(day))).unwrap();
    }
    for day in [7, 6, 5, 4, 3, 2, 1, 4000] {
        import(day, day as i64);
    }
    let planned = json(&mut client.cairn("operator", &["forget", "--keep-daily", "7", "--dry-run"]));
    let goes = |id: &String| {
        planned["snapshots"].as_array().unwrap().iter().any(|one| one["id"] == id.as_str() && one["forget"] == true)
    };
    assert!(honest.iter().all(goes), "the test is about something: {planned}");
    give_key(&mut server, &client, "structure", "retention = { schedule = \"0 3 * * *\", keep_daily = 7 }\n");
    server.kill();
    server.start_again();
    let ran = run_duties(&server, &["retention"]);
    let listed = json(&mut client.cairn("restore", &["snapshots"]));
    let listed = listed.as_array().unwrap();
    assert!(honest.iter().all(|id| listed.iter().any(|one| one["id"] == id.as_str())), "{ran:?}");
    let stored = listed.iter().find(|one| one["id"] == honest[0].as_str()).unwrap()["stored"].as_str().unwrap();
    assert!(stored < listed.last().unwrap()["stored"].as_str().unwrap(), "{listed:?}");
}

#[test]
fn a_key_that_opens_nothing_or_too_much_is_said() {
    let mut server = Server::start("");
    let client = Client::of(&server);
    let check = |server: &Server| String::from_utf8(run(&mut server.command(&["check"])).stdout).unwrap();
    let restart = |server: &mut Server| {
        server.kill();
        server.start_again();
    };
    server.office = "duties = { gc = \"0 4 * * *\", key_file = \"none.key\" }\n".to_owned();
    restart(&mut server);
    assert!(check(&server).contains("no repository yet"), "{}", check(&server));
    run(&mut client.cairn("admin", &["init"]));
    assert!(check(&server).contains("none.key"), "{}", check(&server));
    let other = server.path("none.key");
    run(&mut client.cairn("admin", &["key", "generate", other.to_str().unwrap()]));
    let (code, text) = fails(&mut server.command(&["duties", "run", "office", "gc"]));
    assert!(code == 1 && text.contains("1 of 1 duties failed"), "{text}");
    assert!(check(&server).contains("cannot be opened"), "{}", check(&server));
    give_key(&mut server, &client, "restore", "gc = \"0 4 * * *\"\n");
    restart(&mut server);
    assert!(check(&server).contains("more than duties need"), "{}", check(&server));
    let (_, text) = fails(&mut server.command(&["duties", "run", "office", "capacity"]));
    assert!(text.contains("no such duty"), "{text}");
    assert!(Path::new(&server.path("state/duties.json")).exists());
}

#[test]
fn a_server_pulls_from_another_one_and_pushes_to_a_folder() {
    let source = Server::start("");
    let mut puller = Server::start("");
    let (client, reader) = (Client::of(&source), Client::of(&puller));
    run(&mut client.cairn("admin", &["init"]));
    let image = source.path("disk.raw");
    let import = |disk: &ModelDisk| {
        disk.write_raw(&image);
        id(&json(&mut client.cairn("backup", &["import", image.to_str().unwrap(), "--vdi", "vdi"])))
    };
    let disks: Vec<ModelDisk> = (1..=3).map(disk).collect();
    let first = import(&disks[0]);
    give_key(&mut puller, &client, "structure", "");
    std::fs::write(puller.path("source.token"), &client.tokens["restore"]).unwrap();
    let folder = puller.path("offsite");
    puller.office.push_str(&format!(
        "[namespaces.office.duties.sync.near]\nschedule = \"0 1 * * *\"\nfrom = \"https://{}/office\"\ninit = true\n\
         token_file = \"source.token\"\nfingerprint = \"{}\"\n\
         [namespaces.office.duties.sync.offsite]\nschedule = \"0 2 * * *\"\nto = {folder:?}\nnewest = 1\n",
        source.address, source.fingerprint
    ));

    // By itself, and the namespace becomes a copy.
    let pulled = done_by_itself(&mut puller, "sync:near");
    assert_eq!((&pulled["error"], &pulled["result"]["synced_snapshots"]), (&Value::Null, &1.into()), "{pulled}");
    let ids: Vec<String> = std::iter::once(first).chain(disks[1..].iter().map(import)).collect();
    let ran = run_duties(&puller, &["sync:near"]);
    assert_eq!(duty(&ran, "sync:near")["result"]["synced_snapshots"], 2, "{ran:?}");
    let again = run_duties(&puller, &["sync:near"]);
    let again = duty(&again, "sync:near");
    assert_eq!(
        (&again["result"]["synced_snapshots"], &again["result"]["moved_bytes"]),
        (&0.into(), &0.into()),
        "{again}"
    );
    // An empty folder may be one that is not mounted.
    std::fs::create_dir(&folder).unwrap();
    let output = puller.command(&["duties", "run", "office", "sync:offsite", "--json"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && told.contains("is it mounted?"), "{told}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    std::fs::remove_dir(&folder).unwrap();
    puller.kill();
    puller.office.push_str("init = true\n");
    puller.start_again();
    let ran = run_duties(&puller, &["sync:offsite"]);
    assert_eq!(duty(&ran, "sync:offsite")["result"]["synced_snapshots"], 1, "{ran:?}");

    for (id, disk) in ids.iter().zip(&disks) {
        let target = puller.path("restored");
        let output = target.to_str().unwrap();
        run(&mut reader.cairn("restore", &["restore", id, "--format", "raw", "--output", output, "--force"]));
        assert!(std::fs::read(&target).unwrap() == disk.to_bytes());
    }
    assert_eq!(json(&mut reader.cairn("restore", &["check", "--read-data"]))["clean"], true);
    let listed = json(cairn(&folder).arg("snapshots"));
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["id"]), (1, &ids[2].as_str().into()), "{listed}");
    assert_eq!(json(cairn(&folder).args(["check", "--read-data"]))["clean"], true);

    // A token that ended is said, and what was pulled before is told on.
    let token = client.tokens["restore"].split('.').nth(1).unwrap().to_owned();
    run(&mut source.command(&["token", "revoke", &token]));
    let output = puller.command(&["duties", "run", "office", "sync:near", "--json"]).output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!output.status.success() && told[0]["error"].as_str().unwrap().contains("token"), "{told}");
    assert_eq!(told[0]["result"]["synced_snapshots"], 0, "{told}");
}
