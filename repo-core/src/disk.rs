//! Virtual disks outside the repository: where blocks come from, and where they go.
//!
//! A [`DiskSource`] hands out 2 MiB blocks of content; a [`DiskSink`] takes pages of content at any
//! position. Neither knows of chunks, packs or keys. Everything a source reads is untrusted.

pub mod changed;
mod forward;
mod http_head;
pub mod image;
pub mod qcow2;
mod quoted;
pub mod raw;
pub mod vhd;
pub mod vhdx;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::PathBuf;

use self::changed::{ChangedList, HintedSource};
use self::forward::ForwardReader;
use self::qcow2::Qcow2FileSource;
use self::raw::file_source::RawFileSource;
use self::raw::stream_source::{RawStreamSource, StreamEnd};
use self::vhd::file_source::VhdFileSource;
use self::vhd::footer::Footer;
use self::vhd::stream_source::VhdStreamSource;
use self::vhd::trailer::{self, FileKind};
use crate::direct::AlignedBuf;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::units::{BLOCK_LEN, BlockIndex, SECTOR_LEN, VIRTUAL_SIZE_MAX, block_count};

/// Sectors of a block.
pub const SECTORS_PER_BLOCK: usize = BLOCK_LEN / SECTOR_LEN;

/// A 2 MiB buffer holding the content of one block, where direct writes take it. Bytes past the end of the disk are zero.
#[derive(Clone)]
pub struct BlockBuf(AlignedBuf);

impl BlockBuf {
    /// A buffer of zeros.
    pub fn new() -> Self {
        Self(AlignedBuf::zeroed(BLOCK_LEN))
    }

    /// The block's 2 MiB.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The block's 2 MiB, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Zeroes what of block `index` lies past the end of a disk of `virtual_size` bytes.
    pub(crate) fn clear_past_end(&mut self, index: BlockIndex, virtual_size: u64) {
        self.0[index.len_on_disk_bytes(virtual_size)..].fill(0);
    }
}

impl Default for BlockBuf {
    fn default() -> Self {
        Self::new()
    }
}

/// How a disk was stored where it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// Every byte of the disk in order, nothing else.
    Raw,
    /// VHD with all of the disk's bytes and a footer.
    VhdFixed,
    /// VHD with a block allocation table.
    VhdDynamic,
    /// VHD that holds what differs from a parent.
    VhdDifferencing,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

impl DiskFormat {
    /// The name used in records, JSON and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::VhdFixed => "vhd-fixed",
            Self::VhdDynamic => "vhd-dynamic",
            Self::VhdDifferencing => "vhd-differencing",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// In which order a source delivers its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Blocks come in ascending order.
    Ascending,
    /// Blocks come in the order of the stream, each at most once.
    AnyOrder,
}

/// What the blocks are that a source never delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undelivered {
    /// Zeros: the source is the whole disk.
    Zeros,
    /// Those of the base, which the source says nothing about: the source is a delta.
    Base,
}

/// Which sectors of a block a delta holds: one bit each, the first sector's the lowest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectorMask([u64; SECTORS_PER_BLOCK / 64]);

impl SectorMask {
    /// No sector.
    pub const NONE: Self = Self([0; SECTORS_PER_BLOCK / 64]);

    /// Adds a sector.
    ///
    /// # Panics
    /// When a block has no such sector.
    pub fn insert(&mut self, sector: usize) {
        self.0[sector / 64] |= 1 << (sector % 64);
    }

    /// Adds all sectors from `first` on.
    ///
    /// # Panics
    /// When `first` is above the number of sectors of a block.
    pub fn insert_from(&mut self, first: usize) {
        assert!(first <= SECTORS_PER_BLOCK, "sector {first} of a block");
        for (at, word) in self.0.iter_mut().enumerate() {
            let before = first.saturating_sub(at * 64).min(64);
            *word |= u64::MAX.checked_shl(u32::try_from(before).expect("at most 64")).unwrap_or(0);
        }
    }

    /// Whether the sector is held; false for sectors a block does not have.
    pub fn contains(&self, sector: usize) -> bool {
        self.0.get(sector / 64).is_some_and(|word| word >> (sector % 64) & 1 == 1)
    }

    /// Whether every sector is held.
    pub fn is_full(&self) -> bool {
        self.0.iter().all(|word| *word == u64::MAX)
    }

    /// Whether no sector is held.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

/// Ids by which the images of a chain name each other, of an image whose writer keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageIds {
    /// The image's own.
    pub own: [u8; 16],
    /// That of the image it is a delta against, if that is an image of the same kind.
    pub parent: Option<[u8; 16]>,
}

