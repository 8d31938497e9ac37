//! Writing a pack: frames appended in order, then the directory and the trailer, then the name.

use std::sync::Arc;

use zerocopy::IntoBytes;

use crate::error::{Result, ResultExt};
use crate::id::PackId;
use crate::pack::directory::{Directory, Entry};
use crate::pack::{Content, FrameRecord, PackCipher, SealedFrame};
use crate::store::{NewObject, ObjectName, Store};

/// A pack being written.
pub struct PackWriter {
    cipher: Arc<PackCipher>,
    object: NewObject,
    hasher: blake3::Hasher,
    directory: Directory,
}

/// A pack that survives a power cut. Only such a pack may be named by the index or by a snapshot.
#[derive(Debug, Clone)]
pub struct DurablePack {
    /// Its name.
    pub id: PackId,
    /// Its length in bytes.
    pub len: u64,
    /// What its entries are.
    pub content: Content,
    /// Its table.
    pub directory: Directory,
}

impl PackWriter {
    /// Begins a pack.
    ///
    /// # Errors
    /// `Io` when the store cannot be written.
    pub fn create(cipher: Arc<PackCipher>, store: &Store) -> Result<Self> {
        let mut writer = Self {
            object: store.new_object()?,
            hasher: blake3::Hasher::new(),
            directory: Directory::new(cipher.frames_offset()),
            cipher,
        };
        let cipher = writer.cipher.clone();
        writer.write(&cipher.header)?;
        writer.write(&cipher.encapsulation)?;
        Ok(writer)
    }

    /// What seals this pack.
    pub fn cipher(&self) -> &Arc<PackCipher> {
        &self.cipher
    }

    /// Appends the next frame with its entries. Frames come in the order of the positions they were sealed for.
    ///
    /// # Errors
    /// `Io` when the store cannot be written.
    pub fn append(&mut self, frame: &SealedFrame, entries: &[Entry]) -> Result<()> {
        assert_eq!(frame.position as usize, self.directory.frames().len(), "frames are appended in sealed order");
        let count = |count: usize| u32::try_from(count).expect("a frame has at most 65536 entries");
        let record = FrameRecord {
            sealed_len: count(frame.bytes.len()),
            plain_len: frame.plain_len,
            entry_count: count(entries.len()),
            codec: frame.codec,
        };
        self.write(&frame.bytes)?;
        self.directory.push(record, entries);
        Ok(())
    }

    /// Writes directory and trailer, makes the pack durable and gives it its name.
    ///
    /// # Errors
    /// `Io` when the store cannot be written.
    pub fn finish(mut self) -> Result<DurablePack> {
        let frame_count = u32::try_from(self.directory.frames().len()).expect("a pack has at most 65536 frames");
        let (directory, trailer) =
            self.cipher.seal_directory(self.directory.encode(), self.directory.end(), frame_count);
        self.write(&directory)?;
        self.write(trailer.as_bytes())?;
        let id = PackId(*self.hasher.finalize().as_bytes());
        match self.cipher.content {
            Content::Data => self.object.publish(ObjectName::Pack(id))?,
            Content::Meta => self.object.publish_manifests(id)?,
        }
        Ok(DurablePack { id, len: trailer.pack_len.get(), content: self.cipher.content, directory: self.directory })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.object.append(bytes).context(|| "cannot write a pack")
    }
}
