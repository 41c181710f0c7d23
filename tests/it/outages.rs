//! A long outage of the cache: reads and, after a short wait, writes continue without it.
//! After its return, no older entry is used.

use std::time::Duration;

use account_service::{boot::provision, coherence, domain::Timestamp, proto::account_v1 as pb};
use pb::{Role, Source};
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use crate::harness::{Backends, PATIENCE, Replica, assert_refused};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

/// Settings with a switch that is quick enough for tests.
fn quick() -> coherence::CoherenceSettings {
    coherence::CoherenceSettings {
        // Long, so that a busy machine does not count as a slow cache.
        cache_read_timeout: PATIENCE,
        timing: coherence::Timing {
            view_ttl: Duration::from_millis(400),
            ..coherence::Timing::default()
        },
        ..coherence::CoherenceSettings::default()
    }
}

async fn quick_replica(backends: &Backends) -> Replica {
    Replica::start_with(&backends.serve_settings(), quick()).await
}

/// Waits until Olivia's membership is served from the cache.
async fn wait_for_the_cache(replica: &Replica) {
    let patience = Instant::now() + PATIENCE;
    while replica.check(ORG, OLIVIA).await.unwrap().source() != Source::Cache {
        assert!(Instant::now() < patience, "the cache is not used again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The generations of the cache, from the keys of the look-ups.
fn generations(backends: &Backends) -> Vec<String> {
    let keys = backends.momento.seen("GetBatch").join(" ");
    let generations = keys.split(' ').filter_map(|key| key.split('/').nth(2));
    let mut generations: Vec<_> = generations.map(str::to_owned).collect();
    generations.sort();
    generations.dedup();
    generations
}

#[tokio::test]
async fn writes_continue_without_the_cache_and_no_read_is_stale_after_its_return() {
    let backends = Backends::start().await;
    let replicas = [
        quick_replica(&backends).await,
        quick_replica(&backends).await,
    ];
    let [service, other] = &replicas;
    service.found_olivia_org_with_michael().await;
    for replica in &replicas {
        replica.settle().await;
        assert_eq!(replica.role_of(ORG, MICHAEL).await, Some(Role::Member));
    }
    backends.momento.refuse("SetIf", "", 0, usize::MAX);
    backends.momento.refuse("BesideSetIf", "", 0, usize::MAX);

    // The first write waits; the ones after it do not.
    service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    for replica in &replicas {
        let read = replica.check(ORG, MICHAEL).await.unwrap();
        assert_eq!((read.is_member, read.source()), (false, Source::Store));
    }
    other.add(ORG, MICHAEL, Role::Admin, OLIVIA).await.unwrap();
    service.create_user("newcomer").await.unwrap();
    other.delete_user("newcomer").await.unwrap();
    for replica in &replicas {
        assert_eq!(replica.role_of(ORG, MICHAEL).await, Some(Role::Admin));
        replica.get_user("newcomer").await.unwrap_err();
    }
    other.remove(ORG, MICHAEL, OLIVIA).await.unwrap();

    // The cache returns with its old entries: Michael's membership is still in it.
    backends.forget_calls();
    backends.momento.clear_rules();
    for replica in &replicas {
        wait_for_the_cache(replica).await;
        assert_eq!(replica.role_of(ORG, MICHAEL).await, None);
    }
    assert_eq!(generations(&backends).len(), 1);
}

#[tokio::test]
async fn a_throttled_cache_fails_no_call_and_is_used_again_afterwards() {
    let backends = Backends::start().await;
    let service = quick_replica(&backends).await;
    service.found_olivia_org_with_michael().await;
    service.settle().await;
    for call in ["Get", "GetBatch", "SetIf", "BesideSetIf"] {
        let limited = "operations limit exceeded";
        backends.momento.answer(call, usize::MAX, 429, limited);
    }
    let read = service.check(ORG, MICHAEL).await.unwrap();
    assert_eq!((read.is_member, read.source()), (true, Source::Store));
    service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    assert_eq!(service.role_of(ORG, MICHAEL).await, None);
    backends.momento.clear_rules();
    wait_for_the_cache(&service).await;
    assert_eq!(service.role_of(ORG, MICHAEL).await, None);
}

#[tokio::test]
async fn a_replica_that_cannot_follow_the_switch_stops_using_the_cache_in_time() {
    let backends = Backends::start().await;
    let service = backends.isolated(quick()).await;
    let behind = backends.isolated(quick()).await;
    service.replica.found_olivia_org_with_michael().await;
    service.replica.settle().await;
    let read = behind.replica.check(ORG, MICHAEL).await.unwrap();
    assert_eq!((read.is_member, read.source()), (true, Source::Cache));
    // From now on, this replica cannot read the switch.
    behind.dynamodb.refuse("BesideGetItem", "", 0, usize::MAX);
    service.momento.refuse("SetIf", "", 0, usize::MAX);
    service.replica.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    let read = behind.replica.check(ORG, MICHAEL).await.unwrap();
    assert_eq!((read.is_member, read.source()), (false, Source::Store));
    // Its writes need the switch.
    let refused = behind.replica.create_user("late").await;
    assert_refused(refused, Code::Unavailable, "STORE_UNAVAILABLE");
}

#[tokio::test]
async fn a_write_that_has_no_time_to_leave_the_cache_changes_nothing() {
    let backends = Backends::start().await;
    let service = Replica::start_with(
        &backends.serve_settings(),
        coherence::CoherenceSettings {
            timing: coherence::Timing {
                view_ttl: PATIENCE,
                ..coherence::Timing::default()
            },
            ..quick()
        },
    )
    .await;
    backends.momento.refuse("SetIf", "", 0, usize::MAX);
    for _ in 0..2 {
        let mut request = Request::new(pb::CreateUserRequest {
            username: "late".to_owned(),
            ..pb::CreateUserRequest::default()
        });
        request.set_timeout(Duration::from_millis(1500));
        let refused = service.client.clone().create_user(request).await;
        let details = assert_refused(refused, Code::Unavailable, "CACHE_UNAVAILABLE");
        assert!(details.retry_info().is_some());
    }
    assert_eq!(backends.dynamodb.seen("TransactWriteItems").len(), 0);
    service.get_user("late").await.unwrap_err();
}

#[tokio::test]
async fn a_write_that_cannot_be_confirmed_in_time_reports_it_and_is_confirmed_later() {
    let backends = Backends::start().await;
    let service = quick_replica(&backends).await;
    let other = quick_replica(&backends).await;
    service.found_olivia_org_with_michael().await;
    backends.momento.refuse("SetIf", MICHAEL, 1, usize::MAX);
    let mut request = Request::new(pb::RemoveUserFromOrganizationRequest {
        organization_name: ORG.to_owned(),
        member_username: MICHAEL.to_owned(),
        acting_user: OLIVIA.to_owned(),
        ..pb::RemoveUserFromOrganizationRequest::default()
    });
    request.set_timeout(Duration::from_millis(450));
    let mut client = service.client.clone();
    let details = assert_refused(
        client.remove_user_from_organization(request).await,
        Code::Unavailable,
        "APPLIED_NOT_CONFIRMED",
    );
    // Without a request id, the request must not be sent again.
    assert!(details.retry_info().is_none());
    service.settle().await;
    assert_eq!(other.role_of(ORG, MICHAEL).await, None);
    // Only leaving the cache could confirm the write.
    let steps = backends.dynamodb.seen("BesidePutItem").join(" ");
    assert!(steps.contains("WARM"), "{steps}");
}

/// Starts the removal of Michael.
fn remove_michael(
    replica: &Replica,
) -> tokio::task::JoinHandle<Result<tonic::Response<pb::RemoveUserFromOrganizationResponse>, Status>>
{
    let mut client = replica.client.clone();
    let request = pb::RemoveUserFromOrganizationRequest {
        organization_name: ORG.to_owned(),
        member_username: MICHAEL.to_owned(),
        acting_user: OLIVIA.to_owned(),
        ..pb::RemoveUserFromOrganizationRequest::default()
    };
    tokio::spawn(async move { client.remove_user_from_organization(request).await })
}

#[tokio::test]
async fn a_write_that_leaves_the_cache_waits_for_replicas_with_an_older_view() {
    let backends = Backends::start().await;
    let unhurried = coherence::CoherenceSettings {
        timing: coherence::Timing::default(),
        ..quick()
    };
    let service = backends.isolated(unhurried.clone()).await;
    let behind = backends.isolated(unhurried).await;
    service.replica.found_olivia_org_with_michael().await;
    let commit = service.dynamodb.hold("TransactWriteItems", MICHAEL, 0);
    let removal = remove_michael(&service.replica);
    commit.reached().await;
    // The fence is evicted, and the record that is about to change is cached.
    backends.flush_cache().await;
    behind.replica.check(ORG, MICHAEL).await.unwrap();
    behind.replica.settle().await;
    let read = behind.replica.check(ORG, MICHAEL).await.unwrap();
    assert_eq!((read.is_member, read.source()), (true, Source::Cache));
    // From now on, this replica cannot read the switch, and the writer cannot fence.
    behind.dynamodb.refuse("BesideGetItem", "", 0, usize::MAX);
    service.momento.refuse("SetIf", "", 0, usize::MAX);
    commit.release();
    removal.await.unwrap().unwrap();
    assert_eq!(behind.replica.role_of(ORG, MICHAEL).await, None);
}

#[tokio::test]
async fn a_write_is_not_acknowledged_while_its_replica_cannot_read_the_switch() {
    let backends = Backends::start().await;
    let service = quick_replica(&backends).await;
    service.found_olivia_org_with_michael().await;
    // Holds both attempts: one attempt is shorter than the life of a view.
    let commits = [0, 0].map(|skip| backends.dynamodb.hold("TransactWriteItems", MICHAEL, skip));
    let removal = remove_michael(&service);
    commits[0].reached().await;
    backends.dynamodb.refuse("BesideGetItem", "", 0, usize::MAX);
    let patience = Instant::now() + PATIENCE;
    while service.check(ORG, OLIVIA).await.unwrap().source() == Source::Cache {
        assert!(Instant::now() < patience, "the view does not expire");
    }
    drop(commits);
    assert_refused(
        removal.await.unwrap(),
        Code::Unavailable,
        "APPLIED_NOT_CONFIRMED",
    );
}

/// Puts the switch into a phase by hand.
async fn put_switch(backends: &Backends, phase: &str) {
    let register = "SERVICE#cache-generation";
    let table = backends.table();
    table.set_text(register, register, "phase", phase).await;
}

/// Waits until Olivia's membership is served from the table.
async fn wait_for_the_table(replica: &Replica) {
    let patience = Instant::now() + PATIENCE;
    while replica.check(ORG, OLIVIA).await.unwrap().source() == Source::Cache {
        assert!(Instant::now() < patience, "the cache is still used");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_write_that_began_before_the_cache_was_in_use_publishes_nothing() {
    for is_in_use_at_the_end in [false, true] {
        let backends = Backends::start().await;
        let service = quick_replica(&backends).await;
        service.found_olivia_org().await;
        service.settle().await;
        wait_for_the_cache(&service).await;
        // The service itself cannot advance the switch.
        backends.momento.refuse("BesideSetIf", "", 0, usize::MAX);
        put_switch(&backends, "READY").await;
        wait_for_the_table(&service).await;
        backends.forget_calls();
        let commits =
            [0, 0].map(|skip| backends.dynamodb.hold("TransactWriteItems", MICHAEL, skip));
        let (added, ()) = tokio::join!(service.add(ORG, MICHAEL, Role::Member, OLIVIA), async {
            commits[0].reached().await;
            if is_in_use_at_the_end {
                put_switch(&backends, "ON").await;
                wait_for_the_cache(&service).await;
            }
            drop(commits);
        });
        added.unwrap();
        service.settle().await;
        let membership = format!("m/{ORG}/{MICHAEL}");
        let sets = backends.momento.seen("SetIf");
        let sets = sets.iter().filter(|keys| keys.ends_with(&membership));
        assert_eq!(sets.count(), 2, "a fence and a confirmation");
    }
}

#[tokio::test]
async fn a_cache_that_fails_between_commit_and_confirmation_is_left() {
    let backends = Backends::start().await;
    let service = quick_replica(&backends).await;
    let other = quick_replica(&backends).await;
    service.found_olivia_org_with_michael().await;
    backends.momento.refuse("SetIf", MICHAEL, 1, usize::MAX);
    service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    assert_eq!(other.role_of(ORG, MICHAEL).await, None);
}

#[tokio::test]
async fn an_operator_can_flush_the_whole_cache() {
    let backends = Backends::start().await;
    let service = quick_replica(&backends).await;
    service.found_olivia_org().await;
    service.settle().await;
    wait_for_the_cache(&service).await;
    let [before] = generations(&backends).try_into().unwrap();
    let settings = backends.serve_settings().backends;
    provision::flush(&settings).await.unwrap();
    backends.forget_calls();
    wait_for_the_cache(&service).await;
    assert!(!generations(&backends).contains(&before));
}

#[tokio::test]
async fn writes_during_a_flush_are_visible_at_once() {
    let backends = Backends::start().await;
    let replicas = [
        quick_replica(&backends).await,
        quick_replica(&backends).await,
    ];
    let [service, other] = &replicas;
    service.found_olivia_org().await;
    let settings = backends.serve_settings().backends;
    let flush = tokio::spawn(async move { provision::flush(&settings).await });
    while !flush.is_finished() {
        service
            .add(ORG, MICHAEL, Role::Member, OLIVIA)
            .await
            .unwrap();
        for replica in &replicas {
            assert_eq!(replica.role_of(ORG, MICHAEL).await, Some(Role::Member));
        }
        other.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
        for replica in &replicas {
            assert_eq!(replica.role_of(ORG, MICHAEL).await, None);
        }
    }
    flush.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_deleted_switch_is_created_again_with_an_empty_cache() {
    let backends = Backends::start().await;
    let service = quick_replica(&backends).await;
    service.found_olivia_org().await;
    service.settle().await;
    wait_for_the_cache(&service).await;
    let [before] = generations(&backends).try_into().unwrap();
    backends
        .table()
        .delete("SERVICE#cache-generation", "SERVICE#cache-generation")
        .await;
    service.create_user("meanwhile").await.unwrap();
    tokio::time::timeout(PATIENCE, async {
        while service.check(ORG, OLIVIA).await.unwrap().source() == Source::Cache {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    backends.forget_calls();
    wait_for_the_cache(&service).await;
    assert!(!generations(&backends).contains(&before));
    service.get_user("meanwhile").await.unwrap();
}

#[tokio::test]
async fn replicas_whose_clocks_differ_by_minutes_serve_no_stale_reads() {
    fn early() -> Timestamp {
        Timestamp(Timestamp::now().0 - 60_000)
    }
    fn late() -> Timestamp {
        Timestamp(Timestamp::now().0 + 60_000)
    }
    let backends = Backends::start().await;
    let settings = backends.serve_settings();
    let with_clock = |wall_clock| coherence::CoherenceSettings {
        wall_clock,
        ..quick()
    };
    let early = Replica::start_with(&settings, with_clock(early)).await;
    let late = Replica::start_with(&settings, with_clock(late)).await;
    early.found_olivia_org().await;
    for (writer, reader) in [(&early, &late), (&late, &early)] {
        for _ in 0..3 {
            writer
                .add(ORG, MICHAEL, Role::Member, OLIVIA)
                .await
                .unwrap();
            writer.settle().await;
            for replica in [reader, writer] {
                assert_eq!(replica.role_of(ORG, MICHAEL).await, Some(Role::Member));
            }
            writer.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
            for replica in [reader, writer] {
                assert_eq!(replica.role_of(ORG, MICHAEL).await, None);
                replica.settle().await;
            }
        }
        writer.create_user("newcomer").await.unwrap();
        reader.get_user("newcomer").await.unwrap();
        reader.delete_user("newcomer").await.unwrap();
        writer.get_user("newcomer").await.unwrap_err();
    }
}
