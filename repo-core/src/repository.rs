//! An open repository: its store, its configuration, and the keys this process was given.

use zeroize::Zeroizing;

use crate::chunk::ChunkParams;
use crate::config::{CONFIG_LEN_MAX, Config, StoreFindings};
use crate::entropy::Entropy;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::id::{RepositoryId, RepositoryPin, SlotId};
use crate::keys::slot::{self, Grant, Lock, NewSlot, SLOT_LEN_MAX, SlotInfo, Unlock};
use crate::keys::{Key, RoleKeys};
use crate::seal::Suite;
use crate::store::lock::LockName;
use crate::store::{Catalog, ObjectName, Store};

/// What is chosen when a repository is made.
#[derive(Debug, Clone, Copy)]
pub struct InitOptions {
    /// How packs and snapshot records are sealed.
    pub suite: Suite,
    /// Where chunks end.
    pub chunk: ChunkParams,
    /// Plaintext a data frame is closed at, in bytes.
    pub frame_len: u32,
    /// Length a pack is closed at, in bytes.
    pub pack_len: u32,
    /// What the object store was found to do, by [`Store::probe`].
    pub store: Option<StoreFindings>,
    /// The time now, in milliseconds since the Unix epoch.
    pub now_ms: i64,
}

impl InitOptions {
    /// The choices of a plain `init` at a time.
    pub fn new(suite: Suite, now_ms: i64) -> Self {
        Self {
            suite,
            chunk: ChunkParams::default(),
            frame_len: 1024 * 1024,
            pack_len: 32 * 1024 * 1024,
            store: None,
            now_ms,
        }
    }
}

/// An open repository.
pub struct Repository {
    /// Where its objects are.
    pub store: Store,
    /// What is fixed.
    pub config: Config,
    /// What this process may do.
    pub keys: RoleKeys,
    /// Randomness for salts.
    pub entropy: Entropy,
    /// The key slot that was opened.
    slot: SlotId,
    grant: Grant,
    master: Option<Key>,
}

/// A repository whose configuration was read, and that is not open yet.
pub struct Found {
    store: Store,
    bytes: Vec<u8>,
    config: Config,
}

impl Found {
    /// What opens it: nothing, or a passphrase or private key. Whether the configuration is genuine shows when it is opened.
    pub fn suite(&self) -> Suite {
        self.config.suite
    }

    /// As [`Repository::open`].
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub fn open(self, unlock: &Unlock<'_>, entropy: Entropy) -> Result<Repository> {
        self.open_as_before(unlock, |_| None, entropy)
    }

    /// Where it was found.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// As [`open`](Self::open), by the key slot that opened it the last time: then slots need not be listed. When that one is
    /// gone or does not open, all are tried.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_as_before(
        self,
        unlock: &Unlock<'_>,
        before: impl FnOnce(RepositoryId) -> Option<SlotId>,
        entropy: Entropy,
    ) -> Result<Repository> {
        let Self { store, bytes, config } = self;
        check_unlock(config.suite, unlock)?;
        let opened = match before(config.id).and_then(|slot| open_slot(&store, config.id, unlock, slot)) {
            Some(opened) => opened,
            None => open_any_slot(&store, config.id, unlock)?,
        };
        Config::authenticate(&bytes, &opened.roles)?;
        let slot::Opened { id: slot, grant, roles: keys, master } = opened;
        Ok(Repository { store, config, keys, entropy, slot, grant, master })
    }
}

impl Repository {
    /// Makes a repository in an empty store, with one key slot, which grants everything.
    ///
    /// # Errors
    /// `Invalid` when `unlock` does not go with the suite; `AlreadyExists`; `Io`.
    pub fn create(
        store: Store,
        options: &InitOptions,
        unlock: &Unlock<'_>,
        label: &str,
        entropy: Entropy,
    ) -> Result<Self> {
        check_unlock(options.suite, unlock)?;
        let config = Config {
            id: RepositoryId(entropy.bytes()?),
            created_ms: options.now_ms,
            suite: options.suite,
            chunk: options.chunk,
            frame_len: options.frame_len,
            pack_len: options.pack_len,
            store: options.store,
        };
        let master: Key = Zeroizing::new(entropy.bytes()?);
        let keys = RoleKeys::from_master(&master);
        let bytes = config.encode(&keys)?;
        Config::decode(&bytes).map_err(|error| Error::with_source(ErrorKind::Invalid, "cannot create that", error))?;
        let public = match unlock {
            Unlock::PrivateKey(private) => Some(private.public()),
            _ => None,
        };
        let lock = match (unlock, &public) {
            (Unlock::Passphrase { text, cost }, _) => Lock::Passphrase { text, cost: *cost },
            (_, Some(public)) => Lock::Recipient(public),
            _ => Lock::Open,
        };
        let first = NewSlot { lock, grant: Grant::Admin, label, created_ms: options.now_ms };
        let slot = put_slot(&store, &first, &master, config.id, &entropy)?;
        let repository = Self { store, config, keys, entropy, slot, grant: Grant::Admin, master: Some(master) };
        repository.refuse_other_slots(slot)?;
        // Last: a folder without it is no repository yet.
        if let Err(error) = repository.store.put_new(ObjectName::Config, &bytes) {
            // So that the next try finds an empty folder; that this fails too adds nothing to the error.
            let _ = repository.store.delete(ObjectName::Slot(slot));
            return Err(error);
        }
        Ok(repository)
    }

