//! What the administrator wrote: one TOML file (docs/server.md).

mod retention;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;
use serde::Deserialize;

use crate::cloud::Cloud;
use crate::duties::{House, Schedule};
pub use retention::RetentionConfig;

/// The configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and port to listen on.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Folder for what the server itself keeps: tokens, its certificate, the audit log.
    pub state: PathBuf,
    /// The certificate.
    #[serde(default)]
    pub tls: Tls,
    /// What clients may ask for.
    #[serde(default)]
    pub limits: Limits,
    /// Which packs are read again, and when; none when it is absent.
    pub verify: Option<Verify>,
    /// The repositories, by the name under which clients know them.
    pub namespaces: BTreeMap<String, NamespaceConfig>,
}

/// Which certificate is shown. Without files, the server makes its own one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM file: the certificate, then those that lead to the authority.
    pub certificate: Option<PathBuf>,
    /// PEM file: its private key.
    pub key: Option<PathBuf>,
    /// Host names in the server's own certificate. Clients that pin it do not look at them.
    #[serde(default)]
    pub names: Vec<String>,
}

/// What clients may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The longest object that is taken, in MiB.
    pub object_mib: u32,
    /// Requests a second, of one token, in the long run.
    pub requests_per_second: u32,
    /// Requests that one token may make at once on top of that.
    pub burst: u32,
    /// Connections at a time.
    pub connections: u32,
    /// Objects that are taken in at a time.
    pub uploads: u32,
    /// How long no byte may move on a connection, in seconds.
    pub idle_seconds: u32,
    /// How many bytes a second a body has to bring, after a minute's grace.
    pub slowest_bytes_per_second: u32,
    /// How long requests may take to end once the server is told to stop, in seconds.
    pub grace_seconds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            object_mib: 64,
            requests_per_second: 500,
            burst: 1000,
            connections: 256,
            uploads: 32,
            idle_seconds: 120,
            slowest_bytes_per_second: 4096,
            grace_seconds: 30,
        }
    }
}

/// Reading packs again, to find damage. No key is needed for it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// When: minute, hour, day of the month, month, day of the week, in the time zone of the machine.
    pub schedule: String,
    /// After so many runs all packs were read.
    #[serde(default = "default_runs")]
    pub runs: u32,
    /// How fast they are read, in MiB a second.
    #[serde(default = "default_mib_per_second")]
    pub mib_per_second: u32,
}

fn default_runs() -> u32 {
    30
}

fn default_mib_per_second() -> u32 {
    50
}

/// One repository, in a folder or in an object store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceConfig {
    /// Its folder. One that is missing or empty is made ready for `cairn init`.
    pub path: Option<PathBuf>,
    /// Its place in an object store: `s3://BUCKET/PREFIX`, `az://…`, `gs://…`.
    pub url: Option<String>,
    /// The profile of the AWS tools' files that keys, region and endpoint of that store are taken from; without it the vendors'
    /// variables count.
    pub profile: Option<String>,
    /// How much it may hold, in MiB; as much as the disk when it is absent.
    pub quota_mib: Option<u64>,
    /// What the server does in it by itself, with the structure key.
    pub duties: Option<DutiesConfig>,
}

/// Where a repository is.
pub(crate) enum PlaceConfig {
    Folder(PathBuf),
    Cloud(Cloud),
}

impl NamespaceConfig {
    pub(crate) fn place(&self) -> Result<PlaceConfig, String> {
        match (&self.path, &self.url) {
            (Some(_), None) if self.profile.is_some() => Err("a profile is for a url".to_owned()),
            (Some(path), None) => Ok(PlaceConfig::Folder(path.clone())),
            (None, Some(url)) => match Cloud::parse(url, self.profile.as_deref())? {
                Some(cloud) => Ok(PlaceConfig::Cloud(cloud)),
                None => Err(format!("{url:?} is no URL of an object store: s3://BUCKET/PREFIX is one")),
            },
            _ => Err("give either path or url".to_owned()),
        }
    }

    pub(crate) fn quota_bytes(&self) -> Option<u64> {
        self.quota_mib.map(|mib| mib.saturating_mul(1024 * 1024))
    }
}

