//! Projections: the parts of a record that a reader needs, the whole or the facts of a check.

use super::{
    Entry, Tag,
    entry::{decode_facts, encoded_len},
    local_cache::LocalCache,
};
use crate::domain::{CheckFacts, Key, Record, Timestamp};

/// The part of a record that a reader needs.
pub trait Projection: Clone + Send + Sync + 'static {
    /// The projection of a record.
    fn project(record: &Record) -> Self;

    /// Decodes the entry of `key` that was stored under `cache_key`: the projection, and the time
    /// of the table read. `None` if the entry cannot be used.
    #[doc(hidden)]
    fn decode(bytes: &[u8], cache_key: &[u8], key: &Key) -> Option<(Option<Self>, Timestamp)>;

    /// The local cache of this projection.
    #[doc(hidden)]
    fn local_cache(caches: &LocalCaches) -> &LocalCache<Self>;

    /// Approximate bytes on the heap.
    #[doc(hidden)]
    fn bytes(&self) -> usize;
}

/// The local caches of a replica, one for each projection.
#[derive(Debug, Default)]
pub struct LocalCaches {
    records: LocalCache<Record>,
    check_facts: LocalCache<CheckFacts>,
}

impl LocalCaches {
    /// Removes written keys.
    pub(super) fn remove(&self, keys: &[Key]) {
        self.records.remove(keys);
        self.check_facts.remove(keys);
    }
}

impl Projection for Record {
    fn project(record: &Record) -> Self {
        record.clone()
    }

    fn decode(bytes: &[u8], cache_key: &[u8], key: &Key) -> Option<(Option<Self>, Timestamp)> {
        match Entry::decode(bytes, cache_key, key)?.tag {
            Tag::Present { record, read_time } => Some((Some(record), read_time)),
            Tag::Absent { read_time } => Some((None, read_time)),
            Tag::Lease | Tag::Fence => None,
        }
    }

    fn local_cache(caches: &LocalCaches) -> &LocalCache<Self> {
        &caches.records
    }

    fn bytes(&self) -> usize {
        encoded_len(self)
    }
}

impl Projection for CheckFacts {
    fn project(record: &Record) -> Self {
        record.into()
    }

    fn decode(bytes: &[u8], cache_key: &[u8], key: &Key) -> Option<(Option<Self>, Timestamp)> {
        decode_facts(bytes, cache_key, key)
    }

    fn local_cache(caches: &LocalCaches) -> &LocalCache<Self> {
        &caches.check_facts
    }

    fn bytes(&self) -> usize {
        0
    }
}
