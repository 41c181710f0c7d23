//! Fences in Momento: their placement, renewal and replacement by a written record.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ConstantBuilder};
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Entry, Tag, Timing,
    entries::EntryCache,
    generation_switch::{Phase, SwitchView},
    namespace::Namespace,
};
use crate::{
    cache::{Found, SetCondition},
    domain::{Key, Record, Timestamp},
    telemetry::CACHE_FENCES,
};

/// Pauses between attempts to place a fence: 10 ms, and up to as much again by jitter.
const FENCE_PAUSES: ConstantBuilder = ConstantBuilder::new()
    .with_delay(Duration::from_millis(10))
    .without_max_times()
    .with_jitter();

/// A fence in the cache.
#[derive(Debug)]
struct CacheFence {
    key: Key,
    /// The entry as stored.
    bytes: Vec<u8>,
    /// Whether no other write of the key can be between its fence and its confirmation: this fence,
    /// and the fences that it renewed, replaced no fence of another write.
    excludes_other_writes: bool,
}

/// The fences of a write, one on each key.
#[derive(Debug)]
pub(super) struct CacheFences {
    /// The state of the switch when they were sent.
    pub(super) view: SwitchView,
    placed: Vec<CacheFence>,
    /// When the first fence was sent. Every fence lives at least [`super::Timing::fence_ttl`] from
    /// then.
    pub(super) since: Instant,
}

/// The entry that a fence replaces.
#[derive(Debug, Clone)]
enum Replaced {
    /// No entry.
    Nothing,
    /// An entry that is not a fence.
    Entry(Bytes),
    /// A fence of this write.
    Own {
        /// As stored.
        bytes: Vec<u8>,
        /// See [`CacheFence::excludes_other_writes`].
        excludes_other_writes: bool,
    },
    /// Possibly a fence of another write.
    Unknown,
}

/// Places fences.
pub(super) struct FenceWriter {
    entries: Arc<EntryCache>,
    timing: Timing,
}

impl FenceWriter {
    pub(super) fn new(entries: Arc<EntryCache>, timing: Timing) -> Self {
        Self { entries, timing }
    }

    /// Fences all keys. `None` if a fence could not be placed.
    pub(super) async fn fence(
        &self,
        view: &SwitchView,
        keys: &[Key],
        may_publish: bool,
    ) -> Option<CacheFences> {
        let replaced = if may_publish {
            self.peek(&view.namespace, keys).await
        } else {
            vec![Replaced::Unknown; keys.len()]
        };
        self.fence_all(view, keys, replaced, "fence").await
    }

    /// Fences all keys again. `None` if a fence could not be placed.
    pub(super) async fn fence_again(
        &self,
        view: &SwitchView,
        keys: &[Key],
        own: Option<&CacheFences>,
        step: &'static str,
    ) -> Option<CacheFences> {
        let replaced = keys.iter().map(|key| {
            let mut own = own.into_iter().flat_map(|own| &own.placed);
            own.find(|fence| fence.key == *key)
                .map_or(Replaced::Unknown, |own| Replaced::Own {
                    bytes: own.bytes.clone(),
                    excludes_other_writes: own.excludes_other_writes,
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
    ) -> Option<CacheFences> {
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
        Some(CacheFences {
            view: view.clone(),
            placed: placed.await.into_iter().collect::<Option<_>>()?,
            since,
        })
    }

    /// Looks keys up within [`Timing::fence_attempt`]. Returns nothing on a failure.
    pub(super) async fn look_up_to_fence(
        &self,
        cache_keys: &[String],
    ) -> impl Iterator<Item = Found> + use<> {
        let attempt = self.timing.fence_attempt;
        let found = timeout(attempt, self.entries.cache.get(cache_keys)).await;
        found.into_iter().flatten().flatten()
    }

    async fn peek(&self, namespace: &Namespace, keys: &[Key]) -> Vec<Replaced> {
        if !self.entries.budget.try_peek(keys.len()) {
            return vec![Replaced::Unknown; keys.len()];
        }
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

    /// Replaces exactly this entry by a fence. `None` if the entry has changed, or may be a fence
    /// of another write.
    async fn fence_over(
        &self,
        namespace: &Namespace,
        key: &Key,
        replaced: Replaced,
    ) -> Option<CacheFence> {
        let cache_key = namespace.key(key);
        let bytes = Entry::new(Tag::Fence).encode(&cache_key);
        let (condition, excludes_other_writes) = match &replaced {
            Replaced::Unknown => return None,
            Replaced::Nothing => (SetCondition::Absent, true),
            Replaced::Entry(bytes) => (SetCondition::Equals(bytes), true),
            Replaced::Own {
                bytes,
                excludes_other_writes,
            } => (SetCondition::Equals(bytes), *excludes_other_writes),
        };
        let is_stored = self.store_fence(condition, &cache_key, &bytes).await;
        is_stored.then(|| CacheFence {
            key: key.clone(),
            bytes,
            excludes_other_writes,
        })
    }

    /// Places a fence over any entry. Each attempt has its own nonce: if an attempt arrives late,
    /// the next one still differs from it.
    async fn place_fence(&self, namespace: &Namespace, key: &Key) -> Option<CacheFence> {
        let cache_key = namespace.key(key);
        let deadline = Instant::now() + self.timing.fence_patience;
        for pause in FENCE_PAUSES.build() {
            let bytes = Entry::new(Tag::Fence).encode(&cache_key);
            let condition = SetCondition::Differs;
            if self.store_fence(condition, &cache_key, &bytes).await {
                return Some(CacheFence {
                    key: key.clone(),
                    bytes,
                    excludes_other_writes: false,
                });
            }
            if Instant::now() >= deadline {
                break;
            }
            sleep(pause).await;
        }
        None
    }

    /// Returns whether the fence was stored.
    async fn store_fence(
        &self,
        condition: SetCondition<'_>,
        cache_key: &str,
        bytes: &[u8],
    ) -> bool {
        self.entries.budget.fence();
        let ttl = self.timing.fence_ttl;
        let stored = self.entries.cache.set_if(condition, cache_key, bytes, ttl);
        match timeout(self.timing.fence_attempt, stored).await {
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

    /// Replaces fences by the written records, so that the next read is a hit. Only if no other
    /// write of the key is running, because its fence must stay. And only in a generation that is
    /// in use: before that, some writes do not fence.
    pub(super) async fn publish(
        &self,
        records: Vec<Record>,
        fences: CacheFences,
        read_time: Timestamp,
    ) {
        let CacheFences { view, placed, .. } = fences;
        if view.phase() != Phase::On {
            return;
        }
        let namespace = &view.namespace;
        join_all(records.into_iter().map(|record| {
            let key = record.key();
            let fence = placed
                .iter()
                .find(|fence| fence.key == key && fence.excludes_other_writes);
            async move {
                if let Some(CacheFence { bytes, .. }) = fence
                    && self.entries.budget.try_publish()
                {
                    self.entries
                        .replace(namespace, &key, bytes, Some(record), read_time)
                        .await;
                }
            }
        }))
        .await;
    }
}
