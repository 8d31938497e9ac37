//! Who holds what: hosts that only write, servers that see only structure, recipients, rotation, recovery sheets.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use repo_core::ErrorKind;
use repo_core::entropy::Entropy;
use repo_core::id::PackId;
use repo_core::keys::recipient::PrivateKey;
use repo_core::keys::slot::{Grant, Lock, NewSlot, Unlock};
use repo_core::keys::{Key, Role, derive};
use repo_core::monitor::Silent;
use repo_core::ops::backup::{BackupOptions, DiskInput, backup};
use repo_core::ops::open::{Session, open_session};
use repo_core::ops::restore::RestoreOptions;
use repo_core::pack::Content;
use repo_core::pack::reader::PackReader;
use repo_core::repository::Repository;
use repo_core::seal::{NONCE_ZERO, Suite};
use repo_core::store::{ObjectName, Store};
use repo_tests::cli::{cairn, fails, json, run};
use repo_tests::fixture::{RepoFixture, restore_stream};
use repo_tests::model::ModelDisk;
use repo_tests::vhd::{Vhd, Writer, id};

const MIB: u64 = 1 << 20;

/// A repository with one disk imported by the admin, and a key file for each role.
struct Holders {
    fixture: RepoFixture,
    disk: ModelDisk,
    image: PathBuf,
}

impl Holders {
    fn new() -> Self {
        let fixture = RepoFixture::small(Suite::Aes256Gcm);
        let disk = ModelDisk::scattered(6 * MIB, 2, 1);
        let holders = Self { image: fixture.folder.path().join("image.raw"), fixture, disk };
        for role in ["admin", "restore", "writer", "structure"] {
            let public = holders.generate(role);
            run(holders.admin().args(["key", "add", "--role", role, "--label", role, "--recipient", &public]));
        }
        holders.disk.write_raw(&holders.image);
        run(holders.admin().arg("import").arg(&holders.image).args(["--vdi", "a"]));
        holders
    }

    fn path(&self, name: &str) -> PathBuf {
        self.fixture.folder.path().join(name)
    }

    /// Makes the key file `name` and gives its public key.
    fn generate(&self, name: &str) -> String {
        let made = run(Command::new(repo_tests::cli::cairn_path()).args(["key", "generate"]).arg(self.path(name)));
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }

    /// `cairn` with the passphrase of the fixture.
    fn admin(&self) -> Command {
        cairn(&self.fixture.path())
    }

    /// `cairn` with the key file of a role and nothing else.
    fn holder(&self, role: &str) -> Command {
        let mut command = cairn(&self.fixture.path());
        command.env_remove("CAIRN_PASSPHRASE").env("CAIRN_KEY_FILE", self.path(role));
        command
    }

    fn restored(&self, mut command: Command) -> Vec<u8> {
        run(command.args(["restore", "a", "--format", "raw", "-o", "-"])).stdout
    }

    /// Every file of the repository but the index and what comes and goes, by name.
    fn objects(&self, folder: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        files(&self.fixture.path().join(folder)).into_iter().collect()
    }
}

fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push((path.clone(), std::fs::read(path).unwrap())),
        }
    }
    found
}

fn refused(command: &mut Command, texts: &[&str]) {
    let (code, said) = fails(command);
    assert_eq!(code, 1, "{said}");
    for text in texts {
        assert!(said.contains(text), "{text:?} is not in: {said}");
    }
}

