//! What exports of a VDI weigh, beside what is stored here and what a thick SR would hold for the same.
//!
//! Sizes on LVM SRs as the storage manager makes them: a VHD in a logical volume, which is inflated to the full virtual
//! size while it is the active disk, and deflated to what it uses once a snapshot was taken of it.

use super::parts::{Part, Parts, export_len, known_reading};
use crate::id::SnapshotId;
use crate::ops::usage::Usage;
use crate::snapshot::NamedSnapshot;
use crate::units::{BLOCK_LEN, block_count};

/// Logical volumes grow in steps of 4 MiB.
const LV_STEP: u64 = 4 << 20;
/// What a VHD of an LVM SR has besides its blocks: footers and header, a BAT for 2 TiB, and its batmap, in bytes.
const LV_HEAD: u64 = 3 * 1024 + (4 << 20) + (128 << 10);
/// The sector bitmap of a block, padded so that the content begins on a page, in bytes.
const LV_BITMAP: u64 = 4096;

/// A VDI and its exports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VdiExports {
    /// The VDI.
    pub vdi: String,
    /// The VM that its newest snapshot names.
    pub vm: Option<String>,
    /// The newest snapshot's size, in bytes.
    pub virtual_bytes: u64,
    /// Its non-zero pages, in bytes.
    pub allocated_bytes: u64,
    /// What a thick LVM SR holds for the newest state.
    pub lvm: Lvm,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<Export>,
    /// What all of them added here, in bytes.
    pub stored_bytes: u64,
}

/// The exports of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Its time.
    pub time_ms: i64,
    /// A full VHD export, in bytes; none for a disk that a VHD cannot hold.
    pub full_bytes: Option<u64>,
    /// A delta VHD export against the snapshot before, in bytes; none for the first, and where what changed is not known.
    pub delta_bytes: Option<u64>,
    /// What was added here, in bytes.
    pub stored_bytes: u64,
}

/// What a thick LVM SR holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lvm {
    /// The disk alone.
    pub base_bytes: u64,
    /// With one snapshot, as an incremental scheme needs it between two backups: in use on the SR.
    pub one_snapshot_used_bytes: u64,
    /// The same, as far as the SR counts it against its size.
    pub one_snapshot_allocated_bytes: u64,
    /// With the second snapshot that a delta export is taken from: in use.
    pub two_snapshots_used_bytes: u64,
    /// The same, as far as the SR counts it against its size.
    pub two_snapshots_allocated_bytes: u64,
}

impl Lvm {
    /// For a disk with so many blocks in use, of which so many changed between the snapshots.
    fn new(virtual_bytes: u64, present_blocks: u64, changed_blocks: u64) -> Self {
        let inflated = volume(virtual_bytes, block_count(virtual_bytes));
        let deflated = |blocks: u64| {
            let blocks = blocks.min(block_count(virtual_bytes));
            volume(blocks * BLOCK_LEN as u64, blocks)
        };
        let one = inflated + deflated(present_blocks);
        Self {
            base_bytes: inflated,
            one_snapshot_used_bytes: one,
            one_snapshot_allocated_bytes: 2 * inflated,
            two_snapshots_used_bytes: one + deflated(changed_blocks),
            two_snapshots_allocated_bytes: 3 * inflated,
        }
    }
}

/// The logical volume of so much content in so many blocks.
fn volume(content_bytes: u64, blocks: u64) -> u64 {
    (content_bytes + LV_HEAD + blocks * LV_BITMAP).next_multiple_of(LV_STEP)
}

/// The exports of each VDI, or of one.
pub(super) fn exports(parts: &Parts, snapshots: &[NamedSnapshot], usage: &Usage, vdi: Option<&str>) -> Vec<VdiExports> {
    let mut of_vdi: std::collections::BTreeMap<&str, Vec<(&Part, u64)>> = std::collections::BTreeMap::new();
    for (part, present) in parts.parts.iter().zip(&usage.present_blocks) {
        if vdi.is_none_or(|vdi| parts.vdi(part) == vdi) {
            of_vdi.entry(parts.vdi(part)).or_default().push((part, *present));
        }
    }
    let row = |(vdi, of_vdi): (&str, Vec<(&Part, u64)>)| {
        let &(newest, present) = of_vdi.iter().find(|(part, _)| part.is_newest())?;
        let disk = &snapshots[newest.snapshot].snapshot.disks[newest.disk];
        let exports: Vec<_> = of_vdi.iter().map(|(part, present)| export(part, *present, snapshots)).collect();
        let changed = if newest.first { 0 } else { delivered(disk).unwrap_or(0) };
        Some(VdiExports {
            vdi: vdi.to_owned(),
            vm: parts.vm(newest).map(str::to_owned),
            virtual_bytes: disk.tree.virtual_size,
            allocated_bytes: disk.allocated_bytes,
            lvm: Lvm::new(disk.tree.virtual_size, present, changed / BLOCK_LEN as u64),
            stored_bytes: exports.iter().fold(0, |sum, export| export.stored_bytes.saturating_add(sum)),
            snapshots: exports,
        })
    };
    of_vdi.into_iter().filter_map(row).collect()
}

fn export(part: &Part, present_blocks: u64, snapshots: &[NamedSnapshot]) -> Export {
    let named = &snapshots[part.snapshot];
    let disk = &named.snapshot.disks[part.disk];
    let delta = if part.first { None } else { delivered(disk) };
    Export {
        snapshot: named.id,
        time_ms: named.snapshot.time_ms,
        full_bytes: export_len(disk.tree.virtual_size, present_blocks.saturating_mul(BLOCK_LEN as u64)),
        delta_bytes: delta.and_then(|changed| export_len(disk.tree.virtual_size, changed)),
        stored_bytes: part.stored_bytes,
    }
}

/// The blocks of a delta export, in bytes: what such a source delivered, or what differed when all was read.
fn delivered(disk: &crate::snapshot::Disk) -> Option<u64> {
    known_reading(disk).map(|(read, changed)| if disk.reading.delta { read } else { changed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thick_sr_needs_twice_and_three_times_the_disk() {
        // The 8 GB guest of the measurement of 2015: 8.0 alone, 13.6 in use and 16.0 counted with a snapshot, 24.0 with two.
        let lvm = Lvm::new(8 << 30, (6 << 30) / BLOCK_LEN as u64, 50);
        assert_eq!(lvm.base_bytes, (8_u64 << 30) + LV_HEAD.next_multiple_of(LV_STEP) + (16 << 20));
        assert_eq!(lvm.one_snapshot_allocated_bytes, 2 * lvm.base_bytes);
        assert_eq!(lvm.two_snapshots_allocated_bytes, 3 * lvm.base_bytes);
        assert!(lvm.one_snapshot_used_bytes > 14 << 30 && lvm.one_snapshot_used_bytes < 15 << 30);
        assert_eq!(
            lvm.two_snapshots_used_bytes - lvm.one_snapshot_used_bytes,
            (100 << 20) + LV_HEAD.next_multiple_of(LV_STEP)
        );
        assert_eq!(lvm.base_bytes % LV_STEP, 0);
    }
}
