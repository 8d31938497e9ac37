//! Remarks: what people say of a snapshot, at its import or later: tags, a note, protection (docs/format.md §9, §10).

use std::collections::BTreeSet;

use crate::error::{Error, Result};

/// Characters a tag has at most.
pub const TAG_LEN_MAX: usize = 64;
/// Tags a snapshot has at most.
pub const TAGS_MAX: usize = 64;
/// Bytes a note has at most.
pub const NOTE_LEN_MAX: usize = 4096;

/// Tags, note and protection of a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remarks {
    /// Words to find it and to keep it by.
    pub tags: BTreeSet<String>,
    /// A text for people.
    pub note: Option<String>,
    /// Whether it is not to be forgotten.
    pub protected: bool,
}

impl Remarks {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the limits of the format.
    ///
    /// # Errors
    /// `Invalid` naming the tag or the note.
    pub fn check(&self) -> Result<()> {
        if self.tags.len() > TAGS_MAX {
            return Err(Error::invalid(format!("{} tags are too many: at most {TAGS_MAX}", self.tags.len())));
        }
        self.tags.iter().try_for_each(|tag| check_tag(tag))?;
        self.note.as_deref().map_or(Ok(()), check_note)
    }
}

/// Checks that a text can be a tag: 1 to 64 characters, no comma, no control character.
///
/// # Errors
/// `Invalid` saying why not.
pub fn check_tag(tag: &str) -> Result<()> {
    let count = tag.chars().count();
    if !(1..=TAG_LEN_MAX).contains(&count) {
        return Err(Error::invalid(format!("a tag has 1 to {TAG_LEN_MAX} characters, not {count}")));
    }
    if tag.chars().any(|c| c == ',' || c.is_control()) {
        return Err(Error::invalid(format!("tag {tag:?} has a comma or a control character")));
    }
    Ok(())
}

/// Checks that a text can be a note: 1 to 4096 bytes.
///
/// # Errors
/// `Invalid` saying why not.
pub fn check_note(note: &str) -> Result<()> {
    if note.is_empty() || note.len() > NOTE_LEN_MAX {
        return Err(Error::invalid(format!("a note has 1 to {NOTE_LEN_MAX} bytes, not {}", note.len())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_count_characters_of_tags_and_bytes_of_notes() {
        assert!(check_tag(&"ü".repeat(64)).is_ok());
        for bad in ["", "a,b", "a\nb", "\u{7f}", &"x".repeat(65)] {
            assert!(check_tag(bad).is_err(), "{bad:?}");
        }
        assert!(check_note(&"x".repeat(4096)).is_ok());
        assert!(check_note(&"ü".repeat(2049)).is_err());
        assert!(check_note("").is_err());
        let tags = |count: usize| Remarks { tags: (0..count).map(|n| n.to_string()).collect(), ..Remarks::default() };
        assert!(tags(64).check().is_ok());
        assert!(tags(65).check().is_err());
    }
}
