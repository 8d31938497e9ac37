//! Ctrl-C and SIGTERM: the first asks the work to stop cleanly, the second ends the process at once.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use repo_core::error::{Result, ResultExt};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Exit;

/// Whether the user asked to stop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Whether a signal came.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes the signals over from here on; before, they end the process as they always do. So a command does this only
    /// when its long work begins, after all prompts.
    ///
    /// # Errors
    /// `Io` when the operating system refuses.
    pub(crate) fn install(&self, announce: bool) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context(|| "cannot start the runtime for signals")?;
        let (interrupt, terminate) = {
            let _inside = runtime.enter();
            let cannot = || "cannot take over signals";
            (signal(SignalKind::interrupt()).context(cannot)?, signal(SignalKind::terminate()).context(cannot)?)
        };
        let flag = self.0.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || runtime.block_on(watch(interrupt, terminate, &flag, announce)))
            .context(|| "cannot start the thread for signals")?;
        Ok(())
    }
}

async fn watch(mut interrupt: Signal, mut terminate: Signal, flag: &AtomicBool, announce: bool) {
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(Exit::Interrupted.code().into());
        }
        if announce {
            // A terminal that went away is no reason to stop stopping.
            let _ = writeln!(std::io::stderr(), "\ninterrupted: stopping cleanly; once more stops at once");
        }
    }
}
