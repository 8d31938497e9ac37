//! The smallest rows, one for each disk of each snapshot, and the groups they add up to.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::figures::{Figures, split};
use super::{DayRow, DiskRow, SnapshotRow, VdiRow, VmRow};
use crate::disk::vhd::plan::stream_len_bytes;
use crate::disk::vhd::profile::Profile;
use crate::ops::usage::{Bytes, TreeUse, Usage};
use crate::retention::calendar::{Clock, Local};
use crate::snapshot::{Disk, NamedSnapshot};
use crate::units::BLOCK_LEN;

// The dimensions of the walk.
const DISK: usize = 0;
const SNAPSHOT: usize = 1;
const VDI: usize = 2;
const VM: usize = 3;
const DAY: usize = 4;

/// One disk of one snapshot.
pub(super) struct Part {
    /// The snapshot's position in the list.
    pub(super) snapshot: usize,
    /// The disk's position in the snapshot.
    pub(super) disk: usize,
    /// The VDI's number.
    vdi: u32,
    /// The VM's number.
    vm: u32,
    /// The day of the snapshot.
    pub(super) day: i64,
    virtual_bytes: u64,
    allocated_bytes: u64,
    exported_bytes: Option<u64>,
    changed_bytes: Option<u64>,
    new_bytes: u64,
    /// Its part of what the snapshot added.
    pub(super) stored_bytes: u64,
    /// Whether it is the oldest of its VDI.
    pub(super) first: bool,
    /// Whether it is the newest of its VDI.
    newest: bool,
}

/// All parts, by snapshot and disk.
pub(super) struct Parts {
    pub(super) parts: Vec<Part>,
    /// VDIs by number, sorted.
    vdis: Vec<String>,
    /// VMs by number, sorted, without a name last.
    vms: Vec<Option<String>>,
    days: Vec<i64>,
    /// The length of each record, and the part its disks begin with.
    records: Vec<(u64, usize)>,
}

/// Rows of every kind.
pub(super) struct Rows {
    pub(super) vms: Vec<VmRow>,
    pub(super) vdis: Vec<VdiRow>,
    pub(super) snapshots: Vec<SnapshotRow>,
    pub(super) days: Vec<DayRow>,
}

impl Parts {
    pub(super) fn new(snapshots: &[NamedSnapshot], clock: &Clock<'_>) -> Self {
        let vdis: BTreeSet<&str> =
            snapshots.iter().flat_map(|named| &named.snapshot.disks).map(|disk| &*disk.vdi).collect();
        let vms: BTreeSet<(bool, Option<&str>)> =
            snapshots.iter().map(|named| (named.snapshot.vm.is_none(), named.snapshot.vm.as_deref())).collect();
        let vdi_numbers: HashMap<_, _> = vdis.iter().copied().zip(0_u32..).collect();
        let vm_numbers: HashMap<_, _> = vms.iter().map(|(_, vm)| *vm).zip(0_u32..).collect();
        let mut all =
            Self { parts: Vec::new(), vdis: Vec::new(), vms: Vec::new(), days: Vec::new(), records: Vec::new() };
        let mut seen = BTreeSet::new();
        for (at, named) in snapshots.iter().enumerate() {
            all.records.push((named.len, all.parts.len()));
            let day = Local::at(named.snapshot.time_ms, clock).day();
            for (disk_at, (disk, (new_bytes, stored_bytes))) in
                named.snapshot.disks.iter().zip(split_over_disks(named)).enumerate()
            {
                let reading = known_reading(disk);
                all.parts.push(Part {
                    snapshot: at,
                    disk: disk_at,
                    vdi: vdi_numbers[&*disk.vdi],
                    vm: vm_numbers[&named.snapshot.vm.as_deref()],
                    day,
                    virtual_bytes: disk.tree.virtual_size,
                    allocated_bytes: disk.allocated_bytes,
                    exported_bytes: reading.and_then(|(read, _)| export_len(disk.tree.virtual_size, read)),
                    changed_bytes: reading.map(|(_, changed)| changed),
                    new_bytes,
                    stored_bytes,
                    first: seen.insert(vdi_numbers[&*disk.vdi]),
                    newest: false,
                });
            }
        }
        let mut seen = BTreeSet::new();
        all.parts.iter_mut().rev().for_each(|part| part.newest = seen.insert(part.vdi));
        all.vdis = vdis.into_iter().map(str::to_owned).collect();
        all.vms = vms.into_iter().map(|(_, vm)| vm.map(str::to_owned)).collect();
        all.days = all.parts.iter().map(|part| part.day).collect::<BTreeSet<_>>().into_iter().collect();
        all
    }

