//! When a duty is due.

use std::str::FromStr;

use croner::Cron;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Minute, hour, day of the month, month, day of the week, in a time zone.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

impl Schedule {
    /// Reads a schedule.
    pub(crate) fn parse(text: &str, zone: TimeZone) -> Result<Self, String> {
        let cron = Cron::from_str(text).map_err(|error| format!("{text:?} is no schedule: {error}"))?;
        Ok(Self { cron, zone })
    }

    /// Whether a run is due whose last one began at `last_ms`. Runs that were missed are made up for by one.
    pub(crate) fn is_due(&self, last_ms: i64, now_ms: i64) -> bool {
        self.next_ms(last_ms, now_ms).is_some_and(|next| next <= now_ms)
    }

    /// When the next run is due, in milliseconds since the Unix epoch; a time that is past when it was missed.
    pub(crate) fn next_ms(&self, last_ms: i64, now_ms: i64) -> Option<i64> {
        // A clock that was put back must not end the duty.
        let last = Timestamp::from_millisecond(last_ms.min(now_ms)).ok()?.to_zoned(self.zone.clone());
        Some(self.cron.find_next_occurrence(&last, false).ok()?.timestamp().as_millisecond())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_checked() {
        assert!(Schedule::parse("0 3 * * *", TimeZone::UTC).is_ok());
        assert!(Schedule::parse("at night", TimeZone::UTC).unwrap_err().contains("is no schedule"));
    }

    #[test]
    fn a_run_is_due_once_its_time_came_also_when_the_clock_was_put_back() {
        let daily = Schedule::parse("0 3 * * *", TimeZone::UTC).unwrap();
        let hours = |hours: i64| hours * 60 * 60 * 1000;
        assert!(!daily.is_due(hours(4), hours(26)));
        assert!(daily.is_due(hours(4), hours(27)));
        assert!(daily.is_due(hours(4), hours(400)));
        assert!(!daily.is_due(hours(400), hours(2)));
        assert_eq!(daily.next_ms(hours(400), hours(2)), Some(hours(3)));
    }
}
