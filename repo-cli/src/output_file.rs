//! Where a restored disk goes: a file that appears whole under its name, a device, or a stream.

use std::fs::{self, File, FileType, OpenOptions, Permissions};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use repo_core::ErrorKind;
use repo_core::entropy::Entropy;
use repo_core::error::{Error, ResultExt};
use rustix::fs::{CWD, OFlags, RenameFlags};

use crate::failure::{Failure, Result};

/// An opened output.
pub(crate) enum Output {
    /// A file under a temporary name.
    File(PendingFile),
    /// A block device, to be overwritten.
    Device(File),
    /// What can only be written front to back.
    Stream(File),
}

impl Output {
    /// Opens what `-o` names.
    ///
    /// # Errors
    /// `AlreadyExists` for a file or device without `force`; `Io`.
    pub(crate) fn open(target: &Path, force: bool) -> Result<Self> {
        if target == Path::new("-") {
            return stdout();
        }
        let Some(found) = file_type(target)? else {
            return Ok(Self::File(PendingFile::create(target, None)?));
        };
        if found.is_dir() {
            let text = format!("{} is a folder", target.display());
            return Err(Failure::usage(text).hint("name the file to be written, as in -o FOLDER/disk.vhd"));
        }
        if found.is_block_device() {
            return device(target, force);
        }
        if found.is_file() || found.is_symlink() {
            return if force { Ok(Self::File(PendingFile::create(target, Some(found))?)) } else { Err(exists(target)) };
        }
        let opened = OpenOptions::new().write(true).open(target).context(|| cannot_open(target))?;
        Ok(Self::Stream(opened))
    }
}

/// A file that has its own name only once it is complete. Dropped before, it is gone.
pub(crate) struct PendingFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    replaces: bool,
    published: bool,
}

impl PendingFile {
    fn create(target: &Path, replaced: Option<FileType>) -> Result<Self> {
        // Through a link, its file is replaced and not the link; a link that leads nowhere is replaced itself.
        let target = match replaced {
            Some(found) if !found.is_symlink() => fs::canonicalize(target).context(|| cannot_open(target))?,
            _ => target.to_owned(),
        };
        let random = u64::from_le_bytes(Entropy::system().bytes()?);
        let temporary = folder_of(&target).join(format!(".cairn-{random:016x}.part"));
        let mut options = OpenOptions::new();
        // A disk may hold anybody's secrets: its owner decides who else reads it.
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&temporary).context(|| cannot_create(&target))?;
        let pending = Self { file, temporary, target, replaces: replaced.is_some(), published: false };
        if replaced.is_some_and(|found| found.is_file()) {
            let mode = fs::metadata(&pending.target).context(|| cannot_open(&pending.target))?.permissions().mode();
            let kept = pending.file.set_permissions(Permissions::from_mode(mode & 0o777));
            kept.context(|| cannot_create(&pending.target))?;
        }
        Ok(pending)
    }

    /// The file, to be written and made durable.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn file(&self) -> Result<File> {
        Ok(self.file.try_clone().context(|| cannot_create(&self.target))?)
    }

    /// Gives the file its name, durably.
    ///
    /// # Errors
    /// `AlreadyExists` when somebody took the name meanwhile; `Io`.
    pub(crate) fn publish(mut self) -> Result<()> {
        let cannot = || format!("cannot name the restored disk {}", self.target.display());
        if self.replaces {
            fs::rename(&self.temporary, &self.target).context(cannot)?;
        } else {
            rename_without_replacing(&self.temporary, &self.target).context(cannot)?;
        }
        self.published = true;
        let folder = folder_of(&self.target);
        Ok(File::open(folder).and_then(|folder| folder.sync_all()).context(cannot)?)
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed has a name that says what it is.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot do that can do this.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        renamed => Ok(renamed?),
    }
}

fn stdout() -> Result<Output> {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        return Err(Failure::usage("stdout is a terminal: a disk is not written to it")
            .hint("redirect it: cairn restore … -o - | program, or name a file with -o"));
    }
    let descriptor = stdout.as_fd().try_clone_to_owned().context(|| "cannot open stdout")?;
    Ok(Output::Stream(File::from(descriptor)))
}

fn device(target: &Path, force: bool) -> Result<Output> {
    if !force {
        let text = format!("{} is a block device: restoring to it destroys what is on it", target.display());
        return Err(Failure::new(ErrorKind::AlreadyExists, text).hint("if that is meant, say so with --force"));
    }
    let mut options = OpenOptions::new();
    // O_EXCL on a block device: refused while it is mounted or otherwise in use.
    options.read(true).write(true).custom_flags(OFlags::EXCL.bits().cast_signed());
    Ok(Output::Device(options.open(target).context(|| cannot_open(target))?))
}

/// What stands at a path; for a link, what it leads to, or the link itself when that is missing.
fn file_type(target: &Path) -> Result<Option<FileType>> {
    for found in [fs::metadata(target), fs::symlink_metadata(target)] {
        match found {
            Ok(found) => return Ok(Some(found.file_type())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(cannot_open(target), error).into()),
        }
    }
    Ok(None)
}

fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn exists(target: &Path) -> Failure {
    Failure::new(ErrorKind::AlreadyExists, format!("{} exists already", target.display()))
        .hint("choose another name, or replace it with --force")
}

fn cannot_open(target: &Path) -> String {
    format!("cannot open {}", target.display())
}

fn cannot_create(target: &Path) -> String {
    format!("cannot create {}", target.display())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pending(target: &Path, force: bool) -> PendingFile {
        match Output::open(target, force).unwrap() {
            Output::File(pending) => pending,
            _ => panic!("{} is a file", target.display()),
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_has_its_name_only_once_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("disk");
        let output = pending(&target, false);
        output.file().unwrap().write_all(b"half").unwrap();
        assert!(!target.exists());
        drop(output);
        assert!(names(folder.path()).is_empty());

        let output = pending(&target, false);
        output.file().unwrap().write_all(b"whole").unwrap();
        output.publish().unwrap();
        assert_eq!(names(folder.path()), ["disk"]);
        assert_eq!(fs::read(&target).unwrap(), b"whole");
    }

    #[test]
    fn an_existing_file_is_replaced_only_when_told_so_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("disk");
        fs::write(&target, b"old").unwrap();
        fs::set_permissions(&target, Permissions::from_mode(0o640)).unwrap();
        assert!(Output::open(&target, false).is_err());

        let output = pending(&target, true);
        assert_eq!(fs::read(&target).unwrap(), b"old");
        output.file().unwrap().write_all(b"new").unwrap();
        output.publish().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_name_taken_meanwhile_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("disk");
        let output = pending(&target, false);
        fs::write(&target, b"theirs").unwrap();
        assert!(output.publish().is_err());
        assert_eq!(fs::read(&target).unwrap(), b"theirs");
        assert_eq!(names(folder.path()), ["disk"]);
    }

    #[test]
    fn through_a_link_its_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(Output::open(&link, false).is_err());
        let output = pending(&link, true);
        output.file().unwrap().write_all(b"new").unwrap();
        output.publish().unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn a_folder_is_no_output() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Output::open(folder.path(), true).is_err());
        assert!(Output::open(&folder.path().join("missing/disk"), true).is_err());
    }
}
