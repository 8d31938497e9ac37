//! Clients that fall silent in the middle of what they say.

use std::io::{Read, Write};

use repo_tests::server::{Server, request};

use super::{Machine, disk, files, id, object};
use repo_tests::cli::{json, run};

#[test]
fn uploads_that_fall_silent_are_dropped_and_their_places_go_to_others() {
    let server = Server::start("idle_seconds = 2\nuploads = 2");
    let machine = Machine::new(&server);
    run(&mut machine.cairn("admin", &["init"]));
    let before = files(&server.path("office"));
    let silent: Vec<_> = (0..2)
        .map(|number| {
            let (name, bytes) = object(b'p', "packs", &vec![number; 1 << 20]);
            let mut connection = server.connect();
            let head =
                request("PUT", &format!("/v1/office/{name}"), &machine.tokens["backup"], bytes.len(), &bytes[..1000]);
            connection.write_all(&head).unwrap();
            connection.flush().unwrap();
            connection
        })
        .collect();
    while server.unnamed_files() < 2 {}
    // There is no place left, and then there is.
    let disk = disk(1);
    let done = json(&mut machine.import(&disk));
    assert!(machine.restore(&id(&done)) == disk.to_bytes());
    for mut connection in silent {
        // The server says why, or closes; it does not wait for ever.
        let mut rest = Vec::new();
        let _ = connection.read_to_end(&mut rest);
        assert!(connection.write_all(&[0; 1 << 20]).and_then(|()| connection.flush()).is_err());
    }
    assert_eq!(server.unnamed_files(), 0);
    let after = files(&server.path("office"));
    assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)));
    assert_eq!(json(machine.cairn("restore", &["check"]).arg("--read-data"))["clean"], true);
}
