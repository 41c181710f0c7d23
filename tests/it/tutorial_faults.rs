//! Faults of the tutorial's service that are impossible in this one. The numbers are
//! those of the list in docs/tutorial.md.

use account_service::proto::account_v1::Role;
use tonic::Code;

use crate::harness::{assert_refused, start};

const NO_ORG: &str = "no-org";
const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

#[tokio::test]
async fn fault_1_a_miss_cached_as_absent_does_not_hide_a_new_organization() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.create_user(OLIVIA).await.unwrap();
    for replica in [&service, &other] {
        assert_eq!(replica.role_of(ORG, OLIVIA).await, None);
        replica.get_organization(ORG).await.unwrap_err();
        replica.settle().await;
    }
    service.create_organization(ORG, OLIVIA).await.unwrap();
    for replica in [&service, &other] {
        assert_eq!(replica.role_of(ORG, OLIVIA).await, Some(Role::Owner));
        replica.get_organization(ORG).await.unwrap();
    }
}

#[tokio::test]
async fn fault_2_a_slow_reader_that_saw_nothing_does_not_overwrite_a_newer_user() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    let slow = backends.dynamodb.hold_reply("GetItem", OLIVIA);
    let (read, ()) = tokio::join!(other.get_user(OLIVIA), async {
        slow.reached().await;
        service.create_user(OLIVIA).await.unwrap();
        slow.release();
    });
    assert_refused(read, Code::NotFound, "USER_NOT_FOUND");
    other.settle().await;
    service.settle().await;
    other.get_user(OLIVIA).await.unwrap();
    service.get_user(OLIVIA).await.unwrap();
}

#[tokio::test]
async fn fault_2_a_slow_reader_of_an_old_item_does_not_overwrite_a_newer_one() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org_with_michael().await;
    backends.flush_cache().await;
    let slow = backends.dynamodb.hold_reply("BatchGetItem", MICHAEL);
    let (read, ()) = tokio::join!(other.role_of(ORG, MICHAEL), async {
        slow.reached().await;
        service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
        slow.release();
    });
    assert_eq!(read, Some(Role::Member));
    other.settle().await;
    assert_eq!(other.role_of(ORG, MICHAEL).await, None);
    assert_eq!(service.role_of(ORG, MICHAEL).await, None);
}

#[tokio::test]
async fn fault_3_a_cache_failure_after_the_commit_does_not_fail_the_write() {
    let (backends, service) = start().await;
    // The fence is placed; the next three attempts at the confirmation fail.
    backends.momento.refuse("SetIf", OLIVIA, 1, 3);
    service.create_user(OLIVIA).await.unwrap();
    service.get_user(OLIVIA).await.unwrap();
}

#[tokio::test]
async fn fault_3_a_failing_cache_fails_no_read_that_the_table_can_serve() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    backends.momento.refuse("Get", "", 0, usize::MAX);
    backends.momento.refuse("GetBatch", "", 0, usize::MAX);
    backends.momento.refuse("SetIf", "", 0, usize::MAX);
    service.get_user(OLIVIA).await.unwrap();
    service.get_organization(ORG).await.unwrap();
    service.get_membership(ORG, OLIVIA).await.unwrap();
    assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Owner));
}

#[tokio::test]
async fn fault_4_cache_fills_come_from_strongly_consistent_reads() {
    let (backends, service) = start().await;
    service.get_user(OLIVIA).await.unwrap_err();
    service.get_organization(ORG).await.unwrap_err();
    service.check(NO_ORG, MICHAEL).await.unwrap();
    for operation in ["GetItem", "BatchGetItem"] {
        let reads = backends.dynamodb.seen(operation);
        assert!(!reads.is_empty());
        for read in reads {
            assert!(read.contains(r#""ConsistentRead":true"#), "{read}");
        }
    }
}

#[tokio::test]
async fn fault_5_an_admin_cannot_grant_owner() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    service.create_user("adminanna").await.unwrap();
    service
        .add(ORG, "adminanna", Role::Admin, OLIVIA)
        .await
        .unwrap();
    assert_refused(
        service.add(ORG, MICHAEL, Role::Owner, "adminanna").await,
        Code::PermissionDenied,
        "NOT_PERMITTED",
    );
    assert_refused(
        service
            .change_role(ORG, "adminanna", Role::Owner, "adminanna")
            .await,
        Code::PermissionDenied,
        "NOT_PERMITTED",
    );
    service
        .add(ORG, MICHAEL, Role::Member, "adminanna")
        .await
        .unwrap();
}

#[tokio::test]
async fn fault_5_a_demoted_admin_cannot_act_even_on_a_decision_made_before() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org().await;
    service.create_user("adminanna").await.unwrap();
    service
        .add(ORG, "adminanna", Role::Admin, OLIVIA)
        .await
        .unwrap();
    // Anna's request has been decided and is on its way to the table.
    let late = backends.dynamodb.hold("TransactWriteItems", MICHAEL, 0);
    let (added, ()) = tokio::join!(other.add(ORG, MICHAEL, Role::Member, "adminanna"), async {
        late.reached().await;
        service
            .change_role(ORG, "adminanna", Role::Member, OLIVIA)
            .await
            .unwrap();
        late.release();
    });
    assert_refused(added, Code::PermissionDenied, "NOT_PERMITTED");
    assert_eq!(service.role_of(ORG, MICHAEL).await, None);
}

