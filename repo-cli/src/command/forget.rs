//! `cairn forget`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use repo_core::ErrorKind;
use repo_core::error::ResultExt;
use repo_core::monitor::Monitor;
use repo_core::ops::forget::{self, Plan, Planned, Request, Scope, Times};
use repo_core::retention::Policy;
use repo_core::retention::calendar::{Clock, Span};
use serde::Serialize;

use super::remarks::parse_tag;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::Invocation;
use crate::{output, select};

/// Forget snapshots: those named, or all that a policy does not keep
///
/// A policy is applied to each disk by itself. Of each hour, day, week, month or year that has snapshots the newest is kept,
/// for as many of them as is asked for. What any --keep option keeps is kept. The newest snapshot of a disk and protected
/// ones are always kept, and a snapshot of several disks goes only when all of them let it go. The space comes back with
/// `cairn gc`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Ids, their first digits (at least 4), or `latest`
    #[arg(value_name = "SNAPSHOT", conflicts_with_all = ["vdi", "vm", "Policy"])]
    snapshots: Vec<String>,
    /// Apply the policy to this disk only. May be given several times
    #[arg(long, value_name = "ID")]
    vdi: Vec<String>,
    /// Apply the policy to snapshots of this VM only
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,
    #[command(flatten)]
    keep: Keep,
    /// Allow the last snapshot of a disk to be forgotten
    #[arg(long)]
    allow_last: bool,
    /// Only say what would be forgotten, and why the others are kept
    #[arg(long, short = 'n')]
    dry_run: bool,
}

