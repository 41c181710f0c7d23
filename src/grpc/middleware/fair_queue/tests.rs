//! Tests of the fair queue.

use super::{
    queue_state::{CREDIT_US, INITIAL_MEAN_US, MAX_WAITING},
    *,
};
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
