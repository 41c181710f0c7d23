//! Settings to a serving server. Only this room names the concrete backends.

mod auth;
mod error;
mod metrics;
mod momento_credentials;
pub mod provision;
pub mod secrets_manager;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::config::Credentials;
use tokio::{net::TcpListener, sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, transport::Server};
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::util::{MapRequestLayer, MapResponseLayer, option_layer};

use self::secrets_manager::SecretsManager;
use crate::{
    background::orphan_cleanup::{CleanUp, CleanUpTiming},
    cache::{self, Batching, Credential, Momento},
    coherence::{self, Coherence, Invalidator},
    config::{BackendSettings, ServeSettings, ServerSettings},
    domain::Key,
    grpc::{
        AccountService, AuthLayer, ConcurrencyLimitLayer, DEFAULT_DEADLINE, FastPathLayer,
        HEAVY_CALL_CPU, LongestCall, MetricsLayer, Readiness, WatchLimits, reflection_v1,
        reflection_v1alpha, with_error_details,
    },
    service::{Accounts, Changes, Listings},
    store::{self, DynamoDb},
    telemetry,
    transport::listener,
};

use self::{auth::CallerAuth, momento_credentials::MomentoCredentials};
pub use self::{
    error::Error,
    metrics::{MetricsError, start_metrics},
};

/// Idle client connections are checked this often.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long the check may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls of one connection that are under way at once. A client that wants more opens
/// more connections.
const MAX_STREAMS_PER_CONNECTION: u32 = 256;
/// Streams of one connection that the service had to reset before it closes the
/// connection, in all its life: honest clients cause few, by sending on after
/// they were refused.
const MAX_RESETS: usize = 4096;
/// Streams that a client may open and reset before the service has looked at
/// them.
const MAX_EARLY_RESETS: usize = 20;
/// What a client may send before the service has taken it, in bytes: of one call
/// and of a connection. HTTP/2 takes a small frame for 256 bytes, and closes a connection
/// whose frames are more than its window: there has to be room for those of all calls.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// How much longer than the longest deadline a request may take to arrive.
const BODY_GRACE: Duration = Duration::from_secs(2);
/// How long a connection that is to be closed may go on with what is under way.
const AGE_GRACE: Duration = Duration::from_secs(60);
/// Connections of clients that no admitted call has come over yet.
const MAX_UNAUTHENTICATED: usize = 256;
/// Time for the first admitted call of a connection.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections of probes.
const HEALTH_CONNECTIONS: listener::Limits =
    listener::Limits::never_authenticated(64, Duration::from_secs(60));
/// Calls of one connection of a probe that are under way at once.
const MAX_STREAMS_OF_A_PROBE: u32 = 8;
/// Pause between looks at a table that cannot be used yet.
const READY_PAUSE: Duration = Duration::from_millis(500);
/// Longest that fencing the records of one stream event may take.
const INVALIDATE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest header block that HTTP/2 takes, in bytes. Larger than the metadata of a call
/// may be, so that a call with too much metadata gets a gRPC status.
const MAX_HEADER_BYTES: u32 = 64 * 1024;

/// What is not a setting.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// The cache.
    pub cache: coherence::CoherenceSettings,
    /// How leftovers are removed; as the settings say, if `None`.
    pub clean_up: Option<CleanUpTiming>,
    /// The longest that a call may take, and how long one may that brings no
    /// deadline; [`DEFAULT_DEADLINE`], if `None`.
    pub longest_call: Option<Duration>,
    /// The longest operation of the table, with all attempts; [`store::OPERATION_TIMEOUT`],
    /// if `None`. Fences must outlive it, see [`coherence::Timing::fence_ttl`].
    pub operation_timeout: Option<Duration>,
}

impl From<coherence::CoherenceSettings> for Tuning {
    fn from(cache: coherence::CoherenceSettings) -> Self {
        Self {
            cache,
            clean_up: None,
            longest_call: None,
            operation_timeout: None,
        }
    }
}

fn usual_clean_up(settings: &ServerSettings) -> Option<CleanUpTiming> {
    let rate = settings.clean_up_rate;
    (rate > 0).then(|| CleanUpTiming::with_rate(rate))
}

