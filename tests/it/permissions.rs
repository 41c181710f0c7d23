//! Rejections and their details; the last Owner, also in a race.

use std::time::Duration;

use account_service::proto::account_v1::{self as pb, Role};
use tonic::Code;

use crate::harness::{PATIENCE, Replica, Table, assert_refused, start};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";

/// A new member of `olivia-org` with this role.
async fn member(service: &Replica, name: &str, role: Role) {
    service.create_user(name).await.unwrap();
    service.add(ORG, name, role, OLIVIA).await.unwrap();
}

#[tokio::test]
async fn only_managers_of_members_learn_whether_a_user_or_a_membership_exists() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    member(&service, "plain", Role::Member).await;
    for name in ["membermichael", "nobody"] {
        assert_refused(
            service.remove(ORG, name, "plain").await,
            Code::PermissionDenied,
            "NOT_PERMITTED",
        );
        let details = assert_refused(
            service.remove(ORG, name, OLIVIA).await,
            Code::NotFound,
            "MEMBERSHIP_NOT_FOUND",
        );
        let resource = details.resource_info().unwrap();
        assert_eq!(resource.resource_name, format!("{ORG}/{name}"));
    }
    assert_refused(
        service.add(ORG, "nobody", Role::Member, OLIVIA).await,
        Code::NotFound,
        "USER_NOT_FOUND",
    );
    assert_refused(
        service.add(ORG, "plain", Role::Admin, OLIVIA).await,
        Code::AlreadyExists,
        "MEMBERSHIP_ALREADY_EXISTS",
    );
}

#[tokio::test]
async fn the_last_owner_can_neither_leave_nor_be_demoted() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    member(&service, "adminanna", Role::Admin).await;
    let left = service.remove(ORG, OLIVIA, OLIVIA).await;
    assert_refused(left, Code::FailedPrecondition, "LAST_OWNER");
    let demoted = service.change_role(ORG, OLIVIA, Role::Admin, OLIVIA).await;
    let details = assert_refused(demoted, Code::FailedPrecondition, "LAST_OWNER");
    assert!(details.precondition_failure().is_some());
    assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Owner));

    // An Owner whose user is deleted does not count as a remaining Owner.
    member(&service, "gone", Role::Owner).await;
    service.delete_user("gone").await.unwrap();
    let left = service.remove(ORG, OLIVIA, OLIVIA).await;
    assert_refused(left, Code::FailedPrecondition, "LAST_OWNER");

    member(&service, "second", Role::Owner).await;
    service.remove(ORG, OLIVIA, OLIVIA).await.unwrap();
    let left = service.remove(ORG, "second", "second").await;
    assert_refused(left, Code::FailedPrecondition, "LAST_OWNER");
}

#[tokio::test]
async fn many_deleted_owners_do_not_hide_the_remaining_one() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    for at in 0..30 {
        let gone = format!("gone-{at}");
        member(&service, &gone, Role::Owner).await;
        service.delete_user(&gone).await.unwrap();
    }
    let left = service.remove(ORG, OLIVIA, OLIVIA).await;
    assert_refused(left, Code::FailedPrecondition, "LAST_OWNER");
    member(&service, "zoe", Role::Owner).await;
    service.remove(ORG, OLIVIA, OLIVIA).await.unwrap();
}

#[tokio::test]
async fn a_change_decided_on_a_replaced_membership_does_not_restore_it() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org().await;
    member(&service, "second", Role::Owner).await;
    member(&service, "michael", Role::Member).await;
    let late = backends.dynamodb.hold("TransactWriteItems", "michael", 0);
    let (changed, ()) = tokio::join!(
        other.change_role(ORG, "michael", Role::Admin, OLIVIA),
        async {
            late.reached().await;
            service.remove(ORG, "michael", OLIVIA).await.unwrap();
            let again = service.add(ORG, "michael", Role::Member, "second").await;
            again.unwrap();
            late.release();
        }
    );
    assert_eq!(changed.unwrap().adding_user, "second");
    let found = service.get_membership(ORG, "michael").await.unwrap().0;
    assert_eq!(
        (found.role(), found.adding_user.as_str()),
        (Role::Admin, "second")
    );
}

#[tokio::test]
async fn one_of_two_owners_who_leave_or_remove_each_other_at_once_remains() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org().await;
    for round in 0..5 {
        let second = format!("second-{round}");
        member(&service, &second, Role::Owner).await;
        let (first_left, second_left) = if round % 2 == 0 {
            tokio::join!(
                service.remove(ORG, OLIVIA, OLIVIA),
                other.remove(ORG, &second, &second),
            )
        } else {
            tokio::join!(
                service.remove(ORG, OLIVIA, &second),
                other.remove(ORG, &second, OLIVIA),
            )
        };
        let has_first = service.role_of(ORG, OLIVIA).await.is_some();
        let has_second = other.role_of(ORG, &second).await.is_some();
        assert!(has_first != has_second, "{first_left:?} {second_left:?}");
        assert!(first_left.is_ok() != second_left.is_ok());
        if has_second {
            service
                .add(ORG, OLIVIA, Role::Owner, &second)
                .await
                .unwrap();
            service.remove(ORG, &second, OLIVIA).await.unwrap();
        }
    }
}

