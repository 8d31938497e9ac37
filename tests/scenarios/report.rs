//! The report's numbers against the bytes on disk, and its CSV against a reader that nobody here wrote.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use repo_core::disk::Delivery;
use repo_core::seal::Suite;
use repo_core::snapshot::{self, DiskReading};
use repo_core::units::PAGE_LEN;
use repo_tests::cli::{cairn, json, run};
use repo_tests::fixture::RepoFixture;
use repo_tests::model::ModelDisk;
use serde_json::Value;

/// A VM's name that a page must not take for an element.
pub(crate) const HOSTILE_VM: &str = "<script>alert('x')</script> & \"co\"";
/// A VDI's name that a spreadsheet must not take for a formula.
const FORMULA_VDI: &str = "=1+1,\"x\"";

/// Nine days of two disks of two VMs: one grows and changes, the other is its clone with changes of its own.
pub(crate) fn nine_days() -> RepoFixture {
    let fixture = RepoFixture::small(Suite::Aes256Gcm);
    let mut first = ModelDisk::scattered(24 << 20, 3, 1);
    let mut second = first.clone();
    for day in 1..=9_u32 {
        first.pages.extend((0..150).map(|page| (u64::from(day * 150 + page) % 6000, day * 1000 + page)));
        if day == 5 {
            first.virtual_size += 3 << 20;
            first.pages.extend((6200..6500).map(|page| (page, 7_000_000 + page as u32)));
        }
        import(&fixture, &first, HOSTILE_VM, "web-01-root", day);
        if day % 2 == 1 {
            second.pages.extend((3000..3080).map(|page| (page, 9_000_000 + day * 100 + page as u32)));
            import(&fixture, &second, "db-01", FORMULA_VDI, day);
        }
    }
    fixture
}

fn import(fixture: &RepoFixture, disk: &ModelDisk, vm: &str, vdi: &str, day: u32) -> Value {
    let image = fixture.folder.path().join("image");
    disk.write_raw(&image);
    let time = format!("2026-11-{day:02}T03:00:00Z");
    json(cairn(&fixture.path()).arg("import").arg(&image).args(["--vdi", vdi, "--vm", vm, "--time", &time]))
}

/// The report as JSON.
pub(crate) fn report(path: &Path, more: &[&str]) -> Value {
    json(cairn(path).arg("report").args(more))
}

/// The lengths of all files below a folder of the repository.
fn lengths(path: &Path) -> u64 {
    if path.is_file() {
        return path.metadata().unwrap().len();
    }
    std::fs::read_dir(path).unwrap().map(|entry| lengths(&entry.unwrap().path())).sum()
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("{field} of {value}"))
}

fn sum(rows: &Value, field: &str) -> u64 {
    rows.as_array().unwrap().iter().map(|row| number(row, field)).sum()
}

fn close(found: &Value, expected: f64) -> bool {
    (found.as_f64().unwrap() - expected).abs() < 0.001
}

#[test]
fn every_number_adds_up_to_the_bytes_on_disk() {
    let fixture = nine_days();
    let path = fixture.path();
    let out = report(&path, &[]);
    let repository = &out["repository"];

    let objects: u64 = ["packs", "snapshots", "keys", "config"].iter().map(|name| lengths(&path.join(name))).sum();
    assert_eq!(number(repository, "total_bytes"), objects);
    let of = |field: &str| number(repository, field);
    let parts = ["data_bytes", "manifest_bytes", "overhead_bytes", "dead_bytes", "duplicate_bytes", "unreadable_bytes"];
    assert_eq!(parts.iter().map(|part| of(part)).sum::<u64>(), lengths(&path.join("packs")));
    assert_eq!(of("record_bytes"), lengths(&path.join("snapshots")));
    assert_eq!(of("live_bytes") + of("reclaimable_bytes"), of("total_bytes"));
    assert_eq!((of("dead_bytes"), of("duplicate_bytes"), of("damages")), (0, 0, 0));

    // What imports say they added is what is there, but for configuration and keys.
    let stored = of("total_bytes") - of("other_bytes");
    for rows in ["vms", "vdis", "snapshots", "days"] {
        assert_eq!(sum(&out[rows], "stored_bytes"), stored, "{rows}");
        assert_eq!(sum(&out[rows], "allocated_bytes"), of("allocated_bytes"), "{rows}");
        assert_eq!(sum(&out[rows], "new_bytes"), of("new_bytes"), "{rows}");
        assert!(sum(&out[rows], "unique_bytes") <= of("live_bytes"), "{rows}");
    }
    // Nothing was forgotten: all that was ever new is still there, once.
    assert_eq!(of("distinct_bytes"), of("new_bytes"));
    assert!(close(&repository["deduplication"], of("allocated_bytes") as f64 / of("distinct_bytes") as f64));
    assert!(close(&repository["total"], of("allocated_bytes") as f64 / of("live_bytes") as f64));
    let product = repository["deduplication"].as_f64().unwrap() * repository["compression"].as_f64().unwrap();
    assert!((product - repository["total"].as_f64().unwrap()).abs() < 0.1);

    let day = &out["days"][8];
    assert_eq!((&day["day"], &day["stored_so_far_bytes"]), (&"2026-11-09".into(), &stored.into()));
    assert_eq!(number(&out["vdis"][1], "snapshots"), 9);
}

