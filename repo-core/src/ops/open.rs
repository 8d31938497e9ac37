//! Opening a repository for work, and what is done first: a lease, the snapshots, an index that is up to date.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::content::ContentReader;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{RepositoryId, TombstoneName};
use crate::index::sync::{SyncStats, sync, sync_as_told};
use crate::index::{Index, Origin};
use crate::lease::Lease;
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::snapshot::{self, NamedSnapshot, Snapshots};
use crate::store::{Catalog, Store};

/// A repository with an index, which is brought up to date when work begins.
pub struct Session {
    /// The repository.
    pub repository: Arc<Repository>,
    /// The index.
    pub index: Arc<Index>,
    /// Reads stored content through both.
    pub content: Arc<ContentReader>,
    /// How work that begins learns what packs there are.
    pub reach: Reach,
    working: Mutex<Weak<Working>>,
}

/// How an index learns what packs there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// All packs are listed: cheap in a folder, and it finds what nothing names.
    Listed,
    /// From what snapshot records and tombstones name, by the one listing that finds those. All packs are listed only when these
    /// do not tell everything. Packs of imports that were broken off elsewhere are not found.
    Named,
}

/// Work under way. As long as this lives nothing that the index finds, and nothing that the snapshots need, is deleted.
pub struct Working {
    lease: Lease,
    snapshots: Snapshots,
    locks_renewed_ms: Option<i64>,
}

impl Working {
    /// The lease.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// All snapshots that were there when the work began, oldest first, and an error for each record that cannot be read.
    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// When all locks were last looked after, by the store's clock, in milliseconds since the Unix epoch; none in a repository that
    /// is not locked.
    pub fn locks_renewed_ms(&self) -> Option<i64> {
        self.locks_renewed_ms
    }
}

/// What somebody is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only reads. On a medium that cannot be written it goes without a lease.
    Read,
    /// Writes what relies on what is there.
    Write,
}

impl Session {
    /// Begins work, or takes part in the work of this session that is under way: puts a lease; then reads the snapshots and
    /// brings the index up to date.
    ///
    /// # Errors
    /// `Io` when the repository cannot be written, for [`Access::Write`]; those of [`snapshots`](Self::snapshots).
    pub fn begin(&self, operation: &str, access: Access, monitor: &dyn Monitor) -> Result<Arc<Working>> {
        let mut working = self.working.lock();
        if let Some(under_way) = working.upgrade()
            && (access == Access::Read || under_way.lease.id().is_some())
        {
            return Ok(under_way);
        }
        let lease = match access {
            Access::Read => Lease::put_if_writable(&self.repository, operation)?,
            Access::Write => Lease::put(&self.repository, operation)?,
        };
        let catalog = self.repository.store.catalog()?;
        let locks_renewed_ms = self.take_lock(&catalog, monitor)?;
        let snapshots = snapshot::read_listed_with(&self.repository, &self.index, &catalog.snapshots)?;
        match self.reach {
            Reach::Listed => drop(self.catch_up(monitor)?),
            Reach::Named => self.catch_up_as_told(catalog.tombstones, &snapshots.0, monitor)?,
        }
        let begun = Arc::new(Working { lease, snapshots, locks_renewed_ms });
        *working = Arc::downgrade(&begun);
        Ok(begun)
    }

    /// All snapshots, oldest first, and an error for each record that cannot be read; the index then knows all that
    /// they name.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be listed; `Io` when the index cannot be written.
    pub fn snapshots(&self, monitor: &dyn Monitor) -> Result<Snapshots> {
        let catalog = self.repository.store.catalog()?;
        self.take_lock(&catalog, monitor)?;
        let found = snapshot::read_listed_with(&self.repository, &self.index, &catalog.snapshots)?;
        self.catch_up(monitor)?;
        Ok(found)
    }

