//! Changes past the service: the stream invalidator follows the table's stream and makes
//! them visible.

use std::{sync::Arc, time::Duration};

use account_service::{
    background::stream_invalidator::InvalidatorTiming,
    boot::Tuning,
    coherence,
    proto::account_v1::{Role, Source},
};

use crate::harness::{
    Backends, Isolated, PATIENCE, Replica, pace, patient,
    script::{Script, error_body},
};

/// The invalidator's lease.
const REGISTER: &str = "stream-invalidator";
const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

pub fn following() -> Tuning {
    let invalidator = InvalidatorTiming {
        poll: pace(Duration::from_millis(10)),
        beat: pace(Duration::from_millis(40)),
        takeover: pace(Duration::from_millis(200)),
        discover: pace(Duration::from_millis(100)),
        rediscover: pace(Duration::from_millis(20)),
        fence: Duration::from_secs(1),
    };
    let patient = patient(coherence::CoherenceSettings {
        cache_read_timeout: PATIENCE,
        timing: coherence::Timing {
            // Short, so that records are soon cached again after the invalidator has fenced them.
            fence_ttl: Duration::from_secs(1),
            ..coherence::Timing::default()
        },
        ..coherence::CoherenceSettings::default()
    });
    Tuning {
        invalidator: Some(invalidator),
        ..patient
    }
}

/// The same without an invalidator.
pub fn not_following() -> Tuning {
    let mut tuning = following();
    tuning.invalidator = None;
    tuning
}

async fn serving(backends: &Backends) -> Replica {
    Replica::start_with(&backends.serve_settings(), not_following()).await
}

pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    assert!(waited.is_ok(), "never: {what}");
}

/// Renames a user in the console while the old name is cached. Waits until the replica
/// returns the new name.
async fn rename_and_wait(backends: &Backends, replica: &Replica, first_name: &str) {
    eventually("the old name is cached", async || {
        replica.get_user(OLIVIA).await.unwrap().1 == Source::Cache
    })
    .await;
    let key = format!("USER#{OLIVIA}");
    backends
        .table()
        .set_text(&key, &key, "firstName", first_name)
        .await;
    eventually("the new name is returned", async || {
        replica.get_user(OLIVIA).await.unwrap().0.first_name == first_name
    })
    .await;
}

#[tokio::test]
async fn changes_in_the_console_become_visible() {
    let backends = Backends::start().await;
    let service = serving(&backends).await;
    service.found_olivia_org_with_michael().await;
    service.settle().await;
    let other = Replica::start_with(&backends.serve_settings(), following()).await;
    rename_and_wait(&backends, &other, "Olivia the First").await;
    let read = other.check(ORG, MICHAEL).await.unwrap();
    assert!(read.is_member);
    let (pk, sk) = (format!("ORGMEMBERS#{ORG}"), format!("MEMBER#{MICHAEL}"));
    backends.table().delete(&pk, &sk).await;
    eventually("the removal is visible", async || {
        other.role_of(ORG, MICHAEL).await.is_none()
    })
    .await;
}

#[tokio::test]
async fn a_change_whose_writer_crashed_before_it_confirmed_becomes_visible() {
    let backends = Backends::start().await;
    let service = Replica::start_with(&backends.serve_settings(), following()).await;
    let writer = backends.isolated(not_following()).await;
    service.found_olivia_org_with_michael().await;
    service.settle().await;
    let commit = writer.dynamodb.hold("TransactWriteItems", MICHAEL, 0);
    let removal = {
        let mut client = writer.replica.client.clone();
        let request = account_service::proto::account_v1::RemoveUserFromOrganizationRequest {
            organization_name: ORG.to_owned(),
            member_username: MICHAEL.to_owned(),
            acting_user: OLIVIA.to_owned(),
            ..account_service::proto::account_v1::RemoveUserFromOrganizationRequest::default()
        };
        tokio::spawn(async move { client.remove_user_from_organization(request).await })
    };
    commit.reached().await;
    // Its fence is evicted, and the membership that is about to be removed is cached.
    backends.flush_cache().await;
    eventually("the membership is cached before its removal", async || {
        let read = service.check(ORG, MICHAEL).await.unwrap();
        read.is_member && read.source() == Source::Cache
    })
    .await;
    writer.cut_off();
    commit.release();
    eventually("the removal is visible", async || {
        service.role_of(ORG, MICHAEL).await.is_none()
    })
    .await;
    removal.abort();
}

