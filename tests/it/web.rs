//! Web pages call the service by gRPC-Web, if their origin is listed.

use std::time::Duration;

use account_service::{
    auth::KeySource,
    proto::account_v1::{
        self as pb, CheckMembershipRequest, account_service_client::AccountServiceClient,
        change::Resource,
    },
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{StatusCode, Uri};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use prost::Message as _;
use reqwest::{Method, Response};
use tokio::time::timeout;
use tonic::{Code, body::Body};
use tonic_web::{GrpcWebCall, GrpcWebClientLayer, GrpcWebClientService};
use tower::Layer as _;

use crate::{
    callers::{Files, Signer, check, found, token_settings, with},
    harness::{Backends, PATIENCE, Replica, assert_refused, start},
    streams::{eventually, following},
};

const ORIGIN: &str = "https://console.example.com";
const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
const CHECK: &str = "account.v1.AccountService/CheckMembership";

/// A client that speaks gRPC-Web over HTTP/1.1.
type WebClient =
    AccountServiceClient<GrpcWebClientService<HttpClient<HttpConnector, GrpcWebCall<Body>>>>;

fn web_client(replica: &Replica) -> WebClient {
    let http = HttpClient::builder(TokioExecutor::new()).build_http();
    let origin: Uri = format!("http://{}", replica.addr).parse().unwrap();
    AccountServiceClient::with_origin(GrpcWebClientLayer::new().layer(http), origin)
}

/// A replica that pages of [`ORIGIN`] may call.
async fn open() -> (Backends, Replica) {
    let backends = Backends::start().await;
    let mut settings = backends.serve_settings();
    settings.server.web_origins = vec![ORIGIN.parse().unwrap()];
    let replica = Replica::start(&settings).await;
    (backends, replica)
}

/// A request to a path as a page sends it. Without `origin`, no page sends it.
async fn send(
    replica: &Replica,
    method: Method,
    path: &str,
    origin: Option<&str>,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Response {
    let url = format!("http://{}/{path}", replica.addr);
    let mut request = reqwest::Client::new().request(method, url).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(origin) = origin {
        request = request.header("origin", origin);
    }
    timeout(PATIENCE, request.send()).await.unwrap().unwrap()
}

const GRPC_WEB: (&str, &str) = ("content-type", "application/grpc-web+proto");

async fn post(replica: &Replica, origin: Option<&str>, body: Vec<u8>) -> Response {
    send(replica, Method::POST, CHECK, origin, &[GRPC_WEB], body).await
}

/// A frame of gRPC.
fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0], &length.to_be_bytes()[..], message].concat()
}

fn question() -> Vec<u8> {
    let request = CheckMembershipRequest {
        organization_name: ORG.to_owned(),
        username: MICHAEL.to_owned(),
        ..CheckMembershipRequest::default()
    };
    frame(&request.encode_to_vec())
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    let value = response.headers().get(name);
    value.map(|value| value.to_str().unwrap())
}

/// The status of a call: of the response's head, or of the trailers in its body.
async fn grpc_status(response: Response) -> i32 {
    assert_eq!(response.status(), StatusCode::OK);
    let status = if let Some(status) = header(&response, "grpc-status") {
        status.to_owned()
    } else {
        let body = response.bytes().await.unwrap();
        let text = String::from_utf8_lossy(&body);
        let (_, after) = text.rsplit_once("grpc-status:").unwrap();
        after.split("\r\n").next().unwrap().to_owned()
    };
    status.parse().unwrap()
}

#[tokio::test]
async fn pages_call_and_watch_over_http1_and_get_errors_with_details() {
    let backends = Backends::start().await;
    let mut settings = backends.serve_settings();
    settings.server.web_origins = vec![ORIGIN.parse().unwrap()];
    let replica = Box::pin(Replica::start_with(&settings, following())).await;
    replica.found_olivia_org().await;
    let mut page = web_client(&replica);
    let mut changes = None;
    eventually("the stream is followed", async || {
        let watched = page.watch_changes(pb::WatchChangesRequest::default()).await;
        changes = watched.ok().map(tonic::Response::into_inner);
        changes.is_some()
    })
    .await;
    let mut changes = changes.unwrap();

    let add = |username: &str| pb::AddUserToOrganizationRequest {
        organization_name: ORG.to_owned(),
        member_username: username.to_owned(),
        role: pb::Role::Admin.into(),
        adding_user: OLIVIA.to_owned(),
        ..pb::AddUserToOrganizationRequest::default()
    };
    let nobody = page.add_user_to_organization(add("nobody")).await;
    assert_refused(nobody, Code::NotFound, "USER_NOT_FOUND");
    page.add_user_to_organization(add(MICHAEL)).await.unwrap();
    let checked = page.check_membership(check()).await.unwrap().into_inner();
    assert!(checked.is_member);
    let added = async {
        loop {
            let response = changes.message().await.unwrap().unwrap();
            let memberships = response.changes.iter().filter_map(|change| {
                let Some(Resource::Membership(membership)) = &change.resource else {
                    return None;
                };
                membership.after.clone()
            });
            let names: Vec<_> = memberships.map(|it| it.member_username).collect();
            if names.contains(&MICHAEL.to_owned()) {
                return;
            }
        }
    };
    timeout(PATIENCE, added).await.unwrap();
}

