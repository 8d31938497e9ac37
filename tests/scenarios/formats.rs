//! Disks restored as qcow2 and VHDX, read by qemu, by dissect.hypervisor and by Xen Orchestra's own package.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use repo_core::seal::Suite;
use repo_tests::cli::{cairn, fails, json, run};
use repo_tests::fixture::RepoFixture;
use repo_tests::model::ModelDisk;

const FORMATS: [&str; 2] = ["qcow2", "vhdx"];

/// A repository with one disk, `disk`, and its raw image.
struct Restores {
    fixture: RepoFixture,
    raw: PathBuf,
}

impl Restores {
    fn of(disk: &ModelDisk) -> Self {
        let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
        let session = fixture.session();
        fixture.backup_model(&session, "disk", disk);
        drop(session);
        let raw = fixture.folder.path().join("disk.raw");
        disk.write_raw(&raw);
        // Both formats have whole sectors.
        let file = std::fs::File::options().write(true).open(&raw).unwrap();
        file.set_len(disk.virtual_size.next_multiple_of(512)).unwrap();
        Self { fixture, raw }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.fixture.folder.path().join(name)
    }

    fn restore(&self, format: &str, output: &Path) -> Command {
        let mut command = cairn(&self.fixture.path());
        command.args(["restore", "disk", "--format", format, "-o"]).arg(output);
        command
    }

    /// Restores to a file and through a pipe.
    fn images(&self, format: &str) -> [PathBuf; 2] {
        let [file, piped] = ["file", "piped"].map(|name| self.path(&format!("{name}.{format}")));
        let report = json(&mut self.restore(format, &file));
        assert_eq!(report["format"], format);
        let output = std::fs::File::create(&piped).unwrap();
        run(self.restore(format, Path::new("-")).stdout(output));
        [file, piped]
    }

    /// Demands that a reader which writes a raw image finds the disk.
    fn reads(&self, reader: impl FnOnce(&Path)) {
        let target = self.path("read.raw");
        reader(&target);
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert_eq!(size(&target), size(&self.raw));
        // Unlike cmp, it knows holes.
        run(Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(&target).arg(&self.raw));
        std::fs::remove_file(&target).unwrap();
    }

    fn judge(&self, format: &str, image: &Path) {
        let check = run(Command::new("qemu-img").args(["check", "-f", format]).arg(image));
        assert!(String::from_utf8_lossy(&check.stdout).contains("No errors were found"));
        self.reads(|target| {
            let arguments = ["convert", "-f", format, "-O", "raw"];
            run(Command::new("qemu-img").args(arguments).arg(image).arg(target));
        });
        self.reads(|target| {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/oracle/read_image.py");
            let python = installed("CAIRN_VENV", "venv").join("bin/python");
            run(Command::new(python).args([script, format]).arg(image).arg(target));
        });
    }

    /// Pipes a restore into Xen Orchestra's reader of streams.
    fn judge_stream_by_xen_orchestra(&self) {
        self.reads(|target| {
            let mut restore =
                self.restore("qcow2", Path::new("-")).arg("--quiet").stdout(Stdio::piped()).spawn().unwrap();
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/oracle/qcow2_stream.mjs");
            let mut reader = Command::new("node");
            reader.arg(script).arg(installed("CAIRN_NODE", "node")).arg(target);
            run(reader.stdin(restore.stdout.take().unwrap()));
            assert!(restore.wait().unwrap().success());
        });
    }
}

/// Where `make oracles` installs.
fn installed(variable: &str, folder: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/cairn").join(folder),
        PathBuf::from,
    )
}

#[test]
fn every_reader_finds_the_disk_in_both_formats() {
    let mut disk = ModelDisk::scattered(50 << 20, 3, 1);
    // Blocks of nothing, then some at the very end, which is no whole sector.
    disk.pages.retain(|page, _| !(1_000..8_000).contains(page) || page % 512 == 7);
    disk.virtual_size -= 1000;
    let restores = Restores::of(&disk);
    for format in FORMATS {
        for image in restores.images(format) {
            restores.judge(format, &image);
        }
    }
    restores.judge_stream_by_xen_orchestra();
    // A qcow2 has no ids: the same disk is the same file, whichever way it was written.
    run(Command::new("cmp").arg(restores.path("file.qcow2")).arg(restores.path("piped.qcow2")));
    let stderr = run(&mut restores.restore("vhdx", &restores.path("again.vhdx"))).stderr;
    let text = String::from_utf8_lossy(&stderr);
    assert!(
        text.contains("a vhdx has whole sectors of 512 bytes: its disk has 52428288 bytes, not 52427800"),
        "{text}"
    );
}

#[test]
fn a_sparse_disk_of_many_tables_stays_sparse() {
    // Ten L2 tables of qcow2, two chunks of VHDX: the pages stand around their borders.
    let border = (512 << 20) / 4096;
    let pages = [0, border - 1, border, 3 * border + 5, 8 * border - 1, 8 * border, 9 * border + 77];
    let pages = pages.into_iter().zip(1..).collect();
    let restores = Restores::of(&ModelDisk { virtual_size: (5 << 30) - 4096, pages });
    for format in FORMATS {
        let [file, piped] = restores.images(format);
        restores.judge(format, &file);
        let metadata = std::fs::metadata(&file).unwrap();
        assert_eq!(metadata.len(), std::fs::metadata(&piped).unwrap().len());
        // Seven pages, and tables; the stream has every byte of seven blocks.
        assert!(metadata.len() > 14 << 20 && metadata.blocks() * 512 < 2 << 20, "{format}: {}", metadata.blocks());
        std::fs::remove_file(&piped).unwrap();
    }
    restores.judge_stream_by_xen_orchestra();
}

#[test]
fn disks_and_outputs_that_a_format_cannot_have_are_refused() {
    let disk = ModelDisk { virtual_size: (64 << 40) + 512, pages: [(1 << 34, 1)].into() };
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let session = fixture.session();
    fixture.backup_model(&session, "disk", &disk);
    drop(session);
    let restores = Restores { raw: fixture.folder.path().join("none"), fixture };
    let target = restores.path("large");
    let (code, text) = fails(&mut restores.restore("vhdx", &target));
    assert!(code == 1 && text.contains("a VHDX holds at most 64 TiB (70368744177664 bytes)"), "{text}");
    assert!(!target.exists());
    run(&mut restores.restore("qcow2", &target));
    let info = run(Command::new("qemu-img").args(["info", "--output=json", "-f", "qcow2"]).arg(&target)).stdout;
    let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
    assert_eq!(info["virtual-size"], disk.virtual_size);
}
