//! What readers want to know of records: all, or the gist.

use super::{
    Entry, Tag,
    entry::{encoded_len, glance},
    local_cache::Recent,
};
use crate::domain::{Gist, Key, Record, Timestamp};

/// What a reader wants to know of a record.
pub trait View: Clone + Send + Sync + 'static {
    /// What there is to know of a record that was read.
    fn of(record: &Record) -> Self;

    /// What a cache entry about `key` says that was found under `cache_key`, and when
    /// that was read. `None` if it says nothing, or is not to be believed.
    #[doc(hidden)]
    fn told(bytes: &[u8], cache_key: &[u8], key: &Key) -> Option<(Option<Self>, Timestamp)>;

    /// Where what was seen lately is kept.
    #[doc(hidden)]
    fn recent(views: &RecentViews) -> &Recent<Self>;

    /// Bytes that it takes in memory, roughly, besides itself.
    #[doc(hidden)]
    fn bytes(&self) -> usize;
}

/// What was seen lately, by what was wanted of it.
#[derive(Debug, Default)]
pub struct RecentViews {
    records: Recent<Record>,
    gists: Recent<Gist>,
}

impl RecentViews {
    /// The keys are written: what was looked up before is no answer any more.
    pub(super) fn forget(&self, keys: &[Key]) {
        self.records.forget(keys);
        self.gists.forget(keys);
    }
}

impl View for Record {
    fn of(record: &Record) -> Self {
        record.clone()
    }

    fn told(bytes: &[u8], cache_key: &[u8], key: &Key) -> Option<(Option<Self>, Timestamp)> {
        match Entry::decode(bytes, cache_key, key)?.tag {
            Tag::Present { record, read_time } => Some((Some(record), read_time)),
            Tag::Absent { read_time } => Some((None, read_time)),
            Tag::Lease | Tag::Fence => None,
        }
    }

    fn recent(views: &RecentViews) -> &Recent<Self> {
        &views.records
    }

    fn bytes(&self) -> usize {
        encoded_len(self)
    }
}

impl View for Gist {
    fn of(record: &Record) -> Self {
        record.into()
    }

    fn told(bytes: &[u8], cache_key: &[u8], key: &Key) -> Option<(Option<Self>, Timestamp)> {
        glance(bytes, cache_key, key)
    }

    fn recent(views: &RecentViews) -> &Recent<Self> {
        &views.gists
    }

    fn bytes(&self) -> usize {
        0
    }
}
