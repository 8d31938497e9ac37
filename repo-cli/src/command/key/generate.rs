//! `cairn key generate`, `public` and `bind`: key pairs, made where the private half stays.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use repo_core::ErrorKind;
use repo_core::entropy::Entropy;
use repo_core::error::{Error, ResultExt};
use repo_core::id::RepositoryPin;
use repo_core::keys::key_file::PIN_MARK;
use repo_core::keys::recipient::PrivateKey;
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::Invocation;
use crate::{output, secret};

/// Make a key pair: the private key goes into a file, the public key is printed
///
/// Run it on the machine, or for the person, that is to open a repository. The private key never leaves the file; whoever has
/// an admin key hands out access with `cairn key add --recipient`. Needs no repository.
#[derive(Debug, clap::Args)]
#[command(after_help = GENERATE_EXAMPLES)]
pub(super) struct GenerateArgs {
    /// The file to make, readable by its owner only
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Print the public key of a private key file
#[derive(Debug, clap::Args)]
#[command(after_help = PUBLIC_EXAMPLES)]
pub(super) struct PublicArgs {
    /// A file that `cairn key generate` made
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Bind a private key file to a repository: with it no other one is opened to add content
///
/// Anybody who knows the public key and can write where the repository is can put another repository there, to which the key
/// fits as well. Bound to a pin, which `cairn key add` prints, it refuses that. A file may be bound to several repositories.
#[derive(Debug, clap::Args)]
#[command(after_help = BIND_EXAMPLES)]
pub(super) struct BindArgs {
    /// A file that `cairn key generate` made
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The pin of the repository, as `cairn key add` printed it
    #[arg(value_name = "PIN")]
    pin: String,
}

const BIND_EXAMPLES: &str = "\
Examples:
  cairn key bind /etc/cairn/host7.key 5d0c0ea1f52a3a64b02e2f5c5a5d8a11";
const GENERATE_EXAMPLES: &str = "\
Examples:
  cairn key generate /etc/cairn/host7.key > host7.pub
  cairn key generate ~/cairn.key";
const PUBLIC_EXAMPLES: &str = "\
Examples:
  cairn key public /etc/cairn/host7.key > host7.pub";

#[derive(Debug, Serialize)]
struct KeyPair {
    file: String,
    public_key: String,
    recipient: String,
}

#[derive(Debug, Serialize)]
struct Bound {
    file: String,
    pin: String,
}

pub(super) fn generate(args: &GenerateArgs, invocation: &Invocation) -> Result<Exit> {
    let key = PrivateKey::generate(&Entropy::system())?;
    write_new(&args.file, &key, &output::time_utc(invocation.now_ms()))?;
    print(&args.file, &key, invocation)
}

pub(super) fn public(args: &PublicArgs, invocation: &Invocation) -> Result<Exit> {
    let key = secret::read_private_key(&args.file)?;
    print(&args.file, &key, invocation)
}

pub(super) fn bind(args: &BindArgs, invocation: &Invocation) -> Result<Exit> {
    let pin = RepositoryPin::from_hex(&args.pin)?;
    secret::read_private_key(&args.file)?;
    let cannot = || format!("cannot write the key file {}", args.file.display());
    let mut file = OpenOptions::new().append(true).open(&args.file).context(cannot)?;
    // After an empty line: the rows of the key end there.
    let written = write!(file, "\n{}{}\n", PIN_MARK, pin.to_hex()).and_then(|()| file.sync_all());
    written.context(cannot)?;
    let bound = Bound { file: args.file.display().to_string(), pin: pin.to_hex() };
    invocation.print_summary(&bound, || format!("key file bound to repository pin {}\n", pin.to_hex()))?;
    Ok(Exit::Done)
}

fn print(file: &Path, key: &PrivateKey, invocation: &Invocation) -> Result<Exit> {
    let public = key.public();
    let pair = KeyPair {
        file: file.display().to_string(),
        public_key: public.to_text(),
        recipient: public.recipient().to_hex(),
    };
    invocation.print(&pair, || format!("{}\n", pair.public_key))?;
    Ok(Exit::Done)
}

/// Never over what is there: it may be somebody's only key.
fn write_new(path: &Path, key: &PrivateKey, now: &str) -> Result<()> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.map_err(|error| {
        let failure = Failure::from(Error::io(format!("cannot make the key file {}", path.display()), error));
        match failure.kind() {
            ErrorKind::AlreadyExists => failure.hint("name a file that is not there yet; a key is never overwritten"),
            _ => failure,
        }
    })?;
    let recipient = key.public().recipient();
    write!(file, "# cairn private key, made {now}, recipient {recipient}\n{}\n", *key.to_text())
        .and_then(|()| file.sync_all())
        .context(|| format!("cannot write the key file {}", path.display()))?;
    Ok(())
}
