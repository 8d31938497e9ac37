//! What is kept, as the configuration says it: the rules of `cairn forget`.

use repo_core::retention::Policy;
use repo_core::retention::calendar::Span;
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
        let span = |name: &str, text: &Option<String>| {
            let read = text.as_ref().map(|text| text.parse::<Span>().map_err(|error| format!("{name}: {error}")));
            read.transpose()
        };
        let counts =
            [self.keep_last, self.keep_hourly, self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly];
        let spans = [
            span("keep_within", &self.keep_within)?,
            span("keep_within_hourly", &self.keep_within_hourly)?,
            span("keep_within_daily", &self.keep_within_daily)?,
            span("keep_within_weekly", &self.keep_within_weekly)?,
            span("keep_within_monthly", &self.keep_within_monthly)?,
            span("keep_within_yearly", &self.keep_within_yearly)?,
        ];
        let policy = Policy::of(counts, spans, self.keep_tags.iter().cloned().collect());
        match policy.is_empty() {
            true => Err("retention keeps nothing: give keep_daily or another rule".to_owned()),
            false => Ok(policy),
        }
    }
}
