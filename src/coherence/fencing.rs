//! Fencing: raises the barrier of a write, before its commit and again before its
//! acknowledgement. The barrier is a fence on each key in the cache, or the certainty that no
//! replica uses the cache; and a fence in the near cache of each replica.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::try_join;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{
    Entry, Tag, Timing,
    entries::EntryCache,
    fence_writer::{CacheFences, FenceWriter},
    generation_switch::{GenerationSwitch, Phase},
    replica_fencing::{ReplicaFences, ReplicaFencing},
};
use crate::{
    cache::{self, Found},
    domain::{Key, Record, Timestamp},
    peer,
    store::{self, StateAfter},
};

/// Pause between reads of a switch that cannot be read.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The write barrier. While it stands, a record that was read before the barrier was raised is
/// neither filled into a cache nor served from one.
pub(super) struct Barrier {
    /// In the cache.
    pub(super) cache: CacheBarrier,
    /// In the near caches.
    pub(super) replicas: ReplicaFences,
}

/// The part of the barrier in the cache.
#[derive(Debug)]
pub(super) enum CacheBarrier {
    /// A fence on each key.
    Fences(CacheFences),
    /// No replica uses the cache, since this time at the latest.
    Unused(Instant),
}

impl CacheBarrier {
    /// The fences, if the cache is in use.
    pub(super) fn fences(&self) -> Option<&CacheFences> {
        match self {
            Self::Fences(fences) => Some(fences),
            Self::Unused(_) => None,
        }
    }

    /// Time since the start of its validity. No fence of it expires earlier than
    /// [`Timing::fence_ttl`] after that.
    fn age(&self) -> Duration {
        match self {
            Self::Fences(fences) => fences.since.elapsed(),
            Self::Unused(since) => since.elapsed(),
        }
    }
}

impl Barrier {
    /// Time since the start of its validity.
    pub(super) fn age(&self) -> Duration {
        self.cache.age().max(self.replicas.age())
    }
}

/// The entry of a key, compared with the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cached {
    /// The same state, or no entry. A fill after this comparison reads the table anew.
    Agrees,
    /// Another state of the record.
    Contradicts,
    /// A fence.
    Fenced,
    /// A lease, which may be filled with another state; or no response.
    Unknown,
}

/// Reason why a barrier was not raised.
#[derive(Debug)]
pub(super) enum BarrierError {
    /// The cache could be neither fenced nor taken out of use in time, or a replica could be neither
    /// fenced nor evicted.
    NotRaised,
    /// The switch or the directory could not be read or changed.
    Store(store::Error),
}

/// Raises barriers.
pub struct Fencing {
    generation_switch: Arc<GenerationSwitch>,
    entries: Arc<EntryCache>,
    fences: FenceWriter,
    replicas: Arc<ReplicaFencing>,
    timing: Timing,
}

impl Fencing {
    pub(super) fn new(
        entries: Arc<EntryCache>,
        generation_switch: Arc<GenerationSwitch>,
        replicas: Arc<ReplicaFencing>,
        timing: Timing,
    ) -> Self {
        Self {
            fences: FenceWriter::new(entries.clone(), timing),
            generation_switch,
            entries,
            replicas,
            timing,
        }
    }

    /// Ensures that no read returns these records from what the cache and the near caches hold now.
    /// `false` if that was not possible by the deadline.
    pub async fn invalidate(&self, keys: &[Key], deadline: Instant) -> bool {
        self.invalidate_cache(keys, deadline).await && self.invalidate_memory(keys, deadline).await
    }

    /// Ensures that no read returns these records from entries that the cache holds now. `false` if
    /// that was not possible by the deadline.
    pub async fn invalidate_cache(&self, keys: &[Key], deadline: Instant) -> bool {
        self.confirm_in_cache(keys, None, deadline).await.is_some()
    }

