//! What every command needs: the repository that was named, the clock, the terminal, and a way to give the result.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{Timestamp, Zoned};
use repo_core::annotation::{self, Annotations};
use repo_core::entropy::Entropy;
use repo_core::error::{Error, ErrorKind, ResultExt};
use repo_core::id::{RepositoryId, SlotId, SnapshotId};
use repo_core::index::Index;
use repo_core::index::sync::SyncStats;
use repo_core::monitor::Monitor;
use repo_core::ops::open::{self, Access, Session, Working};
use repo_core::repository::{Found, Repository};
use repo_core::seal::Suite;
use repo_core::snapshot::{self, NamedSnapshot};
use repo_core::store::{Catalog, Store};
use repo_core::traffic::{Traffic, TrafficLimits, TrafficReport};
use serde::Serialize;

use crate::args::Globals;
use crate::cloud::{self, CloudRepo, Network};
use crate::exit::Exit;
use crate::failure::{Failure, Result, chain};
use crate::output;
use crate::secret::{Given, Secret, Side};
use crate::server::{ServerAccess, ServerRepo};
use crate::sftp::SftpRepo;
use crate::terminal::Terminal;
use crate::traffic;

/// Where the name of the key slot in use is kept, beside the index.
const SLOT_FILE: &str = "slot";

/// Where packs with manifests of object stores are kept, in the cache folder; of all repositories, because names are hashes.
const MANIFESTS_FOLDER: &str = "manifests";
/// How much of them, in bytes: what some 200 GiB of content in object stores make.
const MANIFESTS_LEN_MAX: u64 = 1 << 30;

/// One run of the program.
pub(crate) struct Invocation {
    /// Progress, warnings, errors.
    pub(crate) terminal: Terminal,
    /// The time at the start, in the local zone.
    pub(crate) now: Zoned,
    /// Requests and bytes of object stores.
    pub(crate) network: Network,
    /// What the place of the repository is reached with.
    pub(crate) credentials: Credentials,
    globals: Globals,
}

/// What a place is reached with.
#[derive(Debug, Default)]
pub(crate) struct Credentials {
    /// What was said of servers.
    pub(crate) server: ServerAccess,
    /// The profile of the AWS tools that is meant, instead of what the environment says.
    pub(crate) profile: Option<String>,
}

/// Where a repository is.
#[derive(Debug)]
pub(crate) enum Place<'a> {
    /// In a folder.
    Folder(&'a Path),
    /// In an object store.
    Cloud(CloudRepo),
    /// On a server.
    Server(ServerRepo),
    /// In a folder of another machine.
    Sftp(SftpRepo),
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::Cloud(cloud) => f.write_str(&cloud.url),
            Self::Server(server) => f.write_str(&server.url),
            Self::Sftp(sftp) => f.write_str(sftp.url()),
        }
    }
}

impl Invocation {
    /// Reads the clock once, for the whole run.
    pub(crate) fn new(globals: Globals) -> Self {
        let now = Timestamp::now().to_zoned(jiff::tz::TimeZone::system());
        let limits = TrafficLimits {
            upload: globals.limit_upload,
            download: globals.limit_download,
            ..TrafficLimits::default()
        };
        let terminal = Terminal::new(globals.json, globals.quiet);
        let retry_for = Duration::from_secs(u64::from(globals.retry_for));
        let now_ms = now.timestamp().as_millisecond();
        let network = Network { traffic: Arc::new(Traffic::new(limits)), retry_for, now_ms };
        let server = ServerAccess {
            token_file: globals.token_file.clone(),
            fingerprint: globals.fingerprint.clone(),
            side: Side::Repository,
        };
        let credentials = Credentials { server, profile: None };
        Self { terminal, now, network, credentials, globals }
    }

    /// The time at the start, in milliseconds since the Unix epoch.
    pub(crate) fn now_ms(&self) -> i64 {
        self.now.timestamp().as_millisecond()
    }

