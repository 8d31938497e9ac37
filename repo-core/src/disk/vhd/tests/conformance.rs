//! What `vhd-util check` rejects, as a checker of bytes that shares no code with the writer.

/// What kind of VHD is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// Dynamic, in the portable profile.
    Dynamic,
    /// Dynamic, by creator `tap`, with a batmap.
    WithBatmap,
    /// Over the parent with this id, whose file name may be known.
    Differencing { parent_id: [u8; 16], parent_name: Option<&'a str> },
}

/// Asserts that `bytes` are a VHD of `size` bytes that passes every rule of `vhd-util check`, made not later than `now` (in
/// seconds since 2000), and written in our profile.
pub(super) fn check(bytes: &[u8], size: u64, now: u32, kind: Kind<'_>) {
    let end = bytes.len() - 512;
    let footer = &bytes[..512];
    assert_eq!(footer, &bytes[end..], "primary footer and copy");
    check_footer(footer, size, now);
    assert_eq!(u64_at(footer, 16), 512, "data offset");
    assert_eq!(u32_at(footer, 60), if matches!(kind, Kind::Differencing { .. }) { 4 } else { 3 }, "disk type");
    check_creator(footer, kind == Kind::WithBatmap);
    let header = &bytes[512..1536];
    check_header(header, kind);
    let first_block = match kind {
        Kind::Dynamic => table_end(header),
        Kind::WithBatmap => {
            let batmap_end = check_batmap(bytes, table_end(header));
            // The first boundary of 4 KiB that leaves room for a bitmap before it.
            (batmap_end + 512).next_multiple_of(4096) - 512
        }
        Kind::Differencing { parent_id, parent_name } => check_parent(bytes, now, parent_id, parent_name),
    };
    check_table(bytes, size, first_block, kind);
}

/// Asserts that `bytes` are a fixed VHD of `size` bytes.
pub(super) fn check_fixed(bytes: &[u8], size: u64, now: u32) {
    let (content, footer) = bytes.split_at(bytes.len() - 512);
    assert_eq!(content.len() as u64, size, "content");
    check_footer(footer, size, now);
    assert_eq!(u64_at(footer, 16), u64::MAX, "data offset");
    assert_eq!(u32_at(footer, 60), 2, "disk type");
    check_creator(footer, false);
}

fn check_footer(footer: &[u8], size: u64, now: u32) {
    assert_eq!(&footer[..8], b"conectix");
    assert_eq!(u32_at(footer, 64), sum(footer, 64), "checksum");
    assert_eq!(u32_at(footer, 8), 2, "reserved feature bit set, no other");
    assert_eq!(u32_at(footer, 12), 0x0001_0000, "version");
    assert!(u32_at(footer, 24) <= now, "timestamp in the future");
    assert_eq!(u64_at(footer, 40), size, "original size");
    assert_eq!(u64_at(footer, 48), size, "current size");
    assert_eq!(size % 512, 0, "whole sectors");
    let chs = u64::from(u32_at(footer, 56) >> 16) * u64::from(footer[58]) * u64::from(footer[59]);
    assert!(chs * 512 <= size, "geometry larger than the disk");
    assert_ne!(&footer[68..84], &[0; 16], "unique id");
    assert!(footer[84..].iter().all(|byte| *byte == 0), "saved state, hidden, reserved");
}

fn check_creator(footer: &[u8], has_batmap: bool) {
    if has_batmap {
        assert_eq!(&footer[28..40], b"tap\0\0\x01\0\x03\0\0\0\0", "creator, its version, host");
    } else {
        assert_eq!(&footer[28..32], b"win ", "creator");
        assert_eq!(&footer[36..40], b"Wi2k", "creator host");
    }
}

fn check_header(header: &[u8], kind: Kind<'_>) {
    assert_eq!(&header[..8], b"cxsparse");
    assert_eq!(u64_at(header, 8), u64::MAX, "data offset");
    assert_eq!(u32_at(header, 24), 0x0001_0000, "version");
    assert_eq!(u32_at(header, 32), 2 << 20, "block size");
    assert_eq!(u32_at(header, 36), sum(header, 36), "checksum");
    let table_offset = u64_at(header, 16);
    if matches!(kind, Kind::Differencing { .. }) {
        assert_eq!(table_offset, 2048, "table offset as in XAPI's streams");
        assert!(header[768..].iter().all(|byte| *byte == 0), "reserved");
    } else {
        assert_eq!(table_offset, 1536, "table offset");
        assert!(header[40..].iter().all(|byte| *byte == 0), "parent fields, locators, reserved");
    }
}

