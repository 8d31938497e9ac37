//! A sync between copies: packs and records move as they are.
//!
//! Snapshots are dealt with in groups, oldest first. A group's packs move before its annotations and those before its records:
//! data before meta, so that no durable node names a chunk that is not. A snapshot that needs a pack which cannot be had is left
//! out, and those of its group that were compared with it are looked at again by themselves.

use std::collections::{BTreeSet, HashSet, VecDeque};

use rayon::prelude::*;

use super::needs::Needs;
use super::planner::{Base, Planned, Planner};
use super::{SyncOptions, SyncReport, Synced, entries, packs, remarks};
use crate::annotation::{self, Annotations};
use crate::error::{Error, ErrorKind, Result};
use crate::id::SnapshotId;
use crate::index::{KnownPack, PackNumber};
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::lock;
use crate::ops::open::{Reach, Session, Working};
use crate::pack::Content;
use crate::snapshot::{NamedSnapshot, RECORD_LEN_MAX};
use crate::store::{ObjectName, Store};

/// Snapshots of one group: so many records are stored at once.
const GROUP_MAX: usize = 32;
/// Bytes of packs after which a group is closed: what arrived becomes snapshots now and then.
const GROUP_LEN: u64 = 4 << 30;

/// Finds out what would move.
pub(super) fn plan(
    from: &Session,
    to: Option<&Session>,
    there: &[NamedSnapshot],
    chosen: &[&NamedSnapshot],
    report: &mut SyncReport,
    monitor: &dyn Monitor,
) -> Result<()> {
    let mut planner = Planner::new(from, to, there, monitor)?;
    let mut wanted = BTreeSet::new();
    let mut anew = BTreeSet::new();
    monitor.begin("finding what is missing", None);
    for named in missing(chosen, there, report) {
        match planner.look_at(named, &BTreeSet::new()) {
            Ok(planned) => {
                wanted.extend(planned.needs.packs);
                anew.extend(planned.needs.condemned);
                planner.bases.push(Base::new(named));
                report.synced.push(Synced::new(named, Some(named.id)));
            }
            Err(error) if error.is_loss() => report.fail(named.id, error, monitor),
            Err(error) => return Err(error),
        }
    }
    monitor.end();
    report.moved_packs = wanted.len() as u64;
    report.moved_bytes = wanted.iter().map(|number| from.index.pack(*number).len).sum();
    report.stored_bytes = anew.iter().map(|number| from.index.pack(*number).len).sum();
    Ok(())
}

/// Moves what TO lacks. `working` is the work under way there.
#[expect(clippy::too_many_arguments, reason = "both sides, what is chosen of one, and how")]
pub(super) fn sync(
    from: &Session,
    to: &Session,
    working: &Working,
    chosen: &[&NamedSnapshot],
    annotations: &Annotations,
    options: &SyncOptions,
    report: &mut SyncReport,
    monitor: &dyn Monitor,
) -> Result<()> {
    let there = &working.snapshots().0;
    let (annotations_there, errors) = annotation::read_all(&to.repository)?;
    report.take_unreadable(errors.iter().map(|(_, error)| error), monitor)?;
    let both = (annotations, &annotations_there);
    let new: Vec<_> = missing(chosen, there, report);
    if !new.is_empty() && to.reach == Reach::Named {
        // What a sync that was broken off left is named nowhere.
        to.catch_up(monitor)?;
    }
    let new_ids: HashSet<_> = new.iter().map(|named| named.id).collect();
    for named in chosen.iter().filter(|named| !new_ids.contains(&named.id)) {
        report.annotations += remarks::copy(&from.repository, &to.repository, named.id, both, monitor)?;
    }
    let mut mover = Mover {
        planner: Planner::new(from, Some(to), there, monitor)?,
        from,
        to,
        working,
        annotations: both,
        options,
        report,
    };
    mover.run(&new)?;
    if let Err(error) = lock::renew_when_due(to, there, working.locks_renewed_ms(), monitor) {
        // What was synced is locked.
        monitor.warn(&format!("locks of older snapshots were not renewed: {}", error.chain()));
    }
    Ok(())
}

/// The chosen snapshots that TO lacks.
fn missing<'a>(
    chosen: &[&'a NamedSnapshot],
    there: &[NamedSnapshot],
    report: &mut SyncReport,
) -> Vec<&'a NamedSnapshot> {
    let there: HashSet<_> = there.iter().map(|named| named.id).collect();
    let new: Vec<_> = chosen.iter().copied().filter(|named| !there.contains(&named.id)).collect();
    report.present_snapshots = (chosen.len() - new.len()) as u64;
    new
}

