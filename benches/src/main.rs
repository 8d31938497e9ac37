//! Benchmarks. Figures are bytes per second, or seconds; compare only what one run printed.
//!
//! ```text
//! repo-benches stages [IMAGE]      each stage alone, on one core
//! repo-benches days IMAGE...       back up the images as days of one disk, restore the last; beside their floors
//! repo-benches life FOLDER SECTION [N] [IMAGE...]
//!                                  what a disk's life costs as snapshots become many, in a new folder below FOLDER;
//!                                  sections: incrementals, delta-cost, gc, marks, restore-after
//! ```

mod days;
mod life;
mod stages;

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next();
    let arguments: Vec<String> = arguments.collect();
    if let (Some("life"), [folder, section, rest @ ..]) = (what.as_deref(), &arguments[..]) {
        return life::run(Path::new(folder), section, rest);
    }
    let images: Vec<PathBuf> = arguments.iter().map(PathBuf::from).collect();
    match (what.as_deref(), &images[..]) {
        (None | Some("stages"), images) => stages::run(images.first().map(PathBuf::as_path)),
        (Some("days"), images) if !images.is_empty() => days::run(images),
        _ => Err("usage: repo-benches stages [IMAGE] | days IMAGE... | life FOLDER SECTION [N] [IMAGE...]".into()),
    }
}