#[tokio::test]
async fn the_invalidator_passes_a_change_only_after_it_is_fenced() {
    let backends = Backends::start().await;
    let service = serving(&backends).await;
    service.found_olivia_org().await;
    service.settle().await;
    let follower = backends.isolated(following()).await;
    rename_and_wait(&backends, &service, "Before").await;
    eventually("the new name is cached", async || {
        service.get_user(OLIVIA).await.unwrap().1 == Source::Cache
    })
    .await;
    // The follower can neither fence nor leave the cache.
    follower.momento.refuse("SetIf", OLIVIA, 0, usize::MAX);
    let (generation, always) = ("cache-generation", usize::MAX);
    follower
        .dynamodb
        .refuse("BesidePutItem", generation, 0, always);
    follower.momento.forget_calls();
    let key = format!("USER#{OLIVIA}");
    let table = backends.table();
    table.set_text(&key, &key, "firstName", "After").await;
    let read = |seen: &str| follower.dynamodb.seen(seen).len();
    eventually("a fence is attempted", async || {
        !follower.momento.seen("SetIf").is_empty()
    })
    .await;
    let beats = read("BesideGetRecords");
    eventually("the follower reads the stream again", async || {
        read("BesideGetRecords") > beats + 3
    })
    .await;
    follower.momento.clear_rules();
    follower.dynamodb.clear_rules();
    eventually("the new name is returned", async || {
        service.get_user(OLIVIA).await.unwrap().0.first_name == "After"
    })
    .await;
}

