//! Annotations: remarks made on a snapshot after its commit (docs/format.md §10).
//!
//! Records are never changed, so each annotation states all remarks of one snapshot, and names those that it replaces. A
//! writer stores the new one, then deletes the others: killed in between, it leaves some that do not count. Two that do not
//! know of each other, made at once, both count and are merged.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::id::{AnnotationId, SnapshotId};
use crate::lease::{REMARKS, Turn};
use crate::object::ObjectKind;
use crate::record::RecordKind;
use crate::remarks::Remarks;
use crate::repository::Repository;
use crate::snapshot::NamedSnapshot;
use crate::store::ObjectName;

/// The largest annotation a reader takes, in bytes.
pub const ANNOTATION_LEN_MAX: u64 = 64 * 1024;

/// Annotations that one can replace. If there ever are more, the others count on until the next one.
const REPLACED_MAX: usize = 1024;

/// Listings that may be overtaken by other processes before the store counts as not answering.
const TRIES_MAX: usize = 32;

const KIND: RecordKind =
    RecordKind { object: ObjectKind::Annotation, key_context: "cairn v1 annotation key", len_max: ANNOTATION_LEN_MAX };

/// All remarks of one snapshot, at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// When it was made, in milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// What is said.
    pub remarks: Remarks,
    /// Annotations that no longer count.
    pub replaces: Vec<AnnotationId>,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct StoredAnnotation {
    #[n(0)]
    snapshot: ByteArray<32>,
    #[n(1)]
    time_ms: i64,
    #[n(2)]
    tags: Vec<String>,
    #[n(3)]
    note: Option<String>,
    #[n(4)]
    protected: bool,
    #[n(5)]
    replaces: Option<ByteVec>,
}

impl Annotation {
    /// The record's CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let replaces: Vec<u8> = self.replaces.iter().flat_map(|id| id.0).collect();
        let stored = StoredAnnotation {
            snapshot: self.snapshot.0.into(),
            time_ms: self.time_ms,
            tags: self.remarks.tags.iter().cloned().collect(),
            note: self.remarks.note.clone(),
            protected: self.remarks.protected,
            replaces: (!replaces.is_empty()).then(|| replaces.into()),
        };
        minicbor::to_vec(&stored).expect("writing CBOR into memory cannot fail")
    }

    /// Reads a record's CBOR.
    ///
    /// # Errors
    /// `Corrupt` when it is malformed or a value is out of range.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let stored: StoredAnnotation = minicbor::decode(bytes)
            .map_err(|error| Error::with_source(ErrorKind::Corrupt, "annotation is malformed", error))?;
        let replaces = stored.replaces.unwrap_or_else(|| Vec::new().into());
        let (ids, rest) = replaces.as_chunks::<32>();
        if !rest.is_empty() {
            return Err(Error::corrupt(format!(
                "list of replaced annotations of {} bytes is cut short",
                replaces.len()
            )));
        }
        let tags: BTreeSet<String> = stored.tags.into_iter().collect();
        let remarks = Remarks { tags, note: stored.note, protected: stored.protected };
        remarks.check().map_err(|error| Error::corrupt(error.to_string()))?;
        Ok(Self {
            snapshot: SnapshotId(stored.snapshot.into()),
            time_ms: stored.time_ms,
            remarks,
            replaces: ids.iter().map(|id| AnnotationId(*id)).collect(),
        })
    }
}

/// The annotations of a repository.
#[derive(Debug, Default)]
pub struct Annotations {
    /// By snapshot, replaced ones too.
    of: HashMap<SnapshotId, Vec<(AnnotationId, Annotation)>>,
}

