//! Differencing VHDs on the command line: over the base that is named, refused without, and judged by libvhdi.

use std::path::Path;
use std::process::Command;

use repo_core::seal::Suite;
use repo_core::units::PAGE_LEN;
use repo_tests::cli::{cairn, fails, json, run};
use repo_tests::fixture::RepoFixture;
use repo_tests::model::{ModelDisk, mix};
use repo_tests::vhd::{Vhd, Writer, id};

/// A command line in a repository with a disk imported from a VHD of tapdisk's with the id `id(1)`.
struct Commands {
    fixture: RepoFixture,
    disk: Vec<u8>,
}

impl Commands {
    fn new() -> Self {
        let disk = ModelDisk::scattered((7 << 20) + 512 * 8, 3, 1).to_bytes();
        Self { fixture: RepoFixture::ordinary(Suite::Aes256Gcm), disk }
    }

    fn write(&self, name: &str, vhd: &Vhd) -> std::path::PathBuf {
        let path = self.fixture.folder.path().join(name);
        std::fs::write(&path, vhd.bytes()).unwrap();
        path
    }

    fn full(&self) -> Vhd {
        let mut vhd = Vhd::new(Writer::Tapdisk, self.disk.len() as u64, id(1), None);
        vhd.store(&self.disk, |_| true);
        vhd
    }

    /// A delta whose parent is `parent` and that zeros a few pages, and its disk.
    fn delta(&self, writer: Writer, parent: u64) -> (Vhd, Vec<u8>) {
        let mut disk = self.disk.clone();
        let pages = [1, 2, 600, 1700];
        for page in pages {
            disk[page * PAGE_LEN..(page + 1) * PAGE_LEN].fill(if page == 600 { 0 } else { 0x11 });
        }
        let mut vhd = Vhd::new(writer, disk.len() as u64, id(2), Some(id(parent)));
        vhd.store(&disk, |sector| pages.contains(&(sector / 8)));
        (vhd, disk)
    }

    fn import(&self, file: &Path) -> Command {
        let mut command = cairn(&self.fixture.path());
        command.arg("import").arg(file).args(["--vdi", "disk"]);
        command
    }

    /// The newest state of the disk.
    fn restored(&self) -> Vec<u8> {
        run(cairn(&self.fixture.path()).args(["restore", "disk", "--format", "raw", "-o", "-"])).stdout
    }
}

#[test]
fn a_delta_is_imported_over_the_base_that_is_named() {
    let commands = Commands::new();
    let full = json(&mut commands.import(&commands.write("full.vhd", &commands.full())));
    assert_eq!(full["delta"], false);
    let base = full["snapshot"].as_str().unwrap();
    for (writer, name) in [(Writer::Tapdisk, base), (Writer::Tapdisk, &base[..8]), (Writer::Xapi, base)] {
        let (delta, disk) = commands.delta(writer, 1);
        let imported = json(commands.import(&commands.write("delta.vhd", &delta)).args(["--base", name]));
        assert_eq!((&imported["delta"], &imported["parent"]), (&true.into(), &full["snapshot"]));
        assert_eq!(
            (&imported["source_format"], &imported["read_bytes"]),
            (&"vhd-differencing".into(), &(6 << 20).into())
        );
        assert!(imported["stored_bytes"].as_u64().unwrap() < 64 << 10);
        assert!(commands.restored() == disk);
    }
    let text =
        run(commands.import(&commands.write("delta.vhd", &commands.delta(Writer::Xapi, 5).0)).args(["--base", base]));
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("6.00 MiB in blocks over snapshot"), "{text}");
}

#[test]
fn latest_is_the_newest_of_the_vdi_and_a_pipe_will_do() {
    let commands = Commands::new();
    run(&mut commands.import(&commands.write("full.vhd", &commands.full())));
    let other = commands.write("other.raw", &Vhd::new(Writer::Xapi, 512, id(9), None));
    run(cairn(&commands.fixture.path()).arg("import").arg(&other).args(["--vdi", "other"]));
    let (delta, disk) = commands.delta(Writer::Xapi, 40);
    let input = std::fs::File::open(commands.write("delta.vhd", &delta)).unwrap();
    run(commands.import(Path::new("-")).args(["--base", "latest"]).stdin(input));
    assert!(commands.restored() == disk);
}

