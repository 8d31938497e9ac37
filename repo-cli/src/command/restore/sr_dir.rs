//! `--sr-dir`: a file straight into the folder of a file-based storage repository.
//!
//! The storage manager takes every `<uuid>.vhd` in that folder for a disk, and one that it cannot read makes its scan of the
//! whole folder fail: so the file gets that name only when it is complete.

use std::path::{Path, PathBuf};

use repo_core::entropy::Entropy;
use repo_core::error::ErrorKind;

use crate::failure::{Failure, Result};

/// A place for a new disk in the folder of a storage repository.
pub(super) struct Place {
    pub(super) uuid: String,
    pub(super) path: PathBuf,
}

impl Place {
    /// Chooses the name: the uuid given, or a random one.
    ///
    /// # Errors
    /// Wrong usage for what is no uuid or no folder; `AlreadyExists` when the folder has a disk of that uuid.
    pub(super) fn new(folder: &Path, uuid: Option<&str>) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Failure::usage(format!("--sr-dir {} is no folder", folder.display()))
                .hint("give the mount point of the storage repository: /run/sr-mount/<its uuid> on a host"));
        }
        let uuid = match uuid {
            Some(text) => parse(text)?,
            None => random()?,
        };
        for extension in DISK_EXTENSIONS {
            let taken = folder.join(format!("{uuid}.{extension}"));
            if std::fs::symlink_metadata(&taken).is_ok() {
                let text = format!("{} exists already", taken.display());
                return Err(Failure::new(ErrorKind::AlreadyExists, text).hint("leave --uuid out for a new one"));
            }
        }
        let path = folder.join(format!("{uuid}.vhd"));
        Ok(Self { uuid, path })
    }

    /// The command that makes the storage manager see the new disk.
    pub(super) fn scan_command(&self) -> String {
        let folder = self.path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        let sr = folder.and_then(|name| parse(name).ok()).unwrap_or_else(|| "<uuid of the SR>".to_owned());
        format!("xe sr-scan uuid={sr}")
    }
}

/// Takes a uuid in its usual form; the storage manager wants lower case.
fn parse(text: &str) -> Result<String> {
    let uuid = text.to_ascii_lowercase();
    let groups: Vec<_> = uuid.split('-').collect();
    let lengths: Vec<_> = groups.iter().map(|group| group.len()).collect();
    let is_hex = groups.iter().all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if lengths == [8, 4, 4, 4, 12] && is_hex { Ok(uuid) } else { Err(Failure::usage(format!("{text:?} is no uuid"))) }
}

/// A uuid of version 4.
fn random() -> Result<String> {
    let bytes: [u8; 16] = Entropy::system().bytes()?;
    let number = u128::from_be_bytes(bytes) & !(0xF << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{number:032x}");
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

/// Forms in which a file-based storage repository keeps a disk.
const DISK_EXTENSIONS: [&str; 3] = ["vhd", "raw", "qcow2"];

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0f6c9e1a-3b2d-4c5e-8f70-112233445566";

    #[test]
    fn a_uuid_is_taken_in_any_case_and_nothing_else() {
        assert_eq!(parse(&UUID.to_uppercase()).unwrap(), UUID);
        for text in ["", "x", &UUID[1..], &UUID.replace('-', ""), &UUID.replace('f', "g"), "../../../etc"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_random_uuid_is_one_of_version_4_and_another_each_time() {
        let (one, other) = (random().unwrap(), random().unwrap());
        assert_ne!(one, other);
        assert_eq!(parse(&one).unwrap(), one);
        assert_eq!(&one[14..15], "4");
        assert!(matches!(&one[19..20], "8" | "9" | "a" | "b"), "{one}");
    }

    #[test]
    fn a_disk_that_is_there_in_any_form_is_not_doubled() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join(UUID);
        std::fs::create_dir(&folder).unwrap();
        let place = Place::new(&folder, Some(UUID)).unwrap();
        assert_eq!(place.path, folder.join(format!("{UUID}.vhd")));
        assert_eq!(place.scan_command(), format!("xe sr-scan uuid={UUID}"));
        std::fs::write(folder.join(format!("{UUID}.qcow2")), b"").unwrap();
        assert!(Place::new(&folder, Some(UUID)).is_err());
        assert!(Place::new(&folder, None).is_ok());
        assert!(Place::new(&folder.join("missing"), None).is_err());
    }
}
