//! Spares reads the wait for a cache that does not answer: after some failures in
//! a row they go straight to the table, but for one now and then that tries.
//!
//! Reads only. A read that does not look into the cache costs a table read; a
//! write that did not fence would leave what it changed in the cache.

use std::{
    fmt,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::telemetry::{BREAKER_OPEN, READS_PAST_CACHE};

/// Pause before the first try; doubled after each that fails.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Greatest number of doublings: tries come at most 1.6 s apart.
const MAX_DOUBLINGS: u32 = 4;

/// Whether reads ask the cache.
pub(super) struct Breaker {
    /// Failures in a row after which they do not.
    threshold: u32,
    failures: AtomicU32,
    /// Tries in a row that failed.
    failed_tries: AtomicU32,
    began: Instant,
    /// When to try next, in milliseconds since the beginning.
    due: AtomicU64,
}

/// What a read does about the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// It asks the cache.
    Usual,
    /// It asks the cache to see whether it answers again.
    Try,
    /// It goes to the table.
    Not,
}

impl Breaker {
    pub(super) fn new(threshold: u32) -> Self {
        Self {
            threshold,
            failures: AtomicU32::new(0),
            failed_tries: AtomicU32::new(0),
            began: Instant::now(),
            due: AtomicU64::new(0),
        }
    }

    /// What the next read is to do.
    pub(super) fn ask(&self) -> Ask {
        if self.failures.load(Ordering::Relaxed) < self.threshold {
            return Ask::Usual;
        }
        let (now, due) = (self.now(), self.due.load(Ordering::Relaxed));
        if now >= due && self.postpone(due, now) {
            return Ask::Try;
        }
        metrics::counter!(READS_PAST_CACHE).increment(1);
        Ask::Not
    }

    /// The cache has answered.
    pub(super) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.failed_tries.store(0, Ordering::Relaxed);
        let failures = self.failures.swap(0, Ordering::Relaxed);
        if failures >= self.threshold {
            metrics::gauge!(BREAKER_OPEN).set(0);
        }
        if failures > 0 {
            tracing::info!("the cache answers again");
        }
    }

    /// The cache has not answered who asked like this. Logs when that begins and
    /// what follows from it, not each failure.
    pub(super) fn failed(&self, ask: Ask, error: &dyn fmt::Display) {
        if ask == Ask::Try {
            let doublings = self.failed_tries.load(Ordering::Relaxed);
            let doublings = (doublings + 1).min(MAX_DOUBLINGS);
            self.failed_tries.store(doublings, Ordering::Relaxed);
            self.postpone(self.due.load(Ordering::Relaxed), self.now());
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures == 1 {
            tracing::warn!(%error, "the cache fails; reads go to the table");
        }
        if failures == self.threshold {
            self.postpone(self.due.load(Ordering::Relaxed), self.now());
            metrics::gauge!(BREAKER_OPEN).set(1);
            tracing::warn!("the cache still fails; reads do not ask it for a while");
        }
    }

    /// Moves the next try to a pause from now; `false` if somebody else has.
    fn postpone(&self, due: u64, now: u64) -> bool {
        let pause = FIRST_PAUSE * 2_u32.pow(self.failed_tries.load(Ordering::Relaxed));
        let next = now.saturating_add(millis(pause));
        let exchange = self
            .due
            .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed);
        exchange.is_ok()
    }

    fn now(&self) -> u64 {
        millis(self.began.elapsed())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn open() -> Breaker {
        let breaker = Breaker::new(3);
        for _ in 0..3 {
            assert_eq!(breaker.ask(), Ask::Usual);
            breaker.failed(Ask::Usual, &"no answer");
        }
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_between_failures_keeps_it_closed() {
        let breaker = Breaker::new(3);
        for _ in 0..10 {
            breaker.failed(Ask::Usual, &"no answer");
            breaker.failed(Ask::Usual, &"no answer");
            breaker.succeeded();
        }
        assert_eq!(breaker.ask(), Ask::Usual);
    }

    #[tokio::test(start_paused = true)]
    async fn one_read_in_each_pause_tries_and_pauses_grow_to_their_bound() {
        let breaker = open();
        // Late failures of reads that were under way do not count.
        breaker.failed(Ask::Usual, &"no answer");
        for pause in [100, 200, 400, 800, 1600, 1600] {
            advance(Duration::from_millis(pause - 1)).await;
            assert_eq!(breaker.ask(), Ask::Not, "{pause}");
            advance(Duration::from_millis(1)).await;
            assert_eq!(breaker.ask(), Ask::Try, "{pause}");
            assert_eq!(breaker.ask(), Ask::Not, "{pause}");
            breaker.failed(Ask::Try, &"no answer");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_is_given_up_is_followed_by_another() {
        let breaker = open();
        for _ in 0..3 {
            advance(FIRST_PAUSE).await;
            assert_eq!(breaker.ask(), Ask::Try);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_succeeds_closes_it_and_forgets() {
        let breaker = open();
        advance(FIRST_PAUSE).await;
        breaker.failed(breaker.ask(), &"no answer");
        advance(FIRST_PAUSE * 2).await;
        assert_eq!(breaker.ask(), Ask::Try);
        breaker.succeeded();
        assert_eq!(breaker.ask(), Ask::Usual);
        for _ in 0..3 {
            breaker.failed(Ask::Usual, &"no answer");
        }
        advance(FIRST_PAUSE).await;
        assert_eq!(breaker.ask(), Ask::Try);
    }
}
