//! In place of `sftp.rs` where the program is built without the feature `sftp`.

use repo_core::store::Store;
use repo_core::store::remote::RemoteOptions;

use crate::cloud::Network;
use crate::failure::{Failure, Result};

/// A folder of another machine; there is none.
#[derive(Debug, Clone)]
pub(crate) enum SftpRepo {}

impl SftpRepo {
    pub(crate) fn parse(text: &str) -> Result<Option<Self>> {
        match text.starts_with("sftp://") {
            true => Err(Failure::usage("this program was built without SFTP").hint("build it with the feature sftp")),
            false => Ok(None),
        }
    }

    pub(crate) fn url(&self) -> &str {
        match *self {}
    }

    pub(crate) fn open(&self, _: &Network) -> Result<Store> {
        match *self {}
    }

    pub(crate) fn create(&self, _: &Network, _: RemoteOptions) -> repo_core::Result<Store> {
        match *self {}
    }
}
