//! Attacks on identity: no caller is mistaken for another one, and permissions end with
//! the credentials that prove them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use account_service::{
    auth::KeySource,
    proto::account_v1::{self as pb, transfer_ownership_request::Actor},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use rcgen::{SanType, SerialNumber};
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Identity};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    callers::{
        Authority, Files, MICHAEL, OLIVIA, ORG, Signer, add, at_a_url, check, checks, connect,
        found, now, serve, service_claims, take_tokens, tls_and_token_settings, tls_settings,
        token_settings, with,
    },
    harness::{
        Backends, PATIENCE, Replica, assert_refused,
        binary::{Log, Server, over},
    },
    starts::health_of,
    streams::eventually,
};

const FRONTEND: &str = "spiffe://example.org/frontend";

/// A replica that accepts tokens signed with these keys.
async fn with_keys(keys: &Value) -> (Backends, Files, Replica) {
    let (backends, files) = (Backends::start().await, Files::new());
    found(&backends).await;
    let keys = KeySource::File(files.write("keys.json", &keys.to_string()));
    let service = serve(&backends, token_settings(&files, keys)).await;
    (backends, files, service)
}

fn assert_invalid<T: std::fmt::Debug>(refused: Result<T, Status>) {
    assert_refused(refused, Code::Unauthenticated, "INVALID_CREDENTIALS");
}

#[tokio::test]
async fn a_user_with_the_name_of_a_service_has_none_of_its_grants() {
    let signer = Signer::new("one");
    let (_backends, _files, service) = with_keys(&json!({"keys": [signer.public_key()]})).await;
    let transfer = pb::TransferOwnershipRequest {
        organization_name: ORG.to_owned(),
        new_owner: MICHAEL.to_owned(),
        actor: Some(Actor::AsPlatform(true)),
        ..pb::TransferOwnershipRequest::default()
    };
    let mut client = service.client.clone();
    // Also with the name in a service's certificate.
    for name in ["operator", "console", "frontend", FRONTEND] {
        let token = signer.token(name);
        let denied = client
            .transfer_ownership(with(&token, transfer.clone()))
            .await;
        assert_refused(denied, Code::PermissionDenied, "METHOD_NOT_GRANTED");
        let batch = pb::BatchCheckMembershipsRequest::default();
        let denied = client.batch_check_memberships(with(&token, batch)).await;
        assert_refused(denied, Code::PermissionDenied, "METHOD_NOT_GRANTED");
    }
    // A token that matches two callers is rejected.
    let mut both = service_claims("billing");
    both["client_id"] = json!(["billing", "operator"]);
    assert_invalid(checks(&service.client, &signer.sign(&both)).await);
}

#[tokio::test]
async fn a_service_can_send_a_token_of_a_user_but_not_of_another_service() {
    let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
    found(&backends).await;
    let (server, clients) = (Authority::new(), Authority::new());
    let keys = KeySource::File(files.write("keys.json", &signer.key_set()));
    let settings = tls_and_token_settings(&files, &server, &clients, keys);
    let service = serve(&backends, settings).await;
    let frontend = connect(service.addr, &server, Some(clients.of_client(FRONTEND))).await;
    let frontend = frontend.unwrap();
    assert!(checks(&frontend, &signer.token(MICHAEL)).await.is_ok());
    assert_invalid(checks(&frontend, &signer.service_token("operator")).await);
}

fn jwk(key: Jwk, changes: &Value) -> Value {
    let mut key = serde_json::to_value(key).unwrap();
    for (name, value) in changes.as_object().unwrap() {
        key[name] = value.clone();
    }
    key
}

