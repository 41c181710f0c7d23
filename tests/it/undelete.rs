//! Tests of deletions that can be undone, of their undeletion, and of the purge.

use std::time::Duration;

use account_service::{
    background::purge::PurgeTiming,
    boot::Tuning,
    proto::account_v1::{
        self as pb, ChangeKind, Role, State, change::Resource, delete_organization_request,
        undelete_organization_request,
    },
};
use tonic::{Code, Status};

use crate::{
    changes::Watch,
    harness::{Backends, Replica, assert_refused, pace, start},
    streams::{eventually, following},
};

const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
const ORG: &str = "olivia-org";
const OTHER_ORG: &str = "other-org";
const EMAIL: &str = "michael@example.com";
const DAY: Duration = Duration::from_secs(24 * 3600);
const REQUEST_ID: &str = "9b2f1d0c-5a7e-4c58-8d0e-6f1a2b3c4d5e";

fn window(window: Duration) -> prost_types::Duration {
    window.try_into().unwrap()
}

impl Replica {
    async fn delete_user_for(
        &self,
        username: &str,
        undelete_window: Duration,
    ) -> Result<pb::User, Status> {
        let request = pb::DeleteUserRequest {
            username: username.to_owned(),
            undelete_window: Some(window(undelete_window)),
            ..pb::DeleteUserRequest::default()
        };
        let deleted = self.client.clone().delete_user(request).await?;
        Ok(deleted.into_inner().user.unwrap())
    }

    async fn undelete_user(&self, username: &str) -> Result<pb::User, Status> {
        let request = pb::UndeleteUserRequest {
            username: username.to_owned(),
            ..pb::UndeleteUserRequest::default()
        };
        let undeleted = self.client.clone().undelete_user(request).await?;
        Ok(undeleted.into_inner().user.unwrap())
    }

    async fn delete_organization_for(
        &self,
        acting_user: &str,
        undelete_window: Option<Duration>,
    ) -> Result<pb::Organization, Status> {
        let acting_user = acting_user.to_owned();
        let request = pb::DeleteOrganizationRequest {
            organization_name: ORG.to_owned(),
            actor: Some(delete_organization_request::Actor::ActingUser(acting_user)),
            undelete_window: undelete_window.map(window),
            ..pb::DeleteOrganizationRequest::default()
        };
        let deleted = self.client.clone().delete_organization(request).await?;
        Ok(deleted.into_inner().organization.unwrap())
    }

    /// As this user or, without one, as the platform.
    async fn undelete_organization(
        &self,
        acting_user: Option<&str>,
    ) -> Result<pb::Organization, Status> {
        use undelete_organization_request::Actor;
        let actor = acting_user.map_or(Actor::AsPlatform(true), |user| {
            Actor::ActingUser(user.to_owned())
        });
        let request = pb::UndeleteOrganizationRequest {
            organization_name: ORG.to_owned(),
            actor: Some(actor),
            ..pb::UndeleteOrganizationRequest::default()
        };
        let undeleted = self.client.clone().undelete_organization(request).await?;
        Ok(undeleted.into_inner().organization.unwrap())
    }

    async fn listed_users(&self, show_deleted: bool) -> Vec<String> {
        let request = pb::ListUsersRequest {
            order_by: "username".to_owned(),
            show_deleted,
            ..pb::ListUsersRequest::default()
        };
        let page = self.client.clone().list_users(request).await.unwrap();
        let users = page.into_inner().users.into_iter();
        users.map(|user| user.username).collect()
    }

    async fn listed_organizations(&self, show_deleted: bool) -> Vec<String> {
        let request = pb::ListOrganizationsRequest {
            order_by: "organization_name".to_owned(),
            show_deleted,
            ..pb::ListOrganizationsRequest::default()
        };
        let page = self.client.clone().list_organizations(request).await;
        let organizations = page.unwrap().into_inner().organizations.into_iter();
        organizations.map(|it| it.organization_name).collect()
    }

    async fn members(&self) -> Result<Vec<String>, Status> {
        let request = pb::ListOrganizationMembersRequest {
            organization_name: ORG.to_owned(),
            ..pb::ListOrganizationMembersRequest::default()
        };
        let page = self
            .client
            .clone()
            .list_organization_members(request)
            .await?;
        let members = page.into_inner().memberships.into_iter();
        Ok(members.map(|it| it.member_username).collect())
    }

