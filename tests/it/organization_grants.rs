//! Grants by organization: a caller reads and changes only the organizations of its grant.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use account_service::{
    auth::KeySource,
    grpc::methods,
    proto::account_v1::{
        self as pb, ChangeKind, Role, change::Resource, watch_changes_request::Start,
    },
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::json;
use tokio::time::timeout;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::{
    callers::{Files, MICHAEL, OLIVIA, Signer, token_settings, with},
    harness::{Backends, Client, PATIENCE, Replica, assert_refused},
    streams::{eventually, following},
};

/// Organizations of the grant: by a prefix of the name, and by a label.
const BY_NAME: &str = "eu-1";
const BY_LABEL: &str = "labelled";
/// An organization that is not granted.
const OTHER: &str = "plain";

const NOT_GRANTED: &str = "ORGANIZATION_NOT_GRANTED";

/// Methods that name no organization.
const WITHOUT_ORGANIZATION: [&str; 16] = [
    "BatchGetUsers",
    "CountUserOrganizations",
    "CreateUser",
    "DeleteUser",
    "EraseUser",
    "GetErasure",
    "GetUser",
    "ListOrganizations",
    "ListUserOrganizations",
    "ListUsers",
    "LookupOrganization",
    "LookupUser",
    "ResumeUser",
    "SuspendUser",
    "UndeleteUser",
    "UpdateUser",
];

/// Tested in `ext_authz`.
const OF_ENVOY: &str = "envoy.service.auth.v3.Authorization/Check";

/// Methods that name an organization, in an order in which each succeeds: Michael is added first and
/// removed later.
const WITH_ORGANIZATION: [&str; 19] = [
    "AddUserToOrganization",
    "GetMembership",
    "CheckMembership",
    "BatchCheckMemberships",
    "UpdateMembership",
    "ChangeMemberRole",
    "TransferOwnership",
    "ListOrganizationMembers",
    "CountOrganizationMembers",
    "WatchChanges",
    "RemoveUserFromOrganization",
    "GetOrganization",
    "BatchGetOrganizations",
    "UpdateOrganization",
    "SuspendOrganization",
    "ResumeOrganization",
    "UndeleteOrganization",
    "DeleteOrganization",
    "CreateOrganization",
];

fn region(region: &str) -> BTreeMap<String, String> {
    [("region".to_owned(), region.to_owned())].into()
}

/// A service with a caller that is limited to some organizations, and with one that is not.
struct Limited {
    backends: Backends,
    service: Replica,
    token: String,
    operator: String,
}

impl Limited {
    async fn start() -> Self {
        let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
        let everything = |client: &str| {
            json!({"token": {"client_id": client}, "methods": ["*"], "acts_for_users": true,
                "acts_as_platform": true})
        };
        let mut limited = everything("limited");
        limited["organizations"] = json!([{"prefix": "eu-"}, {"labels": {"region": "eu"}}]);
        let policy = json!({"callers": {"limited": limited, "operator": everything("operator")}});
        files.write("policy.json", &policy.to_string());
        let keys = KeySource::File(files.write("keys.json", &signer.key_set()));
        let mut settings = backends.serve_settings();
        settings.server.callers = token_settings(&files, keys);
        let limited = Self {
            service: Replica::start_with(&settings, following()).await,
            backends,
            token: signer.service_token("limited"),
            operator: signer.service_token("operator"),
        };
        limited.found().await;
        limited
    }

    fn client(&self) -> Client {
        self.service.client.clone()
    }

    /// Creates Olivia, Michael and three organizations.
    async fn found(&self) {
        for username in [OLIVIA, MICHAEL] {
            let user = pb::CreateUserRequest {
                username: username.to_owned(),
                ..pb::CreateUserRequest::default()
            };
            let created = self.client().create_user(with(&self.operator, user)).await;
            created.unwrap();
        }
        for (name, labels) in [
            (BY_NAME, region("us")),
            (BY_LABEL, region("eu")),
            (OTHER, region("us")),
        ] {
            self.create(&self.operator, name, labels).await.unwrap();
        }
    }

