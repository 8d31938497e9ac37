//! Checking packs: header, trailer and directory of each, every frame when asked to.

use std::collections::{BTreeSet, HashMap, HashSet};

use rayon::prelude::*;

use crate::chunk::ChunkHasher;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ChunkId, EntryId, PackId};
use crate::index::{Location, PackNumber};
use crate::manifest::NodeHasher;
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::check::cursor::Cursor;
use crate::ops::check::{CheckReport, Reading};
use crate::ops::open::Session;
use crate::pack::Content;
use crate::pack::directory::Entry;
use crate::pack::reader::PackReader;
use crate::repository::Repository;
use crate::snapshot::NamedSnapshot;
use crate::store::{Listed, ObjectName};
use crate::units::PAGE_LEN;

/// The file beside the index that remembers how far a round of reading has come.
const CURSOR: &str = "check-cursor";
/// Packs checked between two looks at the report.
const BATCH: usize = 16;

/// What cannot be read back.
#[derive(Default)]
pub(super) struct BadParts {
    /// What data packs say of the lengths of their chunks.
    lengths: HashMap<PackNumber, ChunkLengths>,
    /// Packs whose directory cannot be read, by their number in the index.
    pub(super) packs: HashSet<PackNumber>,
    /// Frames that do not open or hold what they should.
    pub(super) frames: HashSet<(PackNumber, u16)>,
}

impl BadParts {
    pub(super) fn hit(&self, pack: PackNumber, frame: u16) -> bool {
        self.packs.contains(&pack) || self.frames.contains(&(pack, frame))
    }

    /// Whether a data pack has a chunk of so many pages at that place. A pack that was not looked at is believed.
    pub(super) fn has_chunk(&self, location: Location, pages: u16) -> bool {
        self.lengths.get(&location.pack).is_none_or(|lengths| lengths.at(location) == Some(pages))
    }
}

/// Lengths of the chunks of one pack, in pages: two bytes a chunk. Empty for a meta pack, which has no chunks.
struct ChunkLengths {
    /// The number of each frame's first chunk.
    first: Vec<u32>,
    pages: Vec<u16>,
}

impl ChunkLengths {
    fn of(reader: &PackReader) -> Self {
        let directory = reader.directory();
        let mut lengths = Self { first: Vec::new(), pages: Vec::new() };
        if reader.content() == Content::Meta {
            return lengths;
        }
        for frame in directory.frames() {
            lengths.first.push(u32::try_from(lengths.pages.len()).unwrap_or(u32::MAX));
            for entry in directory.entries_of(frame) {
                let whole = (entry.len as usize).is_multiple_of(PAGE_LEN);
                // No run has as many pages: what is no length of a chunk fits none.
                let pages = u16::try_from(entry.len as usize / PAGE_LEN).ok().filter(|_| whole);
                lengths.pages.push(pages.unwrap_or(u16::MAX));
            }
        }
        lengths
    }

    fn at(&self, location: Location) -> Option<u16> {
        let first = *self.first.get(usize::from(location.frame))? as usize;
        self.pages.get(first + usize::from(location.slot)).copied()
    }
}

/// What was found in one pack.
pub(in crate::ops) struct Checked {
    pack: Listed<PackId>,
    /// Damage of the pack as a whole.
    pub(in crate::ops) error: Option<Error>,
    /// Damage of frames.
    pub(in crate::ops) frames: Vec<(u32, Error)>,
    lengths: Option<ChunkLengths>,
    read_bytes: u64,
}

pub(super) fn check(
    session: &Session,
    reading: Reading,
    report: &mut CheckReport,
    monitor: &dyn Monitor,
) -> Result<BadParts> {
    let listed = session.repository.store.list_packs()?;
    report.packs = listed.len() as u64;
    let mut bad = BadParts::default();
    match reading {
        Reading::Directories => check_all(session, &listed, None, report, &mut bad, monitor)?,
        Reading::Everything => {
            let hashers = Hashers::new(session)?;
            check_all(session, &listed, Some(&hashers), report, &mut bad, monitor)?;
        }
        Reading::Share(share, now_ms) => {
            let folder = session.index.path().parent().unwrap_or(session.index.path());
            let mut cursor = Cursor::open(folder.join(CURSOR), share, &listed, now_ms);
            let others: Vec<_> = listed.iter().filter(|pack| !cursor.contains(pack.id)).copied().collect();
            check_all(session, &others, None, report, &mut bad, monitor)?;
            check_chosen(session, &listed, &mut cursor, report, &mut bad, monitor)?;
            report.coverage = Some(cursor.coverage(&listed));
        }
    }
    Ok(bad)
}

