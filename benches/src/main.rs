//! Benchmarks. Figures are bytes per second, or seconds; compare only what one run printed.
//!
//! ```text
//! repo-benches stages [IMAGE]      each stage alone, on one core
//! repo-benches days IMAGE...       back up the images as days of one disk, restore the last; beside their floors
//! ```

mod days;
mod stages;

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next();
    let images: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    match (what.as_deref(), &images[..]) {
        (None | Some("stages"), images) => stages::run(images.first().map(PathBuf::as_path)),
        (Some("days"), images) if !images.is_empty() => days::run(images),
        _ => Err("usage: repo-benches stages [IMAGE] | days IMAGE...".into()),
    }
}
