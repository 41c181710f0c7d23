//! Connections: each listener limits them, and no client locks out others.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use account_service::{auth::KeySource, proto::account_v1 as pb};
use futures_util::future::join_all;
use prost::Message as _;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    callers::{Files, Signer, check, checks, found, token_settings},
    harness::{
        Backends, Client, PATIENCE, Replica, assert_refused,
        binary::{Server, free_address, scrape, serve_over},
        start,
    },
    overload::{Attacker, Unwilling, is_closed},
    streams::eventually,
};

/// The most connections without an admitted call in a replica.
const MAX_UNAUTHENTICATED: usize = 256;
/// The memory limit in `deploy/kubernetes.yaml`, in KiB.
const MEMORY_LIMIT_KIB: u64 = 256 * 1024;

/// A replica that accepts tokens of this signer.
async fn with_tokens(max_connections: u32) -> (Backends, Files, Signer, Replica) {
    let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
    found(&backends).await;
    let keys = KeySource::File(files.write("keys.json", &signer.key_set()));
    let mut settings = backends.serve_settings();
    settings.server.callers = token_settings(&files, keys);
    settings.server.max_connections = max_connections;
    let service = Replica::start(&settings).await;
    (backends, files, signer, service)
}

async fn connect(addr: SocketAddr) -> Client {
    Client::connect(format!("http://{addr}")).await.unwrap()
}

async fn is_healthy(addr: SocketAddr) -> bool {
    let channel = Channel::from_shared(format!("http://{addr}")).unwrap();
    let Ok(channel) = channel.connect().await else {
        return false;
    };
    let mut health = HealthClient::new(channel);
    health.check(HealthCheckRequest::default()).await.is_ok()
}

/// Connects, and sends as much of an endless request head as the server reads.
fn unfinished_head(addr: SocketAddr) -> TcpStream {
    const HEAD: usize = 390 * 1024;
    let mut stream = TcpStream::connect(addr).unwrap();
    let timeout = Some(Duration::from_millis(20));
    stream.set_write_timeout(timeout).unwrap();
    let head = [&b"GET /metrics HTTP/1.1\r\nx: "[..], &vec![b'x'; HEAD]].concat();
    // Fails where the server has stopped reading.
    let _ = stream.write_all(&head);
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_scrapes_are_served_during_a_flood_of_connections() {
    const ATTACKERS: usize = 600;
    let backends = Backends::start().await;
    let (metrics, health) = (free_address(), free_address());
    let mut command = serve_over(&backends);
    command
        .env("METRICS_ADDR", metrics.to_string())
        .env("HEALTH_ADDR", health.to_string());
    let server = Server::start(command, "serving on", |_| true);
    let mut idle = Vec::new();
    for _ in 0..ATTACKERS {
        idle.push(TcpStream::connect(health).unwrap());
    }
    assert!(is_healthy(health).await);
    let mut unfinished = Vec::new();
    for _ in 0..ATTACKERS {
        unfinished.push(unfinished_head(metrics));
    }
    let metrics = scrape(metrics);
    assert!(metrics.contains("account_connections_evicted_total"));
    assert!(server.peak_memory_kib() < MEMORY_LIMIT_KIB);
    // The oldest have been closed.
    for oldest in idle.iter_mut().chain(&mut unfinished).take(ATTACKERS / 2) {
        oldest.set_read_timeout(Some(PATIENCE)).unwrap();
        let closed = oldest.read_to_end(&mut Vec::new());
        assert!(
            closed.is_ok()
                || closed.is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock)
        );
    }
    drop(server);
}

#[tokio::test]
async fn connections_without_an_admitted_call_are_evicted_for_new_ones() {
    /// More than the limit.
    const ATTACKERS: usize = MAX_UNAUTHENTICATED + 100;
    let (_backends, _files, signer, service) = with_tokens(10).await;
    let token = signer.service_token("console");
    let before = connect(service.addr).await;
    assert!(checks(&before, &token).await.unwrap());
    let mut attackers = Vec::new();
    for _ in 0..ATTACKERS {
        attackers.push(Attacker::connect(service.addr).await);
    }
    let mut refused = connect(service.addr).await;
    let refused = refused.check_membership(check()).await;
    assert_refused(refused, Code::Unauthenticated, "NO_CREDENTIALS");
    let after = connect(service.addr).await;
    for client in [&before, &after] {
        assert!(checks(client, &token).await.unwrap());
    }
    for oldest in &mut attackers[..ATTACKERS - MAX_UNAUTHENTICATED] {
        assert!(is_closed(&mut oldest.connection).await);
    }
}

