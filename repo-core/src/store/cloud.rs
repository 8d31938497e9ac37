//! Object stores by URL: S3 and what speaks its language, Azure, Google.
//!
//! All settings come from the caller, under the names that the vendors' environment variables have, in lowercase.

mod environment;
mod profile;

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};

use crate::error::{Error, ErrorKind, Result};
use crate::store::http::Connector;
use crate::store::lock::{Clock, Locks};
use crate::store::s3::S3;
use crate::traffic::Traffic;
pub use environment::Environment;

/// Whose language a store speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloudKind {
    /// `s3://bucket/prefix`
    S3,
    /// `az://container/prefix`
    Azure,
    /// `gs://bucket/prefix`
    Google,
}

/// A place in an object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudPlace {
    /// Whose language it speaks.
    pub kind: CloudKind,
    /// The bucket, or container.
    pub bucket: String,
    /// What all names in it begin with, without slashes at its ends; may be empty.
    pub prefix: String,
}

impl CloudPlace {
    /// Reads a URL; `None` when it is none of an object store.
    ///
    /// # Errors
    /// `Invalid` when there is no bucket, or a prefix that would not survive.
    pub fn parse(url: &str) -> Result<Option<Self>> {
        let Some((scheme, rest)) = url.split_once("://") else { return Ok(None) };
        let kind = match scheme {
            "s3" => CloudKind::S3,
            "az" => CloudKind::Azure,
            "gs" => CloudKind::Google,
            _ => return Ok(None),
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        if bucket.is_empty() {
            return Err(Error::invalid(format!("{url} names no bucket")));
        }
        let odd = |part: &str| part.is_empty() || part == "." || part == "..";
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !bucket.chars().all(plain) {
            return Err(Error::invalid(format!("{bucket:?} is no name of a bucket")));
        }
        if !prefix.is_empty() && prefix.split('/').any(|part| odd(part) || !part.chars().all(plain)) {
            let text =
                format!("prefix {prefix:?} is not made of ASCII letters, digits, '-', '_' and '.' between slashes");
            return Err(Error::invalid(text));
        }
        Ok(Some(Self { kind, bucket: bucket.to_owned(), prefix: prefix.to_owned() }))
    }

    /// What environment variables of this kind of store begin with.
    pub fn variable_prefix(&self) -> &'static str {
        match self.kind {
            CloudKind::S3 => "AWS_",
            CloudKind::Azure => "AZURE_",
            CloudKind::Google => "GOOGLE_",
        }
    }
}

/// How a store is reached.
#[derive(Debug, Clone)]
pub struct CloudSettings {
    /// Names as those of the vendor's environment variables, in lowercase, with their values. What this version does not
    /// know is skipped.
    pub values: Vec<(String, String)>,
    /// How long a request is tried again while the store does not answer or is overloaded.
    pub retry_for: Duration,
    /// Where requests and bytes are counted and limited.
    pub traffic: Arc<Traffic>,
}

/// Where a bucket is when nothing says so, as for the vendor's tools and `object_store`.
const DEFAULT_REGION: &str = "us-east-1";

/// Settings that say which store a bucket's name is looked up in. Of several endpoints the vendor's rules choose one.
const STORE_KEYS: [&str; 9] = [
    "aws_endpoint",
    "aws_endpoint_url",
    "aws_endpoint_url_s3",
    "azure_endpoint",
    "azure_storage_account_name",
    "azure_storage_endpoint",
    "azure_storage_use_emulator",
    "azure_use_fabric_endpoint",
    "google_base_url",
];

/// What tells a place apart from all others: the endpoint, too, since any two have buckets of one name. One place that is reached
/// in two ways may have two addresses; two places never have one.
pub fn address(place: &CloudPlace, settings: &CloudSettings) -> String {
    let value = |key: &&str| settings.values.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str());
    let known = STORE_KEYS.iter().filter_map(|key| Some(format!(" {key}={}", value(key)?.trim_end_matches('/'))));
    format!("{:?} {} {}{}", place.kind, place.bucket, place.prefix, known.collect::<String>())
}

fn s3_builder(place: &CloudPlace, settings: &CloudSettings) -> AmazonS3Builder {
    let values = settings.values.iter();
    let known = values.filter_map(|(name, value)| Some((name.parse::<AmazonS3ConfigKey>().ok()?, value)));
    known
        .fold(AmazonS3Builder::new(), |builder, (key, value)| builder.with_config(key, value))
        .with_bucket_name(&place.bucket)
        .with_http_connector(Connector { traffic: settings.traffic.clone() })
}

