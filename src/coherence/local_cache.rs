//! What this replica saw lately: answers reads whose callers accept answers from
//! a while ago, and no others.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use moka::sync::Cache;
use tokio::time::Instant;

use super::View;
use crate::domain::Key;

/// What was seen is kept for so long, and never answers for longer.
pub const MAX_STALENESS: Duration = Duration::from_secs(60);
/// Room for each kind of view, in bytes; beyond it, what is used least goes first.
const MAX_BYTES: u64 = 32 * 1024 * 1024;
/// What a record takes besides what it takes in the cache, in bytes: roughly.
const OVERHEAD: usize = 512;
/// Counters of writes. Keys that share one only keep each other out sometimes.
const COUNTERS: usize = 256;

/// What was seen, by key.
#[derive(Debug)]
#[doc(hidden)]
pub struct Recent<V: View> {
    seen: Cache<Key, Seen<V>>,
    /// How often keys were written, by a hash of theirs. Locked while something is
    /// kept or forgotten, so that nothing is kept that was forgotten meanwhile.
    writes: Box<[Mutex<u64>]>,
    hashes: RandomState,
}

#[derive(Debug, Clone)]
struct Seen<V> {
    record: Arc<Option<V>>,
    /// A time at which the record was this.
    as_of: Instant,
}

/// How often a key had been written before it was looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Writes(u64);

impl<V: View> Default for Recent<V> {
    fn default() -> Self {
        let weigh = |_: &Key, seen: &Seen<V>| {
            let record = seen.record.as_ref().as_ref();
            let bytes = OVERHEAD + record.map_or(0, View::bytes);
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        Self {
            seen: Cache::builder()
                .weigher(weigh)
                .max_capacity(MAX_BYTES)
                .time_to_live(MAX_STALENESS)
                .build(),
            writes: (0..COUNTERS).map(|_| Mutex::default()).collect(),
            hashes: RandomState::new(),
        }
    }
}

impl<V: View> Recent<V> {
    /// The record as it was at some time since `oldest`.
    pub(super) fn get(&self, key: &Key, oldest: Instant) -> Option<Arc<Option<V>>> {
        let seen = self.seen.get(key)?;
        (seen.as_of >= oldest).then_some(seen.record)
    }

    /// To be asked before a record is looked up that is to be kept.
    pub(super) fn writes(&self, key: &Key) -> Writes {
        Writes(*self.counter(key))
    }

    /// Keeps what a look-up that began at `as_of` found, unless the key was
    /// written meanwhile.
    pub(super) fn keep(&self, key: &Key, record: Option<V>, as_of: Instant, before: Writes) {
        let record = Arc::new(record);
        let writes = self.counter(key);
        if Writes(*writes) == before {
            self.seen.insert(key.clone(), Seen { record, as_of });
        }
    }

    /// The keys are written: what was looked up before is no answer any more.
    pub(super) fn forget(&self, keys: &[Key]) {
        for key in keys {
            let mut writes = self.counter(key);
            *writes = writes.wrapping_add(1);
            self.seen.invalidate(key);
        }
    }

    fn counter(&self, key: &Key) -> MutexGuard<'_, u64> {
        #[expect(clippy::cast_possible_truncation, reason = "a part of it will do")]
        let place = self.hashes.hash_one(key) as usize % self.writes.len();
        let counter = &self.writes[place];
        counter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Gist, Username};

    fn key() -> Key {
        Key::User(Username::parse_new("olivia").unwrap())
    }

    #[test]
    fn what_is_older_than_asked_is_no_answer() {
        let (recent, key, now) = (Recent::<Gist>::default(), key(), Instant::now());
        recent.keep(&key, None, now, recent.writes(&key));
        assert_eq!(recent.get(&key, now).as_deref(), Some(&None));
        assert_eq!(recent.get(&key, now + Duration::from_nanos(1)), None);
    }

    #[test]
    fn what_was_looked_up_before_a_write_is_not_kept_after_it() {
        let (recent, key, now) = (Recent::<Gist>::default(), key(), Instant::now());
        let before = recent.writes(&key);
        recent.forget(std::slice::from_ref(&key));
        recent.keep(&key, None, now, before);
        assert_eq!(recent.get(&key, now), None);
        recent.keep(&key, None, now, recent.writes(&key));
        assert_eq!(recent.get(&key, now).as_deref(), Some(&None));
        recent.forget(std::slice::from_ref(&key));
        assert_eq!(recent.get(&key, now), None);
    }
}
