//! Checking manifests: every node once, every chunk looked up; then, where something is damaged, whom it hits.

use std::ops::Range;

use crate::chunk::Run;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{EntryId, NodeId};
use crate::index::Location;
use crate::manifest::{Node, NodeSource, Tree, span};
use crate::monitor::{Monitor, check_cancelled};
use crate::ops::check::packs::BadParts;
use crate::ops::check::visited::Visited;
use crate::ops::check::{Affected, CheckReport};
use crate::ops::id_set::IDS_MAX;
use crate::ops::open::Session;
use crate::pack::Content;
use crate::snapshot::NamedSnapshot;
use crate::units::{BLOCK_LEN, BlockIndex};

pub(super) fn check(
    session: &Session,
    snapshots: &[NamedSnapshot],
    bad: &BadParts,
    report: &mut CheckReport,
    monitor: &dyn Monitor,
) -> Result<()> {
    Walk::new(session, bad, IDS_MAX).run(snapshots, report, monitor)
}

struct Walk<'a> {
    session: &'a Session,
    bad: &'a BadParts,
    visited: Visited,
    unavailable: Vec<String>,
    nodes: u64,
    chunks: u64,
}

impl<'a> Walk<'a> {
    /// A walk that remembers as many nodes as there are, but not more than `nodes_max`.
    fn new(session: &'a Session, bad: &'a BadParts, nodes_max: u64) -> Self {
        let packs = session.index.packs();
        let meta = packs.iter().filter(|pack| pack.content == Content::Meta);
        let nodes: u64 = meta.map(|pack| u64::from(pack.entries)).sum();
        let visited = Visited::new(nodes, nodes_max);
        Self { session, bad, visited, unavailable: Vec::new(), nodes: 0, chunks: 0 }
    }

    fn run(&mut self, snapshots: &[NamedSnapshot], report: &mut CheckReport, monitor: &dyn Monitor) -> Result<()> {
        monitor.begin("walking manifests", None);
        for NamedSnapshot { id, snapshot, .. } in snapshots {
            for disk in &snapshot.disks {
                check_cancelled(monitor)?;
                if self.is_sound(disk.tree.root, disk.tree.height())? {
                    continue;
                }
                let ranges = self.lost_ranges(&disk.tree)?;
                let lost: u64 = ranges.iter().map(|range| range.end - range.start).sum();
                let text = format!("snapshot {}: {lost} bytes of {} cannot be restored", id.short(), disk.vdi);
                monitor.damage(&Error::corrupt(text));
                report.affected.push(Affected { snapshot: *id, vdi: disk.vdi.clone(), ranges });
            }
        }
        monitor.end();
        report.nodes = self.nodes;
        report.chunks = self.chunks;
        report.unavailable.append(&mut self.unavailable);
        Ok(())
    }

    /// Whether a node and all below it can be read. Depth is at most 8.
    fn is_sound(&mut self, id: NodeId, level: u8) -> Result<bool> {
        if id.is_none() {
            return Ok(true);
        }
        if let Some(sound) = self.visited.is_sound(id) {
            return Ok(sound);
        }
        self.nodes += 1;
        let sound = match (self.node(id)?, level) {
            (Some(Node::Leaf(runs)), 0) => !self.lost_runs(&runs)?.contains(&true),
            (Some(Node::Inner { level: found, children }), 1..) if found == level => {
                let mut sound = true;
                for child in children {
                    sound &= self.is_sound(child, level - 1)?;
                }
                sound
            }
            _ => false,
        };
        self.visited.remember(id, level, sound)?;
        Ok(sound)
    }

    /// A node, or `None` when it is damaged, missing or in a damaged place.
    fn node(&mut self, id: NodeId) -> Result<Option<Node>> {
        if self.lost(&[id.into()])?[0] {
            return Ok(None);
        }
        match self.session.content.node(id) {
            Ok(node) => Ok(Some(node)),
            Err(error) if error.is_loss() => Ok(None),
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                self.unavailable.push(format!("manifest node {}", id.short()));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// For each id, whether it is in no pack or in a damaged part of one.
    fn lost(&mut self, ids: &[EntryId]) -> Result<Vec<bool>> {
        self.chunks += ids.len() as u64;
        let found = self.session.index.find(ids)?;
        Ok(found.iter().map(|found| found.is_none_or(|found| self.bad.hit(found.pack, found.frame))).collect())
    }

    /// For each run, whether its chunk is lost, or no chunk of its length.
    fn lost_runs(&mut self, runs: &[Run]) -> Result<Vec<bool>> {
        self.chunks += runs.len() as u64;
        let ids: Vec<EntryId> = runs.iter().map(|run| run.id.into()).collect();
        let found = self.session.index.find(&ids)?;
        let is_lost = |(run, found): (&Run, &Option<Location>)| {
            found.is_none_or(|at| self.bad.hit(at.pack, at.frame) || !self.bad.has_chunk(at, run.page_count))
        };
        Ok(runs.iter().zip(&found).map(is_lost).collect())
    }

    /// Ranges of the disk that cannot be restored, ascending, in bytes.
    fn lost_ranges(&mut self, tree: &Tree) -> Result<Vec<Range<u64>>> {
        let mut ranges = Vec::new();
        self.collect(tree.root, tree.height(), 0, &mut ranges)?;
        Ok(merged(ranges, tree.virtual_size))
    }

    fn collect(&mut self, id: NodeId, level: u8, first_block: u64, ranges: &mut Vec<Range<u64>>) -> Result<()> {
        if self.is_sound(id, level)? {
            return Ok(());
        }
        let start = BlockIndex(first_block).offset_bytes();
        match (self.node(id)?, level) {
            (Some(Node::Leaf(runs)), 0) => {
                let lost = self.lost_runs(&runs)?;
                for (run, _) in runs.iter().zip(lost).filter(|(_, lost)| *lost) {
                    let start = start + run.offset_bytes() as u64;
                    ranges.push(start..start + run.len_bytes() as u64);
                }
            }
            (Some(Node::Inner { level: found, children }), 1..) if found == level => {
                let child_span = span(level - 1);
                for (at, child) in (0..).zip(children) {
                    self.collect(child, level - 1, first_block + at * child_span, ranges)?;
                }
            }
            _ => ranges.push(start..start + span(level) * BLOCK_LEN as u64),
        }
        Ok(())
    }
}

fn merged(ranges: Vec<Range<u64>>, virtual_size: u64) -> Vec<Range<u64>> {
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        let end = range.end.min(virtual_size);
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(end),
            _ if range.start < end => merged.push(range.start..end),
            _ => {}
        }
    }
    merged
}

#[cfg(test)]
mod tests;
