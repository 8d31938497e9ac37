//! Packs from fuzz inputs: laid out and sealed as docs/format.md §7 says, from public parts of the core alone.

use std::ops::Range;

use repo_core::keys::{Role, derive};
use repo_core::pack::{HEADER_LEN, TRAILER_LEN};
use repo_core::seal::{Aead, NONCE_LEN, NONCE_ZERO, Suite, TAG_LEN};

use crate::{config, keys};

/// Length of a frame's record in a directory.
const FRAME_LEN: usize = 16;
/// Length of an entry's record in a directory.
const ENTRY_LEN: usize = 36;
const COUNTS_LEN: usize = 8;
/// The most zeros that may follow the entries.
const PADDING_MAX: usize = 4095;

/// Makes the trailer describe a pack of this length whose directory ends where the trailer begins.
pub fn repair_trailer(pack: &mut [u8]) {
    let len = pack.len();
    let Some(trailer_at) = len.checked_sub(TRAILER_LEN) else { return };
    let trailer = &mut pack[trailer_at..];
    let directory_at = le_u64(&trailer[..8]).min(trailer_at as u64);
    let directory_len = u32::try_from(trailer_at as u64 - directory_at).unwrap_or(u32::MAX);
    trailer[..8].copy_from_slice(&directory_at.to_le_bytes());
    trailer[8..12].copy_from_slice(&directory_len.to_le_bytes());
    trailer[16..24].copy_from_slice(&(len as u64).to_le_bytes());
    trailer[24..].copy_from_slice(b"CAIRNEND");
}

/// Makes the numbers of the directory add up where they can: as many frames as the trailer says, plaintext lengths from
/// the entries, the last frame up to the directory.
pub fn repair_directory(pack: &mut [u8]) {
    let Some(range) = directory(pack) else { return };
    let frame_count = le_u32(&pack[pack.len() - TRAILER_LEN + 12..][..4]);
    let frames_end = range.start as u64;
    let plain = &mut pack[range];
    repair_directory_plain(plain, frame_count, HEADER_LEN as u64, frames_end);
}

/// The same for a directory's plaintext alone, of frames that stand from `start` to `end`.
pub fn repair_directory_plain(plain: &mut [u8], frame_count: u32, start: u64, end: u64) {
    let frames_len = frame_count as usize * FRAME_LEN;
    let Some(entries_len) = plain.len().checked_sub(COUNTS_LEN + frames_len) else { return };
    // What is not entries is padding: zeros, and not too many.
    let entries_min = entries_len.saturating_sub(PADDING_MAX).div_ceil(ENTRY_LEN);
    let entries_max = (entries_len / ENTRY_LEN).max(entries_min);
    let entry_count = (le_u32(&plain[4..8]) as usize).clamp(entries_min, entries_max);
    let padding_at = (COUNTS_LEN + frames_len + entry_count * ENTRY_LEN).min(plain.len());
    plain[padding_at..].fill(0);
    let entry_count = u32::try_from(entry_count).unwrap_or(u32::MAX);
    plain[..4].copy_from_slice(&frame_count.to_le_bytes());
    plain[4..8].copy_from_slice(&entry_count.to_le_bytes());
    let (frames, entries) = plain[COUNTS_LEN..].split_at_mut(frames_len);
    let mut lens = entries.chunks_exact(ENTRY_LEN).map(|entry| le_u32(&entry[32..]));
    let (mut offset, mut entries_left) = (start, entry_count);
    for (frame, frames_left) in frames.chunks_exact_mut(FRAME_LEN).zip((0..frame_count).rev()) {
        let wanted = if frames_left == 0 { entries_left } else { le_u32(&frame[8..12]).min(entries_left) };
        entries_left -= wanted;
        let plain_len = lens.by_ref().take(wanted as usize).fold(0_u32, u32::wrapping_add);
        if frames_left == 0 {
            let rest = u32::try_from(end.saturating_sub(offset)).unwrap_or(u32::MAX);
            frame[..4].copy_from_slice(&rest.to_le_bytes());
        }
        frame[4..8].copy_from_slice(&plain_len.to_le_bytes());
        frame[8..12].copy_from_slice(&wanted.to_le_bytes());
        frame[13..].fill(0);
        offset += u64::from(le_u32(&frame[..4]));
    }
}

/// Seals every frame that the directory describes, its plaintext being what stands there.
pub fn repair_frames(pack: &mut [u8]) {
    let Some(range) = directory(pack) else { return };
    let Some(content) = pack.get(16) else { return };
    let role = if *content == 2 { Role::Structure } else { Role::Data };
    let Some(sealer) = sealer(pack, "cairn v1 frame key", role) else { return };
    let count = le_u32(&pack[range.start..][..4]) as usize;
    let records: Vec<[u8; FRAME_LEN]> =
        pack[range.clone()][COUNTS_LEN..].as_chunks().0.iter().take(count).copied().collect();
    let mut offset = HEADER_LEN;
    for (record, number) in records.into_iter().zip(0_u32..) {
        let sealed_len = le_u32(&record[..4]) as usize;
        let Some(end) = offset.checked_add(sealed_len).filter(|end| *end <= range.start) else { return };
        let mut nonce = [0; NONCE_LEN];
        nonce[..4].copy_from_slice(&number.to_le_bytes());
        let mut context = [config().id.as_bytes(), &pack[..HEADER_LEN]].concat();
        context.extend_from_slice(&number.to_le_bytes());
        context.push(record[12]);
        context.extend_from_slice(&record[4..8]);
        context.extend_from_slice(&record[..4]);
        seal(&*sealer, &nonce, &context, &mut pack[offset..end]);
        offset = end;
    }
}

/// Seals the directory.
pub fn repair_seal(pack: &mut [u8]) {
    let Some(range) = directory(pack) else { return };
    let Some(sealer) = sealer(pack, "cairn v1 directory key", Role::Structure) else { return };
    let trailer = &pack[pack.len() - TRAILER_LEN..];
    let context = [config().id.as_bytes(), &pack[..HEADER_LEN], trailer].concat();
    seal(&*sealer, &NONCE_ZERO, &context, &mut pack[range.start..range.end + TAG_LEN]);
}

/// Where the plaintext of the directory stands, when its counts at least are there.
fn directory(pack: &[u8]) -> Option<Range<usize>> {
    let trailer_at = pack.len().checked_sub(TRAILER_LEN)?;
    let start = usize::try_from(le_u64(&pack[trailer_at..][..8])).ok()?;
    let end = trailer_at.checked_sub(TAG_LEN)?;
    (start >= HEADER_LEN && start.checked_add(COUNTS_LEN)? <= end).then_some(start..end)
}

fn sealer(pack: &[u8], context: &str, role: Role) -> Option<Box<dyn Aead>> {
    let salt = pack.get(32..HEADER_LEN)?;
    let keys = keys();
    let role = keys.get(role).expect("all roles are there");
    Some(Suite::None.sealer(&derive(context, &[&role[..], salt])))
}

/// Seals all but the last 16 of `bytes`, which become the tag.
fn seal(sealer: &dyn Aead, nonce: &[u8; NONCE_LEN], context: &[u8], bytes: &mut [u8]) {
    let Some((body, tag)) = bytes.split_last_chunk_mut::<TAG_LEN>() else { return };
    *tag = sealer.seal_in_place(nonce, context, body);
}

fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("4 bytes"))
}

fn le_u64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
}