    /// What to walk, and the groups that each tree belongs to.
    pub(super) fn uses(&self, snapshots: &[NamedSnapshot], keeps: &[Vec<bool>]) -> Vec<TreeUse> {
        let number = |at: usize| u32::try_from(at).expect("there are far fewer snapshots than 2^32");
        let of = |(at, part): (usize, &Part)| {
            let day = self.days.binary_search(&part.day).expect("the days are those of the parts");
            let kept = keeps.iter().enumerate().filter(|(_, keeps)| keeps[part.snapshot]);
            TreeUse {
                tree: snapshots[part.snapshot].snapshot.disks[part.disk].tree,
                labels: [number(at), number(part.snapshot), part.vdi, part.vm, number(day)],
                kept: kept.fold(0, |bits, (set, _)| bits | 1 << set),
            }
        };
        self.parts.iter().enumerate().map(of).collect()
    }

    /// All parts together.
    pub(super) fn repository(&self, usage: &Usage) -> Figures {
        Figures { unique_bytes: Some(usage.live()), ..self.sum(&self.parts.iter().collect::<Vec<_>>()) }
    }

    /// The rows of all groups; of one VDI only, when one is named.
    pub(super) fn rows(&self, snapshots: &[NamedSnapshot], usage: &Usage, vdi: Option<&str>) -> Rows {
        let wanted = |part: &&Part| vdi.is_none_or(|vdi| self.vdi(part) == vdi);
        let whole = vdi.is_none();
        Rows {
            vms: self.vm_rows(usage, &wanted, whole),
            vdis: self.vdi_rows(usage, &wanted),
            snapshots: self.snapshot_rows(snapshots, usage, &wanted, whole),
            days: self.day_rows(usage, &wanted, whole),
        }
    }

    /// The VDI of a part.
    pub(super) fn vdi(&self, part: &Part) -> &str {
        &self.vdis[part.vdi as usize]
    }

    /// The VM of a part.
    pub(super) fn vm(&self, part: &Part) -> Option<&str> {
        self.vms[part.vm as usize].as_deref()
    }

    fn vm_rows(&self, usage: &Usage, wanted: &dyn Fn(&&Part) -> bool, whole: bool) -> Vec<VmRow> {
        let row = |(vm, parts): (u32, Vec<&Part>)| {
            let unique = owned(usage, VM, vm) + self.records_of(&parts);
            let figures = Figures { unique_bytes: whole.then_some(unique), ..self.sum(&parts) };
            VmRow { vm: self.vms[vm as usize].clone(), figures }
        };
        self.grouped(wanted, |part| part.vm).into_iter().map(row).collect()
    }

    fn vdi_rows(&self, usage: &Usage, wanted: &dyn Fn(&&Part) -> bool) -> Vec<VdiRow> {
        let row = |(vdi, parts): (u32, Vec<&Part>)| {
            // The record of a snapshot with other disks stays when this one is forgotten.
            let alone: Vec<_> = parts.iter().copied().filter(|part| self.is_alone(part)).collect();
            let unique = owned(usage, VDI, vdi) + self.records_of(&alone);
            VdiRow {
                vdi: self.vdis[vdi as usize].clone(),
                vm: parts.last().and_then(|part| self.vm(part)).map(str::to_owned),
                figures: Figures { unique_bytes: Some(unique), ..self.sum(&parts) },
            }
        };
        self.grouped(wanted, |part| part.vdi).into_iter().map(row).collect()
    }

    fn snapshot_rows(
        &self,
        snapshots: &[NamedSnapshot],
        usage: &Usage,
        wanted: &dyn Fn(&&Part) -> bool,
        whole: bool,
    ) -> Vec<SnapshotRow> {
        let row = |(at, parts): (usize, Vec<&Part>)| {
            let named = &snapshots[at];
            let content_of = |part: &Part| owned(usage, DISK, label(self.records[at].1 + part.disk));
            let disk = |part: &&Part| DiskRow {
                vdi: self.vdi(part).to_owned(),
                figures: Figures { unique_bytes: Some(content_of(part)), ..self.sum(&[part]) },
            };
            let unique = match (whole, &parts[..]) {
                (false, [part]) if !self.is_alone(part) => content_of(part),
                _ => owned(usage, SNAPSHOT, label(at)) + named.len,
            };
            SnapshotRow {
                id: named.id,
                time_ms: named.snapshot.time_ms,
                vm: named.snapshot.vm.clone(),
                figures: Figures { unique_bytes: Some(unique), ..self.sum(&parts) },
                disks: parts.iter().map(disk).collect(),
            }
        };
        self.grouped(wanted, |part| part.snapshot).into_iter().map(row).collect()
    }

    fn day_rows(&self, usage: &Usage, wanted: &dyn Fn(&&Part) -> bool, whole: bool) -> Vec<DayRow> {
        let (mut stored_so_far, mut allocated_so_far) = (0, 0);
        let mut row = |(day, parts): (i64, Vec<&Part>)| {
            let at = self.days.binary_search(&day).expect("the days are those of the parts");
            let unique = owned(usage, DAY, label(at)) + self.records_of(&parts);
            let figures = Figures { unique_bytes: whole.then_some(unique), ..self.sum(&parts) };
            stored_so_far = figures.stored_bytes.saturating_add(stored_so_far);
            allocated_so_far = figures.allocated_bytes.saturating_add(allocated_so_far);
            DayRow { day, figures, stored_so_far, allocated_so_far }
        };
        self.grouped(wanted, |part| part.day).into_iter().map(&mut row).collect()
    }

