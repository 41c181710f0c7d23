//! The coherent cache: reads fill it under a lease, writes fence and confirm. A read that
//! starts after a write was acknowledged returns that write or a later one.
//!
//! There are two levels: the near cache in the memory of each replica, and the cache that all
//! replicas share.

mod background;
mod cache_lookup;
mod change;
mod circuit_breaker;
mod entries;
mod entry;
mod fence_writer;
mod fencing;
mod generation_switch;
mod namespace;
mod near_cache;
mod operation_budget;
mod read_path;
mod register_view;
mod replica_directory;
mod replica_fencing;
mod replicas;
mod settings;
#[cfg(test)]
mod simulation;
mod single_flight;
mod table_fetch;
mod table_read_limiter;
#[cfg(test)]
mod test_registers;
mod write_path;
mod write_queues;

use std::{sync::Arc, time::Duration};

use futures_util::future::join;
use tokio::time::{Instant, sleep, timeout};

pub use self::{
    change::{Change, HeldPermit, Plan, Verdict, WriteError},
    entry::{Entry, Nonce, Tag},
    fencing::{Cached, Fencing},
    namespace::Namespace,
    read_path::{Freshness, MAX_STALENESS, ReadPath, ReadResult, Source},
    settings::{CoherenceSettings, Timing},
    write_path::WritePath,
};

use self::{
    background::BackgroundTasks, entries::EntryCache, generation_switch::GenerationSwitch,
    near_cache::NearCache, replica_directory::ReplicaDirectory, replica_fencing::ReplicaFencing,
};
use crate::{
    cache::MomentoClient,
    domain::Key,
    peer::{Incarnation, WriteId},
    store::{self, DynamoDb},
};

/// Longest hold that a peer may request. Longer than [`Timing::fence_ttl`].
const MAX_HOLD: Duration = Duration::from_secs(60);

/// Takes the cache out of use and brings an empty generation into use. Meanwhile reads go to
/// the table. Empties the near caches of all replicas.
///
/// # Errors
/// The switch or the directory could not be read or changed.
pub async fn renew_generation(table: DynamoDb) -> Result<(), store::Error> {
    directory(table.clone()).evict_all().await?;
    switch(table).renew().await
}

/// Puts the cache into use for a table that was just created, and creates its directory of
/// replicas.
///
/// # Errors
/// The registers could not be written.
pub async fn begin(table: DynamoDb) -> Result<(), store::Error> {
    directory(table.clone()).begin().await?;
    switch(table).begin().await
}

/// The switch, for commands that do not use the cache.
fn switch(table: DynamoDb) -> GenerationSwitch {
    GenerationSwitch::new(Arc::new(table), Timing::default())
}

/// The directory, for commands that do not use the near cache.
fn directory(table: DynamoDb) -> ReplicaDirectory {
    ReplicaDirectory::new(Arc::new(table), None, Timing::default())
}

/// The coherent cache of one replica: its read path and its write path, over one table and one
/// cache. Clones share their state.
#[derive(Clone)]
pub struct Coherence {
    /// Reads records.
    pub reads: Arc<ReadPath>,
    /// Applies changes.
    pub writes: Arc<WritePath>,
    /// Invalidates records that other writers have changed.
    pub fencing: Arc<Fencing>,
    generation_switch: Arc<GenerationSwitch>,
    directory: Arc<ReplicaDirectory>,
    replicas: Arc<ReplicaFencing>,
    near_cache: Arc<NearCache>,
    entries: Arc<EntryCache>,
    background: BackgroundTasks,
    timing: Timing,
}

