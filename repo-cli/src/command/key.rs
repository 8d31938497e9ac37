//! `cairn key`.

mod generate;
mod rotate;
mod sheet;

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use repo_core::ErrorKind;
use repo_core::error::ResultExt;
use repo_core::id::SlotId;
use repo_core::keys::recipient::PublicKey;
use repo_core::keys::slot::{Argon2Cost, Grant, Lock, NewSlot, SlotInfo};
use repo_core::lease;
use repo_core::monitor::Monitor;
use repo_core::repository::Repository;
use repo_core::seal::Suite;
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::Invocation;
use crate::passphrase::{Passphrase, Source};
use crate::{output, secret, select};

/// Say who opens the repository, and for what: passphrases, private keys, recovery sheets
///
/// Each key has a role. `admin` does everything. `restore` does everything but hand out keys. `writer` adds snapshots and
/// cannot read content back, also not what it added itself: for hosts that make backups. `structure` sees names, sizes and
/// times, forgets and collects garbage: for a server. To change a key, `cairn key rotate`, or add a new one and remove the
/// old one. Whoever copied the repository before can still open that copy with the old one.
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
    Rotate(rotate::Args),
    Generate(generate::GenerateArgs),
    Public(generate::PublicArgs),
    Bind(generate::BindArgs),
    RecoverySheet(sheet::SheetArgs),
    VerifySheet(sheet::VerifyArgs),
}

/// Add a key: a passphrase, or somebody's public key
///
/// Opens the repository with a key of the role admin. A new passphrase is taken from --new-passphrase-file,
/// CAIRN_NEW_PASSPHRASE, or a prompt. With --recipient nothing secret passes hands: the holder of the private key opens the
/// repository with --key-file.
#[derive(Debug, clap::Args)]
#[command(after_help = ADD_EXAMPLES)]
struct AddArgs {
    #[command(flatten)]
    new: NewKeyArgs,
    /// What the key grants
    #[arg(long, value_enum, default_value_t = RoleName::Admin)]
    role: RoleName,
    /// What `cairn key list` calls it
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,
}

/// What a new key is closed with.
#[derive(Debug, clap::Args)]
struct NewKeyArgs {
    /// A public key as `cairn key generate` prints it, or a file that holds one
    #[arg(long, value_name = "KEY|FILE", conflicts_with = "new_passphrase_file")]
    recipient: Option<String>,
    /// Read the new passphrase from a file; one newline at its end is not part of it
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
}

/// A role by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoleName {
    /// Everything
    Admin,
    /// Everything but to hand out keys
    Restore,
    /// Add snapshots; content cannot be read back
    Writer,
    /// See names, sizes and times, forget, collect garbage
    Structure,
}

/// List the keys by id, role and label
#[derive(Debug, clap::Args)]
#[command(after_help = LIST_EXAMPLES)]
struct ListArgs {}

/// Remove a key; the last one of the role admin is never removed
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
  cairn key add --passphrase-file old.txt --new-passphrase-file new.txt
  cairn key add --recipient host7.pub --role writer --label host7";
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
    role: &'static str,
    recipient: Option<String>,
    created: String,
    label: String,
    in_use: bool,
}

#[derive(Debug, Serialize)]
struct Added {
    #[serde(flatten)]
    key: KeyOut,
    /// What a key file is bound to, see `cairn key bind`.
    pin: String,
}

#[derive(Debug, Serialize)]
struct Removed {
    removed: String,
}

/// What a new key is closed with, read.
enum NewKey {
    Passphrase(Passphrase),
    Recipient(PublicKey),
}

pub(super) fn run(args: Args, invocation: &Invocation) -> Result<Exit> {
    match args.action {
        Action::Add(args) => add(&args, invocation),
        Action::List(_) => list(invocation),
        Action::Remove(args) => remove(&args, invocation),
        Action::Rotate(args) => rotate::run(&args, invocation),
        Action::Generate(args) => generate::generate(&args, invocation),
        Action::Public(args) => generate::public(&args, invocation),
        Action::Bind(args) => generate::bind(&args, invocation),
        Action::RecoverySheet(args) => sheet::make(&args, invocation),
        Action::VerifySheet(args) => sheet::verify(&args, invocation),
    }
}

fn add(args: &AddArgs, invocation: &Invocation) -> Result<Exit> {
    let repository = open_to_manage(invocation)?;
    let new_key = args.new.read()?;
    let grant = args.role.grant();
    let new = NewSlot { lock: new_key.lock(), grant, label: &args.label, created_ms: invocation.now_ms() };
    let id = repository.add_slot(&new).context(|| "cannot add the key")?;
    let pin = repository.keys.pin(repository.config.id)?.to_hex();
    let added = Added { key: KeyOut::added(id, &new), pin };
    invocation.print_summary(&added, || added_text(&added))?;
    Ok(Exit::Done)
}

