//! The coherent cache: reads fill it under a lease, writes fence and confirm. A read that
//! starts after a write was acknowledged returns that write or a later one.

mod background;
mod cache_lookup;
mod change;
mod circuit_breaker;
mod entries;
mod entry;
mod fence_writer;
mod fencing;
mod generation_switch;
mod local_cache;
mod namespace;
mod projection;
mod read_path;
mod settings;
mod single_flight;
mod table_fetch;
mod table_read_limiter;
mod write_path;
mod write_queues;

use std::sync::Arc;

pub use self::{
    change::{Change, HeldPermit, Plan, Verdict, WriteError},
    entry::{Entry, Nonce, Tag},
    fencing::{Cached, Fencing},
    local_cache::MAX_STALENESS,
    namespace::Namespace,
    projection::Projection,
    read_path::{Freshness, ReadPath, ReadResult, Source},
    settings::{CoherenceSettings, Timing},
    write_path::WritePath,
};

use self::{
    background::BackgroundTasks, entries::EntryCache, generation_switch::GenerationSwitch,
    projection::LocalCaches,
};
use crate::{
    cache::MomentoClient,
    store::{self, DynamoDb},
};

/// Takes the cache out of use and brings an empty generation into use. Meanwhile reads go to
/// the table.
///
/// # Errors
/// The switch could not be read or moved.
pub async fn renew_generation(table: DynamoDb) -> Result<(), store::Error> {
    switch(table).renew().await
}

/// Puts the cache into use for a table that was just created.
///
/// # Errors
/// The switch could not be written.
pub async fn begin_generation(table: DynamoDb) -> Result<(), store::Error> {
    switch(table).begin().await
}

/// The switch, for commands that do not use the cache.
fn switch(table: DynamoDb) -> GenerationSwitch {
    GenerationSwitch::new(Arc::new(table), Timing::default())
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
    entries: Arc<EntryCache>,
    background: BackgroundTasks,
}

impl Coherence {
    /// Puts `cache` in front of `table`. All processes that use the same cache and table share
    /// its entries. The cache is used only while [`Self::run_generation_switch`] runs. Does no
    /// I/O.
    #[must_use]
    pub fn new(table: &DynamoDb, cache: &MomentoClient, settings: &CoherenceSettings) -> Self {
        let timing = settings.timing;
        let entries = Arc::new(EntryCache::new(cache.clone(), settings.clone()));
        let generation_switch = Arc::new(GenerationSwitch::new(Arc::new(table.clone()), timing));
        let local_caches = Arc::new(LocalCaches::default());
        let background = BackgroundTasks::default();
        let fencing = Arc::new(Fencing::new(
            entries.clone(),
            generation_switch.clone(),
            local_caches.clone(),
            timing,
        ));
        let reads = ReadPath::new(
            table.clone(),
            entries.clone(),
            generation_switch.clone(),
            local_caches.clone(),
            background.clone(),
            settings,
        );
        let writes = WritePath::new(
            table.clone(),
            fencing.clone(),
            local_caches,
            background.clone(),
            timing,
        );
        Self {
            reads: Arc::new(reads),
            writes: Arc::new(writes),
            fencing,
            generation_switch,
            entries,
            background,
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

    /// Waits until no write, fill or repair is running.
    pub async fn drain(&self) {
        self.background.drain().await;
    }
}
