//! From entries to packs, the second half of a backup: new entries are collected into frames, sealed on all cores, appended to packs in order.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::id::{EntryId, PackId};
use crate::index::Index;
use crate::ops::open::Session;
use crate::pack::directory::{ENTRIES_PER_FRAME_MAX, Entry};
use crate::pack::writer::{DurablePack, PackWriter};
use crate::pack::{Content, FRAMES_MAX, PackCipher, SealedFrame};
use crate::repository::Repository;

/// How a stream collects.
pub(in crate::ops) struct StreamOptions {
    /// What the entries are.
    pub(in crate::ops) content: Content,
    /// Plaintext a frame is closed at, in bytes.
    pub(in crate::ops) frame_len: usize,
    /// Length a pack is closed at, in bytes.
    pub(in crate::ops) pack_len: u64,
    /// zstd level.
    pub(in crate::ops) level: i32,
}

/// Plaintext a meta frame is closed at, in bytes: small, since a diff or a restore of a range reads single nodes.
const META_FRAME_LEN: usize = 128 * 1024;
/// zstd level of meta frames: ids do not compress.
const META_LEVEL: i32 = 1;

impl StreamOptions {
    /// For chunks.
    pub(in crate::ops) fn data(config: &Config, level: i32) -> Self {
        let (frame_len, pack_len) = (config.frame_len as usize, u64::from(config.pack_len));
        Self { content: Content::Data, frame_len, pack_len, level }
    }

    /// For manifest nodes.
    pub(in crate::ops) fn meta(config: &Config) -> Self {
        let frame_len = META_FRAME_LEN.min(config.frame_len as usize);
        Self { content: Content::Meta, frame_len, pack_len: u64::from(config.pack_len), level: META_LEVEL }
    }
}

/// Entries on their way into packs.
pub(in crate::ops) struct PackStream {
    repository: Arc<Repository>,
    index: Arc<Index>,
    options: StreamOptions,
    /// Entries taken and not yet in the index: bounded by the frames and packs under way.
    pending: HashSet<EntryId>,
    plain: Vec<u8>,
    entries: Vec<Entry>,
    /// The pack that the next frame is sealed for, and the frame's position in it.
    next: Option<(Arc<PackCipher>, u32)>,
    /// Frames being sealed, in order.
    sealing: VecDeque<Sealing>,
    /// The pack being written, and its length so far.
    writing: Option<(Arc<PackCipher>, PackWriter, u64)>,
    committer: Option<Committer>,
    durable: Vec<StoredPack>,
}

/// A pack that this stream made durable and findable.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct StoredPack {
    pub(in crate::ops) id: PackId,
    /// Its length in bytes.
    pub(in crate::ops) len: u64,
}

struct Sealing {
    cipher: Arc<PackCipher>,
    entries: Vec<Entry>,
    frame: Receiver<Result<SealedFrame>>,
}

/// The thread that waits for the disk while others compute.
struct Committer {
    packs: Sender<PackWriter>,
    durable: Receiver<DurablePack>,
    thread: JoinHandle<Result<()>>,
}

impl PackStream {
    pub(in crate::ops) fn new(session: &Session, options: StreamOptions) -> Self {
        Self {
            repository: session.repository.clone(),
            index: session.index.clone(),
            options,
            pending: HashSet::new(),
            plain: Vec::new(),
            entries: Vec::new(),
            next: None,
            sealing: VecDeque::new(),
            writing: None,
            committer: None,
            durable: Vec::new(),
        }
    }

    /// Takes an entry that the index does not have; `false` when it is on its way already.
    pub(in crate::ops) fn add(&mut self, id: EntryId, bytes: &[u8]) -> Result<bool> {
        if !self.pending.insert(id) {
            return Ok(false);
        }
        let full = self.plain.len() + bytes.len() > self.options.frame_len && !self.plain.is_empty();
        if full || self.entries.len() == ENTRIES_PER_FRAME_MAX {
            self.close_frame()?;
        }
        self.plain.extend_from_slice(bytes);
        let len = u32::try_from(bytes.len()).expect("a chunk is at most 2 MiB");
        self.entries.push(Entry { id, len });
        Ok(true)
    }

    /// Whether a meta stream holds a pack's worth. Its packs are closed by [`flush`](Self::flush) alone, after the data.
    pub(in crate::ops) fn wants_flush(&self) -> bool {
        self.writing.as_ref().is_some_and(|(_, _, len)| *len >= self.options.pack_len)
    }

