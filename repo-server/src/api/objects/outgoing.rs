//! Bytes of an object on their way to the client: read a piece ahead, no more.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use repo_core::store::reading::Part;
use tokio::sync::mpsc;

use crate::namespace::{Content, Found};
use crate::refusal::Refusal;

/// The part of an object that a request asks for.
pub(super) fn asked(headers: &HeaderMap) -> Part {
    headers.get(header::RANGE).and_then(|value| value.to_str().ok()).map_or(Part::Whole, parse)
}

/// The answer with the part of an object that was asked for; without its bytes where there is no content.
pub(super) fn answer(found: &Found, part: &Part, content: Option<Content>) -> Result<Response, Refusal> {
    let Some(range) = part.of(found.bytes) else {
        let text = format!("{} has {} bytes, none of them in that range", found.name, found.bytes);
        let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", text);
        let mut response = refusal.into_response();
        let whole = format!("bytes */{}", found.bytes);
        response.headers_mut().extend(HeaderValue::from_str(&whole).ok().map(|value| (header::CONTENT_RANGE, value)));
        return Ok(response);
    };
    let status = if *part == Part::Whole { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
    let body = content.map_or_else(Body::empty, body);
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

/// What a Range header asks for. One that cannot be understood need not be (RFC 9110 §14.2).
fn parse(text: &str) -> Part {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Part::Whole;
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
    match (digits(first), digits(last)) {
        (None, Some(count)) if first.is_empty() => Part::Last(count),
        (Some(first), None) if last.is_empty() => Part::From(first),
        (Some(first), Some(last)) if first <= last => Part::Range(first..last.saturating_add(1)),
        _ => Part::Whole,
    }
}

fn body(mut content: Content) -> Body {
    let (pieces, taken) = mpsc::channel::<std::io::Result<Bytes>>(1);
    tokio::task::spawn_blocking(move || {
        while let Some(piece) = content.next_piece().transpose() {
            let failed = piece.is_err();
            // Whoever takes them is gone when this fails; and whoever is told of an error hears no more.
            if pieces.blocking_send(piece).is_err() || failed {
                return;
            }
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
            ("bytes=0-0", Some(0..1)),
            ("bytes=2-5", Some(2..6)),
            ("bytes=8-", Some(8..10)),
            ("bytes=8-99", Some(8..10)),
            ("bytes=-3", Some(7..10)),
            ("bytes=-30", Some(0..10)),
            ("bytes=0-18446744073709551615", Some(0..10)),
            ("bytes=10-", None),
            ("bytes=-0", None),
            ("bytes=99-100", None),
        ];
        for (text, range) in cases {
            assert_eq!(parse(text).of(10), range, "{text}");
        }
        let senseless = [
            "bytes=5-2",
            "bytes=",
            "bytes=-",
            "bytes=0-1,3-4",
            "bytes=+1-2",
            "bytes=99999999999999999999-",
            "lines=1-2",
        ];
        for text in senseless {
            assert_eq!(parse(text), Part::Whole, "{text}");
        }
        assert_eq!(parse("bytes=0-").of(0), None);
    }
}
