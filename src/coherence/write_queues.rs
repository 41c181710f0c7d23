//! Queues for changes of contended records: within a replica, such changes are committed
//! one after the other, because concurrent commits can only fail.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, timeout_at},
};

use crate::domain::Key;

/// Number of queues. Records that share a queue wait for each other, which costs only time.
const QUEUES: usize = 64;

/// The head of a queue, if it was reached. Dropping it leaves the queue.
pub(super) type QueueHead<'a> = Option<MutexGuard<'a, ()>>;

/// The queues of a replica.
pub(super) struct WriteQueues([Mutex<()>; QUEUES]);

impl Default for WriteQueues {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl WriteQueues {
    /// Waits for the head of a record's queue, in the order of arrival. `None` if the
    /// deadline passes first.
    pub(super) async fn wait(&self, key: Option<&Key>, deadline: Instant) -> QueueHead<'_> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let queue = usize::try_from(hasher.finish() % QUEUES as u64).unwrap_or_default();
        timeout_at(deadline, self.0.get(queue)?.lock()).await.ok()
    }
}
