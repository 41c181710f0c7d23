//! The read path. Records come from the cache or, if it has no entry, from the table. A table read
//! then fills the cache under a lease.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use metrics::Counter;
use tokio::{sync::SemaphorePermit, time::Instant};

use super::{
    CoherenceSettings, Projection,
    background::BackgroundTasks,
    cache_lookup::{CacheLookups, Lookup},
    entries::EntryCache,
    generation_switch::GenerationSwitch,
    namespace::Namespace,
    projection::LocalCaches,
    table_fetch::{Fill, TableFetch},
};
use crate::{
    domain::Key,
    store::{self, DynamoDb},
    telemetry::RECENT_LOOKUPS,
};

/// Registered once: every read increments them.
static LOCAL_LOOKUPS: LazyLock<[Counter; 2]> = LazyLock::new(|| {
    ["hit", "miss"].map(|result| metrics::counter!(RECENT_LOOKUPS, "result" => result))
});

/// Required freshness of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Freshness {
    /// Never older than the last acknowledged write.
    #[default]
    Coherent,
    /// A strongly consistent read of the table.
    Strong,
    /// At most this old, and at most [`super::MAX_STALENESS`]. This replica's own writes
    /// are always reflected.
    Within(Duration),
}

/// Source of the records of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// All from the memory of this replica.
    Memory,
    /// All from the cache, or from the cache and from memory.
    Cache,
    /// Some from the table.
    Store,
}

/// The result of a read.
#[derive(Debug, Clone)]
pub struct ReadResult<V> {
    /// The projection of each record, in the order of the keys. `None`: no such record.
    pub records: Vec<Option<V>>,
    /// The source of the records.
    pub source: Source,
}

/// Reads records from the cache and the table.
pub struct ReadPath {
    generation_switch: Arc<GenerationSwitch>,
    local_caches: Arc<LocalCaches>,
    lookups: CacheLookups,
    table: TableFetch,
}

impl ReadPath {
    pub(super) fn new(
        table: DynamoDb,
        entries: Arc<EntryCache>,
        generation_switch: Arc<GenerationSwitch>,
        local_caches: Arc<LocalCaches>,
        background: BackgroundTasks,
        settings: &CoherenceSettings,
    ) -> Self {
        Self {
            lookups: CacheLookups::new(entries.clone(), generation_switch.clone(), settings),
            table: TableFetch::new(table, entries, background, settings),
            generation_switch,
            local_caches,
        }
    }

    /// Reads records by distinct keys.
    ///
    /// # Errors
    /// Errors of the table only. A cache that is unreachable, slow or full of garbage costs at most
    /// [`CoherenceSettings::cache_read_timeout`] for each look-up, and 250 ms more for the permit of
    /// a long look-up.
    pub async fn read<V: Projection>(
        &self,
        keys: &[Key],
        freshness: Freshness,
    ) -> Result<ReadResult<V>, store::Error> {
        let namespace = match freshness {
            Freshness::Coherent => self.generation_switch.in_use(),
            Freshness::Strong => None,
            Freshness::Within(staleness) => {
                return Box::pin(self.read_local(keys, staleness)).await;
            }
        };
        self.read_shared(keys, namespace).await
    }

    /// Waits for the permit of one request to the table, see
    /// [`CoherenceSettings::table_reads_at_once`]. The request ends when the permit is dropped.
    ///
    /// # Errors
    /// [`store::ErrorKind::Crowded`]: too many reads wait already, or this one waited too long.
    pub async fn table_permit(&self) -> Result<SemaphorePermit<'_>, store::Error> {
        self.table.acquire().await
    }

    /// Reads records from the local cache if they are fresh enough. Reads the other records from
    /// the cache or the table, and inserts them into the local cache.
    async fn read_local<V: Projection>(
        &self,
        keys: &[Key],
        staleness: Duration,
    ) -> Result<ReadResult<V>, store::Error> {
        let local_cache = V::local_cache(&self.local_caches);
        let now = Instant::now();
        let oldest = now.checked_sub(staleness).unwrap_or(now);
        let mut records = vec![None; keys.len()];
        let mut positions = Vec::new();
        for (position, key) in keys.iter().enumerate() {
            match local_cache.get(key, oldest) {
                Some(record) => records[position].clone_from(record.as_ref()),
                None => positions.push(position),
            }
        }
        let known = keys.len() - positions.len();
        count_local(known, positions.len());
        if positions.is_empty() {
            let source = Source::Memory;
            return Ok(ReadResult { records, source });
        }
        let unknown: Vec<_> = positions.iter().map(|it| keys[*it].clone()).collect();
        let writes: Vec<_> = unknown.iter().map(|key| local_cache.writes(key)).collect();
        let namespace = self.generation_switch.in_use();
        let result = self.read_shared(&unknown, namespace).await?;
        let found = unknown.iter().zip(writes).zip(result.records);
        for (position, ((key, writes), record)) in positions.into_iter().zip(found) {
            local_cache.insert(key, record.clone(), now, writes);
            records[position] = record;
        }
        let source = result.source;
        Ok(ReadResult { records, source })
    }

    /// Reads from the cache, if it is in use, and from the table.
    async fn read_shared<V: Projection>(
        &self,
        keys: &[Key],
        namespace: Option<Namespace>,
    ) -> Result<ReadResult<V>, store::Error> {
        let looked_up = match &namespace {
            Some(namespace) => self.lookups.look_up(keys, namespace).await,
            None => None,
        };
        let (Some(namespace), Some(lookup)) = (namespace, looked_up) else {
            // Boxed, here and below: the future is large, and a hit does not need it.
            let found = Box::pin(self.table.fetch(keys, None)).await?;
            return Ok(ReadResult {
                records: found.iter().map(|it| it.as_ref().map(V::project)).collect(),
                source: Source::Store,
            });
        };
        let Lookup {
            mut records,
            unknown,
            missed,
            deadline,
            ..
        } = lookup;
        if unknown.is_empty() {
            return Ok(ReadResult {
                records,
                source: Source::Cache,
            });
        }
        let fill = Fill {
            namespace,
            missed,
            deadline: deadline.unwrap_or_else(Instant::now),
        };
        let wanted: Vec<_> = unknown.iter().map(|it| keys[*it].clone()).collect();
        let found = Box::pin(self.table.fetch(&wanted, Some(fill))).await?;
        for (position, record) in unknown.into_iter().zip(found) {
            records[position] = record.as_ref().map(V::project);
        }
        Ok(ReadResult {
            records,
            source: Source::Store,
        })
    }
}

/// Counts hits and misses of the local cache.
fn count_local(known: usize, unknown: usize) {
    for (counter, count) in LOCAL_LOOKUPS.iter().zip([known, unknown]) {
        counter.increment(count as u64);
    }
}
