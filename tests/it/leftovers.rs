//! Deletions are done at once, whatever they leave; what they leave is removed
//! beside all calls.

use std::{sync::Arc, time::Duration};

use account_service::{
    boot::Tuning,
    clean_up::CleanUpTiming,
    proto::account_v1::{self as pb, Role},
};
use futures_util::{StreamExt as _, stream};

use crate::{
    harness::{Backends, Replica, script::Script, start},
    streams::eventually,
};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
/// Environment variable with the number of members of the large organization.
const MEMBERS: &str = "LEFTOVER_MEMBERS";
/// The same of the organizations that the deleted user is in.
const ORGANIZATIONS: &str = "LEFTOVER_ORGANIZATIONS";

/// Cleans up at this rate, without waiting for much.
pub fn cleaning(backends: &Backends, rate: u32) -> Tuning {
    Tuning {
        clean_up: Some(CleanUpTiming {
            poll: Duration::from_millis(20),
            beat: Duration::from_millis(50),
            takeover: Duration::from_millis(200),
            settle: Duration::from_millis(100),
            rate,
        }),
        ..backends.serve_settings().cache.to_coherence().into()
    }
}

async fn delete_organization(replica: &Replica) {
    let request = pb::DeleteOrganizationRequest {
        organization_name: ORG.to_owned(),
        actor: Some(pb::delete_organization_request::Actor::AsPlatform(true)),
        ..pb::DeleteOrganizationRequest::default()
    };
    let mut client = replica.client.clone();
    client.delete_organization(request).await.unwrap();
}

fn from_env(name: &str) -> Option<usize> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// Puts members into the organization past the service, as it would have written
/// them.
async fn add_members(backends: &Backends, organization: &pb::Organization, count: usize) {
    let items = (0..count).map(|number| {
        vec![
            ("PK", format!("ORGMEMBERS#{ORG}")),
            ("SK", format!("MEMBER#member{number:06}")),
            ("role", "Member".to_owned()),
            ("organizationUid", organization.uid.clone()),
            ("memberUid", format!("uid{number}")),
        ]
    });
    backends.table().end_stream().await;
    backends.table().put_many(items.collect()).await;
}

async fn members_left(backends: &Backends) -> usize {
    let pk = format!("ORGMEMBERS#{ORG}");
    backends.table().count(&pk, "MEMBER#").await
}

async fn tasks_left(backends: &Backends) -> usize {
    let table = backends.table();
    table.count("LEFTOVERS", "USER#").await + table.count("LEFTOVERS", "ORG#").await
}

#[tokio::test]
async fn what_an_organization_leaves_is_removed_and_the_next_one_of_its_name_is_spared() {
    let count = from_env(MEMBERS).unwrap_or(1000);
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    let organization = service.get_organization(ORG).await.unwrap().0;
    add_members(&backends, &organization, count).await;
    backends.forget_calls();
    delete_organization(&service).await;
    let transactions = backends.dynamodb.calls();
    let transactions = transactions.iter().filter(|call| call.contains("Write"));
    assert_eq!(transactions.collect::<Vec<_>>(), ["1 x TransactWriteItems"]);
    assert_eq!(service.role_of(ORG, OLIVIA).await, None);

    // The name again, with members of its own, while the clean-up is under way.
    service.create_organization(ORG, OLIVIA).await.unwrap();
    let cleaner =
        Replica::start_with(&backends.serve_settings(), cleaning(&backends, 100_000)).await;
    let added = cleaner.add(ORG, MICHAEL, Role::Admin, OLIVIA).await;
    added.unwrap();
    let mut left = usize::MAX;
    while tasks_left(&backends).await > 0 {
        let now = members_left(&backends).await;
        assert!(now <= left.saturating_add(1), "{now} after {left}");
        left = now;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(members_left(&backends).await, 2);
    assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Owner));
    assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Admin));
}

#[tokio::test]
async fn what_a_user_leaves_is_removed_and_the_next_one_of_the_name_is_spared() {
    let count = from_env(ORGANIZATIONS).unwrap_or(120);
    let (backends, service) = start().await;
    backends.table().end_stream().await;
    service.found_olivia_org().await;
    let found = |number: usize| {
        let service = &service;
        async move {
            let name = format!("org-{number:04}");
            service.create_organization(&name, OLIVIA).await.unwrap();
            let added = service.add(&name, MICHAEL, Role::Member, OLIVIA).await;
            added.unwrap();
        }
    };
    let founded = stream::iter(0..count).map(found);
    founded.buffer_unordered(8).collect::<Vec<_>>().await;
    backends.forget_calls();
    service.delete_user(MICHAEL).await.unwrap();
    assert_eq!(backends.dynamodb.seen("TransactWriteItems").len(), 1);
    service.create_user(MICHAEL).await.unwrap();
    // Of the same name, over what is left and beside it.
    for organization in ["org-0007", ORG] {
        let added = service
            .add(organization, MICHAEL, Role::Admin, OLIVIA)
            .await;
        added.unwrap();
    }
    let cleaner =
        Replica::start_with(&backends.serve_settings(), cleaning(&backends, 100_000)).await;
    eventually("all is removed", async || tasks_left(&backends).await == 0).await;
    drop(cleaner);
    let mut left = 0;
    for number in 0..count {
        let pk = format!("ORGMEMBERS#org-{number:04}");
        left += backends.table().count(&pk, "MEMBER#membermichael").await;
    }
    assert_eq!(left, 1);
    for organization in ["org-0007", ORG] {
        assert_eq!(
            service.role_of(organization, MICHAEL).await,
            Some(Role::Admin)
        );
    }
}

#[tokio::test]
async fn a_replica_that_crashed_in_the_middle_is_followed_by_another_one() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    let organization = service.get_organization(ORG).await.unwrap().0;
    add_members(&backends, &organization, 300).await;
    delete_organization(&service).await;
    let (dynamodb, momento) = <(Arc<Script>, Arc<Script>)>::default();
    let (way, settings) = backends.way(dynamodb.clone(), momento).await;
    // Its fourth transaction never ends, nor does anything after it: it is gone.
    let _gone = dynamodb.hold("TransactWriteItems", "", 3);
    let crashed = Replica::start_with(&settings, cleaning(&backends, 100_000)).await;
    eventually("it is in the middle", async || {
        members_left(&backends).await <= 300 - 3 * 25 + 1
    })
    .await;
    drop(way);
    let other = Replica::start_with(&backends.serve_settings(), cleaning(&backends, 100_000)).await;
    eventually("all is removed", async || tasks_left(&backends).await == 0).await;
    assert_eq!(members_left(&backends).await, 0);
    drop((crashed, other));
}

#[tokio::test]
async fn leftovers_are_removed_no_faster_than_the_rate() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    let organization = service.get_organization(ORG).await.unwrap().0;
    add_members(&backends, &organization, 100).await;
    delete_organization(&service).await;
    let began = std::time::Instant::now();
    let _cleaner = Replica::start_with(&backends.serve_settings(), cleaning(&backends, 100)).await;
    eventually("all is removed", async || {
        members_left(&backends).await == 0
    })
    .await;
    // The pause after the last ones is not waited for.
    assert!(began.elapsed() > Duration::from_millis(750));
}