    async fn create_michael(&self) -> Result<pb::User, Status> {
        let request = pb::CreateUserRequest {
            username: MICHAEL.to_owned(),
            email: EMAIL.to_owned(),
            ..pb::CreateUserRequest::default()
        };
        let created = self.client.clone().create_user(request).await?;
        Ok(created.into_inner().user.unwrap())
    }

    /// Michael is a Member of Olivia's organization, and an Admin of another one.
    async fn found_with_michael(&self) -> pb::User {
        self.create_user(OLIVIA).await.unwrap();
        let michael = self.create_michael().await.unwrap();
        for (organization, role) in [(ORG, Role::Member), (OTHER_ORG, Role::Admin)] {
            self.create_organization(organization, OLIVIA)
                .await
                .unwrap();
            self.add(organization, MICHAEL, role, OLIVIA).await.unwrap();
        }
        michael
    }
}

/// The number of purges in the schedule.
async fn scheduled(backends: &Backends) -> usize {
    let items = backends.table().items().await.into_iter();
    let purges = items.filter(|item| item["PK"].as_s().unwrap() == "PURGES");
    purges.count()
}

/// A follower of the stream that purges at once.
fn purging() -> Tuning {
    Tuning {
        purge: Some(PurgeTiming {
            interval: pace(Duration::from_millis(20)),
            margin: Duration::ZERO,
        }),
        ..following()
    }
}

#[tokio::test]
async fn an_undeleted_user_has_all_memberships_that_were_not_removed() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    let created = service.found_with_michael().await;
    assert_eq!(other.role_of(ORG, MICHAEL).await, Some(Role::Member));

    let deleted = service.delete_user_for(MICHAEL, DAY).await.unwrap();
    assert_eq!(deleted.state(), State::Deleted);
    assert_ne!(deleted.etag, created.etag);
    let times = [deleted.delete_time, deleted.purge_time].map(|time| time.unwrap().seconds);
    assert_eq!(times[1] - times[0], 24 * 3600);
    for replica in [&service, &other] {
        for organization in [ORG, OTHER_ORG] {
            assert_eq!(replica.role_of(organization, MICHAEL).await, None);
        }
        let (found, _) = replica.get_user(MICHAEL).await.unwrap();
        assert_eq!(found, deleted);
        assert_eq!(replica.members().await.unwrap(), [OLIVIA]);
        assert_eq!(replica.listed_users(false).await, [OLIVIA]);
        assert_eq!(replica.listed_users(true).await, [MICHAEL, OLIVIA]);
        let gone = replica.get_membership(ORG, MICHAEL).await;
        assert_refused(gone, Code::NotFound, "MEMBERSHIP_NOT_FOUND");
    }
    // The name and the address stay taken.
    let taken = service.create_user(MICHAEL).await;
    assert_refused(taken, Code::AlreadyExists, "USER_ALREADY_EXISTS");
    let request = pb::CreateUserRequest {
        username: "another".to_owned(),
        email: EMAIL.to_uppercase(),
        ..pb::CreateUserRequest::default()
    };
    let taken = service.client.clone().create_user(request).await;
    assert_refused(taken, Code::AlreadyExists, "EMAIL_ALREADY_EXISTS");
    // A membership can be removed meanwhile.
    service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();

    let undeleted = other.undelete_user(MICHAEL).await.unwrap();
    assert_eq!(
        undeleted,
        pb::User {
            etag: undeleted.etag.clone(),
            update_time: undeleted.update_time,
            ..created
        }
    );
    for replica in [&service, &other] {
        assert_eq!(replica.role_of(ORG, MICHAEL).await, None);
        let role = replica.role_of(OTHER_ORG, MICHAEL).await;
        assert_eq!(role, Some(Role::Admin));
    }
    assert_eq!(scheduled(&backends).await, 0);
    let refused = service.undelete_user(MICHAEL).await;
    assert_refused(refused, Code::AlreadyExists, "USER_ALREADY_EXISTS");
}

