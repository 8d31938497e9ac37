//! Any bytes as a changed list: refused, or blocks of the disk.
//!
//! Input: control (1; bit 0 the disk grew, bit 1 it shrank, bits 4 to 7 its size), the list (the rest).
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo_core::disk::changed::{ChangedList, ListKind};
use repo_core::units::{BLOCK_LEN, block_count};
use repo_fuzz::{check_error, has, write_seeds};

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

fn accepts(input: &[u8]) -> bool {
    let Some((control, text)) = input.split_first() else { return false };
    let list = match ChangedList::parse(text) {
        Ok(list) => list,
        Err(error) => {
            check_error(&error);
            return false;
        }
    };
    // From less than a block to 2 TiB, never a multiple of anything.
    let size = (1_u64 << (11 + 2 * (control >> 4))) + 77;
    let (virtual_size, base_size) = match (has(*control, 0), has(*control, 1)) {
        (true, _) => (size, size / 3),
        (_, true) => (size / 3, size),
        _ => (size, size),
    };
    let blocks = match list.blocks(virtual_size, base_size) {
        Ok(blocks) => blocks,
        Err(error) => {
            check_error(&error);
            return false;
        }
    };
    assert_eq!(blocks.block_count(), block_count(virtual_size));
    assert!(blocks.iter().all(|index| index.offset_bytes() < virtual_size));
    if virtual_size > base_size {
        let new = block_count(virtual_size) - base_size / BLOCK_LEN as u64;
        assert!(blocks.count() >= new, "what is past the base is new");
    }
    if list.kind() == ListKind::Cbt {
        assert!(text.len() as u64 >= base_size.min(virtual_size) / (512 * 1024), "a short bitmap was taken");
    }
    true
}

fn seeds() -> Vec<Vec<u8>> {
    let thin_delta = "<superblock uuid=\"\" time=\"2\" data_block_size=\"128\" nr_data_blocks=\"9\">\n  <diff left=\"1\" \
                      right=\"2\">\n    <same begin=\"0\" length=\"8\"/>\n    <different begin=\"8\" length=\"4\"/>\n    \
                      <left_only begin=\"40\" length=\"4\"/>\n  </diff>\n</superblock>\n";
    let verbose = "<superblock data_block_size=\"1024\"><diff left=\"1\" right=\"2\"><different><range begin=\"8\" \
                   left_data_begin=\"8\" right_data_begin=\"100\" length=\"4\"/></different><right_only><range \
                   begin=\"100\" data_begin=\"200\" length=\"4\"/></right_only></diff></superblock>";
    let rbd = "[{\"offset\":0,\"length\":4194304,\"exists\":\"true\"},{\"offset\":8388608,\"length\":512,\
               \"exists\":\"false\"}]";
    let texts = ["gAE=", "AAAAAA==", "gAAA AAAA\nAAAB\n", thin_delta, verbose, rbd, "[]"];
    let mut seeds = Vec::new();
    for text in texts {
        for control in [0x30, 0x60, 0x61, 0x72, 0xF0] {
            seeds.push([&[control], text.as_bytes()].concat());
        }
    }
    seeds
}