#[test]
fn a_writer_adds_snapshots_and_reads_nothing_back() {
    let holders = Holders::new();
    let writer = || holders.holder("writer");
    let image = |path: &Path, disk: &ModelDisk| {
        disk.write_raw(path);
        path.to_owned()
    };

    // What the admin stored is found: only what changed is stored again.
    let mut disk = ModelDisk::scattered(6 * MIB, 2, 1);
    disk.pages.extend((100..110).map(|page| (page, 77)));
    let imported = json(writer().arg("import").arg(image(&holders.path("second.raw"), &disk)).args(["--vdi", "a"]));
    assert!(imported["new_bytes"].as_u64().unwrap() < MIB, "{imported}");
    // Whole blocks over a base take nothing of the base.
    let base = disk.to_bytes();
    let mut after = base.clone();
    after[3 << 20..(3 << 20) + 8192].fill(0x55);
    let mut delta = Vhd::new(Writer::Xapi, base.len() as u64, id(2), Some(id(1)));
    delta.store(&after, |sector| (sector * 512) >> 20 == 3);
    std::fs::write(holders.path("blocks.vhd"), delta.bytes()).unwrap();
    let over = ["--vdi", "a", "--base", "latest"];
    run(writer().arg("import").arg(holders.path("blocks.vhd")).args(over));
    // Parts of blocks do.
    let mut delta = Vhd::new(Writer::Tapdisk, base.len() as u64, id(3), Some(id(2)));
    delta.store(&after, |sector| sector == 9);
    std::fs::write(holders.path("sectors.vhd"), delta.bytes()).unwrap();
    refused(
        writer().arg("import").arg(holders.path("sectors.vhd")).args(over),
        &["import the disk in full", "does not grant the data role", "hint:"],
    );

    let data = "the key in use does not grant the data role";
    let hint = "give a key of the role that this takes, admin or restore for the content of disks";
    let out = holders.path("out.raw");
    refused(writer().args(["restore", "a", "--format", "raw", "-o"]).arg(&out), &[data, hint]);
    assert!(!out.exists());
    std::fs::write(holders.path("target.raw"), vec![1; 6 << 20]).unwrap();
    refused(writer().args(["restore", "a", "--in-place"]).arg(holders.path("target.raw")), &[data, hint]);
    assert!(std::fs::read(holders.path("target.raw")).unwrap() == vec![1; 6 << 20], "nothing was written");
    refused(writer().args(["check", "--read-data"]), &[data, hint]);
    refused(writer().args(["check", "--repair"]), &[data, hint]);
    let keys = "keys are managed by admin";
    refused(writer().args(["key", "add", "--recipient", "x"]), &[keys]);
    refused(writer().args(["key", "remove", "0000"]), &[keys]);
    refused(writer().args(["key", "recovery-sheet"]), &[keys]);

    // What needs no content works.
    for arguments in [&["snapshots"][..], &["check"], &["report"], &["key", "list"], &["rebuild-index"]] {
        run(writer().args(arguments));
    }
    let snapshots = json(writer().arg("snapshots"));
    let ids: Vec<_> = snapshots.as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 3);
    run(writer().args(["diff", &ids[0], &ids[2], "--vdi", "a"]));
    run(writer().args(["forget", &ids[0]]));
    // Whoever may read gets all of it back.
    for role in ["restore", "admin"] {
        assert!(holders.restored(holders.holder(role)) == after, "{role}");
    }
    assert!(holders.restored(holders.admin()) == after);
    run(holders.holder("restore").args(["check", "--read-data"]));
    refused(holders.holder("restore").args(["key", "add", "--recipient", "x"]), &[keys]);
    assert!(holders.fixture.check_all().is_clean());
}

