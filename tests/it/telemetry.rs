//! Telemetry of the process: metrics that dashboard and alerts rely on, traces, and logs
//! without names of users.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use account_service::{local::ANY_PORT, proto::account_v1 as pb, telemetry};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::{Span, span::SpanKind},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server as GrpcServer};

use crate::{
    changes::Watch,
    harness::{
        Backends, Client,
        binary::{Log, Server, free_address, over, scrape, serve_over},
        script::Script,
    },
    modules::sources,
    streams::eventually,
};

const ORG: &str = "olivia-org";
const OLIVIA: &str = "oliviaowner";

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The names of the metrics in a text, as in Prometheus.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_lowercase() && letter != '_');
    let names = words.filter(|word| word.starts_with("account_"));
    let names = names.map(|name| {
        let parts = ["_bucket", "_count", "_sum"];
        let base = parts.iter().find_map(|part| name.strip_suffix(part));
        base.unwrap_or(name).to_owned()
    });
    names.collect()
}

async fn found_olivia_org(client: &mut Client) {
    let request = pb::CreateUserRequest {
        username: OLIVIA.to_owned(),
        first_name: "Oliviafirst".to_owned(),
        last_name: "Olivialast".to_owned(),
        email: "olivia.secretive@example.com".to_owned(),
        ..pb::CreateUserRequest::default()
    };
    client.create_user(request).await.unwrap();
    let request = pb::CreateOrganizationRequest {
        organization_name: ORG.to_owned(),
        founding_user: OLIVIA.to_owned(),
        ..pb::CreateOrganizationRequest::default()
    };
    client.create_organization(request).await.unwrap();
}

/// A server that exports its metrics at this address.
fn with_metrics(backends: &Backends) -> (Server, SocketAddr) {
    let addr = free_address();
    let mut command = serve_over(backends);
    command.env("METRICS_ADDR", addr.to_string());
    (Server::start(command, "serving on", |_| true), addr)
}

fn check() -> pb::CheckMembershipRequest {
    pb::CheckMembershipRequest {
        organization_name: ORG.to_owned(),
        username: OLIVIA.to_owned(),
        ..pb::CheckMembershipRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_exported_and_known_to_dashboard_and_alerts() {
    let backends = Backends::start().await;
    let (server, addr) = with_metrics(&backends);
    let mut client = server.client().await;
    found_olivia_org(&mut client).await;
    client.check_membership(check()).await.unwrap();
    let all: BTreeSet<_> = telemetry::ALL
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    eventually("all metrics are exported", async || {
        metrics_in(&scrape(addr)) == all
    })
    .await;

    let dashboard = metrics_in(&file("deploy/grafana/dashboard.json"));
    assert_eq!(dashboard, all, "metrics of the dashboard");
    let alerts = metrics_in(&file("deploy/prometheus/alerts.yaml"));
    assert!(alerts.is_subset(&all), "{alerts:?}");
    assert!(alerts.len() > 10, "{alerts:?}");

    let (exported, code) = (scrape(addr), sources());
    let mut known = 0;
    for path in [
        "deploy/grafana/dashboard.json",
        "deploy/prometheus/alerts.yaml",
    ] {
        for (metric, label, value) in selected(&file(path)) {
            let label_of_it = format!("{label}=\"");
            let mut series = exported.lines().filter(|line| line.starts_with(&metric));
            assert!(
                series.any(|line| line.contains(&label_of_it)),
                "{path}: {metric} has no label {label}"
            );
            let is_exported = exported.contains(&format!("{label_of_it}{value}\""));
            assert!(
                is_exported
                    || code
                        .iter()
                        .any(|(_, text)| text.contains(&format!("\"{value}\""))),
                "{path}: {label} of {metric} is never {value}"
            );
            known += 1;
        }
    }
    assert!(known > 15, "{known}");
}

/// The label values that queries select, without the label that Prometheus adds.
fn selected(queries: &str) -> Vec<(String, String, String)> {
    let queries = queries.replace("\\\"", "\"");
    let mut found = Vec::new();
    for (place, _) in queries.match_indices("account_") {
        let rest = &queries[place..];
        let end = rest.find(|letter: char| !letter.is_ascii_lowercase() && letter != '_');
        let (metric, rest) = rest.split_at(end.unwrap_or(rest.len()));
        let Some((selector, _)) = rest.strip_prefix('{').and_then(|it| it.split_once('}')) else {
            continue;
        };
        for part in selector.split("\",") {
            let (label, values) = part.split_once(['=', '!']).unwrap();
            if label == "job" {
                continue;
            }
            let values = values.trim_matches(['=', '~', '"']).split('|');
            found.extend(values.map(|it| (metric.to_owned(), label.to_owned(), it.to_owned())));
        }
    }
    found
}

#[test]
fn every_alert_has_its_paragraph_in_the_operations_manual() {
    let manual = file("docs/operations.md");
    let alerts = file("deploy/prometheus/alerts.yaml");
    let names = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let names: Vec<_> = names.collect();
    assert!(names.len() > 10);
    for name in names {
        assert!(manual.contains(&format!("| `{name}` |")), "{name}");
    }
}

/// Receives spans.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let of_resources = request.into_inner().resource_spans.into_iter();
        let of_scopes = of_resources.flat_map(|resource| resource.scope_spans);
        let spans = of_scopes.flat_map(|scope| scope.spans);
        self.0.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = TcpListener::bind(ANY_PORT).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serve = GrpcServer::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serve);
        (collector, url)
    }

    /// The spans below this one.
    fn below(&self, parent: &Span) -> Vec<Span> {
        let spans = self.0.lock().unwrap();
        let below = spans
            .iter()
            .filter(|span| span.parent_span_id == parent.span_id)
            .inspect(|span| assert_eq!(span.trace_id, parent.trace_id));
        below.cloned().collect()
    }

    /// The names of the calls to backends below this span, with the number of each.
    fn calls_below(&self, parent: &Span) -> BTreeMap<String, usize> {
        let mut names = BTreeMap::new();
        for span in self.below(parent) {
            assert_eq!(span.kind(), SpanKind::Client);
            *names.entry(span.name).or_default() += 1;
        }
        names
    }

    /// The span of the call that was made in this trace.
    fn call(&self, trace_id: &[u8]) -> Option<Span> {
        let spans = self.0.lock().unwrap();
        let mut calls = spans
            .iter()
            .filter(|span| span.kind() == SpanKind::Server && span.trace_id == trace_id);
        calls.next().cloned()
    }
}

