//! `cairn-server`: serves what its configuration says, and keeps the tokens.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use jiff::Timestamp;
use repo_server::Duty;
use repo_server::config::Config;
use repo_server::token::{NewToken, Role, TokenBook};

/// Keep repositories for clients: https://HOST:PORT/NAMESPACE
///
/// Without a command it serves until it is told to end.
#[derive(Parser)]
#[command(name = "cairn-server", version, args_conflicts_with_subcommands = false)]
struct Args {
    /// The configuration, a TOML file (docs/cairn-server.toml is an example)
    #[arg(long, value_name = "FILE", env = "CAIRN_SERVER_CONFIG", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Say whether the configuration is good
    Check,
    /// Print the fingerprint that clients pin
    Fingerprint,
    /// Print the OpenAPI document
    Openapi,
    /// Run the duties of namespaces now, or show what became of them
    Duties {
        #[command(subcommand)]
        command: DutiesCommand,
    },
    /// Make, list and revoke tokens; the server need not be restarted
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
}

#[derive(Subcommand)]
enum DutiesCommand {
    /// Run now what is scheduled, whether it is due or not; beside a server that runs, too
    Run {
        /// Only in this namespace
        namespace: Option<String>,
        /// Only this duty: retention, gc, capacity, or sync:LABEL
        duty: Option<Duty>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what ran last, what became of it, and what comes next
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make a token and print it, once
    Add {
        /// What it is for
        #[arg(long, value_enum)]
        role: Role,
        /// A namespace it is good for, or * for all; may be repeated
        #[arg(long = "namespace", value_name = "NAME", required = true)]
        namespaces: Vec<String>,
        /// Whom it is given to
        #[arg(long, default_value = "")]
        label: String,
        /// End it after so many days
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
        expires_days: Option<u32>,
    },
    /// List the tokens, without their secrets
    List,
    /// Refuse a token from now on
    Revoke {
        /// Its id: the 8 digits in its middle
        id: String,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    if let Some(Command::Openapi) = &args.command {
        let text = serde_json::to_string_pretty(&repo_server::description()).map_err(|error| error.to_string())?;
        println!("{text}");
        return Ok(());
    }
    let path = args.config.as_deref().ok_or("no configuration is named: give --config FILE")?;
    let config = Config::read(path)?;
    match &args.command {
        None => repo_server::serve(&config),
        Some(Command::Openapi) => Ok(()),
        Some(Command::Check) => {
            repo_server::ask_object_stores(&config)?;
            for (namespace, key) in repo_server::describe_keys(&config)? {
                println!("duties of {namespace}: {key}");
            }
            println!("{} is good: {} namespaces", path.display(), config.namespaces.len());
            Ok(())
        }
        Some(Command::Fingerprint) => {
            make_state(&config)?;
            println!("{}", repo_server::fingerprint(&config, &config.state)?);
            Ok(())
        }
        Some(Command::Duties { command }) => {
            make_state(&config)?;
            duties(command, &config)
        }
        Some(Command::Token { command }) => {
            make_state(&config)?;
            token(command, &config)
        }
    }
}

fn make_state(config: &Config) -> Result<(), String> {
    let state = &config.state;
    std::fs::create_dir_all(state).map_err(|error| format!("cannot create {}: {error}", state.display()))
}

fn duties(command: &DutiesCommand, config: &Config) -> Result<(), String> {
    let now_ms = Timestamp::now().as_millisecond();
    let (shown, json) = match command {
        DutiesCommand::Run { namespace, duty, json } => {
            (repo_server::run_duties(config, namespace.as_deref(), duty.as_ref(), now_ms)?, *json)
        }
        DutiesCommand::Show { json } => (repo_server::shown_duties(config, now_ms)?, *json),
    };
    if json {
        println!("{}", serde_json::to_string(&shown).map_err(|error| error.to_string())?);
    } else {
        print!("{}", repo_server::duties_text(&shown));
    }
    match (command, shown.iter().filter(|duty| duty.error.is_some()).count()) {
        (DutiesCommand::Run { .. }, failed @ 1..) => Err(format!("{failed} of {} duties failed", shown.len())),
        _ => Ok(()),
    }
}

fn token(command: &TokenCommand, config: &Config) -> Result<(), String> {
    let book = TokenBook::new(&config.state);
    let now_ms = Timestamp::now().as_millisecond();
    match command {
        TokenCommand::Add { role, namespaces, label, expires_days } => {
            let unknown = |name: &&String| *name != "*" && !config.namespaces.contains_key(*name);
            if let Some(name) = namespaces.iter().find(unknown) {
                return Err(format!("there is no namespace {name:?} in the configuration"));
            }
            let day_ms = 24 * 60 * 60 * 1000;
            let new = NewToken {
                label: label.clone(),
                role: *role,
                namespaces: namespaces.clone(),
                expires_ms: expires_days.map(|days| now_ms + i64::from(days) * day_ms),
            };
            let (token, shown) = book.add(&new, now_ms)?;
            println!("{shown}");
            eprintln!("token {} for {}; it is not shown again", token.id, role.name());
        }
        TokenCommand::List => {
            println!("{:8}  {:8}  {:20}  {:20}  LABEL", "ID", "ROLE", "EXPIRES", "NAMESPACES");
            for token in book.tokens()?.iter() {
                let end = token.expires_ms.and_then(|end| Timestamp::from_millisecond(end).ok());
                let end = end.map_or("never".to_owned(), |end| format!("{end:.0}"));
                let expired = if token.is_expired(now_ms) { " (over)" } else { "" };
                let (role, namespaces) = (token.role.name(), token.namespaces.join(","));
                println!(
                    "{:8}  {role:8}  {end:20}  {namespaces:20}  {}{expired}",
                    token.id,
                    token.label.escape_debug()
                );
            }
        }
        TokenCommand::Revoke { id } => {
            if !book.revoke(id)? {
                return Err(format!("there is no token {id:?}"));
            }
            eprintln!("token {id} is refused from now on");
        }
    }
    Ok(())
}
