//! Pages of `ListObjectVersions`.

use quick_xml::Reader;
use quick_xml::events::Event;

/// Versions on one page, at most; S3's own limit is 1,000.
const PAGE_MAX: usize = 10_000;

/// One version of an object, or the mark that says that it was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The object's path, below the repository's root.
    pub path: String,
    /// The store's name for it.
    pub id: String,
    /// Whether this is what a plain read gets.
    pub is_latest: bool,
    /// Whether it is a mark, which has no bytes.
    pub is_mark: bool,
    /// When it was stored, by the store's clock, in milliseconds since the Unix epoch.
    pub stored_ms: i64,
    /// Its length in bytes.
    pub len: u64,
    /// What the store compares bytes by; empty for a mark.
    pub e_tag: String,
}

/// One page of a listing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) versions: Vec<Version>,
    /// Where the next one begins: a key and a version of it.
    pub(super) next: Option<(String, String)>,
}

impl Page {
    /// Reads one. `below` is what all keys begin with and is left out; keys that begin otherwise are not ours.
    pub(super) fn parse(text: &str, below: &str) -> Result<Self, String> {
        let mut reader = Reader::from_str(text);
        let mut page = Self::default();
        let mut path: Vec<String> = Vec::new();
        let mut fields = Fields::default();
        let (mut truncated, mut key, mut version) = (false, String::new(), String::new());
        let mut ended_well = false;
        loop {
            match reader.read_event().map_err(|error| format!("the listing of versions is no XML: {error}"))? {
                Event::Start(start) => {
                    path.push(start.local_name().as_ref().to_owned());
                    if path.len() == 2 {
                        fields = Fields::default();
                    }
                }
                Event::Text(text) => {
                    let names: Vec<&str> = path.iter().map(String::as_str).collect();
                    match names[..] {
                        [_, "IsTruncated"] => truncated = &*text == "true",
                        [_, "NextKeyMarker"] => key.push_str(&text),
                        [_, "NextVersionIdMarker"] => version.push_str(&text),
                        [_, "Version" | "DeleteMarker", field] => fields.set(field, &text),
                        _ => {}
                    }
                }
                // The e-tag's quotes, at most.
                Event::GeneralRef(_) => {}
                Event::End(_) => {
                    let ended = path.pop().unwrap_or_default();
                    ended_well |= path.is_empty() && ended == "ListVersionsResult";
                    if path.len() == 1 && (ended == "Version" || ended == "DeleteMarker") {
                        if page.versions.len() == PAGE_MAX {
                            return Err("the listing of versions has too many on a page".to_owned());
                        }
                        page.versions.extend(std::mem::take(&mut fields).version(below, ended == "DeleteMarker")?);
                    }
                }
                // An answer that was cut short before anything came says nothing either.
                Event::Eof if ended_well => break,
                Event::Eof => return Err("the listing of versions ends in the middle".to_owned()),
                _ => {}
            }
        }
        if truncated && key.is_empty() {
            return Err("the listing of versions does not say where it goes on".to_owned());
        }
        page.next = truncated.then_some((key, version));
        Ok(page)
    }
}

#[derive(Default)]
struct Fields {
    key: String,
    id: String,
    latest: String,
    modified: String,
    len: String,
    e_tag: String,
}

impl Fields {
    fn set(&mut self, name: &str, text: &str) {
        let field = match name {
            "Key" => &mut self.key,
            "VersionId" => &mut self.id,
            "IsLatest" => &mut self.latest,
            "LastModified" => &mut self.modified,
            "Size" => &mut self.len,
            "ETag" => &mut self.e_tag,
            _ => return,
        };
        field.push_str(text);
    }

    fn version(self, below: &str, is_mark: bool) -> Result<Option<Version>, String> {
        let Some(path) = self.key.strip_prefix(below) else { return Ok(None) };
        let wrong = |what: &str| format!("the listing of versions gives no {what} for {path}");
        let modified: jiff::Timestamp = self.modified.parse().map_err(|_| wrong("time"))?;
        if self.id.is_empty() {
            return Err(wrong("version"));
        }
        Ok(Some(Version {
            path: path.to_owned(),
            is_latest: self.latest == "true",
            is_mark,
            stored_ms: modified.as_millisecond(),
            len: if is_mark { 0 } else { self.len.parse().map_err(|_| wrong("length"))? },
            e_tag: self.e_tag.trim_matches('"').to_owned(),
            id: self.id,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>pool/</Prefix><IsTruncated>true</IsTruncated>
<NextKeyMarker>pool/config</NextKeyMarker><NextVersionIdMarker>v1</NextVersionIdMarker>
<DeleteMarker><Key>pool/config</Key><VersionId>v2</VersionId><IsLatest>true</IsLatest><LastModified>2026-11-20T10:00:01.000Z</LastModified><Owner><ID>x</ID></Owner></DeleteMarker>
<Version><Key>pool/config</Key><VersionId>v1</VersionId><IsLatest>false</IsLatest><LastModified>2026-11-20T10:00:00Z</LastModified><ETag>&quot;abc&quot;</ETag><Size>12</Size><Owner><ID>x</ID></Owner></Version>
<Version><Key>other</Key><VersionId>v1</VersionId><IsLatest>false</IsLatest><LastModified>2026-11-20T10:00:00Z</LastModified><Size>12</Size></Version>
</ListVersionsResult>"#;

    #[test]
    fn a_page_gives_versions_and_marks_of_what_is_ours() {
        let page = Page::parse(PAGE, "pool/").unwrap();
        assert_eq!(page.next, Some(("pool/config".to_owned(), "v1".to_owned())));
        let [mark, version] = &page.versions[..] else { panic!("{page:?}") };
        assert!(mark.is_mark && mark.is_latest && mark.path == "config" && mark.id == "v2");
        assert!(!version.is_mark && !version.is_latest && version.len == 12 && version.e_tag == "abc");
        assert_eq!(mark.stored_ms - version.stored_ms, 1000);
    }

    #[test]
    fn what_is_cut_short_or_lacks_something_is_an_error() {
        for at in 0..PAGE.len() {
            assert!(Page::parse(&PAGE[..at], "pool/").is_err(), "{}", &PAGE[..at]);
        }
        for lacking in
            ["<VersionId>v2</VersionId>", "<Size>12</Size>", "<LastModified>2026-11-20T10:00:00Z</LastModified>"]
        {
            assert!(Page::parse(&PAGE.replacen(lacking, "", 1), "pool/").is_err(), "{lacking}");
        }
        assert!(Page::parse(&PAGE.replace("<NextKeyMarker>pool/config</NextKeyMarker>", ""), "pool/").is_err());
    }
}
