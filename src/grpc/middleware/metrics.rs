//! Metrics and traces of calls: counts and times each call, continues its caller's trace, and
//! charges its response to the connection until the client has received it.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response};
use http_body::{Body as _, Frame};
use metrics::{Gauge, Histogram};
use pin_project_lite::pin_project;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use crate::grpc::{deadline, methods::ByMethod};
use crate::{
    telemetry::{CallSpan, RPC_DURATION, RPCS_UNDER_WAY},
    transport::listener::{MemoryCharge, Peer},
};

/// Bytes of a response that the transport gets at a time: it keeps them until the client
/// receives them.
const CHUNK: usize = 16 * 1024;
/// Bytes that an unreceived response costs besides its messages.
const RESPONSE_OVERHEAD: usize = 2048;
/// Largest message that is not charged, in bytes. The transport keeps a larger one
/// whole until its last byte is sent.
const MAX_SMALL_MESSAGE: usize = 1024;
/// Codes of gRPC: 0 to 16.
const CODES: usize = 17;
/// Name of the service in traces, except for methods of other services.
const SERVICE: &str = "account.v1.AccountService";
static STATUS_HEADER: HeaderName = HeaderName::from_static("grpc-status");

/// Records metrics and traces of the account service's calls.
#[derive(Debug, Clone)]
pub struct MetricsLayer(Arc<ByMethod<MethodMetrics>>);

impl MetricsLayer {
    /// Create it after the metrics recorder.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(ByMethod::new(|name, _| {
            let (service, method) = name.split_once('/').unwrap_or((SERVICE, name));
            MethodMetrics {
                service: service.to_owned(),
                method: method.to_owned(),
                name: name.to_owned(),
                under_way: metrics::gauge!(RPCS_UNDER_WAY, "rpc" => name.to_owned()),
                durations: std::array::from_fn(|_| OnceLock::new()),
            }
        })))
    }
}

impl Default for MetricsLayer {
    fn default() -> Self {
        Self::new()
    }
}

/// Metrics of a method's calls.
#[derive(Debug)]
struct MethodMetrics {
    /// The name of the service in traces.
    service: String,
    /// The name of the method in traces.
    method: String,
    /// The name of the method in metrics.
    name: String,
    under_way: Gauge,
    /// By code. A code that was never returned has no histogram.
    durations: [OnceLock<Histogram>; CODES],
}

impl MethodMetrics {
    fn duration(&self, code: Code) -> Option<&Histogram> {
        let duration = self.durations.get(code as usize)?;
        Some(duration.get_or_init(|| {
            let (rpc, code) = (self.name.clone(), code_name(code));
            metrics::histogram!(RPC_DURATION, "rpc" => rpc, "code" => code)
        }))
    }
}

/// A running call, which ends when this is dropped.
#[derive(Debug)]
struct CallMetrics {
    method: Arc<MethodMetrics>,
    /// The charge of the response besides its messages, until the call ends.
    charge: Option<MemoryCharge>,
    began: Instant,
    /// The time granted to the call.
    granted: Duration,
    /// The status code. `None` until the response has one.
    code: Option<Code>,
    span: CallSpan,
}

impl CallMetrics {
    fn begin(
        method: Arc<MethodMetrics>,
        charge: Option<MemoryCharge>,
        headers: &HeaderMap,
    ) -> Self {
        method.under_way.increment(1);
        Self {
            span: CallSpan::begin(&method.service, &method.method, headers),
            method,
            charge,
            began: Instant::now(),
            granted: deadline::granted(headers, deadline::DEFAULT_DEADLINE),
            code: None,
        }
    }

    /// The same bytes, charged to the connection until their last part is dropped.
    fn charge_until_sent(&self, data: Bytes) -> Bytes {
        match &self.charge {
            Some(charge) if data.len() > MAX_SMALL_MESSAGE => {
                let mut charge = charge.another();
                charge.add(data.len());
                Bytes::from_owner(ChargedBytes {
                    data,
                    _held: charge,
                })
            }
            _ => data,
        }
    }

