//! What comes out besides whole disks: differences, deltas, fixed VHDs, disks for a storage repository, changes in place.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use repo_core::disk::raw::in_place::InPlaceFile;
use repo_core::id::SnapshotId;
use repo_core::manifest::walk::{Leaves, leaf_runs};
use repo_core::monitor::Silent;
use repo_core::ops::diff::diff;
use repo_core::ops::open::Session;
use repo_core::ops::restore::in_place::{InPlaceOptions, InPlaceReport, restore_in_place};
use repo_core::ops::restore::{RestoreOptions, RestorePlan};
use repo_core::seal::Suite;
use repo_core::units::{BLOCK_LEN, PAGE_LEN, PAGES_PER_BLOCK};
use repo_core::{Result, snapshot};
use repo_tests::cli::{cairn, fails, json, run, tool};
use repo_tests::fixture::RepoFixture;
use repo_tests::model::ModelDisk;

/// Writes at places of a disk: first page, pages, content number (0 is zeros).
type Writes = Vec<(prop::sample::Index, u64, u32)>;

fn writes() -> impl Strategy<Value = Writes> {
    prop::collection::vec((any::<prop::sample::Index>(), 1..700_u64, 0..6_u32), 0..6)
}

/// Another state of a disk: after these writes, at another size.
fn changed(disk: &ModelDisk, writes: &Writes, virtual_size: u64) -> ModelDisk {
    let mut disk = disk.clone();
    disk.virtual_size = virtual_size;
    let pages = virtual_size.div_ceil(PAGE_LEN as u64);
    disk.pages.retain(|page, _| *page < pages);
    for (at, count, content) in writes {
        let at = at.index(usize::try_from(pages.max(1)).unwrap()) as u64;
        for page in at..(at + count).min(pages) {
            match content {
                0 => drop(disk.pages.remove(&page)),
                content => drop(disk.pages.insert(page, content * 1000 + (page % 50) as u32)),
            }
        }
    }
    disk
}

/// Pages that differ, by number.
fn differing_pages(before: &[u8], after: &[u8]) -> BTreeSet<usize> {
    let page = |bytes: &[u8], at: usize| {
        let start = (at * PAGE_LEN).min(bytes.len());
        let mut page = bytes[start..(start + PAGE_LEN).min(bytes.len())].to_vec();
        page.resize(PAGE_LEN, 0);
        page
    };
    let pages = before.len().max(after.len()).div_ceil(PAGE_LEN);
    (0..pages).filter(|at| page(before, *at) != page(after, *at)).collect()
}

fn plan(session: &Session, id: SnapshotId, vdi: &str) -> RestorePlan {
    let tree = snapshot::read(&session.repository, id).unwrap().snapshot.disk(vdi).unwrap().tree;
    RestorePlan::new(session, tree, RestoreOptions::default(), &Silent).unwrap()
}

