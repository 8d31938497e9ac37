//! Garbage collection, online: what no snapshot needs is deleted while backups and restores go on (docs/concurrency.md).
//!
//! ```text
//! tombstones and leases ─▶ snapshots ─▶ mark ─▶ survey ─▶ delete, or rescue, what was condemned earlier
//!                                             └──▶ order, repack ─▶ condemn ─▶ look at leases and snapshots again ─▶ delete
//! ```
//!
//! A pack is condemned by a tombstone first. It is deleted when all leases are gone that were there once the tombstone was,
//! and a mark over the snapshots listed *after* that found it needless again. Every step can be the last one of a process:
//! the next run goes on from what is stored.

mod choice;
pub(in crate::ops) mod mark;
mod order;
mod repack;
mod survey;

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, ErrorKind, Result};
use crate::id::{LeaseId, PackId, SnapshotId, TombstoneName};
use crate::index::PackState;
use crate::keys::Role;
use crate::lease::{self, Lease, LeaseInfo};
use crate::monitor::Monitor;
use crate::ops::lock;
use crate::ops::open::Session;
use crate::pack::Content;
use crate::repository::Repository;
use crate::snapshot::NamedSnapshot;
use crate::store::ObjectName;
use crate::store::lock::Deletion;
use crate::tombstone::{self, Stage, Tombstone};
use order::Order;
use repack::Task;
use survey::PackUse;

/// How long a tombstone stays after its packs were deleted, for indexes elsewhere to learn from, in milliseconds: 30 days.
const REMEMBERED_MS: i64 = 30 * 24 * 60 * 60 * 1000;

/// What the lease of a collection says.
const OPERATION: &str = "gc";

/// How to collect garbage.
#[derive(Debug, Clone, Copy)]
pub struct GcOptions {
    /// The time now, in milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// How long packs stay condemned at least before they are deleted, in milliseconds.
    pub grace_ms: i64,
    /// The share of a pack's bytes that may be needless before what is left is moved, 0 to 1.
    pub dead_share_max: f64,
    /// How much a restore of a disk's newest snapshot may decode, measured by what it would decode if all of it stood in
    /// the order of the disk, before it is put in order; at least 1.
    pub scatter_max: f64,
    /// Stored bytes that one run moves at most.
    pub move_bytes_max: u64,
    /// zstd level of what is moved.
    pub level: i32,
    /// Only find out.
    pub dry_run: bool,
}

impl GcOptions {
    /// The choices of a plain collection at a time.
    pub fn new(now_ms: i64) -> Self {
        let grace_ms = 60 * 60 * 1000;
        Self {
            now_ms,
            grace_ms,
            dead_share_max: 0.2,
            scatter_max: 1.2,
            move_bytes_max: 64 << 30,
            level: 3,
            dry_run: false,
        }
    }
}

/// What a collection found and did. All bytes are stored ones.
#[derive(Debug, Clone, Default)]
pub struct GcReport {
    /// Snapshots that were walked.
    pub snapshots: u64,
    /// Their distinct manifest nodes.
    pub nodes: u64,
    /// Chunks that these nodes name, as often as they name them.
    pub references: u64,
    /// Bytes of packs that are needed.
    pub needed_bytes: u64,
    /// Bytes of packs that nothing needs, in packs that stay.
    pub waste_bytes: u64,
    /// Packs deleted now, condemned by this run or by an earlier one.
    pub deleted_packs: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Packs newly condemned.
    pub condemned_packs: u64,
    /// Their bytes.
    pub condemned_bytes: u64,
    /// Packs whose needed content was moved.
    pub repacked_packs: u64,
    /// Of these, packs that were not wasteful, but held parts of newest snapshots that were put in order.
    pub ordered_packs: u64,
    /// Disks whose newest snapshot was scattered.
    pub scattered_disks: u64,
    /// Bytes of the packs that content was moved to.
    pub moved_bytes: u64,
    /// Packs that were worth repacking and stay as they are, because the key in use does not read content.
    pub unreadable_packs: u64,
    /// What nothing needs of these.
    pub unreadable_waste_bytes: u64,
    /// Packs that were condemned and turned out to be needed.
    pub rescued_packs: u64,
    /// Packs that stay condemned for now.
    pub waiting_packs: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Who is at work and is waited for.
    pub waits_for: Vec<LeaseInfo>,
    /// Packs that nothing needs but that may belong to a backup under way.
    pub young_packs: u64,
    /// Packs that nothing needs and that are locked: they are condemned when their lock ends.
    pub locked_packs: u64,
    /// Their bytes.
    pub locked_bytes: u64,
    /// When the first of these locks ends, in milliseconds since the Unix epoch.
    pub unlocked_from_ms: Option<i64>,
    /// Objects whose lock was renewed because snapshots need them.
    pub renewed_locks: u64,
}

