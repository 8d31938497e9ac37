//! The walk: who refers to what, from the roots down, level by level.

use rayon::prelude::*;

use super::TreeUse;
use super::directories::{Directories, NodeNumber};
use super::owners::{NOBODY, OwnerId, OwnerTable, Owners};
use super::table::ChunkTable;
use crate::error::{Error, Result, ResultExt};
use crate::id::NodeId;
use crate::manifest::{LEVEL_MAX, NODE_LEN_MAX, Node, NodeHasher};
use crate::monitor::{Monitor, check_cancelled};
use crate::repository::Repository;

/// Frames decoded at once.
const BATCH: usize = 64;

/// What the walk over the inner nodes leaves behind.
pub(super) struct Trees {
    /// Leaves that are referred to, in the order they are stored in.
    leaves: Vec<NodeNumber>,
    /// Inner nodes from the highest level down, and what is below them.
    inner: Vec<(NodeNumber, Below)>,
    damage_count: u64,
}

/// What an inner node names.
enum Below {
    /// So many leaves.
    Leaves(u64),
    /// Other inner nodes.
    Nodes(Vec<NodeNumber>),
}

impl Trees {
    /// Walks the inner nodes of all trees. Every node then knows who refers to it.
    pub(super) fn walk(
        repository: &Repository,
        directories: &mut Directories,
        uses: &[TreeUse],
        owners: &mut OwnerTable,
        monitor: &dyn Monitor,
    ) -> Result<Self> {
        let mut walk = Walk { directories, owners, pending: Default::default(), damage_count: 0, monitor };
        for TreeUse { tree, labels, kept } in uses.iter().filter(|one| !one.tree.root.is_none()) {
            let owner = walk.owners.id(Owners { labels: *labels, kept: *kept });
            walk.refer(tree.root, tree.height(), owner);
        }
        let mut inner = Vec::new();
        monitor.begin("walking manifests", None);
        for level in (1..=LEVEL_MAX).rev() {
            let mut numbers = std::mem::take(&mut walk.pending[usize::from(level)]);
            sort_by_place(walk.directories, &mut numbers);
            for batch in batches(walk.directories, &numbers) {
                check_cancelled(monitor)?;
                for (number, node) in read(repository, walk.directories, batch)? {
                    inner.push((number, walk.enter(number, level, node)?));
                }
            }
        }
        monitor.end();
        let mut leaves = std::mem::take(&mut walk.pending[0]);
        let damage_count = walk.damage_count;
        sort_by_place(directories, &mut leaves);
        Ok(Self { leaves, inner, damage_count })
    }

    /// Reads all leaves, and tells the chunks of this round who refers to them.
    pub(super) fn read_leaves(
        &mut self,
        repository: &Repository,
        directories: &Directories,
        chunks: &mut ChunkTable,
        owners: &mut OwnerTable,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        monitor.begin("looking at leaves", None);
        for batch in batches(directories, &self.leaves) {
            check_cancelled(monitor)?;
            for (number, node) in read(repository, directories, batch)? {
                let owner = directories.nodes[number as usize].owner;
                match node {
                    Ok(Node::Leaf(runs)) => {
                        for run in runs {
                            let Some(key) = chunks.key(run.id.into()) else { continue };
                            match chunks.owner_mut(key) {
                                Some(of_chunk) => *of_chunk = owners.join(*of_chunk, owner),
                                None => {
                                    let text = format!("chunk {} is in no readable pack", run.id.short());
                                    note(&Error::corrupt(text), &mut self.damage_count, monitor);
                                }
                            }
                        }
                    }
                    Ok(Node::Inner { .. }) => {
                        let error = Error::corrupt("an inner manifest node stands where a leaf should");
                        note(&error, &mut self.damage_count, monitor);
                    }
                    Err(error) => note(&error, &mut self.damage_count, monitor),
                }
            }
        }
        monitor.end();
        Ok(())
    }

    /// For each use, the blocks of its disk that hold anything.
    pub(super) fn present_blocks(&self, directories: &Directories, uses: &[TreeUse]) -> Vec<u64> {
        let mut below = std::collections::HashMap::new();
        // From the lowest level up: a node comes after all that it names.
        for (number, named) in self.inner.iter().rev() {
            let count: u64 = match named {
                Below::Leaves(count) => *count,
                Below::Nodes(nodes) => nodes.iter().map(|node| below.get(node).copied().unwrap_or(0)).sum(),
            };
            below.insert(*number, count);
        }
        let of = |one: &TreeUse| directories.number(one.tree.root).and_then(|root| below.get(&root).copied());
        uses.iter().map(|one| of(one).unwrap_or(0)).collect()
    }

    /// Nodes and chunks that could not be read or found.
    pub(super) fn damage_count(&self) -> u64 {
        self.damage_count
    }
}

fn note(error: &Error, count: &mut u64, monitor: &dyn Monitor) {
    *count += 1;
    monitor.damage(error);
}

struct Walk<'a> {
    directories: &'a mut Directories,
    owners: &'a mut OwnerTable,
    /// Nodes of each level that are referred to and not yet read.
    pending: [Vec<NodeNumber>; LEVEL_MAX as usize + 1],
    damage_count: u64,
    monitor: &'a dyn Monitor,
}

