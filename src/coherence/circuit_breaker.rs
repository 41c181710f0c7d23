//! Spares reads the wait for a cache that does not answer: after some failures in
//! a row they go straight to the table, but for one now and then that tries.
//!
//! Reads only. A read that does not look into the cache costs a table read; a
//! write that did not fence would leave what it changed in the cache.

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use metrics::gauge;
use tokio::time::Instant;

use crate::{
    cache,
    telemetry::{BREAKER_OPEN, READS_PAST_CACHE},
};

/// Pause before the first try; doubled after each that fails.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Greatest number of doublings: tries come at most 1.6 s apart.
const MAX_DOUBLINGS: u32 = 4;

/// One breaker for each kind of look-up: that long ones are not answered in time
/// does not keep short ones from being.
pub(super) struct Breakers {
    short: Breaker,
    long: Breaker,
}

impl Breakers {
    /// Each opens after so many failures in a row.
    pub(super) fn new(threshold: u32) -> Self {
        Self {
            short: Breaker::new("short", threshold),
            long: Breaker::new("long", threshold),
        }
    }

    /// The one for look-ups of so many keys.
    pub(super) fn of(&self, keys: usize) -> &Breaker {
        if cache::is_long(keys) {
            &self.long
        } else {
            &self.short
        }
    }
}

/// Whether reads of one kind ask the cache.
pub(super) struct Breaker {
    /// As metrics and logs call them.
    kind: &'static str,
    /// Failures in a row after which they do not.
    threshold: u32,
    /// Changed only while `tries` is held.
    failures: AtomicU32,
    tries: Mutex<Tries>,
}

/// When a breaker that is open tries.
struct Tries {
    /// Those in a row that failed.
    failed: u32,
    due: Instant,
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
    fn new(kind: &'static str, threshold: u32) -> Self {
        Self {
            kind,
            threshold,
            failures: AtomicU32::new(0),
            tries: Mutex::new(Tries {
                failed: 0,
                due: Instant::now(),
            }),
        }
    }

    /// What the next read is to do.
    pub(super) fn ask(&self) -> Ask {
        if !self.is_open() {
            return Ask::Usual;
        }
        {
            let mut tries = self.tries();
            // It may have been closed meanwhile.
            if !self.is_open() {
                return Ask::Usual;
            }
            if Instant::now() >= tries.due {
                tries.postpone();
                return Ask::Try;
            }
        }
        metrics::counter!(READS_PAST_CACHE).increment(1);
        Ask::Not
    }

    /// The cache has answered.
    pub(super) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) == 0 {
            return;
        }
        let failures = {
            let mut tries = self.tries();
            tries.failed = 0;
            let failures = self.failures.swap(0, Ordering::Relaxed);
            if failures >= self.threshold {
                self.show(false);
            }
            failures
        };
        if failures > 0 {
            tracing::info!(look_ups = self.kind, "the cache answers again");
        }
    }

    /// The cache has not answered who asked like this. Logs when that begins and
    /// what follows from it, not each failure.
    pub(super) fn failed(&self, ask: Ask, error: &dyn fmt::Display) {
        let failures = {
            let mut tries = self.tries();
            if ask == Ask::Try {
                if self.is_open() {
                    tries.failed = (tries.failed + 1).min(MAX_DOUBLINGS);
                    tries.postpone();
                }
                return;
            }
            let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
            if failures == self.threshold {
                tries.postpone();
                self.show(true);
            }
            failures
        };
        let look_ups = self.kind;
        if failures == 1 {
            tracing::warn!(%error, look_ups, "the cache fails; reads go to the table");
        }
        if failures == self.threshold {
            tracing::warn!(
                look_ups,
                "the cache still fails; reads do not ask it for a while"
            );
        }
    }

    fn is_open(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= self.threshold
    }

    fn tries(&self) -> MutexGuard<'_, Tries> {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, is_open: bool) {
        gauge!(BREAKER_OPEN, "look_ups" => self.kind).set(f64::from(u8::from(is_open)));
    }
}

impl Tries {
    /// Moves the next one to a pause from now.
    fn postpone(&mut self) {
        self.due = Instant::now() + FIRST_PAUSE * 2_u32.pow(self.failed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn open() -> Breaker {
        let breaker = Breaker::new("short", 3);
        for _ in 0..3 {
            assert_eq!(breaker.ask(), Ask::Usual);
            breaker.failed(Ask::Usual, &"no answer");
        }
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_between_failures_keeps_it_closed() {
        let breaker = Breaker::new("short", 3);
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
