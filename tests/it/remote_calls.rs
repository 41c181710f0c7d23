//! The number of remote calls of each RPC, counted by the servers and asserted exactly.

use std::time::Duration;

use account_service::proto::account_v1::{self as pb, Role, Source};

use crate::harness::{Backends, Replica, from_now, start};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

async fn assert_calls<T>(
    backends: &Backends,
    service: &Replica,
    call: impl Future<Output = T>,
    expected: &[&str],
) -> T {
    service.settle().await;
    backends.forget_calls();
    let result = call.await;
    service.settle().await;
    assert_eq!(backends.calls(), expected);
    result
}

const ONE_GET: &[&str] = &["1 x Get"];
const ONE_GET_BATCH: &[&str] = &["1 x GetBatch"];
/// The look-up, the lease, the table read and the fill.
const MISS: &[&str] = &["1 x Get", "2 x SetIf", "1 x GetItem"];
/// The same for user, organization and membership.
const MISS_OF_THREE: &[&str] = &["1 x GetBatch", "6 x SetIf", "1 x BatchGetItem"];

#[tokio::test]
async fn a_cached_read_is_one_round_trip_to_the_cache_and_none_to_the_table() {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    let read = service.get_user(OLIVIA);
    let read = assert_calls(&backends, &service, read, ONE_GET).await;
    assert_eq!(read.unwrap().1, Source::Cache);
    let read = service.get_organization(ORG);
    let read = assert_calls(&backends, &service, read, ONE_GET).await;
    assert_eq!(read.unwrap().1, Source::Cache);
    let read = service.get_membership(ORG, MICHAEL);
    let read = assert_calls(&backends, &service, read, ONE_GET_BATCH).await;
    assert_eq!(read.unwrap().1, Source::Cache);
    let read = service.check(ORG, MICHAEL);
    let read = assert_calls(&backends, &service, read, ONE_GET_BATCH).await;
    assert_eq!(read.unwrap().source(), Source::Cache);
}

#[tokio::test]
async fn a_missed_read_leases_reads_and_fills() {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    backends.flush_cache().await;
    let read = service.get_user(OLIVIA);
    let read = assert_calls(&backends, &service, read, MISS).await;
    assert_eq!(read.unwrap().1, Source::Store);
    let read = service.get_organization(ORG);
    assert_calls(&backends, &service, read, MISS).await.unwrap();
    backends.flush_cache().await;
    let read = service.check(ORG, MICHAEL);
    let read = assert_calls(&backends, &service, read, MISS_OF_THREE).await;
    assert_eq!(read.unwrap().source(), Source::Store);
    let read = service.check(ORG, MICHAEL);
    let read = assert_calls(&backends, &service, read, ONE_GET_BATCH).await;
    assert_eq!(read.unwrap().source(), Source::Cache);
}

#[tokio::test]
async fn absent_records_are_cached_too() {
    let (backends, service) = start().await;
    let read = service.get_user("nobody");
    assert_calls(&backends, &service, read, MISS)
        .await
        .unwrap_err();
    let read = service.get_user("nobody");
    assert_calls(&backends, &service, read, ONE_GET)
        .await
        .unwrap_err();
    let read = service.check("no-org", "nobody");
    let expected = &["1 x GetBatch", "4 x SetIf", "1 x BatchGetItem"];
    assert_calls(&backends, &service, read, expected)
        .await
        .unwrap();
    let read = service.check("no-org", "nobody");
    assert_calls(&backends, &service, read, ONE_GET_BATCH)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_fully_consistent_read_skips_the_cache() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    let request = pb::CheckMembershipRequest {
        organization_name: ORG.to_owned(),
        username: OLIVIA.to_owned(),
        minimum_role: Role::Owner.into(),
        consistency: Some(pb::ReadConsistency {
            requirement: Some(pb::read_consistency::Requirement::FullyConsistent(true)),
        }),
        ..pb::CheckMembershipRequest::default()
    };
    let mut client = service.client.clone();
    let read = client.check_membership(request);
    let expected = &["1 x BatchGetItem"];
    let read = assert_calls(&backends, &service, read, expected).await;
    let read = read.unwrap().into_inner();
    assert!(read.satisfied);
    assert_eq!(read.source(), Source::Store);
}

