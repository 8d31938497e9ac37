//! The other repository of a sync: where it is, what it is reached with, what is copied.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use repo_core::ops::sync::{Filter, SyncOptions};
use repo_core::retention::calendar::{Clock, Span};
use repo_core::store::Store;
use repo_core::store::remote::RemoteOptions;
use repo_core::store::server::{Fingerprint, ServerClient, ServerPlace, ServerSettings, Trust};
use repo_core::traffic::{REQUESTS_MAX, Traffic, TrafficLimits};
use repo_core::{Error, ErrorKind};

use crate::cloud::Cloud;
use crate::config::SyncConfig;

/// How long requests are tried again while the other side does not answer.
pub(super) const RETRY_FOR: Duration = Duration::from_secs(5 * 60);
/// The longest token file that is read, in bytes.
const TOKEN_FILE_LEN_MAX: u64 = 4096;

/// Which way snapshots go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Into the namespace.
    Pull,
    /// Out of it.
    Push,
}

/// The other repository of a sync.
pub(super) struct Partner {
    pub(super) direction: Direction,
    /// Whether the side that gets snapshots may be empty, and becomes a copy.
    pub(super) init: bool,
    /// Where its index is kept.
    pub(super) cache: PathBuf,
    place: Place,
    filter: Filter,
    since: Option<Span>,
}

enum Place {
    Folder(PathBuf),
    Server { place: ServerPlace, token_file: PathBuf, trust: Trust },
    Cloud(Cloud),
}

impl Partner {
    pub(super) fn new(config: &SyncConfig, cache: &Path) -> Result<Self, String> {
        let (direction, name) = match (&config.from, &config.to) {
            (Some(from), None) => (Direction::Pull, from),
            (None, Some(to)) => (Direction::Push, to),
            _ => return Err("give either from or to".to_owned()),
        };
        let since = config.since.as_ref().map(|text| text.parse::<Span>().map_err(|error| format!("since: {error}")));
        let vdis = config.vdis.iter().cloned().collect();
        Ok(Self {
            direction,
            init: config.init,
            cache: cache.to_owned(),
            place: Place::new(name, config)?,
            filter: Filter { vm: config.vm.clone(), vdis, newest: config.newest, ..Filter::default() },
            since: since.transpose()?,
        })
    }

    pub(super) fn options(&self, clock: &Clock<'_>) -> SyncOptions {
        let since_ms = self.since.map(|since| since.before(clock.now_ms, clock));
        SyncOptions { filter: Filter { since_ms, ..self.filter.clone() }, ..SyncOptions::new(clock.now_ms) }
    }

    /// Its store; a folder that is missing is made, if that was said.
    pub(super) fn store(&self) -> repo_core::Result<Store> {
        match &self.place {
            Place::Folder(path) if self.init && !path.exists() => Store::create_local(path),
            Place::Folder(path) => Store::open_local(path),
            Place::Server { place, token_file, trust } => {
                let traffic = Arc::new(Traffic::new(TrafficLimits::default()));
                let settings =
                    ServerSettings { token: read_token(token_file)?, trust: *trust, retry_for: RETRY_FOR, traffic };
                let url = format!("https://{}/{}", place.authority, place.namespace);
                let options = RemoteOptions { honours_create: true, ..RemoteOptions::default() };
                Store::open_remote(Arc::new(ServerClient::new(place, &settings)?), url, options)
            }
            Place::Cloud(cloud) => cloud.open(RETRY_FOR, REQUESTS_MAX),
        }
    }
}

impl Place {
    fn new(name: &str, config: &SyncConfig) -> Result<Self, String> {
        if let Some(place) = ServerPlace::parse(name).map_err(|error| error.to_string())? {
            let token_file = config.token_file.clone().ok_or("a server needs a token_file")?;
            let trust = match config.fingerprint.as_deref() {
                Some("authorities") => Trust::Authorities,
                Some(text) => Trust::Pinned(Fingerprint::parse(text).map_err(|error| error.to_string())?),
                None => {
                    return Err("a server needs a fingerprint, as `cairn-server fingerprint` prints it there, or \
                                \"authorities\""
                        .to_owned());
                }
            };
            return Ok(Self::Server { place, token_file, trust });
        }
        if let Some(cloud) = Cloud::parse(name, None)? {
            return Ok(Self::Cloud(cloud));
        }
        match Path::new(name).is_absolute() {
            true => Ok(Self::Folder(PathBuf::from(name))),
            false => Err(format!("{name:?} is neither a path from the root nor a URL of a server or an object store")),
        }
    }
}

fn read_token(path: &Path) -> repo_core::Result<String> {
    let cannot = |error| Error::with_source(ErrorKind::Invalid, format!("cannot read {}", path.display()), error);
    if std::fs::metadata(path).map_err(cannot)?.len() > TOKEN_FILE_LEN_MAX {
        return Err(Error::invalid(format!("{} is too long for a token", path.display())));
    }
    Ok(std::fs::read_to_string(path).map_err(cannot)?.trim().to_owned())
}
