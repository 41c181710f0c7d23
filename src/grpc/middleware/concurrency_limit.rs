//! Limits concurrent calls, fairly between callers: each call takes a permit of a fair
//! queue. Changes have a queue of their own, so that a removal does not wait for reads.

use std::{
    ops::Deref,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, Either};
use http::{Extensions, Request, Response};
use pin_project_lite::pin_project;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{
    cpu_load::{self, CallSteps, CpuLoad, StepLimiter},
    fair_queue::{FairQueue, FlowKey, Permit},
};
use crate::grpc::{
    deadline::Arrival,
    methods::{ByMethod, Class},
    status,
};
use crate::{
    auth::Caller,
    service,
    telemetry::{CALLS_LIMIT, CALLS_QUEUED, CALLS_SHED},
    transport::listener::Peer,
};

/// Longest time that a call waits for a permit.
const MAX_QUEUE_TIME: Duration = Duration::from_millis(250);

/// CPU time after which a call is heavy, and its steps are limited. A check uses two
/// thirds of it.
pub const HEAVY_CALL_CPU: Duration = Duration::from_micros(75);

/// Concurrent calls that keep one processor busy, if they wait for nothing else.
const MIN_CALLS_PER_CPU: usize = 4;

/// Limits concurrent calls, fairly between callers.
#[derive(Debug, Clone)]
pub struct ConcurrencyLimitLayer(Arc<Queues>);

#[derive(Debug)]
struct Queues {
    reads: Arc<FairQueue>,
    changes: Arc<FairQueue>,
    classes: ByMethod<Class>,
}

impl ConcurrencyLimitLayer {
    /// At most `max_calls` reads and as many changes run at once. The steps of calls that use
    /// more CPU time than `heavy`, by the clock, are limited.
    #[must_use]
    pub fn new(max_calls: usize, heavy: Duration) -> Self {
        let step_limiter = StepLimiter::new(cpu_load::count(), heavy);
        let queue = |class| {
            let limit_gauge = metrics::gauge!(CALLS_LIMIT, "class" => class);
            let min_limit = MIN_CALLS_PER_CPU * cpu_load::count();
            let step_limiter = step_limiter.clone();
            Arc::new(FairQueue::new(
                min_limit,
                max_calls,
                limit_gauge,
                step_limiter,
            ))
        };
        Self(Arc::new(Queues {
            reads: queue(READ),
            changes: queue(CHANGE),
            classes: ByMethod::new(|_, class| class),
        }))
    }

    /// Adjusts the limits to the CPU load. Never ends.
    pub async fn run_limit_adjustment(&self) {
        let mut cpu_load = CpuLoad::default();
        loop {
            let processors_keep_up = cpu_load.measure().await;
            for queue in [&self.0.reads, &self.0.changes] {
                queue.adjust_limit(processors_keep_up);
            }
        }
    }
}

const READ: &str = "read";
const CHANGE: &str = "change";

impl<S> Layer<S> for ConcurrencyLimitLayer {
    type Service = ConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> ConcurrencyLimit<S> {
        ConcurrencyLimit {
            queues: self.0.clone(),
            inner,
        }
    }
}

/// A service with a limit of concurrent calls.
#[derive(Debug, Clone)]
pub struct ConcurrencyLimit<S> {
    queues: Arc<Queues>,
    inner: S,
}

impl<S, B> Service<Request<B>> for ConcurrencyLimit<S>
where
    S: Service<Request<B>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<
        Either<S::Future, Metered<S::Future>>,
        BoxFuture<'static, Result<Response<Body>, S::Error>>,
    >;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let class = self.queues.classes.get(request.uri().path());
        let (queue, class) = match class.map(AsRef::as_ref) {
            Some(Class::Read) => (&self.queues.reads, READ),
            Some(Class::Change) => (&self.queues.changes, CHANGE),
            Some(Class::Watch) | None => {
                return Either::Left(Either::Left(self.inner.call(request)));
            }
        };
        let flow = flow_of(request.extensions());
        if let Some(permit) = queue.try_acquire(&flow) {
            let permit = CallPermit::new(permit, class, &mut request);
            let response = Metered::new(self.inner.call(request), permit);
            return Either::Left(Either::Right(response));
        }
        metrics::counter!(CALLS_QUEUED, "class" => class).increment(1);
        let arrival = Arrival::now();
        let max_wait = arrival.patience(request.headers(), MAX_QUEUE_TIME);
        request.extensions_mut().insert(arrival);
        let queue = queue.clone();
        // By the contract of tower, the ready service takes the call, and its clone has to
        // become ready itself.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        Either::Right(Box::pin(async move {
            let Ok(permit) = queue.acquire(&flow, max_wait).await else {
                metrics::counter!(CALLS_SHED, "class" => class).increment(1);
                return Ok(status::crowded().into_http());
            };
            let permit = CallPermit::new(permit, class, &mut request);
            Metered::new(inner.call(request), permit).await
        }))
    }
}

/// The permit of a change. The change holds it until it has ended, even if its caller has
/// left.
#[derive(Debug, Clone)]
pub(in crate::grpc) struct SharedPermit(Arc<Permit>);

impl SharedPermit {
    /// Holds the permit until the returned value is dropped.
    pub(in crate::grpc) fn hold(&self) -> service::HeldPermit {
        self.0.clone()
    }
}

/// The permit of a call.
#[derive(Debug)]
enum CallPermit {
    Owned(Permit),
    /// Shared with a change, see [`SharedPermit`].
    Shared(Arc<Permit>),
}

impl CallPermit {
    fn new<B>(permit: Permit, class: &str, request: &mut Request<B>) -> Self {
        if class == CHANGE {
            let permit = Arc::new(permit);
            let shared = SharedPermit(permit.clone());
            request.extensions_mut().insert(shared);
            Self::Shared(permit)
        } else {
            Self::Owned(permit)
        }
    }
}

impl Deref for CallPermit {
    type Target = Permit;

    fn deref(&self) -> &Permit {
        match self {
            Self::Owned(permit) => permit,
            Self::Shared(permit) => permit,
        }
    }
}

/// The caller of a call with these extensions.
pub(in crate::grpc) fn flow_of(extensions: &Extensions) -> FlowKey {
    let caller = extensions
        .get::<Caller>()
        .and_then(|caller| caller.name.clone());
    match caller {
        Some(name) => FlowKey::Caller(name),
        None => FlowKey::Connection(extensions.get::<Peer>().map_or(0, |peer| peer.connection)),
    }
}

pin_project! {
    /// A call whose CPU time is charged to its permit. The steps of a heavy call are
    /// limited.
    #[derive(Debug)]
    pub struct Metered<F> {
        #[pin]
        call: F,
        permit: CallPermit,
        steps: Option<CallSteps>,
    }
}

impl<F> Metered<F> {
    fn new(call: F, permit: CallPermit) -> Self {
        Self {
            call,
            permit,
            steps: None,
        }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _step = if this.permit.is_heavy() {
            let steps = this.steps.get_or_insert_with(|| this.permit.steps());
            Some(ready!(steps.poll(context)))
        } else {
            None
        };
        let began = Instant::now();
        let polled = this.call.poll(context);
        this.permit.charge_cpu(began.elapsed());
        polled
    }
}
