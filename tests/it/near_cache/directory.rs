//! The replica directory and the calls between replicas, under faults and attacks.

use std::sync::Arc;

use account_service::{
    peer::{PeerAddress, PeerIdentity},
    proto::peer_v1::{
        self as peer,
        peer_service_client::PeerServiceClient,
        peer_service_server::{PeerService, PeerServiceServer},
    },
    transport::listener::{self, Limits},
};
use aws_sdk_dynamodb::types::AttributeValue;
use tokio::{net::TcpListener, time::sleep};
use tonic::{Request, Response, Status};

use super::*;
use crate::harness::{
    Table,
    binary::{Server, serve_over},
};

/// The directory's item.
const DIRECTORY: &str = "SERVICE#replicas";

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

/// Changes one replica of the directory by hand.
async fn edit_directory(table: &Table, change: &str, replica: &str, text: Option<String>) {
    let key = || AttributeValue::S(DIRECTORY.to_owned());
    let update = table.client.update_item().table_name(&table.name);
    let update = update
        .key("PK", key())
        .key("SK", key())
        .update_expression(format!("{change} ADD #ver :one"))
        .expression_attribute_names("#replica", replica)
        .expression_attribute_names("#ver", "ver")
        .expression_attribute_values(":one", AttributeValue::N("1".to_owned()));
    let update = match text {
        Some(text) => update.expression_attribute_values(":text", AttributeValue::S(text)),
        None => update,
    };
    update.send().await.unwrap();
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
    let incarnation = incarnation_behind(&network, &table).await;
    edit_directory(&table, "REMOVE #replica", &incarnation, None).await;
    first.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
    assert!(!check(&second).await.is_member);
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

#[tokio::test]
async fn an_incarnation_that_no_process_has_is_evicted() {
    let (backends, first, second) = two().await;
    let table = backends.table();
    let (_, text) = replicas(&table).await.swap_remove(0);
    let left = "0123456789abcdef0123456789abcdef";
    edit_directory(&table, "SET #replica = :text", left, Some(text)).await;
    eventually("the incarnation is removed", async || {
        let replicas = replicas(&table).await;
        replicas.iter().all(|(incarnation, _)| incarnation != left)
    })
    .await;
    for replica in [&first, &second] {
        until_active(replica).await;
    }
}
