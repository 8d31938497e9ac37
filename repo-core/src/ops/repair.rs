//! Repair: what is damaged moves to the folder `quarantine`, and nothing is deleted.
//!
//! What a damaged pack still holds is first copied into new packs. Then the pack moves away, the index no longer finds what it
//! held, and an import that meets the same content stores it again: every snapshot that names it is whole again. A damaged
//! snapshot record moves away, too, and is stored again if the index kept it.

use std::collections::{BTreeSet, HashSet};

use crate::annotation::ANNOTATION_LEN_MAX;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::id::{AnnotationId, EntryId, PackId, SnapshotId};
use crate::index::PackNumber;
use crate::keys::Role;
use crate::lease::Lease;
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::check::packs::{Hashers, read_back};
use crate::ops::check::{CheckOptions, CheckReport, check};
use crate::ops::open::Session;
use crate::ops::pack_stream::{PackStream, StoredPack, StreamOptions};
use crate::pack::Content;
use crate::pack::reader::PackReader;
use crate::repository::Repository;
use crate::snapshot::RECORD_LEN_MAX;
use crate::store::{self, ObjectName};
use crate::tombstone::{self, Stage, Tombstone};

/// zstd level of content that is copied.
const LEVEL: i32 = 3;
/// Bytes of a pack read at once when only its name is checked.
const READ_LEN: u64 = 4 * 1024 * 1024;

/// An object that was moved away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// The path it had in the repository.
    pub object: String,
    /// The path it has now.
    pub to: String,
}

/// What a repair did.
#[derive(Debug, Clone, Default)]
pub struct RepairReport {
    /// What was moved away.
    pub quarantined: Vec<Quarantined>,
    /// Chunks and nodes copied out of damaged packs.
    pub copied_entries: u64,
    /// Their plaintext, in bytes.
    pub copied_bytes: u64,
    /// Packs that these were written to.
    pub new_packs: BTreeSet<PackId>,
    /// Snapshot records that were damaged and are whole again.
    pub healed_records: u64,
    /// What a check finds now, directories and manifests read anew.
    pub after: CheckReport,
}

/// A pack that is to be moved away.
struct Doomed {
    id: PackId,
    number: Option<PackNumber>,
    /// The pack, if its directory can be read, and the positions of its sound frames.
    readable: Option<(PackReader, Vec<u32>)>,
}

/// Whether the key in use grants what a repair takes: to be asked before the check that it follows.
///
/// # Errors
/// `Forbidden` without all roles.
pub fn check_roles(session: &Session) -> Result<()> {
    [Role::Identity, Role::Structure, Role::Data]
        .into_iter()
        .try_for_each(|role| session.repository.keys.get(role).map(drop))
}

/// Moves away what `found` says is damaged and what is so on a second look. What cannot be read now, what is missing, and
/// what a newer version or another key wrote stays where it is.
///
/// # Errors
/// `Forbidden` without all roles; `Io` when the repository cannot be written; `Interrupted`. What was moved until then is
/// moved, and what was sound in it is copied.
pub fn repair(session: &Session, found: &CheckReport, monitor: &dyn Monitor) -> Result<RepairReport> {
    check_roles(session)?;
    let _lease = Lease::put(&session.repository, "repair")?;
    let mut report = RepairReport::default();
    quarantine_records(session, found, &mut report)?;
    let hashers = Hashers::new(session)?;
    let mut doomed = Vec::new();
    for id in damaged_packs(found) {
        check_cancelled(monitor)?;
        doomed.extend(judge(session, id, &hashers, monitor)?);
    }
    copy_sound(session, &doomed, &hashers, &mut report, monitor)?;
    tell(session, &doomed, &report)?;
    for pack in &doomed {
        quarantine(&session.repository, ObjectName::Pack(pack.id), &mut report)?;
    }
    drop(doomed);
    session.catch_up(monitor)?;
    report.after = check(session, CheckOptions { read_data: false }, monitor)?;
    Ok(report)
}

