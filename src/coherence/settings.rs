//! Settings of the coherent cache: times to live, limits, and the durations of the protocol's
//! steps.

use std::time::Duration;

use crate::{domain::Timestamp, peer::PeerAddress};

/// Durations of the protocol's steps. They depend on each other and on the store's
/// timeouts.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Time to live of a fence. A commit starts within [`Self::fence_max_age`] of its
    /// fences and ends within the store's operation timeout, well before a fence expires.
    pub fence_ttl: Duration,
    /// Greatest age of a fence when the commit starts.
    pub fence_max_age: Duration,
    /// Time to live of a lease.
    pub lease_ttl: Duration,
    /// Validity of a view of the generation switch and of the replica directory.
    pub view_ttl: Duration,
    /// Time for which a replica must have been listed before it serves from its near cache. At
    /// least [`Self::settle`] and [`Self::fence_ttl`]: every write that began with an older view
    /// of the directory has ended by then.
    pub join_wait: Duration,
    /// Pause before a replica that was evicted joins again. It doubles with each eviction, up to
    /// 5 minutes.
    pub rejoin_pause: Duration,
    /// Longest attempt to place a fence.
    pub fence_attempt: Duration,
    /// Time of retries of a fence. After it, the cache is taken out of use, or the replica is evicted.
    /// It outlasts a lost connection.
    pub fence_patience: Duration,
}

impl Timing {
    /// Time after which no replica acts on an older view of the switch: the validity of views, and
    /// a reserve because clocks run at different speeds.
    #[must_use]
    pub fn settle(&self) -> Duration {
        self.view_ttl * 9 / 8
    }

    /// Greatest age of a fence in a near cache when a write is acknowledged: its hold has not ended
    /// yet, although clocks run at different speeds.
    #[must_use]
    pub fn hold_max_age(&self) -> Duration {
        self.fence_ttl * 9 / 10
    }

    /// Interval of reading the switch and the directory.
    #[must_use]
    pub fn view_refresh(&self) -> Duration {
        self.view_ttl / 4
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            fence_ttl: Duration::from_secs(5),
            fence_max_age: Duration::from_secs(1),
            lease_ttl: Duration::from_secs(2),
            view_ttl: Duration::from_millis(1600),
            join_wait: Duration::from_millis(6800),
            rejoin_pause: Duration::from_secs(2),
            fence_attempt: Duration::from_millis(250),
            fence_patience: Duration::from_millis(500),
        }
    }
}

/// The settings of the coherent cache.
#[derive(Debug, Clone)]
pub struct CoherenceSettings {
    /// Longest look-up of up to [`crate::cache::MAX_KEYS`] keys. After it, the read goes to
    /// the table.
    pub cache_read_timeout: Duration,
    /// Failed look-ups in a row that open a circuit breaker.
    pub cache_failures: u32,
    /// Concurrent requests to the table for callers' reads. Writes do not count.
    pub table_reads_at_once: usize,
    /// Time to live of a membership in the cache.
    pub membership_ttl: Duration,
    /// Time to live of a user or an organization in the cache.
    pub profile_ttl: Duration,
    /// Time to live of the absence of a record in the cache.
    pub absent_ttl: Duration,
    /// Operations of Momento that all replicas together may use in a second. Fences may use more.
    /// `None`: unlimited.
    pub cache_operations_per_second: Option<u32>,
    /// Capacity of the near cache, in bytes.
    pub near_cache_bytes: u64,
    /// Time to live of a record in the near cache, and of the absence of one. It bounds how long
    /// reads show a record that was changed past the service. `None`: the same as in the cache, for
    /// tables whose stream is not followed.
    pub near_ttl: Option<Duration>,
    /// The address of this replica for its peers. `None`: its near cache serves only reads with a
    /// staleness bound.
    pub peer_address: Option<PeerAddress>,
    /// Durations of the protocol's steps.
    pub timing: Timing,
    /// The wall clock. Clocks of replicas may differ, so it only bounds the age of entries that the
    /// cache keeps beyond their time to live, and of changes in the stream that may be cached.
    pub wall_clock: fn() -> Timestamp,
}

impl Default for CoherenceSettings {
    fn default() -> Self {
        Self {
            cache_read_timeout: Duration::from_millis(50),
            cache_failures: 5,
            table_reads_at_once: 64,
            membership_ttl: Duration::from_secs(60),
            profile_ttl: Duration::from_secs(300),
            absent_ttl: Duration::from_secs(10),
            cache_operations_per_second: None,
            near_cache_bytes: 64 * 1024 * 1024,
            near_ttl: None,
            peer_address: None,
            timing: Timing::default(),
            wall_clock: Timestamp::now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_serves_from_memory_only_after_earlier_writes_have_ended() {
        let timing = Timing::default();
        assert!(timing.join_wait >= timing.settle() + timing.fence_ttl);
        assert!(timing.hold_max_age() < timing.fence_ttl);
    }
}
