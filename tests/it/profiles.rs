//! Profiles of users and organizations, their versions, and suspension.

use std::collections::BTreeMap;

use account_service::proto::account_v1::{
    self as pb, Role, Source, State, update_organization_request::Actor,
};
use prost_reflect::DescriptorPool;
use prost_types::FieldMask;
use tonic::{Code, Status};

use crate::harness::{Backends, Replica, assert_refused, start};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

fn mask(paths: &[&str]) -> FieldMask {
    FieldMask {
        paths: paths.iter().map(|path| (*path).to_owned()).collect(),
    }
}

fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    let labels = labels.iter();
    labels
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

async fn update_user(
    replica: &Replica,
    user: pb::User,
    update_mask: Option<FieldMask>,
) -> Result<pb::User, Status> {
    let request = pb::UpdateUserRequest {
        user: Some(user),
        update_mask,
        ..pb::UpdateUserRequest::default()
    };
    let response = replica.client.clone().update_user(request).await?;
    Ok(response.into_inner().user.unwrap())
}

async fn update_organization(
    replica: &Replica,
    display_name: &str,
    etag: &str,
    actor: Option<Actor>,
) -> Result<pb::Organization, Status> {
    let organization = pb::Organization {
        organization_name: ORG.to_owned(),
        display_name: display_name.to_owned(),
        etag: etag.to_owned(),
        ..pb::Organization::default()
    };
    let request = pb::UpdateOrganizationRequest {
        organization: Some(organization),
        update_mask: Some(mask(&["display_name"])),
        actor,
        ..pb::UpdateOrganizationRequest::default()
    };
    let response = replica.client.clone().update_organization(request).await?;
    Ok(response.into_inner().organization.unwrap())
}

async fn suspend_user(replica: &Replica, username: &str, etag: &str) -> Result<pb::User, Status> {
    let request = pb::SuspendUserRequest {
        username: username.to_owned(),
        etag: etag.to_owned(),
        ..pb::SuspendUserRequest::default()
    };
    let response = replica.client.clone().suspend_user(request).await?;
    Ok(response.into_inner().user.unwrap())
}

async fn resume_user(replica: &Replica, username: &str) -> Result<pb::User, Status> {
    let request = pb::ResumeUserRequest {
        username: username.to_owned(),
        ..pb::ResumeUserRequest::default()
    };
    let response = replica.client.clone().resume_user(request).await?;
    Ok(response.into_inner().user.unwrap())
}

async fn suspend_organization(replica: &Replica) -> pb::Organization {
    let request = pb::SuspendOrganizationRequest {
        organization_name: ORG.to_owned(),
        ..pb::SuspendOrganizationRequest::default()
    };
    let response = replica.client.clone().suspend_organization(request).await;
    response.unwrap().into_inner().organization.unwrap()
}

async fn resume_organization(replica: &Replica) -> pb::Organization {
    let request = pb::ResumeOrganizationRequest {
        organization_name: ORG.to_owned(),
        ..pb::ResumeOrganizationRequest::default()
    };
    let response = replica.client.clone().resume_organization(request).await;
    response.unwrap().into_inner().organization.unwrap()
}

/// Two replicas that both have Olivia's and Michael's memberships cached.
async fn two_replicas() -> (Backends, Replica, Replica) {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org_with_michael().await;
    for replica in [&service, &other] {
        for name in [OLIVIA, MICHAEL] {
            assert!(replica.check(ORG, name).await.unwrap().is_member);
        }
    }
    (backends, service, other)
}

