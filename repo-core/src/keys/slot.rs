//! Key slots: how the master key, or a part of what it grants, is kept (docs/format.md §5).

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};
use zerocopy::IntoBytes;
use zeroize::Zeroizing;

use crate::entropy::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{RecipientId, RepositoryId, SlotId};
use crate::keys::recipient::{PrivateKey, PublicKey};
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
const KIND_RECIPIENT: u8 = 2;

/// What a slot grants to whoever opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grant {
    /// Everything, handing out keys included: the master key.
    Admin,
    /// All roles: adds, reads back, collects.
    Restore,
    /// Identity, structure and the public data key: adds, and cannot read content back.
    Writer,
    /// Structure alone: sees names, sizes and times, forgets and collects; neither adds nor reads content.
    Structure,
}

impl Grant {
    /// All of them, the mightiest first.
    pub const ALL: [Self; 4] = [Self::Admin, Self::Restore, Self::Writer, Self::Structure];

    /// The name on the command line and in lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Restore => "restore",
            Self::Writer => "writer",
            Self::Structure => "structure",
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Admin => 0,
            Self::Restore => 1,
            Self::Writer => 2,
            Self::Structure => 3,
        }
    }

    fn from_number(number: u8) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|grant| grant.number() == number);
        found.ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("key slot grant {number} is not known")))
    }
}

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
    #[n(5)]
    grant: u8,
    #[n(6)]
    recipient: Option<ByteArray<16>>,
    #[n(7)]
    encapsulation: Option<ByteVec>,
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
    #[n(4)]
    public_data: Option<ByteVec>,
}

impl Bundle {
    fn of(grant: Grant, master: &Key) -> Result<Self> {
        if grant == Grant::Admin {
            return Ok(Self { master: Some(master.to_vec().into()), ..Self::default() });
        }
        let roles = RoleKeys::from_master(master);
        let role = |role: Role| roles.get(role).map(|key| Some(ByteVec::from(key.to_vec())));
        let mut bundle = Self { structure: role(Role::Structure)?, ..Self::default() };
        if grant != Grant::Structure {
            bundle.identity = role(Role::Identity)?;
        }
        match grant {
            Grant::Restore => bundle.data = role(Role::Data)?,
            Grant::Writer => bundle.public_data = Some(roles.public_data()?.to_bytes().into()),
            Grant::Admin | Grant::Structure => {}
        }
        Ok(bundle)
    }

    /// What the keys in it grant.
    fn grant(&self) -> Option<Grant> {
        let held = (&self.master, &self.identity, &self.structure, &self.data, &self.public_data);
        match held {
            (Some(_), None, None, None, None) => Some(Grant::Admin),
            (None, Some(_), Some(_), Some(_), None) => Some(Grant::Restore),
            (None, Some(_), Some(_), None, Some(_)) => Some(Grant::Writer),
            (None, None, Some(_), None, None) => Some(Grant::Structure),
            _ => None,
        }
    }
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
    /// A private key.
    PrivateKey(&'a PrivateKey),
}

/// What a new slot is closed with.
#[derive(Clone, Copy)]
pub enum Lock<'a> {
    /// Nothing: the repository is not encrypted.
    Open,
    /// A passphrase, and what stretching it costs.
    Passphrase {
        /// The passphrase.
        text: &'a str,
        /// What stretching it costs.
        cost: Argon2Cost,
    },
    /// The public key of whoever is to open it.
    Recipient(&'a PublicKey),
}

/// A slot to be made.
pub struct NewSlot<'a> {
    /// What it is closed with.
    pub lock: Lock<'a>,
    /// What it grants.
    pub grant: Grant,
    /// What it is called, for people.
    pub label: &'a str,
    /// The time now, in milliseconds since the Unix epoch.
    pub created_ms: i64,
}

/// What a slot tells without being opened.
#[derive(Debug, Clone)]
pub struct SlotInfo {
    /// The slot's name.
    pub id: SlotId,
    /// `open`, `passphrase` or `recipient`.
    pub kind: &'static str,
    /// What it grants.
    pub grant: Grant,
    /// Whose public key it is sealed to, when it is.
    pub recipient: Option<RecipientId>,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// The label it was given.
    pub label: String,
}

/// What an opened slot hands out.
pub struct Opened {
    /// The slot's name.
    pub id: SlotId,
    /// What it grants.
    pub grant: Grant,
    /// The role keys.
    pub roles: RoleKeys,
    /// The master key, when the slot holds it: needed to make further slots.
    pub master: Option<Key>,
}

