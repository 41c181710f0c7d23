//! Lists are complete, page by page, and contain no deleted record.

use std::collections::BTreeSet;

use account_service::{
    boot::provision,
    proto::account_v1::{self as pb, Role, State},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::harness::{Backends, Replica, assert_refused, script::error_body, start};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
/// Environment variable with the number of members of the large organization.
const MEMBERS: &str = "LIST_MEMBERS";

/// A page: its entries, and the token of the next page.
type Page<T> = (Vec<T>, String);

async fn members(
    replica: &Replica,
    organization: &str,
    page_size: i32,
    page_token: &str,
) -> Result<Page<pb::Membership>, Status> {
    let request = pb::ListOrganizationMembersRequest {
        organization_name: organization.to_owned(),
        page_size,
        page_token: page_token.to_owned(),
        ..pb::ListOrganizationMembersRequest::default()
    };
    let mut client = replica.client.clone();
    let page = client
        .list_organization_members(request)
        .await?
        .into_inner();
    Ok((page.memberships, page.next_page_token))
}

async fn organizations_of(
    replica: &Replica,
    username: &str,
    page_size: i32,
    page_token: &str,
) -> Result<Page<String>, Status> {
    let request = pb::ListUserOrganizationsRequest {
        username: username.to_owned(),
        page_size,
        page_token: page_token.to_owned(),
        ..pb::ListUserOrganizationsRequest::default()
    };
    let mut client = replica.client.clone();
    let page = client.list_user_organizations(request).await?.into_inner();
    let names = page.memberships.into_iter().map(|it| it.organization_name);
    Ok((names.collect(), page.next_page_token))
}

async fn users(
    replica: &Replica,
    page_size: i32,
    page_token: &str,
) -> Result<Page<String>, Status> {
    let request = pb::ListUsersRequest {
        page_size,
        page_token: page_token.to_owned(),
        ..pb::ListUsersRequest::default()
    };
    let page = replica
        .client
        .clone()
        .list_users(request)
        .await?
        .into_inner();
    let names = page.users.into_iter().map(|user| user.username);
    Ok((names.collect(), page.next_page_token))
}

async fn organizations(
    replica: &Replica,
    page_size: i32,
    page_token: &str,
) -> Result<Page<String>, Status> {
    let request = pb::ListOrganizationsRequest {
        page_size,
        page_token: page_token.to_owned(),
        ..pb::ListOrganizationsRequest::default()
    };
    let mut client = replica.client.clone();
    let page = client.list_organizations(request).await?.into_inner();
    let names = page
        .organizations
        .into_iter()
        .map(|it| it.organization_name);
    Ok((names.collect(), page.next_page_token))
}

/// The entries of all pages of a list, and the number of pages.
async fn all<T>(mut page: impl AsyncFnMut(String) -> Result<Page<T>, Status>) -> (Vec<T>, usize) {
    let (mut all, mut pages, mut token) = (Vec::new(), 0, String::new());
    loop {
        let (entries, next) = page(token).await.unwrap();
        all.extend(entries);
        pages += 1;
        if next.is_empty() {
            return (all, pages);
        }
        token = next;
    }
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

async fn member_names(replica: &Replica, organization: &str) -> Vec<String> {
    let page = async |token: String| members(replica, organization, 0, &token).await;
    let memberships = all(page).await.0.into_iter();
    memberships.map(|it| it.member_username).collect()
}

/// The items of an organization as the tutorial writes them.
fn large_organization(members: usize) -> Vec<Vec<(&'static str, String)>> {
    let user = |name: &str| {
        vec![
            ("PK", format!("USER#{name}")),
            ("SK", format!("USER#{name}")),
            ("username", name.to_owned()),
        ]
    };
    let membership = |name: &str, role: &str| {
        vec![
            ("PK", format!("ORGMEMBERS#{ORG}")),
            ("SK", format!("MEMBER#{name}")),
            ("role", role.to_owned()),
        ]
    };
    let mut items = vec![
        vec![
            ("PK", format!("ORG#{ORG}")),
            ("SK", format!("ORG#{ORG}")),
            ("organizationName", ORG.to_owned()),
        ],
        user(OLIVIA),
        membership(OLIVIA, "Owner"),
    ];
    for number in 0..members {
        let name = format!("member{number:06}");
        items.push(user(&name));
        items.push(membership(&name, "Member"));
    }
    items
}

#[tokio::test]
async fn every_member_is_on_one_page_while_others_are_added_and_removed() {
    let count: usize = std::env::var(MEMBERS).map_or(2500, |count| count.parse().unwrap());
    let (backends, service) = start().await;
    backends.table().end_stream().await;
    backends.table().put_many(large_organization(count)).await;
    let done = CancellationToken::new();
    let come_and_go = {
        let (done, mut client) = (done.clone(), service.client.clone());
        tokio::spawn(async move {
            let mut changes = 0;
            for number in (0..).map(|number: usize| number.wrapping_mul(7919) % 1_000_000) {
                if done.is_cancelled() {
                    return changes;
                }
                // The name sorts between the others, before or after the page that is read.
                let name = format!("member{number:06}x");
                let request = pb::CreateUserRequest {
                    username: name.clone(),
                    ..pb::CreateUserRequest::default()
                };
                client.create_user(request).await.unwrap();
                let request = pb::AddUserToOrganizationRequest {
                    organization_name: ORG.to_owned(),
                    member_username: name.clone(),
                    role: Role::Member.into(),
                    adding_user: OLIVIA.to_owned(),
                    ..pb::AddUserToOrganizationRequest::default()
                };
                client.add_user_to_organization(request).await.unwrap();
                let request = pb::RemoveUserFromOrganizationRequest {
                    organization_name: ORG.to_owned(),
                    member_username: name,
                    acting_user: OLIVIA.to_owned(),
                    ..pb::RemoveUserFromOrganizationRequest::default()
                };
                client.remove_user_from_organization(request).await.unwrap();
                changes += 2;
            }
            unreachable!("endless");
        })
    };
    let page_size = (count * 2 / 5).min(1000);
    let at_most = i32::try_from(page_size).unwrap();
    let page = async |token: String| members(&service, ORG, at_most, &token).await;
    let (listed, pages) = all(page).await;
    done.cancel();
    let changes = come_and_go.await.unwrap();
    let listed: Vec<_> = listed.into_iter().map(|it| it.member_username).collect();
    let lasting: Vec<_> = listed.iter().filter(|name| !name.ends_with('x')).collect();
    let distinct: BTreeSet<_> = listed.iter().collect();
    assert_eq!(distinct.len(), listed.len());
    assert_eq!(lasting.len(), count + 1);
    assert!(pages > count / page_size, "{pages}");
    assert!(changes > 0);
    println!("{count} members on {pages} pages while {changes} came and went");
}

#[tokio::test]
async fn lists_of_users_and_organizations_are_complete_without_deleted_ones() {
    let (_backends, service) = start().await;
    let names: Vec<_> = (0..23).map(|number| format!("name{number}")).collect();
    for name in &names {
        service.create_user(name).await.unwrap();
        service.create_organization(name, name).await.unwrap();
    }
    for page_size in [1, 7, 0] {
        let page = async |token: String| users(&service, page_size, &token).await;
        assert_eq!(sorted(all(page).await.0), sorted(names.clone()));
        let page = async |token: String| organizations(&service, page_size, &token).await;
        assert_eq!(sorted(all(page).await.0), sorted(names.clone()));
    }
    service.delete_user(&names[0]).await.unwrap();
    let page = async |token: String| users(&service, 5, &token).await;
    assert_eq!(sorted(all(page).await.0), sorted(names[1..].to_vec()));
}

#[tokio::test]
async fn a_list_of_a_user_s_organizations_is_complete_without_former_ones() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    let names: Vec<_> = (0..11).map(|number| format!("org-{number:02}")).collect();
    for name in &names {
        service.create_organization(name, OLIVIA).await.unwrap();
        let added = service.add(name, MICHAEL, Role::Admin, OLIVIA).await;
        added.unwrap();
    }
    let page = async |token: String| organizations_of(&service, MICHAEL, 4, &token).await;
    let (listed, pages) = all(page).await;
    assert_eq!((&listed, pages), (&names, 3));
    service.remove(&names[3], MICHAEL, MICHAEL).await.unwrap();
    let page = async |token: String| organizations_of(&service, MICHAEL, 0, &token).await;
    let listed = all(page).await.0;
    assert_eq!(listed, [&names[..3], &names[4..]].concat());
}

#[tokio::test]
async fn a_list_of_members_includes_suspended_users_and_omits_deleted_ones() {
    let (_backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    let suspension = pb::SuspendUserRequest {
        username: MICHAEL.to_owned(),
        ..pb::SuspendUserRequest::default()
    };
    service
        .client
        .clone()
        .suspend_user(suspension)
        .await
        .unwrap();
    let (listed, next) = members(&service, ORG, 0, "").await.unwrap();
    let listed = listed.iter();
    let listed: Vec<_> = listed
        .map(|it| (it.member_username.as_str(), it.role(), it.state()))
        .collect();
    let expected = [
        (MICHAEL, Role::Member, State::Suspended),
        (OLIVIA, Role::Owner, State::Active),
    ];
    assert_eq!((listed.as_slice(), next.as_str()), (&expected[..], ""));
    service.delete_user(MICHAEL).await.unwrap();
    assert_eq!(member_names(&service, ORG).await, [OLIVIA]);
    service.create_user(MICHAEL).await.unwrap();
    assert_eq!(member_names(&service, ORG).await, [OLIVIA]);
}

#[tokio::test]
async fn a_page_token_works_only_for_its_own_list_and_cannot_be_forged() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org_with_michael().await;
    // One of the names is as long as the organization's.
    for name in ["other-org", "olivia-orb"] {
        service.create_organization(name, OLIVIA).await.unwrap();
    }
    let (first, token) = members(&service, ORG, 1, "").await.unwrap();
    // The token works on any replica, and with another page size.
    let (second, end) = members(&other, ORG, 2, &token).await.unwrap();
    assert_eq!((first.len(), second.len(), end.as_str()), (1, 1, ""));
    let refused = |refused: Result<(), Status>| {
        let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "page_token");
    };
    for name in ["other-org", "olivia-orb"] {
        refused(members(&service, name, 1, &token).await.map(drop));
    }
    refused(
        organizations_of(&service, OLIVIA, 1, &token)
            .await
            .map(drop),
    );
    refused(users(&service, 1, &token).await.map(drop));
    refused(organizations(&service, 1, &token).await.map(drop));
    let mut characters: Vec<_> = token.chars().collect();
    for at in 0..characters.len() {
        let kept = characters[at];
        characters[at] = if kept == 'A' { 'B' } else { 'A' };
        let tampered: String = characters.iter().collect();
        refused(members(&service, ORG, 1, &tampered).await.map(drop));
        characters[at] = kept;
    }
    for made in ["x", "é", "AAAA", &"A".repeat(4096), &format!("{token}A")] {
        refused(members(&service, ORG, 1, made).await.map(drop));
    }
    // Another deployment signs with another key.
    let elsewhere = backends.replica_on_another_table().await;
    elsewhere.found_olivia_org_with_michael().await;
    refused(members(&elsewhere, ORG, 1, &token).await.map(drop));
}

