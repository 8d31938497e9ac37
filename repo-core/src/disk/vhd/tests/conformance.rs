//! What `vhd-util check` rejects, as a checker of bytes that shares no code with the writer.

/// Asserts that `bytes` are a dynamic VHD of `size` bytes without parent that passes every rule of `vhd-util check`,
/// made not later than `now` (in seconds since 2000), and written in our profile.
pub(super) fn check(bytes: &[u8], size: u64, now: u32) {
    let end = bytes.len() - 512;
    let footer = &bytes[..512];
    assert_eq!(footer, &bytes[end..], "primary footer and copy");
    check_footer(footer, size, now);
    check_header(&bytes[512..1536]);
    check_table(bytes, size, end);
}

fn check_footer(footer: &[u8], size: u64, now: u32) {
    assert_eq!(&footer[..8], b"conectix");
    assert_eq!(u32_at(footer, 64), sum(footer, 64), "checksum");
    assert_eq!(u32_at(footer, 8), 2, "reserved feature bit set, no other");
    assert_eq!(u32_at(footer, 12), 0x0001_0000, "version");
    assert_eq!(u64_at(footer, 16), 512, "data offset");
    assert!(u32_at(footer, 24) <= now, "timestamp in the future");
    assert_eq!(&footer[28..32], b"win ", "creator");
    assert_eq!(&footer[36..40], b"Wi2k", "creator host");
    assert_eq!(u64_at(footer, 40), size, "original size");
    assert_eq!(u64_at(footer, 48), size, "current size");
    assert_eq!(size % 512, 0, "whole sectors");
    let chs = u64::from(u32_at(footer, 56) >> 16) * u64::from(footer[58]) * u64::from(footer[59]);
    assert!(chs * 512 <= size, "geometry larger than the disk");
    assert_eq!(u32_at(footer, 60), 3, "disk type");
    assert_ne!(&footer[68..84], &[0; 16], "unique id");
    assert!(footer[84..].iter().all(|byte| *byte == 0), "saved state, hidden, reserved");
}

fn check_header(header: &[u8]) {
    assert_eq!(&header[..8], b"cxsparse");
    assert_eq!(u64_at(header, 8), u64::MAX, "data offset");
    assert_eq!(u64_at(header, 16), 1536, "table offset");
    assert_eq!(u32_at(header, 24), 0x0001_0000, "version");
    assert_eq!(u32_at(header, 32), 2 << 20, "block size");
    assert_eq!(u32_at(header, 36), sum(header, 36), "checksum");
    assert!(header[40..].iter().all(|byte| *byte == 0), "parent fields, locators, reserved");
}

fn check_table(bytes: &[u8], size: u64, end: usize) {
    let entries = u32_at(bytes, 512 + 28) as usize;
    assert_eq!(entries as u64, size.div_ceil(2 << 20), "exactly the entries that are needed");
    let table_end = 1536 + entries * 4;
    let mut next = table_end.next_multiple_of(512);
    assert!(bytes[table_end..next].iter().all(|byte| *byte == 0xFF), "padding of the table");
    for entry in (0..entries).map(|index| u32_at(bytes, 1536 + 4 * index)).filter(|entry| *entry != u32::MAX) {
        assert_eq!(entry as usize * 512, next, "ascending, without gap or overlap");
        assert!(bytes[next..next + 512].iter().all(|byte| *byte == 0xFF), "sector bitmap");
        next += 512 + (2 << 20);
    }
    assert_eq!(next, end, "nothing between the last block and the footer");
}

fn sum(record: &[u8], field: usize) -> u32 {
    let bytes = record.iter().enumerate().filter(|(at, _)| !(field..field + 4).contains(at));
    !bytes.map(|(_, byte)| u32::from(*byte)).sum::<u32>()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}