#[test]
fn with_the_structure_key_garbage_is_found_and_freed_and_content_neither_added_nor_moved() {
    let holders = Holders::new();
    let server = || holders.holder("structure");
    // Nine pages in ten go, so that every pack is waste for the most part.
    let mut disk = ModelDisk::scattered(6 * MIB, 2, 1);
    disk.pages.retain(|page, _| page % 10 == 0);
    disk.write_raw(&holders.image);
    run(holders.admin().arg("import").arg(&holders.image).args(["--vdi", "a"]));
    ModelDisk::scattered(4 * MIB, 2, 9).write_raw(&holders.image);
    run(holders.admin().arg("import").arg(&holders.image).args(["--vdi", "gone"]));
    refused(server().arg("import").arg(&holders.image).args(["--vdi", "b"]), &["does not grant the identity role"]);
    refused(server().args(["restore", "a", "--format", "raw", "-o", "-"]), &["does not grant the data role"]);
    let snapshots = json(server().arg("snapshots"));
    let first = snapshots[0]["id"].as_str().unwrap().to_owned();
    run(server().args(["forget", &first]));
    let gone = snapshots.as_array().unwrap().iter().find(|s| s["disks"][0]["vdi"] == "gone").unwrap();
    run(server().args(["forget", gone["id"].as_str().unwrap(), "--allow-last"]));
    for arguments in [&["check"][..], &["report"]] {
        run(server().args(arguments));
    }
    let collected = json(server().args(["gc", "--grace", "0s"]));
    let count = |field: &str| collected[field].as_u64().unwrap();
    assert!(count("deleted_packs") > 0 && count("unreadable_packs") > 0, "{collected}");
    let text = String::from_utf8(run(server().args(["gc", "--grace", "0s"])).stdout).unwrap();
    assert!(text.contains("not moved") && text.contains("does not read content"), "{text}");
    assert!(holders.restored(holders.admin()) == disk.to_bytes());
    // Whoever reads content moves the rest.
    let collected = json(holders.admin().args(["gc", "--grace", "0s"]));
    assert!(collected["repacked_packs"].as_u64().unwrap() > 0 && collected["unreadable_packs"] == 0, "{collected}");
    assert!(holders.restored(holders.admin()) == disk.to_bytes());
    assert!(holders.fixture.check_all().is_clean());
}

#[test]
fn a_flipped_sealed_byte_of_a_write_only_host_is_found() {
    let holders = Holders::new();
    let known = holders.objects("packs");
    ModelDisk::scattered(4 * MIB, 3, 5).write_raw(&holders.image);
    run(holders.holder("writer").arg("import").arg(&holders.image).args(["--vdi", "b"]));
    let added: Vec<_> = holders.objects("packs").into_iter().filter(|(path, _)| !known.contains_key(path)).collect();
    run(holders.admin().args(["check", "--read-data"]));
    // In the header, in the encapsulation, in a frame.
    for at in [20, 600, 3000] {
        let (path, bytes) = added.iter().find(|(_, bytes)| bytes[16] == 1 && bytes.len() > 4000).unwrap();
        let mut changed = bytes.clone();
        changed[at] ^= 4;
        std::fs::write(path, changed).unwrap();
        let (code, said) = fails(holders.holder("restore").args(["check", "--read-data"]));
        assert_eq!(code, 3, "byte {at}: {said}");
        let restore = fails(holders.holder("restore").args(["restore", "b", "--format", "raw", "-o", "-"]));
        assert_eq!(restore.0, 1, "byte {at}");
        std::fs::write(path, bytes).unwrap();
    }
    run(holders.admin().args(["check", "--read-data"]));
}

#[test]
fn rotation_changes_who_opens_and_no_byte_of_content() {
    let holders = Holders::new();
    let packs = holders.objects("packs");
    let expected = holders.disk.to_bytes();
    std::fs::write(holders.path("new"), "a new passphrase\n").unwrap();
    let rotated = json(holders.admin().args(["key", "rotate", "--new-passphrase-file"]).arg(holders.path("new")));
    refused(holders.admin().arg("snapshots"), &["wrong passphrase"]);
    let again = || {
        let mut command = holders.admin();
        command.env("CAIRN_PASSPHRASE", "a new passphrase");
        command
    };
    assert!(holders.restored(again()) == expected);
    let keys = json(again().args(["key", "list"]));
    let of = |id: &serde_json::Value| keys.as_array().unwrap().iter().find(|key| key["key"] == *id).cloned();
    assert_eq!(of(&rotated["removed"]), None);
    let new = of(&rotated["added"]).unwrap();
    assert_eq!((&new["label"], &new["in_use"], &new["role"]), (&"first".into(), &true.into(), &"admin".into()));

    // A key pair goes the same way, and a writer's by an admin.
    let public = holders.generate("admin-2");
    run(holders.holder("admin").args(["key", "rotate", "--recipient", &public]));
    refused(holders.holder("admin").arg("snapshots"), &["opens no key slot of this repository"]);
    assert!(holders.restored(holders.holder("admin-2")) == expected);
    refused(holders.holder("writer").args(["key", "rotate", "--recipient", &public]), &["managed by admin"]);
    let old = keys.as_array().unwrap().iter().find(|key| key["label"] == "writer").unwrap()["key"].clone();
    let public = holders.generate("writer-2");
    run(again().args(["key", "add", "--role", "writer", "--recipient", &public]));
    run(again().args(["key", "remove", old.as_str().unwrap()]));
    refused(holders.holder("writer").arg("snapshots"), &["opens no key slot of this repository"]);
    run(holders.holder("writer-2").arg("import").arg(&holders.image).args(["--vdi", "a"]));

    let now = holders.objects("packs");
    assert!(packs.iter().all(|(path, bytes)| now.get(path) == Some(bytes)), "content was rewritten");
}

