//! WatchChanges delivers every change to every watcher: in order, once.

use std::{collections::HashMap, time::Duration};

use account_service::{
    domain::Timestamp,
    proto::account_v1::{
        self as pb, ChangeKind, Role, State,
        change::{Actor, Resource},
        watch_changes_request::Start,
    },
    service::MAX_CHANGES,
};
use aws_sdk_dynamodb::types::AttributeValue;
use tokio::time::{Instant, timeout};
use tonic::{Code, Status, Streaming};

use crate::{
    harness::{Backends, Client, PATIENCE, Replica, Table, assert_refused, from_now},
    streams::{eventually, following, not_following},
};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

/// WatchChanges streams that one caller may have open in a replica.
const WATCHES_OF_A_CALLER: usize = 25;

/// A client's view of a stream of changes.
pub struct Watch(Streaming<pb::WatchChangesResponse>);

fn from(start: Start) -> pb::WatchChangesRequest {
    pb::WatchChangesRequest {
        start: Some(start),
        ..pb::WatchChangesRequest::default()
    }
}

fn after(cursor: &str) -> pb::WatchChangesRequest {
    from(Start::Cursor(cursor.to_owned()))
}

impl Watch {
    async fn open(
        client: &Client,
        request: impl Into<Option<pb::WatchChangesRequest>>,
    ) -> Result<Self, Status> {
        let request = request.into().unwrap_or_default();
        let stream = client.clone().watch_changes(request).await?;
        Ok(Self(stream.into_inner()))
    }

    /// Opens a watch as soon as the stream is followed.
    pub async fn begin(client: &Client) -> Self {
        let mut watch = None;
        eventually("the stream is followed", async || {
            watch = Self::open(client, None).await.ok();
            watch.is_some()
        })
        .await;
        watch.unwrap()
    }

    async fn response(&mut self) -> Result<pb::WatchChangesResponse, Status> {
        let response = timeout(PATIENCE, self.0.message()).await;
        let response = response.expect("no response")?.expect("the stream ended");
        assert!(response.changes.len() <= MAX_CHANGES);
        Ok(response)
    }

    /// At least this number of changes.
    pub async fn changes(&mut self, count: usize) -> Result<Vec<pb::Change>, Status> {
        let changes = async {
            let mut changes = Vec::new();
            while changes.len() < count {
                changes.extend(self.response().await?.changes);
            }
            Ok(changes)
        };
        timeout(PATIENCE, changes).await.expect("too few changes")
    }

    /// The status that ends the stream.
    async fn end(&mut self) -> Status {
        let end = async {
            loop {
                if let Err(status) = self.response().await {
                    return status;
                }
            }
        };
        timeout(PATIENCE, end)
            .await
            .expect("the stream did not end")
    }
}

/// Backends, and a replica that follows the stream once this returns.
async fn start() -> (Backends, Replica) {
    let backends = Backends::start().await;
    let replica = Replica::start_with(&backends.serve_settings(), following()).await;
    Watch::begin(&replica.client).await;
    (backends, replica)
}

/// A change in short: `+user`, `~user`, `-org/member`.
fn summary(change: &pb::Change) -> String {
    let sign = match change.kind() {
        ChangeKind::Created => '+',
        ChangeKind::Updated => '~',
        ChangeKind::Deleted => '-',
        ChangeKind::Expired => '!',
        ChangeKind::Unspecified => '?',
    };
    let name = match change.resource.as_ref().unwrap() {
        Resource::User(user) => user.username.clone(),
        Resource::Organization(organization) => organization.organization_name.clone(),
        Resource::Membership(membership) => format!(
            "{}/{}",
            membership.organization_name, membership.member_username
        ),
    };
    format!("{sign}{name}")
}

fn summaries(changes: &[pb::Change]) -> Vec<String> {
    changes.iter().map(summary).collect()
}

fn sorted(mut summaries: Vec<String>) -> Vec<String> {
    summaries.sort();
    summaries
}

