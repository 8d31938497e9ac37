//! Which snapshot and disk is meant: an id, the beginning of one, `latest`, or a VDI and a time.

use std::collections::BTreeSet;

use jiff::Zoned;
use repo_core::ErrorKind;
use repo_core::snapshot::{Disk, NamedSnapshot};

use crate::failure::{Failure, Result};
use crate::{output, when};

/// Digits the beginning of an id has at least.
const PREFIX_LEN_MIN: usize = 4;
/// Names listed in a hint.
const LISTED_MAX: usize = 8;

/// A disk of a snapshot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chosen<'a> {
    /// The snapshot.
    pub(crate) snapshot: &'a NamedSnapshot,
    /// One of its disks.
    pub(crate) disk: &'a Disk,
}

/// The snapshot that `name` means: `latest`, an id, or the beginning of one. `snapshots` come oldest first.
///
/// # Errors
/// `NotFound`; wrong usage when several begin so.
pub(crate) fn snapshot<'a>(snapshots: &'a [NamedSnapshot], name: &str) -> Result<&'a NamedSnapshot> {
    if name == "latest" {
        return snapshots.last().ok_or_else(none_at_all);
    }
    match by_prefix(snapshots, name, |named| named.id.to_hex()) {
        Ok(found) => Ok(found),
        Err(_) if snapshots.is_empty() => Err(none_at_all()),
        Err(failure) => Err(failure.unwrap_or_else(|| {
            Failure::new(ErrorKind::NotFound, format!("no snapshot is named {name:?}"))
                .hint("`cairn snapshots` lists them; an id may be shortened to 4 digits, and `latest` is the newest")
        })),
    }
}

/// The disk that `name` means: a VDI, of which the newest snapshot not later than `at_ms` is taken, or else a snapshot. A
/// VDI that is named exactly so wins over a snapshot whose id begins so.
///
/// # Errors
/// `NotFound`; wrong usage when options contradict each other.
pub(crate) fn disk<'a>(
    snapshots: &'a [NamedSnapshot],
    name: &str,
    vdi: Option<&str>,
    at_ms: Option<i64>,
) -> Result<Chosen<'a>> {
    if is_vdi(snapshots, name) {
        if vdi.is_some_and(|vdi| vdi != name) {
            return Err(Failure::usage(format!("{name} is a VDI, and --vdi names another")));
        }
        return newest_of_vdi(snapshots, name, at_ms);
    }
    let named = snapshot(snapshots, name).map_err(|failure| no_such(snapshots, name, failure))?;
    if at_ms.is_some() {
        return Err(Failure::usage("--at goes with a VDI, not with a snapshot"));
    }
    disk_of(named, vdi)
}

/// The snapshot of VDI `vdi` that `name` means as a base: `latest` is the newest *of that VDI*.
///
/// # Errors
/// `NotFound`, with what there is to choose from; wrong usage when several begin so.
pub(crate) fn base<'a>(snapshots: &'a [NamedSnapshot], name: &str, vdi: &str) -> Result<Chosen<'a>> {
    let of_vdi = |snapshot: &'a NamedSnapshot| snapshot.snapshot.disk(vdi).map(|disk| Chosen { snapshot, disk });
    if name == "latest" {
        return snapshots.iter().rev().find_map(of_vdi).ok_or_else(|| {
            Failure::new(ErrorKind::NotFound, format!("VDI {vdi} has no snapshot to be the base"))
                .hint(bases(snapshots, vdi))
        });
    }
    let named = snapshot(snapshots, name).map_err(|failure| {
        if failure.exit() == crate::exit::Exit::Usage { failure } else { failure.hint(bases(snapshots, vdi)) }
    })?;
    of_vdi(named).ok_or_else(|| {
        let text = format!("snapshot {} has no disk of VDI {vdi}", named.id.short());
        Failure::new(ErrorKind::NotFound, text).hint(bases(snapshots, vdi))
    })
}

