//! A fair queue: a bounded number of calls run, and the caller with the lowest usage is
//! served next. Each caller has a queue of its own, so that the flood of one does not delay
//! the calls of others.
//!
//! The limit follows the CPU load. While the processors keep up, the limit is that of the
//! settings, so that slow backends fill no queues. While the processors do not keep up, the
//! limit falls, so that a flood waits in its queue and not in front of the calls of others.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use foldhash::fast::RandomState;
use metrics::Gauge;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use super::cpu_load::{CallSteps, StepLimiter};
use crate::auth::Name;

/// Waiting calls of one caller. Further calls are rejected, but not at once: a
/// rejection that costs no waiting invites an immediate retry.
const MAX_WAITING: usize = 4096;
/// CPU time that one slot stands for, in microseconds. A call that is expected to use
/// more, such as a large batch, takes more slots.
const SLOT_US: u64 = 100;
/// Calls that always fit while the processors keep up, even if each takes the most slots: a
/// call that waits for a slow backend uses no CPU.
const MIN_CALLS: u64 = 16;
/// Expected CPU time of a call of an unknown caller, in microseconds.
const INITIAL_MEAN_US: u64 = 50;
/// Weight of a caller's last call in its mean CPU time: 1/8.
const MEAN_WEIGHT: u64 = 8;
/// Part of an absent caller's usage and mean that is forgotten in each window: half of
/// them are gone after two seconds.
const DECAY: u64 = 64;
/// Windows after which a sole caller is treated as uncontended: ten seconds.
const CONTENTION_WINDOWS: u32 = 200;
/// Largest credit of a caller that was absent, or called rarely, in microseconds of usage:
/// it is served before callers with more usage until it has used its credit.
const CREDIT_US: u64 = 10_000;
/// Part of the slots that is reserved for callers that hold few: 1/4, at least one.
const RESERVED_PART: u64 = 4;

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

#[derive(Debug)]
struct QueueState {
    in_use: Slots,
    waiting: usize,
    /// Number of slots.
    limit: u64,
    max_slots_per_call: u64,
    /// Whether a call had to wait since the limit was last adjusted.
    is_contended: bool,
    /// Remaining windows in which the queue counts as having several callers.
    contention_windows: u32,
    /// Usage of the caller that was granted the last permit: the virtual time of the
    /// queue.
    clock_us: u64,
    callers: HashMap<FlowKey, CallerQueue, RandomState>,
}

#[derive(Debug)]
struct CallerQueue {
    /// Usage of the caller, in microseconds: CPU time or, if that is larger, its share of
    /// the slots over the time that it held them.
    used_us: u64,
    /// Mean CPU time of the caller's calls, in microseconds.
    mean_us: u64,
    slots_in_use: u64,
    waiting: VecDeque<oneshot::Sender<Permit>>,
}

/// Numbers of slots.
#[derive(Debug, Clone, Copy, Default)]
struct Slots {
    /// Slots that every caller may take.
    shared: u64,
    /// Slots that are reserved for callers that hold few.
    reserved: u64,
}

/// Cost of a call, as estimated when it starts.
#[derive(Debug, Clone, Copy)]
struct Cost {
    slots: Slots,
    /// CPU time that its caller is charged in advance, in microseconds.
    expected_us: u64,
}