/// As many connections as the settings say, and as the process may have open files.
fn limits_of_connections(settings: &ServerSettings) -> listener::Limits {
    let wanted = usize::try_from(settings.max_connections).unwrap_or(usize::MAX);
    let most = listener::raise_open_files();
    let unauthenticated = MAX_UNAUTHENTICATED.min(most / 4);
    let authenticated = wanted.min(most - unauthenticated);
    if authenticated < wanted {
        tracing::warn!(
            authenticated,
            "fewer connections than MAX_CONNECTIONS: the process may not have more open files"
        );
    }
    listener::Limits {
        authenticated,
        unauthenticated,
        authentication: AUTHENTICATION_TIMEOUT,
        lifetime: settings.max_connection_age_s + AGE_GRACE,
    }
}

/// The service over its backends.
pub struct App {
    accounts: Accounts,
    coherence: Coherence,
    invalidator: Option<Invalidator>,
    clean_up: Option<CleanUp>,
    drain_timeout: Duration,
    watch_patience: Duration,
    calls_at_once: usize,
    connections: listener::Limits,
    max_connection_age: Duration,
    auth: CallerAuth,
    health_listener: Option<TcpListener>,
    momento_credentials: MomentoCredentials,
    is_ready: bool,
    describes_itself: bool,
    longest_call: Option<Duration>,
}

impl App {
    /// Connects the backends and puts the service together. Backends that cannot
    /// be reached are left for later.
    ///
    /// # Errors
    /// A setting is wrong, or a backend is missing, malformed or refuses what is
    /// asked of it.
    pub async fn boot(settings: &ServeSettings) -> Result<Self, Error> {
        Self::boot_with(settings, settings.cache.to_coherence()).await
    }

    /// The same with other numbers for the cache, and for what runs beside calls,
    /// than the settings can say.
    ///
    /// # Errors
    /// As [`Self::boot`].
    pub async fn boot_with(
        settings: &ServeSettings,
        tuning: impl Into<Tuning>,
    ) -> Result<Self, Error> {
        let Tuning {
            cache,
            clean_up,
            longest_call,
            operation_timeout,
        } = tuning.into();
        let auth = CallerAuth::prepare(&settings.server).await?;
        let health_listener = match settings.server.health_addr {
            Some(addr) => Some(bind(addr).await?.0),
            None => None,
        };
        let backends = &settings.backends;
        let aws = load_aws(backends).await?;
        let table = Arc::new(table(&aws, backends, operation_timeout));
        let stream = Arc::new(table.stream(&aws, backends.dynamodb_endpoint.clone()));
        let timing = cache.invalidator;
        let momento_credentials = MomentoCredentials::begin(&aws, backends).await?;
        let lookups = Batching::new(momento_credentials.slot(), cache.cache_read_timeout);
        let coherence = Coherence::new(Arc::new(lookups), table.clone(), table.clone(), cache);
        let is_ready = match coherence.learn_generation().await {
            Ok(()) => auth.is_ready(),
            Err(source) => {
                let may_pass = source.kind.may_pass();
                let error = table_error(backends, source);
                if !may_pass {
                    return Err(error);
                }
                tracing::warn!(%error, "starting without the table: not serving yet");
                false
            }
        };
        let changes = Changes::new(table.clone(), table.clone());
        let listings = Listings::new(table.clone(), table.clone());
        Ok(Self {
            accounts: Accounts::new(coherence.clone(), changes, listings),
            clean_up: clean_up
                .or_else(|| usual_clean_up(&settings.server))
                .map(|timing| CleanUp::new(&table, timing)),
            invalidator: timing.map(|timing| {
                Invalidator::new(coherence.clone(), table.clone(), stream, table, timing)
            }),
            coherence,
            drain_timeout: settings.server.drain_timeout_ms,
            watch_patience: settings.server.watch_patience_ms,
            calls_at_once: settings.server.calls_at_once.into(),
            max_connection_age: settings.server.max_connection_age_s,
            connections: limits_of_connections(&settings.server),
            auth,
            health_listener,
            momento_credentials,
            is_ready,
            describes_itself: !settings.server.callers.no_reflection,
            longest_call,
        })
    }

    /// The accounts that are served.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Makes sure that nothing is answered from the cache that it holds of these
    /// records now.
    ///
    /// # Errors
    /// [`Error::NotFenced`].
    pub async fn invalidate(&self, keys: &[Key]) -> Result<(), Error> {
        let deadline = Instant::now() + INVALIDATE_TIMEOUT;
        let is_done = self.coherence.invalidate(keys, deadline).await;
        is_done.then_some(()).ok_or(Error::NotFenced)
    }

