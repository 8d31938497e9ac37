//! Repositories on a cairn-server: the token to show, and the certificate to expect.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use repo_core::ErrorKind;
use repo_core::error::ResultExt;
use repo_core::monitor::Monitor;
use repo_core::store::Store;
use repo_core::store::remote::RemoteOptions;
use repo_core::store::server::{self, Fingerprint, ServerClient, ServerPlace, ServerSettings, Trust};

use crate::cloud::{Network, widen};
use crate::failure::{Failure, Result};
use crate::passphrase::Source;
use crate::secret::Side;
use crate::terminal::Terminal;

/// What was said of servers.
#[derive(Debug, Default)]
pub(crate) struct ServerAccess {
    /// The file that the token is in.
    pub(crate) token_file: Option<PathBuf>,
    /// The certificate's fingerprint, or `authorities`.
    pub(crate) fingerprint: Option<String>,
    /// The side of a sync that it is for.
    pub(crate) side: Side,
}

/// A repository on a server.
#[derive(Debug, Clone)]
pub(crate) struct ServerRepo {
    /// As it was typed.
    pub(crate) url: String,
    place: ServerPlace,
}

impl ServerRepo {
    /// Reads what was typed; `None` when it is no URL of a server.
    ///
    /// # Errors
    /// Wrong usage when it is one, and a bad one.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>> {
        let place = ServerPlace::parse(text).map_err(|error| Failure::usage(error.to_string()))?;
        Ok(place.map(|place| Self { url: text.to_owned(), place }))
    }

    /// The store. A server that was never seen is asked for its certificate, which is remembered.
    ///
    /// # Errors
    /// `Invalid` without a token; `Unavailable` when a new server does not answer.
    pub(crate) fn open(&self, network: &Network, access: &ServerAccess, terminal: &Terminal) -> Result<Store> {
        widen();
        let objects = Arc::new(self.client(network, access, terminal)?);
        Ok(Store::open_remote(objects, self.url.clone(), options())?.at_address(self.address()))
    }

    /// The store of a new repository, or the store's own refusal.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn create(
        &self,
        network: &Network,
        access: &ServerAccess,
        terminal: &Terminal,
    ) -> Result<repo_core::Result<Store>> {
        let objects = Arc::new(self.client(network, access, terminal)?);
        let store = Store::create_remote(objects, self.url.clone(), options());
        Ok(store.map(|store| store.at_address(self.address())))
    }

    /// Whether another one is on the same server.
    pub(crate) fn is_same_server(&self, other: &Self) -> bool {
        self.place.authority == other.place.authority
    }

    fn address(&self) -> String {
        format!("https://{}/{}", self.place.authority, self.place.namespace)
    }

    fn client(&self, network: &Network, access: &ServerAccess, terminal: &Terminal) -> Result<ServerClient> {
        let source = Source::of_token(access.token_file.as_deref(), access.side);
        let token = source.given()?.ok_or_else(|| {
            Failure::new(ErrorKind::Invalid, format!("there is no token for {}", self.place.authority))
                .hint(format!("set {} or give {}; `cairn-server token add` makes one", source.variable, source.option))
        })?;
        let settings = ServerSettings {
            token: token.trim().to_owned(),
            trust: self.trust(access, terminal)?,
            retry_for: network.retry_for,
            traffic: network.traffic.clone(),
        };
        Ok(ServerClient::new(&self.place, &settings)?)
    }

    fn trust(&self, access: &ServerAccess, terminal: &Terminal) -> Result<Trust> {
        match access.fingerprint.as_deref() {
            Some("authorities") => return Ok(Trust::Authorities),
            Some(text) => {
                let parsed = Fingerprint::parse(text).map_err(|error| Failure::usage(error.to_string()));
                return parsed.map(Trust::Pinned);
            }
            None => {}
        }
        let known = Known::find()?;
        if let Some(fingerprint) = known.get(&self.place.authority)? {
            return Ok(Trust::Pinned(fingerprint));
        }
        let shown = server::shown_fingerprint(&self.place)?;
        known.add(&self.place.authority, shown)?;
        terminal.warn(&format!(
            "{} is new here: its certificate {shown} is remembered in {}; compare it with what `cairn-server \
             fingerprint` prints there",
            self.place.authority,
            known.path.display()
        ));
        Ok(Trust::Pinned(shown))
    }
}

/// The server replaces nothing.
fn options() -> RemoteOptions {
    RemoteOptions { honours_create: true, ..RemoteOptions::default() }
}

/// The servers that were seen: a line each, address and fingerprint.
struct Known {
    path: PathBuf,
}

impl Known {
    fn find() -> Result<Self> {
        let absolute = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        let folder = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
        let folder = folder.ok_or_else(|| {
            Failure::new(ErrorKind::Invalid, "there is no place to remember servers in: HOME is not set")
                .hint("give --fingerprint")
        })?;
        Ok(Self { path: folder.join("cairn/servers") })
    }

    fn get(&self, authority: &str) -> Result<Option<Fingerprint>> {
        let cannot = || format!("cannot read {}", self.path.display());
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.context(cannot)?,
        };
        // The last line counts: it is the newest.
        let mut lines = text.lines().rev().filter_map(|line| line.split_once(' '));
        match lines.find(|(name, _)| *name == authority) {
            Some((_, fingerprint)) => Ok(Some(Fingerprint::parse(fingerprint.trim()).context(cannot)?)),
            None => Ok(None),
        }
    }

    fn add(&self, authority: &str, fingerprint: Fingerprint) -> Result<()> {
        let cannot = || format!("cannot write {}", self.path.display());
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).context(cannot)?;
        }
        let mut file = fs::OpenOptions::new().append(true).create(true).open(&self.path).context(cannot)?;
        let line = format!("{authority} {fingerprint}\n");
        Ok(file.write_all(line.as_bytes()).context(cannot)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_remembered_by_its_address_and_the_newest_line_counts() {
        let folder = tempfile::tempdir().unwrap();
        let known = Known { path: folder.path().join("cairn/servers") };
        let [a, b] = [Fingerprint([1; 32]), Fingerprint([2; 32])];
        assert_eq!(known.get("one:8443").unwrap(), None);
        known.add("one:8443", a).unwrap();
        known.add("two:8443", b).unwrap();
        assert_eq!(known.get("one:8443").unwrap(), Some(a));
        known.add("one:8443", b).unwrap();
        assert_eq!(known.get("one:8443").unwrap(), Some(b));
        assert_eq!(known.get("one:84").unwrap(), None);
        fs::write(&known.path, "one:8443 nonsense\n").unwrap();
        assert!(known.get("one:8443").is_err());
    }

    #[test]
    fn urls_name_a_host_and_a_namespace() {
        let repo = ServerRepo::parse("https://backup.example/office/").unwrap().unwrap();
        assert_eq!((repo.place.authority.as_str(), repo.place.namespace.as_str()), ("backup.example:8443", "office"));
        let repo = ServerRepo::parse("https://[::1]:9/a").unwrap().unwrap();
        assert_eq!(repo.place.authority, "[::1]:9");
        assert!(ServerRepo::parse("/backup").unwrap().is_none());
        for bad in
            ["https://host", "https:///x", "https://host/", "https://host/a/b", "https://host/../x", "https://h/A"]
        {
            assert!(ServerRepo::parse(bad).is_err(), "{bad}");
        }
    }
}
