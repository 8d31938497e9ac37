//! Packs: immutable objects of frames, a directory and a trailer (docs/format.md §7).
//!
//! ```text
//! header (64) ‖ encapsulation ‖ frames, each sealed ‖ directory, sealed ‖ trailer (32)
//! ```
//!
//! A pack's keys come from a role key and the pack's random salt. The frames of a data pack in an encrypted repository are
//! sealed under a key of their own, which is encapsulated to the public data key: whoever writes them need not be able to
//! read them later. Nonces count frames; the header, the position and all lengths are associated data, so nothing can be
//! moved, cut or swapped unnoticed. The pack's name is the BLAKE3 of its bytes, so that a keyless server can verify it too.

pub mod directory;
pub mod reader;
pub mod writer;

use std::sync::{Arc, OnceLock};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::config::Config;
use crate::entropy::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::frame::{self, Codec};
use crate::id::RepositoryId;
use crate::keys::recipient::{ENCAPSULATION_LEN, PrivateKey};
use crate::keys::{Key, Role, RoleKeys, derive};
use crate::object::{ObjectHeader, ObjectKind};
use crate::seal::{Aead, NONCE_LEN, NONCE_ZERO, Nonce, Suite, TAG_LEN};

/// The most frames in one pack.
pub const FRAMES_MAX: usize = 1 << 16;

/// The length of a pack's header in bytes.
pub const HEADER_LEN: usize = size_of::<Header>();
/// The length of a pack's trailer in bytes.
pub const TRAILER_LEN: usize = size_of::<Trailer>();

const TRAILER_MAGIC: [u8; 8] = *b"CAIRNEND";
/// Bytes of a pack's beginning that hold all that stands before its frames.
pub(crate) const HEAD_LEN_MAX: usize = HEADER_LEN + ENCAPSULATION_LEN;

/// The frame key is derived from a role key.
const FRAME_KEY_DERIVED: u8 = 0;
/// The frame key is encapsulated to the public data key.
const FRAME_KEY_ENCAPSULATED: u8 = 1;

/// What a pack's entries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Chunks of disks, sealed to the public data key.
    Data,
    /// Manifest nodes, under the structure key.
    Meta,
}

impl Content {
    /// The number in headers and in the index.
    pub fn number(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Meta => 2,
        }
    }

    /// The content of a number.
    ///
    /// # Errors
    /// `Corrupt` for any other.
    pub fn from_number(number: u8) -> Result<Self> {
        match number {
            1 => Ok(Self::Data),
            2 => Ok(Self::Meta),
            other => Err(Error::corrupt(format!("pack content {other} is not known"))),
        }
    }

    /// How the frames' key is had in repositories of a suite: one way for each.
    fn frame_key(self, suite: Suite) -> u8 {
        match (self, suite) {
            (Self::Data, Suite::Aes256Gcm) => FRAME_KEY_ENCAPSULATED,
            (Self::Data, Suite::None) | (Self::Meta, _) => FRAME_KEY_DERIVED,
        }
    }
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    object: ObjectHeader,
    content: u8,
    frame_key: u8,
    encapsulation_len: U16,
    zero: [u8; 12],
    salt: [u8; 32],
}

/// The last bytes of a pack.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Trailer {
    directory_offset: U64,
    directory_len: U32,
    frame_count: U32,
    pack_len: U64,
    magic: [u8; 8],
}

impl Trailer {
    fn new(directory_offset: u64, directory_len: u32, frame_count: u32) -> Self {
        let pack_len = directory_offset + u64::from(directory_len) + TRAILER_LEN as u64;
        Self {
            directory_offset: directory_offset.into(),
            directory_len: directory_len.into(),
            frame_count: frame_count.into(),
            pack_len: pack_len.into(),
            magic: TRAILER_MAGIC,
        }
    }