    /// Fails when the place that is to become a repository has another key slot than this one. Of two that are made in one
    /// place at once at least one finds the other's: each stores its slot first, and then looks.
    fn refuse_other_slots(&self, own: SlotId) -> Result<()> {
        let slots = self.store.list_slots()?;
        let others = slots.iter().filter(|listed| listed.id != own).count();
        if others == 0 && !slots.is_empty() {
            return Ok(());
        }
        // So that the next try finds an empty place; that this fails too adds nothing to the error.
        let _ = self.store.delete(ObjectName::Slot(own));
        let text = match others {
            0 => "the store does not list the key slot that was just stored: its listings are stale".to_owned(),
            _ => format!("another init is at work in {}, or was interrupted there", self.store.location()),
        };
        Err(Error::new(if others == 0 { ErrorKind::Unavailable } else { ErrorKind::AlreadyExists }, text))
    }

    /// Opens a repository with what unlocks one of its key slots.
    ///
    /// # Errors
    /// `NotFound` when there is no repository; `Unauthenticated` when nothing opens; `Corrupt`, `Unsupported`.
    pub fn open(store: Store, unlock: &Unlock<'_>, entropy: Entropy) -> Result<Self> {
        Self::find(store)?.open(unlock, entropy)
    }

    /// Reads the configuration of the repository in a store.
    ///
    /// # Errors
    /// `NotFound` when there is no repository; `Corrupt`, `Unsupported`.
    pub fn find(store: Store) -> Result<Found> {
        let bytes = config_bytes(&store)?;
        let config = Config::decode(&bytes).context(|| "the configuration cannot be used")?;
        Ok(Found { store, bytes, config })
    }

    /// Whether the repository in `store` is a copy of this one: it has the same id, configuration and keys.
    ///
    /// # Errors
    /// `NotFound` when there is no repository; `Invalid` or `Unauthenticated` when it has the same id and something else
    /// differs; `Corrupt`, `Unsupported`.
    pub fn is_copied_in(&self, store: &Store) -> Result<bool> {
        let bytes = config_bytes(store)?;
        let config = Config::decode(&bytes).context(|| "the configuration cannot be used")?;
        if config.id != self.config.id {
            return Ok(false);
        }
        if config != self.config {
            return Err(Error::invalid("two repositories have one id and different configurations"));
        }
        Config::authenticate(&bytes, &self.keys)?;
        Ok(true)
    }

    /// Opens a copy of this repository with the keys that this process holds. No key slot of the copy is opened, so it may
    /// have other ones.
    ///
    /// # Errors
    /// `Invalid` when it is no copy; those of [`is_copied_in`](Self::is_copied_in).
    pub fn open_copy(&self, store: Store, entropy: Entropy) -> Result<Self> {
        if !self.is_copied_in(&store)? {
            return Err(Error::invalid("it is another repository, not a copy of this one"));
        }
        let (slot, grant, master) = (self.slot, self.grant, self.master.clone());
        Ok(Self { store, config: self.config, keys: self.keys.clone(), entropy, slot, grant, master })
    }

    /// Whether a store that is no repository yet holds nothing but key slots of this one: a copy that was broken off.
    ///
    /// # Errors
    /// `Unavailable` when a store cannot be listed.
    pub fn is_copy_begun_in(&self, store: &Store) -> Result<bool> {
        let there = store.list_slots()?;
        let own = self.store.list_slots()?;
        let all_own = there.iter().all(|listed| own.iter().any(|slot| slot.id == listed.id));
        Ok(!there.is_empty() && all_own && store.pack_ids()?.is_empty() && store.catalog()?.snapshots.is_empty())
    }

