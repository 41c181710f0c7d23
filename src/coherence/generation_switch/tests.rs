//! Tests of the generation switch, on a paused clock.

use std::time::Duration;

use super::*;
use crate::coherence::test_registers::TestRegisters;

/// The writes, which have taken the cache out of use once and back into use, with their phases.
fn one_cycle(registers: &TestRegisters) -> Vec<(Phase, Instant)> {
    let writes = registers.writes().into_iter();
    let writes: Vec<_> = writes
        .map(|(values, at)| (Switch::parse(&values, None).unwrap().phase, at))
        .collect();
    let phases: Vec<_> = writes.iter().map(|(phase, _)| *phase).collect();
    assert_eq!(phases, [Phase::On, Phase::Warm, Phase::Ready, Phase::On]);
    writes
}

const RESPONSE_DELAY: Duration = Duration::from_millis(300);

fn slow() -> (Arc<TestRegisters>, GenerationSwitch) {
    let registers = Arc::new(TestRegisters::slow(RESPONSE_DELAY));
    let generation_switch = GenerationSwitch::new(registers.clone(), Timing::default());
    (registers, generation_switch)
}

/// The same, with a cache that was taken out of use.
async fn slow_and_out_of_use() -> (Arc<TestRegisters>, GenerationSwitch) {
    let (registers, generation_switch) = slow();
    generation_switch.begin().await.unwrap();
    let view = generation_switch.refresh().await.unwrap();
    generation_switch.leave(&view).await.unwrap();
    (registers, generation_switch)
}

#[tokio::test(start_paused = true)]
async fn a_view_is_valid_for_its_time_from_when_its_read_was_sent() {
    let (_, generation_switch) = slow();
    generation_switch.begin().await.unwrap();
    let sent = Instant::now();
    generation_switch.refresh().await.unwrap();
    assert_eq!(sent.elapsed(), RESPONSE_DELAY);
    let valid_until = sent + Timing::default().view_ttl;
    sleep_until(valid_until - Duration::from_millis(1)).await;
    assert!(generation_switch.in_use().is_some());
    sleep_until(valid_until).await;
    assert!(generation_switch.in_use().is_none());
}

#[tokio::test(start_paused = true)]
async fn the_switch_goes_through_ready_and_waits_before_each_step() {
    let (registers, generation_switch) = slow();
    generation_switch.begin().await.unwrap();
    let before = generation_switch.refresh().await.unwrap();
    generation_switch.renew().await.unwrap();
    let writes = one_cycle(&registers);
    for steps in writes[1..].windows(2) {
        // The wait begins with the response to the write before.
        let waited = steps[1].1 - steps[0].1;
        assert_eq!(waited, RESPONSE_DELAY + Timing::default().settle());
    }
    assert!(generation_switch.in_use().is_some());
    assert_ne!(generation_switch.in_use(), Some(before.namespace));
}

#[tokio::test(start_paused = true)]
async fn a_flush_ends_even_if_the_cache_was_left_before() {
    let (registers, generation_switch) = slow_and_out_of_use().await;
    let another = GenerationSwitch::new(registers.clone(), Timing::default());
    let (first, second) = tokio::join!(generation_switch.renew(), another.renew());
    first.unwrap();
    second.unwrap();
    one_cycle(&registers);
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_responds_again_is_used_only_after_both_waits() {
    let (registers, generation_switch) = slow_and_out_of_use().await;
    let run = generation_switch.run(|_| async { true });
    let _ = timeout(Duration::from_secs(60), run).await;
    let writes = one_cycle(&registers);
    for steps in writes[1..].windows(2) {
        let waited = steps[1].1 - steps[0].1;
        assert!(waited >= Timing::default().settle(), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn views_expire_before_the_settle_time_is_over() {
    let timing = Timing::default();
    assert!(timing.settle() > timing.view_ttl);
    let (_, generation_switch) = slow();
    generation_switch.begin().await.unwrap();
    let view = generation_switch.refresh().await.unwrap();
    let left = generation_switch.leave(&view).await.unwrap();
    assert_eq!(
        generation_switch.settled_at(&left),
        Instant::now() + timing.settle()
    );
    sleep(Duration::from_millis(100)).await;
    // Another read of the same state does not restart the wait.
    let again = generation_switch.refresh().await.unwrap();
    assert_eq!(
        generation_switch.settled_at(&again),
        generation_switch.settled_at(&left)
    );
}

#[tokio::test(start_paused = true)]
async fn in_warm_and_ready_reads_do_not_use_the_cache() {
    let (_, generation_switch) = slow();
    // There is no switch yet: it begins as after an outage.
    let mut view = generation_switch.refresh().await.unwrap();
    for phase in [Phase::Warm, Phase::Ready] {
        assert_eq!(view.phase(), phase);
        assert!(generation_switch.in_use().is_none());
        view = generation_switch.step_forward(&view).await.unwrap();
    }
    assert!(generation_switch.in_use().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_switch_that_another_replica_has_moved_is_not_moved_again() {
    let (registers, generation_switch) = slow();
    generation_switch.begin().await.unwrap();
    let other = GenerationSwitch::new(registers.clone(), Timing::default());
    let view = generation_switch.refresh().await.unwrap();
    let other_view = other.refresh().await.unwrap();
    let left = other.leave(&other_view).await.unwrap();
    let seen = generation_switch.leave(&view).await.unwrap();
    assert!(seen.is_same(&left));
    assert_eq!(registers.writes().len(), 2);
}
