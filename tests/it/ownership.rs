//! Organizations are handed over and deleted.

use account_service::proto::account_v1::{
    self as pb, Role, delete_organization_request as delete,
    transfer_ownership_request::Actor as Transferring,
};
use tonic::{Code, Status};

use crate::harness::{Replica, assert_refused, start};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

async fn transfer(
    replica: &Replica,
    new_owner: &str,
    actor: impl Into<Option<Transferring>>,
) -> Result<pb::TransferOwnershipResponse, Status> {
    let request = pb::TransferOwnershipRequest {
        organization_name: ORG.to_owned(),
        new_owner: new_owner.to_owned(),
        actor: actor.into(),
        ..pb::TransferOwnershipRequest::default()
    };
    let response = replica.client.clone().transfer_ownership(request).await?;
    Ok(response.into_inner())
}

#[tokio::test]
async fn the_role_of_a_new_owner_is_cached_by_the_transfer() {
    let (_backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    for _ in 0..2 {
        service.check(ORG, MICHAEL).await.unwrap();
        service.settle().await;
    }
    transfer(&service, MICHAEL, by(OLIVIA)).await.unwrap();
    service.settle().await;
    let check = service.check(ORG, MICHAEL).await.unwrap();
    assert_eq!(
        (check.role(), check.source()),
        (Role::Owner, pb::Source::Cache)
    );
}

fn by(username: &str) -> Transferring {
    Transferring::ActingUser(username.to_owned())
}

async fn delete_organization(
    replica: &Replica,
    etag: &str,
    actor: impl Into<Option<delete::Actor>>,
) -> Result<pb::Organization, Status> {
    let request = pb::DeleteOrganizationRequest {
        organization_name: ORG.to_owned(),
        etag: etag.to_owned(),
        actor: actor.into(),
        ..pb::DeleteOrganizationRequest::default()
    };
    let response = replica.client.clone().delete_organization(request).await?;
    Ok(response.into_inner().organization.unwrap())
}

fn deleting(username: &str) -> delete::Actor {
    delete::Actor::ActingUser(username.to_owned())
}

#[tokio::test]
async fn an_owner_hands_over_and_becomes_an_admin_in_one_step() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org_with_michael().await;
    for name in [OLIVIA, MICHAEL] {
        assert!(other.check(ORG, name).await.unwrap().is_member);
    }
    backends.forget_calls();
    let owners = transfer(&service, MICHAEL, by(OLIVIA)).await.unwrap();
    assert_eq!(owners.new_owner.unwrap().role(), Role::Owner);
    assert_eq!(owners.previous_owner.unwrap().role(), Role::Admin);
    assert_eq!(backends.dynamodb.seen("TransactWriteItems").len(), 1);
    for replica in [&service, &other] {
        assert_eq!(replica.role_of(ORG, MICHAEL).await, Some(Role::Owner));
        assert_eq!(replica.role_of(ORG, OLIVIA).await, Some(Role::Admin));
    }
    // The previous Owner cannot transfer the organization any more.
    let refused = transfer(&other, OLIVIA, by(OLIVIA)).await;
    assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    let to_oneself = transfer(&other, MICHAEL, by(MICHAEL)).await.unwrap();
    assert_eq!(to_oneself.new_owner.unwrap().role(), Role::Owner);
    assert_eq!(to_oneself.previous_owner, None);
    // If the new Owner is an Owner already, only the demotion of the previous Owner remains.
    service
        .change_role(ORG, OLIVIA, Role::Owner, MICHAEL)
        .await
        .unwrap();
    transfer(&service, OLIVIA, by(MICHAEL)).await.unwrap();
    assert_eq!(other.role_of(ORG, OLIVIA).await, Some(Role::Owner));
    assert_eq!(other.role_of(ORG, MICHAEL).await, Some(Role::Admin));
}

