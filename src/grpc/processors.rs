//! Whether the processors keep up with the calls.

use std::{num::NonZero, thread, time::Duration};

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
/// The part of the time that the processors are busy with this process when they
/// are late because of it, and not because others keep it from running.
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
    /// Watches them for a while: whether what becomes ready runs soon, or would if
    /// others let this process run.
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
        self.were_busy = busy.saturating_sub(self.busy) > watched.mul_f64(BUSY);
        self.busy = busy;
        !self.were_busy || late.is_ok_and(|late| late <= LATE)
    }
}

/// How long what became ready had to wait within a window, in the mean.
async fn lateness(probes: u32) -> Duration {
    let mut late = Duration::ZERO;
    for _ in 0..probes {
        sleep(WINDOW / probes).await;
        let ready = Instant::now();
        // Comes back as what a connection brings does: once the runtime has looked
        // for events, and behind all that is ready by then.
        yield_now().await;
        late += ready.elapsed();
    }
    late / probes
}
