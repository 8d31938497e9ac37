//! The header of an image, and its L1 table.

use std::fs::File;
use std::os::unix::fs::FileExt;

use zerocopy::byteorder::{BE, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::MAGIC;
use crate::disk::quoted::quoted;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::units::VIRTUAL_SIZE_MAX;

/// Bytes of the fields that versions 2 and 3 share.
const V2_LEN: usize = 72;
/// Bytes of the fields of version 3.
const V3_LEN: usize = 104;
/// The largest L1 table that qemu takes, in bytes.
const L1_LEN_MAX: u64 = 32 << 20;
/// The largest refcount table that qemu takes, in bytes.
const REFCOUNT_TABLE_LEN_MAX: u64 = 8 << 20;
/// The longest name of a backing file, in bytes.
const BACKING_NAME_LEN_MAX: u32 = 1023;
/// The header extension that names the format of the backing file.
const BACKING_FORMAT: u32 = 0xE279_2ACA;

/// Refcounts may be wrong, which only matters to whoever writes.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// The fields of a header of version 3, which begin with those of version 2.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Fields {
    magic: [u8; 4],
    version: U32<BE>,
    backing_name_offset: U64<BE>,
    backing_name_len: U32<BE>,
    cluster_bits: U32<BE>,
    virtual_size: U64<BE>,
    crypt_method: U32<BE>,
    l1_entries: U32<BE>,
    l1_offset: U64<BE>,
    refcount_table_offset: U64<BE>,
    refcount_table_clusters: U32<BE>,
    snapshots: U32<BE>,
    snapshots_offset: U64<BE>,
    incompatible_features: U64<BE>,
    compatible_features: U64<BE>,
    autoclear_features: U64<BE>,
    refcount_order: U32<BE>,
    header_len: U32<BE>,
}

/// A header that was checked against its file.
#[derive(Debug, Clone)]
pub(super) struct Header {
    fields: Fields,
    /// Entries of the L1 table that the disk's size needs.
    l1_entries: u64,
    backing: Option<BackingName>,
}

/// What an image says of its backing file.
#[derive(Debug, Clone)]
pub(super) struct BackingName {
    /// The name as it stands there; not necessarily text.
    pub(super) name: Vec<u8>,
    /// The format, when the image says it.
    pub(super) format: Option<Vec<u8>>,
}

impl Header {
    /// Reads header and L1 table of the image in the first `end` bytes of `file`, and checks them.
    ///
    /// # Errors
    /// `Invalid` when anything is malformed, truncated or marked as corrupt; `Unsupported` for features that are not
    /// read here; `Io` when reading fails.
    pub(super) fn read(file: &File, end: u64) -> Result<Self> {
        let fields = Fields::read(file, end)?;
        fields.check_features()?;
        let virtual_size = fields.virtual_size.get();
        match virtual_size {
            0 => return Err(Error::invalid("header: the disk has 0 bytes (size at byte 24)")),
            1..=VIRTUAL_SIZE_MAX => {}
            _ => {
                return Err(unsupported(format!(
                    "the disk has {virtual_size} bytes (size at byte 24), more than the {VIRTUAL_SIZE_MAX} a \
                     repository takes"
                )));
            }
        }
        let l1_entries = fields.check_l1_place(end)?;
        fields.check_refcount_table(end)?;
        let backing = fields.backing(file, end)?;
        let header = Self { fields, l1_entries, backing };
        header.check_l1_table(file, end)?;
        Ok(header)
    }

    /// Size of the disk in bytes.
    pub(super) fn virtual_size(&self) -> u64 {
        self.fields.virtual_size.get()
    }

    /// The backing file, if there is one.
    pub(super) fn backing(&self) -> Option<&BackingName> {
        self.backing.as_ref()
    }

    /// A header of version 3 with nothing but what is needed to find the content: no backing file, no features, no
    /// extensions. Ends where the list of extensions does.
    pub(super) fn minimal(&self) -> Vec<u8> {
        let fields = Fields {
            version: U32::new(3),
            backing_name_offset: U64::new(0),
            backing_name_len: U32::new(0),
            crypt_method: U32::new(0),
            l1_entries: U32::new(u32::try_from(self.l1_entries).expect("not more than the field said")),
            snapshots: U32::new(0),
            snapshots_offset: U64::new(0),
            incompatible_features: U64::new(0),
            compatible_features: U64::new(0),
            autoclear_features: U64::new(0),
            header_len: U32::new(u32::try_from(V3_LEN).expect("104")),
            ..self.fields.clone()
        };
        let mut bytes = fields.as_bytes().to_vec();
        // Type and length of the extension that ends the list.
        bytes.extend([0; 8]);
        bytes
    }

