//! `cairn import`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use repo_core::disk::changed::{ChangedList, LIST_LEN_MAX};
use repo_core::disk::{self, DiskSource, FormatHint, SourceOptions, Undelivered};
use repo_core::error::{ErrorKind, ResultExt};
use repo_core::id::SnapshotId;
use repo_core::ops::backup::{self, BackupOptions, BackupReport, BaseChoice, DiskInput};
use repo_core::ops::open::Access;
use repo_core::remarks::Remarks;
use repo_core::snapshot::NamedSnapshot;
use serde::Serialize;

use super::remarks::{parse_note, parse_tag};
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::invocation::Invocation;
use crate::{output, select, when};

/// Store a disk as a new snapshot
///
/// Reads a VHD (dynamic, fixed or differencing) or a raw disk from a file, a block device, a pipe, or stdin (-), or a qcow2
/// image from a file or a block device. Only what the repository does not hold yet is stored. A differencing VHD, as
/// `xe vdi-export base=` makes it, is laid over the snapshot that --base names; the result is a full snapshot like any
/// other. The snapshot exists once this command says so, and not before: after a failure, run
/// it again; what was stored until then is not stored twice.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The disk: a file, a block device, or - for stdin
    #[arg(value_name = "FILE")]
    input: PathBuf,
    /// Name of the disk, the same for all its snapshots: the UUID of the VDI, for example
    #[arg(long, value_name = "ID", value_parser = parse_name)]
    vdi: String,
    /// The snapshot of this disk that a delta was made against, or `latest`: an id or its first digits. XAPI's exports do
    /// not tell. With a whole disk, only the snapshot it is compared with
    #[arg(long, value_name = "SNAPSHOT")]
    base: Option<String>,
    /// Name of the VM the disk belongs to
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    vm: Option<String>,
    /// The moment the content stands for, such as "2026-11-20 03:00" or an RFC 3339 time; a day is its first instant
    /// [default: now]
    #[arg(long, value_name = "WHEN")]
    time: Option<String>,
    /// What the input is; auto refuses what looks like a VHD or qcow2 and is not a sound one
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    format: Format,
    /// Read the backing files that a qcow2 image names, too. An image can name any file of this machine: for images of
    /// your own only
    #[arg(long)]
    allow_backing_file: bool,
    /// Read only what this list says has changed since the base; the rest is the base's, and a sample of it is compared. The
    /// output of `xe vdi-list-changed-blocks`, of `thin_delta`, or of `rbd diff --from-snap ... --format json`
    #[arg(long, value_name = "FILE")]
    changed: Option<PathBuf>,
    /// Compression level of zstd, -50 to 19: higher is smaller and slower
    #[arg(long, value_name = "N", default_value_t = 3, allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(-50..=19))]
    level: i32,
    /// Keep a file with the snapshot, under a name: the VM's settings, for example. May be given several times
    #[arg(long, value_name = "NAME=FILE", value_parser = parse_metadata)]
    metadata: Vec<(String, PathBuf)>,
    /// Give the snapshot a tag. May be given several times
    #[arg(long, value_name = "TAG", value_parser = parse_tag)]
    tag: Vec<String>,
    /// Write a note on the snapshot
    #[arg(long, value_name = "TEXT", value_parser = parse_note)]
    note: Option<String>,
    /// Protect the snapshot from `cairn forget`
    #[arg(long)]
    protect: bool,
}

const EXAMPLES: &str = "\
Examples:
  cairn import disk.vhd --vdi 5a3c2f0e-6f6b-4b43-9d3c-0a1b2c3d4e5f --vm web-01
  xe vdi-export uuid=$VDI format=vhd filename= | cairn import --vdi $VDI --vm web-01 -
  xe vdi-export uuid=$SNAP base=$BASE format=vhd filename= | cairn import --vdi $VDI --base latest -
  cairn import /dev/vg0/snap-web --vdi web-01-root --format raw
  cairn import --changed changed.base64 /dev/vg0/snap-web --vdi web-01-root --format raw
  cairn import disk.qcow2 --vdi db-data
  cairn import disk.raw --vdi db-data --time \"2026-11-20 03:00\" --metadata vm.json=./vm.json";

/// The most bytes of metadata that one snapshot takes.
const METADATA_LEN_MAX: u64 = 64 * 1024 * 1024;