fn in_place(session: &Session, id: SnapshotId, target: &Path, dry_run: bool) -> Result<InPlaceReport> {
    let tree = snapshot::read(&session.repository, id)?.snapshot.disk("disk").unwrap().tree;
    let file = File::options().read(true).write(!dry_run).open(target).unwrap();
    let file = InPlaceFile::open(file, tree.virtual_size)?;
    let options = InPlaceOptions { dry_run, ..InPlaceOptions::default() };
    restore_in_place(session, plan(session, id, "disk"), &file, options, &Silent)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_diff_names_every_page_that_differs_and_no_block_that_does_not(
        first in writes(), second in writes(), sizes in [1..9_000_000_u64, 1..9_000_000_u64], same_size: bool,
    ) {
        let mut fixture = RepoFixture::small(Suite::None);
        let session = fixture.session();
        let before = changed(&ModelDisk::scattered(sizes[0], 7, 1), &first, sizes[0]);
        let after = changed(&before, &second, if same_size { sizes[0] } else { sizes[1] });
        let trees = [&before, &after].map(|disk| {
            fixture.backup_model(&session, "disk", disk).snapshot.snapshot.disks[0].tree
        });
        let report = diff(&session, &trees[0], &trees[1], &Silent).unwrap();
        let exact = differing_pages(&before.to_bytes(), &after.to_bytes());
        let end = before.virtual_size.max(after.virtual_size);
        let mut named = BTreeSet::new();
        for range in &report.ranges {
            prop_assert!(range.start.is_multiple_of(PAGE_LEN as u64) && range.end <= end);
            named.extend(range.start as usize / PAGE_LEN..(range.end as usize).div_ceil(PAGE_LEN));
        }
        prop_assert!(report.ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        prop_assert_eq!(report.changed_bytes, report.ranges.iter().map(|range| range.end - range.start).sum::<u64>());
        prop_assert!(exact.is_subset(&named), "not named: {:?}", exact.difference(&named).collect::<Vec<_>>());
        let blocks = |pages: &BTreeSet<usize>| pages.iter().map(|page| page / PAGES_PER_BLOCK).collect::<BTreeSet<_>>();
        prop_assert_eq!(blocks(&exact), blocks(&named));
        prop_assert_eq!(blocks(&exact).len() as u64, report.changed_blocks);
        prop_assert_eq!(diff(&session, &trees[0], &trees[0], &Silent).unwrap(), Default::default());
    }

    #[test]
    fn in_place_any_state_becomes_the_disk_by_writing_only_pages_that_differ(
        first in writes(), second in writes(), sizes in [1..9_000_000_u64, 1..9_000_000_u64],
        halfway: prop::sample::Index, junk in prop::collection::vec((any::<prop::sample::Index>(), 1..20_000_usize), 0..3),
    ) {
        let mut fixture = RepoFixture::small(Suite::None);
        let session = fixture.session();
        let wanted = changed(&ModelDisk::scattered(sizes[0], 7, 1), &first, sizes[0]);
        let id = fixture.backup_model(&session, "disk", &wanted).snapshot.id;
        // An older or newer state, as a run that was cut off leaves it: new up to some byte, old behind; and damaged.
        let wanted = wanted.to_bytes();
        let mut found = changed(&ModelDisk::scattered(sizes[1], 7, 1), &second, sizes[1]).to_bytes();
        let new = halfway.index(found.len()).min(wanted.len());
        found[..new].copy_from_slice(&wanted[..new]);
        for (at, len) in junk {
            let at = at.index(found.len());
            let end = found.len().min(at + len);
            found[at..end].fill(0xA5);
        }
        let target = fixture.folder.path().join("target");
        std::fs::write(&target, &found).unwrap();
        let foretold = in_place(&session, id, &target, true).unwrap();
        prop_assert!(std::fs::read(&target).unwrap() == found, "a dry run changes nothing");
        let report = in_place(&session, id, &target, false).unwrap();
        prop_assert!(std::fs::read(&target).unwrap() == wanted);
        prop_assert_eq!(&foretold, &report);
        // What a longer file had past the disk's end is cut off and not counted; the last page is as long as the disk.
        found.truncate(wanted.len());
        let changed = differing_pages(&found, &wanted);
        let bytes = |page: &usize| ((page + 1) * PAGE_LEN).min(wanted.len()) - page * PAGE_LEN;
        let expected = changed.iter().map(bytes).sum::<usize>() as u64;
        prop_assert_eq!(report.written_bytes + report.zeroed_bytes, expected);
        let again = in_place(&session, id, &target, false).unwrap();
        prop_assert_eq!((again.written_bytes, again.zeroed_bytes), (0, 0));
    }
}

/// A repository with several states of one disk: raw images beside it.
struct States {
    fixture: RepoFixture,
    ids: Vec<String>,
    raws: Vec<PathBuf>,
}

impl States {
    /// The states differ by writes, by blocks that become zeros, by growing and by shrinking.
    fn new() -> Self {
        let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
        let session = fixture.session();
        let mut disk = ModelDisk::scattered(30 << 20, 5, 1);
        let mut states = vec![disk.clone()];
        disk.pages.extend((100..130).map(|page| (page, 7)));
        disk.pages.retain(|page, _| !(1024..2048).contains(page));
        states.push(disk.clone());
        disk.virtual_size = (40 << 20) + 5 * 512;
        disk.pages.extend((7600..7700).chain([10_239, 10_240]).map(|page| (page, 9)));
        states.push(disk.clone());
        disk.virtual_size = (21 << 20) + 512;
        disk.pages.retain(|page, _| page * (PAGE_LEN as u64) < (21 << 20));
        states.push(disk.clone());
        let ids = states.iter().map(|disk| fixture.backup_model(&session, "disk", disk).snapshot.id.to_hex()).collect();
        let raws = states.iter().zip(0..).map(|(disk, at)| {
            let path = fixture.folder.path().join(format!("state-{at}.raw"));
            disk.write_raw(&path);
            path
        });
        let raws = raws.collect();
        Self { fixture, ids, raws }
    }

    fn cairn(&self) -> Command {
        cairn(&self.fixture.path())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.fixture.folder.path().join(name)
    }

    fn delta(&self, from: usize, to: usize) -> Command {
        let mut command = self.cairn();
        command.args(["restore", &self.ids[to], "--format", "vhd", "--delta-from", &self.ids[from]]);
        command
    }
}

fn apply(delta: &Path, image: &Path) {
    let length = std::fs::metadata(delta).unwrap().len().to_string();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/oracle/apply_delta.py");
    run(Command::new("python3").args([script, &length]).arg(image).stdin(File::open(delta).unwrap()));
}

#[test]
fn a_delta_between_any_two_states_applied_to_the_one_gives_the_other() {
    let states = States::new();
    let (file, piped, image) = (states.path("delta.vhd"), states.path("piped.vhd"), states.path("image.raw"));
    for from in 0..states.ids.len() {
        for to in 0..states.ids.len() {
            let report = json(states.delta(from, to).args(["--force", "-o"]).arg(&file));
            assert_eq!(report["delta_from"], states.ids[from].as_str());
            run(states.delta(from, to).args(["-o", "-"]).stdout(File::create(&piped).unwrap()));
            run(Command::new("cmp").arg(&file).arg(&piped));
            std::fs::copy(&states.raws[from], &image).unwrap();
            apply(&file, &image);
            run(Command::new("cmp").arg(&image).arg(&states.raws[to]));
            let blocks = (std::fs::metadata(&file).unwrap().len() - 2048 - 512) / (512 + BLOCK_LEN as u64);
            if from == to {
                assert_eq!(blocks, 0);
            } else if (from, to) == (0, 1) {
                // Block 0 was written to; blocks 2 and 3 became zeros, and are there.
                assert_eq!(blocks, 3);
            }
        }
    }
}

#[test]
fn libvhdi_opens_a_full_restore_with_the_deltas_over_it() {
    let states = States::new();
    let chain = states.path("chain");
    std::fs::create_dir(&chain).unwrap();
    let base = chain.join("base.vhd");
    run(states.cairn().args(["restore", &states.ids[0], "--format", "vhd", "-o"]).arg(&base));
    let middle = chain.join("middle of it.vhd");
    run(states.delta(0, 1).args(["--parent-name", "base.vhd", "-o"]).arg(&middle));
    let top = chain.join("top.vhd");
    // Backwards: libvhdi does not open a child that is larger than its parent, as state 2 would be.
    run(states.delta(1, 0).args(["--parent-name", "middle of it.vhd", "-o"]).arg(&top));
    // Parents are looked for by the names that the children say, and the ids must agree.
    let script = r#"
import pyvhdi, sys
open_files = []
def opened(name):
    disk = pyvhdi.file()
    disk.open(name)
    # A parent that nobody holds is closed under its child.
    open_files.append(disk)
    parent = disk.get_parent_filename()
    if parent:
        parent_disk = opened(parent.replace('.\\', ''))
        assert disk.parent_identifier == parent_disk.identifier, (disk.parent_identifier, parent_disk.identifier)
        disk.set_parent(parent_disk)
    return disk
disk = opened(sys.argv[1])
open(sys.argv[2], 'wb').write(disk.read_buffer_at_offset(disk.get_media_size(), 0))
"#;
    for (child, raw) in [("middle of it.vhd", &states.raws[1]), ("top.vhd", &states.raws[0])] {
        let copy = states.path("copy.raw");
        let mut python = Command::new("/usr/bin/python3");
        run(python.current_dir(&chain).args(["-c", script, child]).arg(&copy));
        run(Command::new("cmp").arg(&copy).arg(raw));
    }
}

#[test]
fn a_delta_takes_its_base_by_time_or_from_another_disk() {
    let mut states = States::new();
    let session = states.fixture.session();
    let clone = ModelDisk::scattered(30 << 20, 5, 2);
    let id = states.fixture.backup_model(&session, "clone", &clone).snapshot.id.to_hex();
    drop(session);
    let restore = |from: &str| {
        let mut command = states.cairn();
        command.args(["restore", "disk", "--at", "1970-01-01T00:16:42Z", "--format", "vhd", "--force", "-o"]);
        command.arg(states.path("delta.vhd")).args(["--delta-from", from]);
        command
    };
    assert_eq!(json(&mut restore("1970-01-01T00:16:41Z"))["delta_from"], states.ids[0].as_str());
    assert_eq!(json(&mut restore("disk@1970-01-01T00:16:43Z"))["delta_from"], states.ids[2].as_str());
    assert_eq!(json(&mut restore("clone"))["delta_from"], id.as_str());
    let image = states.path("image.raw");
    clone.write_raw(&image);
    apply(&states.path("delta.vhd"), &image);
    run(Command::new("cmp").arg(&image).arg(&states.raws[1]));
    let (code, text) = fails(&mut restore("1969-01-01"));
    assert!(code == 1 && text.contains("no snapshot at or before"), "{text}");
    let (code, _) = fails(restore("clone").args(["--parent-name", "a/b"]));
    assert_eq!(code, 1);
}

#[test]
fn a_fixed_vhd_is_read_by_qemu() {
    let states = States::new();
    let (file, piped) = (states.path("fixed.vhd"), states.path("piped.vhd"));
    for (id, raw) in states.ids.iter().zip(&states.raws) {
        let restore = || {
            let mut command = states.cairn();
            command.args(["restore", id, "--format", "vhd-fixed", "--force", "-o"]);
            command
        };
        run(restore().arg(&file));
        run(restore().arg("-").stdout(File::create(&piped).unwrap()));
        run(Command::new("cmp").arg(&file).arg(&piped));
        let size = std::fs::metadata(raw).unwrap().len();
        assert_eq!(std::fs::metadata(&file).unwrap().len(), size + 512);
        let info = tool("qemu-img", ["info", "--output=json", "-f", "vpc", file.to_str().unwrap()]);
        assert!(String::from_utf8_lossy(&info.stdout).contains(&format!("\"virtual-size\": {size},")));
        run(Command::new("qemu-img").args(["compare", "-f", "vpc", "-F", "raw"]).arg(&file).arg(raw));
    }
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&file).unwrap());
    assert!(blocks * 512 < 20 << 20, "zeros are holes");
}