#[derive(Debug, Default, clap::Args)]
#[group(id = "Policy", multiple = true)]
struct Keep {
    /// Keep the N newest
    #[arg(long, value_name = "N", help_heading = "Policy")]
    keep_last: Option<u32>,
    /// Keep the newest of each of the last N hours that have any
    #[arg(long, value_name = "N", help_heading = "Policy")]
    keep_hourly: Option<u32>,
    /// Keep the newest of each of the last N days that have any
    #[arg(long, value_name = "N", help_heading = "Policy")]
    keep_daily: Option<u32>,
    /// Keep the newest of each of the last N weeks that have any
    #[arg(long, value_name = "N", help_heading = "Policy")]
    keep_weekly: Option<u32>,
    /// Keep the newest of each of the last N months that have any
    #[arg(long, value_name = "N", help_heading = "Policy")]
    keep_monthly: Option<u32>,
    /// Keep the newest of each of the last N years that have any
    #[arg(long, value_name = "N", help_heading = "Policy")]
    keep_yearly: Option<u32>,
    /// Keep all that are at most this much older than the newest: 30d, 8w, 1y6m, 36h
    #[arg(long, value_name = "TIME", value_parser = parse_span, help_heading = "Policy")]
    keep_within: Option<Span>,
    /// Keep the newest of each hour of this time
    #[arg(long, value_name = "TIME", value_parser = parse_span, help_heading = "Policy")]
    keep_within_hourly: Option<Span>,
    /// Keep the newest of each day of this time
    #[arg(long, value_name = "TIME", value_parser = parse_span, help_heading = "Policy")]
    keep_within_daily: Option<Span>,
    /// Keep the newest of each week of this time
    #[arg(long, value_name = "TIME", value_parser = parse_span, help_heading = "Policy")]
    keep_within_weekly: Option<Span>,
    /// Keep the newest of each month of this time
    #[arg(long, value_name = "TIME", value_parser = parse_span, help_heading = "Policy")]
    keep_within_monthly: Option<Span>,
    /// Keep the newest of each year of this time
    #[arg(long, value_name = "TIME", value_parser = parse_span, help_heading = "Policy")]
    keep_within_yearly: Option<Span>,
    /// Keep those with this tag. May be given several times
    #[arg(long, value_name = "TAG", value_parser = parse_tag, help_heading = "Policy")]
    keep_tag: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  cairn forget --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run
  cairn forget --vm web-01 --keep-within 14d --keep-within-weekly 1y --keep-tag gold
  cairn forget 9f3c0a 41c09e
  cairn forget 9f3c0a --allow-last";

#[derive(Debug, Serialize)]
struct Forgotten {
    dry_run: bool,
    forgotten: usize,
    kept: usize,
    snapshots: Vec<PlannedOut>,
}

#[derive(Debug, Serialize)]
struct PlannedOut {
    id: String,
    time: String,
    vm: Option<String>,
    forget: bool,
    disks: Vec<DiskOut>,
}

#[derive(Debug, Serialize)]
struct DiskOut {
    vdi: String,
    keep: bool,
    reasons: Vec<String>,
}

pub(super) fn run(args: Args, invocation: &Invocation) -> Result<Exit> {
    let repository = invocation.open_repository()?;
    invocation.terminal.take_signals()?;
    let request = match args.snapshots.is_empty() {
        true => Request::Policy { policy: args.policy()?, scope: args.scope(), times: Times::Recorded },
        false => {
            let all = invocation.snapshots(&repository)?;
            let named = args.snapshots.iter().map(|name| Ok(select::snapshot(&all.snapshots, name)?.id));
            Request::Named { snapshots: named.collect::<Result<_>>()?, allow_last: args.allow_last }
        }
    };
    let zone = TimeZone::system();
    let offset = |ms: i64| offset_at(&zone, ms);
    let clock = Clock { now_ms: invocation.now_ms(), offset: &offset };
    let planned = match args.dry_run {
        true => forget::plan(&repository, &request, &clock),
        false => forget::forget(&repository, &request, &clock, &invocation.terminal),
    };
    let plan = planned.context(|| "cannot forget").map_err(|error| with_hint(error, &request))?;
    let out = Forgotten::new(&plan, args.dry_run);
    match args.dry_run {
        true => invocation.print(&out, || text(&plan, &out))?,
        false => invocation.print_summary(&out, || text(&plan, &out))?,
    }
    let mut exit = Exit::Done;
    for (_, error) in plan.unreadable.iter().filter(|_| args.snapshots.is_empty()) {
        if error.is_damage() {
            invocation.terminal.damage(error);
            exit = Exit::Damage;
        }
    }
    Ok(exit)
}

/// Seconds that local time is ahead of UTC. What the calendar does not reach has the offset of its end.
fn offset_at(zone: &TimeZone, ms: i64) -> i32 {
    let end = if ms < 0 { Timestamp::MIN } else { Timestamp::MAX };
    zone.to_offset(Timestamp::from_millisecond(ms).unwrap_or(end)).seconds()
}

fn with_hint(error: repo_core::Error, request: &Request) -> Failure {
    let kind = error.kind();
    let failure = Failure::from(error);
    match (kind, request) {
        (ErrorKind::Invalid, Request::Named { .. }) => failure.hint(
            "`cairn protect SNAPSHOT --off` takes a protection away; --allow-last allows the last snapshot of a disk",
        ),
        (ErrorKind::NotFound, _) => failure.hint("`cairn snapshots` lists what there is"),
        (ErrorKind::Corrupt | ErrorKind::Unauthenticated, _) => {
            failure.hint("nothing was forgotten; `cairn check --repair` moves damaged annotations to quarantine")
        }
        _ => failure,
    }
}

impl Args {
    fn policy(&self) -> Result<Policy> {
        let policy = Policy { allow_last: self.allow_last, ..self.keep.policy() };
        if policy.is_empty() {
            let failure = Failure::usage("nothing says what to keep, and no snapshot is named");
            return Err(failure.hint("for example: cairn forget --keep-daily 7 --keep-weekly 4 --dry-run"));
        }
        Ok(policy)
    }

