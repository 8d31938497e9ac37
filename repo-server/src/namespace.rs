//! One repository in a folder, as the server sees it: objects by name, never their content.
//!
//! Objects are never replaced: one that is there stays as it is, whatever comes under its name. They appear whole, by the
//! store's durable path. Calls block.

mod leases;
mod usage;
mod verify;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use repo_core::config::Config;
use repo_core::error::ErrorKind;
use repo_core::id::LeaseId;
use repo_core::object::{ObjectHeader, ObjectKind};
use repo_core::store::{NewObject, ObjectName, Store};

use crate::config::NamespaceConfig;
use crate::refusal::Refusal;
use leases::Leases;
use usage::{Reserved, Usage};
pub(crate) use verify::Verified;

/// The longest of the small objects, in bytes (docs/format.md §9).
const SMALL_LEN_MAX: u64 = 64 * 1024;
/// Length of an object header.
const HEADER_LEN: usize = 16;

/// One repository.
pub(crate) struct Namespace {
    pub(crate) name: String,
    root: PathBuf,
    store: Store,
    usage: Usage,
    leases: Leases,
}

/// An object that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: ObjectName,
    pub(crate) bytes: u64,
    /// By the server's clock, in milliseconds since the Unix epoch.
    pub(crate) stored_ms: i64,
}

/// Whether a folder in a folder holds objects.
fn holds_objects(path: &str) -> bool {
    let digits = |text: &str| text.len() == 2 && text.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
    matches!(path, "snapshots/annotations" | "snapshots/tombstones") || path.strip_prefix("packs/").is_some_and(digits)
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
    /// Opens the folder; one that is missing or empty becomes ready for a new repository.
    pub(crate) fn open(name: &str, config: &NamespaceConfig, state: &Path) -> Result<Self, String> {
        let root = config.path.clone();
        let cannot = |error: &dyn std::fmt::Display| format!("namespace {name}: {error}");
        let is_one = root.join("config").exists() || root.join("packs").is_dir();
        let opened = if is_one { Store::open_local(&root) } else { Store::create_local(&root) };
        let store = opened.map_err(|error| cannot(&error.chain()))?;
        let usage = Usage::new(&root, config.quota_mib.map(|mib| mib.saturating_mul(1024 * 1024)));
        let leases = Leases::open(&store, &state.join("leases").join(name)).map_err(|error| cannot(&error))?;
        Ok(Self { name: name.to_owned(), root, store, usage, leases })
    }

    /// Whether the folder can be used now.
    pub(crate) fn is_ready(&self) -> bool {
        self.root.join("packs").is_dir()
    }

    /// The bytes it holds, as far as they are counted, and the bytes it may hold.
    pub(crate) fn usage(&self) -> (Option<u64>, Option<u64>) {
        self.usage.told()
    }

    /// How long an object of that name may be, where no object may be longer than `limit`.
    pub(crate) fn len_max(name: ObjectName, limit: u64) -> u64 {
        match name {
            ObjectName::Pack(_) | ObjectName::Snapshot(_) | ObjectName::Tombstone(_) => limit,
            _ => SMALL_LEN_MAX.min(limit),
        }
    }

    /// Opens an object for reading. It can be read to its end even if it is deleted meanwhile.
    pub(crate) fn read(&self, name: ObjectName) -> Result<(File, Found), Refusal> {
        let file = match File::open(self.root.join(name.path())) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Refusal::missing(name)),
            file => file.map_err(|error| self.failed("open", &name.path(), &error))?,
        };
        let meta = file.metadata().map_err(|error| self.failed("open", &name.path(), &error))?;
        Ok((file, self.found(name, &meta)))
    }

    /// Whether an object is there.
    pub(crate) fn has(&self, name: ObjectName) -> Result<bool, Refusal> {
        Ok(self.store.exists(name)?)
    }

    /// The objects below a folder in order of their names, from the first after `after` on, at most `limit` of them; and
    /// whether there are more.
    pub(crate) fn list(&self, folder: &str, after: &str, limit: usize) -> Result<(Vec<Found>, bool), Refusal> {
        let mut found = Vec::new();
        let more = self.list_into(&mut found, folder, after, limit)?;
        Ok((found, more))
    }

    fn list_into(&self, found: &mut Vec<Found>, folder: &str, after: &str, limit: usize) -> Result<bool, Refusal> {
        for path in self.names_in(folder)? {
            let Ok(name) = ObjectName::parse(&path) else {
                // Names below a folder that comes before that of `after` are all passed.
                let passed = path.as_str() < after && !after.starts_with(&path);
                if holds_objects(&path) && !passed && self.list_into(found, &path, after, limit)? {
                    return Ok(true);
                }
                continue;
            };
            if path.as_str() <= after {
                continue;
            }
            if found.len() == limit {
                return Ok(true);
            }
            match fs::metadata(self.root.join(&path)) {
                // Deleted since the folder was read.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                meta => {
                    let meta = meta.map_err(|error| self.failed("read", &path, &error))?;
                    if meta.is_file() {
                        found.push(self.found(name, &meta));
                    }
                }
            }
        }
        Ok(false)
    }

    /// Paths of what a folder holds, ascending.
    fn names_in(&self, folder: &str) -> Result<Vec<String>, Refusal> {
        let entries = match fs::read_dir(self.root.join(folder)) {
            // Gone, or a file that is none of ours.
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            entries => entries.map_err(|error| self.failed("list", folder, &error))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| self.failed("list", folder, &error))?;
            names.extend(entry.file_name().to_str().map(|name| format!("{folder}/{name}")));
        }
        names.sort_unstable();
        Ok(names)
    }

    fn found(&self, name: ObjectName, meta: &fs::Metadata) -> Found {
        let stored_ms = meta.mtime().saturating_mul(1000).saturating_add(meta.mtime_nsec() / 1_000_000);
        // A process on this machine renews nothing: its lock says that it lives.
        let stored_ms = match name {
            ObjectName::Lease(id) if self.leases.is_of_a_local_process(&self.store, id) => now_ms(),
            _ => stored_ms,
        };
        Found { name, bytes: meta.len(), stored_ms }
    }

    fn failed(&self, doing: &str, what: &str, error: &std::io::Error) -> Refusal {
        let text = format!("cannot {doing} {what} of {}: {error}", self.name);
        Refusal::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "failed", text)
    }

    /// Begins to take an object in, of as many bytes as the client says it has, if it says so.
    pub(crate) fn begin(&self, name: ObjectName, said_len: Option<u64>) -> Result<Incoming<'_>, Refusal> {
        let mut reserved = self.usage.reserve();
        // Before the bytes come, rather than after.
        reserved.grow(said_len.unwrap_or(0), said_len.unwrap_or(0))?;
        let object = match name {
            ObjectName::Pack(_) | ObjectName::Snapshot(_) | ObjectName::Tombstone(_) => {
                Collected::Large(Box::new(self.store.new_object()?))
            }
            _ => Collected::Small(Vec::new()),
        };
        let start = Vec::with_capacity(HEADER_LEN);
        Ok(Incoming { namespace: self, name, hasher: blake3::Hasher::new(), start, len: 0, object, reserved })
    }

    /// Deletes an object; `token` is who asks.
    pub(crate) fn delete(&self, name: ObjectName, token: &str) -> Result<u64, Refusal> {
        let len = fs::metadata(self.root.join(name.path())).map_or(0, |meta| meta.len());
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

    /// Gives up the locks of leases whose holders were not heard of for too long, so that processes on this machine can take
    /// them for dead.
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
    object: Collected,
    reserved: Reserved<'a>,
}