#[test]
fn the_last_admin_stays_whoever_else_there_is() {
    let holders = Holders::new();
    let keys = json(holders.admin().args(["key", "list"]));
    let admins: Vec<_> = keys.as_array().unwrap().iter().filter(|key| key["role"] == "admin").collect();
    assert_eq!((admins.len(), keys.as_array().unwrap().len()), (2, 5));
    let own = admins.iter().find(|key| key["in_use"] == true).unwrap()["key"].as_str().unwrap();
    let other = admins.iter().find(|key| key["in_use"] == false).unwrap()["key"].as_str().unwrap();
    run(holders.admin().args(["key", "remove", other]));
    refused(holders.admin().args(["key", "remove", own]), &["last key slot that grants everything"]);
    // The key file of a repository is made with it, too.
    let path = holders.path("by-key");
    let mut command = cairn(&path);
    command.env_remove("CAIRN_PASSPHRASE").arg("--key-file").arg(holders.path("admin"));
    run(command.arg("init"));
    let mut command = cairn(&path);
    command.env_remove("CAIRN_PASSPHRASE").arg("--key-file").arg(holders.path("admin"));
    assert_eq!(json(command.args(["key", "list"]))[0]["kind"], "recipient");
}

#[test]
fn key_files_are_their_owners_alone_and_what_is_wrong_in_one_is_named() {
    let holders = Holders::new();
    let path = holders.path("writer");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    refused(cairn(&holders.fixture.path()).args(["key", "generate"]).arg(&path), &["a key is never overwritten"]);
    let shown = run(cairn(&holders.fixture.path()).args(["key", "public"]).arg(&path)).stdout;
    let public = holders.path("writer.pub");
    std::fs::write(&public, &shown).unwrap();
    // The text and a file that holds it do the same.
    run(holders.admin().args(["key", "add", "--role", "structure", "--recipient"]).arg(&public));
    // Of two keys the one that grants more is used.
    assert_eq!(json(holders.holder("writer").args(["key", "list"]))[3]["in_use"], true);
    refused(
        holders.admin().args(["key", "add", "--recipient"]).arg(&path),
        &["this is a private key", "cairn key public"],
    );
    let text = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
    std::fs::write(&path, text.replace("CAIRN-PRIVATE-1:", "CAIRN-PRIVATE-1:U")).unwrap();
    refused(holders.holder("writer").arg("snapshots"), &["cannot be used", "'U'"]);
    std::fs::write(&path, shown).unwrap();
    refused(holders.holder("writer").arg("snapshots"), &["this is a public key, and a private key is needed"]);
    let (code, _) = fails(holders.admin().arg("--key-file").arg(&path).args(["--passphrase-file", "x", "snapshots"]));
    assert_eq!(code, 2);
}

