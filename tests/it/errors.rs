//! Bad input: each case gets a precise status with details, and the server keeps working.

use std::time::Duration;

use account_service::{
    grpc::Reason,
    proto::account_v1::{self as pb, Role},
};
use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::{
    Code, Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::{
    harness::{Backends, Replica, assert_refused, script::error_body, start},
    streams::eventually,
};

/// Sends and receives bytes unchanged.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, bytes: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

async fn send_raw(service: &Replica, path: &'static str, body: Bytes) -> Result<Bytes, Status> {
    let mut client = tonic::client::Grpc::new(service.channel.clone());
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(path);
    let reply = client.unary(Request::new(body), path, Raw).await?;
    Ok(reply.into_inner())
}

const CHECK: &str = "/account.v1.AccountService/CheckMembership";

#[tokio::test]
async fn invalid_names_are_reported_by_the_path_of_their_field() {
    let (_backends, service) = start().await;
    let too_long = "x".repeat(257);
    let bad = ["", "a\u{0}b", "a\nb", "a\u{7f}", "\u{85}", &too_long];
    for name in bad {
        for (result, field) in [
            (service.create_user(name).await.map(drop), "username"),
            (service.get_user(name).await.map(drop), "username"),
            (service.delete_user(name).await.map(drop), "username"),
            (
                service.create_organization(name, "u").await.map(drop),
                "organization_name",
            ),
            (
                service.create_organization("o", name).await.map(drop),
                "founding_user",
            ),
            (
                service.get_organization(name).await.map(drop),
                "organization_name",
            ),
            (
                service.add(name, "u", Role::Member, "a").await.map(drop),
                "organization_name",
            ),
            (
                service.add("o", name, Role::Member, "a").await.map(drop),
                "member_username",
            ),
            (
                service.add("o", "u", Role::Member, name).await.map(drop),
                "adding_user",
            ),
            (
                service.get_membership("o", name).await.map(drop),
                "member_username",
            ),
            (
                service
                    .change_role("o", "u", Role::Member, name)
                    .await
                    .map(drop),
                "acting_user",
            ),
            (
                service.remove("o", "u", name).await.map(drop),
                "acting_user",
            ),
            (
                service.check(name, "u").await.map(drop),
                "organization_name",
            ),
            (service.check("o", name).await.map(drop), "username"),
        ] {
            assert_invalid_field(result, field);
        }
    }
}

#[track_caller]
fn assert_invalid_field(result: Result<(), Status>, field: &str) {
    let details = assert_refused(result, Code::InvalidArgument, "INVALID_FIELD");
    let violations = &details.bad_request().unwrap().field_violations;
    assert_eq!(violations.len(), 1);
    assert_eq!(violations[0].field, field);
    assert!(!violations[0].description.is_empty());
}

#[tokio::test]
async fn the_message_contains_the_name_that_is_taken_or_missing() {
    let (_backends, service) = start().await;
    service.create_user("oliviaowner").await.unwrap();
    let taken = service.create_user("oliviaowner").await.unwrap_err();
    assert_eq!(taken.message(), r#"user "oliviaowner" exists already"#);
    let missing = service.get_user("nobody").await.unwrap_err();
    assert_eq!(missing.message(), r#"user "nobody" does not exist"#);
}

#[tokio::test]
async fn the_rules_for_new_names_are_stricter_than_for_names_in_the_table() {
    let (_backends, service) = start().await;
    for name in [
        "OliviaOwner",
        "-olivia",
        "olivia-",
        "olivia@x",
        &"x".repeat(65),
    ] {
        assert_invalid_field(service.create_user(name).await.map(drop), "username");
        assert_refused(
            service.get_user(name).await,
            Code::NotFound,
            "USER_NOT_FOUND",
        );
    }
    let request = pb::CreateUserRequest {
        username: "olivia".to_owned(),
        first_name: "x".repeat(257),
        last_name: String::new(),
        ..pb::CreateUserRequest::default()
    };
    let created = service.client.clone().create_user(request).await;
    assert_invalid_field(created.map(drop), "first_name");
    let request = pb::CreateUserRequest {
        username: "olivia".to_owned(),
        first_name: "日本 # /".to_owned(),
        last_name: "\u{1b}[31m".to_owned(),
        ..pb::CreateUserRequest::default()
    };
    let created = service.client.clone().create_user(request).await;
    assert_invalid_field(created.map(drop), "last_name");
}

#[tokio::test]
async fn roles_that_are_unset_or_unknown_are_rejected() {
    let (_backends, service) = start().await;
    for role in [0, 4, -1, i32::MAX] {
        let request = pb::AddUserToOrganizationRequest {
            organization_name: "o".to_owned(),
            member_username: "u".to_owned(),
            role,
            adding_user: "a".to_owned(),
            ..pb::AddUserToOrganizationRequest::default()
        };
        let added = service
            .client
            .clone()
            .add_user_to_organization(request)
            .await;
        assert_invalid_field(added.map(drop), "role");
        let request = pb::ChangeMemberRoleRequest {
            organization_name: "o".to_owned(),
            member_username: "u".to_owned(),
            role,
            acting_user: "a".to_owned(),
            ..pb::ChangeMemberRoleRequest::default()
        };
        let changed = service.client.clone().change_member_role(request).await;
        assert_invalid_field(changed.map(drop), "role");
    }
    let request = pb::CheckMembershipRequest {
        organization_name: "o".to_owned(),
        username: "u".to_owned(),
        minimum_role: 9,
        consistency: None,
        ..pb::CheckMembershipRequest::default()
    };
    let checked = service.client.clone().check_membership(request).await;
    assert_invalid_field(checked.map(drop), "minimum_role");
}

#[tokio::test]
async fn batches_are_limited_and_the_field_path_names_the_check() {
    let (_backends, service) = start().await;
    let check = |username: &str| pb::MembershipCheck {
        organization_name: "o".to_owned(),
        username: username.to_owned(),
        ..pb::MembershipCheck::default()
    };
    for (checks, field) in [
        (vec![], "checks"),
        (vec![check("u"); 1001], "checks"),
        (vec![check("u"), check("")], "checks[1].username"),
    ] {
        let request = pb::BatchCheckMembershipsRequest {
            checks,
            consistency: None,
        };
        let checked = service
            .client
            .clone()
            .batch_check_memberships(request)
            .await;
        assert_invalid_field(checked.map(drop), field);
    }
}

#[tokio::test]
async fn malformed_messages_are_rejected_and_the_connection_stays_open() {
    let (_backends, service) = start().await;
    for body in [
        Bytes::from_static(b"\xff\xff\xff\xff"),
        Bytes::from_static(b"no protobuf at all"),
        Bytes::from_static(b"\x0a\x05ab"),
        Bytes::from_static(b"\x0a\x02\xff\xfe"),
    ] {
        let response = send_raw(&service, CHECK, body).await;
        assert_refused(response, Code::InvalidArgument, "MALFORMED_MESSAGE");
    }
    let response = send_raw(&service, CHECK, Bytes::from(vec![0; 5 * 1024 * 1024])).await;
    assert_refused(response, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    let response = send_raw(&service, CHECK, Bytes::new()).await;
    assert_refused(response, Code::InvalidArgument, "INVALID_FIELD");
    for path in ["/account.v1.AccountService/NoSuch", "/no.Such/Method"] {
        let response = send_raw(&service, path, Bytes::new()).await;
        assert_refused(response, Code::Unimplemented, "UNKNOWN_METHOD");
    }
    service.create_user("olivia").await.unwrap();
}

#[tokio::test]
async fn errors_repeat_parts_of_a_request_within_bounds() {
    const LONG: usize = 5000;
    let (_backends, service) = start().await;
    let mut client = service.client.clone();
    let long = "x".repeat(LONG);
    let update = pb::UpdateUserRequest {
        user: Some(pb::User {
            username: "olivia".to_owned(),
            ..pb::User::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec![long.clone()],
        }),
        ..pb::UpdateUserRequest::default()
    };
    let create = |labels: (String, String)| pb::CreateUserRequest {
        username: "olivia".to_owned(),
        labels: [labels].into(),
        ..pb::CreateUserRequest::default()
    };
    let refused = [
        client.update_user(update).await.map(drop),
        client
            .create_user(create((long.clone(), String::new())))
            .await
            .map(drop),
        client
            .create_user(create(("Łong".repeat(LONG / 5), "x".to_owned())))
            .await
            .map(drop),
        client
            .create_user(create(("k".to_owned(), long)))
            .await
            .map(drop),
        send_raw(&service, CHECK, Bytes::from(vec![0xff; LONG]))
            .await
            .map(drop),
    ];
    for refused in refused {
        let status = refused.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let size = status.message().len() + status.details().len();
        assert!(size < 2048, "{size}");
    }
}

/// Posts this body with this header.
async fn post(
    service: &Replica,
    header: (&str, &str),
    body: &'static [u8],
) -> http::Response<h2::RecvStream> {
    let stream = tokio::net::TcpStream::connect(service.addr).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{}{CHECK}", service.addr))
        .header("te", "trailers")
        .header(header.0, header.1);
    let request = match header.0 {
        "content-type" => request,
        _ => request.header("content-type", "application/grpc"),
    };
    let mut send = send.ready().await.unwrap();
    let (response, mut stream) = send.send_request(request.body(()).unwrap(), false).unwrap();
    stream.send_data(Bytes::from_static(body), true).unwrap();
    response.await.unwrap()
}

#[tokio::test]
async fn a_compressed_request_is_rejected_with_its_own_reason() {
    let (_backends, service) = start().await;
    let response = post(&service, ("grpc-encoding", "gzip"), b"\x01\0\0\0\0").await;
    let headers = response.headers();
    assert_eq!(headers["grpc-accept-encoding"], "identity");
    let status = Status::from_header_map(headers).unwrap();
    assert_refused::<()>(Err(status), Code::Unimplemented, "UNSUPPORTED_COMPRESSION");
}

#[tokio::test]
async fn requests_without_a_grpc_content_type_are_rejected() {
    let (_backends, service) = start().await;
    for (kind, code) in [
        ("application/grpc", 200),
        ("application/grpc+proto", 200),
        ("application/grpc;charset=utf-8", 200),
        ("text/plain", 415),
        ("application/json", 415),
        ("application/grpc-web", 415),
    ] {
        let response = post(&service, ("content-type", kind), b"\0\0\0\0\0").await;
        assert_eq!(response.status().as_u16(), code, "{kind}");
    }
}

#[tokio::test]
async fn a_call_fails_with_deadline_exceeded_at_its_deadline() {
    let (backends, service) = start().await;
    backends
        .dynamodb
        .delay("GetItem", std::time::Duration::from_secs(5));
    let mut request = Request::new(pb::GetUserRequest {
        username: "olivia".to_owned(),
        consistency: None,
    });
    request.set_timeout(std::time::Duration::from_secs(1));
    let response = service.client.clone().get_user(request).await;
    assert_eq!(response.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn failures_of_the_table_are_reported_with_their_reasons() {
    let (backends, service) = start().await;
    backends.dynamodb.refuse("GetItem", "", 0, usize::MAX);
    let details = assert_refused(
        service.get_user("olivia").await,
        Code::Unavailable,
        "STORE_UNAVAILABLE",
    );
    assert!(details.retry_info().is_some());
    backends.dynamodb.clear_rules();
    let throttled = error_body("ProvisionedThroughputExceededException");
    backends
        .dynamodb
        .answer("GetItem", usize::MAX, 400, &throttled);
    let details = assert_refused(
        service.get_user("olivia").await,
        Code::ResourceExhausted,
        "STORE_THROTTLED",
    );
    assert!(details.retry_info().is_some());
    backends.dynamodb.clear_rules();
    backends
        .dynamodb
        .refuse("TransactWriteItems", "", 0, usize::MAX);
    assert_refused(
        service.create_user("olivia").await,
        Code::Unavailable,
        "OUTCOME_UNKNOWN",
    );
    backends.dynamodb.clear_rules();
    service.create_user("olivia").await.unwrap();
}

#[tokio::test]
async fn a_rejection_after_a_possibly_applied_attempt_is_an_unknown_outcome() {
    let (backends, service) = start().await;
    let throttled = error_body("ThrottlingException");
    let transactions = &backends.dynamodb;
    transactions.answer("TransactWriteItems", usize::MAX, 400, &throttled);
    let refused = service.create_user("olivia").await;
    assert_refused(refused, Code::ResourceExhausted, "STORE_THROTTLED");

    transactions.clear_rules();
    transactions.lose_reply("TransactWriteItems", "");
    transactions.answer("TransactWriteItems", usize::MAX, 400, &throttled);
    let refused = service.create_user("olivia").await;
    assert_refused(refused, Code::Unavailable, "OUTCOME_UNKNOWN");
    service.get_user("olivia").await.unwrap();
}

#[tokio::test]
async fn an_abandoned_attempt_that_is_applied_later_is_an_unknown_outcome() {
    let (backends, service) = start().await;
    let table = &backends.dynamodb;
    let late = table.hold("TransactWriteItems", "USER#olivia", 0);
    let others = async {
        late.reached().await;
        service.create_user("olivia").await.unwrap();
    };
    // The second attempt finds the name taken.
    let (refused, ()) = tokio::join!(service.create_user("olivia"), others);
    assert_refused(refused, Code::Unavailable, "OUTCOME_UNKNOWN");
    service.delete_user("olivia").await.unwrap();
    late.release();
    eventually("the first attempt has been applied", async || {
        service.get_user("olivia").await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn the_attempts_of_a_change_fit_into_two_seconds() {
    let backends = Backends::start().await;
    for (attempt_timeout, attempts) in [(50, 3), (1500, 2), (2000, 1)] {
        let mut settings = backends.serve_settings();
        settings.backends.dynamodb_attempt_timeout_ms = Duration::from_millis(attempt_timeout);
        let service = Replica::start(&settings).await;
        let table = &backends.dynamodb;
        backends.forget_calls();
        table.delay("TransactWriteItems", Duration::from_secs(60));
        let refused = service.create_user("olivia").await;
        assert_refused(refused, Code::Unavailable, "OUTCOME_UNKNOWN");
        assert_eq!(table.seen("TransactWriteItems").len(), attempts);
        table.clear_rules();
    }
}

#[tokio::test]
async fn keys_that_the_table_leaves_unprocessed_are_unknown_and_not_absent() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    backends.flush_cache().await;
    backends.forget_calls();
    let table = backends.serve_settings().backends.table_name;
    let key = |pk: &str, sk: &str| format!(r#"{{"PK":{{"S":"{pk}"}},"SK":{{"S":"{sk}"}}}}"#);
    let keys = [
        key("USER#oliviaowner", "USER#oliviaowner"),
        key("ORG#olivia-org", "ORG#olivia-org"),
        key("ORGMEMBERS#olivia-org", "MEMBER#oliviaowner"),
    ];
    let keys = keys.join(",");
    let unprocessed =
        format!(r#"{{"Responses":{{}},"UnprocessedKeys":{{"{table}":{{"Keys":[{keys}]}}}}}}"#);
    backends
        .dynamodb
        .answer("BatchGetItem", 2, 200, &unprocessed);
    let role = service.role_of("olivia-org", "oliviaowner").await;
    assert_eq!(role, Some(Role::Owner));
    let reads = backends.dynamodb.seen("BatchGetItem");
    assert_eq!(reads.len(), 3);
    for read in reads {
        assert!(read.contains(r#""ConsistentRead":true"#), "{read}");
    }

    backends.flush_cache().await;
    backends
        .dynamodb
        .answer("BatchGetItem", usize::MAX, 200, &unprocessed);
    let read = service.check("olivia-org", "oliviaowner").await;
    assert_refused(read, Code::ResourceExhausted, "STORE_THROTTLED");
}

/// The retry pushback for gRPC libraries, and whether the details have a retry delay.
fn retry_of<T: std::fmt::Debug>(refused: &Result<T, tonic::Status>) -> (Option<&str>, bool) {
    use tonic_types::StatusExt as _;
    let status = refused.as_ref().unwrap_err();
    let pushback = status.metadata().get("grpc-retry-pushback-ms");
    let pushback = pushback.map(|it| it.to_str().unwrap());
    (pushback, status.get_details_retry_info().is_some())
}

fn new_user(request_id: &str) -> pb::CreateUserRequest {
    pb::CreateUserRequest {
        username: "olivia".to_owned(),
        request_id: request_id.to_owned(),
        ..pb::CreateUserRequest::default()
    }
}

#[tokio::test]
async fn a_possibly_applied_write_is_retryable_only_with_a_request_id() {
    let (backends, service) = start().await;
    let request_id = uuid::Uuid::new_v4().to_string();
    let mut client = service.client.clone();
    for (request_id, retry) in [
        ("", (Some("-1"), false)),
        (request_id.as_str(), (Some("1000"), true)),
    ] {
        backends
            .dynamodb
            .refuse("TransactWriteItems", "", 0, usize::MAX);
        let refused = client.create_user(new_user(request_id)).await;
        assert_eq!(retry_of(&refused), retry);
        assert_refused(refused, Code::Unavailable, "OUTCOME_UNKNOWN");
        backends.dynamodb.clear_rules();

        // The write is applied, but can neither be confirmed nor leave the cache.
        let commit = backends.dynamodb.hold("TransactWriteItems", "olivia", 0);
        let mut request = tonic::Request::new(new_user(request_id));
        request.set_timeout(Duration::from_secs(8));
        let (refused, ()) = tokio::join!(client.create_user(request), async {
            commit.reached().await;
            backends.momento.refuse("SetIf", "", 0, usize::MAX);
            backends.dynamodb.refuse("PutItem", "", 0, usize::MAX);
            commit.release();
        });
        backends.momento.clear_rules();
        backends.dynamodb.clear_rules();
        assert_eq!(retry_of(&refused), retry);
        assert_refused(refused, Code::Unavailable, "APPLIED_NOT_CONFIRMED");
        service.settle().await;
        if request_id.is_empty() {
            service.delete_user("olivia").await.unwrap();
        }
    }
    // The request, sent again, returns its outcome.
    let response = client.create_user(new_user(&request_id)).await.unwrap();
    assert_eq!(response.into_inner().user.unwrap().username, "olivia");

    // A write that was certainly not applied may be retried in any case.
    let throttled = error_body("ThrottlingException");
    backends
        .dynamodb
        .answer("TransactWriteItems", usize::MAX, 400, &throttled);
    let refused = service.create_user("michael").await;
    assert_eq!(retry_of(&refused), (Some("1000"), true));
    assert_refused(refused, Code::ResourceExhausted, "STORE_THROTTLED");
}

/// A program that creates a user by a gRPC library with a service configuration:
/// `tests/clients/python/retries.py`.
const RETRY_CLIENT: &str = "RETRY_CLIENT";

#[tokio::test]
#[ignore = "needs a client of another language: tests/clients/run"]
async fn a_grpc_library_retries_a_write_of_unknown_outcome_only_with_a_request_id() {
    let program = std::env::var(RETRY_CLIENT).unwrap();
    let id = uuid::Uuid::new_v4().to_string();
    for (config, request_id, expected) in [
        ("service_config.json", "", "failed UNAVAILABLE"),
        ("service_config_request_id.json", "", "failed UNAVAILABLE"),
        ("service_config_request_id.json", &id, "created olivia"),
    ] {
        let mut output = created_by(&program, config, request_id).await;
        for _ in 0..2 {
            // On a busy machine, the deadline of the settings, 3 s, may pass before the retry.
            if output == "failed DEADLINE_EXCEEDED" {
                output = created_by(&program, config, request_id).await;
            }
        }
        assert_eq!(output, expected, "{config} {request_id}");
    }
}

/// The output of a client that creates a user. Its first attempt is applied, and the response is lost.
async fn created_by(program: &str, config: &str, request_id: &str) -> String {
    let (backends, service) = Box::pin(start()).await;
    let transactions = &backends.dynamodb;
    transactions.lose_reply("TransactWriteItems", "");
    let throttled = error_body("ThrottlingException");
    transactions.answer("TransactWriteItems", 2, 400, &throttled);
    let mut words = program.split_whitespace();
    let mut client = tokio::process::Command::new(words.next().unwrap());
    client.args(words).arg(format!("clients/{config}"));
    client.args([&service.addr.to_string(), "olivia"]);
    if !request_id.is_empty() {
        client.arg(request_id);
    }
    let output = client.kill_on_drop(true).output().await.unwrap();
    service.get_user("olivia").await.unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_transaction_that_is_in_progress_may_still_be_applied() {
    let (backends, service) = start().await;
    let in_progress = error_body("TransactionInProgressException");
    backends
        .dynamodb
        .answer("TransactWriteItems", usize::MAX, 400, &in_progress);
    let refused = service.create_user("olivia").await;
    assert_refused(refused, Code::Unavailable, "OUTCOME_UNKNOWN");
    // An earlier attempt that certainly had no effect does not change this.
    backends.dynamodb.clear_rules();
    let throttled = error_body("ThrottlingException");
    backends
        .dynamodb
        .answer("TransactWriteItems", 1, 400, &throttled);
    backends
        .dynamodb
        .answer("TransactWriteItems", usize::MAX, 400, &in_progress);
    let refused = service.create_user("olivia").await;
    assert_refused(refused, Code::Unavailable, "OUTCOME_UNKNOWN");
}

#[test]
fn the_service_configuration_retries_only_reads_and_writes_with_a_request_id() {
    let config = |name: &str| -> serde_json::Value {
        let file = format!("{}/clients/{name}", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
    };
    let retried = |config: &serde_json::Value| {
        let mut retried = Vec::new();
        for method in config["methodConfig"].as_array().unwrap() {
            if method.get("retryPolicy").is_some() {
                let names = method["name"].as_array().unwrap().iter();
                retried.extend(names.map(|name| name["method"].as_str().map(str::to_owned)));
            }
        }
        retried
    };
    let contract = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/proto/account/v1/account_service.proto"
    ));
    let contract = contract.unwrap();
    let rpcs = contract.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("  rpc ")?.split_once('(')?;
        Some((name.to_owned(), rest.split(')').next()?.to_owned()))
    });
    // Only requests of writes have a request id.
    let has_id = |message: &str| {
        let begin = contract.find(&format!("message {message} {{")).unwrap();
        let end = contract[begin..].find("\n}\n").unwrap();
        contract[begin..begin + end].contains(" request_id = ")
    };
    let reads = rpcs.filter(|(name, request)| name != "WatchChanges" && !has_id(request));
    let mut reads: Vec<_> = reads.map(|(name, _)| Some(name)).collect();
    reads.sort();
    let mut safe = retried(&config("service_config.json"));
    safe.sort();
    assert_eq!(safe, reads);
    // For clients that send a request id with every write: all methods are retried.
    assert_eq!(retried(&config("service_config_request_id.json")), [None]);
}

#[tokio::test]
async fn every_read_past_the_indexes_is_strongly_consistent() {
    let backends = Backends::start().await;
    let service =
        Replica::start_with(&backends.serve_settings(), crate::streams::following()).await;
    backends.forget_calls();
    let mut watch = crate::changes::Watch::begin(&service.client).await;
    service.found_olivia_org_with_michael().await;
    let refused = service
        .remove("olivia-org", "oliviaowner", "oliviaowner")
        .await;
    assert_refused(refused, Code::FailedPrecondition, "LAST_OWNER");
    let request = pb::ListOrganizationMembersRequest {
        organization_name: "olivia-org".to_owned(),
        ..pb::ListOrganizationMembersRequest::default()
    };
    let mut client = service.client.clone();
    client.list_organization_members(request).await.unwrap();
    client
        .list_users(pb::ListUsersRequest::default())
        .await
        .unwrap();
    let look_up = pb::LookupUserRequest {
        email: "nobody@example.com".to_owned(),
        ..pb::LookupUserRequest::default()
    };
    client.lookup_user(look_up).await.unwrap_err();
    watch.changes(4).await.unwrap();
    let calls = backends.dynamodb.all_seen();
    let mut reads = std::collections::BTreeMap::<_, usize>::new();
    for (call, about) in &calls {
        let is_read = ["GetItem", "BatchGetItem", "Query"].contains(&call.as_str());
        // Index queries cannot be strongly consistent.
        if is_read && !about.contains("\"IndexName\"") {
            assert!(about.contains(r#""ConsistentRead":true"#), "{call} {about}");
            *reads.entry(call.as_str()).or_default() += 1;
        }
    }
    assert_eq!(reads.len(), 3, "{reads:?}");
}

#[test]
fn the_documentation_lists_every_reason() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/errors.md"));
    let page = page.unwrap();
    for reason in Reason::ALL {
        let row = format!("| `{}` |", reason.as_str());
        assert!(page.contains(&row), "{row}");
    }
}
