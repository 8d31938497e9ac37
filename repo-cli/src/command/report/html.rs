//! The report as one web page that needs nothing else: no scripts, no files, no network, and it says so to the browser.
//!
//! Everything that a user named goes through [`escape`].

use super::chart::{Bar, Line, Point, bars};
use super::out::{DayOut, ExportsOut, ReportOut, RowOut};
use super::table::{growth, ratio, size};
use crate::output::{self, html_escaped as escape};

/// Bars of VDIs.
const BIGGEST: usize = 10;
/// Rows of a table; more would make the page slow on a phone. The other forms of the report have all of them.
const ROWS_MAX: usize = 500;

/// The page of a repository.
pub(super) fn page(out: &ReportOut, repository: &str) -> String {
    let name = escape(repository);
    let (made, shown) = (escape(&out.time), escape(&output::time_local(out.time_ms)));
    [
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
             <title>Cairn: {name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
             <header><h1>{name}</h1><p>Cairn repository, as of <time datetime=\"{made}\">{shown}</time></p></header>\n<main>\n"
        ),
        tiles(out),
        format!("<div class=\"charts\">\n{}</div>\n", charts(out)),
        vdi_table(out),
        policy_table(out),
        exports_table(out),
        accounting(out),
        format!("</main>\n<footer><p>{FOOTNOTE}</p></footer>\n</body>\n</html>\n"),
    ]
    .concat()
}

fn tiles(out: &ReportOut) -> String {
    let repository = &out.repository;
    let row = &repository.row;
    let tile = |name: &str, value: String, note: String, raw: String| {
        format!(
            "<div class=\"tile\"><h2>{name}</h2><p class=\"big\" data-value=\"{raw}\">{}</p><p>{}</p></div>\n",
            escape(&value),
            escape(&note)
        )
    };
    let protected = format!("{} snapshots of {} disks", row.snapshots, out.vdis.len());
    let stored = format!("{} packs; {} reclaimable", repository.packs, output::size(repository.reclaimable_bytes));
    let ratios = format!("deduplication {}, compression {}", ratio(row.deduplication), ratio(row.compression));
    let raw_ratio = row.total.map(|total| total.to_string()).unwrap_or_default();
    let days = out.forecast.days_left.map(|days| days.to_string()).unwrap_or_default();
    let left = out.forecast.days_left.map_or_else(|| "not in sight".to_owned(), |days| format!("{days} days"));
    let when = out.forecast.full.as_ref().map(|date| format!("on {date}, ")).unwrap_or_default();
    let capacity = out.forecast.capacity_bytes.map(|bytes| format!("of {}; ", output::size(bytes))).unwrap_or_default();
    let forecast = format!("{when}{capacity}growth {}", growth(&out.forecast));
    [
        "<div class=\"tiles\">\n".to_owned(),
        tile("Protected", output::size(row.allocated_bytes), protected, row.allocated_bytes.to_string()),
        tile("On disk", output::size(repository.total_bytes), stored, repository.total_bytes.to_string()),
        tile("Ratio", ratio(row.total), ratios, raw_ratio),
        tile("Full", left, forecast, days),
        "</div>\n".to_owned(),
    ]
    .concat()
}

fn charts(out: &ReportOut) -> String {
    let figure = |id: &str, title: &str, note: &str, chart: String| {
        format!("<figure id=\"{id}\"><figcaption><h2>{title}</h2><p>{note}</p></figcaption>\n{chart}\n</figure>\n")
    };
    let bytes = |value: f64| output::size(value as u64);
    let times = |value: f64| ratio(Some(value));
    let growth = Line {
        title: "Stored bytes by day",
        points: points(&out.days, |day| day.stored_so_far_bytes as f64),
        filled: true,
        show: &bytes,
        unit: 1024.0,
    };
    let ratios = Line {
        title: "Total ratio by day",
        points: points(&out.days, |day| day.allocated_so_far_bytes as f64 / day.stored_so_far_bytes.max(1) as f64),
        filled: false,
        show: &times,
        unit: 1000.0,
    };
    [
        figure("growth", "Growth", "What the snapshots up to each day added to the repository.", growth.svg()),
        figure(
            "ratio",
            "Ratio over time",
            "In use on all disks, to what was stored for it, up to each day.",
            ratios.svg(),
        ),
        figure(
            "biggest",
            "Biggest disks",
            "Stored at import. <b class=\"key\">Strong</b>: what no other disk needs, now.",
            bars("Biggest disks by stored bytes", &biggest(out)),
        ),
        figure(
            "policies",
            "What each policy would free",
            "If it were kept of each disk, and no more.",
            bars("Bytes that each policy would free", &policy_bars(out)),
        ),
    ]
    .concat()
}

