//! Opening a repository for work: with an index that is up to date.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::content::ContentReader;
use crate::error::{ErrorKind, Result};
use crate::index::sync::{SyncStats, sync};
use crate::index::{Index, Origin};
use crate::lease::Lease;
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::snapshot::{self, Snapshots};

/// A repository with an index that is up to date.
pub struct Session {
    /// The repository.
    pub repository: Arc<Repository>,
    /// The index.
    pub index: Arc<Index>,
    /// Reads stored content through both.
    pub content: Arc<ContentReader>,
    /// What bringing the index up to date did.
    pub sync: SyncStats,
}

impl Session {
    /// All snapshots, oldest first, and an error for each record that cannot be read; the index then knows all that
    /// they name.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be listed; `Io` when the index cannot be written.
    pub fn snapshots(&self, monitor: &dyn Monitor) -> Result<Snapshots> {
        let found = snapshot::read_all_with(&self.repository, &self.index)?;
        self.catch_up(monitor)?;
        Ok(found)
    }

    /// Puts a lease for work that ends in a snapshot; then reads the snapshots and brings the index up to date. As long as
    /// the lease is there, whatever is found stays where it is.
    ///
    /// # Errors
    /// `Io` when the repository cannot be written; those of [`snapshots`](Self::snapshots).
    pub fn begin_writing(&self, operation: &str, monitor: &dyn Monitor) -> Result<(Lease, Snapshots)> {
        let lease = Lease::put(self.repository.clone(), operation)?;
        Ok((lease, self.snapshots(monitor)?))
    }

    /// Puts a lease for work that only reads, and brings the index up to date. On a medium that cannot be written it goes
    /// without a lease.
    ///
    /// # Errors
    /// Those of [`catch_up`](Self::catch_up).
    pub fn begin_reading(&self, operation: &str, monitor: &dyn Monitor) -> Result<Lease> {
        let lease = Lease::put_if_writable(self.repository.clone(), operation)?;
        self.catch_up(monitor)?;
        Ok(lease)
    }

    /// Takes in what other processes stored, condemned and deleted since the index was opened. Needed after snapshot
    /// records were read and before what they name is looked up: whatever a snapshot names was durable before it.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be listed; `Io` when the index cannot be written.
    pub fn catch_up(&self, monitor: &dyn Monitor) -> Result<SyncStats> {
        sync(&self.index, &self.repository, monitor)
    }
}

/// Opens the index of a repository: in its own `index/` folder, or under `cache` where that cannot be written.
///
/// # Errors
/// `Io` when no index can be kept anywhere; `Locked`; `Unavailable`.
pub fn open_session(repository: Repository, cache: Option<&Path>, monitor: &dyn Monitor) -> Result<Session> {
    let (index, origin) = open_index(&repository, cache, monitor)?;
    if origin == Origin::Replaced {
        monitor.warn("the index was unreadable or not of this repository: it is made anew from the packs");
    }
    let stats = sync(&index, &repository, monitor)?;
    if stats.vanished_packs > 0 {
        monitor.warn(&format!(
            "{} packs that the index knew are gone from the repository: run cairn check",
            stats.vanished_packs
        ));
    }
    into_session(repository, index, stats)
}

/// Empties one replica of the index and fills it from the packs, without trusting anything it held.
///
/// # Errors
/// As [`open_session`].
pub fn rebuild_index(repository: Repository, cache: Option<&Path>, monitor: &dyn Monitor) -> Result<Session> {
    let (index, _) = open_index(&repository, cache, monitor)?;
    let index = index.clear(repository.config.id)?;
    let stats = sync(&index, &repository, monitor)?;
    into_session(repository, index, stats)
}

fn into_session(repository: Repository, index: Index, sync: SyncStats) -> Result<Session> {
    let (repository, index) = (Arc::new(repository), Arc::new(index));
    let content = Arc::new(ContentReader::new(repository.clone(), index.clone())?);
    Ok(Session { repository, index, content, sync })
}

fn open_index(repository: &Repository, cache: Option<&Path>, monitor: &dyn Monitor) -> Result<(Index, Origin)> {
    let own: PathBuf = repository.store.root().join("index");
    match (Index::open(&own, repository.config.id), cache) {
        (Err(error), Some(cache)) if error.kind() != ErrorKind::Locked => {
            let folder = cache.join(repository.config.id.to_hex());
            monitor.warn(&format!("{} cannot be written: the index is kept in {}", own.display(), folder.display()));
            Index::open(&folder, repository.config.id)
        }
        (opened, _) => opened,
    }
}
