//! One repository, as the server sees it: objects by name, never their content; in a folder or in an object store.
//!
//! Objects are never replaced: one that is there stays as it is, whatever comes under its name. They appear whole: in a folder
//! by the store's durable path, in an object store by one request. Calls block.

mod bucket;
mod content;
mod folder;
mod leases;
mod usage;
mod verify;

use std::fs::{File, Metadata};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use repo_core::config::Config;
use repo_core::error::ErrorKind;
use repo_core::id::LeaseId;
use repo_core::object::{ObjectHeader, ObjectKind};
use repo_core::store::reading::Part;
use repo_core::store::{NewObject, ObjectName, Store};

use crate::config::{NamespaceConfig, PlaceConfig};
use crate::refusal::Refusal;
use bucket::Bucket;
pub(crate) use content::Content;
use folder::{Folder, modified_ms};
use leases::Leases;
use usage::{Reserved, Usage};
pub(crate) use verify::Verified;

/// The longest of the small objects, in bytes (docs/format.md §9).
const SMALL_LEN_MAX: u64 = 64 * 1024;
/// Length of an object header.
const HEADER_LEN: usize = 16;
/// How long a request to an object store is tried again. Clients try again themselves, and for longer.
pub(crate) const RETRY_FOR: Duration = Duration::from_secs(5);
/// Requests to an object store at once. One is as long as a client takes for the bytes it reads, so these are more than there are
/// connections: nobody who reads slowly holds up a question.
const REQUESTS_MAX: usize = 4096;

/// One repository.
pub(crate) struct Namespace {
    pub(crate) name: String,
    store: Store,
    place: Place,
    usage: Usage,
    leases: Leases,
}

enum Place {
    Folder(Folder),
    Bucket(Bucket),
}

/// An object that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: ObjectName,
    pub(crate) bytes: u64,
    /// By the clock of the server, or of the object store, in milliseconds since the Unix epoch.
    pub(crate) stored_ms: i64,
}

/// What became of an object that a client brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// It is there now.
    New,
    /// It was there before, and nothing was changed; a renewal is as young as a new one.
    Existed,
}

impl Namespace {
    /// Opens the place. A folder that is missing or empty becomes ready for a new repository; of an object store nothing is asked
    /// yet, so that one that does not answer holds the others up no more than its clients.
    pub(crate) fn open(name: &str, config: &NamespaceConfig, state: &Path) -> Result<Self, String> {
        let cannot = |error: &dyn std::fmt::Display| format!("namespace {name}: {error}");
        match config.place().map_err(|error| cannot(&error))? {
            PlaceConfig::Folder(root) => {
                let is_one = root.join("config").exists() || root.join("packs").is_dir();
                let opened = if is_one { Store::open_local(&root) } else { Store::create_local(&root) };
                let store = opened.map_err(|error| cannot(&error.chain()))?;
                Self::on(name, store, Place::Folder(Folder { root }), config, state).map_err(|error| cannot(&error))
            }
            PlaceConfig::Cloud(cloud) => {
                let store = cloud.open(RETRY_FOR, REQUESTS_MAX).map_err(|error| cannot(&error.chain()))?;
                Self::on(name, store, Place::Bucket(Bucket::new(state)), config, state).map_err(|error| cannot(&error))
            }
        }
    }

    fn on(name: &str, store: Store, place: Place, config: &NamespaceConfig, state: &Path) -> Result<Self, String> {
        let usage = Usage::new(config.quota_bytes());
        let leases = Leases::open(&store, &state.join("leases").join(name))?;
        let namespace = Self { name: name.to_owned(), store, place, usage, leases };
        if let Place::Folder(_) = namespace.place {
            namespace.usage.count(&|| namespace.used_bytes()).map_err(|refusal| refusal.message)?;
        }
        Ok(namespace)
    }

    /// Whether the place can be used now.
    pub(crate) fn is_ready(&self) -> bool {
        match &self.place {
            Place::Folder(folder) => folder.is_ready(),
            Place::Bucket(bucket) => bucket.is_ready(&self.store),
        }
    }

    /// The bytes it holds, as far as they are counted, and the bytes it may hold.
    pub(crate) fn usage(&self) -> (Option<u64>, Option<u64>) {
        // What cannot be counted now is not told.
        let _ = self.usage.count(&|| self.used_bytes());
        self.usage.told()
    }

    fn used_bytes(&self) -> Result<u64, Refusal> {
        match &self.place {
            Place::Folder(folder) => Ok(folder.used_bytes()),
            Place::Bucket(_) => Ok(bucket::used_bytes(&self.store)?),
        }
    }

