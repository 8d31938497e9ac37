//! Text from an input inside an error.

/// How much of it is quoted.
const QUOTED_LEN_MAX: usize = 80;

/// The text, cut and with everything unprintable replaced: it comes from outside and goes to a terminal.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let shown = bytes.iter().take(QUOTED_LEN_MAX);
    shown.map(|byte| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' }).collect()
}