    /// Locks what is stored from now on, if the repository is locked, and gives when all locks were last looked after. Terms that
    /// were there and are gone still count: whoever took them away may be the one they are there against.
    fn take_lock(&self, catalog: &Catalog, monitor: &dyn Monitor) -> Result<Option<i64>> {
        let store = &self.repository.store;
        if store.lock_now_ms().is_none() {
            return Ok(None);
        }
        let known = self.index.known_lock()?;
        if catalog.locks.is_empty() && known.is_none() {
            return Ok(None);
        }
        match (self.repository.heed_lock(catalog)?, known) {
            (None, Some(known)) => {
                let text = "what says that this repository is locked was taken away: objects are locked as before; run cairn lock";
                monitor.warn(text);
                store.set_lock_terms(Some(known.terms));
                Ok(Some(i64::MIN))
            }
            (None, None) => Ok(None),
            (Some((name, renewed_ms)), known) => {
                if let Some(known) = known.filter(|known| known.terms > name.terms) {
                    // On purpose, or by somebody who stored terms again that once were there.
                    let (old, new) = (known.terms, name.terms);
                    let text = format!(
                        "this repository is locked less than before: {} days, {}, and not {} days, {}",
                        new.days,
                        new.mode.name().to_ascii_lowercase(),
                        old.days,
                        old.mode.name().to_ascii_lowercase()
                    );
                    monitor.warn(&text);
                }
                if known != Some(name) {
                    self.index.learn_lock(name)?;
                }
                Ok(Some(renewed_ms))
            }
        }
    }

    fn catch_up_as_told(
        &self,
        tombstones: Vec<TombstoneName>,
        snapshots: &[NamedSnapshot],
        monitor: &dyn Monitor,
    ) -> Result<()> {
        let named = || snapshots.iter().flat_map(|named| named.snapshot.packs.iter().copied());
        if !sync_as_told(&self.index, &self.repository, tombstones, named(), monitor)? {
            self.catch_up(monitor)?;
            // They were stored before the records that name them, and the listing came after those.
            self.index.note_gone(named())?;
        }
        Ok(())
    }

    /// Takes in what other processes stored, condemned and deleted since the last look, by listing all packs. Needed after snapshot
    /// records were read and before what they name is looked up: whatever a snapshot names was durable before it.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be listed; `Io` when the index cannot be written.
    pub fn catch_up(&self, monitor: &dyn Monitor) -> Result<SyncStats> {
        sync(&self.index, &self.repository, monitor)
    }
}

/// Opens the index of a repository: in its own `index/` folder, or under `cache` where that cannot be written or the
/// repository is in an object store.
///
/// # Errors
/// `Io` when no index can be kept anywhere; `Locked`.
pub fn open_session(repository: Repository, cache: Option<&Path>, monitor: &dyn Monitor) -> Result<Session> {
    let (index, origin) = open_index(&repository, cache, monitor)?;
    if origin == Origin::Replaced {
        monitor.warn("the index was unreadable or not of this repository: it is made anew from the packs");
    }
    into_session(repository, index)
}

/// Empties one replica of the index and fills it from the packs, without trusting anything it held.
///
/// # Errors
/// As [`open_session`]; `Unavailable` when the store cannot be listed.
pub fn rebuild_index(
    repository: Repository,
    cache: Option<&Path>,
    monitor: &dyn Monitor,
) -> Result<(Session, SyncStats)> {
    let (index, _) = open_index(&repository, cache, monitor)?;
    let index = index.clear(repository.config.id)?;
    let stats = sync(&index, &repository, monitor)?;
    Ok((into_session(repository, index)?, stats))
}

fn into_session(repository: Repository, index: Index) -> Result<Session> {
    let (repository, index) = (Arc::new(repository), Arc::new(index));
    let content = Arc::new(ContentReader::new(repository.clone(), index.clone())?);
    let reach = if repository.store.root().is_some() { Reach::Listed } else { Reach::Named };
    Ok(Session { repository, index, content, reach, working: Mutex::default() })
}

/// The folder below `cache` for what is kept of a repository in one place. Of copies of it, which `sync` makes, each has its
/// own: other packs are there, and other ones are condemned.
pub fn cached_in(cache: &Path, repository: RepositoryId, store: &Store) -> PathBuf {
    let place = blake3::hash(store.address().as_bytes()).to_hex();
    cache.join(format!("{}-{}", repository.to_hex(), &place[..16]))
}

fn open_index(repository: &Repository, cache: Option<&Path>, monitor: &dyn Monitor) -> Result<(Index, Origin)> {
    let in_cache = cache.map(|cache| cached_in(cache, repository.config.id, &repository.store));
    let Some(root) = repository.store.root() else {
        let missing = || Error::new(ErrorKind::Io, "there is no cache folder, where the index would be kept");
        return Index::open(&in_cache.ok_or_else(missing)?, repository.config.id);
    };
    let own: PathBuf = root.join("index");
    match (Index::open(&own, repository.config.id), in_cache) {
        (Err(error), Some(folder)) if error.kind() != ErrorKind::Locked => {
            monitor.warn(&format!("{} cannot be written: the index is kept in {}", own.display(), folder.display()));
            Index::open(&folder, repository.config.id)
        }
        (opened, _) => opened,
    }
}
