//! Charts as inline SVG, without scripts: lines over days, and bars by name.
//!
//! Colours are classes that the page defines for light and dark. Every point and bar says its value in a `title`, which
//! browsers show and screen readers read, and bars carry it in `data-value` for programs.

use crate::output::html_escaped as escape;

/// The coordinates that lines are drawn in. The page scales them to the width there is.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 190.0;
/// Room for the labels of the axes.
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 26.0;
/// Points are marked while there are no more than so many.
const MARKS_MAX: usize = 40;

/// A value a day.
pub(super) struct Point {
    /// The day's number: where it stands.
    pub(super) day: i64,
    /// The day for people.
    pub(super) label: String,
    /// The value, at least 0.
    pub(super) value: f64,
}

/// A line over days.
pub(super) struct Line<'a> {
    /// What it shows, for who cannot see it.
    pub(super) title: &'a str,
    /// By day, ascending.
    pub(super) points: Vec<Point>,
    /// Whether the area below is filled.
    pub(super) filled: bool,
    /// A value for people.
    pub(super) show: &'a dyn Fn(f64) -> String,
    /// Ratio of the units that ticks are round in: 1024 for bytes, 1000 for numbers.
    pub(super) unit: f64,
}

impl Line<'_> {
    /// The chart; a sentence where one point makes no line.
    pub(super) fn svg(&self) -> String {
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else { return nothing_yet() };
        if first.day == last.day {
            return nothing_yet();
        }
        let top = self.points.iter().map(|point| point.value).fold(0.0, f64::max);
        let ticks = ticks(top, self.unit);
        let end = ticks.last().copied().unwrap_or(1.0);
        let days = (last.day - first.day) as f64;
        let x = |day: i64| LEFT + (day - first.day) as f64 / days * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - value / end * (HEIGHT - TOP - BOTTOM);
        let place = |point: &Point| format!("{:.1},{:.1}", x(point.day), y(point.value));

        let mut svg = open(WIDTH, HEIGHT, self.title);
        for tick in &ticks {
            let (at, label) = (y(*tick), escape(&(self.show)(*tick)));
            svg.push_str(&format!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"axis\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{label}</text>\n",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0
            ));
        }
        for (anchor, at, point) in [("start", LEFT, first), ("end", WIDTH - RIGHT, last)] {
            svg.push_str(&format!(
                "<text class=\"axis\" text-anchor=\"{anchor}\" x=\"{at}\" y=\"{}\">{}</text>\n",
                HEIGHT - 6.0,
                escape(&point.label)
            ));
        }
        let places: Vec<_> = self.points.iter().map(place).collect();
        if self.filled {
            let floor = y(0.0);
            let (start, end) = (x(first.day), x(last.day));
            svg.push_str(&format!(
                "<polygon class=\"area\" points=\"{start:.1},{floor:.1} {} {end:.1},{floor:.1}\"/>\n",
                places.join(" ")
            ));
        }
        svg.push_str(&format!("<polyline class=\"line\" points=\"{}\"/>\n", places.join(" ")));
        if self.points.len() <= MARKS_MAX {
            for point in &self.points {
                svg.push_str(&format!(
                    "<circle class=\"mark\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>{}: {}</title></circle>\n",
                    x(point.day),
                    y(point.value),
                    escape(&point.label),
                    escape(&(self.show)(point.value))
                ));
            }
        }
        svg.push_str("</svg>");
        svg
    }
}

/// A bar.
pub(super) struct Bar {
    /// What it is of.
    pub(super) label: String,
    /// Its length.
    pub(super) value: u64,
    /// A part of it that is set off, at most the value.
    pub(super) part: Option<u64>,
    /// What stands behind the label.
    pub(super) note: String,
}

