//! Reads that may be older: answered from memory, never older than they say, and
//! never from before what the replica itself wrote.

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
async fn a_read_that_may_be_older_asks_neither_cache_nor_table_twice() {
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
    // Who does not ask for it never gets it.
    assert_eq!(check(&service, None).await.source(), Source::Cache);
}

#[tokio::test]
async fn what_another_replica_wrote_is_noticed_once_the_bound_is_over() {
    const BOUND: Duration = Duration::from_millis(300);
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org_with_michael().await;
    assert!(check(&service, Some(no_older_than(LONG))).await.is_member);
    other.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    let remembered = check(&service, Some(no_older_than(LONG))).await;
    assert!(remembered.is_member);
    assert_eq!(remembered.source(), Source::Memory);
    sleep(BOUND).await;
    assert!(!check(&service, Some(no_older_than(BOUND))).await.is_member);
    assert!(!check(&service, None).await.is_member);
}

#[tokio::test]
async fn what_the_replica_wrote_itself_is_never_answered_otherwise() {
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
async fn a_bound_in_the_past_is_refused() {
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
