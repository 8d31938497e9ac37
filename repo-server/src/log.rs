//! What happened, as JSON lines: to standard error what is of use to whoever runs the server; to the audit file who
//! changed what, and who was refused.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

/// Writes a line to standard error. `fields` is a map.
pub(crate) fn line(level: &'static str, message: &str, fields: &impl Serialize) {
    let text = text(&[("level", level), ("message", message)], fields);
    // Nobody is left to tell.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

fn text(first: &[(&str, &str)], fields: &impl Serialize) -> String {
    let mut line = Map::new();
    line.insert("time".to_owned(), Value::from(format!("{:.3}", Timestamp::now())));
    line.extend(first.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))));
    if let Ok(Value::Object(fields)) = serde_json::to_value(fields) {
        line.extend(fields.into_iter().filter(|(_, value)| !value.is_null()));
    }
    format!("{}\n", Value::Object(line))
}

/// One entry of the audit file.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AuditEntry<'a> {
    pub(crate) request_id: &'a str,
    pub(crate) client: &'a str,
    /// The token's id; none when it was none of ours.
    pub(crate) token: Option<&'a str>,
    pub(crate) label: Option<&'a str>,
    pub(crate) role: Option<&'static str>,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) action: &'a str,
    pub(crate) object: &'a str,
    /// Of the object, as far as they came.
    pub(crate) bytes: Option<u64>,
    pub(crate) outcome: &'a str,
    pub(crate) reason: Option<&'a str>,
}

/// The audit file. It is opened for each entry, so that it can be moved away at any time.
pub(crate) struct Audit {
    path: PathBuf,
}

impl Audit {
    pub(crate) fn new(state: &Path) -> Self {
        Self { path: state.join("audit.jsonl") }
    }

    pub(crate) fn write(&self, entry: &AuditEntry<'_>) {
        let text = text(&[], entry);
        let mut options = std::fs::OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).open(&self.path);
        // One write a line: lines of several threads do not mix.
        if let Err(error) = file.and_then(|mut file| file.write_all(text.as_bytes())) {
            line("error", "cannot write the audit file", &serde_json::json!({ "error": error.to_string() }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_line_whatever_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::new(folder.path());
        let entry = AuditEntry {
            request_id: "r",
            client: "127.0.0.1",
            token: None,
            label: None,
            role: None,
            namespace: Some("office"),
            action: "PUT",
            object: "line\nbreak\"",
            bytes: Some(3),
            outcome: "refused",
            reason: Some("unauthorized"),
        };
        audit.write(&entry);
        audit.write(&entry);
        let text = std::fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 2);
        for line in text.lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["object"], "line\nbreak\"");
            assert!(value.get("token").is_none());
        }
    }
}
