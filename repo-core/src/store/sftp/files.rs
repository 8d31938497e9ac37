//! Files of an SFTP server as objects: each step tried again when the connection is lost.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{GetRange, ObjectMeta};

use super::packet::{self, Code, Name};
use super::session::{Failed, PIECE_LEN, Patience, Session};
use super::{STORE, SftpPlace, SftpSettings};
use crate::error::ErrorKind;
use crate::store::local::SFTP_MARK;
use crate::store::remote::REMOTE_OBJECT_LEN_MAX;
use crate::store::server::Refused;
use crate::traffic::{RequestKind, Traffic};

/// Where objects are written before they have their names.
const UNFINISHED: &str = "tmp";
/// How long what was not finished is left alone, by the server's clock, in seconds.
const LEFT_ALONE: u32 = 24 * 60 * 60;
/// The longest object that is read as a whole, in bytes.
const LEN_MAX: u64 = REMOTE_OBJECT_LEN_MAX as u64;
/// Pieces of one object that are under way at once.
const PIECES: usize = 32;
/// Files, and folders, that are under way at once where there are many.
const AT_ONCE: usize = 16;
/// The first pause before another try; each next one is twice as long.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// How deep objects lie: `packs/ab/ID`.
const DEPTH: usize = 3;

/// A folder of an SFTP server.
pub(super) struct Files {
    root: String,
    command: Vec<OsString>,
    retry_for: Duration,
    traffic: Arc<Traffic>,
    session: tokio::sync::Mutex<Current>,
}

#[derive(Default)]
struct Current {
    session: Option<Arc<Session>>,
    /// When the last one could not be begun, and why.
    failed: Option<(Instant, Failed)>,
    /// Whether what others left unfinished was looked for.
    tidied: bool,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").field("root", &self.root).finish_non_exhaustive()
    }
}

/// A file that is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct File {
    len: u64,
    modified: u32,
}

impl File {
    fn of(attributes: packet::Attributes) -> Result<Self, Failed> {
        match (attributes.len, attributes.modified) {
            (Some(len), Some(modified)) => Ok(Self { len, modified }),
            _ => Err(Failed::Hopeless("the SFTP server does not say how long and how old files are".to_owned())),
        }
    }

    pub(super) fn meta(&self, location: ObjectPath) -> ObjectMeta {
        let modified = std::time::UNIX_EPOCH + Duration::from_secs(u64::from(self.modified));
        ObjectMeta { location, last_modified: modified.into(), size: self.len, e_tag: None, version: None }
    }
}

/// An object, or a part of it.
pub(super) struct Found {
    pub(super) file: File,
    pub(super) range: Range<u64>,
    pub(super) bytes: Bytes,
}

/// What came of one try.
type Tried<T> = Result<T, Failed>;

impl Files {
    pub(super) fn new(place: &SftpPlace, settings: &SftpSettings) -> Self {
        Self {
            root: place.path.clone(),
            command: place.command(&settings.ssh),
            retry_for: settings.retry_for,
            traffic: settings.traffic.clone(),
            session: tokio::sync::Mutex::default(),
        }
    }

    fn at(&self, path: &str) -> String {
        if path.is_empty() { self.root.clone() } else { format!("{}/{path}", self.root) }
    }

    /// The conversation; a new one where there is none any more.
    async fn session(&self) -> Tried<Arc<Session>> {
        let asked = Instant::now();
        let mut current = self.session.lock().await;
        if let Some(session) = current.session.as_ref().filter(|session| !session.is_over()) {
            return Ok(session.clone());
        }
        // Those who wait for one attempt do not make it again one after another.
        if let Some((_, failed)) = current.failed.as_ref().filter(|(at, _)| *at > asked) {
            return Err(failed.clone());
        }
        let session = match Session::start(&self.command, self.traffic.clone(), Patience::default()).await {
            Ok(session) => Arc::new(session),
            Err(failed) => {
                current.failed = Some((Instant::now(), failed.clone()));
                return Err(failed);
            }
        };
        if !session.extensions.replace {
            let text = format!("the SFTP server cannot replace files in one step ({})", packet::REPLACE);
            return Err(Failed::Hopeless(text));
        }
        current.session = Some(session.clone());
        Ok(session)
    }

