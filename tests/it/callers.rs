//! Authentication and authorization: certificates, tokens and the policy, on a real server.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use account_service::{
    auth::KeySource,
    config::{CallerSettings, ServeSettings},
    proto::account_v1::{self as pb, Role, delete_organization_request::Actor},
};
use axum::{Router, routing::get};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
    KeyIdMethod, KeyPair, PKCS_ECDSA_P384_SHA384, RevokedCertParams, SanType,
};
use serde_json::{Value, json};
use temp_dir::TempDir;
use tokio::{net::TcpListener, time::sleep};
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
};

use crate::{
    harness::{
        Backends, Client, Replica, assert_refused,
        binary::{Log, Server, over, serve_over},
    },
    streams::{eventually, following},
};

pub const ORG: &str = "olivia-org";
pub const OLIVIA: &str = "oliviaowner";
pub const MICHAEL: &str = "membermichael";
const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "accounts";

/// Callers of a small company.
const POLICY: &str = r#"{
  "callers": {
    "frontend": {
      "certificate": "spiffe://example.org/frontend",
      "methods": ["CheckMembership", "AddUserToOrganization"]
    },
    "billing": {
      "certificate": "billing",
      "token": {"client_id": "billing"},
      "methods": ["CheckMembership", "BatchCheckMemberships"]
    },
    "console": {"token": {"client_id": "console"}, "methods": ["*"], "acts_for_users": true},
    "operator": {"token": {"client_id": "operator"}, "methods": ["*"], "acts_as_platform": true}
  },
  "users": {"token": {}, "methods": ["CheckMembership", "AddUserToOrganization"]}
}"#;

/// Files that the settings name.
pub struct Files(TempDir);

impl Files {
    pub fn new() -> Self {
        let files = Self(TempDir::new().unwrap());
        files.write("policy.json", POLICY);
        files
    }

    pub fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.0.child(name);
        fs::write(&path, contents).unwrap();
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.child(name)
    }
}

/// Signs tokens.
pub struct Signer {
    name: &'static str,
    algorithm: Algorithm,
    pub key: EncodingKey,
}

impl Signer {
    pub fn new(name: &'static str) -> Self {
        Self::of_pair(name, Algorithm::ES256, &KeyPair::generate().unwrap())
    }

    /// Signs with an algorithm that the settings do not list.
    fn unlisted(name: &'static str) -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        Self::of_pair(name, Algorithm::ES384, &pair)
    }

    fn of_pair(name: &'static str, algorithm: Algorithm, pair: &KeyPair) -> Self {
        Self {
            name,
            algorithm,
            key: EncodingKey::from_ec_der(&pair.serialize_der()),
        }
    }

    pub fn public_key(&self) -> Jwk {
        let mut key = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        key.common.key_id = Some(self.name.to_owned());
        key
    }

    /// The key set with its key.
    pub fn key_set(&self) -> String {
        json!({ "keys": [self.public_key()] }).to_string()
    }

    pub fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.name.to_owned());
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }

    /// A user's token.
    pub fn token(&self, subject: &str) -> String {
        self.sign(&claims(subject))
    }

    pub fn service_token(&self, name: &str) -> String {
        self.sign(&service_claims(name))
    }
}

pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs()
}

/// The claims of a user's token.
pub fn claims(subject: &str) -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "exp": now() + 600})
}

/// The claims of a service's token.
pub fn service_claims(name: &str) -> Value {
    let mut claims = claims(name);
    claims["client_id"] = name.into();
    claims
}

pub fn token_settings(files: &Files, keys: KeySource) -> CallerSettings {
    CallerSettings {
        policy: Some(files.path("policy.json")),
        jwks: Some(keys),
        jwt_issuer: Some(ISSUER.to_owned()),
        jwt_audience: Some(AUDIENCE.to_owned()),
        jwt_algorithms: vec![Algorithm::ES256],
        ..CallerSettings::default()
    }
}

/// The same settings for a process.
pub fn take_tokens(command: &mut Command, files: &Files, signer: &Signer) {
    command
        .env("POLICY_FILE", files.path("policy.json"))
        .env("JWKS", files.write("keys.json", &signer.key_set()))
        .env("JWT_ISSUER", ISSUER)
        .env("JWT_AUDIENCE", AUDIENCE);
}

pub async fn serve(backends: &Backends, callers: CallerSettings) -> Replica {
    let mut settings: ServeSettings = backends.serve_settings();
    settings.server.callers = callers;
    Replica::start(&settings).await
}

