//! Manifests: the Merkle tree that describes one disk (docs/format.md §8).
//!
//! A leaf describes one block; inner nodes fan out. Nodes are named by their content, so that an unchanged part of a disk
//! is the same nodes in every snapshot, and two disks are compared by comparing names.

pub mod builder;
pub mod diff;
pub mod walk;

use crate::chunk::Run;
use crate::error::{Error, Result};
use crate::id::{ChunkId, NodeId};
use crate::keys::{Key, Role, RoleKeys, derive};
use crate::units::{PAGES_PER_BLOCK, block_count};

/// Children of an inner node.
pub const FANOUT: usize = 128;
/// The highest level a tree can have: 128^7 blocks are far above the largest disk.
pub const LEVEL_MAX: u8 = 7;
/// The largest node in bytes: a leaf with a run for each page.
pub const NODE_LEN_MAX: usize = 4 + PAGES_PER_BLOCK * RUN_LEN;

const LEAF: u8 = 1;
const INNER: u8 = 2;
const RUN_LEN: usize = 36;

/// A manifest node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// What one block holds: runs in ascending order. Pages in no run are zeros.
    Leaf(Vec<Run>),
    /// Where the nodes below are.
    Inner {
        /// The level, 1 just above the leaves.
        level: u8,
        /// The children, at most 128; those past the last are [`NodeId::NONE`].
        children: Vec<NodeId>,
    },
}

impl Node {
    /// The node's bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Leaf(runs) => encode_leaf(runs),
            Self::Inner { level, children } => encode_inner(*level, children),
        }
    }

    /// Reads a node.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are not a node in its one canonical form.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let Some(([kind, level, low, high], rest)) = bytes.split_first_chunk() else {
            return Err(Error::corrupt(format!("manifest node of {} bytes is cut short", bytes.len())));
        };
        let count = usize::from(u16::from_le_bytes([*low, *high]));
        match *kind {
            LEAF if *level == 0 => decode_leaf(rest, count),
            INNER => decode_inner(rest, *level, count),
            _ => Err(Error::corrupt(format!("manifest node of kind {kind} and level {level} is not known"))),
        }
    }
}

/// The bytes of a leaf with these runs.
pub fn encode_leaf(runs: &[Run]) -> Vec<u8> {
    let count = u16::try_from(runs.len()).expect("a block has at most 512 runs");
    let mut bytes = Vec::with_capacity(4 + runs.len() * RUN_LEN);
    bytes.extend_from_slice(&[LEAF, 0]);
    bytes.extend_from_slice(&count.to_le_bytes());
    for run in runs {
        bytes.extend_from_slice(&run.first_page.to_le_bytes());
        bytes.extend_from_slice(&run.page_count.to_le_bytes());
        bytes.extend_from_slice(run.id.as_bytes());
    }
    bytes
}

/// The bytes of an inner node with these children, trailing absent ones left out.
pub fn encode_inner(level: u8, children: &[NodeId]) -> Vec<u8> {
    let used = children.iter().rposition(|child| !child.is_none()).map_or(0, |last| last + 1);
    let count = u16::try_from(used).expect("a node has at most 128 children");
    let mut bytes = Vec::with_capacity(4 + used * 32);
    bytes.extend_from_slice(&[INNER, level]);
    bytes.extend_from_slice(&count.to_le_bytes());
    for child in &children[..used] {
        bytes.extend_from_slice(child.as_bytes());
    }
    bytes
}

fn decode_leaf(rest: &[u8], count: usize) -> Result<Node> {
    let (records, tail) = rest.as_chunks::<RUN_LEN>();
    if !tail.is_empty() || records.len() != count || count == 0 || count > PAGES_PER_BLOCK {
        return Err(Error::corrupt(format!("manifest leaf claims {count} runs in {} bytes", rest.len())));
    }
    let mut end = 0;
    let mut runs = Vec::with_capacity(count);
    for record in records {
        let first_page = u16::from_le_bytes([record[0], record[1]]);
        let page_count = u16::from_le_bytes([record[2], record[3]]);
        let run_end = usize::from(first_page) + usize::from(page_count);
        if usize::from(first_page) < end || page_count == 0 || run_end > PAGES_PER_BLOCK {
            return Err(Error::corrupt(format!("manifest leaf has a run of {page_count} pages at {first_page}")));
        }
        end = run_end;
        let id = ChunkId(record[4..].try_into().expect("a record holds 32 bytes after its numbers"));
        runs.push(Run { first_page, page_count, id });
    }
    Ok(Node::Leaf(runs))
}