/// What can be given as the base of a delta of VDI `vdi`, newest first: the next step for a hint.
pub(crate) fn bases(snapshots: &[NamedSnapshot], vdi: &str) -> String {
    let with: Vec<_> = snapshots.iter().rev().filter(|named| named.snapshot.disk(vdi).is_some()).collect();
    if with.is_empty() {
        let what = if snapshots.is_empty() { "any" } else { "this" };
        return format!("the repository has no snapshot of {what} VDI: import it in full first, without a base");
    }
    let listed: Vec<_> = with
        .iter()
        .take(LISTED_MAX)
        .map(|named| format!("{} ({})", named.id.short(), output::time_local(named.snapshot.time_ms)))
        .collect();
    let more = if with.len() > LISTED_MAX { ", …" } else { "" };
    format!(
        "give --base with the snapshot the delta was made against; there are, newest first: {}{more}",
        listed.join(", ")
    )
}

/// What a name means where a whole snapshot is as good as one disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point<'a> {
    /// The snapshot.
    pub(crate) snapshot: &'a NamedSnapshot,
    /// The disk, when the name was that of a VDI.
    pub(crate) disk: Option<&'a Disk>,
}

/// What `name` means: a VDI, of which the newest snapshot is taken; `VDI@WHEN`, the newest not later than that; or a
/// snapshot.
///
/// # Errors
/// `NotFound`; wrong usage for a time that is not understood.
pub(crate) fn point<'a>(snapshots: &'a [NamedSnapshot], name: &str, now: &Zoned) -> Result<Point<'a>> {
    let newest = |vdi: &str, at_ms| {
        let Chosen { snapshot, disk } = newest_of_vdi(snapshots, vdi, at_ms)?;
        Ok(Point { snapshot, disk: Some(disk) })
    };
    if is_vdi(snapshots, name) {
        return newest(name, None);
    }
    // A VDI's own name may have an @.
    let with_time = name.match_indices('@').map(|(at, _)| (&name[..at], &name[at + 1..]));
    if let Some((vdi, time)) = with_time.into_iter().find(|(vdi, _)| is_vdi(snapshots, vdi)) {
        return newest(vdi, Some(when::latest("the time in", time, now)?));
    }
    let named = snapshot(snapshots, name).map_err(|failure| no_such(snapshots, name, failure))?;
    Ok(Point { snapshot: named, disk: None })
}

impl<'a> Point<'a> {
    /// The one disk that is meant: the one named, the one that `vdi` names, or the only one.
    ///
    /// # Errors
    /// `NotFound`; wrong usage when there are several, or the two contradict each other.
    pub(crate) fn chosen(self, vdi: Option<&str>) -> Result<Chosen<'a>> {
        let Self { snapshot, disk } = self;
        match (disk, vdi) {
            (Some(disk), Some(vdi)) if disk.vdi != vdi => {
                Err(Failure::usage(format!("{} is a VDI, and --vdi names another", disk.vdi)))
            }
            (Some(disk), _) => Ok(Chosen { snapshot, disk }),
            (None, vdi) => disk_of(snapshot, vdi),
        }
    }
}

/// The older or newer state that a delta of `chosen` is made from: a point in time of the same VDI, or what
/// [`point`] takes.
///
/// # Errors
/// As [`point`].
pub(crate) fn delta_base<'a>(
    snapshots: &'a [NamedSnapshot],
    name: &str,
    chosen: Chosen<'_>,
    now: &Zoned,
) -> Result<Chosen<'a>> {
    let vdi = &chosen.disk.vdi;
    match point(snapshots, name, now) {
        // Of a snapshot of several disks, the same one is meant.
        Ok(Point { snapshot, disk: None }) => match snapshot.snapshot.disk(vdi) {
            Some(disk) => Ok(Chosen { snapshot, disk }),
            None => disk_of(snapshot, None),
        },
        Ok(point) => point.chosen(None),
        Err(failure) if failure.exit() == crate::exit::Exit::Usage => Err(failure),
        Err(failure) => match when::latest("--delta-from", name, now) {
            Ok(at_ms) => newest_of_vdi(snapshots, vdi, Some(at_ms)),
            Err(_) => Err(failure.hint("--delta-from takes a point in time, a snapshot, or VDI@WHEN")),
        },
    }
}

