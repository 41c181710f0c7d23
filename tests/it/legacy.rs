//! A table that the tutorial's service filled is served as it is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use account_service::{
    boot::provision,
    proto::account_v1::{self as pb, Role},
};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, Put,
    ScalarAttributeType, StreamViewType, TransactWriteItem,
};
use serde::Deserialize;
use tonic::Code;

use crate::{
    harness::{Backends, Replica, Table, assert_refused, script::error_body, start},
    leftovers::cleaning,
    streams::eventually,
};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const NORA: &str = "newcomer-nora";
/// The items of a table that the tutorial's own handlers filled, with names and roles
/// that they accept.
const TUTORIAL_TABLE: &str = include_str!("fixtures/tutorial_table.json");

/// An attribute in DynamoDB's JSON.
#[derive(Deserialize)]
struct Text {
    #[serde(rename = "S")]
    text: String,
}

fn tutorial_items() -> Vec<BTreeMap<String, Text>> {
    serde_json::from_str(TUTORIAL_TABLE).unwrap()
}

async fn fill(table: &Table) {
    for item in tutorial_items() {
        let item = item.iter();
        let item: Vec<_> = item
            .map(|(name, value)| (name.as_str(), value.text.as_str()))
            .collect();
        table.put(&item).await;
    }
}

async fn members(replica: &Replica, organization: &str) -> BTreeMap<String, Role> {
    let request = pb::ListOrganizationMembersRequest {
        organization_name: organization.to_owned(),
        ..pb::ListOrganizationMembersRequest::default()
    };
    let mut client = replica.client.clone();
    let page = client.list_organization_members(request).await.unwrap();
    let members = page.into_inner().memberships.into_iter();
    members
        .map(|member| (member.member_username.clone(), member.role()))
        .collect()
}

#[tokio::test]
async fn all_records_of_the_tutorial_are_read_and_listed() {
    let (backends, service) = start().await;
    fill(&backends.table()).await;
    let known = |role: &str| match role {
        "Owner" => Role::Owner,
        "Admin" => Role::Admin,
        "Member" => Role::Member,
        _ => Role::Unspecified,
    };
    let mut listed = BTreeMap::<_, BTreeMap<_, _>>::new();
    for _ in 0..2 {
        for item in tutorial_items() {
            let text = |name: &str| item[name].text.as_str();
            if text("PK").starts_with("USER#") {
                let (user, _) = service.get_user(text("username")).await.unwrap();
                assert_eq!(user.first_name, text("firstName"));
                assert_eq!(user.last_name, text("lastName"));
                assert_eq!((user.uid, user.create_time), (String::new(), None));
            } else if text("PK").starts_with("ORG#") {
                let name = text("organizationName");
                let (organization, _) = service.get_organization(name).await.unwrap();
                assert_eq!(organization.founding_user, text("foundingUser"));
            } else {
                let (organization, member) = (text("organizationName"), text("memberUsername"));
                let role = known(text("role"));
                let (found, _) = service.get_membership(organization, member).await.unwrap();
                assert_eq!(found.role(), role, "{member}");
                let counts = match role {
                    Role::Unspecified => pb::State::Suspended,
                    _ => pb::State::Active,
                };
                assert_eq!(found.state(), counts, "{member}");
                let effective = Some(role).filter(|role| *role != Role::Unspecified);
                assert_eq!(service.role_of(organization, member).await, effective);
                let of_organization = listed.entry(organization.to_owned()).or_default();
                of_organization.insert(member.to_owned(), role);
            }
        }
        service.settle().await;
    }
    assert_eq!(listed[ORG].len(), 8);
    for (organization, expected) in listed {
        assert_eq!(members(&service, &organization).await, expected);
    }
    assert_eq!(service.role_of(ORG, NORA).await, None);
}

