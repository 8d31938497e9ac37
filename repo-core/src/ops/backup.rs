//! Backup: source → chunks → look-up → frames → packs → index → manifest → snapshot.
//!
//! ```text
//! reader thread ──blocks──▶ rayon: cut, hash ──▶ this thread: compare, look up, collect ──▶ rayon: compress, seal
//!                                                              │ frames in order            │
//!                                                              ▼                            ▼
//!                                              committer thread: fsync, name, index ◀── pack being written
//! ```
//!
//! Every queue is bounded. The order that nothing may break: data packs durable, then in the index, then meta packs,
//! then the snapshot record.

mod base;
mod compare;
mod overlay;
mod sample;
mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::chunk::{Chunker, Run};
use crate::disk::{Delivery, DiskSource, PresentBlocks, Undelivered};
use crate::error::{Error, Result, ResultExt};
use crate::id::{EntryId, NodeId, PackId};
use crate::index::{KnownPack, PackNumber};
use crate::lease::Lease;
use crate::manifest::builder::TreeBuilder;
use crate::manifest::{NodeHasher, Tree};
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::lock;
use crate::ops::open::{Access, Session};
use crate::ops::pack_stream::{PackStream, StreamOptions};
use crate::remarks::Remarks;
use crate::snapshot::{self, Disk, DiskReading, NamedSnapshot, Snapshot, SnapshotOrigin, SnapshotStats};
use crate::store::{ObjectName, Store};
use crate::units::{BLOCK_LEN, PAGE_LEN};
pub use base::BaseChoice;
use base::Parent;
use compare::{Compared, Comparison};
use overlay::Overlay;
use sample::HintCheck;
use scan::{Scan, ScannedBlock};

/// How to back up.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// zstd level, 1 to 19; negative ones are faster and larger.
    pub level: i32,
    /// The moment the disks' content stands for, in milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// The time now, in milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// The VM's name.
    pub vm: Option<String>,
    /// VM metadata to keep, by name.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// What is said of the snapshot from its commit on.
    pub remarks: Remarks,
    /// The program that writes, with its version.
    pub program: String,
    /// Where the disks' snapshot was made, when it comes from another repository.
    pub origin: Option<SnapshotOrigin>,
}

impl BackupOptions {
    /// The choices of a plain backup at a time.
    pub fn new(now_ms: i64) -> Self {
        Self {
            level: 3,
            time_ms: now_ms,
            now_ms,
            vm: None,
            metadata: BTreeMap::new(),
            remarks: Remarks::default(),
            program: concat!("cairn ", env!("CARGO_PKG_VERSION")).to_owned(),
            origin: None,
        }
    }
}

/// A disk to back up.
pub struct DiskInput {
    /// The VDI's identity, chosen by the user.
    pub vdi: String,
    /// Its content.
    pub source: Box<dyn DiskSource>,
    /// The snapshot it is compared with; the newest of the VDI, if there is one, when none is chosen. A source that is a
    /// delta needs a choice: the disk is that snapshot's with the delta laid over it.
    pub base: Option<BaseChoice>,
}

impl DiskInput {
    /// A disk to be compared with the newest snapshot of its VDI.
    pub fn new(vdi: impl Into<String>, source: Box<dyn DiskSource>) -> Self {
        Self { vdi: vdi.into(), source, base: None }
    }
}

/// What a backup did.
#[derive(Debug, Clone)]
pub struct BackupReport {
    /// The snapshot, committed.
    pub snapshot: NamedSnapshot,
    /// Virtual sizes of the disks, in bytes.
    pub logical_bytes: u64,
    /// Non-zero pages of the disks, in bytes.
    pub allocated_bytes: u64,
    /// Plaintext of chunks stored anew, in bytes.
    pub new_bytes: u64,
    /// All that was added to the repository, in bytes: packs and the snapshot record.
    pub stored_bytes: u64,
    /// 2 MiB blocks with content that were read.
    pub blocks: u64,
    /// Of those, blocks equal to the snapshot they were compared with.
    pub unchanged_blocks: u64,
}