    /// Ensures that no read returns these records from what the near caches hold now. `false` if
    /// that was not possible by the deadline.
    pub async fn invalidate_memory(&self, keys: &[Key], deadline: Instant) -> bool {
        for keys in keys.chunks(peer::MAX_KEYS) {
            let mut fences = self.replicas.begin_removal(keys);
            if !self.fence_until(&mut fences, Duration::MAX, deadline).await {
                return false;
            }
        }
        true
    }

    /// The greatest age of an entry of `key` that a read accepts.
    #[must_use]
    pub fn max_age(&self, key: &Key) -> Duration {
        let ages = [true, false].map(|is_present| {
            let near_ttl = self.entries.near_ttl(key, is_present);
            self.entries.max_age(key, is_present).max(near_ttl)
        });
        ages.into_iter().max().unwrap_or_default()
    }

    /// The present time, for the read times of entries.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.entries.now()
    }

    /// Replaces the confirming fences by the written records, see [`FenceWriter::publish`].
    pub(super) async fn publish(
        &self,
        records: Vec<Record>,
        fences: CacheFences,
        read_time: Timestamp,
    ) {
        self.fences.publish(records, fences, read_time).await;
    }

    /// Raises the barrier of a write. If the write `may_publish`, the entries that its fences
    /// replace are read first.
    pub(super) async fn barrier(
        &self,
        keys: &[Key],
        may_publish: bool,
        deadline: Instant,
    ) -> Result<Barrier, BarrierError> {
        let mut replicas = self.replicas.begin_write(keys);
        let barrier = try_join(
            self.cache_barrier(keys, may_publish, None, deadline),
            self.fence_replicas(&mut replicas),
        );
        let (cache, ()) = in_time(deadline, barrier).await?;
        Ok(Barrier { cache, replicas })
    }

    /// Raises a barrier of this write anew.
    pub(super) async fn renew(
        &self,
        barrier: &mut Barrier,
        keys: &[Key],
        deadline: Instant,
    ) -> Result<(), BarrierError> {
        let own = barrier.cache.fences();
        let renewed = try_join(
            self.cache_barrier(keys, false, own, deadline),
            self.fence_replicas(&mut barrier.replicas),
        );
        let (cache, ()) = in_time(deadline, renewed).await?;
        barrier.cache = cache;
        Ok(())
    }

    async fn fence_replicas(&self, replicas: &mut ReplicaFences) -> Result<(), BarrierError> {
        let fenced = self.replicas.fence(replicas, self.timing.fence_max_age);
        fenced.await.map_err(BarrierError::Store)
    }

    /// Fences all keys in the cache, or waits until no replica uses it. `own` are fences of this
    /// write to renew.
    async fn cache_barrier(
        &self,
        keys: &[Key],
        may_publish: bool,
        own: Option<&CacheFences>,
        deadline: Instant,
    ) -> Result<CacheBarrier, BarrierError> {
        loop {
            let view = self.generation_switch.view().await;
            let view = view.map_err(BarrierError::Store)?;
            if view.phase() == Phase::Warm {
                let settled_at = self.generation_switch.settled_at(&view);
                if settled_at > deadline {
                    return Err(BarrierError::NotRaised);
                }
                sleep_until(settled_at).await;
                return Ok(CacheBarrier::Unused(Instant::now()));
            }
            let own = own.filter(|own| own.view.is_same(&view));
            let fenced = match own {
                Some(_) => self.fences.fence_again(&view, keys, own, "fence").await,
                None => self.fences.fence(&view, keys, may_publish).await,
            };
            if let Some(fences) = fenced {
                return Ok(CacheBarrier::Fences(fences));
            }
            let left = self.generation_switch.leave(&view).await;
            left.map_err(BarrierError::Store)?;
        }
    }

    /// Ensures that records that were read before this call are neither filled nor served
    /// afterwards. Fences all keys again in the cache, in the present generation, or waits until no replica uses it. Then
    /// ensures that every replica with a near cache holds a fence of this write. Retries until
    /// the deadline. `before` are the fences in the cache from before the commit.
    pub(super) async fn confirm(
        &self,
        keys: &[Key],
        before: Option<&CacheFences>,
        replicas: &mut ReplicaFences,
        deadline: Instant,
    ) -> Option<CacheBarrier> {
        let confirmed = self.confirm_in_cache(keys, before, deadline).await?;
        // Not earlier: a replica that has joined since may have installed an older record from
        // the cache.
        let max_age = self.timing.hold_max_age();
        let fenced = self.fence_until(replicas, max_age, deadline).await;
        fenced.then_some(confirmed)
    }

    /// Fences replicas, again and again while the directory cannot be read or changed. `false`: not
    /// by the deadline.
    async fn fence_until(
        &self,
        replicas: &mut ReplicaFences,
        max_age: Duration,
        deadline: Instant,
    ) -> bool {
        let fenced = async {
            while let Err(error) = self.replicas.fence(replicas, max_age).await {
                tracing::warn!(%error, "replicas cannot be fenced: the directory cannot be used");
                sleep(RETRY_PAUSE).await;
            }
        };
        timeout_at(deadline, fenced).await.is_ok()
    }

    async fn confirm_in_cache(
        &self,
        keys: &[Key],
        before: Option<&CacheFences>,
        deadline: Instant,
    ) -> Option<CacheBarrier> {
        let confirmed = async {
            loop {
                let Ok(view) = self.generation_switch.view().await else {
                    sleep(RETRY_PAUSE).await;
                    continue;
                };
                if view.phase() == Phase::Warm {
                    sleep_until(self.generation_switch.settled_at(&view)).await;
                    return CacheBarrier::Unused(Instant::now());
                }
                let own = before.filter(|before| before.view.is_same(&view));
                let fenced = self.fences.fence_again(&view, keys, own, "confirm").await;
                if let Some(fences) = fenced {
                    return CacheBarrier::Fences(fences);
                }
                if let Err(error) = self.generation_switch.leave(&view).await {
                    tracing::warn!(%error, "the cache cannot be taken out of use");
                }
            }
        };
        timeout_at(deadline, confirmed).await.ok()
    }

    /// Compares the entry of each key with its state in the table.
    pub async fn compare(&self, left: &HashMap<Key, StateAfter>) -> Vec<(Key, Cached)> {
        let keys: Vec<_> = left.keys().cloned().collect();
        let Some(namespace) = self.generation_switch.in_use() else {
            return keys.into_iter().map(|key| (key, Cached::Unknown)).collect();
        };
        let mut compared = Vec::with_capacity(keys.len());
        for keys in keys.chunks(cache::MAX_KEYS) {
            let cache_keys = namespace.keys(keys);
            self.entries.budget.compare(keys.len());
            let mut found = self.fences.look_up_to_fence(&cache_keys).await;
            compared.extend(keys.iter().zip(cache_keys.iter()).map(|(key, cache_key)| {
                let cached = match found.next() {
                    Some(Found::Miss) => return Cached::Agrees,
                    Some(Found::Hit(bytes)) => Entry::decode(&bytes, cache_key, key),
                    Some(Found::Unknown) | None => None,
                };
                let cached = match cached.map(|entry| entry.tag) {
                    Some(Tag::Present { record, .. }) => StateAfter::Record(record),
                    Some(Tag::Absent { .. }) => StateAfter::Nothing,
                    Some(Tag::Fence) => return Cached::Fenced,
                    Some(Tag::Lease) | None => return Cached::Unknown,
                };
                if left.get(key) == Some(&cached) {
                    Cached::Agrees
                } else {
                    Cached::Contradicts
                }
            }));
        }
        keys.into_iter().zip(compared).collect()
    }
}

async fn in_time<T>(
    deadline: Instant,
    barrier: impl Future<Output = Result<T, BarrierError>>,
) -> Result<T, BarrierError> {
    let raised = timeout_at(deadline, barrier).await;
    raised.unwrap_or(Err(BarrierError::NotRaised))
}