    fn grouped<K: Ord>(&self, wanted: &dyn Fn(&&Part) -> bool, key: impl Fn(&Part) -> K) -> BTreeMap<K, Vec<&Part>> {
        let mut groups: BTreeMap<K, Vec<&Part>> = BTreeMap::new();
        for part in self.parts.iter().filter(wanted) {
            groups.entry(key(part)).or_default().push(part);
        }
        groups
    }

    /// Figures of parts in the order of time. Unique bytes are not in them. Saturating, since records may claim any number.
    fn sum(&self, parts: &[&Part]) -> Figures {
        let mut sum = Figures::default();
        let mut newest: HashMap<u32, &Part> = HashMap::new();
        let mut snapshots = BTreeSet::new();
        for part in parts {
            snapshots.insert(part.snapshot);
            newest.insert(part.vdi, part);
            sum.virtual_bytes = sum.virtual_bytes.saturating_add(part.virtual_bytes);
            sum.allocated_bytes = sum.allocated_bytes.saturating_add(part.allocated_bytes);
            sum.new_bytes = sum.new_bytes.saturating_add(part.new_bytes);
            sum.stored_bytes = sum.stored_bytes.saturating_add(part.stored_bytes);
            sum.exported_bytes = added(sum.exported_bytes, part.exported_bytes);
            sum.changed_bytes = added(sum.changed_bytes, part.changed_bytes);
            sum.unknown_count += u64::from(part.changed_bytes.is_none());
        }
        sum.snapshot_count = snapshots.len() as u64;
        sum.newest_virtual_bytes = newest.values().fold(0, |sum, part| sum.saturating_add(part.virtual_bytes));
        sum.newest_allocated_bytes = newest.values().fold(0, |sum, part| sum.saturating_add(part.allocated_bytes));
        sum
    }

    /// The records of the snapshots that parts belong to, each once, in bytes.
    fn records_of(&self, parts: &[&Part]) -> u64 {
        let snapshots: BTreeSet<_> = parts.iter().map(|part| part.snapshot).collect();
        snapshots.into_iter().map(|at| self.records[at].0).sum()
    }

    /// Whether a part is the only disk of its snapshot.
    fn is_alone(&self, part: &Part) -> bool {
        let first = self.records[part.snapshot].1;
        let end = self.records.get(part.snapshot + 1).map_or(self.parts.len(), |(_, first)| *first);
        end - first == 1
    }
}

impl Part {
    /// Whether it is the newest of its VDI.
    pub(super) fn is_newest(&self) -> bool {
        self.newest
    }
}

/// The VHD export of so many delivered bytes of a disk; none for a disk that a VHD cannot hold.
pub(super) fn export_len(virtual_size: u64, delivered_bytes: u64) -> Option<u64> {
    stream_len_bytes(virtual_size, delivered_bytes.div_ceil(BLOCK_LEN as u64), &Profile::Portable).ok()
}

/// Bytes read and bytes changed; none when the record does not say. Records of before it was noted hold zeros.
pub(super) fn known_reading(disk: &Disk) -> Option<(u64, u64)> {
    let reading = disk.reading;
    let known = reading.read_bytes > 0 || reading.delta || disk.allocated_bytes == 0;
    known.then_some((reading.read_bytes, reading.changed_bytes))
}

/// New and stored bytes of a snapshot, split over its disks: by what changed, or by what is allocated where that is not
/// known.
fn split_over_disks(named: &NamedSnapshot) -> Vec<(u64, u64)> {
    let snapshot = &named.snapshot;
    // Content that became zeros without being delivered brought nothing that was stored.
    let weight = |disk| known_reading(disk).map(|(read, changed)| changed.min(read));
    let changed: Option<Vec<u64>> = snapshot.disks.iter().map(weight).collect();
    let weights = changed.unwrap_or_else(|| snapshot.disks.iter().map(|disk| disk.allocated_bytes).collect());
    let new = split(snapshot.stats.new_bytes, &weights);
    let stored = split(snapshot.stats.pack_bytes.saturating_add(named.len), &weights);
    new.into_iter().zip(stored).collect()
}

fn owned(usage: &Usage, dimension: usize, label: u32) -> u64 {
    usage.owned[dimension].get(&label).map_or(0, |Bytes { stored, .. }| *stored)
}

fn label(at: usize) -> u32 {
    u32::try_from(at).expect("there are far fewer snapshots than 2^32")
}

fn added(sum: Option<u64>, part: Option<u64>) -> Option<u64> {
    match (sum, part) {
        (Some(sum), Some(part)) => Some(sum.saturating_add(part)),
        (sum, part) => sum.or(part),
    }
}