/// Checks packs, reading all of them when there are hashers.
fn check_all(
    session: &Session,
    packs: &[Listed<PackId>],
    hashers: Option<&Hashers>,
    report: &mut CheckReport,
    bad: &mut BadParts,
    monitor: &dyn Monitor,
) -> Result<()> {
    let total = packs.iter().map(|pack| pack.len).sum();
    monitor.begin(if hashers.is_some() { "reading packs" } else { "reading pack directories" }, Some(total));
    for batch in packs.chunks(BATCH) {
        check_batch(session, batch, hashers, report, bad, monitor)?;
    }
    monitor.end();
    Ok(())
}

/// Reads the packs that a cursor chose, and moves it on.
fn check_chosen(
    session: &Session,
    listed: &[Listed<PackId>],
    cursor: &mut Cursor,
    report: &mut CheckReport,
    bad: &mut BadParts,
    monitor: &dyn Monitor,
) -> Result<()> {
    let place = |id: &PackId| listed.binary_search_by_key(id, |pack| pack.id).map(|at| listed[at]);
    let chosen: Vec<_> = cursor.queue().iter().filter_map(|id| place(id).ok()).collect();
    let hashers = Hashers::new(session)?;
    monitor.begin("reading packs", Some(chosen.iter().map(|pack| pack.len).sum()));
    let mut done = 0;
    for batch in chosen.chunks(BATCH) {
        check_batch(session, batch, Some(&hashers), report, bad, monitor)?;
        done += batch.len();
        cursor.read_up_to(done)?;
    }
    monitor.end();
    Ok(())
}

fn check_batch(
    session: &Session,
    batch: &[Listed<PackId>],
    hashers: Option<&Hashers>,
    report: &mut CheckReport,
    bad: &mut BadParts,
    monitor: &dyn Monitor,
) -> Result<()> {
    check_cancelled(monitor)?;
    let checked: Vec<_> = batch
        .par_iter()
        .map(|pack| {
            let checked = check_pack(session, *pack, hashers);
            monitor.advance(pack.len);
            checked
        })
        .collect();
    for checked in checked {
        take(checked?, session, report, bad, monitor);
    }
    Ok(())
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
    bad.lengths.extend(number.zip(checked.lengths));
    for (frame, error) in &checked.frames {
        report.note(monitor, object.clone(), Some(*frame), error);
        if let (Some(number), Ok(frame)) = (number, u16::try_from(*frame)) {
            bad.frames.insert((number, frame));
        }
    }
    if let Some(error) = &checked.error {
        if error.kind() == ErrorKind::NotFound {
            // Condemned before this check began, and deleted since it was listed. If a snapshot needs it all the same, its
            // manifest will say so.
            bad.packs.extend(number);
            return;
        }
        report.note(monitor, object, None, error);
        // What cannot be read now is not lost.
        bad.packs.extend(number.filter(|_| error.is_loss()));
    }
}

/// Names chunks and nodes anew, to compare.
pub(in crate::ops) struct Hashers {
    chunk: ChunkHasher,
    node: NodeHasher,
}

impl Hashers {
    /// # Errors
    /// `Forbidden` without the identity and structure keys.
    pub(in crate::ops) fn new(session: &Session) -> Result<Self> {
        let keys = &session.repository.keys;
        Ok(Self { chunk: ChunkHasher::new(keys)?, node: NodeHasher::new(keys)? })
    }

    /// Whether bytes are what the entry is named after.
    pub(in crate::ops) fn matches(&self, content: Content, entry: &Entry, bytes: &[u8]) -> bool {
        match content {
            Content::Data => self.chunk.id(bytes) == ChunkId(entry.id.0),
            Content::Meta => EntryId::from(self.node.id(bytes)) == entry.id,
        }
    }
}

fn check_pack(session: &Session, pack: Listed<PackId>, hashers: Option<&Hashers>) -> Result<Checked> {
    let Repository { store, config, keys, .. } = &*session.repository;
    let mut checked = Checked { pack, error: None, frames: Vec::new(), lengths: None, read_bytes: 0 };
    match PackReader::open(store, pack.id, pack.len, config, keys) {
        Err(error) => checked.error = Some(error),
        Ok(reader) => {
            checked.error = check_index(session, &reader)?;
            checked.lengths = Some(ChunkLengths::of(&reader));
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

/// Reads all of an open pack of `len` bytes, whatever the index says.
pub(in crate::ops) fn read_back(session: &Session, reader: &PackReader, len: u64, hashers: &Hashers) -> Checked {
    let pack = Listed { id: reader.id(), len, stored_ms: 0 };
    let mut checked = Checked { pack, error: None, frames: Vec::new(), lengths: None, read_bytes: 0 };
    read_whole(session, reader, hashers, &mut checked);
    checked
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

/// Opens a frame and hashes all its entries.
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
