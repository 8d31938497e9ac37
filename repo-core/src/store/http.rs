//! HTTP for object stores: requests are counted, held to limits, and given up when no byte moves any more.
//!
//! There is no limit on a whole request, which would have to know how slow a line may be: what counts is whether it gets
//! on. Tries that failed are repeated one level up, by `object_store`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

use crate::traffic::{RequestKind, Traffic};

/// How long no byte may move, in either direction, before a try is given up.
const STALL: Duration = Duration::from_secs(120);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(15);
/// Bytes of a body that are sent between two looks at the limit.
const PIECE_LEN: usize = 64 * 1024;

/// Makes clients that count into one account.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    pub(super) traffic: Arc<Traffic>,
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        client(self.traffic.clone(), Tls::Authorities)
            .map_err(|error| object_store::Error::Generic { store: "HTTP", source: Box::new(error) })
    }
}

/// Who vouches for the other side.
pub(super) enum Tls {
    /// The authorities that this machine trusts.
    Authorities,
    /// What the caller checks.
    Own(Box<rustls::ClientConfig>),
}

/// A client that counts into one account.
pub(super) fn client(traffic: Arc<Traffic>, tls: Tls) -> Result<HttpClient, reqwest::Error> {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("cairn/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .tcp_keepalive(Duration::from_secs(30))
        // Before servers close them: a request on a connection that is being closed fails.
        .pool_idle_timeout(Duration::from_secs(15))
        // Copies of a failed request must not follow each other to other hosts with the credentials.
        .redirect(reqwest::redirect::Policy::none());
    let builder = match tls {
        Tls::Authorities => builder,
        Tls::Own(config) => builder.tls_backend_preconfigured(*config),
    };
    Ok(HttpClient::new(Client { client: builder.build()?, traffic }))
}

#[derive(Debug)]
struct Client {
    client: reqwest::Client,
    traffic: Arc<Traffic>,
}

#[async_trait::async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let query = parts.uri.query().unwrap_or_default();
        let permit = self.traffic.begin(kind(parts.method.as_str(), query)).await;
        let url =
            parts.uri.to_string().parse().map_err(|error| HttpError::new(HttpErrorKind::Unknown, Failed::of(error)))?;
        let moved = Arc::new(Moved::new());
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(sent(body, self.traffic.clone(), moved.clone()).await);
        let answer = tokio::select! {
            answer = self.client.execute(request) => answer.map_err(http_error)?,
            () = moved.stalled() => return Err(stalled()),
        };
        let (status, headers) = (answer.status(), answer.headers().clone());
        let received = Received {
            body: answer.into(),
            traffic: self.traffic.clone(),
            permit: Some(permit),
            wait: None,
            stall: Box::pin(tokio::time::sleep(STALL)),
        };
        let mut response = HttpResponse::new(HttpResponseBody::new(received));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// What a request asks for, told by its method and query.
fn kind(method: &str, query: &str) -> RequestKind {
    let asks = |key: &str| query.split('&').any(|pair| pair.split('=').next() == Some(key));
    match method {
        "GET" if ["list-type", "versions", "limit"].into_iter().any(asks) || query.contains("comp=list") => {
            RequestKind::List
        }
        "GET" if asks("object-lock") || asks("versioning") => RequestKind::Other,
        "GET" => RequestKind::Get,
        "HEAD" => RequestKind::Head,
        "PUT" if asks("retention") => RequestKind::Other,
        "PUT" => RequestKind::Put,
        "DELETE" => RequestKind::Delete,
        "POST" if asks("delete") || query.contains("comp=batch") => RequestKind::Delete,
        _ => RequestKind::Other,
    }
}

/// The body of a request, in pieces that wait for their turn.
async fn sent(mut body: HttpRequestBody, traffic: Arc<Traffic>, moved: Arc<Moved>) -> reqwest::Body {
    if let Some(bytes) = body.as_bytes() {
        // Requests other than puts: short, and their length is set by the client.
        traffic.upload(bytes.len());
        return bytes.clone().into();
    }
    let mut parts = Vec::new();
    while let Some(Ok(frame)) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        parts.extend(frame.into_data().ok());
    }
    parts.reverse();
    let pieces = futures::stream::unfold((parts, traffic, moved), |(mut parts, traffic, moved)| async move {
        let mut part: Bytes = parts.pop()?;
        let piece = part.split_to(part.len().min(PIECE_LEN));
        if !part.is_empty() {
            parts.push(part);
        }
        let wait = traffic.upload(piece.len());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        moved.now();
        Some((Ok::<_, std::convert::Infallible>(piece), (parts, traffic, moved)))
    });
    reqwest::Body::wrap_stream(pieces)
}