    /// The longest object that the place takes, where no object may be longer than `limit`.
    pub(crate) fn object_len_max(&self, limit: u64) -> u64 {
        match &self.place {
            Place::Folder(_) => limit,
            Place::Bucket(_) => limit.min(Bucket::LEN_MAX),
        }
    }

    /// How long an object of that name may be, where no object may be longer than `limit`.
    pub(crate) fn len_max(&self, name: ObjectName, limit: u64) -> u64 {
        let limit = self.object_len_max(limit);
        if is_large(name) { limit } else { SMALL_LEN_MAX.min(limit) }
    }

    /// Opens an object for reading.
    pub(crate) fn read(&self, name: ObjectName, part: &Part) -> Result<(Found, Option<Content>), Refusal> {
        match &self.place {
            Place::Folder(folder) => {
                let opened = folder.open(name).map_err(|error| self.failed("open", &name.path(), &error))?;
                let (file, meta) = opened.ok_or_else(|| Refusal::missing(name))?;
                let content = part.of(meta.len()).map(|range| Content::File(file, range));
                Ok((self.found(name, &meta), content))
            }
            Place::Bucket(_) => match self.store.read(name, part)? {
                None => Ok((self.find(name)?, None)),
                Some(reading) => {
                    let found = Found { name, bytes: reading.stat.len, stored_ms: reading.stat.stored_ms };
                    if part.of(found.bytes) != Some(reading.range.clone()) {
                        let text = format!("the object store answers with other bytes of {name} than it was asked for");
                        return Err(Refusal::unavailable(text));
                    }
                    Ok((found, Some(Content::Streamed(Box::new(reading)))))
                }
            },
        }
    }

    /// What there is of an object without its bytes.
    pub(crate) fn find(&self, name: ObjectName) -> Result<Found, Refusal> {
        match &self.place {
            Place::Folder(folder) => {
                let meta = folder.find(name).map_err(|error| self.failed("read", &name.path(), &error))?;
                Ok(self.found(name, &meta.ok_or_else(|| Refusal::missing(name))?))
            }
            Place::Bucket(_) => {
                let stat = self.store.stat(name)?;
                Ok(Found { name, bytes: stat.len, stored_ms: stat.stored_ms })
            }
        }
    }

    /// Whether an object is there.
    pub(crate) fn has(&self, name: ObjectName) -> Result<bool, Refusal> {
        Ok(self.store.exists(name)?)
    }

    /// Whether an object that a token brings need not be stored since it is there.
    pub(crate) fn existed(&self, name: ObjectName, token: &str) -> Result<bool, Refusal> {
        if !self.has(name)? {
            return Ok(false);
        }
        // It may be one that should have been taken back, and could not be.
        if let (ObjectName::Snapshot(_), Place::Bucket(_)) = (name, &self.place) {
            self.leases.while_held(&self.store, token, "a snapshot is stored", || Ok(()))?;
        }
        Ok(true)
    }

    /// Which of them are there, in their order.
    pub(crate) fn have(&self, names: &[ObjectName]) -> Result<Vec<ObjectName>, Refusal> {
        let there = self.store.each(names, |name| self.store.exists(*name));
        let there = there.into_iter().collect::<repo_core::Result<Vec<bool>>>()?;
        Ok(names.iter().zip(there).filter(|(_, there)| *there).map(|(name, _)| *name).collect())
    }

    /// The objects below a folder in order of their names, from the first after `after` on, at most `limit` of them; and
    /// whether there are more.
    pub(crate) fn list(&self, folder: &str, after: &str, limit: usize) -> Result<(Vec<Found>, bool), Refusal> {
        match &self.place {
            Place::Folder(place) => {
                let mut found = Vec::new();
                let more = place.list(&mut found, folder, after, limit);
                let more = more.map_err(|error| self.failed("list", folder, &error))?;
                Ok((found.iter().map(|(name, meta)| self.found(*name, meta)).collect(), more))
            }
            Place::Bucket(_) => {
                let (listed, more) = self.store.page(folder, after, limit)?;
                let found = listed.into_iter();
                let found = found.map(|one| Found { name: one.id, bytes: one.len, stored_ms: one.stored_ms });
                Ok((found.collect(), more))
            }
        }
    }

    /// An object in a folder.
    fn found(&self, name: ObjectName, meta: &Metadata) -> Found {
        // A process on this machine renews nothing: its lock says that it lives.
        let stored_ms = match name {
            ObjectName::Lease(id) if self.leases.is_of_a_local_process(&self.store, id) => now_ms(),
            _ => modified_ms(meta),
        };
        Found { name, bytes: meta.len(), stored_ms }
    }

