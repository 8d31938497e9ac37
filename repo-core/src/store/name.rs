//! What objects are called (docs/format.md §1).

use crate::error::{Error, Result};
use crate::id::{AnnotationId, LeaseId, PackId, SlotId, SnapshotId, TombstoneName};
use crate::store::lock::LockName;

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
    /// That the repository's objects are locked, and how.
    Lock(LockName),
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
            Self::Lock(name) => format!("snapshots/locks/{name}"),
        }
    }

    /// Reads what [`path`](Self::path) writes, and nothing else.
    ///
    /// # Errors
    /// `Invalid` when no object is called so.
    pub fn parse(path: &str) -> Result<Self> {
        let wrong = || Error::invalid(format!("{path:?} is no name of an object"));
        let (folder, id) = match path.rsplit_once('/') {
            Some(parts) => parts,
            None if path == "config" => return Ok(Self::Config),
            None => return Err(wrong()),
        };
        let name = match folder {
            "keys" => SlotId::from_hex(id).map(Self::Slot),
            "snapshots" => SnapshotId::from_hex(id).map(Self::Snapshot),
            "snapshots/annotations" => AnnotationId::from_hex(id).map(Self::Annotation),
            "snapshots/tombstones" => TombstoneName::parse(id).map(Self::Tombstone),
            "snapshots/locks" => LockName::parse(id).map(Self::Lock),
            "leases" => LeaseId::from_hex(id).map(Self::Lease),
            "revoked" => LeaseId::from_hex(id).map(Self::Revocation),
            "renewals" => LeaseId::from_hex(id).map(Self::Renewal),
            _ if folder.starts_with("packs/") => PackId::from_hex(id).map(Self::Pack),
            _ => return Err(wrong()),
        };
        name.ok().filter(|name| name.path() == path).ok_or_else(wrong)
    }

    /// The folders that hold objects, some of them in folders of their own.
    pub const FOLDERS: [&str; 6] = ["keys", "packs", "snapshots", "leases", "revoked", "renewals"];
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::TombstoneId;

    #[test]
    fn names_are_read_as_they_are_written_and_in_no_other_way() {
        let lease = LeaseId([7; 32]);
        let names = [
            ObjectName::Config,
            ObjectName::Slot(SlotId([1; 32])),
            ObjectName::Pack(PackId([0xab; 32])),
            ObjectName::Snapshot(SnapshotId([2; 32])),
            ObjectName::Lease(lease),
            ObjectName::Revocation(lease),
            ObjectName::Renewal(lease),
            ObjectName::Tombstone(TombstoneName { serial: 9, step: 1, id: TombstoneId([3; 32]) }),
            ObjectName::Annotation(AnnotationId([4; 32])),
        ];
        for name in names {
            assert_eq!(ObjectName::parse(&name.path()).unwrap(), name);
        }
        let id = "ab".repeat(32);
        let others = [
            String::new(),
            "config/".to_owned(),
            "/config".to_owned(),
            "../config".to_owned(),
            format!("packs/{id}"),
            format!("packs/ac/{id}"),
            format!("packs/ab/{}", id.to_uppercase()),
            format!("packs/../packs/ab/{id}"),
            format!("packs//{id}"),
            format!("snapshots/{id}/"),
            format!("snapshots/ab/{id}"),
            format!("index/{id}"),
            format!("tombstones/{id}"),
            format!("snapshots/tombstones/{id}"),
            format!("snapshots/annotations/../{id}"),
            format!("snapshots/{id}x"),
        ];
        for other in others {
            assert!(ObjectName::parse(&other).is_err(), "{other}");
        }
    }
}
