//! The binary as its users run it: settings, exit codes, output, and data that outlives it.

use std::{
    io::Read as _,
    process::{Command, Output, Stdio},
    time::Duration,
};

use account_service::{
    local::{self, ANY_PORT, momento},
    proto::account_v1 as pb,
};
use secrecy::ExposeSecret as _;
use temp_dir::TempDir;

use crate::{
    harness::{
        Backends, PATIENCE,
        binary::{Log, Server, command, free_address, over, scrape, serve_over},
        start,
    },
    streams::eventually,
};

fn text(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8(both).unwrap()
}

async fn create_olivia(server: &Server) {
    let request = pb::CreateUserRequest {
        username: "oliviaowner".to_owned(),
        ..pb::CreateUserRequest::default()
    };
    server.client().await.create_user(request).await.unwrap();
}

async fn has_olivia(server: &Server) -> bool {
    let request = pb::GetUserRequest {
        username: "oliviaowner".to_owned(),
        ..pb::GetUserRequest::default()
    };
    server.client().await.get_user(request).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn data_kept_in_a_directory_survives_a_kill_and_a_restart() {
    let dir = TempDir::new().unwrap();
    let server = Server::dev(dir.path());
    assert!(server.greeting.contains("grpcurl -plaintext -d"));
    assert!(!has_olivia(&server).await);
    create_olivia(&server).await;
    server.kill();

    let server = Server::dev(dir.path());
    assert!(has_olivia(&server).await);
    assert_eq!(server.terminate(), Some(0));

    let server = Server::dev(dir.path());
    assert!(has_olivia(&server).await);
}

/// Also while nobody waits for the signal yet. In a process of its own, which otherwise it ends.
#[tokio::test]
#[ignore = "run by the test below"]
async fn stop_signal_in_this_process() {
    let stop = account_service::boot::stop_signal();
    let own = std::process::id().to_string();
    let sent = Command::new("kill").args(["-TERM", &own]).status();
    assert!(sent.unwrap().success());
    tokio::time::timeout(PATIENCE, stop).await.unwrap();
}

#[test]
fn a_signal_before_the_service_waits_for_it_stops_the_service() {
    let test = "binary::stop_signal_in_this_process";
    let mut own = Command::new(std::env::current_exe().unwrap());
    let ran = own.args(["--exact", "--ignored", test]).output().unwrap();
    assert!(ran.status.success() && text(&ran).contains("1 passed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_a_table_and_exit_with_0_after_sigterm() {
    let backends = Backends::start().await;
    let first = Server::serve(&backends);
    let second = Server::serve(&backends);
    create_olivia(&first).await;
    assert!(has_olivia(&second).await);
    assert_eq!(first.terminate(), Some(0));
    assert!(has_olivia(&second).await);
    assert_eq!(second.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_finishes_a_write_whose_caller_has_left() {
    let backends = Backends::start().await;
    let server = Server::serve(&backends);
    let key = "USER#oliviaowner";
    let second = Duration::from_secs(1);
    backends
        .dynamodb
        .delay_about("TransactWriteItems", key, second);
    let mut client = server.client().await;
    let request = pb::CreateUserRequest {
        username: "oliviaowner".to_owned(),
        ..pb::CreateUserRequest::default()
    };
    let call = tokio::spawn(async move { client.create_user(request).await });
    eventually("the write is sent", async || {
        !backends.dynamodb.seen("TransactWriteItems").is_empty()
    })
    .await;
    call.abort();
    call.await.unwrap_err();
    let code = tokio::task::spawn_blocking(|| server.terminate()).await;
    assert_eq!(code.unwrap(), Some(0));
    assert!(backends.table().attributes_of(key, key).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_reports_whether_a_server_is_serving() {
    let dir = TempDir::new().unwrap();
    let server = Server::dev(dir.path());
    let addr = server.addr.clone();
    let (_, port) = addr.rsplit_once(':').unwrap();
    let by_name = format!("localhost:{port}");
    let probe = |addr: &str| command(&["healthcheck", "--addr", addr]).output().unwrap();
    assert_eq!(probe(&addr).status.code(), Some(0));
    assert_eq!(probe(&by_name).status.code(), Some(0));
    for odd in ["localhost", ":50051", "localhost:x"] {
        assert_eq!(probe(odd).status.code(), Some(64), "{odd}");
    }
    server.kill();
    let output = probe(&addr);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).starts_with(&format!("error: {addr} is not serving: ")));
}

#[test]
fn help_lists_every_setting_with_its_variable_and_default() {
    for (subcommand, settings) in [
        (
            "serve",
            &[
                "--listen-addr",
                "--table-name",
                "--cache-name",
                "--momento-secret-id",
                "--membership-ttl-s",
                "env: TABLE_NAME",
                "env: CACHE_NAME",
                "default: accounts-cache",
                "default: accounts/MomentoAuthToken",
                "default: 127.0.0.1:50051",
            ][..],
        ),
        ("dev", &["--data-dir", "env: DATA_DIR"]),
        ("setup", &["--table-name", "MOMENTO_API_KEY"]),
        ("healthcheck", &["--addr", "default: 127.0.0.1:50051"]),
    ] {
        let output = command(&[subcommand, "--help"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        let help = text(&output);
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for setting in settings {
            assert!(help.contains(setting), "{subcommand} {setting}\n{help}");
        }
    }
}

#[test]
fn a_bad_setting_is_named_and_exits_with_64() {
    for (arguments, named) in [
        (&[][..], "Usage:"),
        (&["fly"], "fly"),
        (&["serve"], "--table-name"),
        (&["serve", "--table-name", "a#b"], "--table-name"),
        (
            &["serve", "--table-name", "accounts", "--cache-name", ""],
            "--cache-name",
        ),
        (
            &["serve", "--table-name", "accounts", "--listen-addr", "x"],
            "--listen-addr",
        ),
        (
            &[
                "serve",
                "--table-name",
                "accounts",
                "--membership-ttl-s",
                "0",
            ],
            "--membership-ttl-s",
        ),
        (
            &[
                "serve",
                "--table-name",
                "accounts",
                "--dynamodb-endpoint",
                "localhost",
            ],
            "--dynamodb-endpoint",
        ),
        (&["dev", "--log", "=?="], "--log"),
    ] {
        let output = command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        let printed = text(&output);
        assert!(printed.contains(named), "{arguments:?}: {printed}");
        assert!(!printed.contains("panicked"), "{printed}");
    }
}

#[test]
fn a_bad_value_of_a_variable_is_reported_with_its_variable() {
    let serve = |name: &str, value: &str| {
        let mut command = command(&["serve", "--table-name", "accounts"]);
        command.env(name, value).output().unwrap()
    };
    for (name, value) in [
        ("LISTEN_ADDR", "localhost"),
        ("MEMBERSHIP_TTL_S", "0"),
        ("INSECURE", "perhaps"),
        ("LOG_FORMAT", "xml"),
        ("JWT_ALGORITHMS", "HS256"),
    ] {
        let output = serve(name, value);
        assert_eq!(output.status.code(), Some(64), "{name}");
        let printed = text(&output);
        assert!(
            printed.contains(name) && printed.contains(value),
            "{printed}"
        );
    }
    let mut flag = command(&["serve", "--table-name", "accounts", "--listen-addr", "x"]);
    let printed = text(&flag.output().unwrap());
    assert!(!printed.contains("LISTEN_ADDR"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_without_a_value_count_as_unset() {
    let backends = Backends::start().await;
    let mut command = serve_over(&backends);
    for name in [
        "METRICS_ADDR",
        "HEALTH_ADDR",
        "POLICY_FILE",
        "TLS_CERT",
        "JWKS",
        "JWT_ISSUER",
        "INSECURE",
        "MEMBERSHIP_TTL_S",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "STREAM_INVALIDATOR",
        "LOG_FORMAT",
    ] {
        command.env(name, "");
    }
    // A flag in the form that templates use.
    command.env("NO_REFLECTION", "1");
    let server = Server::start(command, "serving on", |_| true);
    create_olivia(&server).await;
    assert!(has_olivia(&server).await);
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn insecure_or_invalid_authentication_settings_are_rejected_at_the_start() {
    let folder = TempDir::new().unwrap();
    let policy = |text: &str| {
        let path = folder.child("policy.json");
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let granting = policy(r#"{"callers": {"a": {"certificate": "a", "methods": ["*"]}}}"#);
    let everywhere = ["--listen-addr", "0.0.0.0:0"];
    let loopback = ["--listen-addr", "127.0.0.1:0"];
    for (addr, arguments, named) in [
        (everywhere, vec![], "no policy"),
        (everywhere, vec!["--policy", &granting], "no TLS"),
        (
            loopback,
            vec!["--policy", &granting],
            "callers cannot authenticate",
        ),
        (loopback, vec!["--policy", "/nowhere"], "/nowhere"),
        (loopback, vec!["--jwks", "keys.json"], "--jwt-issuer"),
        (
            loopback,
            vec!["--jwt-algorithms", "HS256"],
            "shared secrets are not accepted",
        ),
        (loopback, vec!["--tls-cert", "server.pem"], "--tls-key"),
    ] {
        let base = ["serve", "--table-name", "accounts"];
        let all = [&base[..], &addr, &arguments].concat();
        let output = command(&all).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{all:?}");
        let printed = text(&output);
        assert!(printed.contains(named), "{all:?}: {printed}");
    }
    for (mistaken, named) in [
        (
            r#"{"callers": {"a": {"certificate": "a", "methods": ["Check"]}}}"#,
            "\"Check\", which is no method",
        ),
        // Policies in the old form, without the authentication method of each caller.
        (
            r#"{"callers": {"a": {"methods": ["*"]}}}"#,
            "add \"certificate\": \"a\"",
        ),
        (
            r#"{"users": {"methods": ["CheckMembership"]}}"#,
            "add \"token\": {}",
        ),
    ] {
        let mistaken = policy(mistaken);
        let mut serve = command(&["serve", "--table-name", "accounts", "--policy", &mistaken]);
        let output = serve.env("LISTEN_ADDR", "127.0.0.1:0").output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        let printed = text(&output);
        assert!(printed.contains(named), "{printed}");
        assert_eq!(printed.lines().count(), 1, "{printed}");
    }
}

#[test]
fn a_missing_region_is_reported_with_its_settings() {
    let mut command = command(&["serve", "--table-name", "accounts"]);
    command
        .env("LISTEN_ADDR", "127.0.0.1:0")
        .env_remove("AWS_REGION");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let printed = text(&output);
    assert_eq!(
        printed,
        "error: there is no AWS region; set --aws-region or AWS_REGION\n"
    );
}

/// Runs `serve` with a change that prevents its start; returns the error line.
fn refused(backends: &Backends, change: impl FnOnce(&mut Command)) -> String {
    let mut command = serve_over(backends);
    command.stderr(Stdio::piped());
    change(&mut command);
    let output = command.output().unwrap();
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(!printed.contains("panicked"), "{printed}");
    assert!(!printed.contains("test-secret-key"), "{printed}");
    assert!(!printed.contains("eyJ0IjoiZyJ9"), "{printed}");
    let error = printed.lines().find(|line| line.starts_with("error: "));
    error.unwrap_or_else(|| panic!("{printed}")).to_owned()
}

/// Stores invalid secrets, each named after its defect.
async fn store_bad_secrets(backends: &Backends, suffix: &str) {
    const KEY: &str = "e30.eyJ0IjoiZyJ9.x";
    let with_endpoint = |endpoint: &str| {
        format!(r#"{{"MOMENTO_API_KEY":"{KEY}","MOMENTO_ENDPOINT":"{endpoint}"}}"#)
    };
    let secrets = backends.secrets_client();
    for (name, text) in [
        ("not-json", "eyJ0IjoiZyJ9".to_owned()),
        ("no-key", r#"{"OTHER":"eyJ0IjoiZyJ9"}"#.to_owned()),
        (
            "bad-token",
            r#"{"MOMENTO_AUTH_TOKEN":"eyJ0IjoiZyJ9"}"#.to_owned(),
        ),
        ("plain-http", with_endpoint("http://example.com")),
        (
            "wrong-key",
            with_endpoint(&format!("http://{}", backends.embedded.momento.addr())),
        ),
    ] {
        let name = format!("{name}{suffix}");
        let create = secrets.create_secret().name(name).secret_string(text);
        create.send().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_reports_its_cause_in_one_line() {
    const SECRET: &str = "MOMENTO_SECRET_ID";
    let (backends, _replica) = start().await;
    // An external Secrets Manager may still have the secrets of an earlier run.
    let suffix = format!("-{}", uuid::Uuid::new_v4());
    store_bad_secrets(&backends, &suffix).await;
    for (variable, value, wrong, advice) in [
        (SECRET, "missing", "there is no such secret", "setup"),
        (
            SECRET,
            "not-json",
            "not a JSON object",
            "MOMENTO_AUTH_TOKEN",
        ),
        (SECRET, "no-key", "neither a string", "MOMENTO_API_KEY"),
        (
            SECRET,
            "bad-token",
            "is not a Momento token",
            "MOMENTO_API_KEY",
        ),
        (SECRET, "plain-http", "is plain http://", "MOMENTO_API_KEY"),
        (
            SECRET,
            "wrong-key",
            "rejects the credential",
            "valid Momento",
        ),
        ("CACHE_NAME", "no-cache", "there is no such cache", "setup"),
        ("TABLE_NAME", "no-table", "there is no such table", "setup"),
    ] {
        let value = format!("{value}{}", if variable == SECRET { &suffix } else { "" });
        let error = refused(&backends, |command| {
            command.env(variable, &value);
        });
        assert!(error.contains(wrong), "{variable}={value}: {error}");
        assert!(error.contains(advice), "{variable}={value}: {error}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = refused(&backends, |command| {
        command.env("LISTEN_ADDR", taken.local_addr().unwrap().to_string());
    });
    assert!(error.contains("cannot listen on"), "{error}");
}

/// Whether the binary's own health check succeeds.
fn is_healthy(server: &Server) -> bool {
    let check = command(&["healthcheck", "--addr", &server.addr]).output();
    check.unwrap().status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_backend_does_not_prevent_the_start_and_is_logged() {
    let backends = Backends::start().await;
    for (variable, advice, is_ready) in [
        ("AWS_ENDPOINT_URL_DYNAMODB", "--dynamodb-endpoint", false),
        (
            "AWS_ENDPOINT_URL_SECRETS_MANAGER",
            "--secrets-endpoint",
            true,
        ),
    ] {
        let log = Log::new();
        let mut command = serve_over(&backends);
        command.env(variable, DEAD_URL).stderr(log.file());
        let server = Server::start(command, "serving on", |_| true);
        assert_eq!(is_healthy(&server), is_ready, "{variable}");
        let printed = log.read();
        assert!(
            printed.contains("starting without"),
            "{variable}: {printed}"
        );
        assert!(printed.contains(advice), "{variable}: {printed}");
        assert_eq!(server.terminate(), Some(0), "{variable}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_appear_in_no_output_of_the_process() {
    let (backends, replica) = start().await;
    let secret = backends.embedded.momento.secret();
    let secret: serde_json::Value = serde_json::from_str(secret.expose_secret()).unwrap();
    let key = secret["MOMENTO_API_KEY"].as_str().unwrap();
    let secret_id = backends.serve_settings().backends.momento_secret_id;
    let signature = key.rsplit('.').next().unwrap();
    let log = Log::new();
    let metrics = free_address();
    let mut command = serve_over(&backends);
    command
        .env("METRICS_ADDR", metrics.to_string())
        .stderr(log.file());
    let server = Server::start(command, "serving on", |_| true);
    create_olivia(&server).await;
    assert!(has_olivia(&server).await);
    let mut printed = vec![scrape(metrics)];
    // One credential that Momento rejects, and one that it accepts.
    backends.embedded.momento.rotate_key();
    let mut client = server.client().await;
    let refused = client.create_user(pb::CreateUserRequest::default()).await;
    printed.push(format!("{:?}", refused.unwrap_err()));
    assert!(has_olivia(&server).await);
    backends
        .put_secret(&secret_id, &backends.embedded.momento)
        .await;
    assert!(has_olivia(&server).await);
    assert_eq!(server.terminate(), Some(0));
    printed.push(log.read());
    for arguments in [["serve", "--help"], ["setup", "--help"]] {
        let mut command = over(&backends, &arguments);
        let output = command.env("MOMENTO_API_KEY", key).output().unwrap();
        printed.push(text(&output));
    }
    let printed = printed.join("\n");
    drop(replica);
    assert!(printed.contains("TRACE"), "nothing was logged");
    for secret in [key, signature, "eyJ0IjoiZyJ9", "test-secret-key"] {
        let line = printed.lines().find(|line| line.contains(secret));
        assert_eq!(line, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn setup_creates_missing_resources_and_reports_them() {
    let dynamodb = local::dynamodb::start(ANY_PORT, None).unwrap();
    let secrets = local::secrets::start(ANY_PORT).await.unwrap();
    let momento = momento::start(ANY_PORT, std::sync::Arc::new(momento::OpenGate));
    let momento = momento.await.unwrap();
    let secret: serde_json::Value = serde_json::from_str(momento.secret().expose_secret()).unwrap();
    let run = |with_secret: bool| {
        let mut command = command(&["setup", "--table-name", "accounts"]);
        command
            .env(
                "AWS_ENDPOINT_URL_DYNAMODB",
                format!("http://{}", dynamodb.addr()),
            )
            .env(
                "AWS_ENDPOINT_URL_SECRETS_MANAGER",
                format!("http://{}", secrets.addr()),
            );
        for name in ["MOMENTO_API_KEY", "MOMENTO_ENDPOINT"] {
            if with_secret {
                command.env(name, secret[name].as_str().unwrap());
            }
        }
        command.output().unwrap()
    };
    let output = run(false);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("MOMENTO_API_KEY"),
        "{}",
        text(&output)
    );

    let printed = text(&run(true));
    assert!(
        printed.contains("secret accounts/MomentoAuthToken: created"),
        "{printed}"
    );
    assert!(
        printed.contains("cache accounts-cache: created"),
        "{printed}"
    );
    let printed = text(&run(false));
    assert!(printed.contains("table accounts: exists"), "{printed}");
    assert!(
        printed.contains("secret accounts/MomentoAuthToken: exists"),
        "{printed}"
    );
    assert!(
        printed.contains("cache accounts-cache: exists"),
        "{printed}"
    );
}

#[test]
fn dev_rejects_a_data_directory_that_is_a_file_or_in_use() {
    let folder = TempDir::new().unwrap();
    let file = folder.child("a-file");
    std::fs::write(&file, "").unwrap();
    let used = folder.child("used");
    let server = Server::dev(&used);
    for dir in [&file, &used] {
        let mut child = command(&["dev", "--listen-addr", "127.0.0.1:0", "--data-dir"])
            .arg(dir)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut printed = String::new();
        let stderr = child.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut printed).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert!(printed.contains("--data-dir"), "{printed}");
    }
    server.kill();
    drop(Server::dev(&used));
}

/// No process listens on port 1.
const DEAD_URL: &str = "http://127.0.0.1:1";

/// Runs the binary over these backends with this standard input.
fn run_over(backends: &Backends, subcommand: &str, input: &str) -> Output {
    use std::io::Write as _;
    let mut command = over(backends, &[subcommand]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn invalidate_fences_the_records_of_a_stream_event() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    service.settle().await;
    let key = "USER#oliviaowner";
    let table = backends.table();
    table.set_text(key, key, "firstName", "Changed").await;
    assert_eq!(
        service.get_user("oliviaowner").await.unwrap().0.first_name,
        "First"
    );
    let event = r#"{"Records":[
        {"eventName":"MODIFY","dynamodb":{"Keys":{"PK":{"S":"USER#oliviaowner"},"SK":{"S":"USER#oliviaowner"}}}},
        {"eventName":"MODIFY","dynamodb":{"Keys":{"PK":{"S":"SERVICE#x"},"SK":{"S":"SERVICE#x"}}}}
    ]}"#;
    let output = run_over(&backends, "invalidate", event);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, b"1 records fenced\n");
    assert_eq!(
        service.get_user("oliviaowner").await.unwrap().0.first_name,
        "Changed"
    );

    let output = run_over(&backends, "invalidate", "garbage");
    assert_eq!(output.status.code(), Some(1));
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(printed.contains("not a DynamoDB stream event"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn setup_reports_items_that_are_not_served_as_written() {
    let backends = Backends::start().await;
    let table = backends.table();
    let output = run_over(&backends, "setup", "");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(!printed.contains("warning"), "{printed}");
    let long = "x".repeat(257);
    for name in ["a\nb", "fine", &long] {
        let key = format!("USER#{name}");
        table.put(&[("PK", &key), ("SK", &key)]).await;
    }
    for number in 0..7 {
        let member = format!("MEMBER#{number}");
        let pk = "ORGMEMBERS#olivia-org";
        table
            .put(&[("PK", pk), ("SK", &member), ("role", "Viewer")])
            .await;
    }
    // Memberships have no state.
    let invited = [
        ("PK", "ORGMEMBERS#olivia-org"),
        ("SK", "MEMBER#invited"),
        ("role", "Member"),
        ("state", "INVITED"),
    ];
    table.put(&invited).await;
    let key = "ORG#olivia-org";
    table
        .put(&[("PK", key), ("SK", key), ("state", "Banned")])
        .await;
    // An item of another application, and a tombstone of the service.
    let other = ("USER#fine", "SESSION#1");
    table.put(&[("PK", other.0), ("SK", other.1)]).await;
    let gone = "USER#gone";
    table
        .put(&[("PK", gone), ("SK", gone), ("state", "TOMBSTONE")])
        .await;
    let output = run_over(&backends, "setup", "");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let warnings: Vec<_> = printed.lines().skip(3).collect();
    let mut expected = vec![
        "warning: 2 records are not served: their names are over 256 bytes or have control characters",
        r#"  PK="USER#a\nb" SK="USER#a\nb""#,
    ];
    let too_long = format!(r#"  PK="USER#{long}" SK="USER#{long}""#);
    assert!(warnings.contains(&too_long.as_str()), "{printed}");
    expected.extend([
        "warning: 7 memberships grant nothing: their roles are none of Owner, Admin and Member",
        "  and 2 more",
        "warning: 1 users and organizations count as suspended: their states are neither ACTIVE nor SUSPENDED",
        r#"  PK="ORG#olivia-org" SK="ORG#olivia-org""#,
    ]);
    for line in expected {
        assert!(warnings.contains(&line), "{line}\n{printed}");
    }
    let examples = warnings.iter().filter(|line| line.starts_with("  PK="));
    assert_eq!(examples.count(), 2 + 5 + 1);
    // Setup puts only records into an index.
    let attributes = table.attributes_of(gone, gone).await.unwrap();
    assert_eq!(attributes, ["PK", "SK", "state"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn flush_reports_when_no_older_entry_is_used_any_more() {
    let (backends, service) = start().await;
    service.found_olivia_org().await;
    let output = run_over(&backends, "flush", "");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        printed.contains("earlier entries are not used any more"),
        "{printed}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_served_at_the_configured_address() {
    let (backends, addr) = (Backends::start().await, free_address());
    let mut command = serve_over(&backends);
    command.env("METRICS_ADDR", addr.to_string());
    let _server = Server::start(command, "serving on", |_| true);
    // Waits until the invalidator has its lease and has read the stream for the first time.
    let names = [
        "account_cache_in_use 1",
        "account_invalidator_active 1",
        "account_invalidator_lag_seconds 0",
    ];
    let patience = std::time::Instant::now() + crate::harness::PATIENCE;
    while !names.iter().all(|name| scrape(addr).contains(name)) {
        assert!(std::time::Instant::now() < patience, "{}", scrape(addr));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_endpoint_counts_as_unset() {
    let backends = Backends::start().await;
    let endpoint = backends.serve_settings().backends.dynamodb_endpoint;
    let flushed = over(&backends, &["flush"])
        .env("AWS_ENDPOINT_URL_DYNAMODB", "")
        .env("AWS_ENDPOINT_URL", endpoint.unwrap())
        .output()
        .unwrap();
    assert_eq!(flushed.status.code(), Some(0), "{}", text(&flushed));
}
