//! The command line as typed: global options and the command. Each command's own options stand beside its code.

use std::path::PathBuf;

use clap::{Args, Parser};

use crate::command::Command;
use crate::size;

/// Deduplicating, encrypted backups of XenServer and XCP-ng virtual disks.
///
/// A repository is a folder, a place in an object store or on a cairn-server, made by `cairn init`. `cairn import` stores a disk as a snapshot, `cairn restore` gives it
/// back bit for bit, as VHD or raw.
#[derive(Debug, Parser)]
#[command(name = "cairn", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Environment:
  CAIRN_REPO            the repository, when --repo is not given
  CAIRN_PASSPHRASE      the passphrase, when --passphrase-file is not given
  CAIRN_KEY_FILE        the private key file, when neither --key-file nor --passphrase-file is given
  CAIRN_TOKEN           the token for a cairn-server, when --token-file is not given
  CAIRN_SSH             what sftp:// is reached with instead of ssh: a program and its first arguments
  CAIRN_FINGERPRINT     the certificate of a cairn-server, when --fingerprint is not given
  XDG_CONFIG_HOME       where the certificates of servers are remembered (default ~/.config)
  XDG_CACHE_HOME        where the index of a read-only or remote repository is kept (default ~/.cache)
  AWS_..., AZURE_..., GOOGLE_...   how an object store is reached: keys, region, endpoint, profile
  TZ                    the time zone of times without one

Exit codes:
  0 done   1 failed   2 wrong usage   3 finished, with damage found   4 busy or locked   130 interrupted";

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Globals {
    /// The repository: a folder, or s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX,
    /// https://HOST:PORT/NAMESPACE of a cairn-server
    #[arg(long, global = true, env = "CAIRN_REPO", value_name = "PLACE", help_heading = "Global options")]
    pub(crate) repo: Option<PathBuf>,
    /// Read the passphrase from a file; one newline at its end is not part of it
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Open the repository with the private key in a file (see `cairn key generate`) instead of a passphrase
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        conflicts_with = "passphrase_file",
        help_heading = "Global options"
    )]
    pub(crate) key_file: Option<PathBuf>,
    /// Read the token for a cairn-server from a file
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(crate) token_file: Option<PathBuf>,
    /// Take only this certificate of a cairn-server (sha256:...), or `authorities` for those this machine trusts
    #[arg(long, global = true, env = "CAIRN_FINGERPRINT", value_name = "SHA256", help_heading = "Global options")]
    pub(crate) fingerprint: Option<String>,
    /// Send at most so many bytes a second to an object store, such as 5MiB
    #[arg(long, global = true, value_name = "RATE", value_parser = size::parse, help_heading = "Global options")]
    pub(crate) limit_upload: Option<u64>,
    /// Receive at most so many bytes a second from an object store
    #[arg(long, global = true, value_name = "RATE", value_parser = size::parse, help_heading = "Global options")]
    pub(crate) limit_download: Option<u64>,
    /// Try a request to an object store again for so long while the store does not answer
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60, help_heading = "Global options")]
    pub(crate) retry_for: u32,
    /// Print the result as JSON, and warnings and errors as one JSON object a line
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
    /// Print no progress and no summary: only lists, warnings and errors
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub(crate) quiet: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_in_its_help() {
        fn check(command: &clap::Command) {
            if command.has_subcommands() {
                command.get_subcommands().for_each(check);
            } else {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.starts_with("Examples:\n"), "{}", command.get_name());
            }
        }
        Cli::command().get_subcommands().for_each(check);
    }

    #[test]
    fn global_options_are_taken_before_and_after_the_command() {
        for line in [["cairn", "--repo", "r", "--json", "snapshots"], ["cairn", "snapshots", "--json", "--repo", "r"]] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.globals.repo, Some(PathBuf::from("r")));
            assert!(cli.globals.json);
        }
    }

    #[test]
    fn wrong_usage_has_the_exit_code_in_the_documents() {
        let error = Cli::try_parse_from(["cairn", "import"]).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(crate::exit::Exit::Usage.code()));
    }
}
