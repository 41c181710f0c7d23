//! Limits the table reads of callers' reads, so that the loss of the cache can neither overload the
//! table nor starve writes.

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

/// Most waiting reads for each permit.
const MAX_WAITING_PER_PERMIT: usize = 16;
/// Longest wait of a read for permits.
pub(super) const MAX_WAIT: Duration = Duration::from_millis(250);
/// Keys for each permit that a read takes: those of one request to the table.
const KEYS_PER_PERMIT: usize = store::READ_MAX_KEYS;
/// Most permits that a read takes: the requests that it sends at once.
const MAX_PERMITS_PER_READ: usize = store::READS_AT_ONCE;

/// Limits concurrent requests to the table. Reads wait in the order of their arrival.
pub(super) struct TableReadLimiter {
    permits: Semaphore,
    max_requests: usize,
    waiting: AtomicUsize,
}

impl TableReadLimiter {
    /// Admits `max_requests` requests at once, at least as many as one read may send.
    pub(super) fn new(max_requests: usize) -> Self {
        let max_requests = max_requests.clamp(MAX_PERMITS_PER_READ, Semaphore::MAX_PERMITS);
        Self {
            permits: Semaphore::new(max_requests),
            max_requests,
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for the permits to read `keys` keys. Dropping them ends the read.
    ///
    /// # Errors
    /// [`store::ErrorKind::Crowded`]: too many reads wait already, or this one waited too long.
    pub(super) async fn acquire(&self, keys: usize) -> Result<SemaphorePermit<'_>, store::Error> {
        self.acquire_requests(keys.div_ceil(KEYS_PER_PERMIT)).await
    }

    /// The same for requests, at least one and at most [`MAX_PERMITS_PER_READ`].
    pub(super) async fn acquire_requests(
        &self,
        requests: usize,
    ) -> Result<SemaphorePermit<'_>, store::Error> {
        let permits = requests.clamp(1, MAX_PERMITS_PER_READ);
        let permits = u32::try_from(permits).unwrap_or(1);
        metrics::counter!(TABLE_READS).increment(1);
        if let Ok(acquired) = self.permits.try_acquire_many(permits) {
            return Ok(acquired);
        }
        let Some(_waiting) = self.start_waiting() else {
            return Err(shed("too many table reads wait already"));
        };
        match timeout(MAX_WAIT, self.permits.acquire_many(permits)).await {
            Ok(Ok(acquired)) => Ok(acquired),
            Ok(Err(_)) | Err(_) => Err(shed("a table read waited too long")),
        }
    }

    fn start_waiting(&self) -> Option<WaitingRead<'_>> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = WaitingRead(&self.waiting);
        (before < self.max_requests * MAX_WAITING_PER_PERMIT).then_some(waiting)
    }
}

/// Counts as waiting until it is dropped.
struct WaitingRead<'a>(&'a AtomicUsize);

impl Drop for WaitingRead<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn shed(why: &'static str) -> store::Error {
    metrics::counter!(TABLE_READS_SHED).increment(1);
    store::Error::new(store::ErrorKind::Crowded, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_read_that_waits_too_long_or_behind_too_many_is_rejected() {
        let limiter = TableReadLimiter::new(MAX_PERMITS_PER_READ);
        let all = limiter.acquire(usize::MAX).await.unwrap();
        let crowd: Vec<_> = (0..MAX_PERMITS_PER_READ * MAX_WAITING_PER_PERMIT)
            .map(|_| limiter.acquire(1))
            .collect();
        let crowd = futures_util::future::join_all(crowd);
        let one_more = async {
            tokio::task::yield_now().await;
            let began = tokio::time::Instant::now();
            assert!(limiter.acquire(1).await.is_err());
            began.elapsed()
        };
        let (crowd, waited) = tokio::join!(crowd, one_more);
        assert_eq!(waited, Duration::ZERO);
        assert!(crowd.iter().all(Result::is_err));
        assert_eq!(limiter.waiting.load(Ordering::Relaxed), 0);
        drop(all);
        assert!(limiter.acquire(1).await.is_ok());
    }
}