#[tokio::test]
async fn members_are_added_changed_and_removed() {
    let (backends, service) = start().await;
    let table = backends.table();
    fill(&table).await;
    service
        .add(ORG, NORA, Role::Member, "Odd_Name@x")
        .await
        .unwrap();
    assert_eq!(service.role_of(ORG, NORA).await, Some(Role::Member));
    service
        .change_role(ORG, "Odd_Name@x", Role::Member, OLIVIA)
        .await
        .unwrap();
    assert_eq!(service.role_of(ORG, "Odd_Name@x").await, Some(Role::Member));
    assert_refused(
        service.remove(ORG, OLIVIA, OLIVIA).await,
        Code::FailedPrecondition,
        "LAST_OWNER",
    );
    service
        .change_role(ORG, NORA, Role::Owner, OLIVIA)
        .await
        .unwrap();
    service.remove(ORG, OLIVIA, OLIVIA).await.unwrap();
    assert_eq!(service.role_of(ORG, OLIVIA).await, None);
    let gone = table
        .attributes_of("ORGMEMBERS#olivia-org", "MEMBER#oliviaowner")
        .await;
    assert_eq!(gone, None);
}

#[tokio::test]
async fn users_are_deleted_and_their_names_inherit_nothing() {
    let (backends, service) = start().await;
    fill(&backends.table()).await;
    assert_eq!(service.role_of(ORG, "Odd_Name@x").await, Some(Role::Admin));
    service.delete_user("Odd_Name@x").await.unwrap();
    assert_eq!(service.role_of(ORG, "Odd_Name@x").await, None);

    service.delete_user(OLIVIA).await.unwrap();
    service.create_user(OLIVIA).await.unwrap();
    assert_eq!(service.role_of(ORG, OLIVIA).await, None);
    assert_refused(
        service.add(ORG, NORA, Role::Member, OLIVIA).await,
        Code::PermissionDenied,
        "NOT_PERMITTED",
    );
}

#[tokio::test]
async fn names_with_any_characters_are_served_in_full() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    fill(&backends.table()).await;
    for name in ["Jane Doe", "ops/deploy#1", "łukasz"] {
        service.get_user(name).await.unwrap();
        assert!(other.role_of(ORG, name).await.is_some());
        other.settle().await;
        service
            .change_role(ORG, name, Role::Owner, OLIVIA)
            .await
            .unwrap();
        assert_eq!(other.role_of(ORG, name).await, Some(Role::Owner));
        other.settle().await;
        service.remove(ORG, name, name).await.unwrap();
        assert_eq!(other.role_of(ORG, name).await, None);
        service.add(ORG, name, Role::Member, OLIVIA).await.unwrap();
        assert_eq!(other.role_of(ORG, name).await, Some(Role::Member));
        service.delete_user(name).await.unwrap();
        assert_eq!(other.role_of(ORG, name).await, None);
        let refused = other.get_user(name).await;
        assert_refused(refused, Code::NotFound, "USER_NOT_FOUND");
    }
    for name in ["", "a\nb", "a\u{85}b", &"x".repeat(257)] {
        let refused = service.get_user(name).await;
        assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    }
}

#[tokio::test]
async fn names_with_separators_share_no_cache_entry() {
    let (backends, service) = start().await;
    let table = backends.table();
    for (organization, member) in [("a", "b/c"), ("a/b", "c")] {
        for key in [format!("USER#{member}"), format!("ORG#{organization}")] {
            table.put(&[("PK", &key), ("SK", &key)]).await;
        }
    }
    let membership = [
        ("PK", "ORGMEMBERS#a"),
        ("SK", "MEMBER#b/c"),
        ("role", "Admin"),
    ];
    table.put(&membership).await;
    for _ in 0..3 {
        assert_eq!(service.role_of("a", "b/c").await, Some(Role::Admin));
        assert_eq!(service.role_of("a/b", "c").await, None);
        service.settle().await;
    }
    for (organization, member) in [("a", "b/c"), ("a/b", "c")] {
        let check = service.check(organization, member).await.unwrap();
        assert_eq!(check.source(), pb::Source::Cache);
    }
}

#[tokio::test]
async fn a_membership_with_an_unknown_role_grants_nothing_and_affects_no_other() {
    let (backends, service) = start().await;
    fill(&backends.table()).await;
    let odd = ["lower-olga", "viewer-vera"];
    let checks =
        ["lower-olga", OLIVIA, "viewer-vera", "Jane Doe"].map(|username| pb::MembershipCheck {
            organization_name: ORG.to_owned(),
            username: username.to_owned(),
            ..pb::MembershipCheck::default()
        });
    let request = pb::BatchCheckMembershipsRequest {
        checks: checks.into(),
        ..pb::BatchCheckMembershipsRequest::default()
    };
    for _ in 0..3 {
        let mut client = service.client.clone();
        let reply = client.batch_check_memberships(request.clone()).await;
        let results = reply.unwrap().into_inner().results;
        let roles: Vec<_> = results
            .iter()
            .map(pb::MembershipCheckResult::role)
            .collect();
        let none = Role::Unspecified;
        assert_eq!(roles, [none, Role::Owner, none, Role::Member]);
        service.settle().await;
    }
    for name in odd {
        let refused = service.add(ORG, NORA, Role::Member, name).await;
        assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
        let refused = service.remove(ORG, OLIVIA, name).await;
        assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
        let again = service.add(ORG, name, Role::Member, OLIVIA).await;
        assert_refused(again, Code::AlreadyExists, "MEMBERSHIP_ALREADY_EXISTS");
    }
}

