//! A channel for calls that are sent as a whole: in one write, where the usual one takes
//! three, and a turn of the runtime for each. One connection, which is opened anew when
//! it is lost.

use std::{fmt, io, sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use bytes::Bytes;
use h2::{
    Ping, PingPong, RecvStream,
    client::{self, SendRequest},
};
use http::{Request, Response, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName};
use tokio::{
    net::TcpStream,
    select,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::{either::Either, sync::CancellationToken, task::AbortOnDropHandle};
use tower::Service as _;

use super::{CONNECT_TIMEOUT, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use crate::transport::tls::HTTP2;

/// How much may be on its way to here, in bytes: of one call, and of all. A look-up
/// of the most keys is answered with less.
const CALL_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Calls at once until the server has said how many it takes.
const FIRST_CALLS: usize = 100;
/// A connection that is lost earlier counts as an attempt that failed.
const STEADY: Duration = Duration::from_secs(1);
/// Pauses after attempts to connect that fail: 25 ms to 400 ms, and up to as much again by
/// jitter.
const CONNECT_PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(25))
    .with_max_delay(Duration::from_millis(400))
    .without_max_times()
    .with_jitter();

type Stream = Either<TcpStream, TlsStream<TcpStream>>;
type Connection = client::Connection<Stream, Bytes>;
type Error = Box<dyn std::error::Error + Send + Sync>;

/// Where a server is.
#[derive(Clone)]
pub(super) struct Endpoint {
    url: Uri,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Endpoint {
    /// The server of an `http` or `https` URL; the latter's certificate has to be of
    /// one of these roots.
    ///
    /// # Errors
    /// The URL names no server, or another protocol.
    pub(super) fn new(url: &Uri, roots: RootCertStore) -> Result<Self, Error> {
        let host = url.host().ok_or("no host")?;
        let tls = match url.scheme_str() {
            Some("http") => None,
            Some("https") => Some((connector(roots)?, name(host)?)),
            _ => return Err("neither http nor https".into()),
        };
        let url = url.clone();
        Ok(Self { url, tls })
    }

    async fn open(&self) -> io::Result<(SendRequest<Bytes>, Connection)> {
        let opened = timeout(CONNECT_TIMEOUT, self.open_in_time()).await;
        opened.map_err(|_| io::ErrorKind::TimedOut)?
    }

    async fn open_in_time(&self) -> io::Result<(SendRequest<Bytes>, Connection)> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let tcp = connector.call(self.url.clone()).await;
        let tcp = tcp.map_err(io::Error::other)?.into_inner();
        let stream = match &self.tls {
            None => Either::Left(tcp),
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), tcp).await?;
                if tls.get_ref().1.alpn_protocol() != Some(HTTP2) {
                    return Err(io::Error::other("the server does not speak HTTP/2"));
                }
                Either::Right(tls)
            }
        };
        let opened = client::Builder::new()
            .enable_push(false)
            .initial_max_send_streams(FIRST_CALLS)
            .initial_window_size(CALL_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(stream);
        opened.await.map_err(io::Error::other)
    }
}

fn connector(roots: RootCertStore) -> Result<TlsConnector, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn name(host: &str) -> Result<ServerName<'static>, Error> {
    // URLs have brackets around IPv6 addresses.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok(ServerName::try_from(host)?.to_owned())
}

/// A connection, opened anew when it is lost until the last handle is dropped.
#[derive(Clone)]
pub(super) struct Channel {
    links: watch::Receiver<Link>,
    _keeper: Arc<AbortOnDropHandle<()>>,
}

