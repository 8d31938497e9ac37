//! When the room is used up.

use std::collections::BTreeMap;

use super::parts::Parts;

/// The longest window in days: growth of longer ago says little, and pairs of days are compared.
const WINDOW_DAYS_MAX: u32 = 366;

/// Growth, and what it means for a capacity.
///
/// Growth is the median of the slopes between all pairs of days (Theil and Sen) of what was stored up to each day, so that
/// a day out of line does not bend it, and weekly backups count as well as daily ones. The first snapshot of each VDI
/// is left out: it comes once. Nothing is assumed to be forgotten.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// Bytes a day; none before there are two days to compare.
    pub growth_bytes_per_day: Option<f64>,
    /// Days that were compared, those without a snapshot included.
    pub window_days: u32,
    /// Bytes of all objects now.
    pub used_bytes: u64,
    /// Bytes that all objects together may take.
    pub capacity_bytes: Option<u64>,
    /// Days until the capacity is reached; none when growth is unknown or not above zero. 0 when it is reached.
    pub days_left: Option<f64>,
}

/// Forecasts from what snapshots of the last `window_days` days added.
pub(super) fn forecast(parts: &Parts, window_days: u32, used_bytes: u64, capacity_bytes: Option<u64>) -> Forecast {
    let mut added: BTreeMap<i64, u64> = BTreeMap::new();
    for part in &parts.parts {
        let of_day = added.entry(part.day).or_default();
        *of_day = of_day.saturating_add(if part.first { 0 } else { part.stored_bytes });
    }
    let levels = levels(&added, window_days.min(WINDOW_DAYS_MAX));
    let growth = slope(&levels);
    let room = capacity_bytes.map(|capacity| capacity.saturating_sub(used_bytes));
    let days_left = match (room, growth) {
        (Some(0), _) => Some(0.0),
        (Some(room), Some(growth)) if growth > 0.0 => Some(room as f64 / growth),
        _ => None,
    };
    Forecast {
        growth_bytes_per_day: growth,
        window_days: u32::try_from(levels.len()).expect("bounded by WINDOW_DAYS_MAX"),
        used_bytes,
        capacity_bytes,
        days_left,
    }
}

/// What was stored up to each day of the window, from the first day with a snapshot in it to the last.
fn levels(added: &BTreeMap<i64, u64>, window_days: u32) -> Vec<u64> {
    let Some((last, _)) = added.last_key_value() else { return Vec::new() };
    let window = last.saturating_sub(i64::from(window_days.saturating_sub(1)))..=*last;
    let Some((first, _)) = added.range(window).next() else { return Vec::new() };
    let mut level = 0_u64;
    let up_to = |day: i64| {
        level = level.saturating_add(added.get(&day).copied().unwrap_or(0));
        level
    };
    (*first..=*last).map(up_to).collect()
}

/// The median slope between any two of values a day apart.
fn slope(levels: &[u64]) -> Option<f64> {
    let pairs = levels.iter().enumerate().flat_map(|(at, from)| {
        let later = levels[at + 1..].iter();
        later.zip(1_u32..).map(move |(to, days)| to.saturating_sub(*from) as f64 / f64::from(days))
    });
    let mut slopes: Vec<f64> = pairs.collect();
    slopes.sort_unstable_by(f64::total_cmp);
    let middle = slopes.len() / 2;
    match slopes.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(slopes[middle]),
        _ => Some(f64::midpoint(slopes[middle - 1], slopes[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(added: &[(i64, u64)], window_days: u32) -> Option<f64> {
        slope(&levels(&added.iter().copied().collect(), window_days))
    }

    #[test]
    fn steady_growth_is_found_and_one_day_out_of_line_does_not_bend_it() {
        let mut days: Vec<_> = (0..30).map(|day| (day, 100)).collect();
        assert_eq!(growth(&days, 30), Some(100.0));
        days[3].1 = 1_000_000;
        assert_eq!(growth(&days, 30), Some(100.0));
    }

    #[test]
    fn weekly_backups_grow_by_a_seventh_a_day() {
        let days: Vec<_> = (0..10).map(|week| (week * 7, 700)).collect();
        let growth = growth(&days, 100).unwrap();
        assert!((90.0..110.0).contains(&growth), "{growth}");
    }

    #[test]
    fn only_the_window_counts_and_one_day_says_nothing() {
        let days: Vec<_> = (0..60).map(|day| (day, if day < 30 { 5000 } else { 10 })).collect();
        assert_eq!(growth(&days, 30), Some(10.0));
        assert_eq!(growth(&days[..1], 30), None);
        assert_eq!(growth(&[], 30), None);
        assert_eq!(growth(&days, 0), None);
    }
}
