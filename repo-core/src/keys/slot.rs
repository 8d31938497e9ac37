//! Key slots: how the master key is kept (docs/format.md §5).

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};
use zerocopy::IntoBytes;
use zeroize::Zeroizing;

use crate::entropy::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{RepositoryId, SlotId};
use crate::keys::{Key, Role, RoleKeys, derive};
use crate::object::{ObjectHeader, ObjectKind, split, split_len};
use crate::seal::{Aead, KEY_LEN, NONCE_ZERO, Suite};

/// The largest slot a reader takes, in bytes.
pub const SLOT_LEN_MAX: u64 = 64 * 1024;

/// What Argon2id is asked to spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Argon2Cost {
    /// Memory in KiB.
    #[n(0)]
    pub memory_kib: u32,
    /// Passes over the memory.
    #[n(1)]
    pub passes: u32,
    /// Lanes.
    #[n(2)]
    pub lanes: u32,
}

impl Default for Argon2Cost {
    /// RFC 9106 §4, the second recommended choice: 64 MiB, three passes, four lanes.
    fn default() -> Self {
        Self { memory_kib: 64 * 1024, passes: 3, lanes: 4 }
    }
}

impl Argon2Cost {
    /// The cheapest cost there is, for tests.
    pub const CHEAPEST: Self = Self { memory_kib: 8, passes: 1, lanes: 1 };

    fn check(self) -> Result<argon2::Params> {
        let in_range = (8..=1024 * 1024).contains(&self.memory_kib)
            && (1..=100).contains(&self.passes)
            && (1..=255).contains(&self.lanes)
            && self.memory_kib >= 8 * self.lanes;
        if !in_range {
            return Err(Error::corrupt(format!("Argon2id cost is out of range: {self:?}")));
        }
        argon2::Params::new(self.memory_kib, self.passes, self.lanes, Some(KEY_LEN))
            .map_err(|error| Error::corrupt(format!("Argon2id cost is refused: {error}")))
    }
}

const KIND_OPEN: u8 = 0;
const KIND_PASSPHRASE: u8 = 1;

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct Parameters {
    #[n(0)]
    kind: u8,
    #[n(1)]
    created_ms: i64,
    #[n(2)]
    label: String,
    #[n(3)]
    salt: ByteArray<32>,
    #[n(4)]
    argon2: Option<Argon2Cost>,
}

#[derive(Default, Encode, Decode)]
#[cbor(map)]
struct Bundle {
    #[n(0)]
    master: Option<ByteVec>,
    #[n(1)]
    identity: Option<ByteVec>,
    #[n(2)]
    structure: Option<ByteVec>,
    #[n(3)]
    data: Option<ByteVec>,
}

/// What opens a slot.
pub enum Unlock<'a> {
    /// Nothing: the repository is not encrypted.
    Open,
    /// A passphrase, and what stretching it costs in a new slot.
    Passphrase {
        /// The passphrase.
        text: &'a str,
        /// Used when the slot is made; an existing slot names its own.
        cost: Argon2Cost,
    },
}

/// What a slot tells without being opened.
#[derive(Debug, Clone)]
pub struct SlotInfo {
    /// The slot's name.
    pub id: SlotId,
    /// `open` or `passphrase`.
    pub kind: &'static str,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// The label it was given.
    pub label: String,
}

/// What an opened slot hands out.
pub struct Opened {
    /// The role keys.
    pub roles: RoleKeys,
    /// The master key, when the slot holds it: needed to make further slots.
    pub master: Option<Key>,
}

/// Makes a slot's bytes, holding the master key.
///
/// # Errors
/// `Io` when no randomness is to be had.
pub fn encode(
    master: &Key,
    unlock: &Unlock<'_>,
    label: &str,
    created_ms: i64,
    repository: RepositoryId,
    entropy: &Entropy,
) -> Result<Vec<u8>> {
    let (kind, argon2) = match unlock {
        Unlock::Open => (KIND_OPEN, None),
        Unlock::Passphrase { cost, .. } => (KIND_PASSPHRASE, Some(*cost)),
    };
    let parameters = Parameters { kind, created_ms, label: label.to_owned(), salt: entropy.bytes()?.into(), argon2 };
    let encoded = to_cbor(&parameters);
    let mut slot = ObjectHeader::new(ObjectKind::KeySlot).as_bytes().to_vec();
    slot.extend_from_slice(&u32::try_from(encoded.len()).expect("parameters are short").to_le_bytes());
    slot.extend_from_slice(&encoded);

    let bundle = Bundle { master: Some(master.to_vec().into()), ..Bundle::default() };
    let mut sealed = Zeroizing::new(to_cbor(&bundle));
    let associated = [&slot[..], repository.as_bytes()].concat();
    sealer(&parameters, unlock)?.seal(&NONCE_ZERO, &associated, &mut sealed);
    slot.extend_from_slice(&sealed);
    Ok(slot)
}

/// Reads what a slot tells of itself, and checks its bytes against its name.
///
/// # Errors
/// `Corrupt` when the slot is damaged, `Unsupported` when its kind is not known.
pub fn inspect(id: SlotId, bytes: &[u8]) -> Result<SlotInfo> {
    let (parameters, _) = decode(id, bytes)?;
    let kind = match parameters.kind {
        KIND_OPEN => "open",
        KIND_PASSPHRASE => "passphrase",
        other => return Err(Error::new(ErrorKind::Unsupported, format!("key slot kind {other} is not known"))),
    };
    Ok(SlotInfo { id, kind, created_ms: parameters.created_ms, label: parameters.label })
}

