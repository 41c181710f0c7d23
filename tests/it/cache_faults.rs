//! The cache is down, slow, late, or full of invalid entries: no read fails because of
//! it, and no read is stale after an acknowledgement.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use account_service::{
    coherence,
    domain::Timestamp,
    local::{ANY_PORT, momento},
    proto::account_v1::{self as pb, Role, Source},
};

use futures_util::future::join_all;
use tonic::{Code, Status};

use crate::{
    harness::{Backends, PATIENCE, Replica, assert_refused, patient, start},
    streams::eventually,
};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

/// Short, because each read waits for it; long enough for look-ups on a busy machine.
const READ_TIMEOUT: Duration = Duration::from_millis(400);

/// Backends, and a service with this read timeout for the cache.
async fn start_with_olivia_org(cache_read_timeout: Duration) -> (Backends, Replica) {
    let backends = Backends::start().await;
    let mut settings = backends.serve_settings();
    settings.cache.cache_read_timeout_ms = cache_read_timeout;
    let service = Replica::start(&settings).await;
    service.found_olivia_org().await;
    service.settle().await;
    (backends, service)
}

async fn start_with_an_unresponsive_cache() -> (Backends, Replica) {
    let (backends, service) = start_with_olivia_org(READ_TIMEOUT).await;
    backends.momento.delay("GetBatch", Duration::from_secs(60));
    (backends, service)
}

/// The most look-ups that an unresponsive cache receives within a time. The pauses
/// between probes grow: ten probes take eight seconds.
fn max_probes(within: Duration) -> usize {
    10 + usize::try_from(within.as_secs()).unwrap()
}

fn strangers(count: usize) -> Vec<String> {
    (0..count).map(|it| format!("stranger-{it}")).collect()
}

#[tokio::test]
async fn an_unresponsive_cache_costs_a_read_its_timeout_and_no_more() {
    let (backends, service) = start_with_an_unresponsive_cache().await;
    backends.momento.delay("SetIf", Duration::from_secs(60));
    let read = service.check(ORG, OLIVIA).await.unwrap();
    assert_eq!((read.role(), read.source()), (Role::Owner, Source::Store));
}

#[tokio::test]
async fn look_ups_skip_an_unresponsive_cache_until_it_responds_again() {
    let (backends, service) = start_with_an_unresponsive_cache().await;
    for _ in 0..5 {
        assert!(service.role_of(ORG, OLIVIA).await.is_some());
    }
    backends.forget_calls();
    let began = Instant::now();
    for _ in 0..200 {
        assert!(service.role_of(ORG, OLIVIA).await.is_some());
    }
    let tries = backends.momento.seen("GetBatch").len();
    let most = max_probes(began.elapsed());
    assert!(tries <= most, "{tries} of 200 reads queried the cache");
    backends.momento.clear_rules();
    eventually("reads come from the cache", async || {
        service.check(ORG, OLIVIA).await.unwrap().source() == Source::Cache
    })
    .await;
}

#[tokio::test]
async fn long_look_ups_without_a_response_do_not_keep_short_ones_from_the_cache() {
    let (backends, service) = start_with_olivia_org(READ_TIMEOUT).await;
    let delay = Duration::from_secs(60);
    backends.momento.delay_about("GetBatch", "stranger-", delay);
    backends.forget_calls();
    let began = Instant::now();
    for _ in 0..20 {
        let batch = service.get_users(&strangers(150)).await;
        assert_eq!(batch.not_found, strangers(150));
    }
    let tries = backends.momento.seen("GetBatch").len();
    let most = max_probes(began.elapsed());
    assert!(
        tries <= most,
        "{tries} of 20 long look-ups queried the cache"
    );
    eventually("short reads come from the cache", async || {
        service.check(ORG, OLIVIA).await.unwrap().source() == Source::Cache
    })
    .await;
    backends.momento.clear_rules();
    eventually("long reads come from the cache", async || {
        let batch = service.get_users(&strangers(150)).await;
        service.settle().await;
        batch.source() == Source::Cache
    })
    .await;
}

