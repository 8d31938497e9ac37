//! Any set of changed grains, told in each of the three forms, touches the same blocks as the set itself.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const GRAIN_LEN: u64 = 64 * 1024;

/// Runs of consecutive numbers: first and how many.
fn runs(grains: &BTreeSet<u64>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for grain in grains {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == *grain => *count += 1,
            _ => runs.push((*grain, 1)),
        }
    }
    runs
}

fn as_cbt(grains: &BTreeSet<u64>, virtual_size: u64) -> String {
    let mut bytes = vec![0_u8; usize::try_from(cbt::bitmap_len(virtual_size)).unwrap()];
    for grain in grains {
        bytes[usize::try_from(grain / 8).unwrap()] |= 0x80 >> (grain % 8);
    }
    data_encoding::BASE64.encode(&bytes)
}

fn as_thin_delta(grains: &BTreeSet<u64>) -> String {
    let kinds = ["different", "left_only", "right_only"].into_iter().cycle();
    let elements = runs(grains)
        .into_iter()
        .zip(kinds)
        .map(|((first, count), kind)| format!("    <{kind} begin=\"{first}\" length=\"{count}\"/>\n"));
    thin_delta_of(&elements.collect::<String>())
}

fn as_rbd_diff(grains: &BTreeSet<u64>, virtual_size: u64) -> String {
    let objects = runs(grains).into_iter().rev().map(|(first, count)| {
        let (start, end) = (first * GRAIN_LEN, ((first + count) * GRAIN_LEN).min(virtual_size));
        format!("{{\"offset\":{start},\"length\":{},\"exists\":\"{}\"}}", end - start, count % 2 == 0)
    });
    format!("[{}]", objects.collect::<Vec<_>>().join(","))
}

proptest! {
    #[test]
    fn the_three_forms_of_one_set_touch_the_same_blocks(
        virtual_size in 1..40 * BLOCK_LEN as u64,
        base_size in 0..40 * BLOCK_LEN as u64,
        grains in prop::collection::btree_set(0..40 * 32_u64, 0..60),
    ) {
        let grains: BTreeSet<_> = grains.into_iter().filter(|grain| grain * GRAIN_LEN < virtual_size).collect();
        let new = base_size / BLOCK_LEN as u64..virtual_size.div_ceil(BLOCK_LEN as u64);
        let new = new.filter(|_| virtual_size > base_size);
        let expected: BTreeSet<u64> = grains.iter().map(|grain| grain / 32).chain(new).collect();
        for text in [as_cbt(&grains, virtual_size), as_thin_delta(&grains), as_rbd_diff(&grains, virtual_size)] {
            let list = ChangedList::parse(text.as_bytes()).unwrap();
            let touched: BTreeSet<_> =
                list.blocks(virtual_size, base_size).unwrap().iter().map(|index| index.0).collect();
            prop_assert_eq!(&touched, &expected, "{}", text);
        }
    }

    #[test]
    fn any_bytes_are_a_list_or_refused(
        start in prop::sample::select(vec!["", "[", "[{\"offset\":", "<superblock ", "<superblock data_block_size=\"9\">"]),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let text = [start.as_bytes(), &rest].concat();
        if let Ok(list) = ChangedList::parse(&text) {
            drop(list.blocks(1 << 30, 1 << 29));
        }
    }
}
