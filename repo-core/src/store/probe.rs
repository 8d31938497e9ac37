//! What an object store really does, found out by trying.

use futures::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::config::StoreFindings;
use crate::entropy::Entropy;
use crate::error::Result;
use crate::store::Store;
use crate::store::failure::{Doing, failure};

/// Puts that race for one name.
const RACERS: usize = 8;
/// Races, each for a name of its own.
const ROUNDS: usize = 4;

impl Store {
    /// Tries whether the store refuses to replace, also in a race, and whether it shows at once what was done. What is
    /// stored for that stands below `probe/` and is deleted again.
    ///
    /// # Errors
    /// `Unavailable`, `Io`.
    pub fn probe(&self, entropy: &Entropy) -> Result<StoreFindings> {
        let run: [u8; 8] = entropy.bytes()?;
        let run = u64::from_le_bytes(run);
        let found = self.runtime.block_on(async {
            let create_only = self.probe_create(run).await?;
            Ok(StoreFindings { create_only, read_after_write: self.probe_reading(run).await? })
        });
        found.map_err(|error| failure(Doing::Storing, "an object to try the store with", error))
    }

    async fn probe_create(&self, run: u64) -> object_store::Result<bool> {
        let mut honoured = true;
        for round in 0..ROUNDS {
            let path = ObjectPath::from(format!("probe/{run:016x}-{round}"));
            let create = |racer: usize| {
                let body = PutPayload::from(vec![racer as u8; 4096]);
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                let path = path.clone();
                async move {
                    match self.objects.put_opts(&path, body, options).await {
                        Ok(_) => Ok(1),
                        Err(
                            object_store::Error::AlreadyExists { .. }
                            | object_store::Error::Precondition { .. }
                            | object_store::Error::NotImplemented { .. },
                        ) => Ok(0),
                        Err(error) => Err(error),
                    }
                }
            };
            let raced = futures::future::join_all((0..RACERS).map(create)).await;
            let winners: usize = raced.into_iter().collect::<object_store::Result<Vec<_>>>()?.into_iter().sum();
            honoured &= winners == 1 && create(RACERS).await? == 0;
            self.objects.delete(&path).await?;
            if !honoured {
                break;
            }
        }
        Ok(honoured)
    }

    async fn probe_reading(&self, run: u64) -> object_store::Result<bool> {
        let path = ObjectPath::from(format!("probe/{run:016x}"));
        let folder = ObjectPath::from("probe");
        let listed = async || {
            let metas: Vec<_> = self.objects.list(Some(&folder)).try_collect().await?;
            Ok::<_, object_store::Error>(metas.iter().any(|meta| meta.location == path))
        };
        self.objects.put(&path, PutPayload::from_static(b"probe")).await?;
        let reads = self.objects.get(&path).await?.bytes().await? == b"probe"[..];
        let lists = listed().await?;
        self.objects.delete(&path).await?;
        let forgets = matches!(self.objects.head(&path).await, Err(object_store::Error::NotFound { .. }));
        Ok(reads && lists && forgets && !listed().await?)
    }
}