#[test]
fn a_delta_without_its_base_is_refused_with_what_there_is() {
    let commands = Commands::new();
    let delta = commands.write("delta.vhd", &commands.delta(Writer::Tapdisk, 1).0);
    let refused = |arguments: &[&str], words: &[&str]| {
        let (code, text) = fails(commands.import(&delta).args(arguments));
        assert_eq!(code, 1);
        for words in words {
            assert!(text.contains(words), "{text} does not say: {words}");
        }
    };
    let without = "the input is a delta (vhd-differencing): it holds only what changed against a base, and no --base";
    refused(&[], &[without, "the repository has no snapshot of any VDI: import it in full first"]);
    refused(&["--base", "latest"], &["VDI disk has no snapshot to be the base", "import it in full first"]);
    let full = json(&mut commands.import(&commands.write("full.vhd", &commands.full())));
    let short = &full["snapshot"].as_str().unwrap()[..12];
    refused(&[], &[without, "give --base with the snapshot", short]);
    refused(&["--base", "0123456789"], &["no snapshot is named", short]);

    // What proves the base wrong: another parent, a larger disk.
    let wrong = commands.write("wrong.vhd", &commands.delta(Writer::Tapdisk, 3).0);
    let (code, text) = fails(commands.import(&wrong).args(["--base", "latest"]));
    assert!(
        code == 1 && text.contains("is not the base of this delta: the delta was made against the image"),
        "{text}"
    );
    let mut shrunk = commands.delta(Writer::Xapi, 1).0;
    shrunk.size -= 512;
    let (code, text) = fails(commands.import(&commands.write("wrong.vhd", &shrunk)).args(["--base", "latest"]));
    assert!(code == 1 && text.contains("and disks do not shrink; name another base"), "{text}");
    let shown = json(cairn(&commands.fixture.path()).arg("snapshots"));
    assert_eq!(shown.as_array().unwrap().len(), 1, "only the full import is there");
}

/// libvhdi knows differencing disks; it misreads bitmap bytes that are neither 0 nor 0xFF, so pages it is.
#[test]
fn a_chain_flattened_by_libvhdi_is_what_is_restored() {
    let commands = Commands::new();
    let mut files = vec![commands.write("0.vhd", &commands.full())];
    run(&mut commands.import(&files[0]));
    let mut disk = commands.disk.clone();
    for number in 2..5 {
        let pages = |page: usize| mix(page as u64 * number).is_multiple_of(7);
        for page in (0..disk.len() / PAGE_LEN).filter(|page| pages(*page)) {
            let content = ModelDisk::page_content(number as u32 * 1000 + page as u32);
            disk[page * PAGE_LEN..(page + 1) * PAGE_LEN].copy_from_slice(&content);
        }
        let mut delta = Vhd::new(Writer::Tapdisk, disk.len() as u64, id(number), Some(id(number - 1)));
        delta.store(&disk, |sector| pages(sector / 8));
        files.push(commands.write(&format!("{number}.vhd"), &delta));
        run(commands.import(files.last().unwrap()).args(["--base", "latest"]));
    }
    let flat = commands.fixture.folder.path().join("flat.raw");
    let script = "import pyvhdi, sys\n\
                  chain = []\n\
                  for path in sys.argv[2:]:\n    \
                      disk = pyvhdi.file()\n    \
                      disk.open(path)\n    \
                      disk.set_parent(chain[-1]) if chain else None\n    \
                      chain.append(disk)\n\
                  open(sys.argv[1], 'wb').write(disk.read_buffer_at_offset(disk.get_media_size(), 0))";
    run(Command::new("/usr/bin/python3").args(["-c", script]).arg(&flat).args(&files));
    assert!(std::fs::read(&flat).unwrap() == disk, "the fixture is what it should be");
    assert!(commands.restored() == disk);
}
