//! Fencing: raises the barrier of a write, before its commit and again before its
//! acknowledgement. The barrier is a fence on each key, or the certainty that no replica uses
//! the cache.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::{
    Coherence, Entry, Tag,
    generation_switch::{Phase, SwitchView},
    namespace::Namespace,
};
use crate::{
    backoff,
    cache::{self, Found},
    domain::{Key, Record, Timestamp},
    store::{self, Left},
    telemetry::CACHE_FENCES,
};

/// Longest pause between attempts to place a fence, and between reads of a switch that fails.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// A fence in the cache.
#[derive(Debug)]
struct Fence {
    key: Key,
    /// The entry as stored.
    bytes: Vec<u8>,
    /// Whether no other write of the key can be between its fence and its confirmation:
    /// neither this fence nor the ones that it renewed replaced a fence of another write.
    is_alone: bool,
}

/// The fences of a write, one on each key.
#[derive(Debug)]
pub(super) struct Fences {
    /// The state of the switch when they were sent.
    view: SwitchView,
    placed: Vec<Fence>,
    /// When the first of them was sent. None expires earlier than
    /// [`super::Timing::fence_ttl`] after that.
    pub(super) since: Instant,
}

/// The write barrier: no read returns a state from before the write while it stands.
#[derive(Debug)]
pub(super) enum Barrier {
    /// A fence on each key.
    Fences(Fences),
    /// No replica uses the cache, since then at the latest.
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

    /// Since when it stands, at the latest.
    pub(super) fn since(&self) -> Instant {
        match self {
            Self::Fences(fences) => fences.since,
            Self::Unused(since) => *since,
        }
    }
}

/// The entry of a key, compared with the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cached {
    /// The same, or none: a later fill reads the table later.
    Agrees,
    /// Something else.
    Contradicts,
    /// A fence.
    Fenced,
    /// A lease, under which something else may be filled; or no response.
    Unknown,
}

/// Reason why a barrier was not raised.
#[derive(Debug)]
pub(super) enum BarrierError {
    /// The cache could not be fenced, and there was no time left to leave it.
    TooLate,
    /// The switch could not be read or moved.
    Store(store::Error),
}

