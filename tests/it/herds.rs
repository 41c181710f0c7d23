//! Many readers of one record that is not cached: they share table reads, but never a
//! read that may be older than a write which they must see.

use std::time::Duration;

use account_service::{
    coherence::CoherenceSettings,
    proto::account_v1::{self as pb, Role},
};
use futures_util::future::join_all;

use crate::harness::{Backends, Replica, patient, script::Held, start};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
const HERD: usize = 1000;

/// A replica with a long read timeout for the cache.
async fn start_patient() -> (Backends, Replica) {
    let backends = Backends::start().await;
    let waiting = CoherenceSettings {
        cache_read_timeout: Duration::from_secs(5),
        ..CoherenceSettings::default()
    };
    let service = Replica::start_with(&backends.serve_settings(), patient(waiting)).await;
    (backends, service)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_herd_on_a_cold_record_makes_few_table_reads() {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    service.settle().await;
    for is_cache_in_use in [true, false] {
        backends.flush_cache().await;
        if !is_cache_in_use {
            backends.momento.refuse("SetIf", "", 0, usize::MAX);
        }
        backends.forget_calls();
        let herd = join_all((0..HERD).map(|_| service.check(ORG, MICHAEL))).await;
        assert!(herd.into_iter().all(|read| read.unwrap().is_member));
        let reads = backends.dynamodb.seen("BatchGetItem").len();
        println!(
            "{HERD} checks of one cold key, cache in use: {is_cache_in_use}: {reads} table reads"
        );
        assert!(reads <= HERD / 10, "{reads} table reads");
        service.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn look_ups_share_a_round_trip_while_many_others_are_in_flight() {
    const CHECKS: usize = 400;
    let (backends, service) = start_patient().await;
    service.found_olivia_org_with_michael().await;
    service.settle().await;
    backends
        .momento
        .delay("GetBatch", Duration::from_millis(200));
    for refused in [0, usize::MAX] {
        backends.momento.refuse("GetBatch", "", 0, refused);
        backends.forget_calls();
        let members = [OLIVIA, MICHAEL].into_iter().cycle().take(CHECKS);
        let checks = join_all(members.map(|member| service.check(ORG, member))).await;
        for (member, check) in [OLIVIA, MICHAEL].into_iter().cycle().zip(checks) {
            let is_owner = check.unwrap().role() == Role::Owner;
            assert_eq!(is_owner, member == OLIVIA);
        }
        let look_ups = backends.momento.seen("GetBatch").len();
        assert!((1..=CHECKS / 4).contains(&look_ups), "{look_ups} look-ups");
    }
}

#[tokio::test]
async fn a_look_up_does_not_wait_for_slow_earlier_ones() {
    let (backends, service) = start_patient().await;
    service.found_olivia_org_with_michael().await;
    service.role_of(ORG, MICHAEL).await;
    service.settle().await;
    let away = ["away-1", "away-2"];
    let held = away.map(|name| backends.momento.hold("GetBatch", name, 0));
    backends.forget_calls();
    let meanwhile = async {
        for look_up in &held {
            look_up.reached().await;
        }
        let checks = join_all((0..4).map(|_| service.check(ORG, MICHAEL))).await;
        held.into_iter().for_each(Held::release);
        checks
    };
    let (earlier, checks) = tokio::join!(
        join_all(away.map(|name| service.check(ORG, name))),
        meanwhile
    );
    for check in checks {
        assert_eq!(check.unwrap().source(), pb::Source::Cache);
    }
    assert!(earlier.into_iter().all(|check| !check.unwrap().is_member));
    let look_ups = backends.momento.seen("GetBatch").len();
    assert!((3..=6).contains(&look_ups), "{look_ups} look-ups");
}

/// Waits until the cache has received this number of look-ups.
async fn wait_for_look_ups(backends: &Backends, times: usize) {
    while backends.momento.seen("GetBatch").len() < times {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_reader_joins_a_table_read_that_is_not_sent_yet() {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    backends.flush_cache().await;
    backends.forget_calls();
    let lease = backends.momento.hold("SetIf", MICHAEL, 0);
    // Checks another user, too: the lease for that user shows that the call has joined.
    let checks = [MICHAEL, "nobody"].map(|username| pb::MembershipCheck {
        organization_name: ORG.to_owned(),
        username: username.to_owned(),
        ..pb::MembershipCheck::default()
    });
    let mut client = service.client.clone();
    let second = client.batch_check_memberships(pb::BatchCheckMembershipsRequest {
        checks: checks.into(),
        consistency: None,
    });
    let (first, second) = tokio::join!(service.check(ORG, MICHAEL), async {
        lease.reached().await;
        let joined = async {
            while !backends.momento.seen("SetIf").join(" ").contains("nobody") {
                tokio::task::yield_now().await;
            }
            lease.release();
        };
        tokio::join!(second, joined).0
    });
    assert_eq!(first.unwrap().role(), Role::Member);
    assert_eq!(second.unwrap().into_inner().results[0].role(), Role::Member);
    let reads = backends.dynamodb.seen("BatchGetItem");
    assert_eq!(reads.len(), 2);
    assert_eq!(
        reads.iter().filter(|read| read.contains(MICHAEL)).count(),
        1
    );
}

#[tokio::test]
async fn a_reader_does_not_join_a_table_read_that_a_removal_has_overtaken() {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    backends.flush_cache().await;
    let late = backends.dynamodb.hold_reply("BatchGetItem", MICHAEL);
    let (before, ()) = tokio::join!(service.role_of(ORG, MICHAEL), async {
        late.reached().await;
        service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
        assert_eq!(service.role_of(ORG, MICHAEL).await, None);
        late.release();
    });
    assert_eq!(before, Some(Role::Member));
}

#[tokio::test]
async fn a_reader_whose_shared_read_is_cancelled_reads_the_table_itself() {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    backends.flush_cache().await;
    backends.forget_calls();
    let lease = backends.momento.hold("SetIf", MICHAEL, 0);
    let leader = {
        let mut client = service.client.clone();
        tokio::spawn(async move {
            let request = pb::CheckMembershipRequest {
                organization_name: ORG.to_owned(),
                username: MICHAEL.to_owned(),
                ..pb::CheckMembershipRequest::default()
            };
            client.check_membership(request).await
        })
    };
    lease.reached().await;
    let (read, ()) = tokio::join!(service.role_of(ORG, MICHAEL), async {
        wait_for_look_ups(&backends, 2).await;
        // The call that would read for both is cancelled.
        leader.abort();
    });
    assert_eq!(read, Some(Role::Member));
    drop(lease);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_concurrent_additions_to_one_organization_all_succeed() {
    const CROWD: usize = 32;
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    let names: Vec<_> = (0..CROWD).map(|number| format!("user-{number}")).collect();
    for name in &names {
        service.create_user(name).await.unwrap();
    }
    service.settle().await;
    backends.forget_calls();
    let additions = names
        .iter()
        .map(|name| service.add(ORG, name, Role::Member, OLIVIA));
    for added in join_all(additions).await {
        added.unwrap();
    }
    for name in &names {
        assert_eq!(service.role_of(ORG, name).await, Some(Role::Member));
    }
    let transactions = backends.dynamodb.seen("TransactWriteItems").len();

    // For comparison: each write changes the organization, as a counter of members would.
    backends.forget_calls();
    let change = |name: &String| {
        let request = pb::UpdateOrganizationRequest {
            organization: Some(pb::Organization {
                organization_name: ORG.to_owned(),
                display_name: name.clone(),
                ..pb::Organization::default()
            }),
            actor: Some(pb::update_organization_request::Actor::AsPlatform(true)),
            ..pb::UpdateOrganizationRequest::default()
        };
        let mut client = service.client.clone();
        async move { client.update_organization(request).await }
    };
    for changed in join_all(names.iter().map(change)).await {
        changed.unwrap();
    }
    let attempts = backends.dynamodb.seen("TransactWriteItems").len();
    println!(
        "{CROWD} additions: {transactions} transactions; {CROWD} changes of one item: {attempts}"
    );
    // Each change is attempted once beside the others, and then at the head of the write
    // queue. There, only first attempts conflict with it.
    assert!(attempts <= 3 * CROWD, "{attempts}");
}