impl Annotations {
    /// What is said of a snapshot: by its annotations, or else by its own record.
    pub fn remarks<'a>(&self, named: &'a NamedSnapshot) -> Cow<'a, Remarks> {
        match self.of.get(&named.id) {
            Some(all) => Cow::Owned(merged(all)),
            None => Cow::Borrowed(&named.snapshot.remarks),
        }
    }

    /// The annotations of a snapshot, those too that no longer count.
    pub fn ids_of(&self, snapshot: SnapshotId) -> impl Iterator<Item = AnnotationId> {
        self.of.get(&snapshot).into_iter().flatten().map(|(id, _)| *id)
    }

    /// The annotations of a snapshot with their names, those too that no longer count.
    pub fn of(&self, snapshot: SnapshotId) -> &[(AnnotationId, Annotation)] {
        self.of.get(&snapshot).map_or(&[], |all| all)
    }

    /// What the next annotation of a snapshot replaces: those that are there, and what these replaced. A copy of the
    /// repository may have any of them still, and have missed those in between.
    fn replaced_by_a_new_one(&self, snapshot: SnapshotId) -> Vec<AnnotationId> {
        let there = self.of(snapshot);
        let before = there.iter().flat_map(|(_, annotation)| &annotation.replaces);
        let mut met = HashSet::new();
        there.iter().map(|(id, _)| id).chain(before).copied().filter(|id| met.insert(*id)).take(REPLACED_MAX).collect()
    }

    fn insert(&mut self, id: AnnotationId, annotation: Annotation) {
        self.of.entry(annotation.snapshot).or_default().push((id, annotation));
    }
}

/// The state that annotations of one snapshot state together: all tags, protected if one says so, the latest note.
fn merged(all: &[(AnnotationId, Annotation)]) -> Remarks {
    let replaced: HashSet<_> = all.iter().flat_map(|(_, annotation)| &annotation.replaces).collect();
    let mut counting: Vec<_> = all.iter().filter(|(id, _)| !replaced.contains(id)).collect();
    if counting.is_empty() {
        // Only an unsound writer makes a ring; then what is said must not get lost.
        counting = all.iter().collect();
    }
    counting.sort_unstable_by_key(|(id, annotation)| (annotation.time_ms, *id));
    let mut remarks = Remarks::default();
    for (_, Annotation { remarks: said, .. }) in counting {
        remarks.tags.extend(said.tags.iter().cloned());
        remarks.protected |= said.protected;
        remarks.note.clone_from(&said.note);
    }
    remarks
}

/// Reads one annotation.
///
/// # Errors
/// `NotFound`; `Corrupt` when it is damaged; `Unavailable`.
pub fn read(repository: &Repository, id: AnnotationId) -> Result<Annotation> {
    let object = repository.store.get(ObjectName::Annotation(id), ANNOTATION_LEN_MAX)?;
    let opened = KIND.open(repository, &id.0, &object).and_then(|record| Annotation::decode(&record));
    opened.context(|| format!("annotation {}", id.short()))
}

/// All annotations, and an error for each that cannot be read.
///
/// # Errors
/// `Unavailable` when the store cannot be listed.
pub fn read_all(repository: &Repository) -> Result<(Annotations, Vec<(AnnotationId, Error)>)> {
    read_listed(repository, repository.catalog()?.annotations)
}

/// As [`read_all`], of those that were listed; or that are there now, where one of them is not any more.
///
/// # Errors
/// `Unavailable` when the store cannot be listed.
pub fn read_listed(
    repository: &Repository,
    mut listed: Vec<AnnotationId>,
) -> Result<(Annotations, Vec<(AnnotationId, Error)>)> {
    for _ in 0..TRIES_MAX {
        let read: Vec<_> = repository.store.each(&listed, |id| (*id, read(repository, *id)));
        // One was replaced since it was listed: what replaced it may not have been listed.
        if read.iter().any(|(_, read)| read.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound)) {
            listed = repository.catalog()?.annotations;
            continue;
        }
        let (mut annotations, mut errors) = (Annotations::default(), Vec::new());
        for (id, read) in read {
            match read {
                Ok(annotation) => annotations.insert(id, annotation),
                Err(error) => errors.push((id, error)),
            }
        }
        return Ok((annotations, errors));
    }
    Err(Error::new(ErrorKind::Unavailable, "annotations change faster than they can be read"))
}

