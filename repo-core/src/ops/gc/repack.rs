//! Repacking: what is still needed of wasteful packs is read, verified and stored again.

use std::collections::BTreeSet;

use rayon::prelude::*;

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

/// Frames in memory at once.
const BATCH: usize = 8;

/// What was moved.
#[derive(Default)]
pub(super) struct Moved {
    /// Packs whose needed entries all stand elsewhere now.
    pub(super) emptied: BTreeSet<PackId>,
    /// Packs written, and their bytes.
    pub(super) new_packs: u64,
    pub(super) new_bytes: u64,
}

/// Stores the needed entries of `packs` again. A pack of which something cannot be read keeps all it has.
pub(super) fn repack(session: &Session, packs: &[&PackUse], level: i32, monitor: &dyn Monitor) -> Result<Moved> {
    let mut moved = Moved::default();
    // From here on the index prefers the new places.
    session.index.condemn(&packs.iter().map(|used| used.pack.id).collect())?;
    monitor.begin("repacking", Some(packs.iter().map(|used| used.pack.len).sum()));
    for content in [Content::Data, Content::Meta] {
        let mut repacker = Repacker::new(session, content, level)?;
        let mut copied = Vec::new();
        for used in packs.iter().filter(|used| used.pack.content == content) {
            check_cancelled(monitor)?;
            match repacker.copy(used) {
                Ok(ids) => copied.push((used.pack.id, ids)),
                Err(error) if error.is_loss() => monitor.damage(&error),
                Err(error) => return Err(error),
            }
            monitor.advance(used.pack.len);
        }
        repacker.flush()?;
        moved.new_packs += repacker.new_packs;
        moved.new_bytes += repacker.new_bytes;
        for (pack, ids) in copied {
            verify(session, pack, &ids)?;
            moved.emptied.insert(pack);
        }
    }
    monitor.end();
    Ok(moved)
}

struct Repacker<'a> {
    session: &'a Session,
    chunks: ChunkHasher,
    nodes: NodeHasher,
    content: Content,
    stream: PackStream,
    new_packs: u64,
    new_bytes: u64,
}

impl<'a> Repacker<'a> {
    fn new(session: &'a Session, content: Content, level: i32) -> Result<Self> {
        let (config, keys) = (&session.repository.config, &session.repository.keys);
        let options = match content {
            Content::Data => StreamOptions::data(config, level),
            Content::Meta => StreamOptions::meta(config),
        };
        let (chunks, nodes) = (ChunkHasher::new(keys)?, NodeHasher::new(keys)?);
        let stream = PackStream::new(session, options);
        Ok(Self { session, chunks, nodes, content, stream, new_packs: 0, new_bytes: 0 })
    }

    /// Copies what is needed of one pack, and gives its ids.
    fn copy(&mut self, used: &PackUse) -> Result<Vec<EntryId>> {
        let repository = &self.session.repository;
        let reader =
            PackReader::open(&repository.store, used.pack.id, used.pack.len, &repository.config, &repository.keys)?;
        let frames = needed_frames(&reader, used);
        let mut ids = Vec::new();
        for batch in frames.chunks(BATCH) {
            let read: Vec<_> = batch.par_iter().map(|frame| self.read(&reader, frame)).collect::<Result<Vec<_>>>()?;
            for (id, bytes) in read.into_iter().flatten() {
                self.stream.add(id, &bytes)?;
                ids.push(id);
            }
            // A stream of chunks ends its packs itself.
            if self.content == Content::Meta && self.stream.wants_flush() {
                self.flush()?;
            }
        }
        Ok(ids)
    }

    fn flush(&mut self) -> Result<()> {
        for pack in self.stream.flush()? {
            self.new_packs += 1;
            self.new_bytes += pack.len;
        }
        Ok(())
    }

    /// Reads the needed entries of a frame and checks each against its name.
    fn read(&self, reader: &PackReader, needed: &NeededFrame) -> Result<Vec<(EntryId, Vec<u8>)>> {
        let plain = reader.read_frame(&self.session.repository.store, needed.position)?;
        let mut rest = &plain[..];
        let mut read = Vec::new();
        for (entry, is_needed) in &needed.entries {
            let bytes = rest
                .split_off(..entry.len as usize)
                .ok_or_else(|| Error::internal("a frame is shorter than its directory says"))?;
            if !is_needed {
                continue;
            }
            let sound = match reader.content() {
                Content::Data => self.chunks.id(bytes) == ChunkId(entry.id.0),
                Content::Meta => self.nodes.id(bytes) == NodeId(entry.id.0),
            };
            if !sound {
                return Err(Error::corrupt(format!(
                    "pack {}, frame {}: entry {} does not match its name",
                    reader.id().short(),
                    needed.position,
                    entry.id.short()
                )));
            }
            read.push((entry.id, bytes.to_vec()));
        }
        Ok(read)
    }
}

/// A frame of which something is needed.
struct NeededFrame {
    position: u32,
    entries: Vec<(Entry, bool)>,
}

fn needed_frames(reader: &PackReader, used: &PackUse) -> Vec<NeededFrame> {
    let directory = reader.directory();
    let mut at = 0;
    let mut frames = Vec::new();
    for (position, frame) in (0..).zip(directory.frames()) {
        let of_frame = (at..).zip(directory.entries_of(frame));
        let entries: Vec<_> = of_frame.map(|(at, entry)| (*entry, used.is_needed(at))).collect();
        at += entries.len();
        if entries.iter().any(|(_, needed)| *needed) {
            frames.push(NeededFrame { position, entries });
        }
    }
    frames
}

/// Makes sure that the index finds each of `ids` in a pack that stays.
fn verify(session: &Session, pack: PackId, ids: &[EntryId]) -> Result<()> {
    for batch in ids.chunks(4096) {
        let found = session.index.find(batch)?;
        let stays = |place: &Location| session.index.pack(place.pack).state == PackState::Live;
        if !found.iter().all(|found| found.as_ref().is_some_and(stays)) {
            return Err(Error::internal(format!("pack {} was repacked and its content is not found", pack.short())));
        }
    }
    Ok(())
}