#[test]
fn a_disk_for_a_storage_repository_appears_whole_under_its_uuid() {
    let states = States::new();
    let sr = states.path("0f6c9e1a-3b2d-4c5e-8f70-112233445566");
    std::fs::create_dir(&sr).unwrap();
    let restore = || {
        let mut command = states.cairn();
        command.args(["restore", &states.ids[2], "--sr-dir"]).arg(&sr);
        command
    };
    let report = json(&mut restore());
    let (uuid, path) = (report["uuid"].as_str().unwrap(), PathBuf::from(report["output"].as_str().unwrap()));
    assert_eq!(path, sr.join(format!("{uuid}.vhd")));
    let named = "ABCDEF01-2345-4678-9abc-def012345678";
    let output = run(restore().args(["--uuid", named]));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("now run: xe sr-scan uuid=0f6c9e1a-3b2d-4c5e-8f70-112233445566\n"), "{text}");
    let mut names: Vec<_> =
        std::fs::read_dir(&sr).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let mut expected = vec![format!("{uuid}.vhd"), format!("{}.vhd", named.to_lowercase())];
    expected.sort();
    assert_eq!(names, expected);
    // The storage manager's sizes are multiples of 2 MiB.
    let rounded = states.path("rounded.raw");
    std::fs::copy(&states.raws[2], &rounded).unwrap();
    File::options().write(true).open(&rounded).unwrap().set_len(42 << 20).unwrap();
    for name in names {
        let path = sr.join(name);
        run(Command::new("qemu-img").args(["compare", "-f", "vpc", "-F", "raw"]).arg(&path).arg(&rounded));
        assert_eq!(std::fs::read(&path).unwrap()[28..36], *b"tap\0\0\x01\0\x03");
        let info = tool("vhdiinfo", [path.to_str().unwrap()]);
        assert!(String::from_utf8_lossy(&info.stdout).contains("(44040192 bytes)"));
    }
    let (code, text) = fails(restore().args(["--uuid", named]));
    assert!(code == 1 && text.contains("exists already"), "{text}");
    assert_eq!(fails(restore().args(["--uuid", "nonsense"])).0, 2);
}

