//! Object lock: what is stored can be deleted by nobody before a date, not by its writer either (docs/concurrency.md).
//!
//! A store that locks keeps *versions*: a delete or a second put of a name only covers what was there, and what was there can be
//! uncovered again for as long as its lock lasts.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use parking_lot::RwLock;
use zerocopy::IntoBytes;

use super::failure::{Doing, failure};
use super::s3::S3;
pub use super::s3::{Retention, Version};
use super::{ObjectName, Place, Store};
use crate::entropy::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::keys::{Role, RoleKeys, derive};
use crate::object::{ObjectHeader, ObjectKind};

/// The longest time for which objects are locked, in days: ten years. A mistake cannot be taken back.
pub const LOCK_DAYS_MAX: u16 = 3650;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// How long the object is locked that a bucket is tried with, in milliseconds.
const PROBE_MS: i64 = 60 * 1000;

/// Whether somebody may delete a locked object all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockMode {
    /// Who has a right of its own for that may.
    Governance,
    /// Nobody may, not the owner of the account either.
    Compliance,
}

impl LockMode {
    /// S3's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Governance => "GOVERNANCE",
            Self::Compliance => "COMPLIANCE",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Governance, Self::Compliance].into_iter().find(|mode| mode.name().eq_ignore_ascii_case(text))
    }
}

/// How a repository's objects are locked. Of two terms the stricter is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockTerms {
    /// Whether somebody may delete them all the same.
    pub mode: LockMode,
    /// For how many days from when they are stored, or from when their lock is renewed.
    pub days: u16,
}

impl LockTerms {
    /// Checks that the days are some, and not too many.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn check(self) -> Result<Self> {
        match self.days {
            1..=LOCK_DAYS_MAX => Ok(self),
            _ => Err(Error::invalid(format!("objects can be locked for 1 to {LOCK_DAYS_MAX} days"))),
        }
    }

    /// How long that is, in milliseconds.
    pub fn len_ms(self) -> i64 {
        i64::from(self.days) * DAY_MS
    }
}

/// The name of the object that says that a repository is locked, and how (docs/format.md §12). The name says all; whoever lists
/// snapshots sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockName {
    /// What it says.
    pub terms: LockTerms,
    /// That somebody with the structure key says it.
    mac: [u8; 32],
}

impl LockName {
    /// The name for terms.
    ///
    /// # Errors
    /// `Forbidden` without the structure key.
    pub fn new(terms: LockTerms, keys: &RoleKeys) -> Result<Self> {
        let key = derive("cairn v1 lock terms", &[&keys.get(Role::Structure)?[..]]);
        let mac = *blake3::keyed_hash(&key, says(terms).as_bytes()).as_bytes();
        Ok(Self { terms, mac })
    }

    /// The terms, if it was made with these keys.
    ///
    /// # Errors
    /// `Forbidden` without the structure key.
    pub fn open(self, keys: &RoleKeys) -> Result<Option<LockTerms>> {
        let own = Self::new(self.terms, keys)?;
        // Hash equality of the blake3 crate runs in constant time.
        Ok((blake3::Hash::from(own.mac) == blake3::Hash::from(self.mac)).then_some(self.terms))
    }

    /// The object's bytes; they say no more than the name does.
    pub fn object(self) -> Vec<u8> {
        let mut object = ObjectHeader::new(ObjectKind::Lock).as_bytes().to_vec();
        object.extend_from_slice(&self.mac);
        object
    }

    /// Reads what [`Display`](std::fmt::Display) writes.
    ///
    /// # Errors
    /// `Invalid` for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let malformed = || Error::invalid(format!("{text:?} is not the name of lock terms"));
        let mut parts = text.split('-');
        let [Some(mode), Some(days), Some(mac), None] = std::array::from_fn(|_| parts.next()) else {
            return Err(malformed());
        };
        let terms = LockTerms {
            mode: LockMode::parse(mode).ok_or_else(malformed)?,
            days: days.parse().map_err(|_| malformed())?,
        };
        let mac = blake3::Hash::from_hex(mac).map_err(|_| malformed())?;
        let name = Self { terms: terms.check()?, mac: *mac.as_bytes() };
        if name.to_string() == text { Ok(name) } else { Err(malformed()) }
    }
}