#[tokio::test]
async fn a_batch_is_one_round_trip_on_hits_and_looks_each_record_up_once() {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    let check = |username: &str| pb::MembershipCheck {
        organization_name: ORG.to_owned(),
        username: username.to_owned(),
        ..pb::MembershipCheck::default()
    };
    let request = pb::BatchCheckMembershipsRequest {
        checks: [OLIVIA, MICHAEL, OLIVIA].map(check).into(),
        consistency: None,
    };
    let mut client = service.client.clone();
    let read = client.batch_check_memberships(request.clone());
    let read = assert_calls(&backends, &service, read, ONE_GET_BATCH).await;
    assert_eq!(read.unwrap().into_inner().source(), Source::Cache);

    backends.flush_cache().await;
    let read = client.batch_check_memberships(request);
    // Two users, two memberships and the organization, leased and filled.
    let expected = &["1 x GetBatch", "10 x SetIf", "1 x BatchGetItem"];
    let read = assert_calls(&backends, &service, read, expected).await;
    assert_eq!(read.unwrap().into_inner().source(), Source::Store);
}

#[tokio::test]
async fn writes_that_grant_look_up_fence_read_commit_confirm_and_publish() {
    let (backends, service) = start().await;
    let write = service.create_user(OLIVIA);
    let expected = &[
        "1 x Get",
        "3 x SetIf",
        "1 x GetItem",
        "1 x TransactWriteItems",
    ];
    assert_calls(&backends, &service, write, expected)
        .await
        .unwrap();
    service.create_user(MICHAEL).await.unwrap();

    // The batch looks up the organization and the founder's membership, the other look-up
    // the founder.
    let write = service.create_organization(ORG, OLIVIA);
    let expected = &[
        "1 x Get",
        "1 x GetBatch",
        "6 x SetIf",
        "1 x BatchGetItem",
        "1 x TransactWriteItems",
    ];
    assert_calls(&backends, &service, write, expected)
        .await
        .unwrap();

    // The second look-up is of the records that the grant relies on, beside the confirmation.
    let grant = &[
        "1 x Get",
        "1 x GetBatch",
        "3 x SetIf",
        "1 x BatchGetItem",
        "1 x TransactWriteItems",
    ];
    let write = service.add(ORG, MICHAEL, Role::Member, OLIVIA);
    assert_calls(&backends, &service, write, grant)
        .await
        .unwrap();
    let write = service.change_role(ORG, MICHAEL, Role::Admin, OLIVIA);
    assert_calls(&backends, &service, write, grant)
        .await
        .unwrap();
}

#[tokio::test]
async fn writes_that_revoke_publish_nothing() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    service
        .add(ORG, MICHAEL, Role::Admin, OLIVIA)
        .await
        .unwrap();
    // Looks up the user and the organization: the response reveals that they exist.
    let demotion = &[
        "1 x GetBatch",
        "2 x SetIf",
        "1 x BatchGetItem",
        "1 x TransactWriteItems",
    ];
    let write = service.change_role(ORG, MICHAEL, Role::Member, OLIVIA);
    assert_calls(&backends, &service, write, demotion)
        .await
        .unwrap();
    let end = pb::Membership {
        expire_time: Some(from_now(Duration::from_secs(3600))),
        ..pb::Membership::default()
    };
    let write = service.update_membership(ORG, MICHAEL, end, &["expire_time"], OLIVIA);
    assert_calls(&backends, &service, write, demotion)
        .await
        .unwrap();
    let write = service.remove(ORG, MICHAEL, OLIVIA);
    let removal = &["2 x SetIf", "1 x BatchGetItem", "1 x TransactWriteItems"];
    assert_calls(&backends, &service, write, removal)
        .await
        .unwrap();
    let write = service.delete_user(MICHAEL);
    let expected = &["2 x SetIf", "1 x GetItem", "1 x TransactWriteItems"];
    assert_calls(&backends, &service, write, expected)
        .await
        .unwrap();
}