#[tokio::test]
async fn one_of_many_concurrent_creations_of_a_name_succeeds() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    let racing = (0..16).map(|at| {
        let replica = if at % 2 == 0 { &service } else { &other };
        replica.create_user(OLIVIA)
    });
    let created = futures_util::future::join_all(racing).await;
    let mut won = Vec::new();
    for result in created {
        match result {
            Ok(user) => won.push(user),
            Err(status) => {
                assert_refused::<()>(Err(status), Code::AlreadyExists, "USER_ALREADY_EXISTS");
            }
        }
    }
    assert_eq!(won.len(), 1);
    assert_eq!(service.get_user(OLIVIA).await.unwrap().0, won[0]);
}

/// Puts members into the organization past the service, 12 kB each.
async fn add_large_members(table: &Table, count: usize) {
    let padding = "x".repeat(12 * 1024);
    let members = (0..count).map(|number| {
        vec![
            ("PK", format!("ORGMEMBERS#{ORG}")),
            ("SK", format!("MEMBER#member{number:06}")),
            ("role", "Member".to_owned()),
            ("padding", padding.clone()),
        ]
    });
    table.put_many(members.collect()).await;
}

#[tokio::test]
async fn an_owner_leaves_a_large_organization() {
    const MEMBERS: usize = 430;
    let (backends, service) = start().await;
    let table = backends.table();
    table.end_stream().await;
    service.found_olivia_org().await;
    add_large_members(&table, MEMBERS).await;
    let pages = || backends.dynamodb.seen("Query").len();
    let commits = || backends.dynamodb.seen("TransactWriteItems").len();
    backends.dynamodb.delay("Query", Duration::from_millis(250));

    backends.forget_calls();
    let refused = service.remove(ORG, OLIVIA, OLIVIA).await;
    assert_refused(refused, Code::FailedPrecondition, "LAST_OWNER");
    let all = pages();
    // Some servers count only the returned data for the size of a page.
    assert!((2..=8).contains(&all), "{all}");

    // The index finds the other Owner at any position in the organization.
    member(&service, "zoe", Role::Owner).await;
    backends.forget_calls();
    service.remove(ORG, OLIVIA, OLIVIA).await.unwrap();
    assert_eq!((pages(), commits()), (1, 1));

    // An Owner that was put past the service is not in the index: the last page has it.
    service.create_user("zz-top").await.unwrap();
    let zoe = service.get_membership(ORG, "zoe").await.unwrap().0;
    let uid = service.get_user("zz-top").await.unwrap().0.uid;
    let organization = service.get_organization(ORG).await.unwrap().0.uid;
    let (pk, sk) = (format!("ORGMEMBERS#{ORG}"), "MEMBER#zz-top");
    let owner = [
        ("PK", pk.as_str()),
        ("SK", sk),
        ("role", "Owner"),
        ("organizationUid", &organization),
        ("memberUid", &uid),
    ];
    table.put(&owner).await;
    backends.forget_calls();
    service
        .remove(ORG, "zoe", &zoe.member_username)
        .await
        .unwrap();
    // Each page is read once: the long decision is not repeated.
    assert_eq!((pages(), commits()), (all, 1));

    // The first page suffices for an Owner that is on it.
    service
        .add(ORG, "zoe", Role::Owner, "zz-top")
        .await
        .unwrap();
    let (pk, sk) = (format!("ORGMEMBERS#{ORG}"), "MEMBER#aa");
    service.create_user("aa").await.unwrap();
    let uid = service.get_user("aa").await.unwrap().0.uid;
    let owner = [
        ("PK", pk.as_str()),
        ("SK", sk),
        ("role", "Owner"),
        ("organizationUid", &organization),
        ("memberUid", &uid),
    ];
    service.remove(ORG, "zoe", "zoe").await.unwrap();
    table.put(&owner).await;
    backends.forget_calls();
    service.remove(ORG, "zz-top", "zz-top").await.unwrap();
    assert_eq!((pages(), commits()), (2, 1));
}

#[tokio::test]
async fn a_decision_beyond_its_deadline_changes_nothing_and_reports_it() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    backends.dynamodb.delay("Query", PATIENCE);
    let request = pb::RemoveUserFromOrganizationRequest {
        organization_name: ORG.to_owned(),
        member_username: OLIVIA.to_owned(),
        acting_user: OLIVIA.to_owned(),
        ..pb::RemoveUserFromOrganizationRequest::default()
    };
    let mut request = tonic::Request::new(request);
    request.set_timeout(Duration::from_millis(1500));
    let mut client = service.client.clone();
    let refused = client.remove_user_from_organization(request).await;
    let message = refused.as_ref().unwrap_err().message().to_owned();
    assert_refused(refused, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    assert!(message.starts_with("nothing was changed"), "{message}");
}
