//! Fences: in place on every key of a write before it commits, and again before
//! it is acknowledged; or the certainty that nobody uses the cache.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::{
    Coherence, Entry, Tag,
    generation_switch::{Phase, Space, View},
};
use crate::{
    backoff,
    cache::{self, Found},
    domain::{Key, Record, Timestamp},
    store::{self, Left},
    telemetry::CACHE_FENCES,
};

/// Greatest pause between attempts, and pause between looks at a table that fails.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// A fence in place.
#[derive(Debug)]
struct Fence {
    key: Key,
    /// What is stored.
    bytes: Vec<u8>,
    /// Whether no other writer of the key can be between its fence and its
    /// confirmation: this fence, and the ones it renewed, replaced no fence of
    /// others.
    is_alone: bool,
}

/// Fences in place on all keys of a write.
#[derive(Debug)]
pub(super) struct Fences {
    /// What the switch was when they were sent.
    view: View,
    placed: Vec<Fence>,
    /// When the first of them was sent: none expires earlier than
    /// [`super::Timing::fence_ttl`] after this.
    pub(super) since: Instant,
}

/// What keeps readers from answering from before a write.
#[derive(Debug)]
pub(super) enum Cover {
    /// Fences.
    Fences(Fences),
    /// Nobody uses the cache, at least since then.
    Unused(Instant),
}

impl Cover {
    /// The fences, if the cache is in use.
    pub(super) fn fences(&self) -> Option<&Fences> {
        match self {
            Self::Fences(fences) => Some(fences),
            Self::Unused(_) => None,
        }
    }

    /// Since when it is in place, at least.
    pub(super) fn since(&self) -> Instant {
        match self {
            Self::Fences(fences) => fences.since,
            Self::Unused(since) => *since,
        }
    }
}

/// What the cache holds of a key, beside what the table is known to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cached {
    /// The same, or nothing: whoever fills later reads the table later.
    Agrees,
    /// Something else.
    Contradicts,
    /// A fence.
    Fenced,
    /// A lease, under which something else may be filled; or it is not known.
    Unknown,
}

/// Why there is no cover.
#[derive(Debug)]
pub(super) enum Uncovered {
    /// The cache could not be fenced, and there was no time left to leave it.
    TooLate,
    /// The switch could not be read or moved.
    Store(store::Error),
}

impl Coherence {
    /// Fences all keys, or waits until nobody uses the cache. If the write
    /// `may_publish`, looks first at what the fences will replace; `own` are fences of
    /// the write that are to be renewed.
    pub(super) async fn cover(
        &self,
        keys: &[Key],
        may_publish: bool,
        own: Option<&Fences>,
        deadline: Instant,
    ) -> Result<Cover, Uncovered> {
        let covered = async {
            loop {
                let view = self.generations.view().await.map_err(Uncovered::Store)?;
                if view.phase == Phase::Warm {
                    let settled_at = self.generations.settled_at(&view);
                    if settled_at > deadline {
                        return Err(Uncovered::TooLate);
                    }
                    sleep_until(settled_at).await;
                    return Ok(Cover::Unused(Instant::now()));
                }
                let own = own.filter(|own| own.view.is_same(&view));
                let fenced = match own {
                    Some(_) => self.fence_again(&view, keys, own, "fence").await,
                    None => self.fence(&view, keys, may_publish).await,
                };
                if let Some(fences) = fenced {
                    return Ok(Cover::Fences(fences));
                }
                let left = self.generations.leave(&view).await;
                left.map_err(Uncovered::Store)?;
            }
        };
        let covered = timeout_at(deadline, covered).await;
        covered.unwrap_or(Err(Uncovered::TooLate))
    }

    /// Makes sure that nothing that was read before now can be filled or
    /// answered from now on: fences all keys again, in the generation that is in
    /// use by now, or waits until none is. Tries until the deadline; `before` is
    /// the write's cover from before its commit.
    pub(super) async fn confirm(
        &self,
        keys: &[Key],
        before: Option<&Fences>,
        deadline: Instant,
    ) -> Option<Cover> {
        let confirmed = async {
            loop {
                let Ok(view) = self.generations.view().await else {
                    sleep(RETRY_PAUSE).await;
                    continue;
                };
                if view.phase == Phase::Warm {
                    sleep_until(self.generations.settled_at(&view)).await;
                    return Cover::Unused(Instant::now());
                }
                let own = before.filter(|before| before.view.is_same(&view));
                let fenced = self.fence_again(&view, keys, own, "confirm").await;
                if let Some(fences) = fenced {
                    return Cover::Fences(fences);
                }
                if let Err(error) = self.generations.leave(&view).await {
                    tracing::warn!(%error, "the cache cannot be left");
                }
            }
        };
        let confirmed = timeout_at(deadline, confirmed).await.ok();
        // Not before: until then the cache may answer from before the write, and
        // a reader keeps that.
        self.recent.forget(keys);
        confirmed
    }

