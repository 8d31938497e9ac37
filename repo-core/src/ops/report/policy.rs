//! What would be kept: the question that a report asks of a policy, and the usual ones to compare.

use std::collections::BTreeMap;

use super::Periods;
use crate::snapshot::NamedSnapshot;

/// For each of the snapshots, oldest first, whether it would be kept.
type Keeps<'a> = Box<dyn Fn(&[NamedSnapshot]) -> Vec<bool> + 'a>;

/// A policy, as far as a report needs it.
pub struct Policy<'a> {
    name: String,
    keeps: Keeps<'a>,
}

impl<'a> Policy<'a> {
    /// A policy by its decision over all snapshots, which come oldest first.
    pub fn new(name: impl Into<String>, keeps: impl Fn(&[NamedSnapshot]) -> Vec<bool> + 'a) -> Self {
        Self { name: name.into(), keeps: Box::new(keeps) }
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For each of the snapshots, whether it would be kept.
    ///
    /// # Panics
    /// When the decision is not one a snapshot.
    pub fn keeps(&self, snapshots: &[NamedSnapshot]) -> Vec<bool> {
        let keeps = (self.keeps)(snapshots);
        assert_eq!(keeps.len(), snapshots.len(), "a policy decides on every snapshot");
        keeps
    }
}

/// How many of each VDI are kept: the newest of each of the last days, weeks, months and years that have one.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    last: usize,
    daily: usize,
    weekly: usize,
    monthly: usize,
    yearly: usize,
}

/// Which period of a kind a moment lies in.
type PeriodOf = fn(&Periods) -> i64;

/// The policies that are compared when none is named.
pub fn usual<'a>(periods: &'a dyn Fn(i64) -> Periods) -> Vec<Policy<'a>> {
    let one = Counts::default();
    let policies = [
        ("the newest 7", Counts { last: 7, ..one }),
        ("7 daily", Counts { daily: 7, ..one }),
        ("7 daily, 4 weekly", Counts { daily: 7, weekly: 4, ..one }),
        ("7 daily, 4 weekly, 12 monthly", Counts { daily: 7, weekly: 4, monthly: 12, ..one }),
        ("30 daily, 12 monthly, 3 yearly", Counts { daily: 30, monthly: 12, yearly: 3, ..one }),
    ];
    policies.into_iter().map(|(name, counts)| Policy::new(name, move |all| counts.keeps(all, periods))).collect()
}

impl Counts {
    /// A snapshot is kept when any of its disks is.
    fn keeps(&self, snapshots: &[NamedSnapshot], periods: &dyn Fn(i64) -> Periods) -> Vec<bool> {
        let mut of_vdi: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, named) in snapshots.iter().enumerate() {
            named.snapshot.disks.iter().for_each(|disk| of_vdi.entry(&disk.vdi).or_default().push(at));
        }
        let mut keeps = vec![false; snapshots.len()];
        for newest_first in of_vdi.into_values().map(|at| at.into_iter().rev().collect::<Vec<_>>()) {
            let times: Vec<_> = newest_first.iter().map(|at| periods(snapshots[*at].snapshot.time_ms)).collect();
            let kept = self.kept(&times);
            newest_first.into_iter().zip(kept).for_each(|(at, kept)| keeps[at] |= kept);
        }
        keeps
    }

    /// For each of the snapshots of one VDI, newest first, whether it is kept.
    fn kept(&self, times: &[Periods]) -> Vec<bool> {
        let mut kept: Vec<bool> = (0..times.len()).map(|at| at < self.last).collect();
        let rules: [(usize, PeriodOf); 4] = [
            (self.daily, |at| at.day),
            (self.weekly, |at| at.week),
            (self.monthly, |at| at.month),
            (self.yearly, |at| at.year),
        ];
        for (count, period) in rules {
            let mut last = None;
            let mut left = count;
            for (at, time) in times.iter().enumerate() {
                if left > 0 && last != Some(period(time)) {
                    last = Some(period(time));
                    left -= 1;
                    kept[at] = true;
                }
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(counts: Counts, days: &[i64]) -> Vec<i64> {
        let times: Vec<_> =
            days.iter().map(|day| Periods { day: *day, week: day / 7, month: day / 30, year: day / 365 }).collect();
        days.iter().zip(counts.kept(&times)).filter(|(_, kept)| *kept).map(|(day, _)| *day).collect()
    }

    #[test]
    fn the_newest_of_each_period_is_kept_and_days_without_one_do_not_count() {
        let days = [100, 100, 99, 90, 89, 60, 30, 1];
        assert_eq!(kept(Counts { last: 3, ..Counts::default() }, &days), [100, 100, 99]);
        assert_eq!(kept(Counts { daily: 3, ..Counts::default() }, &days), [100, 99, 90]);
        assert_eq!(kept(Counts { monthly: 2, ..Counts::default() }, &days), [100, 89]);
        assert_eq!(kept(Counts { daily: 1, monthly: 9, ..Counts::default() }, &days), [100, 89, 30, 1]);
        assert_eq!(kept(Counts::default(), &days), [] as [i64; 0]);
    }
}