#[test]
fn a_key_file_that_is_bound_adds_nothing_to_a_repository_put_in_the_place_of_its_own() {
    let holders = Holders::new();
    let public = holders.generate("host");
    let add = ["key", "add", "--role", "writer", "--recipient", &public];
    let pin = json(holders.admin().args(add))["pin"].as_str().unwrap().to_owned();
    run(holders.admin().args(["key", "bind"]).arg(holders.path("host")).arg(&pin));
    run(holders.holder("host").arg("import").arg(&holders.image).args(["--vdi", "b"]));
    // Whoever can write there knows no secret, and seals keys of their own to the host's public key.
    let impostor = RepoFixture::small(Suite::Aes256Gcm);
    run(cairn(&impostor.path()).args(add));
    let own = holders.path("own");
    std::fs::rename(holders.fixture.path(), &own).unwrap();
    std::fs::rename(impostor.path(), holders.fixture.path()).unwrap();
    refused(
        holders.holder("host").arg("import").arg(&holders.image).args(["--vdi", "b"]),
        &["not the repository that the key file is bound to", "hint:"],
    );
    assert!(files(&holders.fixture.path().join("packs")).is_empty(), "something was stored");
    // The pin of that one is another; a file may have both.
    let pin = json(cairn(&holders.fixture.path()).args(add))["pin"].as_str().unwrap().to_owned();
    run(holders.admin().args(["key", "bind"]).arg(holders.path("host")).arg(&pin));
    run(holders.holder("host").arg("import").arg(&holders.image).args(["--vdi", "b"]));
    let mut command = holders.holder("host");
    run(command.env("CAIRN_REPO", &own).arg("snapshots"));
    let (code, said) = fails(holders.admin().args(["key", "bind"]).arg(holders.path("host")).arg("12"));
    assert!(code == 1 && said.contains("not a repository pin"), "{said}");
}

