//! Repacking: what is still needed of packs that are to be emptied is read, verified and stored again.
//!
//! What newest snapshots need comes first, in the order of their disks; what only older ones need comes after it, as it
//! stood, in packs of its own.

mod in_order;

use std::collections::BTreeSet;

use rayon::prelude::*;

use super::order::Route;
use super::survey::PackUse;
use crate::chunk::ChunkHasher;
use crate::error::{Error, Result};
use crate::id::{ChunkId, EntryId, NodeId, PackId};
use crate::index::{Location, PackState};
use crate::manifest::NodeHasher;
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::open::Session;
use crate::ops::pack_stream::{PackStream, StreamOptions};
use crate::pack::Content;
use crate::pack::directory::Entry;
use crate::pack::reader::PackReader;
use in_order::{CopiedInOrder, copy_in_order};

/// Frames in memory at once.
const BATCH: usize = 8;

/// What is to be moved.
pub(super) struct Task<'a> {
    /// The survey.
    pub(super) uses: &'a [PackUse],
    /// The packs to empty, by their position there.
    pub(super) packs: &'a [usize],
    /// The order in which to store chunks; without it, as they stand.
    pub(super) route: Option<&'a Route>,
}

/// What was moved.
#[derive(Default)]
pub(super) struct Moved {
    /// Packs whose needed entries all stand elsewhere now.
    pub(super) emptied: BTreeSet<PackId>,
    /// Packs written.
    pub(super) new_packs: BTreeSet<PackId>,
    /// Their bytes.
    pub(super) new_bytes: u64,
}

/// Stores the needed entries of packs again. A pack of which something cannot be read keeps all it has.
pub(super) fn repack(session: &Session, task: &Task<'_>, level: i32, monitor: &dyn Monitor) -> Result<Moved> {
    let mut moved = Moved::default();
    let packs = || task.packs.iter().map(|at| (*at, &task.uses[*at]));
    // From here on the index prefers the new places.
    session.index.condemn(&packs().map(|(_, used)| used.pack.id).collect())?;
    monitor.begin("repacking", Some(packs().map(|(_, used)| used.pack.len).sum()));
    for content in [Content::Data, Content::Meta] {
        if !packs().any(|(_, used)| used.pack.content == content) {
            continue;
        }
        let mut repacker = Repacker::new(session, content, level)?;
        let in_order = match task.route {
            Some(route) if content == Content::Data => copy_in_order(&mut repacker, task, route, monitor)?,
            _ => CopiedInOrder::default(),
        };
        let mut copied = Vec::new();
        for (at, used) in packs().filter(|(_, used)| used.pack.content == content) {
            check_cancelled(monitor)?;
            if !in_order.is_lost(at) {
                match repacker.copy(used, &|entry| in_order.has(at, entry)) {
                    Ok(()) => copied.push(used),
                    Err(error) if error.is_loss() => monitor.damage(&error),
                    Err(error) => return Err(error),
                }
            }
            monitor.advance(used.pack.len);
        }
        repacker.flush()?;
        moved.new_packs.append(&mut repacker.new_packs);
        moved.new_bytes += repacker.new_bytes;
        for used in copied {
            verify(session, used)?;
            moved.emptied.insert(used.pack.id);
        }
    }
    monitor.end();
    Ok(moved)
}

struct Repacker<'a> {
    session: &'a Session,
    /// Names chunks anew; repacking nodes does without.
    chunks: Option<ChunkHasher>,
    nodes: NodeHasher,
    content: Content,
    stream: PackStream,
    new_packs: BTreeSet<PackId>,
    new_bytes: u64,
}

impl<'a> Repacker<'a> {
    fn new(session: &'a Session, content: Content, level: i32) -> Result<Self> {
        let (config, keys) = (&session.repository.config, &session.repository.keys);
        let options = match content {
            Content::Data => StreamOptions::data(config, level),
            Content::Meta => StreamOptions::meta(config),
        };
        let chunks = if content == Content::Data { Some(ChunkHasher::new(keys)?) } else { None };
        let nodes = NodeHasher::new(keys)?;
        let stream = PackStream::new(session, options);
        Ok(Self { session, chunks, nodes, content, stream, new_packs: BTreeSet::new(), new_bytes: 0 })
    }

