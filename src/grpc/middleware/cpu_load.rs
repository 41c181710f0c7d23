//! CPU load: measures whether the processors keep up with the calls, and limits the steps
//! of heavy calls.

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

/// Duration of one measurement.
const WINDOW: Duration = Duration::from_millis(50);
/// Probes of the scheduling delay in a window after a busy one.
const PROBES: u32 = 5;
/// Longest mean scheduling delay of processors that keep up. A call is scheduled some
/// five times.
const MAX_DELAY: Duration = Duration::from_micros(400);
/// Busy part of the time of the runtime's workers, above which they cause a delay. Below it,
/// something else on the machine causes it.
const BUSY_FRACTION: f64 = 0.7;

/// Number of processors of this process.
pub(super) fn count() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// The load of the runtime's workers, from window to window.
#[derive(Debug, Default)]
pub(super) struct CpuLoad {
    /// Busy time of all workers, since their start.
    busy: Duration,
    was_busy: bool,
}

impl CpuLoad {
    /// Measures a window. Returns whether the processors keep up: `false` if they were busy
    /// all the time and ready tasks had to wait.
    pub(super) async fn measure(&mut self) -> bool {
        let began = Instant::now();
        let probes = if self.was_busy { PROBES } else { 1 };
        // In a task: the runtime's workers run it like a call.
        let delay = tokio::spawn(scheduling_delay(probes)).await;
        let metrics = Handle::current().metrics();
        let workers = metrics.num_workers();
        let busy = (0..workers).map(|worker| metrics.worker_total_busy_duration(worker));
        let busy: Duration = busy.sum();
        let watched = began.elapsed() * u32::try_from(workers).unwrap_or(u32::MAX);
        self.judge(watched, busy, delay.ok())
    }

    /// Judges a window. `watched` is its duration times the number of workers, `busy` their
    /// busy time since their start, `delay` the mean scheduling delay, if measured.
    fn judge(&mut self, watched: Duration, busy: Duration, delay: Option<Duration>) -> bool {
        let is_busy = busy.saturating_sub(self.busy) > watched.mul_f64(BUSY_FRACTION);
        self.busy = busy;
        let was_busy = std::mem::replace(&mut self.was_busy, is_busy);
        // One busy window may be an accident.
        !(was_busy && is_busy) || delay.is_some_and(|delay| delay <= MAX_DELAY)
    }
}

/// Limits the steps of heavy calls: one at a time on each processor, so that other ready
/// tasks wait for one step of one heavy call, and not for a step of each.
#[derive(Debug, Clone)]
pub(super) struct StepLimiter {
    permits: Arc<Semaphore>,
    threshold: Duration,
}

impl StepLimiter {
    /// Limits the steps of calls that use more CPU time than `threshold`: at most `max_steps`
    /// run at once.
    pub(super) fn new(max_steps: usize, threshold: Duration) -> Self {
        let permits = Arc::new(Semaphore::new(max_steps));
        Self { permits, threshold }
    }

    /// CPU time after which a call is heavy.
    pub(super) fn threshold(&self) -> Duration {
        self.threshold
    }

    /// The steps of one call.
    pub(super) fn for_call(&self) -> CallSteps {
        CallSteps {
            permits: PollSemaphore::new(self.permits.clone()),
            stage: Stage::Queued,
        }
    }
}

/// The steps of one heavy call.
#[derive(Debug)]
pub(super) struct CallSteps {
    permits: PollSemaphore,
    stage: Stage,
}

/// Progress towards the next step.
#[derive(Debug)]
enum Stage {
    /// The step has no permit yet.
    Queued,
    /// The step has a permit. The runtime polls for events first.
    AfterEvents(Option<OwnedSemaphorePermit>),
    /// The runtime has polled for events. Ready tasks run first.
    AfterReady(Option<OwnedSemaphorePermit>),
}