    /// The place of the repository.
    ///
    /// # Errors
    /// Wrong usage when none is named, or a URL that is none of an object store.
    pub(crate) fn place(&self) -> Result<Place<'_>> {
        let named = self.globals.repo.as_deref();
        let path = named.ok_or_else(|| {
            Failure::usage("no repository is named").hint("give --repo PLACE, or set CAIRN_REPO for all commands")
        })?;
        place_of(path)
    }

    /// Where what opens the repository comes from.
    pub(crate) fn given_secret(&self) -> Given<'_> {
        let Globals { key_file, passphrase_file, .. } = &self.globals;
        Given { key_file: key_file.as_deref(), passphrase_file: passphrase_file.as_deref(), side: Side::Repository }
    }

    /// Opens the repository.
    ///
    /// # Errors
    /// Those of the core, with the next step.
    pub(crate) fn open_repository(&self) -> Result<Repository> {
        let place = self.place()?;
        self.open_repository_in(&place, self.open_store(&place, &self.credentials)?, &self.given_secret())
    }

    /// Opens the repository in a place, by what is given for it.
    ///
    /// # Errors
    /// Those of the core, with the next step.
    pub(crate) fn open_repository_in(&self, place: &Place<'_>, store: Store, given: &Given<'_>) -> Result<Repository> {
        let found = Repository::find(store).map_err(|error| cannot_open(place, error))?;
        let secret = secret_for(place, found.suite(), given)?;
        open_with(place, found, &secret)
    }

    /// Opens the repository with this and nothing else, whatever the user gave besides.
    ///
    /// # Errors
    /// Those of the core, with the next step.
    pub(crate) fn open_repository_by(&self, secret: &Secret) -> Result<Repository> {
        let place = self.place()?;
        let found = Repository::find(self.open_store(&place, &self.credentials)?)
            .map_err(|error| cannot_open(&place, error))?;
        open_with(&place, found, secret)
    }

    /// Opens the store in a place.
    ///
    /// # Errors
    /// Those of the core, with the next step.
    pub(crate) fn open_store(&self, place: &Place<'_>, credentials: &Credentials) -> Result<Store> {
        match place {
            Place::Folder(path) => Store::open_local(path).map_err(|error| cannot_open(place, error)),
            Place::Cloud(cloud) => cloud.open(&self.network, credentials.profile.as_deref()),
            Place::Server(server) => server.open(&self.network, &credentials.server, &self.terminal),
            Place::Sftp(sftp) => sftp.open(&self.network),
        }
    }

    /// Opens the repository with an index that is up to date. From here on, Ctrl-C stops cleanly.
    ///
    /// # Errors
    /// Those of the core, with the next step.
    pub(crate) fn open_session(&self) -> Result<Session> {
        self.session_of(self.open_repository()?)
    }

    /// As [`open_session`](Self::open_session), for a backup: manifests are kept on this machine for the next one.
    ///
    /// # Errors
    /// Those of the core, with the next step.
    pub(crate) fn open_session_to_back_up(&self) -> Result<Session> {
        let mut repository = self.open_repository()?;
        if let Some(cache) = cache_folder() {
            repository.store = repository.store.keeping_manifests(&cache.join(MANIFESTS_FOLDER), MANIFESTS_LEN_MAX);
        }
        self.session_of(repository)
    }

    /// An index that is up to date, for an open repository. From here on, Ctrl-C stops cleanly.
    ///
    /// # Errors
    /// Those of the core, with the next step.
    pub(crate) fn session_of(&self, repository: Repository) -> Result<Session> {
        self.terminal.take_signals()?;
        let cannot = format!("cannot open the index of repository {}", repository.store.location());
        Ok(open::open_session(repository, cache_folder().as_deref(), &self.terminal).context(|| cannot)?)
    }

    /// The folder where the index of a repository is kept; none where nothing can be written.
    pub(crate) fn index_folder(&self, repository: &Repository) -> Option<PathBuf> {
        let in_cache = || Some(open::cached_in(&cache_folder()?, repository.config.id, &repository.store));
        let Some(root) = repository.store.root() else { return in_cache() };
        let own = root.join("index");
        let writable =
            std::fs::create_dir_all(&own).is_ok() && rustix::fs::access(&own, rustix::fs::Access::WRITE_OK).is_ok();
        if writable { Some(own) } else { in_cache() }
    }

    /// Opens the repository with an index that was made anew. From here on, Ctrl-C stops cleanly.
    ///
    /// # Errors
    /// Those of the core, with the next step.
    pub(crate) fn rebuild_index(&self) -> Result<(Session, SyncStats)> {
        let repository = self.open_repository()?;
        self.terminal.take_signals()?;
        let rebuilt = open::rebuild_index(repository, cache_folder().as_deref(), &self.terminal);
        Ok(rebuilt.context(|| "cannot rebuild the index")?)
    }

    /// All snapshots that can be read, oldest first. Records that cannot be are told and counted.
    ///
    /// # Errors
    /// Those of the core.
    pub(crate) fn snapshots(&self, repository: &Repository) -> Result<Listed> {
        let catalog = repository.catalog().context(|| "cannot list the snapshots")?;
        self.listed_records(repository, &catalog)
    }

    /// All snapshots, and what was said of them after they were made, by one listing.
    ///
    /// # Errors
    /// Those of the core.
    pub(crate) fn remarked_snapshots(&self, repository: &Repository) -> Result<(Listed, Annotations)> {
        let catalog = repository.dated_catalog().context(|| "cannot list the snapshots")?;
        let mut listed = self.listed_records(repository, &catalog)?;
        listed.stored_ms = catalog.stored_ms;
        let read = annotation::read_listed(repository, catalog.annotations);
        let (annotations, errors) = read.context(|| "cannot list the annotations")?;
        self.count(errors.iter().map(|(_, error)| error), &mut listed);
        Ok((listed, annotations))
    }

    /// Reads records: through the index where each one would be a request.
    fn listed_records(&self, repository: &Repository, catalog: &Catalog) -> Result<Listed> {
        let index = match repository.store.root() {
            Some(_) => None,
            // Where no index can be kept, or all are in use, the records are read all the same.
            None => self.index_folder(repository).and_then(|folder| Index::open(&folder, repository.config.id).ok()),
        };
        let (snapshots, errors) = match index {
            Some((index, _)) => snapshot::read_listed_with(repository, &index, &catalog.snapshots)
                .context(|| "cannot list the snapshots")?,
            None => snapshot::read_listed(repository, &catalog.snapshots),
        };
        Ok(self.listed(snapshots, &errors))
    }

    /// Begins work on them: the index then knows all that they name, and nothing of it is deleted as long as the first result
    /// lives.
    ///
    /// # Errors
    /// Those of the core.
    pub(crate) fn begin(&self, session: &Session, what: &str, access: Access) -> Result<(Arc<Working>, Listed)> {
        let working = session.begin(what, access, &self.terminal).context(|| "cannot list the snapshots")?;
        let (snapshots, errors) = working.snapshots();
        let listed = self.listed(snapshots.clone(), errors);
        Ok((working, listed))
    }

    fn count<'a>(&self, errors: impl Iterator<Item = &'a Error>, listed: &mut Listed) {
        for error in errors {
            if error.is_damage() {
                listed.damaged += 1;
                self.terminal.damage(error);
            } else {
                listed.unavailable += 1;
                self.terminal.warn(&chain(error));
            }
        }
    }

    fn listed(&self, snapshots: Vec<NamedSnapshot>, errors: &[(SnapshotId, Error)]) -> Listed {
        let mut listed = Listed { snapshots, stored_ms: BTreeMap::new(), damaged: 0, unavailable: 0 };
        self.count(errors.iter().map(|(_, error)| error), &mut listed);
        if !errors.is_empty() {
            // Which disks and times they hold is not known.
            let text = format!("snapshot records that cannot be read: {}; what they hold is not found", errors.len());
            self.terminal.warn(&text);
        }
        listed
    }

    /// What went over the network so far; none where there is none.
    fn traffic_report(&self) -> Option<TrafficReport> {
        Some(self.network.traffic.report()).filter(|report| report.requests() > 0)
    }

    /// Prints a list or a report that was asked for.
    ///
    /// # Errors
    /// `Io` when stdout cannot be written.
    pub(crate) fn print(&self, json: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        self.print_to(Channel::Stdout, Importance::Finding, json, text)
    }

    /// Prints the summary of what was done.
    ///
    /// # Errors
    /// `Io` when stdout cannot be written.
    pub(crate) fn print_summary(&self, json: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        self.print_to(Channel::Stdout, Importance::Summary, json, text)
    }

    /// Prints a result.
    ///
    /// # Errors
    /// `Io` when it cannot be written.
    pub(crate) fn print_to(
        &self,
        channel: Channel,
        importance: Importance,
        json: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        self.terminal.clear();
        if self.globals.quiet && !self.globals.json && importance == Importance::Summary {
            return Ok(());
        }
        let text = match (self.globals.json, self.traffic_report()) {
            (true, None) => output::json(json),
            (false, None) => text(),
            (true, Some(report)) => traffic::with_json(json, &report, &self.terminal),
            (false, Some(report)) if importance == Importance::Summary => {
                format!("{}  {}\n", text(), traffic::line(&report))
            }
            (false, Some(report)) => {
                if !self.globals.quiet {
                    self.terminal.tell(&traffic::line(&report));
                }
                text()
            }
        };
        match channel {
            Channel::Stdout => output::write(std::io::stdout().lock(), text.as_bytes()),
            Channel::Stderr => output::write(std::io::stderr().lock(), text.as_bytes()),
        }
    }
}

