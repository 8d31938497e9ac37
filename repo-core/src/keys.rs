//! The key hierarchy and its roles (docs/format.md §5).
//!
//! One random master key; three role keys derived from it; every other key derived from a role key, with
//! a random salt where it seals. Which roles a process holds decides what it can do: a writer needs identity and
//! structure, a server that collects garbage structure alone, a restore everything.

pub mod slot;

use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};
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
    data: Option<Key>,
}

impl RoleKeys {
    /// All roles, from the master key.
    pub fn from_master(master: &Key) -> Self {
        let role = |role: Role| Some(derive(role.context(), &[&master[..]]));
        Self { identity: role(Role::Identity), structure: role(Role::Structure), data: role(Role::Data) }
    }

    /// The same keys without `role`.
    #[must_use]
    pub fn without(mut self, role: Role) -> Self {
        *self.place(role) = None;
        self
    }

    /// The same keys with `key` for `role`.
    #[must_use]
    pub fn with(mut self, role: Role, key: Key) -> Self {
        *self.place(role) = Some(key);
        self
    }

    fn place(&mut self, role: Role) -> &mut Option<Key> {
        match role {
            Role::Identity => &mut self.identity,
            Role::Structure => &mut self.structure,
            Role::Data => &mut self.data,
        }
    }

    /// The key of a role.
    ///
    /// # Errors
    /// `Unauthenticated` when this process was not given that role.
    pub fn get(&self, role: Role) -> Result<&Key> {
        let key = match role {
            Role::Identity => &self.identity,
            Role::Structure => &self.structure,
            Role::Data => &self.data,
        };
        key.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unauthenticated, format!("the key in use does not grant the {} role", role.name()))
        })
    }
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
        let error = keys.without(Role::Data).get(Role::Data).unwrap_err();
        assert_eq!(error.to_string(), "the key in use does not grant the data role");
    }
}