#[tokio::test]
async fn a_membership_with_an_unknown_role_is_repaired_removed_and_left() {
    let (backends, service) = start().await;
    let table = backends.table();
    fill(&table).await;
    let repaired = service
        .change_role(ORG, "lower-olga", Role::Member, "Odd_Name@x")
        .await;
    assert_eq!(repaired.unwrap().role(), Role::Member);
    assert_eq!(service.role_of(ORG, "lower-olga").await, Some(Role::Member));
    let removed = service.remove(ORG, "viewer-vera", "Odd_Name@x").await;
    assert_eq!(removed.unwrap().role(), Role::Unspecified);
    assert!(!members(&service, ORG).await.contains_key("viewer-vera"));
    let put_odd = async |role: &str| {
        let key = [
            ("PK", "ORGMEMBERS#olivia-org"),
            ("SK", "MEMBER#viewer-vera"),
        ];
        table.put(&[&key[..], &[("role", role)]].concat()).await;
    };
    put_odd("Emperor").await;
    service
        .remove(ORG, "viewer-vera", "viewer-vera")
        .await
        .unwrap();
    // A repair does not overwrite a concurrent repair of another writer.
    put_odd("Emperor").await;
    let held = backends
        .dynamodb
        .hold("TransactWriteItems", "viewer-vera", 0);
    let (changed, ()) = tokio::join!(
        service.change_role(ORG, "viewer-vera", Role::Member, "Odd_Name@x"),
        async {
            held.reached().await;
            put_odd("Owner").await;
            held.release();
        }
    );
    assert_refused(changed, Code::PermissionDenied, "NOT_PERMITTED");
    assert_eq!(service.role_of(ORG, "viewer-vera").await, Some(Role::Owner));
}

#[tokio::test]
async fn a_user_and_an_organization_in_an_unknown_state_are_suspended_until_resumed() {
    let (backends, service) = start().await;
    let table = backends.table();
    fill(&table).await;
    for key in ["USER#Jane Doe", "ORG#olivia-org"] {
        table.set_text(key, key, "state", "Banned").await;
    }
    assert_eq!(service.role_of(ORG, OLIVIA).await, None);
    let mut client = service.client.clone();
    let request = pb::ResumeOrganizationRequest {
        organization_name: ORG.to_owned(),
        ..pb::ResumeOrganizationRequest::default()
    };
    client.resume_organization(request).await.unwrap();
    assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Owner));
    assert_eq!(service.role_of(ORG, "Jane Doe").await, None);
    let (user, _) = service.get_user("Jane Doe").await.unwrap();
    assert_eq!(user.state(), pb::State::Suspended);
    let request = pb::ResumeUserRequest {
        username: "Jane Doe".to_owned(),
        ..pb::ResumeUserRequest::default()
    };
    client.resume_user(request).await.unwrap();
    assert_eq!(service.role_of(ORG, "Jane Doe").await, Some(Role::Member));
}

/// Creates an organization as the tutorial's code does; returns whether the name was
/// free.
async fn tutorial_founds(table: &Table, organization: &str, founder: &str) -> bool {
    let put = |attributes: &[(&str, String)]| {
        let item = attributes.iter().cloned();
        let item = item.map(|(name, text)| (name.to_owned(), AttributeValue::S(text)));
        let put = Put::builder()
            .table_name(&table.name)
            .set_item(Some(item.collect::<HashMap<_, _>>()))
            .condition_expression("attribute_not_exists(PK)");
        TransactWriteItem::builder()
            .put(put.build().unwrap())
            .build()
    };
    let key = format!("ORG#{organization}");
    let write = table.client.transact_write_items();
    let write = write
        .transact_items(put(&[
            ("PK", key.clone()),
            ("SK", key),
            ("organizationName", organization.to_owned()),
            ("foundingUser", founder.to_owned()),
        ]))
        .transact_items(put(&[
            ("PK", format!("ORGMEMBERS#{organization}")),
            ("SK", format!("MEMBER#{founder}")),
            ("organizationName", organization.to_owned()),
            ("memberUsername", founder.to_owned()),
            ("role", "Owner".to_owned()),
        ]));
    write.send().await.is_ok()
}