/// A disk being read, block by block: the whole of it, or what differs from a base.
pub trait DiskSource: Send {
    /// The disk's size in bytes, at most [`VIRTUAL_SIZE_MAX`]; not
    /// necessarily a multiple of anything. `None` while a raw stream of unknown length is still being read;
    /// always known once [`next_block`](Self::next_block) returned `None`.
    fn virtual_size(&self) -> Option<u64>;

    /// The format the bytes are read from. Settled, like the size, once [`next_block`](Self::next_block) returned
    /// `None`: a stream shows only at its end whether it was a fixed VHD.
    fn format(&self) -> DiskFormat;

    /// In which order blocks come.
    fn delivery(&self) -> Delivery;

    /// What the blocks are that are never delivered.
    fn undelivered(&self) -> Undelivered {
        Undelivered::Zeros
    }

    /// The ids of the image, where they tell which image a delta was made against.
    fn ids(&self) -> Option<ImageIds> {
        None
    }

    /// Whether a changed list chose the blocks to deliver. Such a list may be wrong: what it calls unchanged is to be
    /// [sampled](Self::sample).
    fn is_hinted(&self) -> bool {
        false
    }

    /// Reads a block that the source did not deliver, where it can: for checking a hint. `false` when it cannot.
    ///
    /// # Errors
    /// `Io` when reading fails.
    fn sample(&mut self, _index: BlockIndex, _buf: &mut BlockBuf) -> Result<bool> {
        Ok(false)
    }

    /// Which sectors of the block just delivered the source holds; the others are the base's, whatever the buffer has
    /// there. `None` when it holds them all.
    fn held_sectors(&self) -> Option<&SectorMask> {
        None
    }

    /// Fills `buf` with the next block (all 2 MiB of it, zeros past the disk's end) and names it. Each block is
    /// delivered at most once. `None` only when the source was proven complete: nothing may be committed before.
    ///
    /// # Errors
    /// `Invalid` for a malformed or truncated source, naming offset and field; `Io` when reading fails.
    fn next_block(&mut self, buf: &mut BlockBuf) -> Result<Option<BlockIndex>>;
}

/// A disk being written. Positions and lengths are in bytes on the virtual disk.
///
/// Ranges come in any order, each at most once. What is never written reads as zeros.
pub trait DiskSink: Send + Sync {
    /// Writes `bytes` at `offset`; both are multiples of 512 except at the disk's end.
    ///
    /// # Errors
    /// `Io` when writing fails.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Completes the disk and makes it durable.
    ///
    /// # Errors
    /// `Io` when writing or syncing fails.
    fn finish(&self) -> Result<()>;
}

/// A disk being written front to back, to a pipe or a socket.
pub trait StreamSink: Send {
    /// Writes the next block. Called in ascending order, exactly for the present blocks; `content` is 2 MiB long,
    /// and what of it lies past the disk's end is ignored.
    ///
    /// # Errors
    /// `Io` when writing fails; `Internal` for a block out of turn.
    fn write_block(&mut self, index: BlockIndex, content: &[u8]) -> Result<()>;

    /// Writes what follows the last block, and flushes.
    ///
    /// # Errors
    /// `Io` when writing fails; `Internal` when a present block was never written.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Which 2 MiB blocks of a disk hold anything; the others are all zeros. One bit a block: 64 MiB for the largest disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresentBlocks {
    words: Vec<u64>,
    block_count: u64,
}

impl PresentBlocks {
    /// No block of a disk of `virtual_size` bytes is present.
    ///
    /// # Panics
    /// When `virtual_size` is above [`VIRTUAL_SIZE_MAX`].
    pub fn new(virtual_size: u64) -> Self {
        assert!(virtual_size <= VIRTUAL_SIZE_MAX, "a disk of {virtual_size} bytes was let in");
        let block_count = block_count(virtual_size);
        let words = usize::try_from(block_count.div_ceil(64)).expect("the largest disk has 2^23 words");
        Self { words: vec![0; words], block_count }
    }

    /// Blocks the disk has, present or not.
    pub fn block_count(&self) -> u64 {
        self.block_count
    }

    /// Marks a block as present.
    ///
    /// # Panics
    /// When the disk has no such block.
    pub fn insert(&mut self, index: BlockIndex) {
        assert!(index.0 < self.block_count, "block {index} of a disk of {} blocks", self.block_count);
        if let Some(word) = self.word_mut(index) {
            *word |= 1 << (index.0 % 64);
        }
    }

    /// Whether a block is present; false for blocks the disk does not have.
    pub fn contains(&self, index: BlockIndex) -> bool {
        let word = usize::try_from(index.0 / 64).ok().and_then(|at| self.words.get(at));
        word.is_some_and(|word| word >> (index.0 % 64) & 1 == 1)
    }