#[test]
fn the_command_restores_in_place_and_says_before_how_much() {
    let states = States::new();
    let target = states.path("target.raw");
    std::fs::copy(&states.raws[0], &target).unwrap();
    let restore = |options: &[&str]| {
        let mut command = states.cairn();
        command.args(["restore", &states.ids[1], "--in-place"]).arg(&target).args(options);
        command
    };
    let foretold = json(&mut restore(&["--dry-run"]));
    run(Command::new("cmp").arg(&target).arg(&states.raws[0]));
    assert_eq!(foretold["in_place"]["dry_run"], true);
    let report = json(&mut restore(&[]));
    run(Command::new("cmp").arg(&target).arg(&states.raws[1]));
    assert_eq!(report["written_bytes"], 30 * 4096);
    for field in ["read_bytes", "zeroed_bytes"] {
        assert_eq!(report["in_place"][field], foretold["in_place"][field]);
    }
    assert_eq!(report["written_bytes"], foretold["written_bytes"]);

    let vhd = states.path("image.vhd");
    run(states.cairn().args(["restore", &states.ids[0], "--format", "vhd", "-o"]).arg(&vhd));
    let (code, text) = fails(states.cairn().args(["restore", &states.ids[1], "--in-place"]).arg(&vhd));
    assert!(code == 1 && text.contains("only raw disks are restored in place"), "{text}");
    let (code, text) = fails(states.cairn().args(["restore", &states.ids[1], "--in-place", "/nowhere"]));
    assert!(code == 1 && text.contains("-o makes a new file"), "{text}");
}

