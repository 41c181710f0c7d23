//! Fencing: raises the barrier of a write, before its commit and again before its
//! acknowledgement. The barrier is a fence on each key, or the certainty that no replica uses
//! the cache.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{
    Entry, Tag, Timing,
    entries::EntryCache,
    fence_writer::{FenceWriter, Fences},
    generation_switch::{GenerationSwitch, Phase},
    projection::LocalCaches,
};
use crate::{
    cache::{self, Found},
    domain::{Key, Record, Timestamp},
    store::{self, Left},
};

/// Pause between reads of a switch that cannot be read.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The write barrier. While it stands, no reader fills the cache with, and no replica serves from
/// the cache, a record that was read before the barrier was raised.
#[derive(Debug)]
pub(super) enum Barrier {
    /// A fence on each key.
    Fences(Fences),
    /// No replica uses the cache, since this time at the latest.
    Unused(Instant),
}

impl Barrier {
    /// The fences, if the cache is in use.
    pub(super) fn fences(&self) -> Option<&Fences> {
        match self {
            Self::Fences(fences) => Some(fences),
            Self::Unused(_) => None,
        }
    }

    /// The start of its validity. No fence of it expires earlier than
    /// [`Timing::fence_ttl`] after this.
    pub(super) fn since(&self) -> Instant {
        match self {
            Self::Fences(fences) => fences.since,
            Self::Unused(since) => *since,
        }
    }
}

/// The entry of a key, compared with the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cached {
    /// The same state, or no entry: a later fill reads the table later.
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
    /// The cache could be neither fenced nor taken out of use in time.
    NotRaised,
    /// The switch could not be read or moved.
    Store(store::Error),
}

/// Raises barriers.
pub struct Fencing {
    generation_switch: Arc<GenerationSwitch>,
    local_caches: Arc<LocalCaches>,
    entries: Arc<EntryCache>,
    fences: FenceWriter,
}

impl Fencing {
    pub(super) fn new(
        entries: Arc<EntryCache>,
        generation_switch: Arc<GenerationSwitch>,
        local_caches: Arc<LocalCaches>,
        timing: Timing,
    ) -> Self {
        Self {
            fences: FenceWriter::new(entries.clone(), timing),
            generation_switch,
            local_caches,
            entries,
        }
    }

    /// Ensures that no read returns these records from entries that the cache holds now.
    /// `false` if that was not possible by the deadline.
    pub async fn invalidate(&self, keys: &[Key], deadline: Instant) -> bool {
        self.confirm(keys, None, deadline).await.is_some()
    }

    /// The greatest age of an entry of `key` that a read accepts.
    #[must_use]
    pub fn max_age(&self, key: &Key) -> Duration {
        let ages = [true, false].map(|is_present| self.entries.max_age(key, is_present));
        ages.into_iter().max().unwrap_or_default()
    }

    /// The present time, for the read times of entries.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.entries.now()
    }

    /// Replaces the confirming fences by the written records, see [`FenceWriter::publish`].
    pub(super) async fn publish(&self, records: Vec<Record>, fences: Fences, read_time: Timestamp) {
        self.fences.publish(records, fences, read_time).await;
    }

    /// Fences all keys, or waits until no replica uses the cache. If the write `may_publish`, the
    /// entries that the fences replace are read first. `own` are fences of this write to renew.
    pub(super) async fn barrier(
        &self,
        keys: &[Key],
        may_publish: bool,
        own: Option<&Fences>,
        deadline: Instant,
    ) -> Result<Barrier, BarrierError> {
        let barrier = async {
            loop {
                let view = self
                    .generation_switch
                    .view()
                    .await
                    .map_err(BarrierError::Store)?;
                if view.phase == Phase::Warm {
                    let settled_at = self.generation_switch.settled_at(&view);
                    if settled_at > deadline {
                        return Err(BarrierError::NotRaised);
                    }
                    sleep_until(settled_at).await;
                    return Ok(Barrier::Unused(Instant::now()));
                }
                let own = own.filter(|own| own.view.is_same(&view));
                let fenced = match own {
                    Some(_) => self.fences.fence_again(&view, keys, own, "fence").await,
                    None => self.fences.fence(&view, keys, may_publish).await,
                };
                if let Some(fences) = fenced {
                    return Ok(Barrier::Fences(fences));
                }
                let left = self.generation_switch.leave(&view).await;
                left.map_err(BarrierError::Store)?;
            }
        };
        let barrier = timeout_at(deadline, barrier).await;
        barrier.unwrap_or(Err(BarrierError::NotRaised))
    }

    /// Ensures that from now on no record is filled or served that was read before. Fences all keys
    /// again, in the present generation, or waits until no replica uses the cache. Retries until
    /// the deadline. `before` are the fences from before the commit.
    pub(super) async fn confirm(
        &self,
        keys: &[Key],
        before: Option<&Fences>,
        deadline: Instant,
    ) -> Option<Barrier> {
        let confirmed = async {
            loop {
                let Ok(view) = self.generation_switch.view().await else {
                    sleep(RETRY_PAUSE).await;
                    continue;
                };
                if view.phase == Phase::Warm {
                    sleep_until(self.generation_switch.settled_at(&view)).await;
                    return Barrier::Unused(Instant::now());
                }
                let own = before.filter(|before| before.view.is_same(&view));
                let fenced = self.fences.fence_again(&view, keys, own, "confirm").await;
                if let Some(fences) = fenced {
                    return Barrier::Fences(fences);
                }
                if let Err(error) = self.generation_switch.leave(&view).await {
                    tracing::warn!(%error, "the cache cannot be taken out of use");
                }
            }
        };
        let confirmed = timeout_at(deadline, confirmed).await.ok();
        // Not earlier: until then the cache may serve a state from before the write, which a
        // reader would insert again.
        self.local_caches.remove(keys);
        confirmed
    }

    /// Compares the entry of each key with its state in the table.
    pub async fn compare(&self, left: &HashMap<Key, Left>) -> Vec<(Key, Cached)> {
        let keys: Vec<_> = left.keys().cloned().collect();
        let Some(namespace) = self.generation_switch.in_use() else {
            return keys.into_iter().map(|key| (key, Cached::Unknown)).collect();
        };
        let mut compared = Vec::with_capacity(keys.len());
        for keys in keys.chunks(cache::MAX_KEYS) {
            let cache_keys = namespace.keys(keys);
            let mut found = self.fences.look_up_to_fence(&cache_keys).await;
            compared.extend(keys.iter().zip(cache_keys.iter()).map(|(key, cache_key)| {
                let cached = match found.next() {
                    Some(Found::Miss) => return Cached::Agrees,
                    Some(Found::Hit(bytes)) => Entry::decode(&bytes, cache_key, key),
                    Some(Found::Unknown) | None => None,
                };
                let cached = match cached.map(|entry| entry.tag) {
                    Some(Tag::Present { record, .. }) => Left::Record(record),
                    Some(Tag::Absent { .. }) => Left::Nothing,
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