#[tokio::test]
async fn the_caller_with_the_most_connections_loses_its_oldest_to_another_caller() {
    let (_backends, _files, signer, service) = with_tokens(3).await;
    let (many, few) = (
        signer.service_token("console"),
        signer.service_token("billing"),
    );
    let mut of_many = Vec::new();
    for _ in 0..3 {
        let client = connect(service.addr).await;
        assert!(checks(&client, &many).await.unwrap());
        of_many.push(client);
    }
    let of_few = connect(service.addr).await;
    assert!(checks(&of_few, &few).await.unwrap());
    // The client reconnects, and is rejected beyond its caller's share.
    let lost = async {
        loop {
            if let Err(status) = checks(&of_many[0], &many).await
                && status.code() == Code::ResourceExhausted
            {
                return status;
            }
        }
    };
    let lost = timeout(PATIENCE, lost).await.unwrap();
    assert_refused::<()>(Err(lost), Code::ResourceExhausted, "OVERLOADED");
    for client in &of_many[1..] {
        assert!(checks(client, &many).await.unwrap());
    }
    assert!(checks(&of_few, &few).await.unwrap());
}

#[tokio::test]
async fn a_health_watch_of_an_unknown_service_reports_it_and_stays_open() {
    let (_backends, mut service) = start().await;
    let mut health = HealthClient::new(service.channel.clone());
    let unknown = HealthCheckRequest {
        service: "no.such.Service".to_owned(),
    };
    let watch = health.watch(unknown.clone()).await;
    let mut watch = watch.unwrap().into_inner();
    let first = watch.next().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    let second = timeout(Duration::from_millis(100), watch.next()).await;
    assert!(second.is_err(), "{second:?}");
    let checked = health.check(unknown).await;
    assert_eq!(checked.unwrap_err().code(), Code::NotFound);
    service.stop();
}

#[tokio::test]
async fn the_health_watches_of_a_connection_are_limited() {
    let (_backends, service) = start().await;
    let mut health = HealthClient::new(service.channel.clone());
    let mut watches = Vec::new();
    // Before and after a first call.
    for count in [2, 4] {
        for _ in 0..count {
            let watch = health.watch(HealthCheckRequest::default()).await;
            watches.push(watch.unwrap().into_inner());
        }
        let refused = health.watch(HealthCheckRequest::default()).await;
        assert_refused(refused, Code::ResourceExhausted, "TOO_MANY_WATCHERS");
        service.create_user("anybody").await.ok();
    }
    let other = Channel::from_shared(format!("http://{}", service.addr)).unwrap();
    let mut other = HealthClient::new(other.connect().await.unwrap());
    let watch = other.watch(HealthCheckRequest::default()).await;
    let first = watch.unwrap().into_inner().next().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
}

/// Users with records of the maximum size.
const LARGE_USERS: usize = 300;

fn name_of(number: usize) -> String {
    format!("large-{number}")
}

/// All large users: about 3.4 MB.
fn large_batch() -> pb::BatchGetUsersRequest {
    pb::BatchGetUsersRequest {
        usernames: (0..LARGE_USERS).map(name_of).collect(),
        ..pb::BatchGetUsersRequest::default()
    }
}

async fn create_large_users(client: &Client, count: usize) {
    let label = |key: usize| (format!("{key:063}"), "x".repeat(256));
    for number in 0..count {
        let request = pb::CreateUserRequest {
            username: name_of(number),
            labels: (0..32).map(label).collect(),
            ..pb::CreateUserRequest::default()
        };
        client.clone().create_user(request).await.unwrap();
    }
}