    /// Does something as often as it takes, or until it is too long without a connection. `work` is told whether it was tried
    /// before, and may have been done.
    async fn with_session<T, F>(
        &self,
        kind: RequestKind,
        path: &str,
        work: impl Fn(Arc<Session>, bool) -> F,
    ) -> object_store::Result<T>
    where
        F: Future<Output = Tried<T>>,
    {
        let (began, mut pause, mut tried) = (Instant::now(), PAUSE.min(self.retry_for), false);
        loop {
            let permit = self.traffic.begin(kind).await;
            let done = match self.session().await {
                Ok(session) => {
                    let done = work(session, tried).await;
                    tried = true;
                    done
                }
                Err(failed) => Err(failed),
            };
            drop(permit);
            match done {
                Ok(done) => return Ok(done),
                Err(Failed::Lost(why)) => {
                    if began.elapsed() + pause > self.retry_for {
                        return Err(refused(ErrorKind::Unavailable, format!("cannot reach the SFTP server: {why}")));
                    }
                    tokio::time::sleep(pause).await;
                    pause = (2 * pause).min(PAUSE_MAX);
                }
                Err(failed) => return Err(told(path, failed)),
            }
        }
    }

    /// Makes the folder itself, and those that it is in.
    pub(super) async fn make_root(&self) -> object_store::Result<()> {
        let root = &self.root;
        self.with_session(RequestKind::Other, "", |session, _| async move {
            let starts = root.char_indices().filter(|(at, c)| *c == '/' && *at > 0).map(|(at, _)| &root[..at]);
            for folder in starts.chain([root.as_str()]) {
                make_folder(&session, folder).await?;
            }
            Ok(())
        })
        .await
    }

    /// Stores an object: durable, and under its name in one step.
    pub(super) async fn put(&self, path: &str, bytes: Bytes, replace: bool) -> object_store::Result<()> {
        let bytes = &bytes;
        let put = |session: Arc<Session>, _| async move {
            let unfinished = self.at(&format!("{UNFINISHED}/{}", random_name()?));
            let stored = self.store(&session, &unfinished, path, bytes, replace).await;
            if stored.is_err() && !session.is_over() {
                // One that stays is removed when it is old.
                let _ = session.remove(&unfinished).await;
            }
            stored?;
            self.tidy(&session, path).await
        };
        self.with_session(RequestKind::Put, path, put).await
    }

    async fn store(&self, session: &Session, unfinished: &str, path: &str, bytes: &[u8], replace: bool) -> Tried<()> {
        let handle = match session.open(unfinished, packet::WRITE_NEW).await {
            Err(Failed::Refused(Code::Missing, _)) => {
                make_folder(session, &self.at(UNFINISHED)).await?;
                session.open(unfinished, packet::WRITE_NEW).await?
            }
            opened => opened?,
        };
        let piece = |at: usize| session.write(&handle, at as u64, &bytes[at..bytes.len().min(at + PIECE_LEN)]);
        let written = futures::stream::iter((0..bytes.len()).step_by(PIECE_LEN))
            .map(piece)
            .buffer_unordered(PIECES)
            .try_collect::<()>()
            .await;
        let synced = match written {
            Ok(()) if session.extensions.sync => session.sync(&handle).await,
            written => written,
        };
        let len = session.stat_handle(&handle).await;
        session.close(&handle).await?;
        synced?;
        // A server that takes what it cannot keep would be found out too late otherwise.
        if len?.len != Some(bytes.len() as u64) {
            return Err(Failed::Refused(Code::Failed, "what was written is not what the server has".to_owned()));
        }
        let target = self.at(path);
        let named = match self.name(session, unfinished, &target, replace).await {
            Err(Failed::Refused(Code::Missing, _)) => {
                self.make_folders_of(session, path).await?;
                self.name(session, unfinished, &target, replace).await
            }
            named => named,
        };
        match named {
            Err(Failed::Refused(Code::Failed, message)) if !replace => {
                // Servers do not say whether it is that.
                let taken = session.stat(&target).await.is_ok();
                return Err(if taken {
                    Failed::Refused(Code::Failed, TAKEN.to_owned())
                } else {
                    Failed::Refused(Code::Failed, message)
                });
            }
            named => named?,
        }
        sync_folder(session, folder_of(&target)).await
    }

    async fn name(&self, session: &Session, from: &str, to: &str, replace: bool) -> Tried<()> {
        if replace { session.replace(from, to).await } else { session.rename(from, to).await }
    }

    /// Makes the folders between the repository's own and the object.
    async fn make_folders_of(&self, session: &Session, path: &str) -> Tried<()> {
        for (at, _) in path.match_indices('/') {
            make_folder(session, &self.at(&path[..at])).await?;
        }
        Ok(())
    }