fn decode_inner(rest: &[u8], level: u8, count: usize) -> Result<Node> {
    let (records, tail) = rest.as_chunks::<32>();
    let in_range = (1..=LEVEL_MAX).contains(&level) && (1..=FANOUT).contains(&count);
    if !in_range || !tail.is_empty() || records.len() != count {
        return Err(Error::corrupt(format!(
            "manifest node of level {level} claims {count} children in {} bytes",
            rest.len()
        )));
    }
    let children: Vec<_> = records.iter().map(|record| NodeId(*record)).collect();
    if children.last().is_some_and(NodeId::is_none) {
        return Err(Error::corrupt("manifest node ends in a child that is none"));
    }
    Ok(Node::Inner { level, children })
}

/// Names nodes.
#[derive(Clone)]
pub struct NodeHasher(Key);

impl NodeHasher {
    /// A hasher of one repository.
    ///
    /// # Errors
    /// `Forbidden` without the structure key.
    pub fn new(keys: &RoleKeys) -> Result<Self> {
        Ok(Self(derive("cairn v1 manifest node id", &[&keys.get(Role::Structure)?[..]])))
    }

    /// The name of a node's bytes.
    pub fn id(&self, node: &[u8]) -> NodeId {
        NodeId(*blake3::keyed_hash(&self.0, node).as_bytes())
    }
}

/// Where nodes are read from.
pub trait NodeSource {
    /// The node of that name, which is not none.
    ///
    /// # Errors
    /// `Corrupt` when it is missing or damaged; `Unavailable`.
    fn node(&self, id: NodeId) -> Result<Node>;
}

/// The root of one disk's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tree {
    /// The root; none when the whole disk is zeros.
    pub root: NodeId,
    /// The disk's size in bytes.
    pub virtual_size: u64,
}

impl Tree {
    /// The level of the root: the smallest from 1 whose nodes span all blocks of the disk.
    pub fn height(&self) -> u8 {
        height(block_count(self.virtual_size))
    }
}

fn height(blocks: u64) -> u8 {
    (1..LEVEL_MAX).find(|level| span(*level) >= blocks).unwrap_or(LEVEL_MAX)
}

/// Blocks below one node of a level.
pub(crate) fn span(level: u8) -> u64 {
    (FANOUT as u64).pow(u32::from(level))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{BLOCK_LEN, VIRTUAL_SIZE_MAX};
    use proptest::prelude::*;

    #[test]
    fn the_root_is_as_high_as_the_disk_needs() {
        for (blocks, expected) in [(0, 1), (1, 1), (128, 1), (129, 2), (16384, 2), (16385, 3)] {
            assert_eq!(height(blocks), expected, "{blocks} blocks");
        }
        assert!(span(LEVEL_MAX) >= VIRTUAL_SIZE_MAX / BLOCK_LEN as u64);
    }

    fn leaf() -> impl Strategy<Value = Node> {
        prop::collection::vec((0..3_u16, 1..9_u16, any::<[u8; 32]>()), 1..50).prop_map(|parts| {
            let mut next = 0;
            let run = |(gap, page_count, id): (u16, u16, [u8; 32])| {
                let first_page = next + gap;
                next = first_page + page_count;
                (usize::from(next) <= PAGES_PER_BLOCK).then_some(Run { first_page, page_count, id: ChunkId(id) })
            };
            Node::Leaf(parts.into_iter().map_while(run).collect())
        })
    }

    fn inner() -> impl Strategy<Value = Node> {
        let children = prop::collection::vec(any::<Option<[u8; 32]>>(), 0..FANOUT);
        (1..=LEVEL_MAX, children, any::<[u8; 32]>()).prop_map(|(level, children, last)| {
            let mut children: Vec<_> = children.into_iter().map(|child| child.map_or(NodeId::NONE, NodeId)).collect();
            children.push(NodeId(last));
            Node::Inner { level, children }
        })
    }

    proptest! {
        #[test]
        fn any_node_round_trips(node in prop_oneof![leaf(), inner()]) {
            prop_assert_eq!(Node::decode(&node.encode()).unwrap(), node);
        }

        #[test]
        fn what_decodes_is_canonical_and_nothing_panics(
            node in prop_oneof![leaf(), inner()], at: prop::sample::Index, value: u8, noise: Vec<u8>,
        ) {
            let mut bytes = node.encode();
            let at = at.index(bytes.len());
            bytes[at] = value;
            for bytes in [&bytes[..], &bytes[..at], &noise] {
                if let Ok(node) = Node::decode(bytes) {
                    prop_assert_eq!(node.encode(), bytes);
                }
            }
        }
    }
}