/// Creates a user as the tutorial's code does; returns whether the name was free.
async fn tutorial_creates_user(table: &Table, username: &str) -> bool {
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let key = text(&format!("USER#{username}"));
    let put = table.client.put_item().table_name(&table.name);
    let put = put
        .item("PK", key.clone())
        .item("SK", key)
        .item("username", text(username))
        .item("firstName", text("New"))
        .item("lastName", text("Person"))
        .condition_expression("attribute_not_exists(PK)");
    put.send().await.is_ok()
}

#[tokio::test]
async fn names_that_the_tutorial_takes_again_inherit_nothing() {
    let (backends, service) = start().await;
    let table = backends.table();
    fill(&table).await;
    // One organization of the tutorial, and one of this service with a member that the
    // tutorial added.
    service
        .create_organization("own-org", OLIVIA)
        .await
        .unwrap();
    table
        .put(&[
            ("PK", "ORGMEMBERS#own-org"),
            ("SK", "MEMBER#newcomer-nora"),
            ("role", "Admin"),
        ])
        .await;
    assert_eq!(service.role_of("own-org", NORA).await, None);
    for organization in [ORG, "own-org"] {
        service.delete_organization(organization).await;
        let is_free = tutorial_founds(&table, organization, "Jane Doe").await;
        assert!(!is_free, "{organization}");
        let refused = service.get_organization(organization).await;
        assert_refused(refused, Code::NotFound, "ORGANIZATION_NOT_FOUND");
    }
    // A user in an organization that stays.
    add_to_ab(&table, "Odd_Name@x").await;
    assert_eq!(service.role_of("ab", "Odd_Name@x").await, Some(Role::Admin));
    service.delete_user("Odd_Name@x").await.unwrap();
    assert!(!tutorial_creates_user(&table, "Odd_Name@x").await);

    // After the clean-up, the names are free again.
    let cleaner =
        Replica::start_with(&backends.serve_settings(), cleaning(&backends, 100_000)).await;
    eventually("all is cleaned up", async || tasks_left(&table).await == 0).await;
    drop(cleaner);
    assert!(tutorial_creates_user(&table, "Odd_Name@x").await);
    // A tombstone lasts an hour, longer than an entry of the cache.
    backends.flush_cache().await;
    assert_eq!(service.role_of("ab", "Odd_Name@x").await, None);
    for organization in [ORG, "own-org"] {
        assert!(tutorial_founds(&table, organization, "Jane Doe").await);
        assert_eq!(service.role_of(organization, OLIVIA).await, None);
        let listed = members(&backends.replica().await, organization).await;
        let listed: BTreeSet<_> = listed.into_keys().collect();
        assert_eq!(listed, ["Jane Doe".to_owned()].into());
    }
}

async fn tasks_left(table: &Table) -> usize {
    table.count("LEFTOVERS", "USER#").await + table.count("LEFTOVERS", "ORG#").await
}

/// Puts a membership as the tutorial's code does.
async fn add_to_ab(table: &Table, username: &str) {
    let membership = [
        ("PK", "ORGMEMBERS#ab"),
        ("SK", &format!("MEMBER#{username}")),
        ("role", "Admin"),
    ];
    table.put(&membership).await;
}

#[tokio::test]
async fn members_that_the_tutorial_adds_from_its_cache_after_a_deletion_are_removed_too() {
    let (backends, service) = start().await;
    let table = backends.table();
    fill(&table).await;
    service.delete_user("Odd_Name@x").await.unwrap();
    let mut tuning = cleaning(&backends, 100_000);
    tuning.clean_up.as_mut().unwrap().retention = Duration::from_secs(2);
    let cleaner = Replica::start_with(&backends.serve_settings(), tuning).await;
    let members = "ORGMEMBERS#olivia-org";
    eventually("the orphan is removed", async || {
        table.count(members, "MEMBER#Odd_Name@x").await == 0
    })
    .await;
    add_to_ab(&table, "Odd_Name@x").await;
    eventually("the task is done", async || tasks_left(&table).await == 0).await;
    drop(cleaner);
    assert_eq!(table.count("ORGMEMBERS#ab", "MEMBER#Odd_Name@x").await, 0);
    let key = "USER#Odd_Name@x";
    assert_eq!(table.attributes_of(key, key).await, None);
}

