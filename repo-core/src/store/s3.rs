//! Requests of S3 that `object_store` has no words for: locks and versions.
//!
//! They go the same way as all others: the same client, credentials and endpoint, the same patience, the same words for what
//! went wrong.

mod versions;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use data_encoding::BASE64;
use futures::TryStreamExt;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer};
use object_store::client::{HttpClient, HttpConnector, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse};
use object_store::path::Path as ObjectPath;
use object_store::signer::Signer;
use object_store::{ClientOptions, Error as StoreError, PutPayload};

use super::http::Connector;
use super::lock::{LockMode, LockTerms};
pub use versions::Version;

const STORE: &str = "S3";
/// The longest answer that is read, in bytes: a page of 1,000 versions has some 500 KiB.
const ANSWER_LEN_MAX: usize = 8 * 1024 * 1024;
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(8);

const MODE: HeaderName = HeaderName::from_static("x-amz-object-lock-mode");
const UNTIL: HeaderName = HeaderName::from_static("x-amz-object-lock-retain-until-date");

/// Until when an object can be deleted by nobody, as the store says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Whether some may all the same.
    pub mode: LockMode,
    /// The end, in milliseconds since the Unix epoch.
    pub until_ms: i64,
}

/// What a bucket promises of versions that are deleted or replaced.
pub(super) struct S3 {
    builder: AmazonS3Builder,
    connector: Connector,
    region: String,
    prefix: ObjectPath,
    retry_for: Duration,
    /// Made when it is first needed: that takes some milliseconds, and most repositories are not locked.
    clients: OnceLock<Clients>,
}

struct Clients {
    s3: AmazonS3,
    http: HttpClient,
}

struct Request<'a> {
    method: Method,
    /// Below the bucket.
    path: ObjectPath,
    query: Vec<(&'a str, String)>,
    headers: HeaderMap,
    body: Bytes,
}

impl<'a> Request<'a> {
    fn new(method: Method, path: ObjectPath) -> Self {
        Self { method, path, query: Vec::new(), headers: HeaderMap::new(), body: Bytes::new() }
    }