/// What the input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Found out from the content
    Auto,
    /// VHD: dynamic, differencing or fixed
    Vhd,
    /// QEMU's format, from a file or a block device
    Qcow2,
    /// Every byte is content of the disk
    Raw,
}

#[derive(Debug, Serialize)]
struct Imported {
    snapshot: String,
    time: String,
    vm: Option<String>,
    vdi: String,
    source_format: String,
    virtual_size: u64,
    parent: Option<String>,
    logical_bytes: u64,
    allocated_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    blocks: u64,
    unchanged_blocks: u64,
    delta: bool,
    read_bytes: u64,
    changed_bytes: u64,
    seconds: f64,
}

pub(super) fn run(args: Args, invocation: &Invocation) -> Result<Exit> {
    let started = Instant::now();
    let options = options(&args, invocation)?;
    let session = invocation.open_session_to_back_up()?;
    let what = if args.input == Path::new("-") { "stdin".to_owned() } else { args.input.display().to_string() };
    let cannot = || format!("cannot import {what} as VDI {}", args.vdi);
    let fail = |error: repo_core::Error| {
        let kind = error.kind();
        let failure = Failure::from(error.context(cannot()));
        match kind {
            ErrorKind::Invalid | ErrorKind::Unsupported => {
                failure.hint("no snapshot was made; see how the disk was exported")
            }
            ErrorKind::Interrupted => failure.hint("no snapshot was made; what was stored so far is not stored twice"),
            _ => failure,
        }
    };
    // A repository that cannot be written is told before a disk is read for hours.
    drop(session.repository.store.new_object().map_err(fail)?);
    let (_working, all) = invocation.begin(&session, "import", Access::Write)?;
    let base = base(&args, &all.snapshots).map_err(|failure| failure.context(cannot()))?;
    let hint = args.changed.as_deref().map(|list| Hint::read(list, base)).transpose()?;
    let source = open_source(&args, hint.as_ref(), &what)?.map_err(fail)?;
    if base.is_none() && source.undelivered() == Undelivered::Base {
        return Err(no_base(&args, &*source, &all.snapshots).context(cannot()));
    }
    let base = base.map(|base| BaseChoice::Snapshot(base.snapshot));
    let disks = vec![DiskInput { vdi: args.vdi.clone(), source, base }];
    let report = backup::backup(&session, disks, &options, &invocation.terminal).map_err(fail)?;
    let imported = Imported::new(&report, started.elapsed().as_secs_f64());
    invocation.print_summary(&imported, || text(&imported, report.snapshot.snapshot.time_ms))?;
    Ok(Exit::Done)
}

fn options(args: &Args, invocation: &Invocation) -> Result<BackupOptions> {
    let mut options = BackupOptions::new(invocation.now_ms());
    if let Some(time) = &args.time {
        options.time_ms = when::earliest("--time", time, &invocation.now)?;
    }
    options.level = args.level;
    options.vm = args.vm.clone();
    options.metadata = read_metadata(&args.metadata)?;
    let tags = args.tag.iter().cloned().collect();
    options.remarks = Remarks { tags, note: args.note.clone(), protected: args.protect };
    Ok(options)
}

/// Opens the input. The outer error is the command line's, the inner one the input's.
fn open_source(args: &Args, hint: Option<&Hint>, what: &str) -> Result<repo_core::Result<Box<dyn DiskSource>>> {
    let mut options = SourceOptions { format: args.format.hint(), ..SourceOptions::default() };
    if let Some(folder) = std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty()) {
        options.spill_dir = folder.into();
    }
    if args.allow_backing_file {
        options.backing = Some(args.input.parent().map(Path::to_owned).unwrap_or_default());
    }
    let open = |file: File| match hint {
        Some(hint) => disk::open_hinted(file, &options, &hint.list, hint.base_size),
        None => disk::open_file(file, &options),
    };
    if args.input == Path::new("-") {
        let stdin = io::stdin();
        if stdin.is_terminal() {
            return Err(Failure::usage("stdin is a terminal, not a disk")
                .hint("xe vdi-export uuid=$VDI format=vhd filename= | cairn import --vdi $VDI -"));
        }
        let stdin = stdin.as_fd().try_clone_to_owned().context(|| "cannot open stdin")?;
        let stdin = File::from(stdin);
        return Ok(if hint.is_some() { open(stdin) } else { disk::open_stream(stdin, &options) });
    }
    if args.input.is_dir() {
        return Err(Failure::usage(format!("{what} is a folder, not a disk")));
    }
    let file = File::open(&args.input).context(|| "cannot open it");
    Ok(file.and_then(open))
}