fn points(days: &[DayOut], value: impl Fn(&DayOut) -> f64) -> Vec<Point> {
    let point =
        |day: &DayOut| Point { day: day.number, label: day.row.day.clone().unwrap_or_default(), value: value(day) };
    days.iter().map(point).collect()
}

fn biggest(out: &ReportOut) -> Vec<Bar> {
    let mut vdis: Vec<&RowOut> = out.vdis.iter().collect();
    vdis.sort_by_key(|row| std::cmp::Reverse(row.stored_bytes));
    let bar = |row: &RowOut| Bar {
        label: name_of(row),
        value: row.stored_bytes,
        part: row.unique_bytes,
        note: output::size(row.stored_bytes),
    };
    vdis.into_iter().take(BIGGEST).map(bar).collect()
}

/// A disk as people know it: the VM's name comes first.
fn name_of(row: &RowOut) -> String {
    let vdi = row.vdi.clone().unwrap_or_default();
    row.vm.as_ref().map_or_else(|| vdi.clone(), |vm| format!("{vm}: {vdi}"))
}

fn policy_bars(out: &ReportOut) -> Vec<Bar> {
    let bar = |policy: &super::out::PolicyOut| Bar {
        label: policy.policy.clone(),
        value: policy.freed_bytes,
        part: None,
        note: format!("{}, forgets {}", output::size(policy.freed_bytes), policy.forgotten),
    };
    out.policies.iter().map(bar).collect()
}

/// A cell with a number that programs can read.
fn number(shown: &str, raw: Option<u64>) -> String {
    let raw = raw.map(|raw| raw.to_string()).unwrap_or_default();
    format!("<td class=\"number\" data-value=\"{raw}\">{}</td>", escape(shown))
}

fn bytes(raw: u64) -> String {
    number(&output::size(raw), Some(raw))
}

fn known(raw: Option<u64>) -> String {
    number(&size(raw), raw)
}

/// A table that scrolls sideways by itself where it is wider than the page.
fn table(id: &str, title: &str, headings: &[&str], rows: &[String], all: usize) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let heads: String = headings.iter().map(|heading| format!("<th scope=\"col\">{heading}</th>")).collect();
    let rest = match all.saturating_sub(rows.len()) {
        0 => String::new(),
        rest => format!("<p>And {rest} more: see cairn report --csv.</p>"),
    };
    format!(
        "<section id=\"{id}\"><h2>{title}</h2><div class=\"wide\" tabindex=\"0\"><table><thead><tr>{heads}</tr></thead>\n\
         <tbody>\n{}</tbody></table></div>{rest}</section>\n",
        rows.iter().map(|row| format!("<tr>{row}</tr>\n")).collect::<String>()
    )
}

fn vdi_table(out: &ReportOut) -> String {
    let row = |row: &RowOut| {
        let times = |value: Option<f64>| format!("<td class=\"number\">{}</td>", ratio(value));
        [
            format!("<th scope=\"row\">{}</th>", escape(&name_of(row))),
            number(&row.snapshots.to_string(), Some(row.snapshots)),
            bytes(row.newest_virtual_bytes),
            bytes(row.newest_allocated_bytes),
            bytes(row.new_bytes),
            bytes(row.stored_bytes),
            times(row.deduplication),
            times(row.compression),
            times(row.total),
            known(row.unique_bytes),
        ]
        .concat()
    };
    let headings = ["Disk", "Snapshots", "Size", "In use", "New", "Stored", "Dedup.", "Compr.", "Total", "Only here"];
    let rows: Vec<_> = out.vdis.iter().take(ROWS_MAX).map(row).collect();
    table("vdis", "Disks", &headings, &rows, out.vdis.len())
}

