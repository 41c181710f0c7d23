//! Envoy's external authorization API, called as Envoy calls it. `tests/envoy` runs Envoy itself.

use std::collections::{BTreeMap, HashMap};

use account_service::{
    auth::KeySource,
    boot,
    proto::{
        account_v1::Role,
        envoy_auth_v3::{
            AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderMap,
            HeaderValue, HeaderValueOption, Metadata, OkHttpResponse,
            attribute_context::{HttpRequest, Peer, Request as EnvoyRequest},
            authorization_client::AuthorizationClient,
            check_response::HttpResponse,
        },
    },
};
use prost_types::{Struct, Value, value::Kind};
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    callers::{Files, MICHAEL, OLIVIA, ORG, Signer, token_settings, with},
    harness::{Backends, Replica, assert_refused},
    streams::eventually,
};

const HANNAH: &str = "hannah";

/// The routes of the tests.
fn routes() -> serde_json::Value {
    let jwt = json!({"jwt_authn": {"payload": "jwt", "claim": "sub"}});
    let path = json!({"path": "/organizations/{organization}/**"});
    json!({"routes": {
        "read": {"subject": jwt, "organization": path, "minimum_role": "ROLE_MEMBER"},
        "write": {"subject": jwt, "organization": path, "minimum_role": "ROLE_ADMIN"},
        "users": {"subject": {"jwt_authn": {"payload": "jwt", "claim": "sub",
            "required": {"token_use": "user"}}}, "organization": path, "minimum_role": "ROLE_MEMBER"},
        "hidden": {"subject": jwt, "organization": path, "minimum_role": "ROLE_MEMBER",
            "statuses": {"not_a_member": 404}},
        "planned": {"subject": jwt, "organization": path, "minimum_role": "ROLE_OWNER",
            "dry_run": true},
        "certified": {"subject": {"certificate": "spiffe://example.org/users/{user}"},
            "organization": {"host": "{organization}.example.com"}, "minimum_role": "ROLE_MEMBER"},
        "trusting": {"subject": {"header": "x-user"}, "organization": {"header": "x-organization"},
            "minimum_role": "ROLE_MEMBER"},
    }})
}

/// A service that decides by [`routes`], with Olivia as the Owner and Michael as a Member.
struct Authorizing {
    backends: Backends,
    service: Replica,
    files: Files,
}

impl Authorizing {
    async fn start() -> Self {
        let (backends, files) = (Backends::start().await, Files::new());
        let mut settings = backends.serve_settings();
        settings.server.callers.ext_authz = Some(files.write("routes.json", &routes().to_string()));
        let service = Replica::start(&settings).await;
        service.found_olivia_org().await;
        service.create_user(HANNAH).await.unwrap();
        service
            .add(ORG, MICHAEL, Role::Member, OLIVIA)
            .await
            .unwrap();
        Self {
            backends,
            service,
            files,
        }
    }

    async fn decide(&self, request: CheckRequest) -> Decision {
        decide(&self.service, request).await.unwrap()
    }
}

async fn decide(service: &Replica, request: CheckRequest) -> Result<Decision, Status> {
    let mut client = AuthorizationClient::new(service.channel.clone());
    let response = client.check(request).await?.into_inner();
    Ok(Decision::of(response))
}

/// A decision.
#[derive(Debug, PartialEq)]
enum Decision {
    /// With the headers to set, and those to remove.
    Allowed(BTreeMap<String, String>, Vec<String>),
    /// With the HTTP status, and the reason.
    Denied(i32, String),
}

impl Decision {
    fn of(response: CheckResponse) -> Self {
        let code = response.status.unwrap().code;
        match response.http_response.unwrap() {
            HttpResponse::OkResponse(OkHttpResponse {
                headers,
                headers_to_remove,
            }) => {
                assert_eq!(code, Code::Ok as i32);
                Self::Allowed(by_name(&headers), headers_to_remove)
            }
            HttpResponse::DeniedResponse(DeniedHttpResponse {
                status,
                headers,
                body,
            }) => {
                assert_ne!(code, Code::Ok as i32);
                assert_eq!(by_name(&headers)["content-type"], "application/json");
                let body: serde_json::Value = serde_json::from_str(&body).unwrap();
                assert_eq!(body["code"], code);
                let reason = body["details"][0]["reason"].as_str().unwrap();
                Self::Denied(status.unwrap().code, reason.to_owned())
            }
        }
    }
}

fn by_name(headers: &[HeaderValueOption]) -> BTreeMap<String, String> {
    let headers = headers.iter().map(|option| {
        assert_eq!(
            option.append_action().as_str_name(),
            "OVERWRITE_IF_EXISTS_OR_ADD"
        );
        let header = option.header.clone().unwrap();
        (header.key, header.value)
    });
    headers.collect()
}