fn added_text(added: &Added) -> String {
    let mut text = format!("key {} added, role {}\n", output::short(&added.key.key), added.key.role);
    if added.key.recipient.is_some() {
        text.push_str(&format!("  next, where the key file is: cairn key bind FILE {}\n", added.pin));
    }
    text
}

/// Opens a repository whose keys are about to be changed.
fn open_to_manage(invocation: &Invocation) -> Result<Repository> {
    let repository = invocation.open_repository()?;
    if repository.config.suite == Suite::None {
        return Err(Failure::new(ErrorKind::Invalid, "this repository is not encrypted: it takes no further key"));
    }
    // Before anything is asked for.
    if repository.grant() != Grant::Admin {
        let text =
            format!("the key in use grants the role {} only, and keys are managed by admin", repository.grant().name());
        let failure = Failure::new(ErrorKind::Forbidden, text);
        return Err(failure.hint("give a key of the role admin with --key-file or --passphrase-file"));
    }
    Ok(repository)
}

fn list(invocation: &Invocation) -> Result<Exit> {
    let repository = invocation.open_repository()?;
    let (slots, unreadable) = slots(&repository, invocation)?;
    let out: Vec<_> = slots.iter().map(|slot| KeyOut::of(slot, repository.slot())).collect();
    invocation.print(&out, || text(&out, &slots))?;
    Ok(if unreadable == 0 { Exit::Done } else { Exit::Damage })
}

fn remove(args: &RemoveArgs, invocation: &Invocation) -> Result<Exit> {
    let repository = open_to_manage(invocation)?;
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

impl NewKeyArgs {
    fn read(&self) -> Result<NewKey> {
        match &self.recipient {
            Some(typed) => secret::public_key(typed).map(NewKey::Recipient),
            None => Source::of_new_key(self.new_passphrase_file.as_deref()).new_one().map(NewKey::Passphrase),
        }
    }
}

impl NewKey {
    fn lock(&self) -> Lock<'_> {
        match self {
            Self::Passphrase(text) => Lock::Passphrase { text, cost: Argon2Cost::default() },
            Self::Recipient(public) => Lock::Recipient(public),
        }
    }
}

impl RoleName {
    fn grant(self) -> Grant {
        match self {
            Self::Admin => Grant::Admin,
            Self::Restore => Grant::Restore,
            Self::Writer => Grant::Writer,
            Self::Structure => Grant::Structure,
        }
    }
}

impl KeyOut {
    fn of(slot: &SlotInfo, in_use: SlotId) -> Self {
        Self {
            key: slot.id.to_hex(),
            kind: slot.kind,
            role: slot.grant.name(),
            recipient: slot.recipient.map(|recipient| recipient.to_hex()),
            created: output::time_utc(slot.created_ms),
            label: slot.label.clone(),
            in_use: slot.id == in_use,
        }
    }

    fn added(id: SlotId, new: &NewSlot<'_>) -> Self {
        let (kind, recipient) = match new.lock {
            Lock::Open => ("open", None),
            Lock::Passphrase { .. } => ("passphrase", None),
            Lock::Recipient(public) => ("recipient", Some(public.recipient().to_hex())),
        };
        Self {
            key: id.to_hex(),
            kind,
            role: new.grant.name(),
            recipient,
            created: output::time_utc(new.created_ms),
            label: new.label.to_owned(),
            in_use: false,
        }
    }
}

fn text(out: &[KeyOut], slots: &[SlotInfo]) -> String {
    let row = |(out, slot): (&KeyOut, &SlotInfo)| {
        let recipient = out.recipient.as_deref().map_or(String::new(), |recipient| output::short(recipient).to_owned());
        let in_use = if out.in_use { "in use" } else { "" };
        let created = output::time_local(slot.created_ms);
        vec![
            slot.id.short(),
            out.role.to_owned(),
            out.kind.to_owned(),
            recipient,
            created,
            in_use.to_owned(),
            out.label.clone(),
        ]
    };
    let headings = ["key", "role", "kind", "recipient", "created", "", "label"];
    output::table(&headings, &[], out.iter().zip(slots).map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_of_a_key_keeps_its_field_names() {
        let slot = SlotInfo {
            id: SlotId([1; 32]),
            kind: "passphrase",
            grant: Grant::Writer,
            recipient: None,
            created_ms: 0,
            label: "first".to_owned(),
        };
        let expected = format!(
            "{{\"key\":\"{}\",\"kind\":\"passphrase\",\"role\":\"writer\",\"recipient\":null,\"created\":\
             \"1970-01-01T00:00:00.000Z\",\"label\":\"first\",\"in_use\":true}}\n",
            "01".repeat(32)
        );
        assert_eq!(output::json(&KeyOut::of(&slot, slot.id)), expected);
    }

    #[test]
    fn every_role_of_the_core_can_be_typed() {
        let typed: Vec<_> = RoleName::value_variants().iter().map(|name| name.grant()).collect();
        assert_eq!(typed, Grant::ALL);
    }
}
