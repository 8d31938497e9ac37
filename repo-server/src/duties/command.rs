//! `cairn-server duties`: what people ask for.

use std::fmt::Write;
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::Value;

use super::{Duties, Duty, House};
use crate::config::Config;

/// A duty, what became of it, and when it comes next.
#[derive(Debug, Clone, Serialize)]
pub struct ShownDuty {
    /// Where it is done.
    pub namespace: String,
    /// Which one.
    pub duty: Duty,
    /// When its last run began, in milliseconds since the Unix epoch; null before the first.
    pub began_ms: Option<i64>,
    /// How long that took, in milliseconds.
    pub took_ms: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
    /// What it found and did; of the last run that did not fail.
    pub result: Value,
    /// When the next one is due, in milliseconds since the Unix epoch.
    pub next_ms: Option<i64>,
}

/// Runs the duties that are scheduled, those of one namespace or one kind if that is said.
///
/// # Errors
/// When there is none such.
pub fn run_duties(
    config: &Config,
    namespace: Option<&str>,
    duty: Option<&Duty>,
    now_ms: i64,
) -> Result<Vec<ShownDuty>, String> {
    let duties = Duties::open(config, &TimeZone::system())?;
    let mut shown = Vec::new();
    for house in duties.houses.iter().filter(|house| namespace.is_none_or(|name| house.namespace == name)) {
        for (what, _) in house.schedules.iter().filter(|(what, _)| duty.is_none_or(|duty| duty == what)) {
            let ended = house.run(what, &duties.notes, now_ms, &AtomicBool::new(false));
            let error = ended.err();
            shown.push(ShownDuty { error, ..duties.shown(house, what, now_ms) });
        }
    }
    match shown.is_empty() {
        true => Err("no such duty is in the configuration".to_owned()),
        false => Ok(shown),
    }
}

/// All duties that are scheduled.
///
/// # Errors
/// When what is noted of them cannot be read.
pub fn shown_duties(config: &Config, now_ms: i64) -> Result<Vec<ShownDuty>, String> {
    let duties = Duties::open(config, &TimeZone::system())?;
    let all = duties.houses.iter().flat_map(|house| house.schedules.iter().map(move |(duty, _)| (house, duty)));
    Ok(all.map(|(house, duty)| duties.shown(house, duty, now_ms)).collect())
}

/// What the keys for the duties of each namespace are good for.
///
/// # Errors
/// As [`shown_duties`].
pub fn describe_keys(config: &Config) -> Result<Vec<(String, String)>, String> {
    let houses = House::all(config, &TimeZone::UTC)?;
    Ok(houses.iter().map(|house| (house.namespace.clone(), house.describe())).collect())
}

/// The same for people.
pub fn duties_text(shown: &[ShownDuty]) -> String {
    let time = |ms: Option<i64>| {
        let time = ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        time.map_or("-".to_owned(), |time| format!("{:.0}", time))
    };
    let mut text = String::new();
    for duty in shown {
        let name = format!("{} {}", duty.namespace, duty.duty);
        let _ = writeln!(text, "{name}: last {}, next {}", time(duty.began_ms), time(duty.next_ms));
        if let Some(error) = &duty.error {
            let _ = writeln!(text, "  failed: {error}");
        }
        for (key, value) in duty.result.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            let _ = writeln!(text, "  {key}: {value}");
        }
    }
    text
}

impl Duties {
    fn shown(&self, house: &House, duty: &Duty, now_ms: i64) -> ShownDuty {
        let done = self.notes.of(&house.namespace).duties.remove(duty);
        let schedule = house.schedules.iter().find(|(other, _)| other == duty).map(|(_, schedule)| schedule);
        let last_ms = done.as_ref().map_or(now_ms, |done| done.began_ms);
        ShownDuty {
            namespace: house.namespace.clone(),
            duty: duty.clone(),
            began_ms: done.as_ref().filter(|done| !done.is_new()).map(|done| done.began_ms),
            took_ms: done.as_ref().filter(|done| !done.is_new()).map(|done| done.took_ms),
            error: done.as_ref().and_then(|done| done.error.clone()),
            result: done.map_or(Value::Null, |done| done.result),
            next_ms: schedule.and_then(|schedule| schedule.next_ms(last_ms, now_ms)),
        }
    }
}