impl Coherence {
    /// Fences all keys, or waits until no replica uses the cache. If the write `may_publish`,
    /// reads first the entries that the fences replace. `own` are fences of this write to
    /// renew.
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
                        return Err(BarrierError::TooLate);
                    }
                    sleep_until(settled_at).await;
                    return Ok(Barrier::Unused(Instant::now()));
                }
                let own = own.filter(|own| own.view.is_same(&view));
                let fenced = match own {
                    Some(_) => self.fence_again(&view, keys, own, "fence").await,
                    None => self.fence(&view, keys, may_publish).await,
                };
                if let Some(fences) = fenced {
                    return Ok(Barrier::Fences(fences));
                }
                let left = self.generation_switch.leave(&view).await;
                left.map_err(BarrierError::Store)?;
            }
        };
        let barrier = timeout_at(deadline, barrier).await;
        barrier.unwrap_or(Err(BarrierError::TooLate))
    }

    /// Ensures that nothing which was read before now can be filled or served from now on.
    /// Fences all keys again, in the generation that is in use now, or waits until none is.
    /// Retries until the deadline. `before` are the fences from before the commit.
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
                let fenced = self.fence_again(&view, keys, own, "confirm").await;
                if let Some(fences) = fenced {
                    return Barrier::Fences(fences);
                }
                if let Err(error) = self.generation_switch.leave(&view).await {
                    tracing::warn!(%error, "the cache cannot be left");
                }
            }
        };
        let confirmed = timeout_at(deadline, confirmed).await.ok();
        // Not earlier: until then the cache may serve a state from before the write, which a
        // reader would insert again.
        self.local_caches.remove(keys);
        confirmed
    }

    /// Compares the entry of each key with what the table holds.
    pub(super) async fn compare(&self, left: &HashMap<Key, Left>) -> Vec<(Key, Cached)> {
        let keys: Vec<_> = left.keys().cloned().collect();
        let Some(namespace) = self.generation_switch.in_use() else {
            return keys.into_iter().map(|key| (key, Cached::Unknown)).collect();
        };
        let mut compared = Vec::with_capacity(keys.len());
        for keys in keys.chunks(cache::MAX_KEYS) {
            let cache_keys = namespace.keys(keys);
            let mut found = self.look_up_to_fence(&cache_keys).await;
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

    /// Replaces the confirming fences by the written records, so that the next read is a hit.
    /// Only if no other write of the key is running: its fence must stay. And only in a
    /// generation that was in use all along: before that, some writes do not fence.
    pub(super) fn publish_in_background(
        &self,
        records: Vec<Record>,
        fences: Fences,
        read_time: Timestamp,
    ) {
        let Fences { view, placed, .. } = fences;
        if records.is_empty() || view.phase != Phase::On || !self.has_room_in_background() {
            return;
        }
        let coherence = self.clone();
        self.background.spawn(async move {
            let (coherence, namespace) = (&coherence, &view.namespace);
            join_all(records.into_iter().map(|record| {
                let key = record.key();
                let fence = placed
                    .iter()
                    .find(|fence| fence.key == key && fence.is_alone);
                async move {
                    if let Some(Fence { bytes, .. }) = fence {
                        coherence
                            .replace(namespace, &key, bytes, Some(record), read_time)
                            .await;
                    }
                }
            }))
            .await;
        });
    }

    /// Fences all keys. `None` if a fence could not be placed.
    async fn fence(&self, view: &SwitchView, keys: &[Key], may_publish: bool) -> Option<Fences> {
        let replaced = if may_publish {
            self.peek(&view.namespace, keys).await
        } else {
            vec![Replaced::Unknown; keys.len()]
        };
        self.fence_all(view, keys, replaced, "fence").await
    }

    /// Fences all keys again. `None` if a fence could not be placed.
    async fn fence_again(
        &self,
        view: &SwitchView,
        keys: &[Key],
        own: Option<&Fences>,
        step: &'static str,
    ) -> Option<Fences> {
        let replaced = keys.iter().map(|key| {
            let mut own = own.into_iter().flat_map(|own| &own.placed);
            own.find(|fence| fence.key == *key)
                .map_or(Replaced::Unknown, |own| Replaced::Own {
                    bytes: own.bytes.clone(),
                    is_alone: own.is_alone,
                })
        });
        self.fence_all(view, keys, replaced.collect(), step).await
    }

    async fn fence_all(
        &self,
        view: &SwitchView,
        keys: &[Key],
        replaced: Vec<Replaced>,
        step: &'static str,
    ) -> Option<Fences> {
        let since = Instant::now();
        let placed = join_all(keys.iter().zip(replaced).map(|(key, replaced)| async move {
            let fence = match self.fence_over(&view.namespace, key, replaced).await {
                Some(fence) => Some(fence),
                None => self.place_fence(&view.namespace, key).await,
            };
            let result = if fence.is_some() { "placed" } else { "failed" };
            metrics::counter!(CACHE_FENCES, "step" => step, "result" => result).increment(1);
            fence
        }));
        Some(Fences {
            view: view.clone(),
            placed: placed.await.into_iter().collect::<Option<_>>()?,
            since,
        })
    }

    /// Looks keys up within the time of an attempt to fence. Nothing if that fails.
    async fn look_up_to_fence(
        &self,
        cache_keys: &cache::Keys,
    ) -> impl Iterator<Item = Found> + use<> {
        let attempt = self.settings.timing.fence_attempt;
        let found = timeout(attempt, self.cache.get(cache_keys)).await;
        found.into_iter().flatten().flatten()
    }

    async fn peek(&self, namespace: &Namespace, keys: &[Key]) -> Vec<Replaced> {
        let cache_keys = namespace.keys(keys);
        let mut found = self.look_up_to_fence(&cache_keys).await;
        let replaced =
            keys.iter()
                .zip(cache_keys.iter())
                .map(|(key, cache_key)| match found.next() {
                    Some(Found::Miss) => Replaced::Nothing,
                    Some(Found::Hit(bytes)) => match Entry::decode(&bytes, cache_key, key) {
                        None
                        | Some(Entry {
                            tag: Tag::Fence, ..
                        }) => Replaced::Unknown,
                        Some(_) => Replaced::Entry(bytes),
                    },
                    Some(Found::Unknown) | None => Replaced::Unknown,
                });
        replaced.collect()
    }

    /// Replaces exactly this entry by a fence, if it is still there and certainly no fence of
    /// another write.
    async fn fence_over(
        &self,
        namespace: &Namespace,
        key: &Key,
        replaced: Replaced,
    ) -> Option<Fence> {
        let cache_key = namespace.key(key);
        let bytes = Entry::new(Tag::Fence).encode(&cache_key);
        let ttl = self.settings.timing.fence_ttl;
        let (expected, is_alone) = match replaced {
            Replaced::Unknown => return None,
            Replaced::Nothing => (None, true),
            Replaced::Entry(bytes) => (Some(bytes), true),
            Replaced::Own { bytes, is_alone } => (Some(bytes.into()), is_alone),
        };
        let is_stored = match expected {
            None => {
                let stored = self.cache.set_if_absent(&cache_key, &bytes, ttl);
                self.is_fence_stored(stored).await
            }
            Some(expected) => {
                let stored = self.cache.set_if_equal(&cache_key, &bytes, &expected, ttl);
                self.is_fence_stored(stored).await
            }
        };
        is_stored.then(|| Fence {
            key: key.clone(),
            bytes,
            is_alone,
        })
    }

    /// Places a fence over any entry. Each attempt has its own nonce, so that a late attempt
    /// cannot turn the next one into a no-op.
    async fn place_fence(&self, namespace: &Namespace, key: &Key) -> Option<Fence> {
        let cache_key = namespace.key(key);
        let ttl = self.settings.timing.fence_ttl;
        let give_up = Instant::now() + self.settings.timing.fence_patience;
        loop {
            let bytes = Entry::new(Tag::Fence).encode(&cache_key);
            let stored = self.cache.set_if_not_equal(&cache_key, &bytes, ttl);
            if self.is_fence_stored(stored).await {
                return Some(Fence {
                    key: key.clone(),
                    bytes,
                    is_alone: false,
                });
            }
            if Instant::now() >= give_up {
                return None;
            }
            sleep(backoff::up_to(RETRY_PAUSE)).await;
        }
    }
}

impl Coherence {
    async fn is_fence_stored(
        &self,
        stored: impl Future<Output = Result<bool, cache::Error>>,
    ) -> bool {
        match timeout(self.settings.timing.fence_attempt, stored).await {
            Ok(Ok(is_stored)) => is_stored,
            Ok(Err(error)) => {
                tracing::debug!(%error, "fence not placed");
                false
            }
            Err(_) => {
                tracing::debug!("fence not placed: no response in time");
                false
            }
        }
    }
}

/// The entry that a fence replaces.
#[derive(Debug, Clone)]
enum Replaced {
    /// No entry.
    Nothing,
    /// An entry that is no fence.
    Entry(Bytes),
    /// A fence of this write.
    Own {
        /// As stored.
        bytes: Vec<u8>,
        /// See [`Fence::is_alone`].
        is_alone: bool,
    },
    /// Possibly a fence of another write.
    Unknown,
}