#[tokio::test]
async fn four_long_look_ups_run_at_once_and_a_read_that_waits_too_long_uses_the_table() {
    let backends = Backends::start().await;
    let service = backends.replica().await;
    let held = [(); 4].map(|()| backends.momento.hold("GetBatch", "stranger-", 0));
    let four = join_all((0..4).map(async |_| service.get_users(&strangers(150)).await));
    let fifth = async {
        for look_up in &held {
            look_up.reached().await;
        }
        let fifth = service.get_users(&strangers(150)).await;
        let look_ups = backends.momento.seen("GetBatch").len();
        drop(held);
        (fifth, look_ups)
    };
    let (four, (fifth, look_ups)) = tokio::join!(four, fifth);
    assert_eq!(look_ups, 4);
    assert!(
        four.into_iter()
            .chain([fifth])
            .all(|batch| batch.not_found == strangers(150))
    );
}

#[tokio::test]
async fn the_rest_of_a_batch_skips_an_unresponsive_cache() {
    // The first look-up has to end within this timeout, also on a busy machine.
    let (backends, service) = start_with_olivia_org(Duration::from_secs(3)).await;
    let mut wanted = strangers(601);
    wanted[0] = OLIVIA.to_owned();
    wanted[350] = MICHAEL.to_owned();
    // A key of the second look-up.
    let delay = Duration::from_secs(60);
    backends
        .momento
        .delay_about("GetBatch", "stranger-250", delay);
    backends.forget_calls();
    let batch = service.get_users(&wanted).await;
    let found: Vec<_> = batch.users.iter().map(|user| &user.username).collect();
    assert_eq!(found, [OLIVIA, MICHAEL]);
    assert_eq!(batch.source(), Source::Store);
    service.settle().await;
    // No lease was placed either.
    assert_eq!(backends.momento.calls(), ["2 x GetBatch"]);
}

#[tokio::test]
async fn reads_beyond_the_table_read_limit_are_rejected_and_a_removal_is_not() {
    let backends = Backends::start().await;
    let mut settings = backends.serve_settings();
    settings.cache.table_reads_at_once = 4;
    let service = Replica::start(&settings).await;
    service.found_olivia_org_with_michael().await;
    let held = [0; 4].map(|skip| backends.dynamodb.hold("BatchGetItem", "reader-", skip));
    let check = |number| {
        let service = &service;
        async move { service.check(ORG, &format!("reader-{number}")).await }
    };
    let readers = join_all((0..4).map(check));
    let crowd = async {
        for read in &held {
            read.reached().await;
        }
        service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
        let crowd = join_all((4..200).map(check)).await;
        drop(held);
        crowd
    };
    let (readers, crowd) = tokio::join!(readers, crowd);
    assert!(readers.into_iter().all(|read| read.is_ok()));
    let refused: Vec<_> = crowd.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty());
    for status in refused {
        let details = assert_refused(Err::<(), _>(status), Code::ResourceExhausted, "OVERLOADED");
        assert!(details.retry_info().is_some());
    }
    assert_eq!(service.role_of(ORG, MICHAEL).await, None);
}

#[tokio::test]
async fn a_slow_writer_does_not_publish_over_a_newer_write() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org().await;
    service.settle().await;
    // The addition is committed; its confirmation is late.
    let late = backends.momento.hold("SetIf", MICHAEL, 1);
    let (added, ()) = tokio::join!(service.add(ORG, MICHAEL, Role::Member, OLIVIA), async {
        late.reached().await;
        other.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
        assert_eq!(other.role_of(ORG, MICHAEL).await, None);
        late.release();
    });
    added.unwrap();
    service.settle().await;
    assert_eq!(other.role_of(ORG, MICHAEL).await, None);
    assert_eq!(service.role_of(ORG, MICHAEL).await, None);
}