impl Walk<'_> {
    /// Notes that `owner` refers to a node, and gives its number.
    fn refer(&mut self, id: NodeId, level: u8, owner: OwnerId) -> Option<NodeNumber> {
        let Some(number) = self.directories.number(id) else {
            let text = format!("manifest node {} is in no readable pack", id.short());
            note(&Error::corrupt(text), &mut self.damage_count, self.monitor);
            return None;
        };
        let node = &mut self.directories.nodes[number as usize];
        if node.owner == NOBODY {
            self.pending[usize::from(level)].push(number);
        }
        node.owner = self.owners.join(node.owner, owner);
        Some(number)
    }

    /// Passes the owner of an inner node on to what it names.
    fn enter(&mut self, number: NodeNumber, level: u8, node: Result<Node>) -> Result<Below> {
        let owner = self.directories.nodes[number as usize].owner;
        let children = match node {
            Ok(Node::Inner { level: found, children }) if found == level => children,
            Ok(_) => {
                let error = Error::corrupt(format!("a manifest node is not an inner node of level {level}"));
                note(&error, &mut self.damage_count, self.monitor);
                Vec::new()
            }
            Err(error) => {
                note(&error, &mut self.damage_count, self.monitor);
                Vec::new()
            }
        };
        let named = children.into_iter().filter(|child| !child.is_none());
        if level == 1 {
            let mut count = 0;
            named.for_each(|child| {
                count += 1;
                self.refer(child, 0, owner);
            });
            return Ok(Below::Leaves(count));
        }
        Ok(Below::Nodes(named.filter_map(|child| self.refer(child, level - 1, owner)).collect()))
    }
}

fn sort_by_place(directories: &Directories, numbers: &mut [NodeNumber]) {
    numbers.sort_unstable_by_key(|number| {
        let node = &directories.nodes[*number as usize];
        (node.pack, node.frame, node.slot)
    });
}

/// Parts of `numbers` of some frames each; no frame is in two.
fn batches<'a>(directories: &Directories, mut numbers: &'a [NodeNumber]) -> Vec<&'a [NodeNumber]> {
    let frame_of = |number: &NodeNumber| {
        let node = &directories.nodes[*number as usize];
        (node.pack, node.frame)
    };
    let mut batches = Vec::new();
    while !numbers.is_empty() {
        let len = numbers.chunk_by(|one, other| frame_of(one) == frame_of(other)).take(BATCH).map(<[_]>::len).sum();
        let (batch, rest) = numbers.split_at(len);
        batches.push(batch);
        numbers = rest;
    }
    batches
}

/// Nodes by number, each read or an error that says why not.
type Decoded = Vec<(NodeNumber, Result<Node>)>;

/// Reads nodes that are sorted by place, each frame once.
fn read(repository: &Repository, directories: &Directories, numbers: &[NodeNumber]) -> Result<Decoded> {
    let hasher = NodeHasher::new(&repository.keys)?;
    let frame_of = |number: &NodeNumber| {
        let node = &directories.nodes[*number as usize];
        (node.pack, node.frame)
    };
    let frames: Vec<_> = numbers.chunk_by(|one, other| frame_of(one) == frame_of(other)).collect();
    let decoded: Vec<Result<Decoded>> =
        frames.into_par_iter().map(|frame| read_frame(repository, directories, &hasher, frame)).collect();
    let mut all = Vec::with_capacity(numbers.len());
    for frame in decoded {
        all.extend(frame?);
    }
    Ok(all)
}

/// Reads nodes of one frame.
fn read_frame(
    repository: &Repository,
    directories: &Directories,
    hasher: &NodeHasher,
    numbers: &[NodeNumber],
) -> Result<Decoded> {
    let first = &directories.nodes[*numbers.first().expect("a frame is read for a node in it") as usize];
    let pack = &directories.meta[first.pack as usize];
    let position = u32::from(first.frame);
    let plain = match pack.read_frame(&repository.store, position) {
        Ok(plain) => plain,
        Err(error) if error.is_damage() => {
            let text = error.chain();
            return Ok(numbers.iter().map(|number| (*number, Err(Error::corrupt(text.clone())))).collect());
        }
        Err(error) => return Err(error),
    };
    let mut starts = Vec::new();
    let mut end = 0;
    for entry in pack.directory().entries_of(pack.frame(position)?) {
        starts.push((entry, end));
        end += entry.len as usize;
    }
    let node = |number: &NodeNumber| {
        let (entry, start) = starts[usize::from(directories.nodes[*number as usize].slot)];
        let id = NodeId(entry.id.0);
        let bytes = plain.get(start..start + entry.len as usize).filter(|bytes| bytes.len() <= NODE_LEN_MAX);
        match bytes {
            Some(bytes) if hasher.id(bytes) == id => {
                Node::decode(bytes).context(|| format!("manifest node {}", id.short()))
            }
            _ => Err(Error::corrupt(format!("manifest node {} does not match its name", id.short()))),
        }
    };
    Ok(numbers.iter().map(|number| (*number, node(number))).collect())
}
