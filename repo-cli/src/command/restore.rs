//! `cairn restore`.

use std::io::BufWriter;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use repo_core::disk::image::file_sink::ImageFileSink;
use repo_core::disk::image::stream_sink::ImageStreamSink;
use repo_core::disk::qcow2::layout::Qcow2Layout;
use repo_core::disk::raw::file_sink::RawFileSink;
use repo_core::disk::raw::stream_sink::RawStreamSink;
use repo_core::disk::vhd::file_sink::VhdFileSink;
use repo_core::disk::vhd::plan::VhdParams;
use repo_core::disk::vhd::stream_sink::VhdStreamSink;
use repo_core::disk::vhdx::layout::{VhdxLayout, VhdxParams};
use repo_core::entropy::Entropy;
use repo_core::error::{Error, ErrorKind};
use repo_core::monitor::Monitor;
use repo_core::ops::open::Session;
use repo_core::ops::restore::{self, RestoreOptions, RestorePlan, RestoreReport, Target};
use repo_core::units::SECTOR_LEN;
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::{Importance, Invocation, Place};
use crate::output_file::Output;
use crate::select::{self, Chosen};
use crate::{output, when};

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
    /// What to write: a dynamic VHD, a qcow2, a dynamic VHDX, or the bytes of the disk
    #[arg(long, value_enum)]
    format: Format,
    /// A file, - for stdout, or a block device (raw only)
    #[arg(long, short, value_name = "FILE|-|DEVICE")]
    output: PathBuf,
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
  cairn restore 9f3c0a --vdi web-01-data --format raw -o /dev/vg0/restored --force";

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A dynamic VHD
    Vhd,
    /// A qcow2, as QEMU and newer versions of XCP-ng use it
    Qcow2,
    /// A dynamic VHDX, as Hyper-V uses it
    Vhdx,
    /// The bytes of the disk
    Raw,
}

impl Format {
    /// The name used in JSON and messages.
    fn name(self) -> &'static str {
        match self {
            Self::Vhd => "vhd",
            Self::Qcow2 => "qcow2",
            Self::Vhdx => "vhdx",
            Self::Raw => "raw",
        }
    }
}

#[derive(Debug, Serialize)]
struct Restored {
    snapshot: String,
    time: String,
    vm: Option<String>,
    vdi: String,
    virtual_size: u64,
    format: &'static str,
    output: String,
    written_bytes: u64,
    holes: Vec<[u64; 2]>,
    seconds: f64,
}

pub(super) fn run(args: &Args, invocation: &Invocation) -> Result<Exit> {
    let started = Instant::now();
    let at_ms = args.at.as_deref().map(|at| when::latest("--at", at, &invocation.now)).transpose()?;
    let session = invocation.open_session()?;
    let all = invocation.snapshots_to_read(&session)?;
    session.catch_up(&invocation.terminal)?;
    let chosen = select::disk(&all.snapshots, &args.what, args.vdi.as_deref(), at_ms)?;
    let report = write(args, &session, chosen, invocation)?;
    let restored = Restored::new(args, chosen, &report, started.elapsed().as_secs_f64());
    let importance = if report.holes.is_empty() { Importance::Summary } else { Importance::Finding };
    let place = if args.output.as_os_str() == "-" { Place::Stderr } else { Place::Stdout };
    invocation.print_to(place, importance, &restored, || text(&restored, chosen))?;
    Ok(if report.holes.is_empty() { Exit::Done } else { Exit::Damage })
}

fn write(args: &Args, session: &Session, chosen: Chosen<'_>, invocation: &Invocation) -> Result<RestoreReport> {
    let cannot = || format!("cannot restore VDI {} of snapshot {}", chosen.disk.vdi, chosen.snapshot.id.short());
    let fail = |error: Error| {
        let kind = error.kind();
        let failure = Failure::from(error.context(cannot()));
        match kind {
            ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unauthenticated => failure
                .hint("`cairn check` names what is damaged; --keep-going restores the rest and lists what is missing"),
            _ => failure,
        }
    };
    let options = RestoreOptions { keep_going: args.keep_going };
    // Opened before the plan is made: what is wrong with it is said at once.
    let output = Output::open(&args.output, args.force).map_err(|failure| failure.context(cannot()))?;
    let plan = RestorePlan::new(session, chosen.disk.tree, options, &invocation.terminal).map_err(fail)?;
    warn_of_whole_sectors(args.format, chosen, invocation);
    let make = Make { format: args.format, plan: &plan, params: params(chosen, invocation)? };
    let (target, pending) = match output {
        Output::Stream(file) => (make.stream(file).map_err(fail)?, None),
        Output::Device(file) => (make.device(file).map_err(fail)?, None),
        Output::File(pending) => (make.file(pending.file()?).map_err(fail)?, Some(pending)),
    };
    let report = restore::restore(session, plan, target, options, &invocation.terminal).map_err(fail)?;
    if let Some(pending) = pending {
        pending.publish().map_err(|failure| failure.context(cannot()))?;
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

/// Makes the writer that goes with a format and an output.
struct Make<'a> {
    format: Format,
    plan: &'a RestorePlan,
    params: VhdParams,
}

impl Make<'_> {
    fn stream(&self, file: std::fs::File) -> repo_core::Result<Target> {
        let writer = BufWriter::with_capacity(STREAM_BUFFER_LEN, file);
        Ok(Target::Stream(match self.format {
            Format::Raw => Box::new(RawStreamSink::create(writer, self.params.virtual_size)?),
            Format::Vhd => Box::new(VhdStreamSink::create(writer, &self.params, self.plan.present())?),
            Format::Qcow2 => Box::new(ImageStreamSink::create(writer, self.qcow2()?)?),
            Format::Vhdx => Box::new(ImageStreamSink::create(writer, self.vhdx()?)?),
        }))
    }

    fn device(&self, file: std::fs::File) -> repo_core::Result<Target> {
        match self.format {
            Format::Raw => self.file(file),
            other => {
                let text = format!("a block device takes a raw disk, not a {}: give --format raw", other.name());
                Err(Error::new(ErrorKind::Unsupported, text))
            }
        }
    }

    fn file(&self, file: std::fs::File) -> repo_core::Result<Target> {
        Ok(Target::File(match self.format {
            Format::Raw => Box::new(RawFileSink::create(file, self.params.virtual_size)?),
            Format::Vhd => Box::new(VhdFileSink::create(file, &self.params, self.plan.present())?),
            Format::Qcow2 => Box::new(ImageFileSink::create(file, self.qcow2()?)?),
            Format::Vhdx => Box::new(ImageFileSink::create(file, self.vhdx()?)?),
        }))
    }

    fn qcow2(&self) -> repo_core::Result<Qcow2Layout> {
        Qcow2Layout::new(self.params.virtual_size, self.plan.present())
    }

    fn vhdx(&self) -> repo_core::Result<VhdxLayout> {
        let entropy = Entropy::system();
        let params = VhdxParams {
            virtual_size: self.params.virtual_size,
            disk_id: entropy.bytes()?,
            file_write_guid: entropy.bytes()?,
            data_write_guid: entropy.bytes()?,
        };
        VhdxLayout::new(&params, self.plan.present())
    }
}

