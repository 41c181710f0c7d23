//! Filters and the order of lists.

use account_service::proto::account_v1::{self as pb, Role};
use tonic::{Code, Status};

use crate::harness::{Backends, Replica, assert_refused, start};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";

/// Collects the names of all pages. `page` returns the names of a page, and the token of the next.
async fn all(mut page: impl AsyncFnMut(String) -> (Vec<String>, String)) -> Vec<String> {
    let (mut names, mut token) = (Vec::new(), String::new());
    loop {
        let (listed, next) = page(token).await;
        names.extend(listed);
        if next.is_empty() {
            return names;
        }
        token = next;
    }
}

async fn members(
    service: &Replica,
    filter: &str,
    page_size: i32,
    page_token: String,
) -> Result<(Vec<String>, String), Status> {
    let request = pb::ListOrganizationMembersRequest {
        organization_name: ORG.to_owned(),
        page_size,
        page_token,
        filter: filter.to_owned(),
    };
    let mut client = service.client.clone();
    let page = client
        .list_organization_members(request)
        .await?
        .into_inner();
    let names = page.memberships.into_iter().map(|it| it.member_username);
    Ok((names.collect(), page.next_page_token))
}

async fn organizations_of_olivia(
    service: &Replica,
    filter: &str,
    page_token: String,
) -> Result<(Vec<String>, String), Status> {
    let request = pb::ListUserOrganizationsRequest {
        username: OLIVIA.to_owned(),
        page_size: 2,
        page_token,
        filter: filter.to_owned(),
        ..pb::ListUserOrganizationsRequest::default()
    };
    let mut client = service.client.clone();
    let page = client.list_user_organizations(request).await?.into_inner();
    let names = page.memberships.into_iter().map(|it| it.organization_name);
    Ok((names.collect(), page.next_page_token))
}

async fn users(
    service: &Replica,
    filter: &str,
    order_by: &str,
    page_token: String,
) -> Result<(Vec<String>, String), Status> {
    let request = pb::ListUsersRequest {
        page_size: 3,
        page_token,
        filter: filter.to_owned(),
        order_by: order_by.to_owned(),
        show_deleted: false,
    };
    let mut client = service.client.clone();
    let page = client.list_users(request).await?.into_inner();
    let names = page.users.into_iter().map(|it| it.username);
    Ok((names.collect(), page.next_page_token))
}

/// An organization with members of all roles, one of them suspended.
async fn with_members() -> (Backends, Replica) {
    let (backends, service) = Box::pin(start()).await;
    service.found_olivia_org().await;
    for (username, role) in [
        ("adam", Role::Admin),
        ("ada", Role::Member),
        ("adele", Role::Member),
        ("bert", Role::Owner),
    ] {
        service.create_user(username).await.unwrap();
        service.add(ORG, username, role, OLIVIA).await.unwrap();
    }
    let suspend = pb::SuspendUserRequest {
        username: "adele".to_owned(),
        ..pb::SuspendUserRequest::default()
    };
    let mut client = service.client.clone();
    client.suspend_user(suspend).await.unwrap();
    (backends, service)
}

