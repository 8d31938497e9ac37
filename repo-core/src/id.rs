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
    fn hex_round_trips_and_bad_hex_is_refused() {
        let id = PackId(std::array::from_fn(|i| i as u8));
        assert_eq!(PackId::from_hex(&id.to_hex()).unwrap(), id);
        assert_eq!(id.short(), "000102030405");
        for bad in ["", "00", "zz", &"0".repeat(63), &"0".repeat(65)] {
            assert!(PackId::from_hex(bad).is_err(), "{bad}");
        }
    }
}
