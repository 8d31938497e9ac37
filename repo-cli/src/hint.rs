//! The next step after an error, where its kind and its cause tell one. Commands that know more give their own.

use std::error::Error as _;
use std::io;

use repo_core::{Error, ErrorKind};

use crate::cloud;

/// What the user can do about an error.
pub(crate) fn of(error: &Error) -> Option<String> {
    let hint = match error.kind() {
        ErrorKind::Locked => "other cairn processes are at work here: wait for one to end, and try again",
        ErrorKind::Forbidden => {
            "give a key of the role that this takes, admin or restore for the content of disks, with --key-file or \
             --passphrase-file; `cairn key list` shows the roles"
        }
        ErrorKind::Corrupt => "`cairn check` names what is damaged and which snapshots it hits",
        ErrorKind::Unavailable | ErrorKind::Io => {
            let of_store = || cloud::hint(&error.chain());
            return os_error(error).and_then(of_os_error).or_else(of_store).map(str::to_owned);
        }
        ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::Invalid
        | ErrorKind::Unsupported
        | ErrorKind::Unauthenticated
        | ErrorKind::Interrupted => return None,
        ErrorKind::Internal => "this is a defect of cairn: please report it with this message",
    };
    Some(hint.to_owned())
}

fn of_os_error(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("make room on that file system and run the command again; snapshots made before are not touched")
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            Some("that file system is mounted read-only: mount it writable, or choose another place")
        }
        io::ErrorKind::PermissionDenied => Some("run as a user who has the right to that file, or change its mode"),
        io::ErrorKind::BrokenPipe => Some("the program that reads the output ended first: see its own messages"),
        io::ErrorKind::FileTooLarge => Some("that file system or a ulimit does not allow files so large"),
        io::ErrorKind::ResourceBusy => Some("the device is in use, mounted perhaps: release it first"),
        _ => None,
    }
}

/// The operating system's part of an error, when there is one.
fn os_error(error: &Error) -> Option<io::ErrorKind> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_recognised_below_any_number_of_contexts() {
        let error = Error::io("cannot write", io::Error::from_raw_os_error(28)).context("b").context("a");
        assert!(of(&error).unwrap().contains("make room"));
    }

    #[test]
    fn damage_leads_to_check_and_malformed_input_to_nothing_general() {
        assert!(of(&Error::corrupt("x")).unwrap().contains("cairn check"));
        assert_eq!(of(&Error::invalid("x")), None);
    }
}