fn policy_table(out: &ReportOut) -> String {
    let row = |policy: &super::out::PolicyOut| {
        [
            format!("<th scope=\"row\">{}</th>", escape(&policy.policy)),
            number(&policy.kept.to_string(), Some(policy.kept)),
            number(&policy.forgotten.to_string(), Some(policy.forgotten)),
            bytes(policy.freed_bytes),
        ]
        .concat()
    };
    let rows: Vec<_> = out.policies.iter().map(row).collect();
    table("policy-table", "Policies", &["Keeping of each disk", "Keeps", "Forgets", "Would free"], &rows, rows.len())
}

fn exports_table(out: &ReportOut) -> String {
    let row = |exports: &ExportsOut| {
        let newest = exports.snapshots.last();
        let name = match &exports.vm {
            Some(vm) => format!("{vm}: {}", exports.vdi),
            None => exports.vdi.clone(),
        };
        [
            format!("<th scope=\"row\">{}</th>", escape(&name)),
            bytes(exports.lvm.base_bytes),
            bytes(exports.lvm.one_snapshot_allocated_bytes),
            bytes(exports.lvm.two_snapshots_allocated_bytes),
            known(newest.and_then(|newest| newest.full_vhd_bytes)),
            known(newest.and_then(|newest| newest.delta_vhd_bytes)),
            known(newest.map(|newest| newest.stored_bytes)),
            bytes(exports.stored_bytes),
        ]
        .concat()
    };
    let headings = ["Disk", "Thick SR", "+ snapshot", "+ second", "Full VHD", "Delta VHD", "Newest here", "All here"];
    let rows: Vec<_> = out.exports.iter().take(ROWS_MAX).map(row).collect();
    table("exports", "Exports, a thick LVM SR, and what is stored here", &headings, &rows, out.exports.len())
}

fn accounting(out: &ReportOut) -> String {
    let repository = &out.repository;
    let parts = [
        ("Content in use", repository.data_bytes),
        ("Manifests in use", repository.manifest_bytes),
        ("Headers and directories of packs", repository.overhead_bytes),
        ("Snapshot records", repository.record_bytes),
        ("Configuration, keys, remarks", repository.other_bytes),
        ("Needed by no snapshot", repository.dead_bytes),
        ("Further copies", repository.duplicate_bytes),
        ("In unreadable packs", repository.unreadable_bytes),
        ("Sum: all objects on disk", repository.total_bytes),
    ];
    let row = |(name, raw): (&str, u64)| {
        format!("<th scope=\"row\">{name}</th>{}{}", bytes(raw), number(&raw.to_string(), Some(raw)))
    };
    let rows: Vec<_> = parts.into_iter().map(row).collect();
    table("accounting", "Every byte", &["What", "Size", "Bytes"], &rows, rows.len())
}

const FOOTNOTE: &str = "In use: pages that are not all zeros. New: content that was not stored before. Stored: what an \
    import added, compressed. Deduplication is in use to new, compression new to stored, total in use to stored; those \
    of the whole repository are of what its snapshots need now. Only here: what no other disk needs, and forgetting this \
    one would free. The forecast takes the median growth and assumes that nothing is forgotten.";

const STYLE: &str = include_str!("page.css");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_named_is_text_wherever_it_stands() {
        assert_eq!(escape("<script>alert('x')</script>"), "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;");
        assert_eq!(escape("\" onload=\"x"), "&quot; onload=&quot;x");
        assert_eq!(escape("a&b\u{202e}c\0"), "a&amp;b\\u{202e}c\\u{0}");
        assert_eq!(escape("Grüße"), "Grüße");
    }

    #[test]
    fn the_page_loads_nothing() {
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import") && !STYLE.contains("</style"));
    }
}
