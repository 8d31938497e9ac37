//! `thin_delta` itself. It must be there (apt `thin-provisioning-tools`): a missing one fails. It works on a file of
//! metadata, which `thin_restore` makes: no device mapper is needed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use super::*;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}, which this test needs: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Where each data block of a volume stands in the pool.
type Volume = BTreeMap<u64, u64>;

fn metadata_of(volumes: &[&Volume], data_block_sectors: u64, folder: &Path) -> String {
    let mut xml = format!(
        "<superblock uuid=\"\" time=\"2\" transaction=\"3\" data_block_size=\"{data_block_sectors}\" \
         nr_data_blocks=\"4096\">\n"
    );
    for (volume, id) in volumes.iter().zip(1..) {
        let mapped = volume.len();
        writeln!(
            xml,
            "<device dev_id=\"{id}\" mapped_blocks=\"{mapped}\" transaction=\"0\" creation_time=\"0\" snap_time=\"1\">"
        )
        .unwrap();
        for (origin, data) in *volume {
            writeln!(xml, "<single_mapping origin_block=\"{origin}\" data_block=\"{data}\" time=\"0\"/>").unwrap();
        }
        xml.push_str("</device>\n");
    }
    xml.push_str("</superblock>\n");
    let (source, metadata) = (folder.join("pool.xml"), folder.join("metadata"));
    std::fs::write(&source, xml).unwrap();
    std::fs::File::create(&metadata).unwrap().set_len(4 << 20).unwrap();
    let metadata = metadata.to_str().expect("temporary paths are ASCII").to_owned();
    run("thin_restore", &["-i", source.to_str().expect("temporary paths are ASCII"), "-o", &metadata]);
    metadata
}

#[test]
fn what_thin_delta_prints_is_read() {
    let folder = tempfile::tempdir().unwrap();
    for data_block_sectors in [128, 1024, 4096, 8192] {
        let data_block_len = data_block_sectors * SECTOR_LEN;
        let mut old: Volume = (0..300).filter(|at| at % 50 < 30).map(|at| (at, at)).collect();
        let mut new = old.clone();
        new.insert(7, 1000); // written to
        new.extend((31..35).map(|at| (at, 1100 + at))); // mapped anew
        new.extend((200..210).map(|at| (at, 1200 + at)));
        new.remove(&100); // discarded
        old.insert(340, 340);
        let disk_len = 400 * data_block_len;
        let changed = (0..400).filter(|at| old.get(at) != new.get(at));
        let mut expected: Vec<_> = changed
            .flat_map(|at| {
                at * data_block_len / BLOCK_LEN as u64..((at + 1) * data_block_len).div_ceil(BLOCK_LEN as u64)
            })
            .collect();
        expected.dedup();
        let metadata = metadata_of(&[&old, &new], data_block_sectors, folder.path());
        for more in [&[][..], &["--verbose"]] {
            let text = run("thin_delta", &[more, &["--thin1", "1", "--thin2", "2", &metadata]].concat());
            assert_eq!(blocks(&text, disk_len), expected, "{text}");
            let text = run("thin_delta", &[more, &["--thin1", "2", "--thin2", "2", &metadata]].concat());
            assert_eq!(blocks(&text, disk_len), [0; 0], "{text}");
        }
    }
}

const SECTOR_LEN: u64 = crate::units::SECTOR_LEN as u64;