#[tokio::test]
async fn ownership_is_transferred_in_one_transaction() {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    let mut client = service.client.clone();
    let transfer = client.transfer_ownership(pb::TransferOwnershipRequest {
        organization_name: ORG.to_owned(),
        new_owner: MICHAEL.to_owned(),
        actor: Some(pb::transfer_ownership_request::Actor::ActingUser(
            OLIVIA.to_owned(),
        )),
        ..pb::TransferOwnershipRequest::default()
    });
    let expected = &[
        "2 x GetBatch",
        "5 x SetIf",
        "1 x BatchGetItem",
        "1 x TransactWriteItems",
    ];
    assert_calls(&backends, &service, transfer, expected)
        .await
        .unwrap();
    let mut client = service.client.clone();
    let deletion = client.delete_organization(pb::DeleteOrganizationRequest {
        organization_name: ORG.to_owned(),
        actor: Some(pb::delete_organization_request::Actor::ActingUser(
            MICHAEL.to_owned(),
        )),
        ..pb::DeleteOrganizationRequest::default()
    });
    let expected = &["2 x SetIf", "1 x BatchGetItem", "1 x TransactWriteItems"];
    assert_calls(&backends, &service, deletion, expected)
        .await
        .unwrap();
}

#[tokio::test]
async fn suspensions_publish_nothing_and_resumptions_do() {
    let (backends, service) = start().await;
    service.create_user(MICHAEL).await.unwrap();
    service.settle().await;
    let mut client = service.client.clone();
    let suspension = client.suspend_user(pb::SuspendUserRequest {
        username: MICHAEL.to_owned(),
        ..pb::SuspendUserRequest::default()
    });
    let expected = &["2 x SetIf", "1 x GetItem", "1 x TransactWriteItems"];
    assert_calls(&backends, &service, suspension, expected)
        .await
        .unwrap();
    // The flush removes the suspension's fence, so that the resumption may publish.
    backends.flush_cache().await;
    let resumption = client.resume_user(pb::ResumeUserRequest {
        username: MICHAEL.to_owned(),
        ..pb::ResumeUserRequest::default()
    });
    let expected = &[
        "1 x Get",
        "3 x SetIf",
        "1 x GetItem",
        "1 x TransactWriteItems",
    ];
    assert_calls(&backends, &service, resumption, expected)
        .await
        .unwrap();
}

#[tokio::test]
async fn writes_that_change_nothing_confirm_before_they_reveal_a_record() {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    let no_op = &["1 x GetBatch", "2 x SetIf", "1 x BatchGetItem"];
    let write = service.change_role(ORG, MICHAEL, Role::Member, OLIVIA);
    assert_calls(&backends, &service, write, no_op)
        .await
        .unwrap();
    let write = service.add(ORG, MICHAEL, Role::Member, OLIVIA);
    let grant = &["1 x Get", "1 x GetBatch", "2 x SetIf", "1 x BatchGetItem"];
    assert_calls(&backends, &service, write, grant)
        .await
        .unwrap_err();
    let write = service.create_user(OLIVIA);
    let expected = &["1 x Get", "2 x SetIf", "1 x GetItem"];
    assert_calls(&backends, &service, write, expected)
        .await
        .unwrap_err();
    // An actor without permission learns nothing, so there is nothing to confirm.
    let write = service.remove(ORG, OLIVIA, MICHAEL);
    let denied = &["1 x SetIf", "1 x BatchGetItem"];
    assert_calls(&backends, &service, write, denied)
        .await
        .unwrap_err();
}