#[tokio::test]
async fn a_late_publication_does_not_outlive_a_change_in_the_console() {
    let backends = Backends::start().await;
    let service = serving(&backends).await;
    let writer = backends.isolated(not_following()).await;
    let follower = backends.isolated(following()).await;
    service.found_olivia_org_with_michael().await;
    service.settle().await;
    // All changes so far are fenced.
    rename_and_wait(&backends, &service, "Later").await;
    eventually("the membership is cached", async || {
        service.check(ORG, MICHAEL).await.unwrap().source() == Source::Cache
    })
    .await;
    let publication = writer.momento.hold("SetIf", MICHAEL, 2);
    let promoted = writer
        .replica
        .change_role(ORG, MICHAEL, Role::Admin, OLIVIA)
        .await;
    promoted.unwrap();
    publication.reached().await;
    follower.momento.forget_calls();
    let (pk, sk) = (format!("ORGMEMBERS#{ORG}"), format!("MEMBER#{MICHAEL}"));
    let table = backends.table();
    table.set_text(&pk, &sk, "role", "Member").await;
    // The follower fences also over the writer's own fence.
    eventually("the change is fenced", async || {
        !follower.momento.seen("SetIf").is_empty()
    })
    .await;
    publication.release();
    writer.replica.settle().await;
    eventually("the change is visible", async || {
        service.role_of(ORG, MICHAEL).await == Some(Role::Member)
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_leased_before_a_change_in_the_console_fills_nothing_old() {
    let backends = Backends::start().await;
    let service = serving(&backends).await;
    let reader = backends.isolated(not_following()).await;
    service.found_olivia_org().await;
    service.settle().await;
    let follower = backends.isolated(following()).await;
    rename_and_wait(&backends, &service, "Before").await;
    backends.flush_cache().await;
    let late = reader.dynamodb.hold_reply("GetItem", OLIVIA);
    let read = async { reader.replica.get_user(OLIVIA).await.unwrap() };
    let change = async {
        late.reached().await;
        follower.momento.forget_calls();
        let (table, key) = (backends.table(), format!("USER#{OLIVIA}"));
        table.set_text(&key, &key, "firstName", "After").await;
        eventually("the lease is fenced", async || {
            !follower.momento.seen("SetIf").is_empty()
        })
        .await;
        late.release();
    };
    tokio::join!(read, change);
    reader.replica.settle().await;
    eventually("the new name is returned", async || {
        service.get_user(OLIVIA).await.unwrap().0.first_name == "After"
    })
    .await;
}

#[tokio::test]
async fn writes_of_the_service_stay_cached() {
    let backends = Backends::start().await;
    let service = serving(&backends).await;
    service.found_olivia_org_with_michael().await;
    service.settle().await;
    let _follower = Replica::start_with(&backends.serve_settings(), following()).await;
    // This change is later in the stream than all writes above.
    rename_and_wait(&backends, &service, "Later").await;
    let read = service.get_organization(ORG).await.unwrap();
    assert_eq!(read.1, Source::Cache);
    assert_eq!(service.get_user(MICHAEL).await.unwrap().1, Source::Cache);
    let read = service.get_membership(ORG, MICHAEL).await.unwrap();
    assert_eq!(read.0.role(), Role::Member);
}

/// Follows as [`following`], but never takes over.
fn never_taking_over() -> Tuning {
    let mut tuning = following();
    tuning.invalidator.as_mut().unwrap().takeover = Duration::from_secs(3600);
    tuning
}

fn polls(replica: &Isolated) -> usize {
    replica.dynamodb.seen("BesideGetRecords").len()
}

#[tokio::test]
async fn one_replica_follows_and_another_takes_over_where_it_stopped() {
    let backends = Backends::start().await;
    let first = backends.isolated(following()).await;
    eventually("the first one follows", async || polls(&first) > 3).await;
    // Long, so that it does not take over from a replica that is slow on a busy machine.
    let mut patient = following();
    patient.invalidator.as_mut().unwrap().takeover = Duration::from_secs(5);
    let second = backends.isolated(patient).await;
    let third = serving(&backends).await;
    third.found_olivia_org_with_michael().await;
    third.settle().await;
    rename_and_wait(&backends, &third, "Once").await;
    assert_eq!(polls(&second), 0);

    // The first one is cut off from the table.
    for call in ["BesidePutItem", "BesideGetItem", "BesideGetRecords"] {
        first.dynamodb.refuse(call, "", 0, usize::MAX);
    }
    eventually("the second one follows", async || polls(&second) > 0).await;
    let requests = second.dynamodb.seen("BesideGetShardIterator");
    assert!(
        requests
            .iter()
            .all(|requests| requests.contains("AFTER_SEQUENCE_NUMBER")),
        "{requests:?}"
    );
    third.settle().await;
    rename_and_wait(&backends, &third, "Twice").await;

    // The first one reaches the table again, and does not take over.
    first.dynamodb.clear_rules();
    rename_and_wait(&backends, &third, "Thrice").await;
    first.dynamodb.forget_calls();
    rename_and_wait(&backends, &third, "Again").await;
    assert_eq!(polls(&first), 0);
}

#[tokio::test]
async fn a_replica_that_stops_hands_the_stream_over() {
    let backends = Backends::start().await;
    let patient = never_taking_over();
    let mut first = backends.isolated(patient.clone()).await;
    eventually("the first one follows", async || polls(&first) > 3).await;
    let second = backends.isolated(patient).await;
    first.replica.stop();
    eventually("the second one follows", async || polls(&second) > 0).await;
}

#[tokio::test]
async fn a_replica_that_stops_while_its_lease_is_written_hands_the_stream_over() {
    let backends = Backends::start().await;
    let patient = never_taking_over();
    let mut first = backends.isolated(patient.clone()).await;
    eventually("the first one follows", async || polls(&first) > 3).await;
    let second = backends.isolated(patient).await;
    // Its last write of the lease arrives after it has read the lease to release it.
    let late = first.dynamodb.hold("BesidePutItem", REGISTER, 0);
    late.reached().await;
    let giving_up = first.dynamodb.hold("BesidePutItem", REGISTER, 0);
    first.replica.stop();
    giving_up.reached().await;
    let table = backends.table();
    let key = format!("SERVICE#{REGISTER}");
    let version = async || table.number(&key, &key, "ver").await;
    let before = version().await;
    late.release();
    eventually("the write arrives", async || version().await != before).await;
    giving_up.release();
    eventually("the second one follows", async || polls(&second) > 0).await;
}

#[tokio::test]
async fn shards_are_followed_from_parents_to_children() {
    let backends = Backends::start().await;
    let (stream, shard) = backends.table().stream_and_shard().await;
    let service = serving(&backends).await;
    service.found_olivia_org_with_michael().await;
    service.settle().await;
    let describe = serde_json::json!({"StreamDescription": {
        "StreamArn": stream,
        "Shards": [
            {"ShardId": shard, "ParentShardId": "shardId-00000000000000000001-parent"},
            {"ShardId": "shardId-00000000000000000001-parent"},
        ],
    }});
    let dynamodb = Arc::new(Script::default());
    let always = usize::MAX;
    dynamodb.answer("BesideDescribeStream", always, 200, &describe.to_string());
    let closed = r#"{"Records":[]}"#;
    dynamodb.answer_about(
        "BesideGetShardIterator",
        "parent",
        200,
        r#"{"ShardIterator":"of-parent"}"#,
    );
    dynamodb.answer_about("BesideGetRecords", "of-parent", 200, closed);
    let (_way, settings) = backends.way(dynamodb.clone(), Arc::default()).await;
    let _follower = Replica::start_with(&settings, following()).await;
    rename_and_wait(&backends, &service, "Seen in the child").await;
    let requests = dynamodb.seen("BesideGetShardIterator");
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert!(requests[0].contains("parent"), "{requests:?}");
    assert!(
        requests[1].contains(&shard) && requests[1].contains("TRIM_HORIZON"),
        "{requests:?}"
    );
}

#[tokio::test]
async fn expired_iterators_and_trimmed_changes_do_not_stop_the_invalidator() {
    let backends = Backends::start().await;
    let service = serving(&backends).await;
    service.found_olivia_org_with_michael().await;
    service.settle().await;
    let follower = backends.isolated(following()).await;
    for (times, error) in [
        "ExpiredIteratorException",
        "TrimmedDataAccessException",
        "InternalServerError",
        "LimitExceededException",
    ]
    .into_iter()
    .enumerate()
    {
        let status = if error == "InternalServerError" {
            500
        } else {
            400
        };
        let body = error_body(error);
        follower
            .dynamodb
            .answer("BesideGetRecords", 5, status, &body);
        rename_and_wait(&backends, &service, &format!("{times} times")).await;
    }
}
