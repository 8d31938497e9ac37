//! Points in time as people type them: "2026-11-20 03:00", "yesterday", "3 days ago", RFC 3339.
//!
//! A time without a zone is in the local one. A day without a time is the whole day: to pick a snapshot it reaches to the
//! day's end, so that `--at 2026-11-20` finds the backup made in the evening of that day.

use jiff::civil::{Date, Time};
use jiff::{Timestamp, Zoned};

use crate::failure::{Failure, Result};

/// What was typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Day(Date),
    Instant(Timestamp),
}

/// The last instant that `text` covers, in milliseconds since the Unix epoch: what `--at` compares with.
///
/// A day reaches to its end and a second to its end, since listings show whole seconds. What begins after the end of today
/// is refused: `monday` would otherwise mean the coming one and quietly pick the newest snapshot.
///
/// # Errors
/// Wrong usage.
pub(crate) fn latest(option: &str, text: &str, now: &Zoned) -> Result<i64> {
    let instant = match parse(option, text, now)? {
        Moment::Day(day) => end_of(day, now)?,
        Moment::Instant(instant) => {
            let ms = instant.as_millisecond();
            if ms.rem_euclid(1000) == 0 { ms.saturating_add(999) } else { ms }
        }
    };
    if instant > end_of(now.date(), now)? {
        return Err(Failure::usage(format!("{option} {text:?} lies in the future")).hint(FORMS));
    }
    Ok(instant)
}

/// The first instant that `text` covers, in milliseconds since the Unix epoch: what `import --time` records.
///
/// More than a day in the future is refused: such a snapshot would be the newest for as long.
///
/// # Errors
/// Wrong usage.
pub(crate) fn earliest(option: &str, text: &str, now: &Zoned) -> Result<i64> {
    let instant = match parse(option, text, now)? {
        Moment::Day(day) => start_of(day, now)?,
        Moment::Instant(instant) => instant.as_millisecond(),
    };
    if instant > now.timestamp().as_millisecond().saturating_add(DAY_MS) {
        return Err(Failure::usage(format!("{option} {text:?} lies more than a day in the future")).hint(FORMS));
    }
    Ok(instant)
}

fn parse(option: &str, text: &str, now: &Zoned) -> Result<Moment> {
    understand(text.trim(), now)
        .ok_or_else(|| Failure::usage(format!("{option} {text:?} is not a time that is understood")).hint(FORMS))
}

fn understand(text: &str, now: &Zoned) -> Option<Moment> {
    match text.to_ascii_lowercase().as_str() {
        "now" => return Some(Moment::Instant(now.timestamp())),
        "today" => return Some(Moment::Day(now.date())),
        "yesterday" => return now.date().yesterday().ok().map(Moment::Day),
        _ => {}
    }
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Some(Moment::Instant(instant));
    }
    // The rules of date(1) would take "2026" for 20:26 today and "a" for a military time zone.
    let too_short = text.len() < 3 || (text.len() != 8 && text.bytes().all(|byte| byte.is_ascii_digit()));
    if too_short || text.len() > TEXT_LEN_MAX || !text.is_ascii() {
        return None;
    }
    // At an odd time of day, so that midnight in the answer means that a day was named and no time.
    let odd = now.with().time(Time::constant(12, 34, 56, 0)).build().ok()?;
    let probed = date_rules(text, odd)?;
    if probed.time() == Time::midnight() && !names_a_time(text) {
        return Some(Moment::Day(probed.date()));
    }
    Some(Moment::Instant(date_rules(text, now.clone())?.timestamp()))
}

fn date_rules(text: &str, base: Zoned) -> Option<Zoned> {
    parse_datetime::parse_datetime_at_date(base, text).ok()?.into_zoned()
}

fn names_a_time(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let after_digits = |marker: &str| {
        lower.match_indices(marker).any(|(at, _)| lower[..at].trim_end().ends_with(|c: char| c.is_ascii_digit()))
    };
    lower.contains(':') || lower.starts_with('@') || after_digits("am") || after_digits("pm") || after_digits("t0")
}

fn start_of(day: Date, now: &Zoned) -> Result<i64> {
    let start = day.to_zoned(now.time_zone().clone());
    start.map(|start| start.timestamp().as_millisecond()).map_err(|_| Failure::usage(format!("{day} is out of range")))
}