#[tokio::test]
async fn the_index_of_owners_is_queried_only_when_an_owner_leaves() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    service
        .add(ORG, MICHAEL, Role::Owner, OLIVIA)
        .await
        .unwrap();
    let write = service.remove(ORG, OLIVIA, OLIVIA);
    let expected = &[
        "2 x SetIf",
        "2 x BatchGetItem",
        "1 x Query",
        "1 x TransactWriteItems",
    ];
    assert_calls(&backends, &service, write, expected)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_request_id_costs_no_call_until_the_request_is_sent_again() {
    let (backends, service) = start().await;
    let request = pb::CreateUserRequest {
        username: OLIVIA.to_owned(),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..pb::CreateUserRequest::default()
    };
    let mut client = service.client.clone();
    let write = client.create_user(request.clone());
    let expected = &[
        "1 x Get",
        "3 x SetIf",
        "1 x GetItem",
        "1 x TransactWriteItems",
    ];
    assert_calls(&backends, &service, write, expected)
        .await
        .unwrap();
    let write = client.create_user(request);
    let expected = &["1 x Get", "2 x SetIf", "2 x GetItem"];
    assert_calls(&backends, &service, write, expected)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_look_up_by_address_reads_the_claim_from_the_table_and_the_user_from_cache() {
    let (backends, service) = start().await;
    let mut client = service.client.clone();
    let request = pb::CreateUserRequest {
        username: OLIVIA.to_owned(),
        email: "olivia@example.com".to_owned(),
        ..pb::CreateUserRequest::default()
    };
    let write = client.create_user(request);
    let expected = &[
        "1 x Get",
        "3 x SetIf",
        "2 x GetItem",
        "1 x TransactWriteItems",
    ];
    assert_calls(&backends, &service, write, expected)
        .await
        .unwrap();
    let request = pb::LookupUserRequest {
        email: "olivia@example.com".to_owned(),
        ..pb::LookupUserRequest::default()
    };
    let read = client.lookup_user(request);
    let expected = &["1 x Get", "1 x GetItem"];
    assert_calls(&backends, &service, read, expected)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_page_of_a_list_is_a_query_and_a_round_trip_to_the_cache() {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    let mut client = service.client.clone();
    // The first page token creates the key that signs page tokens.
    let request = pb::ListOrganizationMembersRequest {
        organization_name: ORG.to_owned(),
        page_size: 1,
        ..pb::ListOrganizationMembersRequest::default()
    };
    let page = client.list_organization_members(request.clone()).await;
    let request = pb::ListOrganizationMembersRequest {
        page_token: page.unwrap().into_inner().next_page_token,
        ..request
    };
    let page = client.list_organization_members(request);
    let expected = &["1 x GetBatch", "1 x Query"];
    assert_calls(&backends, &service, page, expected)
        .await
        .unwrap();
    let request = pb::ListUserOrganizationsRequest {
        username: MICHAEL.to_owned(),
        ..pb::ListUserOrganizationsRequest::default()
    };
    let page = client.list_user_organizations(request);
    assert_calls(&backends, &service, page, expected)
        .await
        .unwrap();
    let page = client.list_users(pb::ListUsersRequest::default());
    let expected = &["1 x GetBatch", "4 x Query"];
    assert_calls(&backends, &service, page, expected)
        .await
        .unwrap();
}

#[tokio::test]
async fn deletions_that_can_be_undone_publish_nothing_and_undeletions_do() {
    let (backends, service) = start().await;
    service.create_user(MICHAEL).await.unwrap();
    service.settle().await;
    let mut client = service.client.clone();
    let deletion = client.delete_user(pb::DeleteUserRequest {
        username: MICHAEL.to_owned(),
        undelete_window: Some(Duration::from_secs(3600).try_into().unwrap()),
        ..pb::DeleteUserRequest::default()
    });
    let expected = &["2 x SetIf", "1 x GetItem", "1 x TransactWriteItems"];
    assert_calls(&backends, &service, deletion, expected)
        .await
        .unwrap();
    // The flush removes the deletion's fence, so that the undeletion may publish.
    backends.flush_cache().await;
    let undeletion = client.undelete_user(pb::UndeleteUserRequest {
        username: MICHAEL.to_owned(),
        ..pb::UndeleteUserRequest::default()
    });
    let expected = &[
        "1 x Get",
        "3 x SetIf",
        "1 x GetItem",
        "1 x TransactWriteItems",
    ];
    assert_calls(&backends, &service, undeletion, expected)
        .await
        .unwrap();
}