fn allowed(user: &str, role: &str) -> Decision {
    let headers = [
        ("x-account-user", user),
        ("x-account-organization", ORG),
        ("x-account-role", role),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Decision::Allowed(headers.into(), Vec::new())
}

fn denied(status: i32, reason: &str) -> Decision {
    Decision::Denied(status, reason.to_owned())
}

/// A request of a route.
fn route_request(route: &str) -> CheckRequest {
    let http = HttpRequest {
        path: format!("/organizations/{ORG}/notes?page=2"),
        host: format!("{ORG}.example.com"),
        ..HttpRequest::default()
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            request: Some(EnvoyRequest { http: Some(http) }),
            context_extensions: [("route".to_owned(), route.to_owned())].into(),
            ..AttributeContext::default()
        }),
    }
}

/// The same, with the subject that Envoy's JWT filter has verified.
fn user_request(route: &str, subject: &str) -> CheckRequest {
    let text = Kind::StringValue(subject.to_owned());
    let payload = Kind::StructValue(structure("sub", text));
    let mut request = route_request(route);
    attributes(&mut request).metadata_context = Some(Metadata {
        filter_metadata: [(
            "envoy.filters.http.jwt_authn".to_owned(),
            structure("jwt", payload),
        )]
        .into(),
    });
    request
}

fn structure(name: &str, kind: Kind) -> Struct {
    let value = Value { kind: Some(kind) };
    Struct {
        fields: [(name.to_owned(), value)].into(),
    }
}

fn attributes(request: &mut CheckRequest) -> &mut AttributeContext {
    request.attributes.as_mut().unwrap()
}

fn http(request: &mut CheckRequest) -> &mut HttpRequest {
    let request = attributes(request).request.as_mut().unwrap();
    request.http.as_mut().unwrap()
}

