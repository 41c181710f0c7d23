//! Overload, and connections that send nothing useful: other callers are still served,
//! and the service recovers.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use account_service::proto::account_v1::{self as pb, Role};
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Status};

use crate::{
    fleet::load::was_sent,
    harness::{Backends, Client, PATIENCE, Replica, assert_refused, start},
    streams::eventually,
};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";

async fn start_with(
    set: impl FnOnce(&mut account_service::config::ServerSettings),
) -> (Backends, Replica) {
    let backends = Backends::start().await;
    let mut settings = backends.serve_settings();
    set(&mut settings.server);
    let service = Replica::start(&settings).await;
    (backends, service)
}

/// A client on its own connection: without authentication, each connection is a caller.
async fn caller(addr: SocketAddr) -> Client {
    Client::connect(format!("http://{addr}")).await.unwrap()
}

/// A check that reads the table.
async fn check(client: Client, username: &str) -> Result<pb::CheckMembershipResponse, Status> {
    check_in(client, ORG, username).await
}

async fn check_in(
    mut client: Client,
    organization: &str,
    username: &str,
) -> Result<pb::CheckMembershipResponse, Status> {
    let request = pb::CheckMembershipRequest {
        organization_name: organization.to_owned(),
        username: username.to_owned(),
        consistency: Some(pb::ReadConsistency {
            requirement: Some(pb::read_consistency::Requirement::FullyConsistent(true)),
        }),
        ..pb::CheckMembershipRequest::default()
    };
    client
        .check_membership(request)
        .await
        .map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_flood_of_one_caller_does_not_starve_other_callers() {
    const FLOOD: usize = 200;
    const AT_ONCE: u16 = 16;
    let (backends, service) = start_with(|server| server.calls_at_once = AT_ONCE).await;
    service.found_olivia_org_with_michael().await;
    let (hog, guest) = (caller(service.addr).await, caller(service.addr).await);
    let held = backends.dynamodb.hold_all("BatchGetItem", "user-");
    let refused = AtomicUsize::new(0);
    let flood = join_all((0..FLOOD).map(async |number| {
        // Each check has its own organization: no two checks share a read.
        let names = [format!("org-{number}"), format!("user-{number}")];
        let response = check_in(hog.clone(), &names[0], &names[1]).await;
        refused.fetch_add(usize::from(response.is_err()), Ordering::SeqCst);
        response
    }));
    let others = async {
        for _ in 0..3 {
            let response = check(guest.clone(), OLIVIA).await.unwrap();
            assert_eq!(response.role(), Role::Owner);
        }
        // A removal does not wait for reads.
        service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
        // All further checks are rejected, although no check before them ends.
        let started = || {
            let reads = backends.dynamodb.seen("BatchGetItem").into_iter();
            reads.filter(|read| read.contains("user-")).count()
        };
        eventually("all further checks are rejected", async || {
            refused.load(Ordering::SeqCst) + started() == FLOOD
        })
        .await;
        drop(held);
    };
    let (flooded, ()) = tokio::join!(flood, others);
    let (served, refused): (Vec<_>, Vec<_>) = flooded.into_iter().partition(Result::is_ok);
    // On busy processors the limit is lower, down to four calls for each.
    assert!(
        (4..=AT_ONCE.into()).contains(&served.len()),
        "{}",
        served.len()
    );
    for refused in refused {
        let pushback = refused.as_ref().unwrap_err().metadata();
        assert_eq!(pushback.get("grpc-retry-pushback-ms").unwrap(), "100");
        let details = assert_refused(refused, Code::ResourceExhausted, "OVERLOADED");
        assert!(details.retry_info().is_some());
    }
    // The service has recovered.
    backends.dynamodb.clear_rules();
    assert_eq!(check(hog, OLIVIA).await.unwrap().role(), Role::Owner);
}

#[tokio::test]
async fn a_connection_allows_256_calls_and_a_call_allows_16_kib_of_headers() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    let stream = TcpStream::connect(service.addr).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut send = send.ready().await.unwrap();
    let anything = http::Request::get(format!("http://{}/", service.addr)).body(());
    let (response, _) = send.send_request(anything.unwrap(), true).unwrap();
    // The server's settings arrive before its first response.
    response.await.unwrap();
    assert_eq!(send.current_max_send_streams(), 256);

    let client = caller(service.addr).await;
    for (kib, is_taken) in [(12, true), (20, false), (12, true)] {
        let mut request = Request::new(pb::GetUserRequest {
            username: OLIVIA.to_owned(),
            consistency: None,
        });
        let value = "x".repeat(kib * 1024).parse().unwrap();
        request.metadata_mut().insert("large", value);
        let response = client.clone().get_user(request).await;
        assert_eq!(response.is_ok(), is_taken, "{kib} KiB: {response:?}");
        if !is_taken {
            assert_refused(response, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
        }
    }
}

/// Whether the server closes the connection, possibly after other bytes.
pub async fn is_closed(connection: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    let closed = async {
        loop {
            match connection.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    timeout(PATIENCE, closed).await.is_ok()
}

#[tokio::test]
async fn clients_that_never_speak_http2_are_disconnected() {
    let (_backends, service) = start().await;
    let mut silent = TcpStream::connect(service.addr).await.unwrap();
    let mut slow = TcpStream::connect(service.addr).await.unwrap();
    slow.write_all(&PREFACE[..10]).await.unwrap();
    let mut half = TcpStream::connect(service.addr).await.unwrap();
    half.write_all(PREFACE).await.unwrap();
    let mut dribbling = TcpStream::connect(service.addr).await.unwrap();
    let dribble = async {
        for byte in PREFACE {
            if dribbling.write_all(&[*byte]).await.is_err() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        is_closed(&mut dribbling).await
    };
    let closed = tokio::join!(
        is_closed(&mut silent),
        is_closed(&mut slow),
        is_closed(&mut half),
        dribble
    );
    assert_eq!(closed, (true, true, true, true));
}

#[tokio::test]
async fn a_silent_client_does_not_delay_the_stop_of_the_service() {
    let (backends, mut service) = start().await;
    let silent = TcpStream::connect(service.addr).await.unwrap();
    service.found_olivia_org().await;
    service.stop();
    let began = Instant::now();
    // Its address is free once the service has ended.
    let rebound = async {
        while tokio::net::TcpListener::bind(service.addr).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, rebound).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));
    drop((backends, silent));
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_until_other_connections_end() {
    let (_backends, service) = start_with(|server| server.max_connections = 3).await;
    service.found_olivia_org().await;
    let two = [caller(service.addr).await, caller(service.addr).await];
    for client in &two {
        check(client.clone(), OLIVIA).await.unwrap();
    }
    let mut beyond = TcpStream::connect(service.addr).await.unwrap();
    assert!(is_closed(&mut beyond).await);
    drop(two);
    let welcome = async {
        while Client::connect(format!("http://{}", service.addr))
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, welcome).await.unwrap();
}

#[tokio::test]
async fn an_old_connection_is_renewed_and_no_call_fails() {
    let second = Duration::from_secs(1);
    let (_backends, service) = start_with(|server| {
        server.max_connection_age_s = second;
    })
    .await;
    service.found_olivia_org().await;
    let until = Instant::now() + second * 3;
    while Instant::now() < until {
        match service.check(ORG, OLIVIA).await {
            Ok(response) => assert_eq!(response.role(), Role::Owner),
            Err(status) => assert!(!was_sent(&status), "{status:?}"),
        }
    }
    // A raw connection shows that the server announces the end by GOAWAY.
    let mut attacker = Attacker::connect(service.addr).await;
    attacker.wait_for_frames(GOAWAY, 1).await;
}

#[tokio::test]
async fn a_watch_ends_at_the_maximum_age_of_its_connection() {
    let backends = Backends::start().await;
    let mut settings = backends.serve_settings();
    settings.cache.stream_invalidator = true;
    settings.server.max_connection_age_s = Duration::from_secs(2);
    let service = Replica::start(&settings).await;
    let mut client = service.client.clone();
    let watching = eventually("the stream is followed", async || {
        let watch = client.watch_changes(pb::WatchChangesRequest::default());
        watch.await.is_ok()
    });
    watching.await;
    let watch = client.watch_changes(pb::WatchChangesRequest::default());
    let mut watch = watch.await.unwrap().into_inner();
    let end = async {
        loop {
            if let Err(status) = watch.next().await.unwrap() {
                return status;
            }
        }
    };
    let end = timeout(PATIENCE, end).await.unwrap();
    assert_refused(Err::<(), _>(end), Code::Unavailable, "STOPPING");
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Speaks HTTP/2 as no client should.
pub struct Attacker {
    pub connection: TcpStream,
}

impl Attacker {
    pub async fn connect(addr: SocketAddr) -> Self {
        let mut connection = TcpStream::connect(addr).await.unwrap();
        connection.write_all(PREFACE).await.unwrap();
        let mut attacker = Self { connection };
        assert!(attacker.send(&frame(SETTINGS, 0, 0, &[])).await);
        attacker
    }

    /// Sends; `false` if the server has closed the connection.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        // Reads the bytes of the server, so that they do not block it.
        let mut received = [0; 8192];
        while let Ok(count) = self.connection.try_read(&mut received) {
            if count == 0 {
                return false;
            }
        }
        self.connection.write_all(bytes).await.is_ok()
    }
}

impl Attacker {
    /// Waits until the server has sent this number of frames of this kind.
    pub async fn wait_for_frames(&mut self, kind: u8, count: usize) {
        let mut received = Vec::new();
        let mut buffer = [0; 4096];
        let enough = async {
            while count_frames(&received, kind) < count {
                let read = self.connection.read(&mut buffer).await.unwrap();
                assert_ne!(read, 0, "the server has closed the connection");
                received.extend(&buffer[..read]);
            }
        };
        timeout(PATIENCE, enough).await.unwrap();
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn count_frames(bytes: &[u8], kind: u8) -> usize {
    let (mut rest, mut count) = (bytes, 0);
    while let [a, b, c, found, ..] = rest {
        count += usize::from(*found == kind);
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    count
}

/// The head of a call, in HPACK without its tables: `:method` POST, `:scheme`
/// http, `:path`, `:authority`, `content-type` and `te`.
fn head() -> Vec<u8> {
    let path = b"/account.v1.AccountService/CheckMembership";
    let mut head = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    head.extend(path);
    head.extend(b"\x01\x09localhost");
    head.extend(b"\x0f\x10\x10application/grpc");
    head.extend(b"\x00\x02te\x08trailers");
    head
}

/// Asserts that another client is served during and after an attack.
async fn is_harmless(attack: impl AsyncFnOnce(&mut Attacker)) {
    let (_backends, service) = Box::pin(start()).await;
    service.found_olivia_org().await;
    let mut attacker = Attacker::connect(service.addr).await;
    let others = async {
        for _ in 0..20 {
            assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Owner));
        }
    };
    let attack = timeout(PATIENCE, attack(&mut attacker));
    let (end, ()) = tokio::join!(attack, others);
    end.expect("the attack did not end");
    assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Owner));
}

#[tokio::test]
async fn thousands_of_calls_that_are_reset_at_once_end_their_connection() {
    is_harmless(async |attacker| {
        for stream in (1..).step_by(2) {
            let mut frames = frame(HEADERS, END_HEADERS, stream, &head());
            frames.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            if !attacker.send(&frames).await {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_endless_request_head_ends_its_connection() {
    is_harmless(async |attacker| {
        attacker.send(&frame(HEADERS, 0, 1, &head())).await;
        while attacker.send(&frame(CONTINUATION, 0, 1, &[0; 64])).await {}
    })
    .await;
}

#[tokio::test]
async fn thousands_of_pings_and_settings_do_not_affect_others() {
    is_harmless(async |attacker| {
        for _ in 0..10_000 {
            let mut frames = frame(PING, 0, 0, &[7; 8]);
            frames.extend(frame(SETTINGS, 0, 0, &[]));
            if !attacker.send(&frames).await {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn calls_that_never_send_their_message_time_out_and_do_not_starve_others() {
    let backends = Backends::start().await;
    let mut settings = backends.serve_settings();
    settings.server.calls_at_once = 16;
    // Calls have the same time limits as in production.
    let service = Replica::start_with(&settings, settings.cache.to_coherence()).await;
    service.found_olivia_org().await;
    let mut attacker = Attacker::connect(service.addr).await;
    for stream in (1..200).step_by(2) {
        assert!(
            attacker
                .send(&frame(HEADERS, END_HEADERS, stream, &head()))
                .await
        );
    }
    let others = async {
        for _ in 0..20 {
            assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Owner));
        }
    };
    tokio::join!(attacker.wait_for_frames(HEADERS, 100), others);
}

/// A client that reads no more of a response than its window permits.
pub struct Unwilling {
    addr: SocketAddr,
    send: h2::client::SendRequest<Bytes>,
}

impl Unwilling {
    /// Reads no byte of a response message.
    pub async fn connect(addr: SocketAddr) -> Self {
        Self::with_window(addr, 0).await
    }

    pub async fn with_window(addr: SocketAddr, window: u32) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        let mut client = h2::client::Builder::new();
        client
            .initial_window_size(window)
            .initial_connection_window_size((1 << 31) - 1);
        let (send, connection) = client.handshake::<_, Bytes>(stream).await.unwrap();
        tokio::spawn(connection);
        Self { addr, send }
    }

    /// Calls a method; fails once the connection is closed.
    pub async fn call(
        &mut self,
        method: &str,
        message: &impl prost::Message,
    ) -> Result<h2::client::ResponseFuture, h2::Error> {
        let message = message.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let framed = Bytes::from([&[0], &length[..], &message[..]].concat());
        let url = format!("http://{}/account.v1.AccountService/{method}", self.addr);
        let call = http::Request::post(url)
            .header("te", "trailers")
            .header("content-type", "application/grpc");
        let mut send = self.send.clone().ready().await?;
        let (response, mut body) = send.send_request(call.body(()).unwrap(), false)?;
        body.send_data(framed, true)?;
        Ok(response)
    }
}

#[tokio::test]
async fn responses_that_are_never_read_hold_no_slots() {
    const CALLS: usize = 100;
    let (_backends, service) = start_with(|server| server.calls_at_once = 16).await;
    service.found_olivia_org().await;
    let message = pb::GetUserRequest {
        username: OLIVIA.to_owned(),
        consistency: None,
    };
    let mut unwilling = Unwilling::connect(service.addr).await;
    let mut responses = Vec::new();
    for _ in 0..CALLS {
        let response = unwilling.call("GetUser", &message).await.unwrap();
        responses.push(timeout(PATIENCE, response).await.unwrap().unwrap());
    }
    assert_eq!(service.role_of(ORG, OLIVIA).await, Some(Role::Owner));
    for response in &mut responses {
        assert!(!response.body().is_end_stream());
        let none = futures_util::poll!(std::pin::pin!(response.body_mut().data()));
        assert!(none.is_pending(), "{none:?}");
    }
}

/// Reads that query the table directly.
#[derive(Debug, Clone, Copy)]
enum TableRead {
    Lookup,
    ListMembers,
    ListOrganizations,
    ListUsers,
}

impl TableRead {
    /// The operation of DynamoDB that comes first.
    fn operation(self) -> &'static str {
        match self {
            Self::Lookup => "GetItem",
            _ => "Query",
        }
    }

    async fn send(self, mut client: Client) -> Result<(), Status> {
        match self {
            Self::Lookup => {
                let request = pb::LookupUserRequest {
                    email: "nobody@example.com".to_owned(),
                    ..pb::LookupUserRequest::default()
                };
                client.lookup_user(request).await.map(drop)
            }
            Self::ListMembers => {
                let request = pb::ListOrganizationMembersRequest {
                    organization_name: ORG.to_owned(),
                    ..pb::ListOrganizationMembersRequest::default()
                };
                client.list_organization_members(request).await.map(drop)
            }
            Self::ListOrganizations => {
                let request = pb::ListUserOrganizationsRequest {
                    username: OLIVIA.to_owned(),
                    ..pb::ListUserOrganizationsRequest::default()
                };
                client.list_user_organizations(request).await.map(drop)
            }
            Self::ListUsers => {
                let request = pb::ListUsersRequest::default();
                client.list_users(request).await.map(drop)
            }
        }
    }
}

#[tokio::test]
async fn the_table_read_limit_covers_look_ups_and_lists() {
    const READS_AT_ONCE: u16 = 4;
    const CALLS: usize = 40;
    for read in [
        TableRead::Lookup,
        TableRead::ListMembers,
        TableRead::ListOrganizations,
        TableRead::ListUsers,
    ] {
        let backends = Backends::start().await;
        let mut settings = backends.serve_settings();
        settings.cache.table_reads_at_once = READS_AT_ONCE;
        let service = Replica::start(&settings).await;
        service.found_olivia_org().await;
        service.settle().await;
        let held =
            [(); READS_AT_ONCE as usize].map(|()| backends.dynamodb.hold(read.operation(), "", 0));
        let first = join_all((0..READS_AT_ONCE).map(|_| read.send(service.client.clone())));
        let crowd = async {
            for read in &held {
                read.reached().await;
            }
            backends.forget_calls();
            let crowd = (0..CALLS).map(|_| read.send(service.client.clone()));
            let crowd = join_all(crowd).await;
            let sent = backends.dynamodb.seen(read.operation()).len();
            drop(held);
            (crowd, sent)
        };
        let (first, (crowd, sent)) = tokio::join!(first, crowd);
        assert_eq!(sent, 0, "{read:?}");
        for refused in crowd {
            assert_refused(refused, Code::ResourceExhausted, "OVERLOADED");
        }
        for response in first {
            if let Err(status) = response {
                assert_eq!(status.code(), Code::NotFound, "{read:?} {status:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_change_whose_caller_has_left_keeps_its_slot_until_it_ends() {
    let (backends, service) = start_with(|server| server.calls_at_once = 1).await;
    service.create_user(OLIVIA).await.unwrap();
    let held = backends.dynamodb.hold("TransactWriteItems", MICHAEL, 0);
    let gone = {
        let mut client = caller(service.addr).await;
        let request = pb::CreateUserRequest {
            username: MICHAEL.to_owned(),
            ..pb::CreateUserRequest::default()
        };
        tokio::spawn(async move { client.create_user(request).await })
    };
    held.reached().await;
    gone.abort();
    gone.await.unwrap_err();
    // Its slot is not free yet, however long the next call waits.
    let refused = service.create_user("another").await;
    assert_refused(refused, Code::ResourceExhausted, "OVERLOADED");
    held.release();
    let served = async {
        while service.create_user("another").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, served).await.unwrap();
    service.get_user(MICHAEL).await.unwrap();
}
