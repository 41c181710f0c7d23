//! The tasks of the orphan clean-up, and its intervals.

use std::{collections::HashMap, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use crate::{
    domain::{ProfileName, Uid},
    store,
    telemetry::LEFTOVERS_SKIPPED,
};

/// Longest pause before a task is retried, as a multiple of the first one.
const MAX_RETRY_FACTOR: u32 = 64;

/// Intervals and rate of the clean-up.
#[derive(Debug, Clone, Copy)]
pub struct OrphanCleanupTiming {
    /// Pause between passes.
    pub poll: Duration,
    /// Longest time between two writes of the lease.
    pub beat: Duration,
    /// Time without a write after which another replica takes the lease.
    pub takeover: Duration,
    /// Time after a deletion within which indexes may miss orphans. Also the first pause
    /// before a task with skipped orphans is retried.
    pub settle: Duration,
    /// Time after a deletion within which other writers may add memberships of the deleted
    /// record, because they cached it. The tombstone stays for as long.
    pub retention: Duration,
    /// Most memberships removed in a second.
    pub rate: u32,
}

impl OrphanCleanupTiming {
    /// The default intervals, with this rate.
    #[must_use]
    pub fn with_rate(rate: u32) -> Self {
        Self {
            poll: Duration::from_secs(5),
            beat: Duration::from_secs(2),
            takeover: Duration::from_secs(10),
            settle: Duration::from_secs(60),
            // The tutorial's code caches a user for 30 minutes.
            retention: Duration::from_secs(3600),
            rate,
        }
    }

    /// The pauses before retries of a task.
    pub(super) fn retry_pauses(&self) -> ExponentialBackoff {
        ExponentialBuilder::new()
            .with_min_delay(self.settle)
            .with_max_delay(self.settle * MAX_RETRY_FACTOR)
            .without_max_times()
            .build()
    }
}

/// The tasks that this replica has read while it held the lease.
pub(super) type Tasks = HashMap<(ProfileName, Option<Uid>), Task>;

/// A task. Times are of this replica's own clock, because clocks of replicas may differ.
pub(super) struct Task {
    /// When the task was first read.
    pub(super) since: Instant,
    /// When the task was last read.
    pub(super) last_read: Instant,
    /// When the task is processed next.
    pub(super) due: Instant,
    /// The pauses before further retries.
    pub(super) pauses: ExponentialBackoff,
    /// Whether the tombstone was removed.
    pub(super) is_name_free: bool,
}

impl Task {
    pub(super) fn new(now: Instant, timing: &OrphanCleanupTiming) -> Self {
        Self {
            since: now,
            last_read: now,
            due: now,
            pauses: timing.retry_pauses(),
            is_name_free: false,
        }
    }
}

/// Orphans that could not be removed in one pass.
#[derive(Default)]
pub(super) struct Skipped {
    pub(super) count: u64,
    pub(super) first: Option<store::Error>,
}

impl Skipped {
    pub(super) fn one(&mut self, error: store::Error) {
        self.count += 1;
        self.first.get_or_insert(error);
    }

    pub(super) fn report(self) {
        metrics::counter!(LEFTOVERS_SKIPPED).increment(self.count);
        if let Some(error) = self.first {
            let count = self.count;
            tracing::warn!(count, %error, "the clean-up skipped orphans that it could not remove");
        }
    }
}