    /// Compares what the cache holds of each key with what the table was left
    /// with.
    pub(super) async fn compare(&self, left: &HashMap<Key, Left>) -> Vec<(Key, Cached)> {
        let keys: Vec<_> = left.keys().cloned().collect();
        let Some(space) = self.generations.in_use() else {
            return keys.into_iter().map(|key| (key, Cached::Unknown)).collect();
        };
        let mut compared = Vec::with_capacity(keys.len());
        for keys in keys.chunks(cache::MAX_KEYS) {
            let cache_keys = space.keys(keys);
            let found = timeout(
                self.settings.timing.fence_attempt,
                self.cache.get(&cache_keys),
            )
            .await;
            let mut found = found.into_iter().flatten().flatten();
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

    /// Replaces the confirming fences by what was written, so that the next
    /// read is a hit. Only where no other writer can be at work on the key: its
    /// fence must stand. And only in a generation that was in use all along:
    /// before that, there are writes that do not fence.
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
            let (coherence, space) = (&coherence, &view.space);
            join_all(records.into_iter().map(|record| {
                let key = record.key();
                let fence = placed
                    .iter()
                    .find(|fence| fence.key == key && fence.is_alone);
                async move {
                    if let Some(Fence { bytes, .. }) = fence {
                        coherence
                            .replace(space, &key, bytes, Some(record), read_time)
                            .await;
                    }
                }
            }))
            .await;
        });
    }

    /// Fences all keys; `None` if any fence could not be placed.
    async fn fence(&self, view: &View, keys: &[Key], may_publish: bool) -> Option<Fences> {
        let seen = if may_publish {
            self.peek(&view.space, keys).await
        } else {
            vec![Seen::Unknown; keys.len()]
        };
        self.fence_all(view, keys, seen, "fence").await
    }

    /// Fences all keys again; `None` if any fence could not be placed.
    async fn fence_again(
        &self,
        view: &View,
        keys: &[Key],
        own: Option<&Fences>,
        step: &'static str,
    ) -> Option<Fences> {
        let seen = keys.iter().map(|key| {
            let mut own = own.into_iter().flat_map(|own| &own.placed);
            own.find(|fence| fence.key == *key)
                .map_or(Seen::Unknown, |own| Seen::Own {
                    bytes: own.bytes.clone(),
                    is_alone: own.is_alone,
                })
        });
        self.fence_all(view, keys, seen.collect(), step).await
    }

    async fn fence_all(
        &self,
        view: &View,
        keys: &[Key],
        seen: Vec<Seen>,
        step: &'static str,
    ) -> Option<Fences> {
        let since = Instant::now();
        let placed = join_all(keys.iter().zip(seen).map(|(key, seen)| async move {
            let fence = match self.fence_over(&view.space, key, seen).await {
                Some(fence) => Some(fence),
                None => self.place_fence(&view.space, key).await,
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

    async fn peek(&self, space: &Space, keys: &[Key]) -> Vec<Seen> {
        let cache_keys = space.keys(keys);
        let found = timeout(
            self.settings.timing.fence_attempt,
            self.cache.get(&cache_keys),
        )
        .await;
        let mut found = found.into_iter().flatten().flatten();
        let seen = keys
            .iter()
            .zip(cache_keys.iter())
            .map(|(key, cache_key)| match found.next() {
                Some(Found::Miss) => Seen::Nothing,
                Some(Found::Hit(bytes)) => match Entry::decode(&bytes, cache_key, key) {
                    None
                    | Some(Entry {
                        tag: Tag::Fence, ..
                    }) => Seen::Unknown,
                    Some(_) => Seen::Entry(bytes),
                },
                Some(Found::Unknown) | None => Seen::Unknown,
            });
        seen.collect()
    }

    /// Replaces by a fence exactly what was seen, if it is still there and known
    /// not to be another writer's fence.
    async fn fence_over(&self, space: &Space, key: &Key, seen: Seen) -> Option<Fence> {
        let cache_key = space.key(key);
        let bytes = Entry::new(Tag::Fence).encode(&cache_key);
        let ttl = self.settings.timing.fence_ttl;
        let (expected, is_alone) = match seen {
            Seen::Unknown => return None,
            Seen::Nothing => (None, true),
            Seen::Entry(bytes) => (Some(bytes), true),
            Seen::Own { bytes, is_alone } => (Some(bytes.into()), is_alone),
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

    /// Places one fence, whatever is under the key. Each attempt has a nonce of
    /// its own, so that one that is late cannot make the next a no-op.
    async fn place_fence(&self, space: &Space, key: &Key) -> Option<Fence> {
        let cache_key = space.key(key);
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
                tracing::debug!("fence not placed: too slow");
                false
            }
        }
    }
}

/// What a fence is about to replace.
#[derive(Debug, Clone)]
enum Seen {
    /// Nothing.
    Nothing,
    /// An entry that is no fence.
    Entry(Bytes),
    /// The write's own fence.
    Own {
        /// As stored.
        bytes: Vec<u8>,
        /// See [`Fence::is_alone`].
        is_alone: bool,
    },
    /// Perhaps another writer's fence.
    Unknown,
}
