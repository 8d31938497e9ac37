//! A namespace in a bucket: the server asks the store on behalf of its clients, which see what they see of a folder.

use std::path::Path;
use std::process::Command;

use repo_tests::cli::{cairn, fails, json, run};
use repo_tests::model::ModelDisk;
use repo_tests::s3::{KEY, S3Server, SECRET, variables};
use repo_tests::server::Server;
use serde_json::Value;

use super::duties::{Client, duty, give_key, run_duties};
use super::{Machine, disk, id, object};

/// Names of the objects in the bucket that begin so.
fn objects(s3: &S3Server, start: &str) -> Vec<String> {
    let code = format!(
        "pages = s3.get_paginator('list_objects_v2').paginate(Bucket=bucket, Prefix={start:?})\n\
         print(json.dumps([one['Key'] for page in pages for one in page.get('Contents', [])]))"
    );
    serde_json::from_str(&s3.boto(&code)).unwrap()
}

/// A process with the store's own keys, beside the server.
pub(super) fn beside(s3: &S3Server, home: &Path, arguments: &[&str]) -> Command {
    let mut command = cairn(Path::new(&s3.place("office")));
    command.args(arguments).envs(variables(&s3.address)).env("HOME", home);
    command.env_remove("XDG_CACHE_HOME").env_remove("XDG_CONFIG_HOME");
    command
}

#[test]
fn the_life_of_a_repository_in_a_bucket_behind_a_server_is_that_of_one_in_a_folder() {
    let s3 = S3Server::start();
    let server = Server::start_on(&s3, "");
    let machine = Machine::new(&server);
    run(&mut machine.cairn("admin", &["init"]));
    let (_, text) = fails(&mut machine.cairn("admin", &["init"]));
    assert!(text.contains("is a repository already"), "{text}");

    let mut second = disk(1);
    second.pages.insert(5, 77);
    let ids: Vec<_> = [disk(1), second.clone()].iter().map(|disk| id(&json(&mut machine.import(disk)))).collect();
    assert_eq!(machine.snapshots(), ids);
    assert_eq!(machine.restore(&ids[0]), disk(1).to_bytes());
    assert_eq!(machine.restore(&ids[1]), second.to_bytes());
    let again = json(&mut machine.import(&second));
    assert_eq!(again["stored_bytes"].as_u64().unwrap() / 4096, 0, "{again}");
    let stored = json(&mut machine.cairn("restore", &["show", &ids[0]]))["stored"].clone();
    assert!(!stored.is_null(), "the store's clock says when");

    for (role, arguments) in [
        ("restore", vec!["import", machine.home.path().join("disk.raw").to_str().unwrap(), "--vdi", "x"]),
        ("backup", vec!["forget", &ids[0]]),
        ("restore", vec!["protect", &ids[0]]),
    ] {
        let (code, text) = fails(&mut machine.cairn(role, &arguments));
        assert!(code == 1 && text.contains("the server does not allow it"), "{role} {arguments:?}: {text}");
    }
    run(&mut machine.cairn("operator", &["protect", &ids[1]]));
    run(&mut machine.cairn("operator", &["forget", &ids[0]]));
    let collected = json(&mut machine.cairn("operator", &["gc", "--grace", "0s", "--max-waste", "0"]));
    assert!(collected["deleted_packs"].as_u64().unwrap() > 0, "{collected}");
    run(&mut machine.cairn("operator", &["check", "--read-data"]));
    assert_eq!(machine.restore(&ids[1]), second.to_bytes());
    // What is in the bucket is a repository like any other.
    run(&mut beside(&s3, machine.home.path(), &["check", "--read-data"]));
    assert_eq!([objects(&s3, "office/leases/"), objects(&s3, "office/renewals/")].concat(), Vec::<String>::new());
    assert!(std::fs::read_dir(server.path("state/leases/office")).unwrap().next().is_none());
}