    /// Makes an empty copy of this repository in a store that has no configuration yet: its key slots, then its
    /// configuration. One that was begun is gone on with.
    ///
    /// # Errors
    /// `AlreadyExists` when something else is there; `Corrupt` when a slot is damaged; `Io`.
    pub fn copy_to(&self, store: &Store) -> Result<()> {
        let bytes = config_bytes(&self.store)?;
        Config::authenticate(&bytes, &self.keys)?;
        for listed in self.store.list_slots()? {
            let slot = self.store.get(ObjectName::Slot(listed.id), SLOT_LEN_MAX)?;
            if *blake3::hash(&slot).as_bytes() != listed.id.0 {
                return Err(Error::corrupt(format!("key slot {} does not match its name", listed.id.short())));
            }
            match store.put_new(ObjectName::Slot(listed.id), &slot) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                put => put?,
            }
        }
        // Last, as when a repository is made.
        store.put_new(ObjectName::Config, &bytes)
    }

    /// What is below `snapshots/`, by one listing. A repository that is locked shows there, and what is stored from then on is
    /// locked.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn catalog(&self) -> Result<Catalog> {
        let catalog = self.store.catalog()?;
        self.heed_lock(&catalog)?;
        Ok(catalog)
    }

    /// As [`catalog`](Self::catalog), with the times at which snapshot records were stored.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn dated_catalog(&self) -> Result<Catalog> {
        let catalog = self.store.dated_catalog()?;
        self.heed_lock(&catalog)?;
        Ok(catalog)
    }

    /// Locks what is stored from now on, if a catalog says so under this repository's keys. Gives what it says, and when all locks were last
    /// looked after, in milliseconds since the Unix epoch.
    pub(crate) fn heed_lock(&self, catalog: &Catalog) -> Result<Option<(LockName, i64)>> {
        let mut found = None::<(LockName, i64)>;
        for (name, renewed_ms) in &catalog.locks {
            if found.is_none_or(|(best, _)| name.terms > best.terms) && name.open(&self.keys)?.is_some() {
                found = Some((*name, *renewed_ms));
            }
        }
        if let Some((name, _)) = found {
            self.store.set_lock_terms(Some(name.terms));
        }
        Ok(found)
    }

    /// The key slot that was opened.
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// Whether this is one of the repositories that a key file is bound to; any is, when it is bound to none. Anybody can seal to
    /// a public key, also a bundle of keys of their own: whoever adds content then adds it for them. Who cannot add content gives
    /// nothing away, and may open any.
    pub fn is_bound(&self, pins: &[RepositoryPin]) -> bool {
        self.keys.pin(self.config.id).map_or(true, |pin| pins.is_empty() || pins.contains(&pin))
    }

    /// What the key in use grants.
    pub fn grant(&self) -> Grant {
        self.grant
    }

    /// Adds a key slot, and gives its name.
    ///
    /// # Errors
    /// `Forbidden` when this process does not hold the master key; `Invalid` when the repository takes no such slot; `Io`.
    pub fn add_slot(&self, new: &NewSlot<'_>) -> Result<SlotId> {
        if self.config.suite == Suite::None {
            return Err(Error::invalid("this repository is not encrypted and takes no further key"));
        }
        if matches!(new.lock, Lock::Open) {
            return Err(Error::invalid("this repository is encrypted: a key slot needs a passphrase or a public key"));
        }
        if self.store.lock_now_ms().is_some() {
            // Whether to lock it.
            self.catalog()?;
        }
        put_slot(&self.store, new, self.master()?, self.config.id, &self.entropy)
    }

    fn master(&self) -> Result<&Key> {
        self.master.as_ref().ok_or_else(|| {
            let text =
                format!("the key in use grants the role {} only, and keys are managed by admin", self.grant.name());
            Error::new(ErrorKind::Forbidden, text)
        })
    }

    /// The key slots, oldest first. Slots that cannot be read are errors beside the others.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be listed.
    pub fn slots(&self) -> Result<Vec<Result<SlotInfo>>> {
        let mut slots: Vec<_> = self
            .store
            .list_slots()?
            .into_iter()
            .map(|listed| {
                let bytes = self.store.get(ObjectName::Slot(listed.id), SLOT_LEN_MAX)?;
                slot::inspect(listed.id, &bytes)
            })
            .collect();
        slots.sort_by_key(|slot| slot.as_ref().map_or((i64::MAX, None), |slot| (slot.created_ms, Some(slot.id))));
        Ok(slots)
    }

    /// Removes a key slot. The last one that can be read and grants everything is never removed: nobody could hand out
    /// keys any more, and in the end the repository would be lost.
    ///
    /// # Errors
    /// `Forbidden` when this process does not hold the master key; `NotFound`; `Invalid` for the last one.
    pub fn remove_slot(&self, id: SlotId) -> Result<()> {
        self.master()?;
        // Two removals at once could each leave the other's slot as the last one.
        let _lock = self.store.lock_slots()?;
        let slots = self.slots()?;
        if !slots.iter().flatten().any(|slot| slot.id != id && slot.grant == Grant::Admin) {
            return Err(Error::invalid(
                "this is the last key slot that grants everything: without it no key could be added any more, and once all \
                 keys are gone the repository is lost",
            ));
        }
        self.store.delete(ObjectName::Slot(id))
    }
}

