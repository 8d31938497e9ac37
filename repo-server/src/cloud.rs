//! Object stores by URL, with settings from the surroundings of the server's process: the vendors' variables, and profile files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use repo_core::store::Store;
use repo_core::store::cloud::{self, CloudPlace, CloudSettings, Environment};
use repo_core::store::remote::RemoteOptions;
use repo_core::traffic::{Traffic, TrafficLimits};

use crate::namespace::now_ms;

/// An object store that the configuration names.
#[derive(Debug, Clone)]
pub(crate) struct Cloud {
    url: String,
    place: CloudPlace,
    /// The profile that keys, region and endpoint are taken from; the variables' own ones without it.
    profile: Option<String>,
}

impl Cloud {
    /// Reads a URL; `None` when it is none of an object store.
    pub(crate) fn parse(url: &str, profile: Option<&str>) -> Result<Option<Self>, String> {
        let place = CloudPlace::parse(url).map_err(|error| error.to_string())?;
        Ok(place.map(|place| Self { url: url.to_owned(), place, profile: profile.map(str::to_owned) }))
    }

    /// Whether one of them lies in the other.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let prefix = |cloud: &Self| -> Vec<String> {
            cloud.place.prefix.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let (one, two) = (prefix(self), prefix(other));
        let same = (self.place.kind, &self.place.bucket, &self.profile)
            == (other.place.kind, &other.place.bucket, &other.profile);
        same && (one.starts_with(&two) || two.starts_with(&one))
    }

    /// The store; nothing is asked of it yet. Requests that fail are made again for so long, and there are so many at once.
    pub(crate) fn open(&self, retry_for: Duration, requests: usize) -> repo_core::Result<Store> {
        let values = environment().settings(&self.place, self.profile.as_deref())?;
        let traffic = Arc::new(Traffic::new(TrafficLimits { requests, ..TrafficLimits::default() }));
        let settings = CloudSettings { values, retry_for, traffic };
        let objects = cloud::connect(&self.place, &settings)?;
        let store = Store::open_remote(objects, self.url.clone(), RemoteOptions::default())?;
        let locks = cloud::locks(&self.place, &settings, now_ms());
        Ok(store.at_address(cloud::address(&self.place, &settings)).with_locks(locks))
    }
}

impl std::fmt::Display for Cloud {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)
    }
}

fn environment() -> Environment {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    Environment { variables: std::env::vars_os().collect(), home }
}