#[tokio::test]
async fn a_removal_is_final_for_a_reader_that_had_leased_before() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org_with_michael().await;
    backends.flush_cache().await;
    // The reader has read the table; its fill is late.
    let late = backends
        .momento
        .hold("SetIf", &format!("m/{ORG}/{MICHAEL}"), 1);
    assert_eq!(other.role_of(ORG, MICHAEL).await, Some(Role::Member));
    late.reached().await;
    service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    late.release();
    other.settle().await;
    assert_eq!(other.role_of(ORG, MICHAEL).await, None);
}

#[tokio::test]
async fn a_fill_after_the_eviction_of_a_fence_does_not_outlive_the_removal() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org_with_michael().await;
    let late = backends.dynamodb.hold("TransactWriteItems", MICHAEL, 0);
    let (removed, ()) = tokio::join!(service.remove(ORG, MICHAEL, OLIVIA), async {
        late.reached().await;
        // The fence is evicted, and a reader fills the record that is about to change.
        backends.flush_cache().await;
        for source in [Source::Store, Source::Cache] {
            let read = other.check(ORG, MICHAEL).await.unwrap();
            assert_eq!((read.is_member, read.source()), (true, source));
            other.settle().await;
        }
        late.release();
    });
    removed.unwrap();
    assert_eq!(other.role_of(ORG, MICHAEL).await, None);
}

#[tokio::test]
async fn a_reader_does_not_fill_while_a_write_is_under_way() {
    let (backends, service) = start().await;
    let other = backends.replica().await;
    service.found_olivia_org_with_michael().await;
    let late = backends.dynamodb.hold("TransactWriteItems", MICHAEL, 0);
    let (removed, ()) = tokio::join!(service.remove(ORG, MICHAEL, OLIVIA), async {
        late.reached().await;
        for _ in 0..2 {
            let read = other.check(ORG, MICHAEL).await.unwrap();
            assert_eq!((read.is_member, read.source()), (true, Source::Store));
            other.settle().await;
        }
        late.release();
    });
    removed.unwrap();
    assert_eq!(other.role_of(ORG, MICHAEL).await, None);
}

#[tokio::test]
async fn forged_and_corrupt_cache_entries_are_ignored() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    service.settle().await;
    backends.forget_calls();
    service.check(ORG, OLIVIA).await.unwrap();
    service.check(ORG, MICHAEL).await.unwrap();
    service.settle().await;
    let keys = backends.momento.seen("GetBatch").join(" ");
    let key_of = |end: &str| keys.split(' ').find(|key| key.ends_with(end)).unwrap();
    let cache = backends.momento_client();
    let name = backends.serve_settings().backends.cache_name;
    let owners = cache.get(&name, key_of("oliviaowner")).await.unwrap();
    let ::momento::cache::GetResponse::Hit { value: owners } = owners else {
        panic!("the Owner's membership is not cached");
    };
    let owners: Vec<u8> = owners.into();
    let michaels = format!("m/{ORG}/{MICHAEL}");
    let mut flipped = owners.clone();
    flipped[1] ^= 0x7f;
    for forged in [
        owners,
        flipped,
        b"garbage".to_vec(),
        vec![0xff; 1000],
        Vec::new(),
    ] {
        cache.set(&name, key_of(&michaels), forged).await.unwrap();
        let read = service.check(ORG, MICHAEL).await.unwrap();
        assert_eq!((read.is_member, read.source()), (false, Source::Store));
    }
}

#[tokio::test]
async fn a_key_missing_from_a_truncated_batch_stream_is_unknown_and_not_absent() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    service.settle().await;
    backends.cut_batches_after(1);
    let read = service.check(ORG, OLIVIA).await.unwrap();
    assert_eq!((read.role(), read.source()), (Role::Owner, Source::Store));
}

#[tokio::test]
async fn a_cache_that_comes_back_is_used_again() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    service.settle().await;
    backends.momento.refuse("GetBatch", "", 0, 1);
    let read = service.check(ORG, OLIVIA).await.unwrap();
    assert_eq!(read.source(), Source::Store);
    let read = service.check(ORG, OLIVIA).await.unwrap();
    assert_eq!(read.source(), Source::Cache);
}

