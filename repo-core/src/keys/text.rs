//! Keys as text (docs/format.md §5): typed from paper, scanned, or passed from machine to machine.
//!
//! Every eight bytes of a key stand with two of a checksum in one row of sixteen characters, so that a mistyped row is named
//! instead of a key that opens nothing. The alphabet is Crockford's: no letter looks like a digit, and the ones left out are
//! taken for what they look like.

use std::sync::LazyLock;

use data_encoding::{Encoding, Specification};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::keys::derive;
use crate::keys::recipient::{PrivateKey, PublicKey};

/// Bytes of a key in one row.
const ROW_LEN: usize = 8;
/// Bytes of a row's checksum.
const CHECK_LEN: usize = 2;
/// Characters of a row.
const ROW_CHARS: usize = 16;
/// Characters that stand together where people read a row.
const GROUP_CHARS: usize = 4;

const PRIVATE: Kind =
    Kind { name: "private key", mark: "CAIRN-PRIVATE-1", context: "cairn v1 private key text", rows: 4 };
const PUBLIC: Kind =
    Kind { name: "public key", mark: "CAIRN-PUBLIC-1", context: "cairn v1 public key text", rows: 152 };

struct Kind {
    name: &'static str,
    mark: &'static str,
    context: &'static str,
    rows: usize,
}

/// What a row may be typed with, in capital letters.
const TYPED: &str = "0123456789ABCDEFGHJKMNPQRSTVWXYZOIL";

static ALPHABET: LazyLock<Encoding> = LazyLock::new(|| {
    let mut alphabet = Specification::new();
    alphabet.symbols.push_str("0123456789ABCDEFGHJKMNPQRSTVWXYZ");
    alphabet.translate.from.push_str("abcdefghjkmnpqrstvwxyzOoIiLl");
    alphabet.translate.to.push_str("ABCDEFGHJKMNPQRSTVWXYZ001111");
    alphabet.encoding().expect("32 different symbols")
});

impl PublicKey {
    /// The key on one line.
    pub fn to_text(&self) -> String {
        format!("{}:{}", PUBLIC.mark, PUBLIC.rows(&self.to_bytes()).concat())
    }

    /// Reads a key from text: small or capital letters, with or without spaces, line ends and hyphens.
    ///
    /// # Errors
    /// `Invalid` naming what is mistyped.
    pub fn from_text(text: &str) -> Result<Self> {
        Self::from_bytes(&PUBLIC.parse(text)?).map_err(|error| Error::invalid(error.to_string()))
    }
}

impl PrivateKey {
    /// The key on one line, for files and for machines.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}:{}", PRIVATE.mark, PRIVATE.rows(&self.seed()[..]).concat()))
    }

    /// The key in rows of four groups, for people.
    pub fn to_rows(&self) -> Vec<Zeroizing<String>> {
        let grouped = |row: String| {
            let groups: Vec<_> = row.as_bytes().chunks(GROUP_CHARS).map(String::from_utf8_lossy).collect();
            Zeroizing::new(groups.join("-"))
        };
        PRIVATE.rows(&self.seed()[..]).into_iter().map(grouped).collect()
    }

    /// Reads a key from text: as [`PublicKey::from_text`]. Lines that begin with `#`, and in a longer text what stands before
    /// and after the key, are passed over.
    ///
    /// # Errors
    /// `Invalid` naming what is mistyped.
    pub fn from_text(text: &str) -> Result<Self> {
        let bytes = Zeroizing::new(PRIVATE.parse(text)?);
        let seed = bytes[..].try_into().expect("four rows have 32 bytes");
        Ok(Self::from_seed(&Zeroizing::new(seed)))
    }
}

impl Kind {
    fn rows(&self, key: &[u8]) -> Vec<String> {
        debug_assert_eq!(key.len(), self.rows * ROW_LEN);
        let row = |(at, bytes): (usize, &[u8])| {
            let checked = Zeroizing::new([bytes, &self.checksum(at, bytes)].concat());
            ALPHABET.encode(&checked)
        };
        key.chunks(ROW_LEN).enumerate().map(row).collect()
    }

    fn checksum(&self, row: usize, bytes: &[u8]) -> [u8; CHECK_LEN] {
        let row = u16::try_from(row).expect("a key has few rows").to_le_bytes();
        *derive(self.context, &[&row, bytes]).first_chunk().expect("a hash is longer")
    }

    fn parse(&self, text: &str) -> Result<Vec<u8>> {
        let lines = self.lines(text)?;
        let chars: Zeroizing<Vec<u8>> = Zeroizing::new(lines.iter().flat_map(|line| line.bytes()).collect());
        if chars.len() != self.rows * ROW_CHARS {
            return Err(self.wrong_length(&lines, chars.len()));
        }
        let (mut key, mut wrong) = (Vec::with_capacity(self.rows * ROW_LEN), Vec::new());
        for (at, row) in chars.chunks(ROW_CHARS).enumerate() {
            let bytes = Zeroizing::new(ALPHABET.decode(row).map_err(|error| Error::invalid(error.to_string()))?);
            let (bytes, checksum) = bytes.split_at(ROW_LEN);
            key.extend_from_slice(bytes);
            if self.checksum(at, bytes) != checksum {
                wrong.push((at + 1).to_string());
            }
        }
        if wrong.is_empty() {
            return Ok(key);
        }
        // The bytes of a private key were copied into it.
        drop(Zeroizing::new(key));
        let rows = if wrong.len() == 1 { "row" } else { "rows" };
        let text = format!("{} is mistyped: {rows} {} of {}", self.name, wrong.join(", "), self.rows);
        Err(Error::invalid(format!("{text}, {ROW_CHARS} characters each, do not fit their checksum")))
    }