/// A changed list, and the size of the disk that it was made against.
struct Hint {
    list: ChangedList,
    base_size: u64,
}

impl Hint {
    fn read(path: &Path, base: Option<Base>) -> Result<Self> {
        let cannot = || format!("cannot use the changed list {}", path.display());
        let mut text = Vec::new();
        let len =
            File::open(path).and_then(|file| file.take(LIST_LEN_MAX + 1).read_to_end(&mut text)).context(cannot)?;
        if len as u64 > LIST_LEN_MAX {
            return Err(Failure::usage(format!("{}: more than {}", cannot(), output::size(LIST_LEN_MAX))));
        }
        let list = ChangedList::parse(&text).context(cannot)?;
        let base = base.ok_or_else(|| Failure::usage(format!("{}: it has no base", cannot())))?;
        Ok(Self { list, base_size: base.virtual_size })
    }
}

/// The snapshot to compare with, and the size of the disk in it.
#[derive(Clone, Copy)]
struct Base {
    snapshot: SnapshotId,
    virtual_size: u64,
}

/// The base that was named; with a changed list, the newest snapshot unless another was named.
fn base(args: &Args, snapshots: &[NamedSnapshot]) -> Result<Option<Base>> {
    let Some(name) = args.base.as_deref().or(args.changed.is_some().then_some("latest")) else { return Ok(None) };
    let chosen = select::base(snapshots, name, &args.vdi)?;
    Ok(Some(Base { snapshot: chosen.snapshot.id, virtual_size: chosen.disk.tree.virtual_size }))
}

/// What is wrong with a delta that comes without a base.
fn no_base(args: &Args, source: &dyn DiskSource, snapshots: &[NamedSnapshot]) -> Failure {
    let text = format!(
        "the input is a delta ({}): it holds only what changed against a base, and no --base is given",
        source.format().name()
    );
    Failure::new(ErrorKind::Invalid, text).hint(select::bases(snapshots, &args.vdi))
}

fn read_metadata(named: &[(String, PathBuf)]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut metadata = BTreeMap::new();
    let mut room = METADATA_LEN_MAX;
    for (name, path) in named {
        let mut bytes = Vec::new();
        let cannot = || format!("cannot read metadata {name} from {}", path.display());
        File::open(path).and_then(|file| file.take(room + 1).read_to_end(&mut bytes)).context(cannot)?;
        room = room.checked_sub(bytes.len() as u64).ok_or_else(|| {
            Failure::usage(format!("metadata has more than {} in all", output::size(METADATA_LEN_MAX)))
        })?;
        if metadata.insert(name.clone(), bytes).is_some() {
            return Err(Failure::usage(format!("metadata {name} is given twice")));
        }
    }
    Ok(metadata)
}

impl Imported {
    fn new(report: &BackupReport, seconds: f64) -> Self {
        let snapshot = &report.snapshot.snapshot;
        let disk = snapshot.disks.first().expect("one disk was given");
        Self {
            snapshot: report.snapshot.id.to_hex(),
            time: output::time_utc(snapshot.time_ms),
            vm: snapshot.vm.clone(),
            vdi: disk.vdi.clone(),
            source_format: disk.source_format.clone(),
            virtual_size: disk.tree.virtual_size,
            parent: disk.parent.map(|parent| parent.to_hex()),
            logical_bytes: report.logical_bytes,
            allocated_bytes: report.allocated_bytes,
            new_bytes: report.new_bytes,
            stored_bytes: report.stored_bytes,
            blocks: report.blocks,
            unchanged_blocks: report.unchanged_blocks,
            delta: disk.reading.delta,
            read_bytes: disk.reading.read_bytes,
            changed_bytes: disk.reading.changed_bytes,
            seconds: output::rounded(seconds),
        }
    }
}