fn is_vdi(snapshots: &[NamedSnapshot], name: &str) -> bool {
    snapshots.iter().any(|named| named.snapshot.disk(name).is_some())
}

/// A failed look-up of a snapshot, where a VDI would have done too.
fn no_such(snapshots: &[NamedSnapshot], name: &str, failure: Failure) -> Failure {
    if snapshots.is_empty() || failure.exit() == crate::exit::Exit::Usage {
        return failure;
    }
    Failure::new(ErrorKind::NotFound, format!("no VDI and no snapshot is named {name:?}"))
        .hint(format!("there are the VDIs {}; `cairn snapshots` lists the snapshots", vdis_of(snapshots)))
}

/// The thing among `things` whose id begins with `prefix`. `Err(None)` when there is none.
pub(crate) fn by_prefix<'a, T>(
    things: &'a [T],
    prefix: &str,
    hex: impl Fn(&T) -> String,
) -> Result<&'a T, Option<Failure>> {
    let prefix = prefix.to_ascii_lowercase();
    if prefix.len() < PREFIX_LEN_MIN || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(None);
    }
    let found: Vec<_> = things.iter().filter(|thing| hex(thing).starts_with(&prefix)).collect();
    match found[..] {
        [] => Err(None),
        [one] => Ok(one),
        _ => {
            let ids: Vec<_> = found.iter().take(LISTED_MAX).map(|thing| hex(thing)[..16].to_owned()).collect();
            Err(Some(Failure::usage(format!("{prefix:?} is the beginning of {} ids", found.len())).hint(format!(
                "give more digits: {}{}",
                ids.join(", "),
                if found.len() > LISTED_MAX { ", …" } else { "" }
            ))))
        }
    }
}

fn newest_of_vdi<'a>(snapshots: &'a [NamedSnapshot], vdi: &str, at_ms: Option<i64>) -> Result<Chosen<'a>> {
    let with: Vec<_> = snapshots
        .iter()
        .filter_map(|snapshot| snapshot.snapshot.disk(vdi).map(|disk| Chosen { snapshot, disk }))
        .collect();
    let limit = at_ms.unwrap_or(i64::MAX);
    let in_time = with.iter().rev().find(|chosen| chosen.snapshot.snapshot.time_ms <= limit);
    in_time.copied().ok_or_else(|| {
        let text = format!("VDI {vdi} has no snapshot at or before {}", output::time_local(limit));
        let failure = Failure::new(ErrorKind::NotFound, text);
        match with.first() {
            Some(oldest) => {
                failure.hint(format!("its oldest is of {}", output::time_local(oldest.snapshot.snapshot.time_ms)))
            }
            None => failure,
        }
    })
}

fn disk_of<'a>(named: &'a NamedSnapshot, vdi: Option<&str>) -> Result<Chosen<'a>> {
    let disks = &named.snapshot.disks;
    let names = || disks.iter().map(|disk| disk.vdi.as_str()).collect::<Vec<_>>().join(", ");
    let disk = match (vdi, &disks[..]) {
        (None, [only]) => only,
        (None, _) => {
            let text = format!("snapshot {} has {} disks", named.id.short(), disks.len());
            return Err(Failure::usage(text).hint(format!("choose one with --vdi: {}", names())));
        }
        (Some(vdi), _) => named.snapshot.disk(vdi).ok_or_else(|| {
            let text = format!("snapshot {} has no VDI {vdi}", named.id.short());
            Failure::new(ErrorKind::NotFound, text).hint(format!("it has {}", names()))
        })?,
    };
    Ok(Chosen { snapshot: named, disk })
}

fn vdis_of(snapshots: &[NamedSnapshot]) -> String {
    let names: BTreeSet<_> =
        snapshots.iter().flat_map(|named| &named.snapshot.disks).map(|disk| disk.vdi.as_str()).collect();
    let listed: Vec<_> = names.iter().take(LISTED_MAX).copied().collect();
    format!("{}{}", listed.join(", "), if names.len() > LISTED_MAX { ", …" } else { "" })
}

