//! What every command needs: the repository that was named, the clock, the terminal, and a way to give the result.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{Timestamp, Zoned};
use repo_core::annotation::{self, Annotations};
use repo_core::entropy::Entropy;
use repo_core::error::{Error, ErrorKind, ResultExt};
use repo_core::id::SnapshotId;
use repo_core::index::sync::SyncStats;
use repo_core::monitor::Monitor;
use repo_core::ops::open::{self, Access, Session, Working};
use repo_core::repository::Repository;
use repo_core::seal::Suite;
use repo_core::snapshot::{self, NamedSnapshot};
use repo_core::store::Store;
use serde::Serialize;

use crate::args::Globals;
use crate::exit::Exit;
use crate::failure::{Failure, Result, chain};
use crate::output;
use crate::secret::{Given, Secret};
use crate::terminal::Terminal;

/// One run of the program.
pub(crate) struct Invocation {
    /// Progress, warnings, errors.
    pub(crate) terminal: Terminal,
    /// The time at the start, in the local zone.
    pub(crate) now: Zoned,
    globals: Globals,
}

impl Invocation {
    /// Reads the clock once, for the whole run.
    pub(crate) fn new(globals: Globals) -> Self {
        let now = Timestamp::now().to_zoned(jiff::tz::TimeZone::system());
        Self { terminal: Terminal::new(globals.json, globals.quiet), now, globals }
    }

    /// The time at the start, in milliseconds since the Unix epoch.
    pub(crate) fn now_ms(&self) -> i64 {
        self.now.timestamp().as_millisecond()
    }

    /// The folder of the repository.
    ///
    /// # Errors
    /// Wrong usage when none is named, or a place that is no folder.
    pub(crate) fn repo(&self) -> Result<&Path> {
        let named = self.globals.repo.as_deref();
        let path = named.ok_or_else(|| {
            Failure::usage("no repository is named").hint("give --repo PATH, or set CAIRN_REPO for all commands")
        })?;
        if path.to_str().is_some_and(|text| text.contains("://")) {
            let text = format!("{} is not a path: this version keeps repositories in folders only", path.display());
            return Err(Failure::usage(text));
        }
        Ok(path)
    }

