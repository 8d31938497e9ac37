//! Entries stored anew under the same keys: for packs whose names TO's tombstones have.
//!
//! Such a pack cannot simply be put there again: it would count as condemned, and a collection under way may delete it on a
//! judgement that is older than the snapshot that needs it. What stands in it is stored in a new pack instead, as a backup does.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::chunk::ChunkHasher;
use crate::error::{Error, Result};
use crate::id::{ChunkId, EntryId, NodeId, PackId};
use crate::index::PackNumber;
use crate::keys::Role;
use crate::manifest::NodeHasher;
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::open::Session;
use crate::ops::pack_stream::{PackStream, StreamOptions};
use crate::pack::Content;
use crate::pack::reader::PackReader;

/// Frames in memory at once.
const BATCH: usize = 8;

/// What came of storing packs' entries anew.
#[derive(Default)]
pub(super) struct Stored {
    /// Bytes of the packs written.
    pub(super) bytes: u64,
    /// Packs of FROM that cannot be had, and why.
    pub(super) lost: BTreeMap<PackId, Error>,
}

/// Stores what TO lacks of the entries of packs of FROM, all of one content.
///
/// # Errors
/// `Unauthenticated` without the data key, for data; `Io`, `Unavailable`, `Interrupted`.
pub(super) fn store_anew(
    from: &Session,
    to: &Session,
    packs: &[PackNumber],
    content: Content,
    level: i32,
    monitor: &dyn Monitor,
) -> Result<Stored> {
    let mut stored = Stored::default();
    if packs.is_empty() {
        return Ok(stored);
    }
    let (config, keys) = (&to.repository.config, &to.repository.keys);
    if content == Content::Data {
        keys.get(Role::Data)?;
    }
    let options = match content {
        Content::Data => StreamOptions::data(config, level),
        Content::Meta => StreamOptions::meta(config),
    };
    let mut copier = Copier {
        from,
        to,
        chunks: ChunkHasher::new(keys)?,
        nodes: NodeHasher::new(keys)?,
        stream: PackStream::new(to, options),
    };
    for number in packs {
        let pack = from.index.pack(*number);
        match copier.copy(*number, monitor) {
            Ok(()) => {}
            Err(Copying::Lost(error)) => {
                monitor.damage(&error);
                stored.lost.insert(pack.id, error);
            }
            Err(Copying::Failed(error)) => return Err(error),
        }
        if content == Content::Meta && copier.stream.wants_flush() {
            stored.bytes += copier.flush()?;
        }
        monitor.advance(pack.len);
    }
    stored.bytes += copier.flush()?;
    Ok(stored)
}

struct Copier<'a> {
    from: &'a Session,
    to: &'a Session,
    chunks: ChunkHasher,
    nodes: NodeHasher,
    stream: PackStream,
}

/// Why a pack's entries were not all copied.
enum Copying {
    /// FROM's pack is damaged or gone.
    Lost(Error),
    Failed(Error),
}

impl Copying {
    /// An error met while reading FROM.
    fn reading(error: Error) -> Self {
        if error.is_loss() { Self::Lost(error) } else { Self::Failed(error) }
    }
}

impl Copier<'_> {
    fn copy(&mut self, number: PackNumber, monitor: &dyn Monitor) -> Result<(), Copying> {
        let reader = self.from.content.pack(number).map_err(Copying::reading)?;
        let frames: Vec<u32> = (0..).take(reader.directory().frames().len()).collect();
        for batch in frames.chunks(BATCH) {
            check_cancelled(monitor).map_err(Copying::Failed)?;
            let read: Vec<_> = batch
                .par_iter()
                .map(|position| self.read(&reader, *position))
                .collect::<Result<_>>()
                .map_err(Copying::reading)?;
            for (id, bytes) in read.into_iter().flatten() {
                let there = self.to.content.locate_live(&[id]).map_err(Copying::Failed)?;
                if there[0].is_none() {
                    self.stream.add(id, &bytes).map_err(Copying::Failed)?;
                }
            }
        }
        Ok(())
    }

    /// The entries of a frame, each checked against its name.
    fn read(&self, reader: &PackReader, position: u32) -> Result<Vec<(EntryId, Vec<u8>)>> {
        let plain = reader.read_frame(&self.from.repository.store, position)?;
        let mut rest = &plain[..];
        let mut read = Vec::new();
        for entry in reader.directory().entries_of(reader.frame(position)?) {
            let bytes = rest
                .split_off(..entry.len as usize)
                .ok_or_else(|| Error::internal("a frame is shorter than its directory says"))?;
            let is_sound = match reader.content() {
                Content::Data => self.chunks.id(bytes) == ChunkId(entry.id.0),
                Content::Meta => self.nodes.id(bytes) == NodeId(entry.id.0),
            };
            if !is_sound {
                let (pack, id) = (reader.id().short(), entry.id.short());
                return Err(Error::corrupt(format!(
                    "pack {pack}, frame {position}: entry {id} does not match its name"
                )));
            }
            read.push((entry.id, bytes.to_vec()));
        }
        Ok(read)
    }

    fn flush(&mut self) -> Result<u64> {
        Ok(self.stream.flush()?.iter().map(|pack| pack.len).sum())
    }
}
