//! The commands, a file each: options, call of the core, result.

mod check;
mod completions;
mod diff;
mod forget;
mod gc;
mod import;
mod init;
mod key;
mod lock;
mod rebuild_index;
mod remarks;
mod report;
mod restore;
mod show;
mod snapshots;
mod sync;
mod undelete;

use clap::Subcommand;

use crate::args::Cli;
use crate::exit::Exit;
use crate::failure::Result;
use crate::invocation::Invocation;

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(init::Args),
    Import(import::Args),
    Snapshots(snapshots::Args),
    Show(show::Args),
    Restore(restore::Args),
    Tag(remarks::TagArgs),
    Note(remarks::NoteArgs),
    Protect(remarks::ProtectArgs),
    Forget(forget::Args),
    Diff(diff::Args),
    Report(report::Args),
    Check(check::Args),
    Sync(sync::Args),
    Gc(gc::Args),
    Lock(lock::Args),
    Undelete(undelete::Args),
    RebuildIndex(rebuild_index::Args),
    Key(key::Args),
    Completions(completions::Args),
}

/// Runs a command and tells how it went.
pub(crate) fn run(cli: Cli) -> Exit {
    let invocation = Invocation::new(cli.globals);
    match dispatch(cli.command, &invocation) {
        Ok(exit) => {
            invocation.terminal.clear();
            exit
        }
        Err(failure) => {
            invocation.terminal.fail(&failure);
            failure.exit()
        }
    }
}

fn dispatch(command: Command, invocation: &Invocation) -> Result<Exit> {
    match command {
        Command::Init(args) => init::run(&args, invocation),
        Command::Import(args) => import::run(args, invocation),
        Command::Snapshots(args) => snapshots::run(&args, invocation),
        Command::Show(args) => show::run(&args, invocation),
        Command::Restore(args) => restore::run(&args, invocation),
        Command::Tag(args) => remarks::tag(args, invocation),
        Command::Note(args) => remarks::note(args, invocation),
        Command::Protect(args) => remarks::protect(&args, invocation),
        Command::Forget(args) => forget::run(args, invocation),
        Command::Diff(args) => diff::run(&args, invocation),
        Command::Report(args) => report::run(&args, invocation),
        Command::Check(args) => check::run(&args, invocation),
        Command::Sync(args) => sync::run(&args, invocation),
        Command::Gc(args) => gc::run(&args, invocation),
        Command::Lock(args) => lock::run(&args, invocation),
        Command::Undelete(args) => undelete::run(&args, invocation),
        Command::RebuildIndex(args) => rebuild_index::run(&args, invocation),
        Command::Key(args) => key::run(args, invocation),
        Command::Completions(args) => completions::run(&args),
    }
}