    /// How many blocks are present.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The present blocks, ascending.
    pub fn iter(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        self.words.iter().zip(0_u64..).flat_map(|(word, at)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(BlockIndex(at * 64 + u64::from(bit)))
            })
        })
    }

    fn word_mut(&mut self, index: BlockIndex) -> Option<&mut u64> {
        usize::try_from(index.0 / 64).ok().and_then(|at| self.words.get_mut(at))
    }
}

/// What the caller knows of the format of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FormatHint {
    /// Nothing: VHD is recognised by its footers, qcow2 by its first bytes, everything else is raw. What looks like a
    /// VHD or a qcow2 image and is not a sound one is refused rather than taken as raw.
    #[default]
    Auto,
    /// It is a VHD: dynamic, differencing or fixed.
    Vhd,
    /// It is a qcow2 image.
    Qcow2,
    /// Every byte is content of the disk, whatever it looks like.
    Raw,
}

/// How to open an input.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// What is known of the format.
    pub format: FormatHint,
    /// Where the anonymous temporary file goes that a VHD stream with scattered blocks below 2 MiB may need. It
    /// holds content of the disk in the clear and at most as many bytes as the disk has.
    pub spill_dir: PathBuf,
    /// The folder that a qcow2 image's backing file is looked for in, unless its name is absolute; `None` refuses
    /// images with a backing file. What file that is says the image: whoever made it can have any file read.
    pub backing: Option<PathBuf>,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self { format: FormatHint::Auto, spill_dir: PathBuf::from("/var/tmp"), backing: None }
    }
}

/// Opens a disk image in a regular file or on a block device; anything else (a FIFO, a socket, a terminal) is read as
/// [`open_stream`] does.
///
/// # Errors
/// `Invalid` for a malformed, truncated or empty image, `Unsupported` for a disabled one, one past the size limits, or one
/// with features that are not read here; `Io` when reading fails.
pub fn open_file(mut file: File, options: &SourceOptions) -> Result<Box<dyn DiskSource>> {
    if !is_seekable(&file)? {
        return open_stream(file, options);
    }
    let (kind, end) = examine(&mut file, options)?;
    match kind {
        Seekable::Raw => Ok(Box::new(RawFileSource::open(file, end)?)),
        Seekable::FixedVhd { content_len_bytes } => {
            Ok(Box::new(RawFileSource::open_fixed_vhd(file, content_len_bytes)?))
        }
        Seekable::DynamicVhd => Ok(Box::new(VhdFileSource::open(file, end)?)),
        Seekable::Qcow2 => Ok(Box::new(Qcow2FileSource::open(file, end, options.backing.as_deref())?)),
    }
}

