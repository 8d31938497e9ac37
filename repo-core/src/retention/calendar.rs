//! Hours, days, weeks, months and years of a time zone, and spans of them.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The time now, and the time zone that days begin in.
pub struct Clock<'a> {
    /// The time now, in milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// Seconds that local time is ahead of UTC at a time in milliseconds since the Unix epoch.
    pub offset: &'a dyn Fn(i64) -> i32,
}

/// What snapshots are grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Period {
    /// Each snapshot is a group of its own.
    Each,
    /// A clock hour.
    Hour,
    /// A calendar day.
    Day,
    /// A week from Monday to Sunday, numbered as ISO 8601 does.
    Week,
    /// A calendar month.
    Month,
    /// A calendar year.
    Year,
}

impl Period {
    /// The word in reasons.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Each => "last",
            Self::Hour => "hourly",
            Self::Day => "daily",
            Self::Week => "weekly",
            Self::Month => "monthly",
            Self::Year => "yearly",
        }
    }
}

/// A local time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// Seconds since 1970-01-01 00:00 of the local clock.
    seconds: i64,
}

impl Local {
    /// The local time at `time_ms`, in milliseconds since the Unix epoch.
    pub fn at(time_ms: i64, clock: &Clock<'_>) -> Self {
        Self { seconds: time_ms.div_euclid(1000) + i64::from((clock.offset)(time_ms)) }
    }

    /// The number of the day, counted from 1970-01-01.
    pub fn day(self) -> i64 {
        self.days()
    }

    fn days(self) -> i64 {
        self.seconds.div_euclid(DAY)
    }

    /// A number that times of one period share, and no times of another. None for [`Period::Each`].
    pub(super) fn key(self, period: Period) -> Option<i64> {
        let (year, month, _) = civil(self.days());
        match period {
            Period::Each => None,
            Period::Hour => Some(self.seconds.div_euclid(HOUR)),
            Period::Day => Some(self.days()),
            // 1970-01-01 was a Thursday.
            Period::Week => Some((self.days() + 3).div_euclid(7)),
            Period::Month => Some(year * 12 + month),
            Period::Year => Some(year),
        }
    }

    /// The period's name: `2026-11-20 14:00`, `2026-11-20`, `2026-W47`, `2026-11`, `2026`. Empty for [`Period::Each`].
    pub fn name(self, period: Period) -> String {
        let (year, month, day) = civil(self.days());
        match period {
            Period::Each => String::new(),
            Period::Hour => {
                let hour = self.seconds.rem_euclid(DAY) / HOUR;
                format!("{year:04}-{month:02}-{day:02} {hour:02}:00")
            }
            Period::Day => format!("{year:04}-{month:02}-{day:02}"),
            Period::Week => {
                // A week belongs to the year that its Thursday is in.
                let thursday = (self.days() + 3).div_euclid(7) * 7;
                let (year, _, _) = civil(thursday);
                format!("{year:04}-W{:02}", (thursday - days_of(year, 1, 1)) / 7 + 1)
            }
            Period::Month => format!("{year:04}-{month:02}"),
            Period::Year => format!("{year:04}"),
        }
    }
}

/// A length of time of the calendar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// Months; a year has twelve.
    pub months: u32,
    /// Days; a week has seven.
    pub days: u32,
    /// Hours.
    pub hours: u32,
}

impl Span {
    /// The time that lies this long before `time_ms`, in milliseconds since the Unix epoch. Months and days keep the hour
    /// of the local clock; of a month that is too short its last day is taken.
    pub fn before(self, time_ms: i64, clock: &Clock<'_>) -> i64 {
        let local = Local::at(time_ms, clock);
        let (year, month, day) = civil(local.days());
        let months = year * 12 + month - 1 - i64::from(self.months);
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
        let next_month = days_of(year + month / 12, month % 12 + 1, 1);
        let days = (days_of(year, month, 1) + day - 1).min(next_month - 1) - i64::from(self.days);
        let seconds = days * DAY + local.seconds.rem_euclid(DAY);
        // What the local clock says is ambiguous in the night it is put back; an hour hardly matters here.
        let guess = seconds - i64::from((clock.offset)(time_ms));
        let utc = seconds - i64::from((clock.offset)(guess.saturating_mul(1000)));
        (utc - i64::from(self.hours) * HOUR).saturating_mul(1000).saturating_add(time_ms.rem_euclid(1000))
    }
}

impl FromStr for Span {
    type Err = Error;

