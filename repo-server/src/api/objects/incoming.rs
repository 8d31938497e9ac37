//! Bytes of an object on their way in: hashed and written as they come, in bounded memory, visible only when they are
//! all there and are what the name says.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use futures::StreamExt;
use repo_core::store::ObjectName;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::access::{Action, allows};
use crate::api::objects::blocking;
use crate::namespace::Stored;
use crate::refusal::Refusal;
use crate::state::{Call, Record, Shared};

/// Pieces that wait for the disk. One is as long as a read from the connection.
const PIECES: usize = 8;
/// How long a body may take, whatever its length.
const GRACE: Duration = Duration::from_secs(60);
/// How long to wait for a turn.
const TURN: Duration = Duration::from_secs(60);

enum Piece {
    Bytes(Bytes),
    /// That was all of them.
    End,
}

/// Takes an object in.
pub(super) async fn take(
    call: Call,
    name: ObjectName,
    shared: &Arc<Shared>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Stored, Refusal> {
    let len_max = call.namespace.len_max(name, shared.object_len_max());
    let said_len = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let body = Arriving { body, len_max, record: call.record.clone(), shared: shared.clone() };
    if let Some(len) = said_len.filter(|len| *len > len_max) {
        if len <= 2 * len_max {
            body.discard().await;
        }
        return Err(Refusal::too_long(len_max));
    }
    if !allows(call.token.role, Action::Store, name) {
        body.discard().await;
        let text = format!("a token for {} must not store {name}", call.token.role.name());
        return Err(Refusal::forbidden(text));
    }
    let turn = tokio::time::timeout(TURN, shared.uploads.clone().acquire_owned()).await;
    let Ok(Ok(_turn)) = turn else {
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many objects are coming in"));
    };
    if !matches!(name, ObjectName::Config | ObjectName::Renewal(_)) {
        let (namespace, token) = (call.namespace.clone(), call.token.id.clone());
        if blocking(move || namespace.existed(name, &token)).await? {
            body.discard().await;
            return Ok(Stored::Existed);
        }
    }
    let (sender, receiver) = mpsc::channel(PIECES);
    let worker = blocking(move || write(&call, name, said_len, receiver));
    let worker = tokio::spawn(worker);
    let arrived = body.send(sender).await;
    let stored = worker.await;
    // Why the bytes stopped coming tells more than that they did.
    arrived?;
    stored.unwrap_or_else(|error| Err(Refusal::broke_off(&error)))
}

fn write(
    call: &Call,
    name: ObjectName,
    said_len: Option<u64>,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<Stored, Refusal> {
    let mut incoming = call.namespace.begin(name, said_len)?;
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Bytes(bytes)) => incoming.append(&bytes)?,
            Some(Piece::End) => return incoming.finish(&call.token.id),
            None => return Err(Refusal::bad("the object was broken off")),
        }
    }
}

/// A body as it arrives.
struct Arriving {
    body: Body,
    len_max: u64,
    record: Arc<Record>,
    shared: Arc<Shared>,
}

impl Arriving {
    /// Hands the body on. When nobody takes it any more, the rest is received all the same, so that the client gets to
    /// read why.
    async fn send(self, sender: mpsc::Sender<Piece>) -> Result<(), Refusal> {
        let mut sender = Some(sender);
        let record = self.record.clone();
        let mut received = 0;
        let mut pieces = std::pin::pin!(self.pieces());
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            received += piece.len() as u64;
            record.bytes.store(received, Ordering::Relaxed);
            if let Some(taker) = &sender
                && taker.send(Piece::Bytes(piece)).await.is_err()
            {
                sender = None;
            }
        }
        if let Some(taker) = sender {
            // Who took it may have failed at the last piece.
            let _ = taker.send(Piece::End).await;
        }
        Ok(())
    }

    /// Receives the body, and forgets it: a client that is still sending would see a broken connection instead of the
    /// answer.
    async fn discard(self) {
        let this = Self { len_max: 2 * self.len_max, ..self };
        let mut pieces = std::pin::pin!(this.pieces());
        while let Some(Ok(_)) = pieces.next().await {}
    }

    /// The pieces of the body, up to the first error.
    fn pieces(self) -> impl futures::Stream<Item = Result<Bytes, Refusal>> {
        let began = Instant::now();
        let slowest = u64::from(self.shared.limits.slowest_bytes_per_second);
        let stream = self.body.into_data_stream();
        futures::stream::unfold((stream, 0, false), move |(mut stream, received, failed)| async move {
            if failed {
                return None;
            }
            let end = began + GRACE + Duration::from_secs(received / slowest);
            let (next, received) = match tokio::time::timeout_at(end, stream.next()).await {
                Ok(None) => return None,
                Ok(Some(Ok(bytes))) if received + bytes.len() as u64 > self.len_max => {
                    (Err(Refusal::too_long(self.len_max)), received)
                }
                Ok(Some(Ok(bytes))) => {
                    let received = received + bytes.len() as u64;
                    (Ok(bytes), received)
                }
                Ok(Some(Err(error))) => (Err(Refusal::bad(format!("the body broke off: {error}"))), received),
                Err(_) => {
                    let text = "the body came too slowly";
                    (Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "too-slow", text)), received)
                }
            };
            let failed = next.is_err();
            Some((next, (stream, received, failed)))
        })
    }
}
