//! Changes that met others at a record take turns: within a replica, tries that
//! can only fail are not made.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, timeout_at},
};

use crate::domain::Key;

/// Queues. Records that share one wait for each other, which costs time and
/// nothing else.
const QUEUES: usize = 64;

/// A turn, if there is one; over when it is dropped.
pub(super) type Turn<'a> = Option<MutexGuard<'a, ()>>;

/// The queues of a replica.
pub(super) struct Turns([Mutex<()>; QUEUES]);

impl Default for Turns {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl Turns {
    /// Waits for a turn at this record, in the order of arrival; the turn ends
    /// when it is dropped. `None` if it did not come by the deadline.
    pub(super) async fn wait(&self, key: Option<&Key>, deadline: Instant) -> Turn<'_> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let queue = usize::try_from(hasher.finish() % QUEUES as u64).unwrap_or_default();
        timeout_at(deadline, self.0.get(queue)?.lock()).await.ok()
    }
}