#[tokio::test]
async fn a_member_is_recognized_although_the_creation_of_its_user_was_not_confirmed() {
    let backends = Backends::start().await;
    let service = backends.replica().await;
    let crashing = backends
        .isolated(coherence::CoherenceSettings::default())
        .await;
    service.create_user(OLIVIA).await.unwrap();
    service.create_organization(ORG, OLIVIA).await.unwrap();
    let commit = crashing.dynamodb.hold("TransactWriteItems", MICHAEL, 0);
    let creation = {
        let mut client = crashing.replica.client.clone();
        let request = pb::CreateUserRequest {
            username: MICHAEL.to_owned(),
            ..pb::CreateUserRequest::default()
        };
        tokio::spawn(async move { client.create_user(request).await })
    };
    commit.reached().await;
    // The fence is evicted, and the absence of the user is cached.
    backends.flush_cache().await;
    service.get_user(MICHAEL).await.unwrap_err();
    service.settle().await;
    crashing.cut_off();
    commit.release();
    tokio::time::timeout(PATIENCE, async {
        let (pk, table) = (format!("USER#{MICHAEL}"), backends.table());
        while table.attributes_of(&pk, &pk).await.is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    service
        .add(ORG, MICHAEL, Role::Member, OLIVIA)
        .await
        .unwrap();
    assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Member));
    creation.abort();
}

#[tokio::test]
async fn a_removal_is_visible_although_momento_may_return_an_older_value() {
    let (_backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    service.settle().await;
    assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Member));
    service.settle().await;
    let check = service.check(ORG, MICHAEL).await.unwrap();
    assert_eq!(check.source(), Source::Cache);
    service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    assert_eq!(service.role_of(ORG, MICHAEL).await, None);
}

/// Ends its response streams late, and counts the callers that do not wait for the end.
#[derive(Default)]
struct LateEnd(AtomicUsize);

#[tonic::async_trait]
impl momento::Gate for LateEnd {
    async fn pass(&self, _: momento::DataCall, _: &[&[u8]]) -> Result<momento::Fate, Status> {
        Ok(momento::Fate::Served)
    }

    fn end_after(&self) -> Duration {
        Duration::from_millis(5)
    }

    fn left(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn look_ups_read_their_response_streams_to_the_end() {
    let backends = Backends::start().await;
    let gate = Arc::new(LateEnd::default());
    let server = backends
        .embedded
        .momento
        .start_beside(ANY_PORT, gate.clone());
    let server = server.await.unwrap();
    let mut settings = backends.serve_settings();
    settings.backends.momento_secret_id = backends.store_secret(&server).await;
    let service = Replica::start(&settings).await;
    service.found_olivia_org().await;
    for _ in 0..20 {
        assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Owner));
        service.settle().await;
    }
    let check = service.check(ORG, OLIVIA).await.unwrap();
    assert_eq!(check.source(), Source::Cache);
    assert_eq!(gate.0.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_write_with_old_fences_renews_them_without_a_new_decision() {
    let backends = Backends::start().await;
    let mut settings = backends.serve_settings();
    settings.backends.dynamodb_attempt_timeout_ms = Duration::from_millis(500);
    let service = Replica::start(&settings).await;
    service.found_olivia_org_with_michael().await;
    backends.forget_calls();
    // Two attempts to read the records of the decision time out after half a second each.
    let _reads = [0, 0].map(|skip| backends.dynamodb.hold("BatchGetItem", MICHAEL, skip));
    service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    assert_eq!(backends.momento.seen("SetIf").len(), 3);
    assert_eq!(backends.dynamodb.seen("BatchGetItem").len(), 3);
    assert_eq!(backends.dynamodb.seen("TransactWriteItems").len(), 1);
}

#[tokio::test]
async fn later_reads_agree_with_a_rejection_for_a_missing_user() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    service.settle().await;
    assert_eq!(service.get_user(MICHAEL).await.unwrap().1, Source::Cache);
    // Deleted in the console: the cache still has the user.
    let key = format!("USER#{MICHAEL}");
    backends.table().delete(&key, &key).await;
    assert_eq!(service.get_user(MICHAEL).await.unwrap().1, Source::Cache);
    let refused = service.add(ORG, MICHAEL, Role::Member, OLIVIA).await;
    assert_refused(refused, Code::NotFound, "USER_NOT_FOUND");
    let refused = service.get_user(MICHAEL).await;
    assert_refused(refused, Code::NotFound, "USER_NOT_FOUND");
}

/// Backends, and a service that has Michael's membership cached.
async fn with_michael_cached() -> (Backends, Replica) {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    service.settle().await;
    assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Member));
    service.settle().await;
    (backends, service)
}

