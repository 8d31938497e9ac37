//! Retention: which snapshots of one disk a policy keeps, and why. Pure: nothing is read, nothing is deleted.
//!
//! Of each period that has snapshots the newest is kept, for as many periods as a rule counts; periods without snapshots
//! are not counted. Rules do not know of each other: what one of them keeps is kept. A larger policy keeps all that a smaller one
//! does, and applying a policy twice does no more than applying it once.

pub mod calendar;

use std::collections::BTreeSet;
use std::fmt;

use crate::id::SnapshotId;
use crate::remarks::Remarks;
use calendar::{Clock, Local, Period, Span};

/// How far back a rule reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// So many periods that have snapshots.
    Count(u32),
    /// So long before the newest snapshot of the disk, or before now if that lies in the future.
    Within(Span),
}

/// Keeps the newest snapshot of each period in reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The periods.
    pub period: Period,
    /// How many of them.
    pub reach: Reach,
}

/// What to keep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Rules by time.
    pub rules: Vec<Rule>,
    /// Snapshots with any of these tags are kept.
    pub tags: BTreeSet<String>,
    /// Whether even the newest snapshot of a disk may be removed when no rule keeps it.
    pub allow_last: bool,
}

/// The periods in the order in which [`Policy::of`] takes them.
const PERIODS: [Period; 6] = [Period::Each, Period::Hour, Period::Day, Period::Week, Period::Month, Period::Year];

impl Policy {
    /// The rules that people give: how many, and how far back, of each, hour, day, week, month and year, in this order; and tags.
    pub fn of(counts: [Option<u32>; 6], spans: [Option<Span>; 6], tags: BTreeSet<String>) -> Self {
        let counts = counts.into_iter().map(|count| count.map(Reach::Count));
        let spans = spans.into_iter().map(|span| span.map(Reach::Within));
        let rules = PERIODS.into_iter().zip(counts).chain(PERIODS.into_iter().zip(spans));
        let rules = rules.filter_map(|(period, reach)| Some(Rule { period, reach: reach? })).collect();
        Self { rules, tags, allow_last: false }
    }

    /// Whether it says nothing of what to keep.
    pub fn is_empty(&self) -> bool {
        let keeps = |rule: &Rule| rule.reach != Reach::Count(0);
        self.tags.is_empty() && !self.rules.iter().any(keeps)
    }
}

/// A snapshot of the disk that is decided on.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its name.
    pub id: SnapshotId,
    /// The moment it stands for, in milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// Which of two of the same moment is the newer one, in milliseconds since the Unix epoch: object stores tell times by the second.
    pub order_ms: i64,
    /// What is said of it.
    pub remarks: &'a Remarks,
}

/// Why a snapshot is kept. Its text is for people: `daily 3 of 7: 2026-11-20`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// A rule keeps it.
    Rule {
        /// The rule.
        rule: Rule,
        /// Which of the periods in reach it is the newest of, from 1, newest first.
        number: u32,
        /// The period's name.
        period: String,
    },
    /// It has a tag that the policy keeps.
    Tag(String),
    /// It is protected.
    Protected,
    /// It is the newest of the disk.
    Newest,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { rule: Rule { period: Period::Each, reach: Reach::Within(span) }, .. } => {
                write!(f, "within {span}")
            }
            Self::Rule { rule, number, period } => {
                match rule.reach {
                    Reach::Count(count) => write!(f, "{} {number} of {count}", rule.period.word())?,
                    Reach::Within(span) => write!(f, "{} {number} within {span}", rule.period.word())?,
                }
                if period.is_empty() { Ok(()) } else { write!(f, ": {period}") }
            }
            Self::Tag(tag) => write!(f, "tag {tag}"),
            Self::Protected => f.write_str("protected"),
            Self::Newest => f.write_str("newest of the disk"),
        }
    }
}

