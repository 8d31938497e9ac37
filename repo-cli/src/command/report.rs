//! `cairn report`.

mod chart;
mod csv;
mod html;
mod out;
mod table;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::civil::Date;
use repo_core::error::ResultExt;
use repo_core::monitor::Monitor as _;
use repo_core::ops::report::{Capacity, ReportOptions, policy, report};
use repo_core::retention::calendar::Clock;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::{Channel, Importance, Invocation};
use crate::output;
use crate::output_file::Output;
use crate::size;
use out::{CapacityOut, ReportOut};

/// Tell what is stored, for whom, at what ratio, and when the room is used up
///
/// Every stored byte is accounted for: what a VM, a VDI, a snapshot or a day alone needs is what forgetting it would free.
/// The first report after a change walks all manifests; an unchanged repository is answered at once.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// What a row of the table is of; --json and --html have all of them
    #[arg(long, value_enum, default_value_t = By::Vdi, value_name = "WHAT")]
    by: By,
    /// Only rows of this disk
    #[arg(long, value_name = "ID")]
    vdi: Option<String>,
    /// The room that the repository may take, such as 2TiB or 500GB; default what it takes and what is free beside it
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    capacity: Option<u64>,
    /// How many days back from the newest snapshot growth is looked at
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(2..=366))]
    days: u32,
    /// Show what VHD exports weigh, and what a thick LVM SR would hold, instead of the table
    #[arg(long, conflicts_with_all = ["by", "csv"])]
    exports: bool,
    /// Print the rows as CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Write everything as one web page that needs nothing else; `-` is stdout
    #[arg(long, value_name = "FILE", conflicts_with_all = ["csv", "exports"])]
    html: Option<PathBuf>,
}

/// What a row is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// The whole repository
    Repository,
    /// A VM
    Vm,
    /// A VDI
    Vdi,
    /// A snapshot
    Snapshot,
    /// A day, in the local time zone
    Day,
}

const EXAMPLES: &str = "\
Examples:
  cairn report
  cairn report --by day --capacity 2TiB
  cairn report --vdi $VDI --by snapshot
  cairn report --exports
  cairn report --by vm --csv > vms.csv
  cairn report --html /var/www/html/backup.html
  cairn report --json | jq .forecast.full";

pub(super) fn run(args: &Args, invocation: &Invocation) -> Result<Exit> {
    let repository = Arc::new(invocation.open_repository()?);
    let all = invocation.snapshots(&repository)?;
    invocation.terminal.take_signals()?;
    if let Some(vdi) = &args.vdi
        && !all.snapshots.iter().any(|named| named.snapshot.disk(vdi).is_some())
    {
        let failure = Failure::new(repo_core::ErrorKind::NotFound, format!("no snapshot has the VDI {vdi}"));
        return Err(failure.hint("`cairn report --by vdi` lists them"));
    }
    let zone = invocation.now.time_zone();
    let offset = |ms: i64| zone.to_offset(output::timestamp(ms)).seconds();
    let clock = Clock { now_ms: invocation.now_ms(), offset: &offset };
    let policies = policy::usual();
    let cache = invocation.index_folder(&repository);
    let free = || repository.store.free_bytes().map_or(Capacity::Unknown, Capacity::Free);
    let options = ReportOptions {
        clock: &clock,
        vdi: args.vdi.as_deref(),
        policies: &policies,
        capacity: args.capacity.map_or_else(free, Capacity::Total),
        window_days: args.days,
        cache: cache.as_deref(),
    };
    let report = report(&repository, &all.snapshots, &options, &invocation.terminal)
        .context(|| format!("cannot report on repository {}", repository.store.location()))?;
    let source = args.capacity.map_or(CapacityOut::FileSystem, |_| CapacityOut::Given);
    let out = ReportOut::new(&report, source, invocation.now_ms());
    print(args, invocation, &out, &repository.store.location())?;
    if report.usage.damage_count > 0 || report.usage.unreadable > 0 {
        invocation
            .terminal
            .warn("damaged packs or manifests were met: numbers of what is below them are too low; run cairn check");
        return Ok(Exit::Damage);
    }
    all.exit()
}

fn print(args: &Args, invocation: &Invocation, out: &ReportOut, location: &str) -> Result<()> {
    match &args.html {
        Some(target) => {
            let name = location.trim_end_matches('/').rsplit('/').next().unwrap_or(location);
            write_page(target, &html::page(out, name))?;
            let channel = if target == Path::new("-") { Channel::Stderr } else { Channel::Stdout };
            let text = || format!("wrote {}\n", output::printable(&target.to_string_lossy()));
            invocation.print_to(channel, Importance::Summary, out, text)
        }
        None if args.csv => {
            invocation.terminal.clear();
            output::write(std::io::stdout().lock(), csv::rows(out, args.by).as_bytes())
        }
        None if args.exports => invocation.print(out, || table::exports(out)),
        None => invocation.print(out, || table::report(out, args.by)),
    }
}

fn write_page(target: &Path, page: &str) -> Result<()> {
    let cannot = || format!("cannot write {}", target.display());
    // A page is made to be made again: what is there is replaced once the new one is complete.
    match Output::open(target, true)? {
        Output::File(pending) => {
            let mut file = pending.file()?;
            file.write_all(page.as_bytes()).and_then(|()| file.sync_all()).context(cannot)?;
            pending.publish()
        }
        Output::Stream(stream) => output::write(stream, page.as_bytes()),
        Output::Device(_) => Err(Failure::usage(format!("{} is a block device, not a file", target.display()))),
    }
}

const FIRST_DAY: Date = Date::constant(1970, 1, 1);

/// A day by its number.
fn date(day: i64) -> Date {
    let end = if day < 0 { Date::MIN } else { Date::MAX };
    jiff::Span::new().try_days(day).ok().and_then(|span| FIRST_DAY.checked_add(span).ok()).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_from_1970_and_never_out_of_range() {
        let days = [-1, 0, 20_654, i64::MIN, i64::MAX].map(|day| date(day).to_string());
        assert_eq!(days[..3], ["1969-12-31", "1970-01-01", "2026-07-20"]);
        assert_eq!(days[3..], [Date::MIN.to_string(), Date::MAX.to_string()]);
    }
}
