//! A VDI's life: what its imports, restores, diffs and collections cost as snapshots become many.

mod collection;
mod delta_cost;
mod disk;
mod incrementals;
mod lab;
mod marks;
mod ordering;
mod overwritten;

use std::error::Error;
use std::path::{Path, PathBuf};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Runs one section in `folder`, and prints its table.
pub(crate) fn run(folder: &Path, section: &str, rest: &[String]) -> Outcome<()> {
    let nth = |at: usize, default: u64| rest.get(at).map_or(Ok(default), |text| text.parse());
    let number = |default| nth(0, default);
    println!("{:56} {:>12}", section, "");
    match section {
        "incrementals" => incrementals::run(folder, number(1000)?),
        "delta-cost" => delta_cost::run(folder),
        "gc" => collection::run(folder, number(10_000)?, nth(1, 1000)?),
        "marks" => marks::run(folder, number(16)?),
        "restore-after" => {
            let images: Vec<PathBuf> = rest.iter().skip(1).map(PathBuf::from).collect();
            overwritten::run(folder, number(100)?, &images)
        }
        _ => {
            Err("sections: incrementals [N] | delta-cost | gc [SNAPSHOTS [IMPORTS]] | marks [GIB] | restore-after N IMAGE..."
                .into())
        }
    }
}

/// Prints a line of a section's table.
fn row(name: &str, value: impl std::fmt::Display) {
    println!("{name:56} {value:>12}");
}

/// Seconds as milliseconds, for a table.
fn ms(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

/// The middle one of some figures.
fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