fn put_slot(
    store: &Store,
    new: &NewSlot<'_>,
    master: &Key,
    repository: RepositoryId,
    entropy: &Entropy,
) -> Result<SlotId> {
    let bytes = slot::encode(new, master, repository, entropy)?;
    let id = SlotId(*blake3::hash(&bytes).as_bytes());
    store.put_new(ObjectName::Slot(id), &bytes)?;
    Ok(id)
}

fn config_bytes(store: &Store) -> Result<Vec<u8>> {
    store.get(ObjectName::Config, CONFIG_LEN_MAX).map_err(|error| match error.kind() {
        ErrorKind::NotFound => error.context(format!("{} is not a repository: it has no config", store.location())),
        _ => error,
    })
}

fn check_unlock(suite: Suite, unlock: &Unlock<'_>) -> Result<()> {
    match (suite, unlock) {
        (Suite::None, Unlock::Open) | (Suite::Aes256Gcm, Unlock::Passphrase { .. } | Unlock::PrivateKey(_)) => Ok(()),
        (Suite::None, _) => Err(Error::invalid("this repository is not encrypted and takes no passphrase and no key")),
        (Suite::Aes256Gcm, Unlock::Open) => {
            Err(Error::new(ErrorKind::Unauthenticated, "this repository wants a passphrase or a private key"))
        }
    }
}

/// Opens the slot that grants most of those that `unlock` opens.
fn open_slot(store: &Store, id: RepositoryId, unlock: &Unlock<'_>, slot: SlotId) -> Option<slot::Opened> {
    let bytes = store.get(ObjectName::Slot(slot), SLOT_LEN_MAX).ok()?;
    slot::open(slot, &bytes, unlock, id).ok()?
}

fn open_any_slot(store: &Store, id: RepositoryId, unlock: &Unlock<'_>) -> Result<slot::Opened> {
    let listed = store.list_slots()?;
    let mut damaged = None;
    let mut candidates = Vec::new();
    for listed in &listed {
        let read = store.get(ObjectName::Slot(listed.id), SLOT_LEN_MAX).and_then(|bytes| {
            let info = slot::inspect(listed.id, &bytes)?;
            Ok((info, bytes))
        });
        match read {
            Ok(read) => candidates.push(read),
            // Another slot may still open.
            Err(error) => damaged = Some(error),
        }
    }
    if let Unlock::PrivateKey(private) = unlock {
        let own = private.public().recipient();
        candidates.retain(|(info, _)| info.recipient == Some(own));
    }
    candidates.sort_by_key(|(info, _)| (info.grant, info.id));
    for (info, bytes) in &candidates {
        match slot::open(info.id, bytes, unlock, id) {
            Ok(Some(opened)) => return Ok(opened),
            Ok(None) => {}
            Err(error) => damaged = Some(error),
        }
    }
    match (damaged, unlock) {
        (Some(error), _) => Err(error.context("no key slot opens, and one cannot be read")),
        (None, _) if listed.is_empty() => Err(Error::corrupt("the repository has no key slot: keys/ is empty")),
        (None, Unlock::PrivateKey(_)) => {
            let text =
                "the private key opens no key slot of this repository: it is another repository's, or was removed";
            Err(Error::new(ErrorKind::Unauthenticated, text))
        }
        (None, _) => {
            Err(Error::new(ErrorKind::Unauthenticated, "wrong passphrase: it opens no key slot of this repository"))
        }
    }
}
