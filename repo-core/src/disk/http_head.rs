//! HTTP heads where disk content should be.
//!
//! XAPI sends its `200` before it attaches the disk; a failure after that is written as a second head, `HTTP/1.1 500
//! …`, into the body of the export, which then simply ends (`docs/sources.md`, section "VHD"). Such a head must neither
//! be stored as content nor be reported as a mere malformed VHD.

use super::quoted::quoted;
use crate::error::{Error, Result};

/// Refuses bytes that begin with an HTTP head, found at byte `offset` of the input.
///
/// # Errors
/// `Invalid`, quoting the head's first line.
pub(super) fn refuse(bytes: &[u8], offset: u64) -> Result<()> {
    let Some(status) = status_at(bytes) else { return Ok(()) };
    let line = first_line(bytes);
    Err(Error::invalid(if status >= 400 {
        format!("the server reported an error inside the body: {line} (at byte {offset})")
    } else {
        format!("an HTTP head stands where the disk should, at byte {offset}: {line}")
    }))
}

/// The error of a stream that ended early, if an HTTP error is the last thing in `received`, which started at byte
/// `offset` of the input.
pub(super) fn error_at_end(received: &[u8], offset: u64) -> Option<Error> {
    let from = received.len().saturating_sub(HEAD_SEARCH_LEN);
    let last = &received[from..];
    let at = (0..last.len()).find(|at| status_at(&last[*at..]).is_some_and(|status| status >= 400))?;
    refuse(&last[at..], offset + (from + at) as u64).err()
}

/// The status of the HTTP/1 head at the beginning of `bytes`.
fn status_at(bytes: &[u8]) -> Option<u16> {
    let rest = bytes.strip_prefix(b"HTTP/1.")?;
    let [minor, b' ', hundreds, tens, ones, ..] = rest else { return None };
    let digits = [minor, hundreds, tens, ones];
    if !digits.iter().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let value = |digit: &u8| u16::from(digit - b'0');
    Some(value(hundreds) * 100 + value(tens) * 10 + value(ones))
}

/// The first line.
fn first_line(bytes: &[u8]) -> String {
    quoted(bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default())
}

/// How much of the end of a broken stream is searched: more than any head XAPI writes.
const HEAD_SEARCH_LEN: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_error_is_quoted_and_cleaned() {
        let error = refuse(b"HTTP/1.1 500 Internal\x1b Error\r\ncontent-length: 0\r\n", 2560).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the server reported an error inside the body: HTTP/1.1 500 Internal? Error (at byte 2560)"
        );
        let error = refuse(b"HTTP/1.0 200 OK\r\n", 0).unwrap_err();
        assert_eq!(error.to_string(), "an HTTP head stands where the disk should, at byte 0: HTTP/1.0 200 OK");
    }

    #[test]
    fn other_bytes_pass() {
        for bytes in [&b""[..], b"HTTP", b"HTTP/1.1", b"HTTP/1.1 5", b"HTTP/1.1 5xx", b"HTTP/2 500 x", b"xHTTP/1.1 500"]
        {
            assert!(refuse(bytes, 0).is_ok(), "{bytes:?}");
        }
    }

    #[test]
    fn an_error_is_found_at_the_end_of_a_broken_stream() {
        let mut received = vec![7; 10_000];
        assert!(error_at_end(&received, 0).is_none());
        received.extend(b"HTTP/1.1 503 Busy\r\n\r\n");
        let text = error_at_end(&received, 100).expect("the head is there").to_string();
        assert_eq!(text, "the server reported an error inside the body: HTTP/1.1 503 Busy (at byte 10100)");
    }
}
