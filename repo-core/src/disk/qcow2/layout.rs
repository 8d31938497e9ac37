//! Everything of a new qcow2 image but the content of its clusters.

use zerocopy::byteorder::{BE, U32, U64};
use zerocopy::{Immutable, IntoBytes, KnownLayout, Unaligned};

use super::MAGIC;
use crate::disk::PresentBlocks;
use crate::disk::image::ImageLayout;
use crate::disk::image::stored_blocks::StoredBlocks;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BLOCK_LEN, BlockIndex, VIRTUAL_SIZE_MAX, block_count};

/// The unit of allocation, in bytes: what SM and XAPI write.
pub const CLUSTER_LEN: usize = 1 << CLUSTER_BITS;

/// Where everything of a new image stands. No feature bits, no backing file, refcounts of 16 bits.
#[derive(Debug, Clone)]
pub struct Qcow2Layout {
    virtual_size: u64,
    blocks: StoredBlocks,
    /// Clusters of the image, from the header to the end of the content.
    clusters: u64,
    refcount_table_clusters: u64,
    refcount_blocks: u64,
    l1_entries: u64,
    l2_tables: u64,
}

/// The header of version 3 in its long form, as `qemu-img create` writes it.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    version: U32<BE>,
    backing_file_offset: U64<BE>,
    backing_file_len: U32<BE>,
    cluster_bits: U32<BE>,
    size: U64<BE>,
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
    compression: u8,
    padding: [u8; 7],
}

impl Qcow2Layout {
    /// An image of a disk of `virtual_size` bytes, of which only `present` blocks are stored.
    ///
    /// # Errors
    /// `Unsupported` for a disk of zero bytes or above [`VIRTUAL_SIZE_MAX`], `Internal` when `present` is of a disk of
    /// another size.
    pub fn new(virtual_size: u64, present: &PresentBlocks) -> Result<Self> {
        if virtual_size == 0 || virtual_size > VIRTUAL_SIZE_MAX {
            let text =
                format!("a qcow2 is written for disks of 1 to {VIRTUAL_SIZE_MAX} bytes, this one has {virtual_size}");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let blocks = block_count(virtual_size);
        if present.block_count() != blocks {
            let text = format!("present blocks of a disk of {} blocks for one of {blocks}", present.block_count());
            return Err(Error::internal(text));
        }
        let mut layout = Self {
            virtual_size,
            blocks: StoredBlocks::new(present.clone()),
            clusters: 0,
            refcount_table_clusters: 0,
            refcount_blocks: 0,
            l1_entries: virtual_size.div_ceil(L2_TABLE_SPAN),
            l2_tables: 0,
        };
        layout.l2_tables = layout.l2_table_numbers().count() as u64;
        layout.place_refcounts();
        Ok(layout)
    }

    /// Refcounts count the clusters they are kept in too: their number grows until they cover themselves.
    fn place_refcounts(&mut self) {
        loop {
            let content = self.len_bytes() - self.blocks_offset();
            self.clusters = self.head_clusters() + content.div_ceil(CLUSTER_LEN as u64);
            let refcount_blocks = self.clusters.div_ceil(REFCOUNTS_PER_CLUSTER);
            if refcount_blocks == self.refcount_blocks {
                return;
            }
            self.refcount_blocks = refcount_blocks;
            self.refcount_table_clusters = refcount_blocks.div_ceil(POINTERS_PER_CLUSTER);
        }
    }

    fn head_clusters(&self) -> u64 {
        self.l1_cluster() + self.l1_clusters() + self.l2_tables
    }

    fn refcount_blocks_cluster(&self) -> u64 {
        HEADER_CLUSTERS + self.refcount_table_clusters
    }

    fn l1_cluster(&self) -> u64 {
        self.refcount_blocks_cluster() + self.refcount_blocks
    }

    fn l1_clusters(&self) -> u64 {
        self.l1_entries.div_ceil(POINTERS_PER_CLUSTER)
    }

    fn l2_cluster(&self) -> u64 {
        self.l1_cluster() + self.l1_clusters()
    }

    /// The L1 entries that have an L2 table.
    fn l2_table_numbers(&self) -> impl Iterator<Item = u64> + Send + '_ {
        (0..self.l1_entries).filter(|number| self.has_l2_table(*number))
    }

    fn has_l2_table(&self, number: u64) -> bool {
        let first = |number| BlockIndex(number * BLOCKS_PER_L2_TABLE);
        self.blocks.count_before(first(number)) < self.blocks.count_before(first(number + 1))
    }

