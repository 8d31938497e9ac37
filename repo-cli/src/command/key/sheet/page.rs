//! The recovery sheet as text and as a page for a browser to print.

use qrcode::render::{svg, unicode};
use qrcode::{EcLevel, QrCode};
use repo_core::keys::recipient::PrivateKey;

use crate::output::{self, html_escaped as escape};

/// What stands on a sheet.
pub(super) struct Sheet<'a> {
    /// The repository's id, all digits.
    pub(super) repository: String,
    /// Where it was when the sheet was made.
    pub(super) place: String,
    /// When the sheet was made, in milliseconds since the Unix epoch.
    pub(super) created_ms: i64,
    /// The id of its key slot, shortened.
    pub(super) key: String,
    /// The key.
    pub(super) private: &'a PrivateKey,
}

/// What whoever finds the sheet must know, a paragraph each.
const MEANING: [&str; 2] = [
    "Whoever holds this sheet can read all backups in this repository, without a passphrase. Keep it where the repository is \
     not: a safe, a bank, another house. Do not photograph it, and delete the file it was printed from.",
    "If it is lost or somebody saw it, run the command under \"revoke\" with another key, and make a new sheet. Whoever \
     copied the repository before can still open that copy.",
];
/// What the rows are typed like.
const TYPING: &str = "Capital or small letters do not matter, nor do spaces and hyphens. There is no letter O, I, L or U. Every \
                      row has its own checksum, so a mistake is found and its row is named.";

impl Sheet<'_> {
    /// Commands by what they are for.
    fn commands(&self) -> [(&'static str, String); 5] {
        let place = quoted(&self.place);
        [
            ("check this sheet (type or scan the rows, then Ctrl-D)", format!("cairn --repo {place} key verify-sheet")),
            ("put the key into a file (the same way)", "cat > recovery.key".to_owned()),
            ("see the backups", format!("cairn --repo {place} --key-file recovery.key snapshots")),
            (
                "restore the newest state of a disk",
                format!("cairn --repo {place} --key-file recovery.key restore VDI --format raw -o disk.raw"),
            ),
            ("revoke", format!("cairn --repo {place} key remove {}", self.key)),
        ]
    }

    fn facts(&self) -> [(&'static str, String); 4] {
        [
            ("repository", self.repository.clone()),
            ("place", output::printable(&self.place)),
            ("made", output::time_local(self.created_ms)),
            ("key id", self.key.clone()),
        ]
    }

    fn code(&self) -> QrCode {
        let text = self.private.to_text();
        QrCode::with_error_correction_level(text.as_bytes(), EcLevel::Q).expect("eighty characters fit a QR code")
    }

    /// The sheet as text.
    pub(super) fn text(&self) -> String {
        let mut text = format!("Cairn recovery sheet\n\n{}\n", output::fields(&self.facts()));
        for paragraph in MEANING.iter().chain([&TYPING]) {
            text.push_str(&wrapped(paragraph));
            text.push('\n');
        }
        text.push_str("CAIRN-PRIVATE-1\n");
        for row in self.private.to_rows() {
            text.push_str(&format!("    {}\n", *row));
        }
        text.push_str(&format!("\n{}\n", self.code().render::<unicode::Dense1x2>().build()));
        text.push('\n');
        for (purpose, command) in self.commands() {
            text.push_str(&format!("To {purpose}:\n    {}\n", output::printable(&command)));
        }
        text
    }

    /// The sheet as a page that needs nothing else.
    pub(super) fn html(&self) -> String {
        let facts: String =
            self.facts().iter().map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>\n", escape(value))).collect();
        let rows: Vec<_> = self.private.to_rows().iter().map(|row| row.to_string()).collect();
        let commands: String = self
            .commands()
            .iter()
            .map(|(purpose, command)| format!("<dt>To {purpose}</dt><dd><code>{}</code></dd>\n", escape(command)))
            .collect();
        let code = self.code().render::<svg::Color<'_>>().min_dimensions(300, 300).build();
        let code = code.split_once("?>").map_or(code.as_str(), |(_, svg)| svg);
        let paragraphs: String = MEANING.iter().map(|text| format!("<p>{}</p>\n", escape(text))).collect();
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
             <title>Cairn recovery sheet</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>Cairn recovery sheet</h1>\n\
             <dl>\n{facts}</dl>\n{paragraphs}<div class=\"key\">\n<pre>CAIRN-PRIVATE-1\n{}</pre>\n{code}\n</div>\n\
             <p>{TYPING}</p>\n<dl class=\"commands\">\n{commands}</dl>\n</body>\n</html>\n",
            rows.join("\n")
        )
    }
}

/// As a shell takes it.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is one");
        if line.len() + 1 + word.len() > LINE_LEN {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Characters of a line of text.
const LINE_LEN: usize = 78;

const STYLE: &str = "@page{margin:2cm}body{font:11pt/1.4 sans-serif;color:#000;background:#fff;max-width:17cm;margin:1em auto}\
h1{font-size:18pt}dl{display:grid;grid-template-columns:max-content 1fr;gap:.2em 1em}dt{color:#444}dd{margin:0;\
overflow-wrap:anywhere}.commands{display:block}.commands dd{margin:0 0 .5em 1em}.key{display:flex;gap:2em;align-items:center;\
break-inside:avoid;border:1px solid #000;padding:1em}.key pre{font:bold 13pt/1.8 monospace;margin:0}.key svg{width:6cm;\
height:6cm;flex:none}code{font-size:9.5pt}";

#[cfg(test)]
mod tests {
    use repo_core::entropy::Entropy;

    use super::*;

    fn with_sheet(place: &str, check: impl Fn(&Sheet<'_>)) {
        let private = PrivateKey::generate(&Entropy::seeded(1)).unwrap();
        let (repository, key) = ("ab".repeat(16), "41c09e000000".to_owned());
        check(&Sheet { repository, place: place.to_owned(), created_ms: 0, key, private: &private });
    }

    #[test]
    fn both_forms_hold_the_key_and_what_to_do() {
        with_sheet("/backup/pool1", |sheet| {
            for text in [sheet.text(), sheet.html()] {
                for row in sheet.private.to_rows() {
                    assert!(text.contains(&**row), "{text}");
                }
                for wanted in [&sheet.repository, "key verify-sheet", "--key-file recovery.key", "key remove 41c09e"] {
                    assert!(text.contains(wanted), "{wanted}: {text}");
                }
            }
            // What somebody saved as a file is read as it is.
            assert_eq!(PrivateKey::from_text(&sheet.text()).unwrap().seed(), sheet.private.seed());
            let is_command = |line: &str| line.starts_with("    cairn ");
            assert!(sheet.text().lines().all(|line| line.chars().count() <= 80 || is_command(line)));
        });
    }

    #[test]
    fn a_place_with_odd_characters_breaks_neither_shell_nor_page() {
        with_sheet("/it's <b>\u{1b}[1m", |sheet| {
            assert!(sheet.text().contains(r"--repo '/it'\''s <b>"));
            assert!(!sheet.text().contains('\u{1b}') && !sheet.html().contains('\u{1b}'));
            assert!(sheet.html().contains("&lt;b&gt;") && !sheet.html().contains("<b>"));
        });
    }
}