    /// Checks that each L2 table stands in the file and is one entry's only: an image in which tables are shared
    /// describes more than it holds.
    fn check_l1_table(&self, file: &File, end: u64) -> Result<()> {
        let start = self.fields.l1_offset.get();
        let len = usize::try_from(self.l1_entries * 8).expect("at most 32 MiB");
        let mut table = vec![0; len];
        file.read_exact_at(&mut table, start).context(|| format!("cannot read the L1 table at byte {start}"))?;
        let cluster_len = self.fields.cluster_len();
        let mut l2_offsets = Vec::new();
        for (entry, number) in table.as_chunks::<8>().0.iter().zip(0_u64..) {
            let offset = u64::from_be_bytes(*entry) & 0x00FF_FFFF_FFFF_FE00;
            if offset == 0 {
                continue;
            }
            if !offset.is_multiple_of(cluster_len) || offset.checked_add(cluster_len).is_none_or(|reach| reach > end) {
                return Err(Error::invalid(format!(
                    "L1 table: entry {number} (byte {}) names an L2 table at byte {offset}, which is no cluster of the \
                     image of {end} bytes: it is damaged or truncated",
                    start + number * 8
                )));
            }
            l2_offsets.push(offset);
        }
        l2_offsets.sort_unstable();
        match l2_offsets.windows(2).find(|pair| pair[0] == pair[1]) {
            None => Ok(()),
            Some(pair) => {
                Err(Error::invalid(format!("L1 table: two entries name the same L2 table at byte {}", pair[0])))
            }
        }
    }
}

impl Fields {
    /// Reads and checks what everything else rests on: magic, version, cluster size, length of the header.
    fn read(file: &File, end: u64) -> Result<Self> {
        let mut bytes = [0; V3_LEN];
        let here = usize::try_from(end).unwrap_or(V3_LEN).min(V3_LEN);
        file.read_exact_at(&mut bytes[..here], 0).context(|| "cannot read the header at byte 0")?;
        let mut fields: Self = zerocopy::transmute!(bytes);
        if here < V2_LEN || fields.magic != MAGIC {
            return Err(Error::invalid("this is no qcow2 image: it does not begin with a qcow2 header"));
        }
        match fields.version.get() {
            2 => {
                fields.incompatible_features = U64::new(0);
                fields.refcount_order = U32::new(4);
                fields.header_len = U32::new(u32::try_from(V2_LEN).expect("72"));
            }
            3 if here < V3_LEN => return Err(Error::invalid("the image is truncated inside its header")),
            3 => {}
            version => return Err(unsupported(format!("header: version {version} (byte 4); 2 and 3 are read"))),
        }
        let bits = fields.cluster_bits.get();
        if !(9..=21).contains(&bits) {
            return Err(Error::invalid(format!("header: clusters of 2^{bits} bytes (byte 20); 2^9 to 2^21 there are")));
        }
        let header_len = fields.header_len.get();
        if u64::from(header_len) > fields.cluster_len() || (fields.version.get() == 3 && header_len < V3_LEN as u32) {
            return Err(Error::invalid(format!("header: a header of {header_len} bytes (byte 100)")));
        }
        if fields.refcount_order.get() > 6 {
            let text = format!("header: refcounts of 2^{} bits (byte 96)", fields.refcount_order);
            return Err(Error::invalid(text));
        }
        Ok(fields)
    }

    fn cluster_len(&self) -> u64 {
        1 << self.cluster_bits.get()
    }

    fn check_features(&self) -> Result<()> {
        const CONVERT: &str = "convert the image with qemu-img convert, or import it as raw through qemu-nbd";
        let features = self.incompatible_features.get();
        let has = |feature: u64| features & feature != 0;
        if has(CORRUPT) {
            return Err(Error::invalid("the image is marked as corrupt: see what qemu-img check says of it"));
        }
        if self.crypt_method.get() != 0 {
            return Err(unsupported(format!("the image is encrypted (method {} at byte 32)", self.crypt_method)));
        }
        let unread = [
            (EXTERNAL_DATA, "keeps its content in another file"),
            (COMPRESSION_TYPE, "is compressed with something else than zlib"),
            (EXTENDED_L2, "has extended L2 entries (subclusters)"),
        ];
        for (feature, what) in unread {
            if has(feature) {
                return Err(unsupported(format!("the image {what}, which is not read here: {CONVERT}")));
            }
        }
        let known = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;
        if has(!known) {
            let text = format!("header: unknown incompatible features {:#x} (byte 72): {CONVERT}", features & !known);
            return Err(unsupported(text));
        }
        Ok(())
    }

