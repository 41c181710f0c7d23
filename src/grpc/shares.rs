//! A bounded number of permits of which each holder may have only a share.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use foldhash::fast::RandomState;

/// Permits, and who holds them.
#[derive(Debug)]
pub(super) struct Shares<K> {
    total: usize,
    share: usize,
    held: Mutex<Held<K>>,
}

#[derive(Debug)]
struct Held<K> {
    count: usize,
    by_holder: HashMap<K, usize, RandomState>,
}

/// A permit; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Permit<K: Eq + Hash> {
    shares: Arc<Shares<K>>,
    holder: K,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// At most `total` permits, and at most `share` of them for one holder.
    pub(super) fn new(total: usize, share: usize) -> Arc<Self> {
        Arc::new(Self {
            total,
            share,
            held: Mutex::new(Held {
                count: 0,
                by_holder: HashMap::default(),
            }),
        })
    }

    /// A permit, if there is one for this holder now.
    pub(super) fn try_acquire(self: &Arc<Self>, holder: K) -> Option<Permit<K>> {
        let mut held = self.lock();
        let own = held.by_holder.get(&holder).copied().unwrap_or(0);
        if held.count >= self.total || own >= self.share {
            return None;
        }
        held.count += 1;
        held.by_holder.insert(holder.clone(), own + 1);
        Some(Permit {
            shares: self.clone(),
            holder,
        })
    }
}

impl<K> Shares<K> {
    fn lock(&self) -> MutexGuard<'_, Held<K>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut held = self.shares.lock();
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
        let shares = Shares::new(3, 2);
        let mut first: Vec<_> = (0..2).map(|_| shares.try_acquire("a").unwrap()).collect();
        assert!(shares.try_acquire("a").is_none());
        let _second = shares.try_acquire("b").unwrap();
        assert!(shares.try_acquire("b").is_none());
        assert!(shares.try_acquire("c").is_none());
        first.pop();
        let third = shares.try_acquire("c");
        assert!(third.is_some());
        drop((first, third));
        assert_eq!(shares.lock().by_holder.len(), 1);
        assert_eq!(shares.lock().count, 1);
    }
}