/// What there is of the connection.
#[derive(Clone)]
enum Link {
    /// It is open.
    Open {
        sender: SendRequest<Bytes>,
        /// Signals that the server accepts no more calls.
        lost: CancellationToken,
    },
    /// It was lost a moment ago, and is opened anew.
    Opening,
    /// It could not be opened, which is tried again and again.
    Down(Arc<io::Error>),
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

impl Channel {
    /// Opens the connection.
    ///
    /// # Errors
    /// There is none within [`CONNECT_TIMEOUT`], or not to a server that shows the
    /// certificate it has to and speaks HTTP/2.
    pub(super) async fn connect(endpoint: Endpoint) -> io::Result<Self> {
        let opened = endpoint.open().await?;
        let (link_sender, links) = watch::channel(Link::Opening);
        let keeper = tokio::spawn(keep(endpoint, opened, link_sender));
        Ok(Self {
            links,
            _keeper: Arc::new(AbortOnDropHandle::new(keeper)),
        })
    }

    /// Whether calls can be sent, as far as is known.
    pub(super) fn is_open(&self) -> bool {
        matches!(*self.links.borrow(), Link::Open { .. })
    }

    /// Sends a call as a whole, and waits for the head of its answer; before, for a
    /// connection that is just being opened.
    ///
    /// # Errors
    /// There is no connection, or it was lost.
    pub(super) async fn call(
        &self,
        head: Request<()>,
        body: Bytes,
    ) -> Result<Response<RecvStream>, Error> {
        let mut links = None;
        loop {
            let link = self.links.borrow().clone();
            match link {
                Link::Open { sender, lost } => match sender.ready().await {
                    Ok(mut sender) => {
                        let (answer, mut stream) = sender.send_request(head, false)?;
                        stream.send_data(body, true)?;
                        return Ok(answer.await?);
                    }
                    Err(_) => lost.cancel(),
                },
                Link::Opening => {}
                Link::Down(error) => return Err(error.into()),
            }
            links
                .get_or_insert_with(|| self.links.clone())
                .changed()
                .await?;
        }
    }
}

/// Opens the connection again whenever it is lost. Never ends.
async fn keep(
    endpoint: Endpoint,
    opened: (SendRequest<Bytes>, Connection),
    link_sender: watch::Sender<Link>,
) {
    let mut opened = Ok(opened);
    let mut pauses = CONNECT_PAUSES.build();
    loop {
        let since = Instant::now();
        let lost = match opened {
            Ok((sender, connection)) => used(sender, connection, &link_sender).await,
            Err(error) => error,
        };
        if since.elapsed() >= STEADY {
            tracing::info!(%lost, "a connection to the cache was lost");
            pauses = CONNECT_PAUSES.build();
            link_sender.send_replace(Link::Opening);
        } else {
            link_sender.send_replace(Link::Down(Arc::new(lost)));
            sleep(pauses.next().unwrap_or_default()).await;
        }
        opened = endpoint.open().await;
    }
}

/// Takes calls for a connection until it is lost; returns why.
async fn used(
    sender: SendRequest<Bytes>,
    connection: Connection,
    link_sender: &watch::Sender<Link>,
) -> io::Error {
    let lost = CancellationToken::new();
    link_sender.send_replace(Link::Open {
        sender,
        lost: lost.clone(),
    });
    // On its own: calls that are under way go on when no more are taken.
    let ended = tokio::spawn(drive(connection));
    select! {
        ended = ended => ended.unwrap_or_else(io::Error::other),
        () = lost.cancelled() => io::Error::other("the server takes no more calls"),
    }
}

/// Lets a connection work until it ends or does not answer any more, with its calls;
/// returns why.
async fn drive(mut connection: Connection) -> io::Error {
    let Some(pings) = connection.ping_pong() else {
        return io::Error::other("pings are taken");
    };
    select! {
        ended = connection => match ended {
            Ok(()) => io::ErrorKind::ConnectionAborted.into(),
            Err(error) => io::Error::other(error),
        },
        () = silence(pings) => io::ErrorKind::TimedOut.into(),
    }
}

/// Ends when the other side does not answer.
async fn silence(mut pings: PingPong) {
    loop {
        sleep(KEEPALIVE_INTERVAL).await;
        let answered = timeout(KEEPALIVE_TIMEOUT, pings.ping(Ping::opaque())).await;
        if !matches!(answered, Ok(Ok(_))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
