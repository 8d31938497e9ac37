//! Parent locators: where a differencing VHD says its parent's file is.
//!
//! Two are written, for the two families of readers: `W2ru`, a relative path of Windows in UTF-16, and `MacX`, a file URL. Each
//! has a sector of its own in the file.

use crate::error::{Error, Result};
use crate::units::SECTOR_LEN;

/// The name of the parent's file, in the folder of its child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentName(String);

impl ParentName {
    /// Takes a plain file name.
    ///
    /// # Errors
    /// `Invalid` for what is none, or too long.
    pub fn new(name: &str) -> Result<Self> {
        let is_plain = !name.is_empty() && name != "." && name != "..";
        if !is_plain || name.chars().any(|c| matches!(c, '/' | '\\') || c.is_control()) {
            let text = format!("{name:?} is no file name: the parent of a VHD is named without its folder");
            return Err(Error::invalid(text));
        }
        let name = Self(name.to_owned());
        if name.windows_path().len() > SECTOR_LEN || name.url().len() > SECTOR_LEN {
            return Err(Error::invalid(format!(
                "the parent's file name has {} bytes, too many for a VHD's parent locator",
                name.0.len()
            )));
        }
        Ok(name)
    }

    /// The name's UTF-16 units, at most 254.
    pub(super) fn units(&self) -> Vec<u16> {
        self.0.encode_utf16().collect()
    }

    /// The two locators of the header, for a file that has their contents at these bytes.
    pub(super) fn locators(&self, url_at: u64, windows_path_at: u64) -> [[u8; 24]; 2] {
        [entry(b"MacX", self.url().len(), url_at), entry(b"W2ru", self.windows_path().len(), windows_path_at)]
    }

    /// The sector of the `MacX` locator.
    pub(super) fn url_sector(&self) -> Vec<u8> {
        sector(self.url().into_bytes())
    }

    /// The sector of the `W2ru` locator.
    pub(super) fn windows_path_sector(&self) -> Vec<u8> {
        sector(self.windows_path())
    }

    fn url(&self) -> String {
        format!("file://./{}", self.0)
    }

    fn windows_path(&self) -> Vec<u8> {
        // Unlike everything else in a VHD, little-endian.
        format!(".\\{}", self.0).encode_utf16().flat_map(u16::to_le_bytes).collect()
    }
}

fn entry(code: &[u8; 4], len: usize, offset: u64) -> [u8; 24] {
    let len = u32::try_from(len).expect("at most a sector");
    let mut entry = [0; 24];
    entry[..4].copy_from_slice(code);
    // The specification counts sectors here; everybody writes bytes.
    entry[4..8].copy_from_slice(&(SECTOR_LEN as u32).to_be_bytes());
    entry[8..12].copy_from_slice(&len.to_be_bytes());
    entry[16..].copy_from_slice(&offset.to_be_bytes());
    entry
}

fn sector(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(SECTOR_LEN, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_plain_name_is_refused() {
        let long = "x".repeat(300);
        for name in ["", ".", "..", "a/b", "a\\b", "a\nb", &long] {
            assert!(ParentName::new(name).is_err(), "{name}");
        }
        assert!(ParentName::new(&long[..254]).is_ok());
    }

    #[test]
    fn locators_are_a_file_url_and_a_windows_path() {
        let name = ParentName::new("grün.vhd").unwrap();
        assert!(name.url_sector().starts_with("file://./grün.vhd\0".as_bytes()));
        assert!(name.windows_path_sector().starts_with(b".\0\\\0g\0r\0\xfc\0n\0.\0v\0h\0d\0\0"));
        let [url, path] = name.locators(1536, 4096);
        assert_eq!(url, *b"MacX\0\0\x02\0\0\0\0\x12\0\0\0\0\0\0\0\0\0\0\x06\0");
        assert_eq!(path, *b"W2ru\0\0\x02\0\0\0\0\x14\0\0\0\0\0\0\0\0\0\0\x10\0");
    }
}
