//! The `cairn` binary and outside tools, run as a user runs them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The binary that stands beside this test binary.
///
/// # Panics
/// When it was not built: `cargo build --release --workspace` comes first, as in `make test`.
pub fn cairn_path() -> PathBuf {
    let test = std::env::current_exe().expect("path of the test binary");
    let path = test.ancestors().nth(2).expect("it is in target/<profile>/deps").join("cairn");
    assert!(path.is_file(), "{} is missing: build the workspace first", path.display());
    path
}

/// A `cairn` command on a repository, with nothing of the caller's environment that could change it.
pub fn cairn(repository: &Path) -> Command {
    let mut command = Command::new(cairn_path());
    command
        .env_remove("CAIRN_REPO")
        .env_remove("CAIRN_KEY_FILE")
        .env("CAIRN_PASSPHRASE", crate::fixture::PASSPHRASE)
        .env("CAIRN_REPO", repository)
        .env("TZ", "UTC");
    command
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Exit(i32),
    /// By SIGKILL.
    Killed,
}

/// Runs `cairn` on a repository with one worker thread, and kills it (SIGKILL) when a thread of it is about to make its
/// `number`-th call of the system call `call`, counted from 1: on the file `only`, if one is named. strace(1) does it.
///
/// # Panics
/// When strace is missing or fails.
pub fn cairn_killed_at(repository: &Path, arguments: &[String], call: &str, number: u32, only: Option<&Path>) -> Ended {
    let mut command = Command::new("strace");
    command.args(["--follow-forks", "--quiet=all", "--output=/dev/null"]);
    command.arg(format!("--trace={call}")).arg(format!("--inject={call}:signal=KILL:when={number}"));
    command.args(only.iter().flat_map(|path| [OsStr::new("--trace-path"), path.as_os_str()]));
    command.arg(cairn_path()).args(arguments);
    command
        .env("CAIRN_PASSPHRASE", crate::fixture::PASSPHRASE)
        .env("CAIRN_REPO", repository)
        .env("RAYON_NUM_THREADS", "1")
        .env("TZ", "UTC");
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    // strace ends as what it runs does.
    if std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9) {
        return Ended::Killed;
    }
    let code = output.status.code().unwrap_or_else(|| panic!("{command:?} died: {}", output.status));
    assert!(code != 1, "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ended::Exit(code)
}

/// Runs a command to its end and demands success.
///
/// # Panics
/// When it fails, with all it printed.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a command and gives the JSON it prints.
///
/// # Panics
/// When it fails or prints something else.
pub fn json(command: &mut Command) -> serde_json::Value {
    let output = run(command.arg("--json"));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{command:?} printed no JSON: {error}: {}", String::from_utf8_lossy(&output.stdout))
    })
}

/// Runs a command that must fail, and gives its exit code and what it wrote to standard error.
///
/// # Panics
/// When it succeeds or was killed.
pub fn fails(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let code = output.status.code().unwrap_or_else(|| panic!("{command:?} was killed"));
    assert_ne!(code, 0, "{command:?} succeeded");
    (code, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Runs an outside tool to its end and demands success.
pub fn tool<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Output {
    run(Command::new(program).args(arguments))
}
