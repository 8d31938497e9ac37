//! Names of things: each kind of id is its own type, shown as lowercase hexadecimal.

use std::fmt;

use data_encoding::HEXLOWER_PERMISSIVE;

use crate::error::{Error, Result};

/// Digits of an id shown to people where the whole one would only be noise.
pub const SHORT_DIGITS: usize = 12;

fn decode_hex<const N: usize>(text: &str, what: &str) -> Result<[u8; N]> {
    HEXLOWER_PERMISSIVE
        .decode(text.as_bytes())
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| Error::invalid(format!("{text:?} is not {what}: expected {} hexadecimal digits", 2 * N)))
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// The id's bytes.
            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// All digits.
            pub fn to_hex(&self) -> String {
                HEXLOWER_PERMISSIVE.encode(&self.0)
            }

            /// The first digits, for people.
            pub fn short(&self) -> String {
                let mut hex = self.to_hex();
                hex.truncate(SHORT_DIGITS);
                hex
            }

            /// Reads an id from all of its digits.
            ///
            /// # Errors
            /// `Invalid` when the text is not exactly that many hexadecimal digits.
            pub fn from_hex(text: &str) -> Result<Self> {
                decode_hex(text, $what).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }
    };
}

id_type!(
    /// A chunk's name: the keyed BLAKE3 of its plaintext (docs/format.md §6).
    ChunkId, 32, "a chunk id"
);
id_type!(
    /// A manifest node's name: the keyed BLAKE3 of its bytes (docs/format.md §8).
    NodeId, 32, "a manifest node id"
);
id_type!(
    /// A directory entry's name, of a chunk in a data pack, of a manifest node in a meta pack.
    EntryId, 32, "an entry id"
);
id_type!(
    /// A pack's name: the BLAKE3 of all its bytes.
    PackId, 32, "a pack id"
);
id_type!(
    /// A snapshot's name: the BLAKE3 of its record's bytes.
    SnapshotId, 32, "a snapshot id"
);
id_type!(
    /// An annotation's name: the BLAKE3 of its bytes.
    AnnotationId, 32, "an annotation id"
);
id_type!(
    /// A key slot's name: the BLAKE3 of its bytes.
    SlotId, 32, "a key slot id"
);
id_type!(
    /// A lease's name: the BLAKE3 of its bytes.
    LeaseId, 32, "a lease id"
);
id_type!(
    /// A tombstone's name: the BLAKE3 of its bytes.
    TombstoneId, 32, "a tombstone id"
);
id_type!(
    /// A repository's name, random, made at `init`.
    RepositoryId, 16, "a repository id"
);

id_type!(
    /// The name of the holder of a key pair: a hash of the public key (docs/format.md §5).
    RecipientId, 16, "a recipient id"
);

id_type!(
    /// What tells a repository from one that somebody put in its place: a hash of all that its writers hold (docs/format.md §5).
    RepositoryPin, 16, "a repository pin"
);
/// Which tombstone it is, and its bytes' hash. Tombstones sort by age, and one that replaces another comes right after it: who
/// lists names in ascending order while one is replaced finds the old one or the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TombstoneName {
    /// One more than the highest that there was when it was announced; those that replace it have the same.
    pub serial: u64,
    /// How often it was replaced.
    pub step: u32,
    /// The hash.
    pub id: TombstoneId,
}

impl TombstoneName {
    /// Reads what [`Display`](std::fmt::Display) writes.
    ///
    /// # Errors
    /// `Invalid` for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let malformed = || Error::invalid(format!("{text:?} is not the name of a tombstone"));
        let mut parts = text.split('-');
        let [Some(serial), Some(step), Some(id), None] = std::array::from_fn(|_| parts.next()) else {
            return Err(malformed());
        };
        let name = Self {
            serial: u64::from_str_radix(serial, 16).map_err(|_| malformed())?,
            step: u32::from_str_radix(step, 16).map_err(|_| malformed())?,
            id: TombstoneId::from_hex(id)?,
        };
        if name.to_string() == text { Ok(name) } else { Err(malformed()) }
    }

    /// In the order of the names, as bytes.
    pub fn to_bytes(self) -> [u8; 44] {
        let mut bytes = [0; 44];
        bytes[..8].copy_from_slice(&self.serial.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.step.to_be_bytes());
        bytes[12..].copy_from_slice(&self.id.0);
        bytes
    }

    /// Reads [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: &[u8; 44]) -> Self {
        let part = |range: std::ops::Range<usize>| bytes[range].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let id = TombstoneId(std::array::from_fn(|at| bytes[12 + at]));
        Self { serial: part(0..8), step: part(8..12) as u32, id }
    }
}

impl fmt::Display for TombstoneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:08x}-{}", self.serial, self.step, self.id)
    }
}

impl NodeId {
    /// Names no node: everything below is zeros.
    pub const NONE: Self = Self([0; 32]);

    /// Whether this names no node.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

impl From<ChunkId> for EntryId {
    fn from(id: ChunkId) -> Self {
        Self(id.0)
    }
}

impl From<NodeId> for EntryId {
    fn from(id: NodeId) -> Self {
        Self(id.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tombstones_round_trip_and_sort_by_serial_and_step() {
        let name = |serial, step, id| TombstoneName { serial, step, id: TombstoneId([id; 32]) };
        let names = [name(1, 0, 9), name(1, 1, 2), name(2, 0, 5), name(0x1234_5678_9abc, 0x0102_0304, 1)];
        for name in names {
            assert_eq!(TombstoneName::parse(&name.to_string()).unwrap(), name);
            assert_eq!(TombstoneName::from_bytes(&name.to_bytes()), name);
        }
        assert!(names.is_sorted() && names.map(|name| name.to_string()).is_sorted());
        for bad in ["", "1-0-", &format!("+{}", &names[0].to_string()[1..]), &format!("{}-", names[0])] {
            assert!(TombstoneName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hex_round_trips_and_bad_hex_is_refused() {
        let id = PackId(std::array::from_fn(|i| i as u8));
        assert_eq!(PackId::from_hex(&id.to_hex()).unwrap(), id);
        assert_eq!(id.short(), "000102030405");
        for bad in ["", "00", "zz", &"0".repeat(63), &"0".repeat(65)] {
            assert!(PackId::from_hex(bad).is_err(), "{bad}");
        }
    }
}
