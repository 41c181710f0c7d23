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
    harness::{Backends, Client, PATIENCE, Replica, Table, assert_refused},
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

    /// From now on, as soon as the stream is followed.
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

    /// At least so many changes.
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

    /// Why it ended.
    async fn end(&mut self) -> Status {
        let end = async {
            loop {
                if let Err(status) = self.response().await {
                    return status;
                }
            }
        };
        timeout(PATIENCE, end).await.expect("the stream goes on")
    }
}

/// Backends, and a replica that follows the stream once this returns.
async fn start() -> (Backends, Replica) {
    let backends = Backends::start().await;
    let replica = Replica::start_with(&backends.serve_settings(), following()).await;
    Watch::begin(&replica.client).await;
    (backends, replica)
}

/// What is changed, in short: `+user`, `~user`, `-org/member`.
fn summary(change: &pb::Change) -> String {
    let sign = match change.kind() {
        ChangeKind::Created => '+',
        ChangeKind::Updated => '~',
        ChangeKind::Deleted => '-',
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
async fn a_change_is_told_with_what_was_before_and_after_and_who_made_it() {
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
    let told = watch.changes(1).await.unwrap().remove(0);
    assert_eq!(told.kind(), ChangeKind::Created);
    assert_eq!(told.actor, Some(Actor::AsPlatform(true)));
    assert_eq!(told.request_id, request_id);
    assert_eq!(told.commit_time, created.create_time);
    let Some(Resource::User(user)) = told.resource else {
        panic!("{told:?}");
    };
    assert_eq!((user.before, user.after), (None, Some(created.clone())));

    let founded = service.create_organization(ORG, OLIVIA).await.unwrap();
    let told = watch.changes(2).await.unwrap();
    let organization = told.iter().find_map(|change| match &change.resource {
        Some(Resource::Organization(organization)) => Some(organization),
        _ => None,
    });
    let organization = organization.unwrap();
    assert_eq!(organization.before, None);
    assert_eq!(organization.after, Some(founded));
    assert_eq!(
        sorted(summaries(&told)),
        [format!("+{ORG}"), format!("+{ORG}/{OLIVIA}")]
    );
    // Together, and on behalf of the founder.
    assert_eq!(told[0].change_id, told[1].change_id);
    assert_eq!(told[0].actor, Some(Actor::ActingUser(OLIVIA.to_owned())));

    service.create_user(MICHAEL).await.unwrap();
    let added = service.add(ORG, MICHAEL, Role::Member, OLIVIA).await;
    let removed = service.remove(ORG, MICHAEL, MICHAEL).await;
    let told = &watch.changes(3).await.unwrap()[1..];
    let membership = |change: &pb::Change| match &change.resource {
        Some(Resource::Membership(membership)) => membership.clone(),
        _ => panic!("{change:?}"),
    };
    // Whether it counts is told elsewhere.
    let stored = |membership: pb::Membership| pb::Membership {
        state: State::Unspecified.into(),
        ..membership
    };
    assert_eq!(membership(&told[0]).after, Some(stored(added.unwrap())));
    assert_eq!(told[1].kind(), ChangeKind::Deleted);
    assert_eq!(told[1].actor, Some(Actor::ActingUser(MICHAEL.to_owned())));
    let removal = membership(&told[1]);
    assert_eq!(removal.before, Some(stored(removed.unwrap())));
    assert_eq!(removal.after, None);
}

#[tokio::test]
async fn changes_made_past_the_service_are_told_as_such() {
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
    let told = watch.changes(3).await.unwrap();
    let kinds: Vec<_> = told.iter().map(pb::Change::kind).collect();
    let expected = [
        ChangeKind::Updated,
        ChangeKind::Updated,
        ChangeKind::Deleted,
    ];
    assert_eq!(kinds, expected);
    for change in &told {
        assert_eq!(change.actor, None);
        assert_eq!(change.change_id, "");
        assert!(change.commit_time.is_some());
    }
    let user = |change: &pb::Change| match change.resource.clone() {
        Some(Resource::User(user)) => user,
        _ => panic!("{change:?}"),
    };
    assert_eq!(user(&told[0]).after.unwrap().first_name, "Changed");
    assert_eq!(user(&told[1]).after.unwrap().state(), State::Suspended);
    assert_eq!(user(&told[2]).username, OLIVIA);
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
async fn watchers_are_told_when_a_membership_stops_counting_for_its_user_or_its_organization() {
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
    // Nothing is removed here of what a deletion leaves.
    for username in ["stranger", MICHAEL] {
        service.delete_user(username).await.unwrap();
    }
    // Who has the name now is no member.
    service.create_user(MICHAEL).await.unwrap();
    service.delete_user(MICHAEL).await.unwrap();
    let told = async |organization: &str, user: &str, count: usize| {
        let mut watch = watch_from_the_oldest(&service.client, organization, user).await;
        let told = summaries(&watch.changes(count).await.unwrap());
        // Nothing else, either.
        let next = watch.response().await.unwrap();
        assert_eq!(next.changes.len(), 0, "{next:?}");
        sorted(told)
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
        told(ORG, "", 6).await,
        sorted(of_olivia_org.map(String::from).into())
    );
    let of_olivia = ["+olivia-org/oliviaowner", "+oliviaowner", "~olivia-org"];
    assert_eq!(told("", OLIVIA, 3).await, of_olivia);
}

#[tokio::test]
async fn a_watcher_may_ask_for_an_organization_a_user_or_both() {
    let (_backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    service
        .create_organization("other-org", MICHAEL)
        .await
        .unwrap();
    service.create_user("last").await.unwrap();
    let told = async |organization: &str, user: &str, count: usize| {
        let mut watch = watch_from_the_oldest(&service.client, organization, user).await;
        sorted(summaries(&watch.changes(count).await.unwrap()))
    };
    let all = told("", "", 8).await;
    assert_eq!(all.len(), 8, "{all:?}");
    let of_olivia_org = [
        "+olivia-org",
        "+olivia-org/membermichael",
        "+olivia-org/oliviaowner",
    ];
    assert_eq!(told(ORG, "", 3).await, of_olivia_org);
    let of_michael = [
        "+membermichael",
        "+olivia-org/membermichael",
        "+other-org/membermichael",
    ];
    assert_eq!(told("", MICHAEL, 3).await, of_michael);
    assert_eq!(told(ORG, MICHAEL, 1).await, ["+olivia-org/membermichael"]);
}

/// Changes one user again and again, with deletions now and then, until told to
/// stop; returns how many changes were acknowledged.
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
    /// Changes after which another replica is asked.
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
    let mut told: HashMap<String, Vec<pb::UserChange>> = HashMap::new();
    let mut count = 0;
    while count < USERS * CHANGES {
        // Each time another replica, while the one that follows the stream is
        // killed now and then.
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
                // The cursor of a change is as good as that of a response.
                cursor = Some(change.cursor);
                let Some(Resource::User(user)) = change.resource else {
                    panic!("no user");
                };
                told.entry(user.username.clone()).or_default().push(user);
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
    for (username, changes) in told {
        assert_eq!(changes.len(), CHANGES, "{username}");
        let mut before = None;
        for change in changes {
            assert_eq!(change.before, before, "{username}");
            before = change.after;
        }
    }
}

#[tokio::test]
async fn a_cursor_whose_changes_are_not_kept_is_refused() {
    let (backends, service) = start().await;
    for user in ["a", "b", "c"] {
        service.create_user(user).await.unwrap();
    }
    let oldest = from(Start::Oldest(true));
    let mut watch = Watch::open(&service.client, oldest.clone()).await.unwrap();
    let begin = watch.response().await.unwrap().cursor;
    let told = watch.changes(3).await.unwrap();
    // As if its time to live were over.
    backends.table().expire_first_logged(&begin).await;
    let refused = Watch::open(&service.client, after(&begin)).await.map(drop);
    assert_refused(refused, Code::OutOfRange, "CURSOR_EXPIRED");
    let mut watch = Watch::open(&service.client, oldest).await.unwrap();
    assert_eq!(
        summaries(&watch.changes(2).await.unwrap()),
        summaries(&told[1..])
    );
    // Of a log that there is not, or of what is not there yet.
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
async fn a_watcher_hears_how_far_the_log_has_come_though_nothing_changes() {
    let (backends, service) = start().await;
    let mut watch = Watch::open(&service.client, None).await.unwrap();
    let first = watch.response().await.unwrap();
    backends.forget_calls();
    let began = Instant::now();
    let second = watch.response().await.unwrap();
    assert_eq!((second.changes.len(), second.cursor), (0, first.cursor));
    // Ten seconds, by a clock that may have been a little later; looked at four times
    // in a second.
    assert!(began.elapsed() >= Duration::from_secs(9));
    let reads = backends.dynamodb.seen("BesideQuery").len();
    assert!(reads <= 45, "{reads}");
}

#[tokio::test]
async fn a_log_that_may_lack_changes_is_left_for_another_one() {
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
async fn a_watcher_that_does_not_take_what_it_is_told_is_cut_off() {
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
    // Far more than what is buffered on the way.
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
    // Its place is free once it is cut off.
    let mut others = Vec::new();
    for _ in 1..WATCHES_OF_A_CALLER {
        others.push(Watch::open(&client, None).await.unwrap());
    }
    eventually("there is room again", async || {
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
async fn a_replica_bounds_how_many_watch() {
    let (_backends, service) = start().await;
    let mut watches = Vec::new();
    for _ in 0..100 / WATCHES_OF_A_CALLER {
        // Without names, a connection is a caller.
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
    eventually("there is room again", async || {
        Watch::open(&service.client, None).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn changes_that_nobody_follows_are_not_waited_for() {
    let backends = Backends::start().await;
    let service = Replica::start_with(&backends.serve_settings(), not_following()).await;
    let refused = Watch::open(&service.client, None).await.map(drop);
    assert_refused(refused, Code::Unavailable, "CHANGES_NOT_FOLLOWED");
}

/// Follows the stream as a replica would whose clock differs by so many milliseconds:
/// gives one sign after the other, until it is dropped.
struct FakeFollower(tokio::task::JoinHandle<()>);

impl FakeFollower {
    const EVERY: Duration = Duration::from_millis(100);

    async fn sign(table: &Table, version: u64, clock_ms: i64) {
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
        Self::sign(&table, 1, clock_ms).await;
        Self(tokio::spawn(async move {
            for version in 2.. {
                Self::sign(&table, version, clock_ms).await;
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
async fn that_the_stream_is_followed_is_seen_whatever_the_clocks_say() {
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
async fn a_sign_that_is_not_followed_by_another_does_not_say_that_the_stream_is_followed() {
    for clock_ms in [-120_000, 120_000] {
        let backends = Backends::start().await;
        let service = Replica::start_with(&backends.serve_settings(), not_following()).await;
        FakeFollower::sign(&backends.table(), 1, clock_ms).await;
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
