//! Tests of the replica directory, on a paused clock.

use tokio::time::{advance, sleep_until};

use super::*;
use crate::{coherence::test_registers::TestRegisters, peer::PeerIdentity};

fn directory(registers: &Arc<TestRegisters>) -> ReplicaDirectory {
    let identity = PeerIdentity::generate().unwrap();
    let address = identity.address("127.0.0.1:1".to_owned());
    ReplicaDirectory::new(registers.clone(), Some(address), Timing::default())
}

/// A table with the directory of two replicas, both of which may serve from their near caches.
async fn two_active() -> (Arc<TestRegisters>, ReplicaDirectory, ReplicaDirectory) {
    let registers = Arc::new(TestRegisters::default());
    let (first, second) = (directory(&registers), directory(&registers));
    first.begin().await.unwrap();
    for replica in [&first, &second] {
        replica.maintain().await.unwrap();
    }
    advance(Timing::default().join_wait).await;
    for replica in [&first, &second] {
        replica.maintain().await.unwrap();
        assert!(is_serving(replica));
    }
    (registers, first, second)
}

fn is_serving(replica: &ReplicaDirectory) -> bool {
    replica.serving_epoch(Instant::now()).is_some()
}

/// Reads the directory later than all reads before.
async fn refresh(replica: &ReplicaDirectory) -> Arc<View<Replicas>> {
    advance(Duration::from_millis(1)).await;
    replica.register.refresh().await.unwrap()
}

async fn evict(evicting: &ReplicaDirectory, evicted: &ReplicaDirectory) {
    let evicted = BTreeSet::from([evicted.incarnation().unwrap()]);
    evicting.evict(&evicted).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_replica_whose_view_lists_it_as_leaving_serves_nothing() {
    let (_, first, second) = two_active().await;
    evict(&first, &second).await;
    assert!(is_serving(&second), "its view is older");
    refresh(&second).await;
    assert!(!is_serving(&second));
    assert!(is_serving(&first));
}

#[tokio::test(start_paused = true)]
async fn a_leaving_replica_stays_listed_until_every_view_lists_it_as_leaving() {
    let (registers, first, second) = two_active().await;
    let leaving = second.incarnation().unwrap().to_string();
    evict(&first, &second).await;
    let removed_at = Instant::now() + Timing::default().settle();
    first.maintain().await.unwrap();
    assert!(registers.values().contains_key(&leaving));
    sleep_until(removed_at - Duration::from_millis(1)).await;
    first.maintain().await.unwrap();
    assert!(registers.values().contains_key(&leaving));
    assert!(!is_serving(&second), "its view has expired");
    sleep_until(removed_at).await;
    first.maintain().await.unwrap();
    assert!(!registers.values().contains_key(&leaving));
}

#[tokio::test(start_paused = true)]
async fn writes_wait_for_a_replica_that_was_evicted_and_not_for_one_that_has_stopped() {
    let (registers, first, second) = two_active().await;
    let third = directory(&registers);
    third.maintain().await.unwrap();
    let (evicted, stopped) = (second.incarnation().unwrap(), third.incarnation().unwrap());
    evict(&first, &second).await;
    third.stop().await.unwrap();
    let view = refresh(&first).await;
    let listed = |incarnation| view.state.0.get(&incarnation).unwrap();
    let now = Instant::now();
    assert!(first.has_left(listed(stopped), now));
    assert!(!first.has_left(listed(evicted), now));
    assert!(first.has_left(listed(evicted), now + Timing::default().settle()));
}
