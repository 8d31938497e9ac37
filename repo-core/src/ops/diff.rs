//! Diff: what one disk changes of another, from their trees alone. Cost follows the change, not the disks.

use std::ops::Range;

use rayon::prelude::*;

use crate::content::ContentReader;
use crate::error::{Result, ResultExt};
use crate::manifest::Tree;
use crate::manifest::diff::{ChangedBlock, ChangedBlocks, changed_pages};
use crate::manifest::walk::leaf_runs;
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::open::{Access, Session};
use crate::units::PAGE_LEN;

/// Changed blocks whose leaves are read at once.
const BATCH: usize = 256;
/// Ranges kept; above, those near each other are made one.
const RANGES_MAX: usize = 1 << 20;

/// How two disks differ. What lies past a disk's end counts as zeros.
///
/// Pages are compared by the chunks that cover them, so a page that is equal may count as changed when another page of its
/// chunk did change, but never the other way round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiffReport {
    /// 2 MiB blocks in which they differ.
    pub changed_blocks: u64,
    /// Pages in which they differ, in bytes; the last page of a disk counts as far as the disk reaches.
    pub changed_bytes: u64,
    /// Where they differ, in bytes, ascending, none touching another.
    pub ranges: Vec<Range<u64>>,
    /// Equal bytes between two ranges up to which they were made one, because there were too many. 0 when there were
    /// not.
    pub gap_bytes: u64,
}

/// Compares two disks.
///
/// # Errors
/// `Corrupt` when a node is missing or damaged; `Unavailable`; `Interrupted`.
pub fn diff(session: &Session, before: &Tree, after: &Tree, monitor: &dyn Monitor) -> Result<DiffReport> {
    let _working = session.begin("diff", Access::Read, monitor)?;
    monitor.begin("comparing", None);
    let end = before.virtual_size.max(after.virtual_size);
    let mut report = DiffReport::default();
    let mut blocks = ChangedBlocks::new(before, after, &*session.content);
    loop {
        check_cancelled(monitor)?;
        let batch: Vec<ChangedBlock> = blocks.by_ref().take(BATCH).collect::<Result<_>>()?;
        if batch.is_empty() {
            break;
        }
        let pages: Vec<_> = batch.par_iter().map(|block| pages_of(&session.content, block)).collect::<Result<_>>()?;
        for (ChangedBlock { block, .. }, pages) in batch.iter().zip(pages) {
            report.changed_blocks += 1;
            let position = |page: usize| (block.offset_bytes() + (page * PAGE_LEN) as u64).min(end);
            for Range { start, end } in pages {
                report.add(position(start)..position(end));
            }
        }
    }
    monitor.end();
    Ok(report)
}

fn pages_of(content: &ContentReader, changed: &ChangedBlock) -> Result<Vec<Range<usize>>> {
    let runs = |id| leaf_runs(content, id).context(|| format!("cannot compare block {}", changed.block));
    Ok(changed_pages(&runs(changed.before)?, &runs(changed.after)?))
}

impl DiffReport {
    fn add(&mut self, range: Range<u64>) {
        self.changed_bytes += range.end - range.start;
        self.append(range);
        while self.ranges.len() > RANGES_MAX {
            self.gap_bytes = (self.gap_bytes * 2).max(PAGE_LEN as u64);
            for range in std::mem::take(&mut self.ranges) {
                self.append(range);
            }
        }
    }

    fn append(&mut self, range: Range<u64>) {
        match self.ranges.last_mut() {
            Some(last) if range.start - last.end <= self.gap_bytes => last.end = range.end,
            _ => self.ranges.push(range),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_ranges_are_made_fewer_that_still_cover_all() {
        let mut report = DiffReport::default();
        let page = PAGE_LEN as u64;
        let count = RANGES_MAX as u64 + 10;
        for at in 0..count {
            // Two near each other, then a wide gap.
            let start = at / 2 * 100 * page + at % 2 * 2 * page;
            report.add(start..start + page);
        }
        assert_eq!((report.changed_bytes, report.gap_bytes), (count * page, page));
        assert_eq!(report.ranges.len() as u64, count / 2);
        assert_eq!(report.ranges[1], 100 * page..103 * page);
    }
}