/// A request with this token.
pub fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

pub fn check() -> pb::CheckMembershipRequest {
    pb::CheckMembershipRequest {
        organization_name: ORG.to_owned(),
        username: OLIVIA.to_owned(),
        ..pb::CheckMembershipRequest::default()
    }
}

pub fn add(adding_user: &str) -> pb::AddUserToOrganizationRequest {
    pb::AddUserToOrganizationRequest {
        organization_name: ORG.to_owned(),
        member_username: MICHAEL.to_owned(),
        role: Role::Member.into(),
        adding_user: adding_user.to_owned(),
        ..pb::AddUserToOrganizationRequest::default()
    }
}

pub async fn checks(client: &Client, token: &str) -> Result<bool, Status> {
    let response = client.clone().check_membership(with(token, check())).await;
    Ok(response?.into_inner().is_member)
}

/// Olivia's organization, and Michael, who is no member.
pub async fn found(backends: &Backends) {
    backends.replica().await.found_olivia_org().await;
}

#[tokio::test]
async fn a_call_without_valid_credentials_is_rejected_and_health_is_open() {
    let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
    found(&backends).await;
    let keys = KeySource::File(files.write("keys.json", &signer.key_set()));
    let service = serve(&backends, token_settings(&files, keys)).await;

    let mut client = service.client.clone();
    let unknown = client.check_membership(check()).await;
    assert_refused(unknown, Code::Unauthenticated, "NO_CREDENTIALS");
    let mut health = HealthClient::new(service.channel.clone());
    let healthy = health.check(HealthCheckRequest::default()).await;
    healthy.unwrap();

    assert!(
        checks(&service.client, &signer.service_token("billing"))
            .await
            .unwrap()
    );
    let with_claim = |name: &str, value: Value| {
        let mut claims = service_claims("billing");
        claims[name] = value;
        signer.sign(&claims)
    };
    let without_claim = |name: &str| {
        let mut claims = service_claims("billing");
        claims.as_object_mut().unwrap().remove(name);
        signer.sign(&claims)
    };
    let forged = {
        // As if the public key were a shared secret.
        let key = EncodingKey::from_secret(signer.key_set().as_bytes());
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("one".to_owned());
        jsonwebtoken::encode(&header, &service_claims("billing"), &key).unwrap()
    };
    let good = signer.service_token("billing");
    let (body, _) = good.rsplit_once('.').unwrap();
    let (_, payload) = body.split_once('.').unwrap();
    let unsigned = format!("eyJhbGciOiJub25lIn0.{payload}.");
    for (what, token) in [
        (
            "another issuer",
            with_claim("iss", json!("https://elsewhere.example")),
        ),
        ("another audience", with_claim("aud", json!("payments"))),
        ("too old", with_claim("exp", json!(now() - 120))),
        ("not yet valid", with_claim("nbf", json!(now() + 120))),
        ("without an expiry", without_claim("exp")),
        ("without an issuer", without_claim("iss")),
        ("without an audience", without_claim("aud")),
        ("without a subject", without_claim("sub")),
        ("with an empty name", with_claim("sub", json!(""))),
        (
            "of another key",
            Signer::new("one").service_token("billing"),
        ),
        (
            "of an unknown key",
            Signer::new("two").service_token("billing"),
        ),
        ("with a shared secret", forged),
        ("unsigned", unsigned),
        ("cut", body.to_owned()),
        ("garbage", "a.b.c".to_owned()),
        ("empty", String::new()),
    ] {
        let refused = checks(&service.client, &token).await;
        let status = refused.expect_err(what);
        // The message does not reveal the defect.
        assert_eq!(
            status.message(),
            "the call's credentials are not valid",
            "{what}"
        );
        assert_refused(
            Err::<(), _>(status),
            Code::Unauthenticated,
            "INVALID_CREDENTIALS",
        );
    }
}