#[tokio::test]
async fn grpc_calls_are_served_beside_those_of_pages() {
    let (_backends, replica) = open().await;
    replica.found_olivia_org().await;
    assert_eq!(replica.role_of(ORG, OLIVIA).await, Some(pb::Role::Owner));
}

#[tokio::test]
async fn a_preflight_permits_pages_of_listed_origins() {
    let (_backends, replica) = open().await;
    let preflight = [
        ("access-control-request-method", "POST"),
        (
            "access-control-request-headers",
            "authorization,content-type,grpc-timeout,x-grpc-web,x-user-agent",
        ),
    ];
    let options = |origin| send(&replica, Method::OPTIONS, CHECK, origin, &preflight, vec![]);
    let response = options(Some(ORIGIN)).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(
        header(&response, "access-control-allow-origin"),
        Some(ORIGIN)
    );
    assert_eq!(
        header(&response, "access-control-allow-methods"),
        Some("POST")
    );
    let headers = header(&response, "access-control-allow-headers").unwrap();
    for name in preflight[1].1.split(',') {
        assert!(headers.split(',').any(|it| it == name), "{name}: {headers}");
    }
    // A browser sends no cookies and no client certificates.
    assert_eq!(header(&response, "access-control-allow-credentials"), None);
    for origin in [
        "https://evil.example.com",
        "https://console.example.com.evil.example",
        "http://console.example.com",
        "https://console.example.com:8443",
        "null",
    ] {
        let response = options(Some(origin)).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{origin}");
        assert_eq!(header(&response, "access-control-allow-origin"), None);
    }
}

#[tokio::test]
async fn a_call_of_a_page_of_another_origin_is_refused_also_without_a_preflight() {
    let (_backends, replica) = open().await;
    replica.found_olivia_org().await;
    let response = post(&replica, Some(ORIGIN), question()).await;
    assert_eq!(
        header(&response, "access-control-allow-origin"),
        Some(ORIGIN)
    );
    let exposed = header(&response, "access-control-expose-headers").unwrap();
    assert!(exposed.contains("grpc-status-details-bin"), "{exposed}");
    assert_eq!(grpc_status(response).await, 0);
    // As a page whose host name resolves to the service's address sends it.
    let own_address = format!("http://{}", replica.addr);
    for origin in ["https://evil.example.com", "null", "", &own_address] {
        let response = post(&replica, Some(origin), question()).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{origin:?}");
    }
    let two = [GRPC_WEB, ("origin", ORIGIN)];
    let evil = Some("https://evil.example.com");
    let response = send(&replica, Method::POST, CHECK, evil, &two, question()).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    // A program sends no origin.
    let response = post(&replica, None, question()).await;
    assert_eq!(grpc_status(response).await, 0);
}

#[tokio::test]
async fn pages_need_a_token_as_every_caller() {
    let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
    found(&backends).await;
    let keys = KeySource::File(files.write("keys.json", &signer.key_set()));
    let mut settings = backends.serve_settings();
    settings.server.callers = token_settings(&files, keys);
    settings.server.web_origins = vec![ORIGIN.parse().unwrap()];
    let replica = Replica::start(&settings).await;
    let mut page = web_client(&replica);
    let unknown = page.check_membership(check()).await;
    assert_refused(unknown, Code::Unauthenticated, "NO_CREDENTIALS");
    let token = signer.token(OLIVIA);
    page.check_membership(with(&token, check())).await.unwrap();
    let get = pb::GetUserRequest {
        username: OLIVIA.to_owned(),
        ..pb::GetUserRequest::default()
    };
    let refused = page.get_user(with(&token, get)).await;
    assert_refused(refused, Code::PermissionDenied, "METHOD_NOT_GRANTED");
}

