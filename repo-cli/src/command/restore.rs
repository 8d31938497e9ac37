//! `cairn restore`.

mod image;
mod in_place;
mod sr_dir;

use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

use repo_core::disk::vhd::parent_locator::ParentName;
use repo_core::disk::vhd::plan::VhdParams;
use repo_core::disk::vhd::profile::{ParentDisk, Profile};
use repo_core::entropy::Entropy;
use repo_core::error::{Error, ErrorKind};
use repo_core::monitor::Monitor;
use repo_core::ops::open::{Access, Session};
use repo_core::ops::restore::in_place::InPlaceReport;
use repo_core::ops::restore::{self, RestoreOptions, RestorePlan, RestoreReport};
use repo_core::snapshot::NamedSnapshot;
use repo_core::units::SECTOR_LEN;
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::{Channel, Importance, Invocation};
use crate::output_file::Output;
use crate::select::{self, Chosen};
use crate::{output, when};
use image::{Format, Image};

/// Write a disk of a snapshot to a file, a block device or stdout
///
/// With the name of a VDI, its newest snapshot not later than --at is taken. A file appears under its name only once it is
/// complete. Every byte is checked; damage ends the restore unless --keep-going is given.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The name of a VDI; or a snapshot: its id, the first digits of it (at least 4), or `latest`
    #[arg(value_name = "VDI|SNAPSHOT")]
    what: String,
    /// The newest snapshot of the VDI not later than this: "2026-11-20 03:00", yesterday, "3 days ago", RFC 3339. A day
    /// without a time reaches to its end [default: the newest of all]
    #[arg(long, value_name = "WHEN")]
    at: Option<String>,
    /// Which disk, when the snapshot has several
    #[arg(long, value_name = "ID")]
    vdi: Option<String>,
    /// What to write. Not needed with --in-place (raw) and --sr-dir (vhd)
    #[arg(long, value_enum, required_unless_present_any = ["in_place", "sr_dir"])]
    format: Option<Format>,
    /// A file, - for stdout, or a block device (raw only)
    #[arg(long, short, value_name = "FILE|-|DEVICE", required_unless_present_any = ["in_place", "sr_dir"])]
    output: Option<PathBuf>,
    /// Write a differencing VHD: only the blocks that differ from this state, to be imported over it. A point in time of
    /// the same VDI, earlier or later, a snapshot, or VDI@WHEN
    #[arg(long, value_name = "WHEN|SNAPSHOT", conflicts_with_all = ["in_place", "sr_dir"])]
    delta_from: Option<String>,
    /// The file name of that state's own VHD, which will stand in the same folder: programs then open both as one disk
    #[arg(long, value_name = "NAME", requires = "delta_from")]
    parent_name: Option<String>,
    /// Change a raw file or block device that holds another state of the disk, writing only the pages that differ
    #[arg(long, value_name = "FILE|DEVICE", conflicts_with_all = ["output", "sr_dir"])]
    in_place: Option<PathBuf>,
    /// With --in-place: only tell how much would be written
    #[arg(long, requires = "in_place", conflicts_with_all = ["output", "sr_dir"])]
    dry_run: bool,
    /// Write a new disk straight into the folder of a file-based storage repository (ext, NFS); `xe sr-scan` then finds it
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["output", "force"])]
    sr_dir: Option<PathBuf>,
    /// With --sr-dir: the uuid of the new disk [default: a random one]
    #[arg(long, value_name = "UUID", requires = "sr_dir", conflicts_with_all = ["output", "in_place"])]
    uuid: Option<String>,
    /// Replace the file; or overwrite the block device, which destroys what is on it
    #[arg(long)]
    force: bool,
    /// Go on past damage: what cannot be read becomes zeros and is listed, and the exit code is 3
    #[arg(long)]
    keep_going: bool,
}

const EXAMPLES: &str = "\
Examples:
  cairn restore $VDI --format vhd -o disk.vhd
  cairn restore $VDI --at \"2026-11-20 03:00\" --format raw -o disk.raw
  cairn restore $VDI --format qcow2 -o - | xe vdi-import uuid=$NEW format=qcow2 filename=/dev/stdin
  cairn restore $VDI --at yesterday --format vhd -o - | xe vdi-import uuid=$NEW format=vhd filename=/dev/stdin
  cairn restore $VDI --at today --delta-from 2026-11-13 --format vhd -o delta.vhd
  cairn restore 9f3c0a --vdi web-01-data --format raw -o /dev/vg0/restored --force
  cairn restore $VDI --at yesterday --in-place /dev/vg0/web-01 --dry-run
  cairn restore $VDI --sr-dir /run/sr-mount/$SR";

