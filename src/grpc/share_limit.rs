//! A limit with a share for each holder: a bounded number of permits, of which each holder
//! gets at most its share.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use foldhash::fast::RandomState;
use parking_lot::{Mutex, MutexGuard};

/// A limit with a share for each holder.
#[derive(Debug)]
pub(super) struct ShareLimit<K> {
    total: usize,
    share: usize,
    held: Mutex<Holders<K>>,
}

#[derive(Debug)]
struct Holders<K> {
    count: usize,
    by_holder: HashMap<K, usize, RandomState>,
}

/// A permit, until it is dropped.
#[derive(Debug)]
pub(super) struct SharePermit<K: Eq + Hash> {
    share_limit: Arc<ShareLimit<K>>,
    holder: K,
}

impl<K: Eq + Hash + Clone> ShareLimit<K> {
    /// At most `total` permits, and at most `share` of them for one holder.
    pub(super) fn new(total: usize, share: usize) -> Arc<Self> {
        Arc::new(Self {
            total,
            share,
            held: Mutex::new(Holders {
                count: 0,
                by_holder: HashMap::default(),
            }),
        })
    }

    /// Returns a permit if the limit and the holder's share allow it now.
    pub(super) fn try_acquire(self: &Arc<Self>, holder: K) -> Option<SharePermit<K>> {
        let mut held = self.lock();
        let own = held.by_holder.get(&holder).copied().unwrap_or(0);
        if held.count >= self.total || own >= self.share {
            return None;
        }
        held.count += 1;
        held.by_holder.insert(holder.clone(), own + 1);
        Some(SharePermit {
            share_limit: self.clone(),
            holder,
        })
    }
}

impl<K> ShareLimit<K> {
    fn lock(&self) -> MutexGuard<'_, Holders<K>> {
        self.held.lock()
    }
}

impl<K: Eq + Hash> Drop for SharePermit<K> {
    fn drop(&mut self) {
        let mut held = self.share_limit.lock();
        held.count -= 1;
        if let Some(own) = held.by_holder.get_mut(&self.holder) {
            *own -= 1;
            if *own == 0 {
                held.by_holder.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_gets_its_share_and_all_holders_the_total() {
        let share_limit = ShareLimit::new(3, 2);
        let mut first: Vec<_> = (0..2)
            .map(|_| share_limit.try_acquire("a").unwrap())
            .collect();
        assert!(share_limit.try_acquire("a").is_none());
        let _second = share_limit.try_acquire("b").unwrap();
        assert!(share_limit.try_acquire("b").is_none());
        assert!(share_limit.try_acquire("c").is_none());
        first.pop();
        let third = share_limit.try_acquire("c");
        assert!(third.is_some());
        drop((first, third));
        assert_eq!(share_limit.lock().by_holder.len(), 1);
        assert_eq!(share_limit.lock().count, 1);
    }
}
