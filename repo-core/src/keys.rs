//! The key hierarchy and its roles (docs/format.md §5).
//!
//! One random master key; three role keys derived from it; every other key derived from a role key, with
//! a random salt where it seals. The data key is the private half of a key pair: chunks are sealed to its public half. Which
//! keys a process holds decides what it can do: a writer needs identity, structure and the public data key, a server that
//! collects garbage structure alone, a restore all three roles.

pub mod key_file;
pub mod recipient;
pub mod slot;
pub mod text;

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{RepositoryId, RepositoryPin};
use crate::keys::recipient::{PrivateKey, PublicKey};
use crate::seal::KEY_LEN;

/// A secret key, wiped when dropped.
pub type Key = Zeroizing<[u8; KEY_LEN]>;

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Makes chunk ids and cut points.
    Identity,
    /// Opens directories, manifests and snapshot records.
    Structure,
    /// Opens data frames.
    Data,
}

impl Role {
    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Structure => "structure",
            Self::Data => "data",
        }
    }

    fn context(self) -> &'static str {
        match self {
            Self::Identity => "cairn v1 role identity",
            Self::Structure => "cairn v1 role structure",
            Self::Data => "cairn v1 role data",
        }
    }
}

/// The role keys that a process holds.
#[derive(Clone, Default)]
pub struct RoleKeys {
    identity: Option<Key>,
    structure: Option<Key>,
    data: Option<DataKey>,
    /// What data frames are sealed to. Whoever holds the data key holds it too.
    public_data: Option<Arc<PublicKey>>,
}

#[derive(Clone)]
struct DataKey {
    seed: Key,
    pair: Arc<PrivateKey>,
}

impl RoleKeys {
    /// All roles, from the master key.
    pub fn from_master(master: &Key) -> Self {
        let roles = [Role::Identity, Role::Structure, Role::Data];
        roles.into_iter().fold(Self::default(), |keys, role| keys.with(role, derive(role.context(), &[&master[..]])))
    }

    /// The same keys without `role`. Without the data role content is sealed still, and opened no more.
    #[must_use]
    pub fn without(mut self, role: Role) -> Self {
        match role {
            Role::Identity => self.identity = None,
            Role::Structure => self.structure = None,
            Role::Data => self.data = None,
        }
        self
    }

    /// The same keys without what data frames are sealed to, and so without the data role.
    #[must_use]
    pub fn without_public_data(self) -> Self {
        Self { public_data: None, ..self.without(Role::Data) }
    }

    /// The same keys with `key` for `role`.
    #[must_use]
    pub fn with(mut self, role: Role, key: Key) -> Self {
        match role {
            Role::Identity => self.identity = Some(key),
            Role::Structure => self.structure = Some(key),
            Role::Data => {
                let pair = PrivateKey::from_seed(&key);
                self.public_data = Some(Arc::new(pair.public()));
                self.data = Some(DataKey { seed: key, pair: Arc::new(pair) });
            }
        }
        self
    }

    /// The same keys with what data frames are sealed to.
    #[must_use]
    pub fn with_public_data(self, key: PublicKey) -> Self {
        Self { public_data: Some(Arc::new(key)), ..self }
    }

    /// The key of a role.
    ///
    /// # Errors
    /// `Forbidden` when this process was not given that role.
    pub fn get(&self, role: Role) -> Result<&Key> {
        let key = match role {
            Role::Identity => self.identity.as_ref(),
            Role::Structure => self.structure.as_ref(),
            Role::Data => self.data.as_ref().map(|data| &data.seed),
        };
        key.ok_or_else(|| not_granted(role.name()))
    }

    /// The private key that opens what was sealed to [`public_data`](Self::public_data).
    ///
    /// # Errors
    /// `Forbidden` when this process was not given the data role.
    pub fn private_data(&self) -> Result<&Arc<PrivateKey>> {
        self.data.as_ref().map(|data| &data.pair).ok_or_else(|| not_granted(Role::Data.name()))
    }

    /// What tells the repository of that id from another one that was made to look like it. A slot for a public key proves
    /// nothing about who made it: whoever relies on one compares this.
    ///
    /// # Errors
    /// `Forbidden` for a process that cannot add content.
    pub fn pin(&self, repository: RepositoryId) -> Result<RepositoryPin> {
        let (identity, structure) = (self.get(Role::Identity)?, self.get(Role::Structure)?);
        let public = self.public_data()?.to_bytes();
        let material = [repository.as_bytes(), &identity[..], &structure[..], &public];
        let hash = derive("cairn v1 repository pin", &material);
        Ok(RepositoryPin(*hash.first_chunk().expect("a hash is longer")))
    }

    /// What data frames are sealed to.
    ///
    /// # Errors
    /// `Forbidden` when this process was not given it.
    pub fn public_data(&self) -> Result<&Arc<PublicKey>> {
        self.public_data.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Forbidden,
                "the key in use does not grant to add content: it lacks the public data key",
            )
        })
    }
}

fn not_granted(role: &str) -> Error {
    Error::new(ErrorKind::Forbidden, format!("the key in use does not grant the {role} role"))
}

/// BLAKE3's key derivation over the concatenation of `material`.
pub fn derive(context: &str, material: &[&[u8]]) -> Key {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in material {
        hasher.update(part);
    }
    Zeroizing::new(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_distinct_and_a_missing_one_is_named() {
        let keys = RoleKeys::from_master(&Zeroizing::new([7; KEY_LEN]));
        let roles = [Role::Identity, Role::Structure, Role::Data];
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            assert_ne!(keys.get(roles[a]).unwrap(), keys.get(roles[b]).unwrap());
        }
        let writer = keys.without(Role::Data);
        let error = writer.get(Role::Data).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::Forbidden, "the key in use does not grant the data role")
        );
        assert!(writer.private_data().is_err() && writer.public_data().is_ok());
        let id = RepositoryId([1; 16]);
        let pin = RoleKeys::from_master(&Zeroizing::new([7; KEY_LEN])).pin(id).unwrap();
        let other = PrivateKey::from_seed(&Zeroizing::new([1; KEY_LEN])).public();
        assert_eq!(writer.pin(id).unwrap(), pin);
        assert_ne!(writer.pin(RepositoryId([2; 16])).unwrap(), pin);
        assert_ne!(writer.clone().with_public_data(other).pin(id).unwrap(), pin);
        assert_ne!(writer.clone().with(Role::Identity, Zeroizing::new([1; KEY_LEN])).pin(id).unwrap(), pin);
        assert!(writer.clone().without(Role::Identity).pin(id).is_err());
        assert!(writer.without_public_data().public_data().is_err());
    }
}
