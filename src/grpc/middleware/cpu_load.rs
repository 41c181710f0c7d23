//! Whether the processors keep up with the calls, and turns at them.

use std::{
    future::poll_fn,
    num::NonZero,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
    thread,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::yield_now,
    time::{Instant, sleep},
};
use tokio_util::sync::PollSemaphore;

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
        self.judge(watched, busy, late.ok())
    }

    /// Judges a window: how long it was, for all workers together; for how long they have
    /// been busy, since their start; and the mean lateness, if it was measured.
    fn judge(&mut self, watched: Duration, busy: Duration, late: Option<Duration>) -> bool {
        let are_busy = busy.saturating_sub(self.busy) > watched.mul_f64(BUSY);
        self.busy = busy;
        let were_busy = std::mem::replace(&mut self.were_busy, are_busy);
        // One window alone may be an accident.
        !(were_busy && are_busy) || late.is_some_and(|late| late <= LATE)
    }
}

/// Turns at the processors for calls that use much: one for each of them, so that
/// whatever else becomes ready waits for one step of such a call, and not for one of
/// each.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    at_once: Arc<Semaphore>,
    /// What a call uses of a processor before it takes turns.
    much: Duration,
}

impl Turns {
    /// So many at once, for calls that use more than `much`.
    pub(super) fn new(at_once: usize, much: Duration) -> Self {
        let at_once = Arc::new(Semaphore::new(at_once));
        Self { at_once, much }
    }

    /// What a call uses of a processor before it takes turns.
    pub(super) fn much(&self) -> Duration {
        self.much
    }

    /// The turns of one call.
    pub(super) fn of_a_call(&self) -> Turn {
        Turn {
            turns: PollSemaphore::new(self.at_once.clone()),
            stage: Stage::Waiting,
        }
    }
}

/// The turns of one call.
#[derive(Debug)]
pub(super) struct Turn {
    turns: PollSemaphore,
    stage: Stage,
}

/// How near a turn is.
#[derive(Debug)]
enum Stage {
    /// Others have theirs.
    Waiting,
    /// The runtime is to look for events before.
    Next(Option<OwnedSemaphorePermit>),
    /// What is ready is to run before.
    Last(Option<OwnedSemaphorePermit>),
}

impl Turn {
    /// Waits for a turn, behind all that is ready. It lasts until what is returned is
    /// dropped.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<impl Sized + use<>> {
        match std::mem::replace(&mut self.stage, Stage::Waiting) {
            Stage::Waiting => {
                self.stage = Stage::Next(ready!(self.turns.poll_acquire(context)));
                // Polled once, it has the task woken after the events.
                let _ = pin!(yield_now()).poll(context);
                Poll::Pending
            }
            Stage::Next(permit) => {
                self.stage = Stage::Last(permit);
                // Whoever is woken by others goes first; who wakes itself, last.
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Stage::Last(permit) => Poll::Ready(permit),
        }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;

    const CALLS: usize = 50;
    const STEPS: usize = 20;

    #[test]
    fn processors_do_not_keep_up_if_they_are_busy_for_two_windows_and_late_in_the_second() {
        let watched = Duration::from_millis(100);
        let too_late = Some(LATE + Duration::from_micros(1));
        let judged = |windows: &[(u64, Option<Duration>)]| {
            let mut processors = Processors::default();
            let mut busy = Duration::ZERO;
            let windows = windows.iter().map(|&(busy_ms, late)| {
                busy += Duration::from_millis(busy_ms);
                processors.judge(watched, busy, late)
            });
            windows.collect::<Vec<_>>()
        };
        assert_eq!(judged(&[(71, too_late), (71, too_late)]), [true, false]);
        assert_eq!(judged(&[(71, None), (71, None)]), [true, false]);
        assert_eq!(judged(&[(100, too_late), (100, Some(LATE))]), [true, true]);
        assert_eq!(judged(&[(70, too_late), (71, too_late)]), [true, true]);
        assert_eq!(judged(&[(71, too_late), (70, too_late)]), [true, true]);
    }

    /// The greatest number of steps that calls take while a guest waits like this.
    async fn steps_within<W: Future<Output = ()> + Send>(
        wait: impl Fn() -> W + Send + 'static,
    ) -> usize {
        let turns = Turns::new(1, Duration::ZERO);
        let steps = Arc::new(AtomicUsize::default());
        let calls = (0..CALLS).map(|_| {
            let (turns, steps) = (turns.clone(), steps.clone());
            tokio::spawn(async move {
                let mut turn = turns.of_a_call();
                for _ in 0..STEPS {
                    let taken = poll_fn(|context| turn.poll(context)).await;
                    steps.fetch_add(1, Ordering::Relaxed);
                    drop(taken);
                    go_to_the_back().await;
                }
            })
        });
        let calls: Vec<_> = calls.collect();
        let guest = tokio::spawn(async move {
            let mut before = steps.load(Ordering::Relaxed);
            let mut most = 0;
            while before < CALLS * STEPS {
                wait().await;
                let now = steps.load(Ordering::Relaxed);
                most = most.max(now - before);
                before = now;
            }
            most
        });
        let most = guest.await.unwrap();
        for call in join_all(calls).await {
            call.unwrap();
        }
        most
    }

    // As where the service has several processors: a task that another one wakes goes
    // first.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn who_is_ready_waits_for_one_step_of_all_calls_that_use_much() {
        assert_eq!(steps_within(go_to_the_back).await, 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn whom_an_event_wakes_waits_for_one_step_of_all_calls_that_use_much() {
        assert_eq!(steps_within(yield_now).await, 1);
    }

    // As where it has one.
    #[tokio::test]
    async fn on_one_thread_others_wait_for_one_step_of_all_calls_that_use_much() {
        assert_eq!(steps_within(go_to_the_back).await, 1);
        assert_eq!(steps_within(yield_now).await, 1);
    }
}
