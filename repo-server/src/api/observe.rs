//! Around every request: its id, its line in the log, its entry in the audit file.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use data_encoding::HEXLOWER;
use serde::Serialize;

use crate::log::{self, AuditEntry};
use crate::refusal::Refusal;
use crate::state::{Record, Shared, client};

/// Tells clients what answers: something else on that port would not say so.
const SERVER: HeaderName = HeaderName::from_static("x-cairn-server");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[derive(Serialize)]
struct Line<'a> {
    request_id: &'a str,
    client: &'a str,
    token: Option<&'a str>,
    method: &'a str,
    path: &'a str,
    /// None when the client went before there was an answer.
    status: Option<u16>,
    ms: u64,
    bytes_in: Option<u64>,
    bytes_out: Option<u64>,
    error: Option<&'a str>,
}

pub(super) async fn observe(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    let record = Arc::new(Record::default());
    request.extensions_mut().insert(record.clone());
    let mut watch = Watch {
        began: Instant::now(),
        id: new_id(),
        client: client(request.extensions()).map(|address| address.to_string()).unwrap_or_default(),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        answer: None,
        record,
        shared,
    };
    let mut response = next.run(request).await;
    let status = response.status();
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
    headers.extend(HeaderValue::from_str(&watch.id).ok().map(|value| (REQUEST_ID, value)));
    // What a browser that is led here must not make of it.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let bytes_out = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    // What a refused request still had to send is not read, so the connection ends. It has to say so: the client would send its next
    // request into the end.
    if status.is_client_error() && matches!(watch.method, Method::PUT | Method::POST) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let refusal = response.extensions_mut().remove::<Refusal>();
    watch.answer = Some(Answer { status: response.status().as_u16(), refusal, bytes_out });
    response
}

/// One request; told when it ends, also when its client is gone before.
struct Watch {
    began: Instant,
    id: String,
    client: String,
    method: Method,
    path: String,
    answer: Option<Answer>,
    record: Arc<Record>,
    shared: Arc<Shared>,
}

struct Answer {
    status: u16,
    refusal: Option<Refusal>,
    bytes_out: Option<u64>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let answer = self.answer.as_ref();
        let refusal = answer.and_then(|answer| answer.refusal.as_ref());
        let reason = refusal.map(|refusal| refusal.message.as_str());
        let token = self.record.token.get();
        let changes = matches!(self.method, Method::PUT | Method::DELETE);
        let bytes = Some(self.record.bytes.load(Ordering::Relaxed)).filter(|_| changes);
        let failed = answer.is_some_and(|answer| answer.status >= 500 && answer.status != 507);
        log::line(
            if failed { "error" } else { "info" },
            "request",
            &Line {
                request_id: &self.id,
                client: &self.client,
                token: token.map(|token| token.id.as_str()),
                method: self.method.as_str(),
                path: &self.path,
                status: answer.map(|answer| answer.status),
                ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
                bytes_in: bytes,
                bytes_out: answer.and_then(|answer| answer.bytes_out),
                error: reason,
            },
        );
        let denied = refusal.is_some_and(|refusal| matches!(refusal.status.as_u16(), 401 | 403 | 429));
        if !changes && !denied {
            return;
        }
        let mut parts = self.path.strip_prefix("/v1/").unwrap_or(&self.path).splitn(2, '/');
        self.shared.audit.write(&AuditEntry {
            request_id: &self.id,
            client: &self.client,
            token: token.map(|token| token.id.as_str()),
            label: token.map(|token| token.label.as_str()),
            role: token.map(|token| token.role.name()),
            namespace: parts.next(),
            object: parts.next().unwrap_or_default(),
            action: self.method.as_str(),
            bytes,
            outcome: match (answer, self.record.outcome.get()) {
                (_, Some(outcome)) => outcome,
                (Some(answer), None) if answer.status == 404 => "missing",
                (Some(_), None) => "refused",
                // Whether it was carried out, the store knows.
                (None, None) => "broken off",
            },
            reason,
        });
    }
}

fn new_id() -> String {
    let mut bytes = [0; 8];
    // An id that is not random still stands for its request well enough.
    let _ = getrandom::fill(&mut bytes);
    HEXLOWER.encode(&bytes)
}