#[tokio::test]
async fn a_tombstone_stands_until_the_clean_up_of_its_own_deletion() {
    let (backends, service) = start().await;
    let table = backends.table();
    service.create_user(NORA).await.unwrap();
    let (nora, _) = service.get_user(NORA).await.unwrap();
    service.delete_user(NORA).await.unwrap();
    // Only the task of an earlier incarnation is there.
    let task = format!("USER#{NORA}#{}", nora.uid);
    table.delete("LEFTOVERS", &task).await;
    let text = |text: String| AttributeValue::S(text);
    let earlier = [
        ("PK", text("LEFTOVERS".to_owned())),
        ("SK", text(format!("USER#{NORA}#earlier"))),
        ("updateTime", AttributeValue::N("0".to_owned())),
    ];
    let earlier = earlier.map(|(name, value)| (name.to_owned(), value));
    table.put_item(earlier.into()).await;
    let cleaner =
        Replica::start_with(&backends.serve_settings(), cleaning(&backends, 100_000)).await;
    eventually("the task is done", async || tasks_left(&table).await == 0).await;
    drop(cleaner);
    assert!(!tutorial_creates_user(&table, NORA).await);
}

/// Deletes the organization, and puts it back as the tutorial's code would.
async fn free_and_take(table: &Table) {
    let key = "ORG#olivia-org";
    table.delete(key, key).await;
    table.put(&[("PK", key), ("SK", key)]).await;
}

#[tokio::test]
async fn the_clean_up_spares_members_of_a_name_that_the_tutorial_took_again() {
    for is_taken_late in [false, true] {
        let (backends, service) = start().await;
        let table = backends.table();
        fill(&table).await;
        service.delete_organization(ORG).await;
        let before = table.count("ORGMEMBERS#olivia-org", "MEMBER#").await;
        let removal = is_taken_late.then(|| {
            let script = &backends.dynamodb;
            script.hold("TransactWriteItems", "ORGMEMBERS#olivia-org", 0)
        });
        // The name was freed past the service before anything was cleaned up.
        if !is_taken_late {
            free_and_take(&table).await;
        }
        let settings = backends.serve_settings();
        let cleaner = Replica::start_with(&settings, cleaning(&backends, 100_000)).await;
        if let Some(removal) = removal {
            removal.reached().await;
            free_and_take(&table).await;
            removal.release();
        }
        eventually("the task is done", async || tasks_left(&table).await == 0).await;
        drop(cleaner);
        let after = table.count("ORGMEMBERS#olivia-org", "MEMBER#").await;
        assert_eq!(after, before);
    }
}

#[tokio::test]
async fn records_with_attributes_of_other_types_are_changed_and_deleted() {
    let (backends, service) = start().await;
    let table = backends.table();
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let number = |number: &str| AttributeValue::N(number.to_owned());
    let odd = [
        ("ver", text("3")),
        ("ver", number("1.5")),
        ("ver", number("-7")),
        ("ver", number("100000000000000000000")),
        ("createTime", number("1690000000.123")),
        ("createTime", AttributeValue::M(HashMap::new())),
        ("createTime", number("-100000000000000000000")),
        ("uid", number("5")),
        ("uid", AttributeValue::Null(true)),
        ("state", text("ACTIVE")),
        ("state", AttributeValue::Bool(true)),
        ("state", number("1")),
        ("email", number("1")),
        ("labels", text("none")),
    ];
    for (number, (name, value)) in odd.into_iter().enumerate() {
        let (organization, member) = (format!("org-{number}"), format!("user-{number}"));
        let what = format!("{name} {value:?}");
        for key in [format!("ORG#{organization}"), format!("USER#{member}")] {
            let item = [
                ("PK", text(&key)),
                ("SK", text(&key)),
                (name, value.clone()),
            ];
            let item = item.map(|(name, value)| (name.to_owned(), value));
            table.put_item(item.into()).await;
        }
        let mut client = service.client.clone();
        let resume = pb::ResumeUserRequest {
            username: member.clone(),
            ..pb::ResumeUserRequest::default()
        };
        client.resume_user(resume).await.expect(&what);
        let resume = pb::ResumeOrganizationRequest {
            organization_name: organization.clone(),
            ..pb::ResumeOrganizationRequest::default()
        };
        client.resume_organization(resume).await.expect(&what);
        let update = pb::UpdateUserRequest {
            user: Some(pb::User {
                username: member.clone(),
                first_name: "New".to_owned(),
                ..pb::User::default()
            }),
            ..pb::UpdateUserRequest::default()
        };
        client.update_user(update).await.expect(&what);
        let transferred = service.transfer(&organization, &member, None).await;
        transferred.expect(&what);
        let role = service.role_of(&organization, &member).await;
        assert_eq!(role, Some(Role::Owner), "{what}");
        service.delete_organization(&organization).await;
        service.delete_user(&member).await.expect(&what);
    }
}