/// Backs up disks as one snapshot.
///
/// # Errors
/// Those of the sources and of the store; `NotFound`, `Invalid` or `Corrupt` when a base is missing, does not fit its delta or
/// is damaged. Nothing is committed then, and what was stored is used by the next try.
pub fn backup(
    session: &Session,
    disks: Vec<DiskInput>,
    options: &BackupOptions,
    monitor: &dyn Monitor,
) -> Result<BackupReport> {
    check_inputs(&disks)?;
    options.remarks.check()?;
    let working = session.begin("import", Access::Write, monitor)?;
    let (snapshots, _) = working.snapshots();
    let generation = session.index.generation();
    let mut run = Running::new(session, options)?;
    let mut stored = Vec::new();
    for disk in disks {
        let parent = Parent::choose(&disk.vdi, &*disk.source, disk.base, snapshots, session, monitor)?;
        stored.push(run.disk(disk, parent, monitor)?);
    }
    let report = run.commit(stored, options, working.lease(), generation)?;
    if let Err(error) = lock::renew_when_due(session, snapshots, working.locks_renewed_ms(), monitor) {
        // The snapshot is stored, and what it needs is locked.
        monitor.warn(&format!("locks of older snapshots were not renewed: {}", error.chain()));
    }
    Ok(report)
}

fn check_inputs(disks: &[DiskInput]) -> Result<()> {
    if disks.is_empty() {
        return Err(Error::invalid("a backup needs a disk"));
    }
    let mut names = BTreeSet::new();
    for disk in disks {
        if disk.vdi.is_empty() || disk.vdi.len() > 1024 {
            return Err(Error::invalid("a VDI id has 1 to 1024 bytes"));
        }
        if !names.insert(&disk.vdi) {
            return Err(Error::invalid(format!("VDI {} is named twice in one backup", disk.vdi)));
        }
    }
    Ok(())
}

/// A backup under way.
struct Running<'a> {
    session: &'a Session,
    chunker: Arc<Chunker>,
    node_hasher: NodeHasher,
    data: PackStream,
    meta: PackStream,
    /// Packs that chunks of this backup were found in.
    used_packs: BTreeSet<PackNumber>,
    written_packs: Vec<PackId>,
    stats: SnapshotStats,
    blocks: u64,
    unchanged_blocks: u64,
}

impl<'a> Running<'a> {
    fn new(session: &'a Session, options: &BackupOptions) -> Result<Self> {
        let config = &session.repository.config;
        let chunker = Chunker::new(config.chunk, &session.repository.keys)?;
        Ok(Self {
            session,
            chunker: Arc::new(chunker),
            node_hasher: NodeHasher::new(&session.repository.keys)?,
            data: PackStream::new(session, StreamOptions::data(config, options.level)),
            meta: PackStream::new(session, StreamOptions::meta(config)),
            used_packs: BTreeSet::new(),
            written_packs: Vec::new(),
            stats: SnapshotStats::default(),
            blocks: 0,
            unchanged_blocks: 0,
        })
    }

