//! `cairn tag`, `cairn note`, `cairn protect`: what is said of a snapshot after it was made.

use repo_core::annotation;
use repo_core::error::ResultExt;
use repo_core::remarks::{self, Remarks};
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::Invocation;
use crate::{output, select};

/// Add tags to a snapshot, or remove them
///
/// Tags are words to find snapshots by (`cairn snapshots --tag`) and to keep them by (`cairn forget --keep-tag`).
#[derive(Debug, clap::Args)]
#[command(after_help = TAG_EXAMPLES)]
pub(crate) struct TagArgs {
    /// An id, its first digits (at least 4), or `latest`
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// Add a tag. May be given several times
    #[arg(long, value_name = "TAG", value_parser = parse_tag, required_unless_present = "remove")]
    add: Vec<String>,
    /// Remove a tag, if the snapshot has it. May be given several times
    #[arg(long, value_name = "TAG", value_parser = parse_tag)]
    remove: Vec<String>,
}

const TAG_EXAMPLES: &str = "\
Examples:
  cairn tag latest --add before-upgrade
  cairn tag 9f3c0a --add gold --add audit-2026 --remove temporary";

/// Write a note on a snapshot, in place of the one it has
#[derive(Debug, clap::Args)]
#[command(after_help = NOTE_EXAMPLES)]
pub(crate) struct NoteArgs {
    /// An id, its first digits (at least 4), or `latest`
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// The note
    #[arg(value_name = "TEXT", value_parser = parse_note, required_unless_present = "clear")]
    text: Option<String>,
    /// Remove the note
    #[arg(long, conflicts_with = "text")]
    clear: bool,
}

const NOTE_EXAMPLES: &str = "\
Examples:
  cairn note latest \"last state before the move to the new SAN\"
  cairn note 9f3c0a --clear";

/// Protect a snapshot from `cairn forget`
#[derive(Debug, clap::Args)]
#[command(after_help = PROTECT_EXAMPLES)]
pub(crate) struct ProtectArgs {
    /// An id, its first digits (at least 4), or `latest`
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// Take the protection away
    #[arg(long)]
    off: bool,
}

const PROTECT_EXAMPLES: &str = "\
Examples:
  cairn protect 9f3c0a
  cairn protect 9f3c0a --off";

#[derive(Debug, Serialize)]
struct Remarked {
    snapshot: String,
    tags: Vec<String>,
    note: Option<String>,
    protected: bool,
}

pub(super) fn tag(args: TagArgs, invocation: &Invocation) -> Result<Exit> {
    if let Some(both) = args.add.iter().find(|tag| args.remove.contains(tag)) {
        return Err(Failure::usage(format!("tag {both} is to be added and removed")));
    }
    change(&args.snapshot, invocation, |remarks| {
        remarks.tags.retain(|tag| !args.remove.contains(tag));
        remarks.tags.extend(args.add);
    })
}

pub(super) fn note(args: NoteArgs, invocation: &Invocation) -> Result<Exit> {
    change(&args.snapshot, invocation, |remarks| remarks.note = args.text)
}

pub(super) fn protect(args: &ProtectArgs, invocation: &Invocation) -> Result<Exit> {
    change(&args.snapshot, invocation, |remarks| remarks.protected = !args.off)
}

fn change(name: &str, invocation: &Invocation, change: impl FnOnce(&mut Remarks)) -> Result<Exit> {
    let repository = invocation.open_repository()?;
    let all = invocation.snapshots(&repository)?;
    let named = select::snapshot(&all.snapshots, name)?;
    let cannot = || format!("cannot annotate snapshot {}", named.id.short());
    let remarks = annotation::annotate(&repository, named, invocation.now_ms(), change).context(cannot)?;
    let remarked = Remarked {
        snapshot: named.id.to_hex(),
        tags: remarks.tags.iter().cloned().collect(),
        note: remarks.note.clone(),
        protected: remarks.protected,
    };
    invocation.print_summary(&remarked, || {
        let said = output::remarks(&remarks, usize::MAX);
        let said = if said.is_empty() { "no remarks".to_owned() } else { output::printable(&said) };
        format!("snapshot {}: {said}\n", named.id.short())
    })?;
    Ok(Exit::Done)
}

/// A tag as typed.
pub(super) fn parse_tag(text: &str) -> std::result::Result<String, String> {
    remarks::check_tag(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

/// A note as typed.
pub(super) fn parse_note(text: &str) -> std::result::Result<String, String> {
    remarks::check_note(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}
