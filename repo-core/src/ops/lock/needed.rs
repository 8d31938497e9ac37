//! What has to stay: the objects that snapshots consist of.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::id::PackId;
use crate::monitor::Monitor;
use crate::ops::gc::mark;
use crate::ops::id_set::{IdSet, Part};
use crate::ops::open::Session;
use crate::snapshot::NamedSnapshot;
use crate::store::ObjectName;

/// The packs that snapshots need: one walk over all manifests, and one pass over the index for each part of the ids.
///
/// # Errors
/// `Corrupt` when a node is missing or damaged; `Unavailable`; `Interrupted`.
pub(in crate::ops) fn needed_packs(
    session: &Session,
    snapshots: &[NamedSnapshot],
    monitor: &dyn Monitor,
) -> Result<BTreeSet<PackId>> {
    let entries = session.index.packs().iter().map(|pack| u64::from(pack.entries)).sum();
    let mut packs = BTreeSet::new();
    for part in Part::all(entries) {
        let needed = IdSet::new(part.share(entries));
        monitor.begin("walking manifests", None);
        mark::mark(session, snapshots, part, &needed, monitor)?;
        monitor.end();
        let found = session.index.live_packs_with(|id| part.contains(id) && needed.contains(id))?;
        packs.extend(found.into_iter().map(|number| session.index.pack(number).id));
    }
    Ok(packs)
}

/// All objects that these snapshots and packs consist of, with the times at which they were stored, in milliseconds since the
/// Unix epoch; of those that are there.
pub(super) fn objects(
    session: &Session,
    snapshots: &[NamedSnapshot],
    packs: &BTreeSet<PackId>,
) -> Result<BTreeMap<ObjectName, i64>> {
    let store = &session.repository.store;
    let ids: BTreeSet<_> = snapshots.iter().map(|named| named.id).collect();
    let records = store.list_snapshots()?.into_iter().filter(|listed| ids.contains(&listed.id));
    let mut objects: BTreeMap<_, _> =
        records.map(|listed| (ObjectName::Snapshot(listed.id), listed.stored_ms)).collect();
    let annotations = store.list_annotations()?.into_iter();
    objects.extend(annotations.map(|listed| (ObjectName::Annotation(listed.id), listed.stored_ms)));
    let there = store.list_packs()?.into_iter().filter(|listed| packs.contains(&listed.id));
    objects.extend(there.map(|listed| (ObjectName::Pack(listed.id), listed.stored_ms)));
    let slots = store.list_slots()?.into_iter();
    objects.extend(slots.map(|listed| (ObjectName::Slot(listed.id), listed.stored_ms)));
    objects.insert(ObjectName::Config, store.stored_ms(ObjectName::Config)?);
    Ok(objects)
}