#[tokio::test]
async fn later_reads_agree_with_a_rejection_for_a_missing_membership() {
    let user = format!("USER#{MICHAEL}");
    let organization = format!("ORG#{ORG}");
    for key in [&user, &organization] {
        let (backends, service) = with_michael_cached().await;
        // Another incarnation of the name: the cache still has the former one.
        backends.table().set_text(key, key, "uid", "another").await;
        if *key == user {
            let refused = service.transfer(ORG, MICHAEL, Some(OLIVIA)).await;
            assert_refused(refused, Code::NotFound, "MEMBERSHIP_NOT_FOUND");
            assert_eq!(service.role_of(ORG, MICHAEL).await, None, "{key}");
        }
        service.transfer(ORG, MICHAEL, None).await.unwrap();
        let role = service.role_of(ORG, MICHAEL).await;
        assert_eq!(role, Some(Role::Owner), "{key}");
    }
    for (key, reason) in [
        (&user, "USER_NOT_FOUND"),
        (&organization, "ORGANIZATION_NOT_FOUND"),
    ] {
        let (backends, service) = with_michael_cached().await;
        backends.table().delete(key, key).await;
        let refused = service.transfer(ORG, MICHAEL, None).await;
        assert_refused(refused, Code::NotFound, reason);
        assert_eq!(service.role_of(ORG, MICHAEL).await, None, "{key}");
    }
    for (change, reason) in [
        ("remove", "MEMBERSHIP_NOT_FOUND"),
        ("promote", "MEMBERSHIP_NOT_FOUND"),
    ] {
        let (backends, service) = with_michael_cached().await;
        backends.table().delete(&user, &user).await;
        let refused = match change {
            "remove" => service.remove(ORG, MICHAEL, OLIVIA).await,
            _ => service.change_role(ORG, MICHAEL, Role::Admin, OLIVIA).await,
        };
        assert_refused(refused, Code::NotFound, reason);
        assert_eq!(service.role_of(ORG, MICHAEL).await, None, "{change}");
        service.get_user(MICHAEL).await.unwrap_err();
    }
}

#[tokio::test]
async fn later_reads_agree_with_a_rejection_for_the_last_owner() {
    for step_down in [false, true] {
        let (backends, service) = start().await;
        service.found_olivia_org_with_michael().await;
        let promoted = service.change_role(ORG, MICHAEL, Role::Owner, OLIVIA).await;
        promoted.unwrap();
        service.settle().await;
        assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Owner));
        service.settle().await;
        let user = format!("USER#{MICHAEL}");
        backends
            .table()
            .set_text(&user, &user, "state", "SUSPENDED")
            .await;
        let refused = if step_down {
            service.change_role(ORG, OLIVIA, Role::Member, OLIVIA).await
        } else {
            service.remove(ORG, OLIVIA, OLIVIA).await
        };
        assert_refused(refused, Code::FailedPrecondition, "LAST_OWNER");
        assert_eq!(service.role_of(ORG, MICHAEL).await, None);
        let user = service.get_user(MICHAEL).await.unwrap().0;
        assert_eq!(user.state(), pb::State::Suspended);
    }
}

