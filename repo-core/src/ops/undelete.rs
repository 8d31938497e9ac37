//! Undelete: what was deleted or replaced in a bucket that keeps versions comes back (docs/design/0015-object-lock.md).
//!
//! An object is written once, so its oldest version is the true one: what lies over it, a mark of a deletion or other bytes,
//! is taken away or covered again. No key is needed: it may be the configuration itself that is gone.

use std::collections::BTreeMap;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::monitor::{Monitor, check_cancelled};
use crate::store::lock::{Version, is_lockable};
use crate::store::{ObjectName, Store};

/// What to bring back.
#[derive(Debug, Clone, Copy, Default)]
pub struct UndeleteOptions {
    /// What was deleted or replaced since then, in milliseconds since the Unix epoch; for as long as objects are locked, when not
    /// given.
    pub since_ms: Option<i64>,
    /// Key slots, too, though others are there: a passphrase that was removed opens the repository again.
    pub keys: bool,
    /// Only find out.
    pub dry_run: bool,
}

/// What befell an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It was deleted.
    Deleted,
    /// Other bytes were stored under its name.
    Replaced,
}

/// An object that came back, or would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undeleted {
    /// Which.
    pub name: ObjectName,
    /// What befell it.
    pub fate: Fate,
    /// When, by the store's clock, in milliseconds since the Unix epoch.
    pub at_ms: i64,
}

/// What an undelete did, or would do.
#[derive(Debug, Default)]
pub struct UndeleteReport {
    /// Since when it looked, in milliseconds since the Unix epoch.
    pub since_ms: i64,
    /// Objects that came back, or would.
    pub objects: Vec<Undeleted>,
    /// Deleted key slots that were left as they are.
    pub slots_left: u64,
    /// Objects that could not be brought back, and why.
    pub failed: Vec<(ObjectName, Error)>,
}

/// Brings back what was deleted or replaced.
///
/// # Errors
/// `Unsupported` where there are no versions; `Io` when the credentials do not suffice; `Unavailable`; `Interrupted`.
pub fn undelete(store: &Store, options: &UndeleteOptions, monitor: &dyn Monitor) -> Result<UndeleteReport> {
    monitor.begin("listing versions", None);
    let histories = histories(store.versions("")?);
    monitor.end();
    let since_ms = options.since_ms.unwrap_or_else(|| usual_start(store, histories.keys()));
    let mut report = UndeleteReport { since_ms, ..UndeleteReport::default() };
    let has_slot = histories.iter().any(|(name, versions)| {
        matches!(name, ObjectName::Slot(_)) && versions.iter().any(|version| version.is_latest && !version.is_mark)
    });
    monitor.begin("bringing objects back", None);
    for (name, versions) in &histories {
        check_cancelled(monitor)?;
        let history = History { store, name: *name, versions };
        let befell = match history.befell() {
            Ok(Some(befell)) if befell.at_ms >= since_ms => befell,
            Ok(_) => continue,
            Err(error) if error.is_loss() => {
                report.failed.push((*name, error));
                continue;
            }
            Err(error) => return Err(error),
        };
        if matches!(name, ObjectName::Slot(_)) && has_slot && !options.keys {
            report.slots_left += 1;
            continue;
        }
        match if options.dry_run { Ok(()) } else { history.mend() } {
            Ok(()) => report.objects.push(befell),
            Err(error) if error.is_loss() => report.failed.push((*name, error)),
            Err(error) => return Err(error),
        }
    }
    monitor.end();
    Ok(report)
}

/// The versions of each object that a repository is lost without.
fn histories(versions: Vec<Version>) -> BTreeMap<ObjectName, Vec<Version>> {
    let mut histories: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for version in versions {
        if let Some(name) = ObjectName::parse(&version.path).ok().filter(|name| is_lockable(*name)) {
            histories.entry(name).or_default().push(version);
        }
    }
    histories
}

/// What was deleted longer ago than locks last may have lost what it needs.
fn usual_start<'a>(store: &Store, names: impl Iterator<Item = &'a ObjectName>) -> i64 {
    let len_ms = names.filter_map(|name| match name {
        ObjectName::Lock(name) => Some(name.terms.len_ms()),
        _ => None,
    });
    let now_ms = store.lock_now_ms().unwrap_or(i64::MAX);
    len_ms.max().map_or(0, |len_ms| now_ms.saturating_sub(len_ms))
}

struct History<'a> {
    store: &'a Store,
    name: ObjectName,
    /// At least one. Those with bytes are in order, the newest first; where the marks stand between them, not every store says.
    versions: &'a [Version],
}

impl History<'_> {
    /// What befell the object last; `None` when it is as it was stored.
    fn befell(&self) -> Result<Option<Undeleted>> {
        let Some(shown) = self.versions.iter().find(|version| version.is_latest) else { return Ok(None) };
        let Some(oldest) = self.with_bytes().last() else { return Ok(None) };
        let fate = match shown.is_mark {
            true => Fate::Deleted,
            false if self.are_same(shown, oldest)? => return Ok(None),
            false => Fate::Replaced,
        };
        Ok(Some(Undeleted { name: self.name, fate, at_ms: shown.stored_ms }))
    }

    fn with_bytes(&self) -> impl DoubleEndedIterator<Item = &Version> {
        self.versions.iter().filter(|version| !version.is_mark)
    }

    fn are_same(&self, a: &Version, b: &Version) -> Result<bool> {
        // With some encryption at rest equal bytes have different tags.
        Ok(a.id == b.id
            || a.len == b.len && (a.e_tag == b.e_tag || self.store.get_version(a)? == self.store.get_version(b)?))
    }

    fn mend(&self) -> Result<()> {
        let Some((newest, oldest)) = self.with_bytes().next().zip(self.with_bytes().last()) else { return Ok(()) };
        if self.are_same(newest, oldest)? {
            let marks = self.versions.iter().filter(|version| version.is_mark);
            return marks.into_iter().try_for_each(|mark| self.store.delete_version(mark).map(drop));
        }
        for version in self.with_bytes().rev() {
            let bytes = self.store.get_version(version)?;
            if self.is_named_so(&bytes) {
                return self.store.put_version_again(version, bytes);
            }
        }
        Err(Error::corrupt(format!("no version of {} is what its name says", self.name)))
    }

    fn is_named_so(&self, bytes: &[u8]) -> bool {
        let hash = *blake3::hash(bytes).as_bytes();
        match self.name {
            ObjectName::Config => Config::decode(bytes).is_ok(),
            ObjectName::Slot(id) => id.0 == hash,
            ObjectName::Pack(id) => id.0 == hash,
            ObjectName::Snapshot(id) => id.0 == hash,
            ObjectName::Annotation(id) => id.0 == hash,
            ObjectName::Lock(name) => name.object() == bytes,
            ObjectName::Lease(_) | ObjectName::Revocation(_) | ObjectName::Renewal(_) | ObjectName::Tombstone(_) => {
                false
            }
        }
    }
}
