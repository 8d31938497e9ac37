//! Checking packs: header, trailer and directory of each, every frame when asked to.

use std::collections::{BTreeSet, HashSet};

use rayon::prelude::*;

use crate::chunk::ChunkHasher;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ChunkId, EntryId, PackId};
use crate::index::PackNumber;
use crate::manifest::NodeHasher;
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::check::{CheckOptions, CheckReport};
use crate::ops::open::Session;
use crate::pack::Content;
use crate::pack::directory::Entry;
use crate::pack::reader::PackReader;
use crate::repository::Repository;
use crate::snapshot::NamedSnapshot;
use crate::store::{Listed, ObjectName};

/// Packs checked between two looks at the report.
const BATCH: usize = 16;

/// What cannot be read back.
#[derive(Default)]
pub(super) struct BadParts {
    /// Packs whose directory cannot be read, by their number in the index.
    pub(super) packs: HashSet<PackNumber>,
    /// Frames that do not open or hold what they should.
    pub(super) frames: HashSet<(PackNumber, u16)>,
}

impl BadParts {
    pub(super) fn hit(&self, pack: PackNumber, frame: u16) -> bool {
        self.packs.contains(&pack) || self.frames.contains(&(pack, frame))
    }
}

/// What was found in one pack.
struct Checked {
    pack: Listed<PackId>,
    /// Damage of the pack as a whole.
    error: Option<Error>,
    /// Damage of frames.
    frames: Vec<(u32, Error)>,
    read_bytes: u64,
}

pub(super) fn check(
    session: &Session,
    options: CheckOptions,
    report: &mut CheckReport,
    monitor: &dyn Monitor,
) -> Result<BadParts> {
    let listed = session.repository.store.list_packs()?;
    let total = listed.iter().map(|pack| pack.len).sum();
    monitor.begin(if options.read_data { "reading packs" } else { "reading pack directories" }, Some(total));
    let hashers = Hashers::new(session, options)?;
    let mut bad = BadParts::default();
    for batch in listed.chunks(BATCH) {
        check_cancelled(monitor)?;
        let checked: Vec<_> = batch
            .par_iter()
            .map(|pack| {
                let checked = check_pack(session, *pack, hashers.as_ref());
                monitor.advance(pack.len);
                checked
            })
            .collect();
        for checked in checked {
            take(checked?, session, report, &mut bad, monitor);
        }
    }
    monitor.end();
    report.packs = listed.len() as u64;
    Ok(bad)
}

/// Names the packs that snapshots name and the store does not have. Only asked when something is lost: what a missing
/// pack held may have been stored again since.
pub(super) fn note_missing(
    session: &Session,
    snapshots: &[NamedSnapshot],
    report: &mut CheckReport,
    monitor: &dyn Monitor,
) -> Result<()> {
    let listed = session.repository.store.list_packs()?;
    let named: BTreeSet<PackId> = snapshots.iter().flat_map(|named| &named.snapshot.packs).copied().collect();
    for pack in named {
        if listed.binary_search_by_key(&pack, |listed| listed.id).is_err() {
            let error = Error::new(ErrorKind::NotFound, format!("pack {} is missing", pack.short()));
            report.note(monitor, ObjectName::Pack(pack).path(), None, &error);
        }
    }
    Ok(())
}

fn take(checked: Checked, session: &Session, report: &mut CheckReport, bad: &mut BadParts, monitor: &dyn Monitor) {
    let object = ObjectName::Pack(checked.pack.id).path();
    let number = session.index.number_of(checked.pack.id);
    report.read_bytes += checked.read_bytes;
    for (frame, error) in &checked.frames {
        report.note(monitor, object.clone(), Some(*frame), error);
        if let (Some(number), Ok(frame)) = (number, u16::try_from(*frame)) {
            bad.frames.insert((number, frame));
        }
    }
    if let Some(error) = &checked.error {
        report.note(monitor, object, None, error);
        // What cannot be read now is not lost.
        bad.packs.extend(number.filter(|_| error.is_loss()));
    }
}

struct Hashers {
    chunk: ChunkHasher,
    node: NodeHasher,
}

impl Hashers {
    /// `None` when frames are not to be read.
    fn new(session: &Session, options: CheckOptions) -> Result<Option<Self>> {
        if !options.read_data {
            return Ok(None);
        }
        let keys = &session.repository.keys;
        Ok(Some(Self { chunk: ChunkHasher::new(keys)?, node: NodeHasher::new(keys)? }))
    }