#[tokio::test]
async fn a_deleted_name_is_taken_again_by_the_service_while_its_tombstone_stands() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    fill(&backends.table()).await;
    for _ in 0..2 {
        service.delete_organization(ORG).await;
        service.delete_user(NORA).await.unwrap();
        for replica in [&service, &other] {
            let refused = replica.get_organization(ORG).await;
            assert_refused(refused, Code::NotFound, "ORGANIZATION_NOT_FOUND");
            let refused = replica.get_user(NORA).await;
            assert_refused(refused, Code::NotFound, "USER_NOT_FOUND");
            let users = replica.get_users(&[NORA, OLIVIA]).await;
            assert_eq!(users.not_found, [NORA]);
        }
        let refused = service.delete_user(NORA).await;
        assert_refused(refused, Code::NotFound, "USER_NOT_FOUND");
        service.create_user(NORA).await.unwrap();
        service.create_organization(ORG, NORA).await.unwrap();
        for replica in [&service, &other] {
            assert_eq!(replica.role_of(ORG, NORA).await, Some(Role::Owner));
            assert_eq!(replica.role_of(ORG, OLIVIA).await, None);
        }
    }
}

#[tokio::test]
async fn records_of_the_service_have_the_attributes_that_the_tutorial_reads() {
    let (backends, service) = start().await;
    let table = backends.table();
    service.found_olivia_org_with_michael().await;
    for (pk, sk, needed) in [
        (
            "USER#oliviaowner",
            "USER#oliviaowner",
            &["username", "firstName", "lastName"][..],
        ),
        (
            "ORG#olivia-org",
            "ORG#olivia-org",
            &["organizationName", "foundingUser"],
        ),
        (
            "ORGMEMBERS#olivia-org",
            "MEMBER#membermichael",
            &["organizationName", "memberUsername", "role"],
        ),
    ] {
        let attributes = table.attributes_of(pk, sk).await.unwrap();
        for name in needed {
            assert!(attributes.iter().any(|has| has == name), "{pk} {name}");
        }
    }
}

#[tokio::test]
async fn records_with_explicit_default_values_can_be_changed() {
    let (backends, service) = start().await;
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let zero = || AttributeValue::N("0".to_owned());
    let put = async |attributes: &[(&str, AttributeValue)]| {
        let item = attributes.iter().cloned();
        let item = item.map(|(name, value)| (name.to_owned(), value));
        backends.table().put_item(item.collect()).await;
    };
    for name in ["olivia", "michael"] {
        let key = format!("USER#{name}");
        let (key, none) = (text(&key), text(""));
        let user = [
            ("PK", key.clone()),
            ("SK", key),
            ("state", text("ACTIVE")),
            ("uid", none),
        ];
        put(&[&user[..], &[("ver", zero())]].concat()).await;
    }
    let key = text("ORG#odd-org");
    let organization = [("PK", key.clone()), ("SK", key), ("state", text("ACTIVE"))];
    put(&[&organization[..], &[("uid", text("")), ("ver", zero())]].concat()).await;
    let owner = [
        ("PK", text("ORGMEMBERS#odd-org")),
        ("SK", text("MEMBER#olivia")),
        ("role", text("Owner")),
        ("organizationUid", text("")),
        ("memberUid", text("")),
        ("ver", zero()),
    ];
    put(&owner).await;
    service
        .add("odd-org", "michael", Role::Owner, "olivia")
        .await
        .unwrap();
    let stepped_down = service
        .change_role("odd-org", "olivia", Role::Member, "olivia")
        .await;
    stepped_down.unwrap();
    service
        .remove("odd-org", "olivia", "michael")
        .await
        .unwrap();
    assert_eq!(
        service.role_of("odd-org", "michael").await,
        Some(Role::Owner)
    );
    service.delete_user("olivia").await.unwrap();
}