/// Checks what a differencing VHD says of its parent, and gives where its blocks begin.
fn check_parent(bytes: &[u8], now: u32, parent_id: [u8; 16], parent_name: Option<&str>) -> usize {
    let header = &bytes[512..1536];
    assert_eq!(header[40..56], parent_id, "parent unique id");
    assert!(u32_at(header, 56) <= now, "parent timestamp in the future");
    assert_eq!(u32_at(header, 60), 0, "reserved");
    let units: Vec<u16> = (64..576).step_by(2).map(|at| u16::from_be_bytes([header[at], header[at + 1]])).collect();
    let name = String::from_utf16(&units).unwrap();
    assert_eq!(name.trim_end_matches('\0'), parent_name.unwrap_or_default(), "parent name");
    let locators: Vec<_> = header[576..768].chunks(24).collect();
    let table_end = table_end(header);
    let Some(parent_name) = parent_name else {
        assert!(header[576..768].iter().all(|byte| *byte == 0), "no locators");
        assert!(bytes[1536..2048].iter().all(|byte| *byte == 0), "an empty sector before the table");
        return table_end;
    };
    let windows: Vec<u8> = format!(".\\{parent_name}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let url = format!("file://./{parent_name}").into_bytes();
    for (locator, code, content, at) in
        [(locators[0], b"MacX", url, 1536_usize), (locators[1], b"W2ru", windows, table_end)]
    {
        assert_eq!(&locator[..4], code);
        assert_eq!(u32_at(locator, 4), 512, "data space");
        assert_eq!(u32_at(locator, 8) as usize, content.len(), "data length");
        assert_eq!(u32_at(locator, 12), 0, "reserved");
        assert_eq!(u64_at(locator, 16), at as u64, "data offset");
        let (data, rest) = bytes[at..at + 512].split_at(content.len());
        assert_eq!(data, content);
        assert!(rest.iter().all(|byte| *byte == 0));
    }
    assert!(locators[2..].iter().all(|locator| locator.iter().all(|byte| *byte == 0)), "unused locators");
    table_end + 512
}

/// Checks the batmap at `at` against the table, and gives where it ends.
fn check_batmap(bytes: &[u8], at: usize) -> usize {
    let header = &bytes[at..at + 512];
    assert_eq!(&header[..8], b"tdbatmap");
    assert_eq!(u64_at(header, 8), at as u64 + 512, "map offset");
    let len = u32_at(header, 16) as usize * 512;
    assert_eq!(u32_at(header, 20), 0x0001_0002, "version");
    let map = &bytes[at + 512..at + 512 + len];
    assert_eq!(u32_at(header, 24), !map.iter().map(|byte| u32::from(*byte)).sum::<u32>(), "checksum");
    assert!(header[28..].iter().all(|byte| *byte == 0), "marker, key hash, reserved");
    let entries = u32_at(bytes, 512 + 28) as usize;
    assert_eq!(len, entries.div_ceil(8).next_multiple_of(512));
    for index in 0..len * 8 {
        let is_full = map[index / 8] << (index % 8) & 0x80 != 0;
        // Bitmaps are checked to be all ones, so every stored block is full.
        let is_stored = index < entries && u32_at(bytes, 1536 + 4 * index) != u32::MAX;
        assert_eq!(is_full, is_stored, "block {index}");
    }
    at + 512 + len
}

fn check_table(bytes: &[u8], size: u64, first_block: usize, kind: Kind<'_>) {
    let header = &bytes[512..1536];
    let (table, entries) = (u64_at(header, 16) as usize, u32_at(header, 28) as usize);
    assert_eq!(entries as u64, size.div_ceil(2 << 20), "exactly the entries that are needed");
    let padding = &bytes[table + entries * 4..table_end(header)];
    assert!(padding.iter().all(|byte| *byte == 0xFF), "padding of the table");
    let gap = if kind == Kind::WithBatmap { 4096 - 512 } else { 0 };
    let (mut next, mut end) = (first_block, first_block);
    for entry in (0..entries).map(|index| u32_at(bytes, table + 4 * index)).filter(|entry| *entry != u32::MAX) {
        assert_eq!(entry as usize * 512, next, "ascending, without overlap");
        assert!(bytes[next..next + 512].iter().all(|byte| *byte == 0xFF), "sector bitmap");
        end = next + 512 + (2 << 20);
        next = end + gap;
    }
    assert_eq!(end, bytes.len() - 512, "nothing between the last block and the footer");
}

/// Where the padded table ends.
fn table_end(header: &[u8]) -> usize {
    (u64_at(header, 16) as usize + u32_at(header, 28) as usize * 4).next_multiple_of(512)
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