/// The snapshots of a repository.
pub(crate) struct Listed {
    /// Those that can be read, oldest first.
    pub(crate) snapshots: Vec<NamedSnapshot>,
    /// When the store got each of them, as far as that was asked for.
    stored_ms: BTreeMap<SnapshotId, i64>,
    /// Records that are damaged.
    damaged: usize,
    /// Records that could not be read now, which says nothing about their bytes.
    unavailable: usize,
}

impl Listed {
    /// When the store got the record of a snapshot, by the store's clock, in milliseconds since the Unix epoch.
    pub(crate) fn stored_ms(&self, named: &NamedSnapshot) -> Option<i64> {
        self.stored_ms.get(&named.id).copied()
    }

    /// How a command ends whose result is the whole list.
    ///
    /// # Errors
    /// `Unavailable` when the list is not whole for a reason other than damage.
    pub(crate) fn exit(&self) -> Result<Exit> {
        if self.damaged > 0 {
            return Ok(Exit::Damage);
        }
        if self.unavailable > 0 {
            let text = format!("cannot list all snapshots: {} records could not be read now", self.unavailable);
            return Err(Failure::new(ErrorKind::Unavailable, text));
        }
        Ok(Exit::Done)
    }
}

/// Where a result goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    /// Where results go.
    Stdout,
    /// Aside, because stdout carries a disk.
    Stderr,
}

