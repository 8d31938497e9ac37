//! `cairn sync`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use repo_core::entropy::Entropy;
use repo_core::error::ResultExt;
use repo_core::id::SnapshotId;
use repo_core::ops::open::Access;
use repo_core::ops::sync::{self, Filter, SyncOptions, SyncReport, Synced};
use repo_core::repository::Repository;
use repo_core::store::remote::RemoteOptions;
use repo_core::store::{ObjectName, Store};
use repo_core::{Error, ErrorKind};
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::{Failure, Result, chain};
use crate::invocation::{Credentials, Invocation, Place, cannot_open, place_of};
use crate::passphrase::Source;
use crate::secret::{Given, Side};
use crate::server::ServerAccess;
use crate::{output, select, when};

/// Copy snapshots from one repository to another one, which gets what it lacks
///
/// With --init, TO becomes a copy of FROM, with the same keys: packs move as they are, sealed. A repository made by `cairn init`
/// has keys of its own; then what is new is read, checked and stored anew. Snapshots that TO has already are not moved again, and
/// nothing in TO is ever deleted. A sync that was broken off goes on where it was when it is run again.
///
/// --passphrase-file and CAIRN_PASSPHRASE open FROM. TO needs no passphrase when it is a copy. --token-file, --fingerprint and
/// AWS_PROFILE are for FROM, and for TO where the options for TO are not given. --repo is not used.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The repository that has the snapshots
    #[arg(value_name = "FROM", required_unless_present = "from_option")]
    from: Option<PathBuf>,
    /// The repository that gets them
    #[arg(value_name = "TO")]
    to: Option<PathBuf>,
    /// Only these snapshots: ids, their first digits (at least 4), or `latest`
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    /// The same as FROM, by name: TO comes first then
    #[arg(long = "from", value_name = "FROM")]
    from_option: Option<PathBuf>,
    /// Make TO a copy of FROM, with its keys, if there is nothing yet
    #[arg(long)]
    init: bool,
    /// Only snapshots of this VM
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,
    /// Only snapshots with this disk. May be given several times
    #[arg(long, value_name = "ID")]
    vdi: Vec<String>,
    /// Only the N newest of each disk
    #[arg(long, value_name = "N")]
    newest: Option<usize>,
    /// Only snapshots of that time or later: 2026-11-20, "3 days ago", yesterday
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Only say what would be copied
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Read the passphrase of TO from a file; one newline at its end is not part of it
    #[arg(long, value_name = "FILE")]
    to_passphrase_file: Option<PathBuf>,
    /// Open TO with the private key in a file
    #[arg(long, value_name = "FILE", conflicts_with = "to_passphrase_file")]
    to_key_file: Option<PathBuf>,
    /// Read the token for the server of TO from a file
    #[arg(long, value_name = "FILE")]
    to_token_file: Option<PathBuf>,
    /// The fingerprint of the certificate of the server of TO, or `authorities`
    #[arg(long, value_name = "FINGERPRINT", env = "CAIRN_TO_FINGERPRINT")]
    to_fingerprint: Option<String>,
    /// The profile of the AWS files for an s3:// TO: keys, region and endpoint are its, not those of the environment
    #[arg(long, value_name = "NAME", env = "CAIRN_TO_PROFILE")]
    to_profile: Option<String>,
    /// zstd level of what is stored anew under other keys, 1 (fast) to 19 (small)
    #[arg(long, value_name = "LEVEL", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=19))]
    level: i32,
}

const EXAMPLES: &str = "\
Examples:
  cairn sync /backups /mnt/offsite/backups --init
  cairn sync /backups /mnt/offsite/backups
  cairn sync /backups /mnt/usb/backups --newest 1 --dry-run
  cairn sync /backups /mnt/offsite/web --vm web-01 --since \"30 days ago\"
  cairn sync /backups /mnt/other-keys --to-passphrase-file /root/other.pass
  cairn sync /mnt/offsite/backups /backups 9f3c0a
  cairn sync /backups s3://offsite/pool1 --init
  cairn sync s3://near/pool1 s3://far/pool1 --to-profile far
  cairn sync https://here:8443/office https://there:8443/office --to-token-file /etc/cairn/there.token

Environment:
  CAIRN_TO_PASSPHRASE   the passphrase of TO, when --to-passphrase-file is not given
  CAIRN_TO_KEY_FILE     the private key file of TO, when --to-key-file is not given
  CAIRN_TO_TOKEN        the token for the server of TO, when --to-token-file is not given
  CAIRN_TO_FINGERPRINT  what --to-fingerprint says
  CAIRN_TO_PROFILE      what --to-profile says";

