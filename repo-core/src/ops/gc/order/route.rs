//! The route: where the newest snapshot of each disk has its chunks, in the order of the disk.
//!
//! It is walked several times, forwards, and may have billions of stops: so it is kept in a file without a name, beside
//! the index, and read in windows as a restore does.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};

use rayon::prelude::*;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::chunk::Run;
use crate::error::{Result, ResultExt};
use crate::id::{EntryId, NodeId};
use crate::index::{Location, PackNumber};
use crate::manifest::Tree;
use crate::manifest::walk::{Leaves, leaf_runs};
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::gc::survey::PackUse;
use crate::ops::id_set::IdSet;
use crate::ops::open::Session;
use crate::ops::restore::WINDOW;
use crate::pack::Content;
use crate::snapshot::NamedSnapshot;
use crate::spill::unnamed_file;

/// Look-ups given to the index at once.
const LOOKUP_BATCH: usize = 4096;

/// A chunk on the route, by where it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(in crate::ops::gc) struct Stop {
    used: U32,
    frame: U16,
    slot: U16,
    pages: U16,
}

impl Stop {
    pub(super) fn new(used: u32, frame: u16, slot: u16, pages: u16) -> Self {
        Self { used: used.into(), frame: frame.into(), slot: slot.into(), pages: pages.into() }
    }

    /// The pack, by its position in the survey.
    pub(in crate::ops::gc) fn used(self) -> usize {
        self.used.get() as usize
    }

    /// The frame's position in the pack.
    pub(in crate::ops::gc) fn frame(self) -> u16 {
        self.frame.get()
    }

    /// The chunk's position in the frame.
    pub(in crate::ops::gc) fn slot(self) -> u16 {
        self.slot.get()
    }

    /// The chunk's length, in bytes.
    pub(in crate::ops::gc) fn len_bytes(self) -> u64 {
        u64::from(self.pages.get()) * crate::units::PAGE_LEN as u64
    }
}

/// What a restore works through at once.
struct Window {
    disk: u32,
    stops: u32,
}

/// The stops of all disks, one disk after another in the order of their VDI ids. What several disks share, leaf by
/// leaf, belongs to the first of them.
pub(in crate::ops::gc) struct Route {
    file: File,
    windows: Vec<Window>,
    disk_count: usize,
}

impl Route {
    /// Follows the newest snapshot of each disk.
    ///
    /// # Errors
    /// `Corrupt` when a manifest cannot be read; `Io` when there is no room beside the index; `Unavailable`, `Interrupted`.
    pub(super) fn follow(
        session: &Session,
        snapshots: &[NamedSnapshot],
        uses: &[PackUse],
        monitor: &dyn Monitor,
    ) -> Result<Self> {
        let folder = session.index.path().parent().unwrap_or(session.index.path());
        let file = unnamed_file(folder).context(|| CANNOT_WRITE)?;
        let meta = uses.iter().filter(|used| used.pack.content == Content::Meta);
        let mut follower = Follower {
            session,
            numbers: numbers(session, uses),
            seen: IdSet::new(meta.map(|used| u64::from(used.pack.entries)).sum()),
            file: BufWriter::new(file),
            windows: Vec::new(),
        };
        let trees = newest_trees(snapshots);
        for (disk, tree) in (0..).zip(&trees) {
            follower.follow(disk, tree, monitor)?;
        }
        let file = follower.file.into_inner().map_err(std::io::IntoInnerError::into_error).context(|| CANNOT_WRITE)?;
        Ok(Self { file, windows: follower.windows, disk_count: trees.len() })
    }

    #[cfg(test)]
    pub(super) fn for_test(disks: &[Vec<Vec<Stop>>]) -> Self {
        let mut file = unnamed_file(&std::env::temp_dir()).expect("temporary file");
        let mut windows = Vec::new();
        for (disk, stops) in (0..).zip(disks).flat_map(|(disk, of_disk)| of_disk.iter().map(move |stops| (disk, stops)))
        {
            file.write_all(stops.as_bytes()).expect("temporary file");
            windows.push(Window { disk, stops: stops.len() as u32 });
        }
        Self { file, windows, disk_count: disks.len() }
    }