/// Whether `--quiet` leaves a result out when it is text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Importance {
    /// It says what was done: left out.
    Summary,
    /// It was asked for, or must be known: always printed.
    Finding,
}

/// The place that is meant.
///
/// # Errors
/// Wrong usage for a URL that is none of an object store or server.
pub(crate) fn place_of(path: &Path) -> Result<Place<'_>> {
    let Some(text) = path.to_str().filter(|text| text.contains("://")) else { return Ok(Place::Folder(path)) };
    if let Some(server) = ServerRepo::parse(text)? {
        return Ok(Place::Server(server));
    }
    if let Some(sftp) = SftpRepo::parse(text)? {
        return Ok(Place::Sftp(sftp));
    }
    match CloudRepo::parse(text)? {
        Some(cloud) => Ok(Place::Cloud(cloud)),
        None => Err(Failure::usage(format!("{text} is neither a path nor the URL of an object store or a server")).hint(
            "s3://BUCKET/PREFIX, az://CONTAINER/PREFIX and gs://BUCKET/PREFIX are, https://HOST:PORT/NAMESPACE of a \
             server, and sftp://HOST/PATH",
        )),
    }
}

fn open_with(place: &Place<'_>, found: Found, secret: &Secret) -> Result<Repository> {
    let (unlock, entropy) = (secret.unlock(), Entropy::system());
    let opened = match place {
        Place::Folder(_) => found.open(&unlock, entropy),
        Place::Cloud(_) | Place::Server(_) | Place::Sftp(_) => {
            let store = found.store().clone();
            found.open_as_before(&unlock, |id| slot_used_before(id, &store), entropy)
        }
    };
    let repository = opened.map_err(|error| cannot_open(place, error))?;
    if repository.store.root().is_none() {
        note_slot(&repository);
    }
    let bound = secret.check_bound(&repository);
    bound.map_err(|failure| failure.context(format!("cannot open repository {place}")))?;
    Ok(repository)
}