/// The `tracestate` of a caller.
const STATE: &str = "vendor=7";

/// The W3C `traceparent` header of a span of this trace.
fn traceparent(trace: u8, span: &[u8], is_sampled: bool) -> String {
    let span = u64::from_be_bytes(span.try_into().unwrap());
    let (trace, flags) = (format!("{trace:02x}").repeat(16), u8::from(is_sampled));
    format!("00-{trace}-{span:016x}-{flags:02x}")
}

/// A call in a trace. The caller decides whether it is sampled.
fn in_trace<T>(trace: u8, is_sampled: bool, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let parent = traceparent(trace, &[0xb7; 8], is_sampled);
    let metadata = request.metadata_mut();
    metadata.insert("traceparent", parent.parse().unwrap());
    metadata.insert("tracestate", STATE.parse().unwrap());
    request
}

fn traced<T>(trace: u8, message: T) -> Request<T> {
    in_trace(trace, true, message)
}

/// Whether a backend has received the headers of this span.
fn has_received(backend: &Script, trace: u8, span: &Span) -> bool {
    let headers = format!("{} {STATE}", traceparent(trace, &span.span_id, true));
    backend.traces().contains(&headers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_traced_from_its_caller_to_the_backends() {
    let backends = Backends::start().await;
    let (collector, url) = Collector::start().await;
    let log = Log::new();
    let mut command = serve_over(&backends);
    command
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        // The decision of the caller takes precedence.
        .env("OTEL_TRACES_SAMPLER_ARG", "0")
        .env("LOG_FORMAT", "json")
        .stderr(log.file());
    let server = Server::start(command, "serving on", |_| true);
    let mut client = server.client().await;
    let mut watch = Watch::begin(&client).await;
    found_olivia_org(&mut client).await;
    // Waits until the changes of the stream are fenced: a later fence would prevent leases.
    watch.changes(3).await.unwrap();
    drop(watch);
    let request = pb::RemoveUserFromOrganizationRequest {
        organization_name: ORG.to_owned(),
        member_username: OLIVIA.to_owned(),
        acting_user: OLIVIA.to_owned(),
        ..pb::RemoveUserFromOrganizationRequest::default()
    };
    let refused = client
        .remove_user_from_organization(traced(1, request))
        .await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::FailedPrecondition);
    backends.flush_cache().await;
    client.check_membership(traced(2, check())).await.unwrap();
    backends.dynamodb.refuse("BatchGetItem", "", 0, usize::MAX);
    backends.flush_cache().await;
    let failed = client.check_membership(traced(3, check())).await;
    assert_eq!(failed.unwrap_err().code(), tonic::Code::Unavailable);
    // The end of the process exports the remaining spans.
    assert_eq!(server.terminate(), Some(0));

    let removal = collector.call(&[1; 16]).unwrap();
    assert_eq!(
        removal.name,
        "account.v1.AccountService/RemoveUserFromOrganization"
    );
    assert_eq!(removal.parent_span_id, [0xb7; 8]);
    assert!(collector.calls_below(&removal).contains_key("SetIf"));
    let checked = collector.call(&[2; 16]).unwrap();
    let below = collector.calls_below(&checked);
    assert_eq!((below["GetBatch"], below["SetIf"]), (1, 3), "{below:?}");
    assert_eq!(below["BatchGetItem"], 1, "{below:?}");
    // Backends receive the trace and the span of each call.
    for (script, operation) in [
        (&backends.momento, "GetBatch"),
        (&backends.dynamodb, "BatchGetItem"),
    ] {
        let mut spans = collector.below(&checked).into_iter();
        let span = spans.find(|span| span.name == operation).unwrap();
        assert!(has_received(script, 2, &span), "{:?}", script.traces());
    }
    let failed = collector.call(&[3; 16]).unwrap();
    assert_eq!(failed.status.as_ref().unwrap().code, 2, "{failed:?}");
    let spans = collector.0.lock().unwrap();
    let calls = spans.iter().filter(|span| span.kind() == SpanKind::Server);
    assert_eq!(calls.count(), 3, "calls without a trace were exported");
    // The log line of the failed table operation has its trace.
    let logged = log.read();
    let line = logged
        .lines()
        .find(|line| line.contains("table operation failed"));
    assert!(line.unwrap().contains(&"03".repeat(16)), "{line:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_age_of_a_credential_is_that_of_its_secret_and_not_of_the_process() {
    let backends = Backends::start().await;
    let put_before = SystemTime::now();
    // Long enough to distinguish, in seconds, when the secret was stored and when it was read.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (_server, addr) = with_metrics(&backends);
    let metrics = scrape(addr);
    let exported = metrics
        .lines()
        .find_map(|line| line.strip_prefix("account_cache_credential_timestamp_seconds "));
    let exported = Duration::from_secs_f64(exported.unwrap().parse().unwrap());
    let put_before = put_before.duration_since(UNIX_EPOCH).unwrap();
    assert!(exported <= put_before, "{exported:?}, {put_before:?}");
    assert!(
        exported + Duration::from_secs(60) > put_before,
        "{exported:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_report_that_the_circuit_breaker_opens_and_closes() {
    let backends = Backends::start().await;
    let (server, addr) = with_metrics(&backends);
    let mut client = server.client().await;
    found_olivia_org(&mut client).await;
    let exported = |value| {
        let lines = ["short", "long"].map(|look_ups| {
            let value = if look_ups == "short" { value } else { 0 };
            format!("account_cache_breaker_open{{look_ups=\"{look_ups}\"}} {value}\n")
        });
        let metrics = scrape(addr);
        lines.iter().all(|line| metrics.contains(line))
    };
    assert!(exported(0));
    backends.momento.delay("GetBatch", Duration::from_secs(60));
    eventually("the circuit breaker is open", async || {
        client.clone().check_membership(check()).await.unwrap();
        exported(1)
    })
    .await;
    backends.momento.clear_rules();
    eventually("the circuit breaker is closed", async || {
        client.clone().check_membership(check()).await.unwrap();
        exported(0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_no_user() {
    let backends = Backends::start().await;
    let log = Log::new();
    let mut command = over(&backends, &["serve"]);
    command
        .env("LOG", "debug,h2=info,hyper=info,tower=info")
        .stderr(log.file());
    let server = Server::start(command, "serving on", |_| true);
    let mut client = server.client().await;
    found_olivia_org(&mut client).await;
    // Failures are logged, too.
    assert!(
        client
            .create_user(pb::CreateUserRequest {
                username: OLIVIA.to_owned(),
                ..pb::CreateUserRequest::default()
            })
            .await
            .is_err()
    );
    for call in ["BatchGetItem", "TransactWriteItems", "GetItem"] {
        backends.dynamodb.refuse(call, "", 0, 20);
    }
    backends.flush_cache().await;
    let _ = client.check_membership(check()).await;
    let request = pb::SuspendUserRequest {
        username: OLIVIA.to_owned(),
        ..pb::SuspendUserRequest::default()
    };
    let _ = client.suspend_user(request).await;
    backends.dynamodb.clear_rules();
    assert_eq!(server.terminate(), Some(0));
    let logged = log.read();
    assert!(logged.contains("table operation failed"), "{logged}");
    for word in [OLIVIA, "Oliviafirst", "Olivialast", "olivia.secretive"] {
        let line = logged.lines().find(|line| line.contains(word));
        assert_eq!(line, None);
    }
}