enum Collected {
    /// In memory.
    Small(Vec<u8>),
    /// On the disk, without a name.
    Large(Box<NewObject>),
}

impl Incoming<'_> {
    /// Takes the next bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.len += bytes.len() as u64;
        self.reserved.grow(self.len, self.len)?;
        let room = HEADER_LEN.saturating_sub(self.start.len()).min(bytes.len());
        self.start.extend_from_slice(&bytes[..room]);
        self.hasher.update(bytes);
        match &mut self.object {
            Collected::Small(object) => object.extend_from_slice(bytes),
            Collected::Large(object) => object.append(bytes)?,
        }
        Ok(())
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
            Collected::Large(_) => &[],
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
        let stored = match (self.object, name) {
            (Collected::Small(bytes), ObjectName::Lease(id)) => {
                namespace.leases.put(id, token, || namespace.store.put_held(name, &bytes))?
            }
            (Collected::Small(bytes), ObjectName::Renewal(id)) => {
                namespace.leases.renew(id, token, || namespace.put_young(name, &bytes))?
            }
            (Collected::Small(bytes), ObjectName::Revocation(_)) => {
                namespace.leases.undisturbed(|| namespace.put(name, &bytes))?
            }
            (Collected::Small(bytes), ObjectName::Config) => namespace.put_config(&bytes)?,
            (Collected::Small(bytes), _) => namespace.put(name, &bytes)?,
            (Collected::Large(object), ObjectName::Snapshot(_)) => {
                namespace
                    .leases
                    .while_held(&namespace.store, token, "a snapshot is stored", || existed(object.publish(name)))?
            }
            (Collected::Large(object), _) => existed(object.publish(name))?,
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
        let stored = self.put(name, bytes)?;
        if stored == Stored::Existed {
            let now = std::time::SystemTime::from(jiff::Timestamp::now());
            let file = File::options().write(true).open(self.root.join(name.path()));
            file.and_then(|file| file.set_modified(now)).map_err(|error| self.failed("renew", &name.path(), &error))?;
        }
        Ok(stored)
    }

    /// The configuration is the one object whose name says nothing of its bytes.
    fn put_config(&self, bytes: &[u8]) -> Result<Stored, Refusal> {
        match self.put(ObjectName::Config, bytes)? {
            Stored::Existed if self.store.get(ObjectName::Config, SMALL_LEN_MAX)? != bytes => {
                Err(Refusal::conflict("this is a repository already, with another configuration"))
            }
            stored => Ok(stored),
        }
    }
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
