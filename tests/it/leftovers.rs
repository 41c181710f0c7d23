//! A deletion takes effect at once, however many orphans it leaves. The orphans are
//! removed in the background.

use std::{sync::Arc, time::Duration};

use account_service::{
    background::orphan_cleanup::OrphanCleanupTiming,
    boot::Tuning,
    domain::Timestamp,
    proto::account_v1::{self as pb, Role},
};
use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::{StreamExt as _, stream};

use crate::{
    harness::{
        Backends, Replica, Table, pace, patient,
        script::{Script, error_body},
        start,
    },
    streams::eventually,
};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
/// Environment variable with the number of members of the large organization.
const MEMBERS: &str = "LEFTOVER_MEMBERS";
/// Environment variable with the number of organizations of the deleted user.
const ORGANIZATIONS: &str = "LEFTOVER_ORGANIZATIONS";

/// An orphan clean-up at this rate, with short pauses.
pub fn cleaning(backends: &Backends, rate: u32) -> Tuning {
    Tuning {
        clean_up: Some(OrphanCleanupTiming {
            poll: pace(Duration::from_millis(20)),
            beat: pace(Duration::from_millis(50)),
            takeover: pace(Duration::from_millis(200)),
            settle: Duration::from_millis(100),
            retention: Duration::from_millis(150),
            rate,
        }),
        ..patient(backends.serve_settings().cache.to_coherence())
    }
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
async fn orphans_of_an_organization_are_removed_and_a_new_one_of_its_name_is_spared() {
    let count = from_env(MEMBERS).unwrap_or(1000);
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    let organization = service.get_organization(ORG).await.unwrap().0;
    add_members(&backends, &organization, count).await;
    backends.forget_calls();
    service.delete_organization(ORG).await;
    let transactions = backends.dynamodb.calls();
    let transactions = transactions.iter().filter(|call| call.contains("Write"));
    assert_eq!(transactions.collect::<Vec<_>>(), ["1 x TransactWriteItems"]);
    assert_eq!(service.role_of(ORG, OLIVIA).await, None);

    // A new organization of the name, with its own members, during the clean-up.
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
async fn orphans_of_a_user_are_removed_and_a_new_one_of_the_name_is_spared() {
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
    // Memberships of the new user: one replaces an orphan, the other does not.
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
async fn another_replica_continues_the_clean_up_of_a_crashed_replica() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    let organization = service.get_organization(ORG).await.unwrap().0;
    add_members(&backends, &organization, 300).await;
    service.delete_organization(ORG).await;
    let (dynamodb, momento) = <(Arc<Script>, Arc<Script>)>::default();
    let (way, settings) = backends.way(dynamodb.clone(), momento).await;
    // The fourth transaction of this replica never ends, as after a crash.
    let _gone = dynamodb.hold("TransactWriteItems", "", 3);
    let crashed = Replica::start_with(&settings, cleaning(&backends, 100_000)).await;
    eventually("the clean-up is in the middle", async || {
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
async fn orphans_are_removed_no_faster_than_the_configured_rate() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    let organization = service.get_organization(ORG).await.unwrap().0;
    add_members(&backends, &organization, 100).await;
    service.delete_organization(ORG).await;
    let began = std::time::Instant::now();
    let _cleaner = Replica::start_with(&backends.serve_settings(), cleaning(&backends, 100)).await;
    eventually("all is removed", async || {
        members_left(&backends).await == 0
    })
    .await;
    // The test does not wait for the pause after the last removals.
    assert!(began.elapsed() > Duration::from_millis(750));
}

/// Puts a membership. Scripts can deny its removal by its key.
async fn put_membership(table: &Table, organization: &str, member: &str, uids: [&str; 2]) {
    let (pk, sk) = (
        format!("ORGMEMBERS#{organization}"),
        format!("MEMBER#{member}"),
    );
    let item = [
        ("PK", pk.as_str()),
        ("SK", &sk),
        ("role", "Viewer"),
        ("organizationUid", uids[0]),
        ("memberUid", uids[1]),
    ];
    table.put(&item).await;
}

/// Puts the clean-up task of a deletion at this time, by the deleting replica's clock.
async fn put_task(table: &Table, gone: &str, uid: &str, millis: i64) {
    let text = |text: String| AttributeValue::S(text);
    let item = [
        ("PK", text("LEFTOVERS".to_owned())),
        ("SK", text(format!("{gone}#{uid}"))),
        ("updateTime", AttributeValue::N(millis.to_string())),
    ];
    let item = item.map(|(name, value)| (name.to_owned(), value));
    table.put_item(item.into()).await;
}

#[tokio::test]
async fn memberships_that_cannot_be_removed_stop_neither_their_own_task_nor_others() {
    let (backends, service) = start().await;
    let table = backends.table();
    service.found_olivia_org_with_michael().await;
    let (organization, _) = service.get_organization(ORG).await.unwrap();
    put_membership(&table, ORG, "mm-viewer", [&organization.uid, "any"]).await;
    add_members(&backends, &organization, 60).await;
    service.create_user("zoe").await.unwrap();
    for name in ["a-org", "b-org", "c-org"] {
        service.create_organization(name, OLIVIA).await.unwrap();
        service
            .add(name, "zoe", Role::Member, OLIVIA)
            .await
            .unwrap();
    }
    let zoe = service.get_user("zoe").await.unwrap().0;
    service.delete_organization(ORG).await;
    service.delete_user("zoe").await.unwrap();
    // An item that is no task, and sorts before all tasks.
    table.put(&[("PK", "LEFTOVERS"), ("SK", "!")]).await;
    let denied = error_body("AccessDeniedException");
    for about in ["MEMBER#mm-viewer", "ORGMEMBERS#b-org"] {
        let script = &backends.dynamodb;
        script.answer_about("TransactWriteItems", about, 400, &denied);
    }
    let settings = backends.serve_settings();
    let cleaner = Replica::start_with(&settings, cleaning(&backends, 100_000)).await;
    eventually("all that can be removed is removed", async || {
        let mut left = members_left(&backends).await;
        for name in ["a-org", "b-org", "c-org"] {
            left += table
                .count(&format!("ORGMEMBERS#{name}"), "MEMBER#zoe")
                .await;
        }
        left == 2
    })
    .await;
    let left = table.partition("ORGMEMBERS#b-org").await;
    assert_eq!(left["MEMBER#zoe"]["memberUid"].as_s().unwrap(), &zoe.uid);
    // Once permitted, their removal succeeds.
    backends.dynamodb.clear_rules();
    eventually("all is removed", async || tasks_left(&backends).await == 0).await;
    drop(cleaner);
}

#[tokio::test]
async fn tasks_that_cannot_be_done_do_not_starve_later_tasks() {
    const STUCK: usize = 120;
    let (backends, service) = start().await;
    let table = backends.table();
    table.end_stream().await;
    service.found_olivia_org_with_michael().await;
    for number in 0..STUCK {
        let name = format!("aa-{number:03}");
        put_membership(&table, &name, "viewer", ["gone", "any"]).await;
        put_task(&table, &format!("ORG#{name}"), "gone", 0).await;
    }
    service.delete_organization(ORG).await;
    let denied = error_body("AccessDeniedException");
    let script = &backends.dynamodb;
    script.answer_about("TransactWriteItems", "MEMBER#viewer", 400, &denied);
    let settings = backends.serve_settings();
    let cleaner = Replica::start_with(&settings, cleaning(&backends, 100_000)).await;
    eventually("all other tasks are done", async || {
        members_left(&backends).await == 0 && tasks_left(&backends).await == STUCK
    })
    .await;
    drop(cleaner);
}

#[tokio::test]
async fn the_clock_of_the_deleting_replica_does_not_decide_when_a_task_is_done() {
    let (backends, service) = start().await;
    let table = backends.table();
    table.end_stream().await;
    let hour = 3_600_000;
    let now = Timestamp::now().0;
    // Deleted a moment ago, by a clock that is an hour behind.
    put_task(&table, "ORG#behind", "gone", now - hour).await;
    let mut patient = cleaning(&backends, 100_000);
    patient.clean_up.as_mut().unwrap().settle = Duration::from_secs(3600);
    backends.forget_calls();
    let cleaner = Replica::start_with(&backends.serve_settings(), patient).await;
    let passes = || {
        let queries = backends.dynamodb.all_seen();
        let queries = queries
            .iter()
            .filter(|(call, about)| call == "Query" && about.contains("LEFTOVERS"));
        queries.count()
    };
    eventually("several passes", async || passes() > 5).await;
    assert_eq!(tasks_left(&backends).await, 1);
    // A membership that the index shows late is removed.
    let membership = [
        ("PK", "ORGMEMBERS#behind"),
        ("SK", "MEMBER#late"),
        ("role", "Member"),
        ("organizationUid", "gone"),
    ];
    table.put(&membership).await;
    drop(cleaner);
    // Deleted by a clock that is an hour ahead.
    put_task(&table, "ORG#ahead", "gone", now + hour).await;
    let settings = backends.serve_settings();
    let cleaner = Replica::start_with(&settings, cleaning(&backends, 100_000)).await;
    eventually("both are done", async || tasks_left(&backends).await == 0).await;
    assert_eq!(table.count("ORGMEMBERS#behind", "MEMBER#").await, 0);
    drop((cleaner, service));
}
