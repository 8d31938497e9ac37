//! What policies would keep: the usual ones, to compare.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::annotation::Annotations;
use crate::remarks::Remarks;
use crate::retention::calendar::{Clock, Period};
use crate::retention::{self, Candidate, Policy, Reach, Rule};
use crate::snapshot::NamedSnapshot;

/// A policy with a name.
#[derive(Debug, Clone)]
pub struct NamedPolicy {
    /// Its name, for people.
    pub name: String,
    /// What it keeps.
    pub policy: Policy,
}

impl NamedPolicy {
    fn new(name: &str, rules: &[(Period, u32)]) -> Self {
        let rules = rules.iter().map(|(period, count)| Rule { period: *period, reach: Reach::Count(*count) });
        Self { name: name.to_owned(), policy: Policy { rules: rules.collect(), ..Policy::default() } }
    }

    /// For each of the snapshots, whether it stays: when it is kept for any of its disks.
    pub(super) fn keeps(&self, snapshots: &[NamedSnapshot], annotations: &Annotations, clock: &Clock<'_>) -> Vec<bool> {
        let remarks: Vec<Cow<'_, Remarks>> = snapshots.iter().map(|named| annotations.remarks(named)).collect();
        let mut of_vdi: BTreeMap<&str, (Vec<usize>, Vec<Candidate<'_>>)> = BTreeMap::new();
        for ((at, named), remarks) in snapshots.iter().enumerate().zip(&remarks) {
            for disk in &named.snapshot.disks {
                let (places, candidates) = of_vdi.entry(&disk.vdi).or_default();
                places.push(at);
                let time_ms = named.snapshot.time_ms;
                candidates.push(Candidate { id: named.id, time_ms, order_ms: time_ms, remarks });
            }
        }
        let mut keeps = vec![false; snapshots.len()];
        for (places, candidates) in of_vdi.into_values() {
            let reasons = retention::decide(&self.policy, &candidates, clock);
            places.into_iter().zip(reasons).for_each(|(at, reasons)| keeps[at] |= !reasons.is_empty());
        }
        keeps
    }
}

/// The policies that are compared when none is named.
pub fn usual() -> Vec<NamedPolicy> {
    use Period::{Day, Each, Month, Week, Year};
    vec![
        NamedPolicy::new("the newest 7", &[(Each, 7)]),
        NamedPolicy::new("7 daily", &[(Day, 7)]),
        NamedPolicy::new("7 daily, 4 weekly", &[(Day, 7), (Week, 4)]),
        NamedPolicy::new("7 daily, 4 weekly, 12 monthly", &[(Day, 7), (Week, 4), (Month, 12)]),
        NamedPolicy::new("30 daily, 12 monthly, 3 yearly", &[(Day, 30), (Month, 12), (Year, 3)]),
    ]
}
