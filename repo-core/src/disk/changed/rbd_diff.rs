//! The JSON of `rbd diff --from-snap … --format json`.
//!
//! An array of objects with `offset` and `length` in bytes, and `exists`: `"true"` for data, `"false"` for what was
//! discarded, which is a change too.

use serde::Deserialize;

use super::{Extent, Extents};
use crate::error::{Error, Result, ResultExt};

/// The largest object an image is cut into: with `--whole-object`, the last extent may be that long.
const OBJECT_LEN_MAX: u64 = 32 * 1024 * 1024;

#[derive(Deserialize)]
struct Listed {
    offset: u64,
    length: u64,
    #[serde(rename = "exists")]
    _exists: Exists,
}

/// Ceph writes text; a boolean is what one would expect.
#[derive(Deserialize)]
#[serde(untagged)]
enum Exists {
    Flag(#[expect(dead_code, reason = "only its form is checked")] bool),
    Text(#[expect(dead_code, reason = "only its form is checked")] ExistsText),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ExistsText {
    True,
    False,
}

/// The extents, in the order of the list.
///
/// # Errors
/// `Invalid` when the text is not such JSON to its end.
pub(super) fn parse(text: &[u8]) -> Result<Extents> {
    let listed: Vec<Listed> = serde_json::from_slice(text).map_err(|error| {
        // The library's own text may quote the list.
        let (line, column) = (error.line(), error.column());
        Error::invalid(format!(
            "the changed list is not what rbd diff --format json prints: line {line}, column {column}: an array of \
             objects with offset, length and exists is expected"
        ))
    })?;
    let extents = listed.iter().enumerate().map(|(number, listed)| {
        Extent::new(listed.offset, listed.length).context(|| format!("the changed list (rbd-diff): extent {number}"))
    });
    Ok(Extents { extents: extents.collect::<Result<_>>()?, grain_len: OBJECT_LEN_MAX })
}
