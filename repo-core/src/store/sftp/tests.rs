use super::*;
use crate::error::ErrorKind;

fn place(url: &str) -> SftpPlace {
    SftpPlace::parse(url).unwrap().unwrap()
}

#[test]
fn urls_name_a_host_and_a_folder() {
    let found = place("sftp://backup@storage.example:2222/srv/my backups/pool1/");
    assert_eq!(
        (found.host.as_str(), found.user.as_deref(), found.port),
        ("storage.example", Some("backup"), Some(2222))
    );
    assert_eq!(found.path, "/srv/my backups/pool1");
    assert_eq!(place("sftp://box/~/cairn").path, "cairn");
    assert_eq!(place("sftp://[::1]:22/x").host, "::1");
    assert_eq!((place("sftp://::1/x").host.as_str(), place("sftp://::1/x").port), ("::1", None));
    for other in ["/srv/x", "s3://b/p", "https://h/n"] {
        assert_eq!(SftpPlace::parse(other).unwrap(), None);
    }
    for bad in [
        "sftp://host",
        "sftp://host/",
        "sftp:///x",
        "sftp://host/~/",
        "sftp://host/a/../b",
        "sftp://host/a//b",
        "sftp://host:port/x",
        "sftp://-oProxyCommand=x/y",
        "sftp://-l@host/y",
        "sftp://a b/x",
        "sftp://host/a\nb",
    ] {
        assert_eq!(SftpPlace::parse(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
    }
}

#[test]
fn a_host_is_never_taken_for_an_option() {
    let command = place("sftp://me@host:99/x").command(&["ssh".into(), "-v".into()]);
    let words: Vec<_> = command.iter().map(|word| word.to_str().unwrap()).collect();
    assert_eq!(words[..2], ["ssh", "-v"]);
    assert_eq!(words[words.len() - 8..], ["-p", "99", "-l", "me", "-s", "--", "host", "sftp"]);
}

#[test]
fn two_places_have_two_addresses() {
    let urls = ["sftp://h/a", "sftp://h/~/a", "sftp://h:1/a", "sftp://u@h/a", "sftp://h2/a", "sftp://h/b"];
    let addresses: std::collections::BTreeSet<_> = urls.iter().map(|url| place(url).address()).collect();
    assert_eq!(addresses.len(), urls.len());
}
