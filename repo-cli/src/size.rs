//! Sizes as people type them.

/// Bytes of `2TiB`, `500 GB`, `1.5T`, `4096`: binary with `iB` or a bare letter, decimal with `B`.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let wrong = || format!("{text:?} is not a size such as 2TiB, 500GB or 1.5T");
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim().to_ascii_lowercase();
    let (letter, rest) = unit.split_at(unit.chars().next().map_or(0, char::len_utf8));
    let base: f64 = match rest {
        "" | "ib" => 1024.0,
        "b" => 1000.0,
        _ => return Err(wrong()),
    };
    let power = match (letter, rest) {
        ("", _) | ("b", "") => 0,
        ("k", _) => 1,
        ("m", _) => 2,
        ("g", _) => 3,
        ("t", _) => 4,
        ("p", _) => 5,
        _ => return Err(wrong()),
    };
    let bytes = number * base.powi(power);
    // Above 2^63 nothing is a capacity.
    if (1.0..9.2e18).contains(&bytes) { Ok(bytes as u64) } else { Err(format!("{text:?} is out of range")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary_or_decimal_as_written() {
        let sizes = ["4096", "4096B", "1k", "2TiB", "2T", "2TB", " 1.5 GiB "].map(|text| parse(text).unwrap());
        let expected = [4096, 4096, 1024, 2 << 40, 2 << 40, 2_000_000_000_000, 3 << 29];
        assert_eq!(sizes, expected);
        for text in ["", "T", "-1", "1X", "1TiBs", "1.2.3", "0", "99999999P", "1bb", "∞", "1é"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