/// Resources that a call used, in microseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    /// CPU time.
    busy_us: u64,
    /// Share of its slots in all slots, over the time that it held them.
    share_us: u64,
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
    /// A queue with at most `max_limit` slots, and at least `min_limit`, which keep the
    /// processors busy with calls that wait for nothing else. `limit_gauge` shows the limit.
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
            state: Mutex::new(QueueState {
                in_use: Slots::default(),
                waiting: 0,
                limit: max_limit,
                max_slots_per_call: (max_limit / MIN_CALLS).max(1),
                is_contended: false,
                contention_windows: 0,
                clock_us: 0,
                callers: HashMap::default(),
            }),
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
            let caller = state.caller(flow);
            if caller.waiting.len() < MAX_WAITING {
                caller.waiting.push_back(sender);
                state.waiting += 1;
                // A permit may have been released since `try_acquire`.
                self.grant(&mut state);
                None
            } else {
                Some(sender)
            }
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueState {
    /// The queue of a caller, new if needed. Its credit is at most [`CREDIT_US`].
    fn caller(&mut self, flow: &FlowKey) -> &mut CallerQueue {
        let least = self.clock_us.saturating_sub(CREDIT_US);
        let caller = self.callers.entry(flow.clone()).or_default();
        caller.used_us = caller.used_us.max(least);
        caller
    }

    /// Slots that are reserved for callers that hold few. They stay reserved even if the limit
    /// fell and other callers hold more slots than it.
    fn reserved(&self) -> u64 {
        (self.limit / RESERVED_PART).max(1)
    }

    /// Whether shared slots are free.
    fn has_shared_slots(&self) -> bool {
        self.in_use.shared < self.limit - self.reserved()
    }

    /// Reserved slots that one caller may hold.
    fn reserved_per_caller(&self) -> u64 {
        if self.in_use.reserved < self.reserved() {
            (self.reserved() / (self.callers.len() as u64).max(1)).max(1)
        } else {
            0
        }
    }

    /// The slots that a caller with `slots_in_use` may take for a call of `expected_us`.
    /// The last call that fits may take more shared slots than are free, up to all of them.
    fn available(&self, slots_in_use: u64, expected_us: u64) -> Option<Slots> {
        let slots = (expected_us / SLOT_US).clamp(1, self.max_slots_per_call);
        if self.has_shared_slots() {
            return Some(Slots {
                shared: slots.min(self.limit - self.reserved()),
                reserved: 0,
            });
        }
        let left = self.reserved_per_caller().saturating_sub(slots_in_use);
        (left > 0).then(|| Slots {
            shared: 0,
            reserved: slots.min(left),
        })
    }

    /// Starts a call, if there is room.
    fn start(&mut self, flow: &FlowKey) -> Option<Cost> {
        let caller = self.callers.get(flow)?;
        let (used_us, expected_us) = (caller.used_us, caller.mean_us);
        let slots = self.available(caller.slots_in_use, expected_us)?;
        let caller = self.callers.get_mut(flow)?;
        caller.slots_in_use += slots.sum();
        caller.used_us += expected_us;
        self.in_use.shared += slots.shared;
        self.in_use.reserved += slots.reserved;
        self.clock_us = self.clock_us.max(used_us);
        Some(Cost { slots, expected_us })
    }

    /// Ends a call. `usage` is `None` if it never ran.
    fn end(&mut self, flow: &FlowKey, cost: Cost, usage: Option<Usage>) {
        self.in_use.shared -= cost.slots.shared;
        self.in_use.reserved -= cost.slots.reserved;
        let Some(caller) = self.callers.get_mut(flow) else {
            return;
        };
        caller.slots_in_use -= cost.slots.sum();
        let Usage { busy_us, share_us } = usage.unwrap_or_default();
        caller.used_us = (caller.used_us + busy_us.max(share_us)).saturating_sub(cost.expected_us);
        if usage.is_some() {
            let forgotten = caller.mean_us / MEAN_WEIGHT;
            let mean_us = caller.mean_us - forgotten + busy_us / MEAN_WEIGHT;
            caller.mean_us = mean_us.max(INITIAL_MEAN_US);
        }
    }

    /// The next waiting call: the first of the caller with the lowest usage, among the
    /// callers that there is room for.
    fn next(&mut self) -> Option<(FlowKey, oneshot::Sender<Permit>)> {
        while self.waiting > 0 {
            // Checked first: many callers may wait, and most often there is no room.
            let max_in_use = if self.has_shared_slots() {
                u64::MAX
            } else {
                self.reserved_per_caller()
            };
            if max_in_use == 0 {
                return None;
            }
            let callers = self.callers.iter();
            let callers = callers.filter(|(_, caller)| {
                !caller.waiting.is_empty() && caller.slots_in_use < max_in_use
            });
            let (flow, _) = callers.min_by_key(|(_, caller)| caller.used_us)?;
            let flow = flow.clone();
            let caller = self.callers.get_mut(&flow)?;
            while let Some(sender) = caller.waiting.pop_front() {
                self.waiting -= 1;
                if !sender.is_closed() {
                    return Some((flow, sender));
                }
            }
        }
        None
    }

    /// Removes cancelled calls from the front of a caller's queue. All calls wait about
    /// equally long, so the first ones are cancelled first.
    fn remove_cancelled(&mut self, flow: &FlowKey) {
        let Some(caller) = self.callers.get_mut(flow) else {
            return;
        };
        while caller
            .waiting
            .front()
            .is_some_and(oneshot::Sender::is_closed)
        {
            caller.waiting.pop_front();
            self.waiting -= 1;
        }
    }

    /// Whether there were several callers lately. A sole caller delays no other.
    fn has_several_callers(&self) -> bool {
        self.contention_windows > 0
    }

    /// Decays the usage and the mean of absent callers, and removes those with neither.
    fn decay_idle(&mut self) {
        let clock_us = self.clock_us;
        self.contention_windows = if self.callers.len() > 1 {
            CONTENTION_WINDOWS
        } else {
            self.contention_windows.saturating_sub(1)
        };
        self.callers.retain(|_, caller| {
            let is_absent = caller.slots_in_use == 0 && caller.waiting.is_empty();
            if is_absent {
                let debit_us = caller.used_us.saturating_sub(clock_us);
                caller.used_us -= debit_us.div_ceil(DECAY);
                caller.mean_us -= caller.mean_us.div_ceil(DECAY);
            }
            !is_absent || caller.used_us > clock_us || caller.mean_us >= INITIAL_MEAN_US
        });
    }
}

