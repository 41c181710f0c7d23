//! Reads: from the cache where it may answer, else by lease from the table.

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
    Coherence, Entry, Tag, View, circuit_breaker::Ask, fault_injection::Sabotage,
    generation_switch::Space, jittered, single_flight::Flight, table_read_limiter::PATIENCE,
};
use crate::{
    cache::{self, Found, Keys},
    domain::{Key, Record, Timestamp},
    store,
    telemetry::{CACHE_FILLS, CACHE_LEASES, CACHE_LOOKUPS, RECENT_LOOKUPS},
};

/// Leases that one read takes; what it misses beyond that is read without
/// filling.
const MAX_LEASES_PER_READ: usize = 300;
/// Leases and fills of one read that are under way at once.
const CACHE_CALLS_AT_ONCE: usize = 64;
/// Longest a fill may take; the lease it needs does not live much longer.
const FILL_TIMEOUT: Duration = Duration::from_millis(500);

/// Looked up once, as every read tells them.
static LOOKUPS: LazyLock<[Counter; 4]> = LazyLock::new(|| {
    ["hit", "miss", "unusable", "failed"]
        .map(|result| metrics::counter!(CACHE_LOOKUPS, "result" => result))
});
static RECENT: LazyLock<[Counter; 2]> = LazyLock::new(|| {
    ["hit", "miss"].map(|result| metrics::counter!(RECENT_LOOKUPS, "result" => result))
});

/// How fresh an answer has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Freshness {
    /// Never older than the last acknowledged write.
    #[default]
    Coherent,
    /// A strongly consistent read of the table.
    Strong,
    /// Possibly as it was so long ago, and no longer: at most
    /// [`super::MAX_STALENESS`]. This replica's own writes are always reflected.
    Within(Duration),
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Entirely from what this replica saw a while ago.
    Memory,
    /// Entirely from the cache, or from it and what this replica saw.
    Cache,
    /// At least in part from the table.
    Store,
}

/// The answer to a read.
#[derive(Debug, Clone)]
pub struct Answer<V> {
    /// What is known of the record of each key, in the order of the keys.
    pub records: Vec<Option<V>>,
    /// Where they came from.
    pub source: Source,
}

/// What the cache said of the keys of a read.
struct Sight<V> {
    /// What is known, in the order of the keys.
    records: Vec<Option<V>>,
    /// Keys of which nothing is known, by their places.
    unknown: Vec<usize>,
    /// Those under which the cache has nothing: whoever takes the lease may fill.
    missed: HashSet<Key>,
    /// When to stop waiting for the cache, if it was asked.
    deadline: Option<Instant>,
    counts: Counts,
}

/// How often the cache said what.
#[derive(Default)]
struct Counts {
    hit: u64,
    miss: u64,
    /// Nothing to be believed, and nothing to be filled.
    unusable: u64,
    /// The cache did not answer.
    failed: u64,
}

/// An entry that is not to be believed, and not to be filled.
struct Unusable;

/// Why the cache has said nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unanswered {
    /// It was not asked: it is known not to answer, not in use any more, or too many
    /// long look-ups were under way.
    NotAsked,
    /// It failed, or did not answer in time.
    Failed,
}

impl<V: View> Sight<V> {
    fn nothing(keys: &[Key]) -> Self {
        Self {
            records: vec![None; keys.len()],
            unknown: Vec::new(),
            missed: HashSet::new(),
            deadline: None,
            counts: Counts::default(),
        }
    }

    /// Counts what the cache said.
    fn tell(&self) {
        let Counts {
            hit,
            miss,
            unusable,
            failed,
        } = self.counts;
        for (told, count) in LOOKUPS.iter().zip([hit, miss, unusable, failed]) {
            if count > 0 {
                told.increment(count);
            }
        }
    }
}

/// Counts what was seen lately enough, and what was not.
fn tell_recent(known: usize, unknown: usize) {
    for (told, count) in RECENT.iter().zip([known, unknown]) {
        told.increment(count as u64);
    }
}

/// What a table read may fill.
struct Fill {
    space: Space,
    /// Keys under which the cache had nothing.
    missed: HashSet<Key>,
    /// When to stop waiting for the cache.
    deadline: Instant,
}

impl Coherence {
    /// Reads records by distinct keys.
    ///
    /// # Errors
    /// Only the table's: a cache that is down, slow or full of nonsense costs
    /// at most [`super::Settings::cache_read_timeout`] for each look-up.
    pub async fn read<V: View>(
        &self,
        keys: &[Key],
        freshness: Freshness,
    ) -> Result<Answer<V>, store::Error> {
        let space = match freshness {
            Freshness::Coherent => self.generations.in_use(),
            Freshness::Strong => None,
            Freshness::Within(staleness) => {
                return Box::pin(self.read_recent(keys, staleness)).await;
            }
        };
        self.read_shared(keys, space).await
    }