/// Collects garbage.
///
/// # Errors
/// `Corrupt` when a snapshot or a manifest cannot be read: what it needs is unknown, and nothing is deleted;
/// `Locked` when another collection is at work; `Forbidden` without the structure key; `Io`,
/// `Unavailable`, `Interrupted`.
pub fn gc(session: &Session, options: &GcOptions, monitor: &dyn Monitor) -> Result<GcReport> {
    // One could take back what another is about to delete.
    let lease = match options.dry_run {
        true => Lease::put_if_writable(&session.repository, OPERATION)?,
        false => Lease::put_alone(&session.repository, OPERATION, &[OPERATION])?,
    };
    let mut run = Run { session, options, monitor, own: &lease, report: GcReport::default() };
    // Who is waited for is settled before the snapshots are listed: whoever is gone by now has committed what it will.
    let graves = run.graves()?;
    let snapshots = run.snapshots()?;
    let uses = run.survey(&snapshots)?;
    let graves = run.bury(graves, &uses)?;
    run.reclaim(&snapshots, &uses)?;
    run.renew_locks(&snapshots, &uses)?;
    run.tidy(graves)?;
    Ok(run.report)
}

/// A tombstone and whether its packs may be deleted, if they still are not needed.
struct Grave {
    name: TombstoneName,
    tombstone: Tombstone,
    ripe: bool,
}

struct Run<'a> {
    session: &'a Session,
    options: &'a GcOptions,
    monitor: &'a dyn Monitor,
    own: &'a Lease,
    report: GcReport,
}