    /// Copies what is needed of one pack and was not copied before.
    fn copy(&mut self, used: &PackUse, was_copied: &dyn Fn(usize) -> bool) -> Result<()> {
        let reader = open(self.session, used)?;
        for batch in frames_to_copy(&reader, used, was_copied).chunks(BATCH) {
            let read: Vec<_> = batch.par_iter().map(|frame| self.read(&reader, frame)).collect::<Result<Vec<_>>>()?;
            for (id, bytes) in read.into_iter().flatten() {
                self.stream.add(id, &bytes)?;
            }
            // A stream of chunks ends its packs itself.
            if self.content == Content::Meta && self.stream.wants_flush() {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        for pack in self.stream.flush()? {
            self.new_packs.insert(pack.id);
            self.new_bytes += pack.len;
        }
        Ok(())
    }

    /// Reads the entries of a frame that are to be copied, and checks each against its name.
    fn read(&self, reader: &PackReader, to_copy: &FrameToCopy) -> Result<Vec<(EntryId, Vec<u8>)>> {
        let plain = reader.read_frame(&self.session.repository.store, to_copy.position)?;
        let mut rest = &plain[..];
        let mut read = Vec::new();
        for (entry, is_wanted) in &to_copy.entries {
            let bytes = rest
                .split_off(..entry.len as usize)
                .ok_or_else(|| Error::internal("a frame is shorter than its directory says"))?;
            if *is_wanted {
                self.check(reader, to_copy.position, entry.id, bytes)?;
                read.push((entry.id, bytes.to_vec()));
            }
        }
        Ok(read)
    }

    /// Checks an entry against its name.
    fn check(&self, reader: &PackReader, frame: u32, id: EntryId, bytes: &[u8]) -> Result<()> {
        let is_sound = match reader.content() {
            Content::Data => self.chunks.as_ref().is_some_and(|chunks| chunks.id(bytes) == ChunkId(id.0)),
            Content::Meta => self.nodes.id(bytes) == NodeId(id.0),
        };
        if is_sound {
            return Ok(());
        }
        let pack = reader.id().short();
        Err(Error::corrupt(format!("pack {pack}, frame {frame}: entry {} does not match its name", id.short())))
    }
}

/// A frame of which something is to be copied.
struct FrameToCopy {
    position: u32,
    entries: Vec<(Entry, bool)>,
}

fn frames_to_copy(reader: &PackReader, used: &PackUse, was_copied: &dyn Fn(usize) -> bool) -> Vec<FrameToCopy> {
    let directory = reader.directory();
    let mut at = 0;
    let mut frames = Vec::new();
    for (position, frame) in (0..).zip(directory.frames()) {
        let of_frame = (at..).zip(directory.entries_of(frame));
        let entries: Vec<_> = of_frame.map(|(at, entry)| (*entry, used.is_needed(at) && !was_copied(at))).collect();
        at += entries.len();
        if entries.iter().any(|(_, is_wanted)| *is_wanted) {
            frames.push(FrameToCopy { position, entries });
        }
    }
    frames
}

fn open(session: &Session, used: &PackUse) -> Result<PackReader> {
    let repository = &session.repository;
    PackReader::open(&repository.store, used.pack.id, used.pack.len, &repository.config, &repository.keys)
}

/// Makes sure that the index finds each needed entry of a pack in one that stays.
fn verify(session: &Session, used: &PackUse) -> Result<()> {
    let reader = open(session, used)?;
    let entries = reader.directory().entries().iter().enumerate();
    let needed: Vec<EntryId> = entries.filter(|(at, _)| used.is_needed(*at)).map(|(_, entry)| entry.id).collect();
    for batch in needed.chunks(4096) {
        let found = session.index.find(batch)?;
        let stays = |place: &Location| session.index.pack(place.pack).state == PackState::Live;
        if !found.iter().all(|found| found.as_ref().is_some_and(stays)) {
            let pack = used.pack.id.short();
            return Err(Error::internal(format!("pack {pack} was repacked and its content is not found")));
        }
    }
    Ok(())
}