#[tokio::test]
async fn a_change_is_delivered_with_its_old_and_new_record_and_its_actor() {
    let (_backends, service) = start().await;
    let mut watch = Watch::open(&service.client, None).await.unwrap();
    assert_eq!(watch.response().await.unwrap().changes, []);
    let request_id = uuid::Uuid::new_v4().to_string();
    let request = pb::CreateUserRequest {
        username: OLIVIA.to_owned(),
        labels: [("team".to_owned(), "accounts".to_owned())].into(),
        request_id: request_id.clone(),
        ..pb::CreateUserRequest::default()
    };
    let created = service.client.clone().create_user(request).await.unwrap();
    let created = created.into_inner().user.unwrap();
    let received = watch.changes(1).await.unwrap().remove(0);
    assert_eq!(received.kind(), ChangeKind::Created);
    assert_eq!(received.actor, Some(Actor::AsPlatform(true)));
    assert_eq!(received.request_id, request_id);
    assert_eq!(received.commit_time, created.create_time);
    let Some(Resource::User(user)) = received.resource else {
        panic!("{received:?}");
    };
    assert_eq!((user.before, user.after), (None, Some(created.clone())));

    let founded = service.create_organization(ORG, OLIVIA).await.unwrap();
    let received = watch.changes(2).await.unwrap();
    let organization = received.iter().find_map(|change| match &change.resource {
        Some(Resource::Organization(organization)) => Some(organization),
        _ => None,
    });
    let organization = organization.unwrap();
    assert_eq!(organization.before, None);
    assert_eq!(organization.after, Some(founded));
    assert_eq!(
        sorted(summaries(&received)),
        [format!("+{ORG}"), format!("+{ORG}/{OLIVIA}")]
    );
    // Both changes belong to one write, on behalf of the founder.
    assert_eq!(received[0].change_id, received[1].change_id);
    assert_eq!(
        received[0].actor,
        Some(Actor::ActingUser(OLIVIA.to_owned()))
    );

    service.create_user(MICHAEL).await.unwrap();
    let added = service.add(ORG, MICHAEL, Role::Member, OLIVIA).await;
    let removed = service.remove(ORG, MICHAEL, MICHAEL).await;
    let received = &watch.changes(3).await.unwrap()[1..];
    let membership = |change: &pb::Change| match &change.resource {
        Some(Resource::Membership(membership)) => membership.clone(),
        _ => panic!("{change:?}"),
    };
    // A change does not report whether its membership counts.
    let stored = |membership: pb::Membership| pb::Membership {
        state: State::Unspecified.into(),
        ..membership
    };
    assert_eq!(membership(&received[0]).after, Some(stored(added.unwrap())));
    assert_eq!(received[1].kind(), ChangeKind::Deleted);
    assert_eq!(
        received[1].actor,
        Some(Actor::ActingUser(MICHAEL.to_owned()))
    );
    let removal = membership(&received[1]);
    assert_eq!(removal.before, Some(stored(removed.unwrap())));
    assert_eq!(removal.after, None);
}

#[tokio::test]
async fn changes_made_past_the_service_are_delivered_without_an_actor() {
    let (backends, service) = start().await;
    service.create_user(OLIVIA).await.unwrap();
    let mut watch = Watch::open(&service.client, from(Start::Oldest(true)))
        .await
        .unwrap();
    watch.changes(1).await.unwrap();
    let (table, key) = (backends.table(), format!("USER#{OLIVIA}"));
    table.set_text(&key, &key, "firstName", "Changed").await;
    table.set_text(&key, &key, "state", "ASLEEP").await;
    table.delete(&key, &key).await;
    let received = watch.changes(3).await.unwrap();
    let kinds: Vec<_> = received.iter().map(pb::Change::kind).collect();
    let expected = [
        ChangeKind::Updated,
        ChangeKind::Updated,
        ChangeKind::Deleted,
    ];
    assert_eq!(kinds, expected);
    for change in &received {
        assert_eq!(change.actor, None);
        assert_eq!(change.change_id, "");
        assert!(change.commit_time.is_some());
    }
    let user = |change: &pb::Change| match change.resource.clone() {
        Some(Resource::User(user)) => user,
        _ => panic!("{change:?}"),
    };
    assert_eq!(user(&received[0]).after.unwrap().first_name, "Changed");
    assert_eq!(user(&received[1]).after.unwrap().state(), State::Suspended);
    assert_eq!(user(&received[2]).username, OLIVIA);
}

