//! Requests to a server, tried again where trying may help, and what its answers mean.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, Method, StatusCode, header};
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody};
use object_store::path::Path as ObjectPath;
use object_store::{GetRange, ObjectMeta, PutPayload};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::store::http::{Tls, client};
use crate::store::remote::REMOTE_OBJECT_LEN_MAX;
use crate::store::server::pin::{Pin, WRONG};
use crate::store::server::{Fingerprint, FoundObject, STORE, ServerPlace, ServerSettings, Trust};

/// The first pause before another try; each next one is twice as long.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// The longest answer that is taken: an object, or a page of a listing.
const ANSWER_LEN_MAX: usize = 2 * REMOTE_OBJECT_LEN_MAX;
/// How long a server may take to show its certificate.
const SHOW: Duration = Duration::from_secs(20);
/// What every answer of such a server has.
const MARK: &str = "x-cairn-server";

/// What the server answered instead of doing it.
#[derive(Debug)]
pub(in crate::store) struct Refused {
    pub(in crate::store) kind: ErrorKind,
    pub(in crate::store) text: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refused {}

/// A way to one namespace.
#[derive(Debug)]
pub(super) struct Requests {
    client: HttpClient,
    /// `https://host:port/v1/namespace`
    base: String,
    authorization: http::HeaderValue,
    retry_for: Duration,
}

/// An answer that was read to its end.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// What came of one try.
enum Tried {
    Answered(Answer),
    /// Another try may do better.
    Again(object_store::Error),
}

#[derive(Deserialize)]
struct RefusalBody {
    message: String,
}

#[derive(Serialize)]
struct Names<'a> {
    names: &'a [String],
}

#[derive(Deserialize)]
struct There {
    there: Vec<String>,
}

impl Requests {
    pub(super) fn new(place: &ServerPlace, settings: &ServerSettings) -> Result<Self> {
        let tls = match settings.trust {
            Trust::Pinned(fingerprint) => Tls::Own(Box::new(Pin::new(Some(fingerprint)).tls())),
            Trust::Authorities => Tls::Authorities,
        };
        let client = client(settings.traffic.clone(), tls)
            .map_err(|error| Error::with_source(ErrorKind::Io, "cannot make connections", error))?;
        let mut authorization = http::HeaderValue::from_str(&format!("Bearer {}", settings.token.trim()))
            .map_err(|_| Error::invalid("the token has characters that no token has"))?;
        authorization.set_sensitive(true);
        let base = format!("https://{}/v1/{}", place.authority, place.namespace);
        format!("{base}/config")
            .parse::<http::Uri>()
            .map_err(|error| Error::with_source(ErrorKind::Invalid, format!("{base} is no address"), error))?;
        Ok(Self { client, base, authorization, retry_for: settings.retry_for })
    }