#[derive(Debug, Serialize)]
struct SyncOut {
    dry_run: bool,
    same_keys: bool,
    chosen_snapshots: u64,
    present_snapshots: u64,
    synced: Vec<SyncedOut>,
    failed: Vec<FailedOut>,
    unreadable_records: u64,
    moved_packs: u64,
    moved_bytes: u64,
    present_packs: u64,
    present_bytes: u64,
    read_bytes: u64,
    stored_bytes: u64,
    annotations: u64,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct SyncedOut {
    id: String,
    stored_as: Option<String>,
    time: String,
    vm: Option<String>,
    vdis: Vec<String>,
}

#[derive(Debug, Serialize)]
struct FailedOut {
    id: String,
    error: String,
}

pub(super) fn run(args: &Args, invocation: &Invocation) -> Result<Exit> {
    let started = Instant::now();
    let (from_path, to_path, names) = args.places()?;
    refuse_itself(from_path, to_path)?;
    let (from_place, to_place) = (place_of(from_path)?, place_of(to_path)?);
    let store = invocation.open_store(&from_place, &invocation.credentials)?;
    let repository = invocation.open_repository_in(&from_place, store, &invocation.given_secret())?;
    // Before FROM's index is made: a wrong passphrase of TO is told at once.
    let credentials = args.credentials(&from_place, &to_place, invocation);
    let target = args.target(&repository, &to_place, &credentials, invocation)?;
    let from = Arc::new(invocation.session_of(repository)?);
    let (working, listed) = invocation.begin(&from, "sync", Access::Read)?;
    let named = names.iter().map(|name| Ok(select::snapshot(&listed.snapshots, name)?.id));
    let options = args.options(named.collect::<Result<_>>()?, invocation)?;
    let to = target.map(|target| invocation.session_of(target)).transpose()?;
    let done = match &to {
        Some(to) if !args.dry_run => sync::sync(&from, to, &options, &invocation.terminal),
        to => sync::plan(&from, to.as_ref(), &options, &invocation.terminal),
    };
    let report = done.context(|| "cannot sync").map_err(with_hint)?;
    drop(working);
    let exit = if report.is_clean() { Exit::Done } else { Exit::Damage };
    let out = SyncOut::new(args.dry_run, report, started.elapsed().as_secs_f64());
    match args.dry_run {
        true => invocation.print(&out, || text(&out))?,
        false => invocation.print_summary(&out, || text(&out))?,
    }
    Ok(exit)
}

fn with_hint(error: Error) -> Failure {
    let kind = error.kind();
    let failure = Failure::from(error);
    match kind {
        ErrorKind::NotFound => failure.hint("`cairn snapshots` lists what FROM has"),
        _ => failure,
    }
}

/// Refuses to sync a folder with itself.
fn refuse_itself(from: &Path, to: &Path) -> Result<()> {
    match (std::fs::canonicalize(from), std::fs::canonicalize(to)) {
        (Ok(one), Ok(other)) if one == other => Err(Failure::usage("FROM and TO are the same folder")),
        _ => Ok(()),
    }
}

impl Args {
    /// FROM, TO, and the snapshots that are named.
    fn places(&self) -> Result<(&Path, &Path, Vec<&str>)> {
        let names = self.snapshots.iter().map(String::as_str);
        let (from, to, names) = match (&self.from_option, &self.from, &self.to) {
            (None, Some(from), Some(to)) => (from, to, names.collect()),
            // What stands in the places of FROM and TO is TO and the first snapshot.
            (Some(from), Some(to), first) => {
                let first = first
                    .as_ref()
                    .map(|first| first.to_str().ok_or_else(|| Failure::usage("the name of a snapshot is not UTF-8")));
                (from, to, first.transpose()?.into_iter().chain(names).collect())
            }
            _ => return Err(Failure::usage("TO is missing").hint("for example: cairn sync /backups /mnt/offsite")),
        };
        Ok((from, to, names))
    }

    fn options(&self, snapshots: BTreeSet<SnapshotId>, invocation: &Invocation) -> Result<SyncOptions> {
        let since = self.since.as_ref().map(|text| when::earliest("--since", text, &invocation.now));
        let filter = Filter {
            snapshots,
            vm: self.vm.clone(),
            vdis: self.vdi.iter().cloned().collect(),
            newest: self.newest,
            since_ms: since.transpose()?,
        };
        Ok(SyncOptions { filter, level: self.level, ..SyncOptions::new(invocation.now_ms()) })
    }

