//! Circuit breakers of look-ups in the cache: after some failures in a row, reads skip the cache,
//! except for occasional probes.
//!
//! Only reads have circuit breakers. A read that skips the cache costs a table read. A write that
//! skipped its fences would leave old entries in the cache.

use std::{
    fmt,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use metrics::gauge;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::{
    cache,
    telemetry::{BREAKER_OPEN, READS_PAST_CACHE},
};

/// Pause before the first probe. Doubles after each failed probe.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between probes.
const MAX_PAUSE: Duration = Duration::from_millis(1600);

/// A circuit breaker for each kind of look-up, so that late long look-ups do not stop short ones.
pub(super) struct CircuitBreakers {
    short: CircuitBreaker,
    long: CircuitBreaker,
}

impl CircuitBreakers {
    /// Circuit breakers that open after `threshold` failures in a row.
    pub(super) fn new(threshold: u32) -> Self {
        Self {
            short: CircuitBreaker::new("short", threshold),
            long: CircuitBreaker::new("long", threshold),
        }
    }

    /// The circuit breaker of look-ups of `keys` keys.
    pub(super) fn for_keys(&self, keys: usize) -> &CircuitBreaker {
        if cache::is_long(keys) {
            &self.long
        } else {
            &self.short
        }
    }
}

/// Decides whether look-ups of one kind query the cache.
pub(super) struct CircuitBreaker {
    /// Name of the kind in metrics and logs.
    kind: &'static str,
    /// Failures in a row that open the circuit breaker.
    threshold: u32,
    /// Failures in a row. Changed only while `probes` is locked.
    failures: AtomicU32,
    probes: Mutex<Probes>,
}

/// Probes of an open circuit breaker.
struct Probes {
    due: Instant,
    /// The pause until the next probe.
    pause: Duration,
}

/// The decision about a look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Query the cache.
    Query,
    /// Query the cache to find out whether it responds again.
    Probe,
    /// Skip the cache.
    Skip,
}

impl CircuitBreaker {
    fn new(kind: &'static str, threshold: u32) -> Self {
        Self {
            kind,
            threshold,
            failures: AtomicU32::new(0),
            probes: Mutex::new(Probes::new()),
        }
    }

    /// Makes the decision about the next look-up.
    pub(super) fn decide(&self) -> Decision {
        if !self.is_open() {
            return Decision::Query;
        }
        {
            let mut probes = self.probes();
            // Another look-up may have closed it meanwhile.
            if !self.is_open() {
                return Decision::Query;
            }
            if Instant::now() >= probes.due {
                probes.postpone();
                return Decision::Probe;
            }
        }
        metrics::counter!(READS_PAST_CACHE).increment(1);
        Decision::Skip
    }

    /// Records the success of a look-up.
    pub(super) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) == 0 {
            return;
        }
        let failures = {
            let mut probes = self.probes();
            *probes = Probes::new();
            let failures = self.failures.swap(0, Ordering::Relaxed);
            if failures >= self.threshold {
                self.set_gauge(false);
            }
            failures
        };
        if failures > 0 {
            tracing::info!(look_ups = self.kind, "the cache responds again");
        }
    }

    /// Records the failure of a look-up with this decision. Logs only the first failure and the
    /// opening.
    pub(super) fn failed(&self, decision: Decision, error: &dyn fmt::Display) {
        let failures = {
            let mut probes = self.probes();
            if decision == Decision::Probe {
                if self.is_open() {
                    probes.pause = MAX_PAUSE.min(probes.pause * 2);
                    probes.postpone();
                }
                return;
            }
            let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
            if failures == self.threshold {
                probes.postpone();
                self.set_gauge(true);
            }
            failures
        };
        let look_ups = self.kind;
        if failures == 1 {
            tracing::warn!(%error, look_ups, "the cache fails; reads go to the table");
        }
        if failures == self.threshold {
            tracing::warn!(look_ups, "the cache still fails; reads skip it for a while");
        }
    }

    fn is_open(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= self.threshold
    }

    fn probes(&self) -> MutexGuard<'_, Probes> {
        self.probes.lock()
    }

    fn set_gauge(&self, is_open: bool) {
        gauge!(BREAKER_OPEN, "look_ups" => self.kind).set(f64::from(u8::from(is_open)));
    }
}

impl Probes {
    fn new() -> Self {
        Self {
            due: Instant::now(),
            pause: FIRST_PAUSE,
        }
    }

    /// Schedules the next probe one pause from now.
    fn postpone(&mut self) {
        self.due = Instant::now() + self.pause;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn open() -> CircuitBreaker {
        let breaker = CircuitBreaker::new("short", 3);
        for _ in 0..3 {
            assert_eq!(breaker.decide(), Decision::Query);
            breaker.failed(Decision::Query, &"no response");
        }
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_between_failures_keeps_the_circuit_breaker_closed() {
        let breaker = CircuitBreaker::new("short", 3);
        for _ in 0..10 {
            breaker.failed(Decision::Query, &"no response");
            breaker.failed(Decision::Query, &"no response");
            breaker.succeeded();
        }
        assert_eq!(breaker.decide(), Decision::Query);
    }

    #[tokio::test(start_paused = true)]
    async fn one_look_up_in_each_pause_probes_and_pauses_grow_to_their_bound() {
        let breaker = open();
        // Late failures of look-ups from before the opening do not count.
        breaker.failed(Decision::Query, &"no response");
        for pause in [100, 200, 400, 800, 1600, 1600] {
            advance(Duration::from_millis(pause - 1)).await;
            assert_eq!(breaker.decide(), Decision::Skip, "{pause}");
            advance(Duration::from_millis(1)).await;
            assert_eq!(breaker.decide(), Decision::Probe, "{pause}");
            assert_eq!(breaker.decide(), Decision::Skip, "{pause}");
            breaker.failed(Decision::Probe, &"no response");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_probe_is_followed_by_another() {
        let breaker = open();
        for _ in 0..3 {
            advance(FIRST_PAUSE).await;
            assert_eq!(breaker.decide(), Decision::Probe);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_successful_probe_closes_the_circuit_breaker_and_resets_it() {
        let breaker = open();
        advance(FIRST_PAUSE).await;
        breaker.failed(breaker.decide(), &"no response");
        advance(FIRST_PAUSE * 2).await;
        assert_eq!(breaker.decide(), Decision::Probe);
        breaker.succeeded();
        assert_eq!(breaker.decide(), Decision::Query);
        for _ in 0..3 {
            breaker.failed(Decision::Query, &"no response");
        }
        advance(FIRST_PAUSE).await;
        assert_eq!(breaker.decide(), Decision::Probe);
    }
}