/// `cairn key verify-sheet` on a repository, with what was typed on stdin and no other secret.
fn verify_sheet(repository: &Path, typed: &str) -> std::process::Output {
    use std::io::Write;
    let mut command = cairn(repository);
    command.env_remove("CAIRN_PASSPHRASE").args(["key", "verify-sheet"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_recovery_sheet_opens_the_repository_and_typing_mistakes_are_told_from_a_wrong_repository() {
    let holders = Holders::new();
    let sheet = String::from_utf8(run(holders.admin().args(["key", "recovery-sheet"])).stdout).unwrap();
    let rows: Vec<_> = sheet
        .lines()
        .skip_while(|line| *line != "CAIRN-PRIVATE-1")
        .skip(1)
        .take(4)
        .map(|line| line.trim().to_owned())
        .collect();
    let says = |repository: &Path, typed: &str| {
        let output = verify_sheet(repository, typed);
        let text =
            format!("{}{}", String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        (output.status.code().unwrap(), text)
    };
    let own = holders.fixture.path();
    for typed in [sheet.clone(), rows.join("\n"), rows.concat().to_lowercase().replace('-', " ")] {
        let (code, text) = says(&own, &typed);
        assert!(code == 0 && text.contains("the sheet opens repository") && text.contains("role admin"), "{text}");
    }
    // The same rows in a file are a key file.
    std::fs::write(holders.path("recovery.key"), rows.join("\n")).unwrap();
    assert!(holders.restored(holders.holder("recovery.key")) == holders.disk.to_bytes());

    let mut mistyped = rows.clone();
    let last = if mistyped[2].ends_with('A') { 'B' } else { 'A' };
    mistyped[2].pop();
    mistyped[2].push(last);
    let (code, text) = says(&own, &mistyped.join("\n"));
    assert!(code == 1 && text.contains("mistyped: row 3 of 4"), "{text}");
    let other = RepoFixture::small(Suite::Aes256Gcm);
    let (code, text) = says(&other.path(), &rows.join("\n"));
    assert!(code == 1 && text.contains("has no typing mistake") && !text.contains("mistyped"), "{text}");
    // A sheet is revoked like any key.
    let keys = json(holders.admin().args(["key", "list"]));
    let key = keys.as_array().unwrap().iter().find(|key| key["label"] == "recovery sheet").unwrap()["key"].clone();
    run(holders.admin().args(["key", "remove", key.as_str().unwrap()]));
    let (code, text) = says(&own, &rows.join("\n"));
    assert!(code == 1 && text.contains("was removed"), "{text}");
}

#[test]
fn the_code_on_the_page_is_read_by_a_scanner_from_what_a_browser_shows() {
    let holders = Holders::new();
    let page = holders.path("sheet.html");
    run(holders.admin().args(["key", "recovery-sheet", "--html"]).arg(&page));
    assert_eq!(std::fs::metadata(&page).unwrap().permissions().mode() & 0o777, 0o600);
    let shot = holders.path("sheet.png");
    let arguments = ["--window-size=900,1200", &format!("--screenshot={}", shot.display())];
    crate::report_page::chromium(holders.fixture.folder.path(), &page, &arguments);
    let mut scanner = crate::oracle::python();
    let scanned = run(scanner.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/oracle/read_code.py")).arg(&shot)).stdout;
    let scanned = String::from_utf8(scanned).unwrap();
    assert!(scanned.starts_with("CAIRN-PRIVATE-1:"), "{scanned}");
    let output = verify_sheet(&holders.fixture.path(), &scanned);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    if let Some(keep) = std::env::var_os("CAIRN_KEEP_PAGES") {
        std::fs::copy(&shot, Path::new(&keep).join("sheet.png")).unwrap();
    }
}

#[test]
fn the_independent_reader_opens_a_repository_with_a_private_key() {
    let holders = Holders::new();
    run(holders.holder("writer").arg("import").arg(&holders.image).args(["--vdi", "b"]));
    let target = holders.path("extracted.raw");
    let reader = |key: &str| {
        let mut command = crate::oracle::extract(&holders.fixture);
        command.env_remove("CAIRN_PASSPHRASE").arg("--key-file").arg(holders.path(key));
        command
    };
    run(reader("restore").args(["extract", "latest", "b", "-o"]).arg(&target));
    assert!(std::fs::read(&target).unwrap() == holders.disk.to_bytes());
    run(reader("admin").arg("verify"));
    let (code, said) = fails(reader("writer").arg("verify"));
    assert!(code == 1 && said.contains("data"), "{said}");
}

#[test]
fn a_passphrase_may_grant_less_than_everything() {
    let holders = Holders::new();
    std::fs::write(holders.path("phrase"), "a writer's passphrase").unwrap();
    let add = ["key", "add", "--role", "writer", "--new-passphrase-file"];
    run(holders.admin().args(add).arg(holders.path("phrase")));
    let writer = || {
        let mut command = holders.admin();
        command.env("CAIRN_PASSPHRASE", "a writer's passphrase");
        command
    };
    run(writer().arg("import").arg(&holders.image).args(["--vdi", "b"]));
    refused(writer().args(["restore", "b", "--format", "raw", "-o", "-"]), &["does not grant the data role"]);
}

/// A frame of a data pack, sealed, and what it takes to try a key on it.
struct Frame {
    sealed: Vec<u8>,
    context: Vec<u8>,
    encapsulation: Vec<u8>,
    info: Vec<u8>,
    salt: [u8; 32],
}

impl Frame {
    /// The first frame of a pack, laid out by docs/format.md §7.
    fn first(session: &Session, id: PackId) -> Self {
        let repository = &session.repository;
        let bytes = std::fs::read(repository.store.root().unwrap().join(ObjectName::Pack(id).path())).unwrap();
        let (config, keys) = (&repository.config, &repository.keys);
        let reader = PackReader::open(&repository.store, id, bytes.len() as u64, config, keys).unwrap();
        let frame = reader.directory().frames()[0];
        let start = usize::try_from(frame.offset).unwrap();
        let (header, encapsulation) = (&bytes[..64], &bytes[64..start]);
        let record = frame.record;
        let mut context = [config.id.as_bytes(), header, &[0; 4], &[record.codec.number()]].concat();
        context.extend_from_slice(&record.plain_len.to_le_bytes());
        context.extend_from_slice(&record.sealed_len.to_le_bytes());
        Self {
            sealed: bytes[start..start + record.sealed_len as usize].to_vec(),
            context,
            encapsulation: encapsulation.to_vec(),
            info: [b"cairn v1 frame key", &config.id.as_bytes()[..], header].concat(),
            salt: header[32..].try_into().unwrap(),
        }
    }

    fn opens(&self, key: &[u8; 32]) -> bool {
        Suite::Aes256Gcm.sealer(key).open(&NONCE_ZERO, &self.context, &mut self.sealed.clone()).is_ok()
    }

    /// Whether a secret opens the frame: as its key, through any derivation of the format, or as a private key.
    fn opens_with(&self, secret: &Key) -> bool {
        let contexts = ["cairn v1 frame key", "cairn v1 directory key", "cairn v1 role data", "cairn v1 chunk id"];
        let derived = |context: &str| {
            let (salted, plain) = (derive(context, &[&secret[..], &self.salt]), derive(context, &[&secret[..]]));
            self.opens(&salted) || self.opens(&plain) || self.opens_as_private(&plain)
        };
        self.opens(secret) || self.opens_as_private(secret) || contexts.into_iter().any(derived)
    }

    fn opens_as_private(&self, secret: &Key) -> bool {
        let private = PrivateKey::from_seed(secret);
        self.opens(&private.decapsulate(&self.encapsulation, &self.info).unwrap())
    }
}

#[test]
fn nothing_that_a_write_only_host_holds_opens_content() {
    let fixture = RepoFixture::small(Suite::Aes256Gcm);
    let host = PrivateKey::generate(&Entropy::system()).unwrap();
    let admin = fixture.session();
    let public = host.public();
    let lock = Lock::Recipient(&public);
    admin.repository.add_slot(&NewSlot { lock, grant: Grant::Writer, label: "", created_ms: 1 }).unwrap();
    let store = Store::open_local(&fixture.path()).unwrap();
    let repository = Repository::open(store, &Unlock::PrivateKey(&host), Entropy::system()).unwrap();
    let session = open_session(repository, None, &Silent).unwrap();
    let disk = ModelDisk { pages: (3..5).map(|page| (page, 7)).collect(), ..ModelDisk::new(MIB) };
    let disks = vec![DiskInput::new("a", disk.stream())];
    let id = backup(&session, disks, &BackupOptions::new(5_000), &Silent).unwrap().snapshot.id;
    let packs = session.index.packs();
    let pack = packs.iter().find(|pack| pack.content == Content::Data).unwrap();
    let frame = Frame::first(&session, pack.id);

    // The trial itself: with the data key it succeeds, in the one way that there is.
    let data = admin.repository.keys.get(Role::Data).unwrap();
    assert!(frame.opens_as_private(data) && frame.opens_with(data) && !frame.opens(data));

    let keys = &session.repository.keys;
    for secret in [&host.seed(), keys.get(Role::Identity).unwrap(), keys.get(Role::Structure).unwrap()] {
        assert!(!frame.opens_with(secret));
    }
    // Whatever 32 bytes of its files, or of the keys it was given, might be the frame's key.
    let mut held = vec![keys.public_data().unwrap().to_bytes(), host.public().to_bytes()];
    held.extend(files(&fixture.path()).into_iter().map(|(_, bytes)| bytes));
    let tried: usize = held.iter().map(|bytes| bytes.windows(32).len()).sum();
    assert!(tried > 10_000, "{tried}");
    for bytes in &held {
        let found = bytes.windows(32).position(|key| frame.opens(key.try_into().unwrap()));
        assert_eq!(found, None);
    }
    let refused = restore_stream(&session, id, "a", RestoreOptions::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Forbidden);
    admin.catch_up(&Silent).unwrap();
    assert!(restore_stream(&admin, id, "a", RestoreOptions::default()).unwrap().0 == disk.to_bytes());
}
