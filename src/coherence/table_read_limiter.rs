//! Bounds the table reads of callers' reads, so that losing the cache cannot take
//! the table down, nor writes and removals their room there.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use crate::{
    store,
    telemetry::{TABLE_READS, TABLE_READS_SHED},
};

/// Reads that wait their turn, for each one under way.
const WAITING_PER_TURN: usize = 16;
/// Longest that a read waits its turn.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);
/// Keys for each turn that a read takes.
const KEYS_PER_TURN: usize = store::READ_MAX_KEYS;
/// Turns of one read, at most.
const MAX_TURNS: usize = store::READS_AT_ONCE;

/// Lets a bounded number of table reads pass at once, in the order of their
/// arrival.
pub(super) struct Turnstile {
    turns: Semaphore,
    at_once: usize,
    waiting: AtomicUsize,
}

impl Turnstile {
    /// Lets `at_once` requests to the table pass, at least as many as one read may
    /// have.
    pub(super) fn new(at_once: usize) -> Self {
        let at_once = at_once.clamp(MAX_TURNS, Semaphore::MAX_PERMITS);
        Self {
            turns: Semaphore::new(at_once),
            at_once,
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for a turn to read so many keys; the turn ends when it is dropped.
    ///
    /// # Errors
    /// [`store::Kind::Crowded`]: too many wait already, or it took too long.
    pub(super) async fn pass(&self, keys: usize) -> Result<SemaphorePermit<'_>, store::Error> {
        let turns = keys.div_ceil(KEYS_PER_TURN).clamp(1, MAX_TURNS);
        let count = u32::try_from(turns).unwrap_or(1);
        metrics::counter!(TABLE_READS).increment(1);
        if let Ok(turn) = self.turns.try_acquire_many(count) {
            return Ok(turn);
        }
        let Some(_waiting) = self.wait() else {
            return Err(shed("too many table reads wait already"));
        };
        match timeout(PATIENCE, self.turns.acquire_many(count)).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(shed("a table read waited too long for its turn")),
        }
    }

    fn wait(&self) -> Option<Waiting<'_>> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        (before < self.at_once * WAITING_PER_TURN).then_some(waiting)
    }
}

/// Counts as waiting until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn shed(why: &'static str) -> store::Error {
    metrics::counter!(TABLE_READS_SHED).increment(1);
    store::Error::new(store::Kind::Crowded, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_or_behind_too_many_is_sent_away() {
        let turnstile = Turnstile::new(MAX_TURNS);
        let all = turnstile.pass(usize::MAX).await.unwrap();
        let crowd: Vec<_> = (0..MAX_TURNS * WAITING_PER_TURN)
            .map(|_| turnstile.pass(1))
            .collect();
        let crowd = futures_util::future::join_all(crowd);
        let one_more = async {
            tokio::task::yield_now().await;
            let sent_away = tokio::time::Instant::now();
            assert!(turnstile.pass(1).await.is_err());
            sent_away.elapsed()
        };
        let (crowd, at_once) = tokio::join!(crowd, one_more);
        assert_eq!(at_once, Duration::ZERO);
        assert!(crowd.iter().all(Result::is_err));
        assert_eq!(turnstile.waiting.load(Ordering::Relaxed), 0);
        drop(all);
        assert!(turnstile.pass(1).await.is_ok());
    }
}