impl std::fmt::Display for LockName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", says(self.terms), blake3::Hash::from(self.mac).to_hex())
    }
}

fn says(terms: LockTerms) -> String {
    format!("{}-{}", terms.mode.name().to_ascii_lowercase(), terms.days)
}

/// What of a store can be locked, and how it is. Copies are the same.
#[derive(Debug, Clone)]
pub struct Locks {
    pub(super) s3: Arc<S3>,
    terms: Arc<RwLock<Option<LockTerms>>>,
    /// The time now, in milliseconds since the Unix epoch.
    now: Clock,
}

/// Tells the time, in milliseconds since the Unix epoch.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> i64 + Send + Sync>);

impl Clock {
    /// A clock that goes on from what the caller's own one shows now.
    pub fn from(now_ms: i64) -> Self {
        let start = std::time::Instant::now();
        Self(Arc::new(move || now_ms.saturating_add(i64::try_from(start.elapsed().as_millis()).unwrap_or(i64::MAX))))
    }

    fn now_ms(&self) -> i64 {
        (self.0)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Clock").field(&self.now_ms()).finish()
    }
}

impl Locks {
    pub(super) fn new(s3: S3, now: Clock) -> Self {
        Self { s3: Arc::new(s3), terms: Arc::default(), now }
    }

    /// How an object is to be locked that is stored now; `None` for what is not.
    pub(super) fn of_new(&self, name: ObjectName) -> Option<Retention> {
        let terms = (*self.terms.read()).filter(|_| is_lockable(name))?;
        Some(terms.from(self.now.now_ms()))
    }
}

/// Whether a repository is lost, or a part of it, when this object is. Leases and what gc notes come and go.
pub fn is_lockable(name: ObjectName) -> bool {
    match name {
        ObjectName::Config
        | ObjectName::Slot(_)
        | ObjectName::Pack(_)
        | ObjectName::Snapshot(_)
        | ObjectName::Annotation(_)
        | ObjectName::Lock(_) => true,
        ObjectName::Lease(_) | ObjectName::Revocation(_) | ObjectName::Renewal(_) | ObjectName::Tombstone(_) => false,
    }
}

/// What became of an object that was to be deleted for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// It is gone.
    Done,
    /// It is locked and stays.
    Retained,
}

impl Store {
    /// How objects are locked that are stored from now on, by all copies of this store.
    pub fn lock_terms(&self) -> Option<LockTerms> {
        let locks = self.locks()?;
        *locks.terms.read()
    }

    /// The time by which locks are kept, in milliseconds since the Unix epoch; none where nothing can be locked.
    pub fn lock_now_ms(&self) -> Option<i64> {
        Some(self.locks()?.now.now_ms())
    }

    /// Locks what is stored from now on, in all copies of this store. Nothing, where nothing can be locked.
    pub fn set_lock_terms(&self, terms: Option<LockTerms>) {
        if let Some(locks) = self.locks() {
            *locks.terms.write() = terms;
        }
    }

    fn locks(&self) -> Option<&Locks> {
        match &self.place {
            Place::Local(_) => None,
            Place::Remote(remote) => remote.locks.as_ref(),
        }
    }

    fn must_lock(&self) -> Result<&Locks> {
        self.locks().ok_or_else(|| {
            let text = format!("nothing can be locked in {}: that takes a bucket on S3", self.location());
            Error::new(ErrorKind::Unsupported, text)
        })
    }