#[test]
fn processes_with_the_keys_of_the_bucket_and_clients_of_the_server_work_side_by_side() {
    let s3 = S3Server::start();
    let server = Server::start_on(&s3, "");
    let machine = Machine::new(&server);
    let home = tempfile::tempdir().unwrap();
    run(&mut beside(&s3, home.path(), &["init"]));
    let image = home.path().join("disk.raw");
    let (mut imports, mut disks) = (Vec::new(), Vec::new());
    for seed in 1..4 {
        disk(seed).write_raw(&image);
        let direct = ["import", image.to_str().unwrap(), "--vdi", "direct"];
        disks.push((id(&json(&mut beside(&s3, home.path(), &direct))), disk(seed)));
        disks.push((id(&json(&mut machine.import(&disk(seed + 10)))), disk(seed + 10)));
        imports.push(seed);
    }
    run(&mut beside(&s3, home.path(), &["forget", &disks[0].0, "--allow-last"]));
    run(&mut machine.cairn("operator", &["forget", &disks[1].0, "--allow-last"]));
    run(&mut machine.cairn("operator", &["gc", "--grace", "0s"]));
    run(&mut beside(&s3, home.path(), &["gc", "--grace", "0s"]));
    for (id, disk) in &disks[2..] {
        assert!(machine.restore(id) == disk.to_bytes());
    }
    // A lease that somebody with the keys of the bucket revoked lets its holder store no snapshot any more.
    let token = server.token("backup", "office");
    let (path, lease) = object(b'l', "leases", b"lease");
    let put = |path: &str, bytes: &[u8]| server.request("PUT", &format!("/v1/office/{path}"), &token, bytes);
    let (record_path, record) = object(b's', "snapshots", b"record");
    assert_eq!(put(&record_path, &record).0, 409, "there is no lease yet");
    assert_eq!(put(&path, &lease).0, 201);
    let name = path.rsplit('/').next().unwrap();
    s3.boto(&format!("s3.put_object(Bucket=bucket, Key='office/revoked/{name}', Body=b'x')"));
    assert_eq!(put(&record_path, &record).0, 409);
    assert!(!objects(&s3, "office/snapshots/").contains(&format!("office/{record_path}")));
}

#[test]
fn a_bucket_holds_no_more_than_the_quota() {
    let s3 = S3Server::start();
    let mut server = Server::start_on(&s3, "");
    let tokens = {
        let machine = Machine::new(&server);
        run(&mut machine.cairn("admin", &["init"]));
        let (_, text) = fails(&mut machine.import(&ModelDisk::scattered(160 << 20, 1, 9)));
        assert!(text.contains("the namespace is full"), "{text}");
        assert!(machine.snapshots().is_empty());
        run(&mut machine.cairn("operator", &["gc", "--grace", "0s"]));
        run(&mut machine.import(&disk(1)));
        machine.tokens.clone()
    };
    let used = |server: &Server| {
        let (status, told) = server.request("GET", "/v1/office", &tokens["restore"], b"");
        assert_eq!(status, 200, "{told}");
        let told: Value = serde_json::from_str(told.rsplit("\r\n\r\n").next().unwrap()).unwrap();
        told["used_bytes"].as_u64().unwrap()
    };
    let counted = used(&server);
    server.kill();
    server.start_again();
    assert_eq!(used(&server), counted, "what was counted along is what is there");
}