    fn record_status(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get(&STATUS_HEADER) {
            self.code = Some(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for CallMetrics {
    fn drop(&mut self) {
        self.method.under_way.decrement(1);
        let took = self.began.elapsed();
        // The transport drops a call at its deadline, without a code.
        let code = self.code.unwrap_or(if took >= self.granted {
            Code::DeadlineExceeded
        } else {
            Code::Cancelled
        });
        if let Some(duration) = self.method.duration(code) {
            duration.record(took);
        }
        self.span.end(code as u16);
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = Observation<S>;

    fn layer(&self, inner: S) -> Observation<S> {
        Observation {
            methods: self.0.clone(),
            inner,
        }
    }
}

/// A service with metrics and traces of its calls.
#[derive(Debug, Clone)]
pub struct Observation<S> {
    methods: Arc<ByMethod<MethodMetrics>>,
    inner: S,
}

impl<S, B> Service<Request<B>> for Observation<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Observed<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let method = self.methods.get(request.uri().path()).cloned();
        let charge = request.extensions().get::<Peer>().map(Peer::charge_memory);
        let call = method.map(|method| CallMetrics::begin(method, charge, request.headers()));
        let inner = match &call {
            Some(call) => call.span.span().in_scope(|| self.inner.call(request)),
            None => self.inner.call(request),
        };
        Observed { inner, call }
    }
}

pin_project! {
    /// The response of a call, with the call's metrics.
    #[derive(Debug)]
    pub struct Observed<F> {
        #[pin]
        inner: F,
        call: Option<CallMetrics>,
    }
}

impl<F, E> Future for Observed<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = match &this.call {
            Some(call) => call.span.span().in_scope(|| this.inner.poll(context)),
            None => this.inner.poll(context),
        };
        let mut response = ready!(polled)?;
        if let Some(mut call) = this.call.take() {
            // Other responses have their status in the trailers.
            if response.body().is_end_stream() {
                call.record_status(response.headers());
            }
            response = response.map(|body| Body::new(ObservedBody::new(body, call, context)));
        }
        Poll::Ready(Ok(response))
    }
}

/// The body of a response. The call ends with it.
struct ObservedBody {
    body: Body,
    next: Next,
    call: CallMetrics,
}

/// A message that is charged to its connection.
struct ChargedBytes {
    data: Bytes,
    _held: MemoryCharge,
}

impl AsRef<[u8]> for ChargedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// The frame before the rest of a body, if any.
enum Next {
    Rest,
    Data(Bytes),
    /// Rare and large, so it is boxed.
    Other(Box<Result<Frame<Bytes>, Status>>),
}

impl ObservedBody {
    /// Encodes the message if it is ready: an encoded message needs less memory, and its size
    /// is known.
    fn new(mut body: Body, mut call: CallMetrics, context: &mut Context<'_>) -> Self {
        if let Some(charge) = &mut call.charge {
            charge.add(RESPONSE_OVERHEAD);
        }
        let next = match Pin::new(&mut body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Next::Data(call.charge_until_sent(data)),
                Err(frame) => Next::Other(Box::new(Ok(frame))),
            },
            Poll::Ready(Some(Err(status))) => Next::Other(Box::new(Err(status))),
            Poll::Ready(None) | Poll::Pending => Next::Rest,
        };
        Self { body, next, call }
    }

    /// Charges a message, leaves its first [`CHUNK`] bytes in `data`, and keeps the rest.
    fn take(&mut self, data: &mut Bytes) {
        *data = self.call.charge_until_sent(std::mem::take(data));
        self.cut(data);
    }

    /// Leaves the first [`CHUNK`] bytes in `data`, and keeps the rest.
    fn cut(&mut self, data: &mut Bytes) {
        if data.len() > CHUNK {
            self.next = Next::Data(data.split_off(CHUNK));
        }
    }
}

impl http_body::Body for ObservedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let mut frame = match std::mem::replace(&mut this.next, Next::Rest) {
            Next::Data(mut data) => {
                this.cut(&mut data);
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            Next::Other(frame) => Some(*frame),
            Next::Rest => ready!(Pin::new(&mut this.body).poll_frame(context)),
        };
        if let Some(Ok(frame)) = &mut frame {
            if let Some(data) = frame.data_mut() {
                this.take(data);
            } else if let Some(trailers) = frame.trailers_ref() {
                this.call.record_status(trailers);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.next, Next::Rest) && self.body.is_end_stream()
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
