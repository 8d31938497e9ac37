//! What people say of snapshots follows them.
//!
//! Under the same keys the annotations themselves move. What they replaced does not count in TO either, and what was said in TO
//! meanwhile is merged with them, as if both had been said in one repository. Under other keys a snapshot begins with what holds in
//! FROM at that time; of what is said later, tags and protection are added and a newer note replaces an older one, but nothing is
//! taken away: whether TO has it from FROM or from its own people cannot be told.

use std::collections::HashSet;

use crate::annotation::{ANNOTATION_LEN_MAX, Annotation, Annotations, annotate};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{AnnotationId, SnapshotId};
use crate::monitor::Monitor;
use crate::remarks::{Remarks, TAGS_MAX};
use crate::repository::Repository;
use crate::snapshot::NamedSnapshot;
use crate::store::ObjectName;

/// The annotations of a snapshot that TO lacks and that count, as far as is known there.
fn missing<'a>(
    snapshot: SnapshotId,
    from: &'a Annotations,
    to: &'a Annotations,
) -> impl Iterator<Item = &'a (AnnotationId, Annotation)> {
    let there = to.of(snapshot);
    let void: HashSet<AnnotationId> = there
        .iter()
        .chain(from.of(snapshot))
        .flat_map(|(_, annotation)| annotation.replaces.iter().copied())
        .chain(there.iter().map(|(id, _)| *id))
        .collect();
    from.of(snapshot).iter().filter(move |(id, _)| !void.contains(id))
}

/// Copies the annotations of a snapshot that TO lacks, as they are, and gives how many.
///
/// # Errors
/// `Io` when TO cannot be written; `Unavailable`.
pub(super) fn copy(
    from: &Repository,
    to: &Repository,
    snapshot: SnapshotId,
    annotations: (&Annotations, &Annotations),
    monitor: &dyn Monitor,
) -> Result<u64> {
    let mut copied = 0;
    for (id, _) in missing(snapshot, annotations.0, annotations.1) {
        let name = ObjectName::Annotation(*id);
        let object = match from.store.get(name, ANNOTATION_LEN_MAX) {
            Ok(object) if *blake3::hash(&object).as_bytes() == id.0 => object,
            Ok(_) => {
                monitor.damage(&Error::corrupt(format!("annotation {} does not match its name", id.short())));
                continue;
            }
            // Replaced since it was listed: the next sync has what replaced it.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        match to.store.put_new(name, &object) {
            Ok(()) => copied += 1,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(copied)
}

/// Adds to a snapshot of TO what is said of it in FROM, and gives whether that was anything.
///
/// # Errors
/// Those of [`annotate`].
pub(super) fn add(to: &Repository, named: &NamedSnapshot, now: &Remarks, said: &Said<'_>, now_ms: i64) -> Result<bool> {
    let merged = said.merged(now);
    if merged == *now {
        return Ok(false);
    }
    annotate(to, named, now_ms, |remarks| *remarks = said.merged(remarks))?;
    Ok(true)
}

/// What is said of a snapshot in FROM, and whether that is newer than what is said in TO.
pub(super) struct Said<'a> {
    pub(super) remarks: &'a Remarks,
    pub(super) is_newer: bool,
}

impl<'a> Said<'a> {
    /// What is said in FROM of `one`, which is `other` in TO.
    pub(super) fn new(
        remarks: &'a Remarks,
        (one, from): (SnapshotId, &Annotations),
        (other, to): (SnapshotId, &Annotations),
    ) -> Self {
        let latest = |of: &Annotations, id| of.of(id).iter().map(|(_, annotation)| annotation.time_ms).max();
        Self { remarks, is_newer: latest(from, one) > latest(to, other) }
    }

    fn merged(&self, now: &Remarks) -> Remarks {
        let mut merged = now.clone();
        for tag in &self.remarks.tags {
            if merged.tags.len() < TAGS_MAX {
                merged.tags.insert(tag.clone());
            }
        }
        merged.protected |= self.remarks.protected;
        if self.remarks.note.is_some() && (self.is_newer || merged.note.is_none()) {
            merged.note.clone_from(&self.remarks.note);
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remarks(tags: &[&str], note: Option<&str>, protected: bool) -> Remarks {
        Remarks { tags: tags.iter().map(|tag| (*tag).to_owned()).collect(), note: note.map(str::to_owned), protected }
    }

    #[test]
    fn under_other_keys_remarks_are_added_and_a_newer_note_wins() {
        let said = remarks(&["a"], Some("new"), true);
        let there = remarks(&["b"], Some("old"), false);
        let merged = |is_newer| Said { remarks: &said, is_newer }.merged(&there);
        assert_eq!(merged(true), remarks(&["a", "b"], Some("new"), true));
        assert_eq!(merged(false), remarks(&["a", "b"], Some("old"), true));
        let nothing = Remarks::default();
        assert_eq!(Said { remarks: &nothing, is_newer: true }.merged(&there), there);
    }
}