#[tokio::test]
async fn callers_have_exactly_the_permissions_that_the_policy_grants() {
    let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
    found(&backends).await;
    let keys = KeySource::File(files.write("keys.json", &signer.key_set()));
    let service = serve(&backends, token_settings(&files, keys)).await;
    let mut client = service.client.clone();
    let token = |name: &str| signer.token(name);

    let denied = client
        .add_user_to_organization(with(&signer.service_token("billing"), add(OLIVIA)))
        .await;
    assert_refused(denied, Code::PermissionDenied, "METHOD_NOT_GRANTED");
    // A caller that may call the method, but may not act for users.
    let denied = client
        .add_user_to_organization(with(&signer.service_token("operator"), add(OLIVIA)))
        .await;
    assert_refused(denied, Code::PermissionDenied, "ACTING_NOT_GRANTED");
    let delete = |actor| pb::DeleteOrganizationRequest {
        organization_name: ORG.to_owned(),
        actor: Some(actor),
        ..pb::DeleteOrganizationRequest::default()
    };
    let as_platform = with(
        &signer.service_token("console"),
        delete(Actor::AsPlatform(true)),
    );
    let denied = client.delete_organization(as_platform).await;
    assert_refused(denied, Code::PermissionDenied, "ACTING_NOT_GRANTED");

    // Users act for themselves.
    let denied = client
        .add_user_to_organization(with(&token(MICHAEL), add(OLIVIA)))
        .await;
    assert_refused(denied, Code::PermissionDenied, "ACTING_NOT_GRANTED");
    let get = pb::GetUserRequest {
        username: OLIVIA.to_owned(),
        consistency: None,
    };
    let denied = client.get_user(with(&token(OLIVIA), get)).await;
    assert_refused(denied, Code::PermissionDenied, "METHOD_NOT_GRANTED");
    let added = client
        .add_user_to_organization(with(&token(OLIVIA), add(OLIVIA)))
        .await;
    added.unwrap();

    let remove = pb::RemoveUserFromOrganizationRequest {
        organization_name: ORG.to_owned(),
        member_username: MICHAEL.to_owned(),
        acting_user: OLIVIA.to_owned(),
        ..pb::RemoveUserFromOrganizationRequest::default()
    };
    let removed = client
        .remove_user_from_organization(with(&signer.service_token("console"), remove))
        .await;
    removed.unwrap();
    let as_platform = with(
        &signer.service_token("operator"),
        delete(Actor::AsPlatform(true)),
    );
    client.delete_organization(as_platform).await.unwrap();
}

/// A key set at a URL.
pub async fn at_a_url(key_set: String) -> KeySource {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys.json", listener.local_addr().unwrap());
    let app = Router::new().route("/keys.json", get(async || key_set));
    tokio::spawn(async { axum::serve(listener, app).await });
    url.parse().unwrap()
}

#[tokio::test]
async fn keys_are_read_from_a_url_and_only_listed_algorithms_are_accepted() {
    let (backends, files) = (Backends::start().await, Files::new());
    found(&backends).await;
    let (listed, unlisted) = (Signer::new("listed"), Signer::unlisted("unlisted"));
    let key_set = json!({ "keys": [listed.public_key(), unlisted.public_key()] });
    let keys = at_a_url(key_set.to_string()).await;
    let mut settings = token_settings(&files, keys);
    let service = serve(&backends, settings.clone()).await;
    let token = listed.service_token("billing");
    assert!(checks(&service.client, &token).await.unwrap());
    let token = unlisted.service_token("billing");
    let refused = checks(&service.client, &token).await;
    assert_refused(refused, Code::Unauthenticated, "INVALID_CREDENTIALS");

    settings.jwt_algorithms.push(Algorithm::ES384);
    let service = serve(&backends, settings).await;
    assert!(checks(&service.client, &token).await.unwrap());
}

#[test]
fn keys_are_read_over_plain_http_from_loopback_only() {
    for source in [
        "keys.json",
        "https://issuer.example/keys",
        "http://127.0.0.1:8080/keys",
        "http://[::1]/keys",
        "http://localhost/keys",
    ] {
        let parsed: Result<KeySource, _> = source.parse();
        assert_eq!(parsed.unwrap().to_string(), source);
    }
    for source in [
        "",
        "https://",
        "http://issuer.example/keys",
        "http://127.0.0.1.issuer.example/keys",
        "http://10.0.0.1/keys",
    ] {
        let parsed: Result<KeySource, _> = source.parse();
        assert!(parsed.is_err(), "{source}");
    }
}

