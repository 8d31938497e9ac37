//! The report's rows as CSV: RFC 4180, one schema for every kind of row.

use super::By;
use super::out::{ReportOut, RowOut};

/// The columns.
const HEADINGS: [&str; 20] = [
    "by",
    "vm",
    "vdi",
    "snapshot",
    "time",
    "day",
    "snapshots",
    "newest_virtual_bytes",
    "newest_allocated_bytes",
    "virtual_bytes",
    "allocated_bytes",
    "exported_bytes",
    "changed_bytes",
    "unknown_disks",
    "new_bytes",
    "stored_bytes",
    "unique_bytes",
    "deduplication",
    "compression",
    "total",
];

/// A line of headings and a line for each row; what is not known is empty.
pub(super) fn rows(out: &ReportOut, by: By) -> String {
    let (name, rows): (&str, Vec<&RowOut>) = match by {
        By::Repository => ("repository", vec![&out.repository.row]),
        By::Vm => ("vm", out.vms.iter().collect()),
        By::Vdi => ("vdi", out.vdis.iter().collect()),
        By::Snapshot => ("snapshot", out.snapshots.iter().collect()),
        By::Day => ("day", out.days.iter().map(|day| &day.row).collect()),
    };
    let mut text = line(HEADINGS.map(str::to_owned));
    rows.iter().for_each(|row| text.push_str(&line(fields(name, row))));
    text
}

fn fields(by: &str, row: &RowOut) -> [String; HEADINGS.len()] {
    let text = |text: &Option<String>| text.as_deref().map(harmless).unwrap_or_default();
    let known = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
    let ratio = |ratio: Option<f64>| ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default();
    [
        by.to_owned(),
        text(&row.vm),
        text(&row.vdi),
        text(&row.snapshot),
        text(&row.time),
        text(&row.day),
        row.snapshots.to_string(),
        row.newest_virtual_bytes.to_string(),
        row.newest_allocated_bytes.to_string(),
        row.virtual_bytes.to_string(),
        row.allocated_bytes.to_string(),
        known(row.exported_bytes),
        known(row.changed_bytes),
        row.unknown_disks.to_string(),
        row.new_bytes.to_string(),
        row.stored_bytes.to_string(),
        known(row.unique_bytes),
        ratio(row.deduplication),
        ratio(row.compression),
        ratio(row.total),
    ]
}

/// A name that a spreadsheet does not take for a formula: names come from other machines.
fn harmless(text: &str) -> String {
    match text.chars().next() {
        Some('=' | '+' | '-' | '@' | '\t' | '\r' | '\n' | '＝' | '＋' | '－' | '＠') => format!("'{text}"),
        _ => text.to_owned(),
    }
}

fn line(fields: [String; HEADINGS.len()]) -> String {
    let quoted = fields.map(|field| {
        let plain = !field.contains(['"', ',', '\n', '\r']) && !field.starts_with(' ') && !field.ends_with(' ');
        if plain { field } else { format!("\"{}\"", field.replace('"', "\"\"")) }
    });
    format!("{}\r\n", quoted.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_never_formulas() {
        let row = RowOut {
            vm: Some("=cmd|' /C calc'!A0".to_owned()),
            vdi: Some("a \"b\", c\r\nd".to_owned()),
            total: Some(2.5),
            ..RowOut::default()
        };
        let text = line(fields("vdi", &row));
        let expected = "vdi,'=cmd|' /C calc'!A0,\"a \"\"b\"\", c\r\nd\",,,,0,0,0,0,0,,,0,0,0,,,,2.500\r\n";
        assert_eq!(text, expected);
        for start in ["=", "+", "-", "@", "\t"] {
            assert!(harmless(&format!("{start}1")).starts_with('\''), "{start}");
        }
        assert_eq!(harmless("web-01"), "web-01");
    }
}