#[tokio::test]
async fn an_update_changes_only_the_fields_in_the_mask() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    let request = pb::CreateUserRequest {
        username: OLIVIA.to_owned(),
        first_name: "Olivia".to_owned(),
        last_name: "Smith".to_owned(),
        display_name: "日本 # Olivia".to_owned(),
        labels: labels(&[("team", "a"), ("tier", "1")]),
        ..pb::CreateUserRequest::default()
    };
    let created = service.client.clone().create_user(request).await.unwrap();
    let created = created.into_inner().user.unwrap();
    assert_eq!(created.state(), State::Active);
    let edit = pb::User {
        username: OLIVIA.to_owned(),
        last_name: "Miller".to_owned(),
        labels: labels(&[("tier", "2")]),
        // Ignored.
        uid: "another".to_owned(),
        state: State::Suspended.into(),
        ..pb::User::default()
    };
    let updated = update_user(
        &service,
        edit.clone(),
        Some(mask(&["last_name", "first_name"])),
    )
    .await;
    let updated = updated.unwrap();
    let expected = pb::User {
        first_name: String::new(),
        last_name: "Miller".to_owned(),
        etag: updated.etag.clone(),
        update_time: updated.update_time,
        ..created.clone()
    };
    assert_eq!(updated, expected);
    assert_ne!(updated.etag, created.etag);
    service.settle().await;
    // Published: the next read is a hit, on every replica.
    let read = other.get_user(OLIVIA).await.unwrap();
    assert_eq!(read, (updated.clone(), Source::Cache));

    // Without a mask, the fields that are given are changed.
    let updated = update_user(&service, edit.clone(), None).await.unwrap();
    assert_eq!(updated.labels, labels(&[("tier", "2")]));
    assert_eq!(updated.display_name, created.display_name);
    // With the mask `*`, the fields that are not given are emptied.
    let updated = update_user(&service, edit.clone(), Some(mask(&["*"])))
        .await
        .unwrap();
    assert_eq!(updated.display_name, "");
    // An update without effect makes no version.
    let again = update_user(&service, edit.clone(), None).await.unwrap();
    assert_eq!(again, updated);

    let refused = update_user(
        &service,
        edit.clone(),
        Some(mask(&["last_name", "nickname"])),
    )
    .await;
    let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    let violations = &details.bad_request().unwrap().field_violations;
    assert_eq!(violations[0].field, "update_mask.paths[1]");
    let nobody = pb::User {
        username: "nobody".to_owned(),
        ..edit
    };
    let refused = update_user(&service, nobody, None).await;
    assert_refused(refused, Code::NotFound, "USER_NOT_FOUND");
}

#[tokio::test]
async fn labels_and_display_names_are_bounded() {
    let (_backends, service) = start().await;
    service.create_user(OLIVIA).await.unwrap();
    let many: Vec<_> = (0..33).map(|number| number.to_string()).collect();
    let many: Vec<_> = many.iter().map(|key| (key.as_str(), "")).collect();
    for (user, field) in [
        (
            pb::User {
                labels: labels(&many),
                ..pb::User::default()
            },
            "user.labels",
        ),
        (
            pb::User {
                labels: labels(&[("Team", "x")]),
                ..pb::User::default()
            },
            "user.labels",
        ),
        (
            pb::User {
                display_name: "x".repeat(257),
                ..pb::User::default()
            },
            "user.display_name",
        ),
    ] {
        let user = pb::User {
            username: OLIVIA.to_owned(),
            ..user
        };
        let refused = update_user(&service, user, None).await;
        let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, field);
    }
}

#[tokio::test]
async fn a_change_with_an_outdated_etag_is_aborted() {
    let (_backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    let before = service.get_user(OLIVIA).await.unwrap().0;
    let rename = |name: &str, etag: &str| pb::User {
        username: OLIVIA.to_owned(),
        first_name: name.to_owned(),
        etag: etag.to_owned(),
        ..pb::User::default()
    };
    let after = update_user(&service, rename("One", &before.etag), None).await;
    let after = after.unwrap();
    let refused = update_user(&service, rename("Two", &before.etag), None).await;
    assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");
    assert_eq!(service.get_user(OLIVIA).await.unwrap().0, after);
    let refused = suspend_user(&service, OLIVIA, &before.etag).await;
    assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");
    let request = pb::DeleteUserRequest {
        username: OLIVIA.to_owned(),
        etag: before.etag.clone(),
        ..pb::DeleteUserRequest::default()
    };
    let refused = service.client.clone().delete_user(request).await;
    assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");

    let member = service.get_membership(ORG, MICHAEL).await.unwrap().0;
    let promote = |etag: &str| pb::ChangeMemberRoleRequest {
        organization_name: ORG.to_owned(),
        member_username: MICHAEL.to_owned(),
        role: Role::Admin.into(),
        acting_user: OLIVIA.to_owned(),
        etag: etag.to_owned(),
        ..pb::ChangeMemberRoleRequest::default()
    };
    let mut client = service.client.clone();
    let promoted = client.change_member_role(promote(&member.etag)).await;
    promoted.unwrap();
    let refused = client.change_member_role(promote(&member.etag)).await;
    assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");
    let removal = pb::RemoveUserFromOrganizationRequest {
        organization_name: ORG.to_owned(),
        member_username: MICHAEL.to_owned(),
        acting_user: OLIVIA.to_owned(),
        etag: member.etag,
        ..pb::RemoveUserFromOrganizationRequest::default()
    };
    let refused = client.remove_user_from_organization(removal).await;
    assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");
    assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Admin));
}

