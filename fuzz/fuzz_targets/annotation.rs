//! An annotation as it is after it was authenticated: what decodes comes back from its encoding, within its limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo_core::annotation::Annotation;
use repo_core::id::{AnnotationId, SnapshotId};
use repo_core::remarks::Remarks;
use repo_fuzz::{check_error, write_seeds};

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

fn accepts(input: &[u8]) -> bool {
    let annotation = match Annotation::decode(input) {
        Ok(annotation) => annotation,
        Err(error) => {
            check_error(&error);
            return false;
        }
    };
    annotation.remarks.check().expect("what decodes is within the limits");
    let encoded = annotation.encode();
    let again = Annotation::decode(&encoded).expect("what was encoded decodes");
    assert_eq!(again, annotation);
    assert_eq!(again.encode(), encoded, "an annotation has one encoding");
    true
}

fn seeds() -> Vec<Vec<u8>> {
    let tags = ["gold".to_owned(), "ü b".to_owned()].into();
    let full = Annotation {
        snapshot: SnapshotId([9; 32]),
        time_ms: -5,
        remarks: Remarks { tags, note: Some("before the move".to_owned()), protected: true },
        replaces: vec![AnnotationId([1; 32]), AnnotationId([2; 32])],
    };
    let bare = Annotation { remarks: Remarks::default(), replaces: vec![], ..full.clone() };
    vec![full.encode(), bare.encode()]
}
