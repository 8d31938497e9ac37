//! `cairn init`.

use clap::ValueEnum;
use repo_core::chunk::ChunkParams;
use repo_core::config::StoreFindings;
use repo_core::entropy::Entropy;
use repo_core::error::{Error, ErrorKind};
use repo_core::ops::lock;
use repo_core::repository::{InitOptions, Repository};
use repo_core::seal::Suite;
use repo_core::store::Store;
use repo_core::store::lock::{LOCK_DAYS_MAX, LockTerms};
use repo_core::store::remote::RemoteOptions;
use repo_core::units::PAGES_PER_BLOCK;
use serde::Serialize;

use crate::cloud;
use crate::command::lock::{Mode, TermsOut, cannot_lock};
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::{Invocation, Place};
use crate::output;
use crate::secret::Secret;

/// Make a new repository
///
/// The folder named by --repo is made, or must be empty. What is chosen here holds for the life of the repository. Unless
/// --encryption none is given, everything is sealed with AES-256-GCM under a passphrase, or under the private key that
/// --key-file names: whoever loses it and every other key (see `cairn key`) loses the backups.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// How content is sealed; `none` is still checked against damage, but readable to all
    #[arg(long, value_enum, default_value_t = Encryption::Aes256Gcm)]
    encryption: Encryption,
    /// Average length of a chunk in 4 KiB pages, a power of two: fewer find more duplicates and make a larger index
    #[arg(long, value_name = "PAGES", default_value_t = 1 << ChunkParams::default().cut_bits, value_parser = parse_average)]
    average_pages: u16,
    /// Longest chunk in 4 KiB pages, at most 512 [default: 4 times the average]
    #[arg(long, value_name = "PAGES", value_parser = clap::value_parser!(u16).range(1..=PAGES_PER_BLOCK as i64))]
    longest_pages: Option<u16>,
    /// On S3, lock what is stored against everybody's deletion for so many days: see `cairn lock`
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..=i64::from(LOCK_DAYS_MAX)))]
    lock_days: Option<u16>,
    /// Who may delete all the same
    #[arg(long, value_enum, default_value_t = Mode::Governance, requires = "lock_days")]
    lock_mode: Mode,
    /// What `cairn key list` calls the first key
    #[arg(long, value_name = "TEXT", default_value = "first")]
    label: String,
}

const EXAMPLES: &str = "\
Examples:
  cairn init --repo /backup/pool1
  cairn init --repo /backup/pool1 --passphrase-file /root/.cairn-passphrase
  cairn init --repo s3://backups/pool1 --lock-days 30
  cairn init --repo /backup/lab --encryption none";

/// How content is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Encryption {
    /// Encrypted and authenticated
    #[value(name = "aes-256-gcm")]
    Aes256Gcm,
    /// Authenticated only
    None,
}

#[derive(Debug, Serialize)]
struct Made {
    repository: String,
    path: String,
    store: Option<StoreOut>,
    lock: Option<TermsOut>,
    encryption: &'static str,
    average_pages: u16,
    longest_pages: u16,
    created: String,
}

/// What the object store was found to do.
#[derive(Debug, Serialize)]
struct StoreOut {
    create_only: bool,
    read_after_write: bool,
}

impl From<StoreFindings> for StoreOut {
    fn from(found: StoreFindings) -> Self {
        Self { create_only: found.create_only, read_after_write: found.read_after_write }
    }
}

pub(super) fn run(args: &Args, invocation: &Invocation) -> Result<Exit> {
    let place = invocation.place()?;
    let mut options = InitOptions::new(args.encryption.suite(), invocation.now_ms());
    options.chunk = chunk_params(args)?;
    let secret = secret(args, invocation)?;
    let terms = args.lock_days.map(|days| LockTerms { mode: args.lock_mode.into(), days });
    let store = create_store(&place, &mut options, terms, invocation)?;
    let repository = Repository::create(store, &options, &secret.unlock(), &args.label, Entropy::system())
        .map_err(|error| cannot_make(&place, error))?;
    if let Some(terms) = terms {
        lock::establish(&repository, terms).map_err(cannot_lock)?;
    }
    let config = &repository.config;
    let made = Made {
        repository: config.id.to_hex(),
        path: place.to_string(),
        store: config.store.map(StoreOut::from),
        lock: terms.map(TermsOut::from),
        encryption: config.suite.name(),
        average_pages: args.average_pages,
        longest_pages: config.chunk.pages_max,
        created: output::time_utc(config.created_ms),
    };
    invocation.print_summary(&made, || text(&made))?;
    Ok(Exit::Done)
}