#[tokio::test]
async fn an_organization_is_updated_by_its_admins_and_the_platform_only() {
    let (_backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    service.create_user("stranger").await.unwrap();
    let user = |name: &str| Some(Actor::ActingUser(name.to_owned()));
    let updated = update_organization(&service, "Olivia's", "", user(OLIVIA)).await;
    assert_eq!(updated.unwrap().display_name, "Olivia's");
    for name in [MICHAEL, "stranger", "nobody"] {
        let refused = update_organization(&service, "Mine", "", user(name)).await;
        assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    }
    service
        .change_role(ORG, MICHAEL, Role::Admin, OLIVIA)
        .await
        .unwrap();
    for actor in [user(MICHAEL), Some(Actor::AsPlatform(true))] {
        let updated = update_organization(&service, &format!("{actor:?}"), "", actor).await;
        updated.unwrap();
    }
    let refused = update_organization(&service, "x", "stale", user(OLIVIA)).await;
    assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");
    for actor in [None, Some(Actor::AsPlatform(false))] {
        let refused = update_organization(&service, "x", "", actor).await;
        assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    }
}

#[tokio::test]
async fn a_suspended_user_is_denied_everywhere_at_once_until_resumed() {
    let (_backends, service, other) = Box::pin(two_replicas()).await;
    let suspended = suspend_user(&service, OLIVIA, "").await.unwrap();
    assert_eq!(suspended.state(), State::Suspended);
    for replica in [&service, &other] {
        assert_eq!(replica.role_of(ORG, OLIVIA).await, None);
        assert_eq!(replica.role_of(ORG, MICHAEL).await, Some(Role::Member));
        let membership = replica.get_membership(ORG, OLIVIA).await.unwrap().0;
        assert_eq!(membership.role(), Role::Owner);
        assert_eq!(membership.state(), State::Suspended);
        // A suspended user cannot act.
        let refused = replica.remove(ORG, MICHAEL, OLIVIA).await;
        assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
        let refused = replica.remove(ORG, OLIVIA, OLIVIA).await;
        assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    }
    let again = suspend_user(&other, OLIVIA, "").await.unwrap();
    assert_eq!(again, suspended);
    let resumed = resume_user(&other, OLIVIA).await.unwrap();
    assert_eq!(resumed.state(), State::Active);
    for replica in [&service, &other] {
        assert_eq!(replica.role_of(ORG, OLIVIA).await, Some(Role::Owner));
    }
    let refused = suspend_user(&service, "nobody", "").await;
    assert_refused(refused, Code::NotFound, "USER_NOT_FOUND");
}

#[tokio::test]
async fn the_members_of_a_suspended_organization_are_denied_at_once_until_it_is_resumed() {
    let (_backends, service, other) = Box::pin(two_replicas()).await;
    assert_eq!(
        suspend_organization(&service).await.state(),
        State::Suspended
    );
    for replica in [&service, &other] {
        for name in [OLIVIA, MICHAEL] {
            assert_eq!(replica.role_of(ORG, name).await, None);
        }
        let refused = replica.remove(ORG, MICHAEL, OLIVIA).await;
        assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    }
    assert_eq!(resume_organization(&other).await.state(), State::Active);
    for replica in [&service, &other] {
        assert_eq!(replica.role_of(ORG, MICHAEL).await, Some(Role::Member));
    }
}

#[tokio::test]
async fn a_suspended_member_can_be_managed_but_does_not_count_as_an_owner() {
    let (_backends, service, other) = Box::pin(two_replicas()).await;
    service
        .change_role(ORG, MICHAEL, Role::Owner, OLIVIA)
        .await
        .unwrap();
    suspend_user(&service, MICHAEL, "").await.unwrap();
    let refused = service.remove(ORG, OLIVIA, OLIVIA).await;
    assert_refused(refused, Code::FailedPrecondition, "LAST_OWNER");
    let refused = service.add(ORG, MICHAEL, Role::Member, OLIVIA).await;
    assert_refused(refused, Code::AlreadyExists, "MEMBERSHIP_ALREADY_EXISTS");
    let demoted = service
        .change_role(ORG, MICHAEL, Role::Admin, OLIVIA)
        .await
        .unwrap();
    assert_eq!(demoted.state(), State::Suspended);
    assert_eq!(other.role_of(ORG, MICHAEL).await, None);
    resume_user(&other, MICHAEL).await.unwrap();
    assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Admin));
    service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
}