#[tokio::test]
async fn the_platform_adds_an_owner_to_an_organization_that_has_none() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org().await;
    let platform = || Transferring::AsPlatform(true);
    let refused = transfer(&service, "nobody", platform()).await;
    assert_refused(refused, Code::NotFound, "USER_NOT_FOUND");
    service.delete_user(OLIVIA).await.unwrap();
    for replica in [&service, &other] {
        assert_eq!(replica.role_of(ORG, MICHAEL).await, None);
    }
    let owners = transfer(&service, MICHAEL, platform()).await.unwrap();
    assert_eq!(owners.previous_owner, None);
    let owner = owners.new_owner.unwrap();
    assert_eq!(
        (owner.role(), owner.adding_user.as_str()),
        (Role::Owner, "")
    );
    for replica in [&service, &other] {
        assert_eq!(replica.role_of(ORG, MICHAEL).await, Some(Role::Owner));
    }
    // The name has a membership of an earlier incarnation: the transfer replaces it.
    service.create_user(OLIVIA).await.unwrap();
    assert_eq!(other.role_of(ORG, OLIVIA).await, None);
    transfer(&service, OLIVIA, platform()).await.unwrap();
    assert_eq!(other.role_of(ORG, OLIVIA).await, Some(Role::Owner));
    let left = other.remove(ORG, MICHAEL, MICHAEL).await;
    left.unwrap();
    let again = transfer(&other, OLIVIA, platform()).await.unwrap();
    assert_eq!(again.new_owner.unwrap().role(), Role::Owner);
    delete_organization(&service, "", delete::Actor::AsPlatform(true))
        .await
        .unwrap();
    let refused = transfer(&service, MICHAEL, platform()).await;
    assert_refused(refused, Code::NotFound, "ORGANIZATION_NOT_FOUND");
}

#[tokio::test]
async fn only_owners_can_transfer_ownership_and_only_to_active_members() {
    let (_backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    service.create_user("stranger").await.unwrap();
    for name in [MICHAEL, "stranger", "nobody"] {
        let refused = transfer(&service, MICHAEL, by(name)).await;
        assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    }
    for name in ["stranger", "nobody"] {
        let refused = transfer(&service, name, by(OLIVIA)).await;
        assert_refused(refused, Code::NotFound, "MEMBERSHIP_NOT_FOUND");
    }
    for actor in [None, Some(Transferring::AsPlatform(false))] {
        let refused = transfer(&service, MICHAEL, actor).await;
        assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    }
    let suspension = pb::SuspendUserRequest {
        username: MICHAEL.to_owned(),
        ..pb::SuspendUserRequest::default()
    };
    let mut client = service.client.clone();
    client.suspend_user(suspension).await.unwrap();
    let refused = transfer(&service, MICHAEL, by(OLIVIA)).await;
    assert_refused(refused, Code::FailedPrecondition, "NEW_OWNER_SUSPENDED");
    assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Owner));
}

#[tokio::test]
async fn the_platform_gives_an_organization_without_owners_a_new_owner() {
    let (_backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    service.delete_user(OLIVIA).await.unwrap();
    let platform = Some(Transferring::AsPlatform(true));
    let owners = transfer(&service, MICHAEL, platform).await.unwrap();
    assert_eq!(owners.previous_owner, None);
    assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Owner));
}

#[tokio::test]
async fn members_of_a_deleted_organization_are_denied_at_once_and_under_a_reused_name() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org_with_michael().await;
    for name in [OLIVIA, MICHAEL] {
        assert!(other.check(ORG, name).await.unwrap().is_member);
    }
    service
        .change_role(ORG, MICHAEL, Role::Admin, OLIVIA)
        .await
        .unwrap();
    for name in [MICHAEL, "nobody"] {
        let refused = delete_organization(&service, "", deleting(name)).await;
        assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    }
    let refused = delete_organization(&service, "stale", deleting(OLIVIA)).await;
    assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");
    let before = service.get_organization(ORG).await.unwrap().0;
    let deleted = delete_organization(&service, &before.etag, deleting(OLIVIA)).await;
    assert_eq!(deleted.unwrap(), before);
    for replica in [&service, &other] {
        for name in [OLIVIA, MICHAEL] {
            assert_eq!(replica.role_of(ORG, name).await, None);
        }
        let refused = replica.get_organization(ORG).await;
        assert_refused(refused, Code::NotFound, "ORGANIZATION_NOT_FOUND");
    }
    let refused = delete_organization(&service, "", deleting(OLIVIA)).await;
    assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    let platform = Some(delete::Actor::AsPlatform(true));
    let refused = delete_organization(&service, "", platform.clone()).await;
    assert_refused(refused, Code::NotFound, "ORGANIZATION_NOT_FOUND");

    // Another user takes the name again: the former members inherit nothing.
    other.create_organization(ORG, MICHAEL).await.unwrap();
    assert_eq!(service.role_of(ORG, OLIVIA).await, None);
    assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Owner));
    other.add(ORG, OLIVIA, Role::Member, MICHAEL).await.unwrap();
    assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Member));
    delete_organization(&service, "", platform).await.unwrap();
    assert_eq!(other.role_of(ORG, OLIVIA).await, None);
}