    fn query(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    fn header(mut self, name: HeaderName, value: &str) -> object_store::Result<Self> {
        let value = HeaderValue::from_str(value).map_err(|error| generic(Box::new(error)))?;
        self.headers.insert(name, value);
        Ok(self)
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl S3 {
    pub(super) fn new(
        builder: AmazonS3Builder,
        connector: Connector,
        region: String,
        prefix: ObjectPath,
        retry_for: Duration,
    ) -> Self {
        Self { builder, connector, region, prefix, retry_for, clients: OnceLock::new() }
    }

    fn clients(&self) -> object_store::Result<&Clients> {
        if let Some(clients) = self.clients.get() {
            return Ok(clients);
        }
        let http = self.connector.connect(&ClientOptions::default())?;
        let clients = Clients { s3: self.builder.clone().build()?, http };
        Ok(self.clients.get_or_init(|| clients))
    }

    /// Whether objects of the bucket can be locked (`GetObjectLockConfiguration`). A store that does not know the question has no locks.
    pub(super) async fn has_locks(&self) -> object_store::Result<bool> {
        let request = Request::new(Method::GET, ObjectPath::default()).query("object-lock", "");
        let answer = self.send(&request).await?;
        match answer.status {
            StatusCode::OK => Ok(answer.body.contains("<ObjectLockEnabled>Enabled</ObjectLockEnabled>")),
            StatusCode::NOT_FOUND if answer.body.contains("ObjectLockConfigurationNotFound") => Ok(false),
            StatusCode::NOT_IMPLEMENTED | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => Ok(false),
            _ => Err(refusal(&request.path, answer)),
        }
    }

    /// Stores an object, locked from the start.
    pub(super) async fn put(
        &self,
        path: &ObjectPath,
        bytes: Bytes,
        create_only: bool,
        lock: Option<Retention>,
    ) -> object_store::Result<()> {
        let mut request = Request::new(Method::PUT, self.full(path));
        if let Some(lock) = lock {
            request = request.header(MODE, lock.mode.name())?.header(UNTIL, &date(lock.until_ms)?)?;
        }
        if create_only {
            request.headers.insert(http::header::IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        request.body = bytes;
        self.done(&request).await
    }

    /// Locks the newest version of an object, or lengthens its lock (`PutObjectRetention`).
    pub(super) async fn retain(&self, path: &ObjectPath, lock: Retention) -> object_store::Result<()> {
        let mut request = Request::new(Method::PUT, self.full(path)).query("retention", "");
        let (mode, until) = (lock.mode.name(), date(lock.until_ms)?);
        request.body = Bytes::from(format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>{mode}</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>"
        ));
        self.done(&request).await
    }

    /// How an object, or one version of it, is locked.
    pub(super) async fn retention(
        &self,
        path: &ObjectPath,
        version: Option<&str>,
    ) -> object_store::Result<Option<Retention>> {
        let mut request = Request::new(Method::HEAD, self.full(path));
        request.query.extend(version.map(|version| ("versionId", version.to_owned())));
        let answer = self.send(&request).await?;
        if !answer.status.is_success() {
            return Err(refusal(&request.path, answer));
        }
        let text = |name| answer.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let (Some(mode), Some(until)) = (text(MODE).and_then(LockMode::parse), text(UNTIL)) else { return Ok(None) };
        let until: jiff::Timestamp = until.parse().map_err(|error| generic(Box::new(error)))?;
        Ok(Some(Retention { mode, until_ms: until.as_millisecond() }))
    }

    /// All versions of the objects whose paths begin so, and all marks that say that one was deleted, newest first for each path.
    pub(super) async fn versions(&self, start: &str) -> object_store::Result<Vec<Version>> {
        let below = match self.prefix.as_ref() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let mut found = Vec::new();
        let mut next = None::<(String, String)>;
        loop {
            let mut request = Request::new(Method::GET, ObjectPath::default())
                .query("versions", "")
                .query("prefix", format!("{below}{start}"));
            if let Some((key, version)) = &next {
                request = request.query("key-marker", key.clone());
                if !version.is_empty() {
                    request = request.query("version-id-marker", version.clone());
                }
            }
            let answer = self.send(&request).await?;
            if answer.status != StatusCode::OK {
                return Err(refusal(&request.path, answer));
            }
            let page = versions::Page::parse(&answer.body, &below).map_err(|text| generic(text.into()))?;
            found.extend(page.versions);
            match page.next {
                None => return Ok(found),
                Some(same) if next.as_ref() == Some(&same) => {
                    return Err(generic("the listing of versions does not get on".into()));
                }
                Some(further) => next = Some(further),
            }
        }
    }

    /// Deletes one version for good; `false` when the store does not allow it.
    pub(super) async fn delete_version(&self, path: &ObjectPath, version: &str) -> object_store::Result<bool> {
        let request = Request::new(Method::DELETE, self.full(path)).query("versionId", version);
        let answer = self.send(&request).await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(true),
            status if status.is_success() => Ok(true),
            StatusCode::FORBIDDEN => Ok(false),
            _ => Err(refusal(&request.path, answer)),
        }
    }

    /// The bytes of one version.
    pub(super) async fn get_version(&self, path: &ObjectPath, version: &str) -> object_store::Result<Bytes> {
        let options =
            object_store::GetOptions { version: Some(version.to_owned()), ..object_store::GetOptions::default() };
        let found = object_store::ObjectStore::get_opts(&self.clients()?.s3, &self.full(path), options).await?;
        if found.meta.size > super::remote::REMOTE_OBJECT_LEN_MAX as u64 {
            return Err(generic(format!("{path} is too long, {} bytes", found.meta.size).into()));
        }
        found.bytes().await
    }

    fn full(&self, path: &ObjectPath) -> ObjectPath {
        self.prefix.parts().chain(path.parts()).collect()
    }

    async fn done(&self, request: &Request<'_>) -> object_store::Result<()> {
        let answer = self.send(request).await?;
        if answer.status.is_success() { Ok(()) } else { Err(refusal(&request.path, answer)) }
    }

    /// Sends a request, again and again while the store does not answer or is overloaded. All of them may be repeated: what
    /// they ask for is the same the second time.
    async fn send(&self, request: &Request<'_>) -> object_store::Result<Answer> {
        let start = Instant::now();
        let mut wait = FIRST_WAIT.min(self.retry_for);
        loop {
            let tried = self.try_once(request).await;
            let again = match &tried {
                Ok(answer) => is_passing(answer.status),
                Err(error) => error.is_passing,
            };
            if !again || start.elapsed() + wait > self.retry_for {
                return tried.map_err(|error| error.error);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn try_once(&self, request: &Request<'_>) -> Result<Answer, Failed> {
        let Clients { s3, http } = self.clients().map_err(Failed::lasting)?;
        let url = s3.signed_url(request.method.clone(), &request.path, Duration::from_secs(60)).await;
        let mut url = url.map_err(Failed::lasting)?;
        // Only the address is wanted: headers are signed, too.
        url.set_query(None);
        for (name, value) in &request.query {
            url.query_pairs_mut().append_pair(name, value);
        }
        let body = match request.body.is_empty() {
            true => HttpRequestBody::empty(),
            false => HttpRequestBody::from(PutPayload::from(request.body.clone())),
        };
        let mut built = HttpRequest::new(body);
        *built.method_mut() = request.method.clone();
        *built.uri_mut() = url.as_str().parse().map_err(|error| Failed::lasting(generic(Box::new(error))))?;
        *built.headers_mut() = request.headers.clone();
        let hash = digest(&SHA256, &request.body);
        if !request.body.is_empty() {
            // Demanded for locked objects (docs/sources.md), under one of the two names.
            let headers = built.headers_mut();
            headers.insert("x-amz-sdk-checksum-algorithm", HeaderValue::from_static("SHA256"));
            let sum = HeaderValue::from_str(&BASE64.encode(hash.as_ref())).expect("base64 fits into a header");
            headers.insert("x-amz-checksum-sha256", sum);
        }
        built.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(request.body.len()));
        let credential = s3.credentials().get_credential().await.map_err(Failed::lasting)?;
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(&mut built, Some(hash.as_ref()))
            .map_err(Failed::lasting)?;
        let response = http.execute(built).await.map_err(Failed::of_connection)?;
        read(response).await
    }
}

/// Whether the same request may succeed a little later.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT)
}

async fn read(response: HttpResponse) -> Result<Answer, Failed> {
    let (parts, body) = response.into_parts();
    let mut bytes = Vec::new();
    let mut stream = std::pin::pin!(body.bytes_stream());
    while let Some(piece) = stream.try_next().await.map_err(Failed::of_connection)? {
        if bytes.len() + piece.len() > ANSWER_LEN_MAX {
            return Err(Failed::lasting(generic("the store's answer is too long".into())));
        }
        bytes.extend_from_slice(&piece);
    }
    let body = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

struct Failed {
    error: StoreError,
    is_passing: bool,
}

impl Failed {
    fn lasting(error: StoreError) -> Self {
        Self { error, is_passing: false }
    }

    fn of_connection(error: object_store::client::HttpError) -> Self {
        let is_passing = matches!(
            error.kind(),
            HttpErrorKind::Connect | HttpErrorKind::Request | HttpErrorKind::Timeout | HttpErrorKind::Interrupted
        );
        Self { error: generic(Box::new(error)), is_passing }
    }
}

fn generic(source: Box<dyn std::error::Error + Send + Sync>) -> StoreError {
    StoreError::Generic { store: STORE, source }
}

/// The error that `object_store` makes of such an answer, so that both are read alike.
fn refusal(path: &ObjectPath, answer: Answer) -> StoreError {
    let (path, source) = (path.to_string(), format!("{}: {}", answer.status, answer.body).into());
    match answer.status {
        StatusCode::NOT_FOUND => StoreError::NotFound { path, source },
        StatusCode::FORBIDDEN => StoreError::PermissionDenied { path, source },
        StatusCode::UNAUTHORIZED => StoreError::Unauthenticated { path, source },
        StatusCode::PRECONDITION_FAILED => StoreError::AlreadyExists { path, source },
        _ => StoreError::Generic { store: STORE, source },
    }
}

/// A moment as S3 writes it, in whole seconds.
fn date(ms: i64) -> object_store::Result<String> {
    let moment = jiff::Timestamp::from_second(ms.div_euclid(1000)).map_err(|error| generic(Box::new(error)))?;
    Ok(moment.to_string())
}

impl LockTerms {
    /// The lock of what is stored at a moment.
    pub(super) fn from(self, now_ms: i64) -> Retention {
        Retention { mode: self.mode, until_ms: now_ms + self.len_ms() }
    }
}

impl std::fmt::Debug for S3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
