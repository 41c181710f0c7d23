//! The items of a cache, each with its time to live, and the caches by name.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use moka::{
    Expiry,
    ops::compute::{CompResult, Op},
    sync::Cache,
};
use parking_lot::{Mutex, MutexGuard};
use tonic::{Status, metadata::MetadataValue};

/// Most bytes of items. Beyond it, the least used items are evicted.
const MAX_BYTES: u64 = 256 * 1024 * 1024;
/// Largest item, in bytes: Momento's default limit.
const MAX_ITEM_BYTES: usize = 1024 * 1024;

/// The items of one cache.
#[derive(Debug, Clone)]
pub(super) struct Items(Cache<Vec<u8>, CachedItem>);

#[derive(Debug, Clone)]
struct CachedItem {
    value: Arc<[u8]>,
    /// The previous value, and the time of its replacement.
    before: Option<(Arc<[u8]>, Instant)>,
    /// The time of expiry. `None`: later than the clock can represent.
    gone_at: Option<Instant>,
}

impl CachedItem {
    fn is_there(&self) -> bool {
        self.gone_at.is_none_or(|gone_at| Instant::now() < gone_at)
    }
}

/// The expiry of items in moka, which frees their memory. Look-ups compare `gone_at`
/// themselves.
struct ByItem;

impl Expiry<Vec<u8>, CachedItem> for ByItem {
    fn expire_after_create(
        &self,
        _: &Vec<u8>,
        item: &CachedItem,
        now: Instant,
    ) -> Option<Duration> {
        item.gone_at.map(|gone_at| gone_at.duration_since(now))
    }

    fn expire_after_update(
        &self,
        _: &Vec<u8>,
        item: &CachedItem,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        item.gone_at.map(|gone_at| gone_at.duration_since(now))
    }
}

impl Items {
    fn new() -> Self {
        let weigh = |key: &Vec<u8>, item: &CachedItem| {
            u32::try_from(key.len() + item.value.len()).unwrap_or(u32::MAX)
        };
        let items = Cache::builder()
            .max_capacity(MAX_BYTES)
            .weigher(weigh)
            .expire_after(ByItem)
            .build();
        Self(items)
    }

    /// The value under the key, or the previous value if it was replaced less than `lag` ago.
    pub(super) fn get(&self, key: &[u8], lag: Duration) -> Option<Vec<u8>> {
        let item = self.0.get(key).filter(CachedItem::is_there)?;
        let value = match &item.before {
            Some((before, until)) if until.elapsed() < lag => before,
            _ => &item.value,
        };
        Some(value.to_vec())
    }

    /// Stores the item if `condition` holds for the present value, as one step. Returns
    /// whether it was stored.
    pub(super) fn set_if(
        &self,
        key: Vec<u8>,
        value: Vec<u8>,
        ttl_milliseconds: u64,
        condition: impl Fn(Option<&[u8]>) -> bool,
    ) -> Result<bool, Status> {
        if ttl_milliseconds == 0 {
            return Err(Status::invalid_argument("the time to live must not be 0"));
        }
        if key.len() + value.len() > MAX_ITEM_BYTES {
            let mut status = Status::resource_exhausted("item size limit exceeded");
            let err = MetadataValue::from_static("item_size_limit_exceeded");
            status.metadata_mut().insert("err", err);
            return Err(status);
        }
        let now = Instant::now();
        let mut item = CachedItem {
            value: value.into(),
            before: None,
            gone_at: now.checked_add(Duration::from_millis(ttl_milliseconds)),
        };
        let done = self.0.entry(key).and_compute_with(|found| {
            let found = found
                .map(moka::Entry::into_value)
                .filter(CachedItem::is_there);
            if condition(found.as_ref().map(|item| &*item.value)) {
                item.before = found.map(|found| (found.value, now));
                Op::Put(item)
            } else {
                Op::Nop
            }
        });
        Ok(matches!(
            done,
            CompResult::Inserted(_) | CompResult::ReplacedWith(_)
        ))
    }

    pub(super) fn delete(&self, key: &[u8]) {
        self.0.invalidate(key);
    }

    pub(super) fn clear(&self) {
        self.0.invalidate_all();
    }
}

/// The caches by name.
#[derive(Debug, Clone, Default)]
pub(super) struct Caches(Arc<Mutex<BTreeMap<String, Items>>>);

impl Caches {
    fn by_name(&self) -> MutexGuard<'_, BTreeMap<String, Items>> {
        self.0.lock()
    }

    pub(super) fn get(&self, name: &str) -> Result<Items, Status> {
        let items = self.by_name().get(name).cloned();
        items.ok_or_else(|| Status::not_found("there is no cache of this name"))
    }

    pub(super) fn create(&self, name: String) -> Result<(), Status> {
        let mut caches = self.by_name();
        if caches.contains_key(&name) {
            return Err(Status::already_exists("there is a cache of this name"));
        }
        caches.insert(name, Items::new());
        Ok(())
    }

    pub(super) fn delete(&self, name: &str) -> Result<(), Status> {
        let deleted = self.by_name().remove(name);
        deleted
            .map(|_| ())
            .ok_or_else(|| Status::not_found("there is no cache of this name"))
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.by_name().keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn an_item_expires_after_its_time_to_live() {
        let items = Items::new();
        let set = |ttl| items.set_if(b"k".to_vec(), b"v".to_vec(), ttl, |found| found.is_none());
        assert!(set(30).unwrap());
        assert_eq!(items.get(b"k", NOW).as_deref(), Some(&b"v"[..]));
        assert!(!set(60_000).unwrap());
        std::thread::sleep(Duration::from_millis(31));
        assert_eq!(items.get(b"k", NOW), None);
        assert!(set(u64::MAX).unwrap());
        assert!(items.get(b"k", NOW).is_some());
    }

    #[test]
    fn a_stale_look_up_returns_the_previous_value() {
        let items = Items::new();
        let set = |value: &[u8]| items.set_if(b"k".to_vec(), value.to_vec(), 60_000, |_| true);
        set(b"old").unwrap();
        set(b"new").unwrap();
        let get = |lag| items.get(b"k", Duration::from_secs(lag)).unwrap();
        assert_eq!((get(60), get(0)), (b"old".to_vec(), b"new".to_vec()));
    }

    #[test]
    fn only_one_of_several_racing_conditional_sets_is_stored() {
        let items = Items::new();
        let stored = std::thread::scope(|scope| {
            let races: Vec<_> = (0..32_u8)
                .map(|value| {
                    let items = &items;
                    scope.spawn(move || {
                        items
                            .set_if(b"k".to_vec(), vec![value], 60_000, |found| found.is_none())
                            .unwrap()
                    })
                })
                .collect();
            races
                .into_iter()
                .filter_map(|race| race.join().ok())
                .filter(|is_stored| *is_stored)
                .count()
        });
        assert_eq!(stored, 1);
    }

    #[test]
    fn items_that_momento_rejects_are_rejected() {
        let items = Items::new();
        let set = |size, ttl| items.set_if(b"k".to_vec(), vec![0; size], ttl, |_| true);
        assert_eq!(set(1, 0).unwrap_err().code(), tonic::Code::InvalidArgument);
        let too_large = set(MAX_ITEM_BYTES, 1).unwrap_err();
        assert_eq!(too_large.code(), tonic::Code::ResourceExhausted);
    }
}
