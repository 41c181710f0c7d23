//! The HTTP server of metrics, for Prometheus.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use http::{HeaderValue, Response, header::CONTENT_TYPE};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;

use crate::{
    telemetry::{self, Recorder, RecorderError},
    transport::listener::{self, Connection},
};

/// Connections of scrapers.
const SCRAPES: listener::Limits =
    listener::Limits::never_authenticated(64, Duration::from_secs(30));
/// Longest time to receive the head of a request for metrics.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest head of a request for metrics, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Pause between two clean-ups of the recorder.
const UPKEEP_PAUSE: Duration = Duration::from_secs(5);
/// The text format of Prometheus.
const TEXT_FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4");

/// Reason why metrics are not served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The server cannot listen on the address.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// Metrics were started before.
    #[error(transparent)]
    Recorder(#[from] RecorderError),
}

/// Serves metrics over HTTP, on any path, for as long as the runtime lasts.
///
/// # Errors
/// See [`MetricsError`].
pub async fn start_metrics(addr: SocketAddr) -> Result<(), MetricsError> {
    let listener = TcpListener::bind(addr).await;
    let listener = listener.map_err(|source| MetricsError::Listen { addr, source })?;
    let recorder = telemetry::record_metrics()?;
    tokio::spawn(run_upkeep(recorder.clone()));
    tokio::spawn(serve(listener, recorder));
    Ok(())
}

/// Merges the recorded values at intervals. Never ends.
async fn run_upkeep(recorder: Recorder) {
    loop {
        tokio::time::sleep(UPKEEP_PAUSE).await;
        recorder.run_upkeep();
    }
}

async fn serve(listener: TcpListener, recorder: Recorder) {
    let mut connections = listener::accept(listener, None, SCRAPES);
    while let Some(connection) = connections.next().await {
        let Ok(connection) = connection else { continue };
        tokio::spawn(respond(connection, recorder.clone()));
    }
}

/// Responds to one request of a connection, and closes it, so that no connection is idle.
async fn respond(connection: Connection, recorder: Recorder) {
    let metrics = service_fn(|_| async {
        let mut response = Response::new(recorder.render());
        response.headers_mut().insert(CONTENT_TYPE, TEXT_FORMAT);
        Ok::<_, Infallible>(response)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(connection), metrics)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "metrics were not sent");
    }
}