    /// Sends it until there is an answer that another try would not change.
    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(header::HeaderName, String)],
        body: impl Fn() -> HttpRequestBody,
    ) -> object_store::Result<Answer> {
        let (began, mut pause) = (Instant::now(), PAUSE.min(self.retry_for));
        loop {
            let mut request = http::Request::builder()
                .method(method.clone())
                .uri(format!("{}/{path}", self.base))
                .header(header::AUTHORIZATION, self.authorization.clone());
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let request = request.body(body()).map_err(generic)?;
            let failed = match self.attempt(request).await? {
                Tried::Answered(answer) => return Ok(answer),
                Tried::Again(failed) => failed,
            };
            if began.elapsed() + pause > self.retry_for {
                return Err(failed);
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    async fn attempt(&self, request: HttpRequest) -> object_store::Result<Tried> {
        let answer = match self.client.execute(request).await {
            Ok(answer) => answer,
            Err(error) if chain(&error).contains(WRONG) => {
                let shown = chain(&error).rsplit("is shown: ").next().unwrap_or_default().to_owned();
                let text = format!(
                    "the server shows another certificate than the pinned one: {shown}; somebody may have put himself \
                     between"
                );
                return Err(refused(ErrorKind::Unauthenticated, text));
            }
            Err(error) => return Ok(Tried::Again(generic(error))),
        };
        let (parts, body) = answer.into_parts();
        let mut bytes = BytesMut::new();
        let mut pieces = body.bytes_stream();
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(piece) if bytes.len() + piece.len() <= ANSWER_LEN_MAX => bytes.extend_from_slice(&piece),
                Ok(_) => return Err(refused(ErrorKind::Unsupported, "the server's answer is too long".to_owned())),
                Err(error) => return Ok(Tried::Again(generic(error))),
            }
        }
        let answer = Answer { status: parts.status, headers: parts.headers, body: bytes.freeze() };
        if !answer.headers.contains_key(MARK) {
            let text = format!("what answers there is no cairn-server: it says {}", answer.status);
            // A proxy before it may say so for a while.
            return match answer.status.is_server_error() {
                true => Ok(Tried::Again(refused(ErrorKind::Unavailable, text))),
                false => Err(refused(ErrorKind::Unsupported, text)),
            };
        }
        let again = [
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::INTERNAL_SERVER_ERROR,
            StatusCode::SERVICE_UNAVAILABLE,
        ];
        if again.contains(&answer.status) {
            let text = format!("the server says: {}", answer.message());
            return Ok(Tried::Again(refused(ErrorKind::Unavailable, text)));
        }
        Ok(Tried::Answered(answer))
    }

    pub(super) async fn put(&self, location: &ObjectPath, payload: PutPayload) -> object_store::Result<()> {
        let answer = self.send(Method::PUT, location.as_ref(), &[], || payload.clone().into()).await?;
        answer.expect_done(location)
    }

    pub(super) async fn delete(&self, location: &ObjectPath) -> object_store::Result<()> {
        let answer = self.send(Method::DELETE, location.as_ref(), &[], HttpRequestBody::empty).await?;
        answer.expect_done(location)
    }

    pub(super) async fn get(
        &self,
        location: &ObjectPath,
        range: Option<&GetRange>,
        head: bool,
    ) -> object_store::Result<FoundObject> {
        let asked = range.map(|range| match range {
            GetRange::Bounded(range) => format!("bytes={}-{}", range.start, range.end.saturating_sub(1)),
            GetRange::Offset(start) => format!("bytes={start}-"),
            GetRange::Suffix(count) => format!("bytes=-{count}"),
        });
        let headers: Vec<_> = asked.filter(|_| !head).map(|asked| (header::RANGE, asked)).into_iter().collect();
        let method = if head { Method::HEAD } else { Method::GET };
        let answer = self.send(method, location.as_ref(), &headers, HttpRequestBody::empty).await?;
        answer.expect_done(location)?;
        answer.found(head).ok_or_else(|| refused(ErrorKind::Unavailable, "the answer makes no sense".to_owned()))
    }

    /// A page of a listing, as JSON.
    pub(super) async fn page(&self, folder: &str, after: &str) -> object_store::Result<Bytes> {
        let path = if after.is_empty() {
            format!("{folder}?limit=10000")
        } else {
            format!("{folder}?limit=10000&after={after}")
        };
        let answer = self.send(Method::GET, &path, &[], HttpRequestBody::empty).await?;
        answer.expect_done(&ObjectPath::from(folder))?;
        Ok(answer.body)
    }

    pub(super) async fn have(&self, names: &[String]) -> object_store::Result<Vec<String>> {
        let body = Bytes::from(serde_json::to_vec(&Names { names }).map_err(generic)?);
        let headers = [(header::CONTENT_TYPE, "application/json".to_owned())];
        let answer = self.send(Method::POST, "have", &headers, || body.clone().into()).await?;
        answer.expect_done(&ObjectPath::from("have"))?;
        let there: There = serde_json::from_slice(&answer.body).map_err(generic)?;
        Ok(there.there)
    }
}

