//! The local cache: records in the memory of this replica. It serves only reads whose
//! callers accept records of a bounded age.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use moka::sync::Cache;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::Projection;
use crate::domain::Key;

/// Greatest age of a record in the local cache.
pub const MAX_STALENESS: Duration = Duration::from_secs(60);
/// Capacity for each projection, in bytes. Beyond it, the least used records are evicted.
const MAX_BYTES: u64 = 32 * 1024 * 1024;
/// Approximate bytes of a record besides its encoding.
const OVERHEAD: usize = 512;
/// Number of write counters. A write of a key may prevent the insertion of keys with the same
/// counter.
const COUNTERS: usize = 256;

/// Records of one projection, by key.
#[derive(Debug)]
#[doc(hidden)]
pub struct LocalCache<V: Projection> {
    cached: Cache<Key, CachedRecord<V>>,
    /// Write counters, by a hash of the key. Locked while a record is inserted or removed, so that
    /// a record that was read before a write is not inserted after it.
    writes: Box<[Mutex<u64>]>,
    hashes: RandomState,
}

#[derive(Debug, Clone)]
struct CachedRecord<V> {
    record: Arc<Option<V>>,
    /// A time at which the table held this record.
    as_of: Instant,
}

/// The write counter of a key before it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Writes(u64);

impl<V: Projection> Default for LocalCache<V> {
    fn default() -> Self {
        let weigh = |_: &Key, cached: &CachedRecord<V>| {
            let record = cached.record.as_ref().as_ref();
            let bytes = OVERHEAD + record.map_or(0, Projection::bytes);
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        Self {
            cached: Cache::builder()
                .weigher(weigh)
                .max_capacity(MAX_BYTES)
                .time_to_live(MAX_STALENESS)
                .build(),
            writes: (0..COUNTERS).map(|_| Mutex::default()).collect(),
            hashes: RandomState::new(),
        }
    }
}

impl<V: Projection> LocalCache<V> {
    /// The record, unless it is older than `oldest`.
    pub(super) fn get(&self, key: &Key, oldest: Instant) -> Option<Arc<Option<V>>> {
        let cached = self.cached.get(key)?;
        (cached.as_of >= oldest).then_some(cached.record)
    }

    /// The write counter of a key. Get it before the read of a record to insert.
    pub(super) fn writes(&self, key: &Key) -> Writes {
        Writes(*self.counter(key))
    }

    /// Inserts the result of a read that began at `as_of`, unless the key was written
    /// since.
    pub(super) fn insert(&self, key: &Key, record: Option<V>, as_of: Instant, before: Writes) {
        let record = Arc::new(record);
        let writes = self.counter(key);
        if Writes(*writes) == before {
            self.cached
                .insert(key.clone(), CachedRecord { record, as_of });
        }
    }

    /// Removes written keys.
    pub(super) fn remove(&self, keys: &[Key]) {
        for key in keys {
            let mut writes = self.counter(key);
            *writes = writes.wrapping_add(1);
            self.cached.invalidate(key);
        }
    }

    fn counter(&self, key: &Key) -> MutexGuard<'_, u64> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a part of the hash suffices"
        )]
        let index = self.hashes.hash_one(key) as usize % self.writes.len();
        let counter = &self.writes[index];
        counter.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{CheckFacts, Username};

    fn key() -> Key {
        Key::User(Username::parse_new("olivia").unwrap())
    }

    #[test]
    fn older_records_than_requested_are_not_returned() {
        let (cache, key, now) = (LocalCache::<CheckFacts>::default(), key(), Instant::now());
        cache.insert(&key, None, now, cache.writes(&key));
        assert_eq!(cache.get(&key, now).as_deref(), Some(&None));
        assert_eq!(cache.get(&key, now + Duration::from_nanos(1)), None);
    }

    #[test]
    fn records_that_were_read_before_a_write_are_not_inserted_after_it() {
        let (cache, key, now) = (LocalCache::<CheckFacts>::default(), key(), Instant::now());
        let before = cache.writes(&key);
        cache.remove(std::slice::from_ref(&key));
        cache.insert(&key, None, now, before);
        assert_eq!(cache.get(&key, now), None);
        cache.insert(&key, None, now, cache.writes(&key));
        assert_eq!(cache.get(&key, now).as_deref(), Some(&None));
        cache.remove(std::slice::from_ref(&key));
        assert_eq!(cache.get(&key, now), None);
    }
}
