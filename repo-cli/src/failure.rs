//! Why a command failed: the core's error, what the user can do next, and the exit code.

use std::error::Error as _;

use repo_core::{Error, ErrorKind};
use serde::Serialize;

use crate::exit::Exit;
use crate::hint;

/// What a command returns.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    error: Error,
    hint: Option<String>,
    exit: Exit,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    error: ShownError<'a>,
}

#[derive(Debug, Serialize)]
struct ShownError<'a> {
    kind: &'static str,
    message: String,
    hint: Option<&'a str>,
    exit_code: u8,
}

impl Failure {
    /// A failure that no layer below reported.
    pub(crate) fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Error::new(kind, text).into()
    }

    /// The command line asks for what cannot be.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self { error: Error::invalid(text), hint: None, exit: Exit::Usage }
    }

    /// The same with the next step to take, in place of the one that the kind of the error suggests.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same seen from one level up: `outer` says what was being done.
    #[must_use]
    pub(crate) fn context(self, outer: impl Into<String>) -> Self {
        Self { error: self.error.context(outer), ..self }
    }

    /// The kind of the error.
    pub(crate) fn kind(&self) -> ErrorKind {
        self.error.kind()
    }

    /// How the process ends.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// The lines for people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("error: {}\n", chain(&self.error));
        if let Some(hint) = &self.hint {
            text.push_str(&format!("hint: {hint}\n"));
        }
        text
    }

    /// The line for programs.
    pub(crate) fn json(&self) -> String {
        let kind = if self.exit == Exit::Usage { "usage" } else { kind_name(self.error.kind()) };
        let shown = Shown {
            error: ShownError {
                kind,
                message: chain(&self.error),
                hint: self.hint.as_deref(),
                exit_code: self.exit.code(),
            },
        };
        serde_json::to_string(&shown).expect("text and numbers always become JSON")
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { hint: hint::of(&error), exit: Exit::of(error.kind()), error }
    }
}

/// An error and its causes on one line. A cause that only repeats the end of what stands before is left out.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    // Names and messages come from elsewhere: they must not steer the terminal nor fake a line.
    crate::output::printable(&text)
}

/// The word for a kind in JSON.
fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "not_found",
        ErrorKind::AlreadyExists => "already_exists",
        ErrorKind::Invalid => "invalid",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Unauthenticated => "unauthenticated",
        ErrorKind::Forbidden => "forbidden",
        ErrorKind::Locked => "locked",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Io => "io",
        ErrorKind::Interrupted => "interrupted",
        ErrorKind::Internal => "internal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Failure {
        let inner = Error::new(ErrorKind::Unauthenticated, "wrong passphrase");
        Failure::from(inner.context("cannot open repository /r")).hint("try another")
    }

    #[test]
    fn people_read_the_error_with_its_causes_and_then_the_hint() {
        assert_eq!(sample().text(), "error: cannot open repository /r: wrong passphrase\nhint: try another\n");
    }

    #[test]
    fn programs_read_one_object_with_kind_message_hint_and_exit_code() {
        let expected = "{\"error\":{\"kind\":\"unauthenticated\",\"message\":\"cannot open repository /r: wrong \
                        passphrase\",\"hint\":\"try another\",\"exit_code\":1}}";
        assert_eq!(sample().json(), expected);
        assert!(Failure::usage("x").json().contains("\"kind\":\"usage\""));
    }

    #[test]
    fn a_cause_that_repeats_its_consequence_is_said_once() {
        let io = || std::io::Error::from_raw_os_error(28);
        let repeating = Error::with_source(ErrorKind::Io, format!("cannot write: {}", io()), io());
        assert_eq!(chain(&repeating), "cannot write: No space left on device (os error 28)");
    }
}
