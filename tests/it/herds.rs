//! Many readers of one record that is not cached: they share table reads, but never a
//! read that may be older than a write which they must see.

use account_service::proto::account_v1::{self as pb, Role};
use futures_util::future::join_all;

use crate::harness::{Backends, Replica, start};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
const HERD: usize = 1000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_herd_on_a_cold_record_makes_few_table_reads() {
    let backends = Backends::start().await;
    let mut settings = backends.serve_settings();
    // The default, so that most of the herd does not look in the cache.
    settings.cache.cache_operations_per_second = 100;
    let service = Replica::start(&settings).await;
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