    /// Stores all that was taken. Gives the packs that became durable since the last call, all of them in the index.
    pub(in crate::ops) fn flush(&mut self) -> Result<Vec<StoredPack>> {
        if !self.entries.is_empty() {
            self.close_frame()?;
        }
        while !self.sealing.is_empty() {
            self.append_oldest()?;
        }
        self.next = None;
        if let Some((_, writer, _)) = self.writing.take() {
            self.hand_over(writer)?;
        }
        if let Some(committer) = self.committer.take() {
            drop(committer.packs);
            let rest = committer.durable.iter().map(|pack| StoredPack { id: pack.id, len: pack.len });
            self.durable.extend(rest);
            committer.thread.join().map_err(|_| Error::internal("the committing thread panicked"))??;
        }
        self.pending.clear();
        Ok(std::mem::take(&mut self.durable))
    }

    /// Sends the collected entries to be compressed and sealed.
    fn close_frame(&mut self) -> Result<()> {
        // The bound of frames in memory; what is popped here also decides, always at the same frame, when a pack is full.
        if self.sealing.len() > 2 * rayon::current_num_threads() {
            self.append_oldest()?;
        }
        let (cipher, position) = self.next_position()?;
        let plain = std::mem::replace(&mut self.plain, Vec::with_capacity(self.options.frame_len));
        let (sender, frame) = bounded(1);
        let (sealer, level) = (cipher.clone(), self.options.level);
        rayon::spawn(move || {
            // The other end is gone only when the backup failed already.
            let _ = sender.send(sealer.seal_frame(position, &plain, level));
        });
        self.sealing.push_back(Sealing { cipher, entries: std::mem::take(&mut self.entries), frame });
        Ok(())
    }

    fn next_position(&mut self) -> Result<(Arc<PackCipher>, u32)> {
        let (cipher, position) = match self.next.take() {
            Some((cipher, position)) if !self.is_full(&cipher) && (position as usize) < FRAMES_MAX => {
                (cipher, position)
            }
            _ => {
                let Repository { config, keys, entropy, .. } = &*self.repository;
                (Arc::new(PackCipher::create(self.options.content, config, keys, entropy)?), 0)
            }
        };
        self.next = Some((cipher.clone(), position + 1));
        Ok((cipher, position))
    }

    fn is_full(&self, cipher: &Arc<PackCipher>) -> bool {
        self.options.content == Content::Data
            && self
                .writing
                .as_ref()
                .is_some_and(|(of, _, len)| Arc::ptr_eq(of, cipher) && *len >= self.options.pack_len)
    }

    fn append_oldest(&mut self) -> Result<()> {
        let Some(Sealing { cipher, entries, frame }) = self.sealing.pop_front() else { return Ok(()) };
        let sealed = frame.recv().map_err(|_| Error::internal("a worker ended without an answer"))??;
        if let Some((_, writer, _)) = self.writing.take_if(|(of, _, _)| !Arc::ptr_eq(of, &cipher)) {
            self.hand_over(writer)?;
        }
        let (_, writer, len) = match &mut self.writing {
            Some(writing) => writing,
            none => {
                let writer = PackWriter::create(cipher.clone(), &self.repository.store)?;
                none.insert((cipher, writer, 0))
            }
        };
        *len += sealed.len_bytes() as u64;
        writer.append(&sealed, &entries)
    }

    /// Gives a full pack to the committer, and takes back what it finished meanwhile.
    fn hand_over(&mut self, writer: PackWriter) -> Result<()> {
        let committer = match &self.committer {
            Some(committer) => committer,
            None => self.committer.insert(Committer::start(self.index.clone())),
        };
        if committer.packs.send(writer).is_err() {
            let committer = self.committer.take().expect("it is there");
            let ended = committer.thread.join().map_err(|_| Error::internal("the committing thread panicked"))?;
            return Err(ended.err().unwrap_or_else(|| Error::internal("the committing thread ended early")));
        }
        for pack in committer.durable.try_iter() {
            for entry in pack.directory.entries() {
                self.pending.remove(&entry.id);
            }
            self.durable.push(StoredPack { id: pack.id, len: pack.len });
        }
        Ok(())
    }
}

impl Drop for PackStream {
    /// Waits for the packs under way: whoever drops a stream may go on to say that it stores nothing any more.
    fn drop(&mut self) {
        if let Some(Committer { packs, thread, .. }) = self.committer.take() {
            drop(packs);
            // What went wrong there is of no interest: the stream is given up.
            let _ = thread.join();
        }
    }
}

impl Committer {
    fn start(index: Arc<Index>) -> Self {
        let (packs, queue) = bounded::<PackWriter>(1);
        let (sender, durable) = crossbeam_channel::unbounded();
        let thread = std::thread::spawn(move || {
            for writer in queue {
                let pack = writer.finish()?;
                index.insert(&pack)?;
                let _ = sender.send(pack);
            }
            Ok(())
        });
        Self { packs, durable, thread }
    }
}
