//! Counts of memberships are exact as of a position of the change log.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use account_service::{
    boot,
    proto::account_v1::{
        self as pb, ChangeKind, Role, change::Resource, watch_changes_request::Start,
    },
};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::{
    harness::{Backends, PATIENCE, Replica, assert_refused, from_now},
    streams::{eventually, following},
};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

async fn start() -> (Backends, Replica) {
    let backends = Backends::start().await;
    let replica = follower(&backends).await;
    (backends, replica)
}

async fn follower(backends: &Backends) -> Replica {
    Box::pin(Replica::start_with(&backends.serve_settings(), following())).await
}

async fn count_members(
    service: &Replica,
    organization: &str,
) -> Result<pb::CountOrganizationMembersResponse, Status> {
    let request = pb::CountOrganizationMembersRequest {
        organization_name: organization.to_owned(),
    };
    let mut client = service.client.clone();
    let counted = client.count_organization_members(request).await?;
    Ok(counted.into_inner())
}

async fn count_organizations(service: &Replica, username: &str) -> Result<i64, Status> {
    let request = pb::CountUserOrganizationsRequest {
        username: username.to_owned(),
    };
    let mut client = service.client.clone();
    let counted = client.count_user_organizations(request).await?;
    Ok(counted.into_inner().organization_count)
}

/// Owners, Admins, Members.
async fn by_role(service: &Replica, organization: &str) -> Result<[i64; 3], Status> {
    let counted = count_members(service, organization).await?;
    let counts = [
        counted.owner_count,
        counted.admin_count,
        counted.member_count,
    ];
    assert_eq!(counted.total_count, counts.iter().sum::<i64>());
    Ok(counts)
}