#[test]
fn damage_stops_an_in_place_restore_or_becomes_zeros_that_are_listed() {
    let states = States::new();
    let target = states.path("target.raw");
    std::fs::copy(&states.raws[0], &target).unwrap();
    // All packs of data are lost; what the target has already is not needed from them.
    let session = states.fixture.session();
    let packs: Vec<_> = session.index.packs();
    for pack in packs.iter().filter(|pack| pack.content == repo_core::pack::Content::Data) {
        std::fs::remove_file(states.fixture.path().join(repo_core::store::ObjectName::Pack(pack.id).path())).unwrap();
    }
    let tree = |at: usize| {
        let id = SnapshotId::from_hex(&states.ids[at]).unwrap();
        (id, snapshot::read(&session.repository, id).unwrap().snapshot.disks[0].tree)
    };
    let (same, _) = tree(0);
    let report = in_place(&session, same, &target, false).unwrap();
    assert_eq!((report.written_bytes, report.zeroed_bytes), (0, 0));
    let (id, tree) = tree(1);
    assert!(in_place(&session, id, &target, false).unwrap_err().is_loss());
    let file = InPlaceFile::open(File::options().read(true).write(true).open(&target).unwrap(), tree.virtual_size);
    let options = InPlaceOptions { keep_going: true, ..InPlaceOptions::default() };
    let report = restore_in_place(&session, plan(&session, id, "disk"), &file.unwrap(), options, &Silent).unwrap();
    let (restored, wanted) = (std::fs::read(&target).unwrap(), std::fs::read(&states.raws[1]).unwrap());
    assert!(!report.holes.is_empty());
    let in_hole = |byte: u64| report.holes.iter().any(|hole| hole.contains(&byte));
    for page in 0..wanted.len() / PAGE_LEN {
        let bytes = page * PAGE_LEN..(page + 1) * PAGE_LEN;
        if in_hole(bytes.start as u64) {
            assert!(restored[bytes].iter().all(|byte| *byte == 0), "page {page}");
        } else {
            assert!(restored[bytes.clone()] == wanted[bytes], "page {page}");
        }
    }
}

