//! `cairn key rotate`: another key in the place of the one in use.

use repo_core::error::ResultExt;
use repo_core::keys::slot::{Grant, NewSlot};
use repo_core::lease;
use serde::Serialize;

use super::{NewKey, NewKeyArgs, open_to_manage, slots};
use crate::exit::Exit;
use crate::failure::Result;
use crate::invocation::Invocation;
use crate::secret::Secret;

/// Replace the key in use by a new one
///
/// Adds the new key, opens the repository with it as a test where it is a passphrase, and removes the old one. Backups are
/// not touched: the master key stays, only what it is wrapped in changes. Whoever knew the old key and copied `keys/` before
/// can still open that copy, and so the repository: see docs/operations.md.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    new: NewKeyArgs,
    /// What `cairn key list` calls it [default: as the old one]
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  cairn key rotate
  cairn key rotate --passphrase-file old.txt --new-passphrase-file new.txt
  cairn key rotate --key-file old.key --recipient new.pub";

#[derive(Debug, Serialize)]
struct Rotated {
    added: String,
    removed: String,
}

pub(super) fn run(args: &Args, invocation: &Invocation) -> Result<Exit> {
    let repository = open_to_manage(invocation)?;
    let new_key = args.new.read()?;
    let old = repository.slot();
    let (slots, _) = slots(&repository, invocation)?;
    let old_label = slots.iter().find(|slot| slot.id == old).map(|slot| slot.label.clone()).unwrap_or_default();
    let label = args.label.as_deref().unwrap_or(&old_label);
    let new = NewSlot { lock: new_key.lock(), grant: Grant::Admin, label, created_ms: invocation.now_ms() };
    let added = repository.add_slot(&new).context(|| "cannot add the new key")?;
    if let NewKey::Passphrase(text) = new_key {
        let opened = invocation.open_repository_by(&Secret::Passphrase(text));
        if let Err(failure) = opened {
            let text = format!("the new key {} does not open the repository, and the old one stays", added.short());
            return Err(failure.context(text));
        }
    }
    let _turn = lease::turn_at_slots(&repository).context(|| "cannot remove the old key")?;
    repository.remove_slot(old).context(|| format!("key {} was added, and the old one stays", added.short()))?;
    let rotated = Rotated { added: added.to_hex(), removed: old.to_hex() };
    invocation.print_summary(&rotated, || format!("key {} replaced by {}\n", old.short(), added.short()))?;
    Ok(Exit::Done)
}