    /// Reads what this replica has not seen within `staleness`, and keeps it.
    async fn read_recent<V: View>(
        &self,
        keys: &[Key],
        staleness: Duration,
    ) -> Result<Answer<V>, store::Error> {
        let recent = V::recent(&self.recent);
        let now = Instant::now();
        let oldest = now.checked_sub(staleness).unwrap_or(now);
        let mut records = vec![None; keys.len()];
        let mut positions = Vec::new();
        for (position, key) in keys.iter().enumerate() {
            match recent.get(key, oldest) {
                Some(record) => records[position].clone_from(record.as_ref()),
                None => positions.push(position),
            }
        }
        let known = keys.len() - positions.len();
        tell_recent(known, positions.len());
        if positions.is_empty() {
            let source = Source::Memory;
            return Ok(Answer { records, source });
        }
        let unknown: Vec<_> = positions.iter().map(|it| keys[*it].clone()).collect();
        let writes: Vec<_> = unknown.iter().map(|key| recent.writes(key)).collect();
        let space = self.generations.in_use();
        let answer = self.read_shared(&unknown, space).await?;
        let found = unknown.iter().zip(writes).zip(answer.records);
        for (position, ((key, writes), record)) in positions.into_iter().zip(found) {
            recent.keep(key, record.clone(), now, writes);
            records[position] = record;
        }
        let source = answer.source;
        Ok(Answer { records, source })
    }

    /// Reads from the cache, if part of it is in use, and from the table.
    async fn read_shared<V: View>(
        &self,
        keys: &[Key],
        space: Option<Space>,
    ) -> Result<Answer<V>, store::Error> {
        let mut sight = Sight::nothing(keys);
        let space = match space {
            Some(space) if self.look(keys, &space, &mut sight).await => space,
            _ => {
                let found = Box::pin(self.fetch(keys, None)).await?;
                return Ok(Answer {
                    records: found.iter().map(|it| it.as_ref().map(V::of)).collect(),
                    source: Source::Store,
                });
            }
        };
        let Sight {
            mut records,
            unknown,
            missed,
            deadline,
            ..
        } = sight;
        if unknown.is_empty() {
            return Ok(Answer {
                records,
                source: Source::Cache,
            });
        }
        let fill = Fill {
            space,
            missed,
            deadline: deadline.unwrap_or_else(Instant::now),
        };
        let wanted: Vec<_> = unknown.iter().map(|it| keys[*it].clone()).collect();
        // Rarely needed, and large: not where every hit would have to make room.
        let found = Box::pin(self.fetch(&wanted, Some(fill))).await?;
        for (position, record) in unknown.into_iter().zip(found) {
            records[position] = record.as_ref().map(V::of);
        }
        Ok(Answer {
            records,
            source: Source::Store,
        })
    }

    /// Reads records from the table, sharing reads that have not been sent yet.
    async fn fetch(
        &self,
        keys: &[Key],
        fill: Option<Fill>,
    ) -> Result<Vec<Option<Record>>, store::Error> {
        let (flight, seats) = self
            .flights
            .board(keys, self.lacks(Sabotage::JoinAnyFlight));
        let mut records = if flight.keys().is_empty() {
            HashMap::new()
        } else {
            let found = self.fly(&flight, fill).await;
            flight.land(&found);
            flight.keys().iter().cloned().zip(found?).collect()
        };
        drop(flight);
        let mut left = Vec::new();
        for (key, seat) in keys.iter().zip(seats) {
            let Some(seat) = seat else { continue };
            match seat.arrive().await {
                Some(record) => {
                    records.insert(key.clone(), record?);
                }
                None => left.push(key.clone()),
            }
        }
        let found = if left.is_empty() {
            Vec::new()
        } else {
            let _turn = self.turnstile.pass(left.len()).await?;
            self.store.read_strong(&left).await?
        };
        records.extend(left.into_iter().zip(found));
        let take = |key| records.get_mut(key).and_then(Option::take);
        Ok(keys.iter().map(take).collect())
    }

    /// Reads the table, once the leases are in place or known not to be:
    /// overlapping the two would let a fill outlive a write.
    async fn fly(
        &self,
        flight: &Flight,
        fill: Option<Fill>,
    ) -> Result<Vec<Option<Record>>, store::Error> {
        // Before departure: whoever comes while this waits may join.
        let _turn = self.turnstile.pass(flight.keys().len()).await?;
        let lease = async {
            match &fill {
                Some(fill) => self.lease(flight.keys(), fill).await,
                None => HashMap::new(),
            }
        };
        let read = async {
            flight.depart().await;
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
            self.fill_in_background(fill.space, fills.collect(), read_time);
        }
        Ok(found)
    }

