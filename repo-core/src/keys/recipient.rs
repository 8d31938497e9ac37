//! Key pairs, and keys agreed on with the holder of one (docs/format.md §5).
//!
//! HPKE (RFC 9180) in base mode with export only: whoever knows a public key makes an *encapsulation* and a fresh 32-byte
//! key; only the private key turns the encapsulation into that key again. The KEM is X-Wing, ML-KEM-768 and X25519 at once:
//! what is recorded today stays closed even if one of the two is broken later.

use std::convert::Infallible;
use std::fmt;

use hpke::aead::ExportOnlyAead;
use hpke::kdf::HkdfSha256;
use hpke::kem::{Kem as KemTrait, XWing};
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable, OpModeR, OpModeS, Serializable, setup_receiver, setup_sender_with_rng};
use zeroize::{Zeroize, Zeroizing};

use crate::entropy::Entropy;
use crate::error::{Error, Result};
use crate::id::RecipientId;
use crate::keys::{Key, derive};
use crate::seal::KEY_LEN;

/// Length of a public key in bytes.
pub const PUBLIC_KEY_LEN: usize = 1216;
/// Length of an encapsulation in bytes.
pub const ENCAPSULATION_LEN: usize = 1120;

/// Random bytes that one encapsulation takes.
const DRAWN_LEN: usize = 64;
const EXPORT_CONTEXT: &[u8] = b"cairn v1 key";

/// Seals to its holder.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(Box<<XWing as KemTrait>::PublicKey>);

/// Opens what was sealed to its public key. Wiped when dropped.
#[derive(Clone)]
pub struct PrivateKey(Box<<XWing as KemTrait>::PrivateKey>);

impl PublicKey {
    /// Reads a public key of [`PUBLIC_KEY_LEN`] bytes.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let read = <XWing as KemTrait>::PublicKey::from_bytes(bytes);
        read.map(|key| Self(Box::new(key)))
            .map_err(|_| Error::corrupt(format!("{} bytes are no X-Wing public key", bytes.len())))
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_bytes().to_vec()
    }

    /// The name of its holder.
    pub fn recipient(&self) -> RecipientId {
        let hash = derive("cairn v1 recipient id", &[&self.to_bytes()]);
        RecipientId(*hash.first_chunk().expect("a hash is longer"))
    }

    /// Agrees on a fresh key with the holder of the private key: the encapsulation, of [`ENCAPSULATION_LEN`] bytes, and the
    /// key. Both ends must say the same `info`.
    ///
    /// # Errors
    /// `Io` without randomness; `Internal` when the same work done twice gives two results, which means broken memory: it
    /// cannot be tried here whether the private key opens this.
    pub fn encapsulate(&self, info: &[u8], entropy: &Entropy) -> Result<(Vec<u8>, Key)> {
        let drawn = Zeroizing::new(entropy.bytes()?);
        let made = self.encapsulate_with(&drawn, info)?;
        if self.encapsulate_with(&drawn, info)? != made {
            return Err(Error::internal(
                "a key came out differently the second time: memory or processor of this machine are not to be trusted",
            ));
        }
        Ok(made)
    }

    fn encapsulate_with(&self, drawn: &[u8; DRAWN_LEN], info: &[u8]) -> Result<(Vec<u8>, Key)> {
        let mut drawn = Drawn { bytes: *drawn, used: 0 };
        let (encapsulation, context) =
            setup_sender_with_rng::<ExportOnlyAead, HkdfSha256, XWing>(&OpModeS::Base, &self.0, info, &mut drawn)
                .map_err(|error| Error::internal(format!("cannot seal to a public key: {error}")))?;
        let mut key = Zeroizing::new([0; KEY_LEN]);
        context.export(EXPORT_CONTEXT, &mut key[..]).expect("32 bytes can be exported");
        Ok((encapsulation.to_bytes().to_vec(), key))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.recipient())
    }
}

impl PrivateKey {
    /// The private key that is this seed.
    pub fn from_seed(seed: &Key) -> Self {
        let read = <XWing as KemTrait>::PrivateKey::from_bytes(&seed[..]);
        Self(Box::new(read.expect("any 32 bytes are a private key")))
    }

    /// A new one.
    ///
    /// # Errors
    /// `Io` without randomness.
    pub fn generate(entropy: &Entropy) -> Result<Self> {
        Ok(Self::from_seed(&Zeroizing::new(entropy.bytes()?)))
    }