#[tokio::test]
async fn members_are_listed_by_role_state_and_the_beginning_of_their_name() {
    let (backends, service) = with_members().await;
    for (filter, expected) in [
        ("", &["ada", "adam", "adele", "bert", OLIVIA][..]),
        ("role = ROLE_OWNER", &["bert", OLIVIA]),
        ("role = ROLE_MEMBER", &["ada", "adele"]),
        ("state = STATE_SUSPENDED", &["adele"]),
        (r#"member_username = "ad*""#, &["ada", "adam", "adele"]),
        (r#"member_username = "ada""#, &["ada"]),
        (
            r#"member_username = "*""#,
            &["ada", "adam", "adele", "bert", OLIVIA],
        ),
        (r#"member_username = "c*""#, &[]),
        (
            r#"state = STATE_ACTIVE AND member_username = "ad*" AND role = ROLE_MEMBER"#,
            &["ada"],
        ),
    ] {
        for page_size in [1, 2, 50] {
            backends.forget_calls();
            let listed =
                all(async |token| members(&service, filter, page_size, token).await.unwrap());
            assert_eq!(listed.await, expected, "{filter}");
            assert!(backends.dynamodb.seen("Scan").is_empty());
        }
    }
    // One query of the members with such a name, and of no others.
    backends.forget_calls();
    members(&service, r#"member_username = "ada""#, 50, String::new())
        .await
        .unwrap();
    let [query] = &backends.dynamodb.seen("Query")[..] else {
        panic!("not one query")
    };
    assert!(query.contains("MEMBER#ada"), "{query}");
}

#[tokio::test]
async fn a_membership_with_an_unknown_role_is_listed_as_suspended() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    let (pk, sk) = (format!("ORGMEMBERS#{ORG}"), format!("MEMBER#{OLIVIA}"));
    let table = backends.table();
    table.set_text(&pk, &sk, "role", "Emperor").await;
    for (filter, expected) in [
        ("state = STATE_SUSPENDED", &[OLIVIA][..]),
        ("state = STATE_ACTIVE", &[]),
        ("role = ROLE_OWNER", &[]),
    ] {
        let listed = members(&service, filter, 50, String::new()).await.unwrap();
        assert_eq!(listed.0, expected, "{filter}");
    }
}

#[tokio::test]
async fn organizations_of_a_user_are_listed_by_role_and_the_beginning_of_their_name() {
    let (_backends, service) = start().await;
    for username in [OLIVIA, "founder"] {
        service.create_user(username).await.unwrap();
    }
    for (number, role) in [Role::Member, Role::Admin, Role::Owner]
        .into_iter()
        .enumerate()
    {
        for kind in ["red", "blue"] {
            let name = format!("{kind}-{number}");
            service.create_organization(&name, "founder").await.unwrap();
            service.add(&name, OLIVIA, role, "founder").await.unwrap();
        }
    }
    for (filter, expected) in [
        (
            r#"organization_name = "blue*""#,
            &["blue-0", "blue-1", "blue-2"][..],
        ),
        (r#"organization_name = "red-1""#, &["red-1"]),
        ("role = ROLE_ADMIN", &["blue-1", "red-1"]),
        (
            r#"role = ROLE_ADMIN AND organization_name = "r*""#,
            &["red-1"],
        ),
    ] {
        let listed = all(async |token| {
            organizations_of_olivia(&service, filter, token)
                .await
                .unwrap()
        });
        assert_eq!(listed.await, expected, "{filter}");
    }
}

#[tokio::test]
async fn users_and_organizations_are_listed_by_name_and_by_its_beginning() {
    let (backends, service) = start().await;
    let mut names = Vec::new();
    for number in 0..20 {
        for kind in ["anna", "bella"] {
            names.push(format!("{kind}-{number}"));
        }
    }
    for name in &names {
        service.create_user(name).await.unwrap();
        service.create_organization(name, name).await.unwrap();
    }
    names.sort();
    let (anna, _) = names.split_at(20);
    backends.forget_calls();
    for order_by in ["", "username"] {
        for (filter, expected) in [
            ("", &names[..]),
            (r#"username = "anna*""#, anna),
            (r#"username = "anna-7""#, &["anna-7".to_owned()]),
            (r#"username = "c*""#, &[]),
        ] {
            let mut listed =
                all(async |token| users(&service, filter, order_by, token).await.unwrap()).await;
            if order_by.is_empty() {
                listed.sort();
            }
            assert_eq!(listed, expected, "{filter} {order_by}");
        }
    }
    let listed = all(async |page_token| {
        let request = pb::ListOrganizationsRequest {
            page_size: 7,
            page_token,
            filter: r#"organization_name = "anna*""#.to_owned(),
            order_by: "organization_name".to_owned(),
            show_deleted: false,
        };
        let mut client = service.client.clone();
        let page = client.list_organizations(request).await.unwrap();
        let page = page.into_inner();
        let names = page.organizations.into_iter();
        let names = names.map(|it| it.organization_name);
        (names.collect(), page.next_page_token)
    });
    assert_eq!(listed.await, anna);
    assert!(backends.dynamodb.seen("Scan").is_empty());
}

#[tokio::test]
async fn other_filters_orders_and_tokens_of_other_lists_are_rejected() {
    let (_backends, service) = with_members().await;
    let field = |details: tonic_types::ErrorDetails| {
        let violations = &details.bad_request().unwrap().field_violations;
        violations[0].field.clone()
    };
    for filter in [
        "email = \"a\"",
        "role != ROLE_OWNER",
        "organization_name = \"a\"",
        "labels.team = \"a\"",
    ] {
        let refused = members(&service, filter, 1, String::new()).await;
        let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(field(details), "filter");
    }
    for order_by in ["username desc", "create_time", "email"] {
        let refused = users(&service, "", order_by, String::new()).await;
        let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(field(details), "order_by");
    }
    let (_, token) = members(&service, "", 1, String::new()).await.unwrap();
    let refused = members(&service, "role = ROLE_OWNER", 1, token).await;
    let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(field(details), "page_token");
    let (_, token) = users(&service, "", "username", String::new())
        .await
        .unwrap();
    let refused = users(&service, "", "", token).await;
    let details = assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(field(details), "page_token");
}