    fn failed(&self, doing: &str, what: &str, error: &std::io::Error) -> Refusal {
        let text = format!("cannot {doing} {what} of {}: {error}", self.name);
        Refusal::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "failed", text)
    }

    /// Begins to take an object in, of as many bytes as the client says it has, if it says so.
    pub(crate) fn begin(&self, name: ObjectName, said_len: Option<u64>) -> Result<Incoming<'_>, Refusal> {
        let reserved = self.usage.reserve();
        let object = match &self.place {
            _ if !is_large(name) => Collected::Small(Vec::new()),
            Place::Folder(_) => Collected::Large(Box::new(self.store.new_object()?)),
            Place::Bucket(bucket) => {
                let file = bucket.collect().map_err(|error| repo_core::Error::io("cannot collect an object", error))?;
                Collected::Spooled(bucket, file)
            }
        };
        let start = Vec::with_capacity(HEADER_LEN);
        let mut incoming =
            Incoming { namespace: self, name, hasher: blake3::Hasher::new(), start, len: 0, object, reserved };
        // Before the bytes come, rather than after.
        incoming.reserve(said_len.unwrap_or(0))?;
        Ok(incoming)
    }

    /// Deletes an object; `token` is who asks.
    pub(crate) fn delete(&self, name: ObjectName, token: &str) -> Result<u64, Refusal> {
        // Object stores do not tell whether what they deleted was there.
        let len = self.find(name)?.bytes;
        match name {
            ObjectName::Lease(id) => self.leases.forget(&self.store, id)?,
            // A collector that was taken for dead may wake up late.
            ObjectName::Pack(_) => {
                self.leases.while_held(&self.store, token, "packs are deleted", || Ok(self.store.delete(name)?))?;
            }
            _ => self.store.delete(name)?,
        }
        self.usage.free(len);
        Ok(len)
    }

    /// Whether a token put that lease.
    pub(crate) fn owns(&self, token: &str, lease: LeaseId) -> bool {
        self.leases.is_owned_by(lease, token)
    }

    /// In a folder, gives up the locks of leases whose holders were not heard of for too long, so that processes on this machine can take
    /// them for dead. Leases in an object store are revoked by clients; those that are gone are forgotten here.
    pub(crate) fn expire_leases(&self, now_ms: i64) {
        self.leases.expire(&self.store, now_ms);
    }
}

/// An object that comes in. Dropped before it is finished, it leaves nothing.
pub(crate) struct Incoming<'a> {
    namespace: &'a Namespace,
    name: ObjectName,
    hasher: blake3::Hasher,
    /// The first bytes.
    start: Vec<u8>,
    len: u64,
    object: Collected<'a>,
    reserved: Reserved<'a>,
}

enum Collected<'a> {
    /// In memory.
    Small(Vec<u8>),
    /// On the disk, without a name.
    Large(Box<NewObject>),
    /// The same, to be sent to an object store.
    Spooled(&'a Bucket, File),
}