/// What the server does in a namespace by itself. Schedules are minute, hour, day of the month, month, day of the week, in the
/// time zone of the machine; a duty without one is not done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DutiesConfig {
    /// The private key of a key slot of the role structure; repositories without encryption need none.
    pub key_file: Option<PathBuf>,
    /// When garbage is collected.
    pub gc: Option<String>,
    /// How long packs stay condemned at least before they are deleted, in minutes.
    pub gc_grace_minutes: Option<u32>,
    /// What is kept, and when the rest is forgotten.
    pub retention: Option<RetentionConfig>,
    /// When capacity is measured.
    pub capacity: Option<String>,
    /// Copies that are kept up to date, by label.
    #[serde(default)]
    pub sync: BTreeMap<String, SyncConfig>,
}

/// A sync with a copy of the namespace's repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncConfig {
    /// When.
    pub schedule: String,
    /// Where snapshots come from: a path, or the URL of a server or an object store.
    pub from: Option<String>,
    /// Where they go to.
    pub to: Option<String>,
    /// Whether a place that holds no repository yet becomes a copy. Without it a folder that is not mounted is an error.
    #[serde(default)]
    pub init: bool,
    /// The file with the token for that server.
    pub token_file: Option<PathBuf>,
    /// The fingerprint of its certificate, or `authorities`.
    pub fingerprint: Option<String>,
    /// Only snapshots of this VM.
    pub vm: Option<String>,
    /// Only snapshots with one of these disks.
    #[serde(default)]
    pub vdis: Vec<String>,
    /// Only the newest of each disk, so many.
    pub newest: Option<usize>,
    /// Only snapshots that are at most this old: `30d`, `8w`, `1y6m`, `36h`.
    pub since: Option<String>,
}

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it, with line and column where there is one.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let config = Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(config.relative_to(path.parent().unwrap_or(Path::new("."))))
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            return Err("tls: certificate and key are given together or not at all".to_owned());
        }
        if self.namespaces.is_empty() {
            return Err("namespaces: there is none".to_owned());
        }
        for name in self.namespaces.keys() {
            if !is_namespace(name) {
                return Err(format!(
                    "namespaces: {name:?} is not 1 to 64 lowercase letters, digits, '-' and '_', with a letter or digit \
                     first"
                ));
            }
        }
        let (mut paths, mut clouds) = (Vec::new(), Vec::<Cloud>::new());
        for (name, namespace) in &self.namespaces {
            match namespace.place().map_err(|error| format!("namespace {name}: {error}"))? {
                PlaceConfig::Folder(path) => paths.push(path),
                PlaceConfig::Cloud(cloud) => {
                    if let Some(other) = clouds.iter().find(|other| cloud.overlaps(other)) {
                        return Err(format!("namespaces: of {cloud} and {other} one lies in the other"));
                    }
                    clouds.push(cloud);
                }
            }
        }
        paths.sort();
        if let Some(twice) = paths.windows(2).find(|pair| pair[1].starts_with(&pair[0])) {
            return Err(format!("namespaces: {} lies in {}", twice[1].display(), twice[0].display()));
        }
        House::all(self, &TimeZone::UTC).map_err(|error| format!("duties: {error}"))?;
        let mut numbers = Vec::new();
        if let Some(verify) = &self.verify {
            Schedule::parse(&verify.schedule, TimeZone::UTC).map_err(|error| format!("verify: {error}"))?;
            numbers = vec![("verify", "runs", verify.runs), ("verify", "mib_per_second", verify.mib_per_second)];
        }
        let limits = &self.limits;
        numbers.extend([
            ("limits", "object_mib", limits.object_mib),
            ("limits", "requests_per_second", limits.requests_per_second),
            ("limits", "burst", limits.burst),
            ("limits", "connections", limits.connections),
            ("limits", "uploads", limits.uploads),
            ("limits", "idle_seconds", limits.idle_seconds),
            ("limits", "slowest_bytes_per_second", limits.slowest_bytes_per_second),
        ]);
        match numbers.iter().find(|(_, _, number)| *number == 0) {
            Some((section, name, _)) => Err(format!("{section}: {name} must not be 0")),
            None => Ok(()),
        }
    }

    /// Paths that do not begin at the root begin where the file is.
    fn relative_to(mut self, folder: &Path) -> Self {
        let paths = [Some(&mut self.state), self.tls.certificate.as_mut(), self.tls.key.as_mut()];
        let of_namespaces = self.namespaces.values_mut().flat_map(|namespace| {
            let duties = namespace.duties.iter_mut();
            let of_duties = duties.flat_map(|duties| {
                let tokens = duties.sync.values_mut().filter_map(|sync| sync.token_file.as_mut());
                duties.key_file.iter_mut().chain(tokens)
            });
            namespace.path.iter_mut().chain(of_duties)
        });
        for path in paths.into_iter().flatten().chain(of_namespaces) {
            *path = folder.join(&*path);
        }
        self
    }
}

