//! `cairn undelete`.

use repo_core::ops::undelete::{self, Fate, UndeleteOptions, UndeleteReport};
use repo_core::store::ObjectName;
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::Invocation;
use crate::{output, when};

/// Bring back what was deleted or replaced in a bucket with object lock
///
/// Such a bucket keeps what lies under a deletion or under other bytes. For a repository that somebody tried to destroy: snapshots,
/// packs and the configuration come back as they were first stored; no key is needed. Snapshots that were forgotten since then
/// come back, too: forget them again afterwards. First change the credentials that were stolen.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// What befell objects since this time; by default, for as many days as they are locked
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Key slots, too, though others are there: removed passphrases and keys open the repository again
    #[arg(long)]
    keys: bool,
    /// Only find out what would come back
    #[arg(long)]
    dry_run: bool,
}

const EXAMPLES: &str = "\
Examples:
  cairn undelete --repo s3://backups/pool1 --dry-run
  cairn undelete --repo s3://backups/pool1 --since \"2 hours ago\"";

#[derive(Debug, Serialize)]
struct Undeleted {
    dry_run: bool,
    since: String,
    objects: Vec<ObjectOut>,
    slots_left: u64,
    failed: Vec<FailedOut>,
}

#[derive(Debug, Serialize)]
struct ObjectOut {
    path: String,
    befell: &'static str,
    at: String,
}

#[derive(Debug, Serialize)]
struct FailedOut {
    path: String,
    error: String,
}

pub(super) fn run(args: &Args, invocation: &Invocation) -> Result<Exit> {
    let since_ms = args.since.as_deref().map(|since| when::earliest("--since", since, &invocation.now)).transpose()?;
    let options = UndeleteOptions { since_ms, keys: args.keys, dry_run: args.dry_run };
    let place = invocation.place()?;
    let store = invocation.open_store(&place, &invocation.credentials)?;
    invocation.terminal.take_signals()?;
    let report = undelete::undelete(&store, &options, &invocation.terminal).map_err(|error| {
        let kind = error.kind();
        let failure = Failure::from(error.context("cannot bring anything back"));
        match kind {
            repo_core::ErrorKind::Io => failure
                .hint("the credentials need s3:ListBucketVersions, s3:GetObjectVersion and s3:DeleteObjectVersion"),
            _ => failure,
        }
    })?;
    let undeleted = Undeleted::new(args.dry_run, &report);
    invocation.print_summary(&undeleted, || text(&report, args.dry_run))?;
    Ok(if report.failed.is_empty() { Exit::Done } else { Exit::Damage })
}

impl Undeleted {
    fn new(dry_run: bool, report: &UndeleteReport) -> Self {
        let objects = report.objects.iter().map(|object| ObjectOut {
            path: object.name.path(),
            befell: befell(object.fate),
            at: output::time_utc(object.at_ms),
        });
        let failed = report.failed.iter().map(|(name, error)| FailedOut { path: name.path(), error: error.chain() });
        Self {
            dry_run,
            since: output::time_utc(report.since_ms),
            objects: objects.collect(),
            slots_left: report.slots_left,
            failed: failed.collect(),
        }
    }
}

fn befell(fate: Fate) -> &'static str {
    match fate {
        Fate::Deleted => "deleted",
        Fate::Replaced => "replaced",
    }
}

fn text(report: &UndeleteReport, dry_run: bool) -> String {
    let since = output::time_local(report.since_ms);
    let mut text = match (report.objects.len(), dry_run) {
        (0, _) => format!("nothing was deleted or replaced since {since}\n"),
        (count, true) => format!("{} would come back, gone since {since} or later\n", output::count(count, "object")),
        (count, false) => {
            format!("{} came back, gone since {since} or later; next: cairn check\n", output::count(count, "object"))
        }
    };
    let rows = ["snapshots", "packs", "annotations", "configuration and keys"].map(|title| {
        let such = || report.objects.iter().filter(|object| title_of(&object.name) == title);
        let count = |fate| such().filter(|object| object.fate == fate).count();
        (title, format!("{} deleted, {} replaced", count(Fate::Deleted), count(Fate::Replaced)))
    });
    if !report.objects.is_empty() {
        text.push_str(&output::fields(&rows));
    }
    if report.slots_left > 0 {
        let slots = output::count(report.slots_left as usize, "removed key slot");
        text.push_str(&format!("left as they are: {slots}; --keys brings them back\n"));
    }
    for (name, error) in &report.failed {
        text.push_str(&format!("not brought back: {name}: {}\n", output::printable(&error.chain())));
    }
    text
}

fn title_of(name: &ObjectName) -> &'static str {
    match name {
        ObjectName::Snapshot(_) => "snapshots",
        ObjectName::Pack(_) => "packs",
        ObjectName::Annotation(_) => "annotations",
        _ => "configuration and keys",
    }
}

#[cfg(test)]
mod tests {
    use repo_core::ops::undelete;

    use super::*;

    #[test]
    fn the_text_counts_what_came_back_and_names_what_did_not() {
        let object = undelete::Undeleted { name: ObjectName::Config, fate: Fate::Deleted, at_ms: 0 };
        let mut report = UndeleteReport { objects: vec![object], slots_left: 2, ..UndeleteReport::default() };
        report.failed.push((ObjectName::Config, repo_core::Error::corrupt("no version of config is right")));
        let shown = text(&report, false);
        assert!(shown.starts_with("1 object came back") && shown.contains("1 deleted, 0 replaced"), "{shown}");
        assert!(
            shown.contains("2 removed key slots; --keys") && shown.contains("not brought back: config: no"),
            "{shown}"
        );
        let json = output::json(&Undeleted::new(true, &report));
        assert!(
            json.contains(r#""objects":[{"path":"config","befell":"deleted","at":"1970-01-01T00:00:00.000Z"}]"#),
            "{json}"
        );
        assert!(text(&UndeleteReport::default(), true).starts_with("nothing was deleted"));
    }
}