#[test]
fn what_a_snapshot_alone_needs_is_what_becomes_reclaimable_without_it() {
    let fixture = nine_days();
    let path = fixture.path();
    for (victim, rows) in [(4_usize, "snapshots"), (0, "snapshots")] {
        let before = report(&path, &[]);
        assert_eq!(report(&path, &[])["repository"], before["repository"], "what was kept is the same");
        let row = &before[rows][victim];
        let record = path.join("snapshots").join(row["snapshot"].as_str().unwrap());
        let record_len = lengths(&record);
        std::fs::remove_file(record).unwrap();
        let after = report(&path, &[]);
        let freed =
            number(&after["repository"], "reclaimable_bytes") - number(&before["repository"], "reclaimable_bytes");
        assert_eq!(freed, number(row, "unique_bytes") - record_len);
        assert!(freed > 0);
    }
}

#[test]
fn what_a_policy_or_a_vdi_or_a_day_would_free_becomes_reclaimable() {
    let fixture = nine_days();
    let path = fixture.path();
    let before = report(&path, &[]);
    let policy = before["policies"].as_array().unwrap().iter().find(|row| row["policy"] == "the newest 7").unwrap();
    assert_eq!((number(policy, "kept"), number(policy, "forgotten")), (7 + 5, 2));
    let remove = |wanted: &dyn Fn(&Value) -> bool| -> u64 {
        let all = report(&path, &[]);
        let rows = all["snapshots"].as_array().unwrap().iter().filter(|row| wanted(row));
        let records = rows.map(|row| path.join("snapshots").join(row["snapshot"].as_str().unwrap()));
        records.map(|record| (lengths(&record), std::fs::remove_file(record).unwrap()).0).sum()
    };
    let reclaimable = |out: &Value| number(&out["repository"], "reclaimable_bytes");

    let early = |row: &Value| row["vdi"] == "web-01-root" && row["time"].as_str().unwrap() < "2026-11-03";
    let records = remove(&early);
    let after = report(&path, &[]);
    assert_eq!(reclaimable(&after) - reclaimable(&before) + records, number(policy, "freed_bytes"));

    let last = after["days"].as_array().unwrap().last().unwrap();
    let records = remove(&|row| row["time"].as_str().unwrap().starts_with("2026-11-09"));
    let without_day = report(&path, &[]);
    assert_eq!(reclaimable(&without_day) - reclaimable(&after) + records, number(last, "unique_bytes"));

    let vdi = without_day["vdis"].as_array().unwrap().iter().find(|row| row["vdi"] == FORMULA_VDI).unwrap();
    assert_eq!(
        vdi["unique_bytes"],
        without_day["vms"].as_array().unwrap().iter().find(|row| row["vm"] == "db-01").unwrap()["unique_bytes"]
    );
    let records = remove(&|row| row["vdi"] == FORMULA_VDI);
    let without_vdi = report(&path, &[]);
    assert_eq!(reclaimable(&without_vdi) - reclaimable(&without_day) + records, number(vdi, "unique_bytes"));
}

#[test]
fn exports_weigh_what_the_planned_vhd_would() {
    let fixture = nine_days();
    let out = report(&fixture.path(), &["--vdi", "web-01-root"]);
    let exports = &out["exports"][0];
    let snapshots = exports["snapshots"].as_array().unwrap();
    assert_eq!((out["exports"].as_array().unwrap().len(), snapshots.len()), (1, 9));
    assert_eq!((out["snapshots"].as_array().unwrap().len(), out["vdis"].as_array().unwrap().len()), (9, 1));

    // A full export is as long as the VHD that is restored.
    let target = fixture.folder.path().join("full.vhd");
    let id = snapshots[8]["snapshot"].as_str().unwrap();
    run(cairn(&fixture.path()).args(["restore", id, "--format", "vhd", "-o"]).arg(&target));
    assert_eq!(snapshots[8]["full_vhd_bytes"], lengths(&target));
    assert_eq!(snapshots[0]["delta_vhd_bytes"], Value::Null);
    // 150 pages in a row lie in one or two blocks.
    let delta = number(&snapshots[8], "delta_vhd_bytes");
    assert!(delta > 2 << 20 && delta < 5 << 20, "{delta}");
    let lvm = &exports["lvm"];
    assert_eq!(number(lvm, "two_snapshots_allocated_bytes"), 3 * number(lvm, "base_bytes"));
    assert!(number(&snapshots[8], "stored_bytes") < delta);
}

