//! A folder of another machine over SFTP, as an object store (docs/design/0018).
//!
//! ssh(1) makes the connection, with the user's own configuration, keys and known hosts; this speaks the protocol through it.
//! An object is written under another name, made durable, and renamed: it is there whole or not at all.
//!
//! Locks of files do not cross SFTP, so such a place is used as an object store is, by leases that are renewed. A folder that is used
//! by its path at the same time would take the holders of these for dead; the file [`SFTP_MARK`] in it keeps the two apart.

mod files;
mod packet;
mod session;

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{
    Attributes, CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::failure::{Doing, failure};
use crate::store::local::SFTP_MARK;
use crate::store::remote::RemoteOptions;
use crate::traffic::Traffic;
use files::Files;

/// What all paths of such a store are told by.
const STORE: &str = "SFTP";

/// A folder of another machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftpPlace {
    /// The host, or a name that ssh(1) knows it by.
    pub host: String,
    /// The user; whom ssh(1) takes when `None`.
    pub user: Option<String>,
    /// The port; which ssh(1) takes when `None`.
    pub port: Option<u16>,
    /// From the root when it begins with a slash, else from where the server lets the user begin.
    pub path: String,
}

impl SftpPlace {
    /// Reads a URL, `sftp://[USER@]HOST[:PORT]/PATH`, or `/~/PATH` for a path in the user's own folder; `None` when it is
    /// another one.
    ///
    /// # Errors
    /// `Invalid` when it names no host or no folder.
    pub fn parse(url: &str) -> Result<Option<Self>> {
        let Some(rest) = url.strip_prefix("sftp://") else { return Ok(None) };
        let Some((authority, path)) = rest.split_once('/') else {
            return Err(Error::invalid(format!("{url} names no folder: sftp://HOST/PATH does")));
        };
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                let number = port.parse().map_err(|_| Error::invalid(format!("{port:?} is no port")))?;
                (host, Some(number))
            }
            _ => (host, None),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        // They become words of a command line: none may look like an option.
        let plain = |text: &str, more: &str| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        if !plain(host, "-._:%") {
            return Err(Error::invalid(format!("{url} names no host")));
        }
        if user.is_some_and(|user| !plain(user, "-._+$\\")) {
            return Err(Error::invalid(format!("{url} names no user")));
        }
        let path = path.trim_end_matches('/');
        let (start, below) = match path.split_once('/').unwrap_or((path, "")) {
            ("~", below) => ("", below),
            _ => ("/", path),
        };
        let odd = |part: &str| part.is_empty() || part == "." || part == "..";
        if below.split('/').any(odd) || below.chars().any(char::is_control) {
            return Err(Error::invalid(format!("{url} names no folder: sftp://HOST/PATH does, without . and ..")));
        }
        Ok(Some(Self { host: host.to_owned(), user: user.map(str::to_owned), port, path: format!("{start}{below}") }))
    }

    /// What tells it apart from all others.
    fn address(&self) -> String {
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("sftp://{user}{}{port} {}", self.host, self.path)
    }

    /// The command that is run. No terminal is asked for anything: nobody may be there, and Ctrl-C must not end it.
    fn command(&self, ssh: &[OsString]) -> Vec<OsString> {
        let mut command = ssh.to_vec();
        let options =
            ["BatchMode=yes", "ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes", "ConnectTimeout=15"];
        let options = options.into_iter().chain(["ServerAliveInterval=30", "ServerAliveCountMax=3"]);
        command.extend(options.map(|option| format!("-o{option}").into()));
        command.extend(self.port.iter().flat_map(|port| ["-p".into(), port.to_string().into()]));
        command.extend(self.user.iter().flat_map(|user| ["-l".into(), user.into()]));
        command.extend(["-s", "--", &self.host, "sftp"].map(OsString::from));
        command
    }
}

/// How a place is reached.
#[derive(Debug, Clone)]
pub struct SftpSettings {
    /// The program that makes the connection, ssh(1), and its first arguments.
    pub ssh: Vec<OsString>,
    /// How long it is tried again while there is no connection.
    pub retry_for: Duration,
    /// Where requests and bytes are counted and limited.
    pub traffic: Arc<Traffic>,
}

