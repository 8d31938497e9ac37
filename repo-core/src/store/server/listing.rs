//! Listings, page by page.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use object_store::ObjectMeta;
use object_store::path::Path as ObjectPath;
use serde::Deserialize;

use crate::store::ObjectName;
use crate::store::server::STORE;
use crate::store::server::requests::{Requests, meta};

#[derive(Deserialize)]
struct Page {
    objects: Vec<Listed>,
    more: bool,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    bytes: u64,
    stored_ms: i64,
}

impl Page {
    fn parse(bytes: &[u8]) -> object_store::Result<Self> {
        serde_json::from_slice(bytes)
            .map_err(|error| object_store::Error::Generic { store: STORE, source: error.into() })
    }

    /// The name after which the next page begins; `None` when this was the last one of the folder. `after` is where this one began.
    ///
    /// # Errors
    /// When more follows and there is no way on: what is not listed would count as gone.
    fn followed_after(&self, folder: &str, after: &str) -> object_store::Result<Option<String>> {
        match self.objects.last() {
            _ if !self.more => Ok(None),
            Some(last) if last.name.as_str() > after => Ok(Some(last.name.clone())),
            _ => {
                let text = format!("the server's listing of {folder}/ ends before its end");
                Err(object_store::Error::Generic { store: STORE, source: text.into() })
            }
        }
    }
}

/// Where a listing is.
struct Walk {
    requests: Arc<Requests>,
    /// Whether the configuration is part of it.
    config: bool,
    /// Folders to come.
    folders: VecDeque<String>,
    /// The last name of the page before, in the folder at hand.
    after: String,
}

/// All objects of a folder, or of all of them.
pub(super) fn list(
    requests: Arc<Requests>,
    prefix: Option<String>,
) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
    let all = || ObjectName::FOLDERS.map(str::to_owned).into();
    let walk = Walk {
        requests,
        config: prefix.is_none(),
        folders: prefix.map_or_else(all, |folder| VecDeque::from([folder])),
        after: String::new(),
    };
    stream::try_unfold(walk, |walk| async move { walk.next().await })
        .map(|page: object_store::Result<Vec<ObjectMeta>>| match page {
            Ok(page) => stream::iter(page.into_iter().map(Ok)).boxed(),
            Err(error) => stream::iter([Err(error)]).boxed(),
        })
        .flatten()
        .boxed()
}

impl Walk {
    async fn next(mut self) -> object_store::Result<Option<(Vec<ObjectMeta>, Self)>> {
        if std::mem::take(&mut self.config) {
            let config = ObjectPath::from("config");
            let page = match self.requests.get(&config, None, true).await {
                Ok(found) => vec![found.meta(&config)],
                Err(object_store::Error::NotFound { .. }) => Vec::new(),
                Err(error) => return Err(error),
            };
            return Ok(Some((page, self)));
        }
        let Some(folder) = self.folders.front() else { return Ok(None) };
        let page = Page::parse(&self.requests.page(folder, &self.after).await?)?;
        match page.followed_after(folder, &self.after)? {
            Some(name) => self.after = name,
            None => {
                self.folders.pop_front();
                self.after.clear();
            }
        }
        let metas =
            page.objects.into_iter().map(|object| meta(ObjectPath::from(object.name), object.bytes, object.stored_ms));
        Ok(Some((metas.collect(), self)))
    }
}

#[cfg(test)]
mod tests {
    use super::Page;

    const TWO: &str = r#"{"objects":[{"name":"packs/aa/aa","bytes":1,"stored_ms":1},
        {"name":"packs/bb/bb","bytes":1,"stored_ms":1}],"more":true}"#;

    #[test]
    fn a_page_that_was_cut_anywhere_is_no_page() {
        assert!((0..TWO.len()).all(|len| Page::parse(&TWO.as_bytes()[..len]).is_err()));
        assert!(Page::parse(br#"{"objects":[]}"#).is_err(), "it has to say whether more follows");
        Page::parse(TWO.as_bytes()).unwrap();
    }

    #[test]
    fn a_listing_goes_on_after_its_last_name_and_is_never_taken_for_whole_when_more_follows() {
        let page = Page::parse(TWO.as_bytes()).unwrap();
        assert_eq!(page.followed_after("packs", "").unwrap().as_deref(), Some("packs/bb/bb"));
        for after in ["packs/bb/bb", "packs/cc/cc"] {
            let error = page.followed_after("packs", after).unwrap_err();
            assert!(error.to_string().contains("packs/ ends before its end"), "{error}");
        }
        let none = Page::parse(br#"{"objects":[],"more":true}"#).unwrap();
        assert!(none.followed_after("packs", "packs/aa/aa").is_err());
        let last = Page::parse(br#"{"objects":[],"more":false}"#).unwrap();
        assert_eq!(last.followed_after("packs", "").unwrap(), None);
    }
}