    /// Reads the trailer of a pack of `pack_len` bytes, and checks that it describes such a pack.
    ///
    /// # Errors
    /// `Corrupt` naming the field.
    pub fn decode(bytes: &[u8], pack_len: u64) -> Result<Self> {
        let trailer = Self::read_from_bytes(bytes)
            .map_err(|_| Error::corrupt(format!("pack trailer has {} bytes instead of {TRAILER_LEN}", bytes.len())))?;
        if trailer.magic != TRAILER_MAGIC {
            return Err(Error::corrupt("magic bytes of the pack trailer are wrong: damaged or cut short"));
        }
        if trailer.pack_len.get() != pack_len {
            return Err(Error::corrupt(format!("pack has {pack_len} bytes, its trailer says {}", trailer.pack_len)));
        }
        let offset = trailer.directory_offset.get();
        let end = offset.checked_add(u64::from(trailer.directory_len.get()) + TRAILER_LEN as u64);
        if offset < HEADER_LEN as u64 || end != Some(pack_len) {
            return Err(Error::corrupt(format!(
                "pack directory at {offset} of {} bytes does not fit a pack of {pack_len}",
                trailer.directory_len
            )));
        }
        if trailer.frame_count.get() as usize > FRAMES_MAX {
            return Err(Error::corrupt(format!("pack claims {} frames", trailer.frame_count)));
        }
        Ok(trailer)
    }

    /// Where the sealed directory stands.
    pub fn directory_range(&self) -> std::ops::Range<u64> {
        let offset = self.directory_offset.get();
        offset..offset + u64::from(self.directory_len.get())
    }
}

/// A frame as it stands in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRecord {
    /// Length of the sealed frame in bytes.
    pub sealed_len: u32,
    /// Length of its content in bytes.
    pub plain_len: u32,
    /// Entries in it.
    pub entry_count: u32,
    /// How the content is stored.
    pub codec: Codec,
}

/// A frame ready to be appended to its pack.
pub struct SealedFrame {
    bytes: Vec<u8>,
    position: u32,
    plain_len: u32,
    codec: Codec,
}

impl SealedFrame {
    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// One pack's keys, and the context its frames and directory are sealed in.
pub struct PackCipher {
    repository: RepositoryId,
    suite: Suite,
    header: [u8; HEADER_LEN],
    encapsulation: Vec<u8>,
    content: Content,
    directory: Box<dyn Aead>,
    frames: FrameKey,
}

/// What opens a pack's frames.
enum FrameKey {
    /// Known, since it was just made or comes of a role key.
    Known(Box<dyn Aead>),
    /// To be decapsulated when the first frame is opened: most packs that are opened are opened for their directory.
    Encapsulated(Arc<PrivateKey>, OnceLock<Box<dyn Aead>>),
    /// The key in use does not grant the role.
    NotGranted(Role),
}

impl PackCipher {
    /// The cipher of a new pack, with a fresh salt.
    ///
    /// # Errors
    /// `Forbidden` without the keys that it takes; `Io` without randomness.
    pub fn create(content: Content, config: &Config, keys: &RoleKeys, entropy: &Entropy) -> Result<Self> {
        let frame_key = content.frame_key(config.suite);
        let encapsulation_len = if frame_key == FRAME_KEY_ENCAPSULATED { ENCAPSULATION_LEN } else { 0 };
        let header = Header {
            object: ObjectHeader::new(ObjectKind::Pack),
            content: content.number(),
            frame_key,
            encapsulation_len: u16::try_from(encapsulation_len).expect("an encapsulation is short").into(),
            zero: [0; 12],
            salt: entropy.bytes()?,
        };
        if frame_key == FRAME_KEY_DERIVED {
            return Self::open(header.as_bytes(), config, keys);
        }
        let info = frame_key_info(config.id, header.as_bytes());
        let (encapsulation, key) = keys.public_data()?.encapsulate(&info, entropy)?;
        let cipher = Self::open(&[header.as_bytes(), &encapsulation[..]].concat(), config, keys)?;
        Ok(Self { frames: FrameKey::Known(config.suite.sealer(&key)), ..cipher })
    }