/// Bars below each other, the longest filling the width.
pub(super) fn bars(title: &str, bars: &[Bar]) -> String {
    /// Height of a bar with its label.
    const STEP: f64 = 40.0;
    let Some(longest) = bars.iter().map(|bar| bar.value).max() else { return nothing_yet() };
    let width = |value: u64| value as f64 / longest.max(1) as f64 * WIDTH;
    let mut svg = open(WIDTH, STEP * bars.len() as f64 + 2.0, title);
    for (bar, at) in bars.iter().zip(0_u32..) {
        let y = f64::from(at) * STEP;
        let text = y + 13.0;
        let (label, note) = (escape(&shortened(&bar.label)), escape(&bar.note));
        svg.push_str(&format!(
            "<g class=\"bar\" data-value=\"{}\"><title>{}: {note}</title>\
             <text class=\"name\" x=\"0\" y=\"{text}\">{label}</text>\
             <text class=\"value\" text-anchor=\"end\" x=\"{WIDTH}\" y=\"{text}\">{note}</text>\
             <rect class=\"rest\" x=\"0\" y=\"{}\" width=\"{:.1}\" height=\"12\" rx=\"2\"/>",
            bar.value,
            escape(&bar.label),
            y + 19.0,
            width(bar.value)
        ));
        if let Some(part) = bar.part {
            svg.push_str(&format!(
                "<rect class=\"part\" x=\"0\" y=\"{}\" width=\"{:.1}\" height=\"12\" rx=\"2\"/>",
                y + 19.0,
                width(part.min(bar.value))
            ));
        }
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>");
    svg
}

fn open(width: f64, height: f64, title: &str) -> String {
    format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">\n", escape(title))
}

fn nothing_yet() -> String {
    "<p class=\"none\">Shown from the second day on.</p>".to_owned()
}

/// A name that leaves room for the value beside it.
fn shortened(name: &str) -> String {
    /// Characters that fit.
    const CHARS_MAX: usize = 30;
    match name.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// Round values from 0 to at least `top`, three to six of them.
fn ticks(top: f64, unit: f64) -> Vec<f64> {
    if top <= 0.0 {
        return vec![0.0, 1.0];
    }
    let mut scale = 1.0;
    while top / scale >= unit {
        scale *= unit;
    }
    // Steps within a unit: 1, 2, 5, 10, …; below one, for small ratios, 0.5 and 0.25.
    let steps = [0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 250.0, 500.0];
    let step = scale * steps.into_iter().find(|step| top / scale / step <= 5.0).unwrap_or(500.0);
    let count = (top / step).ceil().max(1.0) as u32;
    (0..=count).map(|tick| f64::from(tick) * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_top() {
        assert_eq!(ticks(4.2, 1000.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(ticks(3.0 * 1024.0, 1024.0), [0.0, 1024.0, 2048.0, 3072.0]);
        assert_eq!(ticks(0.0, 1024.0), [0.0, 1.0]);
        for exponent in 0..62 {
            let top = 2_f64.powi(exponent) * 1.37;
            let ticks = ticks(top, 1024.0);
            assert!((2..=7).contains(&ticks.len()) && *ticks.last().unwrap() >= top, "{top}: {ticks:?}");
        }
    }

    #[test]
    fn names_are_escaped_shortened_and_told_whole() {
        let name = format!("<script>{}", "é".repeat(60));
        let svg = bars("x", &[Bar { label: name.clone(), value: 5, part: Some(9), note: "5 B".to_owned() }]);
        assert!(!svg.contains("<script>"));
        assert!(svg.contains(&format!("<title>{}: 5 B</title>", escape(&name))), "{svg}");
        assert!(svg.contains("…</text>") && svg.contains("data-value=\"5\""));
        assert!(!svg.contains("width=\"756"), "a part is no longer than the whole");
    }

    #[test]
    fn one_day_is_no_line() {
        let line = |days: &[i64]| {
            let points = days.iter().map(|day| Point { day: *day, label: format!("d{day}"), value: 1.0 }).collect();
            Line { title: "t", points, filled: true, show: &|value| value.to_string(), unit: 1000.0 }.svg()
        };
        assert!(!line(&[]).contains("<svg") && !line(&[5]).contains("<svg"));
        assert!(line(&[5, 6]).contains("<polyline"));
    }
}