/// The empty store; of an object store it is found out first what it really does.
fn create_store(
    place: &Place<'_>,
    options: &mut InitOptions,
    lock: Option<LockTerms>,
    invocation: &Invocation,
) -> Result<Store> {
    let cannot = |error| cannot_make(place, error);
    if lock.is_some() && !matches!(place, Place::Cloud(_)) {
        return Err(Failure::usage("--lock-days takes a repository on S3"));
    }
    let network = &invocation.network;
    let create = |options| match place {
        Place::Folder(path) => Ok(Store::create_local(path)),
        Place::Cloud(cloud) => cloud.create(network, None, options),
        Place::Server(server) => server.create(network, &invocation.credentials.server, &invocation.terminal),
        Place::Sftp(sftp) => Ok(sftp.create(network, options)),
    };
    let empty = create(RemoteOptions::default())?.map_err(cannot)?;
    // What these do is known.
    if matches!(place, Place::Folder(_) | Place::Server(_)) {
        return Ok(empty);
    }
    let found = empty.probe(&Entropy::system()).map_err(cannot)?;
    if !found.read_after_write {
        let text = format!("{place} does not show at once what was stored or deleted: it cannot hold a repository");
        return Err(Failure::new(ErrorKind::Unsupported, text));
    }
    options.store = Some(found);
    if let Some(terms) = lock {
        empty.probe_lock(terms.mode, &Entropy::system()).map_err(cannot_lock)?;
    }
    let remote = RemoteOptions { honours_create: found.create_only, ..RemoteOptions::default() };
    create(remote)?.map_err(cannot)
}

fn cannot_make(place: &Place<'_>, error: Error) -> Failure {
    let kind = error.kind();
    let hint = match place {
        Place::Folder(_) => None,
        Place::Cloud(_) | Place::Server(_) | Place::Sftp(_) => cloud::hint(&error.to_string()),
    };
    let failure = Failure::from(error.context("cannot make the repository"));
    match (kind, place) {
        _ if hint.is_some() => failure.hint(hint.unwrap_or_default()),
        (ErrorKind::AlreadyExists, Place::Folder(_) | Place::Sftp(_)) => {
            failure.hint("name a folder that is empty or not there yet")
        }
        (ErrorKind::AlreadyExists, Place::Cloud(_)) => {
            failure.hint("name a prefix that is empty; what an interrupted init left there may be deleted")
        }
        (ErrorKind::AlreadyExists, Place::Server(_)) => failure.hint("name a namespace that is empty"),
        _ => failure,
    }
}

fn text(made: &Made) -> String {
    let mut text =
        format!("repository {} made in {}\n", output::short(&made.repository), output::printable(&made.path));
    text.push_str(match made.encryption {
        "none" => "  not encrypted: whoever reads the folder reads the disks\n",
        _ => "  encrypted with AES-256-GCM; nothing can be restored without a key: see cairn key recovery-sheet\n",
    });
    text.push_str("  next: cairn import disk.vhd --vdi NAME\n");
    text
}

fn chunk_params(args: &Args) -> Result<ChunkParams> {
    let cut_bits = u8::try_from(args.average_pages.trailing_zeros()).expect("a u16 has 16 bits");
    let pages_max = args.longest_pages.unwrap_or_else(|| (4 * args.average_pages).min(PAGES_PER_BLOCK as u16));
    if pages_max < args.average_pages {
        let text =
            format!("--longest-pages {pages_max} is below the average of {} (--average-pages)", args.average_pages);
        return Err(Failure::usage(text));
    }
    Ok(ChunkParams { cut_bits, pages_max })
}

fn secret(args: &Args, invocation: &Invocation) -> Result<Secret> {
    let given = invocation.given_secret();
    if args.encryption == Encryption::None && given.is_given() {
        return Err(Failure::usage("--encryption none takes no passphrase and no key, but one is given").hint(
            "unset CAIRN_PASSPHRASE and CAIRN_KEY_FILE and leave out --passphrase-file and --key-file, or leave out \
             --encryption none",
        ));
    }
    given.new_one(args.encryption.suite())
}

fn parse_average(text: &str) -> std::result::Result<u16, String> {
    match text.parse() {
        Ok(pages) if (1..=PAGES_PER_BLOCK as u16).contains(&pages) && pages.is_power_of_two() => Ok(pages),
        _ => Err(format!("a power of two from 1 to {PAGES_PER_BLOCK} is needed")),
    }
}

impl Encryption {
    fn suite(self) -> Suite {
        match self {
            Self::Aes256Gcm => Suite::Aes256Gcm,
            Self::None => Suite::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;
    use crate::command::Command;

    fn params(options: &[&str]) -> std::result::Result<ChunkParams, ()> {
        let cli = Cli::try_parse_from(["cairn", "init"].iter().chain(options)).map_err(drop)?;
        let Command::Init(args) = cli.command else { panic!("init was typed") };
        chunk_params(&args).map_err(drop)
    }

    #[test]
    fn without_options_chunks_are_those_the_core_chose() {
        assert_eq!(params(&[]), Ok(ChunkParams::default()));
    }

    #[test]
    fn pages_become_bits_and_what_the_format_does_not_hold_is_refused() {
        assert_eq!(params(&["--average-pages", "1"]), Ok(ChunkParams { cut_bits: 0, pages_max: 4 }));
        assert_eq!(params(&["--average-pages", "512"]), Ok(ChunkParams { cut_bits: 9, pages_max: 512 }));
        assert_eq!(params(&["--longest-pages", "64"]), Ok(ChunkParams { cut_bits: 3, pages_max: 64 }));
        for bad in [["--average-pages", "3"], ["--average-pages", "0"], ["--average-pages", "1024"]] {
            assert!(params(&bad).is_err(), "{bad:?}");
        }
        assert!(params(&["--longest-pages", "4"]).is_err());
        assert!(params(&["--longest-pages", "513"]).is_err());
    }
}
