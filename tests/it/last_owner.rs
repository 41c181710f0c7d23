//! Tests of last Owners: `DeleteUser`, `SuspendUser` and the list of their organizations.

use std::time::Duration;

use account_service::proto::account_v1::{self as pb, Role};
use tonic::{Code, Status};

use crate::harness::{Replica, assert_refused, from_now, start};

const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

async fn delete(service: &Replica, username: &str) -> Result<pb::User, Status> {
    let request = pb::DeleteUserRequest {
        username: username.to_owned(),
        unless_last_owner: true,
        ..pb::DeleteUserRequest::default()
    };
    let deleted = service.client.clone().delete_user(request).await?;
    Ok(deleted.into_inner().user.unwrap())
}

async fn suspend(service: &Replica, username: &str) -> Result<pb::User, Status> {
    let request = pb::SuspendUserRequest {
        username: username.to_owned(),
        unless_last_owner: true,
        ..pb::SuspendUserRequest::default()
    };
    let suspended = service.client.clone().suspend_user(request).await?;
    Ok(suspended.into_inner().user.unwrap())
}

/// Creates Olivia's organizations, with these numbers.
async fn found(service: &Replica, numbers: std::ops::Range<usize>) -> Vec<String> {
    let names: Vec<_> = numbers.map(|number| format!("org-{number:02}")).collect();
    for name in &names {
        service.create_organization(name, OLIVIA).await.unwrap();
    }
    names
}

/// The organizations of which Olivia is the last Owner, by pages of two examined ones.
async fn listed(service: &Replica) -> Vec<String> {
    let mut client = service.client.clone();
    let mut names = Vec::new();
    let mut request = pb::ListUserOrganizationsRequest {
        username: OLIVIA.to_owned(),
        page_size: 2,
        last_owner_only: true,
        ..pb::ListUserOrganizationsRequest::default()
    };
    loop {
        let page = client.list_user_organizations(request.clone()).await;
        let page = page.unwrap().into_inner();
        assert!(page.memberships.len() <= 2);
        let organizations = page.memberships.into_iter();
        names.extend(organizations.map(|it| it.organization_name));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return names;
        }
    }
}

async fn two_users() -> (crate::harness::Backends, Replica) {
    let (backends, service) = start().await;
    for username in [OLIVIA, MICHAEL] {
        service.create_user(username).await.unwrap();
    }
    (backends, service)
}

/// The organizations that a refusal names.
fn named<T: std::fmt::Debug>(refused: Result<T, Status>) -> Vec<String> {
    let details = assert_refused(refused, Code::FailedPrecondition, "LAST_OWNER");
    let violations = details.precondition_failure().unwrap().violations.iter();
    violations.map(|it| it.subject.clone()).collect()
}

#[tokio::test]
async fn the_last_owner_of_an_organization_is_neither_deleted_nor_suspended_if_so_requested() {
    let (_backends, service) = two_users().await;
    let organizations = found(&service, 0..12).await;
    for (organization, role) in organizations.iter().zip([Role::Owner, Role::Admin]) {
        let added = service.add(organization, MICHAEL, role, OLIVIA).await;
        added.unwrap();
    }
    let without_other = &organizations[1..];
    assert_eq!(listed(&service).await, without_other);
    assert_eq!(named(delete(&service, OLIVIA).await), without_other[..10]);
    assert_eq!(named(suspend(&service, OLIVIA).await), without_other[..10]);
    service.get_user(OLIVIA).await.unwrap();
    // Members, Admins and Owners beside another Owner are not protected.
    suspend(&service, MICHAEL).await.unwrap();
    // Olivia is the last Owner who can act.
    assert_eq!(listed(&service).await, organizations);
    delete(&service, MICHAEL).await.unwrap();
    // Without the request, as before.
    service.delete_user(OLIVIA).await.unwrap();
}

#[tokio::test]
async fn an_owner_beside_another_one_is_deleted_also_while_the_organization_is_suspended() {
    let (_backends, service) = two_users().await;
    for organization in found(&service, 0..2).await {
        let added = service.add(&organization, MICHAEL, Role::Owner, OLIVIA);
        added.await.unwrap();
    }
    let request = pb::SuspendOrganizationRequest {
        organization_name: "org-00".to_owned(),
        ..pb::SuspendOrganizationRequest::default()
    };
    let mut client = service.client.clone();
    client.suspend_organization(request).await.unwrap();
    service.delete_organization("org-01").await;
    assert_eq!(listed(&service).await, Vec::<String>::new());
    delete(&service, OLIVIA).await.unwrap();
    assert_eq!(named(delete(&service, MICHAEL).await), ["org-00"]);
}

#[tokio::test]
async fn an_owner_whose_membership_expires_does_not_replace_the_last_owner() {
    let (_backends, service) = two_users().await;
    found(&service, 0..1).await;
    let request = pb::AddUserToOrganizationRequest {
        organization_name: "org-00".to_owned(),
        member_username: MICHAEL.to_owned(),
        role: Role::Owner.into(),
        adding_user: OLIVIA.to_owned(),
        expire_time: Some(from_now(Duration::from_secs(3600))),
        ..pb::AddUserToOrganizationRequest::default()
    };
    let mut client = service.client.clone();
    client.add_user_to_organization(request).await.unwrap();
    assert_eq!(named(delete(&service, OLIVIA).await), ["org-00"]);
    delete(&service, MICHAEL).await.unwrap();
}

#[tokio::test]
async fn an_owner_of_many_organizations_is_checked_in_one_transaction_up_to_30() {
    let (_backends, service) = two_users().await;
    for organization in found(&service, 0..31).await {
        let added = service.add(&organization, MICHAEL, Role::Owner, OLIVIA);
        added.await.unwrap();
    }
    let refused = suspend(&service, OLIVIA).await;
    let reason = "TOO_MANY_ORGANIZATIONS";
    assert_refused(refused, Code::FailedPrecondition, reason);
    service.remove("org-30", OLIVIA, OLIVIA).await.unwrap();
    suspend(&service, OLIVIA).await.unwrap();
}

#[tokio::test]
async fn one_of_two_owners_who_are_deleted_at_once_remains() {
    let (backends, service) = two_users().await;
    let other = backends.replica().await;
    for number in 0..10 {
        let organization = found(&service, number..number + 1).await.remove(0);
        let added = service.add(&organization, MICHAEL, Role::Owner, OLIVIA);
        added.await.unwrap();
        let deleted = tokio::join!(delete(&service, OLIVIA), delete(&other, MICHAEL));
        let (gone, refused) = match deleted {
            (Ok(gone), refused) | (refused, Ok(gone)) => (gone.username, refused),
            both => panic!("{both:?}"),
        };
        assert_eq!(named(refused), [organization.as_str()]);
        service.delete_organization(&organization).await;
        service.create_user(&gone).await.unwrap();
    }
}
