//! The read path: from the cache if it has an entry, else from the table, which then fills
//! the cache under a lease.

use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
    time::Duration,
};

use futures_util::{StreamExt as _, future::join, stream};
use metrics::Counter;
use tokio::{
    task::consume_budget,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Coherence, Entry, Projection, Tag, circuit_breaker::Decision, fault_injection::Sabotage,
    jittered, namespace::Namespace, single_flight::Flight, table_read_limiter::MAX_WAIT,
};
use crate::{
    cache::{self, Found, Keys},
    domain::{Key, Record, Timestamp},
    store,
    telemetry::{CACHE_FILLS, CACHE_LEASES, CACHE_LOOKUPS, RECENT_LOOKUPS},
};

/// Leases that one read takes. Further misses are read without filling the cache.
const MAX_LEASES_PER_READ: usize = 300;
/// Concurrent leases and fills of one read.
const CACHE_CALLS_AT_ONCE: usize = 64;
/// Longest that a fill may take: little less than its lease lives.
const FILL_TIMEOUT: Duration = Duration::from_millis(500);

/// Registered once: every read increments them.
static LOOKUPS: LazyLock<[Counter; 4]> = LazyLock::new(|| {
    ["hit", "miss", "unusable", "failed"]
        .map(|result| metrics::counter!(CACHE_LOOKUPS, "result" => result))
});
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
pub struct Answer<V> {
    /// The projection of each record, in the order of the keys. `None`: no such record.
    pub records: Vec<Option<V>>,
    /// Their source.
    pub source: Source,
}

/// Results of the look-ups of one read in the cache.
struct Lookup<V> {
    /// Records that the cache had, in the order of the keys.
    records: Vec<Option<V>>,
    /// Positions of the keys that the cache did not have.
    unknown: Vec<usize>,
    /// Keys without an entry: a read that takes the lease fills them.
    missed: HashSet<Key>,
    /// When to stop waiting for the cache. `None` if it was not queried.
    deadline: Option<Instant>,
    counts: Counts,
}

/// Numbers of keys by result.
#[derive(Default)]
struct Counts {
    hit: u64,
    miss: u64,
    /// The entry cannot be used, nor filled.
    unusable: u64,
    /// The cache failed.
    failed: u64,
}

/// The entry cannot be used, nor filled: a lease, a fence, another format, too old.
struct Unusable;

/// Why a look-up has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LookupFailure {
    /// The cache was not queried: its circuit breaker is open, it is no longer in use, or
    /// too many long look-ups are running.
    Skipped,
    /// The cache failed, or did not respond in time.
    Failed,
}

impl<V: Projection> Lookup<V> {
    fn empty(keys: &[Key]) -> Self {
        Self {
            records: vec![None; keys.len()],
            unknown: Vec::new(),
            missed: HashSet::new(),
            deadline: None,
            counts: Counts::default(),
        }
    }

    /// Counts the results in the metrics.
    fn count(&self) {
        let Counts {
            hit,
            miss,
            unusable,
            failed,
        } = self.counts;
        for (counter, count) in LOOKUPS.iter().zip([hit, miss, unusable, failed]) {
            if count > 0 {
                counter.increment(count);
            }
        }
    }
}

/// Counts hits and misses of the local cache.
fn count_local(known: usize, unknown: usize) {
    for (counter, count) in LOCAL_LOOKUPS.iter().zip([known, unknown]) {
        counter.increment(count as u64);
    }
}

/// Entries that a table read may fill.
struct Fill {
    namespace: Namespace,
    /// Keys without an entry.
    missed: HashSet<Key>,
    /// When to stop waiting for the cache.
    deadline: Instant,
}

