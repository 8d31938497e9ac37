//! How long work tells of itself without printing: the caller hands in a [`Monitor`].

use parking_lot::Mutex;

use crate::error::Error;

/// What a monitor is told. Called from several threads.
pub trait Monitor: Send + Sync {
    /// A task of `total_bytes` begins; `None` when the length is unknown. Tasks follow one another.
    fn begin(&self, task: &str, total_bytes: Option<u64>);

    /// The running task went on by `bytes`.
    fn advance(&self, bytes: u64);

    /// The running task ended well.
    fn end(&self);

    /// Something the user should know, which does not stop the work.
    fn warn(&self, text: &str);

    /// Damage was found and the work goes on past it.
    fn damage(&self, error: &Error);

    /// Whether the user asked to stop. Long work looks often and ends with `Interrupted`.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// A monitor that drops everything.
#[derive(Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn begin(&self, _task: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
    fn warn(&self, _text: &str) {}
    fn damage(&self, _error: &Error) {}
}

/// A monitor that keeps what it is told, for tests.
#[derive(Debug, Default)]
pub struct Recording {
    /// Texts of warnings, in order.
    pub warnings: Mutex<Vec<String>>,
    /// Damage in its long form, in order.
    pub damages: Mutex<Vec<String>>,
}

impl Monitor for Recording {
    fn begin(&self, _task: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
    fn warn(&self, text: &str) {
        self.warnings.lock().push(text.to_owned());
    }
    fn damage(&self, error: &Error) {
        self.damages.lock().push(format!("{error:?}"));
    }
}

/// Fails with `Interrupted` when the user asked to stop.
///
/// # Errors
/// `Interrupted`.
pub(crate) fn check_cancelled(monitor: &dyn Monitor) -> crate::error::Result<()> {
    if monitor.is_cancelled() {
        return Err(Error::new(crate::error::ErrorKind::Interrupted, "interrupted"));
    }
    Ok(())
}