    async fn create(
        &self,
        token: &str,
        name: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<(), Status> {
        let organization = pb::CreateOrganizationRequest {
            organization_name: name.to_owned(),
            founding_user: OLIVIA.to_owned(),
            labels,
            ..pb::CreateOrganizationRequest::default()
        };
        let mut client = self.client();
        client
            .create_organization(with(token, organization))
            .await
            .map(drop)
    }

    /// Changes the region of an organization as the platform.
    async fn relabel(&self, token: &str, name: &str, to: &str) -> Result<(), Status> {
        let organization = pb::UpdateOrganizationRequest {
            organization: Some(pb::Organization {
                organization_name: name.to_owned(),
                labels: region(to),
                ..pb::Organization::default()
            }),
            actor: Some(pb::update_organization_request::Actor::AsPlatform(true)),
            ..pb::UpdateOrganizationRequest::default()
        };
        let mut client = self.client();
        client
            .update_organization(with(token, organization))
            .await
            .map(drop)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        with(&self.token, message)
    }

    /// Calls a method about an organization.
    async fn call(&self, method: &str, organization: &str) -> Result<(), Status> {
        let is_of_members = method.contains("Member") || method.contains("User");
        let is_change = !["Get", "Check", "Batch", "List", "Count", "Watch"]
            .iter()
            .any(|read| method.starts_with(read));
        match (is_change, is_of_members || method == "TransferOwnership") {
            (false, _) => self.read(method, organization).await,
            (true, true) => self.change_members(method, organization).await,
            (true, false) => self.change(method, organization).await,
        }
    }

    /// Reads something of an organization.
    async fn read(&self, method: &str, organization: &str) -> Result<(), Status> {
        let mut client = self.client();
        let (organization_name, username) = (organization.to_owned(), OLIVIA.to_owned());
        let member_username = MICHAEL.to_owned();
        match method {
            "GetMembership" => {
                let get = pb::GetMembershipRequest {
                    organization_name,
                    member_username,
                    consistency: None,
                };
                client.get_membership(self.request(get)).await.map(drop)
            }
            "CheckMembership" => {
                let check = pb::CheckMembershipRequest {
                    organization_name,
                    username,
                    ..pb::CheckMembershipRequest::default()
                };
                client.check_membership(self.request(check)).await.map(drop)
            }
            "BatchCheckMemberships" => {
                let check = |organization_name: &str| pb::MembershipCheck {
                    organization_name: organization_name.to_owned(),
                    username: OLIVIA.to_owned(),
                    minimum_role: 0,
                };
                let checks = pb::BatchCheckMembershipsRequest {
                    checks: vec![check(BY_NAME), check(organization)],
                    consistency: None,
                };
                let checked = client.batch_check_memberships(self.request(checks));
                checked.await.map(drop)
            }
            "ListOrganizationMembers" => {
                let list = pb::ListOrganizationMembersRequest {
                    organization_name,
                    ..pb::ListOrganizationMembersRequest::default()
                };
                client
                    .list_organization_members(self.request(list))
                    .await
                    .map(drop)
            }
            "CountOrganizationMembers" => {
                let count = pb::CountOrganizationMembersRequest { organization_name };
                client
                    .count_organization_members(self.request(count))
                    .await
                    .map(drop)
            }
            "WatchChanges" => {
                let watch = pb::WatchChangesRequest {
                    organization_name,
                    ..pb::WatchChangesRequest::default()
                };
                client.watch_changes(self.request(watch)).await.map(drop)
            }
            "GetOrganization" => {
                let get = pb::GetOrganizationRequest {
                    organization_name,
                    consistency: None,
                };
                client.get_organization(self.request(get)).await.map(drop)
            }
            "BatchGetOrganizations" => {
                let get = pb::BatchGetOrganizationsRequest {
                    organization_names: vec![BY_NAME.to_owned(), organization_name],
                    consistency: None,
                };
                let got = client.batch_get_organizations(self.request(get));
                got.await.map(drop)
            }
            other => panic!("{other} is no such read"),
        }
    }

    /// Changes the members of an organization.
    async fn change_members(&self, method: &str, organization: &str) -> Result<(), Status> {
        let mut client = self.client();
        let (organization_name, username) = (organization.to_owned(), OLIVIA.to_owned());
        let member_username = MICHAEL.to_owned();
        match method {
            "AddUserToOrganization" => {
                let add = pb::AddUserToOrganizationRequest {
                    organization_name,
                    member_username,
                    role: Role::Member.into(),
                    adding_user: username,
                    ..pb::AddUserToOrganizationRequest::default()
                };
                client
                    .add_user_to_organization(self.request(add))
                    .await
                    .map(drop)
            }
            "UpdateMembership" => {
                let update = pb::UpdateMembershipRequest {
                    membership: Some(pb::Membership {
                        organization_name,
                        member_username,
                        labels: region("any"),
                        ..pb::Membership::default()
                    }),
                    acting_user: username,
                    ..pb::UpdateMembershipRequest::default()
                };
                client
                    .update_membership(self.request(update))
                    .await
                    .map(drop)
            }
            "ChangeMemberRole" => {
                let change = pb::ChangeMemberRoleRequest {
                    organization_name,
                    member_username,
                    role: Role::Admin.into(),
                    acting_user: username,
                    ..pb::ChangeMemberRoleRequest::default()
                };
                client
                    .change_member_role(self.request(change))
                    .await
                    .map(drop)
            }
            "TransferOwnership" => {
                let transfer = pb::TransferOwnershipRequest {
                    organization_name,
                    new_owner: username,
                    actor: Some(pb::transfer_ownership_request::Actor::AsPlatform(true)),
                    ..pb::TransferOwnershipRequest::default()
                };
                client
                    .transfer_ownership(self.request(transfer))
                    .await
                    .map(drop)
            }
            "RemoveUserFromOrganization" => {
                let remove = pb::RemoveUserFromOrganizationRequest {
                    organization_name,
                    member_username,
                    acting_user: username,
                    ..pb::RemoveUserFromOrganizationRequest::default()
                };
                client
                    .remove_user_from_organization(self.request(remove))
                    .await
                    .map(drop)
            }
            other => panic!("{other} changes no members"),
        }
    }

    /// Changes an organization itself.
    async fn change(&self, method: &str, organization: &str) -> Result<(), Status> {
        let mut client = self.client();
        let organization_name = organization.to_owned();
        match method {
            "UpdateOrganization" => {
                let update = pb::UpdateOrganizationRequest {
                    organization: Some(pb::Organization {
                        organization_name,
                        display_name: "Changed".to_owned(),
                        ..pb::Organization::default()
                    }),
                    actor: Some(pb::update_organization_request::Actor::AsPlatform(true)),
                    ..pb::UpdateOrganizationRequest::default()
                };
                client
                    .update_organization(self.request(update))
                    .await
                    .map(drop)
            }
            "SuspendOrganization" => {
                let suspend = pb::SuspendOrganizationRequest {
                    organization_name,
                    ..pb::SuspendOrganizationRequest::default()
                };
                client
                    .suspend_organization(self.request(suspend))
                    .await
                    .map(drop)
            }
            "ResumeOrganization" => {
                let resume = pb::ResumeOrganizationRequest {
                    organization_name,
                    ..pb::ResumeOrganizationRequest::default()
                };
                client
                    .resume_organization(self.request(resume))
                    .await
                    .map(drop)
            }
            "DeleteOrganization" => {
                let delete = pb::DeleteOrganizationRequest {
                    organization_name,
                    actor: Some(pb::delete_organization_request::Actor::AsPlatform(true)),
                    ..pb::DeleteOrganizationRequest::default()
                };
                client
                    .delete_organization(self.request(delete))
                    .await
                    .map(drop)
            }
            "UndeleteOrganization" => {
                let delete = pb::DeleteOrganizationRequest {
                    organization_name: organization_name.clone(),
                    actor: Some(pb::delete_organization_request::Actor::AsPlatform(true)),
                    undelete_window: Some(Duration::from_secs(3600).try_into().unwrap()),
                    ..pb::DeleteOrganizationRequest::default()
                };
                // Refused if the organization is not granted.
                drop(client.delete_organization(self.request(delete)).await);
                let undelete = pb::UndeleteOrganizationRequest {
                    organization_name,
                    actor: Some(pb::undelete_organization_request::Actor::AsPlatform(true)),
                    ..pb::UndeleteOrganizationRequest::default()
                };
                client
                    .undelete_organization(self.request(undelete))
                    .await
                    .map(drop)
            }
            "CreateOrganization" => self.create(&self.token, organization, region("us")).await,
            other => panic!("{other} changes no organization"),
        }
    }

    /// The items of all records.
    async fn records(&self) -> BTreeMap<String, String> {
        let items = self.backends.table().items().await.into_iter();
        let items = items.filter_map(|item| {
            let key = item["PK"].as_s().unwrap();
            let is_record = key.starts_with("ORG") || key.starts_with("USER");
            let sort_key = item["SK"].as_s().unwrap();
            let mut attributes: Vec<_> = item.iter().collect();
            attributes.sort_by_key(|(name, _)| *name);
            is_record.then(|| (format!("{key} {sort_key}"), format!("{attributes:?}")))
        });
        items.collect()
    }
}

fn is_granted(called: &Result<(), Status>) -> bool {
    let Err(status) = called else {
        return true;
    };
    let info = status.get_details_error_info();
    let is_refused = info.is_some_and(|info| info.reason == NOT_GRANTED);
    if is_refused {
        assert_eq!(status.code(), Code::PermissionDenied);
    }
    !is_refused
}

#[tokio::test]
async fn every_method_is_limited_to_the_organizations_of_the_grant() {
    let mut known: Vec<_> = WITHOUT_ORGANIZATION
        .into_iter()
        .chain(WITH_ORGANIZATION)
        .chain([OF_ENVOY])
        .collect();
    known.sort_unstable();
    let mut all: Vec<_> = methods().into_iter().map(|method| method.name).collect();
    all.sort();
    assert_eq!(known, all);

    let limited = Limited::start().await;
    eventually("the stream is followed", async || {
        limited.call("WatchChanges", BY_NAME).await.is_ok()
    })
    .await;
    for organization in [OTHER, "missing"] {
        let before = limited.records().await;
        for method in WITH_ORGANIZATION {
            let called = limited.call(method, organization).await;
            assert!(!is_granted(&called), "{method} {organization}");
        }
        assert_eq!(limited.records().await, before);
    }
    for organization in [BY_NAME, BY_LABEL] {
        for method in WITH_ORGANIZATION {
            let called = limited.call(method, organization).await;
            // The last method creates the organization again, without the label.
            let expected = method != "CreateOrganization" || organization == BY_NAME;
            assert_eq!(is_granted(&called), expected, "{method} {organization}");
            assert_eq!(
                called.is_ok(),
                expected,
                "{method} {organization} {called:?}"
            );
        }
    }
    for method in WITH_ORGANIZATION {
        let called = limited.call(method, "eu-missing").await;
        assert!(is_granted(&called), "{method}");
    }
    let created = limited.create(&limited.token, BY_LABEL, region("eu")).await;
    created.unwrap();
}

#[tokio::test]
async fn refusals_within_a_grant_by_labels_are_those_of_an_unlimited_caller() {
    let limited = Limited::start().await;
    let mut client = limited.client();
    let create = pb::CreateOrganizationRequest {
        organization_name: "new".to_owned(),
        founding_user: "nobody".to_owned(),
        labels: region("eu"),
        ..pb::CreateOrganizationRequest::default()
    };
    let refused = client.create_organization(limited.request(create)).await;
    assert_refused(refused, Code::NotFound, "USER_NOT_FOUND");
    let exists = limited.create(&limited.token, BY_LABEL, region("eu")).await;
    assert_refused(exists, Code::AlreadyExists, "ORGANIZATION_ALREADY_EXISTS");
    // A repeated deletion has its outcome, although the organization is gone.
    let delete = pb::DeleteOrganizationRequest {
        organization_name: BY_LABEL.to_owned(),
        actor: Some(pb::delete_organization_request::Actor::AsPlatform(true)),
        request_id: "9b2f1d0c-5a7e-4c58-8d0e-6f1a2b3c4d5e".to_owned(),
        ..pb::DeleteOrganizationRequest::default()
    };
    for _ in 0..2 {
        let deleted = client.delete_organization(limited.request(delete.clone()));
        deleted.await.unwrap();
    }
}

#[tokio::test]
async fn neither_pages_nor_refusals_reveal_organizations_that_are_not_granted() {
    let limited = Limited::start().await;
    let mut client = limited.client();
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let list = pb::ListOrganizationsRequest {
            page_size: 1,
            page_token,
            order_by: "organization_name".to_owned(),
            ..pb::ListOrganizationsRequest::default()
        };
        let page = client.list_organizations(limited.request(list)).await;
        let page = page.unwrap().into_inner();
        names.extend(
            page.organizations
                .into_iter()
                .map(|it| it.organization_name),
        );
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(&page_token).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("ORG"), "{text:?}");
    }
    assert_eq!(names, [BY_NAME, BY_LABEL]);
    // The page of an organization that is not granted is that of a missing one.
    for name in [OTHER, "missing"] {
        let list = pb::ListOrganizationsRequest {
            page_size: 1,
            filter: format!("organization_name = \"{name}\""),
            ..pb::ListOrganizationsRequest::default()
        };
        let page = client.list_organizations(limited.request(list)).await;
        assert_eq!(
            page.unwrap().into_inner(),
            pb::ListOrganizationsResponse::default()
        );
        let list = pb::ListUserOrganizationsRequest {
            username: OLIVIA.to_owned(),
            page_size: 1,
            filter: format!("organization_name = \"{name}\""),
            ..pb::ListUserOrganizationsRequest::default()
        };
        let page = client.list_user_organizations(limited.request(list)).await;
        assert_eq!(
            page.unwrap().into_inner(),
            pb::ListUserOrganizationsResponse::default()
        );
    }
    // Of the organizations of which Olivia is the last Owner, only one is certain to be granted.
    let delete = pb::DeleteUserRequest {
        username: OLIVIA.to_owned(),
        unless_last_owner: true,
        ..pb::DeleteUserRequest::default()
    };
    let refused = client.delete_user(limited.request(delete)).await;
    let details = assert_refused(refused, Code::FailedPrecondition, "LAST_OWNER");
    let violations = &details.precondition_failure().unwrap().violations;
    let subjects: Vec<_> = violations.iter().map(|it| it.subject.as_str()).collect();
    assert_eq!(subjects, [BY_NAME]);
}

