//! A fair queue: a bounded number of calls run, and the caller with the lowest usage is
//! served next. Each caller has a queue of its own, so that the flood of one does not delay
//! the calls of others.
//!
//! The limit follows the CPU load. While the processors keep up, the limit is that of the
//! settings, so that slow backends fill no queues. While the processors do not keep up, the
//! limit falls, so that a flood waits in its queue and not in front of the calls of others.

mod queue_state;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::Gauge;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use self::queue_state::{Cost, QueueState, Usage};
use super::cpu_load::{CallSteps, StepLimiter};
use crate::auth::Name;

/// Identity of a caller in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::grpc) enum FlowKey {
    /// A caller with a name.
    Caller(Name),
    /// A connection, where callers have no names.
    Connection(u64),
}

/// A call was not granted a permit in time.
#[derive(Debug)]
pub(super) struct QueueTimeout;

/// Lets a bounded number of calls run.
#[derive(Debug)]
pub(super) struct FairQueue {
    state: Mutex<QueueState>,
    min_limit: u64,
    max_limit: u64,
    limit_gauge: Gauge,
    /// Limits the steps of heavy calls.
    step_limiter: StepLimiter,
}

/// The permission of a call to run, until this is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    queue: Arc<FairQueue>,
    flow: FlowKey,
    since: Instant,
    cost: Cost,
    busy_us: AtomicU64,
    is_started: bool,
}

impl FairQueue {
    /// A queue with at most `max_limit` slots. At least `min_limit` slots, which suffice to keep the
    /// processors busy. `limit_gauge` shows the limit.
    /// `step_limiter` limits the steps of heavy calls.
    pub(super) fn new(
        min_limit: usize,
        max_limit: usize,
        limit_gauge: Gauge,
        step_limiter: StepLimiter,
    ) -> Self {
        let [min_limit, max_limit] = [min_limit.min(max_limit), max_limit].map(|it| it as u64);
        #[expect(clippy::cast_precision_loss, reason = "limits are small")]
        limit_gauge.set(max_limit as f64);
        Self {
            state: Mutex::new(QueueState::new(max_limit)),
            min_limit,
            max_limit,
            limit_gauge,
            step_limiter,
        }
    }

    /// Returns a permit if there is room for the caller now.
    pub(super) fn try_acquire(self: &Arc<Self>, flow: &FlowKey) -> Option<Permit> {
        let mut state = self.lock();
        state.caller(flow);
        let cost = state.start(flow)?;
        Some(self.permit(flow, cost))
    }

    /// Waits for a permit.
    ///
    /// # Errors
    /// [`QueueTimeout`] after `max_wait`, and not before.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        flow: &FlowKey,
        max_wait: Duration,
    ) -> Result<Permit, QueueTimeout> {
        let (sender, granted) = oneshot::channel();
        // Kept open if the caller's queue is full: the call is rejected after `max_wait`.
        let _rejected = {
            let mut state = self.lock();
            state.is_contended = true;
            state.remove_cancelled(flow);
            let rejected = state.enqueue(flow, sender);
            if rejected.is_none() {
                // A permit may have been released since `try_acquire`.
                self.grant(&mut state);
            }
            rejected
        };
        match timeout(max_wait, granted).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(QueueTimeout),
        }
    }

    /// Grants permits to waiting calls while there is room.
    fn grant(self: &Arc<Self>, state: &mut QueueState) {
        while let Some((flow, sender)) = state.next() {
            let Some(cost) = state.start(&flow) else {
                return;
            };
            if let Err(mut permit) = sender.send(self.permit(&flow, cost)) {
                // The call was cancelled, and has used nothing.
                permit.is_started = false;
                state.end(&flow, cost, None);
            }
        }
    }

    fn permit(self: &Arc<Self>, flow: &FlowKey, cost: Cost) -> Permit {
        Permit {
            queue: self.clone(),
            flow: flow.clone(),
            since: Instant::now(),
            cost,
            busy_us: AtomicU64::new(0),
            is_started: true,
        }
    }

    /// Lowers the limit while the processors do not keep up, and raises it afterwards. Call
    /// it once in each window.
    pub(super) fn adjust_limit(self: &Arc<Self>, processors_keep_up: bool) {
        let mut state = self.lock();
        state.decay_idle();
        let is_contended = std::mem::take(&mut state.is_contended) || state.waiting > 0;
        let limit = match (state.has_several_callers(), is_contended) {
            (true, _) if !processors_keep_up => state.limit / 2,
            (true, true) => state.limit + state.limit / 8 + 1,
            (true, false) | (false, _) => state.limit * 2,
        };
        state.limit = limit.clamp(self.min_limit, self.max_limit);
        #[expect(clippy::cast_precision_loss, reason = "limits are small")]
        self.limit_gauge.set(state.limit as f64);
        self.grant(&mut state);
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock()
    }
}

impl Permit {
    /// Whether the call is heavy, by the CPU time that it has used or by the mean of its
    /// caller.
    pub(super) fn is_heavy(&self) -> bool {
        let busy_us = self.busy_us.load(Ordering::Relaxed);
        let busy = Duration::from_micros(busy_us.max(self.cost.expected_us));
        busy > self.queue.step_limiter.threshold()
    }

    /// The steps of the call, if it is heavy.
    pub(super) fn steps(&self) -> CallSteps {
        self.queue.step_limiter.for_call()
    }

    /// Charges CPU time to the call.
    pub(super) fn charge_cpu(&self, busy: Duration) {
        self.busy_us.fetch_add(micros(busy), Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.is_started {
            return;
        }
        let queue = self.queue.clone();
        let mut state = queue.lock();
        let held_us = micros(self.since.elapsed()) * self.cost.slots.sum();
        let usage = Usage {
            busy_us: self.busy_us.load(Ordering::Relaxed),
            share_us: held_us / state.limit.max(1),
        };
        state.end(&self.flow, self.cost, Some(usage));
        queue.grant(&mut state);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