    /// The seed it is made of.
    pub fn seed(&self) -> Key {
        let mut seed = Zeroizing::new([0; KEY_LEN]);
        self.0.write_exact(&mut seed[..]);
        seed
    }

    /// The public key to it.
    pub fn public(&self) -> PublicKey {
        PublicKey(Box::new(XWing::sk_to_pk(&self.0)))
    }

    /// The key that an encapsulation to this private key's public key stands for. One that was made for another key, or
    /// changed, gives another key and no error.
    ///
    /// # Errors
    /// `Corrupt` when it is none by its length.
    pub fn decapsulate(&self, encapsulation: &[u8], info: &[u8]) -> Result<Key> {
        let refused = |_| Error::corrupt(format!("{} bytes are no encapsulation", encapsulation.len()));
        let encapsulation = <XWing as KemTrait>::EncappedKey::from_bytes(encapsulation).map_err(refused)?;
        let context =
            setup_receiver::<ExportOnlyAead, HkdfSha256, XWing>(&OpModeR::Base, &self.0, &encapsulation, info)
                .map_err(|error| Error::corrupt(format!("an encapsulation is refused: {error}")))?;
        let mut key = Zeroizing::new([0; KEY_LEN]);
        context.export(EXPORT_CONTEXT, &mut key[..]).expect("32 bytes can be exported");
        Ok(key)
    }
}

/// Randomness that was drawn before, since drawing it may fail and the trait has no place for that.
struct Drawn {
    bytes: [u8; DRAWN_LEN],
    used: usize,
}

impl TryRng for Drawn {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, target: &mut [u8]) -> Result<(), Infallible> {
        let end = self.used + target.len();
        target.copy_from_slice(self.bytes.get(self.used..end).expect("X-Wing encapsulates with 64 random bytes"));
        self.used = end;
        Ok(())
    }
}

impl TryCryptoRng for Drawn {}

impl Drop for Drawn {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    #[test]
    fn both_ends_get_one_key_and_nobody_else_does() {
        let entropy = Entropy::seeded(1);
        let (own, other) = (PrivateKey::generate(&entropy).unwrap(), PrivateKey::generate(&entropy).unwrap());
        let (encapsulation, key) = own.public().encapsulate(b"info", &entropy).unwrap();
        assert_eq!((encapsulation.len(), own.public().to_bytes().len()), (ENCAPSULATION_LEN, PUBLIC_KEY_LEN));
        assert_eq!(own.decapsulate(&encapsulation, b"info").unwrap(), key);
        assert_ne!(own.decapsulate(&encapsulation, b"other").unwrap(), key);
        assert_ne!(other.decapsulate(&encapsulation, b"info").unwrap(), key);
        for at in (0..ENCAPSULATION_LEN).step_by(97).chain([ENCAPSULATION_LEN - 1]) {
            let mut changed = encapsulation.clone();
            changed[at] ^= 1;
            assert_ne!(own.decapsulate(&changed, b"info").unwrap(), key, "byte {at}");
        }
        assert!(own.decapsulate(&encapsulation[1..], b"info").is_err());
        assert_ne!(own.public().encapsulate(b"info", &entropy).unwrap().1, key);
    }

    #[test]
    fn a_key_pair_is_its_seed_and_the_public_key_round_trips() {
        let own = PrivateKey::from_seed(&Zeroizing::new([7; 32]));
        assert_eq!(own.seed()[..], [7; 32]);
        assert_eq!(PublicKey::from_bytes(&own.public().to_bytes()).unwrap(), own.public());
        assert!(PublicKey::from_bytes(&[0; 1215]).is_err() && PublicKey::from_bytes(&[0xFF; PUBLIC_KEY_LEN]).is_err());
    }

    /// The first test vector of draft-connolly-cfrg-xwing-kem, whose seed this is: the KEM under HPKE is that X-Wing.
    #[test]
    fn the_public_key_of_a_seed_is_that_of_the_draft() {
        let seed = HEXLOWER.decode(b"7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26").unwrap();
        let own = PrivateKey::from_seed(&Zeroizing::new(seed[..].try_into().unwrap()));
        let public = own.public().to_bytes();
        assert_eq!(HEXLOWER.encode(&public[..16]), "e2236b35a8c24b39b10aa1323a96a919");
    }
}