/// Lets indexes elsewhere know which packs go, and which hold what was sound in them.
fn tell(session: &Session, doomed: &[Doomed], report: &RepairReport) -> Result<()> {
    if doomed.is_empty() {
        return Ok(());
    }
    let tombstone = Tombstone {
        serial: tombstone::next_serial(&session.repository)?,
        packs: doomed.iter().map(|pack| pack.id).collect(),
        written: report.new_packs.clone(),
        stage: Stage::Deleted,
        ..Tombstone::default()
    };
    tombstone::put(&session.repository, &tombstone).map(drop)
}

fn damaged_packs(found: &CheckReport) -> BTreeSet<PackId> {
    damaged(found, PackId::from_hex, ObjectName::Pack).collect()
}

/// The names of damaged objects of one kind.
fn damaged<Id: Copy>(
    found: &CheckReport,
    parse: fn(&str) -> Result<Id>,
    name: fn(Id) -> ObjectName,
) -> impl Iterator<Item = Id> {
    found.damages.iter().filter_map(move |damage| store::named(&damage.object, parse, name))
}

/// Moves an object away; `false` when it is gone already.
fn quarantine(repository: &Repository, name: ObjectName, report: &mut RepairReport) -> Result<bool> {
    match repository.store.quarantine(name) {
        Ok(to) => report.quarantined.push(Quarantined { object: name.path(), to }),
        // Another process was faster.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    Ok(true)
}

/// Moves records away whose bytes are not what their names say. Others that do not open were written so: by a newer
/// version, or with another key.
fn quarantine_records(session: &Session, found: &CheckReport, report: &mut RepairReport) -> Result<()> {
    let repository = &session.repository;
    let snapshots = damaged(found, SnapshotId::from_hex, ObjectName::Snapshot);
    let annotations = damaged(found, AnnotationId::from_hex, ObjectName::Annotation);
    let records = snapshots.map(|id| (ObjectName::Snapshot(id), id.0, RECORD_LEN_MAX));
    let annotations = annotations.map(|id| (ObjectName::Annotation(id), id.0, ANNOTATION_LEN_MAX));
    for (name, id, len_max) in records.chain(annotations) {
        let damaged = match repository.store.get(name, len_max) {
            Ok(bytes) => *blake3::hash(&bytes).as_bytes() != id,
            Err(error) => error.is_damage(),
        };
        // One that is gone meanwhile was forgotten, and stays so.
        if damaged
            && quarantine(repository, name, report)?
            && let ObjectName::Snapshot(id) = name
        {
            heal_record(session, id, report)?;
        }
    }
    Ok(())
}

fn heal_record(session: &Session, id: SnapshotId, report: &mut RepairReport) -> Result<()> {
    let kept = session.index.kept_records(&[id])?.into_iter().flatten().next();
    if let Some(record) = kept.filter(|record| *blake3::hash(record).as_bytes() == id.0) {
        session.repository.store.put_new(ObjectName::Snapshot(id), &record)?;
        report.healed_records += 1;
    }
    Ok(())
}

/// Reads a pack again; `None` when it is to stay.
fn judge(session: &Session, id: PackId, hashers: &Hashers, monitor: &dyn Monitor) -> Result<Option<Doomed>> {
    let Repository { store, config, keys, .. } = &*session.repository;
    let number = session.index.number_of(id);
    let stays = |error: &Error| {
        if error.kind() != ErrorKind::NotFound {
            monitor.warn(&format!("pack {} stays: {}", id.short(), error.chain()));
        }
        Ok(None)
    };
    let len = match store.len(ObjectName::Pack(id)) {
        Ok(len) => len,
        Err(error) => return stays(&error),
    };
    let reader = match PackReader::open(store, id, len, config, keys) {
        Ok(reader) => reader,
        Err(error) if !error.is_loss() => return stays(&error),
        Err(error) => {
            return match whole_name(session, id, len) {
                Err(unreadable) if !unreadable.is_loss() => stays(&unreadable),
                // Its bytes are those that were written: by a newer version, or with another key.
                Ok(whole) if whole == id && error.kind() != ErrorKind::Corrupt => stays(&error),
                _ => Ok(Some(Doomed { id, number, readable: None })),
            };
        }
    };
    let checked = read_back(session, &reader, len, hashers);
    if let Some(error) = checked.error.iter().find(|error| !error.is_loss()) {
        return stays(error);
    }
    if let Some((_, error)) = checked.frames.iter().find(|(_, error)| !error.is_loss()) {
        return stays(error);
    }
    if checked.error.is_none() && checked.frames.is_empty() {
        // The pack is sound: the index was not.
        return Ok(None);
    }
    let bad: HashSet<u32> = checked.frames.iter().map(|(position, _)| *position).collect();
    let sound = (0..).take(reader.directory().frames().len()).filter(|position| !bad.contains(position)).collect();
    Ok(Some(Doomed { id, number, readable: Some((reader, sound)) }))
}

/// The name that the bytes of a pack should have.
fn whole_name(session: &Session, id: PackId, len: u64) -> Result<PackId> {
    let mut hasher = blake3::Hasher::new();
    for start in (0..len).step_by(READ_LEN as usize) {
        let range = start..len.min(start + READ_LEN);
        hasher.update(&session.repository.store.get_range(ObjectName::Pack(id), range)?);
    }
    Ok(PackId(*hasher.finalize().as_bytes()))
}

/// Copies what is sound in packs that are to go, unless it stands in another pack, and reads the copies back.
fn copy_sound(
    session: &Session,
    doomed: &[Doomed],
    hashers: &Hashers,
    report: &mut RepairReport,
    monitor: &dyn Monitor,
) -> Result<()> {
    let config = &session.repository.config;
    let going: HashSet<PackNumber> = doomed.iter().filter_map(|pack| pack.number).collect();
    let mut data = PackStream::new(session, StreamOptions::data(config, LEVEL));
    let mut meta = PackStream::new(session, StreamOptions::meta(config));
    monitor.begin("copying what is sound", None);
    for (reader, sound) in doomed.iter().filter_map(|pack| pack.readable.as_ref()) {
        for position in sound {
            check_cancelled(monitor)?;
            let stream = match reader.content() {
                Content::Data => &mut data,
                Content::Meta => &mut meta,
            };
            copy_frame(session, reader, *position, &going, hashers, stream, report)?;
        }
        if meta.wants_flush() {
            flush(session, &mut data, &mut meta, hashers, report)?;
        }
    }
    flush(session, &mut data, &mut meta, hashers, report)?;
    monitor.end();
    Ok(())
}

fn copy_frame(
    session: &Session,
    reader: &PackReader,
    position: u32,
    going: &HashSet<PackNumber>,
    hashers: &Hashers,
    stream: &mut PackStream,
    report: &mut RepairReport,
) -> Result<()> {
    let plain = reader.read_frame(&session.repository.store, position)?;
    let entries = reader.directory().entries_of(reader.frame(position)?);
    let ids: Vec<EntryId> = entries.iter().map(|entry| entry.id).collect();
    let found = session.index.find(&ids)?;
    let mut rest = &plain[..];
    for (entry, found) in entries.iter().zip(found) {
        let bytes = rest
            .split_off(..entry.len as usize)
            .ok_or_else(|| Error::internal("a frame is shorter than its directory says"))?;
        // A copy in a pack that goes too may be the damaged one.
        let stands_elsewhere = found.is_some_and(|found| !going.contains(&found.pack));
        // What opened a moment ago is looked at again: only what is right is copied.
        if !stands_elsewhere && hashers.matches(reader.content(), entry, bytes) && stream.add(entry.id, bytes)? {
            report.copied_entries += 1;
            report.copied_bytes += u64::from(entry.len);
        }
    }
    Ok(())
}

/// Makes the copies durable, data first, and reads them back.
fn flush(
    session: &Session,
    data: &mut PackStream,
    meta: &mut PackStream,
    hashers: &Hashers,
    report: &mut RepairReport,
) -> Result<()> {
    let Repository { store, config, keys, .. } = &*session.repository;
    for stream in [data, meta] {
        for StoredPack { id, len } in stream.flush()? {
            let reader = PackReader::open(store, id, len, config, keys)?;
            let checked = read_back(session, &reader, len, hashers);
            if let Some(error) = checked.error.into_iter().chain(checked.frames.into_iter().map(|(_, e)| e)).next() {
                return Err(error).context(|| "a copy cannot be read back: nothing was moved to quarantine");
            }
            report.new_packs.insert(id);
        }
    }
    Ok(())
}
