//! A VHD's footer, dynamic header and BAT by themselves.
//!
//! Input: control (1; bit 0 repairs the footer, 1 the header, 2 cuts the footer to 511 bytes), footer (512), header
//! (1024), BAT (the rest).
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo_core::disk::vhd::bat::Bat;
use repo_core::disk::vhd::dynamic_header::{DYNAMIC_HEADER_LEN, DynamicHeader, VHD_BLOCK_LEN_MAX};
use repo_core::disk::vhd::footer::{DiskType, FOOTER_LEN, Footer, SHORT_FOOTER_LEN};
use repo_core::disk::vhd::layout::{BAT_ENTRIES_MAX, Layout};
use repo_core::units::VIRTUAL_SIZE_MAX;
use repo_fuzz::image::{FOOTER_CHECKSUM, HEADER_CHECKSUM, Vhd, repair};
use repo_fuzz::{check_error, has, write_seeds};

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

fn accepts(input: &[u8]) -> bool {
    let Some((control, rest)) = input.split_first() else { return false };
    let (footer, rest) = rest.split_at(rest.len().min(FOOTER_LEN));
    let (header, table) = rest.split_at(rest.len().min(DYNAMIC_HEADER_LEN));
    let footer = check_footer(*control, footer);
    let header = check_header(*control, header);
    let layout = footer.zip(header).and_then(|(footer, header)| check_layout(&footer, &header));
    check_table(table, layout)
}

fn check_footer(control: u8, bytes: &[u8]) -> Option<Footer> {
    let mut bytes = bytes.to_vec();
    if has(control, 2) && bytes.len() == FOOTER_LEN {
        bytes[SHORT_FOOTER_LEN] = 0;
    }
    if has(control, 0) {
        repair(&mut bytes, FOOTER_LEN, FOOTER_CHECKSUM);
    }
    if has(control, 2) {
        bytes.truncate(SHORT_FOOTER_LEN);
    }
    let footer = Footer::decode(&bytes).inspect_err(check_error).ok()?;
    assert!(footer.encode().starts_with(&bytes), "a footer has one form only");
    assert!(Footer::has_cookie(&bytes));
    assert!((1..=VIRTUAL_SIZE_MAX).contains(&footer.current_size()));
    let _ = (footer.disk_type(), footer.data_offset());
    assert_eq!(footer.difference(&footer), None);
    Some(footer)
}

fn check_header(control: u8, bytes: &[u8]) -> Option<DynamicHeader> {
    let mut bytes = bytes.to_vec();
    if has(control, 1) {
        repair(&mut bytes, DYNAMIC_HEADER_LEN, HEADER_CHECKSUM);
    }
    let header = DynamicHeader::decode(&bytes).inspect_err(check_error).ok()?;
    assert_eq!(header.encode(), bytes, "a header has one form only");
    assert!(header.block_size().is_power_of_two() && header.block_size() <= VHD_BLOCK_LEN_MAX);
    Some(header)
}

fn check_layout(footer: &Footer, header: &DynamicHeader) -> Option<Layout> {
    let layout = Layout::of(footer, header).inspect_err(check_error).ok()?;
    assert!(layout.used_entries <= BAT_ENTRIES_MAX as usize);
    assert!(layout.used_entries as u64 * layout.block_size as u64 >= layout.virtual_size);
    assert_eq!(layout.differencing, footer.disk_type() == DiskType::Differencing);
    assert_eq!(layout.ids.map(|ids| ids.own), footer.has_lasting_id().then(|| footer.unique_id()));
    assert_eq!(layout.ids.and_then(|ids| ids.parent), layout.ids.and(header.parent_unique_id()));
    assert!(layout.table_end >= layout.table_offset + layout.used_entries as u64 * 4);
    Some(layout)
}

fn check_table(bytes: &[u8], layout: Option<Layout>) -> bool {
    let Ok(bat) = Bat::decode(bytes).inspect_err(check_error) else { return false };
    assert!(bat.encode().starts_with(bytes));
    let Some(layout) = layout else { return false };
    let mut accepted = false;
    for end in [None, Some(bytes.len() as u64 * 512)] {
        let Ok(order) = bat.stored_order(&layout, end).inspect_err(check_error) else { continue };
        accepted = true;
        let mut free = layout.table_end;
        for stored in order {
            assert!(stored.offset() >= free, "blocks overlap");
            assert_eq!(bat.get(stored.index as usize), Some(stored.sector));
            free = stored.offset() + layout.stored_len();
        }
        assert!(end.is_none_or(|end| free <= end.max(layout.table_end)), "a block is behind the end");
    }
    accepted
}

fn seeds() -> Vec<Vec<u8>> {
    let images = [Vhd::dynamic(5000, 512, [8, 2, 5]), Vhd::differencing(5000, 512, [8, 2, 5], 0x80)];
    let with_control = |image: &Vhd| [0, 3, 7].map(|control| [&[control], &image.bytes[..1536 + 40]].concat());
    images.iter().flat_map(with_control).collect()
}
