//! The repository's configuration: what is fixed at `init` (docs/format.md §4).

use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};
use zerocopy::IntoBytes;

use crate::chunk::ChunkParams;
use crate::error::{Error, ErrorKind, Result};
use crate::id::RepositoryId;
use crate::keys::{Role, RoleKeys, derive};
use crate::object::{ObjectHeader, ObjectKind, split, split_len};
use crate::seal::Suite;

/// The largest configuration a reader takes, in bytes.
pub const CONFIG_LEN_MAX: u64 = 64 * 1024;

const HASH_LEN: usize = 32;

/// What is fixed when a repository is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// The repository's name, random.
    pub id: RepositoryId,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// How packs and snapshot records are sealed.
    pub suite: Suite,
    /// Where chunks end.
    pub chunk: ChunkParams,
    /// Plaintext a data frame is closed at, in bytes.
    pub frame_len: u32,
    /// Length a pack is closed at, in bytes.
    pub pack_len: u32,
    /// What the object store was found to do when the repository was made in it; none for a folder.
    pub store: Option<StoreFindings>,
}

/// What an object store was found to do. For people: nothing rests on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct StoreFindings {
    /// A put that must not replace is refused when the name is taken, also when several race.
    #[n(0)]
    pub create_only: bool,
    /// What was stored or deleted shows at once, also in listings.
    #[n(1)]
    pub read_after_write: bool,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct Body {
    #[n(0)]
    id: ByteArray<16>,
    #[n(1)]
    created_ms: i64,
    #[n(2)]
    suite: u8,
    #[n(3)]
    cut_bits: u8,
    #[n(4)]
    pages_max: u16,
    #[n(5)]
    frame_len: u32,
    #[n(6)]
    pack_len: u32,
    #[n(7)]
    store: Option<StoreFindings>,
}

impl Config {
    /// The object's bytes.
    ///
    /// # Errors
    /// `Forbidden` without the structure key.
    pub fn encode(&self, keys: &RoleKeys) -> Result<Vec<u8>> {
        let body = minicbor::to_vec(Body {
            id: self.id.0.into(),
            created_ms: self.created_ms,
            suite: self.suite.number(),
            cut_bits: self.chunk.cut_bits,
            pages_max: self.chunk.pages_max,
            frame_len: self.frame_len,
            pack_len: self.pack_len,
            store: self.store,
        })
        .expect("writing CBOR into memory cannot fail");
        let mut bytes = ObjectHeader::new(ObjectKind::Config).as_bytes().to_vec();
        bytes.extend_from_slice(&u32::try_from(body.len()).expect("the body is short").to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
        bytes.extend_from_slice(&authentication(&bytes, keys)?);
        Ok(bytes)
    }

    /// Reads a configuration, and checks everything that needs no key.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged, `Unsupported` when it asks for what this version does not know.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let rest = ObjectHeader::check(bytes, ObjectKind::Config)?;
        let (len, rest) = split_len(rest, "configuration")?;
        let (body, rest) = split(rest, len, "configuration")?;
        let (checksum, rest) = split(rest, HASH_LEN, "configuration checksum")?;
        if rest.len() != HASH_LEN {
            return Err(Error::corrupt(format!("configuration ends in {} bytes instead of 32", rest.len())));
        }
        let checked = &bytes[..bytes.len() - 2 * HASH_LEN];
        if blake3::hash(checked).as_bytes() != checksum {
            return Err(Error::corrupt("checksum of the configuration is wrong"));
        }
        let body: Body = minicbor::decode(body)
            .map_err(|error| Error::with_source(ErrorKind::Corrupt, "configuration body is malformed", error))?;
        let config = Self {
            id: RepositoryId(body.id.into()),
            created_ms: body.created_ms,
            suite: Suite::from_number(body.suite)?,
            chunk: ChunkParams { cut_bits: body.cut_bits, pages_max: body.pages_max },
            frame_len: body.frame_len,
            pack_len: body.pack_len,
            store: body.store,
        };
        config.check()?;
        Ok(config)
    }

    /// Checks that whoever wrote these bytes held the structure key.
    ///
    /// # Errors
    /// `Unauthenticated` when somebody else did; `Forbidden` when `keys` lack the role.
    pub fn authenticate(bytes: &[u8], keys: &RoleKeys) -> Result<()> {
        let (message, tag) =
            bytes.split_last_chunk::<HASH_LEN>().ok_or_else(|| Error::corrupt("configuration is cut short"))?;
        // Hash equality of the blake3 crate runs in constant time.
        if blake3::Hash::from(authentication(message, keys)?) != blake3::Hash::from(*tag) {
            return Err(Error::new(
                ErrorKind::Unauthenticated,
                "configuration was not written with this repository's key: it was replaced or tampered with",
            ));
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.chunk.check()?;
        if !(4096..=16 * 1024 * 1024).contains(&self.frame_len) {
            return Err(Error::corrupt(format!("frame length {} is out of range", self.frame_len)));
        }
        if !(64 * 1024..=1024 * 1024 * 1024).contains(&self.pack_len) {
            return Err(Error::corrupt(format!("pack length {} is out of range", self.pack_len)));
        }
        Ok(())
    }
}

fn authentication(message: &[u8], keys: &RoleKeys) -> Result<[u8; HASH_LEN]> {
    let key = derive("cairn v1 configuration", &[&keys.get(Role::Structure)?[..]]);
    Ok(*blake3::keyed_hash(&key, message).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    fn sample() -> (Config, RoleKeys) {
        let config = Config {
            id: RepositoryId([1; 16]),
            created_ms: 2,
            suite: Suite::Aes256Gcm,
            chunk: ChunkParams::default(),
            frame_len: 1 << 20,
            pack_len: 1 << 25,
            store: Some(StoreFindings { create_only: true, read_after_write: false }),
        };
        (config, RoleKeys::from_master(&Zeroizing::new([5; 32])))
    }

    #[test]
    fn a_configuration_round_trips_and_is_authenticated() {
        let (config, keys) = sample();
        let bytes = config.encode(&keys).unwrap();
        assert_eq!(Config::decode(&bytes).unwrap(), config);
        Config::authenticate(&bytes, &keys).unwrap();
        let other = RoleKeys::from_master(&Zeroizing::new([6; 32]));
        assert_eq!(Config::authenticate(&bytes, &other).unwrap_err().kind(), ErrorKind::Unauthenticated);
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_found() {
        let (config, keys) = sample();
        let bytes = config.encode(&keys).unwrap();
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert!(Config::decode(&bytes).is_err() || Config::authenticate(&bytes, &keys).is_err(), "byte {at}");
            assert!(Config::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
