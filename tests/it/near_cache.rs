//! Near caches: hits make no remote calls, and no response after an acknowledged write is stale,
//! also under faults between the replicas.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use account_service::{
    boot::Tuning,
    coherence::{CoherenceSettings, Timing},
    config::ServeSettings,
    local::ANY_PORT,
    peer::{PeerAddress, PeerIdentity},
    proto::{
        account_v1::{self as pb, Role, Source},
        peer_v1::{
            self as peer,
            peer_service_client::PeerServiceClient,
            peer_service_server::{PeerService, PeerServiceServer},
        },
    },
    transport::listener::{self, Limits},
};
use aws_sdk_dynamodb::types::AttributeValue;
use tokio::{net::TcpListener, time::sleep};
use tonic::{Request, Response, Status};

use crate::{
    harness::{
        Backends, PATIENCE, Replica, Table,
        binary::{Server, serve_over},
        pace, patient,
        peer_network::{Path, PeerNetwork},
    },
    streams::{eventually, following},
};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
/// The directory's item.
const DIRECTORY: &str = "SERVICE#replicas";

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

async fn until_active(replica: &Replica) {
    eventually("the replica is active", async || replica.is_active()).await;
}

async fn active(settings: &ServeSettings, tuning: Tuning) -> Replica {
    let replica = Replica::start_with(settings, tuning).await;
    until_active(&replica).await;
    replica
}

