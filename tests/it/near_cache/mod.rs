//! Near caches: hits make no remote calls, and no response after an acknowledged write is stale,
//! also under faults between the replicas.

mod directory;
mod writes;

use std::time::{Duration, Instant};

use account_service::{
    boot::Tuning,
    coherence::{CoherenceSettings, Timing},
    config::ServeSettings,
    local::ANY_PORT,
    proto::account_v1::{self as pb, Role, Source},
};

use crate::{
    harness::{
        Backends, PATIENCE, Replica, pace, patient,
        peer_network::{Path, PeerNetwork},
    },
    streams::{eventually, following},
};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

fn with_view_ttl(view_ttl: Duration) -> Tuning {
    let timing = Timing {
        view_ttl,
        // No write is running when a test starts a replica.
        join_wait: view_ttl * 9 / 8,
        ..Timing::default()
    };
    let mut tuning = patient(CoherenceSettings {
        near_ttl: Some(Duration::from_secs(3600)),
        timing,
        ..CoherenceSettings::default()
    });
    tuning.cache.timing.fence_patience = Duration::from_millis(500);
    tuning.cache.timing.fence_attempt = Duration::from_millis(250);
    tuning
}

fn tuning() -> Tuning {
    with_view_ttl(pace(Duration::from_millis(300)).max(Duration::from_secs(1)))
}

/// A fence of a replica that does not respond takes longer than a call.
fn never_evicting() -> Tuning {
    let mut tuning = tuning();
    tuning.cache.timing.fence_patience = PATIENCE;
    tuning.cache.timing.fence_attempt = PATIENCE;
    tuning
}

fn settings(backends: &Backends) -> ServeSettings {
    let mut settings = backends.serve_settings();
    settings.server.peers.peer_addr = Some(ANY_PORT);
    settings
}

/// The settings of a replica that its peers reach over this path.
fn behind(settings: &ServeSettings, network: &PeerNetwork) -> ServeSettings {
    let mut behind = settings.clone();
    behind.server.peers.peer_addr = Some(network.listens);
    behind.server.peers.peer_advertise = Some(network.advertised.to_string());
    behind
}

async fn until_active(replica: &Replica) {
    eventually("the replica is active", async || replica.is_active()).await;
}

async fn active(settings: &ServeSettings, tuning: Tuning) -> Replica {
    let replica = Replica::start_with(settings, tuning).await;
    until_active(&replica).await;
    replica
}

/// Backends and two replicas with near caches, with Michael in Olivia's organization.
pub async fn two() -> (Backends, Replica, Replica) {
    two_with(tuning).await
}

async fn two_with(tuning: impl Fn() -> Tuning) -> (Backends, Replica, Replica) {
    let backends = Box::pin(Backends::start()).await;
    let settings = settings(&backends);
    let (first, second) = tokio::join!(
        Box::pin(active(&settings, tuning())),
        Box::pin(active(&settings, tuning()))
    );
    first.found_olivia_org_with_michael().await;
    first.settle().await;
    (backends, first, second)
}

async fn check(replica: &Replica) -> pb::CheckMembershipResponse {
    replica.check(ORG, MICHAEL).await.unwrap()
}

/// Checks until the response comes from memory.
async fn warm(replica: &Replica) {
    eventually("the membership is in memory", async || {
        check(replica).await.source() == Source::Memory
    })
    .await;
}

#[tokio::test]
async fn hits_in_memory_make_no_remote_calls() {
    let (backends, service, _other) = two().await;
    let batch = pb::BatchCheckMembershipsRequest {
        checks: vec![pb::MembershipCheck {
            organization_name: ORG.to_owned(),
            username: MICHAEL.to_owned(),
            ..pb::MembershipCheck::default()
        }],
        consistency: None,
    };
    // More than once: on a busy machine, the replica may not be active for a while.
    eventually("all reads are hits without calls", async || {
        backends.forget_calls();
        let mut client = service.client.clone();
        let batch = client.batch_check_memberships(batch.clone()).await;
        let sources = [
            check(&service).await.source(),
            service.get_user(MICHAEL).await.unwrap().1,
            service.get_organization(ORG).await.unwrap().1,
            service.get_membership(ORG, MICHAEL).await.unwrap().1,
            batch.unwrap().into_inner().source(),
        ];
        sources.iter().all(|source| *source == Source::Memory) && backends.calls().is_empty()
    })
    .await;
    assert_eq!(check(&service).await.role(), Role::Member);
}

#[tokio::test]
async fn an_acknowledged_write_is_visible_in_the_memory_of_every_replica() {
    let (_backends, first, second) = two().await;
    for _ in 0..20 {
        for (writer, reader) in [(&first, &second), (&second, &first)] {
            warm(reader).await;
            writer.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
            assert!(!check(reader).await.is_member);
            assert!(!check(writer).await.is_member);
            writer
                .add(ORG, MICHAEL, Role::Member, OLIVIA)
                .await
                .unwrap();
            assert!(check(reader).await.is_member);
        }
    }
}

#[tokio::test]
async fn a_written_record_is_in_memory_again_as_soon_as_the_write_has_ended() {
    let (_backends, first, second) = two().await;
    warm(&second).await;
    first
        .change_role(ORG, MICHAEL, Role::Admin, OLIVIA)
        .await
        .unwrap();
    // Far less than the time of a hold that nobody releases.
    let began = Instant::now();
    warm(&second).await;
    assert!(began.elapsed() < Timing::default().fence_ttl);
    assert_eq!(check(&second).await.role(), Role::Admin);
}

/// A replica, and a second one that its peers reach over a path of the test.
async fn two_with_a_path(tuning: impl Fn() -> Tuning) -> (Backends, Replica, Replica, PeerNetwork) {
    let backends = Box::pin(Backends::start()).await;
    let network = PeerNetwork::start().await;
    let first = settings(&backends);
    let behind = behind(&first, &network);
    let (first, second) = tokio::join!(
        Box::pin(active(&first, tuning())),
        Box::pin(active(&behind, tuning()))
    );
    first.found_olivia_org_with_michael().await;
    first.settle().await;
    warm(&second).await;
    (backends, first, second, network)
}

#[tokio::test]
async fn a_flush_empties_the_memory_of_every_replica() {
    let (backends, _first, second) = two().await;
    warm(&second).await;
    let key = format!("USER#{MICHAEL}");
    let table = backends.table();
    table.set_text(&key, &key, "firstName", "Changed").await;
    let user = second.get_user(MICHAEL).await.unwrap().0;
    assert_ne!(user.first_name, "Changed");
    let backend_settings = backends.serve_settings().backends;
    account_service::boot::provision::flush(&backend_settings)
        .await
        .unwrap();
    let user = second.get_user(MICHAEL).await.unwrap().0;
    assert_eq!(user.first_name, "Changed");
}

#[tokio::test]
async fn a_change_past_the_service_is_soon_visible_in_memory() {
    let (backends, _first, second) = two().await;
    let following = Tuning {
        invalidator: following().invalidator,
        ..tuning()
    };
    let _follower = Replica::start_with(&settings(&backends), following).await;
    warm(&second).await;
    let key = format!("USER#{MICHAEL}");
    let table = backends.table();
    table.set_text(&key, &key, "firstName", "Changed").await;
    eventually("the change is visible", async || {
        second.get_user(MICHAEL).await.unwrap().0.first_name == "Changed"
    })
    .await;
}

#[tokio::test]
async fn hits_in_memory_go_on_without_the_cache() {
    let (backends, _first, second) = two().await;
    warm(&second).await;
    backends.momento.cut_off();
    warm(&second).await;
}
