//! What each role may do with each kind of object (docs/server.md).

use repo_core::store::ObjectName;

use crate::token::Role;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// To read an object, or to list a folder of them.
    Read,
    /// To add an object.
    Store,
    /// To delete an object. Leases and renewals: such as the token did not put itself.
    Delete,
}

/// Whether a role may. Whatever the role, no object is ever replaced, and the configuration never deleted; and whoever
/// put a lease may take it away.
pub fn allows(role: Role, action: Action, name: ObjectName) -> bool {
    use ObjectName as Name;
    match (action, name) {
        (Action::Read, _) => true,
        // Nobody can read or delete beside others without them.
        (Action::Store, Name::Lease(_) | Name::Renewal(_)) => true,
        (Action::Store, Name::Pack(_) | Name::Snapshot(_)) => role != Role::Restore,
        // A tombstone, a revocation and an annotation lead to deletions by others, and lock terms to costs.
        (Action::Store, Name::Tombstone(_) | Name::Revocation(_) | Name::Annotation(_) | Name::Lock(_)) => {
            matches!(role, Role::Operator | Role::Admin)
        }
        (Action::Store, Name::Config | Name::Slot(_)) => role == Role::Admin,
        (Action::Delete, Name::Config) => false,
        (Action::Delete, Name::Slot(_)) => role == Role::Admin,
        (Action::Delete, _) => matches!(role, Role::Operator | Role::Admin),
    }
}

#[cfg(test)]
mod tests {
    use repo_core::id::{AnnotationId, LeaseId, PackId, SlotId, SnapshotId, TombstoneId, TombstoneName};

    use super::*;

    #[test]
    fn each_role_may_what_the_table_of_the_documentation_says() {
        let names = [
            ObjectName::Config,
            ObjectName::Slot(SlotId([1; 32])),
            ObjectName::Pack(PackId([1; 32])),
            ObjectName::Snapshot(SnapshotId([1; 32])),
            ObjectName::Annotation(AnnotationId([1; 32])),
            ObjectName::Tombstone(TombstoneName { serial: 1, step: 0, id: TombstoneId([1; 32]) }),
            ObjectName::Lease(LeaseId([1; 32])),
            ObjectName::Renewal(LeaseId([1; 32])),
            ObjectName::Revocation(LeaseId([1; 32])),
        ];
        // s: store, d: delete; in the order of `names`.
        let table = [
            (Role::Backup, ["", "", "s", "s", "", "", "s", "s", ""]),
            (Role::Restore, ["", "", "", "", "", "", "s", "s", ""]),
            (Role::Operator, ["", "", "sd", "sd", "sd", "sd", "sd", "sd", "sd"]),
            (Role::Admin, ["s", "sd", "sd", "sd", "sd", "sd", "sd", "sd", "sd"]),
        ];
        for (role, row) in table {
            for (name, may) in names.iter().zip(row) {
                assert!(allows(role, Action::Read, *name));
                assert_eq!(allows(role, Action::Store, *name), may.contains('s'), "{role:?} stores {name}");
                assert_eq!(allows(role, Action::Delete, *name), may.contains('d'), "{role:?} deletes {name}");
            }
        }
    }
}
