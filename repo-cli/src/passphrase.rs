//! Passphrases: from a file, from the environment, or typed; wiped when dropped.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::Path;

use repo_core::ErrorKind;
use repo_core::error::{Error, ResultExt};
use zeroize::Zeroizing;

use crate::failure::{Failure, Result};
use crate::secret::Side;

/// A passphrase in memory.
pub(crate) type Passphrase = Zeroizing<String>;

/// The longest passphrase file that is read, in bytes.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// Where a passphrase may come from without a prompt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    /// The file named by an option; it wins over the environment.
    file: Option<&'a Path>,
    /// The option that names the file.
    pub(crate) option: &'static str,
    /// The variable.
    pub(crate) variable: &'static str,
    /// What is asked at the terminal.
    prompt: &'static str,
}

impl Source<'_> {
    /// The passphrase that opens the repository.
    pub(crate) fn of_repository(file: Option<&Path>) -> Source<'_> {
        Source { file, option: "--passphrase-file", variable: "CAIRN_PASSPHRASE", prompt: "Passphrase: " }
    }

    /// The passphrase that opens the repository that is synced to.
    pub(crate) fn of_target(file: Option<&Path>) -> Source<'_> {
        Source { file, option: "--to-passphrase-file", variable: "CAIRN_TO_PASSPHRASE", prompt: "Passphrase of TO: " }
    }

    /// The passphrase to be added.
    pub(crate) fn of_new_key(file: Option<&Path>) -> Source<'_> {
        Source { file, option: "--new-passphrase-file", variable: "CAIRN_NEW_PASSPHRASE", prompt: "New passphrase: " }
    }

    /// The token for a server. It is never asked for.
    pub(crate) fn of_token(file: Option<&Path>, side: Side) -> Source<'_> {
        let (option, variable) = match side {
            Side::Repository => ("--token-file", "CAIRN_TOKEN"),
            Side::Target => ("--to-token-file", "CAIRN_TO_TOKEN"),
        };
        Source { file, option, variable, prompt: "Token: " }
    }

    /// Whether one is given; an empty variable gives none.
    pub(crate) fn is_given(&self) -> bool {
        self.file.is_some() || std::env::var_os(self.variable).is_some_and(|value| !value.is_empty())
    }

    /// A passphrase that exists already: given, or typed once.
    ///
    /// # Errors
    /// `Unauthenticated` when there is none; those of reading the file.
    pub(crate) fn existing(&self) -> Result<Passphrase> {
        match self.given()? {
            Some(given) => Ok(given),
            None => self.ask(self.prompt),
        }
    }

    /// A passphrase that is about to be set: given, or typed twice.
    ///
    /// # Errors
    /// As [`existing`](Self::existing), and when what was typed differs.
    pub(crate) fn new_one(&self) -> Result<Passphrase> {
        if let Some(given) = self.given()? {
            return Ok(given);
        }
        let first = self.ask(self.prompt)?;
        if *self.ask("The same again: ")? != *first {
            return Err(Failure::new(ErrorKind::Invalid, "the two passphrases differ"));
        }
        Ok(first)
    }

    /// What is given without a prompt.
    ///
    /// # Errors
    /// Those of reading the file; `Invalid` when it is empty.
    pub(crate) fn given(&self) -> Result<Option<Passphrase>> {
        if let Some(file) = self.file {
            return read_file(file).map(Some);
        }
        let Some(value) = std::env::var_os(self.variable) else { return Ok(None) };
        let text = value.into_string().map_err(|_| invalid(format!("{} is not UTF-8", self.variable)))?;
        not_empty(Zeroizing::new(text), self.variable).map(Some)
    }

    fn ask(&self, text: &str) -> Result<Passphrase> {
        // The prompt itself goes to the terminal of the session, so that stdin may be a disk and stdout a pipe.
        if !std::io::stdin().is_terminal() && !std::io::stderr().is_terminal() {
            return Err(Failure::new(
                ErrorKind::Unauthenticated,
                "no passphrase is given, and there is no terminal to ask",
            )
            .hint(format!("set {} or give {} FILE", self.variable, self.option)));
        }
        let typed = rpassword::prompt_password(text).context(|| "cannot ask for the passphrase")?;
        not_empty(Zeroizing::new(typed), "the passphrase")
    }
}

fn read_file(path: &Path) -> Result<Passphrase> {
    let what = format!("passphrase file {}", path.display());
    from_file_bytes(&read_bytes(path, &what)?, &what)
}

/// Reads a small secret file as text.
///
/// # Errors
/// `Invalid` when it is too long or not UTF-8; `Io`.
pub(crate) fn read_text(path: &Path, what: &str) -> Result<Zeroizing<String>> {
    let bytes = read_bytes(path, what)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| invalid(format!("{what} is not UTF-8")))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn read_bytes(path: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path).context(|| format!("cannot read {what}"))?;
    read_all(file, what)
}

/// Reads a small secret to its end.
///
/// # Errors
/// `Invalid` when it is too long; `Io`.
pub(crate) fn read_all(from: impl Read, what: &str) -> Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    from.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes).context(|| format!("cannot read {what}"))?;
    if bytes.len() as u64 > FILE_LEN_MAX {
        return Err(invalid(format!("{what} is longer than {FILE_LEN_MAX} bytes")));
    }
    Ok(bytes)
}

fn from_file_bytes(bytes: &[u8], what: &str) -> Result<Passphrase> {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|_| invalid(format!("{what} is not UTF-8")))?;
    not_empty(Zeroizing::new(text.to_owned()), what)
}

fn not_empty(passphrase: Passphrase, what: &str) -> Result<Passphrase> {
    if passphrase.is_empty() {
        return Err(invalid(format!("{what} is empty")));
    }
    Ok(passphrase)
}

fn invalid(text: String) -> Failure {
    Error::invalid(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_newline_at_the_end_of_a_file_is_not_part_of_the_passphrase() {
        let read = |bytes: &[u8]| from_file_bytes(bytes, "f").map(|text| text.to_string());
        assert_eq!(read(b"secret").unwrap(), "secret");
        assert_eq!(read(b"secret\n").unwrap(), "secret");
        assert_eq!(read(b"secret\r\n").unwrap(), "secret");
        assert_eq!(read(b" two words \n\n").unwrap(), " two words \n");
        assert!(read(b"\n").unwrap_err().text().contains("f is empty"));
        assert!(read(b"\xff\n").unwrap_err().text().contains("not UTF-8"));
    }
}
