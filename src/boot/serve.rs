//! Serving: the server with its limits and middleware, the background loops beside it, and
//! the bounded drain at the end.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::Notify};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, transport::Server};
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::util::{MapRequestLayer, MapResponseLayer, option_layer};

use super::{App, Error, auth::CallerAuth, ext_authz::RoutesFile, peers::PeerListener};
use crate::{
    background::{
        erasure::ErasureLoop, orphan_cleanup::OrphanCleanup, purge::PurgeLoop,
        stream_invalidator::StreamInvalidator,
    },
    coherence::Coherence,
    config::ServerSettings,
    grpc::{
        AuthLayer, ConcurrencyLimitLayer, DEFAULT_DEADLINE, ExtAuthz, FastPathLayer,
        HEAVY_CALL_CPU, LongestCall, MetricsLayer, Readiness, ReplicaService, reflection_v1,
        reflection_v1alpha, with_error_details,
    },
    telemetry,
    transport::listener,
};

/// Interval of checks of idle client connections.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// Longest wait for the response to such a check.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most concurrent calls of one connection. A client that needs more opens more connections.
const MAX_STREAMS_PER_CONNECTION: u32 = 256;
/// Most streams of one connection that the service resets before it closes the connection.
/// Honest clients cause few resets, by sending on after a rejection.
const MAX_RESETS: usize = 4096;
/// Most streams that a client may open and reset before the service has accepted them.
const MAX_EARLY_RESETS: usize = 20;
/// HTTP/2 windows of a call and of a connection, in bytes. The HTTP/2 library counts a small
/// frame as 256 bytes, and closes a connection whose frames exceed its window: the window
/// has room for the frames of all calls.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// Time that a request may take to arrive beyond the longest deadline.
const BODY_GRACE: Duration = Duration::from_secs(2);
/// Time for running calls of a connection that is closed for its age.
const AGE_GRACE: Duration = Duration::from_secs(60);
/// Most connections without an admitted call.
const MAX_UNAUTHENTICATED: usize = 256;
/// Time for the first admitted call of a connection.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections of probes.
const HEALTH_CONNECTIONS: listener::Limits =
    listener::Limits::never_authenticated(64, Duration::from_secs(60));
/// Most concurrent calls of one connection of a probe.
const MAX_STREAMS_OF_A_PROBE: u32 = 8;
/// Interval of reading a table that cannot be used yet.
const READY_PAUSE: Duration = Duration::from_millis(500);
/// Largest header block of HTTP/2, in bytes. Larger than the greatest accepted metadata of a
/// call, so that a call with too much metadata gets a gRPC status.
const MAX_HEADER_BYTES: u32 = 64 * 1024;

/// The limits of connections, from the settings and the open files that the process may have.
pub(super) fn limits_of_connections(settings: &ServerSettings) -> listener::Limits {
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

impl App {
    /// Serves until `shutdown` resolves. Then reports NOT_SERVING, accepts no more calls, and
    /// waits a bounded time for running calls and writes.
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
        let replicas = serve_replicas(self.peers.take(), self.service.coherence());
        let separate_health = serve_health(self.health_listener.take(), readiness.server());
        let become_ready = {
            let (readiness, stopping) = (readiness.clone(), self.stopping.clone());
            async {
                if !self.is_ready {
                    become_ready(self.service.coherence(), &self.auth, readiness, stopping).await;
                }
                std::future::pending::<()>().await;
            }
        };
        let draining = Arc::new(Notify::new());
        let stop = {
            let draining = draining.clone();
            let stopping = self.stopping.clone();
            async move {
                shutdown.await;
                tracing::info!("stopping");
                stopping.cancel();
                report(&readiness, false).await;
                draining.notify_one();
            }
        };
        let concurrency_limit = ConcurrencyLimitLayer::new(self.calls_at_once, HEAVY_CALL_CPU);
        let server = self.serve_calls(listener, health_server, concurrency_limit.clone(), stop);
        let serve_and_drain = async {
            let ended = server.await;
            // Also after a failure of the server, the time to drain is bounded.
            draining.notify_one();
            self.drain().await;
            ended
        };
        let overdue = async {
            draining.notified().await;
            tokio::time::sleep(self.drain_timeout).await;
        };
        tokio::select! {
            ended = serve_and_drain => ended,
            // Never ends: writes need the background loops until they are drained.
            () = self.run_background(&concurrency_limit) => {
                tracing::error!("a background loop has ended");
                Ok(())
            }
            () = become_ready => Ok(()),
            ended = separate_health => ended,
            ended = replicas => ended,
            () = overdue => {
                tracing::warn!("calls, writes or repairs were still running at the end of the drain timeout");
                Ok(())
            }
        }
    }
}

