//! Whether the processors keep up with the calls.

use std::{future::poll_fn, num::NonZero, task::Poll, thread, time::Duration};

use tokio::{
    runtime::Handle,
    task::yield_now,
    time::{Instant, sleep},
};

/// How often it is asked anew.
const WINDOW: Duration = Duration::from_millis(50);
/// How often the way through the runtime is measured in a window in which there
/// may be a queue.
const PROBES: u32 = 5;
/// How long what has become ready may wait, in the mean, until it runs. A call does
/// so some five times.
const LATE: Duration = Duration::from_micros(400);
/// The part of the time that the runtime's workers have something to do when they
/// are late because of it, and not because what little they do was held up.
const BUSY: f64 = 0.7;

/// How many there are for this process.
pub(super) fn count() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// What was seen of the processors of the runtime.
#[derive(Debug, Default)]
pub(super) struct Processors {
    /// For how long they had been busy.
    busy: Duration,
    were_busy: bool,
}

impl Processors {
    /// Watches them for a while: `false` if they had something to do all the time, and
    /// what became ready had to wait.
    pub(super) async fn keep_up(&mut self) -> bool {
        let began = Instant::now();
        let probes = if self.were_busy { PROBES } else { 1 };
        // A task, to be where calls are: with the runtime's workers.
        let late = tokio::spawn(lateness(probes)).await;
        let metrics = Handle::current().metrics();
        let workers = metrics.num_workers();
        let busy = (0..workers).map(|worker| metrics.worker_total_busy_duration(worker));
        let busy: Duration = busy.sum();
        let watched = began.elapsed() * u32::try_from(workers).unwrap_or(u32::MAX);
        let are_busy = busy.saturating_sub(self.busy) > watched.mul_f64(BUSY);
        self.busy = busy;
        let were_busy = std::mem::replace(&mut self.were_busy, are_busy);
        // One window alone may be an accident.
        !(were_busy && are_busy) || late.is_ok_and(|late| late <= LATE)
    }
}

/// Lets run what is ready. Unlike `yield_now`, which puts off until the runtime has
/// looked for events, and then goes first.
async fn go_to_the_back() {
    let mut is_there = false;
    poll_fn(|context| {
        if std::mem::replace(&mut is_there, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// How long what became ready had to wait within a window, in the mean.
async fn lateness(probes: u32) -> Duration {
    let mut late = Duration::ZERO;
    for _ in 0..probes {
        sleep(WINDOW / probes).await;
        let ready = Instant::now();
        // As what a connection brings: once the runtime has looked for events, and
        // then behind all that is ready.
        yield_now().await;
        go_to_the_back().await;
        late += ready.elapsed();
    }
    late / probes
}