/// Run first against DynamoDB Local, which changes an index more slowly with each table.
mod indexes {
    use super::*;

    #[tokio::test]
    async fn setup_adds_the_indexes_and_the_stream_that_a_tutorial_table_lacks() {
        let backends = Backends::start().await;
        let settings = backends.settings_of_another_table().backends;
        let table = backends.table();
        let key = |name: &str, key_type| {
            let key = KeySchemaElement::builder().attribute_name(name);
            key.key_type(key_type).build().unwrap()
        };
        let text = |name: &str| {
            let attribute = AttributeDefinition::builder().attribute_name(name);
            attribute
                .attribute_type(ScalarAttributeType::S)
                .build()
                .unwrap()
        };
        let create = table.client.create_table().table_name(&settings.table_name);
        let create = create
            .billing_mode(BillingMode::PayPerRequest)
            .attribute_definitions(text("PK"))
            .attribute_definitions(text("SK"))
            .key_schema(key("PK", KeyType::Hash))
            .key_schema(key("SK", KeyType::Range));
        create.send().await.unwrap();

        let added = provision::run(&settings, None).await.unwrap();
        assert_eq!(
            added.table,
            "exists; missing indexes, stream or time to live were added"
        );
        let again = provision::run(&settings, None).await.unwrap();
        assert_eq!(again.table, "exists");
        let describe = table
            .client
            .describe_table()
            .table_name(&settings.table_name);
        let found = describe.send().await.unwrap().table.unwrap();
        assert_eq!(found.global_secondary_indexes().len(), 3);
        let stream = found.stream_specification().unwrap();
        assert_eq!(
            stream.stream_view_type(),
            Some(&StreamViewType::NewAndOldImages)
        );
    }

    #[tokio::test]
    async fn setup_indexes_the_owners_that_other_writers_stored() {
        let backends = Backends::start().await;
        let settings = backends.serve_settings().backends;
        let table = backends.table();
        let pk = "ORGMEMBERS#tutorial-org";
        for (name, role) in [("olivia", "Owner"), ("michael", "Member")] {
            let sk = format!("MEMBER#{name}");
            table.put(&[("PK", pk), ("SK", &sk), ("role", role)]).await;
        }
        let added = provision::run(&settings, None).await.unwrap();
        assert_eq!(
            added.table,
            "exists; missing indexes, stream or time to live were added"
        );
        let attributes = table.attributes_of(pk, "MEMBER#olivia").await.unwrap();
        assert_eq!(attributes, ["PK", "SK", "ownerOf", "role"]);
        let attributes = table.attributes_of(pk, "MEMBER#michael").await.unwrap();
        assert_eq!(attributes, ["PK", "SK", "role"]);
        let again = provision::run(&settings, None).await.unwrap();
        assert_eq!(again.table, "exists");
    }

    #[tokio::test]
    async fn an_owner_can_leave_without_a_readable_index_of_owners() {
        let (backends, service) = start().await;
        let (olivia, michael) = ("oliviaowner", "membermichael");
        service.found_olivia_org_with_michael().await;
        let owner = service.change_role(ORG, michael, Role::Owner, olivia).await;
        owner.unwrap();
        let denied = error_body("AccessDeniedException");
        let script = &backends.dynamodb;
        script.answer_about("Query", "ownerOf-SK-index", 400, &denied);
        service.remove(ORG, olivia, olivia).await.unwrap();
        script.clear_rules();
        let again = service.add(ORG, olivia, Role::Owner, michael).await;
        again.unwrap();
        backends.table().drop_index("ownerOf-SK-index").await;
        service.remove(ORG, olivia, olivia).await.unwrap();
        let refused = service.remove(ORG, michael, michael).await;
        assert_refused(refused, Code::FailedPrecondition, "LAST_OWNER");
    }
}