/// Changes what is said of a snapshot, and gives what is said now. Nothing is written when nothing changes.
///
/// # Errors
/// `Invalid` when a limit is passed; what was said before cannot be read (`Corrupt`, `Unavailable`); `Io`.
pub fn annotate(
    repository: &Repository,
    named: &NamedSnapshot,
    now_ms: i64,
    change: impl FnOnce(&mut Remarks),
) -> Result<Remarks> {
    // Writers take turns; where locks do not reach they merge.
    let turn = Turn::at_snapshots(repository, REMARKS)?;
    let (annotations, errors) = read_all(repository)?;
    if let Some((_, error)) = errors.into_iter().next() {
        return Err(error.context("an annotation cannot be read, and may be of this snapshot"));
    }
    let before = annotations.remarks(named);
    let mut remarks = before.clone().into_owned();
    change(&mut remarks);
    if remarks == *before {
        return Ok(remarks);
    }
    remarks.check()?;
    let replaced: Vec<_> = annotations.ids_of(named.id).take(REPLACED_MAX).collect();
    let replaces = annotations.replaced_by_a_new_one(named.id);
    // Later than all before it, whatever the clock says: the latest note counts.
    let latest_ms = annotations.of.get(&named.id).into_iter().flatten().map(|(_, before)| before.time_ms).max();
    let time_ms = latest_ms.map_or(now_ms, |latest| now_ms.max(latest.saturating_add(1)));
    let annotation = Annotation { snapshot: named.id, time_ms, remarks, replaces };
    let (id, object) = KIND.seal(repository, annotation.encode())?;
    turn.check()?;
    repository.store.put_new(ObjectName::Annotation(AnnotationId(id)), &object)?;
    let replaced: Vec<_> = replaced.into_iter().map(ObjectName::Annotation).collect();
    repository.store.delete_all(&replaced)?;
    Ok(annotation.remarks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn said(id: u8, time_ms: i64, tags: &[&str], note: Option<&str>, replaces: &[u8]) -> (AnnotationId, Annotation) {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let remarks = Remarks { tags, note: note.map(str::to_owned), protected: id == 3 };
        let replaces = replaces.iter().map(|id| AnnotationId([*id; 32])).collect();
        (AnnotationId([id; 32]), Annotation { snapshot: SnapshotId([9; 32]), time_ms, remarks, replaces })
    }

    #[test]
    fn an_annotation_round_trips() {
        for (_, annotation) in [said(3, -7, &["a", "ü b"], Some("why"), &[1, 2]), said(1, 0, &[], None, &[])] {
            assert_eq!(Annotation::decode(&annotation.encode()).unwrap(), annotation);
        }
    }

    #[test]
    fn what_is_replaced_does_not_count_and_what_was_said_at_once_is_merged() {
        let old = said(1, 10, &["old"], Some("old"), &[]);
        let one = said(2, 20, &["one"], Some("one"), &[1]);
        let two = said(3, 30, &["two"], None, &[1]);
        assert_eq!(merged(std::slice::from_ref(&old)), old.1.remarks);
        assert_eq!(merged(&[old.clone(), one.clone()]), one.1.remarks);
        for all in [[old.clone(), one.clone(), two.clone()], [two, old, one]] {
            let both = merged(&all);
            assert_eq!(both.tags.iter().map(String::as_str).collect::<Vec<_>>(), ["one", "two"]);
            assert!(both.protected, "protected if one says so");
            assert_eq!(both.note, None, "of the latest");
        }
        let mut annotations = Annotations::default();
        for (id, annotation) in [said(4, 40, &[], None, &[2, 3]), said(5, 50, &[], None, &[4, 1])] {
            annotations.insert(id, annotation);
        }
        let ids = |bytes: &[u8]| bytes.iter().map(|id| AnnotationId([*id; 32])).collect::<Vec<_>>();
        assert_eq!(annotations.replaced_by_a_new_one(SnapshotId([9; 32])), ids(&[4, 5, 2, 3, 1]));
        let ring = [said(1, 1, &["a"], None, &[2]), said(2, 2, &["b"], None, &[1])];
        assert_eq!(merged(&ring).tags.len(), 2);
    }

    proptest! {
        #[test]
        fn changed_and_arbitrary_bytes_never_panic(at: prop::sample::Index, value: u8, noise: Vec<u8>) {
            let mut bytes = said(3, 5, &["tag"], Some("note"), &[1]).1.encode();
            let at = at.index(bytes.len());
            bytes[at] = value;
            for bytes in [&bytes[..], &bytes[..at], &noise] {
                if let Ok(annotation) = Annotation::decode(bytes) {
                    prop_assert_eq!(Annotation::decode(&annotation.encode()).unwrap(), annotation);
                }
            }
        }
    }
}
