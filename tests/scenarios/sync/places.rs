//! Copies of one repository in folders, object stores and on servers, worked on from one machine. Each has keys of access of its
//! own, and packs of its own: what the machine keeps of one must not be taken for what is in another.

mod killed;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use repo_tests::cli::{cairn, fails, json, run};
use repo_tests::model::ModelDisk;
use repo_tests::s3::{KEY, S3Server, SECRET, variables};
use repo_tests::server::Server;
use tempfile::TempDir;

/// A machine, and what it reaches: a folder, two object stores, two servers.
struct World {
    home: TempDir,
    near: S3Server,
    far: S3Server,
    here: Server,
    there: Server,
    tokens: [String; 2],
    /// Where to reach a place, if not at its own address.
    lines: BTreeMap<Where, String>,
    /// What a copy is called in a place, if not as usual.
    copies: BTreeMap<Where, String>,
    /// What opens the repositories, if not the passphrase, which takes its time.
    key_file: Option<PathBuf>,
}

/// Where a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Where {
    Folder,
    Near,
    /// Another endpoint, and a bucket of the same name.
    Far,
    Here,
    There,
}

impl World {
    fn new() -> Self {
        let (here, there) = (Server::start(""), Server::start(""));
        let tokens = [&here, &there].map(|server| server.token("admin", "*"));
        let home = tempfile::tempdir().unwrap();
        let (near, far) = (S3Server::start(), S3Server::start());
        let (lines, copies) = (BTreeMap::new(), BTreeMap::new());
        let world = Self { home, near, far, here, there, tokens, lines, copies, key_file: None };
        std::fs::create_dir(world.path(".aws")).unwrap();
        world.write_profiles();
        world
    }

    fn write_profiles(&self) {
        let profiles = [("near", Where::Near), ("far", Where::Far)].map(|(name, place)| {
            format!(
                "[{name}]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\nregion = us-east-1\n\
                 endpoint_url = http://{}\n",
                self.address(place)
            )
        });
        std::fs::write(self.path(".aws/credentials"), profiles.concat()).unwrap();
    }

