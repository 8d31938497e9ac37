//! A real disk, then many incrementals: how the newest state restores beside the first.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use repo_core::Result;
use repo_core::chunk::ChunkParams;
use repo_core::disk::{BlockBuf, Delivery, DiskFormat, DiskSource, SourceOptions, Undelivered, open_file};
use repo_core::error::{Error, ErrorKind};
use repo_core::ops::backup::{BackupReport, BaseChoice};
use repo_core::units::{BLOCK_LEN, BlockIndex, PAGE_LEN, is_zero};

use super::disk::mix;
use super::lab::{Cost, Lab};
use super::ordering::{collect, collect_twice, mib};
use super::{Outcome, row};

const DAY_MS: i64 = 86_400_000;
/// Length of one write of a guest.
const WRITE_LEN: usize = 2 * PAGE_LEN;
/// Restores of which the best counts.
const RUNS: usize = 3;

pub(super) fn run(folder: &Path, count: u64, images: &[PathBuf]) -> Outcome<()> {
    let [.., last] = images else { return Err("restore-after needs an image".into()) };
    // Of 600 writes in 20 places, as guests write; and of 600 anywhere, which leaves no block as it was for long.
    // Collected at the end, or every few imports, as a nightly one would.
    for (name, places, collected) in [
        ("20 blocks", Some(20), None),
        ("all blocks", None, None),
        ("20 blocks, gc after each 10", Some(20), Some(10)),
        ("all blocks, gc after each 10", None, Some(10)),
    ] {
        let mut lab = Lab::new(folder, ChunkParams::default())?;
        let mut first = None;
        let mut newest = None;
        for image in images {
            let source = open_file(File::open(image)?, &SourceOptions::default())?;
            let (report, _) = lab.import("disk", source, None, DAY_MS)?;
            if first.is_none() {
                first = Some((report.clone(), best(&lab, &report)?));
            }
            newest = Some(report);
        }
        let (mut first, mut newest) = (first.ok_or("no image")?, newest.ok_or("no image")?);
        row(&format!("600 writes of 8 KiB in {name}, {count} times"), "");
        show("first, alone", first.1, first.1);
        show(&format!("after {} images", images.len()), best(&lab, &newest)?, first.1);
        let mut disk = Overwritten::copy(last, &lab.path("disk.raw"))?;
        let (mut imported, mut moved, mut seconds) = (0, 0, 0.0);
        for at in 1..=count {
            newest = lab.import("disk", disk.overwrite(600, places)?, Some(BaseChoice::Newest), DAY_MS)?.0;
            imported += newest.stored_bytes;
            if collected.is_some_and(|each| at % each == 0) {
                let (bytes, gc_seconds) = collect(&lab)?;
                (moved, seconds) = (moved + bytes, seconds + gc_seconds);
            }
            if at == count / 2 {
                show(&format!("after {at} incrementals"), best(&lab, &newest)?, first.1);
            }
        }
        row("  imported by incrementals, MiB", format!("{:.1}", mib(imported)));
        if collected.is_some() {
            row("  moved by all gc, MiB; s", format!("{:.1}; {seconds:.1}", mib(moved)));
        }
        first.1 = best(&lab, &first.0)?;
        show("first, again", first.1, first.1);
        show(&format!("after {count} incrementals"), best(&lab, &newest)?, first.1);
        let lab = collect_twice(lab)?;
        let after = best(&lab, &newest)?;
        show("newest, after gc", after, first.1);
        show("first, after gc", best(&lab, &first.0)?, first.1);
    }
    Ok(())
}

fn best(lab: &Lab, report: &BackupReport) -> Outcome<Cost> {
    let mut best = lab.restore(&report.snapshot)?;
    for _ in 1..RUNS {
        let cost = lab.restore(&report.snapshot)?;
        best = if cost.seconds < best.seconds { cost } else { best };
    }
    Ok(best)
}