#[tokio::test]
async fn an_update_of_labels_alone_is_stored() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    let before = service.get_user(OLIVIA).await.unwrap().0;
    for value in ["a", "b"] {
        let edit = pb::User {
            username: OLIVIA.to_owned(),
            labels: labels(&[("team", value)]),
            ..pb::User::default()
        };
        let updated = update_user(&service, edit, Some(mask(&["labels"])))
            .await
            .unwrap();
        assert_eq!(updated.labels, labels(&[("team", value)]));
        assert_ne!(updated.etag, before.etag);
        assert_eq!(service.get_user(OLIVIA).await.unwrap().0, updated);
    }
    let before = service.get_organization(ORG).await.unwrap().0;
    for value in ["a", "b"] {
        let request = pb::UpdateOrganizationRequest {
            organization: Some(pb::Organization {
                organization_name: ORG.to_owned(),
                labels: labels(&[("team", value)]),
                ..pb::Organization::default()
            }),
            update_mask: Some(mask(&["labels"])),
            actor: Some(Actor::AsPlatform(true)),
            ..pb::UpdateOrganizationRequest::default()
        };
        let updated = service.client.clone().update_organization(request).await;
        let updated = updated.unwrap().into_inner().organization.unwrap();
        assert_eq!(updated.labels, labels(&[("team", value)]));
        assert_ne!(updated.etag, before.etag);
        assert_eq!(service.get_organization(ORG).await.unwrap().0, updated);
    }
}

#[tokio::test]
async fn an_outdated_etag_prevents_suspension_and_resumption() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    let mut client = service.client.clone();
    let suspend = |etag: &str| pb::SuspendOrganizationRequest {
        organization_name: ORG.to_owned(),
        etag: etag.to_owned(),
        ..pb::SuspendOrganizationRequest::default()
    };
    let resume = |etag: &str| pb::ResumeOrganizationRequest {
        organization_name: ORG.to_owned(),
        etag: etag.to_owned(),
        ..pb::ResumeOrganizationRequest::default()
    };
    let first = service.get_organization(ORG).await.unwrap().0;
    let refused = client.suspend_organization(suspend("stale")).await;
    assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");
    let suspended = client.suspend_organization(suspend(&first.etag)).await;
    let suspended = suspended.unwrap().into_inner().organization.unwrap();
    let refused = client.resume_organization(resume(&first.etag)).await;
    assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");
    let refused = client.suspend_organization(suspend(&first.etag)).await;
    assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");
    let resumed = client.resume_organization(resume(&suspended.etag)).await;
    let resumed = resumed.unwrap().into_inner().organization.unwrap();
    assert_eq!(resumed.state(), State::Active);

    let user = service.get_user(OLIVIA).await.unwrap().0;
    let suspended = suspend_user(&service, OLIVIA, &user.etag).await.unwrap();
    let request = |etag: &str| pb::ResumeUserRequest {
        username: OLIVIA.to_owned(),
        etag: etag.to_owned(),
        ..pb::ResumeUserRequest::default()
    };
    let refused = client.resume_user(request(&user.etag)).await;
    assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");
    client.resume_user(request(&suspended.etag)).await.unwrap();
}

