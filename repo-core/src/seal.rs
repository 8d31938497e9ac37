//! Authenticated sealing (docs/format.md §3): one small trait, three implementations, two suites.
//!
//! AES-256-GCM is done by AWS-LC; RustCrypto's `aes-gcm` gives the same bytes and stands beside it, held
//! byte-identical by a test (docs/design/0002-aead.md has the figures). Suite `none` hides nothing but
//! authenticates all the same: a flipped bit is never restored.

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce as AwsNonce, UnboundKey};

use crate::error::{Error, ErrorKind, Result};

/// Bytes that sealing adds.
pub const TAG_LEN: usize = 16;
/// A key, in bytes.
pub const KEY_LEN: usize = 32;
/// A nonce, in bytes.
pub const NONCE_LEN: usize = 12;

/// A nonce. Never twice with one key.
pub type Nonce = [u8; NONCE_LEN];

/// The nonce of a key that seals one thing only.
pub const NONCE_ZERO: Nonce = [0; NONCE_LEN];

/// How a repository's packs and snapshot records are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Authenticated, not encrypted.
    None,
    /// AES-256-GCM.
    Aes256Gcm,
}

impl Suite {
    /// The number in the configuration.
    pub fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Aes256Gcm => 1,
        }
    }

    /// The suite of a number.
    ///
    /// # Errors
    /// `Unsupported` for a number this version does not know.
    pub fn from_number(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::None),
            1 => Ok(Self::Aes256Gcm),
            other => Err(Error::new(ErrorKind::Unsupported, format!("sealing suite {other} is not known"))),
        }
    }

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Aes256Gcm => "aes-256-gcm",
        }
    }

    /// A sealer for one key.
    pub fn sealer(self, key: &[u8; KEY_LEN]) -> Box<dyn Aead> {
        match self {
            Self::None => Box::new(KeyedHash::new(key)),
            Self::Aes256Gcm => Box::new(AwsLcAesGcm::new(key)),
        }
    }
}

/// Seals and opens under one key.
pub trait Aead: Send + Sync {
    /// Turns the plaintext in `buffer` into the body, and gives the tag.
    fn seal_in_place(&self, nonce: &Nonce, ad: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN];

    /// Turns the body in `buffer` into the plaintext. On failure the buffer's content means nothing.
    ///
    /// # Errors
    /// [`OpenError`] when the tag does not fit: other key, other associated data, or changed bytes.
    fn open_in_place(&self, nonce: &Nonce, ad: &[u8], buffer: &mut [u8], tag: &[u8; TAG_LEN]) -> Result<(), OpenError>;
}

/// What was sealed did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub struct OpenError;

impl dyn Aead + '_ {
    /// Seals `buffer` and appends the tag.
    pub fn seal(&self, nonce: &Nonce, ad: &[u8], buffer: &mut Vec<u8>) {
        let tag = self.seal_in_place(nonce, ad, buffer);
        buffer.extend_from_slice(&tag);
    }

    /// Opens `buffer`, which ends in the tag, and cuts the tag off.
    ///
    /// # Errors
    /// [`OpenError`], also when the buffer is too short for a tag.
    pub fn open(&self, nonce: &Nonce, ad: &[u8], buffer: &mut Vec<u8>) -> Result<(), OpenError> {
        let (body, tag) = buffer.split_last_chunk_mut::<TAG_LEN>().ok_or(OpenError)?;
        self.open_in_place(nonce, ad, body, tag)?;
        buffer.truncate(buffer.len() - TAG_LEN);
        Ok(())
    }
}

/// AES-256-GCM by AWS-LC.
pub struct AwsLcAesGcm(LessSafeKey);

impl AwsLcAesGcm {
    /// A sealer for `key`.
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("an AES-256 key has 32 bytes");
        Self(LessSafeKey::new(key))
    }
}

impl Aead for AwsLcAesGcm {
    fn seal_in_place(&self, nonce: &Nonce, ad: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN] {
        let nonce = AwsNonce::assume_unique_for_key(*nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(ad), buffer)
            .expect("a frame is far below AES-GCM's limit of 64 GiB");
        tag.as_ref().try_into().expect("an AES-GCM tag has 16 bytes")
    }

    fn open_in_place(&self, nonce: &Nonce, ad: &[u8], buffer: &mut [u8], tag: &[u8; TAG_LEN]) -> Result<(), OpenError> {
        let nonce = AwsNonce::assume_unique_for_key(*nonce);
        self.0.open_in_place_separate_tag(nonce, Aad::from(ad), tag, buffer).map_err(|_| OpenError)?;
        Ok(())
    }
}

