//! `cairn lock`.

use clap::ValueEnum;
use repo_core::entropy::Entropy;
use repo_core::error::ResultExt;
use repo_core::ops::lock::{self, LockStatus, Renewed};
use repo_core::store::lock::{LOCK_DAYS_MAX, LockMode, LockTerms};
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::Invocation;
use crate::output;

/// Lock what is stored on S3 against everybody's deletion, or show whether it is locked
///
/// With --days, all that snapshots need can be deleted by nobody for so many days, not with this machine's credentials either,
/// and neither can what is stored from now on. The bucket must have been made with object lock. Imports and `cairn gc` renew locks, so that what a snapshot needs is always locked for half of the days at least. What is
/// deleted or replaced all the same comes back with `cairn undelete`. Without --days, the store is asked how each object is locked.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Lock for so many days; may be changed later, for what is stored from then on
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..=i64::from(LOCK_DAYS_MAX)))]
    days: Option<u16>,
    /// Who may delete all the same
    #[arg(long, value_enum, default_value_t = Mode::Governance, requires = "days")]
    mode: Mode,
}

const EXAMPLES: &str = "\
Examples:
  cairn lock --repo s3://backups/pool1 --days 30
  cairn lock --repo s3://backups/pool1
  cairn lock --repo s3://backups/pool1 --days 30 --mode compliance";

/// Who may delete a locked object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// Who has the right s3:BypassGovernanceRetention
    Governance,
    /// Nobody, not the owner of the account either; it cannot be taken back
    Compliance,
}

impl From<Mode> for LockMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Governance => Self::Governance,
            Mode::Compliance => Self::Compliance,
        }
    }
}

impl From<LockMode> for Mode {
    fn from(mode: LockMode) -> Self {
        match mode {
            LockMode::Governance => Self::Governance,
            LockMode::Compliance => Self::Compliance,
        }
    }
}

/// Terms, for programs.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct TermsOut {
    days: u16,
    mode: Mode,
}

impl From<LockTerms> for TermsOut {
    fn from(terms: LockTerms) -> Self {
        Self { days: terms.days, mode: terms.mode.into() }
    }
}

#[derive(Debug, Serialize)]
struct Locked {
    lock: TermsOut,
    objects: u64,
    renewed: u64,
}

#[derive(Debug, Serialize)]
struct Status {
    lock: TermsOut,
    last_renewed: Option<String>,
    objects: u64,
    packs: u64,
    first_ends: Option<String>,
    unlocked: Vec<UnlockedOut>,
}

#[derive(Debug, Serialize)]
struct UnlockedOut {
    path: String,
    mode: Option<Mode>,
    until: Option<String>,
}

pub(super) fn run(args: &Args, invocation: &Invocation) -> Result<Exit> {
    match args.days {
        Some(days) => set(LockTerms { mode: args.mode.into(), days }, invocation),
        None => show(invocation),
    }
}

fn set(terms: LockTerms, invocation: &Invocation) -> Result<Exit> {
    let session = invocation.open_session()?;
    let changed = lock::change(&session, terms, &Entropy::system(), &invocation.terminal);
    let Renewed { needed, renewed } = changed.map_err(cannot_lock)?;
    let locked = Locked { lock: terms.into(), objects: needed, renewed };
    invocation.print_summary(&locked, || {
        format!("locked for {}, {}: {renewed} of {needed} objects now\n", days(terms.days), means(terms.mode))
    })?;
    Ok(Exit::Done)
}

/// The failure with the next step.
pub(super) fn cannot_lock(error: repo_core::Error) -> Failure {
    let kind = error.kind();
    let failure = Failure::from(error.context("cannot lock the repository"));
    match kind {
        repo_core::ErrorKind::Unsupported => {
            failure.hint("make a bucket with object lock, and cairn sync the repository to it: docs/operations.md")
        }
        repo_core::ErrorKind::Io => failure.hint(
            "the credentials need s3:GetBucketObjectLockConfiguration, s3:PutObjectRetention, s3:GetObjectRetention and \
             s3:ListBucketVersions",
        ),
        _ => failure,
    }
}

fn show(invocation: &Invocation) -> Result<Exit> {
    let session = invocation.open_session()?;
    let found = lock::status(&session, &invocation.terminal);
    let found = found.context(|| "cannot tell how the repository is locked").map_err(|error| {
        let unlocked = error.kind() == repo_core::ErrorKind::Unsupported;
        let failure = Failure::from(error);
        if unlocked { failure.hint("cairn lock --days 30 locks it, in a bucket with object lock") } else { failure }
    })?;
    let status = Status::from(&found);
    invocation.print(&status, || text(&found, &status))?;
    Ok(if status.unlocked.is_empty() { Exit::Done } else { Exit::Damage })
}

impl From<&LockStatus> for Status {
    fn from(found: &LockStatus) -> Self {
        let unlocked = found.unlocked.iter().map(|object| UnlockedOut {
            path: object.name.path(),
            mode: object.found.map(|lock| lock.mode.into()),
            until: object.found.map(|lock| output::time_utc(lock.until_ms)),
        });
        Self {
            lock: found.terms.into(),
            last_renewed: found.renewed_ms.filter(|ms| *ms != i64::MIN).map(output::time_utc),
            objects: found.objects,
            packs: found.packs,
            first_ends: found.first_end_ms.map(output::time_utc),
            unlocked: unlocked.collect(),
        }
    }
}

fn text(found: &LockStatus, status: &Status) -> String {
    let mut rows = vec![
        ("locked for", format!("{}: {}", days(found.terms.days), means(found.terms.mode))),
        ("objects", format!("{}, {} of them packs", status.objects, status.packs)),
    ];
    rows.extend(found.renewed_ms.filter(|ms| *ms != i64::MIN).map(|ms| ("last renewed", output::time_local(ms))));
    rows.extend(found.first_end_ms.map(|ms| ("first lock ends", output::time_local(ms))));
    if !status.unlocked.is_empty() {
        let count = output::count(status.unlocked.len(), "object");
        rows.push(("not locked", format!("{count}: cairn lock --days {} locks them", found.terms.days)));
    }
    let mut text = output::fields(&rows);
    for object in &status.unlocked {
        text.push_str(&format!("  {}\n", object.path));
    }
    text
}

fn days(days: u16) -> String {
    output::count(usize::from(days), "day")
}

fn means(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Governance => "only who may bypass governance can delete",
        LockMode::Compliance => "nobody can delete",
    }
}

#[cfg(test)]
mod tests {
    use repo_core::ops::lock::Unlocked;
    use repo_core::store::ObjectName;

    use super::*;

    #[test]
    fn what_is_not_locked_is_named() {
        let found = LockStatus {
            terms: LockTerms { mode: LockMode::Compliance, days: 30 },
            renewed_ms: Some(0),
            objects: 3,
            packs: 1,
            first_end_ms: Some(86_400_000),
            unlocked: vec![Unlocked { name: ObjectName::Config, found: None }],
        };
        let status = Status::from(&found);
        let text = text(&found, &status);
        assert!(
            text.contains("30 days: nobody can delete") && text.contains("1 object: cairn lock --days 30"),
            "{text}"
        );
        assert!(text.ends_with("  config\n"), "{text}");
        let json = output::json(&status);
        assert!(
            json.starts_with(r#"{"lock":{"days":30,"mode":"compliance"},"last_renewed":"1970-01-01T00:00:00.000Z""#),
            "{json}"
        );
        assert!(json.contains(r#""unlocked":[{"path":"config","mode":null,"until":null}]"#), "{json}");
    }
}