#[tokio::test]
async fn fault_5_a_deleted_user_cannot_found_an_organization() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.create_user(OLIVIA).await.unwrap();
    let late = backends.dynamodb.hold("TransactWriteItems", ORG, 0);
    let (founded, ()) = tokio::join!(other.create_organization(ORG, OLIVIA), async {
        late.reached().await;
        service.delete_user(OLIVIA).await.unwrap();
        late.release();
    });
    assert_refused(founded, Code::NotFound, "USER_NOT_FOUND");
    assert_refused(
        service.get_organization(ORG).await,
        Code::NotFound,
        "ORGANIZATION_NOT_FOUND",
    );
}

#[tokio::test]
async fn fault_6_invalid_names_are_rejected_and_never_rewritten() {
    let (_backends, service) = start().await;
    for name in ["日本", "#", "", "OliviaOwner", "olivia owner", "a/b"] {
        assert_refused(
            service.create_user(name).await,
            Code::InvalidArgument,
            "INVALID_FIELD",
        );
        assert_refused(
            service.create_organization(name, OLIVIA).await,
            Code::InvalidArgument,
            "INVALID_FIELD",
        );
    }
}

#[tokio::test]
async fn fault_7_outsiders_cannot_tell_whether_an_organization_exists() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    service.create_user("outsider").await.unwrap();
    let mut refusals = Vec::new();
    for organization in [ORG, NO_ORG] {
        for acting in ["outsider", "nobody"] {
            for target in [OLIVIA, MICHAEL, "outsider", "nobody"] {
                refusals.push(
                    service
                        .add(organization, target, Role::Member, acting)
                        .await
                        .unwrap_err(),
                );
                refusals.push(
                    service
                        .change_role(organization, target, Role::Member, acting)
                        .await
                        .unwrap_err(),
                );
                refusals.push(
                    service
                        .remove(organization, target, acting)
                        .await
                        .unwrap_err(),
                );
            }
        }
    }
    for refusal in &refusals {
        assert_eq!(refusal.code(), Code::PermissionDenied);
        assert_eq!(refusal.message(), refusals[0].message());
        assert_eq!(refusal.details(), refusals[0].details());
    }
}

#[tokio::test]
async fn fault_8_a_create_whose_reply_was_lost_is_not_a_conflict_with_itself() {
    let (backends, service) = start().await;
    backends.dynamodb.lose_reply("TransactWriteItems", OLIVIA);
    let created = service.create_user(OLIVIA).await.unwrap();
    assert_eq!(service.get_user(OLIVIA).await.unwrap().0, created);
    assert_eq!(backends.dynamodb.seen("TransactWriteItems").len(), 2);

    backends.dynamodb.lose_reply("TransactWriteItems", ORG);
    service.create_organization(ORG, OLIVIA).await.unwrap();
    assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Owner));

    backends.dynamodb.lose_reply("TransactWriteItems", OLIVIA);
    service.delete_user(OLIVIA).await.unwrap();
    assert_eq!(service.role_of(ORG, OLIVIA).await, None);
}

#[tokio::test]
async fn fault_8_a_transaction_conflict_is_retried_and_then_reported() {
    const CONFLICT: &str = r#"{
        "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
        "Message": "Transaction cancelled",
        "CancellationReasons": [{"Code": "TransactionConflict"}]
    }"#;
    let (backends, service) = start().await;
    backends
        .dynamodb
        .answer("TransactWriteItems", 2, 400, CONFLICT);
    service.create_user(OLIVIA).await.unwrap();

    backends
        .dynamodb
        .answer("TransactWriteItems", usize::MAX, 400, CONFLICT);
    let details = assert_refused(
        service.create_user(MICHAEL).await,
        Code::Aborted,
        "CONTENTION",
    );
    assert!(details.retry_info().is_some());
}

#[tokio::test]
async fn fault_9_two_deployments_in_one_cache_do_not_share_entries() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    service.settle().await;
    let stranger = backends.replica_on_another_table().await;
    assert_refused(
        stranger.get_user(OLIVIA).await,
        Code::NotFound,
        "USER_NOT_FOUND",
    );
    assert_eq!(stranger.role_of(ORG, OLIVIA).await, None);
    stranger.settle().await;
    assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Owner));
    service.get_user(OLIVIA).await.unwrap();
}