/// Decides on the snapshots of one disk, given in any order: for each, in the same order, why it is kept. One without a
/// reason is to be removed.
pub fn decide(policy: &Policy, snapshots: &[Candidate<'_>], clock: &Clock<'_>) -> Vec<Vec<Reason>> {
    let mut newest_first: Vec<usize> = (0..snapshots.len()).collect();
    let newness = |candidate: &Candidate<'_>| (candidate.time_ms, candidate.order_ms, candidate.id);
    newest_first.sort_unstable_by_key(|at| std::cmp::Reverse(newness(&snapshots[*at])));
    let mut reasons = vec![Vec::new(); snapshots.len()];
    for rule in &policy.rules {
        apply(*rule, snapshots, &newest_first, clock, &mut reasons);
    }
    for (snapshot, reasons) in snapshots.iter().zip(&mut reasons) {
        let kept_tags = snapshot.remarks.tags.intersection(&policy.tags);
        reasons.extend(kept_tags.map(|tag| Reason::Tag(tag.clone())));
        if snapshot.remarks.protected {
            reasons.push(Reason::Protected);
        }
    }
    if let Some(newest) = newest_first.first().filter(|_| !policy.allow_last) {
        let reasons = &mut reasons[*newest];
        if reasons.is_empty() {
            reasons.push(Reason::Newest);
        }
    }
    reasons
}

fn apply(rule: Rule, snapshots: &[Candidate<'_>], newest_first: &[usize], clock: &Clock<'_>, out: &mut [Vec<Reason>]) {
    let Some(newest) = newest_first.first() else { return };
    let (count, earliest_ms) = match rule.reach {
        Reach::Count(count) => (count, i64::MIN),
        Reach::Within(span) => (u32::MAX, span.before(snapshots[*newest].time_ms.min(clock.now_ms), clock)),
    };
    let mut number = 0;
    let mut last = None;
    for at in newest_first {
        let time_ms = snapshots[*at].time_ms;
        if number == count || time_ms < earliest_ms {
            break;
        }
        let local = Local::at(time_ms, clock);
        let key = local.key(rule.period);
        if key.is_some() && key == last {
            continue;
        }
        last = key;
        number += 1;
        out[*at].push(Reason::Rule { rule, number, period: local.name(rule.period) });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    const PERIODS: [Period; 6] = [Period::Each, Period::Hour, Period::Day, Period::Week, Period::Month, Period::Year];
    const DAY_MS: i64 = 86_400_000;

    /// A clock that is put forward and back, as with summer time.
    fn clock() -> Clock<'static> {
        Clock { now_ms: 1_800_000_000_000, offset: &|ms| 3600 + 3600 * i32::from(ms.div_euclid(DAY_MS * 182) % 2 == 0) }
    }

    type Owned = (SnapshotId, i64, Remarks);

    fn candidates(owned: &[Owned]) -> Vec<Candidate<'_>> {
        owned
            .iter()
            .map(|(id, time_ms, remarks)| Candidate { id: *id, time_ms: *time_ms, order_ms: 0, remarks })
            .collect()
    }

    fn kept(policy: &Policy, owned: &[Owned]) -> Vec<Owned> {
        let reasons = decide(policy, &candidates(owned), &clock());
        owned.iter().zip(reasons).filter(|(_, reasons)| !reasons.is_empty()).map(|(owned, _)| owned.clone()).collect()
    }

    fn snapshots() -> impl Strategy<Value = Vec<Owned>> {
        // Some close together, some years apart, some in the future.
        let time =
            prop_oneof![0..60_i64, 0..2000_i64, 0..40_000_i64].prop_map(|hours| 1_810_000_000_000 - hours * 3_700_000);
        let remarks =
            (prop::option::weighted(0.1, 0..3_u8), prop::bool::weighted(0.05)).prop_map(|(tag, protected)| Remarks {
                tags: tag.iter().map(ToString::to_string).collect(),
                note: None,
                protected,
            });
        prop::collection::vec((time, remarks), 0..60).prop_map(|all| {
            all.into_iter()
                .enumerate()
                .map(|(at, (time_ms, remarks))| (SnapshotId([at as u8; 32]), time_ms, remarks))
                .collect()
        })
    }

    fn policy() -> impl Strategy<Value = Policy> {
        let reach = prop_oneof![
            (0..9_u32).prop_map(Reach::Count),
            (0..20_u32, 0..40_u32, 1..50_u32).prop_map(|(months, days, hours)| Reach::Within(Span {
                months,
                days,
                hours
            })),
        ];
        let rule = (prop::sample::select(&PERIODS[..]), reach).prop_map(|(period, reach)| Rule { period, reach });
        let tags = prop::collection::btree_set((0..3_u8).prop_map(|tag| tag.to_string()), 0..2);
        (prop::collection::vec(rule, 0..4), tags, any::<bool>()).prop_map(|(rules, tags, allow_last)| Policy {
            rules,
            tags,
            allow_last,
        })
    }

    fn larger(policy: &Policy, by: u32, more: Policy) -> Policy {
        let grown = |rule: &Rule| Rule {
            reach: match rule.reach {
                Reach::Count(count) => Reach::Count(count + by),
                Reach::Within(span) => Reach::Within(Span { days: span.days + by, ..span }),
            },
            ..*rule
        };
        Policy {
            rules: policy.rules.iter().map(grown).chain(more.rules).collect(),
            tags: policy.tags.union(&more.tags).cloned().collect(),
            allow_last: policy.allow_last && more.allow_last,
        }
    }

    proptest! {
        #[test]
        fn order_does_not_matter(policy in policy(), mut owned in snapshots(), seed: u64) {
            let mut before = kept(&policy, &owned);
            owned.sort_unstable_by_key(|(id, ..)| u64::from(id.0[0]).wrapping_mul(seed | 1));
            let mut after = kept(&policy, &owned);
            before.sort_unstable_by_key(|(id, ..)| *id);
            after.sort_unstable_by_key(|(id, ..)| *id);
            prop_assert_eq!(before, after);
        }

        #[test]
        fn protected_ones_and_the_newest_are_never_removed(policy in policy(), owned in snapshots()) {
            let kept = kept(&policy, &owned);
            for snapshot in owned.iter().filter(|(_, _, remarks)| remarks.protected) {
                prop_assert!(kept.contains(snapshot));
            }
            if let Some(newest) = owned.iter().max_by_key(|(id, time_ms, _)| (*time_ms, *id)) {
                prop_assert!(policy.allow_last || kept.contains(newest));
            }
        }

        #[test]
        fn a_larger_policy_keeps_all_that_a_smaller_one_does(
            policy in policy(), owned in snapshots(), by in 0..5_u32, more in policy(),
        ) {
            let larger = kept(&larger(&policy, by, more), &owned);
            prop_assert!(kept(&policy, &owned).iter().all(|snapshot| larger.contains(snapshot)));
        }

        #[test]
        fn applying_a_policy_to_what_it_kept_removes_nothing(policy in policy(), owned in snapshots()) {
            let once = kept(&policy, &owned);
            prop_assert_eq!(kept(&policy, &once), once);
        }

        /// The same said another way: group, take the newest of each group, take the newest groups.
        #[test]
        fn a_count_keeps_the_newest_of_the_newest_groups(
            owned in snapshots(), period in prop::sample::select(&PERIODS[1..]), count in 1..9_u32,
        ) {
            let utc = Clock { now_ms: 0, offset: &|_| 0 };
            let mut groups: BTreeMap<String, (i64, SnapshotId)> = BTreeMap::new();
            for (id, time_ms, _) in &owned {
                let newest = groups.entry(Local::at(*time_ms, &utc).name(period)).or_insert((*time_ms, *id));
                *newest = (*newest).max((*time_ms, *id));
            }
            let expected: BTreeSet<_> = groups.values().rev().take(count as usize).map(|(_, id)| *id).collect();
            let policy = Policy { rules: vec![Rule { period, reach: Reach::Count(count) }], ..Policy::default() };
            let reasons = decide(&policy, &candidates(&owned), &utc);
            let by_rule = |reasons: &Vec<Reason>| reasons.iter().any(|reason| matches!(reason, Reason::Rule { .. }));
            let found: BTreeSet<_> =
                owned.iter().zip(&reasons).filter(|(_, reasons)| by_rule(reasons)).map(|((id, ..), _)| *id).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn reasons_say_which_of_how_many_and_of_when() {
        let remarks = Remarks { tags: ["gold".to_owned()].into(), note: None, protected: true };
        let plain = Remarks::default();
        // 2026-11-20 14:59:59 UTC, the day before, and ten days before.
        let newest = 1_795_186_799_000;
        let at = |days: i64, remarks| Candidate {
            id: SnapshotId([1; 32]),
            time_ms: newest - days * DAY_MS,
            order_ms: 0,
            remarks,
        };
        let rule = |period, reach| Rule { period, reach };
        let policy = Policy {
            rules: vec![
                rule(Period::Day, Reach::Count(7)),
                rule(Period::Each, Reach::Within(Span { days: 1, ..Span::default() })),
                rule(Period::Week, Reach::Within(Span { months: 1, ..Span::default() })),
                rule(Period::Each, Reach::Count(1)),
            ],
            tags: ["gold".to_owned()].into(),
            allow_last: false,
        };
        let clock = Clock { now_ms: newest, offset: &|_| 0 };
        let reasons = decide(&policy, &[at(0, &plain), at(1, &plain), at(10, &remarks)], &clock);
        let texts: Vec<Vec<String>> =
            reasons.iter().map(|reasons| reasons.iter().map(ToString::to_string).collect()).collect();
        assert_eq!(texts[0], ["daily 1 of 7: 2026-11-20", "within 1d", "weekly 1 within 1m: 2026-W47", "last 1 of 1"]);
        assert_eq!(texts[1], ["daily 2 of 7: 2026-11-19", "within 1d"]);
        assert_eq!(texts[2], ["daily 3 of 7: 2026-11-10", "weekly 2 within 1m: 2026-W46", "tag gold", "protected"]);
    }

    /// Whoever stored several snapshots in one second got to keep any one of them.
    #[test]
    fn of_the_same_moment_the_later_one_is_the_newer() {
        let remarks = Remarks::default();
        let at = |id, order_ms| Candidate { id: SnapshotId([id; 32]), time_ms: 5000, order_ms, remarks: &remarks };
        let rules = vec![Rule { period: Period::Each, reach: Reach::Count(1) }];
        let policy = Policy { rules, ..Policy::default() };
        let clock = Clock { now_ms: 9000, offset: &|_| 0 };
        for ids in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
            let candidates: Vec<_> = ids.into_iter().zip(5001..).map(|(id, order_ms)| at(id, order_ms)).collect();
            let kept: Vec<_> = decide(&policy, &candidates, &clock).iter().map(|reasons| !reasons.is_empty()).collect();
            assert_eq!(kept, [false, false, true], "{ids:?}");
        }
    }

    #[test]
    fn a_policy_that_counts_nothing_is_empty() {
        let counts = |count| Policy {
            rules: vec![Rule { period: Period::Day, reach: Reach::Count(count) }],
            ..Policy::default()
        };
        assert!(Policy::default().is_empty() && counts(0).is_empty());
        assert!(!counts(1).is_empty());
    }
}
