//! Several `cairn` processes on one repository at once.

use std::process::Stdio;

use repo_core::seal::Suite;
use repo_tests::cli::{cairn, json, run};
use repo_tests::fixture::RepoFixture;
use repo_tests::model::ModelDisk;

#[test]
fn imports_restores_and_checks_run_side_by_side() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let base = ModelDisk::scattered(16 << 20, 2, 1);
    fixture.backup_model(&fixture.session(), "base", &base);
    let disks: Vec<_> = (0..4).map(|number| ModelDisk::scattered(16 << 20, 2, 10 + number % 2)).collect();
    let mut children = Vec::new();
    for (number, disk) in disks.iter().enumerate() {
        let image = fixture.folder.path().join(format!("{number}.raw"));
        disk.write_raw(&image);
        let vdi = format!("disk-{number}");
        let mut import = cairn(&fixture.path());
        import.arg("import").arg(&image).args(["--vdi", &vdi, "--json"]);
        let mut restore = cairn(&fixture.path());
        let target = fixture.folder.path().join(format!("{number}.restored"));
        restore.args(["restore", "base", "--format", "raw", "-o"]).arg(&target);
        let mut check = cairn(&fixture.path());
        check.args(["check", "--read-data"]);
        for mut command in [import, restore, check] {
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            children.push((format!("{command:?}"), command.spawn().unwrap()));
        }
    }
    for (command, child) in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for (number, disk) in disks.iter().enumerate() {
        let target = fixture.folder.path().join("restored");
        let vdi = format!("disk-{number}");
        run(cairn(&fixture.path()).args(["restore", &vdi, "--format", "raw", "--force", "-o"]).arg(&target));
        assert!(std::fs::read(&target).unwrap() == disk.to_bytes());
        let restored = std::fs::read(fixture.folder.path().join(format!("{number}.restored"))).unwrap();
        assert!(restored == base.to_bytes());
    }
    assert_eq!(json(cairn(&fixture.path()).arg("snapshots")).as_array().unwrap().len(), 5);
    assert!(fixture.check_all().is_clean());
}