#[tokio::test]
async fn reflection_requires_an_authenticated_caller_and_can_be_disabled() {
    let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
    let keys = KeySource::File(files.write("keys.json", &signer.key_set()));
    let mut settings = token_settings(&files, keys);
    let reflection_code = async |settings: &CallerSettings, token: Option<String>| {
        let service = serve(&backends, settings.clone()).await;
        let requests = tokio_stream::once(ServerReflectionRequest::default());
        let request = match token {
            Some(token) => with(&token, requests),
            None => Request::new(requests),
        };
        let mut client = ServerReflectionClient::new(service.channel.clone());
        let responses = client.server_reflection_info(request).await;
        responses.map_or_else(|status| status.code(), |_| Code::Ok)
    };
    let known = || Some(signer.service_token("billing"));
    assert_eq!(
        reflection_code(&settings, None).await,
        Code::Unauthenticated
    );
    assert_eq!(reflection_code(&settings, known()).await, Code::Ok);
    settings.no_reflection = true;
    assert_eq!(
        reflection_code(&settings, known()).await,
        Code::Unimplemented
    );
}

#[tokio::test]
async fn the_log_names_rejected_services_but_no_users() {
    let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
    let log = Log::new();
    let mut command = over(&backends, &["serve"]);
    take_tokens(&mut command, &files, &signer);
    command.stderr(log.file());
    let server = Server::start(command, "serving on", |_| true);
    let mut client = server.client().await;
    for token in [signer.service_token("billing"), signer.token(OLIVIA)] {
        let request = with(&token, add(MICHAEL));
        let refused = client.add_user_to_organization(request).await;
        assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    }
    let get = pb::GetUserRequest {
        username: OLIVIA.to_owned(),
        consistency: None,
    };
    let refused = client.get_user(with(&signer.token(OLIVIA), get)).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(server.terminate(), Some(0));
    let logged = log.read();
    assert!(logged.contains("billing"), "{logged}");
    // The beginning of the output of `printf oliviaowner | sha256sum`.
    assert_eq!(logged.matches("sha256:6fcc523a050a").count(), 2, "{logged}");
    for user in [OLIVIA, MICHAEL] {
        assert!(!logged.contains(user), "{logged}");
    }
}

#[tokio::test]
async fn tokens_and_keys_appear_in_no_log_line() {
    let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
    let (log, server) = (files.path("log"), Authority::new());
    let (certificate, key) = server.of_server();
    let mut command = serve_over(&backends);
    take_tokens(&mut command, &files, &signer);
    command
        .env("TLS_CERT", files.write("server.pem", &certificate))
        .env("TLS_KEY", files.write("server.key", &key))
        .stderr(fs::File::create(&log).unwrap());
    let process = Server::start(command, "serving on", |_| true);
    let client = connect(process.addr.parse().unwrap(), &server, None)
        .await
        .unwrap();
    let taken = signer.service_token("billing");
    let refused = Signer::new("one").service_token("billing");
    checks(&client, &taken).await.unwrap();
    let mut logged = format!("{:?}", checks(&client, &refused).await.unwrap_err());
    assert_eq!(process.terminate(), Some(0));
    logged.push_str(&fs::read_to_string(log).unwrap());
    assert!(logged.contains("TRACE"), "nothing was logged");
    // A token's signature or a line of a key is enough to detect a leak.
    let signatures = [&taken, &refused].map(|token| token.rsplit('.').next().unwrap());
    let of_key = key.lines().filter(|line| !line.starts_with("-----"));
    for part in of_key.chain(signatures) {
        let line = logged.lines().find(|line| line.contains(part));
        assert_eq!(line, None);
    }
}

#[tokio::test]
async fn keys_are_read_again_when_a_token_names_a_new_one() {
    let (backends, files) = (Backends::start().await, Files::new());
    found(&backends).await;
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let keys = KeySource::File(files.write("keys.json", &old.key_set()));
    let service = serve(&backends, token_settings(&files, keys)).await;
    // A token that was accepted is rejected once its key is no longer in the key set.
    let known = old.service_token("billing");
    assert!(checks(&service.client, &known).await.unwrap());
    assert!(checks(&service.client, &known).await.unwrap());
    files.write("keys.json", &new.key_set());
    eventually("the new key is loaded", async || {
        checks(&service.client, &new.service_token("billing"))
            .await
            .is_ok()
    })
    .await;
    for token in [known, old.service_token("billing")] {
        let refused = checks(&service.client, &token).await;
        assert_refused(refused, Code::Unauthenticated, "INVALID_CREDENTIALS");
    }
}

