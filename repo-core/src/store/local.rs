//! The durable path of a local folder: an object becomes visible whole, under its own name, after its bytes are on disk.
//!
//! The order is: write an unnamed file, fsync it, link it to its name without replacing, fsync the folder. A process
//! killed at any instant leaves nothing behind where the file system has `O_TMPFILE`, and a file in `tmp/` elsewhere. `link`
//! fails on a taken name also on NFS, where `rename` would replace.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::direct::{ALIGNMENT, AlignedBuf, DirectFile};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::store::ObjectName;

/// What is collected before it is written, in bytes. A multiple of the alignment of direct writes.
const BUFFER_LEN: usize = 1024 * 1024;

/// The folders of a repository.
const LAYOUT: [&str; 6] = ["keys", "packs", "snapshots", "leases", "index", "tmp"];

/// Says that a folder is used over SFTP: by leases that are renewed, which processes on its machine would not wait for
/// (docs/format.md §1).
pub const SFTP_MARK: &str = "sftp-only";

/// Refuses a folder that is used over SFTP.
pub(super) fn refuse_marked(root: &Path) -> Result<()> {
    if !root.join(SFTP_MARK).exists() {
        return Ok(());
    }
    let path = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    let path = path.display();
    let text = format!(
        "{path} is used over SFTP: name it sftp://HOST{path}, also on this machine; or delete the file {SFTP_MARK} in it while nobody \
         is at work, to use it as a folder from then on"
    );
    Err(Error::invalid(text))
}

/// A repository's folder.
#[derive(Debug, Clone)]
pub struct LocalDir {
    root: PathBuf,
}

impl LocalDir {
    /// The folder `root`, which need not exist yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The folder's path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the folders of a new repository, durably.
    ///
    /// # Errors
    /// `AlreadyExists` when the folder holds anything already; `Io`.
    pub fn create_layout(&self) -> Result<()> {
        let cannot = || format!("cannot create {}", self.root.display());
        fs::create_dir_all(&self.root).context(cannot)?;
        self.refuse_occupied().context(cannot)?;
        for folder in LAYOUT {
            match fs::create_dir(self.root.join(folder)) {
                // Of an earlier try that ended before the configuration was written.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => made.context(cannot)?,
            }
        }
        sync_folder(&self.root)?;
        match self.root.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
            _ => Ok(()),
        }
    }

    /// Refuses a folder that holds anything but empty folders of a repository.
    fn refuse_occupied(&self) -> Result<()> {
        for entry in fs::read_dir(&self.root).context(|| "cannot list it")? {
            let name = entry.context(|| "cannot list it")?.file_name();
            let ours = LAYOUT.iter().any(|folder| name == *folder);
            let empty = fs::read_dir(self.root.join(&name)).is_ok_and(|mut entries| entries.next().is_none());
            if !ours || !empty {
                let what = if name == "config" || self.root.join("config").exists() {
                    "it is a repository already"
                } else {
                    "it is not empty"
                };
                return Err(Error::new(ErrorKind::AlreadyExists, what));
            }
        }
        Ok(())
    }

    /// Begins an object.
    ///
    /// # Errors
    /// `Io` when the folder cannot be written.
    pub fn new_object(&self) -> Result<LocalObject> {
        let tmp = self.root.join("tmp");
        let (file, named) = match open_unnamed(&tmp) {
            Ok(file) => (file, None),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::NOENT) => {
                let (file, path) = open_named(&tmp)?;
                (file, Some(path))
            }
            Err(error) => {
                return Err(Error::io(format!("cannot write to {}", self.root.display()), error.into()));
            }
        };
        Ok(LocalObject::new(&self.root, file, named))
    }

    /// Locks a folder for as long as the result lives, waiting for other processes.
    ///
    /// # Errors
    /// `Io` when the folder cannot be opened or locked.
    pub fn lock(&self, folder: &str) -> Result<File> {
        let path = self.root.join(folder);
        let cannot = || format!("cannot lock {}", path.display());
        let folder = File::open(&path).context(cannot)?;
        folder.lock().context(cannot)?;
        Ok(folder)
    }

    /// Whether another open file holds the object's lock.
    ///
    /// # Errors
    /// `Io` when the object cannot be opened; one that is gone is not locked.
    pub fn is_locked(&self, name: ObjectName) -> Result<bool> {
        match File::options().read(true).write(true).open(self.root.join(name.path())) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(format!("cannot open {name}"), error)),
            // A file system without locks says neither yes nor no: then the writer may be alive.
            Ok(file) => Ok(file.try_lock().is_err()),
        }
    }

    /// The names of the files below a folder, and of those in the folders in it; their own alone, in no order. Faster than
    /// a listing with lengths and times, which looks at every file. A folder that is missing has none.
    ///
    /// # Errors
    /// `Unavailable` when a folder cannot be listed.
    pub fn file_names(&self, folder: &str) -> Result<Vec<PathBuf>> {
        let (mut found, mut folders) = (Vec::new(), vec![PathBuf::from(folder)]);
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(self.root.join(&folder)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                entries => entries,
            };
            for entry in entries.map_err(|error| cannot_list(&folder, error))? {
                let entry = entry.map_err(|error| cannot_list(&folder, error))?;
                let path = folder.join(entry.file_name());
                // Comes with the entry: no further call to the file system.
                match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    true => folders.push(path),
                    false => found.push(path),
                }
            }
        }
        Ok(found)
    }

    /// Deletes an object, durably.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn delete(&self, name: ObjectName) -> Result<()> {
        let path = self.root.join(name.path());
        fs::remove_file(&path).context(|| format!("cannot delete {name}"))?;
        sync_folder(parent_of(&path))
    }

    /// Deletes objects, durably, and gives how many were there.
    ///
    /// # Errors
    /// `Io`; those before the one that failed are gone.
    pub fn delete_all(&self, names: &[ObjectName]) -> Result<usize> {
        let mut folders = BTreeSet::new();
        let mut deleted = Ok(0);
        for name in names {
            let path = self.root.join(name.path());
            match fs::remove_file(&path) {
                Ok(()) => deleted = deleted.map(|count| count + 1),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    deleted = Err(Error::io(format!("cannot delete {name}"), error));
                    break;
                }
            }
            folders.insert(parent_of(&path).to_owned());
        }
        folders.iter().try_for_each(|folder| sync_folder(folder))?;
        deleted
    }

    /// Moves an object into the folder `quarantine`, durably, and gives its path there. Nothing there is replaced.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn quarantine(&self, name: ObjectName) -> Result<String> {
        let from = self.root.join(name.path());
        let cannot = || format!("cannot move {name} to quarantine");
        let folder = self.root.join("quarantine");
        match fs::create_dir(&folder) {
            Ok(()) => sync_folder(&self.root)?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(cannot(), error)),
        }
        let file_name = from.file_name().expect("an object has a name").to_string_lossy().into_owned();
        let inode = fs::metadata(&from).context(cannot)?.ino();
        // Of an earlier object of the same name; or of an earlier try that was killed between link and unlink.
        let taken = |to: &Path| fs::metadata(to).is_ok_and(|there| there.ino() != inode);
        let mut target = file_name.clone();
        let mut copies = 1_u64;
        while taken(&folder.join(&target)) {
            copies += 1;
            target = format!("{file_name}.{copies}");
        }
        match fs::hard_link(&from, folder.join(&target)) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(Error::io(cannot(), error)),
            _ => sync_folder(&folder)?,
        }
        fs::remove_file(&from).context(cannot)?;
        sync_folder(parent_of(&from))?;
        Ok(format!("quarantine/{target}"))
    }
}