    /// `127.0.0.1:PORT` of a server.
    fn address(&self, place: Where) -> &str {
        let own = match place {
            Where::Folder => unreachable!("a folder is on this machine"),
            Where::Near => &self.near.address,
            Where::Far => &self.far.address,
            Where::Here => &self.here.address,
            Where::There => &self.there.address,
        };
        self.lines.get(&place).unwrap_or(own)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn name(&self, place: Where) -> String {
        let copy = |usual| self.copies.get(&place).map_or(usual, String::as_str);
        match place {
            Where::Folder => self.path(copy("folder")).display().to_string(),
            Where::Near => self.near.place(copy("r")),
            Where::Far => self.far.place(copy("r")),
            Where::Here | Where::There => format!("https://{}/{}", self.address(place), copy("office")),
        }
    }

    /// A command with what reaches `place` in its environment, and nothing else.
    fn cairn(&self, place: Where) -> Command {
        let mut command = cairn(Path::new(&self.name(place)));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().to_lowercase();
            if name.starts_with("aws_") || name.starts_with("cairn_to") || name.ends_with("_proxy") {
                command.env_remove(name.to_uppercase());
            }
        }
        for name in ["CAIRN_TOKEN", "CAIRN_FINGERPRINT", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        command.env("HOME", self.home.path()).args(["--retry-for", "0"]);
        command.envs(self.key_file.iter().map(|file| ("CAIRN_KEY_FILE", file)));
        match place {
            Where::Folder => {}
            Where::Near => drop(command.envs(variables(self.address(place)))),
            Where::Far => drop(command.env("AWS_PROFILE", "far")),
            Where::Here => drop(command.env("CAIRN_TOKEN", &self.tokens[0])),
            Where::There => drop(command.env("CAIRN_TOKEN", &self.tokens[1])),
        }
        command
    }

    fn sync(&self, from: Where, to: Where) -> Command {
        let mut command = self.cairn(from);
        command.arg("sync").args([self.name(from), self.name(to)]);
        match to {
            Where::Folder => {}
            Where::Near => drop(command.args(["--to-profile", "near"])),
            Where::Far => drop(command.args(["--to-profile", "far"])),
            Where::Here => drop(command.env("CAIRN_TO_TOKEN", &self.tokens[0])),
            Where::There => {
                std::fs::write(self.path("there.token"), &self.tokens[1]).unwrap();
                command.arg("--to-token-file").arg(self.path("there.token"));
            }
        }
        command
    }

    fn import(&self, place: Where, disk: &ModelDisk) -> String {
        let image = self.path("disk.raw");
        disk.write_raw(&image);
        let done = json(self.cairn(place).arg("import").arg(image).args(["--vdi", "a"]));
        done["snapshot"].as_str().unwrap().to_owned()
    }

    fn restored(&self, place: Where, snapshot: &str) -> Vec<u8> {
        let target = self.path("restored.raw");
        run(self.cairn(place).args(["restore", snapshot, "--format", "raw", "--force", "--output"]).arg(&target));
        std::fs::read(target).unwrap()
    }
}

#[test]
fn copies_in_all_kinds_of_places_are_worked_on_from_one_machine() {
    let world = World::new();
    let ring = [Where::Folder, Where::Near, Where::Far, Where::Here, Where::There];
    run(world.cairn(Where::Folder).arg("init"));
    let first = ModelDisk::scattered(6 << 20, 3, 1);
    let id = world.import(Where::Folder, &first);
    for pair in ring.windows(2) {
        let done = json(world.sync(pair[0], pair[1]).arg("--init"));
        assert!(done["same_keys"] == true && done["synced"].as_array().unwrap().len() == 1, "{pair:?}: {done}");
    }
    // The same new disk in each place: what one has stored by now, the others have not.
    let second = ModelDisk::scattered(6 << 20, 3, 2);
    for place in ring {
        let new = world.import(place, &second);
        assert!(world.restored(place, &new) == second.to_bytes(), "{place:?}");
        assert!(world.restored(place, &id) == first.to_bytes(), "{place:?}");
    }
    // What is collected in one place stays in the others.
    for place in [Where::Near, Where::Here] {
        run(world.cairn(place).args(["forget", &id]));
        run(world.cairn(place).args(["gc", "--grace", "0s"]));
    }
    for place in ring {
        let again = world.import(place, &first);
        assert!(world.restored(place, &again) == first.to_bytes(), "{place:?}");
        assert_eq!(json(world.cairn(place).args(["check", "--read-data"]))["clean"], true, "{place:?}");
    }
    // Back along the ring: what each has beside the others arrives in the folder.
    for pair in ring.windows(2).rev() {
        run(&mut world.sync(pair[1], pair[0]));
    }
    assert_eq!(json(world.cairn(Where::Folder).args(["check", "--read-data"]))["clean"], true);
    let listed = json(world.cairn(Where::Folder).arg("snapshots"));
    assert_eq!(listed.as_array().unwrap().len(), 11, "the first one, and two of each place: {listed}");
}

#[test]
fn copies_elsewhere_make_imports_no_dearer() {
    let world = World::new();
    let import = |place, seed| {
        let image = world.path("disk.raw");
        ModelDisk::scattered(6 << 20, 3, seed).write_raw(&image);
        let done = json(world.cairn(place).arg("import").arg(image).args(["--vdi", "a"]));
        ["requests", "downloaded_bytes"]
            .map(|field| done["traffic"][field].as_u64().unwrap_or_else(|| panic!("{done}")))
    };
    run(world.cairn(Where::Near).arg("init"));
    import(Where::Near, 1);
    let alone = import(Where::Near, 2);
    let places = [Where::Near, Where::Far, Where::Here, Where::There];
    for pair in places.windows(2) {
        run(world.sync(pair[0], pair[1]).arg("--init"));
    }
    // From the first import on the machine knows each of them.
    for place in places {
        import(place, 3);
    }
    for seed in 4..7 {
        for place in places {
            let [requests, received] = import(place, seed);
            println!("{place:?}: {requests} requests, {received} bytes received; {alone:?} before there were copies");
            assert!(
                requests <= alone[0] && received <= alone[1] + 4096,
                "{place:?}: {requests} requests, {received} bytes"
            );
        }
    }
}

#[test]
fn a_token_is_shown_to_no_other_server() {
    let world = World::new();
    run(world.cairn(Where::Here).arg("init"));
    let mut command = world.cairn(Where::Here);
    command.arg("sync").args([world.name(Where::Here), world.name(Where::There)]).arg("--init");
    let (code, text) = fails(&mut command);
    assert!(code == 1 && text.contains("CAIRN_TO_TOKEN"), "{text}");
    assert!(world.there.audit().is_empty(), "{:?}", world.there.audit());
}