#[tokio::test]
async fn an_accepted_token_is_rejected_after_its_expiry() {
    let (backends, files) = (Backends::start().await, Files::new());
    found(&backends).await;
    let signer = Signer::new("key");
    let keys = KeySource::File(files.write("keys.json", &signer.key_set()));
    let service = serve(&backends, token_settings(&files, keys)).await;
    let mut claims = service_claims("billing");
    // Clocks may differ by half a minute.
    let mut token = String::new();
    eventually("the token is accepted before its expiry", async || {
        claims["exp"] = (now() - 27).into();
        token = signer.sign(&claims);
        checks(&service.client, &token).await.is_ok()
    })
    .await;
    eventually("the token is rejected", async || {
        checks(&service.client, &token).await.is_err()
    })
    .await;
    let refused = checks(&service.client, &token).await;
    assert_refused(refused, Code::Unauthenticated, "INVALID_CREDENTIALS");
}

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// A certificate and its key, in PEM.
    pub fn issue(&self, names: Vec<SanType>) -> (String, String) {
        self.issue_as(names, |_| {})
    }

    /// A certificate with other parameters, and its key.
    pub fn issue_as(
        &self,
        names: Vec<SanType>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = names;
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn of_server(&self) -> (String, String) {
        self.issue(vec![dns("localhost")])
    }

    /// A revocation list with this serial number, in PEM.
    pub fn revoke(&self, serial: u64) -> String {
        let now = SystemTime::now();
        let revoked = RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_secs(3600)).into(),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    pub fn of_client(&self, uri: &str) -> Identity {
        self.of_named(vec![SanType::URI(uri.try_into().unwrap())])
    }

    fn of_named(&self, names: Vec<SanType>) -> Identity {
        let (certificate, key) = self.issue(names);
        Identity::from_pem(certificate, key)
    }
}

pub fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

pub fn tls_settings(files: &Files, server: &Authority, clients: &Authority) -> CallerSettings {
    let (certificate, key) = server.of_server();
    CallerSettings {
        policy: Some(files.path("policy.json")),
        tls_cert: Some(files.write("server.pem", &certificate)),
        tls_key: Some(files.write("server.key", &key)),
        tls_client_ca: Some(files.write("clients.pem", &clients.certificate)),
        ..CallerSettings::default()
    }
}

/// The same, for callers that may send tokens as well.
pub fn tls_and_token_settings(
    files: &Files,
    server: &Authority,
    clients: &Authority,
    keys: KeySource,
) -> CallerSettings {
    let tls = tls_settings(files, server, clients);
    CallerSettings {
        tls_cert: tls.tls_cert,
        tls_key: tls.tls_key,
        tls_client_ca: tls.tls_client_ca,
        ..token_settings(files, keys)
    }
}

/// A new connection.
pub async fn connect(
    addr: SocketAddr,
    server: &Authority,
    identity: Option<Identity>,
) -> Result<Client, tonic::transport::Error> {
    let root = Certificate::from_pem(&server.certificate);
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(root)
        .domain_name("localhost");
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    let endpoint = Channel::from_shared(format!("https://{addr}")).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect().await?;
    Ok(Client::new(channel))
}

/// A service that requires client certificates.
struct Certified {
    _backends: Backends,
    files: Files,
    server: Authority,
    clients: Authority,
    service: Replica,
}

impl Certified {
    async fn start() -> Self {
        let (backends, files) = (Backends::start().await, Files::new());
        found(&backends).await;
        let (server, clients) = (Authority::new(), Authority::new());
        let service = serve(&backends, tls_settings(&files, &server, &clients)).await;
        Self {
            _backends: backends,
            files,
            server,
            clients,
            service,
        }
    }

    /// A new connection.
    async fn connect(&self, identity: Identity) -> Client {
        let connected = connect(self.service.addr, &self.server, Some(identity));
        connected.await.unwrap()
    }

    /// Whether a check succeeds on a new connection.
    async fn serves(&self, identity: Option<Identity>) -> bool {
        match connect(self.service.addr, &self.server, identity).await {
            Ok(mut client) => client.check_membership(check()).await.is_ok(),
            Err(_) => false,
        }
    }
}

