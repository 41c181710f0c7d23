//! Watches calls: counts and times them, puts them into the trace that their caller
//! began, and weighs their answers until these are taken.

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
    transport::listener::{Held, Peer},
};

/// Bytes of an answer that are given to the transport at once: what it has, it keeps
/// until the client takes it.
const CHUNK: usize = 16 * 1024;
/// Bytes that an answer which is not taken costs besides a larger message.
const ANSWER_OVERHEAD: usize = 2048;
/// Messages of more bytes are weighed until the transport has sent them to the end: it
/// keeps all of a message for the sake of its last byte.
const SMALL: usize = 1024;
/// Codes of gRPC: 0 to 16.
const CODES: usize = 17;
/// Name of the service in traces.
const SERVICE: &str = "account.v1.AccountService";
static STATUS_HEADER: HeaderName = HeaderName::from_static("grpc-status");

/// Watches every call of the account service that passes.
#[derive(Debug, Clone)]
pub struct ObservationLayer(Arc<ByMethod<Watched>>);

impl ObservationLayer {
    /// To be made once metrics are recorded, if they are to be.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(ByMethod::new(|name, _| Watched {
            name: name.to_owned(),
            under_way: metrics::gauge!(RPCS_UNDER_WAY, "rpc" => name.to_owned()),
            durations: std::array::from_fn(|_| OnceLock::new()),
        })))
    }
}

impl Default for ObservationLayer {
    fn default() -> Self {
        Self::new()
    }
}

/// What is told of a method's calls.
#[derive(Debug)]
struct Watched {
    name: String,
    under_way: Gauge,
    /// By code; a code that was never answered is not told of.
    durations: [OnceLock<Histogram>; CODES],
}

impl Watched {
    fn duration(&self, code: Code) -> Option<&Histogram> {
        let duration = self.durations.get(code as usize)?;
        Some(duration.get_or_init(|| {
            let (rpc, code) = (self.name.clone(), name_of(code));
            metrics::histogram!(RPC_DURATION, "rpc" => rpc, "code" => code)
        }))
    }
}

/// A call that is under way; ends when it is dropped.
#[derive(Debug)]
struct Call {
    watched: Arc<Watched>,
    /// What the answer costs besides its message, until the call ends.
    held: Option<Held>,
    began: Instant,
    /// How much time it had.
    granted: Duration,
    /// How it ended; `None` for a call that nobody waits for any more.
    code: Option<Code>,
    span: CallSpan,
}

impl Call {
    fn begin(watched: Arc<Watched>, held: Option<Held>, headers: &HeaderMap) -> Self {
        watched.under_way.increment(1);
        Self {
            span: CallSpan::begin(SERVICE, &watched.name, headers),
            watched,
            held,
            began: Instant::now(),
            granted: deadline::granted(headers, deadline::DEFAULT_DEADLINE),
            code: None,
        }
    }

    /// The same bytes, held for the connection until the last part of them is dropped.
    fn weigh(&self, data: Bytes) -> Bytes {
        match &self.held {
            Some(held) if data.len() > SMALL => {
                let mut held = held.another();
                held.add(data.len());
                Bytes::from_owner(Weighed { data, _held: held })
            }
            _ => data,
        }
    }

    fn note(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get(&STATUS_HEADER) {
            self.code = Some(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.watched.under_way.decrement(1);
        let took = self.began.elapsed();
        // What the transport gives up at the deadline ends without a code here.
        let code = self.code.unwrap_or(if took >= self.granted {
            Code::DeadlineExceeded
        } else {
            Code::Cancelled
        });
        if let Some(duration) = self.watched.duration(code) {
            duration.record(took);
        }
        self.span.end(code as u16);
    }
}

impl<S> Layer<S> for ObservationLayer {
    type Service = Observation<S>;

    fn layer(&self, inner: S) -> Observation<S> {
        Observation {
            methods: self.0.clone(),
            inner,
        }
    }
}

/// A service whose calls are watched.
#[derive(Debug, Clone)]
pub struct Observation<S> {
    methods: Arc<ByMethod<Watched>>,
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
        let watched = self.methods.get(request.uri().path()).cloned();
        let held = request.extensions().get::<Peer>().map(Peer::holding);
        let call = watched.map(|watched| Call::begin(watched, held, request.headers()));
        let inner = match &call {
            Some(call) => call.span.span().in_scope(|| self.inner.call(request)),
            None => self.inner.call(request),
        };
        Observed { inner, call }
    }
}

pin_project! {
    /// The answer of a call that is watched.
    #[derive(Debug)]
    pub struct Observed<F> {
        #[pin]
        inner: F,
        call: Option<Call>,
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
            // Others say in their trailers how they end.
            if response.body().is_end_stream() {
                call.note(response.headers());
            }
            response = response.map(|body| Body::new(ObservedBody::new(body, call, context)));
        }
        Poll::Ready(Ok(response))
    }
}

/// The body of an answer, with which the call ends.
struct ObservedBody {
    body: Body,
    next: Next,
    call: Call,
}

/// A message that is held for its connection.
struct Weighed {
    data: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Weighed {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// What comes before the rest of a body.
enum Next {
    Rest,
    Data(Bytes),
    /// Rare, and large.
    Other(Box<Result<Frame<Bytes>, Status>>),
}

impl ObservedBody {
    /// Encodes the message, where there is one already: it needs less memory then, and
    /// is known to need how much.
    fn new(mut body: Body, mut call: Call, context: &mut Context<'_>) -> Self {
        if let Some(held) = &mut call.held {
            held.add(ANSWER_OVERHEAD);
        }
        let next = match Pin::new(&mut body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Next::Data(call.weigh(data)),
                Err(frame) => Next::Other(Box::new(Ok(frame))),
            },
            Poll::Ready(Some(Err(status))) => Next::Other(Box::new(Err(status))),
            Poll::Ready(None) | Poll::Pending => Next::Rest,
        };
        Self { body, next, call }
    }

    /// Weighs a message, leaves of it what the transport is to have at once, and keeps
    /// the rest.
    fn take(&mut self, data: &mut Bytes) {
        *data = self.call.weigh(std::mem::take(data));
        self.cut(data);
    }

    /// Leaves what the transport is to have at once; keeps the rest.
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
                this.call.note(trailers);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.next, Next::Rest) && self.body.is_end_stream()
    }
}

fn name_of(code: Code) -> &'static str {
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
