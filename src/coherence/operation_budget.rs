//! The budget of Momento's operations: a token bucket. Without it, look-ups beyond Momento's quota
//! would be throttled, and with them the fences of writes. Fences always come first: they are never
//! delayed, and later look-ups wait for what they have used.

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::telemetry::{CACHE_OPERATIONS, CACHE_OPERATIONS_LACKED, CACHE_OPERATIONS_SHARE};

/// Operations that Momento counts for one item that is read consistently.
pub(super) const READ: u32 = 6;
/// Operations that Momento counts for one conditional write.
pub(super) const WRITE: u32 = 2;
/// Part of the operations of a second that the bucket holds, for bursts. Fences may overdraw it by as
/// much. The bucket is filled with the rest in a second, so that a second rarely has more than all.
const BURST: f64 = 0.25;
/// Fewest operations that a replica may use at once: a look-up of the records of a check, and a
/// lease.
const LEAST_BURST: f64 = 24.0;

/// A use of Momento.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    /// Reads of items.
    LookUp,
    /// Leases, and the fills that follow them.
    Fill,
    /// Fences, and the reads beside them.
    Fence,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::LookUp => "look_up",
            Self::Fill => "fill",
            Self::Fence => "fence",
        }
    }
}

/// This replica's share of the operations that Momento permits.
pub(super) struct OperationBudget {
    /// Operations a second of all replicas. `None`: unlimited.
    per_second: Option<u32>,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// Operations that may be used now. Negative: fences have used more.
    left: f64,
    filled: Instant,
    /// Replicas that share the operations.
    replicas: u32,
}

impl OperationBudget {
    /// A full bucket.
    pub(super) fn new(per_second: Option<u32>) -> Self {
        let full = f64::from(per_second.unwrap_or(0)) * BURST;
        Self {
            per_second,
            bucket: Mutex::new(Bucket {
                left: full,
                filled: Instant::now(),
                replicas: 1,
            }),
        }
    }

    /// Sets the number of replicas that share the operations.
    pub(super) fn share_among(&self, replicas: usize) {
        let replicas = u32::try_from(replicas).unwrap_or(u32::MAX).max(1);
        self.bucket.lock().replicas = replicas;
        let share = f64::from(self.per_second.unwrap_or(0)) / f64::from(replicas);
        metrics::gauge!(CACHE_OPERATIONS_SHARE).set(share);
    }

    /// Takes the operations of a look-up of this many items. `false`: there are too few left.
    pub(super) fn try_look_up(&self, items: usize) -> bool {
        self.try_take(Operation::LookUp, cost(items, READ))
    }

    /// Takes the operations of a lease and its fill. `false`: there are too few left.
    pub(super) fn try_fill(&self) -> bool {
        self.try_take(Operation::Fill, 2 * WRITE)
    }

    /// Takes the operation that replaces a fence by a record. `false`: there are too few left.
    pub(super) fn try_publish(&self) -> bool {
        self.try_take(Operation::Fill, WRITE)
    }

    /// Takes the operations of reads beside fences. `false`: there are too few left.
    pub(super) fn try_peek(&self, items: usize) -> bool {
        self.try_take(Operation::Fence, cost(items, READ))
    }

    /// Takes the operations of reads that a write needs.
    pub(super) fn compare(&self, items: usize) {
        self.take(Operation::Fence, cost(items, READ), |_| true);
    }

    /// Takes the operations of an attempt to place a fence.
    pub(super) fn fence(&self) {
        self.take(Operation::Fence, WRITE, |_| true);
    }

    fn try_take(&self, operation: Operation, count: u32) -> bool {
        let is_taken = self.take(operation, count, |left| left >= f64::from(count));
        if !is_taken {
            let name = operation.as_str();
            metrics::counter!(CACHE_OPERATIONS_LACKED, "use" => name).increment(count.into());
        }
        is_taken
    }

    fn take(&self, operation: Operation, count: u32, may: impl Fn(f64) -> bool) -> bool {
        if let Some(per_second) = self.per_second {
            let mut bucket = self.bucket.lock();
            bucket.fill(per_second);
            if !may(bucket.left) {
                return false;
            }
            bucket.left -= f64::from(count);
        }
        metrics::counter!(CACHE_OPERATIONS, "use" => operation.as_str()).increment(count.into());
        true
    }
}

impl Bucket {
    fn fill(&mut self, per_second: u32) {
        let now = Instant::now();
        let share = f64::from(per_second) / f64::from(self.replicas);
        let most = (share * BURST).max(LEAST_BURST);
        let passed = now.duration_since(self.filled).as_secs_f64();
        self.left = (self.left + passed * share * (1.0 - BURST)).clamp(-most, most);
        self.filled = now;
    }
}

fn cost(items: usize, each: u32) -> u32 {
    u32::try_from(items)
        .unwrap_or(u32::MAX)
        .saturating_mul(each)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn look_ups_use_at_most_the_share_of_a_second() {
        let budget = OperationBudget::new(Some(480));
        budget.share_among(2);
        sleep(SECOND * 10).await;
        let look_ups =
            |budget: &OperationBudget| (0..100).take_while(|_| budget.try_look_up(1)).count();
        // Of 240 operations, 60 at once, and 180 in the second after that.
        assert_eq!(look_ups(&budget), 10);
        sleep(SECOND / 6).await;
        assert_eq!(look_ups(&budget), 5);
        sleep(SECOND).await;
        assert_eq!(look_ups(&budget), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn fences_are_never_delayed_and_look_ups_wait_for_what_they_have_used() {
        let budget = OperationBudget::new(Some(240));
        for _ in 0..240 {
            budget.fence();
        }
        assert!(!budget.try_look_up(1));
        // The operations of the burst are owed: 60.
        sleep(SECOND / 3).await;
        assert!(!budget.try_look_up(1));
        sleep(SECOND / 12).await;
        assert!(budget.try_look_up(1));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_is_refused() {
        let budget = OperationBudget::new(None);
        assert!((0..1000).all(|_| budget.try_look_up(300) && budget.try_fill()));
    }
}
