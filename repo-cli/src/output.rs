//! Results: text for people, JSON for programs, both to stdout. Numbers become words here and nowhere else.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use repo_core::error::ResultExt;
use repo_core::id::SHORT_DIGITS;
use repo_core::remarks::Remarks;
use repo_core::snapshot::{Disk, NamedSnapshot};
use serde::Serialize;

use crate::failure::Result;

/// A snapshot in JSON: `cairn snapshots` prints an array of these, `cairn show` adds to one.
#[derive(Debug, Serialize)]
pub(crate) struct SnapshotOut {
    pub(crate) id: String,
    pub(crate) time: String,
    pub(crate) committed: String,
    /// By the clock of the store; `null` where it was not asked.
    pub(crate) stored: Option<String>,
    pub(crate) vm: Option<String>,
    pub(crate) disks: Vec<DiskOut>,
    pub(crate) new_bytes: u64,
    pub(crate) new_chunks: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) tags: Vec<String>,
    pub(crate) note: Option<String>,
    pub(crate) protected: bool,
}

/// A disk of a snapshot in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct DiskOut {
    pub(crate) vdi: String,
    pub(crate) virtual_size: u64,
    pub(crate) allocated_bytes: u64,
    pub(crate) source_format: String,
    pub(crate) parent: Option<String>,
}

impl SnapshotOut {
    /// A snapshot, what is said of it now, and when the store got its record, in milliseconds since the Unix epoch.
    pub(crate) fn new(named: &NamedSnapshot, remarks: &Remarks, stored_ms: Option<i64>) -> Self {
        let snapshot = &named.snapshot;
        Self {
            id: named.id.to_hex(),
            time: time_utc(snapshot.time_ms),
            committed: time_utc(snapshot.committed_ms),
            stored: stored_ms.map(time_utc),
            vm: snapshot.vm.clone(),
            disks: snapshot.disks.iter().map(DiskOut::from).collect(),
            new_bytes: snapshot.stats.new_bytes,
            new_chunks: snapshot.stats.new_chunks,
            stored_bytes: snapshot.stats.pack_bytes.saturating_add(named.len),
            tags: remarks.tags.iter().cloned().collect(),
            note: remarks.note.clone(),
            protected: remarks.protected,
        }
    }
}

impl From<&Disk> for DiskOut {
    fn from(disk: &Disk) -> Self {
        Self {
            vdi: disk.vdi.clone(),
            virtual_size: disk.tree.virtual_size,
            allocated_bytes: disk.allocated_bytes,
            source_format: disk.source_format.clone(),
            parent: disk.parent.map(|parent| parent.to_hex()),
        }
    }
}

/// Writes a result. A reader that went away has seen what it wanted: that is no error.
///
/// # Errors
/// `Io` when the output cannot be written.
pub(crate) fn write(mut to: impl Write, bytes: &[u8]) -> Result<()> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written.context(|| "cannot write the result")?),
    }
}

/// A value as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).expect("results have text keys and no unusual numbers");
    text.push('\n');
    text
}

/// Text without what would steer a terminal or begin a line: names come from other machines.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// A size with a unit: `512 B`, `1.25 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be shown as 1024 of a unit is shown as 1 of the next.
    while value >= 1023.995 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value >= 99.95 { 0 } else { usize::from(value < 9.995) + 1 };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A number of things: `1 snapshot`, `2 snapshots`.
