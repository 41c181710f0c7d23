//! The steps of a write that keep near caches true.

use tokio::time::sleep;
use tonic::Code;

use super::*;
use crate::harness::assert_refused;

#[tokio::test]
async fn a_refused_write_keeps_no_record_out_of_memory() {
    let (_backends, first, second) = two().await;
    warm(&second).await;
    first.remove(ORG, OLIVIA, MICHAEL).await.unwrap_err();
    first
        .change_role(ORG, MICHAEL, Role::Owner, MICHAEL)
        .await
        .unwrap_err();
    let began = Instant::now();
    warm(&second).await;
    assert!(began.elapsed() < Timing::default().fence_ttl);
}

#[tokio::test]
async fn a_write_fences_the_other_replicas_while_it_reads_the_table() {
    let (backends, first, second) = two().await;
    warm(&second).await;
    let read = backends.dynamodb.hold("BatchGetItem", MICHAEL, 0);
    let removal = tokio::spawn(async move { first.remove(ORG, MICHAEL, OLIVIA).await });
    read.reached().await;
    eventually("the membership is not in memory", async || {
        check(&second).await.source() != Source::Memory
    })
    .await;
    read.release();
    removal.await.unwrap().unwrap();
    assert!(!check(&second).await.is_member);
}

#[tokio::test]
async fn a_write_fences_its_own_replica_before_it_commits() {
    let (backends, first, _second) = two().await;
    warm(&first).await;
    let commit = backends.dynamodb.hold("TransactWriteItems", MICHAEL, 0);
    let while_it_commits = async {
        commit.reached().await;
        let source = check(&first).await.source();
        commit.release();
        source
    };
    let (removed, source) = tokio::join!(first.remove(ORG, MICHAEL, OLIVIA), while_it_commits);
    removed.unwrap();
    assert_ne!(source, Source::Memory);
    assert!(!check(&first).await.is_member);
}

#[tokio::test]
async fn a_write_calls_no_other_replica_between_its_commit_and_its_acknowledgement() {
    let (backends, first, second, network) = Box::pin(two_with_a_path(never_evicting)).await;
    let commit = backends.dynamodb.hold("TransactWriteItems", MICHAEL, 0);
    let removal = tokio::spawn(async move { first.remove(ORG, MICHAEL, OLIVIA).await });
    commit.reached().await;
    network.set(Path::Silent);
    commit.release();
    removal.await.unwrap().unwrap();
    assert!(!check(&second).await.is_member);
    assert!(second.is_active());
}

/// Holds end after a second, and a commit may take as long as it wants.
fn with_short_holds(backends: &Backends) -> (ServeSettings, Tuning) {
    let mut settings = settings(backends);
    settings.backends.dynamodb_attempt_timeout_ms = PATIENCE;
    let mut tuning = never_evicting();
    tuning.operation_timeout = Some(PATIENCE);
    tuning.cache.timing.fence_ttl = Duration::from_secs(1);
    tuning.cache.timing.fence_max_age = Duration::from_millis(500);
    (settings, tuning)
}

#[tokio::test]
async fn a_write_whose_holds_have_ended_fences_again_before_it_is_acknowledged() {
    let backends = Box::pin(Backends::start()).await;
    let (settings, tuning) = with_short_holds(&backends);
    let first = Box::pin(active(&settings, tuning.clone())).await;
    let second = Box::pin(active(&settings, tuning)).await;
    first.found_olivia_org_with_michael().await;
    let commit = backends.dynamodb.hold("TransactWriteItems", MICHAEL, 0);
    let removal = tokio::spawn(async move { first.remove(ORG, MICHAEL, OLIVIA).await });
    commit.reached().await;
    // The hold of the write ends, and the old record is in memory again.
    warm(&second).await;
    commit.release();
    removal.await.unwrap().unwrap();
    assert!(!check(&second).await.is_member);
}

#[tokio::test]
async fn a_write_that_was_not_confirmed_is_confirmed_later_in_memory() {
    let backends = Box::pin(Backends::start()).await;
    let network = PeerNetwork::start().await;
    let (settings, mut tuning) = with_short_holds(&backends);
    let second = Box::pin(active(&behind(&settings, &network), tuning.clone())).await;
    tuning.longest_call = Some(pace(Duration::from_secs(4)));
    let first = Box::pin(active(&settings, tuning)).await;
    first.found_olivia_org_with_michael().await;
    let commit = backends.dynamodb.hold("TransactWriteItems", MICHAEL, 0);
    let unconfirmed = async {
        commit.reached().await;
        warm(&second).await;
        network.set(Path::Silent);
        commit.release();
    };
    let (removed, ()) = tokio::join!(first.remove(ORG, MICHAEL, OLIVIA), unconfirmed);
    removed.unwrap_err();
    network.set(Path::Open);
    eventually("the removal is visible in memory", async || {
        !check(&second).await.is_member
    })
    .await;
}

#[tokio::test]
async fn a_write_with_an_unknown_outcome_keeps_its_records_out_of_memory() {
    let (backends, first, second) = two().await;
    warm(&second).await;
    let began = Instant::now();
    let commits = backends.dynamodb.hold_all("TransactWriteItems", MICHAEL);
    let removed = first.remove(ORG, MICHAEL, OLIVIA).await;
    assert_refused(removed, Code::Unavailable, "OUTCOME_UNKNOWN");
    // Until then, the hold has not ended.
    let until = began + Timing::default().fence_ttl;
    loop {
        let source = check(&second).await.source();
        if Instant::now() >= until {
            break;
        }
        assert_ne!(source, Source::Memory);
        sleep(Duration::from_millis(10)).await;
    }
    drop(commits);
}

#[tokio::test]
async fn a_refusal_reveals_nothing_that_a_replica_that_has_joined_meanwhile_contradicts() {
    let (backends, first, _second) = two().await;
    warm(&first).await;
    let mut patient = backends.serve_settings();
    patient.backends.dynamodb_attempt_timeout_ms = PATIENCE;
    let writer = Tuning {
        operation_timeout: Some(PATIENCE),
        ..tuning()
    };
    let writer = Replica::start_with(&patient, writer).await;
    let read = backends.dynamodb.hold("BatchGetItem", MICHAEL, 0);
    let removal = tokio::spawn(async move { writer.remove(ORG, MICHAEL, OLIVIA).await });
    read.reached().await;
    eventually("the write has fenced the listed replicas", async || {
        check(&first).await.source() != Source::Memory
    })
    .await;
    let joined = Box::pin(active(&settings(&backends), tuning())).await;
    warm(&joined).await;
    let (organization, member) = (format!("ORGMEMBERS#{ORG}"), format!("MEMBER#{MICHAEL}"));
    backends.table().delete(&organization, &member).await;
    read.release();
    assert_refused(
        removal.await.unwrap(),
        Code::NotFound,
        "MEMBERSHIP_NOT_FOUND",
    );
    assert!(!check(&joined).await.is_member);
}
