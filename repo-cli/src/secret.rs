//! What opens a repository: a passphrase, or a private key in a file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use repo_core::ErrorKind;
use repo_core::keys::key_file::KeyFile;
use repo_core::keys::recipient::{PrivateKey, PublicKey};
use repo_core::keys::slot::{Argon2Cost, Unlock};
use repo_core::repository::Repository;
use repo_core::seal::Suite;

use crate::failure::{Failure, Result};
use crate::passphrase::{Passphrase, Source, read_text};

/// The variable that names a private key file.
pub(crate) const KEY_FILE_VARIABLE: &str = "CAIRN_KEY_FILE";

/// What the user gave to open a repository.
pub(crate) enum Secret {
    /// Nothing: the repository is not encrypted.
    None,
    /// A passphrase.
    Passphrase(Passphrase),
    /// A private key, and the repositories it may open.
    PrivateKey(Box<KeyFile>),
}

/// Where a secret may come from. An option wins over a variable, and a key over a passphrase.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given<'a> {
    /// The file named by `--key-file`.
    pub(crate) key_file: Option<&'a Path>,
    /// The file named by `--passphrase-file`.
    pub(crate) passphrase_file: Option<&'a Path>,
    /// Which repository it opens.
    pub(crate) side: Side,
}

/// Which of two repositories is meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one that a command works on.
    #[default]
    Repository,
    /// The one that is synced to.
    Target,
}

impl Secret {
    /// The same as the core takes it.
    pub(crate) fn unlock(&self) -> Unlock<'_> {
        match self {
            Self::None => Unlock::Open,
            Self::Passphrase(text) => Unlock::Passphrase { text, cost: Argon2Cost::default() },
            Self::PrivateKey(file) => Unlock::PrivateKey(&file.key),
        }
    }

    /// Whether the repository that this opened is one that it is bound to.
    ///
    /// # Errors
    /// `Unauthenticated` when it is another one.
    pub(crate) fn check_bound(&self, repository: &Repository) -> Result<()> {
        match self {
            Self::PrivateKey(file) if !repository.is_bound(&file.pins) => {
                let text = "this is not the repository that the key file is bound to";
                Err(Failure::new(ErrorKind::Unauthenticated, text).hint(
                    "somebody may have put another repository, or another key slot, in its place: ask whoever holds an admin \
                     key, and only then bind it with `cairn key bind`",
                ))
            }
            _ => Ok(()),
        }
    }
}

impl Given<'_> {
    /// Whether anything is given without asking.
    pub(crate) fn is_given(&self) -> bool {
        self.key_path().is_some() || self.passphrase().is_given()
    }

    /// What opens a repository of a suite that exists already.
    ///
    /// # Errors
    /// Those of reading what is given, and of asking for a passphrase.
    pub(crate) fn existing(&self, suite: Suite) -> Result<Secret> {
        match (suite, self.key_path()) {
            (Suite::None, _) => Ok(Secret::None),
            (Suite::Aes256Gcm, Some(path)) => read_key_file(&path),
            (Suite::Aes256Gcm, None) => self.passphrase().existing().map(Secret::Passphrase),
        }
    }

    /// What is to open a repository that is about to be made.
    ///
    /// # Errors
    /// As [`existing`](Self::existing).
    pub(crate) fn new_one(&self, suite: Suite) -> Result<Secret> {
        match (suite, self.key_path()) {
            (Suite::None, _) => Ok(Secret::None),
            (Suite::Aes256Gcm, Some(path)) => read_key_file(&path),
            (Suite::Aes256Gcm, None) => self.passphrase().new_one().map(Secret::Passphrase),
        }
    }

    fn passphrase(&self) -> Source<'_> {
        match self.side {
            Side::Repository => Source::of_repository(self.passphrase_file),
            Side::Target => Source::of_target(self.passphrase_file),
        }
    }

    /// The variables and the options that give a secret, for people.
    pub(crate) fn names(&self) -> (&'static str, &'static str) {
        match self.side {
            Side::Repository => ("CAIRN_PASSPHRASE and CAIRN_KEY_FILE", "--passphrase-file and --key-file"),
            Side::Target => ("CAIRN_TO_PASSPHRASE and CAIRN_TO_KEY_FILE", "--to-passphrase-file and --to-key-file"),
        }
    }

    fn key_path(&self) -> Option<PathBuf> {
        let variable = match self.side {
            Side::Repository => KEY_FILE_VARIABLE,
            Side::Target => "CAIRN_TO_KEY_FILE",
        };
        let of_variable = || std::env::var_os(variable).filter(|value: &OsString| !value.is_empty());
        match (self.key_file, self.passphrase_file) {
            (Some(file), _) => Some(file.to_owned()),
            (None, Some(_)) => None,
            (None, None) => of_variable().map(PathBuf::from),
        }
    }
}

/// Reads a private key file, as `cairn key generate` writes it.
///
/// # Errors
/// `Invalid` naming what is wrong in it; `Io`.
pub(crate) fn read_private_key(path: &Path) -> Result<PrivateKey> {
    let what = format!("key file {}", path.display());
    let text = read_text(path, &what)?;
    PrivateKey::from_text(&text).map_err(|error| error.context(format!("{what} cannot be used")).into())
}

fn read_key_file(path: &Path) -> Result<Secret> {
    let what = format!("key file {}", path.display());
    let read = KeyFile::parse(&read_text(path, &what)?);
    Ok(Secret::PrivateKey(Box::new(read.map_err(|error| error.context(format!("{what} cannot be used")))?)))
}

/// A public key as typed: the text itself, or a file that holds it.
///
/// # Errors
/// `Invalid` naming what is wrong in it; `Io`.
pub(crate) fn public_key(typed: &str) -> Result<PublicKey> {
    if typed.trim_start().to_ascii_uppercase().starts_with("CAIRN-") {
        return PublicKey::from_text(typed).map_err(Failure::from);
    }
    let what = format!("public key file {typed}");
    let text = read_text(Path::new(typed), &what)?;
    let read =
        PublicKey::from_text(&text).map_err(|error| Failure::from(error.context(format!("{what} cannot be used"))));
    read.map_err(|failure| failure.hint("`cairn key public FILE` prints the public key of a private key file"))
}
