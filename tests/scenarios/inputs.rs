//! Inputs other than VHD and raw: qcow2 images, and changed lists.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use repo_core::seal::Suite;
use repo_tests::cli::{cairn, fails, json, run};
use repo_tests::fixture::RepoFixture;
use repo_tests::model::ModelDisk;

struct Inputs {
    fixture: RepoFixture,
    disk: ModelDisk,
}

impl Inputs {
    /// A repository, and beside it a raw disk and qcow2 images of it: `disk.raw`, `disk.qcow2`, `over.qcow2`.
    fn new() -> Self {
        let inputs = Self { fixture: RepoFixture::small(Suite::Aes256Gcm), disk: ModelDisk::scattered(7 << 20, 9, 1) };
        inputs.disk.write_raw(&inputs.path("disk.raw"));
        inputs.qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"]);
        inputs.qemu_img(&["create", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "over.qcow2"]);
        inputs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.fixture.folder.path().join(name)
    }

    fn qemu_img(&self, arguments: &[&str]) {
        run(Command::new("qemu-img").args(arguments).current_dir(self.fixture.folder.path()));
    }

    /// `cairn`, among the images.
    fn cairn(&self, arguments: &[&str]) -> Command {
        let mut command = cairn(&self.fixture.path());
        command.args(arguments).current_dir(self.fixture.folder.path());
        command
    }

    fn restores(&self, vdi: &str) {
        run(&mut self.cairn(&["restore", vdi, "--format", "raw", "--force", "-o", "restored.raw"]));
        assert!(std::fs::read(self.path("restored.raw")).unwrap() == self.disk.to_bytes());
    }

    fn snapshot_count(&self) -> usize {
        json(&mut self.cairn(&["snapshots"])).as_array().unwrap().len()
    }
}

#[test]
fn a_qcow2_image_is_stored_as_the_disk_it_holds() {
    let inputs = Inputs::new();
    let raw = json(&mut inputs.cairn(&["import", "disk.raw", "--vdi", "disk"]));
    let qcow2 = json(&mut inputs.cairn(&["import", "disk.qcow2", "--vdi", "disk"]));
    assert_eq!((&qcow2["source_format"], &qcow2["virtual_size"]), (&"qcow2".into(), &raw["virtual_size"]));
    assert_eq!((&qcow2["new_bytes"], &qcow2["unchanged_blocks"]), (&0.into(), &raw["blocks"]));
    inputs.restores("disk");
}

#[test]
fn a_backing_file_is_read_only_when_that_is_allowed() {
    let inputs = Inputs::new();
    let (code, text) = fails(&mut inputs.cairn(&["import", "over.qcow2", "--vdi", "over"]));
    assert!(code == 1 && text.contains("the image has a backing file, \"disk.qcow2\""), "{code}: {text}");
    assert_eq!(inputs.snapshot_count(), 0);
    run(&mut inputs.cairn(&["import", "over.qcow2", "--vdi", "over", "--allow-backing-file"]));
    inputs.restores("over");
}

#[test]
fn a_qcow2_image_on_a_pipe_is_refused() {
    let inputs = Inputs::new();
    let mut cat = Command::new("cat").arg(inputs.path("disk.qcow2")).stdout(Stdio::piped()).spawn().unwrap();
    let (code, text) =
        fails(inputs.cairn(&["import", "-", "--vdi", "disk"]).stdin(cat.stdout.take().expect("it is piped")));
    assert!(code == 1 && text.contains("write it to a file first"), "{code}: {text}");
    // The reader went away: how that ended is no matter.
    drop(cat.wait());
    assert_eq!(inputs.snapshot_count(), 0);
}

#[test]
fn changed_lists_that_cannot_be_used_are_refused() {
    let inputs = Inputs::new();
    std::fs::write(inputs.path("nothing.json"), "[]").unwrap();
    std::fs::write(inputs.path("error.txt"), "{\"error\": \"no such pool\"}").unwrap();
    let far = "[{\"offset\":1099511627776,\"length\":512,\"exists\":\"true\"}]";
    std::fs::write(inputs.path("other-disk.json"), far).unwrap();
    let import = |list: &str, input: &str| inputs.cairn(&["import", input, "--vdi", "disk", "--changed", list]);
    let (code, text) = fails(&mut import("nothing.json", "disk.raw"));
    assert!(code == 1 && text.contains("VDI disk has no snapshot to be the base"), "{code}: {text}");
    run(&mut inputs.cairn(&["import", "disk.raw", "--vdi", "disk"]));
    for (list, input, words) in [
        ("missing", "disk.raw", "cannot use the changed list missing"),
        ("error.txt", "disk.raw", "neither the base64 of xe vdi-list-changed-blocks"),
        ("other-disk.json", "disk.raw", "it is of another disk"),
        ("nothing.json", "disk.qcow2", "goes with a raw disk or a fixed VHD"),
    ] {
        let (code, text) = fails(&mut import(list, input));
        assert!(code == 1 && text.contains(words), "{code}: {text}");
    }
    let (code, text) = fails(import("nothing.json", "-").stdin(Stdio::piped()));
    let words = "the changed list needs a source that can be read anywhere: a file or a block device";
    assert!(code == 1 && text.contains(words), "{code}: {text}");
    assert_eq!(inputs.snapshot_count(), 1);
}
