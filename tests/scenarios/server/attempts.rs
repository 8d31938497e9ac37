//! What a token for backups must not do, tried.

use std::io::Write;
use std::path::PathBuf;

use repo_tests::cli::{json, run};
use repo_tests::server::{Server, request};

use super::{Machine, disk, files, id, object};

/// Method, path, token, body, and the statuses that are right.
type Attempt<'a> = (&'a str, String, &'a str, Vec<u8>, &'a [u16]);

#[test]
fn a_backup_token_tries_everything_that_it_must_not_do_and_nothing_changes() {
    let server = Server::start("object_mib = 8\nrequests_per_second = 10000\nburst = 10000");
    let machine = Machine::new(&server);
    run(&mut machine.cairn("admin", &["init"]));
    let kept = id(&json(&mut machine.import(&disk(1))));
    run(&mut machine.cairn("operator", &["protect", &kept]));
    let before = [files(&server.path("office")), files(&server.path("lab"))];
    let in_folder = |folder: &str| {
        let root = server.path("office");
        let is_there = |path: &&PathBuf| match folder {
            "packs" => path.starts_with(root.join(folder)),
            _ => path.parent() == Some(&root.join(folder)),
        };
        let name = before[0].keys().find(is_there).unwrap();
        (name.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(), before[0][name].clone())
    };
    let [pack, snapshot, slot, annotation] = ["packs", "snapshots", "keys", "snapshots/annotations"].map(in_folder);
    let config = ("config".to_owned(), before[0][&server.path("office/config")].clone());
    let existing = [pack.clone(), snapshot.clone(), slot, annotation, config.clone()];

    let token = machine.tokens["backup"].as_str();
    let operator = machine.tokens["operator"].as_str();
    let v1 = |namespace: &str, name: &str| format!("/v1/{namespace}/{name}");
    let office = |name: &str| v1("office", name);
    let mut attempts: Vec<Attempt<'_>> = Vec::new();
    // Delete, overwrite.
    for (name, bytes) in &existing {
        let status: &[u16] = if name == "config" { &[403, 405] } else { &[403] };
        attempts.push(("DELETE", office(name), token, vec![], status));
        let mut other = bytes.clone();
        *other.last_mut().unwrap() ^= 1;
        let refused: &[u16] = if *name == pack.0 || *name == snapshot.0 { &[200] } else { &[403] };
        // "Existed": what was sent is not looked at, and what is there stays.
        attempts.push(("PUT", office(name), token, other, refused));
    }
    // What leads others to delete.
    for (kind, folder) in [(b't', "snapshots/tombstones"), (b'a', "snapshots/annotations"), (b'k', "keys")] {
        let (name, bytes) = object(kind, folder, b"made up");
        attempts.push(("PUT", office(&name), token, bytes, &[403]));
    }
    let (lease, bytes) = object(b'l', "leases", b"somebody else's");
    assert_eq!(server.request("PUT", &office(&lease), operator, &bytes).0, 201);
    let hash = lease.split('/').next_back().unwrap();
    attempts.push(("DELETE", office(&lease), token, vec![], &[403]));
    attempts.push(("PUT", office(&format!("renewals/{hash}")), token, bytes, &[409]));
    attempts.push(("PUT", office(&format!("revoked/{hash}")), token, object(b'r', "", &[1; 32]).1, &[403]));
    // Other namespaces, no token, none of ours.
    let (new_pack, bytes) = object(b'p', "packs", b"content");
    attempts.push(("PUT", v1("lab", &new_pack), token, bytes.clone(), &[403]));
    attempts.push(("GET", v1("lab", "packs"), token, vec![], &[403]));
    attempts.push(("GET", v1("no-such-one", "packs"), token, vec![], &[403]));
    let longer = format!("{token}x");
    for stranger in ["", "cairn.", "cairn.00000000.00", &token[..token.len() - 1], &longer] {
        attempts.push(("PUT", office(&new_pack), stranger, bytes.clone(), &[401, 429]));
        attempts.push(("GET", office("config"), stranger, vec![], &[401, 429]));
    }
    // Path tricks.
    let digits = new_pack.split('/').next_back().unwrap();
    for trick in [
        format!("../lab/{new_pack}"),
        format!("..%2flab%2fpacks/{}/{digits}", &digits[..2]),
        format!("packs/../../lab/packs/{}/{digits}", &digits[..2]),
        format!("packs/%2e%2e/{digits}"),
        format!("packs/zz/{digits}"),
        format!("packs/{}/{}", &digits[..2].to_uppercase(), digits.to_uppercase()),
        format!("packs/{}/{digits}%00", &digits[..2]),
        format!("packs//{digits}"),
        format!("index/{digits}"),
        format!("tmp/{digits}"),
        format!("quarantine/{digits}"),
        "packs/ab/..%2f..%2f..%2fetc%2fpasswd".to_owned(),
        "snapshots/%ff%fe".to_owned(),
        "config/".to_owned(),
        "keys".to_owned(),
    ] {
        for method in ["PUT", "GET", "DELETE"] {
            if method != "GET" || trick != "keys" {
                attempts.push((method, office(&trick), token, vec![1; 9], &[400, 403, 404, 405]));
            }
        }
    }
    // Wrong and malformed bytes.
    let mut changed = bytes.clone();
    changed[20] ^= 1;
    let cut = bytes[..bytes.len() - 1].to_vec();
    let (_, other_kind) = object(b's', "snapshots", b"content");
    let as_pack = blake3::hash(&other_kind).to_hex().to_string();
    for body in [changed, cut, vec![], b"CAIRN".to_vec()] {
        attempts.push(("PUT", office(&new_pack), token, body, &[400]));
    }
    attempts.push(("PUT", office(&format!("packs/{}/{as_pack}", &as_pack[..2])), token, other_kind, &[400]));
    let (name, record) = object(b's', "snapshots", b"without a lease");
    attempts.push(("PUT", office(&name), token, record, &[409]));
    // Too long, and more than there is room for.
    let (name, long) = object(b'p', "packs", &vec![1; 8 << 20]);
    attempts.push(("PUT", office(&name), token, long, &[413]));
    let (name, long) = object(b'l', "leases", &vec![1; 64 << 10]);
    attempts.push(("PUT", office(&name), token, long, &[413]));
    // Questions that make no sense.
    for (path, body, status) in
        [("have", &b"{"[..], &[400, 415][..]), ("have", b"{\"names\":[\"../config\"]}", &[400, 415])]
    {
        attempts.push(("POST", office(path), token, body.to_vec(), status));
    }
    for query in ["packs?limit=0", "packs?limit=99999999999", "packs?limit=-1", "packs?what=1", "nothing"] {
        attempts.push(("GET", office(query), token, vec![], &[400, 404]));
    }

    let audited = server.audit().len();
    let mut expected_audits = 0;
    for (method, path, token, body, expected) in &attempts {
        let (status, text) = server.request(method, path, token, body);
        assert!(expected.contains(&status), "{method} {path}: {status}, not one of {expected:?}: {text}");
        expected_audits += usize::from(matches!(*method, "PUT" | "DELETE") || [401, 403, 429].contains(&status));
    }
    let audit = server.audit().split_off(audited);
    assert_eq!(audit.len(), expected_audits);
    assert!(
        audit.iter().all(|entry| ["refused", "existed", "missing"].contains(&entry["outcome"].as_str().unwrap())),
        "{audit:?}"
    );
    // A body that ends too early, one that says it is longer than anything, one that is no HTTP.
    let mut connection = server.connect();
    connection.write_all(&request("PUT", &office(&new_pack), token, bytes.len(), &bytes[..10])).unwrap();
    drop(connection);
    assert_eq!(server.raw(&request("PUT", &office(&new_pack), token, usize::MAX >> 1, b"x")).0, 413);
    assert_eq!(server.raw(b"PUT\r\n\r\n").0, 400);

    server.request("DELETE", &office(&lease), operator, b"");
    let after = [files(&server.path("office")), files(&server.path("lab"))];
    assert_eq!(after[0].keys().collect::<Vec<_>>(), before[0].keys().collect::<Vec<_>>());
    assert!(after == before, "nothing changed");
    run(&mut machine.cairn("operator", &["check", "--read-data"]));
    assert_eq!(machine.restore(&kept), disk(1).to_bytes());
    // Full is full, and said so.
    let mut room = 64;
    let (status, text) = loop {
        let (name, bytes) = object(b'p', "packs", &vec![room; (8 << 20) - 16]);
        room -= 1;
        match server.request("PUT", &office(&name), token, &bytes) {
            (201, _) => assert!(room > 50, "the quota holds"),
            other => break other,
        }
    };
    assert!(status == 507 && text.contains("the namespace is full"), "{status} {text}");
}