#[test]
fn the_command_tells_what_differs_between_two_states() {
    let states = States::new();
    let report = json(states.cairn().args(["diff", "disk@1970-01-01T00:16:41Z", &states.ids[1]]));
    assert_eq!(report["from"]["snapshot"], states.ids[0].as_str());
    let disk = &report["disks"][0];
    assert_eq!((&disk["vdi_from"], &disk["vdi_to"]), (&"disk".into(), &"disk".into()));
    assert_eq!(disk["changed_blocks"], 3);
    let exact = differing_pages(&std::fs::read(&states.raws[0]).unwrap(), &std::fs::read(&states.raws[1]).unwrap());
    let changed = disk["changed_bytes"].as_u64().unwrap();
    let least = (exact.len() * PAGE_LEN) as u64;
    // A chunk has at most 8 pages here.
    assert!((least..=least + 2 * 32 * 4096).contains(&changed), "{changed} of {least}");
    let resized = json(states.cairn().args(["diff", &states.ids[2], &states.ids[3], "--vdi", "disk"]));
    assert_eq!(resized["disks"][0]["size_from"], (40 << 20) + 5 * 512);
    assert_eq!(resized["disks"][0]["size_to"], (21 << 20) + 512);
    let text = run(states.cairn().args(["diff", &states.ids[0], "disk", "--ranges"]));
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("disk disk\n") && text.contains("    bytes "), "{text}");
    let same = json(states.cairn().args(["diff", "latest", "latest"]));
    assert_eq!((&same["disks"][0]["changed_bytes"], &same["disks"][0]["ranges"]), (&0.into(), &serde_json::json!([])));
    assert_eq!(fails(states.cairn().args(["diff", "latest", "nothing"])).0, 1);
}

#[test]
fn a_restore_decodes_each_frame_once_although_windows_cut_them_in_two() {
    let mut fixture = RepoFixture::ordinary(Suite::None);
    let session = fixture.session();
    // Every window is larger than the frame cache, and each backup leaves frames that reach from one into the next.
    let mut disk = ModelDisk::scattered(300 << 20, 1, 1);
    let mut id = fixture.backup_model(&session, "disk", &disk).snapshot.id;
    for round in 0..6 {
        let pages = disk.virtual_size / PAGE_LEN as u64;
        disk.pages.extend((round * 13..pages).step_by(97).map(|page| (page, (page * 7 + round) as u32)));
        id = fixture.backup_model(&session, "disk", &disk).snapshot.id;
    }
    drop(session);
    let session = fixture.session();
    let tree = snapshot::read(&session.repository, id).unwrap().snapshot.disks[0].tree;
    let mut frames = BTreeSet::new();
    for leaf in Leaves::new(&tree, &*session.content) {
        let runs = leaf_runs(&*session.content, leaf.unwrap().1).unwrap();
        let found = session.content.locate(&runs.iter().map(|run| run.id.into()).collect::<Vec<_>>()).unwrap();
        frames.extend(found.iter().flatten().map(|location| (location.pack, location.frame)));
    }
    let before = session.content.decoded_frame_count();
    let target = fixture.folder.path().join("target");
    repo_tests::fixture::restore_file(&session, id, "disk", &target).unwrap();
    let decoded = session.content.decoded_frame_count() - before;
    let (least, nodes) = (frames.len() as u64, before);
    // Frames of nodes may have been pushed out of the cache and be read again.
    assert!((least..=least + nodes).contains(&decoded), "{decoded} decoded, {least} needed, {nodes} of nodes");
}