    fn disk(&mut self, input: DiskInput, parent: Option<Parent>, monitor: &dyn Monitor) -> Result<Disk> {
        let DiskInput { vdi, source, .. } = input;
        let delivery = source.delivery();
        let base = parent.as_ref().filter(|_| source.undelivered() == Undelivered::Base);
        // How much of a delta will come is not known.
        monitor.begin(&format!("reading {vdi}"), source.virtual_size().filter(|_| base.is_none()));
        let content = self.session.content.clone();
        let overlay = base.map(|base| Overlay::new(content.clone(), base.disk.tree));
        let mut builder = match base {
            Some(base) => TreeBuilder::over(self.node_hasher.clone(), base.disk.tree, &*content),
            None => TreeBuilder::new(self.node_hasher.clone()),
        };
        let mut delivered =
            source.virtual_size().filter(|_| base.is_some() && source.is_hinted()).map(PresentBlocks::new);
        let complete = parent.as_ref().is_some_and(|parent| parent.complete);
        let mut comparison = Comparison::new(parent.as_ref(), base.is_some(), &content);
        let mut reading = DiskReading { delta: base.is_some(), ..DiskReading::default() };
        let mut scan = Scan::start(source, overlay, self.chunker.clone(), self.node_hasher.clone());
        if let Some(parent) = parent.as_ref().filter(|_| base.is_none()) {
            content.fetch_ahead(&parent.disk.tree);
        }
        while let Some(scanned) = scan.next()? {
            check_cancelled(monitor)?;
            if delivery == Delivery::Ascending {
                builder.close_before(scanned.block, &mut |id, bytes| self.node(id, bytes))?;
            }
            let ScannedBlock { block, leaf_id, runs, .. } = &scanned;
            let compared = comparison.compare(*block, *leaf_id, runs, monitor)?;
            self.block(&scanned, &compared, complete)?;
            reading.read_bytes += BLOCK_LEN as u64;
            // What a delta leaves as it was is the base's already; its zeros are content and overwrite.
            let sets_leaf = if base.is_some() { !compared.unchanged } else { !leaf_id.is_none() };
            if sets_leaf {
                builder.set(*block, *leaf_id);
            }
            if let Some(delivered) = &mut delivered {
                delivered.insert(scanned.block);
            }
            monitor.advance(BLOCK_LEN as u64);
            scan.recycle(scanned);
        }
        let (mut source, virtual_size) = scan.finish()?;
        let root = builder.finish(virtual_size, &mut |id, bytes| self.node(id, bytes))?;
        reading.changed_bytes = comparison.changed_blocks(root, monitor)? * BLOCK_LEN as u64;
        monitor.end();
        if let (Some(delivered), Some(base)) = (&delivered, base) {
            self.check_hint(base.disk.tree, &mut *source, delivered, monitor)?;
        }
        Ok(Disk {
            vdi,
            tree: Tree { root, virtual_size },
            source_format: source.format().name().to_owned(),
            allocated_bytes: comparison.allocated_bytes(),
            reading,
            source_id: source.ids().map(|ids| ids.own),
            parent: parent.map(|parent| parent.id),
        })
    }

    fn check_hint(
        &self,
        base: Tree,
        source: &mut dyn DiskSource,
        delivered: &PresentBlocks,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        let Session { content, repository, .. } = self.session;
        let seed = repository.entropy.bytes()?;
        let check = HintCheck { base, content, chunker: &self.chunker, hasher: &self.node_hasher, seed };
        check.run(source, delivered, monitor)
    }

    /// Stores what is new of one block. What a complete parent has there, too, is stored already: it is neither looked up
    /// nor are its packs named, of which there are the more the more often the block was changed before.
    fn block(&mut self, scanned: &ScannedBlock, compared: &Compared, complete: bool) -> Result<()> {
        if scanned.leaf_id.is_none() {
            return Ok(());
        }
        self.blocks += 1;
        self.unchanged_blocks += u64::from(compared.unchanged);
        if compared.unchanged && complete {
            return Ok(());
        }
        let runs: Vec<&Run> = scanned.runs.iter().filter(|run| !compared.stored.contains(&run.id)).collect();
        let mut ids: Vec<EntryId> = runs.iter().map(|run| run.id.into()).collect();
        ids.push(scanned.leaf_id.into());
        let mut found = self.session.content.locate_live(&ids)?;
        let leaf_found = found.pop().expect("one was just pushed");
        self.used_packs.extend(found.iter().chain([&leaf_found]).flatten().map(|location| location.pack));
        for (run, _) in runs.into_iter().zip(found).filter(|(_, found)| found.is_none()) {
            self.store_chunk(run, scanned)?;
        }
        if leaf_found.is_none() {
            self.meta.add(scanned.leaf_id.into(), &scanned.leaf)?;
        }
        if self.meta.wants_flush() {
            self.flush()?;
        }
        Ok(())
    }