pub(crate) fn count(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// Remarks on one line, the note cut at `note_len` characters: `protected; gold, audit; "before the move"`.
pub(crate) fn remarks(remarks: &Remarks, note_len: usize) -> String {
    let protected = remarks.protected.then(|| "protected".to_owned());
    let tags = (!remarks.tags.is_empty()).then(|| remarks.tags.iter().cloned().collect::<Vec<_>>().join(", "));
    let note = remarks.note.as_ref().map(|note| {
        let cut: String = note.chars().take(note_len).collect();
        let rest = if cut.len() < note.len() { "…" } else { "" };
        format!("\"{cut}{rest}\"")
    });
    [protected, tags, note].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// How many times `whole` is `part`: `3.4x`; `-` when there is nothing to compare.
pub(crate) fn ratio(whole: u64, part: u64) -> String {
    if whole == 0 || part == 0 {
        return "-".to_owned();
    }
    let times = whole as f64 / part as f64;
    if times < 99.95 { format!("{times:.1}x") } else { format!("{times:.0}x") }
}

/// A length of time: `0.31 s`, `12.3 s`, `4 min 05 s`.
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds < 10.0 {
        format!("{seconds:.2} s")
    } else if seconds < 100.0 {
        format!("{seconds:.1} s")
    } else {
        let whole = seconds.round() as u64;
        let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
        if hours > 0 { format!("{hours} h {minutes:02} min") } else { format!("{minutes} min {seconds:02} s") }
    }
}

/// A speed, of `bytes` in `seconds`.
pub(crate) fn speed(bytes: u64, seconds: f64) -> String {
    format!("{}/s", size((bytes as f64 / seconds.max(0.001)) as u64))
}

/// Seconds to the millisecond, as JSON has them.
pub(crate) fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// A time for programs: RFC 3339 in UTC, with milliseconds.
pub(crate) fn time_utc(ms: i64) -> String {
    timestamp(ms).strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// A time for people, in the local zone.
pub(crate) fn time_local(ms: i64) -> String {
    time_in(ms, TimeZone::system())
}

fn time_in(ms: i64, zone: TimeZone) -> String {
    Zoned::new(timestamp(ms), zone).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A point in time. Stored times are any number: what the calendar does not reach becomes its end.
pub(crate) fn timestamp(ms: i64) -> Timestamp {
    let end = if ms < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_millisecond(ms).unwrap_or(end)
}

/// The beginning of an id, for people.
pub(crate) fn short(hex: &str) -> &str {
    hex.get(..SHORT_DIGITS).unwrap_or(hex)
}

/// Text without meaning to HTML, in elements and in quoted attributes, and without control characters.
pub(crate) fn html_escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Columns with headings; those in `right` are numbers.
pub(crate) fn table(headings: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for at in right {
        if let Some(column) = table.column_mut(*at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text: String = table.lines().map(|line| format!("{}\n", line.trim_end().trim_start_matches(' '))).collect();
    if text.is_empty() {
        text.push('\n');
    }
    text
}

/// Lines of a name and a value, the values under each other.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    fields.iter().map(|(name, value)| format!("  {name:<width$}  {}\n", printable(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::tests::made;

    #[test]
    fn sizes_have_three_digits_and_never_read_1024() {
        let shown = [0, 1023, 1024, 1536, 10 << 10, 200 << 20, (1 << 30) - 1, 5 << 40, u64::MAX].map(size);
        let expected =
            ["0 B", "1023 B", "1.00 KiB", "1.50 KiB", "10.0 KiB", "200 MiB", "1.00 GiB", "5.00 TiB", "16.0 EiB"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn times_are_utc_for_programs_local_for_people_and_never_out_of_range() {
        assert_eq!(time_utc(1_700_000_000_007), "2023-11-14T22:13:20.007Z");
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(time_in(1_700_000_000_007, zone), "2023-11-15 00:13:20");
        assert!(time_utc(i64::MAX).starts_with("9999-12-30"));
        assert!(time_local(i64::MIN).starts_with("-"));
    }

    #[test]
    fn ratios_and_durations() {
        assert_eq!([ratio(10, 4), ratio(1000, 4), ratio(0, 1), ratio(1, 0)], ["2.5x", "250x", "-", "-"]);
        assert_eq!(
            [seconds(0.314), seconds(12.34), seconds(245.0), seconds(7260.0)],
            ["0.31 s", "12.3 s", "4 min 05 s", "2 h 01 min"]
        );
    }

    #[test]
    fn remarks_stand_on_one_line() {
        let tags = ["gold".to_owned(), "audit".to_owned()].into();
        let said = Remarks { tags, note: Some("before the move".to_owned()), protected: true };
        assert_eq!(remarks(&said, 6), "protected; audit, gold; \"before…\"");
        assert_eq!(remarks(&said, 99), "protected; audit, gold; \"before the move\"");
        assert_eq!(remarks(&Remarks::default(), 9), "");
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\\u{a}c");
        assert_eq!(printable("Grüße"), "Grüße");
    }

    #[test]
    fn a_snapshot_in_json_keeps_its_field_names() {
        let remarks = Remarks { tags: ["gold".to_owned()].into(), ..Remarks::default() };
        let text = json(&SnapshotOut::new(&made([1, 2, 3, 4], 0, &["root"]), &remarks, Some(5)));
        let expected = format!(
            "{{\"id\":\"01020304{}\",\"time\":\"1970-01-01T00:00:00.000Z\",\"committed\":\"1970-01-01T00:00:00.001Z\",\
             \"stored\":\"1970-01-01T00:00:00.005Z\",\
             \"vm\":\"web-01\",\"disks\":[{{\"vdi\":\"root\",\"virtual_size\":1073741824,\"allocated_bytes\":4096,\
             \"source_format\":\"vhd-dynamic\",\"parent\":null}}],\"new_bytes\":4096,\"new_chunks\":1,\
             \"stored_bytes\":1000,\"tags\":[\"gold\"],\"note\":null,\"protected\":false}}\n",
            "0".repeat(56)
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_reader_that_went_away_is_no_error_and_a_full_disk_is() {
        struct Fails(io::ErrorKind);
        impl Write for Fails {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(write(Fails(io::ErrorKind::BrokenPipe), b"x").is_ok());
        assert!(write(Fails(io::ErrorKind::StorageFull), b"x").is_err());
    }
}