impl Run<'_> {
    fn repository(&self) -> &Repository {
        &self.session.repository
    }

    /// Leases of others.
    fn leases(&self) -> Result<BTreeSet<LeaseId>> {
        let living = lease::living(self.repository(), Some(self.own))?;
        Ok(living.into_iter().filter(|id| Some(*id) != self.own.id()).collect())
    }

    fn graves(&mut self) -> Result<Vec<Grave>> {
        let mut graves = Vec::new();
        for listed in self.repository().store.list_tombstones()? {
            match tombstone::read(self.repository(), listed.id) {
                Ok(tombstone) => graves.push(Grave { name: listed.id, tombstone, ripe: false }),
                // Replaced meanwhile: another collection is at work, and this one leaves the packs alone.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // It condemns nothing then, and its packs are judged anew.
                Err(error) if error.is_damage() => self.monitor.damage(&error),
                Err(error) => return Err(error),
            }
        }
        let leases = self.leases()?;
        let mut waited_for = BTreeSet::new();
        for grave in &mut graves {
            if !self.options.dry_run {
                self.note_leases(grave, &leases)?;
            }
            if let Stage::Announced { waits_for: Some(waits_for), .. } = &grave.tombstone.stage {
                let old_enough = grave.tombstone.created_ms + self.options.grace_ms <= self.options.now_ms;
                grave.ripe = old_enough && waits_for.is_disjoint(&leases);
                waited_for.extend(waits_for.intersection(&leases).copied());
            }
        }
        self.name_waited_for(&waited_for);
        Ok(graves)
    }

    /// Writes down whom a tombstone waits for, where the run that put it did not get to it.
    fn note_leases(&self, grave: &mut Grave, leases: &BTreeSet<LeaseId>) -> Result<()> {
        let Stage::Announced { waits_for, .. } = &mut grave.tombstone.stage else { return Ok(()) };
        if waits_for.is_none() {
            *waits_for = Some(leases.clone());
            grave.name = tombstone::replace(self.repository(), grave.name, &mut grave.tombstone)?;
        }
        Ok(())
    }

    fn name_waited_for(&mut self, leases: &BTreeSet<LeaseId>) {
        // One that ended meanwhile has no name any more.
        let named = leases.iter().filter_map(|id| lease::read(self.repository(), *id).ok());
        self.report.waits_for = named.collect();
    }

    fn snapshots(&mut self) -> Result<Vec<NamedSnapshot>> {
        let (snapshots, errors) = self.session.snapshots(self.monitor)?;
        // One that was forgotten since it was listed is no loss.
        if let Some((id, error)) = errors.into_iter().find(|(_, error)| error.kind() != ErrorKind::NotFound) {
            let text = format!(
                "snapshot {} cannot be read, so what it needs is unknown: nothing was deleted; run cairn check",
                id.short()
            );
            return Err(Error::with_source(error.kind(), text, error));
        }
        self.report.snapshots = snapshots.len() as u64;
        Ok(snapshots)
    }

    fn survey(&mut self, snapshots: &[NamedSnapshot]) -> Result<Vec<PackUse>> {
        let (session, monitor, report) = (self.session, self.monitor, &mut self.report);
        survey::survey(
            session,
            &mut |part, live| {
                monitor.begin("walking manifests", None);
                let marked = mark::mark(session, snapshots, part, live, monitor).map_err(|error| {
                    let text =
                        "a manifest cannot be read, so what it needs is unknown: nothing was deleted; run cairn check";
                    if error.is_loss() { error.context(text) } else { error }
                })?;
                (report.nodes, report.references) = (marked.nodes, marked.references);
                monitor.end();
                Ok(())
            },
            monitor,
        )
    }

    /// Whether condemned packs stay condemned, and what is needed of them is moved. Where a lease may be revoked while its
    /// holder is only slow, a collection may delete long after it decided to: nobody may rely on its packs again.
    fn condemned_for_good(&self) -> bool {
        self.repository().store.lease_terms().is_some()
    }

    /// Deletes what was condemned earlier and is still not needed; takes back what turned out to be needed.
    fn bury(&mut self, graves: Vec<Grave>, uses: &[PackUse]) -> Result<Vec<Grave>> {
        let uses: BTreeMap<PackId, &PackUse> = uses.iter().map(|used| (used.pack.id, used)).collect();
        let mut kept = Vec::new();
        for mut grave in graves {
            // A pack that the index does not know, or cannot read, is left alone.
            let there: Vec<&PackUse> = grave.tombstone.packs.iter().filter_map(|id| uses.get(id).copied()).collect();
            let needed: BTreeSet<PackId> =
                there.iter().filter(|used| !used.is_dead()).map(|used| used.pack.id).collect();
            let is_announced = matches!(grave.tombstone.stage, Stage::Announced { .. });
            if is_announced && !needed.is_empty() && !self.options.dry_run && !self.condemned_for_good() {
                self.report.rescued_packs += needed.len() as u64;
                grave.tombstone.packs.retain(|id| !needed.contains(id));
                grave.name = tombstone::replace(self.repository(), grave.name, &mut grave.tombstone)?;
            }
            let dead: Vec<&PackUse> = there.into_iter().filter(|used| !needed.contains(&used.pack.id)).collect();
            if grave.ripe && !self.options.dry_run {
                let all_went = self.delete(&dead)?;
                // What is still needed of the others moves first; they go with the next run.
                if all_went && (needed.is_empty() || !self.condemned_for_good()) {
                    self.mark_deleted(&mut grave)?;
                }
            } else {
                self.report.waiting_packs += dead.len() as u64;
                self.report.waiting_bytes += dead.iter().map(|used| used.pack.len).sum::<u64>();
            }
            kept.push(grave);
        }
        Ok(kept)
    }

    /// Deletes packs; `false` when some of them are still locked.
    fn delete(&mut self, packs: &[&PackUse]) -> Result<bool> {
        self.own.check()?;
        let mut all_went = true;
        for used in packs {
            match self.delete_one(ObjectName::Pack(used.pack.id)) {
                // Another collection was faster.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Ok(Deletion::Retained) => {
                    all_went = false;
                    self.report.waiting_packs += 1;
                    self.report.waiting_bytes += used.pack.len;
                    continue;
                }
                Ok(Deletion::Done) => {}
                Err(error) => return Err(error),
            }
            self.report.deleted_packs += 1;
            self.report.deleted_bytes += used.pack.len;
        }
        Ok(all_went)
    }

    fn delete_one(&self, name: ObjectName) -> Result<Deletion> {
        let store = &self.repository().store;
        match store.lock_terms() {
            // A plain delete would only cover what is there.
            Some(_) => store.delete_for_good(name),
            None => store.delete(name).map(|()| Deletion::Done),
        }
    }

    /// Keeps locked what the snapshots need.
    fn renew_locks(&mut self, snapshots: &[NamedSnapshot], uses: &[PackUse]) -> Result<()> {
        if self.options.dry_run {
            return Ok(());
        }
        let needed = uses.iter().filter(|used| !used.is_dead() && self.session.index.is_live(used.pack.id));
        let needed = needed.map(|used| used.pack.id).collect();
        let renewed = lock::renew(self.session, snapshots, &needed, self.monitor)?;
        self.report.renewed_locks = renewed.renewed;
        Ok(())
    }

    /// Leaves for later what cannot be deleted once its grace time is over: as long as a pack is there, snapshots may as well use it.
    fn spare_locked(&mut self, dead: &mut Vec<&PackUse>) -> Result<BTreeSet<PackId>> {
        let after = self.options.now_ms.saturating_add(self.options.grace_ms);
        let locked: BTreeMap<PackId, i64> = lock::locked_beyond(self.session, after)?.into_iter().collect();
        let spared: Vec<_> = dead.extract_if(.., |used| locked.contains_key(&used.pack.id)).collect();
        self.report.locked_packs = spared.len() as u64;
        self.report.locked_bytes = spared.iter().map(|used| used.pack.len).sum();
        self.report.unlocked_from_ms = spared.iter().filter_map(|used| locked.get(&used.pack.id)).min().copied();
        Ok(locked.into_keys().collect())
    }

    fn mark_deleted(&self, grave: &mut Grave) -> Result<()> {
        grave.tombstone.stage = Stage::Deleted;
        grave.name = tombstone::replace(self.repository(), grave.name, &mut grave.tombstone)?;
        Ok(())
    }

    /// Condemns what nothing needs, after what is needed of wasteful packs was moved.
    fn reclaim(&mut self, snapshots: &[NamedSnapshot], uses: &[PackUse]) -> Result<()> {
        let live = || uses.iter().filter(|used| used.pack.state == PackState::Live);
        let young = self.young_packs()?;
        let mut dead: Vec<_> = live().filter(|used| used.is_dead() && !young.contains(&used.pack.id)).collect();
        let locked = self.spare_locked(&mut dead)?;
        self.report.young_packs = live().filter(|used| used.is_dead() && young.contains(&used.pack.id)).count() as u64;
        let pack_len = u64::from(self.repository().config.pack_len);
        let mut emptied = choice::to_repack(uses, pack_len, self.options);
        // What is needed of these would only be stored twice meanwhile.
        emptied.retain(|at| !locked.contains(&uses[*at].pack.id));
        if !self.can_repack_content() {
            let unreadable: Vec<_> = emptied.extract_if(.., |at| uses[*at].pack.content == Content::Data).collect();
            let waste = |at: &usize| uses[*at].frame_bytes - uses[*at].needed_bytes;
            self.report.unreadable_packs = unreadable.len() as u64;
            self.report.unreadable_waste_bytes = unreadable.iter().map(waste).sum();
        }
        choice::limit(&mut emptied, uses, self.options);
        let Order { route, packs, scattered_disks } =
            order::plan(self.session, snapshots, uses, &emptied, self.options, self.monitor)?;
        let packs: Vec<_> = packs.into_iter().filter(|at| !locked.contains(&uses[*at].pack.id)).collect();
        let for_order: BTreeSet<PackId> = packs.iter().map(|at| uses[*at].pack.id).collect();
        self.report.scattered_disks = scattered_disks;
        emptied.extend(packs);
        if self.condemned_for_good() {
            let needed = |used: &PackUse| used.pack.state == PackState::Condemned && used.needed_entries > 0;
            emptied.extend(uses.iter().enumerate().filter(|(_, used)| needed(used)).map(|(at, _)| at));
        }
        self.report.needed_bytes = live().map(|used| used.needed_bytes).sum();
        self.report.waste_bytes = live().map(|used| used.frame_bytes - used.needed_bytes).sum();
        let mut condemned: BTreeSet<PackId> = dead.iter().map(|used| used.pack.id).collect();
        let mut written = BTreeSet::new();
        if self.options.dry_run {
            condemned.extend(emptied.iter().map(|at| uses[*at].pack.id));
            self.report.repacked_packs = emptied.len() as u64;
            self.report.ordered_packs = for_order.len() as u64;
            self.report.moved_bytes = emptied.iter().map(|at| uses[*at].needed_bytes).sum();
        } else if !emptied.is_empty() {
            let task = Task { uses, packs: &emptied, route: route.as_ref() };
            let moved = repack::repack(self.session, &task, self.options.level, self.monitor)?;
            self.report.repacked_packs = moved.emptied.len() as u64;
            self.report.ordered_packs = moved.emptied.intersection(&for_order).count() as u64;
            self.report.moved_bytes = moved.new_bytes;
            condemned.extend(moved.emptied);
            written = moved.new_packs;
        }
        let condemned: Vec<&PackUse> = live().filter(|used| condemned.contains(&used.pack.id)).collect();
        self.report.condemned_packs = condemned.len() as u64;
        self.report.condemned_bytes = condemned.iter().map(|used| used.pack.len).sum();
        self.report.waste_bytes -= condemned.iter().map(|used| used.frame_bytes - used.needed_bytes).sum::<u64>();
        if self.options.dry_run || condemned.is_empty() {
            return Ok(());
        }
        self.condemn(snapshots, &condemned, written)
    }

    /// Whether the key in use opens chunks and names them anew. Nodes are repacked with the structure key alone.
    fn can_repack_content(&self) -> bool {
        let keys = &self.repository().keys;
        keys.get(Role::Identity).is_ok() && keys.get(Role::Data).is_ok()
    }

    /// Packs that may belong to a backup under way: as young as the oldest lease, by the store's own clock. Only to spare
    /// them being condemned and rescued: safety does not rest on it.
    fn young_packs(&self) -> Result<BTreeSet<PackId>> {
        let leases = self.leases()?;
        let listed = self.repository().store.list_leases()?;
        let oldest = listed.iter().filter(|listed| leases.contains(&listed.id)).map(|listed| listed.stored_ms).min();
        let Some(oldest) = oldest else { return Ok(BTreeSet::new()) };
        let packs = self.repository().store.list_packs()?;
        Ok(packs.into_iter().filter(|pack| pack.stored_ms >= oldest).map(|pack| pack.id).collect())
    }

    fn condemn(&mut self, snapshots: &[NamedSnapshot], packs: &[&PackUse], written: BTreeSet<PackId>) -> Result<()> {
        let considered: BTreeSet<SnapshotId> = snapshots.iter().map(|named| named.id).collect();
        let stage = Stage::Announced { considered: considered.clone(), waits_for: None };
        let ids = packs.iter().map(|used| used.pack.id).collect();
        let serial = tombstone::next_serial(self.repository())?;
        let tombstone = Tombstone { serial, step: 0, written, created_ms: self.options.now_ms, packs: ids, stage };
        let name = tombstone::put(self.repository(), &tombstone)?;
        let mut grave = Grave { name, tombstone, ripe: false };
        // After the tombstone: whoever puts a lease from here on sees it.
        let leases = self.leases()?;
        self.note_leases(&mut grave, &leases)?;
        // This replica knows what the tombstone considered: its snapshots stay complete.
        self.session.catch_up(self.monitor)?;
        if self.options.grace_ms == 0 && leases.is_empty() && self.nothing_was_committed(&considered)? {
            if self.delete(packs)? {
                self.mark_deleted(&mut grave)?;
            }
            return Ok(());
        }
        self.name_waited_for(&leases);
        self.report.waiting_packs += packs.len() as u64;
        self.report.waiting_bytes += packs.iter().map(|used| used.pack.len).sum::<u64>();
        Ok(())
    }

    /// Whether there are no other snapshots than those that were walked.
    fn nothing_was_committed(&self, considered: &BTreeSet<SnapshotId>) -> Result<bool> {
        let listed = self.repository().store.list_snapshots()?;
        Ok(listed.iter().all(|listed| considered.contains(&listed.id)))
    }

    /// Drops old tombstones, and lets the index know what became of the packs.
    fn tidy(&self, graves: Vec<Grave>) -> Result<()> {
        if self.options.dry_run {
            return Ok(());
        }
        let next = tombstone::next_serial(self.repository())?;
        for grave in graves {
            let old = grave.tombstone.created_ms + REMEMBERED_MS <= self.options.now_ms;
            let empty = grave.tombstone.packs.is_empty();
            // The newest stays, so that indexes elsewhere see which ones they missed.
            if (empty || old && grave.tombstone.stage == Stage::Deleted) && grave.name.serial + 1 < next {
                tombstone::delete(self.repository(), grave.name)?;
            }
        }
        lease::tidy(&self.repository().store, self.own)?;
        self.session.catch_up(self.monitor).map(drop)
    }
}