#[test]
fn with_the_structure_key_a_server_keeps_house_in_a_bucket() {
    let s3 = S3Server::start();
    let mut server = Server::start_on(&s3, "");
    let client = Client::of(&server);
    run(&mut client.cairn("admin", &["init"]));
    let image = server.path("disk.raw");
    let ids: Vec<String> = (1..=3)
        .map(|seed| {
            disk(seed).write_raw(&image);
            id(&json(&mut client.cairn("backup", &["import", image.to_str().unwrap(), "--vdi", "vdi"])))
        })
        .collect();
    let duties = "gc = \"0 4 * * *\"\ngc_grace_minutes = 0\ncapacity = \"0 5 * * *\"\n\
                  retention = { schedule = \"0 3 * * *\", keep_last = 2 }\n";
    give_key(&mut server, &client, "structure", duties);
    server.kill();
    server.start_again();
    let text = String::from_utf8(run(&mut server.command(&["check"])).stdout).unwrap();
    assert!(text.contains("duties of office: key of the role structure\n"), "{text}");
    let ran = run_duties(&server, &[]);
    assert_eq!(duty(&ran, "retention")["result"]["forgotten_ids"][0], ids[0].as_str());
    assert!(duty(&ran, "gc")["result"]["deleted_packs"].as_u64().unwrap() > 0, "{ran:?}");
    let measured = duty(&ran, "capacity");
    let report = json(&mut client.cairn("restore", &["report"]));
    for field in ["total_bytes", "live_bytes", "reclaimable_bytes"] {
        assert_eq!(measured["result"][field], report["repository"][field], "{field}");
    }
    // The second time the index is there.
    run_duties(&server, &["capacity"]);
    assert_eq!(json(&mut client.cairn("restore", &["check", "--read-data"]))["clean"], true);
}

/// Others that the server keeps go on.
#[test]
fn a_store_that_is_gone_is_said_to_be_gone_and_comes_back() {
    let s3 = S3Server::start();
    // A port that nobody listens on.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let place = format!("url = \"{}\"", s3.place("office"));
    let mut server = Server::start_at("", &place, &variables(&nobody));
    let token = server.token("admin", "*");
    let get = |server: &Server, path: &str| server.request("GET", path, &token, b"").0;
    let (_, text) = fails(&mut server.command(&["check"]));
    assert!(text.contains("namespace office") && text.contains("cannot be reached"), "{text}");
    assert_eq!(get(&server, "/v1/office/packs"), 503);
    assert_eq!(get(&server, "/v1/lab/packs"), 200);
    assert_eq!(get(&server, "/readyz"), 503);
    assert_eq!(get(&server, "/healthz"), 200);
    let (path, pack) = object(b'p', "packs", b"pack");
    assert_eq!(server.request("PUT", &format!("/v1/office/{path}"), &token, &pack).0, 503);
    assert_eq!(server.request("PUT", &format!("/v1/lab/{path}"), &token, &pack).0, 201);
    // A bucket that is not there is no empty one.
    server.variables = variables(&s3.address).to_vec();
    let right = std::mem::replace(&mut server.place, "url = \"s3://no-such-bucket/office\"".to_owned());
    server.kill();
    server.start_again();
    assert_eq!(get(&server, "/readyz"), 503);
    let (_, text) = fails(&mut server.command(&["check"]));
    assert!(text.contains("no such bucket"), "{text}");
    server.place = right;
    server.kill();
    server.start_again();
    run(&mut server.command(&["check"]));
    assert_eq!(get(&server, "/readyz"), 200);
    assert_eq!(server.request("PUT", &format!("/v1/office/{path}"), &token, &pack).0, 201);
    assert_eq!(objects(&s3, ""), [format!("office/{path}")]);
}

/// Each namespace may be in a store of its own: the variables know one.
#[test]
fn keys_region_and_endpoint_come_from_the_profile_that_a_namespace_names() {
    let s3 = S3Server::start();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let keys = format!("[offsite]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n");
    let config = format!("[profile offsite]\nregion = us-east-1\nendpoint_url = http://{}\n", s3.address);
    let files = [
        ("AWS_SHARED_CREDENTIALS_FILE", file("credentials", keys)),
        ("AWS_CONFIG_FILE", file("config", config)),
        // What the variables name is another store.
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "other".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "other".to_owned()),
    ];
    let server = Server::start_at("", &format!("url = \"{}\"\nprofile = \"offsite\"", s3.place("office")), &files);
    run(&mut server.command(&["check"]));
    let (path, pack) = object(b'p', "packs", b"pack");
    let token = server.token("backup", "office");
    assert_eq!(server.request("PUT", &format!("/v1/office/{path}"), &token, &pack).0, 201);
    assert_eq!(objects(&s3, ""), [format!("office/{path}")]);
}
