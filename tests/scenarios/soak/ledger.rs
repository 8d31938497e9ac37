//! What must be in the repository, as far as those who work on it have been told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use repo_tests::model::ModelDisk;

/// A snapshot that was committed.
#[derive(Clone)]
pub(super) struct Expected {
    /// The VDI's number.
    pub(super) vdi: usize,
    /// Its content.
    pub(super) disk: Arc<ModelDisk>,
    /// The id of the image it was read from, if that has one that lasts.
    pub(super) image: Option<u64>,
    /// Committed as the so-manieth of all.
    order: u64,
    /// Processes that are forgetting it right now.
    forgetting: u32,
    /// How often one began to.
    attempts: u32,
}

/// A snapshot at a moment: what is said of it holds if nobody has tried to forget it since.
#[derive(Clone)]
pub(super) struct Sighting {
    /// The snapshot's name.
    pub(super) id: String,
    /// The snapshot.
    pub(super) expected: Expected,
}

/// All snapshots, by name.
#[derive(Default)]
pub(super) struct Ledger {
    snapshots: BTreeMap<String, Expected>,
    committed: u64,
}

impl Ledger {
    pub(super) fn commit(&mut self, id: String, vdi: usize, disk: Arc<ModelDisk>, image: Option<u64>) {
        self.committed += 1;
        let expected = Expected { vdi, disk, image, order: self.committed, forgetting: 0, attempts: 0 };
        assert!(self.snapshots.insert(id, expected).is_none(), "a snapshot was committed twice");
    }

    pub(super) fn all(&self) -> Vec<Sighting> {
        self.snapshots.iter().map(|(id, expected)| Sighting { id: id.clone(), expected: expected.clone() }).collect()
    }

    /// The snapshots of a VDI, oldest first.
    pub(super) fn of_vdi(&self, vdi: usize) -> Vec<Sighting> {
        let mut of_vdi: Vec<_> = self.all().into_iter().filter(|seen| seen.expected.vdi == vdi).collect();
        of_vdi.sort_by_key(|seen| seen.expected.order);
        of_vdi
    }

    pub(super) fn knows(&self, id: &str) -> bool {
        self.snapshots.contains_key(id)
    }

    /// Whether somebody has been forgetting the snapshot since it was seen.
    pub(super) fn is_disturbed(&self, seen: &Sighting) -> bool {
        self.others_forget(seen, 0)
    }

    /// The same, not counting so many attempts of the caller's own.
    pub(super) fn others_forget(&self, seen: &Sighting, own: u32) -> bool {
        let now = self.snapshots.get(&seen.id).map(|expected| expected.attempts);
        seen.expected.forgetting > 0 || now != Some(seen.expected.attempts + own)
    }

    /// A process begins that may forget these.
    pub(super) fn begin_forget(&mut self, ids: &[String]) {
        for id in ids {
            if let Some(expected) = self.snapshots.get_mut(id) {
                expected.forgetting += 1;
                expected.attempts += 1;
            }
        }
    }

    /// That process is gone, and afterwards these were there.
    pub(super) fn end_forget(&mut self, ids: &[String], there: &BTreeSet<String>) {
        for id in ids {
            if !there.contains(id) {
                self.snapshots.remove(id);
            } else if let Some(expected) = self.snapshots.get_mut(id) {
                expected.forgetting -= 1;
            }
        }
    }
}