fn headers<const N: usize>(headers: [(&str, &str); N]) -> HashMap<String, String> {
    headers
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

#[tokio::test]
async fn a_request_is_allowed_with_its_identity_if_the_role_suffices() {
    let authorizing = Authorizing::start().await;
    for (route, user, decision) in [
        ("read", OLIVIA, allowed(OLIVIA, "ROLE_OWNER")),
        ("read", MICHAEL, allowed(MICHAEL, "ROLE_MEMBER")),
        ("read", HANNAH, denied(403, "NOT_A_MEMBER")),
        ("read", "nobody", denied(403, "NOT_A_MEMBER")),
        ("read", "", denied(401, "SUBJECT_MISSING")),
        ("read", "a\u{7}b", denied(401, "SUBJECT_NOT_VALID")),
        ("write", OLIVIA, allowed(OLIVIA, "ROLE_OWNER")),
        ("write", MICHAEL, denied(403, "ROLE_TOO_LOW")),
        ("hidden", MICHAEL, allowed(MICHAEL, "ROLE_MEMBER")),
        ("hidden", HANNAH, denied(404, "NOT_A_MEMBER")),
        // The token lacks a required claim.
        ("users", OLIVIA, denied(401, "SUBJECT_NOT_VALID")),
        ("elsewhere", OLIVIA, denied(403, "ROUTE_NOT_CONFIGURED")),
    ] {
        let decided = authorizing.decide(user_request(route, user)).await;
        assert_eq!(decided, decision, "{route} {user:?}");
    }
    // Without any attributes.
    let decided = authorizing.decide(CheckRequest::default()).await;
    assert_eq!(decided, denied(403, "ROUTE_NOT_CONFIGURED"));
    let decided = authorizing.decide(route_request("read")).await;
    assert_eq!(decided, denied(401, "SUBJECT_MISSING"));
    let mut other = user_request("hidden", OLIVIA);
    http(&mut other).path = format!("/organizations/{ORG}/../other/notes");
    let decided = authorizing.decide(other).await;
    assert_eq!(decided, denied(404, "ORGANIZATION_MISSING"));
}

#[tokio::test]
async fn a_removed_member_is_denied_from_the_next_request_on() {
    let authorizing = Authorizing::start().await;
    for _ in 0..3 {
        let decided = authorizing.decide(user_request("read", MICHAEL)).await;
        assert_eq!(decided, allowed(MICHAEL, "ROLE_MEMBER"));
        let service = &authorizing.service;
        service.remove(ORG, MICHAEL, OLIVIA).await.unwrap();
        let decided = authorizing.decide(user_request("read", MICHAEL)).await;
        assert_eq!(decided, denied(403, "NOT_A_MEMBER"));
        let again = service.add(ORG, MICHAEL, Role::Member, OLIVIA).await;
        again.unwrap();
    }
}

#[tokio::test]
async fn subjects_and_organizations_come_from_certificates_hosts_and_named_headers() {
    let authorizing = Authorizing::start().await;
    let mut certified = route_request("certified");
    attributes(&mut certified).source = Some(Peer {
        principal: format!("spiffe://example.org/users/{MICHAEL}"),
    });
    let decided = authorizing.decide(certified.clone()).await;
    assert_eq!(decided, allowed(MICHAEL, "ROLE_MEMBER"));
    // The route takes no token and no header.
    let mut claimed = user_request("certified", OLIVIA);
    http(&mut claimed).headers = headers([("x-user", OLIVIA), ("x-account-user", OLIVIA)]);
    let decided = authorizing.decide(claimed).await;
    assert_eq!(decided, denied(401, "SUBJECT_MISSING"));

    let named = headers([("x-user", OLIVIA), ("x-organization", ORG)]);
    let mut trusting = route_request("trusting");
    http(&mut trusting).headers = named.clone();
    let decided = authorizing.decide(trusting.clone()).await;
    assert_eq!(decided, allowed(OLIVIA, "ROLE_OWNER"));
    // Headers as Envoy sends them with `encode_raw_headers`.
    let raw = |name: &str, value: &str| HeaderValue {
        key: name.to_owned(),
        raw_value: value.into(),
        ..HeaderValue::default()
    };
    let mut raw_headers: Vec<_> = named.iter().map(|(name, value)| raw(name, value)).collect();
    let mut encoded = route_request("trusting");
    http(&mut encoded).header_map = Some(HeaderMap {
        headers: raw_headers.clone(),
    });
    let decided = authorizing.decide(encoded.clone()).await;
    assert_eq!(decided, allowed(OLIVIA, "ROLE_OWNER"));
    raw_headers.push(raw("x-user", MICHAEL));
    http(&mut trusting)
        .headers
        .insert("x-user".to_owned(), format!("{OLIVIA},{MICHAEL}"));
    let decided = authorizing.decide(trusting).await;
    assert_eq!(decided, denied(401, "SUBJECT_NOT_VALID"));
    http(&mut encoded).header_map = Some(HeaderMap {
        headers: raw_headers,
    });
    let decided = authorizing.decide(encoded).await;
    assert_eq!(decided, denied(401, "SUBJECT_MISSING"));
}

#[tokio::test]
async fn a_dry_run_allows_without_an_identity_what_it_would_deny() {
    let authorizing = Authorizing::start().await;
    let decided = authorizing.decide(user_request("planned", OLIVIA)).await;
    assert_eq!(decided, allowed(OLIVIA, "ROLE_OWNER"));
    let names = ["x-account-user", "x-account-organization", "x-account-role"];
    let without_identity = || Decision::Allowed(BTreeMap::new(), names.map(str::to_owned).to_vec());
    for request in [user_request("planned", MICHAEL), route_request("planned")] {
        assert_eq!(authorizing.decide(request).await, without_identity());
    }
}

#[tokio::test]
async fn without_the_table_a_request_is_not_decided_and_a_dry_run_allows_it() {
    let authorizing = Authorizing::start().await;
    authorizing.backends.dynamodb.cut_off();
    let undecided = decide(&authorizing.service, user_request("read", "unknown")).await;
    let status = undecided.unwrap_err();
    assert!(
        [Code::Unavailable, Code::DeadlineExceeded].contains(&status.code()),
        "{status:?}"
    );
    let decided = authorizing.decide(user_request("planned", "unknown")).await;
    assert!(
        matches!(decided, Decision::Allowed(set, removed) if set.is_empty() && removed.len() == 3)
    );
}

#[tokio::test]
async fn a_grpc_call_is_denied_by_a_status_with_details() {
    let authorizing = Authorizing::start().await;
    let mut request = user_request("hidden", HANNAH);
    http(&mut request).headers = headers([("content-type", "application/grpc+proto")]);
    let mut client = AuthorizationClient::new(authorizing.service.channel.clone());
    let response = client.check(request).await.unwrap().into_inner();
    let Some(HttpResponse::DeniedResponse(denied)) = response.http_response else {
        panic!("not denied");
    };
    let mut trailers = http::HeaderMap::new();
    for (name, value) in by_name(&denied.headers) {
        let name: http::HeaderName = name.parse().unwrap();
        trailers.insert(name, value.parse().unwrap());
    }
    let status = Status::from_header_map(&trailers).unwrap();
    assert_refused(Err::<(), _>(status), Code::NotFound, "NOT_A_MEMBER");
    assert_eq!(denied.body, "the user is not a member of the organization");
}

#[tokio::test]
async fn the_policy_limits_a_proxy_and_tokens_of_requests_are_verified() {
    let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
    backends.replica().await.found_olivia_org().await;
    let ext_authz = "envoy.service.auth.v3.Authorization/Check";
    let proxy = |organization: &str, name: &str, method: &str| {
        json!({"token": {"client_id": name}, "methods": [method],
            "organizations": [{"name": organization}]})
    };
    let policy = json!({"callers": {
        "envoy": proxy(ORG, "envoy", ext_authz),
        "elsewhere": proxy("elsewhere", "elsewhere", ext_authz),
        "billing": proxy(ORG, "billing", "CheckMembership"),
    }, "users": {"token": {}, "methods": ["CheckMembership"]}});
    files.write("policy.json", &policy.to_string());
    let routes = json!({"routes": {"own": {"subject": {"token": {}},
        "organization": {"name": ORG}, "minimum_role": "ROLE_MEMBER"}}});
    let keys = KeySource::File(files.write("keys.json", &signer.key_set()));
    let mut settings = backends.serve_settings();
    settings.server.callers = token_settings(&files, keys);
    settings.server.callers.ext_authz = Some(files.write("routes.json", &routes.to_string()));
    let service = Replica::start(&settings).await;
    let decide = async |caller: &str, token: &str| {
        let mut request = route_request("own");
        let authorization = format!("Bearer {token}");
        http(&mut request).headers = headers([("authorization", &authorization)]);
        let mut client = AuthorizationClient::new(service.channel.clone());
        let request = with(&signer.service_token(caller), request);
        let response = client.check(request).await?;
        Ok::<_, Status>(Decision::of(response.into_inner()))
    };
    let (olivia, hannah) = (signer.token(OLIVIA), signer.token(HANNAH));
    let decided = decide("envoy", &olivia).await.unwrap();
    assert_eq!(decided, allowed(OLIVIA, "ROLE_OWNER"));
    let decided = decide("envoy", &hannah).await.unwrap();
    assert_eq!(decided, denied(403, "NOT_A_MEMBER"));
    let forged = Signer::new("one").token(OLIVIA);
    for token in [forged, signer.service_token("envoy"), "a.b.c".to_owned()] {
        let decided = decide("envoy", &token).await.unwrap();
        assert_eq!(decided, denied(401, "SUBJECT_NOT_VALID"));
    }
    let decided = decide("elsewhere", &olivia).await.unwrap();
    assert_eq!(decided, denied(403, "NOT_A_MEMBER"));
    let refused = decide("billing", &olivia).await;
    assert_refused(refused, Code::PermissionDenied, "METHOD_NOT_GRANTED");
    let mut anonymous = AuthorizationClient::new(service.channel.clone());
    let refused = anonymous.check(route_request("own")).await;
    assert_refused(refused, Code::Unauthenticated, "NO_CREDENTIALS");
}

#[tokio::test]
async fn a_changed_file_is_used_and_one_that_is_not_valid_is_rejected() {
    let authorizing = Authorizing::start().await;
    let (service, files) = (&authorizing.service, &authorizing.files);
    let mut changed = routes();
    changed["routes"]["read"]["minimum_role"] = json!("ROLE_OWNER");
    files.write("routes.json", &changed.to_string());
    eventually("the changed file is used", async || {
        let decided = decide(service, user_request("read", MICHAEL))
            .await
            .unwrap();
        decided == denied(403, "ROLE_TOO_LOW")
    })
    .await;
    files.write("routes.json", "{}");
    changed["routes"]["read"]["minimum_role"] = json!("ROLE_MEMBER");
    // Longer than two intervals of reading the file: the rejected content changes nothing.
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    let decided = decide(service, user_request("read", MICHAEL))
        .await
        .unwrap();
    assert_eq!(decided, denied(403, "ROLE_TOO_LOW"));
    files.write("routes.json", &changed.to_string());
    eventually("the corrected file is used", async || {
        let decided = decide(service, user_request("read", MICHAEL))
            .await
            .unwrap();
        decided == allowed(MICHAEL, "ROLE_MEMBER")
    })
    .await;
}

#[tokio::test]
async fn without_a_file_there_is_no_external_authorization() {
    let backends = Backends::start().await;
    let service = backends.replica().await;
    let refused = decide(&service, user_request("read", OLIVIA)).await;
    assert_refused(refused, Code::Unimplemented, "UNKNOWN_METHOD");

    let files = Files::new();
    let mut settings = backends.serve_settings();
    settings.server.callers.ext_authz = Some(files.write("routes.json", r#"{"routes": {}}"#));
    let Err(error) = boot::App::boot(&settings).await else {
        panic!("the service starts without routes");
    };
    let error = error.to_string();
    assert!(error.contains("routes.json"), "{error}");
    assert!(
        error.contains("it has no routes; correct the file"),
        "{error}"
    );
}
