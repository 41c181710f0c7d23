//! Tests of the near cache: fences, holds and epochs.

use uuid::Uuid;

use super::*;
use crate::domain::Username;

const LIFE: Duration = Duration::from_secs(60);
const HOLD: Duration = Duration::from_secs(5);

struct Near {
    cache: NearCache,
    key: Key,
    now: Instant,
}

impl Near {
    fn new() -> Self {
        Self {
            cache: NearCache::new(&CoherenceSettings::default()),
            key: key("olivia"),
            now: Instant::now(),
        }
    }

    fn begin_read(&self) -> Ticket {
        let epoch = Some(Epoch(1));
        self.cache.begin_read(&self.key, epoch, self.now)
    }

    fn install(&self, ticket: Ticket) {
        let nothing = Arc::new(None);
        self.cache.install(&self.key, nothing, ticket, LIFE);
    }

    fn has(&self, required: Required) -> bool {
        let entry = self.cache.get(&self.key);
        entry.is_some_and(|entry| entry.meets(required, self.now))
    }

    fn is_coherent(&self) -> bool {
        self.is_coherent_in(Some(Epoch(1)))
    }

    fn is_coherent_in(&self, epoch: Option<Epoch>) -> bool {
        self.has(Required { epoch, since: None })
    }

    fn is_since(&self, since: Instant) -> bool {
        let since = Some(since);
        self.has(Required { epoch: None, since })
    }

    fn fence(&self, write: WriteId) {
        let keys = std::slice::from_ref(&self.key);
        self.cache.fence(keys, write, self.now + HOLD);
    }

    /// As a removal by the stream invalidator.
    fn fence_without_hold(&self) {
        let keys = std::slice::from_ref(&self.key);
        self.cache.fence(keys, WriteId(Uuid::nil()), self.now);
    }

    fn release(&self, write: WriteId) {
        self.cache.release(std::slice::from_ref(&self.key), write);
    }
}

fn key(name: &str) -> Key {
    Key::User(Username::parse_new(name).unwrap())
}

fn write() -> WriteId {
    WriteId(Uuid::new_v4())
}

#[test]
fn an_entry_is_coherent_in_its_epoch_until_it_expires() {
    let mut near = Near::new();
    near.install(near.begin_read());
    assert!(near.is_coherent());
    assert!(!near.is_coherent_in(Some(Epoch(2))));
    assert!(!near.is_coherent_in(None));
    near.now += LIFE;
    assert!(!near.is_coherent());
}

#[test]
fn an_entry_is_not_returned_to_reads_with_a_smaller_staleness_bound() {
    let near = Near::new();
    near.install(near.begin_read());
    assert!(near.is_since(near.now));
    assert!(!near.is_since(near.now + Duration::from_nanos(1)));
}

#[test]
fn a_read_that_was_sent_before_a_fence_is_not_installed_after_it() {
    let near = Near::new();
    let write = write();
    let before = near.begin_read();
    near.fence(write);
    near.release(write);
    near.install(before);
    assert!(!near.is_coherent());
    near.install(near.begin_read());
    assert!(near.is_coherent());
}

#[test]
fn a_read_that_was_sent_before_a_removal_is_not_installed_after_it() {
    let near = Near::new();
    let before = near.begin_read();
    near.fence_without_hold();
    near.install(before);
    assert!(!near.is_coherent());
}

#[test]
fn a_read_that_was_sent_under_a_hold_is_not_installed_after_it() {
    let near = Near::new();
    let (first, second) = (write(), write());
    near.fence(first);
    near.fence(second);
    near.release(first);
    let under_a_hold = near.begin_read();
    near.release(second);
    near.install(under_a_hold);
    assert!(!near.is_coherent());
    near.install(near.begin_read());
    assert!(near.is_coherent());
}

#[test]
fn a_hold_that_is_not_released_ends_by_time() {
    let mut near = Near::new();
    near.fence(write());
    assert!(near.begin_read().is_held);
    near.now += HOLD;
    assert!(!near.begin_read().is_held);
}

#[test]
fn beyond_the_greatest_number_of_holds_the_group_is_held() {
    let (mut group, now) = (Group::default(), Instant::now());
    for number in 0..=MAX_HOLDS {
        group.hold(&key(&format!("user-{number}")), write(), now + HOLD);
    }
    assert_eq!(group.holds.len(), MAX_HOLDS);
    assert!(group.holds(&key("another")));
    group.expire(now + HOLD);
    assert!(!group.holds(&key("another")));
}
