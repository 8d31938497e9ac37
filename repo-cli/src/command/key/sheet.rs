//! `cairn key recovery-sheet` and `cairn key verify-sheet`: a key on paper, and the proof that it opens the repository.
//!
//! The sheet holds a private key that was made for it; what it opens is a key slot like any other, which can be removed.

mod page;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use repo_core::ErrorKind;
use repo_core::entropy::Entropy;
use repo_core::error::ResultExt;
use repo_core::keys::key_file::KeyFile;
use repo_core::keys::recipient::PrivateKey;
use repo_core::keys::slot::{Grant, Lock, NewSlot};
use repo_core::monitor::Monitor;
use serde::Serialize;
use zeroize::Zeroizing;

use super::open_to_manage;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::Invocation;
use crate::output;
use crate::output_file::Output;
use crate::passphrase::read_all;
use crate::secret::Secret;
use page::Sheet;

/// Make a recovery sheet: a key to be printed and kept away from the repository
///
/// Adds a key of the role admin that stands on the sheet and nowhere else, as text and as a QR code, with what to do in an
/// emergency. Print it, check the paper with `cairn key verify-sheet`, and delete the file. A sheet is revoked with `cairn
/// key remove`.
#[derive(Debug, clap::Args)]
#[command(after_help = SHEET_EXAMPLES)]
pub(super) struct SheetArgs {
    /// Write a page for a browser to print, instead of text to stdout
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// What `cairn key list` calls it
    #[arg(long, value_name = "TEXT", default_value = "recovery sheet")]
    label: String,
}

/// Prove that a recovery sheet opens the repository
///
/// Reads the four rows of the key as they were typed, or what a scanner made of the QR code, from a file or stdin. Small
/// letters, missing hyphens, and O for 0 or I for 1 do no harm. A row that is mistyped is named; a key without a mistake that
/// belongs to another repository is told apart from that. No passphrase is asked for.
#[derive(Debug, clap::Args)]
#[command(after_help = VERIFY_EXAMPLES)]
pub(super) struct VerifyArgs {
    /// The file that holds the text; - is stdin
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
}

const SHEET_EXAMPLES: &str = "\
Examples:
  cairn key recovery-sheet --html /run/sheet.html
  cairn key recovery-sheet | lp
  cairn key recovery-sheet --label \"sheet in the bank\"";
const VERIFY_EXAMPLES: &str = "\
Examples:
  cairn key verify-sheet
  zbarimg --raw scan.png | cairn key verify-sheet";

#[derive(Debug, Serialize)]
struct Made<'a> {
    key: String,
    repository: String,
    created: String,
    label: &'a str,
    /// Without --html: who asks for JSON makes the sheet.
    recovery_key: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Verified {
    key: String,
    repository: String,
    role: &'static str,
    created: Option<String>,
    label: String,
}

pub(super) fn make(args: &SheetArgs, invocation: &Invocation) -> Result<Exit> {
    let repository = open_to_manage(invocation)?;
    let private = PrivateKey::generate(&Entropy::system())?;
    let public = private.public();
    let (label, created_ms) = (&args.label, invocation.now_ms());
    let new = NewSlot { lock: Lock::Recipient(&public), grant: Grant::Admin, label, created_ms };
    let id = repository.add_slot(&new).context(|| "cannot add the key of the sheet")?;
    let sheet = Sheet {
        repository: repository.config.id.to_hex(),
        place: invocation.place()?.to_string(),
        created_ms,
        key: id.short(),
        private: &private,
    };
    let text = private.to_text();
    let made = Made {
        key: id.to_hex(),
        repository: repository.config.id.to_hex(),
        created: output::time_utc(created_ms),
        label,
        recovery_key: if args.html.is_none() { Some(&text) } else { None },
    };
    let written = match &args.html {
        Some(path) => write_page(path, &sheet.html()).and_then(|()| {
            let text = || format!("key {} added; print {}, then delete it\n", id.short(), path.display());
            invocation.print_summary(&made, text)
        }),
        None => invocation.print(&made, || sheet.text()),
    };
    if let Err(failure) = written {
        // Nobody has the sheet: its key opens nothing for anybody, and is only clutter when it cannot be removed.
        let _ = repository.remove_slot(id);
        return Err(failure);
    }
    Ok(Exit::Done)
}

fn write_page(path: &Path, page: &str) -> Result<()> {
    match Output::open(path, false)? {
        Output::File(pending) => {
            let mut file = pending.file()?;
            let written = file.write_all(page.as_bytes()).and_then(|()| file.sync_all());
            written.context(|| format!("cannot write {}", path.display()))?;
            pending.publish()
        }
        Output::Stream(stream) => output::write(stream, page.as_bytes()),
        Output::Device(_) => Err(Failure::usage(format!("{} is a block device, not a file", path.display()))),
    }
}

pub(super) fn verify(args: &VerifyArgs, invocation: &Invocation) -> Result<Exit> {
    // First: a sheet of another folder must not be judged by its typing.
    invocation.place()?;
    let private = PrivateKey::from_text(&read(&args.file)?).context(|| "the sheet cannot be read")?;
    let secret = Secret::PrivateKey(Box::new(KeyFile { key: private, pins: Vec::new() }));
    let repository = invocation.open_repository_by(&secret).map_err(not_of_this_repository)?;
    let slots = repository.slots().context(|| "cannot list the keys")?;
    let slot = slots.into_iter().flatten().find(|slot| slot.id == repository.slot());
    let verified = Verified {
        key: repository.slot().to_hex(),
        repository: repository.config.id.to_hex(),
        role: repository.grant().name(),
        created: slot.as_ref().map(|slot| output::time_utc(slot.created_ms)),
        label: slot.map(|slot| slot.label).unwrap_or_default(),
    };
    if repository.grant() != Grant::Admin {
        invocation.terminal.warn(&format!("this key does not open everything: its role is {}", verified.role));
    }
    invocation.print(&verified, || {
        let (repository, key) = (output::short(&verified.repository), output::short(&verified.key));
        format!("the sheet opens repository {repository}: key {key}, role {}\n", verified.role)
    })?;
    Ok(Exit::Done)
}

fn not_of_this_repository(failure: Failure) -> Failure {
    match failure.kind() {
        ErrorKind::Unauthenticated => failure.hint(
            "the text has no typing mistake: every row fits its checksum. The sheet is of another repository, or its key \
             was removed: compare the repository id on it, and `cairn key list`",
        ),
        ErrorKind::Invalid => failure.hint("a repository without encryption needs no sheet: anybody can read it"),
        _ => failure,
    }
}

fn read(path: &Path) -> Result<Zeroizing<String>> {
    let bytes = if path == Path::new("-") {
        read_all(std::io::stdin().lock(), "stdin")?
    } else {
        let what = path.display().to_string();
        read_all(File::open(path).context(|| format!("cannot read {what}"))?, &what)?
    };
    // A scanner may add anything; what is no text is no key either, and is named as such.
    Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
}
