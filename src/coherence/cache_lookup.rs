//! Look-ups of records in Momento. A failed look-up costs a table read, and at most its timeout.

use std::{collections::HashSet, sync::Arc, sync::LazyLock, time::Duration};

use metrics::Counter;
use tokio::{
    sync::Semaphore,
    task::consume_budget,
    time::{Instant, timeout, timeout_at},
};

use super::{
    CoherenceSettings,
    circuit_breaker::{CircuitBreakers, Decision},
    entries::{EntryCache, Snapshot, Unusable},
    generation_switch::GenerationSwitch,
    namespace::Namespace,
    table_read_limiter::MAX_WAIT,
};
use crate::{
    cache::{self, Found},
    domain::Key,
    telemetry::CACHE_LOOKUPS,
};

/// Most leases of one read. Further misses are read without filling the cache.
const MAX_LEASES_PER_READ: usize = 300;
/// Most concurrent long look-ups.
const MAX_LONG_LOOKUPS: usize = 4;

/// Registered once: every read increments them.
static LOOKUPS: LazyLock<[Counter; 4]> = LazyLock::new(|| {
    ["hit", "miss", "unusable", "failed"]
        .map(|result| metrics::counter!(CACHE_LOOKUPS, "result" => result))
});

/// Looks records up in Momento.
pub(super) struct CacheLookups {
    entries: Arc<EntryCache>,
    generation_switch: Arc<GenerationSwitch>,
    circuit_breakers: CircuitBreakers,
    long_lookups: Semaphore,
    timeout: Duration,
}

/// The result of the look-ups of one read.
pub(super) struct Lookup {
    /// The states of the keys, in their order. `None`: the cache did not have it.
    pub(super) found: Vec<Option<Snapshot>>,
    /// Keys without an entry: a read that takes the lease fills them.
    pub(super) missed: HashSet<Key>,
    /// The deadline of waiting for the cache. `None`: it was not queried.
    pub(super) deadline: Option<Instant>,
    counts: LookupCounts,
}

/// Numbers of keys by result.
#[derive(Default)]
struct LookupCounts {
    hit: u64,
    miss: u64,
    /// The entry can be neither used nor filled.
    unusable: u64,
    /// The cache failed.
    failed: u64,
}

/// Reason why a look-up has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LookupFailure {
    /// The cache was not queried: its circuit breaker is open, it is no longer in use, too few of
    /// its operations are left, or too many long look-ups are running.
    Skipped,
    /// The cache failed, or did not respond in time.
    Failed,
}

impl Lookup {
    fn empty(keys: &[Key]) -> Self {
        Self {
            found: vec![None; keys.len()],
            missed: HashSet::new(),
            deadline: None,
            counts: LookupCounts::default(),
        }
    }

    /// Counts the results in the metrics.
    fn count(&self) {
        let LookupCounts {
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

impl CacheLookups {
    pub(super) fn new(
        entries: Arc<EntryCache>,
        generation_switch: Arc<GenerationSwitch>,
        settings: &CoherenceSettings,
    ) -> Self {
        Self {
            entries,
            generation_switch,
            circuit_breakers: CircuitBreakers::new(settings.cache_failures),
            long_lookups: Semaphore::new(MAX_LONG_LOOKUPS),
            timeout: settings.cache_read_timeout,
        }
    }

    /// Looks the keys up. `None`: the cache was not queried. Keys beyond the limit of one look-up
    /// are split into look-ups of about the same size, one after the other. After a failure, the
    /// remaining keys are not looked up, and no entry is filled.
    pub(super) async fn look_up(&self, keys: &[Key], namespace: &Namespace) -> Option<Lookup> {
        let mut lookup = Lookup::empty(keys);
        let lookups = keys.len().div_ceil(cache::MAX_KEYS).max(1);
        let keys_per_lookup = keys.len().div_ceil(lookups).max(1);
        for (number, keys) in keys.chunks(keys_per_lookup).enumerate() {
            let first = number * keys_per_lookup;
            let queried = self.query(keys, namespace, &mut lookup.deadline).await;
            let (cache_keys, found) = match queried {
                Ok(found) => found,
                Err(LookupFailure::Skipped) if number == 0 => return None,
                Err(failure) => {
                    if failure == LookupFailure::Failed {
                        lookup.counts.failed += keys.len() as u64;
                    }
                    lookup.missed.clear();
                    break;
                }
            };
            self.take(first, keys, &cache_keys, found, &mut lookup)
                .await;
        }
        lookup.count();
        Some(lookup)
    }

    /// Takes the result of one look-up, of the keys from position `first` on.
    async fn take(
        &self,
        first: usize,
        keys: &[Key],
        cache_keys: &[String],
        found: Vec<Found>,
        lookup: &mut Lookup,
    ) {
        let mut found = found.into_iter();
        let now = self.entries.now();
        for (position, (key, cache_key)) in (first..).zip(keys.iter().zip(cache_keys.iter())) {
            consume_budget().await;
            match found.next() {
                Some(Found::Hit(bytes)) => match self.entries.decode(&bytes, cache_key, key, now) {
                    Ok(snapshot) => {
                        lookup.counts.hit += 1;
                        lookup.found[position] = Some(snapshot);
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
        }
    }

    /// Sends one look-up, unless the circuit breaker is open. Sets the deadline for the
    /// leases that follow.
    async fn query(
        &self,
        keys: &[Key],
        namespace: &Namespace,
        wait_until: &mut Option<Instant>,
    ) -> Result<(Vec<String>, Vec<Found>), LookupFailure> {
        if !self.entries.budget.try_look_up(keys.len()) {
            return Err(LookupFailure::Skipped);
        }
        let permit = if cache::is_long(keys.len()) {
            // Boxed: the future is large, and most look-ups do not need it.
            Some(Box::pin(self.acquire_long_lookup(namespace)).await?)
        } else {
            None
        };
        let breaker = self.circuit_breakers.for_keys(keys.len());
        let decision = breaker.decide();
        if decision == Decision::Skip {
            return Err(LookupFailure::Skipped);
        }
        let deadline = Instant::now() + self.timeout;
        *wait_until = Some(deadline);
        let cache_keys = namespace.keys(keys);
        let found = timeout_at(deadline, self.entries.cache.get(&cache_keys)).await;
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

    /// Waits for the permit of a long look-up. Few run at once, which leaves capacity of the cache
    /// and of this process for short look-ups. A timeout here does not count as a failure of the
    /// cache.
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
}
