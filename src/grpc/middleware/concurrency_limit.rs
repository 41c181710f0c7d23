//! Puts calls into the lobby, where those of one caller do not crowd out those of
//! others. Changes have a lobby of their own: a removal does not wait for reads.

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
    cpu_load::{self, Processors, Turn, Turns},
    fair_queue::{Flow, Lobby, Pass},
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

/// Longest that a call waits for its turn.
const PATIENCE: Duration = Duration::from_millis(250);

/// What calls use of a processor before they run by turns. A check uses two thirds of
/// it.
pub const MUCH: Duration = Duration::from_micros(75);

/// Calls at once that keep a processor busy, if they wait for nothing else.
const LEAST_PER_PROCESSOR: usize = 4;

/// Lets callers take turns.
#[derive(Debug, Clone)]
pub struct FairnessLayer(Arc<Lobbies>);

#[derive(Debug)]
struct Lobbies {
    reads: Arc<Lobby>,
    changes: Arc<Lobby>,
    classes: ByMethod<Class>,
}

impl FairnessLayer {
    /// At most `at_once` reads and as many changes are under way; those that use more
    /// than `much` of a processor, by the clock, run by turns.
    #[must_use]
    pub fn new(at_once: usize, much: Duration) -> Self {
        let turns = Turns::new(cpu_load::count(), much);
        let lobby = |class| {
            let told = metrics::gauge!(CALLS_LIMIT, "class" => class);
            let least = LEAST_PER_PROCESSOR * cpu_load::count();
            Arc::new(Lobby::new(least, at_once, told, turns.clone()))
        };
        Self(Arc::new(Lobbies {
            reads: lobby(READ),
            changes: lobby(CHANGE),
            classes: ByMethod::new(|_, class| class),
        }))
    }

    /// Follows the load of the processors. Never ends.
    pub async fn keep(&self) {
        let mut processors = Processors::default();
        loop {
            let keep_up = processors.keep_up().await;
            for lobby in [&self.0.reads, &self.0.changes] {
                lobby.follow(keep_up);
            }
        }
    }
}

const READ: &str = "read";
const CHANGE: &str = "change";

impl<S> Layer<S> for FairnessLayer {
    type Service = Fairness<S>;

    fn layer(&self, inner: S) -> Fairness<S> {
        Fairness {
            lobbies: self.0.clone(),
            inner,
        }
    }
}

/// A service whose callers take turns.
#[derive(Debug, Clone)]
pub struct Fairness<S> {
    lobbies: Arc<Lobbies>,
    inner: S,
}

impl<S, B> Service<Request<B>> for Fairness<S>
where
    S: Service<Request<B>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<
        Either<S::Future, Charged<S::Future>>,
        BoxFuture<'static, Result<Response<Body>, S::Error>>,
    >;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let class = self.lobbies.classes.get(request.uri().path());
        let (lobby, class) = match class.map(AsRef::as_ref) {
            Some(Class::Read) => (&self.lobbies.reads, READ),
            Some(Class::Change) => (&self.lobbies.changes, CHANGE),
            Some(Class::Watch) | None => {
                return Either::Left(Either::Left(self.inner.call(request)));
            }
        };
        let flow = flow_of(request.extensions());
        if let Some(pass) = lobby.try_enter(&flow) {
            let pass = Held::new(pass, class, &mut request);
            let answer = Charged::new(self.inner.call(request), pass);
            return Either::Left(Either::Right(answer));
        }
        metrics::counter!(CALLS_QUEUED, "class" => class).increment(1);
        let arrival = Arrival::now();
        let patience = arrival.patience(request.headers(), PATIENCE);
        request.extensions_mut().insert(arrival);
        let lobby = lobby.clone();
        // The one that is ready stays with the call, as tower asks for.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        Either::Right(Box::pin(async move {
            let Ok(pass) = lobby.enter(&flow, patience).await else {
                metrics::counter!(CALLS_SHED, "class" => class).increment(1);
                return Ok(status::crowded().into_http());
            };
            let pass = Held::new(pass, class, &mut request);
            Charged::new(inner.call(request), pass).await
        }))
    }
}

/// What a change that goes on though its caller has gone keeps.
#[derive(Debug, Clone)]
pub(in crate::grpc) struct Place(Arc<Pass>);

impl Place {
    /// Keeps the place until what is returned is dropped.
    pub(in crate::grpc) fn hold(&self) -> service::Held {
        self.0.clone()
    }
}

/// The pass of a call.
#[derive(Debug)]
enum Held {
    Alone(Pass),
    /// With a change that goes on though its caller has gone.
    Shared(Arc<Pass>),
}

impl Held {
    fn new<B>(pass: Pass, class: &str, request: &mut Request<B>) -> Self {
        if class == CHANGE {
            let pass = Arc::new(pass);
            request.extensions_mut().insert(Place(pass.clone()));
            Self::Shared(pass)
        } else {
            Self::Alone(pass)
        }
    }
}

impl Deref for Held {
    type Target = Pass;

    fn deref(&self) -> &Pass {
        match self {
            Self::Alone(pass) => pass,
            Self::Shared(pass) => pass,
        }
    }
}

/// Whose call it is that has these extensions.
pub(in crate::grpc) fn flow_of(extensions: &Extensions) -> Flow {
    let caller = extensions
        .get::<Caller>()
        .and_then(|caller| caller.name.clone());
    match caller {
        Some(name) => Flow::Caller(name),
        None => Flow::Connection(extensions.get::<Peer>().map_or(0, |peer| peer.connection)),
    }
}

pin_project! {
    /// An answer whose processor time is charged to whoever called, and that runs by
    /// turns if it needs much of it.
    #[derive(Debug)]
    pub struct Charged<F> {
        #[pin]
        answer: F,
        pass: Held,
        turn: Option<Turn>,
    }
}

impl<F> Charged<F> {
    fn new(answer: F, pass: Held) -> Self {
        Self {
            answer,
            pass,
            turn: None,
        }
    }
}

impl<F: Future> Future for Charged<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _turn = if this.pass.uses_much() {
            let turn = this.turn.get_or_insert_with(|| this.pass.turns());
            Some(ready!(turn.poll(context)))
        } else {
            None
        };
        let began = Instant::now();
        let polled = this.answer.poll(context);
        this.pass.charge(began.elapsed());
        polled
    }
}