    /// Serves until `shutdown` resolves, then reports NOT_SERVING, accepts
    /// nothing more, and waits a bounded time for the calls and the writes that
    /// are under way.
    ///
    /// # Errors
    /// [`Error::Serve`].
    pub async fn serve(
        mut self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), Error> {
        let readiness = Readiness::new().await;
        let health_server = readiness.server();
        report(&readiness, self.is_ready).await;
        let health_beside = serve_health(self.health_listener.take(), readiness.server());
        let stopping = CancellationToken::new();
        let become_ready = {
            let (readiness, stopping) = (readiness.clone(), stopping.clone());
            async {
                if !self.is_ready {
                    become_ready(&self.coherence, &self.auth, readiness, stopping).await;
                }
                std::future::pending::<()>().await;
            }
        };
        let draining = Arc::new(Notify::new());
        let stop = {
            let draining = draining.clone();
            let stopping = stopping.clone();
            async move {
                shutdown.await;
                tracing::info!("stopping");
                stopping.cancel();
                report(&readiness, false).await;
                draining.notify_one();
            }
        };
        let watch = WatchLimits {
            patience: self.watch_patience,
            stopping,
            lifetime: self.max_connection_age,
        };
        let service = AccountService::new(self.accounts.clone(), watch);
        let (reflection_v1, reflection_v1alpha) = if self.describes_itself {
            let v1 = reflection_v1::server().map_err(serve_failed)?;
            let v1alpha = reflection_v1alpha::server().map_err(serve_failed)?;
            (Some(v1), Some(v1alpha))
        } else {
            (None, None)
        };
        let concurrency_limit = ConcurrencyLimitLayer::new(self.calls_at_once, HEAVY_CALL_CPU);
        let longest_call = self.longest_call.map(|longest| {
            MapRequestLayer::new(move |mut request: http::Request<Body>| {
                request.extensions_mut().insert(LongestCall(longest));
                request
            })
        });
        let server = server_builder()
            .timeout(self.longest_call.unwrap_or(DEFAULT_DEADLINE) + BODY_GRACE)
            .max_connection_age(self.max_connection_age)
            .layer(MetricsLayer::new())
            .layer(MapResponseLayer::new(with_error_details))
            .layer(AuthLayer(self.auth.authorizer()))
            .layer(concurrency_limit.clone())
            .layer(option_layer(longest_call))
            .layer(FastPathLayer(service.into_server()))
            .add_service(health_server)
            .add_optional_service(reflection_v1)
            .add_optional_service(reflection_v1alpha)
            .serve_with_incoming_shutdown(
                listener::accept(listener, self.auth.tls(), self.connections),
                stop,
            );
        let serve_and_drain = async {
            let ended = server.await;
            // Also where it ended by itself, the time to drain is bounded.
            draining.notify_one();
            self.accounts.drain().await;
            if let Some(invalidator) = &self.invalidator {
                invalidator.resign().await;
            }
            if let Some(clean_up) = &self.clean_up {
                clean_up.resign().await;
            }
            ended.map_err(serve_failed)
        };
        let overdue = async {
            draining.notified().await;
            tokio::time::sleep(self.drain_timeout).await;
        };
        tokio::select! {
            ended = serve_and_drain => ended,
            // Never ends: writes need it until they are drained.
            () = self.run_background(&concurrency_limit) => {
                tracing::error!("what runs beside calls has ended");
                Ok(())
            }
            () = become_ready => Ok(()),
            ended = health_beside => ended,
            () = overdue => {
                tracing::warn!("calls, writes or repairs were still under way when the time to drain was over");
                Ok(())
            }
        }
    }
}

impl App {
    /// Runs the loops beside calls. Never ends.
    async fn run_background(&self, concurrency_limit: &ConcurrencyLimitLayer) {
        let follow_stream = Box::pin(async {
            match &self.invalidator {
                Some(invalidator) => invalidator.run().await,
                None => std::future::pending().await,
            }
        });
        let clean_up = Box::pin(async {
            match &self.clean_up {
                Some(clean_up) => clean_up.run().await,
                None => std::future::pending().await,
            }
        });
        tokio::select! {
            () = self.coherence.run_generation_switch() => {}
            () = follow_stream => {}
            () = clean_up => {}
            () = self.auth.run_refresh() => {}
            () = self.momento_credentials.run_refresh() => {}
            () = concurrency_limit.run_limit_adjustment() => {}
            () = telemetry::run_upkeep() => {}
        }
    }
}