    fn header(&self) -> Vec<u8> {
        let narrow = |number: u64| U32::new(u32::try_from(number).expect("bounded by VIRTUAL_SIZE_MAX"));
        let header = Header {
            magic: MAGIC,
            version: U32::new(3),
            backing_file_offset: U64::new(0),
            backing_file_len: U32::new(0),
            cluster_bits: U32::new(CLUSTER_BITS),
            size: U64::new(self.image_size()),
            crypt_method: U32::new(0),
            l1_entries: narrow(self.l1_entries),
            l1_offset: U64::new(offset_of(self.l1_cluster())),
            refcount_table_offset: U64::new(offset_of(HEADER_CLUSTERS)),
            refcount_table_clusters: narrow(self.refcount_table_clusters),
            snapshots: U32::new(0),
            snapshots_offset: U64::new(0),
            incompatible_features: U64::new(0),
            compatible_features: U64::new(0),
            autoclear_features: U64::new(0),
            refcount_order: U32::new(REFCOUNT_ORDER),
            header_len: U32::new(HEADER_LEN),
            compression: 0,
            padding: [0; 7],
        };
        // Behind the header, eight zeros end the list of its extensions.
        let mut cluster = vec![0; CLUSTER_LEN];
        cluster[..HEADER_LEN as usize].copy_from_slice(header.as_bytes());
        cluster
    }

    fn refcount_table(&self) -> impl Iterator<Item = Vec<u8>> + Send + '_ {
        let blocks = (self.refcount_blocks_cluster()..self.l1_cluster()).map(offset_of);
        table_clusters(blocks, self.refcount_table_clusters)
    }

    /// Every cluster of the image is used once.
    fn refcounts(&self) -> impl Iterator<Item = Vec<u8>> + Send + '_ {
        (0..self.refcount_blocks).map(|number| {
            let rest = self.clusters - number * REFCOUNTS_PER_CLUSTER;
            let used = usize::try_from(rest.min(REFCOUNTS_PER_CLUSTER)).expect("within a cluster");
            let mut cluster = vec![0; CLUSTER_LEN];
            cluster.as_chunks_mut::<2>().0[..used].fill(1_u16.to_be_bytes());
            cluster
        })
    }

    fn l1_table(&self) -> impl Iterator<Item = Vec<u8>> + Send + '_ {
        let mut next = self.l2_cluster();
        let entries = (0..self.l1_entries).map(move |number| {
            if !self.has_l2_table(number) {
                return 0;
            }
            next += 1;
            offset_of(next - 1) | USED_ONCE
        });
        table_clusters(entries, self.l1_clusters())
    }

    fn l2_table(&self, number: u64) -> Vec<u8> {
        let mut table = vec![0; CLUSTER_LEN];
        for (entries, index) in table.chunks_mut(CLUSTERS_PER_BLOCK * 8).zip(number * BLOCKS_PER_L2_TABLE..) {
            let index = BlockIndex(index);
            let Some(offset) = self.block_offset(index) else { continue };
            let clusters = self.stored_len(index) / CLUSTER_LEN;
            for (entry, cluster) in entries.as_chunks_mut().0.iter_mut().take(clusters).zip(0_u64..) {
                *entry = ((offset + offset_of(cluster)) | USED_ONCE).to_be_bytes();
            }
        }
        table
    }
}

impl ImageLayout for Qcow2Layout {
    fn name(&self) -> &'static str {
        "qcow2"
    }

    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn blocks(&self) -> &StoredBlocks {
        &self.blocks
    }

    fn unit_len(&self) -> usize {
        CLUSTER_LEN
    }

    fn blocks_offset(&self) -> u64 {
        offset_of(self.head_clusters())
    }

    fn head(&self) -> Box<dyn Iterator<Item = Vec<u8>> + Send + '_> {
        let tables = self.refcount_table().chain(self.refcounts()).chain(self.l1_table());
        let l2_tables = self.l2_table_numbers().map(|number| self.l2_table(number));
        Box::new(std::iter::once_with(|| self.header()).chain(tables).chain(l2_tables))
    }
}

/// `count` clusters of these entries, the rest zeros.
fn table_clusters(mut entries: impl Iterator<Item = u64> + Send, count: u64) -> impl Iterator<Item = Vec<u8>> + Send {
    (0..count).map(move |_| {
        let mut cluster = vec![0; CLUSTER_LEN];
        for (slot, entry) in cluster.as_chunks_mut().0.iter_mut().zip(&mut entries) {
            *slot = entry.to_be_bytes();
        }
        cluster
    })
}

fn offset_of(cluster: u64) -> u64 {
    cluster * CLUSTER_LEN as u64
}

