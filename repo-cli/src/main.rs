//! `cairn`, the command line: what is typed becomes a call of the core, what the core reports becomes text or JSON.
//!
//! Everything that prints, prompts, reads the clock or the environment is in this crate; the core does none of it.

mod args;
mod cloud;
mod command;
mod exit;
mod failure;
mod hint;
mod interrupt;
mod invocation;
mod output;
mod output_file;
mod passphrase;
mod secret;
mod select;
mod server;
#[cfg_attr(not(feature = "sftp"), path = "sftp_absent.rs")]
mod sftp;
mod size;
mod terminal;
mod traffic;
mod when;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    command::run(args::Cli::parse()).into()
}