#[tokio::test]
async fn a_change_keeps_attributes_of_newer_versions_of_the_service() {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    let table = backends.table();
    let [user, organization] = [format!("USER#{OLIVIA}"), format!("ORG#{ORG}")];
    let members = format!("ORGMEMBERS#{ORG}");
    let (olivia, michael) = (format!("MEMBER#{OLIVIA}"), format!("MEMBER#{MICHAEL}"));
    let items = [
        (user.as_str(), user.as_str()),
        (organization.as_str(), organization.as_str()),
        (members.as_str(), olivia.as_str()),
        (members.as_str(), michael.as_str()),
    ];
    for (pk, sk) in items {
        table.set_text(pk, sk, "ofANewerVersion", "kept").await;
    }
    let edit = pb::User {
        username: OLIVIA.to_owned(),
        first_name: "Olive".to_owned(),
        email: "olivia@example.com".to_owned(),
        ..pb::User::default()
    };
    let request = pb::UpdateUserRequest {
        user: Some(edit),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..pb::UpdateUserRequest::default()
    };
    service.client.clone().update_user(request).await.unwrap();
    let attributes = table.attributes_of(&user, &user).await.unwrap();
    assert!(
        attributes.contains(&"requestId".to_owned()),
        "{attributes:?}"
    );
    // An emptied attribute is removed, and so are the attributes about the previous change.
    let edit = pb::User {
        username: OLIVIA.to_owned(),
        ..pb::User::default()
    };
    update_user(&service, edit, Some(mask(&["email"])))
        .await
        .unwrap();
    let attributes = table.attributes_of(&user, &user).await.unwrap();
    for gone in ["email", "requestId", "changedBy"] {
        assert!(!attributes.contains(&gone.to_owned()), "{attributes:?}");
    }
    suspend_user(&service, OLIVIA, "").await.unwrap();
    resume_user(&service, OLIVIA).await.unwrap();
    update_organization(&service, "Olivia & Co", "", Some(Actor::AsPlatform(true)))
        .await
        .unwrap();
    suspend_organization(&service).await;
    resume_organization(&service).await;
    service
        .change_role(ORG, MICHAEL, Role::Admin, OLIVIA)
        .await
        .unwrap();
    service.transfer(ORG, MICHAEL, Some(OLIVIA)).await.unwrap();
    for (pk, sk) in items {
        let item = table.partition(pk).await.remove(sk).unwrap();
        assert_eq!(item["ofANewerVersion"].as_s().unwrap(), "kept", "{sk}");
    }
    // A membership that replaces one of an earlier incarnation is new.
    service.delete_user(MICHAEL).await.unwrap();
    service.create_user(MICHAEL).await.unwrap();
    service.transfer(ORG, OLIVIA, None).await.unwrap();
    service
        .add(ORG, MICHAEL, Role::Member, OLIVIA)
        .await
        .unwrap();
    let attributes = table.attributes_of(&members, &michael).await.unwrap();
    assert!(
        !attributes.contains(&"ofANewerVersion".to_owned()),
        "{attributes:?}"
    );
}

