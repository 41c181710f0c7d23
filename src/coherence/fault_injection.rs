//! Steps of the protocol that tests leave out, to see that the loss is noticed.
//! Without the feature `sabotage`, which nothing but those tests turns on, no
//! step can be left out.

use futures_util::future::join_all;

use super::{Coherence, Entry, Tag};
use crate::domain::{Key, Record};

#[cfg(all(feature = "sabotage", not(debug_assertions)))]
compile_error!("the feature `sabotage` breaks the service; it is for tests only");

/// A way to break the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Writes store what they wrote instead of confirming.
    PublishAfterCommit,
    /// Readers fill if there is nothing, without a lease.
    NoLease,
    /// Writes are acknowledged before they are confirmed.
    AcknowledgeBeforeConfirm,
    /// Readers join table reads that are under way.
    JoinAnyFlight,
    /// Writes that change nothing neither fence nor confirm.
    NoOpWithoutFence,
    /// Readers take the lease while they read the table.
    LeaseBesideRead,
}

impl Coherence {
    /// Whether this step of the protocol is left out.
    pub(super) fn lacks(&self, step: Sabotage) -> bool {
        cfg!(feature = "sabotage") && self.settings.sabotage == Some(step)
    }

    /// Stores what was written, whatever is there.
    pub(super) async fn publish_instead_of_confirming(&self, keys: &[Key], written: &[Record]) {
        let Some(namespace) = self.generation_switch.in_use() else {
            return;
        };
        let read_time = self.now();
        join_all(keys.iter().map(|key| {
            let record = written.iter().find(|record| record.key() == *key).cloned();
            let ttl = self.ttl(key, record.is_some());
            let cache_key = namespace.key(key);
            let entry = Entry::new(match record {
                Some(record) => Tag::Present { record, read_time },
                None => Tag::Absent { read_time },
            });
            async move {
                let value = entry.encode(&cache_key);
                let stored = self.cache.set_if_not_equal(&cache_key, &value, ttl);
                drop(stored.await);
            }
        }))
        .await;
    }
}