fn none_at_all() -> Failure {
    Failure::new(ErrorKind::NotFound, "the repository has no snapshots")
        .hint("`cairn import` makes one, for instance: cairn import disk.vhd --vdi web-01-root")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use repo_core::id::{NodeId, SnapshotId};
    use repo_core::manifest::Tree;
    use repo_core::snapshot::{Snapshot, SnapshotStats};

    use super::*;
    use crate::exit::Exit;

    /// A snapshot whose id begins with `id`, of disks named `vdis`.
    pub(crate) fn made(id: [u8; 4], time_ms: i64, vdis: &[&str]) -> NamedSnapshot {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&id);
        let disk = |vdi: &&str| Disk {
            vdi: (*vdi).to_owned(),
            tree: Tree { root: NodeId([1; 32]), virtual_size: 1 << 30 },
            source_format: "vhd-dynamic".to_owned(),
            allocated_bytes: 4096,
            parent: None,
            reading: Default::default(),
            source_id: None,
        };
        let snapshot = Snapshot {
            time_ms,
            committed_ms: time_ms + 1,
            vm: Some("web-01".to_owned()),
            disks: vdis.iter().map(disk).collect(),
            packs: Vec::new(),
            stats: SnapshotStats { new_bytes: 4096, new_chunks: 1, pack_bytes: 900 },
            program: "cairn".to_owned(),
            metadata: BTreeMap::new(),
            remarks: Default::default(),
            origin: None,
        };
        NamedSnapshot { id: SnapshotId(bytes), len: 100, snapshot }
    }

    fn three() -> Vec<NamedSnapshot> {
        vec![
            made([0xab, 0xcd, 0x00, 0x01], 1000, &["root"]),
            made([0xab, 0xcd, 0x00, 0x02], 2000, &["root", "data"]),
            made([0xfe, 0xed, 0x00, 0x03], 3000, &["root", "abcd"]),
        ]
    }

    fn time(chosen: &NamedSnapshot) -> i64 {
        chosen.snapshot.time_ms
    }

    #[test]
    fn a_snapshot_is_found_by_id_prefix_and_latest() {
        let all = three();
        assert_eq!(time(snapshot(&all, &all[1].id.to_hex()).unwrap()), 2000);
        assert_eq!(time(snapshot(&all, "FEED").unwrap()), 3000);
        assert_eq!(time(snapshot(&all, "abcd0002").unwrap()), 2000);
        assert_eq!(time(snapshot(&all, "latest").unwrap()), 3000);
    }

    #[test]
    fn an_ambiguous_prefix_lists_the_candidates_and_a_short_or_unknown_one_is_not_found() {
        let all = three();
        let failure = snapshot(&all, "abcd").unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.text().contains("abcd000100000000, abcd000200000000"), "{}", failure.text());
        for name in ["fee", "fefe", "x", ""] {
            assert_eq!(snapshot(&all, name).unwrap_err().exit(), Exit::Failed, "{name}");
        }
        assert!(snapshot(&[], "latest").unwrap_err().text().contains("no snapshots"));
    }

    #[test]
    fn of_a_vdi_the_newest_snapshot_not_later_than_the_time_is_taken() {
        let all = three();
        let at = |at_ms| disk(&all, "root", None, at_ms).map(|chosen| time(chosen.snapshot));
        assert_eq!(at(None).unwrap(), 3000);
        assert_eq!(at(Some(2999)).unwrap(), 2000);
        assert_eq!(at(Some(2000)).unwrap(), 2000);
        assert_eq!(at(Some(1000)).unwrap(), 1000);
        assert!(at(Some(999)).unwrap_err().text().contains("its oldest is of"));
        assert_eq!(time(disk(&all, "data", None, None).unwrap().snapshot), 2000);
    }

    #[test]
    fn a_vdi_with_exactly_that_name_wins_over_the_beginning_of_an_id() {
        let all = three();
        let chosen = disk(&all, "abcd", None, None).unwrap();
        assert_eq!((time(chosen.snapshot), chosen.disk.vdi.as_str()), (3000, "abcd"));
    }

    #[test]
    fn a_snapshot_of_several_disks_wants_one_to_be_named() {
        let all = three();
        assert_eq!(disk(&all, "abcd0001", None, None).unwrap().disk.vdi, "root");
        assert!(disk(&all, "abcd0002", None, None).unwrap_err().text().contains("root, data"));
        assert_eq!(disk(&all, "abcd0002", Some("data"), None).unwrap().disk.vdi, "data");
        assert_eq!(disk(&all, "abcd0002", Some("x"), None).unwrap_err().exit(), Exit::Failed);
        assert_eq!(disk(&all, "abcd0001", None, Some(1)).unwrap_err().exit(), Exit::Usage);
        assert_eq!(disk(&all, "root", Some("data"), None).unwrap_err().exit(), Exit::Usage);
    }

    fn now() -> Zoned {
        "2026-11-20T12:00:00+00:00[UTC]".parse().unwrap()
    }

    #[test]
    fn a_point_is_a_snapshot_a_vdi_or_a_vdi_at_a_time() {
        let all = three();
        let found =
            |name| point(&all, name, &now()).map(|point| (time(point.snapshot), point.disk.map(|disk| &disk.vdi[..])));
        assert_eq!(found("abcd0001").unwrap(), (1000, None));
        assert_eq!(found("root").unwrap(), (3000, Some("root")));
        assert_eq!(found("root@1970-01-01T00:00:02Z").unwrap(), (2000, Some("root")));
        assert_eq!(found("abcd").unwrap(), (3000, Some("abcd")));
        assert_eq!(found("root@whenever").unwrap_err().exit(), Exit::Usage);
        assert_eq!(found("rot@today").unwrap_err().exit(), Exit::Failed);
        assert!(point(&all, "abcd0002", &now()).unwrap().chosen(None).is_err());
        assert_eq!(point(&all, "abcd0002", &now()).unwrap().chosen(Some("data")).unwrap().disk.vdi, "data");
        assert_eq!(point(&all, "root", &now()).unwrap().chosen(Some("data")).unwrap_err().exit(), Exit::Usage);
    }

    #[test]
    fn the_base_of_a_delta_is_the_same_vdi_unless_another_is_named() {
        let all = three();
        let chosen = disk(&all, "root", None, None).unwrap();
        let found =
            |name| delta_base(&all, name, chosen, &now()).map(|base| (time(base.snapshot), base.disk.vdi.as_str()));
        assert_eq!(found("1970-01-01T00:00:02Z").unwrap(), (2000, "root"));
        assert_eq!(found("abcd0002").unwrap(), (2000, "root"));
        assert_eq!(found("data").unwrap(), (2000, "data"));
        assert_eq!(found("today").unwrap(), (3000, "root"));
        assert!(found("nothing").unwrap_err().text().contains("a point in time"));
    }

    #[test]
    fn the_latest_base_is_the_newest_of_its_own_vdi_and_others_are_refused_with_a_list() {
        let all = three();
        assert_eq!(time(base(&all, "latest", "data").unwrap().snapshot), 2000);
        assert_eq!(time(base(&all, "abcd0001", "root").unwrap().snapshot), 1000);
        for (name, vdi, hint) in [
            ("feed", "data", "newest first: abcd00020000 ("),
            ("9999", "root", "newest first: feed00030000 ("),
            ("latest", "none", "no snapshot of this VDI: import it in full first"),
        ] {
            let failure = base(&all, name, vdi).unwrap_err();
            assert_eq!(failure.exit(), Exit::Failed);
            assert!(failure.text().contains(hint), "{}", failure.text());
        }
        assert!(bases(&[], "root").contains("no snapshot of any VDI"));
        assert_eq!(base(&all, "abcd", "root").unwrap_err().exit(), Exit::Usage);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_vdis_there_are() {
        let text = disk(&three(), "rot", None, None).unwrap_err().text();
        assert!(text.contains("abcd, data, root"), "{text}");
    }
}