impl Coherence {
    /// Reads records by distinct keys.
    ///
    /// # Errors
    /// Those of the table only. A cache that is down, slow or full of garbage costs at most
    /// [`super::CoherenceSettings::cache_read_timeout`] for each look-up.
    pub async fn read<V: Projection>(
        &self,
        keys: &[Key],
        freshness: Freshness,
    ) -> Result<Answer<V>, store::Error> {
        let namespace = match freshness {
            Freshness::Coherent => self.generation_switch.in_use(),
            Freshness::Strong => None,
            Freshness::Within(staleness) => {
                return Box::pin(self.read_local(keys, staleness)).await;
            }
        };
        self.read_shared(keys, namespace).await
    }

    /// Reads from the local cache what is fresh enough, and the rest from the cache or the
    /// table into it.
    async fn read_local<V: Projection>(
        &self,
        keys: &[Key],
        staleness: Duration,
    ) -> Result<Answer<V>, store::Error> {
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
            return Ok(Answer { records, source });
        }
        let unknown: Vec<_> = positions.iter().map(|it| keys[*it].clone()).collect();
        let writes: Vec<_> = unknown.iter().map(|key| local_cache.writes(key)).collect();
        let namespace = self.generation_switch.in_use();
        let answer = self.read_shared(&unknown, namespace).await?;
        let found = unknown.iter().zip(writes).zip(answer.records);
        for (position, ((key, writes), record)) in positions.into_iter().zip(found) {
            local_cache.insert(key, record.clone(), now, writes);
            records[position] = record;
        }
        let source = answer.source;
        Ok(Answer { records, source })
    }

    /// Reads from the cache, if it is in use, and from the table.
    async fn read_shared<V: Projection>(
        &self,
        keys: &[Key],
        namespace: Option<Namespace>,
    ) -> Result<Answer<V>, store::Error> {
        let mut lookup = Lookup::empty(keys);
        let namespace = match namespace {
            Some(namespace) if self.look_up(keys, &namespace, &mut lookup).await => namespace,
            _ => {
                let found = Box::pin(self.fetch(keys, None)).await?;
                return Ok(Answer {
                    records: found.iter().map(|it| it.as_ref().map(V::project)).collect(),
                    source: Source::Store,
                });
            }
        };
        let Lookup {
            mut records,
            unknown,
            missed,
            deadline,
            ..
        } = lookup;
        if unknown.is_empty() {
            return Ok(Answer {
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
        // Boxed: large and rare, so that a hit does not pay for its size.
        let found = Box::pin(self.fetch(&wanted, Some(fill))).await?;
        for (position, record) in unknown.into_iter().zip(found) {
            records[position] = record.as_ref().map(V::project);
        }
        Ok(Answer {
            records,
            source: Source::Store,
        })
    }

    /// Reads records from the table, by a single flight.
    async fn fetch(
        &self,
        keys: &[Key],
        fill: Option<Fill>,
    ) -> Result<Vec<Option<Record>>, store::Error> {
        let (flight, joined) = self
            .single_flight
            .join(keys, self.lacks(Sabotage::JoinAnyFlight));
        let mut records = if flight.keys().is_empty() {
            HashMap::new()
        } else {
            let found = self.read_table(&flight, fill).await;
            flight.land(&found);
            flight.keys().iter().cloned().zip(found?).collect()
        };
        drop(flight);
        let mut left = Vec::new();
        for (key, joined) in keys.iter().zip(joined) {
            let Some(joined) = joined else { continue };
            match joined.record().await {
                Some(record) => {
                    records.insert(key.clone(), record?);
                }
                None => left.push(key.clone()),
            }
        }
        let found = if left.is_empty() {
            Vec::new()
        } else {
            let _permit = self.table_read_limiter.acquire(left.len()).await?;
            self.store.read_strong(&left).await?
        };
        records.extend(left.into_iter().zip(found));
        let take = |key| records.get_mut(key).and_then(Option::take);
        Ok(keys.iter().map(take).collect())
    }

    /// Takes the leases, and then reads the table. At the same time, a fill could outlive a
    /// write.
    async fn read_table(
        &self,
        flight: &Flight,
        fill: Option<Fill>,
    ) -> Result<Vec<Option<Record>>, store::Error> {
        // Before the flight closes: other readers can join it while it waits.
        let keys = flight.keys().len();
        let _permit = self.table_read_limiter.acquire(keys).await?;
        let lease = async {
            match &fill {
                Some(fill) => self.lease(flight.keys(), fill).await,
                None => HashMap::new(),
            }
        };
        let read = async {
            flight.close().await;
            let read_time = self.now();
            let found = self.store.read_strong(flight.keys()).await;
            (read_time, found)
        };
        let (leases, (read_time, found)) = if self.lacks(Sabotage::LeaseBesideRead) {
            join(lease, read).await
        } else {
            (lease.await, read.await)
        };
        let found = found?;
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

    /// Looks the keys up in the cache. Returns `false` if the cache was not queried. More
    /// keys than one look-up takes are several look-ups of about the same size, one after
    /// the other. After a failure, the rest is not looked up, and nothing is filled.
    async fn look_up<V: Projection>(
        &self,
        keys: &[Key],
        namespace: &Namespace,
        lookup: &mut Lookup<V>,
    ) -> bool {
        let lookups = keys.len().div_ceil(cache::MAX_KEYS).max(1);
        let keys_per_lookup = keys.len().div_ceil(lookups).max(1);
        for (look_up, keys) in keys.chunks(keys_per_lookup).enumerate() {
            let first = look_up * keys_per_lookup;
            let (cache_keys, found) = match self
                .query_cache(keys, namespace, &mut lookup.deadline)
                .await
            {
                Ok(answer) => answer,
                Err(LookupFailure::Skipped) if look_up == 0 => return false,
                Err(failure) => {
                    if failure == LookupFailure::Failed {
                        lookup.counts.failed += keys.len() as u64;
                    }
                    lookup.unknown.extend(first..lookup.records.len());
                    lookup.missed.clear();
                    break;
                }
            };
            let mut found = found.into_iter();
            let now = self.now();
            for (position, (key, cache_key)) in (first..).zip(keys.iter().zip(cache_keys.iter())) {
                consume_budget().await;
                match found.next() {
                    Some(Found::Hit(bytes)) => match self.decode_entry(&bytes, cache_key, key, now)
                    {
                        Ok(record) => {
                            lookup.counts.hit += 1;
                            lookup.records[position] = record;
                            continue;
                        }
                        Err(Unusable) => lookup.counts.unusable += 1,
                    },
                    Some(Found::Miss) => {
                        lookup.counts.miss += 1;
                        if lookup.missed.len() < MAX_LEASES_PER_READ {
                            lookup.missed.insert(key.clone());
                        }
                    }
                    Some(Found::Unknown) | None => lookup.counts.failed += 1,
                }
                lookup.unknown.push(position);
            }
        }
        lookup.count();
        true
    }

    /// Sends one look-up, unless the circuit breaker is open. Sets the deadline for the
    /// leases that follow.
    async fn query_cache(
        &self,
        keys: &[Key],
        namespace: &Namespace,
        wait_until: &mut Option<Instant>,
    ) -> Result<(Keys, Vec<Found>), LookupFailure> {
        let permit = if cache::is_long(keys.len()) {
            // Boxed: large and rare.
            Some(Box::pin(self.acquire_long_lookup(namespace)).await?)
        } else {
            None
        };
        let breaker = self.circuit_breakers.for_keys(keys.len());
        let decision = breaker.decide();
        if decision == Decision::Skip {
            return Err(LookupFailure::Skipped);
        }
        let deadline = Instant::now() + self.settings.cache_read_timeout;
        *wait_until = Some(deadline);
        let cache_keys = namespace.keys(keys);
        let found = timeout_at(deadline, self.cache.get(&cache_keys)).await;
        drop(permit);
        match found {
            Ok(Ok(found)) => {
                breaker.succeeded();
                return Ok((cache_keys, found));
            }
            Ok(Err(error)) => breaker.failed(decision, &error),
            Err(_) => breaker.failed(decision, &"no response in time"),
        }
        Err(LookupFailure::Failed)
    }

    /// Waits for the permit of a long look-up. Few run at once, so that neither the cache nor
    /// this process is busy with them alone. A timeout here is no failure of the cache.
    async fn acquire_long_lookup(
        &self,
        namespace: &Namespace,
    ) -> Result<impl Sized + use<'_>, LookupFailure> {
        let permit = timeout(MAX_WAIT, self.long_lookups.acquire()).await;
        let permit = permit.map_err(|_| LookupFailure::Skipped)?;
        if self.generation_switch.in_use().as_ref() == Some(namespace) {
            Ok(permit)
        } else {
            Err(LookupFailure::Skipped)
        }
    }

    /// Decodes an entry, if it can be used.
    fn decode_entry<V: Projection>(
        &self,
        bytes: &[u8],
        cache_key: &[u8],
        key: &Key,
        now: Timestamp,
    ) -> Result<Option<V>, Unusable> {
        let (record, read_time) = V::decode(bytes, cache_key, key).ok_or(Unusable)?;
        let age_ms = now.0.saturating_sub(read_time.0);
        let age = Duration::from_millis(u64::try_from(age_ms).unwrap_or(0));
        if age <= self.max_age(key, record.is_some()) {
            Ok(record)
        } else {
            Err(Unusable)
        }
    }

    /// Tries to take a lease for each missed key. Returns the leases taken, as stored.
    async fn lease(&self, keys: &[Key], fill: &Fill) -> HashMap<Key, Vec<u8>> {
        let missed = keys.iter().filter(|key| fill.missed.contains(key));
        let leases = missed.map(|key| async move {
            let cache_key = fill.namespace.key(key);
            if self.lacks(Sabotage::NoLease) {
                return Some((key.clone(), Vec::new()));
            }
            let lease = Entry::new(Tag::Lease).encode(&cache_key);
            let ttl = self.settings.timing.lease_ttl;
            let stored = self.cache.set_if_absent(&cache_key, &lease, ttl);
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
        if fills.is_empty() || !self.has_room_in_background() {
            return;
        }
        let coherence = self.clone();
        self.background.spawn(async move {
            stream::iter(fills)
                .for_each_concurrent(CACHE_CALLS_AT_ONCE, |(key, lease, record)| {
                    let (coherence, namespace) = (&coherence, &namespace);
                    async move {
                        coherence
                            .replace(namespace, &key, &lease, record, read_time)
                            .await;
                    }
                })
                .await;
        });
    }

    /// Replaces `expected`, a lease or a fence of this replica, by a record. A failure is
    /// harmless: the entry expires, and the next reader fills it.
    pub(super) async fn replace(
        &self,
        namespace: &Namespace,
        key: &Key,
        expected: &[u8],
        record: Option<Record>,
        read_time: Timestamp,
    ) {
        let cache_key = namespace.key(key);
        let ttl = self.ttl(key, record.is_some());
        let entry = Entry::new(match record {
            Some(record) => Tag::Present { record, read_time },
            None => Tag::Absent { read_time },
        });
        let value = entry.encode(&cache_key);
        let ttl = jittered(ttl, entry.nonce);
        let stored = async {
            if self.lacks(Sabotage::NoLease) && expected.is_empty() {
                return self.cache.set_if_absent(&cache_key, &value, ttl).await;
            }
            let stored = self.cache.set_if_equal(&cache_key, &value, expected, ttl);
            stored.await
        };
        let stored = timeout(FILL_TIMEOUT, stored).await;
        let result = if matches!(stored, Ok(Ok(true))) {
            "stored"
        } else {
            "refused"
        };
        metrics::counter!(CACHE_FILLS, "result" => result).increment(1);
        match stored {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "cache not filled"),
            Err(_) => tracing::debug!("cache not filled: too slow"),
        }
    }
}