/// What a new VHD says of itself: a fresh id, and the time of the snapshot, which must not lie in the future.
fn params(chosen: Chosen<'_>, invocation: &Invocation) -> Result<VhdParams> {
    let created_ms = chosen.snapshot.snapshot.time_ms.clamp(0, invocation.now_ms().max(0));
    Ok(VhdParams {
        virtual_size: chosen.disk.tree.virtual_size,
        unique_id: Entropy::system().bytes()?,
        created_unix_s: created_ms.unsigned_abs() / 1000,
    })
}

impl Restored {
    fn new(args: &Args, chosen: Chosen<'_>, report: &RestoreReport, seconds: f64) -> Self {
        let snapshot = &chosen.snapshot.snapshot;
        Self {
            snapshot: chosen.snapshot.id.to_hex(),
            time: output::time_utc(snapshot.time_ms),
            vm: snapshot.vm.clone(),
            vdi: chosen.disk.vdi.clone(),
            virtual_size: chosen.disk.tree.virtual_size,
            format: args.format.name(),
            output: args.output.display().to_string(),
            written_bytes: report.written_bytes,
            holes: report.holes.iter().map(|Range { start, end }| [*start, *end]).collect(),
            seconds: output::rounded(seconds),
        }
    }
}

fn text(restored: &Restored, chosen: Chosen<'_>) -> String {
    let to = if restored.output == "-" { "stdout" } else { &restored.output };
    let mut text = format!("VDI {} restored to {}\n", output::printable(&restored.vdi), output::printable(to));
    let of_vm = restored.vm.as_ref().map(|vm| format!(" of {vm}")).unwrap_or_default();
    let time = output::time_local(chosen.snapshot.snapshot.time_ms);
    let written = output::size(restored.written_bytes);
    let speed = output::speed(restored.written_bytes, restored.seconds);
    text.push_str(&output::fields(&[
        ("snapshot", format!("{}{of_vm}, {time}", output::short(&restored.snapshot))),
        ("size", format!("{}, {written} in use, as {}", output::size(restored.virtual_size), restored.format)),
        ("took", format!("{}, {speed}", output::seconds(restored.seconds))),
    ]));
    if !restored.holes.is_empty() {
        let lost = restored.holes.iter().fold(0_u64, |sum, [start, end]| sum.saturating_add(end - start));
        text.push_str(&format!("{} could not be read and are zeros now:\n", output::size(lost)));
        for [start, end] in &restored.holes {
            text.push_str(&format!("  bytes {start} to {end}\n"));
        }
    }
    text
}

/// Small writes to a pipe are collected up to this many bytes; a block goes through at once.
const STREAM_BUFFER_LEN: usize = 64 * 1024;

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
        let report = RestoreReport { written_bytes: 4096, holes: vec![0..4096, 8192..12288] };
        (Restored::new(&args, chosen, &report, 1.0), named)
    }

    #[test]
    fn the_json_of_a_restore_keeps_its_field_names_and_lists_holes_as_pairs() {
        let value = serde_json::to_value(sample().0).unwrap();
        let mut names: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        let expected =
            ["format", "holes", "output", "seconds", "snapshot", "time", "vdi", "virtual_size", "vm", "written_bytes"];
        assert_eq!(names, expected);
        assert_eq!(value["holes"], serde_json::json!([[0, 4096], [8192, 12288]]));
    }

    #[test]
    fn holes_are_listed_for_people_too() {
        let (restored, named) = sample();
        let text = text(&restored, Chosen { snapshot: &named, disk: &named.snapshot.disks[0] });
        assert!(text.contains("8.00 KiB could not be read and are zeros now:\n  bytes 0 to 4096\n"), "{text}");
    }
}