/// Backends and two replicas with near caches, with Michael in Olivia's organization.
async fn two() -> (Backends, Replica, Replica) {
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

/// A replica, and a second one that its peers reach over a path of the test.
async fn two_with_a_path(tuning: impl Fn() -> Tuning) -> (Backends, Replica, Replica, PeerNetwork) {
    let backends = Box::pin(Backends::start()).await;
    let network = PeerNetwork::start().await;
    let mut behind = settings(&backends);
    behind.server.peers.peer_addr = Some(network.listens);
    behind.server.peers.peer_advertise = Some(network.advertised.to_string());
    let first = settings(&backends);
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
async fn a_replica_that_its_peers_cannot_reach_is_evicted_and_joins_again() {
    for path in [Path::Silent, Path::RepliesLost, Path::Closed] {
        let (_backends, first, second, network) = two_with_a_path(tuning).await;
        network.set(path);
        first.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
        assert!(!check(&second).await.is_member);
        assert!(!second.is_active());
        // Later writes do not wait for it.
        first.add(ORG, MICHAEL, Role::Member, OLIVIA).await.unwrap();
        assert!(check(&second).await.is_member);
        network.set(Path::Open);
        until_active(&second).await;
        warm(&second).await;
        first.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
        assert!(!check(&second).await.is_member);
    }
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

#[tokio::test]
async fn records_from_before_an_eviction_are_not_served_after_it() {
    let (_backends, first, second, network) = Box::pin(two_with_a_path(tuning)).await;
    network.set(Path::Closed);
    first.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    network.set(Path::Open);
    until_active(&second).await;
    assert!(!check(&second).await.is_member);
}

/// The paused replica is a process, with the timing of production.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_paused_serves_no_stale_record() {
    let backends = Backends::start().await;
    let settings = settings(&backends);
    let tuning = Tuning {
        longest_call: Some(PATIENCE),
        ..settings.cache.to_coherence().into()
    };
    let writer = Box::pin(active(&settings, tuning)).await;
    let mut command = serve_over(&backends);
    command.env("PEER_ADDR", ANY_PORT.to_string());
    let paused = Server::start(command, "serving on", |_| true);
    let client = paused.client().await;
    let check = async || {
        let request = pb::CheckMembershipRequest {
            organization_name: ORG.to_owned(),
            username: MICHAEL.to_owned(),
            ..pb::CheckMembershipRequest::default()
        };
        let response = client.clone().check_membership(request).await;
        response.unwrap().into_inner()
    };
    writer.found_olivia_org_with_michael().await;
    for _ in 0..3 {
        // Also after it was evicted in the round before.
        eventually("the membership is in memory", async || {
            let found = check().await;
            found.is_member && found.source() == Source::Memory
        })
        .await;
        paused.signal("-STOP");
        let removed = writer.remove(ORG, MICHAEL, OLIVIA).await;
        paused.signal("-CONT");
        removed.unwrap();
        for _ in 0..100 {
            assert!(!check().await.is_member);
        }
        let added = writer.add(ORG, MICHAEL, Role::Member, OLIVIA).await;
        added.unwrap();
    }
}

#[tokio::test]
async fn a_replica_that_has_stopped_delays_no_write() {
    let (backends, first, mut second) = Box::pin(two_with(never_evicting)).await;
    warm(&second).await;
    second.stop();
    eventually("the replica has left the directory", async || {
        let replicas = replicas(&backends.table()).await;
        replicas.len() == 1
            || replicas
                .iter()
                .any(|(_, text)| text.starts_with("STOPPED "))
    })
    .await;
    first.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    first.add(ORG, MICHAEL, Role::Member, OLIVIA).await.unwrap();
    eventually("the replica is removed from the directory", async || {
        replicas(&backends.table()).await.len() == 1
    })
    .await;
    assert!(first.is_active());
}

/// The replicas in the directory, and their texts.
async fn replicas(table: &Table) -> Vec<(String, String)> {
    let get = table.client.get_item().table_name(&table.name);
    let key = || AttributeValue::S(DIRECTORY.to_owned());
    let item = get.key("PK", key()).key("SK", key()).send().await.unwrap();
    let item = item.item.unwrap_or_default().into_iter();
    let replicas = item.filter_map(|(name, value)| match value {
        AttributeValue::S(text) if text != DIRECTORY => Some((name, text)),
        _ => None,
    });
    replicas.collect()
}

/// The incarnation of the replica behind this path.
async fn incarnation_behind(network: &PeerNetwork, table: &Table) -> String {
    let advertised = network.advertised.to_string();
    let mut replicas = replicas(table).await.into_iter();
    replicas
        .find(|(_, text)| text.contains(&advertised))
        .unwrap()
        .0
}

#[tokio::test]
async fn a_directory_that_is_deleted_lets_no_replica_serve_a_stale_record() {
    // Long, so that the deleted directory is still in use when the write is acknowledged.
    let slow = || with_view_ttl(Duration::from_secs(3));
    let (backends, first, second, network) = two_with_a_path(slow).await;
    network.set(Path::Silent);
    drop(first);
    backends.table().delete(DIRECTORY, DIRECTORY).await;
    // It has never seen the directory that was deleted.
    let third = Replica::start_with(&backends.serve_settings(), slow()).await;
    third.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    assert!(!check(&second).await.is_member);
}

#[tokio::test]
async fn a_replica_that_is_removed_from_the_directory_by_hand_serves_no_stale_record() {
    let slow = || with_view_ttl(Duration::from_secs(3));
    let (backends, first, second, network) = two_with_a_path(slow).await;
    let table = backends.table();
    network.set(Path::Silent);
    let key = || AttributeValue::S(DIRECTORY.to_owned());
    let update = table.client.update_item().table_name(&table.name);
    let update = update.key("PK", key()).key("SK", key());
    let update = update
        .update_expression("REMOVE #replica ADD #ver :one")
        .expression_attribute_names("#replica", incarnation_behind(&network, &table).await)
        .expression_attribute_names("#ver", "ver")
        .expression_attribute_values(":one", AttributeValue::N("1".to_owned()));
    update.send().await.unwrap();
    first.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    assert!(!check(&second).await.is_member);
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
async fn a_replica_without_an_address_fences_the_others_and_serves_nothing_from_memory() {
    let (backends, _first, second) = two().await;
    let third = Replica::start_with(&backends.serve_settings(), tuning()).await;
    warm(&second).await;
    third.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    assert!(!check(&second).await.is_member);
    sleep(tuning().cache.timing.join_wait).await;
    assert!(!third.is_active());
    check(&third).await;
    assert_ne!(check(&third).await.source(), Source::Memory);
}

#[tokio::test]
async fn hits_in_memory_go_on_without_the_cache() {
    let (backends, _first, second) = two().await;
    warm(&second).await;
    backends.momento.cut_off();
    warm(&second).await;
}

#[tokio::test]
async fn a_replica_that_cannot_read_the_directory_stops_serving_from_memory() {
    let (backends, _first, second) = two().await;
    warm(&second).await;
    backends.dynamodb.cut_off();
    eventually("memory is not used", async || {
        !second.is_active() && second.check(ORG, MICHAEL).await.is_err()
    })
    .await;
}

/// Acknowledges every fence in the name of a replica, without its private key.
struct Impostor {
    incarnation: String,
}

#[tonic::async_trait]
impl PeerService for Impostor {
    async fn fence(
        &self,
        _: Request<peer::FenceRequest>,
    ) -> Result<Response<peer::FenceResponse>, Status> {
        Ok(Response::new(peer::FenceResponse {
            incarnation: self.incarnation.clone(),
        }))
    }

    async fn release(
        &self,
        _: Request<peer::ReleaseRequest>,
    ) -> Result<Response<peer::ReleaseResponse>, Status> {
        Ok(Response::new(peer::ReleaseResponse {}))
    }
}

#[tokio::test]
async fn an_acknowledgement_of_an_impostor_is_not_accepted() {
    let (backends, first, second, network) = two_with_a_path(tuning).await;
    let incarnation = incarnation_behind(&network, &backends.table()).await;
    // The impostor is where the replica was: it has the address, and even the token.
    let listener = TcpListener::bind(ANY_PORT).await.unwrap();
    let impostor = listener.local_addr().unwrap();
    let tls = PeerIdentity::generate().unwrap().tls();
    let limits = Limits::never_authenticated(16, Duration::from_secs(60));
    let connections = listener::accept(listener, Some(Arc::new(move || tls.clone())), limits);
    let service = PeerServiceServer::new(Impostor { incarnation });
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(connections));
    network.set(Path::To(impostor));
    first.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    assert!(!check(&second).await.is_member);
    assert!(!second.is_active());
}

#[tokio::test]
async fn a_fence_needs_the_token_of_the_replica() {
    let (backends, _first, second) = two().await;
    warm(&second).await;
    let listed = replicas(&backends.table()).await;
    for (_, text) in listed {
        let (_, address) = text.split_once(' ').unwrap();
        let address: PeerAddress = address.parse().unwrap();
        for token in [None, Some("Bearer "), Some("Bearer 0123")] {
            let channel = address.channel().unwrap();
            let mut client = PeerServiceClient::new(channel);
            let mut request = Request::new(peer::FenceRequest {
                write_id: vec![0; 16],
                keys: vec![peer::Key {
                    record: Some(peer::key::Record::User(MICHAEL.to_owned())),
                }],
                hold_ms: 60_000,
            });
            if let Some(token) = token {
                let token = token.parse().unwrap();
                request.metadata_mut().insert("authorization", token);
            }
            let status = client.fence(request).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::Unauthenticated);
        }
    }
    // A hold would be longer than this waits.
    warm(&second).await;
}