/// A server with the limits of its connections. No time of grace is set for
/// their age: with one, tonic ends them without saying so before.
fn server_builder() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .http2_max_local_error_reset_streams(Some(MAX_RESETS))
        .http2_max_pending_accept_reset_streams(Some(MAX_EARLY_RESETS))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .timeout(DEFAULT_DEADLINE + BODY_GRACE)
}

/// Reports that the service is serving once the table has answered and somebody can be
/// admitted.
async fn become_ready(
    coherence: &Coherence,
    auth: &CallerAuth,
    readiness: Readiness,
    stopping: CancellationToken,
) {
    loop {
        match coherence.learn_generation().await {
            Ok(()) if auth.is_ready() => break,
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, "not serving yet: the table cannot be used"),
        }
        tokio::time::sleep(READY_PAUSE).await;
    }
    // What was reported last stands.
    if !stopping.is_cancelled() {
        report(&readiness, true).await;
    }
}

/// Answers health checks on an address of their own. Ends only if it fails.
async fn serve_health<H: Health>(
    listener: Option<TcpListener>,
    health: HealthServer<H>,
) -> Result<(), Error> {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    server_builder()
        .max_concurrent_streams(MAX_STREAMS_OF_A_PROBE)
        .add_service(health)
        .serve_with_incoming(listener::accept(listener, None, HEALTH_CONNECTIONS))
        .await
        .map_err(serve_failed)
}

async fn report(readiness: &Readiness, is_serving: bool) {
    readiness.set(is_serving).await;
    if is_serving {
        tracing::info!("serving");
    }
}

/// Listens where the settings say; returns the address, with the port if it was
/// left open.
///
/// # Errors
/// [`Error::Listen`].
pub async fn listen(settings: &ServerSettings) -> Result<(TcpListener, SocketAddr), Error> {
    bind(settings.listen_addr).await
}

async fn bind(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source| Error::Listen { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    Ok((listener, addr))
}

/// Resolves on SIGTERM and on SIGINT.
pub async fn stop_signal() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt => {}
            }
            return;
        }
    }
    let _ = interrupt.await;
}

fn serve_failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Serve(error.into())
}

pub(crate) async fn load_aws(settings: &BackendSettings) -> Result<SdkConfig, Error> {
    let mut loader = aws_config::defaults(BehaviorVersion::latest());
    if let Some(region) = &settings.aws_region {
        loader = loader.region(Region::new(region.clone()));
    }
    if settings.aws_credentials.is_some() {
        let credentials = Credentials::new("embedded", "embedded", None, None, "embedded");
        loader = loader.credentials_provider(credentials);
    }
    let aws = loader.load().await;
    match aws.region() {
        Some(_) => Ok(aws),
        None => Err(Error::NoRegion),
    }
}

pub(crate) fn table(
    aws: &SdkConfig,
    settings: &BackendSettings,
    operation_timeout: Option<Duration>,
) -> DynamoDb {
    DynamoDb::new(
        aws,
        store::TableSettings {
            table: settings.table_name.clone(),
            endpoint: settings.dynamodb_endpoint.clone(),
            attempt_timeout: settings.dynamodb_attempt_timeout_ms,
            operation_timeout: operation_timeout.unwrap_or(store::OPERATION_TIMEOUT),
        },
    )
}

pub(crate) fn secrets(aws: &SdkConfig, settings: &BackendSettings) -> SecretsManager {
    SecretsManager::new(aws, settings.secrets_endpoint.clone())
}

pub(crate) async fn connect_cache(
    secret: &secrecy::SecretString,
    settings: &BackendSettings,
) -> Result<Momento, Error> {
    let id = &settings.momento_secret_id;
    let credential = Credential::from_secret(secret).map_err(|source| Error::Credential {
        id: id.clone(),
        source,
    })?;
    let cache = cache::Settings {
        cache: settings.cache_name.clone(),
        connections: settings.cache_connections.into(),
    };
    Momento::connect(credential, cache)
        .await
        .map_err(|source| cache_error(settings, source))
}

pub(crate) fn cache_error(settings: &BackendSettings, source: cache::Error) -> Error {
    Error::Cache {
        name: settings.cache_name.clone(),
        source,
    }
}

pub(crate) fn table_error(settings: &BackendSettings, source: store::Error) -> Error {
    Error::Table {
        name: settings.table_name.clone(),
        source,
    }
}

pub(crate) fn secret_error(settings: &BackendSettings, source: secrets_manager::Error) -> Error {
    Error::Secret {
        id: settings.momento_secret_id.clone(),
        source,
    }
}