struct Mover<'a, 'r> {
    planner: Planner<'a>,
    from: &'a Session,
    to: &'a Session,
    working: &'a Working,
    annotations: (&'a Annotations, &'a Annotations),
    options: &'a SyncOptions,
    report: &'r mut SyncReport,
}

impl<'a> Mover<'a, '_> {
    fn run(&mut self, new: &[&'a NamedSnapshot]) -> Result<()> {
        let generation = self.to.index.generation();
        let mut left: VecDeque<&NamedSnapshot> = new.iter().copied().collect();
        // Snapshots that were compared with one which could not be synced.
        let mut again: VecDeque<&NamedSnapshot> = VecDeque::new();
        while !left.is_empty() || !again.is_empty() {
            check_cancelled(self.planner.monitor)?;
            let group = match again.pop_front() {
                Some(named) => self.group(&mut VecDeque::from([named]))?,
                None => self.group(&mut left)?,
            };
            again.extend(self.settle(group, generation)?);
        }
        self.report.synced.sort_by_key(|synced| (synced.time_ms, synced.id));
        Ok(())
    }

    /// Plans as many of the snapshots that are left as go together.
    fn group(&mut self, left: &mut VecDeque<&'a NamedSnapshot>) -> Result<Vec<Planned<'a>>> {
        let monitor = self.planner.monitor;
        let mut group: Vec<Planned<'a>> = Vec::new();
        let (mut ids, mut packs, mut len) = (BTreeSet::new(), BTreeSet::new(), 0);
        monitor.begin("finding what is missing", None);
        while group.len() < GROUP_MAX && len < GROUP_LEN {
            let Some(named) = left.pop_front() else { break };
            match self.planner.look_at(named, &ids) {
                Ok(planned) => {
                    let new = planned.needs.packs.iter().filter(|number| packs.insert(**number));
                    len += new.map(|number| self.from.index.pack(*number).len).sum::<u64>();
                    ids.insert(named.id);
                    self.planner.bases.push(Base::new(named));
                    group.push(planned);
                }
                Err(error) if error.is_loss() => self.report.fail(named.id, error, monitor),
                Err(error) => return Err(error),
            }
        }
        monitor.end();
        Ok(group)
    }

    /// Moves and commits a group, and gives the snapshots that are to be looked at again.
    fn settle(&mut self, group: Vec<Planned<'a>>, generation: u64) -> Result<Vec<&'a NamedSnapshot>> {
        let total: BTreeSet<PackNumber> = group
            .iter()
            .flat_map(|planned| planned.needs.packs.iter().chain(&planned.needs.condemned))
            .copied()
            .collect();
        let total: u64 = total.iter().map(|number| self.from.index.pack(*number).len).sum();
        self.planner.monitor.begin("moving packs", Some(total));
        let mut again = Vec::new();
        let group = self.move_packs(group, Content::Data, &mut again)?;
        let group = self.move_packs(group, Content::Meta, &mut again)?;
        self.planner.monitor.end();
        self.check_found(&group)?;
        let group: Vec<&NamedSnapshot> = group.iter().map(|planned| planned.named).collect();
        for named in &group {
            self.report.annotations += remarks::copy(
                &self.from.repository,
                &self.to.repository,
                named.id,
                self.annotations,
                self.planner.monitor,
            )?;
        }
        self.commit(&group, generation)?;
        Ok(again)
    }

    /// Moves the packs of one content, and gives the snapshots that have all of theirs.
    fn move_packs(
        &mut self,
        group: Vec<Planned<'a>>,
        content: Content,
        again: &mut Vec<&'a NamedSnapshot>,
    ) -> Result<Vec<Planned<'a>>> {
        let known = |number: &PackNumber| self.from.index.pack(*number);
        let of = |numbers: fn(&Needs) -> &BTreeSet<PackNumber>| {
            let all: BTreeSet<PackNumber> = group.iter().flat_map(|planned| numbers(&planned.needs)).copied().collect();
            all.into_iter().filter(|number| known(number).content == content).collect::<Vec<_>>()
        };
        let (moving, anew) = (of(|needs| &needs.packs), of(|needs| &needs.condemned));
        let moving: Vec<KnownPack> = moving.iter().map(known).collect();
        let moved = packs::move_packs(self.from, self.to, &moving, self.planner.monitor)?;
        let stored = entries::store_anew(self.from, self.to, &anew, content, self.options.level, self.planner.monitor)?;
        self.report.moved_packs += moved.packs;
        self.report.moved_bytes += moved.bytes;
        self.report.stored_bytes += stored.bytes;
        let lost = moved.lost.into_iter().chain(stored.lost);
        self.planner.lost.extend(lost.map(|(id, error)| (id, error.chain())));
        Ok(self.without_lost(group, again))
    }

    /// Takes out of a group what cannot be synced: for good, or with what it was compared with.
    fn without_lost(&mut self, group: Vec<Planned<'a>>, again: &mut Vec<&'a NamedSnapshot>) -> Vec<Planned<'a>> {
        let mut out = BTreeSet::new();
        let mut whole = Vec::new();
        for planned in group {
            let id = planned.named.id;
            let why = self.planner.all_packs(&planned.needs).find_map(|pack| self.planner.lost.get(&pack)).cloned();
            if let Some(why) = why {
                self.report.fail(id, Error::corrupt(why), self.planner.monitor);
            } else if !planned.bases.is_disjoint(&out) {
                again.push(planned.named);
            } else {
                whole.push(planned);
                continue;
            }
            out.insert(id);
        }
        self.planner.bases.retain(|base| !out.contains(&base.id));
        whole
    }

    /// Makes sure that the packs of TO in which something was found are still there: a repair waits for nobody.
    fn check_found(&self, group: &[Planned<'_>]) -> Result<()> {
        let found: BTreeSet<PackNumber> = group.iter().flat_map(|planned| &planned.needs.found).copied().collect();
        let found: Vec<PackNumber> = found.into_iter().collect();
        lock::cover(self.to, found.iter().map(|number| self.to.index.pack(*number).id))?;
        found.par_iter().try_for_each(|number| {
            let known = self.to.index.pack(*number);
            let len = self.to.repository.store.len(ObjectName::Pack(known.id))?;
            match len == known.len {
                true => Ok(()),
                false => {
                    let text = format!("pack {} has {len} bytes instead of {}", known.id.short(), known.len);
                    Err(Error::corrupt(text))
                }
            }
        })
    }

    /// Stores the records of snapshots of which everything arrived: from here on TO has them.
    fn commit(&mut self, group: &[&NamedSnapshot], generation: u64) -> Result<()> {
        let read: Vec<_> = group.par_iter().map(|named| self.record(named.id)).collect();
        let mut records = Vec::new();
        for (named, read) in group.iter().zip(read) {
            match read {
                Ok(record) => records.push((*named, record)),
                // Forgotten in FROM since it was listed.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.planner.bases.retain(|base| base.id != named.id);
                }
                Err(error) if error.is_loss() => self.report.fail(named.id, error, self.planner.monitor),
                Err(error) => return Err(error),
            }
        }
        let store = &self.to.repository.store;
        self.working.lease().check()?;
        let put: Vec<_> = records.par_iter().map(|(named, record)| put_record(store, named.id, record)).collect();
        if let Err(error) = self.working.lease().check() {
            // Garbage collection did not wait: what they rely on may be gone.
            let ours = records.iter().zip(&put).filter(|(_, put)| matches!(put, Ok(Put::New)));
            store.delete_all(&ours.map(|((named, _), _)| ObjectName::Snapshot(named.id)).collect::<Vec<_>>())?;
            return Err(error);
        }
        for ((named, _), put) in records.iter().zip(put) {
            if let Put::Damaged = put.map_err(|error| error.context("cannot commit the snapshot"))? {
                let text = "its record is there and damaged: run cairn check --repair there, and sync again";
                self.report.fail(named.id, Error::corrupt(text), self.planner.monitor);
                continue;
            }
            self.report.synced.push(Synced::new(named, Some(named.id)));
            if self.to.index.generation() == generation {
                self.to.index.mark_complete(named.id)?;
            }
        }
        Ok(())
    }

    fn record(&self, id: SnapshotId) -> Result<Vec<u8>> {
        let record = self.from.repository.store.get(ObjectName::Snapshot(id), RECORD_LEN_MAX)?;
        match *blake3::hash(&record).as_bytes() == id.0 {
            true => Ok(record),
            false => Err(Error::corrupt(format!("the record of snapshot {} does not match its name", id.short()))),
        }
    }
}

/// What came of storing a record.
enum Put {
    New,
    /// Another sync was faster: it is there, and all that it needs.
    There,
    /// Other bytes have its name.
    Damaged,
}

fn put_record(store: &Store, id: SnapshotId, record: &[u8]) -> Result<Put> {
    match store.put_new(ObjectName::Snapshot(id), record) {
        Ok(()) => Ok(Put::New),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let there = store.get(ObjectName::Snapshot(id), RECORD_LEN_MAX)?;
            Ok(if there == record { Put::There } else { Put::Damaged })
        }
        Err(error) => Err(error),
    }
}