/// AES-256-GCM by RustCrypto.
pub struct RustCryptoAesGcm(aes_gcm::Aes256Gcm);

impl RustCryptoAesGcm {
    /// A sealer for `key`.
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        Self(aes_gcm::Aes256Gcm::new(key.into()))
    }
}

impl Aead for RustCryptoAesGcm {
    fn seal_in_place(&self, nonce: &Nonce, ad: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN] {
        self.0
            .encrypt_inout_detached(nonce.into(), ad, InOutBuf::from(buffer))
            .expect("a frame is far below AES-GCM's limit of 64 GiB")
            .into()
    }

    fn open_in_place(&self, nonce: &Nonce, ad: &[u8], buffer: &mut [u8], tag: &[u8; TAG_LEN]) -> Result<(), OpenError> {
        self.0.decrypt_inout_detached(nonce.into(), ad, InOutBuf::from(buffer), tag.into()).map_err(|_| OpenError)
    }
}

/// Suite `none`: the plaintext as it is, with a keyed BLAKE3 tag.
pub struct KeyedHash([u8; KEY_LEN]);

impl KeyedHash {
    /// A sealer for `key`.
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        Self(*key)
    }

    fn tag(&self, nonce: &Nonce, ad: &[u8], plaintext: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(nonce).update(&(ad.len() as u64).to_le_bytes()).update(ad).update(plaintext);
        hasher.finalize()
    }
}

impl Aead for KeyedHash {
    fn seal_in_place(&self, nonce: &Nonce, ad: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN] {
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&self.tag(nonce, ad, buffer).as_bytes()[..TAG_LEN]);
        tag
    }

    fn open_in_place(&self, nonce: &Nonce, ad: &[u8], buffer: &mut [u8], tag: &[u8; TAG_LEN]) -> Result<(), OpenError> {
        // The key of this suite is no secret, so a comparison that tells time tells nothing.
        if self.tag(nonce, ad, buffer).as_bytes()[..TAG_LEN] == *tag { Ok(()) } else { Err(OpenError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealers(key: &[u8; KEY_LEN]) -> [Box<dyn Aead>; 3] {
        [Box::new(AwsLcAesGcm::new(key)), Box::new(RustCryptoAesGcm::new(key)), Box::new(KeyedHash::new(key))]
    }

    proptest! {
        #[test]
        fn both_aes_gcm_implementations_give_the_same_bytes_and_open_each_other(
            key: [u8; 32], nonce: [u8; 12], ad: Vec<u8>, plaintext: Vec<u8>,
        ) {
            let [aws, rust, _] = sealers(&key);
            let (mut by_aws, mut by_rust) = (plaintext.clone(), plaintext.clone());
            aws.seal(&nonce, &ad, &mut by_aws);
            rust.seal(&nonce, &ad, &mut by_rust);
            prop_assert_eq!(&by_aws, &by_rust);
            rust.open(&nonce, &ad, &mut by_aws).unwrap();
            aws.open(&nonce, &ad, &mut by_rust).unwrap();
            prop_assert_eq!(&by_aws, &plaintext);
            prop_assert_eq!(&by_rust, &plaintext);
        }

        #[test]
        fn any_changed_bit_key_or_context_fails_to_open(
            key: [u8; 32], nonce: [u8; 12], ad: Vec<u8>, plaintext: Vec<u8>, at: prop::sample::Index, bit in 0..8_u32,
        ) {
            for sealer in sealers(&key) {
                let mut sealed = plaintext.clone();
                sealer.seal(&nonce, &ad, &mut sealed);
                let mut flipped = sealed.clone();
                let at = at.index(flipped.len());
                flipped[at] ^= 1 << bit;
                prop_assert_eq!(sealer.open(&nonce, &ad, &mut flipped), Err(OpenError));
                let mut other_nonce = nonce;
                other_nonce[3] ^= 1;
                prop_assert_eq!(sealer.open(&other_nonce, &ad, &mut sealed.clone()), Err(OpenError));
                let mut other_ad = ad.clone();
                other_ad.push(0);
                prop_assert_eq!(sealer.open(&nonce, &other_ad, &mut sealed.clone()), Err(OpenError));
                sealed.truncate(TAG_LEN - 1);
                prop_assert_eq!(sealer.open(&nonce, &ad, &mut sealed), Err(OpenError));
            }
        }
    }
}