    /// Where what opens the repository comes from.
    pub(crate) fn given_secret(&self) -> Given<'_> {
        let Globals { key_file, passphrase_file, .. } = &self.globals;
        Given { key_file: key_file.as_deref(), passphrase_file: passphrase_file.as_deref() }
    }

    /// Opens the repository.
    ///
    /// # Errors
    /// Those of the core, with the next step.
    pub(crate) fn open_repository(&self) -> Result<Repository> {
        let (store, suite) = self.open_store()?;
        let secret = self.secret_for(suite)?;
        self.open_with(store, &secret)
    }

    /// Opens the repository with this and nothing else, whatever the user gave besides.
    ///
    /// # Errors
    /// Those of the core, with the next step.
    pub(crate) fn open_repository_by(&self, secret: &Secret) -> Result<Repository> {
        let (store, _) = self.open_store()?;
        self.open_with(store, secret)
    }

    fn open_store(&self) -> Result<(Store, Suite)> {
        let path = self.repo()?;
        let store = Store::open_local(path).map_err(|error| cannot_open(path, error))?;
        let suite = Repository::suite_of(&store).map_err(|error| cannot_open(path, error))?;
        Ok((store, suite))
    }

    fn open_with(&self, store: Store, secret: &Secret) -> Result<Repository> {
        let path = self.repo()?;
        let opened = Repository::open(store, &secret.unlock(), Entropy::system());
        let repository = opened.map_err(|error| cannot_open(path, error))?;
        let bound = secret.check_bound(&repository);
        bound.map_err(|failure| failure.context(format!("cannot open repository {}", path.display())))?;
        Ok(repository)
    }

    fn secret_for(&self, suite: Suite) -> Result<Secret> {
        let given = self.given_secret();
        // Whoever gives a secret expects encryption: somebody may have put another repository in its place.
        if suite == Suite::None && given.is_given() {
            let text = format!(
                "cannot open repository {}: it is not encrypted, but a passphrase or key is given",
                self.repo()?.display()
            );
            return Err(Failure::new(ErrorKind::Invalid, text).hint(
                "if it should be encrypted, do not trust it; otherwise unset CAIRN_PASSPHRASE and CAIRN_KEY_FILE and leave \
                 out --passphrase-file and --key-file",
            ));
        }
        given.existing(suite)
    }

    /// Opens the repository with an index that is up to date. From here on, Ctrl-C stops cleanly.
    ///
    /// # Errors
    /// Those of the core, with the next step.
    pub(crate) fn open_session(&self) -> Result<Session> {
        let repository = self.open_repository()?;
        self.terminal.take_signals()?;
        let opened = open::open_session(repository, cache_folder().as_deref(), &self.terminal);
        Ok(opened.context(|| self.cannot_open_index())?)
    }

    /// The folder where the index of a repository is kept; none where nothing can be written.
    pub(crate) fn index_folder(&self, repository: &Repository) -> Option<PathBuf> {
        let own = repository.store.root().join("index");
        let writable =
            std::fs::create_dir_all(&own).is_ok() && rustix::fs::access(&own, rustix::fs::Access::WRITE_OK).is_ok();
        if writable { Some(own) } else { Some(cache_folder()?.join(repository.config.id.to_hex())) }
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

    fn cannot_open_index(&self) -> String {
        let path = self.globals.repo.as_deref().unwrap_or(Path::new("."));
        format!("cannot open the index of repository {}", path.display())
    }

    /// All snapshots that can be read, oldest first. Records that cannot be are told and counted.
    ///
    /// # Errors
    /// Those of the core.
    pub(crate) fn snapshots(&self, repository: &Repository) -> Result<Listed> {
        let (snapshots, errors) = snapshot::read_all(repository).context(|| "cannot list the snapshots")?;
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

    /// What was said of snapshots after they were made. Annotations that cannot be read are told, and counted in `listed`.
    ///
    /// # Errors
    /// Those of the core.
    pub(crate) fn annotations(&self, repository: &Repository, listed: &mut Listed) -> Result<Annotations> {
        let (annotations, errors) = annotation::read_all(repository).context(|| "cannot list the annotations")?;
        self.count(errors.iter().map(|(_, error)| error), listed);
        Ok(annotations)
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
        let mut listed = Listed { snapshots, damaged: 0, unavailable: 0 };
        self.count(errors.iter().map(|(_, error)| error), &mut listed);
        if !errors.is_empty() {
            // Which disks and times they hold is not known.
            let text = format!("snapshot records that cannot be read: {}; what they hold is not found", errors.len());
            self.terminal.warn(&text);
        }
        listed
    }

    /// Prints a list or a report that was asked for.
    ///
    /// # Errors
    /// `Io` when stdout cannot be written.
    pub(crate) fn print(&self, json: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        self.print_to(Place::Stdout, Importance::Finding, json, text)
    }

    /// Prints the summary of what was done.
    ///
    /// # Errors
    /// `Io` when stdout cannot be written.
    pub(crate) fn print_summary(&self, json: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        self.print_to(Place::Stdout, Importance::Summary, json, text)
    }

    /// Prints a result.
    ///
    /// # Errors
    /// `Io` when it cannot be written.
    pub(crate) fn print_to(
        &self,
        place: Place,
        importance: Importance,
        json: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        self.terminal.clear();
        if self.globals.quiet && !self.globals.json && importance == Importance::Summary {
            return Ok(());
        }
        let text = if self.globals.json { output::json(json) } else { text() };
        match place {
            Place::Stdout => output::write(std::io::stdout().lock(), text.as_bytes()),
            Place::Stderr => output::write(std::io::stderr().lock(), text.as_bytes()),
        }
    }
}

/// The snapshots of a repository.
pub(crate) struct Listed {
    /// Those that can be read, oldest first.
    pub(crate) snapshots: Vec<NamedSnapshot>,
    /// Records that are damaged.
    damaged: usize,
    /// Records that could not be read now, which says nothing about their bytes.
    unavailable: usize,
}

impl Listed {
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
pub(crate) enum Place {
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

fn cannot_open(path: &Path, error: Error) -> Failure {
    let kind = error.kind();
    let shown = path.display();
    let outer = format!("cannot open repository {shown}");
    let failure = match kind {
        // What misses and why is one thing here: the folder has no config.
        ErrorKind::NotFound => Failure::new(kind, format!("{outer}: {error}")),
        _ => Failure::from(error.context(outer)),
    };
    match kind {
        ErrorKind::NotFound => failure.hint(format!("check the path; `cairn init --repo {shown}` makes a new one")),
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

/// Where an index goes that its repository cannot hold.
fn cache_folder() -> Option<PathBuf> {
    let absolute = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("cairn"))
}