impl Slots {
    fn sum(self) -> u64 {
        self.shared + self.reserved
    }
}

impl Default for CallerQueue {
    fn default() -> Self {
        Self {
            used_us: 0,
            mean_us: INITIAL_MEAN_US,
            slots_in_use: 0,
            waiting: VecDeque::new(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};

    const MAX_WAIT: Duration = Duration::from_millis(100);
    const MIN_LIMIT: usize = 8;

    fn fair_queue(max_limit: usize) -> Arc<FairQueue> {
        Arc::new(FairQueue::new(
            MIN_LIMIT,
            max_limit,
            Gauge::noop(),
            StepLimiter::new(1, Duration::MAX),
        ))
    }

    /// Slots in use, and waiting calls.
    fn counts(queue: &FairQueue) -> (u64, usize) {
        let state = queue.lock();
        (state.in_use.sum(), state.waiting)
    }

    /// Takes all slots, with as many callers as needed.
    fn fill(queue: &Arc<FairQueue>) -> Vec<Permit> {
        let flows = (1000..).map(FlowKey::Connection);
        let permits = flows.map_while(|flow| queue.try_acquire(&flow));
        permits.collect()
    }

    /// Takes all slots that this caller may have.
    fn take_all(queue: &Arc<FairQueue>, flow: &FlowKey) -> Vec<Permit> {
        std::iter::from_fn(|| queue.try_acquire(flow)).collect()
    }

    /// Runs one call of this caller that uses this CPU time.
    fn spend(queue: &Arc<FairQueue>, flow: &FlowKey, busy: Duration) {
        queue.try_acquire(flow).unwrap().charge_cpu(busy);
    }

    #[tokio::test(start_paused = true)]
    async fn the_caller_with_the_lowest_usage_is_served_first() {
        let queue = fair_queue(2);
        let (hog, guest) = (FlowKey::Connection(1), FlowKey::Connection(2));
        spend(&queue, &hog, Duration::from_millis(20));
        let mut filled = fill(&queue);
        let calls = [&hog, &hog, &hog, &guest, &guest].map(|flow| {
            let queue = queue.clone();
            async move {
                let permit = queue.acquire(flow, MAX_WAIT).await.unwrap();
                (flow.clone(), permit)
            }
        });
        let mut waiting: FuturesUnordered<_> = calls.map(Box::pin).into_iter().collect();
        assert!(futures_util::poll!(waiting.next()).is_pending());
        filled.pop();
        let mut order = Vec::new();
        while let Some((flow, permit)) = waiting.next().await {
            permit.charge_cpu(Duration::from_micros(if flow == hog { 1000 } else { 100 }));
            order.push(flow == guest);
            drop(permit);
        }
        assert_eq!(order, [true, true, false, false, false]);
        assert_eq!(counts(&queue), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn one_caller_does_not_get_all_slots_however_little_it_uses() {
        let queue = fair_queue(16);
        let (hog, guest) = (FlowKey::Connection(1), FlowKey::Connection(2));
        let permits = take_all(&queue, &hog);
        assert_eq!(permits.len(), 12);
        let (more, other) = tokio::join!(queue.acquire(&hog, MAX_WAIT), async {
            queue.acquire(&guest, MAX_WAIT).await
        });
        assert!(more.is_err());
        assert!(other.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_are_expected_to_use_more_cpu_take_more_slots() {
        let queue = fair_queue(640);
        let flow = FlowKey::Connection(1);
        spend(&queue, &flow, Duration::from_millis(16));
        // 20 slots each: an eighth of the usage of the first call. The last call needs one
        // free slot of 480.
        let permits = take_all(&queue, &flow);
        assert_eq!((permits.len(), counts(&queue)), (24, (480, 0)));
        let other = FlowKey::Connection(2);
        assert!(queue.try_acquire(&other).is_some());
        drop(permits);
        assert_eq!(counts(&queue), (0, 0));
        for _ in 0..2000 {
            queue.adjust_limit(true);
        }
        assert!(queue.lock().callers.is_empty());
        assert_eq!(take_all(&queue, &flow).len(), 480);
    }

    #[tokio::test(start_paused = true)]
    async fn held_slots_are_charged_and_credit_is_bounded() {
        let queue = fair_queue(4);
        let (holder, trickle) = (FlowKey::Connection(1), FlowKey::Connection(2));
        let always = queue.try_acquire(&trickle).unwrap();
        let held = queue.try_acquire(&holder).unwrap();
        tokio::time::advance(Duration::from_secs(4)).await;
        drop(held);
        let used = |flow: &FlowKey| queue.lock().caller(flow).used_us;
        assert_eq!(used(&holder), 1_000_000);
        drop(queue.try_acquire(&holder));
        // A caller that always has a call running saves up no credit either.
        assert_eq!(used(&trickle), 1_000_000 - CREDIT_US);
        drop(always);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_charged_for_each_slot_that_it_holds() {
        let queue = fair_queue(640);
        let flow = FlowKey::Connection(1);
        spend(&queue, &flow, Duration::from_millis(16));
        let large = queue.try_acquire(&flow).unwrap();
        assert_eq!(large.cost.slots.sum(), 20);
        tokio::time::advance(Duration::from_secs(4)).await;
        drop(large);
        // 20 of 640 slots for four seconds, after 16 ms.
        assert_eq!(queue.lock().caller(&flow).used_us, 125_000 + 16_000);
    }

    #[tokio::test(start_paused = true)]
    async fn each_call_moves_the_mean_by_an_eighth() {
        let queue = fair_queue(640);
        let flow = FlowKey::Connection(1);
        let mean = || queue.lock().caller(&flow).mean_us;
        assert_eq!(mean(), 50);
        spend(&queue, &flow, Duration::from_millis(16));
        assert_eq!(mean(), 50 - 6 + 2000);
        spend(&queue, &flow, Duration::ZERO);
        assert_eq!(mean(), 2044 - 255);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_call_takes_no_more_slots_than_there_are() {
        let queue = fair_queue(640);
        let (flow, other) = (FlowKey::Connection(1), FlowKey::Connection(2));
        spend(&queue, &flow, Duration::from_millis(16));
        let _other = queue.try_acquire(&other).unwrap();
        for _ in 0..10 {
            queue.adjust_limit(false);
        }
        assert_eq!(queue.lock().limit, MIN_LIMIT as u64);
        let large = queue.try_acquire(&flow).unwrap();
        assert_eq!((large.cost.slots.shared, large.cost.slots.reserved), (6, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn callers_share_the_reserved_slots() {
        let queue = fair_queue(64);
        let [hog, second, third] = [1, 2, 3].map(FlowKey::Connection);
        let all = take_all(&queue, &hog);
        drop(queue.try_acquire(&second));
        drop(queue.try_acquire(&third));
        let (second, third) = (take_all(&queue, &second), take_all(&queue, &third));
        // A third of 16.
        assert_eq!((all.len(), second.len(), third.len()), (48, 5, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reserved_slot_goes_to_a_caller_below_its_share() {
        let queue = fair_queue(8);
        let [many, one, none] = [1, 2, 3].map(FlowKey::Connection);
        let _shared = take_all(&queue, &many);
        let _reserved = queue.try_acquire(&one).unwrap();
        queue.lock().caller(&none).used_us = 5000;
        let mut waiting = Box::pin(queue.acquire(&one, MAX_WAIT));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let mut admitted_call = Box::pin(queue.acquire(&none, MAX_WAIT));
        assert!(futures_util::poll!(&mut admitted_call).is_ready());
        assert!(futures_util::poll!(&mut waiting).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn an_absent_caller_is_removed_once_its_usage_has_decayed() {
        let queue = fair_queue(640);
        let (away, busy) = (FlowKey::Connection(1), FlowKey::Connection(2));
        spend(&queue, &away, Duration::from_millis(16));
        spend(&queue, &busy, Duration::from_millis(16));
        let call = queue.try_acquire(&busy).unwrap();
        let clock_us = queue.lock().clock_us;
        queue.lock().caller(&away).used_us = clock_us + 16_000;
        let after = |windows| {
            for _ in 0..windows {
                queue.adjust_limit(true);
            }
            let state = queue.lock();
            let caller = state.callers.get(&away);
            (
                state.callers.len(),
                caller.map(|caller| caller.mean_us >= INITIAL_MEAN_US),
            )
        };
        assert_eq!(after(1), (2, Some(true)));
        // The mean decays first.
        assert_eq!(after(299), (2, Some(false)));
        assert_eq!(after(300), (1, None));
        assert_eq!(queue.lock().caller(&busy).mean_us, 2044);
        drop(call);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_heavy_by_its_own_usage_or_by_its_callers_mean() {
        let step_limiter = StepLimiter::new(1, Duration::from_millis(1));
        let queue = Arc::new(FairQueue::new(MIN_LIMIT, 640, Gauge::noop(), step_limiter));
        let flow = FlowKey::Connection(1);
        let call = queue.try_acquire(&flow).unwrap();
        call.charge_cpu(Duration::from_millis(1));
        assert!(!call.is_heavy());
        call.charge_cpu(Duration::from_micros(1));
        assert!(call.is_heavy());
        drop(call);
        spend(&queue, &flow, Duration::from_millis(16));
        assert!(queue.try_acquire(&flow).unwrap().is_heavy());
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_call_holds_no_slot_and_does_not_stay_in_the_queue() {
        let queue = fair_queue(2);
        let flow = FlowKey::Connection(1);
        let permits = fill(&queue);
        let acquire = |calls| join_all((0..calls).map(|_| queue.acquire(&flow, MAX_WAIT)));
        let mut refused = Box::pin(acquire(MAX_WAITING + 8));
        let began = Instant::now();
        assert!(futures_util::poll!(&mut refused).is_pending());
        assert_eq!(counts(&queue), (2, MAX_WAITING));
        assert!(refused.await.iter().all(Result::is_err));
        // A call that finds its queue full is not rejected sooner.
        assert_eq!(began.elapsed(), MAX_WAIT);
        let mut last = Box::pin(acquire(1));
        assert!(futures_util::poll!(&mut last).is_pending());
        assert_eq!(counts(&queue), (2, 1));
        drop(last);
        drop(permits);
        assert_eq!(counts(&queue), (0, 0));
        let permits = fill(&queue);
        assert_eq!(permits.len(), 2);
        assert!(queue.try_acquire(&flow).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn reserved_slots_stay_reserved_while_others_hold_more_than_the_limit() {
        let queue = fair_queue(64);
        let (hog, guest) = (FlowKey::Connection(1), FlowKey::Connection(2));
        let permits = take_all(&queue, &hog);
        drop(queue.try_acquire(&guest));
        for _ in 0..8 {
            queue.adjust_limit(false);
        }
        assert_eq!((permits.len(), queue.lock().limit), (48, MIN_LIMIT as u64));
        let call = queue.try_acquire(&guest);
        assert!(call.is_some());
        assert!(queue.try_acquire(&guest).is_none());
        assert!(queue.try_acquire(&hog).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_falls_to_its_minimum_while_the_processors_do_not_keep_up() {
        let queue = fair_queue(64);
        let permits = fill(&queue);
        assert_eq!(permits.len(), 64);
        queue.adjust_limit(false);
        assert_eq!(queue.lock().limit, 32);
        for _ in 0..50 {
            queue.adjust_limit(false);
        }
        assert_eq!(queue.lock().limit, MIN_LIMIT as u64);
        drop(permits);
        queue.lock().is_contended = true;
        queue.adjust_limit(true);
        assert_eq!(queue.lock().limit, MIN_LIMIT as u64 + 2);
        for _ in 0..3 {
            queue.adjust_limit(true);
        }
        assert_eq!(queue.lock().limit, 64);
        let alone = fair_queue(64);
        let permit = alone.try_acquire(&FlowKey::Connection(1));
        alone.adjust_limit(false);
        assert_eq!((permit.is_some(), alone.lock().limit), (true, 64));
    }
}