    /// The lines that hold the key, without what only separates.
    fn lines(&self, text: &str) -> Result<Vec<Zeroizing<String>>> {
        let upper = Zeroizing::new(text.to_ascii_uppercase());
        for other in [&PRIVATE, &PUBLIC] {
            if other.name != self.name && upper.contains(other.mark) && !upper.contains(self.mark) {
                return Err(Error::invalid(format!("this is a {}, and a {} is needed", other.name, self.name)));
            }
        }
        let without_comments = upper.lines().filter(|line| !line.trim_start().starts_with('#'));
        let marked = without_comments.clone().position(|line| line.contains(self.mark));
        let mut lines = Vec::new();
        for line in without_comments.skip(marked.unwrap_or(0)) {
            let line = line.split_once(self.mark).map_or(line, |(_, after)| after);
            let chars: String = line.chars().filter(|char| !char.is_whitespace() && !"-:".contains(*char)).collect();
            let chars = Zeroizing::new(chars);
            let foreign = chars.chars().find(|char| !TYPED.contains(*char));
            match foreign {
                // What comes after a key in a longer text.
                Some(_) if marked.is_some() && !lines.is_empty() => break,
                Some(char) => {
                    return Err(Error::invalid(format!("{} has a character that is in none: {char:?}", self.name)));
                }
                None if chars.is_empty() && !lines.is_empty() && marked.is_some() => break,
                None if chars.is_empty() => {}
                None => lines.push(chars),
            }
        }
        if lines.is_empty() {
            return Err(Error::invalid(format!("the text holds no {}", self.name)));
        }
        Ok(lines)
    }

    fn wrong_length(&self, lines: &[Zeroizing<String>], chars: usize) -> Error {
        let wanted = self.rows * ROW_CHARS;
        let text = format!("{} is mistyped: it has {chars} characters instead of {wanted}", self.name);
        let odd = lines.iter().position(|line| line.len() != ROW_CHARS).filter(|_| lines.len() == self.rows);
        Error::invalid(match odd {
            Some(at) => format!("{text}, {} of them in row {} instead of {ROW_CHARS}", lines[at].len(), at + 1),
            None => text,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> PrivateKey {
        PrivateKey::from_seed(&Zeroizing::new(std::array::from_fn(|at| at as u8 * 7)))
    }

    fn refusal(text: &str) -> String {
        PrivateKey::from_text(text).err().unwrap().to_string()
    }

    #[test]
    fn keys_come_back_from_their_text_however_it_was_typed() {
        let key = sample();
        let rows: Vec<_> = key.to_rows().iter().map(|row| row.to_string()).collect();
        assert_eq!(rows.len(), 4);
        let typed = rows.join("\n").to_lowercase().replace('0', "o").replace('1', "l");
        for text in [
            key.to_text().to_string(),
            rows.join("\n"),
            typed,
            format!("# a comment\n\n{}\n", *key.to_text()),
            format!("Recovery\n\nCAIRN-PRIVATE-1\n  {}\n\nKeep it safe.", rows.join("\n  ")),
            format!("CAIRN-PRIVATE-1 {}", rows.join(" ")),
        ] {
            assert_eq!(PrivateKey::from_text(&text).unwrap().seed(), key.seed(), "{text}");
        }
        let public = key.public();
        assert_eq!(PublicKey::from_text(&public.to_text()).unwrap(), public);
    }

    #[test]
    fn what_is_mistyped_is_named() {
        let rows: Vec<_> = sample().to_rows().iter().map(|row| row.to_string()).collect();
        let changed = |at: usize, row: String| {
            let mut rows = rows.clone();
            rows[at] = row;
            rows.join("\n")
        };
        let swapped = [&rows[1], &rows[0], &rows[2], &rows[3]].map(String::as_str).join("\n");
        let one = if rows[2].starts_with('A') { 'B' } else { 'A' };
        assert!(refusal(&changed(2, format!("{one}{}", &rows[2][1..]))).contains("row 3 of 4"));
        assert!(refusal(&swapped).contains("rows 1, 2 of 4"));
        assert!(refusal(&changed(1, rows[1][1..].to_owned())).contains("15 of them in row 2 instead of 16"));
        assert!(refusal(&changed(1, rows[1].replace('-', "?"))).contains("'?'"));
        assert!(refusal(&rows[..3].join("\n")).contains("48 characters instead of 64"));
        assert!(refusal("").contains("no private key"));
        assert_eq!(refusal(&sample().public().to_text()), "this is a public key, and a private key is needed");
        assert!(PublicKey::from_text(&sample().to_text()).unwrap_err().to_string().contains("this is a private key"));
    }

    #[test]
    fn one_changed_character_is_found_wherever_it_is() {
        let text = sample().to_text();
        let start = text.find(':').unwrap() + 1;
        for at in start..text.len() {
            for to in b"0123456789ABCDEFGHJKMNPQRSTVWXYZ" {
                let mut changed = text.as_bytes().to_vec();
                changed[at] = *to;
                let changed = String::from_utf8(changed).unwrap();
                assert_eq!(PrivateKey::from_text(&changed).is_ok(), changed == *text, "{changed}");
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_refused_without_a_panic(text in "\\PC{0,300}") {
            prop_assert!(PrivateKey::from_text(&text).is_err());
            prop_assert!(PublicKey::from_text(&text).is_err());
        }
    }
}