    /// Stores an inner node, unless it is stored.
    fn node(&mut self, id: NodeId, bytes: &[u8]) -> Result<()> {
        match self.session.content.locate_live(&[id.into()])?[0] {
            Some(location) => drop(self.used_packs.insert(location.pack)),
            None => drop(self.meta.add(id.into(), bytes)?),
        }
        Ok(())
    }

    fn store_chunk(&mut self, run: &Run, scanned: &ScannedBlock) -> Result<()> {
        if self.data.add(run.id.into(), &scanned.content.bytes()[run.range()])? {
            self.stats.new_bytes += u64::from(run.page_count) * PAGE_LEN as u64;
            self.stats.new_chunks += 1;
        }
        Ok(())
    }

    /// Makes all that was stored so far durable: data first, so that no durable node names a chunk that is not.
    fn flush(&mut self) -> Result<()> {
        for stream in [&mut self.data, &mut self.meta] {
            for pack in stream.flush()? {
                self.stats.pack_bytes += pack.len;
                self.written_packs.push(pack.id);
            }
        }
        Ok(())
    }

    fn commit(
        mut self,
        disks: Vec<Disk>,
        options: &BackupOptions,
        lease: &Lease,
        generation: u64,
    ) -> Result<BackupReport> {
        let (session, used) = (self.session, self.used());
        std::thread::scope(|scope| {
            // Beside the last packs on their way: on an object store each answer is a round trip away.
            let checking = scope.spawn(|| {
                check_there(&session.repository.store, &used)?;
                lock::cover(session, used.iter().map(|pack| pack.id)).context(|| "cannot lock what the snapshot needs")
            });
            self.flush()?;
            checking.join().map_err(|_| Error::internal("a thread panicked"))?
        })?;
        let packs: BTreeSet<PackId> =
            self.written_packs.iter().copied().chain(used.iter().map(|pack| pack.id)).collect();
        let packs = packs.into_iter().collect();
        let logical_bytes = disks.iter().map(|disk| disk.tree.virtual_size).sum();
        let allocated_bytes = disks.iter().map(|disk| disk.allocated_bytes).sum();
        let record = Snapshot {
            time_ms: options.time_ms,
            committed_ms: options.now_ms,
            vm: options.vm.clone(),
            disks,
            packs,
            stats: self.stats,
            program: options.program.clone(),
            metadata: options.metadata.clone(),
            remarks: options.remarks.clone(),
            origin: options.origin,
        };
        lease.check()?;
        let snapshot = snapshot::commit(&self.session.repository, &self.session.index, record)
            .context(|| "cannot commit the snapshot")?;
        if let Err(error) = lease.check() {
            // Garbage collection did not wait for this backup: what it relies on may be gone.
            self.session.repository.store.delete(ObjectName::Snapshot(snapshot.id))?;
            return Err(error);
        }
        // Every chunk and node of it was just stored, or found, or belongs to a complete parent; and nothing that was
        // found has been condemned since, as far as this index knows.
        if self.session.index.generation() == generation {
            self.session.index.mark_complete(snapshot.id)?;
        }
        Ok(BackupReport {
            logical_bytes,
            allocated_bytes,
            new_bytes: self.stats.new_bytes,
            stored_bytes: self.stats.pack_bytes + snapshot.len,
            blocks: self.blocks,
            unchanged_blocks: self.unchanged_blocks,
            snapshot,
        })
    }

    /// Packs that chunks were found in.
    fn used(&self) -> Vec<KnownPack> {
        self.used_packs.iter().map(|number| self.session.index.pack(*number)).collect()
    }
}

/// Fails unless packs that a snapshot is to rely on are there, and as long as they were.
fn check_there(store: &Store, packs: &[KnownPack]) -> Result<()> {
    let checked = store.each(packs, |known| {
        let len = store.len(ObjectName::Pack(known.id))?;
        if len != known.len {
            let text = format!("pack {} has {len} bytes instead of {}", known.id.short(), known.len);
            return Err(Error::corrupt(text));
        }
        Ok(())
    });
    checked.into_iter().collect()
}