/// Opens a raw disk, or a fixed VHD, of which only what a list says is read: against a base of `base_size` bytes.
///
/// # Errors
/// As [`open_file`]; `Unsupported` also for what can only be read forward and for formats with a map of their own,
/// `Invalid` when the list does not fit the disk.
pub fn open_hinted(
    mut file: File,
    options: &SourceOptions,
    list: &ChangedList,
    base_size: u64,
) -> Result<Box<dyn DiskSource>> {
    if !is_seekable(&file)? {
        let text = "the changed list needs a source that can be read anywhere: a file or a block device";
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let (format, virtual_size) = match examine(&mut file, options)? {
        (Seekable::Raw, end) => (DiskFormat::Raw, end),
        (Seekable::FixedVhd { content_len_bytes }, _) => (DiskFormat::VhdFixed, content_len_bytes),
        (Seekable::DynamicVhd | Seekable::Qcow2, _) => {
            let text = "the changed list goes with a raw disk or a fixed VHD; import this image without it";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
    };
    Ok(Box::new(HintedSource::open(file, format, virtual_size, list, base_size)?))
}

/// What can be read anywhere.
enum Seekable {
    Raw,
    FixedVhd { content_len_bytes: u64 },
    DynamicVhd,
    Qcow2,
}

fn is_seekable(file: &File) -> Result<bool> {
    let file_type = file.metadata().context(|| "cannot examine the input")?.file_type();
    Ok(file_type.is_file() || file_type.is_block_device())
}

/// Tells what a regular file or block device is, and where it ends.
fn examine(file: &mut File, options: &SourceOptions) -> Result<(Seekable, u64)> {
    // A block device has no length in its metadata; the position is never used, all reads are positioned.
    let end = file.seek(SeekFrom::End(0)).context(|| "cannot find the end of the input")?;
    refuse_empty(end)?;
    if options.format == FormatHint::Raw {
        return Ok((Seekable::Raw, end));
    }
    let head = read_sector(file, 0, end)?;
    let tail = read_sector(file, end.saturating_sub(SECTOR_LEN as u64), end)?;
    http_head::refuse(&head, 0)?;
    if options.format == FormatHint::Qcow2 {
        return Ok((Seekable::Qcow2, end));
    }
    // Only a whole fixed VHD may begin like a qcow2 image: a qcow2 image's last cluster may well end in a VHD's footer.
    let is_fixed = matches!(trailer::fixed_content_len(&tail, end), Ok(Some(_)));
    if options.format == FormatHint::Auto && qcow2::has_magic(&head) && !is_fixed {
        return Ok((Seekable::Qcow2, end));
    }
    match trailer::file_kind(&head, &tail, end)? {
        FileKind::Dynamic => Ok((Seekable::DynamicVhd, end)),
        FileKind::Fixed { content_len_bytes } => Ok((Seekable::FixedVhd { content_len_bytes }, end)),
        FileKind::NoVhd if options.format == FormatHint::Auto => Ok((Seekable::Raw, end)),
        FileKind::NoVhd => Err(trailer::no_footer(end)),
    }
}

/// Opens a disk image that can only be read forward.
///
/// # Errors
/// As [`open_file`]; what is wrong further on in the stream is reported by [`DiskSource::next_block`].
pub fn open_stream(reader: impl Read + Send + 'static, options: &SourceOptions) -> Result<Box<dyn DiskSource>> {
    let mut reader = ForwardReader::new(reader);
    let mut head = [0; SECTOR_LEN];
    let head_len = reader.fill_some(&mut head)?;
    let head = &head[..head_len];
    refuse_empty(head.len() as u64)?;
    http_head::refuse(head, 0)?;
    if options.format == FormatHint::Qcow2 || (options.format == FormatHint::Auto && qcow2::has_magic(head)) {
        return Err(qcow2::no_stream());
    }
    if options.format != FormatHint::Raw && Footer::has_cookie(head) {
        return Ok(Box::new(VhdStreamSource::open(reader, head, &options.spill_dir)?));
    }
    let end = match options.format {
        FormatHint::Auto | FormatHint::Qcow2 => StreamEnd::ContentOrFooter,
        FormatHint::Vhd => StreamEnd::Footer,
        FormatHint::Raw => StreamEnd::Content,
    };
    Ok(Box::new(RawStreamSource::new(reader, head, end)))
}

fn refuse_empty(len: u64) -> Result<()> {
    // No disk has zero bytes, but a failed export does.
    if len == 0 { Err(Error::invalid("the input is empty")) } else { Ok(()) }
}

fn read_sector(file: &File, offset: u64, end: u64) -> Result<Vec<u8>> {
    let mut sector = vec![0; BlockIndex(0).len_on_disk_bytes(end - offset).min(SECTOR_LEN)];
    file.read_exact_at(&mut sector, offset).context(|| format!("cannot read byte {offset} of the input"))?;
    Ok(sector)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_sector_mask_agrees_with_a_set(
            mut sectors in prop::collection::btree_set(0..SECTORS_PER_BLOCK, 0..40), first in 0..=SECTORS_PER_BLOCK,
        ) {
            let mut mask = SectorMask::NONE;
            sectors.iter().for_each(|sector| mask.insert(*sector));
            prop_assert_eq!(mask.is_empty(), sectors.is_empty());
            mask.insert_from(first);
            sectors.extend(first..SECTORS_PER_BLOCK);
            for sector in 0..SECTORS_PER_BLOCK + 70 {
                prop_assert_eq!(mask.contains(sector), sectors.contains(&sector), "sector {}", sector);
            }
            prop_assert_eq!((mask.is_full(), mask.is_empty()), (sectors.len() == SECTORS_PER_BLOCK, sectors.is_empty()));
        }

        #[test]
        fn present_blocks_agree_with_a_set(indices in prop::collection::btree_set(0_u64..300, 0..40)) {
            let mut present = PresentBlocks::new(299 * BLOCK_LEN as u64 + 1);
            prop_assert_eq!(present.block_count(), 300);
            for index in &indices {
                present.insert(BlockIndex(*index));
            }
            prop_assert_eq!(present.count(), indices.len() as u64);
            let listed: Vec<_> = present.iter().map(|index| index.0).collect();
            prop_assert_eq!(listed, indices.iter().copied().collect::<Vec<_>>());
            for index in 0..400 {
                prop_assert_eq!(present.contains(BlockIndex(index)), indices.contains(&index));
            }
        }
    }
}