fn secret_for(place: &Place<'_>, suite: Suite, given: &Given<'_>) -> Result<Secret> {
    // Whoever gives a secret expects encryption: somebody may have put another repository in its place.
    if suite == Suite::None && given.is_given() {
        let text = format!("cannot open repository {place}: it is not encrypted, but a passphrase or key is given");
        let (variables, options) = given.names();
        return Err(Failure::new(ErrorKind::Invalid, text).hint(format!(
            "if it should be encrypted, do not trust it; otherwise unset {variables} and leave out {options}"
        )));
    }
    given.existing(suite)
}

pub(crate) fn cannot_open(place: &Place<'_>, error: Error) -> Failure {
    let kind = error.kind();
    let outer = format!("cannot open repository {place}");
    let hint = match place {
        Place::Folder(_) => None,
        Place::Cloud(_) | Place::Server(_) | Place::Sftp(_) => cloud::hint(&error.to_string()),
    };
    let failure = match kind {
        // What misses and why is one thing here: the place has no config.
        ErrorKind::NotFound => Failure::new(kind, format!("{outer}: {error}")),
        _ => Failure::from(error.context(outer)),
    };
    match kind {
        _ if hint.is_some() => failure.hint(hint.unwrap_or_default()),
        ErrorKind::NotFound => failure.hint(format!("check the path; `cairn init --repo {place}` makes a new one")),
        ErrorKind::Unauthenticated => {
            failure.hint("try another passphrase or key file; any of the repository's keys will do")
        }
        ErrorKind::Unsupported => failure.hint("a newer version of cairn wrote this: open it with that one"),
        ErrorKind::Corrupt => {
            failure.hint("restore the damaged file of the repository from a copy of it; the other files are not hurt")
        }
        _ => failure,
    }
}

/// The key slot that opened a repository in an object store the last time: listing them costs a request.
fn slot_used_before(repository: RepositoryId, store: &Store) -> Option<SlotId> {
    let folder = open::cached_in(&cache_folder()?, repository, store);
    let text = std::fs::read_to_string(folder.join(SLOT_FILE)).ok()?;
    SlotId::from_hex(text.trim_end()).ok()
}

/// Notes it. That this fails costs a request the next time, and nothing else.
fn note_slot(repository: &Repository) {
    let (id, slot) = (repository.config.id, repository.slot());
    if slot_used_before(id, &repository.store) != Some(slot)
        && let Some(folder) = cache_folder().map(|cache| open::cached_in(&cache, id, &repository.store))
    {
        let _ = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(folder.join(SLOT_FILE), slot.to_hex()));
    }
}

/// Where an index goes that its repository cannot hold.
fn cache_folder() -> Option<PathBuf> {
    let absolute = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("cairn"))
}
