//! `--in-place`: onto a file or device that holds another state of the disk.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use repo_core::disk::raw::in_place::InPlaceFile;
use repo_core::error::{Error, ErrorKind, ResultExt};
use repo_core::ops::open::Session;
use repo_core::ops::restore::in_place::{InPlaceOptions, InPlaceReport, restore_in_place};
use repo_core::ops::restore::{RestoreOptions, RestorePlan};
use rustix::fs::OFlags;

use super::Args;
use crate::failure::{Failure, Result};
use crate::invocation::Invocation;
use crate::select::Chosen;

/// Compares the target with the disk and writes what differs.
///
/// # Errors
/// Those of the core.
pub(super) fn write(
    args: &Args,
    target: &Path,
    session: &Session,
    chosen: Chosen<'_>,
    invocation: &Invocation,
) -> Result<InPlaceReport> {
    let tree = chosen.disk.tree;
    let file = open(target, args.dry_run)?;
    refuse_image(target, &file, args.force)?;
    let file = InPlaceFile::open(file, tree.virtual_size).context(|| super::cannot(chosen))?;
    let options = RestoreOptions { keep_going: args.keep_going };
    let plan = RestorePlan::new(session, tree, options, &invocation.terminal);
    let plan = plan.map_err(|error| super::failed(chosen, error))?;
    let options = InPlaceOptions { keep_going: args.keep_going, dry_run: args.dry_run };
    restore_in_place(session, plan, &file, options, &invocation.terminal).map_err(|error| super::failed(chosen, error))
}

fn open(target: &Path, dry_run: bool) -> Result<File> {
    let cannot = || format!("cannot open {}", target.display());
    let found = std::fs::metadata(target).map_err(|error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let failure = Failure::from(Error::io(cannot(), error));
        if missing { failure.hint("--in-place changes what is there; -o makes a new file") } else { failure }
    })?;
    let mut options = OpenOptions::new();
    options.read(true).write(!dry_run);
    if found.file_type().is_block_device() && !dry_run {
        // Refused while it is mounted or otherwise in use.
        options.custom_flags(OFlags::EXCL.bits().cast_signed());
    }
    Ok(options.open(target).context(cannot)?)
}

/// A raw disk over an image of another format would leave neither.
fn refuse_image(target: &Path, file: &File, force: bool) -> Result<()> {
    let metadata = file.metadata().context(|| format!("cannot examine {}", target.display()))?;
    if force || !metadata.is_file() {
        return Ok(());
    }
    let cookie_at = |offset: u64| {
        let mut cookie = [0; 8];
        file.read_exact_at(&mut cookie, offset).is_ok().then_some(cookie)
    };
    let (head, tail) = (cookie_at(0), metadata.len().checked_sub(512).and_then(cookie_at));
    let format = match (head, tail) {
        (Some(head), _) if head.starts_with(b"QFI\xfb") => "a qcow2 image",
        (Some(head), _) if &head == b"vhdxfile" => "a VHDX",
        (Some(cookie), _) | (_, Some(cookie)) if &cookie == b"conectix" => "a VHD",
        (_, Some(tail)) if &tail == b"conectix" => "a fixed VHD",
        _ => return Ok(()),
    };
    let text = format!("{} is {format}: only raw disks are restored in place", target.display());
    Err(Failure::new(ErrorKind::Unsupported, text)
        .hint("write a new image with -o; or, if these bytes are to become a raw disk, say so with --force"))
}
