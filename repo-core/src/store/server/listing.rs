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
        let bytes = self.requests.page(folder, &self.after).await?;
        let page: Page = serde_json::from_slice(&bytes)
            .map_err(|error| object_store::Error::Generic { store: STORE, source: error.into() })?;
        match page.objects.last() {
            Some(last) if page.more && last.name > self.after => self.after.clone_from(&last.name),
            _ => {
                self.folders.pop_front();
                self.after.clear();
            }
        }
        let metas =
            page.objects.into_iter().map(|object| meta(ObjectPath::from(object.name), object.bytes, object.stored_ms));
        Ok(Some((metas.collect(), self)))
    }
}