#[tokio::test]
async fn text_of_grpc_web_is_served() {
    let (_backends, replica) = open().await;
    replica.found_olivia_org().await;
    let text = [
        ("content-type", "application/grpc-web-text"),
        ("accept", "application/grpc-web-text"),
    ];
    let body = BASE64_STANDARD.encode(question()).into_bytes();
    let response = send(&replica, Method::POST, CHECK, Some(ORIGIN), &text, body).await;
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.text().await.unwrap();
    // Each frame is encoded, with padding of its own.
    let decoded: Vec<u8> = body
        .split_inclusive('=')
        .collect::<String>()
        .as_bytes()
        .chunks(4)
        .flat_map(|quantum| BASE64_STANDARD.decode(quantum).unwrap())
        .collect();
    let text = String::from_utf8_lossy(&decoded).into_owned();
    assert!(text.contains("grpc-status:0"), "{text:?}");
}

#[tokio::test]
async fn malformed_requests_of_pages_are_never_internal_errors() {
    let (_backends, replica) = open().await;
    let question = question();
    let truncated = question[..question.len() - 1].to_vec();
    let bodies = [
        vec![],
        vec![0],
        truncated,
        vec![0xff; 64],
        [&[1], &question[1..]].concat(),
        [&[0, 0xff, 0xff, 0xff, 0xff], &question[5..]].concat(),
        [&[0x80, 0, 0, 0, 5][..], b"a: b\r"].concat(),
        [question.clone(), question.clone()].concat(),
        frame(b"\xff\xff"),
    ];
    for body in bodies {
        for kind in ["application/grpc-web+proto", "application/grpc-web-text"] {
            for is_text in [false, true] {
                let kind = [("content-type", kind)];
                let body = if is_text {
                    BASE64_STANDARD.encode(&body).into_bytes()
                } else {
                    body.clone()
                };
                let shown = format!("{kind:?} {body:?}");
                let response = send(&replica, Method::POST, CHECK, Some(ORIGIN), &kind, body).await;
                let status = Code::from(grpc_status(response).await);
                assert!(
                    !matches!(status, Code::Internal | Code::Unknown),
                    "{status:?}: {shown}"
                );
            }
        }
    }
    for (method, path, kind, expected) in [
        (Method::GET, CHECK, "application/grpc-web", 405),
        (Method::POST, CHECK, "application/json", 400),
        (Method::POST, CHECK, "text/plain", 400),
        (Method::GET, "", "text/html", 400),
    ] {
        let kind = [("content-type", kind)];
        let response = send(
            &replica,
            method,
            path,
            Some(ORIGIN),
            &kind,
            question.clone(),
        )
        .await;
        assert_eq!(response.status().as_u16(), expected, "{kind:?}");
    }
    let unknown = "account.v1.AccountService/NoSuchMethod";
    let response = send(
        &replica,
        Method::POST,
        unknown,
        Some(ORIGIN),
        &[GRPC_WEB],
        question,
    )
    .await;
    assert_eq!(grpc_status(response).await, i32::from(Code::Unimplemented));
}

#[tokio::test]
async fn without_listed_origins_there_is_no_http1() {
    let (_backends, replica) = start().await;
    let url = format!("http://{}/{CHECK}", replica.addr);
    let request = reqwest::Client::new()
        .post(url)
        .header(GRPC_WEB.0, GRPC_WEB.1);
    let sent = timeout(PATIENCE, request.body(question()).send()).await;
    assert!(sent.unwrap().is_err());
    // By HTTP/2, the content type is refused.
    let http2 = reqwest::Client::builder().http2_prior_knowledge();
    let url = format!("http://{}/{CHECK}", replica.addr);
    let request = http2
        .build()
        .unwrap()
        .post(url)
        .header(GRPC_WEB.0, GRPC_WEB.1);
    let response = request.body(question()).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_idle_connections_of_pages() {
    let (_backends, mut replica) = open().await;
    replica.found_olivia_org().await;
    let mut page = web_client(&replica);
    page.check_membership(check()).await.unwrap();
    let addr = replica.addr;
    replica.stop();
    eventually("the service has stopped", async || {
        tokio::net::TcpStream::connect(addr).await.is_err()
    })
    .await;
    let stopped = timeout(Duration::from_secs(60), page.check_membership(check())).await;
    stopped.unwrap().unwrap_err();
}