impl CallSteps {
    /// Waits for the next step, behind all ready tasks. The step ends when the returned
    /// value is dropped.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<impl Sized + use<>> {
        match std::mem::replace(&mut self.stage, Stage::Queued) {
            Stage::Queued => {
                let permit = ready!(self.permits.poll_acquire(context));
                self.stage = Stage::AfterEvents(permit);
                // One poll of `yield_now` schedules the task behind the events.
                let _ = pin!(yield_now()).poll(context);
                Poll::Pending
            }
            Stage::AfterEvents(permit) => {
                self.stage = Stage::AfterReady(permit);
                // A task that wakes itself runs behind tasks that others wake.
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Stage::AfterReady(permit) => Poll::Ready(permit),
        }
    }
}

/// Lets all ready tasks run. `yield_now` differs: it defers the task until the runtime has
/// polled for events, and then runs it first.
async fn yield_to_ready_tasks() {
    let mut has_yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Mean time that a ready task waits until it runs, over one window.
async fn scheduling_delay(probes: u32) -> Duration {
    let mut delay = Duration::ZERO;
    for _ in 0..probes {
        sleep(WINDOW / probes).await;
        let ready = Instant::now();
        // Like a message on a connection: behind the poll for events, and then behind all
        // ready tasks.
        yield_now().await;
        yield_to_ready_tasks().await;
        delay += ready.elapsed();
    }
    delay / probes
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;

    const CALLS: usize = 50;
    const STEPS: usize = 20;

    #[test]
    fn processors_do_not_keep_up_if_busy_for_two_windows_and_delayed_in_the_second() {
        let watched = Duration::from_millis(100);
        let too_long = Some(MAX_DELAY + Duration::from_micros(1));
        let judged = |windows: &[(u64, Option<Duration>)]| {
            let mut cpu_load = CpuLoad::default();
            let mut busy = Duration::ZERO;
            let windows = windows.iter().map(|&(busy_ms, delay)| {
                busy += Duration::from_millis(busy_ms);
                cpu_load.judge(watched, busy, delay)
            });
            windows.collect::<Vec<_>>()
        };
        assert_eq!(judged(&[(71, too_long), (71, too_long)]), [true, false]);
        assert_eq!(judged(&[(71, None), (71, None)]), [true, false]);
        assert_eq!(
            judged(&[(100, too_long), (100, Some(MAX_DELAY))]),
            [true, true]
        );
        assert_eq!(judged(&[(70, too_long), (71, too_long)]), [true, true]);
        assert_eq!(judged(&[(71, too_long), (70, too_long)]), [true, true]);
    }

    /// The greatest number of steps of heavy calls during one `wait` of another task.
    async fn steps_within<W: Future<Output = ()> + Send>(
        wait: impl Fn() -> W + Send + 'static,
    ) -> usize {
        let step_limiter = StepLimiter::new(1, Duration::ZERO);
        let steps = Arc::new(AtomicUsize::default());
        let calls = (0..CALLS).map(|_| {
            let (step_limiter, steps) = (step_limiter.clone(), steps.clone());
            tokio::spawn(async move {
                let mut call = step_limiter.for_call();
                for _ in 0..STEPS {
                    let step = poll_fn(|context| call.poll(context)).await;
                    steps.fetch_add(1, Ordering::Relaxed);
                    drop(step);
                    yield_to_ready_tasks().await;
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

    // As on several processors: a task that another task wakes runs first.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_ready_task_waits_for_one_step_of_all_heavy_calls() {
        assert_eq!(steps_within(yield_to_ready_tasks).await, 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_task_that_an_event_wakes_waits_for_one_step_of_all_heavy_calls() {
        assert_eq!(steps_within(yield_now).await, 1);
    }

    // As on one processor.
    #[tokio::test]
    async fn on_one_thread_other_tasks_wait_for_one_step_of_all_heavy_calls() {
        assert_eq!(steps_within(yield_to_ready_tasks).await, 1);
        assert_eq!(steps_within(yield_now).await, 1);
    }
}