impl Coherence {
    /// Puts `cache` in front of `table`. All processes that use the same cache and table share
    /// its entries. The caches are used only while [`Self::run_generation_switch`] and
    /// [`Self::run_directory`] run. Does no I/O.
    #[must_use]
    pub fn new(table: &DynamoDb, cache: &MomentoClient, settings: &CoherenceSettings) -> Self {
        let timing = settings.timing;
        let registers = Arc::new(table.clone());
        let address = settings.peer_address.clone();
        let entries = Arc::new(EntryCache::new(cache.clone(), settings.clone()));
        let generation_switch = Arc::new(GenerationSwitch::new(registers.clone(), timing));
        let directory = Arc::new(ReplicaDirectory::new(registers, address, timing));
        let near_cache = Arc::new(NearCache::new(settings));
        let background = BackgroundTasks::default();
        let replicas = Arc::new(ReplicaFencing::new(
            near_cache.clone(),
            directory.clone(),
            background.clone(),
            timing,
        ));
        let fencing = Arc::new(Fencing::new(
            entries.clone(),
            generation_switch.clone(),
            replicas.clone(),
            timing,
        ));
        let reads = ReadPath::new(
            table.clone(),
            entries.clone(),
            generation_switch.clone(),
            directory.clone(),
            near_cache.clone(),
            background.clone(),
            settings,
        );
        let writes = WritePath::new(
            table.clone(),
            fencing.clone(),
            near_cache.clone(),
            directory.clone(),
            background.clone(),
            timing,
        );
        Self {
            reads: Arc::new(reads),
            writes: Arc::new(writes),
            fencing,
            generation_switch,
            directory,
            replicas,
            near_cache,
            entries,
            background,
            timing,
        }
    }

    /// Reads the generation switch.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn read_generation(&self) -> Result<(), store::Error> {
        self.generation_switch.refresh().await.map(drop)
    }

    /// Runs the generation switch: refreshes its view, and brings an empty generation into
    /// use once a cache that was taken out of use responds again. Never ends.
    pub async fn run_generation_switch(&self) {
        let entries = &self.entries;
        let probe = |namespace| async move { entries.probe(&namespace).await };
        self.generation_switch.run(probe).await;
    }

    /// Keeps this replica's place in the directory, and checks that another replica responds. Never
    /// ends.
    pub async fn run_directory(&self) {
        // Separate: a silent replica delays no refresh of the view.
        join(self.maintain_directory(), self.check_successor()).await;
    }

    async fn maintain_directory(&self) {
        loop {
            match timeout(self.timing.view_ttl, self.directory.maintain()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the replica directory cannot be used"),
                Err(_) => tracing::warn!("the replica directory did not respond in time"),
            }
            self.near_cache.report();
            self.entries.budget.share_among(self.directory.replicas());
            sleep(self.timing.view_refresh()).await;
        }
    }

    async fn check_successor(&self) {
        loop {
            sleep(self.timing.view_refresh()).await;
            if let Err(error) = self.replicas.check_successor().await {
                tracing::debug!(%error, "the next replica cannot be checked");
            }
        }
    }

    /// Whether this replica may serve reads from its memory without a staleness bound now.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.directory.serving_epoch(Instant::now()).is_some()
    }

    /// Takes this replica out of the directory: writes of other replicas no longer fence it.
    ///
    /// # Errors
    /// The table could not be written. Other replicas evict this one.
    pub async fn leave_directory(&self) -> Result<(), store::Error> {
        self.directory.stop().await
    }

    /// Applies a fence of another replica: removes keys from the near cache, and keeps them out of
    /// it for the duration of the hold. Returns the present incarnation of this replica.
    #[must_use]
    pub fn fence(&self, keys: &[Key], write: WriteId, hold: Duration) -> Option<Incarnation> {
        let until = Instant::now() + hold.min(MAX_HOLD);
        self.near_cache.fence(keys, write, until);
        self.directory.incarnation()
    }

    /// Ends the holds of another replica's write.
    pub fn release(&self, keys: &[Key], write: WriteId) {
        self.near_cache.release(keys, write);
    }

    /// Waits until no write, fill or repair is running.
    pub async fn drain(&self) {
        self.background.drain().await;
    }
}