fn end_of(day: Date, now: &Zoned) -> Result<i64> {
    let next = day.tomorrow().map_err(|_| Failure::usage(format!("{day} is out of range")))?;
    Ok(start_of(next, now)? - 1)
}

const FORMS: &str = "write it like \"2026-11-20 03:00\", 2026-11-20, yesterday, \"3 days ago\" or 2026-11-20T03:00:00Z";
const TEXT_LEN_MAX: usize = 100;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    use super::*;

    /// Friday, in a zone one hour east of Greenwich at that time of the year.
    fn now() -> Zoned {
        "2026-11-20T15:04:05[Europe/Berlin]".parse().unwrap()
    }

    fn utc(ms: i64) -> String {
        Timestamp::from_millisecond(ms).unwrap().to_string()
    }

    fn latest_of(text: &str) -> String {
        utc(latest("--at", text, &now()).unwrap())
    }

    fn earliest_of(text: &str) -> String {
        utc(earliest("--time", text, &now()).unwrap())
    }

    #[test]
    fn a_time_without_a_zone_is_local_and_reaches_to_the_end_of_its_second() {
        assert_eq!(latest_of("2026-11-20 03:00"), "2026-11-20T02:00:00.999Z");
        assert_eq!(latest_of("2026-11-20 03:00:12"), "2026-11-20T02:00:12.999Z");
        assert_eq!(latest_of("2026-11-20 00:00"), "2026-11-19T23:00:00.999Z");
        assert_eq!(latest_of("2026-07-20 03:00"), "2026-07-20T01:00:00.999Z", "summer time");
        assert_eq!(latest_of("yesterday 03:00"), "2026-11-19T02:00:00.999Z");
    }

    #[test]
    fn rfc_3339_is_taken_to_the_millisecond() {
        assert_eq!(latest_of("2026-11-20T03:00:00.125Z"), "2026-11-20T03:00:00.125Z");
        assert_eq!(latest_of("2026-11-20T03:00:00+05:30"), "2026-11-19T21:30:00.999Z");
        assert_eq!(earliest_of("2026-11-20T03:00:00Z"), "2026-11-20T03:00:00Z");
    }

    #[test]
    fn a_day_reaches_to_its_end_for_picking_and_begins_at_midnight_for_recording() {
        for (text, end, start) in [
            ("today", "2026-11-20T22:59:59.999Z", "2026-11-19T23:00:00Z"),
            ("Yesterday", "2026-11-19T22:59:59.999Z", "2026-11-18T23:00:00Z"),
            ("2026-11-18", "2026-11-18T22:59:59.999Z", "2026-11-17T23:00:00Z"),
            ("20261118", "2026-11-18T22:59:59.999Z", "2026-11-17T23:00:00Z"),
            ("18 nov 2026", "2026-11-18T22:59:59.999Z", "2026-11-17T23:00:00Z"),
            // The night when summer time ends: that day has 25 hours.
            ("2026-10-25", "2026-10-25T22:59:59.999Z", "2026-10-24T22:00:00Z"),
        ] {
            assert_eq!(latest_of(text), end, "{text}");
            assert_eq!(earliest_of(text), start, "{text}");
        }
    }

    #[test]
    fn amounts_of_time_count_back_from_now() {
        assert_eq!(latest_of("3 days ago"), "2026-11-17T14:04:05.999Z");
        assert_eq!(latest_of("90 minutes ago"), "2026-11-20T12:34:05.999Z");
        assert_eq!(latest_of("now"), "2026-11-20T14:04:05.999Z");
        let midnight = "2026-11-20T00:00:00[Europe/Berlin]".parse().unwrap();
        assert_eq!(utc(latest("--at", "2 days ago", &midnight).unwrap()), "2026-11-17T23:00:00.999Z");
    }

    #[test]
    fn what_is_not_a_time_or_is_easily_misread_is_refused() {
        for text in ["", " ", "a", "12", "2026", "202611", "soon", "2026-13-01", "monday", "tomorrow", "9999999999999"]
        {
            let failure = latest("--at", text, &now()).expect_err(text);
            assert_eq!(failure.exit(), crate::exit::Exit::Usage, "{text}");
        }
        assert!(earliest("--time", "2027-11-20", &now()).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}", words in "[0-9a-z:+@./ -]{0,30}") {
            let now = now().with_time_zone(TimeZone::UTC);
            let _ = latest("--at", &text, &now);
            let _ = earliest("--time", &words, &now);
        }
    }
}
