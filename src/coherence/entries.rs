//! The entries of records in Momento: their times to live, and their replacement by reads and
//! writes.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    CoherenceSettings, Entry, Nonce, Tag, namespace::Namespace, operation_budget::OperationBudget,
};
use crate::{
    cache::{MomentoClient, SetCondition},
    domain::{Key, Record, Timestamp},
    telemetry::CACHE_FILLS,
};

/// The greatest accepted age of an entry is its longest time to live and this: the time between
/// the table read and the fill.
const AGE_SLACK: Duration = Duration::from_secs(1);
/// Variation of times to live, in percent either way, so that entries that were filled
/// together do not expire together.
const TTL_JITTER_PERCENT: u32 = 10;
/// Longest probe of the cache.
const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
/// Longest fill: well below the time to live of its lease.
const FILL_TIMEOUT: Duration = Duration::from_millis(500);

/// The entries of records, over the Momento client.
pub(super) struct EntryCache {
    pub(super) cache: MomentoClient,
    pub(super) budget: OperationBudget,
    settings: CoherenceSettings,
}

/// The state of a record, as the table held it.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    /// `None`: there was no such record.
    pub(super) record: Arc<Option<Record>>,
    /// Time since the table read, by the wall clock.
    pub(super) age: Duration,
}

impl Snapshot {
    /// A state that the table was just read in.
    pub(super) fn now(record: Option<Record>) -> Self {
        Self {
            record: Arc::new(record),
            age: Duration::ZERO,
        }
    }
}

/// The entry can be neither used nor filled: it is a lease or a fence, too old, or of another
/// format.
pub(super) struct Unusable;

impl EntryCache {
    pub(super) fn new(cache: MomentoClient, settings: CoherenceSettings) -> Self {
        Self {
            cache,
            budget: OperationBudget::new(settings.cache_operations_per_second),
            settings,
        }
    }

    /// The present time, for the read times of entries.
    pub(super) fn now(&self) -> Timestamp {
        (self.settings.wall_clock)()
    }

    /// The greatest accepted age of the entry of `key`, in case the cache keeps it beyond its time
    /// to live.
    pub(super) fn max_age(&self, key: &Key, is_present: bool) -> Duration {
        let longest_ttl = self.ttl(key, is_present) * (100 + TTL_JITTER_PERCENT) / 100;
        longest_ttl + AGE_SLACK
    }

    /// Time to live of a record in the near cache, from the table read on.
    pub(super) fn near_ttl(&self, key: &Key, is_present: bool) -> Duration {
        let same = || self.ttl(key, is_present);
        self.settings.near_ttl.unwrap_or_else(same)
    }

    /// Whether the cache stores a fence.
    pub(super) async fn probe(&self, namespace: &Namespace) -> bool {
        let key = namespace.probe_key();
        let fence = Entry::new(Tag::Fence).encode(&key);
        let stored = self
            .cache
            .set_if(SetCondition::Differs, &key, &fence, PROBE_TIMEOUT);
        matches!(timeout(PROBE_TIMEOUT, stored).await, Ok(Ok(true)))
    }

    /// Decodes the entry of `key` that was stored under `cache_key`, if it can be used.
    pub(super) fn decode(
        &self,
        bytes: &[u8],
        cache_key: &str,
        key: &Key,
        now: Timestamp,
    ) -> Result<Snapshot, Unusable> {
        let entry = Entry::decode(bytes, cache_key, key).ok_or(Unusable)?;
        let (record, read_time) = match entry.tag {
            Tag::Present { record, read_time } => (Some(record), read_time),
            Tag::Absent { read_time } => (None, read_time),
            Tag::Lease | Tag::Fence => return Err(Unusable),
        };
        let age_ms = now.0.saturating_sub(read_time.0);
        let age = Duration::from_millis(u64::try_from(age_ms).unwrap_or(0));
        if age <= self.max_age(key, record.is_some()) {
            Ok(Snapshot {
                record: Arc::new(record),
                age,
            })
        } else {
            Err(Unusable)
        }
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
        let condition = SetCondition::Equals(expected);
        let stored = self.cache.set_if(condition, &cache_key, &value, ttl);
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

    /// Time to live of the entry of `key`.
    pub(super) fn ttl(&self, key: &Key, is_present: bool) -> Duration {
        match (key, is_present) {
            (_, false) => self.settings.absent_ttl,
            (Key::Membership(..), true) => self.settings.membership_ttl,
            (Key::User(_) | Key::Organization(_), true) => self.settings.profile_ttl,
        }
    }
}

/// `ttl` with jitter drawn from the entry's own nonce.
fn jittered(ttl: Duration, nonce: Nonce) -> Duration {
    let share = u32::from(nonce.jitter()) * 2 * TTL_JITTER_PERCENT / u32::from(u8::MAX);
    ttl * (100 - TTL_JITTER_PERCENT + share) / 100
}
