//! Blocks into chunks: runs of non-zero pages, cut by content on page boundaries (docs/format.md §6).
//!
//! Pure and synchronous. Guest file systems align data to 4 KiB, so the cut needs only one fast hash of each page and
//! no rolling window; docs/design/0001-chunks.md has the measurements.

use xxhash_rust::xxh3::xxh3_64_with_secret;

use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::keys::{Key, Role, RoleKeys, derive};
use crate::units::{BLOCK_LEN, PAGE_LEN, PAGES_PER_BLOCK, is_zero};

/// Where chunks end. Fixed at `init`: other parameters find other chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkParams {
    /// A chunk ends after a page whose fingerprint has this many low bits zero: on average 2^bits pages.
    pub cut_bits: u8,
    /// The longest chunk, in pages.
    pub pages_max: u16,
}

impl Default for ChunkParams {
    fn default() -> Self {
        Self { cut_bits: 3, pages_max: 32 }
    }
}

impl ChunkParams {
    /// Checks the ranges of the format.
    ///
    /// # Errors
    /// `Corrupt` naming the value.
    pub fn check(self) -> Result<()> {
        if self.cut_bits > 9 {
            return Err(Error::corrupt(format!("{} cut bits are out of range", self.cut_bits)));
        }
        if !(1..=PAGES_PER_BLOCK).contains(&usize::from(self.pages_max)) {
            return Err(Error::corrupt(format!("longest chunk of {} pages is out of range", self.pages_max)));
        }
        Ok(())
    }
}

/// A chunk's place in its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First page, 0 to 511.
    pub first_page: u16,
    /// Pages, 1 to 512.
    pub page_count: u16,
    /// The chunk that stands there.
    pub id: ChunkId,
}

impl Run {
    /// The run's first byte within its block.
    pub fn offset_bytes(&self) -> usize {
        usize::from(self.first_page) * PAGE_LEN
    }

    /// The run's length, in bytes.
    pub fn len_bytes(&self) -> usize {
        usize::from(self.page_count) * PAGE_LEN
    }

    /// The run's bytes within its block.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset_bytes()..self.offset_bytes() + self.len_bytes()
    }
}

/// Names chunks. Needed wherever a chunk is checked.
#[derive(Clone)]
pub struct ChunkHasher(Key);

impl ChunkHasher {
    /// A hasher of one repository.
    ///
    /// # Errors
    /// `Forbidden` without the identity key.
    pub fn new(keys: &RoleKeys) -> Result<Self> {
        Ok(Self(derive("cairn v1 chunk id", &[&keys.get(Role::Identity)?[..]])))
    }

    /// The name of a chunk.
    pub fn id(&self, chunk: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.0, chunk).as_bytes())
    }
}

/// Cuts blocks into chunks.
#[derive(Clone)]
pub struct Chunker {
    hasher: ChunkHasher,
    secret: Box<[u8; SECRET_LEN]>,
    mask: u64,
    pages_max: usize,
}

/// The length of XXH3's secret in bytes: that of its built-in one.
const SECRET_LEN: usize = 192;

impl Chunker {
    /// A chunker of one repository.
    ///
    /// # Errors
    /// `Forbidden` without the identity key.
    pub fn new(params: ChunkParams, keys: &RoleKeys) -> Result<Self> {
        let mut secret = Box::new([0; SECRET_LEN]);
        blake3::Hasher::new_derive_key("cairn v1 chunk cut")
            .update(&keys.get(Role::Identity)?[..])
            .finalize_xof()
            .fill(&mut secret[..]);
        Ok(Self {
            hasher: ChunkHasher::new(keys)?,
            secret,
            mask: (1 << params.cut_bits) - 1,
            pages_max: usize::from(params.pages_max),
        })
    }

    /// The chunks of a block of 2 MiB, in order. Pages of zeros are in none.
    pub fn cut(&self, block: &[u8]) -> Vec<Run> {
        debug_assert_eq!(block.len(), BLOCK_LEN);
        let mut runs = Vec::with_capacity(PAGES_PER_BLOCK / 4);
        let mut start = None;
        for (page, content) in block.as_chunks::<PAGE_LEN>().0.iter().enumerate() {
            if is_zero(content) {
                if let Some(first) = start.take() {
                    runs.push(self.run(block, first, page));
                }
                continue;
            }
            let first = *start.get_or_insert(page);
            if page + 1 - first == self.pages_max || self.ends_chunk(content) {
                runs.push(self.run(block, first, page + 1));
                start = None;
            }
        }
        if let Some(first) = start {
            runs.push(self.run(block, first, PAGES_PER_BLOCK));
        }
        runs
    }

    fn ends_chunk(&self, page: &[u8]) -> bool {
        xxh3_64_with_secret(page, &self.secret[..]) & self.mask == 0
    }

    fn run(&self, block: &[u8], first: usize, end: usize) -> Run {
        let id = self.hasher.id(&block[first * PAGE_LEN..end * PAGE_LEN]);
        let page = |page: usize| u16::try_from(page).expect("a block has 512 pages");
        Run { first_page: page(first), page_count: page(end - first), id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    fn chunker(cut_bits: u8, pages_max: u16) -> Chunker {
        let keys = RoleKeys::from_master(&Zeroizing::new([1; 32]));
        Chunker::new(ChunkParams { cut_bits, pages_max }, &keys).unwrap()
    }

    /// A block whose page `i` is zeros where `kinds[i]` is 0, and else of a content named by the kind.
    fn block(kinds: &[u8]) -> Vec<u8> {
        let mut block = vec![0; BLOCK_LEN];
        for (page, kind) in block.as_chunks_mut::<PAGE_LEN>().0.iter_mut().zip(kinds) {
            page.fill(*kind);
        }
        block
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn runs_cover_exactly_the_non_zero_pages_and_name_their_content(
            kinds in prop::collection::vec(0..40_u8, PAGES_PER_BLOCK), cut_bits in 0..6_u8, pages_max in 1..64_u16,
        ) {
            let chunker = chunker(cut_bits, pages_max);
            let block = block(&kinds);
            let mut covered = vec![false; PAGES_PER_BLOCK];
            let mut end = 0;
            for run in chunker.cut(&block) {
                prop_assert!(run.first_page >= end && run.page_count >= 1 && run.page_count <= pages_max);
                end = run.first_page + run.page_count;
                prop_assert_eq!(run.id, chunker.hasher.id(&block[run.range()]));
                covered[usize::from(run.first_page)..usize::from(end)].fill(true);
            }
            for (page, kind) in kinds.iter().enumerate() {
                prop_assert_eq!(covered[page], *kind != 0);
            }
        }
    }

    #[test]
    fn equal_content_at_other_pages_is_cut_into_equal_chunks() {
        let chunker = chunker(3, 32);
        let content: Vec<u8> = (1..=200).collect();
        let early = chunker.cut(&block(&content));
        let late = chunker.cut(&block(&[vec![0; 77], content].concat()));
        assert_eq!(
            early.iter().map(|run| run.id).collect::<Vec<_>>(),
            late.iter().map(|run| run.id).collect::<Vec<_>>()
        );
        assert_eq!(late[0].first_page, 77);
    }

    /// Cut points are format: this vector changes only with the format version.
    #[test]
    fn cut_points_are_those_of_the_stored_vector() {
        let lengths: Vec<u16> =
            chunker(3, 32).cut(&block(&(1..=60).collect::<Vec<_>>())).iter().map(|run| run.page_count).collect();
        assert_eq!(lengths, CUT_VECTOR);
    }

    const CUT_VECTOR: &[u16] = &[3, 4, 10, 18, 14, 5, 6];
}