const CLUSTER_BITS: u32 = 16;
const CLUSTERS_PER_BLOCK: usize = BLOCK_LEN / CLUSTER_LEN;
const HEADER_CLUSTERS: u64 = 1;
const HEADER_LEN: u32 = size_of::<Header>() as u32;
/// A refcount has 2 to this power bits.
const REFCOUNT_ORDER: u32 = 4;
const REFCOUNTS_PER_CLUSTER: u64 = CLUSTER_LEN as u64 / 2;
/// Entries of a cluster of the refcount table, the L1 table or an L2 table.
const POINTERS_PER_CLUSTER: u64 = CLUSTER_LEN as u64 / 8;
const BLOCKS_PER_L2_TABLE: u64 = POINTERS_PER_CLUSTER / CLUSTERS_PER_BLOCK as u64;
/// What an L2 table stands for, in bytes of the disk.
const L2_TABLE_SPAN: u64 = POINTERS_PER_CLUSTER * CLUSTER_LEN as u64;
/// In entries of both levels: the refcount is exactly one, the cluster may be written in place.
const USED_ONCE: u64 = 1 << 63;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_fields_where_the_specification_has_them() {
        use std::mem::offset_of;
        assert_eq!(size_of::<Header>(), 112);
        let offsets = [
            offset_of!(Header, cluster_bits),
            offset_of!(Header, size),
            offset_of!(Header, l1_entries),
            offset_of!(Header, l1_offset),
            offset_of!(Header, refcount_table_offset),
            offset_of!(Header, refcount_table_clusters),
            offset_of!(Header, snapshots_offset),
            offset_of!(Header, refcount_order),
            offset_of!(Header, header_len),
            offset_of!(Header, compression),
        ];
        assert_eq!(offsets, [20, 24, 36, 40, 48, 56, 64, 96, 100, 104]);
    }

    #[test]
    fn the_length_is_that_of_the_parts() {
        let len = |size: u64, present: &[u64]| {
            let mut blocks = PresentBlocks::new(size);
            present.iter().for_each(|index| blocks.insert(BlockIndex(*index)));
            let layout = Qcow2Layout::new(size, &blocks).unwrap();
            assert_eq!(layout.clusters * CLUSTER_LEN as u64, layout.len_bytes());
            layout.clusters
        };
        let (block, table) = (BLOCK_LEN as u64, L2_TABLE_SPAN);
        // Header, refcount table, refcounts, L1 table.
        assert_eq!(len(1, &[]), 4);
        assert_eq!(len(1, &[0]), 4 + 1 + 1);
        assert_eq!(len(65_537, &[0]), 4 + 1 + 2);
        assert_eq!(len(2 * block, &[0]), 4 + 1 + 32);
        assert_eq!(len(2 * block, &[0, 1]), 4 + 1 + 64);
        assert_eq!(len(table + 1, &[0, 255, 256]), 4 + 2 + 65);
        // More than 4 TiB take two clusters of L1.
        assert_eq!(len(8192 * table + 1, &[]), 5);
        // One refcount block covers 32768 clusters: 1022 blocks make 32712 with the head, 1024 make 32776.
        let blocks = |count| (0..count).collect::<Vec<_>>();
        assert_eq!(len(1022 * block, &blocks(1022)), 4 + 4 + 32 * 1022);
        assert_eq!(len(1024 * block, &blocks(1024)), 5 + 4 + 32 * 1024);
    }

    #[test]
    fn refcounts_that_cover_exactly_themselves_need_no_further_block() {
        // Sizes in steps of a cluster around the place where a second refcount block is needed: 32768 clusters in all.
        for clusters in 32_750_u64..32_780 {
            let size = clusters * CLUSTER_LEN as u64;
            let mut present = PresentBlocks::new(size);
            (0..present.block_count()).for_each(|index| present.insert(BlockIndex(index)));
            let layout = Qcow2Layout::new(size, &present).unwrap();
            let fits_one = 4 + 4 + clusters <= REFCOUNTS_PER_CLUSTER;
            assert_eq!(layout.refcount_blocks, if fits_one { 1 } else { 2 }, "{clusters}");
            assert_eq!(layout.clusters, layout.head_clusters() + clusters);
        }
    }

    #[test]
    fn sizes_no_image_is_written_for_are_refused() {
        let text = |size: u64| {
            let error = Qcow2Layout::new(size, &PresentBlocks::new(1)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            error.to_string()
        };
        assert_eq!(text(0), "a qcow2 is written for disks of 1 to 1125899906842624 bytes, this one has 0");
        assert!(text(VIRTUAL_SIZE_MAX + 1).ends_with("has 1125899906842625"));
        let error = Qcow2Layout::new(BLOCK_LEN as u64 + 1, &PresentBlocks::new(1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
    }
}