    /// Reads numbers with units: `30d`, `1y6m`, `2w`, `36h`.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid(format!("{text:?} is not a length of time such as 30d, 8w, 1y6m or 36h"));
        let mut span = Self::default();
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
            let count: u32 = rest[..digits].parse().map_err(|_| bad())?;
            let (place, factor) = match rest.as_bytes()[digits] {
                b'y' => (&mut span.months, 12),
                b'm' => (&mut span.months, 1),
                b'w' => (&mut span.days, 7),
                b'd' => (&mut span.days, 1),
                b'h' => (&mut span.hours, 1),
                _ => return Err(bad()),
            };
            let sum = count.checked_mul(factor).and_then(|more| place.checked_add(more));
            *place = sum.filter(|sum| *sum <= SPAN_PART_MAX).ok_or_else(bad)?;
            rest = &rest[digits + 1..];
        }
        if span == Self::default() { Err(bad()) } else { Ok(span) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [(self.months / 12, 'y'), (self.months % 12, 'm'), (self.days, 'd'), (self.hours, 'h')];
        parts.iter().filter(|(count, _)| *count > 0).try_for_each(|(count, unit)| write!(f, "{count}{unit}"))
    }
}

const HOUR: i64 = 60 * 60;
const DAY: i64 = 24 * HOUR;
/// Months, days or hours of one span: above a thousand years of hours.
const SPAN_PART_MAX: u32 = 10_000_000;
/// Days of 400 years, after which the calendar repeats.
const ERA: i64 = 146_097;

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Years are counted from March, so that
/// the leap day comes last.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// The day of a date, counted from 1970-01-01.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let from_march = (month + 9) % 12;
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    era * ERA + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    const UTC: Clock<'static> = Clock { now_ms: 0, offset: &|_| 0 };
    const PERIODS: [Period; 5] = [Period::Hour, Period::Day, Period::Week, Period::Month, Period::Year];

    #[test]
    fn periods_are_named_as_on_the_calendar() {
        let names = |ms| PERIODS.map(|period| Local::at(ms, &UTC).name(period));
        assert_eq!(names(0), ["1970-01-01 00:00", "1970-01-01", "1970-W01", "1970-01", "1970"]);
        assert_eq!(names(1_795_186_799_999), ["2026-11-20 14:00", "2026-11-20", "2026-W47", "2026-11", "2026"]);
        // 2021-01-03 was a Sunday of the last week of 2020, 2024-12-30 a Monday of the first one of 2025.
        assert_eq!(names(1_609_632_000_000)[2], "2020-W53");
        assert_eq!(names(1_735_516_800_000)[2], "2025-W01");
        assert_eq!(names(-1), ["1969-12-31 23:00", "1969-12-31", "1970-W01", "1969-12", "1969"]);
        let east = Clock { now_ms: 0, offset: &|_| 5 * 3600 + 1800 };
        assert_eq!(Local::at(1_795_199_400_000 - 1, &east).name(Period::Day), "2026-11-20");
        assert_eq!(Local::at(1_795_199_400_000, &east).name(Period::Day), "2026-11-21");
    }

    #[test]
    fn any_stored_time_has_a_name_and_a_span_before_it() {
        for ms in [i64::MIN, i64::MAX, 0] {
            let clock = Clock { now_ms: ms, offset: &|_| -43_200 };
            assert!(PERIODS.iter().all(|period| !Local::at(ms, &clock).name(*period).is_empty()));
            let span = Span { months: SPAN_PART_MAX, days: SPAN_PART_MAX, hours: SPAN_PART_MAX };
            let _ = span.before(ms, &clock);
        }
    }

    #[test]
    fn a_span_back_ends_on_the_last_day_of_a_short_month() {
        let day = |year, month, day| days_of(year, month, day) * DAY * 1000 + 7;
        let back = |text: &str, from| text.parse::<Span>().unwrap().before(from, &UTC);
        assert_eq!(back("1m", day(2026, 3, 31)), day(2026, 2, 28));
        assert_eq!(back("1y1m", day(2025, 3, 31)), day(2024, 2, 29));
        assert_eq!(back("12m", day(2026, 1, 15)), day(2025, 1, 15));
        assert_eq!(back("1w2d", day(2026, 1, 5)), day(2025, 12, 27));
        assert_eq!(back("36h", day(2026, 1, 5)), day(2026, 1, 4) - 12 * 3600 * 1000);
    }

    #[test]
    fn a_span_is_written_as_numbers_with_units() {
        for (text, shown) in [("30d", "30d"), ("2w", "14d"), ("1y6m", "1y6m"), ("18m", "1y6m"), ("1d36h", "1d36h")] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), shown);
        }
        for bad in ["", "30", "d", "1x", "0d", "-1d", "1 d", "99999999999d", "9999999y", "1ü"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?}");
        }
    }
}
