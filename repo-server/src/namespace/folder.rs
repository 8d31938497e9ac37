//! A namespace in a folder of this machine.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use repo_core::store::ObjectName;

pub(super) struct Folder {
    pub(super) root: PathBuf,
}

/// Whether a folder in a folder holds objects.
fn holds_objects(path: &str) -> bool {
    let digits = |text: &str| text.len() == 2 && text.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
    matches!(path, "snapshots/annotations" | "snapshots/tombstones") || path.strip_prefix("packs/").is_some_and(digits)
}

/// When a file was written last, in milliseconds since the Unix epoch.
pub(super) fn modified_ms(meta: &Metadata) -> i64 {
    meta.mtime().saturating_mul(1000).saturating_add(meta.mtime_nsec() / 1_000_000)
}

impl Folder {
    pub(super) fn is_ready(&self) -> bool {
        self.root.join("packs").is_dir()
    }

    /// Opens an object; none when it is not there.
    pub(super) fn open(&self, name: ObjectName) -> io::Result<Option<(File, Metadata)>> {
        let file = match File::open(self.root.join(name.path())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let meta = file.metadata()?;
        Ok(Some((file, meta)))
    }

    /// What there is of an object that is there.
    pub(super) fn find(&self, name: ObjectName) -> io::Result<Option<Metadata>> {
        match fs::metadata(self.root.join(name.path())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            meta => meta.map(Some),
        }
    }

    /// Makes an object as young as if it were new.
    pub(super) fn make_young(&self, name: ObjectName) -> io::Result<()> {
        let now = std::time::SystemTime::from(jiff::Timestamp::now());
        File::options().write(true).open(self.root.join(name.path()))?.set_modified(now)
    }

    /// Bytes of all objects. What cannot be read now does not count.
    pub(super) fn used_bytes(&self) -> u64 {
        let mut folders: Vec<PathBuf> = ObjectName::FOLDERS.iter().map(|folder| self.root.join(folder)).collect();
        let mut bytes = fs::metadata(self.root.join("config")).map_or(0, |meta| meta.len());
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                    Ok(meta) => bytes += meta.len(),
                    Err(_) => {}
                }
            }
        }
        bytes
    }

    /// Adds the objects below a folder in order of their names, from the first after `after` on, until there are `limit` of
    /// them; whether there are more.
    pub(super) fn list(
        &self,
        found: &mut Vec<(ObjectName, Metadata)>,
        folder: &str,
        after: &str,
        limit: usize,
    ) -> io::Result<bool> {
        for path in self.names_in(folder)? {
            let Ok(name) = ObjectName::parse(&path) else {
                // Names below a folder that comes before that of `after` are all passed.
                let passed = path.as_str() < after && !after.starts_with(&path);
                if holds_objects(&path) && !passed && self.list(found, &path, after, limit)? {
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
            // One that is gone was deleted since the folder was read.
            found.extend(self.find(name)?.filter(Metadata::is_file).map(|meta| (name, meta)));
        }
        Ok(false)
    }

    /// Paths of what a folder holds, ascending.
    fn names_in(&self, folder: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.root.join(folder)) {
            // Gone, or a file that is none of ours.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().to_str().map(|name| format!("{folder}/{name}")));
        }
        names.sort_unstable();
        Ok(names)
    }
}