/// Makes a slot's bytes.
///
/// # Errors
/// `Io` when no randomness is to be had.
pub fn encode(new: &NewSlot<'_>, master: &Key, repository: RepositoryId, entropy: &Entropy) -> Result<Vec<u8>> {
    let mut parameters = Parameters {
        kind: KIND_OPEN,
        created_ms: new.created_ms,
        label: new.label.to_owned(),
        salt: entropy.bytes()?.into(),
        argon2: None,
        grant: new.grant.number(),
        recipient: None,
        encapsulation: None,
    };
    let key = match new.lock {
        Lock::Open => open_key(&parameters),
        Lock::Passphrase { text, cost } => {
            parameters.kind = KIND_PASSPHRASE;
            parameters.argon2 = Some(cost);
            passphrase_key(&parameters, text)?
        }
        Lock::Recipient(public) => {
            let (encapsulation, key) = public.encapsulate(&recipient_info(&parameters, repository), entropy)?;
            parameters.kind = KIND_RECIPIENT;
            parameters.recipient = Some(public.recipient().0.into());
            parameters.encapsulation = Some(encapsulation.into());
            key
        }
    };
    let encoded = to_cbor(&parameters);
    let mut slot = ObjectHeader::new(ObjectKind::KeySlot).as_bytes().to_vec();
    slot.extend_from_slice(&u32::try_from(encoded.len()).expect("parameters are short").to_le_bytes());
    slot.extend_from_slice(&encoded);

    let mut sealed = Zeroizing::new(to_cbor(&Bundle::of(new.grant, master)?));
    let associated = [&slot[..], repository.as_bytes()].concat();
    sealer(&parameters, &key).seal(&NONCE_ZERO, &associated, &mut sealed);
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
        KIND_RECIPIENT => "recipient",
        other => return Err(Error::new(ErrorKind::Unsupported, format!("key slot kind {other} is not known"))),
    };
    let grant = Grant::from_number(parameters.grant)?;
    let recipient = parameters.recipient.map(|recipient| RecipientId(recipient.into()));
    Ok(SlotInfo { id, kind, grant, recipient, created_ms: parameters.created_ms, label: parameters.label })
}

/// Opens a slot. `None` when what was given does not open it, which says nothing bad about the slot.
///
/// # Errors
/// `Corrupt` when the slot is damaged.
pub fn open(id: SlotId, bytes: &[u8], unlock: &Unlock<'_>, repository: RepositoryId) -> Result<Option<Opened>> {
    let (parameters, sealed) = decode(id, bytes)?;
    let key = match (parameters.kind, unlock) {
        (KIND_OPEN, Unlock::Open) => open_key(&parameters),
        (KIND_PASSPHRASE, Unlock::Passphrase { text, .. }) => passphrase_key(&parameters, text)?,
        (KIND_RECIPIENT, Unlock::PrivateKey(private)) => {
            let encapsulation = parameters.encapsulation.as_ref();
            let encapsulation = encapsulation.ok_or_else(|| Error::corrupt("key slot holds no encapsulation"))?;
            private.decapsulate(encapsulation, &recipient_info(&parameters, repository))?
        }
        _ => return Ok(None),
    };
    let associated = [&bytes[..bytes.len() - sealed.len()], repository.as_bytes()].concat();
    let mut bundle = Zeroizing::new(sealed.to_vec());
    if sealer(&parameters, &key).open(&NONCE_ZERO, &associated, &mut bundle).is_err() {
        return Ok(None);
    }
    let bundle: Bundle = minicbor::decode(&bundle)
        .map_err(|error| Error::with_source(ErrorKind::Corrupt, format!("key bundle of slot {id}"), error))?;
    opened(id, Grant::from_number(parameters.grant)?, bundle).map(Some)
}

fn opened(id: SlotId, grant: Grant, bundle: Bundle) -> Result<Opened> {
    if bundle.grant() != Some(grant) {
        return Err(Error::corrupt(format!("key bundle of slot {id} does not hold what the slot grants")));
    }
    if let Some(master) = bundle.master {
        let master = key(master)?;
        return Ok(Opened { id, grant, roles: RoleKeys::from_master(&master), master: Some(master) });
    }
    let mut roles = RoleKeys::default();
    let parts = [(Role::Identity, bundle.identity), (Role::Structure, bundle.structure), (Role::Data, bundle.data)];
    for (role, part) in parts {
        if let Some(part) = part {
            roles = roles.with(role, key(part)?);
        }
    }
    if let Some(public) = bundle.public_data {
        roles = roles.with_public_data(PublicKey::from_bytes(&public)?);
    }
    Ok(Opened { id, grant, roles, master: None })
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

fn open_key(parameters: &Parameters) -> Key {
    derive("cairn v1 open key slot", &[&parameters.salt[..]])
}

fn passphrase_key(parameters: &Parameters, text: &str) -> Result<Key> {
    let cost = parameters.argon2.ok_or_else(|| Error::corrupt("key slot names no Argon2id cost"))?;
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, cost.check()?);
    let mut key = Zeroizing::new([0; KEY_LEN]);
    argon2
        .hash_password_into(text.as_bytes(), &parameters.salt[..], &mut key[..])
        .map_err(|error| Error::internal(format!("Argon2id failed: {error}")))?;
    Ok(key)
}

/// What an encapsulated key is bound to.
fn recipient_info(parameters: &Parameters, repository: RepositoryId) -> Vec<u8> {
    [b"cairn v1 recipient key slot", &repository.as_bytes()[..], &parameters.salt[..]].concat()
}

fn sealer(parameters: &Parameters, key: &Key) -> Box<dyn Aead> {
    let suite = if parameters.kind == KIND_OPEN { Suite::None } else { Suite::Aes256Gcm };
    suite.sealer(key)
}

fn to_cbor<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing CBOR into memory cannot fail")
}

#[cfg(test)]
mod tests;
