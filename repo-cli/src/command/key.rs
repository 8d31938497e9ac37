//! `cairn key`.

use std::path::PathBuf;

use clap::Subcommand;
use repo_core::ErrorKind;
use repo_core::error::ResultExt;
use repo_core::keys::slot::{Argon2Cost, SlotInfo, Unlock};
use repo_core::lease;
use repo_core::monitor::Monitor;
use repo_core::repository::Repository;
use repo_core::seal::Suite;
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::Invocation;
use crate::passphrase::Source;
use crate::{output, select};

/// Add, list and remove the passphrases that open the repository
///
/// Each opens everything. To change a passphrase, add the new one and remove the old one. Whoever copied the repository
/// before can still open that copy with the old one.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Add(AddArgs),
    List(ListArgs),
    Remove(RemoveArgs),
}

/// Add a passphrase
///
/// Opens the repository with one that it has, then takes the new one from --new-passphrase-file, CAIRN_NEW_PASSPHRASE, or a
/// prompt.
#[derive(Debug, clap::Args)]
#[command(after_help = ADD_EXAMPLES)]
struct AddArgs {
    /// Read the new passphrase from a file; one newline at its end is not part of it
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// What `cairn key list` calls it
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,
}

/// List the passphrases by id and label
#[derive(Debug, clap::Args)]
#[command(after_help = LIST_EXAMPLES)]
struct ListArgs {}

/// Remove a passphrase; the last one is never removed
#[derive(Debug, clap::Args)]
#[command(after_help = REMOVE_EXAMPLES)]
struct RemoveArgs {
    /// The key's id, or its first digits (at least 4), as `cairn key list` shows it
    #[arg(value_name = "KEY")]
    key: String,
}

const ADD_EXAMPLES: &str = "\
Examples:
  cairn key add --label \"safe in the cellar\"
  cairn key add --passphrase-file old.txt --new-passphrase-file new.txt";
const LIST_EXAMPLES: &str = "\
Examples:
  cairn key list
  cairn key list --json";
const REMOVE_EXAMPLES: &str = "\
Examples:
  cairn key remove 41c09e";

#[derive(Debug, Serialize)]
struct KeyOut {
    key: String,
    kind: &'static str,
    created: String,
    label: String,
}

#[derive(Debug, Serialize)]
struct Removed {
    removed: String,
}

pub(super) fn run(args: Args, invocation: &Invocation) -> Result<Exit> {
    match args.action {
        Action::Add(args) => add(&args, invocation),
        Action::List(_) => list(invocation),
        Action::Remove(args) => remove(&args, invocation),
    }
}

fn add(args: &AddArgs, invocation: &Invocation) -> Result<Exit> {
    let repository = invocation.open_repository()?;
    if repository.config.suite == Suite::None {
        return Err(Failure::new(ErrorKind::Invalid, "this repository is not encrypted: it takes no passphrase"));
    }
    let passphrase = Source::of_new_key(args.new_passphrase_file.as_deref()).new_one()?;
    let unlock = Unlock::Passphrase { text: &passphrase, cost: Argon2Cost::default() };
    let now_ms = invocation.now_ms();
    let id = repository.add_slot(&unlock, &args.label, now_ms).context(|| "cannot add the passphrase")?;
    let added =
        KeyOut { key: id.to_hex(), kind: "passphrase", created: output::time_utc(now_ms), label: args.label.clone() };
    invocation.print_summary(&added, || format!("key {} added\n", id.short()))?;
    Ok(Exit::Done)
}

fn list(invocation: &Invocation) -> Result<Exit> {
    let repository = invocation.open_repository()?;
    let (slots, unreadable) = slots(&repository, invocation)?;
    let out: Vec<_> = slots.iter().map(KeyOut::from).collect();
    invocation.print(&out, || text(&slots))?;
    Ok(if unreadable == 0 { Exit::Done } else { Exit::Damage })
}

fn remove(args: &RemoveArgs, invocation: &Invocation) -> Result<Exit> {
    let repository = invocation.open_repository()?;
    let (slots, _) = slots(&repository, invocation)?;
    let slot = select::by_prefix(&slots, &args.key, |slot| slot.id.to_hex()).map_err(|failure| {
        failure.unwrap_or_else(|| {
            Failure::new(ErrorKind::NotFound, format!("no key has the id {:?}", args.key))
                .hint("`cairn key list` shows them; an id may be shortened to 4 digits")
        })
    })?;
    let _turn = lease::turn_at_slots(&repository).context(|| "cannot remove a key")?;
    repository.remove_slot(slot.id).context(|| format!("cannot remove key {}", slot.id.short()))?;
    let removed = Removed { removed: slot.id.to_hex() };
    invocation.print_summary(&removed, || format!("key {} removed\n", slot.id.short()))?;
    Ok(Exit::Done)
}

/// The slots that can be read, oldest first, and how many cannot: those are told as damage.
fn slots(repository: &Repository, invocation: &Invocation) -> Result<(Vec<SlotInfo>, usize)> {
    let mut readable = Vec::new();
    let mut unreadable = 0;
    for slot in repository.slots().context(|| "cannot list the keys")? {
        match slot {
            Ok(slot) => readable.push(slot),
            Err(error) => {
                unreadable += 1;
                invocation.terminal.damage(&error);
            }
        }
    }
    Ok((readable, unreadable))
}

impl From<&SlotInfo> for KeyOut {
    fn from(slot: &SlotInfo) -> Self {
        Self {
            key: slot.id.to_hex(),
            kind: slot.kind,
            created: output::time_utc(slot.created_ms),
            label: slot.label.clone(),
        }
    }
}

fn text(slots: &[SlotInfo]) -> String {
    let row = |slot: &SlotInfo| {
        vec![slot.id.short(), slot.kind.to_owned(), output::time_local(slot.created_ms), slot.label.clone()]
    };
    output::table(&["key", "kind", "created", "label"], &[], slots.iter().map(row))
}

#[cfg(test)]
mod tests {
    use repo_core::id::SlotId;

    use super::*;

    #[test]
    fn the_json_of_a_key_keeps_its_field_names() {
        let slot = SlotInfo { id: SlotId([1; 32]), kind: "passphrase", created_ms: 0, label: "first".to_owned() };
        let expected = format!(
            "{{\"key\":\"{}\",\"kind\":\"passphrase\",\"created\":\"1970-01-01T00:00:00.000Z\",\"label\":\"first\"}}\n",
            "01".repeat(32)
        );
        assert_eq!(output::json(&KeyOut::from(&slot)), expected);
    }
}