#[tokio::test]
async fn a_change_may_not_take_an_organization_out_of_the_grant() {
    let limited = Limited::start().await;
    let before = limited.records().await;
    let moved = limited.relabel(&limited.token, BY_LABEL, "us").await;
    assert!(!is_granted(&moved));
    let moved = limited.relabel(&limited.token, OTHER, "eu").await;
    assert!(!is_granted(&moved));
    assert_eq!(limited.records().await, before);
    // Granted by its name.
    let relabelled = limited.relabel(&limited.token, BY_NAME, "eu").await;
    relabelled.unwrap();
    let relabelled = limited.relabel(&limited.operator, BY_LABEL, "us").await;
    relabelled.unwrap();
    let called = limited.call("GetOrganization", BY_LABEL).await;
    assert!(!is_granted(&called));
}

#[tokio::test]
async fn a_change_is_decided_again_when_a_label_of_the_grant_changes_before_it_is_made() {
    for method in [
        "AddUserToOrganization",
        "UpdateOrganization",
        "SuspendOrganization",
        "DeleteOrganization",
    ] {
        let limited = Limited::start().await;
        let held = limited
            .backends
            .dynamodb
            .hold("TransactWriteItems", BY_LABEL, 0);
        let (called, ()) = tokio::join!(limited.call(method, BY_LABEL), async {
            held.reached().await;
            let relabelled = limited.relabel(&limited.operator, BY_LABEL, "us").await;
            relabelled.unwrap();
            held.release();
        });
        assert!(!is_granted(&called), "{method}");
    }
}