    fn scope(&self) -> Scope {
        Scope { vdis: self.vdi.iter().cloned().collect(), vm: self.vm.clone() }
    }
}

impl Keep {
    fn policy(&self) -> Policy {
        let counts =
            [self.keep_last, self.keep_hourly, self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly];
        let spans = [
            self.keep_within,
            self.keep_within_hourly,
            self.keep_within_daily,
            self.keep_within_weekly,
            self.keep_within_monthly,
            self.keep_within_yearly,
        ];
        Policy::of(counts, spans, self.keep_tag.iter().cloned().collect())
    }
}

fn parse_span(text: &str) -> std::result::Result<Span, String> {
    text.parse().map_err(|error: repo_core::Error| error.to_string())
}

impl Forgotten {
    fn new(plan: &Plan, dry_run: bool) -> Self {
        let forgotten = plan.forgotten().count();
        Self {
            dry_run,
            forgotten,
            kept: plan.snapshots.len() - forgotten,
            snapshots: plan.snapshots.iter().map(PlannedOut::from).collect(),
        }
    }
}

impl From<&Planned> for PlannedOut {
    fn from(planned: &Planned) -> Self {
        let disks = planned.disks.iter().map(|disk| DiskOut {
            vdi: disk.vdi.clone(),
            keep: !disk.reasons.is_empty(),
            reasons: disk.reasons.clone(),
        });
        Self {
            id: planned.id.to_hex(),
            time: output::time_utc(planned.time_ms),
            vm: planned.vm.clone(),
            forget: planned.is_forgotten(),
            disks: disks.collect(),
        }
    }
}

fn text(plan: &Plan, out: &Forgotten) -> String {
    let mut text = String::new();
    if out.dry_run && !plan.snapshots.is_empty() {
        let headings = ["", "snapshot", "time", "vm", "vdi", "kept for"];
        text.push_str(&output::table(&headings, &[], plan.snapshots.iter().flat_map(rows)));
    }
    let (would, kept) = (if out.dry_run { "would be forgotten" } else { "forgotten" }, out.kept);
    text.push_str(&format!("{} {would}, {kept} kept\n", output::count(out.forgotten, "snapshot")));
    if !out.dry_run && out.forgotten > 0 {
        text.push_str("the space comes back with `cairn gc`\n");
    }
    text
}

/// A row a disk; what is of the snapshot stands in the first.
fn rows(planned: &Planned) -> Vec<Vec<String>> {
    let verdict = if planned.is_forgotten() { "forget" } else { "keep" };
    let mut rows = Vec::new();
    for (at, disk) in planned.disks.iter().enumerate() {
        let once = |text: String| if at == 0 { text } else { String::new() };
        let reasons = if disk.reasons.is_empty() { "-".to_owned() } else { disk.reasons.join("; ") };
        rows.push(vec![
            once(verdict.to_owned()),
            once(planned.id.short()),
            once(output::time_local(planned.time_ms)),
            once(planned.vm.clone().unwrap_or_else(|| "-".to_owned())),
            disk.vdi.clone(),
            reasons,
        ]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use proptest::prelude::*;
    use repo_core::retention::calendar::{Local, Period};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> std::result::Result<Args, clap::Error> {
        Line::try_parse_from(std::iter::once("forget").chain(line.split_whitespace())).map(|line| line.args)
    }

    #[test]
    fn a_policy_with_nothing_in_it_is_wrong_usage() {
        for line in ["", "--vdi a", "--keep-daily 0 --keep-last 0", "--allow-last", "--dry-run"] {
            assert_eq!(parse(line).unwrap().policy().unwrap_err().exit(), Exit::Usage, "{line}");
        }
        assert_eq!(parse("--keep-daily 7 --keep-within 3d").unwrap().policy().unwrap().rules.len(), 2);
        assert!(parse("--keep-tag gold").unwrap().policy().is_ok());
    }

    #[test]
    fn a_snapshot_and_a_policy_do_not_go_together() {
        for line in ["abcd --keep-last 1", "abcd --vdi x", "abcd --vm x", "abcd --keep-tag a", "--keep-last -1"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("abcd ef01 --allow-last").is_ok());
    }

    proptest! {
        /// The calendar of another library agrees, in zones with and without summer time.
        #[test]
        fn periods_are_those_of_the_calendar(
            ms in -60_000_000_000_000_i64..60_000_000_000_000, zone in prop::sample::select(&ZONES[..]),
        ) {
            let zone = TimeZone::get(zone).unwrap();
            let clock = Clock { now_ms: 0, offset: &|ms| offset_at(&zone, ms) };
            let local = Local::at(ms, &clock);
            let expected = Timestamp::from_millisecond(ms).unwrap().to_zoned(zone.clone());
            let week = expected.date().iso_week_date();
            let names = [Period::Hour, Period::Day, Period::Week, Period::Month, Period::Year].map(|p| local.name(p));
            let format = |format: &str| expected.strftime(format).to_string();
            prop_assert_eq!(names, [
                format("%Y-%m-%d %H:00"),
                format("%Y-%m-%d"),
                format!("{:04}-W{:02}", week.year(), week.week()),
                format("%Y-%m"),
                format("%Y"),
            ]);
        }

        #[test]
        fn a_span_back_is_that_of_the_calendar(
            ms in 0..2_000_000_000_000_i64, months in 0..40_u32, days in 0..400_u32, hours in 0..100_u32,
        ) {
            let clock = Clock { now_ms: 0, offset: &|_| 0 };
            let found = Span { months, days, hours }.before(ms, &clock);
            let from = Timestamp::from_millisecond(ms).unwrap().to_zoned(TimeZone::UTC);
            let span = |span: jiff::Span| span;
            let back = from.checked_sub(span(jiff::Span::new().months(i64::from(months)))).unwrap();
            let back = back.checked_sub(span(jiff::Span::new().days(i64::from(days)).hours(i64::from(hours)))).unwrap();
            prop_assert_eq!(found, back.timestamp().as_millisecond());
        }
    }

    const ZONES: [&str; 4] = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"];
}
