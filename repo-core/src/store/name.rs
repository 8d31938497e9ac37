//! What objects are called (docs/format.md §1).

use crate::id::{AnnotationId, LeaseId, PackId, SlotId, SnapshotId, TombstoneName};

/// An object's name (docs/format.md §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// The configuration.
    Config,
    /// A key slot.
    Slot(SlotId),
    /// A pack.
    Pack(PackId),
    /// A snapshot record.
    Snapshot(SnapshotId),
    /// A lease.
    Lease(LeaseId),
    /// A revocation: the lease of that name no longer counts.
    Revocation(LeaseId),
    /// A renewal: when the holder of the lease of that name was last known to live.
    Renewal(LeaseId),
    /// A tombstone.
    Tombstone(TombstoneName),
    /// An annotation of a snapshot.
    Annotation(AnnotationId),
}

impl ObjectName {
    /// The path below the repository's root, with forward slashes.
    pub fn path(&self) -> String {
        match self {
            Self::Config => "config".to_owned(),
            Self::Slot(id) => format!("keys/{id}"),
            Self::Pack(id) => {
                let hex = id.to_hex();
                format!("packs/{}/{hex}", &hex[..2])
            }
            Self::Snapshot(id) => format!("snapshots/{id}"),
            Self::Lease(id) => format!("leases/{id}"),
            Self::Revocation(id) => format!("revoked/{id}"),
            Self::Renewal(id) => format!("renewals/{id}"),
            Self::Tombstone(id) => format!("snapshots/tombstones/{id}"),
            Self::Annotation(id) => format!("snapshots/annotations/{id}"),
        }
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path())
    }
}