    /// How many disks there are.
    pub(super) fn disk_count(&self) -> usize {
        self.disk_count
    }

    /// Gives the windows one by one: the disk's number, and the stops.
    ///
    /// # Errors
    /// `Io`; those of `each`.
    pub(in crate::ops::gc) fn windows(&self, each: &mut dyn FnMut(usize, &[Stop]) -> Result<()>) -> Result<()> {
        let mut file = &self.file;
        file.rewind().context(|| CANNOT_READ)?;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut stops = Vec::new();
        for window in &self.windows {
            stops.resize(window.stops as usize, Stop::new(0, 0, 0, 0));
            reader.read_exact(stops.as_mut_bytes()).context(|| CANNOT_READ)?;
            each(window.disk as usize, &stops)?;
        }
        Ok(())
    }
}

/// The newest state of each disk, by VDI id.
fn newest_trees(snapshots: &[NamedSnapshot]) -> Vec<Tree> {
    let mut newest = BTreeMap::new();
    // They come oldest first.
    for disk in snapshots.iter().flat_map(|named| &named.snapshot.disks) {
        newest.insert(&disk.vdi, disk.tree);
    }
    newest.into_values().collect()
}

/// The position in the survey of each pack whose chunks are looked at.
fn numbers(session: &Session, uses: &[PackUse]) -> HashMap<PackNumber, u32> {
    let data = (0..).zip(uses).filter(|(_, used)| used.pack.content == Content::Data && used.readable);
    data.filter_map(|(at, used)| Some((session.index.number_of(used.pack.id)?, at))).collect()
}

struct Follower<'a> {
    session: &'a Session,
    numbers: HashMap<PackNumber, u32>,
    /// Leaves that were met.
    seen: IdSet,
    file: BufWriter<File>,
    windows: Vec<Window>,
}

impl Follower<'_> {
    fn follow(&mut self, disk: u32, tree: &Tree, monitor: &dyn Monitor) -> Result<()> {
        let mut leaves = Leaves::new(tree, &*self.session.content);
        loop {
            check_cancelled(monitor)?;
            let window: Vec<NodeId> =
                leaves.by_ref().take(WINDOW).map(|leaf| leaf.map(|(_, id)| id)).collect::<Result<_>>()?;
            if window.is_empty() {
                return Ok(());
            }
            let mut new = Vec::new();
            for leaf in window {
                if self.seen.insert(leaf.into())? {
                    new.push(leaf);
                }
            }
            let stops = self.stops(&new)?;
            self.file.write_all(stops.as_bytes()).context(|| CANNOT_WRITE)?;
            let stops = u32::try_from(stops.len()).expect("a window has few pages");
            self.windows.push(Window { disk, stops });
        }
    }

    fn stops(&self, leaves: &[NodeId]) -> Result<Vec<Stop>> {
        let content = &self.session.content;
        let runs: Vec<Vec<Run>> = leaves.par_iter().map(|leaf| leaf_runs(&**content, *leaf)).collect::<Result<_>>()?;
        let runs: Vec<Run> = runs.into_iter().flatten().collect();
        let located: Vec<Vec<Option<Location>>> = runs
            .par_chunks(LOOKUP_BATCH)
            .map(|runs| self.session.index.find(&runs.iter().map(|run| EntryId::from(run.id)).collect::<Vec<_>>()))
            .collect::<Result<_>>()?;
        let placed = runs.iter().zip(located.into_iter().flatten());
        // What is nowhere, or in a pack that cannot be read, cannot be moved either.
        Ok(placed.filter_map(|(run, location)| self.stop(run, location?)).collect())
    }

    fn stop(&self, run: &Run, location: Location) -> Option<Stop> {
        let used = *self.numbers.get(&location.pack)?;
        Some(Stop::new(used, location.frame, location.slot, run.page_count))
    }
}

const CANNOT_WRITE: &str = "cannot write the temporary file of a collection beside the index";
const CANNOT_READ: &str = "cannot read the temporary file of a collection back";
