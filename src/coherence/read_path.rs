//! The read path. Records come from the memory of this replica, else from the cache, else from the
//! table. A table read fills the cache under a lease.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use metrics::Counter;
use smallvec::SmallVec;
use tokio::{sync::SemaphorePermit, time::Instant};

use super::{
    CoherenceSettings,
    background::BackgroundTasks,
    cache_lookup::{CacheLookups, Lookup},
    entries::{EntryCache, Snapshot},
    generation_switch::GenerationSwitch,
    near_cache::{NearCache, Required, Ticket},
    replica_directory::ReplicaDirectory,
    table_fetch::{Fill, TableFetch},
};
use crate::{
    domain::{Key, Record},
    store::{self, DynamoDb},
    telemetry::NEAR_LOOKUPS,
};

/// Greatest staleness bound of a read.
pub const MAX_STALENESS: Duration = Duration::from_secs(60);

/// Registered once: every read increments them.
static LOOKUPS: LazyLock<[Counter; 2]> = LazyLock::new(|| {
    ["hit", "miss"].map(|result| metrics::counter!(NEAR_LOOKUPS, "result" => result))
});

/// Required freshness of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Freshness {
    /// Never older than the last acknowledged write.
    #[default]
    Coherent,
    /// A strongly consistent read of the table.
    Strong,
    /// At most this old, and at most [`MAX_STALENESS`]. This replica's own writes
    /// are always reflected.
    Within(Duration),
}

/// Source of the records of a read. Ordered: the farthest one is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// All from the memory of this replica.
    Memory,
    /// All from the cache, or from the cache and from memory.
    Cache,
    /// Some from the table.
    Store,
}

/// The records of a read, in the order of its keys. `None`: none was found yet. A record is shared
/// with the near cache. A check, which reads three, needs no memory on the heap for them.
type ReadRecords = SmallVec<[Option<Arc<Option<Record>>>; 3]>;

/// The result of a read.
#[derive(Debug, Clone)]
pub struct ReadResult {
    records: ReadRecords,
    /// The source of the records.
    pub source: Source,
}

impl ReadResult {
    /// The record of the key at a position. `None`: no such record.
    #[must_use]
    pub fn record(&self, position: usize) -> Option<&Record> {
        self.records.get(position)?.as_deref()?.as_ref()
    }

    /// The records, in the order of the keys. `None`: no such record.
    pub fn into_records(self) -> impl Iterator<Item = Option<Record>> {
        self.records
            .into_iter()
            .map(|record| record.and_then(Arc::unwrap_or_clone))
    }
}

/// Reads records from memory, the cache and the table.
pub struct ReadPath {
    generation_switch: Arc<GenerationSwitch>,
    directory: Arc<ReplicaDirectory>,
    near_cache: Arc<NearCache>,
    entries: Arc<EntryCache>,
    lookups: CacheLookups,
    table: TableFetch,
}

impl ReadPath {
    pub(super) fn new(
        table: DynamoDb,
        entries: Arc<EntryCache>,
        generation_switch: Arc<GenerationSwitch>,
        directory: Arc<ReplicaDirectory>,
        near_cache: Arc<NearCache>,
        background: BackgroundTasks,
        settings: &CoherenceSettings,
    ) -> Self {
        Self {
            lookups: CacheLookups::new(entries.clone(), generation_switch.clone(), settings),
            table: TableFetch::new(table, entries.clone(), background, settings),
            generation_switch,
            directory,
            near_cache,
            entries,
        }
    }