#[tokio::test]
async fn lists_and_watches_leave_out_organizations_that_are_not_granted() {
    let limited = Limited::start().await;
    let mut client = limited.client();
    let list = pb::ListOrganizationsRequest {
        order_by: "organization_name".to_owned(),
        ..pb::ListOrganizationsRequest::default()
    };
    let page = client.list_organizations(limited.request(list)).await;
    let listed = page.unwrap().into_inner().organizations.into_iter();
    let names: Vec<_> = listed.map(|it| it.organization_name).collect();
    assert_eq!(names, [BY_NAME, BY_LABEL]);
    for (organization, is_granted) in [(BY_LABEL, true), (OTHER, false)] {
        let get = pb::GetOrganizationRequest {
            organization_name: organization.to_owned(),
            consistency: None,
        };
        let found = client.get_organization(with(&limited.operator, get)).await;
        let look_up = pb::LookupOrganizationRequest {
            uid: found.unwrap().into_inner().organization.unwrap().uid,
            ..pb::LookupOrganizationRequest::default()
        };
        let found = client.lookup_organization(limited.request(look_up)).await;
        let code = found.map_err(|status| status.code()).err();
        assert_eq!(code, (!is_granted).then_some(Code::NotFound));
    }
    let list = pb::ListUserOrganizationsRequest {
        username: OLIVIA.to_owned(),
        ..pb::ListUserOrganizationsRequest::default()
    };
    let page = client.list_user_organizations(limited.request(list)).await;
    let listed = page.unwrap().into_inner().memberships.into_iter();
    let names: Vec<_> = listed.map(|it| it.organization_name).collect();
    assert_eq!(names, [BY_NAME, BY_LABEL]);

    let mut watch = None;
    eventually("the stream is followed", async || {
        let request = limited.request(pb::WatchChangesRequest {
            start: Some(Start::Oldest(true)),
            ..pb::WatchChangesRequest::default()
        });
        watch = client.watch_changes(request).await.ok();
        watch.is_some()
    })
    .await;
    let mut watch = watch.unwrap().into_inner();
    for organization in [OTHER, BY_LABEL] {
        let add = pb::AddUserToOrganizationRequest {
            organization_name: organization.to_owned(),
            member_username: MICHAEL.to_owned(),
            role: Role::Member.into(),
            adding_user: OLIVIA.to_owned(),
            ..pb::AddUserToOrganizationRequest::default()
        };
        let added = client.add_user_to_organization(with(&limited.operator, add));
        added.await.unwrap();
    }
    let suspend = pb::SuspendUserRequest {
        username: MICHAEL.to_owned(),
        ..pb::SuspendUserRequest::default()
    };
    let suspended = client.suspend_user(with(&limited.operator, suspend)).await;
    suspended.unwrap();
    let moved = limited.relabel(&limited.operator, BY_LABEL, "us").await;
    moved.unwrap();
    // After the change that removed the label.
    let moved = limited.relabel(&limited.operator, BY_LABEL, "asia").await;
    moved.unwrap();
    let moved = limited.relabel(&limited.operator, BY_NAME, "asia").await;
    moved.unwrap();
    let mut seen = Vec::new();
    let updated = [BY_LABEL, BY_NAME].map(|name| (ChangeKind::Updated, name.to_owned()));
    let seeing = async {
        while !updated.iter().all(|update| seen.contains(update)) {
            let response = watch.message().await.unwrap().unwrap();
            seen.extend(response.changes.into_iter().map(|change| {
                let kind = change.kind();
                let name = match change.resource.unwrap() {
                    Resource::User(user) => user.username,
                    Resource::Organization(organization) => organization.organization_name,
                    Resource::Membership(membership) => {
                        let member = membership.member_username;
                        format!("{}/{member}", membership.organization_name)
                    }
                };
                (kind, name)
            }));
        }
    };
    timeout(PATIENCE, seeing).await.expect("too few changes");
    // A membership may be judged after the label was removed.
    let of_label = format!("{BY_LABEL}/");
    seen.retain(|(_, name)| !name.starts_with(&of_label));
    let created = [
        BY_NAME.to_owned(),
        format!("{BY_NAME}/{OLIVIA}"),
        BY_LABEL.to_owned(),
    ];
    let created = created.map(|name| (ChangeKind::Created, name));
    let expected: BTreeSet<_> = created.into_iter().chain(updated).collect();
    assert_eq!(seen.len(), expected.len(), "{seen:?}");
    assert_eq!(BTreeSet::from_iter(seen), expected);
}
