//! Table reads of records that the cache does not have. Concurrent reads of a record share
//! one table read, and the read that takes the lease of a missing entry fills it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use tokio::{
    sync::SemaphorePermit,
    time::{Instant, timeout_at},
};

use super::{
    CoherenceSettings, Entry, Tag,
    background::BackgroundTasks,
    entries::EntryCache,
    namespace::Namespace,
    single_flight::{Flight, SingleFlight},
    table_read_limiter::TableReadLimiter,
};
use crate::{
    cache::SetCondition,
    domain::{Key, Record, Timestamp},
    store::{self, DynamoDb},
    telemetry::CACHE_LEASES,
};

/// Concurrent leases and fills of one read.
const CACHE_CALLS_AT_ONCE: usize = 64;

/// Reads records from the table, and fills the cache.
pub(super) struct TableFetch {
    table: DynamoDb,
    entries: Arc<EntryCache>,
    single_flight: Arc<SingleFlight>,
    limiter: TableReadLimiter,
    lease_ttl: Duration,
    background: BackgroundTasks,
}

/// The entries that a table read may fill.
pub(super) struct Fill {
    pub(super) namespace: Namespace,
    /// Keys without an entry.
    pub(super) missed: HashSet<Key>,
    /// The deadline of waiting for the cache.
    pub(super) deadline: Instant,
}

impl TableFetch {
    pub(super) fn new(
        table: DynamoDb,
        entries: Arc<EntryCache>,
        background: BackgroundTasks,
        settings: &CoherenceSettings,
    ) -> Self {
        Self {
            table,
            entries,
            single_flight: Arc::default(),
            limiter: TableReadLimiter::new(settings.table_reads_at_once),
            lease_ttl: settings.timing.lease_ttl,
            background,
        }
    }

    /// Waits for the permits of some requests to the table at once.
    pub(super) async fn acquire(
        &self,
        requests: usize,
    ) -> Result<SemaphorePermit<'_>, store::Error> {
        self.limiter.acquire_requests(requests).await
    }

    /// Reads records from the table, by a single flight.
    pub(super) async fn fetch(
        &self,
        keys: &[Key],
        fill: Option<Fill>,
    ) -> Result<Vec<Option<Record>>, store::Error> {
        let (flight, joined) = self.single_flight.join(keys);
        let mut records = if flight.keys().is_empty() {
            HashMap::new()
        } else {
            let found = self.read(&flight, fill).await;
            flight.land(&found);
            flight.keys().iter().cloned().zip(found?).collect()
        };
        drop(flight);
        let mut remaining = Vec::new();
        for (key, joined) in keys.iter().zip(joined) {
            let Some(joined) = joined else { continue };
            match joined.record().await {
                Some(record) => {
                    records.insert(key.clone(), record?);
                }
                None => remaining.push(key.clone()),
            }
        }
        let found = if remaining.is_empty() {
            Vec::new()
        } else {
            let _permit = self.limiter.acquire(remaining.len()).await?;
            self.table.read_strong(&remaining).await?
        };
        records.extend(remaining.into_iter().zip(found));
        let take = |key| records.get_mut(key).and_then(Option::take);
        Ok(keys.iter().map(take).collect())
    }

    /// Takes the leases, and then reads the table. If both ran in parallel, a fill could store a
    /// state from before a write.
    async fn read(
        &self,
        flight: &Flight,
        fill: Option<Fill>,
    ) -> Result<Vec<Option<Record>>, store::Error> {
        // Before the flight closes: other readers can join it while it waits.
        let keys = flight.keys().len();
        let _permit = self.limiter.acquire(keys).await?;
        let leases = match &fill {
            Some(fill) => self.lease(flight.keys(), fill).await,
            None => HashMap::new(),
        };
        flight.close().await;
        let read_time = self.entries.now();
        let found = self.table.read_strong(flight.keys()).await?;
        if let Some(fill) = fill {
            let records = flight.keys().iter().zip(&found);
            let fills = records.filter_map(|(key, record)| {
                let lease = leases.get(key)?.clone();
                Some((key.clone(), lease, record.clone()))
            });
            self.fill_in_background(fill.namespace, fills.collect(), read_time);
        }
        Ok(found)
    }

    /// Tries to take a lease for each missed key. Returns the leases taken, as stored.
    async fn lease(&self, keys: &[Key], fill: &Fill) -> HashMap<Key, Vec<u8>> {
        let missed = keys.iter().filter(|key| fill.missed.contains(key));
        let missed = missed.take_while(|_| self.entries.budget.try_fill());
        let leases = missed.map(|key| async move {
            let cache_key = fill.namespace.key(key);
            let lease = Entry::new(Tag::Lease).encode(&cache_key);
            let cache = &self.entries.cache;
            let stored = cache.set_if(SetCondition::Absent, &cache_key, &lease, self.lease_ttl);
            let is_stored = matches!(timeout_at(fill.deadline, stored).await, Ok(Ok(true)));
            let result = if is_stored { "taken" } else { "refused" };
            metrics::counter!(CACHE_LEASES, "result" => result).increment(1);
            is_stored.then(|| (key.clone(), lease))
        });
        stream::iter(leases.collect::<Vec<_>>())
            .buffer_unordered(CACHE_CALLS_AT_ONCE)
            .filter_map(|lease| async { lease })
            .collect()
            .await
    }

    /// Replaces each lease, if it is still there, by the record that was read.
    fn fill_in_background(
        &self,
        namespace: Namespace,
        fills: Vec<(Key, Vec<u8>, Option<Record>)>,
        read_time: Timestamp,
    ) {
        if fills.is_empty() || !self.background.has_room() {
            return;
        }
        let entries = self.entries.clone();
        self.background.spawn(async move {
            stream::iter(fills)
                .for_each_concurrent(CACHE_CALLS_AT_ONCE, |(key, lease, record)| {
                    let (entries, namespace) = (&entries, &namespace);
                    async move {
                        entries
                            .replace(namespace, &key, &lease, record, read_time)
                            .await;
                    }
                })
                .await;
        });
    }
}