#[test]
fn the_forecast_follows_growth_and_capacity() {
    let fixture = nine_days();
    let path = fixture.path();
    let out = report(&path, &["--capacity", "1GiB"]);
    let forecast = &out["forecast"];
    assert_eq!((number(forecast, "capacity_bytes"), &forecast["capacity_from"]), (1 << 30, &"given".into()));
    let growth = number(forecast, "growth_bytes_per_day");
    // Some 150 pages a day, half of each compressible.
    assert!(growth > 150 * PAGE_LEN as u64 / 2 && growth < 150 * PAGE_LEN as u64 * 2, "{growth}");
    let left = ((1 << 30) - number(forecast, "used_bytes")) / growth;
    assert!(number(forecast, "days_left").abs_diff(left) <= 1);
    assert_eq!(number(&report(&path, &["--capacity", "1MiB"])["forecast"], "days_left"), 0);
    let own = report(&path, &[]);
    assert_eq!(own["forecast"]["capacity_from"], "file_system");
    assert!(number(&own["forecast"], "capacity_bytes") > number(&own["forecast"], "used_bytes"));
}

/// The rows of a CSV as Python's own reader has them: an object a row.
fn read_csv(text: &[u8]) -> Value {
    const READER: &str = "import csv,io,json,sys\n\
        text=io.TextIOWrapper(sys.stdin.buffer,encoding='utf-8',newline='')\n\
        print(json.dumps(list(csv.DictReader(text,strict=True))))";
    let mut child =
        Command::new("python3").args(["-c", READER]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_csv_is_read_by_python_and_says_what_the_json_says() {
    let fixture = nine_days();
    let path = fixture.path();
    let out = report(&path, &[]);
    for (by, rows) in [("vm", "vms"), ("vdi", "vdis"), ("snapshot", "snapshots"), ("day", "days")] {
        let text = run(cairn(&path).args(["report", "--csv", "--by", by])).stdout;
        let read = read_csv(&text);
        let (read, rows) = (read.as_array().unwrap(), out[rows].as_array().unwrap());
        assert_eq!(read.len(), rows.len());
        for (read, row) in read.iter().zip(rows) {
            for (name, cell) in read.as_object().unwrap() {
                let cell = cell.as_str().unwrap();
                match (&name[..], &row[name]) {
                    ("by", _) => assert_eq!(cell, by),
                    ("vdi", Value::String(vdi)) if vdi == FORMULA_VDI => assert_eq!(cell, format!("'{FORMULA_VDI}")),
                    (_, Value::Null) => assert_eq!(cell, "", "{name}"),
                    (_, Value::String(text)) => assert_eq!(cell, text, "{name}"),
                    (_, number) => assert_eq!(cell.parse::<f64>().unwrap(), number.as_f64().unwrap(), "{name}"),
                }
            }
        }
    }
    let whole = read_csv(&run(cairn(&path).args(["report", "--csv", "--by", "repository"])).stdout);
    assert_eq!(whole[0]["stored_bytes"], number(&out["repository"], "stored_bytes").to_string());
}

#[test]
fn an_empty_repository_has_a_report_too() {
    let fixture = RepoFixture::small(Suite::Aes256Gcm);
    let out = report(&fixture.path(), &[]);
    let objects: u64 = ["keys", "config"].iter().map(|name| lengths(&fixture.path().join(name))).sum();
    assert_eq!(number(&out["repository"], "total_bytes"), objects);
    assert_eq!((&out["repository"]["total"], &out["forecast"]["days_left"]), (&0.0.into(), &Value::Null));
    let page: PathBuf = fixture.folder.path().join("page.html");
    run(cairn(&fixture.path()).args(["report", "--html"]).arg(&page));
    assert!(std::fs::read_to_string(&page).unwrap().ends_with("</html>\n"));
    for by in ["repository", "vm", "vdi", "snapshot", "day"] {
        run(cairn(&fixture.path()).args(["report", "--by", by]));
    }
    run(cairn(&fixture.path()).args(["report", "--exports"]));
}

#[test]
fn damage_is_told_and_ends_with_its_code() {
    let fixture = nine_days();
    let path = fixture.path();
    let whole = report(&path, &[]);
    let session = fixture.session();
    let pack = session.repository.store.list_packs().unwrap()[0];
    drop(session);
    let file = path.join(repo_core::store::ObjectName::Pack(pack.id).path());
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() - 50;
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    // The lists are the same, so the result that was kept is given; it goes when anything changes.
    std::fs::remove_file(path.join("index/usage")).unwrap();
    let output = cairn(&path).args(["report", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let out: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(number(&out["repository"], "unreadable_bytes"), pack.len);
    assert_eq!(number(&out["repository"], "total_bytes"), number(&whole["repository"], "total_bytes"));
    assert!(!path.join("index/usage").exists(), "a result with damage in it is not kept");
}

#[test]
fn a_snapshot_of_several_disks_is_told_apart_by_disk() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let session = fixture.session();
    let (one, two) = (ModelDisk::scattered(6 << 20, 2, 1), ModelDisk::scattered(9 << 20, 5, 2));
    let both = vec![("one", one.source(Delivery::Ascending)), ("two", two.source(Delivery::Ascending))];
    fixture.backup(&session, both).unwrap();
    let mut changed = two.clone();
    changed.pages.extend((0..100).map(|page| (page, 77_000 + page as u32)));
    fixture.backup(&session, vec![("two", changed.source(Delivery::Ascending))]).unwrap();
    drop(session);
    let out = report(&fixture.path(), &[]);
    let snapshot = &out["snapshots"][0];
    assert_eq!((&snapshot["vdi"], number(snapshot, "snapshots")), (&"one, two".into(), 1));
    for field in ["stored_bytes", "new_bytes", "allocated_bytes", "virtual_bytes"] {
        assert_eq!(sum(&snapshot["disks"], field), number(snapshot, field), "{field}");
    }
    let record = lengths(&fixture.path().join("snapshots").join(snapshot["snapshot"].as_str().unwrap()));
    // The two disks share nothing, so what the snapshot alone needs is what each of them alone needs, and the record.
    assert_eq!(sum(&snapshot["disks"], "unique_bytes") + record, number(snapshot, "unique_bytes"));
    // The record stays as long as the other disk does.
    assert_eq!(out["vdis"][0]["unique_bytes"], snapshot["disks"][0]["unique_bytes"]);
    let of_two = report(&fixture.path(), &["--vdi", "two"]);
    assert_eq!(of_two["snapshots"][0]["unique_bytes"], snapshot["disks"][1]["unique_bytes"]);
    assert_eq!((&of_two["repository"], &of_two["vms"][0]["unique_bytes"]), (&out["repository"], &Value::Null));
}

#[test]
fn what_old_records_do_not_say_is_not_made_up() {
    let mut fixture = RepoFixture::small(Suite::None);
    let session = fixture.session();
    for day in 1..=3 {
        let made = fixture.backup_model(&session, "a", &ModelDisk::scattered(3 << 20, 5, day)).snapshot;
        let mut old = made.snapshot.clone();
        old.disks.iter_mut().for_each(|disk| disk.reading = DiskReading::default());
        snapshot::commit(&session.repository, &session.index, old).unwrap();
        fixture.forget(&session, made.id);
    }
    drop(session);
    let path = fixture.path();
    let out = json(cairn(&path).env_remove("CAIRN_PASSPHRASE").arg("report"));
    let repository = &out["repository"];
    assert_eq!((&repository["exported_bytes"], &repository["changed_bytes"]), (&Value::Null, &Value::Null));
    let disks = out["snapshots"].as_array().unwrap().iter().map(|row| row["disks"].as_array().unwrap().len());
    assert_eq!(number(repository, "unknown_disks"), disks.sum::<usize>() as u64);
    let objects: u64 = ["packs", "snapshots", "keys", "config"].iter().map(|name| lengths(&path.join(name))).sum();
    assert_eq!(number(repository, "total_bytes"), objects);
}

#[test]
fn forgetting_by_a_policy_frees_what_the_report_said() {
    let fixture = nine_days();
    let path = fixture.path();
    let before = report(&path, &[]);
    let policy = before["policies"].as_array().unwrap().iter().find(|row| row["policy"] == "7 daily").unwrap();
    let forgotten = json(cairn(&path).args(["forget", "--keep-daily", "7"]));
    assert_eq!(forgotten["forgotten"], policy["forgotten"]);
    let after = report(&path, &[]);
    let records = number(&before["repository"], "record_bytes") - number(&after["repository"], "record_bytes");
    assert_eq!(number(&after["repository"], "reclaimable_bytes") + records, number(policy, "freed_bytes"));
}