    /// Reads records by distinct keys.
    ///
    /// # Errors
    /// Errors of the table only. A cache that is unreachable, slow or full of garbage costs at most
    /// [`CoherenceSettings::cache_read_timeout`] for each look-up, and 250 ms more for the permit of
    /// a long look-up.
    pub async fn read(
        &self,
        keys: &[Key],
        freshness: Freshness,
    ) -> Result<ReadResult, store::Error> {
        if freshness == Freshness::Strong {
            // Boxed, here and below: the future is large, and a hit in memory does not need it.
            let found = Box::pin(self.table.fetch(keys, None)).await?;
            let records = found.into_iter().map(|record| Some(Arc::new(record)));
            return Ok(ReadResult {
                records: records.collect(),
                source: Source::Store,
            });
        }
        let mut records = self.read_memory(keys, freshness);
        let missing = records.iter().filter(|record| record.is_none()).count();
        let counts = [keys.len() - missing, missing];
        for (counter, count) in LOOKUPS.iter().zip(counts) {
            counter.increment(count as u64);
        }
        let mut source = Source::Memory;
        if missing > 0 {
            let missing = keys.iter().zip(&records);
            let missing = missing.filter(|(_, record)| record.is_none());
            let missing: Vec<_> = missing.map(|(key, _)| key.clone()).collect();
            let (found, from) = Box::pin(self.read_through(&missing)).await?;
            let places = records.iter_mut().filter(|record| record.is_none());
            for (place, snapshot) in places.zip(found) {
                *place = Some(snapshot.record);
            }
            source = from;
        }
        Ok(ReadResult { records, source })
    }

    /// Waits for the permits of `requests` requests to the table at once, at most
    /// [`store::READS_AT_ONCE`], see [`CoherenceSettings::table_reads_at_once`]. The requests end when
    /// the permits are dropped.
    ///
    /// # Errors
    /// [`store::ErrorKind::Crowded`]: too many reads wait already, or this one waited too long.
    pub async fn table_permits(
        &self,
        requests: usize,
    ) -> Result<SemaphorePermit<'_>, store::Error> {
        self.table.acquire(requests).await
    }

    /// Reads records from the near cache.
    fn read_memory(&self, keys: &[Key], freshness: Freshness) -> ReadRecords {
        let entries: SmallVec<[_; 3]> = keys.iter().map(|key| self.near_cache.get(key)).collect();
        let now = Instant::now();
        let required = Required {
            // At a time after the entries: see `NearEntry::meets`.
            epoch: self.directory.serving_epoch(now),
            since: match freshness {
                Freshness::Within(staleness) => Some(now.checked_sub(staleness).unwrap_or(now)),
                Freshness::Coherent | Freshness::Strong => None,
            },
        };
        entries
            .into_iter()
            .map(|entry| Some(entry.filter(|entry| entry.meets(required, now))?.record))
            .collect()
    }

    /// Reads records from the cache and the table, and installs them in the near cache.
    async fn read_through(&self, keys: &[Key]) -> Result<(Vec<Snapshot>, Source), store::Error> {
        let now = Instant::now();
        let epoch = self.directory.serving_epoch(now);
        let tickets: Vec<Ticket> = keys
            .iter()
            .map(|key| self.near_cache.begin_read(key, epoch, now))
            .collect();
        let (found, source) = self.read_shared(keys).await?;
        for ((key, ticket), Snapshot { record, age }) in keys.iter().zip(tickets).zip(&found) {
            let ttl = self.entries.near_ttl(key, record.is_some());
            let life = ttl.saturating_sub(*age);
            self.near_cache.install(key, record.clone(), ticket, life);
        }
        Ok((found, source))
    }

    /// Reads from the cache, if it is in use, and from the table.
    async fn read_shared(&self, keys: &[Key]) -> Result<(Vec<Snapshot>, Source), store::Error> {
        let namespace = self.generation_switch.in_use();
        let looked_up = match &namespace {
            Some(namespace) => self.lookups.look_up(keys, namespace).await,
            None => None,
        };
        let (Some(namespace), Some(lookup)) = (namespace, looked_up) else {
            let found = self.table.fetch(keys, None).await?;
            return Ok((
                found.into_iter().map(Snapshot::now).collect(),
                Source::Store,
            ));
        };
        let Lookup {
            found,
            missed,
            deadline,
            ..
        } = lookup;
        let unknown = keys.iter().zip(&found).filter(|(_, found)| found.is_none());
        let unknown: Vec<_> = unknown.map(|(key, _)| key.clone()).collect();
        if unknown.is_empty() {
            return Ok((found.into_iter().flatten().collect(), Source::Cache));
        }
        let fill = Fill {
            namespace,
            missed,
            deadline: deadline.unwrap_or_else(Instant::now),
        };
        let fetched = self.table.fetch(&unknown, Some(fill)).await?;
        let mut fetched = fetched.into_iter().map(Snapshot::now);
        let found = found
            .into_iter()
            .filter_map(|found| found.or_else(|| fetched.next()));
        Ok((found.collect(), Source::Store))
    }
}