/// What can be locked at a place; `None` where nothing can be. Nothing is asked of the store yet.
pub fn locks(place: &CloudPlace, settings: &CloudSettings, now_ms: i64) -> Option<Locks> {
    if place.kind != CloudKind::S3 {
        return None;
    }
    let builder = s3_builder(place, settings);
    let region = builder.get_config_value(&AmazonS3ConfigKey::Region).unwrap_or_else(|| DEFAULT_REGION.to_owned());
    let connector = Connector { traffic: settings.traffic.clone() };
    let s3 = S3::new(builder, connector, region, ObjectPath::from(place.prefix.as_str()), settings.retry_for);
    Some(Locks::new(s3, Clock::from(now_ms)))
}

/// The store at a place. Nothing is asked of it yet.
///
/// # Errors
/// `Invalid` when settings are missing or do not fit together.
pub fn connect(place: &CloudPlace, settings: &CloudSettings) -> Result<Arc<dyn ObjectStore>> {
    let connector = Connector { traffic: settings.traffic.clone() };
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(500).min(settings.retry_for),
            max_backoff: Duration::from_secs(8).min(settings.retry_for),
            base: 2.0,
        },
        // The time decides.
        max_retries: 100,
        retry_timeout: settings.retry_for,
    };
    let values = || settings.values.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let built: object_store::Result<Arc<dyn ObjectStore>> = match place.kind {
        CloudKind::S3 => s3_builder(place, settings).with_retry(retry).build().map(|store| Arc::new(store) as _),
        CloudKind::Azure => {
            let known = values().filter_map(|(name, value)| Some((name.parse::<AzureConfigKey>().ok()?, value)));
            known
                .fold(MicrosoftAzureBuilder::new(), |builder, (key, value)| builder.with_config(key, value))
                .with_container_name(&place.bucket)
                .with_retry(retry)
                .with_http_connector(connector)
                .build()
                .map(|store| Arc::new(store) as _)
        }
        CloudKind::Google => {
            let known = values().filter_map(|(name, value)| Some((name.parse::<GoogleConfigKey>().ok()?, value)));
            known
                .fold(GoogleCloudStorageBuilder::new(), |builder, (key, value)| builder.with_config(key, value))
                .with_bucket_name(&place.bucket)
                .with_retry(retry)
                .with_http_connector(connector)
                .build()
                .map(|store| Arc::new(store) as _)
        }
    };
    let store = built.map_err(|error| {
        Error::with_source(ErrorKind::Invalid, "the settings of the object store do not fit together", error)
    })?;
    Ok(match place.prefix.as_str() {
        "" => store,
        prefix => Arc::new(PrefixStore::new(store, ObjectPath::from(prefix))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::TrafficLimits;

    #[test]
    fn urls_name_a_bucket_and_a_prefix() {
        let place = CloudPlace::parse("s3://backups/pool1/vms/").unwrap().unwrap();
        assert_eq!((place.kind, place.bucket.as_str(), place.prefix.as_str()), (CloudKind::S3, "backups", "pool1/vms"));
        assert_eq!(CloudPlace::parse("gs://b").unwrap().unwrap().prefix, "");
        assert_eq!(CloudPlace::parse("az://c/p").unwrap().unwrap().kind, CloudKind::Azure);
        for none in ["/backup", "https://host/x", "backup/s3"] {
            assert_eq!(CloudPlace::parse(none).unwrap(), None);
        }
        for bad in ["s3://", "s3:///x", "s3://b/a//b", "s3://b/../c", "s3://b/a b", "s3://b?x/y"] {
            assert_eq!(CloudPlace::parse(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }
    #[test]
    fn places_in_different_stores_have_different_addresses() {
        let address = |url: &str, values: &[(&str, &str)]| {
            let values = values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let settings = CloudSettings {
                values,
                retry_for: Duration::ZERO,
                traffic: Arc::new(Traffic::new(TrafficLimits::default())),
            };
            address(&CloudPlace::parse(url).unwrap().unwrap(), &settings)
        };
        let common = ("aws_endpoint_url", "https://common");
        let places = [
            address("s3://b/p", &[]),
            address("s3://b", &[]),
            address("gs://b/p", &[]),
            address("s3://b/p", &[common]),
            // The more special one counts.
            address("s3://b/p", &[common, ("aws_endpoint_url_s3", "https://one")]),
            address("s3://b/p", &[common, ("aws_endpoint_url_s3", "https://other")]),
            address("az://b/p", &[("azure_endpoint", "http://e"), ("azure_storage_account_name", "one")]),
            address("az://b/p", &[("azure_endpoint", "http://e"), ("azure_storage_account_name", "other")]),
        ];
        let different: std::collections::BTreeSet<_> = places.iter().collect();
        assert_eq!(different.len(), places.len(), "{places:?}");
        let secret = address("s3://b/p", &[("aws_secret_access_key", "s"), ("aws_region", "r")]);
        assert_eq!(secret, places[0], "credentials may change");
        let slash = ("aws_endpoint_url", "https://common/");
        assert_eq!(address("s3://b/p/", &[slash]), places[3]);
    }
}
