//! Exit codes: what a script can tell of the outcome.

use std::process::ExitCode;

use repo_core::ErrorKind;

/// How a command ended. docs/cli.md lists these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All is done.
    Done,
    /// It failed; nothing half-done counts.
    Failed,
    /// The command line is wrong.
    Usage,
    /// It finished, and found damage.
    Damage,
    /// Somebody else holds what is needed.
    Busy,
    /// The user asked to stop.
    Interrupted,
}

impl Exit {
    /// The number handed to the operating system.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Damage => 3,
            Self::Busy => 4,
            Self::Interrupted => 130,
        }
    }

    /// The outcome an error of the core makes.
    pub(crate) fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Locked => Self::Busy,
            ErrorKind::Interrupted => Self::Interrupted,
            ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::Invalid
            | ErrorKind::Unsupported
            | ErrorKind::Corrupt
            | ErrorKind::Unauthenticated
            | ErrorKind::Forbidden
            | ErrorKind::Unavailable
            | ErrorKind::Io
            | ErrorKind::Internal => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_documented_ones() {
        let all = [Exit::Done, Exit::Failed, Exit::Usage, Exit::Damage, Exit::Busy, Exit::Interrupted];
        assert_eq!(all.map(Exit::code), [0, 1, 2, 3, 4, 130]);
    }

    #[test]
    fn an_error_that_ends_a_command_never_counts_as_finished() {
        assert_eq!(Exit::of(ErrorKind::Corrupt), Exit::Failed);
        assert_eq!(Exit::of(ErrorKind::Unauthenticated), Exit::Failed);
        assert_eq!(Exit::of(ErrorKind::Locked), Exit::Busy);
        assert_eq!(Exit::of(ErrorKind::Interrupted), Exit::Interrupted);
    }
}