/// An object being written. Dropped before it is published, it leaves nothing.
pub struct LocalObject {
    root: PathBuf,
    file: DirectFile,
    /// Bytes not yet written, `buffered` of them.
    buffer: AlignedBuf,
    buffered: usize,
    /// Bytes written, a multiple of the buffer's length.
    written: u64,
    /// Where the file is while it has no proper name; `None` when it has none at all.
    named: Option<PathBuf>,
}

impl LocalObject {
    fn new(root: &Path, file: File, named: Option<PathBuf>) -> Self {
        let (file, buffer) = (DirectFile::new(file), AlignedBuf::zeroed(BUFFER_LEN));
        Self { root: root.to_owned(), file, buffer, buffered: 0, written: 0, named }
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// `Io`, with the operating system's reason: a full disk, above all.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = &mut self.buffer[self.buffered..];
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            self.buffered += now.len();
            bytes = later;
            if self.buffered == BUFFER_LEN {
                self.write_buffer(BUFFER_LEN)?;
            }
        }
        Ok(())
    }

    fn write_buffer(&mut self, len: usize) -> Result<()> {
        let written = self.file.write_all_at(&self.buffer[..len], self.written);
        written.context(|| format!("cannot write to {}", self.root.display()))?;
        self.written += len as u64;
        self.buffered = 0;
        Ok(())
    }

    /// Writes what is buffered, padded so that it can be written directly, and cuts the padding off.
    fn write_rest(&mut self) -> Result<()> {
        let len = self.written + self.buffered as u64;
        let padded = self.buffered.next_multiple_of(ALIGNMENT);
        let end = self.buffered;
        self.buffer[end..padded].fill(0);
        self.write_buffer(padded)?;
        self.file.file().set_len(len).context(|| format!("cannot write to {}", self.root.display()))
    }

    /// Makes the bytes durable and gives them their name.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken; `Io`.
    pub fn publish(mut self, name: ObjectName) -> Result<()> {
        self.publish_whole(name)
    }

    /// As [`publish`](Self::publish), locked from before anyone can see it until the result is dropped.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken; `Io`.
    pub fn publish_locked(mut self, name: ObjectName) -> Result<File> {
        let cannot = || format!("cannot lock {name}");
        // A duplicate is the same open file: the lock lives until both are closed.
        let file = self.file.file().try_clone().context(cannot)?;
        match file.try_lock() {
            // Without locks others take the writer for alive, which is safe.
            Err(std::fs::TryLockError::Error(error)) if error.kind() != std::io::ErrorKind::Unsupported => {
                return Err(Error::io(cannot(), error));
            }
            _ => {}
        }
        self.publish_whole(name)?;
        Ok(file)
    }

    fn publish_whole(&mut self, name: ObjectName) -> Result<()> {
        self.write_rest()?;
        let target = self.root.join(name.path());
        let folder = parent_of(&target);
        let cannot = || format!("cannot store {name}");
        self.file.file().sync_all().context(cannot)?;
        match fs::create_dir(folder) {
            Ok(()) => sync_folder(parent_of(folder))?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(cannot(), error)),
        }
        match &self.named {
            Some(path) => fs::hard_link(path, &target).context(cannot)?,
            None => {
                // linkat(2): the way to name an O_TMPFILE file without CAP_DAC_READ_SEARCH.
                let open_file = format!("/proc/self/fd/{}", self.file.file().as_raw_fd());
                rustix::fs::linkat(CWD, open_file, CWD, &target, AtFlags::SYMLINK_FOLLOW)
                    .map_err(|error| Error::io(cannot(), error.into()))?;
            }
        }
        sync_folder(folder)
    }
}