fn text(imported: &Imported, time_ms: i64) -> String {
    let of_vm = imported.vm.as_ref().map(|vm| format!(" of {}", output::printable(vm))).unwrap_or_default();
    let id = output::short(&imported.snapshot);
    let head = format!("snapshot {id}{of_vm}, {}\n", output::time_local(time_ms));
    let (allocated, new, stored) = (imported.allocated_bytes, imported.new_bytes, imported.stored_bytes);
    let mut rows = vec![
        ("disk", format!("{} ({})", imported.vdi, imported.source_format)),
        ("size", format!("{}, {} in use", output::size(imported.logical_bytes), output::size(allocated))),
    ];
    if let (true, Some(base)) = (imported.delta, &imported.parent) {
        let (read, changed) = (output::size(imported.read_bytes), output::size(imported.changed_bytes));
        rows.push((
            "delta",
            format!("{read} in blocks over snapshot {}, {changed} of them changed", output::short(base)),
        ));
    } else if imported.parent.is_some() {
        rows.push(("unchanged", format!("{} of {} blocks in use", imported.unchanged_blocks, imported.blocks)));
    }
    if new == 0 {
        rows.push(("new", "nothing: the repository holds all of it already".to_owned()));
        rows.push(("stored", output::size(stored)));
    } else {
        rows.push(("new", format!("{} (deduplication {})", output::size(new), output::ratio(allocated, new))));
        rows.push(("stored", format!("{} (compression {})", output::size(stored), output::ratio(new, stored))));
    }
    // A disk of which most was not read at all has no speed.
    let through = if imported.delta { imported.read_bytes } else { imported.logical_bytes };
    let what = if imported.delta { "delta" } else { "disk" };
    let speed = output::speed(through, imported.seconds);
    rows.push(("took", format!("{}, {speed} of {what}", output::seconds(imported.seconds))));
    head + &output::fields(&rows)
}

fn parse_name(text: &str) -> std::result::Result<String, String> {
    match text {
        "" => Err("a name is needed".to_owned()),
        _ if text.chars().any(char::is_control) => Err("control characters are not allowed".to_owned()),
        _ if text.len() > 1024 => Err("at most 1024 bytes".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

fn parse_metadata(text: &str) -> std::result::Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !file.is_empty() => Ok((parse_name(name)?, PathBuf::from(file))),
        _ => Err("NAME=FILE is needed".to_owned()),
    }
}

impl Format {
    fn hint(self) -> FormatHint {
        match self {
            Self::Auto => FormatHint::Auto,
            Self::Vhd => FormatHint::Vhd,
            Self::Qcow2 => FormatHint::Qcow2,
            Self::Raw => FormatHint::Raw,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::tests::made;

    fn sample() -> Imported {
        let report = BackupReport {
            snapshot: made([1, 2, 3, 4], 0, &["root"]),
            logical_bytes: 1 << 30,
            allocated_bytes: 400 << 20,
            new_bytes: 100 << 20,
            stored_bytes: 40 << 20,
            blocks: 250,
            unchanged_blocks: 100,
        };
        Imported::new(&report, 2.00049)
    }

    #[test]
    fn the_json_of_an_import_keeps_its_field_names() {
        let value = serde_json::to_value(sample()).unwrap();
        let names: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        for name in [
            "snapshot",
            "time",
            "vm",
            "vdi",
            "source_format",
            "virtual_size",
            "parent",
            "logical_bytes",
            "allocated_bytes",
            "new_bytes",
            "stored_bytes",
            "blocks",
            "unchanged_blocks",
            "delta",
            "read_bytes",
            "changed_bytes",
            "seconds",
        ] {
            assert!(names.contains(&name), "{name}");
        }
        assert_eq!(names.len(), 17);
        assert_eq!(value["seconds"], 2.0);
    }

    #[test]
    fn the_text_of_an_import_has_sizes_and_ratios() {
        let text = text(&sample(), 0);
        for part in [
            "snapshot 010203040000 of web-01",
            "1.00 GiB, 400 MiB in use",
            "(deduplication 4.0x)",
            "(compression 2.5x)",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn metadata_is_a_name_and_a_file() {
        assert_eq!(parse_metadata("a=b=c").unwrap(), ("a".to_owned(), PathBuf::from("b=c")));
        for bad in ["", "a", "a=", "=b", "a\n=b"] {
            assert!(parse_metadata(bad).is_err(), "{bad:?}");
        }
    }
}
