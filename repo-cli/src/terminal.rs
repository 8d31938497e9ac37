//! What is told while a command runs, all of it on stderr: bars on a terminal, a plain line a step elsewhere.

use std::collections::HashSet;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use repo_core::Error;
use repo_core::monitor::Monitor;
use serde_json::json;

use crate::failure::{Failure, chain};
use crate::interrupt::Interrupt;
use crate::output;

/// How progress is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Bars that move.
    Bars,
    /// A line when a step begins and one when it ends.
    Lines,
    /// Nothing but warnings and damage.
    Quiet,
    /// Warnings and damage, a JSON object a line.
    Json,
}

/// The user's side of a running command.
#[derive(Debug)]
pub(crate) struct Terminal {
    style: Style,
    interrupt: Interrupt,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    task: Option<Task>,
    /// What was said already: one damaged pack is met many times.
    said: HashSet<String>,
    /// Damage is part of the command's result and is not told twice.
    damage_in_result: bool,
    /// Damages told, and those kept back because there were too many.
    damages_told: usize,
    damages_kept_back: u64,
}

#[derive(Debug)]
struct Task {
    name: String,
    done_bytes: u64,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Terminal {
    /// The style that the options and the place of stderr ask for.
    pub(crate) fn new(is_json: bool, is_quiet: bool) -> Self {
        let style = match (is_json, is_quiet) {
            (true, _) => Style::Json,
            (false, true) => Style::Quiet,
            (false, false) if std::io::stderr().is_terminal() => Style::Bars,
            (false, false) => Style::Lines,
        };
        Self { style, interrupt: Interrupt::default(), state: Mutex::default() }
    }

    /// Lets Ctrl-C and SIGTERM stop the work cleanly from here on.
    ///
    /// # Errors
    /// `Io` when the operating system refuses.
    pub(crate) fn take_signals(&self) -> repo_core::Result<()> {
        self.interrupt.install(matches!(self.style, Style::Bars | Style::Lines))
    }

    /// From here on damage is not told: the command reports all of it in its result.
    pub(crate) fn leave_damage_to_result(&self) {
        self.state().damage_in_result = true;
    }

    /// Says something beside the result.
    pub(crate) fn tell(&self, line: &str) {
        self.say(&format!("{line}\n"));
    }

    /// Ends a bar that an error left standing, and tells the error.
    pub(crate) fn fail(&self, failure: &Failure) {
        self.clear();
        match self.style {
            Style::Json => self.say(&format!("{}\n", failure.json())),
            _ => self.say(&failure.text()),
        }
    }

    /// Ends a bar that is still standing, and says how much was not told.
    pub(crate) fn clear(&self) {
        if let Some(bar) = self.state().task.take().and_then(|task| task.bar) {
            bar.finish_and_clear();
        }
        let kept_back = std::mem::take(&mut self.state().damages_kept_back);
        if kept_back > 0 {
            self.warn(&format!("{kept_back} more damages are not listed here; `cairn check` names all of them"));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here can be left half-changed by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, text: &str) {
        let write = || {
            // Nobody is left to be told when stderr itself is gone.
            let _ = std::io::stderr().write_all(text.as_bytes());
        };
        let bar = self.state().task.as_ref().and_then(|task| task.bar.clone());
        match bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn say_once(&self, what: &str, text: &str) {
        let text = output::printable(text);
        let line = match self.style {
            Style::Json => format!("{}\n", json!({ what: text })),
            _ => format!("{what}: {text}\n"),
        };
        let is_new = self.state().said.insert(line.clone());
        if is_new {
            self.say(&line);
        }
    }
}

impl Monitor for Terminal {
    fn begin(&self, task: &str, total_bytes: Option<u64>) {
        let name = output::printable(task);
        let bar = (self.style == Style::Bars).then(|| bar(&name, total_bytes));
        if self.style == Style::Lines {
            match total_bytes {
                Some(total) => self.say(&format!("{name}: {} …\n", output::size(total))),
                None => self.say(&format!("{name} …\n")),
            }
        }
        self.state().task = Some(Task { name, done_bytes: 0, started: Instant::now(), bar });
    }

    fn advance(&self, bytes: u64) {
        if let Some(task) = &mut self.state().task {
            task.done_bytes = task.done_bytes.saturating_add(bytes);
            if let Some(bar) = &task.bar {
                bar.inc(bytes);
            }
        }
    }

    fn end(&self) {
        let Some(task) = self.state().task.take() else { return };
        if let Some(bar) = task.bar {
            bar.finish_and_clear();
        }
        if self.style == Style::Lines {
            let took = task.started.elapsed().as_secs_f64();
            let took = output::seconds(took);
            match task.done_bytes {
                0 => self.say(&format!("{}: done in {took}\n", task.name)),
                done => self.say(&format!("{}: done, {} in {took}\n", task.name, output::size(done))),
            }
        }
    }

    fn warn(&self, text: &str) {
        self.say_once("warning", text);
    }

    fn damage(&self, error: &Error) {
        let is_told = {
            let mut state = self.state();
            if state.damage_in_result {
                return;
            }
            // A lost pack is met at every chunk it held: thousands of lines would hide the first.
            let is_told = state.damages_told < DAMAGES_TOLD_MAX;
            state.damages_told += usize::from(is_told);
            state.damages_kept_back += u64::from(!is_told);
            is_told
        };
        if is_told {
            self.say_once("damage", &chain(error));
        }
    }

    fn is_cancelled(&self) -> bool {
        self.interrupt.is_set()
    }
}

/// Damages that are told one by one.
const DAMAGES_TOLD_MAX: usize = 20;

fn bar(name: &str, total_bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match total_bytes {
        Some(total) => {
            (ProgressBar::new(total), "{msg} [{wide_bar:.white}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {msg} {bytes}, {bytes_per_sec}"),
    };
    let style = ProgressStyle::with_template(template).expect("the templates above are sound");
    bar.set_style(style.progress_chars("=> "));
    bar.set_message(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_damage_is_told_once() {
        let terminal = Terminal::new(true, false);
        terminal.damage(&Error::corrupt("pack 1"));
        terminal.damage(&Error::corrupt("pack 1"));
        terminal.damage(&Error::corrupt("pack 2"));
        assert_eq!(terminal.state().said.len(), 2);
        assert!(terminal.state().said.contains("{\"damage\":\"pack 1\"}\n"));
    }

    #[test]
    fn damage_beyond_what_anybody_reads_is_only_counted() {
        let terminal = Terminal::new(true, false);
        for at in 0..DAMAGES_TOLD_MAX + 5 {
            terminal.damage(&Error::corrupt(format!("chunk {at}")));
        }
        assert_eq!(terminal.state().said.len(), DAMAGES_TOLD_MAX);
        assert_eq!(terminal.state().damages_kept_back, 5);
        terminal.clear();
        assert!(terminal.state().said.iter().any(|line| line.contains("5 more damages")));
    }

    #[test]
    fn bars_of_known_and_unknown_length_can_be_made() {
        for total in [None, Some(0), Some(1 << 40)] {
            bar("reading x", total).finish_and_clear();
        }
    }
}