#[tokio::test]
async fn nothing_is_gained_by_a_deletion_that_is_undone() {
    let (_backends, service) = start().await;
    service.found_with_michael().await;
    let suspend = pb::SuspendUserRequest {
        username: MICHAEL.to_owned(),
        ..pb::SuspendUserRequest::default()
    };
    let mut client = service.client.clone();
    client.suspend_user(suspend.clone()).await.unwrap();
    service.delete_user_for(MICHAEL, DAY).await.unwrap();
    let not_found = "USER_NOT_FOUND";
    let resume = pb::ResumeUserRequest {
        username: MICHAEL.to_owned(),
        ..pb::ResumeUserRequest::default()
    };
    let refused = client.resume_user(resume.clone()).await;
    assert_refused(refused, Code::NotFound, not_found);
    let refused = client.suspend_user(suspend).await;
    assert_refused(refused, Code::NotFound, not_found);
    let update = pb::UpdateUserRequest {
        user: Some(pb::User {
            username: MICHAEL.to_owned(),
            first_name: "Mike".to_owned(),
            ..pb::User::default()
        }),
        ..pb::UpdateUserRequest::default()
    };
    let refused = client.update_user(update).await;
    assert_refused(refused, Code::NotFound, not_found);
    // The window is not prolonged.
    let refused = service.delete_user_for(MICHAEL, DAY).await;
    assert_refused(refused, Code::NotFound, not_found);
    service.create_user("newcomer").await.unwrap();
    let organization = service.create_organization("new-org", MICHAEL).await;
    assert_refused(organization, Code::NotFound, not_found);
    let added = service.add(ORG, MICHAEL, Role::Owner, OLIVIA).await;
    assert_refused(added, Code::NotFound, not_found);
    let changed = service.change_role(ORG, MICHAEL, Role::Owner, OLIVIA).await;
    assert_refused(changed, Code::NotFound, "MEMBERSHIP_NOT_FOUND");
    let acting = service.add(OTHER_ORG, "newcomer", Role::Member, MICHAEL);
    assert_refused(acting.await, Code::PermissionDenied, "NOT_PERMITTED");
    let count = pb::CountUserOrganizationsRequest {
        username: MICHAEL.to_owned(),
    };
    let counted = client.count_user_organizations(count).await;
    assert_refused(counted, Code::NotFound, not_found);

    let undeleted = service.undelete_user(MICHAEL).await.unwrap();
    assert_eq!(undeleted.state(), State::Suspended);
    assert_eq!(service.role_of(ORG, MICHAEL).await, None);
    client.resume_user(resume).await.unwrap();
    assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Member));
}

#[tokio::test]
async fn an_owner_undeletes_the_organization_with_its_memberships() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_with_michael().await;
    let refused = service.delete_organization_for(MICHAEL, Some(DAY)).await;
    assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    let deleted = service.delete_organization_for(OLIVIA, Some(DAY)).await;
    assert_eq!(deleted.unwrap().state(), State::Deleted);
    for replica in [&service, &other] {
        for user in [OLIVIA, MICHAEL] {
            assert_eq!(replica.role_of(ORG, user).await, None);
        }
        let (found, _) = replica.get_organization(ORG).await.unwrap();
        assert_eq!(found.state(), State::Deleted);
        let members = replica.members().await;
        assert_refused(members, Code::NotFound, "ORGANIZATION_NOT_FOUND");
        assert_eq!(replica.listed_organizations(false).await, [OTHER_ORG]);
        let all = replica.listed_organizations(true).await;
        assert_eq!(all, [ORG, OTHER_ORG]);
    }
    let refused = service.create_organization(ORG, OLIVIA).await;
    assert_refused(refused, Code::AlreadyExists, "ORGANIZATION_ALREADY_EXISTS");
    let refused = service.delete_organization_for(OLIVIA, Some(DAY)).await;
    assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    for acting in [MICHAEL, "nobody"] {
        let refused = service.undelete_organization(Some(acting)).await;
        assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    }
    other.undelete_organization(Some(OLIVIA)).await.unwrap();
    for replica in [&service, &other] {
        assert_eq!(replica.role_of(ORG, OLIVIA).await, Some(Role::Owner));
        assert_eq!(replica.role_of(ORG, MICHAEL).await, Some(Role::Member));
    }
    let refused = service.undelete_organization(Some(OLIVIA)).await;
    assert_refused(refused, Code::AlreadyExists, "ORGANIZATION_ALREADY_EXISTS");
}