#[tokio::test]
async fn later_reads_agree_with_a_transfer_about_the_previous_owner() {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    let suspend = pb::SuspendUserRequest {
        username: OLIVIA.to_owned(),
        ..pb::SuspendUserRequest::default()
    };
    service.client.clone().suspend_user(suspend).await.unwrap();
    // Removes the fences, so that reads can fill the cache.
    backends.flush_cache().await;
    assert_eq!(service.role_of(ORG, OLIVIA).await, None);
    service.settle().await;
    // The state after a resumption whose replica crashed before the confirmation.
    let user = format!("USER#{OLIVIA}");
    backends
        .table()
        .set_text(&user, &user, "state", "ACTIVE")
        .await;
    service.transfer(ORG, MICHAEL, Some(OLIVIA)).await.unwrap();
    assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Admin));
}

#[tokio::test]
async fn later_reads_agree_with_a_rejection_for_a_suspended_founder() {
    let (backends, service) = with_michael_cached().await;
    let user = format!("USER#{MICHAEL}");
    backends
        .table()
        .set_text(&user, &user, "state", "SUSPENDED")
        .await;
    let refused = service.create_organization("michael-org", MICHAEL).await;
    assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    assert_eq!(service.role_of(ORG, MICHAEL).await, None);
}

#[tokio::test]
async fn later_reads_agree_with_a_rejection_for_a_taken_address() {
    const EMAIL: &str = "michael@example.com";
    let (backends, service) = with_michael_cached().await;
    let uid = service.get_user(MICHAEL).await.unwrap().0.uid;
    // The state after a write whose replica crashed before the confirmation.
    let (user, email) = (format!("USER#{MICHAEL}"), format!("EMAIL#{EMAIL}"));
    let table = backends.table();
    let claim = [
        ("PK", email.as_str()),
        ("SK", &email),
        ("username", MICHAEL),
        ("uid", &uid),
    ];
    table.put(&claim).await;
    table.set_text(&user, &user, "email", EMAIL).await;
    let request = pb::CreateUserRequest {
        username: "another".to_owned(),
        email: EMAIL.to_owned(),
        ..pb::CreateUserRequest::default()
    };
    let refused = service.client.clone().create_user(request).await;
    assert_refused(refused, Code::AlreadyExists, "EMAIL_ALREADY_EXISTS");
    let request = pb::LookupUserRequest {
        email: EMAIL.to_owned(),
        ..pb::LookupUserRequest::default()
    };
    let found = service.client.clone().lookup_user(request).await.unwrap();
    assert_eq!(found.into_inner().user.unwrap().username, MICHAEL);
}

#[tokio::test]
async fn reads_of_a_copied_table_do_not_use_the_cache_of_the_original() {
    let (backends, service) = start().await;
    service.found_olivia_org_with_michael().await;
    eventually("Michael is cached", async || {
        let check = service.check(ORG, MICHAEL).await.unwrap();
        service.settle().await;
        check.source() == Source::Cache
    })
    .await;
    let (pk, sk) = ("ORGMEMBERS#olivia-org", "MEMBER#membermichael");
    let copy = backends.replica_on_a_copy_without(pk, sk).await;
    assert_eq!(copy.role_of(ORG, MICHAEL).await, None);
    assert_eq!(service.role_of(ORG, MICHAEL).await, Some(Role::Member));
}

#[tokio::test]
async fn entries_beyond_their_maximum_age_are_ignored() {
    fn an_hour_ago() -> Timestamp {
        Timestamp(Timestamp::now().0 - 3_600_000)
    }
    let backends = Backends::start().await;
    let settings = backends.serve_settings();
    let behind = coherence::CoherenceSettings {
        wall_clock: an_hour_ago,
        ..settings.cache.to_coherence()
    };
    let behind = Replica::start_with(&settings, patient(behind)).await;
    let service = backends.replica().await;
    behind.found_olivia_org().await;
    behind.settle().await;
    // The entry is cached, and an hour old by this replica's clock.
    let read = service.check(ORG, OLIVIA).await.unwrap();
    assert_eq!((read.role(), read.source()), (Role::Owner, Source::Store));
    let read = behind.check(ORG, OLIVIA).await.unwrap();
    assert_eq!((read.role(), read.source()), (Role::Owner, Source::Cache));
}
