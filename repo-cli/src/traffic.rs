//! Requests and bytes of object stores, beside the result of a command.

use repo_core::traffic::TrafficReport;
use serde::Serialize;

use crate::output;
use crate::terminal::Terminal;

#[derive(Debug, Serialize)]
struct TrafficOut {
    requests: u64,
    get: u64,
    head: u64,
    list: u64,
    put: u64,
    delete: u64,
    other: u64,
    uploaded_bytes: u64,
    downloaded_bytes: u64,
}

impl From<&TrafficReport> for TrafficOut {
    fn from(report: &TrafficReport) -> Self {
        Self {
            requests: report.requests(),
            get: report.gets,
            head: report.heads,
            list: report.lists,
            put: report.puts,
            delete: report.deletes,
            other: report.others,
            uploaded_bytes: report.uploaded_bytes,
            downloaded_bytes: report.downloaded_bytes,
        }
    }
}

/// What went over the network, for people.
pub(crate) fn line(report: &TrafficReport) -> String {
    format!(
        "network: {} requests ({} list, {} get, {} head, {} put, {} delete), {} sent, {} received",
        report.requests(),
        report.lists,
        report.gets,
        report.heads,
        report.puts,
        report.deletes,
        output::size(report.uploaded_bytes),
        output::size(report.downloaded_bytes),
    )
}

/// A result as JSON: an object gets the field `traffic`; beside a list it is said aside.
pub(crate) fn with_json(json: &impl Serialize, report: &TrafficReport, terminal: &Terminal) -> String {
    let traffic = serde_json::to_value(TrafficOut::from(report)).expect("numbers always become JSON");
    match serde_json::to_value(json) {
        Ok(serde_json::Value::Object(mut object)) => {
            object.insert("traffic".to_owned(), traffic);
            output::json(&object)
        }
        _ => {
            terminal.tell(&serde_json::json!({ "traffic": traffic }).to_string());
            output::json(json)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_get_a_field_and_lists_stay_lists() {
        let report = TrafficReport { gets: 2, uploaded_bytes: 5, ..TrafficReport::default() };
        let terminal = Terminal::new(true, true);
        let text = with_json(&serde_json::json!({ "a": 1 }), &report, &terminal);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["a"], &value["traffic"]["get"]), (&serde_json::json!(1), &serde_json::json!(2)));
        assert_eq!(with_json(&[1, 2], &report, &terminal).split_whitespace().collect::<String>(), "[1,2]");
        assert!(line(&report).contains("2 requests"));
    }
}