#[tokio::test]
async fn the_platform_alone_undeletes_an_organization_that_was_suspended() {
    let (_backends, service) = start().await;
    service.found_with_michael().await;
    let request = pb::SuspendOrganizationRequest {
        organization_name: ORG.to_owned(),
        ..pb::SuspendOrganizationRequest::default()
    };
    let mut client = service.client.clone();
    client.suspend_organization(request).await.unwrap();
    let request = pb::DeleteOrganizationRequest {
        organization_name: ORG.to_owned(),
        actor: Some(delete_organization_request::Actor::AsPlatform(true)),
        undelete_window: Some(window(DAY)),
        ..pb::DeleteOrganizationRequest::default()
    };
    client.delete_organization(request).await.unwrap();
    let refused = service.undelete_organization(Some(OLIVIA)).await;
    assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    let undeleted = service.undelete_organization(None).await.unwrap();
    assert_eq!(undeleted.state(), State::Suspended);
    assert_eq!(service.role_of(ORG, OLIVIA).await, None);
}

#[tokio::test]
async fn a_deleted_user_is_purged_after_the_window_and_the_name_inherits_nothing() {
    let backends = Backends::start().await;
    let service = Replica::start_with(&backends.serve_settings(), purging()).await;
    let mut watch = Watch::begin(&service.client).await;
    let created = service.found_with_michael().await;
    let window = Duration::from_millis(1500);
    service.delete_user_for(MICHAEL, window).await.unwrap();
    eventually("the user is purged", async || {
        service.get_user(MICHAEL).await.is_err()
    })
    .await;
    let again = service.create_michael().await.unwrap();
    assert_ne!(again.uid, created.uid);
    for organization in [ORG, OTHER_ORG] {
        assert_eq!(service.role_of(organization, MICHAEL).await, None);
    }
    assert_eq!(scheduled(&backends).await, 0);
    let mut seen = Vec::new();
    while seen.len() < 4 {
        for change in watch.changes(1).await.unwrap() {
            let kind = change.kind();
            if let Some(Resource::User(user)) = change.resource
                && user.username == MICHAEL
            {
                seen.push((kind, user.after.map(|after| after.state())));
            }
        }
    }
    assert_eq!(
        seen,
        [
            (ChangeKind::Created, Some(State::Active)),
            (ChangeKind::Updated, Some(State::Deleted)),
            (ChangeKind::Deleted, None),
            (ChangeKind::Created, Some(State::Active)),
        ]
    );
}

#[tokio::test]
async fn a_deleted_organization_is_purged_after_the_window() {
    let backends = Backends::start().await;
    let service = Replica::start_with(&backends.serve_settings(), purging()).await;
    service.found_with_michael().await;
    let window = Duration::from_millis(100);
    let deleted = service.delete_organization_for(OLIVIA, Some(window)).await;
    deleted.unwrap();
    eventually("the organization is purged", async || {
        service.create_organization(ORG, MICHAEL).await.is_ok()
    })
    .await;
    assert_eq!(service.role_of(ORG, OLIVIA).await, None);
    assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Owner));
}

#[tokio::test]
async fn after_the_window_a_deletion_is_not_undone_even_before_the_purge() {
    let (backends, service) = start().await;
    service.found_with_michael().await;
    let window = Duration::from_millis(1);
    service.delete_user_for(MICHAEL, window).await.unwrap();
    let deleted = service.delete_organization_for(OLIVIA, Some(window)).await;
    deleted.unwrap();
    eventually("the window has ended", async || {
        let refused = service.undelete_user(MICHAEL).await;
        refused.is_err_and(|status| status.code() == Code::NotFound)
    })
    .await;
    let refused = service.undelete_organization(Some(OLIVIA)).await;
    assert_refused(refused, Code::NotFound, "ORGANIZATION_NOT_FOUND");
    // Not purged: this replica does not clean up.
    assert_eq!(scheduled(&backends).await, 2);
    service.get_user(MICHAEL).await.unwrap();
}

#[tokio::test]
async fn a_deletion_without_a_window_purges_at_once() {
    let (backends, service) = start().await;
    service.found_with_michael().await;
    service.delete_user_for(MICHAEL, DAY).await.unwrap();
    let deleted = service.delete_organization_for(OLIVIA, Some(DAY)).await;
    deleted.unwrap();
    assert_eq!(scheduled(&backends).await, 2);
    service.delete_user(MICHAEL).await.unwrap();
    let refused = service.delete_organization_for(MICHAEL, None).await;
    assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    service.delete_organization_for(OLIVIA, None).await.unwrap();
    assert_eq!(scheduled(&backends).await, 0);
    let refused = service.undelete_user(MICHAEL).await;
    assert_refused(refused, Code::NotFound, "USER_NOT_FOUND");
    let refused = service.undelete_organization(None).await;
    assert_refused(refused, Code::NotFound, "ORGANIZATION_NOT_FOUND");
    service.create_michael().await.unwrap();
    service.create_organization(ORG, MICHAEL).await.unwrap();
    assert_eq!(service.role_of(ORG, OLIVIA).await, None);
}

