//! Tokens: who may do what, in which namespaces, until when. Kept as hashes in one file, which is read again when it
//! changes: a token that is revoked is refused from then on.
//!
//! A token is `cairn.ID.SECRET`; the secret has 256 random bits, so that a plain hash of it is as good as a slow one.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

/// What a token is for. Each can do what [`access`](crate::access) lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Adds packs and snapshots, and reads.
    Backup,
    /// Reads.
    Restore,
    /// Adds, reads, and deletes packs, snapshots and what is said of them.
    Operator,
    /// All that a client can ask for: makes repositories, adds and removes key slots.
    Admin,
}

impl Role {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Its public half, 8 digits.
    pub id: String,
    /// For people.
    pub label: String,
    /// What it is for.
    pub role: Role,
    /// The namespaces it is good for; `*` is all.
    pub namespaces: Vec<String>,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// When it ends, in the same unit; never when absent.
    pub expires_ms: Option<i64>,
    /// BLAKE3 of the secret, in hex.
    hash: String,
}

impl Token {
    /// Whether it is good for a namespace.
    pub fn reaches(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|name| name == "*" || name == namespace)
    }

    /// Whether its time is over.
    pub fn is_expired(&self, now_ms: i64) -> bool {
        self.expires_ms.is_some_and(|end| end <= now_ms)
    }
}

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// For people.
    pub label: String,
    /// What it is for.
    pub role: Role,
    /// The namespaces it is good for; `*` is all.
    pub namespaces: Vec<String>,
    /// When it ends, in milliseconds since the Unix epoch.
    pub expires_ms: Option<i64>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tokens: Vec<Token>,
}

/// The tokens there are.
pub struct TokenBook {
    path: PathBuf,
    read: Mutex<Read>,
}

#[derive(Default)]
struct Read {
    seen: Option<Stamp>,
    tokens: Arc<Vec<Token>>,
}

/// Another one means another file: each change makes a new one.
#[derive(PartialEq, Eq)]
struct Stamp(u64, i64, i64, u64);

impl TokenBook {
    /// The book in the folder of the server's state. The file need not be there yet.
    pub fn new(state: &Path) -> Self {
        Self { path: state.join("tokens.json"), read: Mutex::default() }
    }

    /// All tokens, as the file has them now.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn tokens(&self) -> Result<Arc<Vec<Token>>, String> {
        let cannot = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", self.path.display());
        let mut read = self.read.lock();
        let meta = match fs::metadata(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                *read = Read::default();
                return Ok(read.tokens.clone());
            }
            meta => meta.map_err(|error| cannot(&error))?,
        };
        let stamp = Stamp(meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len());
        if read.seen.as_ref() != Some(&stamp) {
            let bytes = fs::read(&self.path).map_err(|error| cannot(&error))?;
            let file: File = serde_json::from_slice(&bytes).map_err(|error| cannot(&error))?;
            *read = Read { seen: Some(stamp), tokens: Arc::new(file.tokens) };
        }
        Ok(read.tokens.clone())
    }

    /// The token that a client shows, if it is one of ours and its time is not over.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find(&self, shown: &str, now_ms: i64) -> Result<Option<Token>, String> {
        let tokens = self.tokens()?;
        let Some((id, secret)) = split(shown) else { return Ok(None) };
        let hash = hash_of(secret);
        let found = tokens.iter().find(|token| token.id == id);
        // The id is no secret; the comparison takes the same time for any hash.
        let same = found.is_some_and(|token| bool::from(token.hash.as_bytes().ct_eq(hash.as_bytes())));
        Ok(found.filter(|token| same && !token.is_expired(now_ms)).cloned())
    }

    /// Makes a token and gives what its holder shows. It cannot be told again.
    ///
    /// # Errors
    /// When there is no randomness, or the file cannot be written.
    pub fn add(&self, new: &NewToken, now_ms: i64) -> Result<(Token, String), String> {
        let secret = BASE64URL_NOPAD.encode(&random::<32>()?);
        let _turn = self.lock()?;
        let mut tokens = self.tokens()?.to_vec();
        let id = loop {
            let id = HEXLOWER.encode(&random::<4>()?);
            if tokens.iter().all(|token| token.id != id) {
                break id;
            }
        };
        let token = Token {
            id: id.clone(),
            label: new.label.clone(),
            role: new.role,
            namespaces: new.namespaces.clone(),
            created_ms: now_ms,
            expires_ms: new.expires_ms,
            hash: hash_of(&secret),
        };
        tokens.push(token.clone());
        self.write(tokens)?;
        Ok((token, format!("cairn.{id}.{secret}")))
    }

    /// Takes a token away; says whether it was there.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn revoke(&self, id: &str) -> Result<bool, String> {
        let _turn = self.lock()?;
        let before = self.tokens()?;
        let tokens: Vec<_> = before.iter().filter(|token| token.id != id).cloned().collect();
        let found = tokens.len() < before.len();
        if found {
            self.write(tokens)?;
        }
        Ok(found)
    }

    /// Keeps other processes from changing the file meanwhile.
    fn lock(&self) -> Result<fs::File, String> {
        let path = self.path.with_extension("lock");
        let cannot = |error: std::io::Error| format!("cannot lock {}: {error}", path.display());
        let file = private().create(true).truncate(false).open(&path).map_err(cannot)?;
        file.lock().map_err(cannot)?;
        Ok(file)
    }

    fn write(&self, tokens: Vec<Token>) -> Result<(), String> {
        let cannot = |error: std::io::Error| format!("cannot write {}: {error}", self.path.display());
        let bytes = serde_json::to_vec_pretty(&File { tokens }).map_err(|error| error.to_string())?;
        replace_private(&self.path, &bytes).map_err(cannot)
    }
}