/// Waits until an organization has these numbers of Owners, Admins and Members.
async fn assert_counts(service: &Replica, organization: &str, expected: [i64; 3]) {
    let mut last = None;
    let wait = timeout(PATIENCE, async {
        loop {
            let counts = by_role(service, organization).await.unwrap();
            last = Some(counts);
            if counts == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let is_reached = wait.await.is_ok();
    assert!(is_reached, "{last:?} instead of {expected:?}");
}

#[tokio::test]
async fn members_are_counted_by_role_and_organizations_by_user() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    assert_counts(&service, ORG, [1, 0, 0]).await;
    assert_eq!(count_organizations(&service, MICHAEL).await.unwrap(), 0);
    service
        .add(ORG, MICHAEL, Role::Member, OLIVIA)
        .await
        .unwrap();
    assert_counts(&service, ORG, [1, 0, 1]).await;
    assert_eq!(count_organizations(&service, MICHAEL).await.unwrap(), 1);
    let promoted = service.change_role(ORG, MICHAEL, Role::Admin, OLIVIA);
    promoted.await.unwrap();
    assert_counts(&service, ORG, [1, 1, 0]).await;
    service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    assert_counts(&service, ORG, [1, 0, 0]).await;
    assert_eq!(count_organizations(&service, MICHAEL).await.unwrap(), 0);

    // A membership that expires is not counted from its end on, and neither again when it is removed.
    let end = Some(from_now(Duration::from_secs(6)));
    let added = service.add_until(ORG, MICHAEL, Role::Member, OLIVIA, end);
    added.await.unwrap();
    assert_counts(&service, ORG, [1, 0, 1]).await;
    assert_counts(&service, ORG, [1, 0, 0]).await;
    service
        .add(ORG, MICHAEL, Role::Admin, OLIVIA)
        .await
        .unwrap();
    assert_counts(&service, ORG, [1, 1, 0]).await;

    // Another incarnation of the names begins at zero.
    service.delete_organization(ORG).await;
    let refused = count_members(&service, ORG).await;
    assert_refused(refused, Code::NotFound, "ORGANIZATION_NOT_FOUND");
    service.create_organization(ORG, MICHAEL).await.unwrap();
    assert_counts(&service, ORG, [1, 0, 0]).await;
    let refused = count_organizations(&service, "nobody").await;
    assert_refused(refused, Code::NotFound, "USER_NOT_FOUND");
}

/// Counts by the changes up to a cursor, from the first change on.
async fn replay(service: &Replica, organization: &str, cursor: &str) -> [i64; 3] {
    let request = pb::WatchChangesRequest {
        start: Some(Start::Oldest(true)),
        ..pb::WatchChangesRequest::default()
    };
    let number = |cursor: &str| -> u64 { cursor.rsplit_once('-').unwrap().1.parse().unwrap() };
    let end = number(cursor);
    let mut client = service.client.clone();
    let mut watch = client.watch_changes(request).await.unwrap().into_inner();
    let mut roles = HashMap::new();
    let replaying = async {
        loop {
            let response = watch.message().await.unwrap().unwrap();
            for change in response.changes {
                if number(&change.cursor) > end {
                    return;
                }
                let Some(Resource::Membership(membership)) = &change.resource else {
                    continue;
                };
                if membership.organization_name != organization {
                    continue;
                }
                let member = membership.member_username.clone();
                match (change.kind(), &membership.after) {
                    (ChangeKind::Created | ChangeKind::Updated, Some(after)) => {
                        roles.insert(member, after.role());
                    }
                    _ => drop(roles.remove(&member)),
                }
            }
            if number(&response.cursor) >= end {
                return;
            }
        }
    };
    timeout(PATIENCE, replaying).await.expect("too few changes");
    [Role::Owner, Role::Admin, Role::Member].map(|role| {
        let with_role = roles.values().filter(|it| **it == role);
        i64::try_from(with_role.count()).unwrap()
    })
}

#[tokio::test]
async fn several_changes_of_a_membership_with_an_end_are_counted_together() {
    let backends = Backends::start().await;
    let writer = backends.replica().await;
    writer.found_olivia_org_with_michael().await;
    writer.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    // Without a follower, so that one page has them all.
    let end = Some(from_now(Duration::from_secs(3600)));
    for _ in 0..3 {
        let add = writer.add_until(ORG, MICHAEL, Role::Member, OLIVIA, end);
        add.await.unwrap();
        for role in [Role::Admin, Role::Member] {
            let change = writer.change_role(ORG, MICHAEL, role, OLIVIA);
            change.await.unwrap();
        }
        writer.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    }
    let add = writer.add_until(ORG, MICHAEL, Role::Admin, OLIVIA, end);
    add.await.unwrap();
    let service = follower(&backends).await;
    assert_counts(&service, ORG, [1, 1, 0]).await;
}

/// Tries random changes of memberships. Returns the number of changes that were made.
async fn change_at_random(
    service: &Replica,
    organizations: &[String],
    users: &[String],
    count: usize,
) -> usize {
    let mut made = 0;
    for _ in 0..count {
        let organization = &organizations[fastrand::usize(..organizations.len())];
        let user = &users[fastrand::usize(..users.len())];
        let roles = [Role::Owner, Role::Admin, Role::Member];
        let role = roles[fastrand::usize(..roles.len())];
        // Many of these are refused: the user is a member already, or is none.
        let is_made = match fastrand::u8(..8) {
            0..4 => {
                let add = service.add(organization, user, role, OLIVIA);
                add.await.is_ok()
            }
            4..6 => {
                let change = service.change_role(organization, user, role, OLIVIA);
                change.await.is_ok()
            }
            6 => service.remove(organization, user, OLIVIA).await.is_ok(),
            _ => {
                let end = from_now(Duration::from_millis(3000 + fastrand::u64(..1000)));
                let add = service.add_until(organization, user, role, OLIVIA, Some(end));
                add.await.is_ok()
            }
        };
        made += usize::from(is_made);
    }
    made
}

/// The organizations and users of a test, created.
async fn found(service: &Replica) -> (Vec<String>, Vec<String>) {
    let names = |kind: &str, count: usize| -> Vec<_> {
        (0..count)
            .map(|number| format!("{kind}-{number}"))
            .collect()
    };
    let (organizations, users) = (names("org", 4), names("user", 12));
    service.create_user(OLIVIA).await.unwrap();
    for user in &users {
        service.create_user(user).await.unwrap();
    }
    for organization in &organizations {
        service
            .create_organization(organization, OLIVIA)
            .await
            .unwrap();
    }
    (organizations, users)
}

/// The counts in the table: of Owners, Admins and Members of each organization, and of the
/// organizations of each user.
async fn full_count(backends: &Backends) -> (BTreeMap<String, [i64; 3]>, BTreeMap<String, i64>) {
    let now = i64::try_from(crate::callers::now()).unwrap();
    let (mut of_organizations, mut of_users) = (BTreeMap::new(), BTreeMap::new());
    for item in backends.table().items().await {
        let text = |name: &str| item.get(name).and_then(|value| value.as_s().ok()).cloned();
        let (Some(pk), Some(role)) = (text("PK"), text("role")) else {
            continue;
        };
        let end = item.get("expireTime").and_then(|value| value.as_n().ok());
        let has_ended = end.is_some_and(|end| end.parse::<i64>().unwrap() <= now);
        if !pk.starts_with("ORGMEMBERS#") || has_ended {
            continue;
        }
        let roles = ["Owner", "Admin", "Member"];
        let role = roles.iter().position(|it| *it == role).unwrap();
        let counts: &mut [i64; 3] = of_organizations
            .entry(text("organizationName").unwrap())
            .or_default();
        counts[role] += 1;
        *of_users.entry(text("memberUsername").unwrap()).or_default() += 1;
    }
    (of_organizations, of_users)
}

/// Asserts that the counts become those of the table.
async fn assert_full_count(
    backends: &Backends,
    service: &Replica,
    organizations: &[String],
    users: &[String],
) {
    // Until no membership ends any more.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (of_organizations, of_users) = full_count(backends).await;
    for organization in organizations {
        assert_counts(service, organization, of_organizations[organization]).await;
    }
    for user in users {
        let expected = of_users.get(user).copied().unwrap_or_default();
        eventually("the count of the user is that of the table", async || {
            count_organizations(service, user).await.unwrap() == expected
        })
        .await;
    }
}

/// The number of random changes.
fn changes() -> usize {
    let changes = std::env::var("COUNTED_CHANGES");
    changes.map_or(400, |changes| changes.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_are_those_of_the_table_after_random_changes_with_takeovers() {
    let (backends, service) = start().await;
    let (organizations, users) = found(&service).await;
    let writer = backends.replica().await;
    let mut followers = vec![service];
    let takeovers = (changes() / 5000).max(8);
    let mut made = 0;
    for _ in 0..takeovers {
        let changed = change_at_random(&writer, &organizations, &users, changes() / takeovers);
        let (next, changed) = tokio::join!(follower(&backends), changed);
        made += changed;
        // The former follower stops without a word.
        followers.push(next);
        drop(followers.remove(0));
    }
    println!(
        "{} changes, {made} of them made, {takeovers} takeovers",
        changes()
    );
    assert_full_count(&backends, &writer, &organizations, &users).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_are_exact_as_of_their_cursor_while_memberships_change() {
    let (_backends, service) = start().await;
    let (organizations, users) = found(&service).await;
    let mut counted = Vec::new();
    let counting = async {
        for _ in 0..40 {
            for organization in &organizations {
                let counts = count_members(&service, organization).await.unwrap();
                counted.push((organization.clone(), counts));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let changing = change_at_random(&service, &organizations, &users, 200);
    tokio::join!(counting, changing);
    for (organization, counts) in counted.into_iter().step_by(7) {
        let by_role = [counts.owner_count, counts.admin_count, counts.member_count];
        let replayed = replay(&service, &organization, &counts.cursor).await;
        assert_eq!(by_role, replayed, "{organization} as of {}", counts.cursor);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recount_completes_the_counts_of_a_table_while_memberships_change() {
    let (backends, service) = start().await;
    let (organizations, users) = found(&service).await;
    change_at_random(&service, &organizations, &users, 100).await;
    assert_counts_are_complete(&service, &organizations).await;
    // As if an earlier version had written the table.
    let table = backends.table();
    for item in table.items().await {
        let key = item["PK"].as_s().unwrap();
        if key.starts_with("COUNTS#") || key == "EXPIRIES" {
            table.delete(key, item["SK"].as_s().unwrap()).await;
        }
    }
    let refused = count_members(&service, &organizations[0]).await;
    assert_refused(refused, Code::FailedPrecondition, "COUNT_INCOMPLETE");
    let settings = backends.serve_settings();
    let recount = boot::recount(&settings.backends);
    let changing = change_at_random(&service, &organizations, &users, 100);
    let (recounted, _) = tokio::join!(Box::pin(recount), changing);
    let recounted = recounted.unwrap();
    assert_eq!((recounted.profiles, recounted.busy), (17, 0));
    assert_full_count(&backends, &service, &organizations, &users).await;
}

async fn assert_counts_are_complete(service: &Replica, organizations: &[String]) {
    for organization in organizations {
        count_members(service, organization).await.unwrap();
    }
}