#[derive(Debug, Serialize)]
struct Restored {
    snapshot: String,
    time: String,
    vm: Option<String>,
    vdi: String,
    virtual_size: u64,
    format: &'static str,
    output: String,
    delta_from: Option<String>,
    uuid: Option<String>,
    written_bytes: u64,
    in_place: Option<InPlaceOut>,
    holes: Vec<[u64; 2]>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct InPlaceOut {
    dry_run: bool,
    read_bytes: u64,
    zeroed_bytes: u64,
}

/// Where the disk goes, and as what.
struct Destination {
    format: Format,
    path: PathBuf,
    sr: Option<sr_dir::Place>,
}

pub(super) fn run(args: &Args, invocation: &Invocation) -> Result<Exit> {
    let started = Instant::now();
    let at_ms = args.at.as_deref().map(|at| when::latest("--at", at, &invocation.now)).transpose()?;
    let destination = Destination::of(args)?;
    let session = invocation.open_session()?;
    let (_working, all) = invocation.begin(&session, "restore", Access::Read)?;
    let chosen = select::disk(&all.snapshots, &args.what, args.vdi.as_deref(), at_ms)?;
    let base = args.delta_from.as_deref();
    let base = base.map(|name| select::delta_base(&all.snapshots, name, chosen, &invocation.now)).transpose()?;
    let mut restored = Restored::new(&destination, chosen, base);
    if args.in_place.is_some() {
        restored.set_in_place(args, in_place::write(args, &destination.path, &session, chosen, invocation)?);
    } else {
        restored.set(write(args, &destination, &session, chosen, base, invocation)?);
    }
    restored.seconds = output::rounded(started.elapsed().as_secs_f64());
    let importance = match (&restored.holes[..], args.dry_run) {
        ([], false) => Importance::Summary,
        _ => Importance::Finding,
    };
    let channel = if restored.output == "-" { Channel::Stderr } else { Channel::Stdout };
    invocation.print_to(channel, importance, &restored, || text(&restored, chosen, destination.sr.as_ref()))?;
    Ok(if restored.holes.is_empty() { Exit::Done } else { Exit::Damage })
}

impl Destination {
    fn of(args: &Args) -> Result<Self> {
        let only = |format: Format, option| match args.format {
            Some(other) if other != format => {
                Err(Failure::usage(format!("{option} writes {}, not {}", format.name(), other.name())))
            }
            _ => Ok(format),
        };
        if args.delta_from.is_some() {
            only(Format::Vhd, "--delta-from")?;
        }
        if let Some(target) = &args.in_place {
            return Ok(Self { format: only(Format::Raw, "--in-place")?, path: target.clone(), sr: None });
        }
        if let Some(folder) = &args.sr_dir {
            let format = only(Format::Vhd, "--sr-dir")?;
            let place = sr_dir::Place::new(folder, args.uuid.as_deref())?;
            return Ok(Self { format, path: place.path.clone(), sr: Some(place) });
        }
        // Both are there: the definition of the options says so.
        let (Some(format), Some(path)) = (args.format, args.output.clone()) else {
            return Err(Failure::usage("--format and -o are missing"));
        };
        Ok(Self { format, path, sr: None })
    }
}

fn write(
    args: &Args,
    destination: &Destination,
    session: &Session,
    chosen: Chosen<'_>,
    base: Option<Chosen<'_>>,
    invocation: &Invocation,
) -> Result<RestoreReport> {
    let fail = |error| failed(chosen, error);
    let options = RestoreOptions { keep_going: args.keep_going };
    let profile = profile(args, destination, base, invocation).map_err(fail)?;
    // Opened before the plan is made: what is wrong with it is said at once.
    let output = Output::open(&destination.path, args.force).map_err(|failure| failure.context(cannot(chosen)))?;
    warn_of_whole_sectors(destination.format, chosen, invocation);
    let tree = chosen.disk.tree;
    let plan = match base {
        None => RestorePlan::new(session, tree, options, &invocation.terminal),
        Some(base) => RestorePlan::delta(session, &base.disk.tree, tree, &invocation.terminal),
    };
    let plan = plan.map_err(fail)?;
    let params = params(destination, chosen, invocation).map_err(fail)?;
    let image = Image { format: destination.format, plan: &plan, params, profile };
    let (target, pending) = match output {
        Output::Stream(file) => (image.stream(file).map_err(fail)?, None),
        Output::Device(file) => (image.device(file).map_err(fail)?, None),
        Output::File(pending) => (image.file(pending.file()?).map_err(fail)?, Some(pending)),
    };
    let report = restore::restore(session, plan, target, options, &invocation.terminal).map_err(fail)?;
    if let Some(pending) = pending {
        pending.publish().map_err(|failure| failure.context(cannot(chosen)))?;
    }
    Ok(report)
}

/// Every format but raw has whole sectors: says so where that changes the size of the disk.
fn warn_of_whole_sectors(format: Format, chosen: Chosen<'_>, invocation: &Invocation) {
    let size = chosen.disk.tree.virtual_size;
    let whole = size.next_multiple_of(SECTOR_LEN as u64);
    if format != Format::Raw && whole != size {
        let text =
            format!("a {} has whole sectors of 512 bytes: its disk has {whole} bytes, not {size}", format.name());
        invocation.terminal.warn(&text);
    }
}

fn cannot(chosen: Chosen<'_>) -> String {
    format!("cannot restore VDI {} of snapshot {}", chosen.disk.vdi, chosen.snapshot.id.short())
}

fn failed(chosen: Chosen<'_>, error: Error) -> Failure {
    let kind = error.kind();
    let failure = Failure::from(error.context(cannot(chosen)));
    match kind {
        ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unauthenticated => failure
            .hint("`cairn check` names what is damaged; --keep-going restores the rest and lists what is missing"),
        _ => failure,
    }
}

/// What a new VHD says of itself. Its id is that of the snapshot's disk, so that deltas find it; a disk in a storage repository
/// will change, and gets a fresh one.
fn params(destination: &Destination, chosen: Chosen<'_>, invocation: &Invocation) -> repo_core::Result<VhdParams> {
    Ok(VhdParams {
        virtual_size: chosen.disk.tree.virtual_size,
        unique_id: match destination.sr {
            Some(_) => Entropy::system().bytes()?,
            None => chosen.snapshot.image_id(&chosen.disk.vdi),
        },
        created_unix_s: created_unix_s(chosen.snapshot, invocation),
    })
}

fn profile(
    args: &Args,
    destination: &Destination,
    base: Option<Chosen<'_>>,
    invocation: &Invocation,
) -> repo_core::Result<Profile> {
    Ok(match base {
        Some(base) => Profile::Differencing(ParentDisk {
            unique_id: base.snapshot.image_id(&base.disk.vdi),
            created_unix_s: created_unix_s(base.snapshot, invocation),
            name: args.parent_name.as_deref().map(ParentName::new).transpose()?,
        }),
        None if destination.sr.is_some() => Profile::StorageRepository,
        None => Profile::Portable,
    })
}

/// The time of a snapshot, which a VHD must not have in the future.
fn created_unix_s(named: &NamedSnapshot, invocation: &Invocation) -> u64 {
    named.snapshot.time_ms.clamp(0, invocation.now_ms().max(0)).unsigned_abs() / 1000
}

impl Restored {
    fn new(destination: &Destination, chosen: Chosen<'_>, base: Option<Chosen<'_>>) -> Self {
        let snapshot = &chosen.snapshot.snapshot;
        Self {
            snapshot: chosen.snapshot.id.to_hex(),
            time: output::time_utc(snapshot.time_ms),
            vm: snapshot.vm.clone(),
            vdi: chosen.disk.vdi.clone(),
            virtual_size: chosen.disk.tree.virtual_size,
            format: destination.format.name(),
            output: destination.path.display().to_string(),
            delta_from: base.map(|base| base.snapshot.id.to_hex()),
            uuid: destination.sr.as_ref().map(|place| place.uuid.clone()),
            written_bytes: 0,
            in_place: None,
            holes: Vec::new(),
            seconds: 0.0,
        }
    }

