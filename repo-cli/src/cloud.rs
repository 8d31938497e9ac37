//! Object stores as users name them: a URL, and settings from the vendors' usual variables and files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use repo_core::store::Store;
use repo_core::store::cloud::{self, CloudPlace, CloudSettings, Environment};
use repo_core::store::remote::RemoteOptions;
use repo_core::traffic::{REQUESTS_MAX, Traffic};

use crate::failure::{Failure, Result};

/// How requests are made.
#[derive(Debug)]
pub(crate) struct Network {
    /// Counts and limits.
    pub(crate) traffic: Arc<Traffic>,
    /// How long a request is tried again.
    pub(crate) retry_for: Duration,
    /// The time at the start, in milliseconds since the Unix epoch.
    pub(crate) now_ms: i64,
}

/// An object store that was named.
#[derive(Debug, Clone)]
pub(crate) struct CloudRepo {
    /// As it was typed.
    pub(crate) url: String,
    place: CloudPlace,
}

impl CloudRepo {
    /// Reads what was typed; `None` when it is no URL of an object store.
    ///
    /// # Errors
    /// Wrong usage when it is one, and a bad one.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>> {
        let place = CloudPlace::parse(text).map_err(|error| Failure::usage(error.to_string()))?;
        Ok(place.map(|place| Self { url: text.to_owned(), place }))
    }

    /// The store; nothing is asked of it yet.
    ///
    /// # Errors
    /// `Invalid` when credentials are missing; those of reading profile files.
    pub(crate) fn open(&self, network: &Network, profile: Option<&str>) -> Result<Store> {
        widen();
        let settings = self.settings(network, profile)?;
        let objects = cloud::connect(&self.place, &settings)?;
        let store = Store::open_remote(objects, self.url.clone(), RemoteOptions::default())?;
        let locks = cloud::locks(&self.place, &settings, network.now_ms);
        Ok(store.at_address(cloud::address(&self.place, &settings)).with_locks(locks))
    }

    /// The store of a new repository, or the store's own refusal.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn create(
        &self,
        network: &Network,
        profile: Option<&str>,
        options: RemoteOptions,
    ) -> Result<repo_core::Result<Store>> {
        let settings = self.settings(network, profile)?;
        let objects = cloud::connect(&self.place, &settings)?;
        let store = Store::create_remote(objects, self.url.clone(), options);
        let locks = cloud::locks(&self.place, &settings, network.now_ms);
        Ok(store.map(|store| store.at_address(cloud::address(&self.place, &settings)).with_locks(locks)))
    }

    fn settings(&self, network: &Network, profile: Option<&str>) -> Result<CloudSettings> {
        let environment = Environment { variables: std::env::vars_os().collect(), home: home() };
        let values = environment.settings(&self.place, profile).map_err(|error| match hint(&error.to_string()) {
            Some(hint) => Failure::from(error).hint(hint),
            None => Failure::from(error),
        })?;
        Ok(CloudSettings { values, retry_for: network.retry_for, traffic: network.traffic.clone() })
    }
}

/// Lets work that waits for the network overlap: elsewhere a thread a core is enough.
pub(crate) fn widen() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).max(REQUESTS_MAX);
    // Fails when a second repository is opened: then it was done already.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute())
}

/// What the user can do about an error of an object store; none when the error does not tell.
pub(crate) fn hint(text: &str) -> Option<&'static str> {
    let table = [
        (
            "no credentials for the object store",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile of ~/.aws/credentials with AWS_PROFILE",
        ),
        ("there is no profile", "check AWS_PROFILE; `aws configure list-profiles` shows them"),
        ("no such bucket", "make the bucket first; a misspelt name, region or endpoint looks the same"),
        (
            "refuses the credentials",
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, and which endpoint they are for",
        ),
        ("clock is wrong", "set this machine's clock; requests are signed with the time"),
        (
            "does not know the token",
            "check CAIRN_TOKEN or --token-file; tokens end and are revoked, and `cairn-server token list` shows them",
        ),
        ("the server does not allow", "use a token of another role: docs/server.md lists what each may do"),
        (
            "another certificate than the pinned one",
            "if the certificate was changed on purpose, take the server's line out of ~/.config/cairn/servers, or give the new \
             --fingerprint",
        ),
        ("the namespace is full", "forget snapshots and run gc with an operator's token, or have the quota raised"),
        ("is no cairn-server", "check host and port"),
        ("does not allow", "the key lacks rights: docs/operations.md lists what each command needs"),
        (
            "Permission denied",
            "try `ssh HOST` by hand: the key has to be without a passphrase, or in an agent; ~/.ssh/config says which one is used",
        ),
        ("verification failed", "the host is not known yet, or its key changed: `ssh HOST` by hand says which"),
        ("reach the SFTP server", "try `sftp HOST` by hand; ~/.ssh/config and CAIRN_SSH say how the host is reached"),
        ("is used over SFTP", "name it sftp://HOST/PATH"),
        ("cannot be reached", "check AWS_ENDPOINT_URL, the network, and whether the store is running"),
    ];
    table.iter().find(|(part, _)| text.contains(part)).map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_credentials_the_next_step_is_to_name_some() {
        let place = CloudPlace::parse("s3://bucket").unwrap().unwrap();
        let error = Environment::default().settings(&place, None).unwrap_err();
        assert!(hint(&error.to_string()).unwrap().contains("AWS_PROFILE"), "{error}");
        let error = Environment::default().settings(&place, Some("none")).unwrap_err();
        assert!(hint(&error.to_string()).unwrap().contains("list-profiles"), "{error}");
    }
}
