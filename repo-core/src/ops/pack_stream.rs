//! From entries to packs, the second half of a backup: new entries are collected into frames, sealed on all cores, appended to packs in order.
//!
//! In a folder a pack is as long as packs are to be, and is closed at the same frame in every run. On an object store it is also
//! closed when nothing else is being sent ([`PackStream::is_full`]): while a disk is read, the line works.

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
/// The shortest pack that is closed because the line is idle, in bytes: its time on a line of 50 Mbit/s is several round trips.
const EARLY_LEN: u64 = 2 * 1024 * 1024;
/// Packs being sent to an object store at once: one fills the line while another waits for its answer.
const SENT_AT_ONCE: usize = 2;

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
    /// Where packs go.
    way: Way,
    /// The length of all packs handed over, in bytes.
    handed_bytes: u64,
}

/// How packs get to their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The disk of a folder.
    Disk,
    /// A line to an object store.
    Line,
}

impl Way {
    fn packs_at_once(self) -> usize {
        match self {
            Self::Disk => 1,
            Self::Line => SENT_AT_ONCE,
        }
    }

    /// Frames being sealed at once. More than the cores need only delay what is sent: on a line the threads are many, since
    /// they wait.
    fn frames_at_once(self) -> usize {
        2 * match self {
            Self::Disk => rayon::current_num_threads(),
            Self::Line => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
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

/// The threads that wait for the disk or the line while others compute.
struct Committer {
    packs: Sender<PackWriter>,
    durable: Receiver<DurablePack>,
    threads: Vec<JoinHandle<Result<()>>>,
    /// Packs sent and not yet received back.
    under_way: usize,
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
            way: if session.repository.store.root().is_some() { Way::Disk } else { Way::Line },
            handed_bytes: 0,
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
        self.hand_over_finished()?;
        if let Some(committer) = self.committer.take() {
            let durable = committer.durable.clone();
            committer.end()?;
            self.durable.extend(durable.iter().map(|pack| StoredPack { id: pack.id, len: pack.len }));
        }
        self.pending.clear();
        Ok(std::mem::take(&mut self.durable))
    }

    /// Sends the collected entries to be compressed and sealed.
    fn close_frame(&mut self) -> Result<()> {
        // The bound of frames in memory; what is popped here also decides, in a folder always at the same frame, when a pack
        // is full.
        if self.sealing.len() > self.way.frames_at_once() {
            self.append_oldest()?;
        }
        while self.way == Way::Line && self.sealing.front().is_some_and(|oldest| !oldest.frame.is_empty()) {
            self.append_oldest()?;
        }
        let (cipher, position) = self.next_position()?;
        self.hand_over_finished()?;
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

    /// Whether the pack being written, which this cipher is for, takes no further frame. Meta packs are closed by
    /// [`flush`](Self::flush) alone, after the data.
    fn is_full(&self, cipher: &Arc<PackCipher>) -> bool {
        let Some((of, _, len)) = self.writing.as_ref().filter(|_| self.options.content == Content::Data) else {
            return false;
        };
        Arc::ptr_eq(of, cipher) && (*len >= self.options.pack_len || self.is_line_idle() && *len >= self.early_len())
    }

    /// What makes a pack worth sending while the line is idle: twice as much as was sent before, so that a backup of any
    /// length makes only a few packs that are short.
    fn early_len(&self) -> u64 {
        (2 * self.handed_bytes).max(EARLY_LEN)
    }

    fn is_line_idle(&self) -> bool {
        let under_way = self.committer.as_ref().map_or(0, |committer| committer.under_way - committer.durable.len());
        self.way == Way::Line && under_way < SENT_AT_ONCE
    }

    fn append_oldest(&mut self) -> Result<()> {
        let Some(Sealing { cipher, entries, frame }) = self.sealing.pop_front() else { return Ok(()) };
        let sealed = frame.recv().map_err(|_| Error::internal("a worker ended without an answer"))??;
        let (_, writer, len) = match &mut self.writing {
            Some(writing) => writing,
            none => {
                let writer = PackWriter::create(cipher, &self.repository.store)?;
                none.insert((writer.cipher().clone(), writer, 0))
            }
        };
        *len += sealed.len_bytes() as u64;
        writer.append(&sealed, &entries)?;
        self.hand_over_finished()
    }

    /// Hands over the pack being written once its last frame was appended.
    fn hand_over_finished(&mut self) -> Result<()> {
        let Self { next, sealing, .. } = self;
        let goes_on = |of: &Arc<PackCipher>| {
            next.iter().any(|(cipher, _)| Arc::ptr_eq(cipher, of))
                || sealing.iter().any(|frame| Arc::ptr_eq(&frame.cipher, of))
        };
        match self.writing.take_if(|(of, _, _)| !goes_on(of)) {
            Some((_, writer, len)) => self.hand_over(writer, len),
            None => Ok(()),
        }
    }

    /// Gives a full pack to the committer, and takes back what it finished meanwhile.
    fn hand_over(&mut self, writer: PackWriter, len: u64) -> Result<()> {
        self.handed_bytes += len;
        let (index, at_once) = (&self.index, self.way.packs_at_once());
        let committer = self.committer.get_or_insert_with(|| Committer::start(index, at_once));
        if committer.has_failed() || committer.packs.send(writer).is_err() {
            let ended = self.committer.take().expect("it is there").end();
            return Err(ended.err().unwrap_or_else(|| Error::internal("the committing threads ended early")));
        }
        committer.under_way += 1;
        let durable: Vec<DurablePack> = committer.durable.try_iter().collect();
        committer.under_way -= durable.len();
        for pack in durable {
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
        if let Some(committer) = self.committer.take() {
            // What went wrong there is of no interest: the stream is given up.
            let _ = committer.end();
        }
    }
}

impl Committer {
    fn start(index: &Arc<Index>, at_once: usize) -> Self {
        let (packs, queue) = bounded::<PackWriter>(1);
        let (sender, durable) = crossbeam_channel::unbounded();
        let commit = |(queue, sender, index): (Receiver<PackWriter>, Sender<DurablePack>, Arc<Index>)| {
            std::thread::spawn(move || {
                for writer in queue {
                    let pack = writer.finish()?;
                    index.insert(&pack)?;
                    let _ = sender.send(pack);
                }
                Ok(())
            })
        };
        let ends = std::iter::repeat_n((queue, sender, index.clone()), at_once);
        Self { packs, durable, threads: ends.map(commit).collect(), under_way: 0 }
    }

    /// Whether a thread ended although more may come.
    fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Waits for all packs, and gives the first error there was.
    fn end(self) -> Result<()> {
        drop(self.packs);
        let ends = self
            .threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(Error::internal("a committing thread panicked"))));
        // All are waited for, also after an error.
        ends.collect::<Vec<_>>().into_iter().collect()
    }
}