/// A stream from the oldest change that is kept, of an organization and of a user.
async fn watch_from_the_oldest(client: &Client, organization: &str, user: &str) -> Watch {
    let request = pb::WatchChangesRequest {
        start: Some(Start::Oldest(true)),
        organization_name: organization.to_owned(),
        username: user.to_owned(),
    };
    Watch::open(client, request).await.unwrap()
}

#[tokio::test]
async fn watchers_receive_the_suspensions_and_deletions_that_end_a_membership() {
    let (_backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    service.create_user("stranger").await.unwrap();
    service
        .create_organization("strange-org", "stranger")
        .await
        .unwrap();
    let mut client = service.client.clone();
    for username in ["stranger", MICHAEL] {
        let username = username.to_owned();
        let suspend = pb::SuspendUserRequest {
            username,
            ..pb::SuspendUserRequest::default()
        };
        client.suspend_user(suspend).await.unwrap();
    }
    for organization in ["strange-org", ORG] {
        let suspend = pb::SuspendOrganizationRequest {
            organization_name: organization.to_owned(),
            ..pb::SuspendOrganizationRequest::default()
        };
        client.suspend_organization(suspend).await.unwrap();
    }
    // Orphans are not removed in this test.
    for username in ["stranger", MICHAEL] {
        service.delete_user(username).await.unwrap();
    }
    // The new user of the name is no member.
    service.create_user(MICHAEL).await.unwrap();
    service.delete_user(MICHAEL).await.unwrap();
    let received = async |organization: &str, user: &str, count: usize| {
        let mut watch = watch_from_the_oldest(&service.client, organization, user).await;
        let received = summaries(&watch.changes(count).await.unwrap());
        // No further change arrives.
        let next = watch.response().await.unwrap();
        assert_eq!(next.changes.len(), 0, "{next:?}");
        sorted(received)
    };
    let of_olivia_org = [
        "+olivia-org",
        "+olivia-org/membermichael",
        "+olivia-org/oliviaowner",
        "-membermichael",
        "~membermichael",
        "~olivia-org",
    ];
    assert_eq!(
        received(ORG, "", 6).await,
        sorted(of_olivia_org.map(String::from).into())
    );
    let of_olivia = ["+olivia-org/oliviaowner", "+oliviaowner", "~olivia-org"];
    assert_eq!(received("", OLIVIA, 3).await, of_olivia);
}

#[tokio::test]
async fn a_watcher_can_select_an_organization_a_user_or_both() {
    let (_backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    service
        .create_organization("other-org", MICHAEL)
        .await
        .unwrap();
    service.create_user("last").await.unwrap();
    let received = async |organization: &str, user: &str, count: usize| {
        let mut watch = watch_from_the_oldest(&service.client, organization, user).await;
        sorted(summaries(&watch.changes(count).await.unwrap()))
    };
    let all = received("", "", 8).await;
    assert_eq!(all.len(), 8, "{all:?}");
    let of_olivia_org = [
        "+olivia-org",
        "+olivia-org/membermichael",
        "+olivia-org/oliviaowner",
    ];
    assert_eq!(received(ORG, "", 3).await, of_olivia_org);
    let of_michael = [
        "+membermichael",
        "+olivia-org/membermichael",
        "+other-org/membermichael",
    ];
    assert_eq!(received("", MICHAEL, 3).await, of_michael);
    assert_eq!(
        received(ORG, MICHAEL, 1).await,
        ["+olivia-org/membermichael"]
    );
}

/// Makes this number of changes to one user. Every fifth is a deletion.
async fn change_again_and_again(mut client: Client, username: String, changes: usize) {
    let mut exists = false;
    for number in 0..changes {
        let done = if !exists {
            let request = pb::CreateUserRequest {
                username: username.clone(),
                first_name: number.to_string(),
                ..pb::CreateUserRequest::default()
            };
            client.create_user(request).await.map(drop)
        } else if number % 5 == 4 {
            let request = pb::DeleteUserRequest {
                username: username.clone(),
                ..pb::DeleteUserRequest::default()
            };
            client.delete_user(request).await.map(drop)
        } else {
            let user = pb::User {
                username: username.clone(),
                first_name: number.to_string(),
                ..pb::User::default()
            };
            let request = pb::UpdateUserRequest {
                user: Some(user),
                ..pb::UpdateUserRequest::default()
            };
            client.update_user(request).await.map(drop)
        };
        done.unwrap();
        exists = number % 5 != 4;
    }
}

#[tokio::test]
async fn a_watcher_that_resumes_on_another_replica_gets_each_change_once() {
    const USERS: usize = 6;
    const CHANGES: usize = 35;
    /// Changes after which the watch moves to another replica.
    const OF_A_REPLICA: usize = 30;
    let backends = Backends::start().await;
    let settings = backends.serve_settings();
    let writer = Replica::start_with(&settings, not_following()).await;
    let mut followers = vec![Replica::start_with(&settings, following()).await];
    Watch::begin(&writer.client).await;
    let writers: Vec<_> = (0..USERS)
        .map(|user| {
            let client = writer.client.clone();
            tokio::spawn(change_again_and_again(
                client,
                format!("user{user}"),
                CHANGES,
            ))
        })
        .collect();
    let mut cursor: Option<String> = None;
    let mut received: HashMap<String, Vec<pb::UserChange>> = HashMap::new();
    let mut count = 0;
    while count < USERS * CHANGES {
        // Each watch is on a new replica, and then the oldest replica stops: it may be
        // the one that follows the stream.
        let replica = Replica::start_with(&settings, following()).await;
        let request = match &cursor {
            None => from(Start::Oldest(true)),
            Some(cursor) => after(cursor),
        };
        let mut watch = Watch::open(&replica.client, request).await.unwrap();
        let until = (count + OF_A_REPLICA).min(USERS * CHANGES);
        while count < until {
            let response = watch.response().await.unwrap();
            for change in response.changes {
                // A watch can resume from the cursor of a change, as from that of a response.
                cursor = Some(change.cursor);
                let Some(Resource::User(user)) = change.resource else {
                    panic!("no user");
                };
                received
                    .entry(user.username.clone())
                    .or_default()
                    .push(user);
                count += 1;
            }
        }
        followers.push(replica);
        followers.remove(0);
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(count, USERS * CHANGES);
    for (username, changes) in received {
        assert_eq!(changes.len(), CHANGES, "{username}");
        let mut before = None;
        for change in changes {
            assert_eq!(change.before, before, "{username}");
            before = change.after;
        }
    }
}

#[tokio::test]
async fn a_cursor_whose_changes_have_expired_is_rejected() {
    let (backends, service) = start().await;
    for user in ["a", "b", "c"] {
        service.create_user(user).await.unwrap();
    }
    let oldest = from(Start::Oldest(true));
    let mut watch = Watch::open(&service.client, oldest.clone()).await.unwrap();
    let begin = watch.response().await.unwrap().cursor;
    let received = watch.changes(3).await.unwrap();
    // The first change expires, as after its time to live.
    backends.table().expire_first_logged(&begin).await;
    let refused = Watch::open(&service.client, after(&begin)).await.map(drop);
    assert_refused(refused, Code::OutOfRange, "CURSOR_EXPIRED");
    let mut watch = Watch::open(&service.client, oldest).await.unwrap();
    assert_eq!(
        summaries(&watch.changes(2).await.unwrap()),
        summaries(&received[1..])
    );
    // A cursor of another log, and one beyond the end of the log.
    let (log, _) = begin.split_once('-').unwrap();
    let zeros = "0".repeat(log.len());
    for cursor in [format!("{zeros}-1"), format!("{log}-4")] {
        let refused = Watch::open(&service.client, after(&cursor)).await.map(drop);
        assert_refused(refused, Code::OutOfRange, "CURSOR_EXPIRED");
    }
    let rest = 2..4;
    backends.table().delete_logged(log, rest).await;
    let refused = Watch::open(&service.client, after(&begin)).await.map(drop);
    assert_refused(refused, Code::OutOfRange, "CURSOR_EXPIRED");
    for cursor in ["x", "1-1"] {
        let refused = Watch::open(&service.client, after(cursor)).await.map(drop);
        assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    }
}

#[tokio::test]
async fn a_watcher_receives_the_position_of_the_log_also_without_changes() {
    let (backends, service) = start().await;
    let mut watch = Watch::open(&service.client, None).await.unwrap();
    let first = watch.response().await.unwrap();
    backends.forget_calls();
    let began = Instant::now();
    let second = watch.response().await.unwrap();
    assert_eq!((second.changes.len(), second.cursor), (0, first.cursor));
    // The interval is ten seconds, but the test's clock may have started a little later.
    // The log is read four times a second.
    assert!(began.elapsed() >= Duration::from_secs(9));
    let reads = backends.dynamodb.seen("BesideQuery").len();
    assert!(reads <= 45, "{reads}");
}

#[tokio::test]
async fn a_log_that_may_lack_changes_is_replaced_by_another_one() {
    let (backends, service) = start().await;
    service.create_user(OLIVIA).await.unwrap();
    let mut watch = Watch::open(&service.client, from(Start::Oldest(true)))
        .await
        .unwrap();
    watch.changes(1).await.unwrap();
    let cursor = watch.response().await.unwrap().cursor;
    let trimmed = r#"{"__type":"TrimmedDataAccessException","message":"gone"}"#;
    backends
        .dynamodb
        .answer("BesideGetRecords", 1, 400, trimmed);
    assert_refused::<()>(Err(watch.end().await), Code::OutOfRange, "CURSOR_EXPIRED");
    let refused = Watch::open(&service.client, after(&cursor)).await.map(drop);
    assert_refused(refused, Code::OutOfRange, "CURSOR_EXPIRED");
}

#[tokio::test]
async fn a_watcher_that_does_not_read_its_stream_is_disconnected() {
    let (_backends, service) = start().await;
    service.create_user(OLIVIA).await.unwrap();
    let endpoint = tonic::transport::Channel::from_shared(format!("http://{}", service.addr));
    let endpoint = endpoint.unwrap().initial_stream_window_size(1024);
    let mut client = Client::new(endpoint.connect().await.unwrap());
    let stream = client
        .watch_changes(pb::WatchChangesRequest::default())
        .await;
    let mut watch = Watch(stream.unwrap().into_inner());
    watch.response().await.unwrap();
    // Far more data than the buffers on the way hold.
    for number in 0..80 {
        let label = |key: usize| (format!("{key:063}"), format!("{number:0252}"));
        let user = pb::User {
            username: OLIVIA.to_owned(),
            labels: (0..32).map(label).collect(),
            ..pb::User::default()
        };
        let request = pb::UpdateUserRequest {
            user: Some(user),
            ..pb::UpdateUserRequest::default()
        };
        service.client.clone().update_user(request).await.unwrap();
    }
    // The end of its stream makes room for another watch.
    let mut others = Vec::new();
    for _ in 1..WATCHES_OF_A_CALLER {
        others.push(Watch::open(&client, None).await.unwrap());
    }
    eventually("another watch is accepted", async || {
        Watch::open(&client, None).await.is_ok()
    })
    .await;
    assert_refused::<()>(
        Err(watch.end().await),
        Code::ResourceExhausted,
        "SLOW_CONSUMER",
    );
}

#[tokio::test]
async fn a_replica_limits_the_number_of_watchers() {
    let (_backends, service) = start().await;
    let mut watches = Vec::new();
    for _ in 0..100 / WATCHES_OF_A_CALLER {
        // Without authentication, each connection is a caller.
        let client = Client::connect(format!("http://{}", service.addr));
        let client = client.await.unwrap();
        for _ in 0..WATCHES_OF_A_CALLER {
            watches.push(Watch::open(&client, None).await.unwrap());
        }
        let refused = Watch::open(&client, None).await.map(drop);
        assert_refused(refused, Code::ResourceExhausted, "TOO_MANY_WATCHERS");
    }
    let refused = Watch::open(&service.client, None).await.map(drop);
    assert_refused(refused, Code::ResourceExhausted, "TOO_MANY_WATCHERS");
    watches.clear();
    eventually("another watch is accepted", async || {
        Watch::open(&service.client, None).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_watch_fails_at_once_if_no_replica_follows_the_stream() {
    let backends = Backends::start().await;
    let service = Replica::start_with(&backends.serve_settings(), not_following()).await;
    let refused = Watch::open(&service.client, None).await.map(drop);
    assert_refused(refused, Code::Unavailable, "CHANGES_NOT_FOLLOWED");
}

/// Writes the heartbeats of a replica that follows the stream, with a clock that differs
/// by `clock_ms`, until it is dropped.
struct FakeFollower(tokio::task::JoinHandle<()>);

impl FakeFollower {
    const EVERY: Duration = Duration::from_millis(100);

    async fn write_heartbeat(table: &Table, version: u64, clock_ms: i64) {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let key = "SERVICE#stream-invalidator";
        let beat = Timestamp::now().0 + clock_ms;
        let item = [
            ("PK", text(key)),
            ("SK", text(key)),
            ("ver", AttributeValue::N(version.to_string())),
            ("owner", text("somebody")),
            ("stream", text("any")),
            ("log", text("0123456789abcdef0123456789abcdef")),
            ("next", text("1")),
            ("beat", text(&beat.to_string())),
        ];
        let item = item.map(|(name, value)| (name.to_owned(), value));
        table.put_item(item.into()).await;
    }

    async fn start(table: Table, clock_ms: i64) -> Self {
        Self::write_heartbeat(&table, 1, clock_ms).await;
        Self(tokio::spawn(async move {
            for version in 2.. {
                Self::write_heartbeat(&table, version, clock_ms).await;
                tokio::time::sleep(Self::EVERY).await;
            }
        }))
    }
}

impl Drop for FakeFollower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[tokio::test]
async fn a_watch_detects_a_follower_despite_clock_differences() {
    let hour = 3_600_000;
    for clock_ms in [-hour, -120_000, 0, 120_000, hour] {
        let backends = Backends::start().await;
        let service = Replica::start_with(&backends.serve_settings(), not_following()).await;
        let follower = FakeFollower::start(backends.table(), clock_ms).await;
        let mut watch = Watch::open(&service.client, None).await.unwrap();
        assert_eq!(watch.response().await.unwrap().changes, []);
        drop(follower);
    }
}

#[tokio::test]
async fn a_single_heartbeat_does_not_prove_that_the_stream_is_followed() {
    for clock_ms in [-120_000, 120_000] {
        let backends = Backends::start().await;
        let service = Replica::start_with(&backends.serve_settings(), not_following()).await;
        FakeFollower::write_heartbeat(&backends.table(), 1, clock_ms).await;
        let refused = Watch::open(&service.client, None).await.map(drop);
        assert_refused(refused, Code::Unavailable, "CHANGES_NOT_FOLLOWED");
    }
}

#[tokio::test]
async fn a_replica_that_stops_ends_its_streams() {
    let (_backends, mut service) = start().await;
    let mut watch = Watch::open(&service.client, None).await.unwrap();
    watch.response().await.unwrap();
    service.stop();
    assert_refused::<()>(Err(watch.end().await), Code::Unavailable, "STOPPING");
}

/// Changes of Michael's membership in Olivia's organization.
fn of_michael_in_org() -> pb::WatchChangesRequest {
    pb::WatchChangesRequest {
        organization_name: ORG.to_owned(),
        username: MICHAEL.to_owned(),
        ..pb::WatchChangesRequest::default()
    }
}

/// Adds Michael to Olivia's organization until some seconds from now. Returns the end.
async fn add_michael_for(service: &Replica, seconds: u64) -> prost_types::Timestamp {
    let end = Some(from_now(Duration::from_secs(seconds)));
    let added = service.add_until(ORG, MICHAEL, Role::Member, OLIVIA, end);
    added.await.unwrap().expire_time.unwrap()
}

#[tokio::test]
async fn an_expiry_is_reported_to_watchers_at_once() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    let mut watch = Watch::open(
        &service.client,
        pb::WatchChangesRequest {
            username: MICHAEL.to_owned(),
            start: Some(Start::Oldest(true)),
            ..pb::WatchChangesRequest::default()
        },
    )
    .await
    .unwrap();
    let end = add_michael_for(&service, 6).await;
    let changes = watch.changes(3).await.unwrap();
    let received = Timestamp::now();
    let name = format!("{ORG}/{MICHAEL}");
    let expected = [
        format!("+{MICHAEL}"),
        format!("+{name}"),
        format!("!{name}"),
    ];
    assert_eq!(summaries(&changes), expected);
    let expired = &changes[2];
    assert!(received.seconds() >= end.seconds);
    assert_eq!(expired.commit_time, Some(end));
    assert_eq!((&expired.actor, expired.change_id.as_str()), (&None, ""));
    let Some(Resource::Membership(membership)) = &expired.resource else {
        panic!("not a membership");
    };
    assert_eq!(membership.after, None);
    let before = membership.before.as_ref().unwrap();
    assert_eq!(before.expire_time, Some(end));
    assert_eq!(service.role_of(ORG, MICHAEL).await, None);
}

#[tokio::test]
async fn an_end_that_was_changed_is_not_reported_when_it_passes() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    let mut watch = Watch::open(&service.client, of_michael_in_org())
        .await
        .unwrap();
    let first = add_michael_for(&service, 10).await;
    let second = prost_types::Timestamp {
        seconds: first.seconds + 2,
        nanos: 0,
    };
    let update = pb::Membership {
        expire_time: Some(second),
        ..pb::Membership::default()
    };
    let prolonged = service.update_membership(ORG, MICHAEL, update, &["expire_time"], OLIVIA);
    prolonged.await.unwrap();
    let changes = watch.changes(3).await.unwrap();
    let name = format!("{ORG}/{MICHAEL}");
    let expected = [format!("+{name}"), format!("~{name}"), format!("!{name}")];
    assert_eq!(summaries(&changes), expected);
    assert_eq!(changes[2].commit_time, Some(second));
}

#[tokio::test]
async fn an_end_that_passes_while_no_replica_follows_is_reported_once_later() {
    let (backends, mut service) = start().await;
    service.found_olivia_org().await;
    let mut watch = Watch::open(&service.client, of_michael_in_org())
        .await
        .unwrap();
    let end = add_michael_for(&service, 6).await;
    let added = watch.changes(1).await.unwrap();
    service.stop();
    eventually("the end has passed", async || {
        Timestamp::now().seconds() > end.seconds
    })
    .await;
    let replica = async || Replica::start_with(&backends.serve_settings(), following()).await;
    let (second, third) = tokio::join!(replica(), replica());
    let mut watch = None;
    eventually("the stream is followed", async || {
        let request = after(&added.last().unwrap().cursor);
        watch = Watch::open(&second.client, request).await.ok();
        watch.is_some()
    })
    .await;
    let mut watch = watch.unwrap();
    let name = format!("{ORG}/{MICHAEL}");
    let expired = watch.changes(1).await.unwrap();
    assert_eq!(summaries(&expired), [format!("!{name}")]);
    drop(third);
    // It is not reported twice, also if the item is edited before its removal.
    let member = format!("MEMBER#{MICHAEL}");
    let organization = format!("ORGMEMBERS#{ORG}");
    let table = backends.table();
    table.set_text(&organization, &member, "note", "x").await;
    table
        .set_text(&organization, &member, "addingUser", "x")
        .await;
    second.create_user("last").await.unwrap();
    let mut seen = summaries(&watch.changes(2).await.unwrap());
    seen.sort();
    assert_eq!(seen, ["+last".to_owned(), format!("~{name}")]);
    second.create_user("very-last").await.unwrap();
    let last = watch.changes(1).await.unwrap();
    assert_eq!(summaries(&last), ["+very-last"]);
}

#[tokio::test]
async fn many_memberships_that_end_at_once_are_reported_together() {
    const MEMBERS: usize = 60;
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    let end = from_now(Duration::from_secs(20));
    let members = (0..MEMBERS).map(|number| format!("member-{number}"));
    let members: Vec<_> = members.collect();
    for member in &members {
        service.create_user(member).await.unwrap();
        let added = service.add_until(ORG, member, Role::Member, OLIVIA, Some(end));
        added.await.unwrap();
    }
    let mut watch = Watch::open(&service.client, from(Start::Oldest(true))).await;
    let watch = watch.as_mut().unwrap();
    let mut ended = Vec::new();
    while ended.len() < MEMBERS {
        let changes = summaries(&watch.changes(1).await.unwrap());
        ended.extend(changes.into_iter().filter(|it| it.starts_with('!')));
    }
    let expected = members.iter().map(|member| format!("!{ORG}/{member}"));
    assert_eq!(sorted(ended), sorted(expected.collect()));
}
