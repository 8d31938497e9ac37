//! Bytes of an object on their way to the client: read a piece ahead, no more.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use tokio::sync::mpsc;

use crate::namespace::Found;
use crate::refusal::Refusal;

/// Bytes of a piece.
const PIECE_LEN: u64 = 256 * 1024;

/// The answer with an object, or the part of it that was asked for.
pub(super) fn answer(file: File, found: &Found, method: &Method, headers: &HeaderMap) -> Result<Response, Refusal> {
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let (status, range) = match asked.map(|asked| parse(asked, found.bytes)) {
        None | Some(Asked::Whole) => (StatusCode::OK, 0..found.bytes),
        Some(Asked::Part(range)) => (StatusCode::PARTIAL_CONTENT, range),
        Some(Asked::Nothing) => {
            let text = format!("{} has {} bytes, none of them in that range", found.name, found.bytes);
            let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", text);
            let mut response = refusal.into_response();
            let whole = format!("bytes */{}", found.bytes);
            response
                .headers_mut()
                .extend(HeaderValue::from_str(&whole).ok().map(|value| (header::CONTENT_RANGE, value)));
            return Ok(response);
        }
    };
    let body = if *method == Method::HEAD { Body::empty() } else { body(file, range.clone()) };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // What is immutable may be kept; what is sealed may be kept by nobody but who asked.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-transform"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    headers.insert("x-stored-ms", HeaderValue::from(found.stored_ms));
    if status == StatusCode::PARTIAL_CONTENT {
        let part = format!("bytes {}-{}/{}", range.start, range.end.saturating_sub(1), found.bytes);
        headers.extend(HeaderValue::from_str(&part).ok().map(|value| (header::CONTENT_RANGE, value)));
    }
    Ok(response)
}

/// What a Range header asks for, of an object of some length.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Part(Range<u64>),
    /// It cannot be understood, and need not be (RFC 9110 §14.2).
    Whole,
    /// Bytes that are not there.
    Nothing,
}

fn parse(text: &str, len: u64) -> Asked {
    let digits = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse::<u64>().ok(),
        false => None,
    };
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Asked::Whole;
    };
    let range = match (digits(first), digits(last)) {
        (None, Some(count)) if first.is_empty() => len.saturating_sub(count)..len,
        (Some(first), None) if last.is_empty() => first..len,
        (Some(first), Some(last)) if first <= last => first..len.min(last.saturating_add(1)),
        _ => return Asked::Whole,
    };
    if range.start < range.end { Asked::Part(range) } else { Asked::Nothing }
}

fn body(file: File, range: Range<u64>) -> Body {
    let (pieces, taken) = mpsc::channel::<std::io::Result<Bytes>>(1);
    tokio::task::spawn_blocking(move || {
        let mut at = range.start;
        while at < range.end {
            let mut piece = vec![0; PIECE_LEN.min(range.end - at) as usize];
            let read = file.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece));
            let failed = read.is_err();
            // Whoever takes them is gone when this fails; and whoever is told of an error hears no more.
            if pieces.blocking_send(read).is_err() || failed {
                return;
            }
            at += PIECE_LEN;
        }
    });
    Body::from_stream(stream::unfold(taken, |mut taken| async move { taken.recv().await.map(|piece| (piece, taken)) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let cases = [
            ("bytes=0-0", Asked::Part(0..1)),
            ("bytes=2-5", Asked::Part(2..6)),
            ("bytes=8-", Asked::Part(8..10)),
            ("bytes=8-99", Asked::Part(8..10)),
            ("bytes=-3", Asked::Part(7..10)),
            ("bytes=-30", Asked::Part(0..10)),
            ("bytes=0-18446744073709551615", Asked::Part(0..10)),
            ("bytes=10-", Asked::Nothing),
            ("bytes=-0", Asked::Nothing),
            ("bytes=99-100", Asked::Nothing),
            ("bytes=5-2", Asked::Whole),
            ("bytes=", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=0-1,3-4", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("bytes=99999999999999999999-", Asked::Whole),
            ("lines=1-2", Asked::Whole),
        ];
        for (text, asked) in cases {
            assert_eq!(parse(text, 10), asked, "{text}");
        }
        assert_eq!(parse("bytes=0-", 0), Asked::Nothing);
    }
}
