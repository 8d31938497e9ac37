//! Reading packs: the directory first, then frames by range.

use std::ops::RangeInclusive;

use crate::config::Config;
use crate::error::{Error, Result, ResultExt};
use crate::id::PackId;
use crate::keys::RoleKeys;
use crate::pack::directory::{Directory, Frame};
use crate::pack::{HEAD_LEN_MAX, HEADER_LEN, PackCipher, TRAILER_LEN, Trailer};
use crate::store::{ObjectName, Store};

/// Bytes read from a pack's end in the hope that they hold the whole directory: it is about 1 % of a pack.
const TAIL_LEN: u64 = 256 * 1024;

/// An open pack: its keys and its directory.
pub struct PackReader {
    id: PackId,
    cipher: PackCipher,
    directory: Directory,
}

impl PackReader {
    /// Opens a pack of `len` bytes: reads its header, trailer and directory.
    ///
    /// # Errors
    /// `NotFound` when it is missing, `Corrupt` when it is damaged, `Unavailable` when it cannot be read now.
    pub fn open(store: &Store, id: PackId, len: u64, config: &Config, keys: &RoleKeys) -> Result<Self> {
        let open = || -> Result<Self> {
            check_len(len)?;
            let tail = store.get_range(ObjectName::Pack(id), len.saturating_sub(TAIL_LEN)..len)?;
            Self::open_inner(store, id, len, &tail, config, keys)
        };
        open().context(|| format!("pack {}", id.short()))
    }

    /// Opens a pack whose length is not known, and gives it: as many reads as with [`open`](Self::open).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_unknown(store: &Store, id: PackId, config: &Config, keys: &RoleKeys) -> Result<(Self, u64)> {
        let open = || -> Result<(Self, u64)> {
            let (tail, len) = store.get_tail(ObjectName::Pack(id), TAIL_LEN)?;
            check_len(len)?;
            Ok((Self::open_inner(store, id, len, &tail, config, keys)?, len))
        };
        open().context(|| format!("pack {}", id.short()))
    }

    fn open_inner(store: &Store, id: PackId, len: u64, tail: &[u8], config: &Config, keys: &RoleKeys) -> Result<Self> {
        let name = ObjectName::Pack(id);
        let tail_start = len - tail.len() as u64;
        let head = match tail_start {
            0 => tail[..tail.len().min(HEAD_LEN_MAX)].to_vec(),
            // A pack that is longer than a tail is longer than that, too.
            _ => store.get_range(name, 0..HEAD_LEN_MAX as u64)?,
        };
        let cipher = PackCipher::open(&head, config, keys)?;
        let trailer = Trailer::decode(&tail[tail.len() - TRAILER_LEN..], len)?;
        let range = trailer.directory_range();
        let sealed = match range.start.checked_sub(tail_start) {
            Some(start) => {
                let start = usize::try_from(start).expect("the tail is in memory");
                tail[start..tail.len() - TRAILER_LEN].to_vec()
            }
            None => store.get_range(name, range.clone())?,
        };
        let plain = cipher.open_directory(sealed, &trailer)?;
        let directory = Directory::decode(&plain, cipher.frames_offset(), range.start)?;
        if directory.frames().len() != trailer.frame_count.get() as usize {
            return Err(Error::corrupt("pack directory and trailer disagree about the number of frames"));
        }
        Ok(Self { id, cipher, directory })
    }

    /// The pack's name.
    pub fn id(&self) -> PackId {
        self.id
    }

    /// What the pack's entries are.
    pub fn content(&self) -> crate::pack::Content {
        self.cipher.content()
    }

    /// The pack's table.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The frame at a position.
    ///
    /// # Errors
    /// `Corrupt` when there is none.
    pub fn frame(&self, position: u32) -> Result<&Frame> {
        self.directory.frames().get(position as usize).ok_or_else(|| {
            Error::corrupt(format!(
                "pack {} has {} frames, frame {position} was asked for",
                self.id.short(),
                self.directory.frames().len()
            ))
        })
    }

    /// Reads, opens and decompresses the frame at a position.
    ///
    /// # Errors
    /// `Corrupt` naming pack and frame when it is damaged; `NotFound`, `Unavailable`.
    pub fn read_frame(&self, store: &Store, position: u32) -> Result<Vec<u8>> {
        let frame = self.frame(position)?;
        let range = frame.offset..frame.offset + u64::from(frame.record.sealed_len);
        let sealed = store
            .get_range(ObjectName::Pack(self.id), range)
            .context(|| format!("pack {}, frame {position}", self.id.short()))?;
        self.open_frame(position, sealed)
    }

    /// Reads frames that stand side by side by one request, and opens each.
    ///
    /// # Errors
    /// `Corrupt` when there is one that is not there; `NotFound`, `Unavailable`. In its place what is wrong with a frame.
    pub fn read_frames(&self, store: &Store, positions: RangeInclusive<u32>) -> Result<Vec<Result<Vec<u8>>>> {
        let (first, last) = (self.frame(*positions.start())?, self.frame(*positions.end())?);
        let range = first.offset..last.offset + u64::from(last.record.sealed_len);
        let sealed =
            store.get_range(ObjectName::Pack(self.id), range).context(|| format!("pack {}", self.id.short()))?;
        let mut rest = &sealed[..];
        let open = |position| {
            let len = self.frame(position)?.record.sealed_len as usize;
            let one = rest.split_off(..len).ok_or_else(|| Error::internal("frames do not stand side by side"))?;
            self.open_frame(position, one.to_vec())
        };
        Ok(positions.map(open).collect())
    }

    /// Opens and decompresses the frame at a position from its sealed bytes.
    ///
    /// # Errors
    /// `Corrupt` naming pack and frame when they are damaged.
    pub fn open_frame(&self, position: u32, sealed: Vec<u8>) -> Result<Vec<u8>> {
        let record = &self.frame(position)?.record;
        self.cipher
            .open_frame(position, record, sealed)
            .context(|| format!("pack {}, frame {position}", self.id.short()))
    }
}

fn check_len(len: u64) -> Result<()> {
    match len < (HEADER_LEN + TRAILER_LEN) as u64 {
        true => Err(Error::corrupt(format!("{len} bytes are too few for a pack"))),
        false => Ok(()),
    }
}