    /// TO, opened, or made when that was asked for. `None` when it would only be made.
    fn target(
        &self,
        from: &Repository,
        place: &Place<'_>,
        credentials: &Credentials,
        invocation: &Invocation,
    ) -> Result<Option<Repository>> {
        let store = match store_of(place, credentials, invocation)? {
            Some(store) => store,
            None if !self.init => {
                let text = format!("there is no repository in {place}");
                return Err(Failure::new(ErrorKind::NotFound, text).hint(
                    "--init makes a copy of FROM there, with its keys; `cairn init` makes one with keys of its own",
                ));
            }
            None if self.dry_run => return Ok(None),
            None => make_copy(from, place, credentials, invocation)?,
        };
        let given = Given {
            key_file: self.to_key_file.as_deref(),
            passphrase_file: self.to_passphrase_file.as_deref(),
            side: Side::Target,
        };
        let opened = match from.is_copied_in(&store).map_err(|error| cannot_open(place, error))? {
            true => from.open_copy(store, Entropy::system()).map_err(|error| cannot_open(place, error))?,
            false => invocation.open_repository_in(place, store, &given)?,
        };
        Ok(Some(opened))
    }

    /// What TO is reached with. A token is shown to no other server than the one it was given for.
    fn credentials(&self, from: &Place<'_>, to: &Place<'_>, invocation: &Invocation) -> Credentials {
        let other_server = matches!((from, to), (Place::Server(from), Place::Server(to)) if !from.is_same_server(to));
        let token = Source::of_token(self.to_token_file.as_deref(), Side::Target);
        let own = &invocation.credentials.server;
        let server = match other_server || token.is_given() {
            true => ServerAccess { token_file: self.to_token_file.clone(), fingerprint: None, side: Side::Target },
            false => ServerAccess { token_file: own.token_file.clone(), fingerprint: None, side: Side::Repository },
        };
        let pinned = self.to_fingerprint.clone().or_else(|| own.fingerprint.clone().filter(|_| !other_server));
        Credentials { server: ServerAccess { fingerprint: pinned, ..server }, profile: self.to_profile.clone() }
    }
}

/// The store of the repository in a place; `None` when there is no repository.
fn store_of(place: &Place<'_>, credentials: &Credentials, invocation: &Invocation) -> Result<Option<Store>> {
    if let Place::Folder(path) = place
        && !path.is_dir()
    {
        return Ok(None);
    }
    let store = invocation.open_store(place, credentials)?;
    let is_there = store.exists(ObjectName::Config).map_err(|error| cannot_open(place, error))?;
    Ok(is_there.then_some(store))
}

/// Makes an empty copy of FROM, or goes on with one that was begun.
fn make_copy(
    from: &Repository,
    place: &Place<'_>,
    credentials: &Credentials,
    invocation: &Invocation,
) -> Result<Store> {
    let cannot = || format!("cannot make a copy in {place}");
    let is_new_folder = matches!(place, Place::Folder(path) if !path.is_dir());
    if !is_new_folder {
        let begun = invocation.open_store(place, credentials)?;
        if from.is_copy_begun_in(&begun).context(cannot)? {
            from.copy_to(&begun).context(cannot)?;
            return Ok(begun);
        }
    }
    let store = match place {
        Place::Folder(path) => Store::create_local(path),
        Place::Cloud(cloud) => {
            cloud.create(&invocation.network, credentials.profile.as_deref(), RemoteOptions::default())?
        }
        Place::Server(server) => server.create(&invocation.network, &credentials.server, &invocation.terminal)?,
        Place::Sftp(sftp) => sftp.create(&invocation.network, RemoteOptions::default()),
    };
    let store = store.context(cannot)?;
    from.copy_to(&store).context(cannot)?;
    Ok(store)
}

impl SyncOut {
    fn new(dry_run: bool, report: SyncReport, seconds: f64) -> Self {
        let failed = report.failed.iter().map(|(id, error)| FailedOut { id: id.to_hex(), error: chain(error) });
        Self {
            dry_run,
            same_keys: report.same_keys,
            chosen_snapshots: report.chosen_snapshots,
            present_snapshots: report.present_snapshots,
            failed: failed.collect(),
            synced: report.synced.iter().map(SyncedOut::from).collect(),
            unreadable_records: report.unreadable_records,
            moved_packs: report.moved_packs,
            moved_bytes: report.moved_bytes,
            present_packs: report.present_packs,
            present_bytes: report.present_bytes,
            read_bytes: report.read_bytes,
            stored_bytes: report.stored_bytes,
            annotations: report.annotations,
            seconds: output::rounded(seconds),
        }
    }
}

impl From<&Synced> for SyncedOut {
    fn from(synced: &Synced) -> Self {
        Self {
            id: synced.id.to_hex(),
            stored_as: synced.stored_as.map(|id| id.to_hex()),
            time: output::time_utc(synced.time_ms),
            vm: synced.vm.clone(),
            vdis: synced.vdis.clone(),
        }
    }
}

fn text(out: &SyncOut) -> String {
    let packs =
        |count: u64, bytes: u64| format!("{} in {}", output::size(bytes), output::count(count as usize, "pack"));
    let would = |done: &'static str, planned: &'static str| if out.dry_run { planned } else { done };
    let mut text = String::new();
    if out.dry_run && !out.synced.is_empty() {
        let rows = out.synced.iter().map(|synced| {
            let vm = synced.vm.clone().unwrap_or_else(|| "-".to_owned());
            vec![output::short(&synced.id).to_owned(), synced.time.clone(), vm, synced.vdis.join(", ")]
        });
        text.push_str(&output::table(&["snapshot", "time", "vm", "vdis"], &[], rows));
    }
    let mut rows = vec![
        ("snapshots", format!("{} {}", out.synced.len(), would("copied", "would be copied"))),
        ("there before", output::count(out.present_snapshots as usize, "snapshot")),
    ];
    if !out.failed.is_empty() {
        rows.push(("damaged", format!("{} not copied", output::count(out.failed.len(), "snapshot"))));
    }
    if out.same_keys {
        rows.push((would("moved", "would be moved"), packs(out.moved_packs, out.moved_bytes)));
        rows.push(("packs there before", packs(out.present_packs, out.present_bytes)));
    } else {
        rows.push((would("read", "would be read"), output::size(out.read_bytes)));
    }
    if out.stored_bytes > 0 {
        rows.push((would("stored anew", "would be stored anew"), output::size(out.stored_bytes)));
    }
    if out.annotations > 0 {
        rows.push(("annotations", out.annotations.to_string()));
    }
    let speed = output::speed(out.moved_bytes + out.read_bytes, out.seconds);
    let took = output::seconds(out.seconds);
    rows.push(("took", if out.dry_run { took } else { format!("{took}, {speed}") }));
    text + &output::fields(&rows)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn places(line: &str) -> Option<(String, String, Vec<String>)> {
        let line = Line::try_parse_from(std::iter::once("sync").chain(line.split_whitespace())).ok()?;
        let (from, to, names) = line.args.places().ok()?;
        let names = names.into_iter().map(str::to_owned).collect();
        Some((from.display().to_string(), to.display().to_string(), names))
    }

    #[test]
    fn from_is_the_first_place_or_an_option() {
        let expected = |names: &[&str]| {
            Some(("a".to_owned(), "b".to_owned(), names.iter().map(|name| (*name).to_owned()).collect()))
        };
        assert_eq!(places("a b"), expected(&[]));
        assert_eq!(places("a b abcd ef01"), expected(&["abcd", "ef01"]));
        assert_eq!(places("--from a b"), expected(&[]));
        assert_eq!(places("b abcd ef01 --from a"), expected(&["abcd", "ef01"]));
        for line in ["", "a", "--from a"] {
            assert_eq!(places(line), None, "{line}");
        }
    }

    #[test]
    fn the_text_tells_what_moves_from_what_is_stored_anew() {
        let report = SyncReport { same_keys: true, moved_packs: 1, moved_bytes: 3 << 20, ..SyncReport::default() };
        let moved = text(&SyncOut::new(false, report, 2.0));
        assert!(moved.contains("3.00 MiB in 1 pack\n") && !moved.contains("anew"), "{moved}");
        let report = SyncReport { read_bytes: 2 << 20, stored_bytes: 1 << 20, ..SyncReport::default() };
        let planned = text(&SyncOut::new(true, report, 2.0));
        assert!(planned.contains("would be read") && planned.contains("would be stored anew"), "{planned}");
    }
}