/// Opens the store in a folder of another machine. Nothing is asked of it yet. `location` is what people call the place.
///
/// # Errors
/// `Io` when no thread can be started.
pub fn open(place: &SftpPlace, settings: &SftpSettings, location: String) -> Result<Store> {
    let objects = Arc::new(SftpStore { files: Arc::new(Files::new(place, settings)) });
    Ok(Store::open_remote(objects, location, RemoteOptions::default())?.at_address(place.address()))
}

/// As [`open`], for a new repository: makes the folder, and marks it.
///
/// # Errors
/// `AlreadyExists` when the folder holds anything already; `Unavailable`, `Io`.
pub fn create(place: &SftpPlace, settings: &SftpSettings, location: String, options: RemoteOptions) -> Result<Store> {
    let files = Arc::new(Files::new(place, settings));
    let objects = Arc::new(SftpStore { files: files.clone() });
    let store = Store::open_remote(objects.clone(), location.clone(), options)?;
    let made = store.runtime.block_on(files.make_root());
    made.map_err(|error| failure(Doing::Storing, &location, error))?;
    // In the same store: a conversation belongs to its runtime.
    if let crate::store::Place::Remote(remote) = &store.place {
        remote.refuse_occupied()?;
    }
    let marked = store.runtime.block_on(files.put(SFTP_MARK, MARKED.into(), true));
    marked.map_err(|error| failure(Doing::Storing, SFTP_MARK, error))?;
    Ok(store.at_address(place.address()))
}

/// What the mark says to people.
const MARKED: &str = "This repository is used over SFTP, sftp://HOST/PATH, and not as a folder of this machine: processes here would not see who\n\
                      is at work in it. Delete this file only while nobody is, to use it as a folder from then on.\n";

/// The object store.
#[derive(Debug)]
struct SftpStore {
    files: Arc<Files>,
}

impl std::fmt::Display for SftpStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(STORE)
    }
}

#[async_trait::async_trait]
impl ObjectStore for SftpStore {
    async fn put_opts(
        &self,
        location: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let replace = match options.mode {
            PutMode::Create => false,
            PutMode::Overwrite => true,
            PutMode::Update(_) => return Err(unsupported("conditional puts")),
        };
        self.files.put(location.as_ref(), payload.into(), replace).await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(
        &self,
        _location: &ObjectPath,
        _options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        Err(unsupported("uploads in parts"))
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> object_store::Result<GetResult> {
        let found = self.files.get(location.as_ref(), options.range, options.head).await?;
        let payload = GetResultPayload::Stream(futures::stream::once(async { Ok(found.bytes) }).boxed());
        let meta = found.file.meta(location.clone());
        let (attributes, extensions) = (Attributes::default(), Default::default());
        Ok(GetResult { payload, meta, range: found.range, attributes, extensions })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        let files = self.files.clone();
        let deleted = async move {
            let locations: Vec<ObjectPath> = locations.try_collect().await?;
            files.delete(&locations).await?;
            Ok::<_, object_store::Error>(futures::stream::iter(locations.into_iter().map(Ok)))
        };
        futures::stream::once(deleted).try_flatten().boxed()
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let files = self.files.clone();
        let folder = prefix.map(ToString::to_string).unwrap_or_default();
        let listed = async move {
            let found = files.list(&folder).await?.into_iter();
            let metas = found.filter_map(|(path, file)| Some(file.meta(ObjectPath::parse(&path).ok()?)));
            Ok::<_, object_store::Error>(futures::stream::iter(metas.map(Ok).collect::<Vec<_>>()))
        };
        futures::stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> object_store::Result<ListResult> {
        let objects = self.list(prefix).try_collect().await?;
        Ok(ListResult { common_prefixes: Vec::new(), objects, extensions: Default::default() })
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, _options: CopyOptions) -> object_store::Result<()> {
        let found = self.files.get(from.as_ref(), None, false).await?;
        if found.bytes.len() as u64 != found.range.end {
            return Err(unsupported("copies of what changes meanwhile"));
        }
        self.files.put(to.as_ref(), found.bytes, true).await
    }
}

fn unsupported(what: &str) -> object_store::Error {
    object_store::Error::NotSupported { source: format!("over SFTP there are no {what}").into() }
}

#[cfg(test)]
mod tests;