/// Opens a slot. `None` when what was given does not open it, which says nothing bad about the slot.
///
/// # Errors
/// `Corrupt` when the slot is damaged.
pub fn open(id: SlotId, bytes: &[u8], unlock: &Unlock<'_>, repository: RepositoryId) -> Result<Option<Opened>> {
    let (parameters, sealed) = decode(id, bytes)?;
    match (parameters.kind, unlock) {
        (KIND_OPEN, Unlock::Open) | (KIND_PASSPHRASE, Unlock::Passphrase { .. }) => {}
        _ => return Ok(None),
    }
    let associated = [&bytes[..bytes.len() - sealed.len()], repository.as_bytes()].concat();
    let mut bundle = Zeroizing::new(sealed.to_vec());
    if sealer(&parameters, unlock)?.open(&NONCE_ZERO, &associated, &mut bundle).is_err() {
        return Ok(None);
    }
    let bundle: Bundle = minicbor::decode(&bundle)
        .map_err(|error| Error::with_source(ErrorKind::Corrupt, format!("key bundle of slot {id}"), error))?;
    opened(bundle).map(Some)
}

fn opened(bundle: Bundle) -> Result<Opened> {
    if let Some(master) = bundle.master {
        let master = key(master)?;
        return Ok(Opened { roles: RoleKeys::from_master(&master), master: Some(master) });
    }
    let mut roles = RoleKeys::default();
    let parts = [(Role::Identity, bundle.identity), (Role::Structure, bundle.structure), (Role::Data, bundle.data)];
    for (role, part) in parts {
        if let Some(part) = part {
            roles = roles.with(role, key(part)?);
        }
    }
    Ok(Opened { roles, master: None })
}

fn key(bytes: ByteVec) -> Result<Key> {
    let bytes = Zeroizing::new(Vec::from(bytes));
    let key = bytes[..].try_into().map_err(|_| Error::corrupt("a key in a key bundle does not have 32 bytes"))?;
    Ok(Zeroizing::new(key))
}

fn decode(id: SlotId, bytes: &[u8]) -> Result<(Parameters, &[u8])> {
    if blake3::hash(bytes).as_bytes() != id.as_bytes() {
        return Err(Error::corrupt(format!("key slot {} is damaged: its bytes do not match its name", id.short())));
    }
    let rest = ObjectHeader::check(bytes, ObjectKind::KeySlot)?;
    let (len, rest) = split_len(rest, "key slot parameters")?;
    let (parameters, sealed) = split(rest, len, "key slot parameters")?;
    let parameters = minicbor::decode(parameters)
        .map_err(|error| Error::with_source(ErrorKind::Corrupt, format!("parameters of key slot {id}"), error))?;
    Ok((parameters, sealed))
}

fn sealer(parameters: &Parameters, unlock: &Unlock<'_>) -> Result<Box<dyn Aead>> {
    match unlock {
        Unlock::Open => Ok(Suite::None.sealer(&derive("cairn v1 open key slot", &[&parameters.salt[..]]))),
        Unlock::Passphrase { text, .. } => {
            let cost = parameters.argon2.ok_or_else(|| Error::corrupt("key slot names no Argon2id cost"))?;
            let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, cost.check()?);
            let mut key = Zeroizing::new([0; KEY_LEN]);
            argon2
                .hash_password_into(text.as_bytes(), &parameters.salt[..], &mut key[..])
                .map_err(|error| Error::internal(format!("Argon2id failed: {error}")))?;
            Ok(Suite::Aes256Gcm.sealer(&key))
        }
    }
}

fn to_cbor<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing CBOR into memory cannot fail")
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPOSITORY: RepositoryId = RepositoryId([3; 16]);

    fn passphrase(text: &str) -> Unlock<'_> {
        Unlock::Passphrase { text, cost: Argon2Cost::CHEAPEST }
    }

    fn slot(unlock: &Unlock<'_>) -> (SlotId, Vec<u8>) {
        let master = Zeroizing::new([9; KEY_LEN]);
        let bytes = encode(&master, unlock, "first", 1, REPOSITORY, &Entropy::seeded(1)).unwrap();
        (SlotId(*blake3::hash(&bytes).as_bytes()), bytes)
    }

    #[test]
    fn the_right_passphrase_opens_and_a_wrong_one_or_another_repository_does_not() {
        let (id, bytes) = slot(&passphrase("correct horse"));
        let opened = open(id, &bytes, &passphrase("correct horse"), REPOSITORY).unwrap().unwrap();
        assert_eq!(opened.master.unwrap()[..], [9; 32]);
        assert!(open(id, &bytes, &passphrase("wrong horse"), REPOSITORY).unwrap().is_none());
        assert!(open(id, &bytes, &passphrase("correct horse"), RepositoryId([4; 16])).unwrap().is_none());
        assert!(open(id, &bytes, &Unlock::Open, REPOSITORY).unwrap().is_none());
    }

    #[test]
    fn every_flipped_byte_of_a_slot_is_called_damage_not_a_wrong_passphrase() {
        for unlock in [passphrase("x"), Unlock::Open] {
            let (id, bytes) = slot(&unlock);
            assert!(open(id, &bytes, &unlock, REPOSITORY).unwrap().is_some());
            for at in 0..bytes.len() {
                let mut bytes = bytes.clone();
                bytes[at] ^= 0x10;
                let error = open(id, &bytes, &unlock, REPOSITORY).err().unwrap();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}");
            }
        }
    }
}