    /// Finds out whether the bucket holds to a lock, by trying to break one: of an object below `probe/`, locked for a minute.
    /// Its version stays behind, covered.
    ///
    /// # Errors
    /// `Unsupported` when the bucket has no locks, or does not keep them; `Io` when the credentials do not suffice; `Unavailable`.
    pub fn probe_lock(&self, mode: LockMode, entropy: &Entropy) -> Result<()> {
        let locks = self.must_lock()?;
        let unsupported =
            |text: &str| Error::new(ErrorKind::Unsupported, format!("the bucket of {} {text}", self.location()));
        let failed = |doing, what: &str| {
            let what = what.to_owned();
            move |error| failure(doing, &what, error)
        };
        let found = self.runtime.block_on(locks.s3.has_locks());
        if !found.map_err(failed(Doing::Reading, "whether the bucket has object lock"))? {
            return Err(unsupported("has no object lock: it is given to a bucket when that is made"));
        }
        let run = u64::from_le_bytes(entropy.bytes()?);
        let path = ObjectPath::from(format!("probe/{run:016x}/lock"));
        // In whole seconds, as it comes back.
        let until_ms = (locks.now.now_ms() + PROBE_MS) / 1000 * 1000;
        let lock = Retention { mode, until_ms };
        self.runtime.block_on(async {
            let what = path.as_ref();
            let put = locks.s3.put(&path, Bytes::from_static(b"probe"), false, Some(lock)).await;
            put.map_err(failed(Doing::Storing, "a locked object"))?;
            let retained = locks.s3.retain(&path, lock).await;
            retained.map_err(failed(Doing::Storing, "the lock of an object"))?;
            let found = locks.s3.retention(&path, None).await.map_err(failed(Doing::Reading, what))?;
            if found != Some(lock) {
                return Err(unsupported("takes locks and forgets them"));
            }
            let versions = locks.s3.versions(what).await.map_err(failed(Doing::Listing, "versions"))?;
            let Some(version) = versions.iter().find(|version| version.path == what) else {
                return Err(unsupported("does not list the version that was just stored"));
            };
            let deleted = locks.s3.delete_version(&path, &version.id).await;
            if deleted.map_err(failed(Doing::Deleting, what))? {
                return Err(unsupported("takes locks and lets locked objects be deleted"));
            }
            let covered = object_store::ObjectStoreExt::delete(&*self.objects, &path).await;
            covered.map_err(failed(Doing::Deleting, what))
        })
    }

    /// Locks an object from now on for as long as the terms say, and gives the end, in milliseconds since the Unix epoch. A lock that
    /// lasts longer already stays.
    ///
    /// # Errors
    /// `Unsupported` where nothing can be locked; `NotFound`; `Io` when the credentials do not suffice; `Unavailable`.
    pub fn retain(&self, name: ObjectName, terms: LockTerms) -> Result<i64> {
        let locks = self.must_lock()?;
        let (path, lock) = (ObjectPath::from(name.path()), terms.from(locks.now.now_ms()));
        let Err(error) = self.runtime.block_on(locks.s3.retain(&path, lock)) else { return Ok(lock.until_ms) };
        // A lock can be lengthened only: another machine's may be longer.
        match self.runtime.block_on(locks.s3.retention(&path, None)) {
            Ok(Some(found)) if found.mode >= lock.mode && found.until_ms >= lock.until_ms => Ok(found.until_ms),
            _ => Err(failure(Doing::Storing, &format!("the lock of {name}"), error)),
        }
    }

    /// How an object is locked now, as the store says.
    ///
    /// # Errors
    /// `Unsupported` where nothing can be locked; `NotFound`; `Unavailable`.
    pub fn retention(&self, name: ObjectName) -> Result<Option<Retention>> {
        let found = self.runtime.block_on(self.must_lock()?.s3.retention(&ObjectPath::from(name.path()), None));
        found.map_err(|error| failure(Doing::Reading, &name.path(), error))
    }

    /// Deletes an object with all its versions.
    ///
    /// # Errors
    /// `Unsupported` where there are no versions; `Io` when the credentials do not suffice; `Unavailable`.
    pub fn delete_for_good(&self, name: ObjectName) -> Result<Deletion> {
        let path = name.path();
        let versions = self.versions(&path)?;
        for version in versions.iter().filter(|version| version.path == path) {
            if self.delete_version(version)? == Deletion::Retained {
                return Ok(Deletion::Retained);
            }
        }
        Ok(Deletion::Done)
    }