    fn set(&mut self, report: RestoreReport) {
        self.written_bytes = report.written_bytes;
        self.holes = pairs(&report.holes);
    }

    fn set_in_place(&mut self, args: &Args, report: InPlaceReport) {
        let InPlaceReport { read_bytes, written_bytes, zeroed_bytes, holes } = report;
        self.written_bytes = written_bytes;
        self.holes = pairs(&holes);
        self.in_place = Some(InPlaceOut { dry_run: args.dry_run, read_bytes, zeroed_bytes });
    }
}

fn pairs(ranges: &[Range<u64>]) -> Vec<[u64; 2]> {
    ranges.iter().map(|Range { start, end }| [*start, *end]).collect()
}

fn text(restored: &Restored, chosen: Chosen<'_>, sr: Option<&sr_dir::Place>) -> String {
    let to = if restored.output == "-" { "stdout" } else { &restored.output };
    let what = match &restored.in_place {
        Some(InPlaceOut { dry_run: true, .. }) => "compared with",
        Some(_) => "restored in place to",
        None if restored.delta_from.is_some() => "restored as a delta to",
        None => "restored to",
    };
    let mut text = format!("VDI {} {what} {}\n", output::printable(&restored.vdi), output::printable(to));
    let of_vm = restored.vm.as_ref().map(|vm| format!(" of {vm}")).unwrap_or_default();
    let time = output::time_local(chosen.snapshot.snapshot.time_ms);
    let mut fields = vec![("snapshot", format!("{}{of_vm}, {time}", output::short(&restored.snapshot)))];
    if let Some(base) = &restored.delta_from {
        fields.push(("delta from", output::short(base).to_owned()));
    }
    let (size, written) = (output::size(restored.virtual_size), output::size(restored.written_bytes));
    let mut speed_of = restored.written_bytes;
    match &restored.in_place {
        None => fields.push(("size", format!("{size}, {written} written, as {}", restored.format))),
        Some(InPlaceOut { dry_run, read_bytes, zeroed_bytes }) => {
            let (read, zeroed) = (output::size(*read_bytes), output::size(*zeroed_bytes));
            let verb = if *dry_run { "would be written" } else { "written" };
            fields.push(("size", format!("{size}, {read} read and compared")));
            fields.push(("changed", format!("{written} {verb}, {zeroed} zeroed")));
            speed_of = *read_bytes;
        }
    }
    let speed = output::speed(speed_of, restored.seconds);
    fields.push(("took", format!("{}, {speed}", output::seconds(restored.seconds))));
    text.push_str(&output::fields(&fields));
    if !restored.holes.is_empty() {
        let lost = restored.holes.iter().fold(0_u64, |sum, [start, end]| sum.saturating_add(end - start));
        text.push_str(&format!("{} could not be read and are zeros now:\n", output::size(lost)));
        for [start, end] in &restored.holes {
            text.push_str(&format!("  bytes {start} to {end}\n"));
        }
    }
    if let Some(place) = sr {
        text.push_str(&format!("now run: {}\n", place.scan_command()));
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;
    use crate::command::Command;
    use crate::select::tests::made;

    fn sample() -> (Restored, repo_core::snapshot::NamedSnapshot) {
        let line = ["cairn", "restore", "root", "--format", "vhd", "-o", "disk.vhd"];
        let Command::Restore(args) = Cli::try_parse_from(line).unwrap().command else { panic!("restore was typed") };
        let named = made([1, 2, 3, 4], 0, &["root"]);
        let chosen = Chosen { snapshot: &named, disk: &named.snapshot.disks[0] };
        let mut restored = Restored::new(&Destination::of(&args).unwrap(), chosen, None);
        restored.set(RestoreReport { written_bytes: 4096, holes: vec![0..4096, 8192..12288] });
        (restored, named)
    }

    #[test]
    fn the_json_of_a_restore_keeps_its_field_names_and_lists_holes_as_pairs() {
        let value = serde_json::to_value(sample().0).unwrap();
        let mut names: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        let expected = [
            "delta_from",
            "format",
            "holes",
            "in_place",
            "output",
            "seconds",
            "snapshot",
            "time",
            "uuid",
            "vdi",
            "virtual_size",
            "vm",
            "written_bytes",
        ];
        assert_eq!(names, expected);
        assert_eq!(value["holes"], serde_json::json!([[0, 4096], [8192, 12288]]));
    }

    #[test]
    fn holes_are_listed_for_people_too() {
        let (restored, named) = sample();
        let text = text(&restored, Chosen { snapshot: &named, disk: &named.snapshot.disks[0] }, None);
        assert!(text.contains("8.00 KiB could not be read and are zeros now:\n  bytes 0 to 4096\n"), "{text}");
    }

    #[test]
    fn each_destination_has_its_format_and_refuses_others() {
        let destination = |options: &[&str]| {
            let line = ["cairn", "restore", "root"].iter().chain(options);
            let Command::Restore(args) = Cli::try_parse_from(line).ok()?.command else { panic!("restore was typed") };
            Some(Destination::of(&args).map(|destination| destination.format.name()))
        };
        assert_eq!(destination(&["--in-place", "disk"]).unwrap().unwrap(), "raw");
        assert_eq!(destination(&["--format", "vhd-fixed", "-o", "-"]).unwrap().unwrap(), "vhd-fixed");
        let refused: [&[&str]; 3] = [
            &["--in-place", "disk", "--format", "vhd"],
            &["--format", "raw", "-o", "-", "--delta-from", "today"],
            &["--sr-dir", "/", "--format", "raw"],
        ];
        for options in refused {
            assert_eq!(destination(options).unwrap().err().unwrap().exit(), Exit::Usage, "{options:?}");
        }
        let not_understood: [&[&str]; 5] = [
            &["--format", "vhd"],
            &["-o", "-"],
            &["--in-place", "disk", "-o", "-", "--format", "raw"],
            &["--format", "raw", "-o", "-", "--dry-run"],
            &["--format", "raw", "-o", "-", "--uuid", "0f6c9e1a-3b2d-4c5e-8f70-112233445566"],
        ];
        for options in not_understood {
            assert!(destination(options).is_none(), "{options:?}");
        }
    }
}
