//! A pack's own table of its frames and entries, in memory and as stored.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Error, Result};
use crate::frame::{Codec, PLAIN_LEN_MAX};
use crate::id::EntryId;
use crate::pack::{FRAMES_MAX, FrameRecord};
use crate::seal::TAG_LEN;
use crate::units::is_zero;

/// The most entries in one frame.
pub const ENTRIES_PER_FRAME_MAX: usize = 1 << 16;

/// What a directory's length is rounded up to, in bytes.
const PADDED_TO: usize = 4096;

/// A chunk or a manifest node in its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub id: EntryId,
    /// Its length in bytes.
    pub len: u32,
}

/// A frame in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// What the directory says of it.
    pub record: FrameRecord,
    /// Where it begins in the pack, in bytes.
    pub offset: u64,
    /// The number of its first entry in the directory.
    first_entry: usize,
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    frames: Vec<Frame>,
    entries: Vec<Entry>,
    /// Where the next frame begins, in bytes.
    end: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct StoredCounts {
    frames: U32,
    entries: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct StoredFrame {
    sealed_len: U32,
    plain_len: U32,
    entry_count: U32,
    codec: u8,
    zero: [u8; 3],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct StoredEntry {
    id: [u8; 32],
    len: U32,
}

impl Directory {
    /// An empty directory of a pack whose first frame begins at `start` bytes.
    pub fn new(start: u64) -> Self {
        Self { frames: Vec::new(), entries: Vec::new(), end: start }
    }

    /// The frames, in order.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// All entries, in order of the frames.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entries of one frame, in order.
    pub fn entries_of(&self, frame: &Frame) -> &[Entry] {
        &self.entries[frame.first_entry..frame.first_entry + frame.record.entry_count as usize]
    }

    /// Where the frames end, in bytes.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Adds a frame at the end.
    pub fn push(&mut self, record: FrameRecord, entries: &[Entry]) {
        debug_assert_eq!(record.entry_count as usize, entries.len());
        self.frames.push(Frame { record, offset: self.end, first_entry: self.entries.len() });
        self.entries.extend_from_slice(entries);
        self.end += u64::from(record.sealed_len);
    }

    /// The plaintext as stored.
    pub fn encode(&self) -> Vec<u8> {
        let count = |count: usize| U32::new(u32::try_from(count).expect("frames and entries are bounded"));
        let counts = StoredCounts { frames: count(self.frames.len()), entries: count(self.entries.len()) };
        let mut bytes = counts.as_bytes().to_vec();
        for Frame { record, .. } in &self.frames {
            let stored = StoredFrame {
                sealed_len: record.sealed_len.into(),
                plain_len: record.plain_len.into(),
                entry_count: record.entry_count.into(),
                codec: record.codec.number(),
                zero: [0; 3],
            };
            bytes.extend_from_slice(stored.as_bytes());
        }
        for entry in &self.entries {
            bytes.extend_from_slice(StoredEntry { id: entry.id.0, len: entry.len.into() }.as_bytes());
        }
        // The sealed length stands in the clear: padded, it does not tell how many chunks there are.
        bytes.resize(bytes.len().next_multiple_of(PADDED_TO), 0);
        bytes
    }

    /// Reads a directory of a pack whose frames stand from `start` to `end`, in bytes.
    ///
    /// # Errors
    /// `Corrupt` when counts and lengths do not add up, `Unsupported` for an unknown codec.
    pub fn decode(bytes: &[u8], start: u64, end: u64) -> Result<Self> {
        let cut_short = |_| Error::corrupt("pack directory is cut short");
        let (counts, rest) = StoredCounts::ref_from_prefix(bytes).map_err(|_| cut_short(()))?;
        let frame_count = counts.frames.get() as usize;
        if frame_count > FRAMES_MAX {
            return Err(Error::corrupt(format!("pack directory claims {frame_count} frames")));
        }
        let (frames, rest) =
            <[StoredFrame]>::ref_from_prefix_with_elems(rest, frame_count).map_err(|_| cut_short(()))?;
        let (entries, padding) = <[StoredEntry]>::ref_from_prefix_with_elems(rest, counts.entries.get() as usize)
            .map_err(|_| cut_short(()))?;
        if padding.len() >= PADDED_TO || !bytes.len().is_multiple_of(PADDED_TO) || !is_zero(padding) {
            return Err(Error::corrupt(format!("{} bytes follow the pack directory", padding.len())));
        }
        let entries: Vec<_> =
            entries.iter().map(|stored| Entry { id: EntryId(stored.id), len: stored.len.get() }).collect();
        let mut directory = Self::new(start);
        let mut unclaimed = &entries[..];
        for (number, stored) in frames.iter().enumerate() {
            let record = stored.decode().map_err(|error| error.context(format!("pack directory, frame {number}")))?;
            let (own, others) = unclaimed
                .split_at_checked(record.entry_count as usize)
                .ok_or_else(|| Error::corrupt(format!("frame {number} claims more entries than there are")))?;
            unclaimed = others;
            if own.iter().map(|entry| u64::from(entry.len)).sum::<u64>() != u64::from(record.plain_len) {
                return Err(Error::corrupt(format!("lengths of the entries of frame {number} do not add up")));
            }
            directory.push(record, own);
        }
        if !unclaimed.is_empty() || directory.end != end {
            return Err(Error::corrupt(format!(
                "frames of the pack directory end at {} instead of {end}, with {} entries in no frame",
                directory.end,
                unclaimed.len()
            )));
        }
        Ok(directory)
    }
}

impl StoredFrame {
    fn decode(&self) -> Result<FrameRecord> {
        let record = FrameRecord {
            sealed_len: self.sealed_len.get(),
            plain_len: self.plain_len.get(),
            entry_count: self.entry_count.get(),
            codec: Codec::from_number(self.codec)?,
        };
        if self.zero != [0; 3] {
            return Err(Error::corrupt("reserved bytes are not zero"));
        }
        let lengths_fit = record.plain_len as usize <= PLAIN_LEN_MAX
            && record.sealed_len as usize >= TAG_LEN
            && record.sealed_len as usize - TAG_LEN <= record.plain_len as usize
            && record.entry_count as usize <= ENTRIES_PER_FRAME_MAX;
        if !lengths_fit {
            return Err(Error::corrupt(format!("lengths are out of range: {record:?}")));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Vec<(u32, Vec<(u8, u32)>)>> {
        let entries = prop::collection::vec((any::<u8>(), 1..50_000_u32), 1..20);
        prop::collection::vec((0..100_u32, entries), 0..20)
    }

    fn directory(frames: &[(u32, Vec<(u8, u32)>)]) -> Directory {
        let mut directory = Directory::new(64);
        for (saved, entries) in frames {
            let entries: Vec<_> = entries.iter().map(|(id, len)| Entry { id: EntryId([*id; 32]), len: *len }).collect();
            let plain_len: u32 = entries.iter().map(|entry| entry.len).sum();
            let record = FrameRecord {
                sealed_len: plain_len - saved.min(&plain_len) + TAG_LEN as u32,
                plain_len,
                entry_count: entries.len() as u32,
                codec: Codec::Zstd,
            };
            directory.push(record, &entries);
        }
        directory
    }

    proptest! {
        #[test]
        fn any_directory_round_trips(frames in frames()) {
            let directory = directory(&frames);
            let decoded = Directory::decode(&directory.encode(), 64, directory.end()).unwrap();
            prop_assert_eq!(&decoded, &directory);
            for (frame, (_, entries)) in decoded.frames().iter().zip(&frames) {
                prop_assert_eq!(decoded.entries_of(frame).len(), entries.len());
            }
        }

        #[test]
        fn changed_and_arbitrary_bytes_never_panic(
            frames in frames(), at: prop::sample::Index, value: u8, noise: Vec<u8>,
        ) {
            let directory = directory(&frames);
            let mut bytes = directory.encode();
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = Directory::decode(&bytes, 64, directory.end());
            let _ = Directory::decode(&bytes[..at], 64, directory.end());
            let _ = Directory::decode(&noise, 64, 64);
        }
    }
}