impl App {
    /// Serves calls, behind all middleware, until `shutdown` resolves.
    async fn serve_calls<H: Health>(
        &self,
        listener: TcpListener,
        health: HealthServer<H>,
        concurrency_limit: ConcurrencyLimitLayer,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), Error> {
        let (reflection_v1, reflection_v1alpha) = if self.describes_itself {
            let v1 = reflection_v1::server().map_err(serve_failed)?;
            let v1alpha = reflection_v1alpha::server().map_err(serve_failed)?;
            (Some(v1), Some(v1alpha))
        } else {
            (None, None)
        };
        let longest_call = self.longest_call.map(|longest| {
            MapRequestLayer::new(move |mut request: http::Request<Body>| {
                request.extensions_mut().insert(LongestCall(longest));
                request
            })
        });
        let ext_authz = self.ext_authz.as_ref().map(|file| {
            let accounts = self.service.accounts().clone();
            ExtAuthz::new(accounts, self.auth.authorizer(), file.routes())
        });
        server_builder()
            .timeout(self.longest_call.unwrap_or(DEFAULT_DEADLINE) + BODY_GRACE)
            .max_connection_age(self.max_connection_age)
            // Pages without TLS have no HTTP/2.
            .accept_http1(self.web.is_some())
            .layer(option_layer(self.web.clone()))
            .layer(MetricsLayer::new())
            .layer(MapResponseLayer::new(with_error_details))
            .layer(AuthLayer(self.auth.authorizer()))
            .layer(concurrency_limit)
            .layer(option_layer(longest_call))
            .layer(FastPathLayer {
                service: self.service.clone().into_server(),
                ext_authz,
            })
            .add_service(health)
            .add_optional_service(reflection_v1)
            .add_optional_service(reflection_v1alpha)
            .serve_with_incoming_shutdown(
                listener::accept(listener, self.auth.tls(), self.connections),
                shutdown,
            )
            .await
            .map_err(serve_failed)
    }

    /// Leaves the replica directory, waits for running writes, and releases the leases.
    async fn drain(&self) {
        if let Err(error) = self.service.coherence().leave_directory().await {
            tracing::warn!(%error, "the replica directory was not left: other replicas evict this one");
        }
        self.service.coherence().drain().await;
        if let Some(invalidator) = &self.invalidator {
            invalidator.resign().await;
        }
        if let Some(clean_up) = &self.clean_up {
            clean_up.resign().await;
        }
        if let Some(erasure) = &self.erasure {
            erasure.resign().await;
        }
    }

    /// Runs the background loops. Never ends.
    async fn run_background(&self, concurrency_limit: &ConcurrencyLimitLayer) {
        let follow_stream = or_pending(self.invalidator.as_ref().map(StreamInvalidator::run));
        let clean_up = or_pending(self.clean_up.as_ref().map(OrphanCleanup::run));
        let purge = or_pending(self.purge.as_ref().map(PurgeLoop::run));
        let erasure = or_pending(self.erasure.as_ref().map(ErasureLoop::run));
        let follow_routes = or_pending(self.ext_authz.as_ref().map(RoutesFile::run_reload));
        tokio::select! {
            () = self.service.coherence().run_generation_switch() => {}
            () = self.service.coherence().run_directory() => {}
            () = follow_stream => {}
            () = clean_up => {}
            () = purge => {}
            () = erasure => {}
            () = follow_routes => {}
            () = self.auth.run_refresh() => {}
            () = self.momento_credentials.run_refresh() => {}
            () = concurrency_limit.run_limit_adjustment() => {}
            () = telemetry::run_upkeep() => {}
        }
    }
}

/// A loop, if there is one. Never ends.
fn or_pending<'a>(
    part: Option<impl Future<Output = ()> + Send + 'a>,
) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
    match part {
        Some(part) => Box::pin(part),
        None => Box::pin(std::future::pending()),
    }
}

/// A server with the limits of its connections. Their age has no grace time: with a grace time,
/// tonic closes them without an earlier GOAWAY.
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

/// Reports that the service is serving once the table has responded and a caller can be
/// admitted.
async fn become_ready(
    coherence: &Coherence,
    auth: &CallerAuth,
    readiness: Readiness,
    stopping: CancellationToken,
) {
    loop {
        match coherence.read_generation().await {
            Ok(()) if auth.is_ready() => break,
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, "not serving yet: the table cannot be used"),
        }
        tokio::time::sleep(READY_PAUSE).await;
    }
    // A stopping service keeps reporting NOT_SERVING.
    if !stopping.is_cancelled() {
        report(&readiness, true).await;
    }
}

/// Serves calls of other replicas. Ends only on a failure.
async fn serve_replicas(peers: Option<PeerListener>, coherence: &Coherence) -> Result<(), Error> {
    let Some(peers) = peers else {
        tracing::info!("without PEER_ADDR, memory serves only reads with max_staleness");
        return std::future::pending().await;
    };
    let service = ReplicaService::new(coherence.clone(), peers.identity());
    server_builder()
        .add_service(service.into_server())
        .serve_with_incoming(peers.accept())
        .await
        .map_err(serve_failed)
}

/// Serves health checks on a separate address. Ends only on a failure.
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

/// Resolves on SIGTERM and on SIGINT, from this call on: until then, both end the process.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn stop_signal() -> impl Future<Output = ()> + Send + 'static {
    #[cfg(unix)]
    let terminate = {
        use tokio::signal::unix::{SignalKind, signal};
        [SignalKind::terminate(), SignalKind::interrupt()].map(signal)
    };
    async move {
        #[cfg(unix)]
        if let [Ok(mut terminate), Ok(mut interrupt)] = terminate {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            return;
        }
        let _ = tokio::signal::ctrl_c().await;
    }
}

fn serve_failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Serve(error.into())
}