#[tokio::test]
async fn a_client_certificate_names_its_caller() {
    let certified = Certified::start().await;
    let (clients, service) = (&certified.clients, &certified.service);

    let frontend = clients.of_client("spiffe://example.org/frontend");
    let mut frontend = certified.connect(frontend).await;
    let response = frontend.check_membership(check()).await.unwrap();
    assert!(response.into_inner().is_member);
    let denied = frontend.add_user_to_organization(add(OLIVIA)).await;
    assert_refused(denied, Code::PermissionDenied, "ACTING_NOT_GRANTED");

    let stranger = clients.of_client("spiffe://example.org/stranger");
    let mut stranger = certified.connect(stranger).await;
    let denied = stranger.check_membership(check()).await;
    assert_refused(denied, Code::PermissionDenied, "METHOD_NOT_GRANTED");

    // Calls without a certificate, or with one of another authority, fail.
    let elsewhere = Authority::new().of_client("spiffe://example.org/frontend");
    for identity in [None, Some(elsewhere)] {
        assert!(!certified.serves(identity).await);
    }
    let plain = Channel::from_shared(format!("http://{}", service.addr)).unwrap();
    let is_served = match plain.connect().await {
        Ok(channel) => Client::new(channel).check_membership(check()).await.is_ok(),
        Err(_) => false,
    };
    assert!(!is_served);
}

#[tokio::test]
async fn a_certificate_names_its_caller_by_its_uri_or_else_by_its_dns_name() {
    let certified = Certified::start().await;
    let checked_by = async |names: Vec<SanType>| {
        let identity = certified.clients.of_named(names);
        let mut client = certified.connect(identity).await;
        client.check_membership(check()).await
    };
    let uri = |name: &str| SanType::URI(name.try_into().unwrap());
    let address = SanType::IpAddress([127, 0, 0, 1].into());
    checked_by(vec![address.clone(), dns("billing")])
        .await
        .unwrap();
    checked_by(vec![dns("stranger"), uri("spiffe://example.org/frontend")])
        .await
        .unwrap();
    // The URI takes precedence over the other names.
    let denied = checked_by(vec![dns("billing"), uri("spiffe://example.org/stranger")]).await;
    assert_refused(denied, Code::PermissionDenied, "METHOD_NOT_GRANTED");
    let nobody = checked_by(vec![address]).await;
    assert_refused(nobody, Code::Unauthenticated, "INVALID_CREDENTIALS");
}

#[tokio::test]
async fn a_caller_with_a_certificate_acts_for_the_user_of_the_token_it_sends() {
    let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
    found(&backends).await;
    let (server, clients) = (Authority::new(), Authority::new());
    let keys = KeySource::File(files.write("keys.json", &signer.key_set()));
    let settings = tls_and_token_settings(&files, &server, &clients, keys);
    let service = serve(&backends, settings).await;
    let frontend = clients.of_client("spiffe://example.org/frontend");
    let mut frontend = connect(service.addr, &server, Some(frontend))
        .await
        .unwrap();
    let token = signer.token(MICHAEL);
    let denied = frontend
        .add_user_to_organization(with(&token, add(OLIVIA)))
        .await;
    assert_refused(denied, Code::PermissionDenied, "ACTING_NOT_GRANTED");
    let token = signer.token(OLIVIA);
    let added = frontend
        .add_user_to_organization(with(&token, add(OLIVIA)))
        .await;
    added.unwrap();

    // A token alone is accepted, too.
    let client = connect(service.addr, &server, None).await.unwrap();
    assert!(
        checks(&client, &signer.service_token("billing"))
            .await
            .unwrap()
    );
    let unknown = client.clone().check_membership(check()).await;
    assert_refused(unknown, Code::Unauthenticated, "NO_CREDENTIALS");
}

#[tokio::test]
async fn a_changed_policy_is_used_and_an_invalid_one_is_rejected_without_a_restart() {
    let (backends, files, signer) = (Backends::start().await, Files::new(), Signer::new("one"));
    found(&backends).await;
    let keys = KeySource::File(files.write("keys.json", &signer.key_set()));
    let service = serve(&backends, token_settings(&files, keys)).await;
    let _follower = Replica::start_with(&backends.serve_settings(), following()).await;
    let policy = |methods: &[&str]| {
        json!({"callers": {"billing": {"token": {"client_id": "billing"}, "methods": methods}}})
            .to_string()
    };
    let token = signer.service_token("billing");
    files.write("policy.json", &policy(&["CheckMembership", "WatchChanges"]));
    let request = pb::WatchChangesRequest::default();
    let mut client = service.client.clone();
    let mut watch = None;
    eventually("the new policy grants the method", async || {
        let watching = client.watch_changes(with(&token, request.clone())).await;
        watch = watching.ok();
        watch.is_some()
    })
    .await;
    let mut watch = watch.unwrap().into_inner();
    files.write("policy.json", &policy(&["NoSuchMethod"]));
    // Longer than the interval of reading it.
    sleep(Duration::from_secs(6)).await;
    assert!(checks(&service.client, &token).await.unwrap());
    files.write("policy.json", &policy(&["GetUser"]));
    eventually("the method is not granted any more", async || {
        checks(&service.client, &token).await.is_err()
    })
    .await;
    let refused = checks(&service.client, &token).await;
    assert_refused(refused, Code::PermissionDenied, "METHOD_NOT_GRANTED");
    let ended = loop {
        match watch.message().await {
            Ok(Some(_)) => {}
            ended => break ended,
        }
    };
    assert_refused(ended, Code::Unavailable, "STOPPING");
    let refused = client.watch_changes(with(&token, request)).await;
    assert_refused(refused, Code::PermissionDenied, "METHOD_NOT_GRANTED");
}

