//! Objects of an object store piece by piece, for whoever hands them on: a request, and memory for one piece.

use std::ops::Range;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::{GetOptions, GetRange, GetResult};
use tokio::runtime::Handle;

use crate::error::{Error, ErrorKind, Result};
use crate::store::failure::{Doing, failure};
use crate::store::{ObjectName, Store, answer_cut_short, remote};

/// Which bytes of an object, whose length may not be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of them.
    Whole,
    /// Those in the range, as far as they are there.
    Range(Range<u64>),
    /// From there on.
    From(u64),
    /// So many at the end, or all of a shorter one.
    Last(u64),
}

impl Part {
    /// Which bytes that are of an object of `len` bytes; `None` when it is none.
    pub fn of(&self, len: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::Whole => return Some(0..len),
            Self::Range(range) => range.start..range.end.min(len),
            Self::From(start) => *start..len,
            Self::Last(count) => len.saturating_sub(*count)..len,
        };
        (range.start < range.end).then_some(range)
    }
}

/// What is known of an object without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Its length in bytes.
    pub len: u64,
    /// When it was stored, by the store's clock, in milliseconds since the Unix epoch.
    pub stored_ms: i64,
}

/// Bytes of an object as they come.
pub struct Reading {
    /// Of the whole object.
    pub stat: Stat,
    /// Which bytes come.
    pub range: Range<u64>,
    name: ObjectName,
    left: u64,
    pieces: BoxStream<'static, object_store::Result<Bytes>>,
    runtime: Handle,
}

impl Reading {
    /// The next bytes; `None` after the last ones. Blocks.
    ///
    /// # Errors
    /// `Unavailable` when they stop coming.
    pub fn next_piece(&mut self) -> Result<Option<Bytes>> {
        match self.runtime.block_on(self.pieces.next()) {
            Some(Ok(piece)) if piece.len() as u64 <= self.left => {
                self.left -= piece.len() as u64;
                Ok(Some(piece))
            }
            None if self.left == 0 => Ok(None),
            Some(Err(error)) => Err(failure(Doing::Reading, &self.name.path(), error)),
            _ => Err(answer_cut_short(self.name)),
        }
    }
}

impl Store {
    /// The length of an object, and when it was stored.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub fn stat(&self, name: ObjectName) -> Result<Stat> {
        let found = self.runtime.block_on(async { self.objects.get_opts(&remote::path(name), head()).await });
        found.map(|found| stat(&found)).map_err(|error| failure(Doing::Reading, &name.path(), error))
    }

    /// Begins to read an object, by one request; `None` when it has none of these bytes.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub fn read(&self, name: ObjectName, part: &Part) -> Result<Option<Reading>> {
        let range = match part {
            Part::Whole => None,
            // None at all: no store takes such a question.
            Part::Range(range) if range.start >= range.end => return self.stat(name).map(|_| None),
            Part::Last(0) => return self.stat(name).map(|_| None),
            Part::Range(range) => Some(GetRange::Bounded(range.clone())),
            Part::From(start) => Some(GetRange::Offset(*start)),
            Part::Last(count) => Some(GetRange::Suffix(*count)),
        };
        match self.read_range(name, range) {
            Ok(reading) => Ok(Some(reading)),
            Err(error) if error.kind() == ErrorKind::NotFound || *part == Part::Whole => Err(error),
            // What a store says of bytes that are not there cannot be told from other failures; and Azure counts from the
            // front only.
            Err(error) => match part.of(self.stat(name)?.len) {
                None => Ok(None),
                Some(range) if matches!(part, Part::Last(_)) => {
                    self.read_range(name, Some(GetRange::Bounded(range))).map(Some)
                }
                Some(_) => Err(error),
            },
        }
    }

    fn read_range(&self, name: ObjectName, range: Option<GetRange>) -> Result<Reading> {
        let options = GetOptions { range, ..GetOptions::default() };
        let found = self.runtime.block_on(self.objects.get_opts(&remote::path(name), options));
        let found = found.map_err(|error| failure(Doing::Reading, &name.path(), error))?;
        let (stat, range) = (stat(&found), found.range.clone());
        let left = range.end.checked_sub(range.start).ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, format!("cannot read {name}: the store's answer makes no sense"))
        })?;
        let pieces = found.into_stream();
        Ok(Reading { stat, range, name, left, pieces, runtime: self.runtime.handle().clone() })
    }
}

fn head() -> GetOptions {
    GetOptions { head: true, ..GetOptions::default() }
}

fn stat(found: &GetResult) -> Stat {
    Stat { len: found.meta.size, stored_ms: found.meta.last_modified.timestamp_millis() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::id::PackId;
    use crate::store::remote::RemoteOptions;

    fn store() -> Store {
        Store::open_remote(Arc::new(InMemory::new()), "memory".to_owned(), RemoteOptions::default()).unwrap()
    }

    #[test]
    fn parts_are_those_of_the_length_and_nothing_beyond_it_is_read() {
        let store = store();
        let name = ObjectName::Pack(PackId([1; 32]));
        assert_eq!(store.read(name, &Part::Whole).err().unwrap().kind(), ErrorKind::NotFound);
        assert_eq!(store.read(name, &Part::Last(0)).err().unwrap().kind(), ErrorKind::NotFound);
        let bytes: Vec<u8> = (0..10).collect();
        store.put_new(name, &bytes).unwrap();
        assert_eq!(store.stat(name).unwrap().len, 10);
        let cases = [
            (Part::Whole, Some(0..10)),
            (Part::Range(2..5), Some(2..5)),
            (Part::Range(8..99), Some(8..10)),
            (Part::Range(10..11), None),
            (Part::Range(3..3), None),
            (Part::From(7), Some(7..10)),
            (Part::From(10), None),
            (Part::Last(3), Some(7..10)),
            (Part::Last(30), Some(0..10)),
            (Part::Last(0), None),
        ];
        for (part, range) in cases {
            let reading = store.read(name, &part).unwrap();
            assert_eq!(reading.as_ref().map(|reading| reading.range.clone()), range, "{part:?}");
            let Some(mut reading) = reading else { continue };
            let mut read = Vec::new();
            while let Some(piece) = reading.next_piece().unwrap() {
                read.extend_from_slice(&piece);
            }
            let range = range.unwrap();
            assert_eq!(read, bytes[range.start as usize..range.end as usize], "{part:?}");
            assert_eq!(reading.stat.len, 10);
        }
    }
}
