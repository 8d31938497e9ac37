//! Each kind of list, and what is refused of it.

use super::*;

const MIB: u64 = 1 << 20;

#[test]
fn a_bitmap_counts_64_kib_from_the_highest_bit() {
    // 10 MiB: 160 bits, 20 bytes, 4 of them for each block.
    let bitmap = |set: &[usize]| {
        let mut bytes = vec![0_u8; 20];
        set.iter().for_each(|bit| bytes[bit / 8] |= 0x80 >> (bit % 8));
        data_encoding::BASE64.encode(&bytes)
    };
    assert_eq!(blocks(&bitmap(&[]), 10 * MIB), [0; 0]);
    assert_eq!(blocks(&bitmap(&[0]), 10 * MIB), [0]);
    assert_eq!(blocks(&bitmap(&[31, 32, 159]), 10 * MIB), [0, 1, 4]);
    assert_eq!(blocks("gAAAAAAAAAAAAAAAAAAAAAAAAAE=\n", 10 * MIB), [0, 4]);
    let broken_up: String = bitmap(&[64]).chars().flat_map(|digit| [digit, '\r', '\n', ' ']).collect();
    assert_eq!(blocks(&format!("\n {broken_up}"), 10 * MIB), [2]);
    assert_eq!(ChangedList::parse(b"gA==").unwrap().kind(), ListKind::Cbt);
}

#[test]
fn a_bitmap_of_another_length_is_refused_unless_the_disk_grew() {
    let list = ChangedList::parse(b"AAAA").unwrap();
    let blocks = |size: u64, base: u64| -> Result<Vec<u64>> {
        list.blocks(size, base).map(|blocks| blocks.iter().map(|at| at.0).collect())
    };
    let three_bytes = 3 * 512 * 1024;
    assert_eq!(blocks(three_bytes, three_bytes).unwrap(), Vec::<u64>::new());
    assert_eq!(blocks(three_bytes - 512 * 1024 + 1, MIB).unwrap(), [0]);
    let longer = blocks(2 * 512 * 1024, 2 * 512 * 1024).unwrap_err();
    assert!(longer.to_string().contains("has 3 bytes, and a disk of 1048576 bytes takes 2: it is of another"));
    let shorter = blocks(three_bytes + 1, three_bytes + 1).unwrap_err();
    assert!(shorter.to_string().contains("it is cut short, or of another disk"));
    // It reaches to the end of the base: the rest is new.
    assert_eq!(blocks(7 * MIB, three_bytes).unwrap(), [0, 1, 2, 3]);
    assert!(blocks(7 * MIB, three_bytes + 1).is_err());
}

#[test]
fn what_lies_past_the_base_is_changed_whatever_the_list_says() {
    let full_length = data_encoding::BASE64.encode(&[0; 20]);
    for text in [full_length.as_str(), "[]", &thin_delta_of("")] {
        let list = ChangedList::parse(text.as_bytes()).unwrap();
        let indices = |base: u64| list.blocks(10 * MIB, base).unwrap().iter().map(|at| at.0).collect::<Vec<_>>();
        assert_eq!(indices(10 * MIB), [0; 0], "{text}");
        assert_eq!(indices(8 * MIB), [4], "{text}");
        assert_eq!(indices(5 * MIB), [2, 3, 4], "{text}");
        assert_eq!(indices(0), [0, 1, 2, 3, 4], "{text}");
    }
}

#[test]
fn text_that_only_begins_like_base64_is_refused() {
    refused("AAA", "begins like base64 and is none");
    refused("AAAAA", "begins like base64 and is none");
    refused("AA==AA==", "begins like base64 and is none");
    refused("The host is away", "begins like base64 and is none");
    refused("", "the changed list is empty");
    refused(" \n\t", "the changed list is empty");
    refused("{\"a\": 1}\u{1b}[2J", "it begins with \"{\"a\": 1}?[2J\"");
}

#[test]
fn everything_but_same_is_changed() {
    let list = thin_delta_of(
        "    <same begin=\"0\" length=\"32\"/>\n    <different begin=\"32\" length=\"1\"/>\n    <same begin=\"33\" \
         length=\"63\"/>\n    <left_only begin=\"127\" length=\"2\"/>\n    <right_only begin=\"192\" length=\"1\"/>\n",
    );
    assert_eq!(blocks(&list, 20 * MIB), [1, 3, 4, 6]);
    let verbose = thin_delta_of(
        "<same><range begin=\"0\" data_begin=\"9\" length=\"32\"/></same><different><range begin=\"32\" \
         left_data_begin=\"1\" right_data_begin=\"2\" length=\"1\"/><range begin=\"40\" left_data_begin=\"1\" \
         right_data_begin=\"2\" length=\"80\"/></different><right_only><range begin=\"192\" data_begin=\"7\" \
         length=\"1\"/></right_only>",
    );
    assert_eq!(blocks(&verbose, 20 * MIB), [1, 2, 3, 6]);
    assert_eq!(ChangedList::parse(verbose.as_bytes()).unwrap().kind(), ListKind::ThinDelta);
}

#[test]
fn the_last_data_block_may_reach_past_the_disk_and_no_other() {
    let list = thin_delta_of("<different begin=\"31\" length=\"1\"/>");
    let list = ChangedList::parse(list.as_bytes()).unwrap();
    assert_eq!(list.blocks(2 * MIB - 5, 2 * MIB - 5).unwrap().count(), 1);
    assert!(list.blocks(2 * MIB - 64 * 1024, 2 * MIB - 64 * 1024).is_err());
    // The disk shrank: what was past its new end is gone, and no block of it.
    assert_eq!(list.blocks(MIB, 2 * MIB).unwrap().count(), 0);
}