impl Incoming<'_> {
    /// Takes the next bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.len += bytes.len() as u64;
        self.reserve(self.len)?;
        let room = HEADER_LEN.saturating_sub(self.start.len()).min(bytes.len());
        self.start.extend_from_slice(&bytes[..room]);
        self.hasher.update(bytes);
        match &mut self.object {
            Collected::Small(object) => object.extend_from_slice(bytes),
            Collected::Large(object) => object.append(bytes)?,
            Collected::Spooled(_, file) => {
                file.write_all(bytes).map_err(|error| repo_core::Error::io("cannot collect an object", error))?;
            }
        }
        Ok(())
    }

    /// Makes sure that so many bytes fit into the quota.
    fn reserve(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.reserved.grow(bytes, &|| self.namespace.used_bytes())
    }

    /// Checks that the object is what its name says and gives it the name; `token` is who brought it.
    pub(crate) fn finish(self, token: &str) -> Result<Stored, Refusal> {
        let Self { namespace, name, .. } = &self;
        let (namespace, name) = (*namespace, *name);
        let hash = *self.hasher.finalize().as_bytes();
        let kind = kind_of(name);
        ObjectHeader::check(&self.start, kind)?;
        let small = match &self.object {
            Collected::Small(bytes) => bytes.as_slice(),
            Collected::Large(_) | Collected::Spooled(..) => &[],
        };
        let fits = match name {
            ObjectName::Config => Config::decode(small).map(|_| true)?,
            ObjectName::Revocation(id) => small.len() == HEADER_LEN + 32 && small[HEADER_LEN..] == id.0,
            ObjectName::Slot(id) => id.0 == hash,
            ObjectName::Pack(id) => id.0 == hash,
            ObjectName::Snapshot(id) => id.0 == hash,
            ObjectName::Lease(id) | ObjectName::Renewal(id) => id.0 == hash,
            ObjectName::Tombstone(name) => name.id.0 == hash,
            ObjectName::Annotation(id) => id.0 == hash,
            ObjectName::Lock(name) => small == name.object(),
        };
        if !fits {
            return Err(Refusal::bad(format!("{name} is not what its name says: the bytes changed on the way")));
        }
        let (store, leases, len) = (&namespace.store, &namespace.leases, self.len);
        let stored = match (self.object, name) {
            (Collected::Small(bytes), ObjectName::Lease(id)) => {
                leases.put(id, token, || store.put_held(name, &bytes))?
            }
            (Collected::Small(bytes), ObjectName::Renewal(id)) => {
                leases.renew(id, token, || namespace.put_young(name, &bytes))?
            }
            (Collected::Small(bytes), ObjectName::Revocation(_)) => {
                leases.undisturbed(|| namespace.put(name, &bytes))?
            }
            (Collected::Small(bytes), ObjectName::Config) => leases.undisturbed(|| namespace.put_config(&bytes))?,
            (Collected::Small(bytes), _) => namespace.put(name, &bytes)?,
            (Collected::Large(object), ObjectName::Snapshot(_)) => {
                leases.while_held(store, token, "a snapshot is stored", || existed(object.publish(name)))?
            }
            (Collected::Large(object), _) => existed(object.publish(name))?,
            (Collected::Spooled(bucket, file), ObjectName::Snapshot(_)) => {
                let what = "a snapshot is stored";
                leases.while_held(store, token, what, || bucket.put(store, name, file, len))?;
                // Others that work on the store may have revoked the lease between the look and the record.
                if let Err(refusal) = leases.while_held(store, token, what, || Ok(())) {
                    store.delete(name)?;
                    return Err(refusal);
                }
                Stored::New
            }
            (Collected::Spooled(bucket, file), _) => bucket.put(store, name, file, len).map(|()| Stored::New)?,
        };
        if stored == Stored::New {
            self.reserved.keep(self.len);
        }
        Ok(stored)
    }
}

impl Namespace {
    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<Stored, Refusal> {
        existed(self.store.put_new(name, bytes))
    }

    /// What is there already becomes as young as if it were new.
    fn put_young(&self, name: ObjectName, bytes: &[u8]) -> Result<Stored, Refusal> {
        match &self.place {
            Place::Folder(folder) => {
                let stored = self.put(name, bytes)?;
                if stored == Stored::Existed {
                    folder.make_young(name).map_err(|error| self.failed("renew", &name.path(), &error))?;
                }
                Ok(stored)
            }
            Place::Bucket(_) => self.put_over(name, bytes),
        }
    }

    /// An object store does not say whether there was one of the same bytes.
    fn put_over(&self, name: ObjectName, bytes: &[u8]) -> Result<Stored, Refusal> {
        let there = self.has(name)?;
        let stored = self.put(name, bytes)?;
        Ok(if there { Stored::Existed } else { stored })
    }

    /// The configuration is the one object whose name says nothing of its bytes.
    fn put_config(&self, bytes: &[u8]) -> Result<Stored, Refusal> {
        let stored = match &self.place {
            Place::Folder(_) => self.put(ObjectName::Config, bytes)?,
            Place::Bucket(_) => self.put_over(ObjectName::Config, bytes)?,
        };
        match stored {
            Stored::Existed if self.store.get(ObjectName::Config, SMALL_LEN_MAX)? != bytes => {
                Err(Refusal::conflict("this is a repository already, with another configuration"))
            }
            stored => Ok(stored),
        }
    }
}

/// Whether an object of that name may be longer than memory should hold.
fn is_large(name: ObjectName) -> bool {
    matches!(name, ObjectName::Pack(_) | ObjectName::Snapshot(_) | ObjectName::Tombstone(_))
}

fn existed(published: repo_core::Result<()>) -> Result<Stored, Refusal> {
    match published {
        Ok(()) => Ok(Stored::New),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Stored::Existed),
        Err(error) => Err(error.into()),
    }
}

fn kind_of(name: ObjectName) -> ObjectKind {
    match name {
        ObjectName::Config => ObjectKind::Config,
        ObjectName::Slot(_) => ObjectKind::KeySlot,
        ObjectName::Pack(_) => ObjectKind::Pack,
        ObjectName::Snapshot(_) => ObjectKind::Snapshot,
        ObjectName::Lease(_) | ObjectName::Renewal(_) => ObjectKind::Lease,
        ObjectName::Revocation(_) => ObjectKind::Revocation,
        ObjectName::Tombstone(_) => ObjectKind::Tombstone,
        ObjectName::Annotation(_) => ObjectKind::Annotation,
        ObjectName::Lock(_) => ObjectKind::Lock,
    }
}

/// The server's clock, in milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests;