    /// How many entries of the L1 table the disk needs, all of which are in the file.
    fn check_l1_place(&self, end: u64) -> Result<u64> {
        let l2_reach = self.cluster_len() * (self.cluster_len() / 8);
        let needed = self.virtual_size.get().div_ceil(l2_reach);
        let (entries, start) = (u64::from(self.l1_entries.get()), self.l1_offset.get());
        if entries * 8 > L1_LEN_MAX {
            return Err(Error::invalid(format!("header: an L1 table of {entries} entries (byte 36)")));
        }
        if entries < needed {
            return Err(Error::invalid(format!(
                "header: an L1 table of {entries} entries (byte 36), where a disk of {} bytes needs {needed}",
                self.virtual_size
            )));
        }
        self.check_table("the L1 table (byte 40)", start, needed * 8, end)?;
        Ok(needed)
    }

    /// The refcounts are not read, but an image without them is a damaged one.
    fn check_refcount_table(&self, end: u64) -> Result<()> {
        let len = u64::from(self.refcount_table_clusters.get()) << self.cluster_bits.get();
        if len == 0 || len > REFCOUNT_TABLE_LEN_MAX {
            return Err(Error::invalid(format!(
                "header: a refcount table of {} clusters (byte 56)",
                self.refcount_table_clusters
            )));
        }
        self.check_table("the refcount table (byte 48)", self.refcount_table_offset.get(), len, end)
    }

    fn check_table(&self, what: &str, start: u64, len: u64, end: u64) -> Result<()> {
        let aligned = start.is_multiple_of(self.cluster_len()) && start > 0;
        if !aligned || start.checked_add(len).is_none_or(|reach| reach > end) {
            return Err(Error::invalid(format!(
                "header: {what} has {len} bytes at byte {start}, which are no clusters of the image of {end} bytes: it \
                 is damaged or truncated"
            )));
        }
        Ok(())
    }

    fn backing(&self, file: &File, end: u64) -> Result<Option<BackingName>> {
        let (start, len) = (self.backing_name_offset.get(), self.backing_name_len.get());
        if start == 0 {
            return Ok(None);
        }
        // Name and extensions stand in the first cluster.
        let reach = end.min(self.cluster_len());
        if !(1..=BACKING_NAME_LEN_MAX).contains(&len)
            || start.checked_add(u64::from(len)).is_none_or(|name_end| name_end > reach)
        {
            let text = format!("header: the name of the backing file has {len} bytes at byte {start} (byte 8)");
            return Err(Error::invalid(text));
        }
        let mut name = vec![0; len as usize];
        file.read_exact_at(&mut name, start).context(|| format!("cannot read the header at byte {start}"))?;
        let mut extensions = vec![0; usize::try_from(start).expect("below 2 MiB")];
        file.read_exact_at(&mut extensions, 0).context(|| "cannot read the header at byte 0")?;
        Ok(Some(BackingName { name, format: backing_format(&extensions, self.header_len.get() as usize)? }))
    }
}

/// Finds the format of the backing file among the header extensions, which begin at byte `at` of `head` and end with
/// it at the latest.
fn backing_format(head: &[u8], mut at: usize) -> Result<Option<Vec<u8>>> {
    while let Some((kind, rest)) = head.get(at..).and_then(|rest| rest.split_first_chunk::<4>()) {
        let Some((len, rest)) = rest.split_first_chunk::<4>() else { break };
        let (kind, len) = (u32::from_be_bytes(*kind), u32::from_be_bytes(*len) as usize);
        if kind == 0 {
            break;
        }
        let Some(value) = rest.get(..len) else {
            let text = format!("header: the extension {kind:#x} at byte {at} has {len} bytes, more than there are");
            return Err(Error::invalid(text));
        };
        if kind == BACKING_FORMAT {
            return Ok(Some(value.to_vec()));
        }
        at += 8 + len.next_multiple_of(8);
    }
    Ok(None)
}

impl BackingName {
    /// The name, to be shown.
    pub(super) fn shown(&self) -> String {
        quoted(&self.name)
    }
}

fn unsupported(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, text)
}
