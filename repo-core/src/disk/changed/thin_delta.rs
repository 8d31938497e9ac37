//! The XML of `thin_delta`, from the thin-provisioning tools.
//!
//! ```xml
//! <superblock … data_block_size="128" …>
//!   <diff left="1" right="2">
//!     <same begin="0" length="8"/>
//!     <different begin="8" length="4"/>
//!   </diff>
//! </superblock>
//! ```
//!
//! Beside those there are `left_only` and `right_only`: mapped in one of the volumes only. With `--verbose` the four
//! hold `range` elements instead. Positions count data blocks, whose size counts sectors of 512 bytes. What is not
//! listed is mapped in neither volume, and reads as zeros in both.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::{Extent, Extents};
use crate::disk::quoted::quoted;
use crate::error::{Error, Result};
use crate::units::SECTOR_LEN;

/// The largest data block of a thin pool, in sectors: 1 GiB.
const DATA_BLOCK_SECTORS_MAX: u64 = 2 * 1024 * 1024;

/// The changed extents, ascending.
///
/// # Errors
/// `Invalid` when the text is not such XML to its end, when ranges overlap or are out of order.
pub(super) fn parse(text: &[u8]) -> Result<Extents> {
    let text = std::str::from_utf8(text).map_err(|error| {
        let at = error.valid_up_to();
        Error::invalid(format!("the changed list begins like XML and is no text at byte {at}"))
    })?;
    let mut reader = Reader::from_str(text);
    let mut delta = ThinDelta::default();
    loop {
        let at = reader.buffer_position();
        let event = reader.read_event().map_err(|_| wrong(at, "it is no well-formed XML"))?;
        match event {
            Event::Start(element) => delta.open(&element, at)?,
            Event::Empty(element) => {
                delta.open(&element, at)?;
                delta.close();
            }
            Event::End(_) => delta.close(),
            Event::Text(text) if text.bytes().all(|byte| byte.is_ascii_whitespace()) => {}
            Event::Comment(_) | Event::Decl(_) => {}
            Event::Eof => return delta.finish(at),
            _ => return Err(wrong(at, "text, an instruction or a document type does not belong there")),
        }
    }
}

fn wrong(at: u64, what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("the changed list is not what thin_delta prints: byte {at}: {what}"))
}

/// What was read so far.
#[derive(Default)]
struct ThinDelta {
    /// The elements that are open, outermost first.
    open: Vec<Element>,
    /// Bytes of a data block; 0 before the superblock.
    data_block_len: u64,
    /// Whether the one list of a file was seen.
    diff_seen: bool,
    /// Where the last range ended, in bytes.
    end: u64,
    changed: Vec<Extent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Superblock,
    Diff,
    /// Ranges that are the same in both volumes, or not.
    Ranges {
        changed: bool,
    },
    Range,
}

impl ThinDelta {
    fn open(&mut self, element: &BytesStart<'_>, at: u64) -> Result<()> {
        let name = element.name();
        let opened = match (self.open.last().copied(), name.as_ref()) {
            (None, "superblock") if self.data_block_len == 0 => {
                self.data_block_len = data_block_len(element, at)?;
                Element::Superblock
            }
            (Some(Element::Superblock), "diff") if !self.diff_seen => {
                self.diff_seen = true;
                Element::Diff
            }
            (Some(Element::Diff), "same") => self.ranges(element, false, at)?,
            (Some(Element::Diff), "different" | "left_only" | "right_only") => self.ranges(element, true, at)?,
            (Some(Element::Ranges { changed }), "range") => {
                self.range(element, changed, at)?;
                Element::Range
            }
            _ => {
                return Err(wrong(at, format!("the element \"{}\" is not expected", quoted(name.as_ref().as_bytes()))));
            }
        };
        self.open.push(opened);
        Ok(())
    }

    /// The parser lets nothing be closed that was not opened.
    fn close(&mut self) {
        self.open.pop();
    }

    fn ranges(&mut self, element: &BytesStart<'_>, changed: bool, at: u64) -> Result<Element> {
        // The short form has the range in the element itself.
        if element.attributes_raw().bytes().any(|byte| !byte.is_ascii_whitespace()) {
            self.range(element, changed, at)?;
        }
        Ok(Element::Ranges { changed })
    }

    fn range(&mut self, element: &BytesStart<'_>, changed: bool, at: u64) -> Result<()> {
        let (begin, length) = (number(element, "begin", at)?, number(element, "length", at)?);
        let in_bytes = |blocks: u64| blocks.checked_mul(self.data_block_len);
        let extent = in_bytes(begin).zip(in_bytes(length)).and_then(|(start, len)| Extent::new(start, len).ok());
        let extent = extent.ok_or_else(|| wrong(at, format!("{length} data blocks at {begin} are no range")))?;
        if extent.start < self.end {
            return Err(wrong(at, format!("the range at data block {begin} overlaps the one before it")));
        }
        self.end = extent.end;
        if changed {
            self.changed.push(extent);
        }
        Ok(())
    }

    fn finish(self, at: u64) -> Result<Extents> {
        if !self.open.is_empty() || !self.diff_seen {
            return Err(wrong(at, "the list is cut short"));
        }
        Ok(Extents { extents: self.changed, grain_len: self.data_block_len })
    }
}

fn data_block_len(superblock: &BytesStart<'_>, at: u64) -> Result<u64> {
    match number(superblock, "data_block_size", at)? {
        sectors @ 1..=DATA_BLOCK_SECTORS_MAX => Ok(sectors * SECTOR_LEN as u64),
        sectors => Err(wrong(at, format!("no thin pool has data blocks of {sectors} sectors"))),
    }
}

/// The number that attribute `name` holds.
fn number(element: &BytesStart<'_>, name: &str, at: u64) -> Result<u64> {
    let mut found = None;
    for attribute in element.attributes() {
        let attribute = attribute.map_err(|_| wrong(at, "an attribute is malformed or given twice"))?;
        if attribute.key.as_ref() == name {
            found = Some(attribute.value);
        }
    }
    let value = found.ok_or_else(|| wrong(at, format!("the attribute {name} is missing")))?;
    let digits = Some(&*value).filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| wrong(at, format!("the attribute {name} is \"{}\" and no number", quoted(value.as_bytes()))))
}