/// Whether a namespace may be called so.
pub(crate) fn is_namespace(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=64).contains(&name.len()) && name.starts_with(plain) && name.chars().all(|c| plain(c) || c == '-' || c == '_')
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8443))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_documentation_is_read() {
        let text = include_str!("../../docs/cairn-server.toml");
        let config = Config::parse(text).unwrap();
        assert_eq!(config.limits, Limits::default(), "the example states the defaults");
        assert_eq!(config.namespaces.len(), 2);
        let verify = config.verify.unwrap();
        assert_eq!((verify.runs, verify.mib_per_second), (default_runs(), default_mib_per_second()));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_says_where() {
        let base = "state = \"s\"\n";
        let wrong = [
            ("[namespaces.a]\npath = \"a\"\nquota = 3\n", "quota"),
            ("[namespaces]\n", "there is none"),
            ("[namespaces.\"../a\"]\npath = \"a\"\n", "is not"),
            ("[namespaces.A]\npath = \"a\"\n", "is not"),
            ("[namespaces.a]\npath = \"a\"\n[namespaces.b]\npath = \"a/b\"\n", "lies in"),
            ("[namespaces.a]\n", "namespace a: give either path or url"),
            ("[namespaces.a]\npath = \"a\"\nurl = \"s3://b/a\"\n", "give either path or url"),
            ("[namespaces.a]\nurl = \"https://h/a\"\n", "is no URL of an object store"),
            ("[namespaces.a]\npath = \"a\"\nprofile = \"p\"\n", "a profile is for a url"),
            ("[namespaces.a]\nurl = \"s3://b/a\"\n[namespaces.b]\nurl = \"s3://b/a/\"\n", "lies in the other"),
            ("[namespaces.a]\nurl = \"s3://b/a/b\"\n[namespaces.b]\nurl = \"s3://b/a\"\n", "lies in the other"),
            ("[namespaces.a]\nurl = \"s3://b\"\n[namespaces.b]\nurl = \"s3://b/a\"\n", "lies in the other"),
            ("[tls]\nkey = \"k\"\n[namespaces.a]\npath = \"a\"\n", "together"),
            ("[verify]\nschedule = \"at night\"\n[namespaces.a]\npath = \"a\"\n", "is no schedule"),
            ("[verify]\nschedule = \"0 3 * * *\"\nruns = 0\n[namespaces.a]\npath = \"a\"\n", "runs must not be 0"),
            (
                "[namespaces.a]\npath = \"a\"\nduties = { gc = \"at night\" }\n",
                "duties: namespace a: \"at night\" is no schedule",
            ),
            ("[namespaces.a]\npath = \"a\"\nduties = { retention = { schedule = \"0 1 * * *\" } }\n", "keeps nothing"),
            (
                "[namespaces.a]\npath = \"a\"\nduties = { retention = { schedule = \"0 1 * * *\", keep_within = \"soon\" } }\n",
                "keep_within",
            ),
            ("[namespaces.a]\npath = \"a\"\nduties = { collect = \"0 1 * * *\" }\n", "collect"),
            (
                "[namespaces.a]\npath = \"a\"\nduties.sync.b = { schedule = \"0 1 * * *\", from = \"/a\", to = \"/b\" }\n",
                "sync b: give either from or to",
            ),
            (
                "[namespaces.a]\npath = \"a\"\nduties.sync.b = { schedule = \"0 1 * * *\", to = \"https://h/b\" }\n",
                "token_file",
            ),
            ("[limits]\nburst = 0\n[namespaces.a]\npath = \"a\"\n", "burst"),
        ];
        for (text, says) in wrong {
            let error = Config::parse(&format!("{base}{text}")).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        let error = Config::parse("listen = 3\n").unwrap_err();
        assert!(error.contains("line 1"), "{error}");
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let config = Config::parse("state = \"s\"\n[namespaces.a]\npath = \"/abs\"\n").unwrap();
        let config = config.relative_to(Path::new("/etc/cairn"));
        assert_eq!(config.state, Path::new("/etc/cairn/s"));
        assert_eq!(config.namespaces["a"].path.as_deref(), Some(Path::new("/abs")));
    }
}