#[tokio::test]
async fn a_missing_index_is_reported_only_for_a_validation_error_of_an_index_query() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    let script = &backends.dynamodb;
    script.answer("Query", 1, 400, &error_body("ValidationException"));
    let refused = members(&service, ORG, 1, "").await;
    assert_refused(refused, Code::Unavailable, "STORE_UNAVAILABLE");
    script.answer("Query", 1, 400, &error_body("AccessDeniedException"));
    let refused = users(&service, 1, "").await;
    assert_refused(refused, Code::Unavailable, "STORE_UNAVAILABLE");
    script.answer("Query", 1, 400, &error_body("ValidationException"));
    let refused = users(&service, 1, "").await;
    assert_refused(refused, Code::FailedPrecondition, "INDEX_MISSING");
}

#[tokio::test]
async fn pages_have_a_default_size_and_a_maximum_size() {
    let (backends, service) = start().await;
    backends.table().put_many(large_organization(1100)).await;
    for (size, expected) in [(0, 50), (7, 7), (1000, 1000), (i32::MAX, 1000)] {
        let page = members(&service, ORG, size, "").await.unwrap().0;
        assert_eq!(page.len(), expected);
    }
    let refused = members(&service, ORG, -1, "").await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    let refused = members(&service, "no-org", 1, "").await;
    assert_refused(refused, Code::NotFound, "ORGANIZATION_NOT_FOUND");
    let refused = organizations_of(&service, "nobody", 1, "").await;
    assert_refused(refused, Code::NotFound, "USER_NOT_FOUND");
}

/// Run first against DynamoDB Local, which changes an index more slowly with each table.
mod indexes {
    use super::*;

    #[tokio::test]
    async fn records_of_other_writers_are_listed_after_setup_has_indexed_them() {
        let backends = Backends::start().await;
        backends.table().drop_index("listKey-PK-index").await;
        backends.table().put_many(large_organization(3)).await;
        let service = backends.replica().await;
        let refused = users(&service, 0, "").await;
        assert_refused(refused, Code::FailedPrecondition, "INDEX_MISSING");
        let backend_settings = backends.serve_settings().backends;
        provision::run(&backend_settings, None).await.unwrap();
        let listed = sorted(users(&service, 0, "").await.unwrap().0);
        assert_eq!(
            listed,
            ["member000000", "member000001", "member000002", OLIVIA]
        );
        assert_eq!(organizations(&service, 0, "").await.unwrap().0, [ORG]);
        // A second setup changes nothing.
        let again = provision::run(&backend_settings, None).await.unwrap();
        assert_eq!(again.table, "exists");
    }
}
