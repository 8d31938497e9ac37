//! An object store in memory whose clock, listings and interruptions a test decides on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

/// What a test makes happen right after an object was stored.
type Hook = Box<dyn FnOnce(&InMemory) + Send>;

/// The store; copies share everything.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<State>);

#[derive(Default)]
struct State {
    inner: InMemory,
    now_ms: AtomicI64,
    stored_ms: Mutex<HashMap<Path, i64>>,
    hidden: Mutex<HashSet<String>>,
    hooks: Mutex<Vec<(String, Hook)>>,
    ignores_create: Mutex<bool>,
}

impl MemoryStore {
    /// Lets the store's clock go on.
    pub fn pass(&self, time: Duration) {
        self.0.now_ms.fetch_add(time.as_millis() as i64, Ordering::SeqCst);
    }

    /// From here on listings leave out what is stored below `folder`, as long as it is not shown again.
    pub fn hide(&self, folder: &str, hidden: bool) {
        let mut all = self.0.hidden.lock();
        if hidden {
            all.insert(folder.to_owned())
        } else {
            all.remove(folder)
        };
    }

    /// Runs `hook` once, right after the next object below `folder` is stored and before anyone is told.
    pub fn after_put(&self, folder: &str, hook: impl FnOnce(&InMemory) + Send + 'static) {
        self.0.hooks.lock().push((folder.to_owned(), Box::new(hook)));
    }

    /// Replaces where it was told not to, as some stores do.
    pub fn ignore_create(&self) {
        *self.0.ignores_create.lock() = true;
    }

    /// The names of all objects below `folder`.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let prefix = Path::from(folder);
        let listed: Vec<_> = futures::executor::block_on(self.0.inner.list(Some(&prefix)).try_collect())
            .expect("memory can always be listed");
        listed.into_iter().map(|meta: ObjectMeta| meta.location.to_string()).collect()
    }

    fn dated(&self, mut meta: ObjectMeta) -> ObjectMeta {
        let ms = self.0.stored_ms.lock().get(&meta.location).copied().unwrap_or_default();
        meta.last_modified = (UNIX_EPOCH + Duration::from_millis(ms as u64)).into();
        meta
    }
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryStore")
    }
}

impl std::fmt::Display for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryStore")
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        if *self.0.ignores_create.lock() {
            options.mode = PutMode::Overwrite;
        }
        let put = self.0.inner.put_opts(location, payload, options).await?;
        self.0.stored_ms.lock().insert(location.clone(), self.0.now_ms.load(Ordering::SeqCst));
        let hook = {
            let mut hooks = self.0.hooks.lock();
            let at = hooks.iter().position(|(folder, _)| location.as_ref().starts_with(folder.as_str()));
            at.map(|at| hooks.remove(at).1)
        };
        if let Some(hook) = hook {
            hook(&self.0.inner);
        }
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let mut found = self.0.inner.get_opts(location, options).await?;
        found.meta = self.dated(found.meta);
        Ok(found)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        // As S3: what is missing counts as deleted.
        let inner = self.0.clone();
        let delete = move |location: Result<Path>| {
            let inner = inner.clone();
            async move {
                let location = location?;
                match inner.inner.delete(&location).await {
                    Err(error) if !matches!(error, object_store::Error::NotFound { .. }) => Err(error),
                    _ => Ok(location),
                }
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let this = self.clone();
        let hidden = self.0.hidden.lock().clone();
        let shown = move |meta: &ObjectMeta| !hidden.iter().any(|folder| meta.location.as_ref().starts_with(folder));
        let listed = self.0.inner.list(prefix);
        listed.try_filter(move |meta| futures::future::ready(shown(meta))).map_ok(move |meta| this.dated(meta)).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.inner.copy_opts(from, to, options).await
    }
}