fn show(name: &str, cost: Cost, first: Cost) {
    let (wall, cpu) = (first.seconds / cost.seconds, first.cpu_seconds / cost.cpu_seconds);
    row(
        &format!("  restore, {name}"),
        format!(
            "{:.2} s wall ({wall:.2} of the first's speed), {:.2} s CPU ({cpu:.2}), {} frames",
            cost.seconds, cost.cpu_seconds, cost.frames
        ),
    );
}

/// A copy of an image that is written to, as a guest would.
struct Overwritten {
    path: PathBuf,
    virtual_size: u64,
    /// Blocks with content.
    blocks: Vec<u64>,
    state: u64,
}

impl Overwritten {
    fn copy(image: &Path, path: &Path) -> Outcome<Self> {
        let (from, to) = (File::open(image)?, File::create(path)?);
        let virtual_size = from.metadata()?.len();
        to.set_len(virtual_size)?;
        let mut blocks = Vec::new();
        let mut content = vec![0; BLOCK_LEN];
        for block in 0..virtual_size / BLOCK_LEN as u64 {
            from.read_exact_at(&mut content, block * BLOCK_LEN as u64)?;
            if !is_zero(&content) {
                to.write_all_at(&content, block * BLOCK_LEN as u64)?;
                blocks.push(block);
            }
        }
        Ok(Self { path: path.to_owned(), virtual_size, blocks, state: 1 })
    }

    /// Writes so often, in so many neighbouring blocks or anywhere, and gives the blocks written to.
    fn overwrite(&mut self, writes: u64, places: Option<u64>) -> Outcome<Box<dyn DiskSource>> {
        let file = File::options().read(true).write(true).open(&self.path)?;
        let count = self.blocks.len() as u64;
        let (start, len) = match places {
            Some(places) => (self.random() % (count - places.min(count) + 1), places.min(count)),
            None => (0, count),
        };
        let mut changed = Vec::new();
        for _ in 0..writes {
            let (block, other) = (start + self.random() % len, self.random() % count);
            let (block, other) = (self.blocks[block as usize], self.blocks[other as usize]);
            let offset = self.random() % ((BLOCK_LEN - WRITE_LEN) / PAGE_LEN) as u64 * PAGE_LEN as u64;
            // What else is near, as text and programs are: it compresses like the rest of the disk.
            let mut bytes = vec![0; WRITE_LEN];
            file.read_exact_at(&mut bytes, other * BLOCK_LEN as u64 + offset)?;
            bytes[..8].copy_from_slice(&self.random().to_le_bytes());
            bytes[PAGE_LEN..PAGE_LEN + 8].copy_from_slice(&self.random().to_le_bytes());
            file.write_all_at(&bytes, block * BLOCK_LEN as u64 + offset)?;
            changed.push(block);
        }
        changed.sort_unstable();
        changed.dedup();
        Ok(Box::new(ChangedBlocks { file, virtual_size: self.virtual_size, blocks: changed.into_iter() }))
    }

    fn random(&mut self) -> u64 {
        self.state += 1;
        mix(self.state)
    }
}

struct ChangedBlocks {
    file: File,
    virtual_size: u64,
    blocks: std::vec::IntoIter<u64>,
}

impl DiskSource for ChangedBlocks {
    fn virtual_size(&self) -> Option<u64> {
        Some(self.virtual_size)
    }

    fn format(&self) -> DiskFormat {
        DiskFormat::VhdDifferencing
    }

    fn delivery(&self) -> Delivery {
        Delivery::Ascending
    }

    fn undelivered(&self) -> Undelivered {
        Undelivered::Base
    }

    fn next_block(&mut self, buf: &mut BlockBuf) -> Result<Option<BlockIndex>> {
        let Some(block) = self.blocks.next() else { return Ok(None) };
        self.file
            .read_exact_at(buf.bytes_mut(), block * BLOCK_LEN as u64)
            .map_err(|error| Error::with_source(ErrorKind::Io, "cannot read the disk", error))?;
        Ok(Some(BlockIndex(block)))
    }
}
