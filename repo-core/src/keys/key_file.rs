//! Private keys as `cairn key generate` and `cairn key bind` write them into files: comments, rows of a key, and the pins of the
//! repositories that it may open.

use crate::error::Result;
use crate::id::RepositoryPin;
use crate::keys::recipient::PrivateKey;

/// What stands before the pin of a repository.
pub const PIN_MARK: &str = "CAIRN-REPOSITORY-1:";

/// What a key file says.
#[derive(Clone)]
pub struct KeyFile {
    /// The key.
    pub key: PrivateKey,
    /// The repositories that it may open; any, when there are none.
    pub pins: Vec<RepositoryPin>,
}

impl KeyFile {
    /// Reads a key file's text.
    ///
    /// # Errors
    /// `Invalid` naming what is wrong in it.
    pub fn parse(text: &str) -> Result<Self> {
        let pins = text.lines().filter_map(|line| line.trim().strip_prefix(PIN_MARK));
        let pins = pins.map(|pin| RepositoryPin::from_hex(pin.trim())).collect::<Result<_>>()?;
        Ok(Self { key: PrivateKey::from_text(text)?, pins })
    }
}
