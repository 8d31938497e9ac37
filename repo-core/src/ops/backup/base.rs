//! The snapshot that a disk is compared with; and over which it is laid when its source is a delta.

use crate::disk::{DiskSource, Undelivered};
use crate::error::{Error, ErrorKind, Result};
use crate::id::SnapshotId;
use crate::monitor::Monitor;
use crate::ops::complete::ensure_complete;
use crate::ops::open::Session;
use crate::snapshot::{Disk, NamedSnapshot};

/// Snapshots named in an error.
const LISTED_MAX: usize = 8;

/// Which snapshot of a VDI a disk is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseChoice {
    /// The newest.
    Newest,
    /// This one.
    Snapshot(SnapshotId),
}

/// The snapshot that a disk is compared with.
#[derive(Clone)]
pub(super) struct Parent {
    pub(super) id: SnapshotId,
    /// The disk as that snapshot has it.
    pub(super) disk: Disk,
    /// Whether all of it is known to be stored. Otherwise each of its chunks that is to be used again is looked up.
    pub(super) complete: bool,
}

impl Parent {
    /// The parent of disk `vdi`: the one that was chosen, or else the newest, if there is any. That of a delta fits it as
    /// far as can be told, and is complete.
    ///
    /// # Errors
    /// `NotFound` when there is no such snapshot of the VDI, `Invalid` when a delta has no base or one that cannot be its
    /// own, `Corrupt` when the base of a delta is not stored whole.
    pub(super) fn choose(
        vdi: &str,
        source: &dyn DiskSource,
        choice: Option<BaseChoice>,
        snapshots: &[NamedSnapshot],
        session: &Session,
        monitor: &dyn Monitor,
    ) -> Result<Option<Self>> {
        let delta = source.undelivered() == Undelivered::Base;
        if delta && choice.is_none() {
            return Err(Error::invalid(format!(
                "this is a delta ({}): it holds only what changed against a base, and no base is named; {}",
                source.format().name(),
                snapshots_of(vdi, snapshots)
            )));
        }
        let Some((named, disk)) = find(vdi, choice, snapshots)? else { return Ok(None) };
        if delta {
            check_fit(source, named.id, disk)?;
            ensure_complete(session, named, monitor).map_err(damaged)?;
        }
        let complete = session.index.is_complete(named.id)?;
        Ok(Some(Self { id: named.id, disk: disk.clone(), complete }))
    }
}

/// What an error met in the base of a delta means for the backup.
pub(super) fn damaged(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Interrupted => error,
        _ if error.is_loss() => error.context("the base is damaged: run cairn check, and import the disk in full"),
        _ => error.context("the base cannot be read"),
    }
}

fn find<'a>(
    vdi: &str,
    choice: Option<BaseChoice>,
    snapshots: &'a [NamedSnapshot],
) -> Result<Option<(&'a NamedSnapshot, &'a Disk)>> {
    let mut with = snapshots.iter().rev().filter_map(|named| Some((named, named.snapshot.disk(vdi)?)));
    let not_found = |what: String| Error::new(ErrorKind::NotFound, format!("{what}: {}", snapshots_of(vdi, snapshots)));
    match choice {
        None => Ok(with.next()),
        Some(BaseChoice::Newest) => with.next().map(Some).ok_or_else(|| not_found("there is no base".to_owned())),
        Some(BaseChoice::Snapshot(id)) => with
            .find(|(named, _)| named.id == id)
            .map(Some)
            .ok_or_else(|| not_found(format!("snapshot {} is no base of VDI {vdi}", id.short()))),
    }
}

/// What a user may choose from.
fn snapshots_of(vdi: &str, snapshots: &[NamedSnapshot]) -> String {
    let ids: Vec<_> = snapshots
        .iter()
        .rev()
        .filter(|named| named.snapshot.disk(vdi).is_some())
        .map(|named| named.id.short())
        .collect();
    if ids.is_empty() {
        let what = if snapshots.is_empty() { "no snapshot at all" } else { "no snapshot of this VDI" };
        return format!("the repository has {what}, import VDI {vdi} in full first");
    }
    let (listed, more) = (ids.iter().take(LISTED_MAX), ids.len().saturating_sub(LISTED_MAX));
    let listed: Vec<_> = listed.map(String::as_str).collect();
    let more = if more > 0 { format!(" and {more} older ones") } else { String::new() };
    format!("VDI {vdi} has the snapshots {}{more}, newest first", listed.join(", "))
}

/// Refuses a base that cannot be that of the delta.
fn check_fit(source: &dyn DiskSource, id: SnapshotId, base: &Disk) -> Result<()> {
    let size = source.virtual_size().ok_or_else(|| Error::internal("a delta does not know the size of its disk"))?;
    let (base_size, short) = (base.tree.virtual_size, id.short());
    if size < base_size {
        return Err(Error::invalid(format!(
            "snapshot {short} is not the base of this delta: the delta is of a disk of {size} bytes, the snapshot's has \
             {base_size}, and disks do not shrink; name another base, or import the disk in full"
        )));
    }
    let parent = source.ids().and_then(|ids| ids.parent);
    if let (Some(parent), Some(base_id)) = (parent, base.source_id)
        && parent != base_id
    {
        return Err(Error::invalid(format!(
            "snapshot {short} is not the base of this delta: the delta was made against the image with the id {}, the \
             snapshot was read from the one with the id {}; name another base, or import the disk in full",
            uuid(parent),
            uuid(base_id)
        )));
    }
    Ok(())
}

/// An id as people write it.
fn uuid(id: [u8; 16]) -> String {
    let hex: Vec<String> = id.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..4], &hex[4..6], &hex[6..8], &hex[8..10], &hex[10..]].map(<[String]>::concat).join("-")
}