#[tokio::test]
async fn keys_are_used_only_for_their_declared_purpose() {
    let [good, stranger] = ["one", "one"].map(Signer::new);
    let public = || good.public_key();
    for (keys, is_taken) in [
        // A key of the same name for another purpose, after and before the valid key.
        (
            vec![
                jwk(public(), &json!({})),
                jwk(stranger.public_key(), &json!({"use": "enc"})),
            ],
            true,
        ),
        (
            vec![
                jwk(stranger.public_key(), &json!({"use": "enc"})),
                jwk(public(), &json!({})),
            ],
            true,
        ),
        // Two keys of the same name: the one that has signed the token is used.
        (
            vec![
                jwk(public(), &json!({})),
                jwk(stranger.public_key(), &json!({})),
            ],
            true,
        ),
        // Invalid entries are ignored.
        (
            vec![
                json!({"kty": "QUANTUM", "kid": "one"}),
                json!("no key"),
                json!({"kty": "EC", "crv": "P-256", "x": "?", "y": "?"}),
                jwk(public(), &json!({})),
            ],
            true,
        ),
        (vec![jwk(public(), &json!({"use": "enc"}))], false),
        (vec![jwk(public(), &json!({"key_ops": ["encrypt"]}))], false),
        (vec![jwk(public(), &json!({"key_ops": ["verify"]}))], true),
        (vec![jwk(public(), &json!({"alg": "ES384"}))], false),
        (vec![jwk(public(), &json!({"alg": "ES256"}))], true),
        // A key without a name, for a token that names one.
        (vec![jwk(public(), &json!({"kid": null}))], true),
    ] {
        // A key set needs a usable key: this one signs no token here.
        let other = jwk(Signer::new("other").public_key(), &json!({}));
        let keys = [keys.clone(), vec![other]].concat();
        let keys = json!({"keys": keys});
        let (_backends, _files, service) = with_keys(&keys).await;
        let taken = checks(&service.client, &good.service_token("billing")).await;
        assert_eq!(taken.is_ok(), is_taken, "{keys}: {taken:?}");
        if !is_taken {
            assert_invalid(taken);
        }
    }
}

#[tokio::test]
async fn a_token_without_a_key_id_is_checked_with_all_suitable_keys() {
    let signers = ["old", "new"].map(Signer::new);
    let keys = signers.each_ref().map(Signer::public_key);
    let (_backends, _files, service) = with_keys(&json!({"keys": keys})).await;
    let nameless = |key: &EncodingKey| {
        let header = Header::new(Algorithm::ES256);
        jsonwebtoken::encode(&header, &service_claims("billing"), key).unwrap()
    };
    for signer in &signers {
        assert!(
            checks(&service.client, &nameless(&signer.key))
                .await
                .unwrap()
        );
    }
    let stranger = Signer::new("stranger");
    assert_invalid(checks(&service.client, &nameless(&stranger.key)).await);
}

#[tokio::test]
async fn tokens_with_unsupported_critical_extensions_are_rejected() {
    let signer = Signer::new("one");
    let (_backends, _files, service) = with_keys(&json!({"keys": [signer.public_key()]})).await;
    let token = |extension: Value| {
        let mut header = json!({"alg": "ES256", "kid": "one"});
        for (name, value) in extension.as_object().unwrap() {
            header[name] = value.clone();
        }
        let header: Header = serde_json::from_value(header).unwrap();
        jsonwebtoken::encode(&header, &service_claims("billing"), &signer.key).unwrap()
    };
    assert!(
        checks(&service.client, &token(json!({"x": 1})))
            .await
            .unwrap()
    );
    for extension in [
        json!({"crit": ["x"], "x": 1}),
        json!({"crit": []}),
        json!({"crit": ["b64"], "b64": false}),
        json!({"b64": false}),
    ] {
        assert_invalid(checks(&service.client, &token(extension)).await);
    }
}

#[tokio::test]
async fn a_token_is_in_one_header_with_a_case_insensitive_scheme() {
    let signer = Signer::new("one");
    let (_backends, _files, service) = with_keys(&json!({"keys": [signer.public_key()]})).await;
    let token = signer.service_token("billing");
    let call = |values: &[String]| {
        let mut request = Request::new(check());
        for value in values {
            let value: MetadataValue<_> = value.parse().unwrap();
            request.metadata_mut().append("authorization", value);
        }
        let mut client = service.client.clone();
        async move { client.check_membership(request).await }
    };
    for scheme in ["Bearer", "bearer", "BEARER"] {
        call(&[format!("{scheme} {token}")]).await.unwrap();
    }
    call(&[format!("Bearer   {token}")]).await.unwrap();
    let basic = "Basic b2xpdmlhOnNlY3JldA==".to_owned();
    assert_refused(
        call(std::slice::from_ref(&basic)).await,
        Code::Unauthenticated,
        "NO_CREDENTIALS",
    );
    let bearer = format!("Bearer {token}");
    for two in [
        [bearer.clone(), bearer.clone()],
        [bearer.clone(), basic.clone()],
        [basic, bearer],
    ] {
        assert_invalid(call(&two).await);
    }
}