impl Answer {
    fn message(&self) -> String {
        match serde_json::from_slice::<RefusalBody>(&self.body) {
            Ok(body) => body.message,
            Err(_) => self.status.to_string(),
        }
    }

    /// Fails unless it was done.
    fn expect_done(&self, location: &ObjectPath) -> object_store::Result<()> {
        if self.status.is_success() {
            return Ok(());
        }
        let message = self.message();
        let path = location.to_string();
        Err(match self.status {
            StatusCode::NOT_FOUND if !message.starts_with("namespace") => {
                object_store::Error::NotFound { path, source: message.into() }
            }
            StatusCode::NOT_FOUND => refused(ErrorKind::Unavailable, format!("the server says: {message}")),
            StatusCode::CONFLICT if path == "config" => {
                object_store::Error::AlreadyExists { path, source: message.into() }
            }
            StatusCode::CONFLICT => refused(ErrorKind::Locked, format!("the server refuses {path}: {message}")),
            StatusCode::UNAUTHORIZED => refused(ErrorKind::Io, "the server does not know the token".to_owned()),
            StatusCode::FORBIDDEN => refused(ErrorKind::Io, format!("the server does not allow it: {message}")),
            StatusCode::INSUFFICIENT_STORAGE => refused(ErrorKind::Io, message),
            _ => refused(ErrorKind::Io, format!("the server refuses {path}: {message}")),
        })
    }

    fn found(self, head: bool) -> Option<FoundObject> {
        let number = |name: &str| self.headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
        let stored_ms = self.headers.get("x-stored-ms")?.to_str().ok()?.parse().ok()?;
        let len = self.body.len() as u64;
        let (range, size) = match self.headers.get(header::CONTENT_RANGE) {
            Some(value) => {
                let (range, size) = value.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
                let start = range.split_once('-')?.0.parse::<u64>().ok()?;
                (start..start.checked_add(len)?, size.parse().ok()?)
            }
            None if head => (0..0, number("content-length")?),
            None => (0..len, len),
        };
        Some(FoundObject { bytes: self.body, range, size, stored_ms })
    }
}

impl FoundObject {
    pub(super) fn meta(&self, location: &ObjectPath) -> ObjectMeta {
        meta(location.clone(), self.size, self.stored_ms)
    }
}

/// What `object_store` wants to know of an object.
pub(super) fn meta(location: ObjectPath, size: u64, stored_ms: i64) -> ObjectMeta {
    let since = Duration::from_millis(u64::try_from(stored_ms).unwrap_or(0));
    let stored = std::time::SystemTime::UNIX_EPOCH + since;
    ObjectMeta { location, last_modified: stored.into(), size, e_tag: None, version: None }
}

pub(super) fn shown_fingerprint(place: &ServerPlace) -> Result<Fingerprint> {
    let pin = Pin::new(None);
    let url = format!("https://{}/healthz", place.authority);
    let cannot = |error: reqwest::Error| {
        Error::with_source(ErrorKind::Unavailable, format!("cannot reach {}", place.authority), error.without_url())
    };
    let client =
        reqwest::Client::builder().tls_backend_preconfigured(pin.tls()).timeout(SHOW).build().map_err(cannot)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("cannot start the network", error))?;
    let answer = runtime.block_on(async { client.get(url).send().await }).map_err(cannot)?;
    if !answer.headers().contains_key(MARK) {
        let text = format!("what answers at {} is no cairn-server: it says {}", place.authority, answer.status());
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let shown = *pin.shown.lock();
    shown.ok_or_else(|| Error::internal("a connection was made without a certificate"))
}

fn generic(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> object_store::Error {
    object_store::Error::Generic { store: STORE, source: error.into() }
}

fn refused(kind: ErrorKind, text: String) -> object_store::Error {
    generic(Refused { kind, text })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
