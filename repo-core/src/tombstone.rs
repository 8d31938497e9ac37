//! Tombstones: packs that garbage collection found to hold nothing that is needed, waiting to be deleted
//! (docs/format.md §11, docs/concurrency.md).
//!
//! A pack is *condemned* as long as a tombstone names it. Condemned packs can be read, but no new snapshot may rely on them:
//! whatever stands nowhere else is stored again.

use std::collections::BTreeSet;

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::id::{LeaseId, PackId, SnapshotId, TombstoneId, TombstoneName};
use crate::object::ObjectKind;
use crate::record::{RecordKind, ids};
use crate::repository::Repository;
use crate::store::ObjectName;

const RECORD: RecordKind =
    RecordKind { object: ObjectKind::Tombstone, key_context: "cairn v1 tombstone key", len_max: 256 * 1024 * 1024 };

/// Packs condemned together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tombstone {
    /// One more than the highest that there was when it was announced.
    pub serial: u64,
    /// How often it was replaced.
    pub step: u32,
    /// Packs that the same collection wrote, which hold what was still needed of condemned ones. No snapshot names them.
    pub written: BTreeSet<PackId>,
    /// When they were condemned, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// The packs.
    pub packs: BTreeSet<PackId>,
    /// How far it is.
    pub stage: Stage,
}

/// How far the deletion of condemned packs is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Condemned. No snapshot of `considered` needs any of the packs; other snapshots may.
    Announced {
        /// The snapshots that were there when the packs were found to be dead.
        considered: BTreeSet<SnapshotId>,
        /// The leases that were there once the tombstone was: the packs stay until all of them are gone. `None` until
        /// they were listed.
        waits_for: Option<BTreeSet<LeaseId>>,
    },
    /// All of the packs were deleted or may be at any time. Kept for a while, so that other machines' indexes learn why
    /// packs are gone.
    Deleted,
}

impl Default for Stage {
    fn default() -> Self {
        Self::Announced { considered: BTreeSet::new(), waits_for: None }
    }
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct Stored {
    #[n(0)]
    created_ms: i64,
    #[n(1)]
    packs: ByteVec,
    #[n(2)]
    considered: Option<ByteVec>,
    #[n(3)]
    waits_for: Option<ByteVec>,
    #[n(4)]
    serial: u64,
    #[n(5)]
    step: u32,
    #[n(6)]
    written: Option<ByteVec>,
}

fn joined<'a>(ids: impl Iterator<Item = &'a [u8; 32]>) -> ByteVec {
    ids.flatten().copied().collect::<Vec<u8>>().into()
}

impl Tombstone {
    /// The record's CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let (considered, waits_for) = match &self.stage {
            Stage::Announced { considered, waits_for } => (
                Some(joined(considered.iter().map(SnapshotId::as_bytes))),
                waits_for.as_ref().map(|leases| joined(leases.iter().map(LeaseId::as_bytes))),
            ),
            Stage::Deleted => (None, None),
        };
        let packs = joined(self.packs.iter().map(PackId::as_bytes));
        let written = (!self.written.is_empty()).then(|| joined(self.written.iter().map(PackId::as_bytes)));
        let (created_ms, serial, step) = (self.created_ms, self.serial, self.step);
        let stored = Stored { created_ms, packs, considered, waits_for, serial, step, written };
        minicbor::to_vec(&stored).expect("writing CBOR into memory cannot fail")
    }

    /// Reads a record's CBOR.
    ///
    /// # Errors
    /// `Corrupt` when it is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let stored: Stored = minicbor::decode(bytes)
            .map_err(|error| Error::with_source(ErrorKind::Corrupt, "tombstone is malformed", error))?;
        let waits_for = stored.waits_for.map(|leases| ids(&leases, LeaseId, "leases")).transpose()?;
        let stage = match stored.considered {
            Some(considered) => Stage::Announced {
                considered: ids(&considered, SnapshotId, "snapshots")?.into_iter().collect(),
                waits_for: waits_for.map(BTreeSet::from_iter),
            },
            None => Stage::Deleted,
        };
        let packs = |bytes: &[u8]| ids(bytes, PackId, "packs").map(BTreeSet::from_iter);
        Ok(Self {
            serial: stored.serial,
            step: stored.step,
            written: stored.written.map(|written| packs(&written)).transpose()?.unwrap_or_default(),
            created_ms: stored.created_ms,
            packs: packs(&stored.packs)?,
            stage,
        })
    }
}

/// Stores a tombstone: from here on its packs are condemned.
///
/// # Errors
/// `Forbidden` without the structure key; `Io`.
pub fn put(repository: &Repository, tombstone: &Tombstone) -> Result<TombstoneName> {
    let (id, object) = RECORD.seal(repository, tombstone.encode())?;
    let name = TombstoneName { serial: tombstone.serial, step: tombstone.step, id: TombstoneId(id) };
    repository.store.put_new(ObjectName::Tombstone(name), &object)?;
    Ok(name)
}

/// The serial that the next tombstone gets.
///
/// # Errors
/// `Unavailable` when the store cannot be listed.
pub fn next_serial(repository: &Repository) -> Result<u64> {
    let listed = repository.catalog()?.tombstones;
    Ok(listed.iter().map(|name| name.serial).max().unwrap_or(0).saturating_add(1))
}

/// Reads a tombstone.
///
/// # Errors
/// `NotFound`; `Corrupt` when it is damaged; `Unavailable`.
pub fn read(repository: &Repository, name: TombstoneName) -> Result<Tombstone> {
    let object = repository.store.get(ObjectName::Tombstone(name), RECORD.len_max)?;
    let opened = RECORD.open(repository, &name.id.0, &object).and_then(|record| Tombstone::decode(&record));
    let tombstone = opened.context(|| format!("tombstone {}", name.id.short()))?;
    if (tombstone.serial, tombstone.step) != (name.serial, name.step) {
        return Err(Error::corrupt(format!("tombstone {} stands under another one's name", name.id.short())));
    }
    Ok(tombstone)
}

/// Puts `new` in the place of the tombstone `old`. In between both are there, which condemns what either names.
///
/// # Errors
/// As [`put`].
pub fn replace(repository: &Repository, old: TombstoneName, new: &mut Tombstone) -> Result<TombstoneName> {
    new.step = old.step + 1;
    let name = put(repository, new)?;
    delete(repository, old)?;
    Ok(name)
}

/// Deletes a tombstone. One that is gone already is no error: another process was faster.
///
/// # Errors
/// `Io`.
pub fn delete(repository: &Repository, name: TombstoneName) -> Result<()> {
    match repository.store.delete(ObjectName::Tombstone(name)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tombstones_of_every_stage_round_trip() {
        let announced = |waits_for| Stage::Announced { considered: BTreeSet::from([SnapshotId([3; 32])]), waits_for };
        let waits_for = Some(BTreeSet::from([LeaseId([4; 32]), LeaseId([5; 32])]));
        for stage in [announced(None), announced(Some(BTreeSet::new())), announced(waits_for), Stage::Deleted] {
            let packs = BTreeSet::from([PackId([1; 32]), PackId([2; 32])]);
            let written = BTreeSet::from([PackId([3; 32])]);
            let tombstone = Tombstone { serial: 1 << 40, step: 2, written, created_ms: 7, packs, stage };
            assert_eq!(Tombstone::decode(&tombstone.encode()).unwrap(), tombstone);
        }
        assert!(Tombstone::decode(&[0xa0]).is_err());
    }
}
