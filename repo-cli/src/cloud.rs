//! Object stores as users name them: a URL, and settings from the vendors' usual variables and files.

mod profile;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use repo_core::ErrorKind;
use repo_core::store::Store;
use repo_core::store::cloud::{self, CloudKind, CloudPlace, CloudSettings};
use repo_core::store::remote::RemoteOptions;
use repo_core::traffic::{REQUESTS_MAX, Traffic};

use crate::failure::{Failure, Result};
use profile::Profile;

/// How requests are made.
#[derive(Debug)]
pub(crate) struct Network {
    /// Counts and limits.
    pub(crate) traffic: Arc<Traffic>,
    /// How long a request is tried again.
    pub(crate) retry_for: Duration,
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
        Ok(store.at_address(cloud::address(&self.place, &settings)))
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
        Ok(store.map(|store| store.at_address(cloud::address(&self.place, &settings))))
    }

    fn settings(&self, network: &Network, profile: Option<&str>) -> Result<CloudSettings> {
        let mut values = cloud::of_environment(self.place.variable_prefix(), std::env::vars_os());
        if let Some(profile) = profile {
            only_profile(&mut values, profile);
        }
        if self.place.kind == CloudKind::S3 {
            let profile = Profile::read(&values, home().as_deref())?;
            profile.fill(&mut values);
            require_credentials(&values, &profile)?;
        }
        Ok(CloudSettings { values, retry_for: network.retry_for, traffic: network.traffic.clone() })
    }
}

/// Lets work that waits for the network overlap: elsewhere a thread a core is enough.
pub(crate) fn widen() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).max(REQUESTS_MAX);
    // Fails when a second repository is opened: then it was done already.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
}

/// Leaves keys, region and endpoint to a profile: those of the environment are of another place.
fn only_profile(values: &mut Vec<(String, String)>, profile: &str) {
    values.retain(|(name, _)| {
        matches!(name.as_str(), "aws_config_file" | "aws_shared_credentials_file" | "aws_ca_bundle")
    });
    values.push(("aws_profile".to_owned(), profile.to_owned()));
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute())
}

/// Fails where requests could only be refused, or would wait for a metadata service that is not there.
fn require_credentials(values: &[(String, String)], profile: &Profile) -> Result<()> {
    let has = |name: &str| values.iter().any(|(known, _)| known == name);
    let key = has("aws_access_key_id") && has("aws_secret_access_key");
    let elsewhere = has("aws_web_identity_token_file")
        || has("aws_container_credentials_relative_uri")
        || has("aws_container_credentials_full_uri")
        || has("aws_skip_signature")
        || profile.uses_instance_metadata();
    if key || elsewhere {
        return Ok(());
    }
    let text = match profile.unsupported() {
        Some(how) => format!("profile {} takes its credentials from {how}, which is not supported", profile.name()),
        None => "there are no credentials for the object store".to_owned(),
    };
    Err(Failure::new(ErrorKind::Invalid, text).hint(
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile of ~/.aws/credentials with AWS_PROFILE",
    ))
}

/// What the user can do about an error of an object store; none when the error does not tell.
pub(crate) fn hint(text: &str) -> Option<&'static str> {
    let table = [
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
        ("cannot be reached", "check AWS_ENDPOINT_URL, the network, and whether the store is running"),
    ];
    table.iter().find(|(part, _)| text.contains(part)).map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_credentials_it_ends_at_once_and_says_where_they_come_from() {
        let failure = require_credentials(&[], &Profile::default()).unwrap_err();
        assert!(failure.text().contains("AWS_PROFILE"), "{}", failure.text());
        let key = [("aws_access_key_id", "a"), ("aws_secret_access_key", "b")];
        let key = key.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert!(require_credentials(&key, &Profile::default()).is_ok());
    }
}