#[tokio::test]
async fn a_window_is_longer_than_nothing_and_at_most_30_days() {
    let (_backends, service) = start().await;
    service.create_user(MICHAEL).await.unwrap();
    let too_long = 30 * DAY + Duration::from_nanos(1);
    let negative = prost_types::Duration {
        seconds: -1,
        nanos: 0,
    };
    for invalid in [window(Duration::ZERO), window(too_long), negative] {
        let request = pb::DeleteUserRequest {
            username: MICHAEL.to_owned(),
            undelete_window: Some(invalid),
            ..pb::DeleteUserRequest::default()
        };
        let refused = service.client.clone().delete_user(request).await;
        let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "undelete_window");
    }
    service.delete_user_for(MICHAEL, 30 * DAY).await.unwrap();
}

#[tokio::test]
async fn a_repeated_undeletion_changes_nothing_after_another_deletion() {
    let (_backends, service) = start().await;
    service.found_with_michael().await;
    let deleted = service.delete_user_for(MICHAEL, DAY).await.unwrap();
    let request = pb::UndeleteUserRequest {
        username: MICHAEL.to_owned(),
        etag: deleted.etag,
        request_id: REQUEST_ID.to_owned(),
    };
    let mut client = service.client.clone();
    let outdated = pb::UndeleteUserRequest {
        etag: "1-2-3".to_owned(),
        request_id: String::new(),
        ..request.clone()
    };
    let refused = client.undelete_user(outdated).await;
    assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");
    let first = client.undelete_user(request.clone()).await.unwrap();
    service.delete_user_for(MICHAEL, DAY).await.unwrap();
    let second = client.undelete_user(request).await.unwrap();
    assert_eq!(first.into_inner(), second.into_inner());
    assert_eq!(service.role_of(ORG, MICHAEL).await, None);
}

#[tokio::test]
async fn the_last_owner_is_not_deleted_for_a_time_either_if_so_requested() {
    let (_backends, service) = start().await;
    service.found_with_michael().await;
    let request = pb::DeleteUserRequest {
        username: OLIVIA.to_owned(),
        unless_last_owner: true,
        undelete_window: Some(window(DAY)),
        ..pb::DeleteUserRequest::default()
    };
    let refused = service.client.clone().delete_user(request.clone()).await;
    assert_refused(refused, Code::FailedPrecondition, "LAST_OWNER");
    for organization in [ORG, OTHER_ORG] {
        let transferred = service.change_role(organization, MICHAEL, Role::Owner, OLIVIA);
        transferred.await.unwrap();
    }
    service.client.clone().delete_user(request).await.unwrap();
    // A deleted Owner is none: Michael is the last one now.
    let refused = service.remove(ORG, MICHAEL, MICHAEL).await;
    assert_refused(refused, Code::FailedPrecondition, "LAST_OWNER");
}

#[tokio::test]
async fn the_last_owner_of_an_organization_that_is_undeleted_meanwhile_is_not_deleted() {
    let (backends, service) = start().await;
    service.found_with_michael().await;
    service.delete_organization(OTHER_ORG).await;
    let deleted = service.delete_organization_for(OLIVIA, Some(DAY)).await;
    deleted.unwrap();
    let request = pb::DeleteUserRequest {
        username: OLIVIA.to_owned(),
        unless_last_owner: true,
        ..pb::DeleteUserRequest::default()
    };
    // The deletion is decided, and the organization is undeleted before the commit.
    let held = backends.dynamodb.hold("TransactWriteItems", OLIVIA, 0);
    let mut client = service.client.clone();
    let (refused, ()) = tokio::join!(client.delete_user(request), async {
        held.reached().await;
        let undeleted = service.undelete_organization(Some(OLIVIA)).await;
        undeleted.unwrap();
        held.release();
    });
    assert_refused(refused, Code::FailedPrecondition, "LAST_OWNER");
}