impl Drop for LocalObject {
    fn drop(&mut self) {
        if let Some(path) = &self.named {
            // What cannot be removed here is only a leftover in tmp/, which may be deleted at any time.
            let _ = fs::remove_file(path);
        }
    }
}

fn open_unnamed(folder: &Path) -> std::result::Result<File, rustix::io::Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::from_raw_mode(0o600)).map(File::from)
}

fn open_named(folder: &Path) -> Result<(File, PathBuf)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    fs::create_dir_all(folder).context(|| format!("cannot create {}", folder.display()))?;
    loop {
        let path = folder.join(format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        match File::create_new(&path) {
            Ok(file) => return Ok((file, path)),
            // A leftover of an earlier process of the same number.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(format!("cannot write to {}", folder.display()), error)),
        }
    }
}

fn cannot_list(folder: &Path, error: std::io::Error) -> Error {
    Error::with_source(ErrorKind::Unavailable, format!("cannot list {}/", folder.display()), error)
}

fn parent_of(path: &Path) -> &Path {
    path.parent().expect("an object's path is below the root")
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).context(|| format!("cannot sync {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PackId;

    #[test]
    fn quarantine_keeps_all_that_ever_had_a_name_and_ends_what_a_kill_interrupted() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("r");
        let local = LocalDir::new(&root);
        local.create_layout().unwrap();
        let name = ObjectName::Pack(PackId([1; 32]));
        let put = |bytes: &[u8]| {
            let mut object = local.new_object().unwrap();
            object.append(bytes).unwrap();
            object.publish(name).unwrap();
        };
        assert_eq!(local.quarantine(name).unwrap_err().kind(), ErrorKind::NotFound);
        put(b"first");
        let first = local.quarantine(name).unwrap();
        put(b"second");
        // Killed after the link and before the unlink.
        let second = format!("{first}.2");
        fs::hard_link(root.join(name.path()), root.join(&second)).unwrap();
        assert_eq!(local.quarantine(name).unwrap(), second);
        assert!(!root.join(name.path()).exists());
        assert_eq!(fs::read(root.join(first)).unwrap(), b"first");
        assert_eq!(fs::read(root.join(second)).unwrap(), b"second");
    }

    #[test]
    fn deleting_many_counts_those_that_were_there() {
        let folder = tempfile::tempdir().unwrap();
        let local = LocalDir::new(&folder.path().join("r"));
        local.create_layout().unwrap();
        let names: Vec<_> = (0..4).map(|id| ObjectName::Pack(PackId([id; 32]))).collect();
        for name in &names[1..3] {
            local.new_object().unwrap().publish(*name).unwrap();
        }
        assert_eq!(local.delete_all(&names).unwrap(), 2);
        assert_eq!(local.delete_all(&names).unwrap(), 0);
    }

    #[test]
    fn the_path_for_file_systems_without_unnamed_files_publishes_and_cleans_up_too() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("r");
        let local = LocalDir::new(&root);
        local.create_layout().unwrap();
        let named = || {
            let (file, path) = open_named(&root.join("tmp")).unwrap();
            LocalObject::new(&root, file, Some(path))
        };
        let name = ObjectName::Pack(PackId([1; 32]));
        let mut object = named();
        object.append(b"x").unwrap();
        object.publish(name).unwrap();
        assert_eq!(named().publish(name).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(root.join(name.path())).unwrap(), b"x");
        assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    }
}
