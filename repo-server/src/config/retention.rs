//! What is kept, as the configuration says it: the rules of `cairn forget`.

use repo_core::retention::calendar::{Period, Span};
use repo_core::retention::{Policy, Reach, Rule};
use serde::Deserialize;

/// What is kept, and when the rest is forgotten. Applied to each disk by itself; what any rule keeps is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionConfig {
    /// When.
    pub schedule: String,
    /// The newest ones, so many.
    pub keep_last: Option<u32>,
    /// The newest of each of the last hours that have any, so many.
    pub keep_hourly: Option<u32>,
    /// The same by day.
    pub keep_daily: Option<u32>,
    /// The same by week.
    pub keep_weekly: Option<u32>,
    /// The same by month.
    pub keep_monthly: Option<u32>,
    /// The same by year.
    pub keep_yearly: Option<u32>,
    /// All that are at most this much older than the newest: `30d`, `8w`, `1y6m`, `36h`.
    pub keep_within: Option<String>,
    /// The newest of each hour of this time.
    pub keep_within_hourly: Option<String>,
    /// The same by day.
    pub keep_within_daily: Option<String>,
    /// The same by week.
    pub keep_within_weekly: Option<String>,
    /// The same by month.
    pub keep_within_monthly: Option<String>,
    /// The same by year.
    pub keep_within_yearly: Option<String>,
    /// Those with any of these tags.
    #[serde(default)]
    pub keep_tags: Vec<String>,
}

impl RetentionConfig {
    /// The same as the core takes it.
    ///
    /// # Errors
    /// What is wrong with it. A policy that keeps nothing is: it would forget all but the newest.
    pub(crate) fn policy(&self) -> Result<Policy, String> {
        let counts = [
            (Period::Each, self.keep_last),
            (Period::Hour, self.keep_hourly),
            (Period::Day, self.keep_daily),
            (Period::Week, self.keep_weekly),
            (Period::Month, self.keep_monthly),
            (Period::Year, self.keep_yearly),
        ];
        let spans = [
            ("keep_within", Period::Each, &self.keep_within),
            ("keep_within_hourly", Period::Hour, &self.keep_within_hourly),
            ("keep_within_daily", Period::Day, &self.keep_within_daily),
            ("keep_within_weekly", Period::Week, &self.keep_within_weekly),
            ("keep_within_monthly", Period::Month, &self.keep_within_monthly),
            ("keep_within_yearly", Period::Year, &self.keep_within_yearly),
        ];
        let mut rules: Vec<_> = counts
            .into_iter()
            .filter_map(|(period, count)| Some(Rule { period, reach: Reach::Count(count?) }))
            .collect();
        for (name, period, text) in spans {
            let Some(text) = text else { continue };
            let span: Span = text.parse().map_err(|error: repo_core::Error| format!("{name}: {error}"))?;
            rules.push(Rule { period, reach: Reach::Within(span) });
        }
        let policy = Policy { rules, tags: self.keep_tags.iter().cloned().collect(), allow_last: false };
        match policy.is_empty() {
            true => Err("retention keeps nothing: give keep_daily or another rule".to_owned()),
            false => Ok(policy),
        }
    }
}