    /// All versions of objects whose paths begin so, with the marks of deletions; for each path the newest first.
    ///
    /// # Errors
    /// `Unsupported` where there are no versions; `Io` when the credentials do not suffice; `Unavailable`.
    pub fn versions(&self, start: &str) -> Result<Vec<Version>> {
        let found = self.runtime.block_on(self.must_lock()?.s3.versions(start));
        found.map_err(|error| failure(Doing::Listing, "the versions of objects", error))
    }

    /// Deletes one version for good, or takes a mark away.
    ///
    /// # Errors
    /// As [`delete_for_good`](Self::delete_for_good).
    pub fn delete_version(&self, version: &Version) -> Result<Deletion> {
        let locks = self.must_lock()?;
        let path = ObjectPath::from(version.path.as_str());
        let deleted = self.runtime.block_on(locks.s3.delete_version(&path, &version.id));
        if deleted.map_err(|error| failure(Doing::Deleting, &version.path, error))? {
            return Ok(Deletion::Done);
        }
        // It refuses in one way what is locked and what these credentials may never do.
        let found = match version.is_mark {
            true => Ok(None),
            false => self.runtime.block_on(locks.s3.retention(&path, Some(&version.id))),
        };
        match found.map_err(|error| failure(Doing::Reading, &version.path, error))? {
            Some(lock) if lock.until_ms > locks.now.now_ms() => Ok(Deletion::Retained),
            lock => {
                let over = if lock.is_some() { ", whose locks are over by this machine's clock" } else { "" };
                let text = format!("the object store does not allow deleting versions of objects{over}");
                Err(Error::new(ErrorKind::Io, text))
            }
        }
    }

    /// The bytes of a version.
    ///
    /// # Errors
    /// As [`versions`](Self::versions); `NotFound`.
    pub fn get_version(&self, version: &Version) -> Result<Vec<u8>> {
        let path = ObjectPath::from(version.path.as_str());
        let found = self.runtime.block_on(self.must_lock()?.s3.get_version(&path, &version.id));
        found.map(Into::into).map_err(|error| failure(Doing::Reading, &version.path, error))
    }

    /// Stores the bytes of a version again, as the newest one, locked as long as that is. For `bytes` those of
    /// [`get_version`](Self::get_version).
    ///
    /// # Errors
    /// As [`versions`](Self::versions).
    pub fn put_version_again(&self, version: &Version, bytes: Vec<u8>) -> Result<()> {
        let locks = self.must_lock()?;
        let path = ObjectPath::from(version.path.as_str());
        self.runtime.block_on(async {
            let lock = locks.s3.retention(&path, Some(&version.id)).await;
            let lock = lock.map_err(|error| failure(Doing::Reading, &version.path, error))?;
            let lasting = lock.filter(|lock| lock.until_ms > locks.now.now_ms());
            let put = locks.s3.put(&path, bytes.into(), false, lasting).await;
            put.map_err(|error| failure(Doing::Storing, &version.path, error))
        })
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn names_of_lock_terms_round_trip_and_only_the_key_makes_them() {
        let keys = |byte| RoleKeys::from_master(&Zeroizing::new([byte; 32]));
        let terms = LockTerms { mode: LockMode::Compliance, days: 30 };
        let name = LockName::new(terms, &keys(1)).unwrap();
        let text = name.to_string();
        assert!(text.starts_with("compliance-30-"));
        assert_eq!(LockName::parse(&text).unwrap(), name);
        assert_eq!(name.open(&keys(1)).unwrap(), Some(terms));
        assert_eq!(name.open(&keys(2)).unwrap(), None);
        let longer = LockName::parse(&text.replace("-30-", "-90-")).unwrap();
        assert_eq!(longer.open(&keys(1)).unwrap(), None);
        for bad in
            ["", "compliance", &text.replace("-30-", "-030-"), &text.replace("-30-", "-0-"), &text.to_uppercase()]
        {
            assert!(LockName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_stricter_terms_are_the_greater() {
        let terms = |mode, days| LockTerms { mode, days };
        assert!(terms(LockMode::Compliance, 1) > terms(LockMode::Governance, 90));
        assert!(terms(LockMode::Governance, 31) > terms(LockMode::Governance, 30));
        assert!(terms(LockMode::Governance, 0).check().is_err());
    }
}