    /// Once: removes what others left unfinished, if it is a day older than what was just stored.
    async fn tidy(&self, session: &Session, stored: &str) -> Tried<()> {
        if std::mem::replace(&mut self.session.lock().await.tidied, true) {
            return Ok(());
        }
        let now = match session.stat(&self.at(stored)).await {
            // Somebody deleted it.
            Err(Failed::Refused(..)) => return Ok(()),
            now => now?.modified.unwrap_or(0),
        };
        let folder = self.at(UNFINISHED);
        let names = match session.folder(&folder).await {
            Err(Failed::Refused(..)) => return Ok(()),
            names => names?,
        };
        let modified = |name: &Name| name.attributes.modified.unwrap_or(u32::MAX);
        let old = names.iter().filter(|name| modified(name) < now.saturating_sub(LEFT_ALONE));
        for name in old.filter_map(|name| name.name.as_deref()).filter(|name| is_plain(name)) {
            match session.remove(&format!("{folder}/{name}")).await {
                // Others tidy, too.
                Ok(()) | Err(Failed::Refused(..)) => {}
                Err(failed) => return Err(failed),
            }
        }
        Ok(())
    }

    /// Reads an object, or a part of it.
    pub(super) async fn get(&self, path: &str, range: Option<GetRange>, head: bool) -> object_store::Result<Found> {
        let kind = if head { RequestKind::Head } else { RequestKind::Get };
        let (target, range) = (&self.at(path), &range);
        let get = |session: Arc<Session>, _| async move {
            if head {
                let file = file_at(&session, target).await?;
                return Ok(Ok(Found { file, range: 0..file.len, bytes: Bytes::new() }));
            }
            let handle = session.open(target, packet::READ).await?;
            let read = read_part(&session, &handle, range.as_ref()).await;
            session.close(&handle).await?;
            let read = read?;
            if path == "config"
                && matches!(session.stat(&self.at(SFTP_MARK)).await, Err(Failed::Refused(Code::Missing, _)))
            {
                return Ok(Err(format!(
                    "the repository is used as a folder by processes of its own machine: to use it over SFTP alone, make an \
                     empty file {SFTP_MARK} in it while nobody is at work"
                )));
            }
            Ok(read)
        };
        match self.with_session(kind, path, get).await? {
            Ok(found) => Ok(found),
            Err(text) => Err(refused(ErrorKind::Invalid, text)),
        }
    }

    /// Deletes objects.
    pub(super) async fn delete(&self, paths: &[ObjectPath]) -> object_store::Result<()> {
        futures::stream::iter(paths.to_vec())
            .map(|path: ObjectPath| async move {
                let target = &self.at(path.as_ref());
                let remove = |session: Arc<Session>, tried| async move {
                    match session.remove(target).await {
                        // The first try may have done it.
                        Err(Failed::Refused(Code::Missing, _)) if tried => Ok(()),
                        removed => removed,
                    }
                };
                self.with_session(RequestKind::Delete, path.as_ref(), remove).await
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        let folders: BTreeSet<&str> = paths.iter().map(|path| folder_of(path.as_ref())).collect();
        for folder in folders {
            let target = &self.at(folder);
            self.with_session(
                RequestKind::Other,
                folder,
                |session, _| async move { sync_folder(&session, target).await },
            )
            .await?;
        }
        Ok(())
    }

    /// All objects below a folder, by their paths.
    pub(super) async fn list(&self, folder: &str) -> object_store::Result<Vec<(String, File)>> {
        let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
        for _ in 0..DEPTH {
            let listed: Vec<Vec<(String, Name)>> = futures::stream::iter(folders)
                .map(|folder| self.list_one(folder))
                .buffer_unordered(AT_ONCE)
                .try_collect()
                .await?;
            folders = Vec::new();
            for (path, name) in listed.into_iter().flatten() {
                match (name.attributes.is_folder(), name.attributes.is_file()) {
                    (Some(true), _) => folders.push(path),
                    (_, Some(true)) => {
                        let file = File::of(name.attributes).map_err(|failed| told(&path, failed))?;
                        found.push((path, file));
                    }
                    (Some(false), Some(false)) => {}
                    _ => {
                        let text = "the SFTP server does not say which names are folders".to_owned();
                        return Err(told(&path, Failed::Hopeless(text)));
                    }
                }
            }
        }
        Ok(found)
    }

    /// What one folder holds; nothing when it is not there.
    async fn list_one(&self, folder: String) -> object_store::Result<Vec<(String, Name)>> {
        let (target, below) = (&self.at(&folder), &folder);
        let list = |session: Arc<Session>, _| async move {
            match session.folder(target).await {
                Err(Failed::Refused(Code::Missing, _)) => Ok(Vec::new()),
                names => names,
            }
        };
        let names = self.with_session(RequestKind::List, below, list).await?;
        let named = names.into_iter().filter_map(|mut name| {
            let text = name.name.take().filter(|text| is_plain(text))?;
            let ours = below.is_empty() && (text == UNFINISHED || text == SFTP_MARK);
            let path = if below.is_empty() { text } else { format!("{below}/{text}") };
            (!ours).then_some((path, name))
        });
        Ok(named.collect())
    }
}

/// Said of a name that is taken.
const TAKEN: &str = "there is a file of that name already";

/// Whether a server's name for a file is one, and leads nowhere else.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains('/')
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn random_name() -> Tried<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Failed::Hopeless(format!("cannot get random bytes: {error}")))?;
    Ok(data_encoding::HEXLOWER.encode(&bytes))
}

