//! Fetching a manifest ahead: on an object store each frame that is missing costs a round trip, and many can be under way at once.

use std::collections::BTreeSet;

use crate::content::ContentReader;
use crate::error::Result;
use crate::id::{EntryId, NodeId};
use crate::index::Location;
use crate::manifest::{Node, NodeSource, Tree};

/// Frames fetched: less than the cache of frames holds.
const FRAMES_MAX: usize = 40;
/// Packs fetched as a whole because their manifests are kept on this machine, in bytes: of a large manifest the frames that are
/// wanted come sooner.
const WHOLE_LEN_MAX: u64 = 16 * 1024 * 1024;
/// Nodes looked up for it: those of a disk of 32 GiB. For more the first ones alone would fill the cache.
const NODES_MAX: usize = 16 * 1024;

impl ContentReader {
    /// Fetches the frames that hold the nodes of a tree, from the root down, as far as they fit. In a folder it does
    /// nothing. What cannot be read is no matter here: who needs it will say so.
    pub fn fetch_ahead(&self, tree: &Tree) {
        if self.repository.store.root().is_some() || tree.root.is_none() {
            return;
        }
        let (mut nodes, mut fetched, mut level) = (vec![tree.root], BTreeSet::new(), tree.height());
        loop {
            let ids: Vec<EntryId> = nodes.iter().map(|id| EntryId::from(*id)).collect();
            let Ok(located) = self.locate_stored(&ids) else { return };
            self.keep_packs(&located);
            let frames: BTreeSet<_> = located.iter().flatten().map(|place| (place.pack, place.frame)).collect();
            let mut new: Vec<_> = frames.difference(&fetched).copied().collect();
            new.truncate(FRAMES_MAX - fetched.len());
            self.repository.store.each(&new, |(pack, frame)| self.cached_frame(*pack, *frame).is_ok());
            fetched.extend(new);
            if level == 0 || fetched.len() == FRAMES_MAX {
                return;
            }
            let Ok(below) = nodes.iter().map(|id| self.children(*id)).collect::<Result<Vec<_>>>() else { return };
            (nodes, level) = (below.concat(), level - 1);
            if nodes.len() > NODES_MAX {
                return;
            }
        }
    }

    /// Fetches the packs of these places as a whole, when that is little enough.
    fn keep_packs(&self, places: &[Option<Location>]) {
        let numbers: BTreeSet<_> = places.iter().flatten().map(|place| place.pack).collect();
        let packs: Vec<_> = numbers.into_iter().map(|number| self.index.pack(number)).collect();
        if packs.iter().map(|pack| pack.len).sum::<u64>() <= WHOLE_LEN_MAX {
            self.repository.store.keep(&packs.iter().map(|pack| (pack.id, pack.len)).collect::<Vec<_>>());
        }
    }

    /// The children of a node; none for a leaf.
    fn children(&self, id: NodeId) -> Result<Vec<NodeId>> {
        Ok(match self.node(id)? {
            Node::Inner { children, .. } => children.into_iter().filter(|child| !child.is_none()).collect(),
            Node::Leaf(_) => Vec::new(),
        })
    }
}