    fn matches(&self, content: Content, entry: &Entry, bytes: &[u8]) -> bool {
        match content {
            Content::Data => self.chunk.id(bytes) == ChunkId(entry.id.0),
            Content::Meta => EntryId::from(self.node.id(bytes)) == entry.id,
        }
    }
}

fn check_pack(session: &Session, pack: Listed<PackId>, hashers: Option<&Hashers>) -> Result<Checked> {
    let Repository { store, config, keys, .. } = &*session.repository;
    let mut checked = Checked { pack, error: None, frames: Vec::new(), read_bytes: 0 };
    match PackReader::open(store, pack.id, pack.len, config, keys) {
        Err(error) => checked.error = Some(error),
        Ok(reader) => {
            checked.error = check_index(session, &reader)?;
            if let Some(hashers) = hashers {
                read_whole(session, &reader, hashers, &mut checked);
            }
        }
    }
    Ok(checked)
}

/// Whether the index finds every entry of the pack, here or in another one.
fn check_index(session: &Session, reader: &PackReader) -> Result<Option<Error>> {
    // A pack that another process finished after this check began is none of the index's yet.
    let Some(number) = session.index.number_of(reader.id()) else { return Ok(None) };
    for (at, frame) in reader.directory().frames().iter().enumerate() {
        let entries = reader.directory().entries_of(frame);
        let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        let found = session.index.find(&ids)?;
        let fits = found.iter().enumerate().all(|(slot, found)| {
            found.is_some_and(|found| {
                found.pack != number || entry_is(reader, usize::from(found.frame), found.slot, ids[slot])
            })
        });
        if !fits {
            return Ok(Some(Error::corrupt(format!(
                "the index disagrees with frame {at} of pack {}: run cairn rebuild-index",
                reader.id().short()
            ))));
        }
    }
    Ok(None)
}

/// Whether the directory has `id` at that place. A chunk may stand twice in one pack.
fn entry_is(reader: &PackReader, frame: usize, slot: u16, id: EntryId) -> bool {
    let directory = reader.directory();
    let frame = directory.frames().get(frame);
    frame.and_then(|frame| directory.entries_of(frame).get(usize::from(slot))).is_some_and(|entry| entry.id == id)
}

/// Reads every byte of a pack once, in order, opening each frame and hashing the whole.
fn read_whole(session: &Session, reader: &PackReader, hashers: &Hashers, checked: &mut Checked) {
    let store = &session.repository.store;
    let name = ObjectName::Pack(reader.id());
    let mut whole = blake3::Hasher::new();
    let mut read = |range: std::ops::Range<u64>, checked: &mut Checked| match store.get_range(name, range) {
        Ok(bytes) => {
            whole.update(&bytes);
            checked.read_bytes += bytes.len() as u64;
            Some(bytes)
        }
        Err(error) => {
            checked.error = Some(error);
            None
        }
    };
    let frames = reader.directory().frames();
    let start = frames.first().map_or(reader.directory().end(), |frame| frame.offset);
    if read(0..start, checked).is_none() {
        return;
    }
    for (position, frame) in (0..).zip(frames) {
        let range = frame.offset..frame.offset + u64::from(frame.record.sealed_len);
        let Some(sealed) = read(range, checked) else { return };
        if let Err(error) = check_frame(reader, position, sealed, hashers) {
            checked.frames.push((position, error));
        }
    }
    if read(reader.directory().end()..checked.pack.len, checked).is_none() {
        return;
    }
    if whole.finalize().as_bytes() != reader.id().as_bytes() && checked.frames.is_empty() {
        let text = format!("pack {}: its bytes do not match its name", reader.id().short());
        checked.error.get_or_insert(Error::corrupt(text));
    }
}

fn check_frame(reader: &PackReader, position: u32, sealed: Vec<u8>, hashers: &Hashers) -> Result<()> {
    let plain = reader.open_frame(position, sealed)?;
    let mut rest = &plain[..];
    for entry in reader.directory().entries_of(reader.frame(position)?) {
        let bytes = rest
            .split_off(..entry.len as usize)
            .ok_or_else(|| Error::internal("a frame is shorter than its directory says"))?;
        if !hashers.matches(reader.content(), entry, bytes) {
            return Err(Error::corrupt(format!(
                "pack {}, frame {position}: entry {} does not match its name",
                reader.id().short(),
                entry.id.short()
            )));
        }
    }
    Ok(())
}
