//! Folders of other machines as users name them: a URL, reached by ssh(1) with the user's own configuration.

use repo_core::store::Store;
use repo_core::store::remote::RemoteOptions;
use repo_core::store::sftp::{self, SftpPlace, SftpSettings};

use crate::cloud::{Network, widen};
use crate::failure::{Failure, Result};

/// A folder of another machine that was named.
#[derive(Debug, Clone)]
pub(crate) struct SftpRepo {
    url: String,
    place: SftpPlace,
}

impl SftpRepo {
    /// Reads what was typed; `None` when it is no URL of such a folder.
    ///
    /// # Errors
    /// Wrong usage when it is one, and a bad one.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>> {
        let place = SftpPlace::parse(text).map_err(|error| Failure::usage(error.to_string()))?;
        Ok(place.map(|place| Self { url: text.to_owned(), place }))
    }

    /// As it was typed.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The store; nothing is asked of it yet.
    ///
    /// # Errors
    /// Those of the core.
    pub(crate) fn open(&self, network: &Network) -> Result<Store> {
        widen();
        Ok(sftp::open(&self.place, &settings(network), self.url.clone())?)
    }

    /// The store of a new repository.
    ///
    /// # Errors
    /// Those of the core.
    pub(crate) fn create(&self, network: &Network, options: RemoteOptions) -> repo_core::Result<Store> {
        sftp::create(&self.place, &settings(network), self.url.clone(), options)
    }
}

fn settings(network: &Network) -> SftpSettings {
    let ssh = std::env::var("CAIRN_SSH").unwrap_or_else(|_| "ssh".to_owned());
    let ssh = ssh.split_whitespace().map(Into::into).collect();
    SftpSettings { ssh, retry_for: network.retry_for, traffic: network.traffic.clone() }
}