/// Puts a file that only its owner may read in the place of another, durably.
pub(crate) fn replace_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = private().create(true).truncate(true).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn private() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| format!("cannot get random bytes: {error}"))?;
    Ok(bytes)
}

fn split(shown: &str) -> Option<(&str, &str)> {
    shown.strip_prefix("cairn.")?.split_once('.')
}

fn hash_of(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup() -> NewToken {
        NewToken {
            label: "host 1".to_owned(),
            role: Role::Backup,
            namespaces: vec!["office".to_owned()],
            expires_ms: Some(1000),
        }
    }

    #[test]
    fn a_token_is_shown_once_kept_as_a_hash_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let book = TokenBook::new(folder.path());
        let (token, shown) = book.add(&backup(), 0).unwrap();
        let text = fs::read_to_string(folder.path().join("tokens.json")).unwrap();
        assert!(!text.contains(split(&shown).unwrap().1));
        assert_eq!(fs::metadata(folder.path().join("tokens.json")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(book.find(&shown, 999).unwrap(), Some(token.clone()));
        assert_eq!(book.find(&shown, 1000).unwrap(), None, "its time is over");
        assert!(token.reaches("office") && !token.reaches("lab"));
        for wrong in ["", "cairn", &shown[..shown.len() - 1], &shown.replace("cairn.", ""), &format!("{shown}x")] {
            assert_eq!(book.find(wrong, 0).unwrap(), None, "{wrong}");
        }
    }

    #[test]
    fn a_revoked_token_is_refused_by_a_book_that_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let (book, other) = (TokenBook::new(folder.path()), TokenBook::new(folder.path()));
        let (kept, shown_kept) = book.add(&backup(), 0).unwrap();
        let (gone, shown_gone) = book.add(&backup(), 0).unwrap();
        assert!(book.find(&shown_gone, 0).unwrap().is_some());
        assert!(other.revoke(&gone.id).unwrap());
        assert!(!other.revoke(&gone.id).unwrap());
        assert!(book.find(&shown_gone, 0).unwrap().is_none());
        assert_eq!(book.find(&shown_kept, 0).unwrap(), Some(kept));
    }

    #[test]
    fn a_file_that_cannot_be_read_lets_nobody_in() {
        let folder = tempfile::tempdir().unwrap();
        let book = TokenBook::new(folder.path());
        let (_, shown) = book.add(&backup(), 0).unwrap();
        fs::write(folder.path().join("tokens.json"), "{").unwrap();
        assert!(book.find(&shown, 0).is_err());
    }
}
