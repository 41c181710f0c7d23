//! Traces: spans of calls and of their calls to backends, exported by OTLP, in the caller's
//! trace.

use std::{collections::HashMap, time::Duration};

use http::{HeaderMap, HeaderName};
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{TraceContextExt as _, TraceId, TracerProvider as _},
};
use opentelemetry_otlp::{
    ExporterBuildError, RetryPolicy, SpanExporter, WithExportConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider},
};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tracing::{Level, Span, Subscriber, field};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

/// Prefix of the targets of all spans. Filters compare prefixes, so the name of no module may
/// begin with it.
pub(super) const TARGETS: &str = "traces";
/// Target of the spans of calls.
pub(super) const CALL: &str = "traces::call";
/// Target of the spans of calls to backends.
const CLIENT: &str = "traces::client";
/// Header with the caller's trace and span, defined by W3C Trace Context.
static CONTEXT_HEADER: HeaderName = HeaderName::from_static("traceparent");
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the export of the last spans when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Most spans that wait for export. Further spans are lost.
const MAX_WAITING: usize = 4096;
/// Most spans of one export.
const MAX_BATCH: usize = 512;
/// Pause between two exports.
const EXPORT_PAUSE: Duration = Duration::from_secs(2);
/// Longest header of a caller's trace in requests to backends, in bytes: as much as W3C
/// requires to pass on.
const MAX_STATE_BYTES: usize = 512;
/// gRPC codes that are failures of the server: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED,
/// INTERNAL, UNAVAILABLE and DATA_LOSS, by OpenTelemetry's conventions for RPC servers.
const SERVER_FAULTS: [u16; 6] = [2, 4, 12, 13, 14, 15];

/// The reason why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The address of the collector cannot be used.
    #[error("{0}")]
    Endpoint(#[from] tonic::transport::Error),
    /// The exporter cannot be built.
    #[error("{0}")]
    Exporter(#[from] ExporterBuildError),
}

/// The export of traces.
#[derive(Debug, Clone)]
pub struct TraceExport {
    /// Address of the collector, which accepts OTLP over gRPC.
    pub endpoint: String,
    /// Share of traced calls, from 0 to 1, among the calls whose caller has not decided.
    pub ratio: f64,
}

/// Exports traces until it is ended.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Must be called within a runtime.
    pub(super) fn new(export: &TraceExport) -> Result<Self, TracesError> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_channel(channel(&export.endpoint)?)
            .with_timeout(EXPORT_TIMEOUT)
            .with_retry_policy(RetryPolicy::default().with_max_retries(1))
            .build()?;
        let batch = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_WAITING)
            .with_max_export_batch_size(MAX_BATCH)
            .with_scheduled_delay(EXPORT_PAUSE)
            .build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batch);
        let resource = Resource::builder()
            .with_service_name(env!("CARGO_PKG_NAME"))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let sampler = Sampler::TraceIdRatioBased(export.ratio);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor.build())
            .with_sampler(Sampler::parent_based(sampler))
            .with_resource(resource)
            .build();
        Ok(Self(provider))
    }

    pub(super) fn layer<S: Subscriber + for<'span> LookupSpan<'span>>(
        &self,
    ) -> impl Layer<S> + use<S> {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer(env!("CARGO_PKG_NAME")))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            // Without the spans of the export itself.
            .with_filter(Targets::new().with_target(TARGETS, Level::INFO))
    }

    /// Exports the remaining spans, within a bounded time. The runtime must still run.
    pub async fn end(self) {
        let flushed = move || self.0.shutdown_with_timeout(FLUSH_TIMEOUT);
        match tokio::task::spawn_blocking(flushed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "not all traces were exported"),
            Err(error) => tracing::warn!(%error, "not all traces were exported"),
        }
    }
}

fn channel(endpoint: &str) -> Result<Channel, tonic::transport::Error> {
    let mut endpoint = Endpoint::from_shared(endpoint.to_owned())?
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(EXPORT_TIMEOUT);
    if endpoint.uri().scheme() == Some(&http::uri::Scheme::HTTPS) {
        endpoint = endpoint.tls_config(ClientTlsConfig::new().with_enabled_roots())?;
    }
    Ok(endpoint.connect_lazy())
}

struct HeaderExtractor<'a>(&'a HeaderMap);

impl Extractor for HeaderExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// The span of a call to the service.
#[derive(Debug, Clone)]
pub struct CallSpan(Span);

impl CallSpan {
    /// Begins the span of a call, in the trace that its headers name. Without such a trace and
    /// without a collector, there is no span.
    #[must_use]
    pub fn begin(service: &str, method: &str, headers: &HeaderMap) -> Self {
        let is_traced = headers.contains_key(&CONTEXT_HEADER);
        if !is_traced && !is_exported() {
            return Self(Span::none());
        }
        let span = tracing::info_span!(
            target: CALL, parent: None, "call",
            otel.name = format_args!("{service}/{method}"),
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method,
            rpc.grpc.status_code = field::Empty,
            otel.status_code = field::Empty,
            trace_id = field::Empty,
        );
        let caller = TraceContextPropagator::new()
            .extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let of_caller = caller.span().span_context().trace_id();
        // Fails without an export. The log still has the trace id.
        let _ = span.set_parent(caller);
        let trace_id = trace_id(&span).unwrap_or(of_caller);
        if trace_id != TraceId::INVALID {
            span.record("trace_id", field::display(trace_id));
        }
        Self(span)
    }

    /// The span in which the call runs.
    #[must_use]
    pub fn span(&self) -> &Span {
        &self.0
    }

    /// Ends the call with a gRPC code.
    pub fn end(&self, code: u16) {
        self.0.record("rpc.grpc.status_code", code);
        if SERVER_FAULTS.contains(&code) {
            fail(&self.0);
        }
    }
}

/// The span of a call to a backend. None if it would not be exported.
pub(super) fn client_span(system: &'static str, operation: &'static str) -> Span {
    seen(|| {
        tracing::info_span!(
            target: CLIENT, "client",
            otel.name = operation,
            otel.kind = "client",
            otel.status_code = field::Empty,
            db.system.name = system,
            db.operation.name = operation,
        )
    })
}

/// The span, if it is part of a call and exported. Its own context decides, because its parent
/// may be a span of a library, for the log.
fn seen(span: impl FnOnce() -> Span) -> Span {
    if Span::current().is_none() {
        return Span::none();
    }
    let span = span();
    if span.context().span().span_context().is_sampled() {
        span
    } else {
        Span::none()
    }
}

/// W3C's headers with the span of a call to a backend.
pub(super) fn headers_of(span: &Span) -> HashMap<String, String> {
    let mut headers = HashMap::new();
    if !span.is_none() {
        TraceContextPropagator::new().inject_context(&span.context(), &mut headers);
        headers.retain(|_, value| (1..=MAX_STATE_BYTES).contains(&value.len()));
    }
    headers
}

pub(super) fn fail(span: &Span) {
    span.record("otel.status_code", "ERROR");
}

fn is_exported() -> bool {
    tracing::enabled!(target: CLIENT, Level::INFO)
}

fn trace_id(span: &Span) -> Option<TraceId> {
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    context.is_valid().then(|| context.trace_id())
}
