//! A cairn-server as an object store: its object API (docs/openapi.json) behind `object_store`'s trait.
//!
//! The server's certificate is pinned by its fingerprint, or vouched for by this machine's authorities. Every request may be
//! repeated: the server replaces nothing, so that a second try finds what the first one did.

mod listing;
mod pin;
mod requests;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{
    Attributes, CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use crate::error::{Error, Result};
use crate::traffic::Traffic;
pub use pin::Fingerprint;
pub(super) use requests::Refused;
use requests::Requests;

/// What all paths of such a store are told by.
const STORE: &str = "cairn-server";
/// Deletions under way at once.
const DELETIONS: usize = 8;

/// A namespace of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerPlace {
    /// Host and port.
    pub authority: String,
    /// The repository's name there.
    pub namespace: String,
}

impl ServerPlace {
    /// Reads a URL; `None` when it is none of a server.
    ///
    /// # Errors
    /// `Invalid` when it does not name a host and a namespace.
    pub fn parse(url: &str) -> Result<Option<Self>> {
        let Some(rest) = url.strip_prefix("https://") else { return Ok(None) };
        let (authority, namespace) = rest.split_once('/').unwrap_or((rest, ""));
        let namespace = namespace.trim_end_matches('/');
        let host = |c: char| c.is_ascii_alphanumeric() || "-.:[]_".contains(c);
        if authority.is_empty() || !authority.chars().all(host) {
            return Err(Error::invalid(format!("{url} names no host")));
        }
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if namespace.is_empty() || !namespace.chars().all(plain) {
            return Err(Error::invalid(format!("{url} names no namespace: https://HOST:PORT/NAMESPACE does")));
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port { authority.to_owned() } else { format!("{authority}:{DEFAULT_PORT}") };
        Ok(Some(Self { authority, namespace: namespace.to_owned() }))
    }
}

/// The port that is meant when none is named.
pub const DEFAULT_PORT: u16 = 8443;

/// Who vouches for the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Its certificate is this one.
    Pinned(Fingerprint),
    /// An authority that this machine trusts.
    Authorities,
}

/// How a server is reached.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Shown with every request.
    pub token: String,
    /// Who vouches for the server.
    pub trust: Trust,
    /// How long a request is tried again while the server does not answer or is overloaded.
    pub retry_for: Duration,
    /// Where requests and bytes are counted and limited.
    pub traffic: Arc<Traffic>,
}

/// A namespace of a server, as an object store.
#[derive(Debug, Clone)]
pub struct ServerClient {
    requests: Arc<Requests>,
}

impl ServerClient {
    /// Nothing is asked of the server yet.
    ///
    /// # Errors
    /// `Invalid` when the token or the address cannot be sent.
    pub fn new(place: &ServerPlace, settings: &ServerSettings) -> Result<Self> {
        Ok(Self { requests: Arc::new(Requests::new(place, settings)?) })
    }

    /// Which of the objects are there: one question for up to 10 000 of them.
    ///
    /// # Errors
    /// `Unavailable`, `Io`.
    pub async fn have(&self, names: &[String]) -> object_store::Result<Vec<String>> {
        self.requests.have(names).await
    }
}

/// The fingerprint of the certificate that a server shows, asked for without a token.
///
/// # Errors
/// `Unavailable` when nothing answers, or something that is no server of this kind.
pub fn shown_fingerprint(place: &ServerPlace) -> Result<Fingerprint> {
    requests::shown_fingerprint(place)
}

impl std::fmt::Display for ServerClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(STORE)
    }
}

#[async_trait::async_trait]
impl ObjectStore for ServerClient {
    async fn put_opts(
        &self,
        location: &ObjectPath,
        payload: PutPayload,
        _options: PutOptions,
    ) -> object_store::Result<PutResult> {
        // Whatever is asked, the server replaces nothing.
        self.requests.put(location, payload).await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(
        &self,
        _location: &ObjectPath,
        _options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        Err(unsupported("uploads in parts"))
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> object_store::Result<GetResult> {
        let found = self.requests.get(location, options.range.as_ref(), options.head).await?;
        let meta = found.meta(location);
        let size = meta.size;
        let range = found.range.clone();
        let payload = GetResultPayload::Stream(futures::stream::once(async { Ok(found.bytes) }).boxed());
        debug_assert!(range.end <= size);
        Ok(GetResult { payload, meta, range, attributes: Attributes::default(), extensions: Default::default() })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        let requests = self.requests.clone();
        let delete = move |location: object_store::Result<ObjectPath>| {
            let requests = requests.clone();
            async move {
                let location = location?;
                match requests.delete(&location).await {
                    // The server deletes a renewal with its lease.
                    Err(object_store::Error::NotFound { .. }) if location.as_ref().starts_with("renewals/") => {}
                    deleted => deleted?,
                }
                Ok(location)
            }
        };
        locations.map(delete).buffered(DELETIONS).boxed()
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        listing::list(self.requests.clone(), prefix.map(|prefix| prefix.to_string()))
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> object_store::Result<ListResult> {
        let objects = self.list(prefix).try_collect().await?;
        Ok(ListResult { common_prefixes: Vec::new(), objects, extensions: Default::default() })
    }

    async fn copy_opts(&self, _from: &ObjectPath, _to: &ObjectPath, _options: CopyOptions) -> object_store::Result<()> {
        Err(unsupported("copies"))
    }
}

fn unsupported(what: &str) -> object_store::Error {
    object_store::Error::NotSupported { source: format!("a cairn-server makes no {what}").into() }
}

/// A part of an object, or only what it is like.
struct FoundObject {
    bytes: Bytes,
    range: Range<u64>,
    size: u64,
    stored_ms: i64,
}