#[tokio::test]
async fn a_replica_starts_without_the_keys_of_tokens_and_reads_them_later() {
    let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
    found(&backends).await;
    // No server listens on this address yet.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let keys = format!("http://{addr}/keys").parse().unwrap();
    let service = serve(&backends, token_settings(&files, keys)).await;
    let token = signer.service_token("billing");
    let refused = checks(&service.client, &token).await;
    let details = assert_refused(refused, Code::Unavailable, "KEYS_UNAVAILABLE");
    assert!(details.retry_info().is_some());
    assert_eq!(health_of(&service).await, ServingStatus::NotServing);
    let _served = at_this_url(addr, signer.key_set()).await;
    eventually("the keys are loaded", async || {
        checks(&service.client, &token).await.is_ok()
    })
    .await;
    eventually("the replica is ready", async || {
        health_of(&service).await == ServingStatus::Serving
    })
    .await;
    // A response that is no key set is a configuration error: the start fails.
    let wrong = at_a_url("{}".to_owned()).await;
    let mut settings = backends.serve_settings();
    settings.server.callers = token_settings(&files, wrong);
    let refused = Replica::try_start_with(&settings, settings.cache.to_coherence()).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn a_watch_ends_when_the_token_of_its_caller_expires() {
    let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
    found(&backends).await;
    let keys = KeySource::File(files.write("keys.json", &signer.key_set()));
    let mut settings = backends.serve_settings();
    settings.server.callers = token_settings(&files, keys);
    settings.cache.stream_invalidator = true;
    let service = Replica::start(&settings).await;
    let watch = |token: String| {
        let mut client = service.client.clone();
        async move {
            let request = with(&token, pb::WatchChangesRequest::default());
            client.watch_changes(request).await
        }
    };
    eventually("the stream is followed", async || {
        watch(signer.service_token("console")).await.is_ok()
    })
    .await;
    let mut claims = service_claims("console");
    // Clocks may differ by half a minute.
    claims["exp"] = (now() - 25).into();
    let mut watching = watch(signer.sign(&claims)).await.unwrap().into_inner();
    let ended = async {
        loop {
            if let Err(status) = watching.message().await {
                return status;
            }
        }
    };
    let ended = timeout(PATIENCE, ended).await.unwrap();
    assert_invalid::<()>(Err(ended));
}

#[tokio::test]
async fn an_expired_certificate_is_rejected_also_on_an_open_connection() {
    let (backends, files) = (Backends::start().await, Files::new());
    found(&backends).await;
    let (server, clients) = (Authority::new(), Authority::new());
    let service = serve(&backends, tls_settings(&files, &server, &clients)).await;
    let names = vec![SanType::URI(FRONTEND.try_into().unwrap())];
    let (certificate, key) = clients.issue_as(names, |params| {
        params.not_after = (SystemTime::now() + Duration::from_secs(4)).into();
    });
    let identity = Identity::from_pem(certificate, key);
    let mut client = connect(service.addr, &server, Some(identity))
        .await
        .unwrap();
    client.check_membership(check()).await.unwrap();
    let mut refused = None;
    eventually("the certificate has expired", async || {
        refused = client.check_membership(check()).await.err();
        refused.is_some()
    })
    .await;
    assert_invalid::<()>(Err(refused.unwrap()));
}

#[tokio::test]
async fn sessions_of_clients_with_certificates_are_not_resumed() {
    let (backends, files) = (Backends::start().await, Files::new());
    found(&backends).await;
    let (server, clients) = (Authority::new(), Authority::new());
    let service = serve(&backends, tls_settings(&files, &server, &clients)).await;
    let names = vec![SanType::URI(FRONTEND.try_into().unwrap())];
    let (certificate, key) = clients.issue(names);
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(server.certificate.as_bytes()).unwrap();
    roots.add(root).unwrap();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            );
        let mut config = config.unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        for _ in 0..2 {
            let tcp = TcpStream::connect(service.addr).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let mut tls = connector.connect(name, tcp).await.unwrap();
            // Tickets come with the first bytes.
            let mut settings = [0; 9];
            tls.read_exact(&mut settings).await.unwrap();
            let kind = tls.get_ref().1.handshake_kind();
            assert_eq!(kind, Some(HandshakeKind::Full), "{version:?}");
        }
    }
}

