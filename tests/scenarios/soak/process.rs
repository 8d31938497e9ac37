//! Processes that run to their end or are killed on the way.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Bytes of standard output that are told of a process that failed.
const STDOUT_TOLD: usize = 4096;

/// How a process ended.
pub(super) enum Outcome {
    /// Exit code 0, and what it wrote to standard output.
    Done(Vec<u8>),
    /// SIGKILL came before its end.
    Killed,
    /// Another exit code, and what it wrote; code -1 when it died of another signal.
    Failed(i32, String),
}

/// Runs processes, and knows how long each kind takes here: that decides from what range the moments of kills come.
#[derive(Default)]
pub(super) struct Runner {
    typical: Mutex<BTreeMap<&'static str, Duration>>,
}

impl Runner {
    /// Runs a command of a kind, and kills it after a share of the time that its kind takes, if one is given.
    pub(super) fn run(&self, kind: &'static str, command: &mut Command, kill_at: Option<f64>) -> Outcome {
        let started = Instant::now();
        let mut child = spawn(command.stdin(Stdio::null()));
        let Some(share) = kill_at else {
            let outcome = finish(child);
            self.learn(kind, started.elapsed());
            return outcome;
        };
        let moment = started + self.typical(kind).mul_f64(share);
        while Instant::now() < moment && child.try_wait().unwrap().is_none() {
            // The moment of the kill is what this is about, so it waits by the clock.
            std::thread::sleep(Duration::from_millis(1).min(moment.saturating_duration_since(Instant::now())));
        }
        child.kill().unwrap();
        finish(child)
    }

    /// Runs a command that reads `input`, and kills it when it has taken a share of it, if one is given.
    pub(super) fn feed(&self, command: &mut Command, input: &[u8], kill_at: Option<f64>) -> Outcome {
        let mut child = spawn(command.stdin(Stdio::piped()));
        let mut stdin = child.stdin.take().unwrap();
        let given = (input.len() as f64 * kill_at.unwrap_or(1.0)) as usize;
        // One that failed takes no more; its exit code tells.
        let _ = stdin.write_all(&input[..given.min(input.len())]);
        if kill_at.is_some() {
            child.kill().unwrap();
        }
        drop(stdin);
        finish(child)
    }

    fn typical(&self, kind: &'static str) -> Duration {
        self.typical.lock().unwrap().get(kind).copied().unwrap_or(Duration::from_millis(60))
    }

    fn learn(&self, kind: &'static str, took: Duration) {
        let typical = (self.typical(kind) * 3 + took) / 4;
        self.typical.lock().unwrap().insert(kind, typical);
    }
}

fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(child: Child) -> Outcome {
    let output = child.wait_with_output().unwrap();
    let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9);
    match output.status.code() {
        Some(0) => Outcome::Done(output.stdout),
        None if killed => Outcome::Killed,
        code => {
            let stdout = output.stdout.get(..STDOUT_TOLD).unwrap_or(&output.stdout);
            let texts = [stdout, &output.stderr].map(String::from_utf8_lossy);
            Outcome::Failed(code.unwrap_or(-1), texts.join("\n"))
        }
    }
}