    /// What the cache says; `false` if it is not asked. A read of more keys than are
    /// looked up at once takes several looks of about the same size, one after the
    /// other; once the cache does not answer it is not asked for the rest, and
    /// nothing is filled.
    async fn look<V: View>(&self, keys: &[Key], space: &Space, sight: &mut Sight<V>) -> bool {
        let looks = keys.len().div_ceil(cache::MAX_KEYS).max(1);
        let keys_per_look = keys.len().div_ceil(looks).max(1);
        for (look, keys) in keys.chunks(keys_per_look).enumerate() {
            let first = look * keys_per_look;
            let (cache_keys, found) = match self.ask(keys, space, &mut sight.deadline).await {
                Ok(answer) => answer,
                Err(Unanswered::NotAsked) if look == 0 => return false,
                Err(unanswered) => {
                    if unanswered == Unanswered::Failed {
                        sight.counts.failed += keys.len() as u64;
                    }
                    sight.unknown.extend(first..sight.records.len());
                    sight.missed.clear();
                    break;
                }
            };
            let mut found = found.into_iter();
            let now = self.now();
            for (place, (key, cache_key)) in (first..).zip(keys.iter().zip(cache_keys.iter())) {
                consume_budget().await;
                match found.next() {
                    Some(Found::Hit(bytes)) => match self.judge(&bytes, cache_key, key, now) {
                        Ok(record) => {
                            sight.counts.hit += 1;
                            sight.records[place] = record;
                            continue;
                        }
                        Err(Unusable) => sight.counts.unusable += 1,
                    },
                    Some(Found::Miss) => {
                        sight.counts.miss += 1;
                        if sight.missed.len() < MAX_LEASES_PER_READ {
                            sight.missed.insert(key.clone());
                        }
                    }
                    Some(Found::Unknown) | None => sight.counts.failed += 1,
                }
                sight.unknown.push(place);
            }
        }
        sight.tell();
        true
    }

    /// Asks the cache, unless it is known not to answer. Says until when what follows
    /// may wait for it.
    async fn ask(
        &self,
        keys: &[Key],
        space: &Space,
        wait_until: &mut Option<Instant>,
    ) -> Result<(Keys, Vec<Found>), Unanswered> {
        let turn = if cache::is_long(keys.len()) {
            // Large, and rarely needed.
            Some(Box::pin(self.turn(space)).await?)
        } else {
            None
        };
        let breaker = self.breakers.of(keys.len());
        let ask = breaker.ask();
        if ask == Ask::Not {
            return Err(Unanswered::NotAsked);
        }
        let deadline = Instant::now() + self.settings.cache_read_timeout;
        *wait_until = Some(deadline);
        let cache_keys = space.keys(keys);
        let found = timeout_at(deadline, self.cache.get(&cache_keys)).await;
        drop(turn);
        match found {
            Ok(Ok(found)) => {
                breaker.succeeded();
                return Ok((cache_keys, found));
            }
            Ok(Err(error)) => breaker.failed(ask, &error),
            Err(_) => breaker.failed(ask, &"no answer in time"),
        }
        Err(Unanswered::Failed)
    }

    /// Waits for a long look-up's turn: few at once, so that neither the cache nor this
    /// process is busy with them alone. Waiting for others says nothing of the cache.
    async fn turn(&self, space: &Space) -> Result<impl Sized + use<'_>, Unanswered> {
        let turn = timeout(PATIENCE, self.long_looks.acquire()).await;
        let turn = turn.map_err(|_| Unanswered::NotAsked)?;
        if self.generations.in_use().as_ref() == Some(space) {
            Ok(turn)
        } else {
            Err(Unanswered::NotAsked)
        }
    }

    /// What an entry says, if it is to be believed.
    fn judge<V: View>(
        &self,
        bytes: &[u8],
        cache_key: &[u8],
        key: &Key,
        now: Timestamp,
    ) -> Result<Option<V>, Unusable> {
        let (record, read_time) = V::told(bytes, cache_key, key).ok_or(Unusable)?;
        let age_ms = now.0.saturating_sub(read_time.0);
        let age = Duration::from_millis(u64::try_from(age_ms).unwrap_or(0));
        if age <= self.max_age(key, record.is_some()) {
            Ok(record)
        } else {
            Err(Unusable)
        }
    }

    /// Tries to take a lease for each missed key; returns those taken, as stored.
    async fn lease(&self, keys: &[Key], fill: &Fill) -> HashMap<Key, Vec<u8>> {
        let missed = keys.iter().filter(|key| fill.missed.contains(key));
        let leases = missed.map(|key| async move {
            let cache_key = fill.space.key(key);
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

    /// Replaces each lease, if it is still there, by what the table said.
    fn fill_in_background(
        &self,
        space: Space,
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
                    let (coherence, space) = (&coherence, &space);
                    async move {
                        coherence
                            .replace(space, &key, &lease, record, read_time)
                            .await;
                    }
                })
                .await;
        });
    }

    /// Replaces `expected`, a lease or a fence of our own, by a record. Failing
    /// is harmless: the entry expires, and the next reader fills.
    pub(super) async fn replace(
        &self,
        space: &Space,
        key: &Key,
        expected: &[u8],
        record: Option<Record>,
        read_time: Timestamp,
    ) {
        let cache_key = space.key(key);
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
