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
        .env("CAIRN_PASSPHRASE", crate::fixture::PASSPHRASE)
        .env("CAIRN_REPO", repository)
        .env("TZ", "UTC");
    command
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