#[tokio::test]
async fn a_stored_text_with_invisible_characters_is_kept_and_a_new_one_is_rejected() {
    const ODD: &str = "Olivia\u{200b}";
    const NAME: &str = "olivia-of-old";
    let (backends, service) = start().await;
    // Written past the service, which would reject the text.
    let key = format!("USER#{NAME}");
    let item = [
        ("PK", key.as_str()),
        ("SK", &key),
        ("username", NAME),
        ("displayName", ODD),
    ];
    backends.table().put(&item).await;
    let mut client = service.client.clone();
    let update = |display_name: &str, first_name: &str| pb::UpdateUserRequest {
        user: Some(pb::User {
            username: NAME.to_owned(),
            display_name: display_name.to_owned(),
            first_name: first_name.to_owned(),
            ..pb::User::default()
        }),
        ..pb::UpdateUserRequest::default()
    };
    let updated = client.update_user(update(ODD, "Olivia")).await.unwrap();
    let updated = updated.into_inner().user.unwrap();
    assert_eq!(
        (updated.display_name.as_str(), updated.first_name.as_str()),
        (ODD, "Olivia")
    );
    for (odd, field) in [
        (update("\u{202e}aivilO", "Olivia"), "user.display_name"),
        (update(ODD, " "), "user.first_name"),
    ] {
        let refused = client.update_user(odd).await;
        let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, field);
    }
    let create = pb::CreateUserRequest {
        username: "another".to_owned(),
        display_name: ODD.to_owned(),
        ..pb::CreateUserRequest::default()
    };
    let refused = client.create_user(create).await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
}

/// The names of all fields, as a transcoder lists those of the body.
fn every_field(message: &str) -> FieldMask {
    let pool = DescriptorPool::decode(pb::DESCRIPTOR_SET).unwrap();
    let message = pool.get_message_by_name(&format!("account.v1.{message}"));
    let message = message.unwrap();
    let fields = message.fields().map(|field| field.json_name().to_owned());
    FieldMask {
        paths: fields.collect(),
    }
}

#[tokio::test]
async fn a_resource_can_be_read_edited_and_sent_back_as_a_whole() {
    let (_backends, service) = start().await;
    service.found_olivia_org_with_michael().await;

    let (mut user, _) = service.get_user(OLIVIA).await.unwrap();
    let former = user.clone();
    user.display_name = "Liv".to_owned();
    let updated = update_user(&service, user, Some(every_field("User"))).await;
    let updated = updated.unwrap();
    assert_eq!(updated.display_name, "Liv");
    assert_eq!(updated.uid, former.uid);
    let stale = update_user(&service, former, Some(every_field("User"))).await;
    assert_refused(stale, Code::Aborted, "ETAG_MISMATCH");

    let (mut organization, _) = service.get_organization(ORG).await.unwrap();
    organization.display_name = "Olivia's".to_owned();
    let request = pb::UpdateOrganizationRequest {
        organization: Some(organization.clone()),
        update_mask: Some(every_field("Organization")),
        actor: Some(Actor::ActingUser(OLIVIA.to_owned())),
        ..pb::UpdateOrganizationRequest::default()
    };
    let mut client = service.client.clone();
    let response = client.update_organization(request.clone()).await.unwrap();
    let updated = response.into_inner().organization.unwrap();
    assert_eq!(updated.display_name, "Olivia's");
    assert_eq!(updated.founding_user, organization.founding_user);
    let stale = client.update_organization(request).await;
    assert_refused(stale, Code::Aborted, "ETAG_MISMATCH");

    let (mut membership, _) = service.get_membership(ORG, MICHAEL).await.unwrap();
    membership.labels = labels(&[("job", "nurse")]);
    let update = |membership: pb::Membership| pb::UpdateMembershipRequest {
        membership: Some(membership),
        update_mask: Some(every_field("Membership")),
        acting_user: OLIVIA.to_owned(),
        ..pb::UpdateMembershipRequest::default()
    };
    let response = client.update_membership(update(membership.clone())).await;
    let updated = response.unwrap().into_inner().membership.unwrap();
    assert_eq!(updated.labels, membership.labels);
    let stale = client.update_membership(update(membership)).await;
    assert_refused(stale, Code::Aborted, "ETAG_MISMATCH");
    // A role that was edited would be lost: it is rejected, with a mask and without one.
    let mut promoted = updated;
    promoted.set_role(Role::Admin);
    let without_mask = pb::UpdateMembershipRequest {
        update_mask: None,
        ..update(promoted.clone())
    };
    let with_wildcard = pb::UpdateMembershipRequest {
        update_mask: Some(mask(&["*"])),
        ..without_mask.clone()
    };
    for request in [update(promoted), without_mask, with_wildcard] {
        let refused = client.update_membership(request).await;
        let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "membership.role");
    }
}