async fn file_at(session: &Session, path: &str) -> Tried<File> {
    let attributes = session.stat(path).await?;
    match attributes.is_folder() {
        Some(true) => Err(Failed::Refused(Code::Missing, "it is a folder".to_owned())),
        _ => File::of(attributes),
    }
}

/// A range that is not there is told apart from what may be tried again.
async fn read_part(session: &Session, handle: &[u8], range: Option<&GetRange>) -> Tried<Result<Found, String>> {
    let file = File::of(session.stat_handle(handle).await?)?;
    let range = match range.map_or(Ok(0..file.len), |range| range.as_range(file.len)) {
        Ok(range) => range,
        Err(error) => return Ok(Err(error.to_string())),
    };
    if range.end - range.start > LEN_MAX {
        return Ok(Err(format!("{} bytes are more than an object has", range.end - range.start)));
    }
    let piece = |start: u64| {
        let end = range.end.min(start + PIECE_LEN as u64);
        async move {
            let mut bytes = BytesMut::new();
            while start + (bytes.len() as u64) < end {
                let at = start + bytes.len() as u64;
                match session.read(handle, at, (end - at) as usize).await? {
                    Some(more) => bytes.extend_from_slice(&more),
                    None => break,
                }
            }
            Ok::<_, Failed>(bytes)
        }
    };
    let mut bytes = BytesMut::with_capacity((range.end - range.start) as usize);
    let starts = range.clone().step_by(PIECE_LEN);
    let mut pieces = futures::stream::iter(starts).map(piece).buffered(PIECES);
    while let Some(piece) = pieces.try_next().await? {
        bytes.extend_from_slice(&piece);
    }
    drop(pieces);
    // One that was cut short meanwhile says so by its length.
    Ok(Ok(Found { file, range, bytes: bytes.freeze() }))
}

/// Makes a folder that may be there, durably.
async fn make_folder(session: &Session, path: &str) -> Tried<()> {
    match session.make_folder(path).await {
        Ok(()) => {}
        // Servers do not say whether it is that.
        Err(Failed::Refused(code, message)) => match session.stat(path).await {
            Ok(attributes) if attributes.is_folder() != Some(false) => {}
            Ok(_) | Err(Failed::Refused(..)) => return Err(Failed::Refused(code, message)),
            Err(failed) => return Err(failed),
        },
        Err(failed) => return Err(failed),
    }
    // Also one that another client has just made, and may not have synced yet.
    match folder_of(path) {
        "" => Ok(()),
        parent => sync_folder(session, parent).await,
    }
}

/// Makes durable which names a folder holds, where the server opens folders for that.
async fn sync_folder(session: &Session, path: &str) -> Tried<()> {
    if !session.extensions.sync {
        return Ok(());
    }
    let handle = match session.open(path, packet::READ).await {
        Err(Failed::Refused(..)) => return Ok(()),
        handle => handle?,
    };
    let synced = session.sync(&handle).await;
    session.close(&handle).await?;
    match synced {
        Err(Failed::Refused(..)) => Ok(()),
        synced => synced,
    }
}

fn told(path: &str, failed: Failed) -> object_store::Error {
    let path = path.to_owned();
    match failed {
        Failed::Refused(Code::Missing, message) => object_store::Error::NotFound { path, source: message.into() },
        Failed::Refused(Code::Forbidden, message) => {
            object_store::Error::PermissionDenied { path, source: message.into() }
        }
        Failed::Refused(_, message) if message == TAKEN => {
            object_store::Error::AlreadyExists { path, source: message.into() }
        }
        Failed::Refused(_, message) => {
            let text =
                format!("the SFTP server refuses {path}: {message}; its disk may be full, or the folder not a folder");
            refused(ErrorKind::Io, text)
        }
        Failed::Lost(why) => refused(ErrorKind::Unavailable, format!("cannot reach the SFTP server: {why}")),
        Failed::Hopeless(why) => refused(ErrorKind::Io, format!("cannot use the SFTP server: {why}")),
    }
}

fn refused(kind: ErrorKind, text: String) -> object_store::Error {
    object_store::Error::Generic { store: STORE, source: Box::new(Refused { kind, text }) }
}
