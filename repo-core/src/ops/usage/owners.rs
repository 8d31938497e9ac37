//! Who refers to an entry, summed up, and what each such summary owns.

use std::collections::{BTreeMap, HashMap};

use super::Bytes;

/// In how many ways uses are grouped.
pub const DIMENSIONS: usize = 5;
/// A group in each dimension.
pub type Labels = [u32; DIMENSIONS];

/// The label of several groups.
const SEVERAL: u32 = u32::MAX;
/// Answers of `join` that are kept.
const JOINED_MAX: usize = 1 << 20;

/// The number of a summary. [`NOBODY`] is that of no reference at all.
pub(super) type OwnerId = u32;

/// Nothing refers to it.
pub(super) const NOBODY: OwnerId = 0;

/// Who refers to an entry: for each dimension the one group that does, or [`SEVERAL`]; and a bit for each keep set with a
/// snapshot that does.
///
/// Summaries form a lattice of few steps, and there are few of them: one for each use, and one for each way of being
/// shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Owners {
    pub(super) labels: Labels,
    pub(super) kept: u32,
}

impl Owners {
    fn join(self, other: Self) -> Self {
        let labels = std::array::from_fn(|at| match (self.labels[at], other.labels[at]) {
            (one, same) if one == same => one,
            _ => SEVERAL,
        });
        Self { labels, kept: self.kept | other.kept }
    }
}

/// All summaries that came up, and what each owns.
#[derive(Default)]
pub(super) struct OwnerTable {
    /// By id, from 1.
    owners: Vec<Owners>,
    ids: HashMap<Owners, OwnerId>,
    joined: HashMap<(OwnerId, OwnerId), OwnerId>,
    /// By id, from 0.
    owned: Vec<Bytes>,
}

impl OwnerTable {
    /// The number of a summary.
    pub(super) fn id(&mut self, owners: Owners) -> OwnerId {
        *self.ids.entry(owners).or_insert_with(|| {
            self.owners.push(owners);
            OwnerId::try_from(self.owners.len()).expect("there are far fewer summaries than 2^32")
        })
    }

    /// The summary of what both refer to.
    pub(super) fn join(&mut self, one: OwnerId, other: OwnerId) -> OwnerId {
        if one == other || other == NOBODY {
            return one;
        }
        if one == NOBODY {
            return other;
        }
        let pair = (one.min(other), one.max(other));
        if let Some(joined) = self.joined.get(&pair) {
            return *joined;
        }
        let owners = self.of(one).join(self.of(other));
        let joined = self.id(owners);
        if self.joined.len() >= JOINED_MAX {
            self.joined.clear();
        }
        self.joined.insert(pair, joined);
        joined
    }

    fn of(&self, id: OwnerId) -> Owners {
        self.owners[id as usize - 1]
    }

    /// Whether anything refers to what has this summary.
    pub(super) fn is_owned(&self, id: OwnerId) -> bool {
        id != NOBODY
    }

    /// Notes that an entry with this summary takes so much.
    pub(super) fn add(&mut self, id: OwnerId, bytes: Bytes) {
        let at = id as usize;
        if at >= self.owned.len() {
            self.owned.resize(at + 1, Bytes::default());
        }
        add(&mut self.owned[at], bytes);
    }

    /// What nobody refers to, of all that was added, in bytes.
    pub(super) fn dead(&self) -> u64 {
        self.owned.first().map_or(0, |bytes| bytes.stored)
    }

    /// What anybody refers to.
    pub(super) fn live(&self) -> Bytes {
        let mut sum = Bytes::default();
        self.owned.iter().skip(1).for_each(|bytes| add(&mut sum, *bytes));
        sum
    }

    /// For each dimension, what only one group refers to.
    pub(super) fn owned(&self) -> [BTreeMap<u32, Bytes>; DIMENSIONS] {
        let mut sums: [BTreeMap<u32, Bytes>; DIMENSIONS] = Default::default();
        for (owners, bytes) in self.summed() {
            for (label, sums) in owners.labels.into_iter().zip(&mut sums) {
                if label != SEVERAL {
                    add(sums.entry(label).or_default(), bytes);
                }
            }
        }
        sums
    }

    /// For each keep set, what nothing in it refers to, of what anybody refers to.
    pub(super) fn freed(&self, keep_sets: usize) -> Vec<u64> {
        let of = |set: usize| {
            self.summed().filter(|(owners, _)| owners.kept & (1 << set) == 0).map(|(_, bytes)| bytes.stored).sum()
        };
        (0..keep_sets).map(of).collect()
    }

    fn summed(&self) -> impl Iterator<Item = (&Owners, Bytes)> {
        self.owners.iter().zip(self.owned.iter().skip(1).copied())
    }
}

fn add(sum: &mut Bytes, bytes: Bytes) {
    sum.stored += bytes.stored;
    sum.plain += bytes.plain;
}