/// When a byte moved last.
struct Moved {
    start: Instant,
    at_ms: AtomicU64,
}

impl Moved {
    fn new() -> Self {
        Self { start: Instant::now(), at_ms: AtomicU64::new(0) }
    }

    fn now(&self) {
        self.at_ms.store(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Ends when nothing has moved for too long.
    async fn stalled(&self) {
        loop {
            let end = Duration::from_millis(self.at_ms.load(Ordering::Relaxed)) + STALL;
            match end.checked_sub(self.start.elapsed()) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }
}

/// The body of an answer.
struct Received {
    body: reqwest::Body,
    traffic: Arc<Traffic>,
    /// Given back at the end of the body, and at an error: what takes it up again is a request of its own.
    permit: Option<OwnedSemaphorePermit>,
    wait: Option<Pin<Box<Sleep>>>,
    stall: Pin<Box<Sleep>>,
}

impl Body for Received {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Some(wait) = &mut self.wait {
            std::task::ready!(wait.as_mut().poll(context));
            self.wait = None;
            self.stall.as_mut().reset(tokio::time::Instant::now() + STALL);
        }
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => {
                std::task::ready!(self.stall.as_mut().poll(context));
                self.permit = None;
                Poll::Ready(Some(Err(stalled())))
            }
            Poll::Ready(None) => {
                self.permit = None;
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.permit = None;
                Poll::Ready(Some(Err(http_error(error))))
            }
            Poll::Ready(Some(Ok(frame))) => {
                let wait = self.traffic.download(frame.data_ref().map_or(0, Bytes::len));
                self.wait = (!wait.is_zero()).then(|| Box::pin(tokio::time::sleep(wait)));
                self.stall.as_mut().reset(tokio::time::Instant::now() + STALL);
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn stalled() -> HttpError {
    HttpError::new(HttpErrorKind::Timeout, Failed(format!("no byte moved for {} s", STALL.as_secs())))
}

/// Whether a try may be repeated, as the kind of its error says.
fn http_error(error: reqwest::Error) -> HttpError {
    let kind = if error.is_connect() {
        HttpErrorKind::Connect
    } else if error.is_timeout() {
        HttpErrorKind::Timeout
    } else if error.is_builder() {
        HttpErrorKind::Unknown
    } else {
        // Broken off somewhere: repeated where repeating does no harm.
        HttpErrorKind::Interrupted
    };
    // The address is told one level up.
    HttpError::new(kind, error.without_url())
}

#[derive(Debug)]
struct Failed(String);

impl Failed {
    fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart_by_method_and_query() {
        assert_eq!(kind("GET", "list-type=2&prefix=a"), RequestKind::List);
        assert_eq!(kind("GET", "restype=container&comp=list"), RequestKind::List);
        assert_eq!(kind("GET", "limit=10000&after=x"), RequestKind::List);
        assert_eq!(kind("GET", "versions=&prefix=a"), RequestKind::List);
        assert_eq!(kind("PUT", "retention="), RequestKind::Other);
        assert_eq!(kind("GET", ""), RequestKind::Get);
        assert_eq!(kind("POST", "delete="), RequestKind::Delete);
        assert_eq!(kind("PUT", ""), RequestKind::Put);
        assert_eq!(kind("POST", "uploads"), RequestKind::Other);
    }
}