#[tokio::test]
async fn a_revoked_certificate_is_rejected_without_a_restart() {
    let (backends, files) = (Backends::start().await, Files::new());
    found(&backends).await;
    let (server, clients) = (Authority::new(), Authority::new());
    let mut settings = tls_settings(&files, &server, &clients);
    settings.tls_client_crl = Some(files.write("revoked.pem", &clients.revoke(1)));
    let service = serve(&backends, settings).await;
    let issue = |serial: u64| {
        let names = vec![SanType::URI(FRONTEND.try_into().unwrap())];
        let (certificate, key) = clients.issue_as(names, |params| {
            params.serial_number = Some(SerialNumber::from(serial));
        });
        Identity::from_pem(certificate, key)
    };
    let (first, second) = (issue(1), issue(2));
    let is_taken =
        async |identity: &Identity| match connect(service.addr, &server, Some(identity.clone()))
            .await
        {
            Ok(mut client) => client.check_membership(check()).await.is_ok(),
            Err(_) => false,
        };
    assert!(!is_taken(&first).await);
    assert!(is_taken(&second).await);
    files.write("revoked.pem", &clients.revoke(2));
    eventually("the second certificate is rejected", async || {
        !is_taken(&second).await
    })
    .await;
    assert!(is_taken(&first).await);
}

#[tokio::test]
async fn request_ids_are_separate_for_each_caller() {
    let signer = Signer::new("one");
    let (_backends, _files, service) = with_keys(&json!({"keys": [signer.public_key()]})).await;
    let mut client = service.client.clone();
    let create = |username: &str| pb::CreateUserRequest {
        username: username.to_owned(),
        request_id: "0e1d61d4-3c0a-4a5e-9f6b-7a8b9c0d1e2f".to_owned(),
        ..pb::CreateUserRequest::default()
    };
    let tokens = ["console", "operator"].map(|name| signer.service_token(name));
    for (token, username) in tokens.iter().zip(["first", "second"]) {
        let created = client.create_user(with(token, create(username))).await;
        created.unwrap();
        let reused = client.create_user(with(token, create("third"))).await;
        assert_refused(reused, Code::InvalidArgument, "REQUEST_ID_REUSED");
    }
}

#[tokio::test]
async fn the_feed_and_the_audit_log_name_the_caller_of_a_change() {
    let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
    found(&backends).await;
    let log = Log::new();
    let mut command = over(&backends, &["serve"]);
    take_tokens(&mut command, &files, &signer);
    command.stderr(log.file());
    let server = Server::start(command, "serving on", |_| true);
    let mut client = server.client().await;
    let mut watching = None;
    eventually("the stream is followed", async || {
        let request = pb::WatchChangesRequest::default();
        let token = signer.service_token("console");
        watching = client.watch_changes(with(&token, request)).await.ok();
        watching.is_some()
    })
    .await;
    // Retried if the table does not respond in time: each write has its effect once.
    eventually("Michael is a member", async || {
        let request = with(&signer.token(OLIVIA), add(OLIVIA));
        let added = client.add_user_to_organization(request).await;
        added.map_or_else(|status| status.code() == Code::AlreadyExists, |_| true)
    })
    .await;
    eventually("Michael is suspended", async || {
        let suspend = pb::SuspendUserRequest {
            username: MICHAEL.to_owned(),
            ..pb::SuspendUserRequest::default()
        };
        let token = signer.service_token("operator");
        client.suspend_user(with(&token, suspend)).await.is_ok()
    })
    .await;
    let mut watching = watching.unwrap().into_inner();
    let received = async {
        loop {
            let response = watching.message().await.unwrap().unwrap();
            for change in response.changes {
                // A change that a user makes names the acting user instead.
                if !change.caller.is_empty() {
                    return change;
                }
            }
        }
    };
    let received = timeout(PATIENCE, received).await.unwrap();
    assert_eq!(
        (received.caller.as_str(), received.kind()),
        ("operator", pb::ChangeKind::Updated)
    );
    assert_eq!(server.terminate(), Some(0));
    let logged = log.read();
    let is_logged = |parts: &[&str]| {
        let mut lines = logged.lines().filter(|line| line.contains("audit"));
        lines.any(|line| parts.iter().all(|part| line.contains(part)))
    };
    assert!(
        is_logged(&["SuspendUser", "caller=operator", "code=Ok"]),
        "{logged}"
    );
    // The beginning of the output of `printf oliviaowner | sha256sum`.
    let added = [
        "AddUserToOrganization",
        "caller=sha256:6fcc523a050a",
        "acting_user=sha256:6fcc523a050a",
        "organization=\"olivia-org\"",
        "code=",
    ];
    assert!(is_logged(&added), "{logged}");
    assert!(!logged.contains(MICHAEL) && !logged.contains(OLIVIA));
}

/// A key set at this address.
async fn at_this_url(addr: std::net::SocketAddr, key_set: String) -> tokio::task::JoinHandle<()> {
    let listener = TcpListener::bind(addr).await.unwrap();
    let router = axum::Router::new().fallback(async move || key_set.clone());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() })
}