#[tokio::test]
async fn certificates_are_renewed_without_a_restart() {
    let (backends, files) = (Backends::start().await, Files::new());
    found(&backends).await;
    let (old, new, clients) = (Authority::new(), Authority::new(), Authority::new());
    let service = serve(&backends, tls_settings(&files, &old, &clients)).await;
    let frontend = || Some(clients.of_client("spiffe://example.org/frontend"));
    let mut before = connect(service.addr, &old, frontend()).await.unwrap();
    before.check_membership(check()).await.unwrap();

    let (certificate, key) = new.of_server();
    // A certificate without its key is not usable: the former pair stays in use.
    files.write("server.pem", &certificate);
    connect(service.addr, &old, frontend()).await.unwrap();
    files.write("server.key", &key);
    eventually("the new certificate is in use", async || {
        connect(service.addr, &new, frontend()).await.is_ok()
    })
    .await;
    assert!(connect(service.addr, &old, frontend()).await.is_err());
    // Open connections stay open.
    before.check_membership(check()).await.unwrap();
}

#[tokio::test]
async fn client_root_certificates_are_renewed_without_a_restart() {
    let certified = Certified::start().await;
    let (files, old, new) = (&certified.files, &certified.clients, Authority::new());
    let is_accepted = async |clients: &Authority| {
        let frontend = clients.of_client("spiffe://example.org/frontend");
        certified.serves(Some(frontend)).await
    };
    assert!(is_accepted(old).await && !is_accepted(&new).await);
    // While clients move from one to the other, both are roots.
    let both = format!("{}{}", old.certificate, new.certificate);
    files.write("clients.pem", &both);
    eventually("the new root is in use", async || is_accepted(&new).await).await;
    assert!(is_accepted(old).await);
    files.write("clients.pem", &new.certificate);
    eventually("the old root is gone", async || !is_accepted(old).await).await;
    assert!(is_accepted(&new).await);
}

#[tokio::test]
async fn health_checks_are_served_without_tls_on_a_separate_address() {
    let (backends, files) = (Backends::start().await, Files::new());
    let (server, clients) = (Authority::new(), Authority::new());
    let mut settings = backends.serve_settings();
    let health_addr = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap()
    };
    settings.server.health_addr = Some(health_addr);
    settings.server.callers = tls_settings(&files, &server, &clients);
    let _service = Replica::start(&settings).await;
    let health = Channel::from_shared(format!("http://{health_addr}")).unwrap();
    let channel = health.connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    health.check(HealthCheckRequest::default()).await.unwrap();
    let nothing_else = Client::new(channel).check_membership(check()).await;
    assert_eq!(nothing_else.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn clients_that_never_finish_a_tls_handshake_do_not_block_others() {
    /// Three times the limit of concurrent handshakes: one after the other, their
    /// timeouts would exceed the time that the server grants a client.
    const SILENT: usize = 3 * 256;
    let certified = Certified::start().await;
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(
            tokio::net::TcpStream::connect(certified.service.addr)
                .await
                .unwrap(),
        );
    }
    let frontend = certified.clients.of_client("spiffe://example.org/frontend");
    // Includes the connection: silent clients could delay its TLS handshake.
    let served = async {
        let mut frontend = certified.connect(frontend).await;
        frontend.check_membership(check()).await
    };
    let response = tokio::time::timeout(Duration::from_secs(4), served).await;
    response.unwrap().unwrap();
    drop(silent);
}