/// A server in a process of its own, with the large users.
async fn with_large_users() -> (Backends, Server, Client) {
    let backends = Backends::start().await;
    create_large_users(&backends.replica().await.client, LARGE_USERS).await;
    let mut command = serve_over(&backends);
    // Long enough for a large response of the cache on a busy machine.
    command.env("CACHE_READ_TIMEOUT_MS", "10000");
    let server = Server::start(command, "serving on", |_| true);
    let endpoint = Channel::from_shared(format!("http://{}", server.addr)).unwrap();
    let client = Client::new(endpoint.connect().await.unwrap());
    (backends, server, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn large_responses_that_are_never_read_are_charged_and_dropped() {
    const CONNECTIONS: usize = 8;
    const CALLS: usize = 20;
    let (_backends, server, honest) = with_large_users().await;
    let addr = server.addr.parse().unwrap();
    let mut unwilling = Vec::new();
    let mut responses = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = Unwilling::connect(addr).await;
        for _ in 0..CALLS {
            // Fails where the server has closed the connection.
            let response = connection.call("BatchGetUsers", &large_batch()).await;
            responses.extend(response.ok());
        }
        unwilling.push(connection);
    }
    let results = join_all(responses).await;
    // Some calls were rejected, others have a response that has begun. All responses
    // would be about 540 MB.
    let begun = results.iter().filter(|response| response.is_ok()).count();
    assert!(begun > CONNECTIONS, "{begun}");
    let request = pb::GetUserRequest {
        username: name_of(0),
        consistency: None,
    };
    eventually("others are served", async || {
        honest.clone().get_user(request.clone()).await.is_ok()
    })
    .await;
    let peak = server.peak_memory_kib();
    assert!(peak < MEMORY_LIMIT_KIB, "{peak} KiB");
    drop((unwilling, results));
    eventually("memory is released", async || {
        server.memory_kib() < MEMORY_LIMIT_KIB / 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_are_read_except_for_the_last_byte_are_charged() {
    const CALLS: usize = 30;
    let (_backends, server, honest) = with_large_users().await;
    let mut honest = honest.max_decoding_message_size(8 * 1024 * 1024);
    let mut response = None;
    eventually("a batch succeeds", async || {
        response = honest.batch_get_users(large_batch()).await.ok();
        response.is_some()
    })
    .await;
    // With its gRPC header, the message is one byte larger than the client's window.
    let length = response.unwrap().into_inner().encoded_len() + 5;
    let window = u32::try_from(length - 1).unwrap();
    let mut unwilling = Unwilling::with_window(server.addr.parse().unwrap(), window).await;
    let mut responses = Vec::new();
    for _ in 0..CALLS {
        let response = unwilling.call("BatchGetUsers", &large_batch()).await;
        responses.extend(response.ok());
    }
    let responses = join_all(responses).await;
    // A rejected call has a status in its headers.
    let taken = responses.iter().flatten();
    let taken = taken.filter(|response| !response.headers().contains_key("grpc-status"));
    // A connection may hold about 12 MiB, and the calls that have begun before.
    let most = 12 * 1024 * 1024 / length + 12;
    let taken = taken.count();
    assert!(taken <= most, "{taken} of {CALLS}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_concurrent_large_batches_stay_within_the_memory_limit() {
    const CALLS: usize = 48;
    let (_backends, server, client) = with_large_users().await;
    let client = client.max_decoding_message_size(8 * 1024 * 1024);
    let batches = join_all((0..CALLS).map(async |_| {
        let response = client.clone().batch_get_users(large_batch()).await?;
        assert_eq!(response.into_inner().users.len(), LARGE_USERS);
        Ok::<_, tonic::Status>(())
    }));
    let batches = batches.await;
    let peak = server.peak_memory_kib();
    assert!(peak < MEMORY_LIMIT_KIB, "{peak} KiB");
    // Calls without enough time fail with a code that permits a retry.
    for refused in batches.into_iter().filter_map(Result::err) {
        let code = refused.code();
        assert!(
            matches!(
                code,
                Code::ResourceExhausted | Code::DeadlineExceeded | Code::Unavailable
            ),
            "{refused:?}"
        );
    }
    eventually("a batch succeeds", async || {
        client.clone().batch_get_users(large_batch()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_batch_beyond_the_message_limit_of_clients_is_rejected() {
    let (_backends, service) = start().await;
    create_large_users(&service.client, 400).await;
    let mut client = service.client.clone();
    let batch = |count: usize| pb::BatchGetUsersRequest {
        usernames: (0..count).map(name_of).collect(),
        ..pb::BatchGetUsersRequest::default()
    };
    let response = client.batch_get_users(batch(350)).await.unwrap();
    assert_eq!(response.into_inner().users.len(), 350);
    let refused = client.batch_get_users(batch(400)).await;
    let details = assert_refused(refused, Code::ResourceExhausted, "RESPONSE_TOO_LARGE");
    assert!(details.retry_info().is_none());
}
