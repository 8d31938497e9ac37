//! The one error of the crate: a coarse kind that says what the caller can do, a text that says
//! what failed on which object, and the cause underneath.
//!
//! Each layer keeps its own narrow errors where it needs them; they become an [`Error`] at the
//! layer's edge. Texts are lowercase fragments without a full stop, and never repeat their source.

use std::error::Error as StdError;
use std::fmt;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The thing named does not exist: name another.
    NotFound,
    /// The thing to be created exists already: choose another name, or allow replacing it.
    AlreadyExists,
    /// The input is malformed: mend the input.
    Invalid,
    /// The input is well formed and asks for what this version does not do.
    Unsupported,
    /// Stored bytes are damaged: `check` tells what is hit.
    Corrupt,
    /// The key does not open this: a wrong passphrase, or bytes somebody changed.
    Unauthenticated,
    /// The key in use opens the repository and does not grant this: use another key.
    Forbidden,
    /// Another process holds what is needed: try again later.
    Locked,
    /// The store does not answer now: try again later. Says nothing about the bytes.
    Unavailable,
    /// The operating system refused: full disk, missing permission, broken device.
    Io,
    /// The caller asked to stop.
    Interrupted,
    /// A promise of this program was broken: a bug.
    Internal,
}

/// An error of this crate.
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a cause underneath.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// An error with its cause.
    pub fn with_source(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { kind, context: context.into(), source: Some(source.into()) }
    }

    /// An operating-system error met while doing `context`, its kind read off the error.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            std::io::ErrorKind::Interrupted => ErrorKind::Interrupted,
            _ => ErrorKind::Io,
        };
        Self::with_source(kind, context, source)
    }

    /// Malformed input.
    pub fn invalid(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, context)
    }

    /// Damaged stored bytes.
    pub fn corrupt(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, context)
    }

    /// A broken promise of this program.
    pub fn internal(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, context)
    }

    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The same error seen from one level up: `outer` says what was being done, this one why it failed.
    #[must_use]
    pub fn context(self, outer: impl Into<String>) -> Self {
        Self { kind: self.kind, context: outer.into(), source: Some(Box::new(self)) }
    }

    /// The text and those of all causes, joined by colons. A cause that its outer text already tells is not repeated.
    pub fn chain(&self) -> String {
        let mut chain = self.context.clone();
        let mut told = self.context.clone();
        let mut cause = StdError::source(self);
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries print their causes as part of themselves.
            if !told.contains(&text) {
                chain.push_str(": ");
                chain.push_str(&text);
                told = text;
            }
            cause = error.source();
        }
        chain
    }

    /// Whether this is damage or tampering: bytes that were there and failed a check.
    pub fn is_damage(&self) -> bool {
        matches!(self.kind, ErrorKind::Corrupt | ErrorKind::Unauthenticated)
    }

    /// Whether stored bytes are lost to this program for good: damaged, missing, or of a version it does not read
    /// (which one flipped bit can feign). Bytes that only cannot be read now are not.
    pub fn is_loss(&self) -> bool {
        self.is_damage() || matches!(self.kind, ErrorKind::NotFound | ErrorKind::Unsupported)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.chain())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Puts what was being done around an error met while doing it.
pub trait ResultExt<T> {
    /// Wraps an error, if there is one, in `outer()`.
    ///
    /// # Errors
    /// The wrapped error, of the same kind.
    fn context<S: Into<String>>(self, outer: impl FnOnce() -> S) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context<S: Into<String>>(self, outer: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.context(outer()))
    }
}

impl<T> ResultExt<T> for std::io::Result<T> {
    fn context<S: Into<String>>(self, outer: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| Error::io(outer(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_the_whole_chain_and_display_only_its_own_part() {
        let error = Error::corrupt("frame 17 of pack 9f3c: authentication failed").context("cannot read block 4");
        assert_eq!(error.to_string(), "cannot read block 4");
        assert_eq!(format!("{error:?}"), "Corrupt: cannot read block 4: frame 17 of pack 9f3c: authentication failed");
        assert_eq!(error.chain(), "cannot read block 4: frame 17 of pack 9f3c: authentication failed");
        assert!(error.is_damage());
    }
}