    /// The cipher of a pack, from its first bytes: the header, and the encapsulation if it has one. What follows is not
    /// looked at.
    ///
    /// # Errors
    /// `Corrupt` or `Unsupported` for a header this version does not read; `Forbidden` without the structure key.
    pub fn open(head: &[u8], config: &Config, keys: &RoleKeys) -> Result<Self> {
        ObjectHeader::check(head, ObjectKind::Pack)?;
        let (fields, rest) = Header::ref_from_prefix(head)
            .map_err(|_| Error::corrupt(format!("pack header has {} bytes instead of {HEADER_LEN}", head.len())))?;
        let content = Content::from_number(fields.content)?;
        if fields.frame_key > FRAME_KEY_ENCAPSULATED {
            let text = format!("frame key kind {} is not known to this program", fields.frame_key);
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if fields.frame_key != content.frame_key(config.suite) {
            return Err(Error::corrupt(format!("frame key kind {} does not belong into this pack", fields.frame_key)));
        }
        let encapsulation_len = if fields.frame_key == FRAME_KEY_ENCAPSULATED { ENCAPSULATION_LEN } else { 0 };
        if usize::from(fields.encapsulation_len.get()) != encapsulation_len {
            return Err(Error::corrupt(format!(
                "encapsulation of {} bytes in the pack header",
                fields.encapsulation_len
            )));
        }
        if fields.zero != [0; 12] {
            return Err(Error::corrupt("reserved bytes of the pack header are not zero"));
        }
        let encapsulation =
            rest.get(..encapsulation_len).ok_or_else(|| Error::corrupt("encapsulation is cut short"))?;
        let directory = derive("cairn v1 directory key", &[&keys.get(Role::Structure)?[..], &fields.salt]);
        let derived = |role: Role| match keys.get(role) {
            Ok(key) => {
                let key: Key = derive("cairn v1 frame key", &[&key[..], &fields.salt]);
                FrameKey::Known(config.suite.sealer(&key))
            }
            Err(_) => FrameKey::NotGranted(role),
        };
        let frames = match (content, fields.frame_key, keys.private_data()) {
            (Content::Data, FRAME_KEY_DERIVED, _) => derived(Role::Data),
            (Content::Meta, ..) => derived(Role::Structure),
            (Content::Data, _, Ok(private)) => FrameKey::Encapsulated(private.clone(), OnceLock::new()),
            (Content::Data, _, Err(_)) => FrameKey::NotGranted(Role::Data),
        };
        Ok(Self {
            repository: config.id,
            suite: config.suite,
            header: *head.first_chunk().expect("length was just checked"),
            encapsulation: encapsulation.to_vec(),
            content,
            directory: config.suite.sealer(&directory),
            frames,
        })
    }

    /// Where the first frame stands in the pack, in bytes.
    pub fn frames_offset(&self) -> u64 {
        (HEADER_LEN + self.encapsulation.len()) as u64
    }

    /// What the pack's entries are.
    pub fn content(&self) -> Content {
        self.content
    }

    /// Compresses and seals one frame, then opens and compares it: only what was read back counts as stored.
    ///
    /// # Errors
    /// `Forbidden` without the keys that it takes; `Internal` when what was sealed does not open to the same bytes,
    /// which means broken memory or a broken library.
    pub fn seal_frame(&self, position: u32, plain: &[u8], level: i32) -> Result<SealedFrame> {
        let (codec, mut bytes) = frame::compress(plain, level, TAG_LEN)?;
        let len = |len: usize| u32::try_from(len).expect("a frame is at most 32 MiB");
        let record =
            FrameRecord { sealed_len: len(bytes.len() + TAG_LEN), plain_len: len(plain.len()), entry_count: 0, codec };
        self.frame_sealer()?.seal(&frame_nonce(position), &self.frame_context(position, &record), &mut bytes);
        let read_back = self.open_frame(position, &record, bytes.clone());
        if !read_back.is_ok_and(|read_back| read_back == plain) {
            return Err(Error::internal(
                "a sealed frame did not open to what was sealed: memory or processor of this machine are not to be trusted",
            ));
        }
        Ok(SealedFrame { bytes, position, plain_len: record.plain_len, codec })
    }

    /// Opens and decompresses one frame.
    ///
    /// # Errors
    /// `Corrupt` when the bytes were changed or do not decompress; `Forbidden` without the role.
    pub fn open_frame(&self, position: u32, record: &FrameRecord, mut sealed: Vec<u8>) -> Result<Vec<u8>> {
        let context = self.frame_context(position, record);
        self.frame_sealer()?
            .open(&frame_nonce(position), &context, &mut sealed)
            .map_err(|error| Error::corrupt(error.to_string()))?;
        frame::decompress(record.codec, sealed, record.plain_len as usize)
    }

    fn frame_sealer(&self) -> Result<&dyn Aead> {
        match &self.frames {
            FrameKey::Known(sealer) => Ok(&**sealer),
            FrameKey::Encapsulated(private, opened) => {
                if let Some(sealer) = opened.get() {
                    return Ok(&**sealer);
                }
                let info = frame_key_info(self.repository, &self.header);
                let key = private.decapsulate(&self.encapsulation, &info)?;
                Ok(&**opened.get_or_init(|| self.suite.sealer(&key)))
            }
            FrameKey::NotGranted(role) => {
                let text = format!("the key in use does not grant the {} role", role.name());
                Err(Error::new(ErrorKind::Forbidden, text))
            }
        }
    }

    fn frame_context(&self, position: u32, record: &FrameRecord) -> Vec<u8> {
        let mut context = Vec::with_capacity(16 + HEADER_LEN + 13);
        context.extend_from_slice(self.repository.as_bytes());
        context.extend_from_slice(&self.header);
        context.extend_from_slice(&position.to_le_bytes());
        context.push(record.codec.number());
        context.extend_from_slice(&record.plain_len.to_le_bytes());
        context.extend_from_slice(&record.sealed_len.to_le_bytes());
        context
    }

    fn seal_directory(&self, mut plain: Vec<u8>, directory_offset: u64, frame_count: u32) -> (Vec<u8>, Trailer) {
        let sealed_len = u32::try_from(plain.len() + TAG_LEN).expect("a directory is far below 4 GiB");
        let trailer = Trailer::new(directory_offset, sealed_len, frame_count);
        self.directory.seal(&NONCE_ZERO, &self.directory_context(&trailer), &mut plain);
        (plain, trailer)
    }

    fn open_directory(&self, mut sealed: Vec<u8>, trailer: &Trailer) -> Result<Vec<u8>> {
        self.directory
            .open(&NONCE_ZERO, &self.directory_context(trailer), &mut sealed)
            .map_err(|error| Error::corrupt(format!("pack directory: {error}")))?;
        Ok(sealed)
    }

    fn directory_context(&self, trailer: &Trailer) -> Vec<u8> {
        [self.repository.as_bytes(), &self.header[..], &self.encapsulation, trailer.as_bytes()].concat()
    }
}

/// What an encapsulated frame key is bound to.
fn frame_key_info(repository: RepositoryId, header: &[u8]) -> Vec<u8> {
    [b"cairn v1 frame key", &repository.as_bytes()[..], header].concat()
}

fn frame_nonce(position: u32) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[..4].copy_from_slice(&position.to_le_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_sizes_and_offsets_of_the_format_page() {
        assert_eq!((HEADER_LEN, TRAILER_LEN, size_of::<ObjectHeader>()), (64, 32, 16));
        let header = Header {
            object: ObjectHeader::new(ObjectKind::Pack),
            content: 2,
            frame_key: 0,
            encapsulation_len: 0x0102.into(),
            zero: [0; 12],
            salt: [9; 32],
        };
        let bytes = header.as_bytes();
        assert_eq!((bytes[16], bytes[17], &bytes[18..20], &bytes[32..]), (2, 0, &[2, 1][..], &[9; 32][..]));
        let trailer = Trailer::new(100, 50, 3);
        let bytes = trailer.as_bytes();
        assert_eq!((bytes[0], bytes[8], bytes[12], bytes[16], &bytes[24..]), (100, 50, 3, 182, &b"CAIRNEND"[..]));
        Trailer::decode(bytes, 182).unwrap();
        assert!(Trailer::decode(bytes, 181).is_err());
    }
}
