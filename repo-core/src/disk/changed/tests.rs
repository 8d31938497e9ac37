//! Lists by hand and from the programs themselves, against a set of bytes that changed.

mod kinds;
mod model;
mod oracles;
mod source;

use super::*;
use crate::error::ErrorKind;

/// The blocks a list touches on a disk that neither grew nor shrank.
fn blocks(text: &str, virtual_size: u64) -> Vec<u64> {
    let list = ChangedList::parse(text.as_bytes()).unwrap();
    list.blocks(virtual_size, virtual_size).unwrap().iter().map(|index| index.0).collect()
}

fn refused(text: &str, words: &str) {
    let error = ChangedList::parse(text.as_bytes()).expect_err(text);
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    assert!(error.chain().contains(words), "{error:?} does not say: {words}");
}

/// A list of thin_delta with data blocks of 64 KiB.
fn thin_delta_of(body: &str) -> String {
    format!(
        "<superblock uuid=\"\" time=\"1\" transaction=\"2\" data_block_size=\"128\" nr_data_blocks=\"1000\">\n  \
         <diff left=\"1\" right=\"2\">\n{body}  </diff>\n</superblock>\n"
    )
}