#[test]
fn xml_that_thin_delta_does_not_print_is_refused() {
    let cut = thin_delta_of("<different begin=\"1\" length=\"1\"/>");
    for len in 1..cut.trim_end().len() {
        assert!(ChangedList::parse(&cut.as_bytes()[..len]).is_err(), "cut after {len} bytes");
    }
    refused(&cut[..cut.len() - 15], "cut short");
    for (body, words) in [
        ("<different begin=\"1\" length=\"0\"/>", "0 data blocks at 1 are no range"),
        ("<different begin=\"1\"/>", "the attribute length is missing"),
        ("<different begin=\"-1\" length=\"1\"/>", "the attribute begin is \"-1\" and no number"),
        ("<different begin=\"&#49;\" length=\"1\"/>", "and no number"),
        ("<different begin=\"\" length=\"1\"/>", "and no number"),
        ("<different begin=\"1\" begin=\"2\" length=\"1\"/>", "malformed or given twice"),
        ("<different begin=\"18446744073709551615\" length=\"1\"/>", "are no range"),
        ("<different begin=\"18446744073709551616\" length=\"1\"/>", "and no number"),
        ("<different begin=\"281474976710655\" length=\"281474976710655\"/>", "are no range"),
        ("<same begin=\"5\" length=\"2\"/><different begin=\"6\" length=\"1\"/>", "overlaps the one before it"),
        ("<same begin=\"5\" length=\"2\"/><same begin=\"1\" length=\"1\"/>", "overlaps the one before it"),
        ("<moved begin=\"1\" length=\"1\"/>", "the element \"moved\" is not expected"),
        ("<range begin=\"1\" length=\"1\"/>", "the element \"range\" is not expected"),
        ("<same></different>", "no well-formed XML"),
        ("words", "does not belong there"),
        ("<![CDATA[x]]>", "does not belong there"),
        ("&amp;", "does not belong there"),
    ] {
        refused(&thin_delta_of(body), words);
    }
    refused(&format!("{cut}{cut}"), "the element \"superblock\" is not expected");
    refused(&cut.replace("</diff>", "</diff><diff></diff>"), "the element \"diff\" is not expected");
    refused(&cut.replace("\"128\"", "\"0\""), "no thin pool has data blocks of 0 sectors");
    refused(&cut.replace("\"128\"", "\"2097153\""), "no thin pool has data blocks");
    refused(&format!("<!DOCTYPE superblock [<!ENTITY a \"b\">]>{cut}"), "does not belong there");
    refused("<html><body>502</body></html>", "the element \"html\" is not expected");
    let blocks = blocks(&format!("<?xml version=\"1.0\"?>\n<!-- made by hand -->{cut}"), 4 * MIB);
    assert_eq!(blocks, [0]);
}

#[test]
fn discarded_extents_of_rbd_are_changes_too() {
    // As Ceph's rbd prints it: `exists` is text there.
    let list = "[{\"offset\":0,\"length\":4194304,\"exists\":\"true\"},{\"offset\":8388608,\"length\":512,\
                \"exists\":\"false\"}]\n";
    assert_eq!(blocks(list, 20 * MIB), [0, 1, 4]);
    assert_eq!(blocks("[ {\"exists\": true, \"offset\": 2097151, \"length\": 2} ]", 20 * MIB), [0, 1]);
    assert_eq!(blocks("[]", 20 * MIB), [0; 0]);
    assert_eq!(ChangedList::parse(b"[]").unwrap().kind(), ListKind::RbdDiff);
    // Order and overlaps do not matter to a set.
    let list = "[{\"offset\":6291456,\"length\":9,\"exists\":true},{\"offset\":0,\"length\":2097153,\"exists\":true},\
                {\"offset\":5,\"length\":1,\"exists\":false}]";
    assert_eq!(blocks(list, 20 * MIB), [0, 1, 3]);
}

#[test]
fn json_that_rbd_does_not_print_is_refused() {
    for text in [
        "[",
        "[{\"offset\":0,\"length\":1,\"exists\":\"true\"}",
        "[{\"offset\":0,\"length\":1,\"exists\":\"true\"}]]",
        "[{\"offset\":-1,\"length\":1,\"exists\":\"true\"}]",
        "[{\"offset\":0.5,\"length\":1,\"exists\":\"true\"}]",
        "[{\"offset\":0,\"length\":1}]",
        "[{\"offset\":0,\"length\":1,\"exists\":\"maybe\"}]",
        "[{\"offset\":18446744073709551616,\"length\":1,\"exists\":true}]",
    ] {
        refused(text, "is not what rbd diff --format json prints: line 1, column ");
    }
    refused("[{\"offset\":7,\"length\":0,\"exists\":true}]", "extent 0: an extent of 0 bytes at byte 7 is none");
    refused("[{\"offset\":18446744073709551615,\"length\":1,\"exists\":true}]", "extent 0: an extent of 1 bytes");
    let far = ChangedList::parse(b"[{\"offset\":67108864,\"length\":1,\"exists\":true}]").unwrap();
    let error = far.blocks(20 * MIB, 20 * MIB).unwrap_err();
    assert!(error.to_string().contains("(rbd-diff) reaches to byte 67108865, past the end of the disk"), "{error}");
}

#[test]
fn many_extents_over_all_of_the_largest_disk_take_no_longer_than_one() {
    // Each block marked for each extent would be 10^12 steps.
    let one = format!("{{\"offset\":0,\"length\":{},\"exists\":true}}", 1_u64 << 46);
    let list = ChangedList::parse(format!("[{}]", vec![one; 50_000].join(",")).as_bytes()).unwrap();
    assert_eq!(list.blocks(1 << 46, 1 << 46).unwrap().count(), 1 << 25);
}
