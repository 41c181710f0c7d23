//! Reads with a staleness bound: served from memory, never older than their bound, and
//! never older than the replica's own writes.

use std::time::Duration;

use account_service::proto::account_v1::{self as pb, Role, Source};
use tokio::time::sleep;
use tonic::Code;

use crate::harness::{Replica, no_older_than, start};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
const LONG: Duration = Duration::from_secs(30);

async fn check(
    replica: &Replica,
    consistency: Option<pb::ReadConsistency>,
) -> pb::CheckMembershipResponse {
    let request = pb::CheckMembershipRequest {
        organization_name: ORG.to_owned(),
        username: MICHAEL.to_owned(),
        consistency,
        ..pb::CheckMembershipRequest::default()
    };
    let mut client = replica.client.clone();
    client.check_membership(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_read_with_a_staleness_bound_makes_no_second_remote_call() {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    service.settle().await;
    let first = check(&service, Some(no_older_than(LONG))).await;
    assert_eq!(first.source(), Source::Cache);
    backends.forget_calls();
    let second = check(&service, Some(no_older_than(LONG))).await;
    assert_eq!(second.source(), Source::Memory);
    assert_eq!(second.role(), Role::Member);
    assert_eq!(backends.calls(), [""; 0]);
    // A read without a bound is not served from memory.
    assert_eq!(check(&service, None).await.source(), Source::Cache);
}

#[tokio::test]
async fn a_write_of_another_replica_is_visible_after_the_staleness_bound() {
    const BOUND: Duration = Duration::from_millis(300);
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org_with_michael().await;
    assert!(check(&service, Some(no_older_than(LONG))).await.is_member);
    other.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    let from_memory = check(&service, Some(no_older_than(LONG))).await;
    assert!(from_memory.is_member);
    assert_eq!(from_memory.source(), Source::Memory);
    sleep(BOUND).await;
    assert!(!check(&service, Some(no_older_than(BOUND))).await.is_member);
    assert!(!check(&service, None).await.is_member);
}

#[tokio::test]
async fn a_replica_always_reads_its_own_writes() {
    let (_backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    for _ in 0..20 {
        assert!(check(&service, Some(no_older_than(LONG))).await.is_member);
        service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
        assert!(!check(&service, Some(no_older_than(LONG))).await.is_member);
        service
            .add(ORG, MICHAEL, Role::Member, OLIVIA)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_negative_staleness_bound_is_rejected() {
    let (_backends, service) = start().await;
    let staleness = prost_types::Duration {
        seconds: -1,
        nanos: 0,
    };
    let request = pb::GetUserRequest {
        username: MICHAEL.to_owned(),
        consistency: Some(pb::ReadConsistency {
            requirement: Some(pb::read_consistency::Requirement::MaxStaleness(staleness)),
        }),
    };
    let refused = service.client.clone().get_user(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("max_staleness"), "{refused:?}");
}

#[tokio::test]
async fn reads_after_a_write_agree_with_the_records_that_it_relied_on() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org().await;
    service.delete_user(MICHAEL).await.unwrap();
    // In memory: the user does not exist.
    assert!(!check(&service, Some(no_older_than(LONG))).await.is_member);
    other.create_user(MICHAEL).await.unwrap();
    service
        .add(ORG, MICHAEL, Role::Member, OLIVIA)
        .await
        .unwrap();
    assert!(check(&service, Some(no_older_than(LONG))).await.is_member);

    // In memory: neither user exists.
    for name in [MICHAEL, OLIVIA] {
        service.delete_user(name).await.unwrap();
        assert!(!check_user(&service, name).await.is_member);
        other.create_user(name).await.unwrap();
    }
    other
        .create_organization("second-org", OLIVIA)
        .await
        .unwrap();
    other
        .add("second-org", MICHAEL, Role::Member, OLIVIA)
        .await
        .unwrap();
    service
        .transfer("second-org", MICHAEL, Some(OLIVIA))
        .await
        .unwrap();
    for (name, role) in [(MICHAEL, Role::Owner), (OLIVIA, Role::Admin)] {
        let request = pb::CheckMembershipRequest {
            organization_name: "second-org".to_owned(),
            username: name.to_owned(),
            consistency: Some(no_older_than(LONG)),
            ..pb::CheckMembershipRequest::default()
        };
        let response = service
            .client
            .clone()
            .check_membership(request)
            .await
            .unwrap();
        assert_eq!(response.into_inner().role(), role, "{name}");
    }
}

#[tokio::test]
async fn reads_after_a_write_without_effect_agree_with_its_response() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org().await;
    service.delete_user(MICHAEL).await.unwrap();
    assert!(!check_user(&service, MICHAEL).await.is_member);
    other.create_user(MICHAEL).await.unwrap();
    other.add(ORG, MICHAEL, Role::Member, OLIVIA).await.unwrap();
    // The role is the same already: the response relies on a user that is absent in memory.
    let kept = service
        .change_role(ORG, MICHAEL, Role::Member, OLIVIA)
        .await;
    assert_eq!(kept.unwrap().role(), Role::Member);
    assert!(check_user(&service, MICHAEL).await.is_member);
}

#[tokio::test]
async fn the_actor_of_a_write_is_not_denied_by_an_older_record_in_memory() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org_with_michael().await;
    service.create_user("anna").await.unwrap();
    // In memory: Anna is no member.
    assert!(!check_user(&service, "anna").await.is_member);
    other.add(ORG, "anna", Role::Owner, OLIVIA).await.unwrap();
    service.remove(ORG, MICHAEL, "anna").await.unwrap();
    assert_eq!(check_user(&service, "anna").await.role(), Role::Owner);
}

async fn check_user(replica: &Replica, username: &str) -> pb::CheckMembershipResponse {
    let request = pb::CheckMembershipRequest {
        organization_name: ORG.to_owned(),
        username: username.to_owned(),
        consistency: Some(no_older_than(LONG)),
        ..pb::CheckMembershipRequest::default()
    };
    let mut client = replica.client.clone();
    client.check_membership(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_read_during_the_confirmation_of_a_write_is_not_kept_in_memory() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org_with_michael().await;
    service.settle().await;
    let commit = backends.dynamodb.hold("TransactWriteItems", MICHAEL, 0);
    let (removed, ()) = tokio::join!(service.remove(ORG, MICHAEL, OLIVIA), async {
        commit.reached().await;
        // The fence is evicted, and the membership is cached anew.
        backends.flush_cache().await;
        assert_eq!(other.role_of(ORG, MICHAEL).await, Some(Role::Member));
        other.settle().await;
        let confirm = backends.momento.hold("SetIf", MICHAEL, 0);
        commit.release();
        confirm.reached().await;
        let meanwhile = check(&service, Some(no_older_than(LONG))).await;
        assert_eq!(meanwhile.source(), Source::Cache);
        assert!(meanwhile.is_member);
        confirm.release();
    });
    removed.unwrap();
    assert!(!check(&service, Some(no_older_than(LONG))).await.is_member);
}
