//! Listeners: accept connections with or without TLS, and bound their number, the time to
//! their first admitted call, and their age.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::{Instant, Sleep, sleep_until, timeout, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::connection_pool::{OpenConnection, Pool, Registration};
use super::tls::TlsSource;
pub use super::{
    connection_pool::{Limits, MemoryCharge, TooMany},
    open_files::raise_open_files,
};
use crate::{
    auth::{Certificate, Name, Refused},
    telemetry::Throttle,
};

/// Longest time for the TLS handshake, if any, and the first bytes of a client.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// First bytes of a client: the preface of HTTP/2 and the head of a frame. After them,
/// keepalive detects a silent client.
const GREETING_BYTES: usize = 24 + 9;
/// Longest time of a TLS handshake once it has begun.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Concurrent TLS handshakes: each keeps a processor busy.
const MAX_HANDSHAKES: usize = 256;
/// Longest time in which a client receives nothing of a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept: the process or the machine has too many connections.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A connection.
#[derive(Debug)]
pub struct Connection {
    open: OpenConnection,
    since: Instant,
    transport: Transport,
    greeting: Option<Greeting>,
    end: End,
    /// The deadline while the client receives nothing.
    stall: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Bytes that the client still has to send, and their deadline.
#[derive(Debug)]
struct Greeting {
    missing: usize,
    due: Pin<Box<Sleep>>,
}

/// When the connection is closed.
#[derive(Debug)]
struct End {
    sleep: Pin<Box<Sleep>>,
    /// When an authenticated connection is closed. `None` once `sleep` has that deadline.
    authenticated: Option<Instant>,
}

/// The client of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The number of the connection, unique in this process.
    pub connection: u64,
    /// When the connection was accepted.
    pub since: Instant,
    /// The client's certificate, if it has one.
    pub certificate: Option<Result<Certificate, Refused>>,
    /// `None`: calls within the process.
    registration: Option<Arc<Registration>>,
}

impl Peer {
    /// The client of calls within the process.
    #[must_use]
    pub fn in_process() -> Self {
        Self {
            connection: 0,
            since: Instant::now(),
            certificate: None,
            registration: None,
        }
    }

    /// A charge to the connection, without bytes yet.
    #[must_use]
    pub fn charge_memory(&self) -> MemoryCharge {
        MemoryCharge::new(self.registration.clone())
    }

    /// Whether a call on the connection was admitted. `true` for calls within the process.
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        let registration = self.registration.as_ref();
        registration.is_none_or(|registration| registration.is_authenticated())
    }

    /// Whether the connection has too large a charge to start a large call.
    #[must_use]
    pub fn has_large_charge(&self) -> bool {
        let registration = self.registration.as_ref();
        registration.is_some_and(|registration| registration.has_large_charge())
    }

    /// Authenticates the connection: a call of this caller was admitted.
    ///
    /// # Errors
    /// [`TooMany`]: the caller has more connections than its share.
    pub fn authenticate(&self, caller: Option<&Name>) -> Result<(), TooMany> {
        match &self.registration {
            Some(registration) => registration.authenticate(caller),
            None => Ok(()),
        }
    }
}

/// Accepts connections until the returned stream is dropped. Without `tls`, the connections
/// are not encrypted.
pub fn accept(
    listener: TcpListener,
    tls: Option<TlsSource>,
    limits: Limits,
) -> ReceiverStream<io::Result<Connection>> {
    let (accepted, connections) = mpsc::channel(1);
    tokio::spawn(async move {
        let pool = Pool::new(limits);
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let mut is_failing = false;
        loop {
            let tcp = tokio::select! {
                tcp = listener.accept() => tcp,
                () = accepted.closed() => return,
            };
            let tcp = match tcp {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    if !is_failing {
                        tracing::warn!(%error, "connections cannot be accepted; retrying");
                    }
                    is_failing = true;
                    pool.evict_one();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            is_failing = false;
            // If there are too many connections, this one is closed, and the client tries another
            // replica.
            let Ok(open) = pool.join() else { continue };
            if let Err(error) = tcp.set_nodelay(true) {
                // The client has left already.
                tracing::debug!(%error, "a client left before its connection was set up");
                continue;
            }
            let due = Instant::now() + GREETING_TIMEOUT;
            let Some(tls) = &tls else {
                let connection = Connection::new(Transport::Plain(tcp), due, limits, open);
                if accepted.send(Ok(connection)).await.is_err() {
                    return;
                }
                continue;
            };
            let acceptor = TlsAcceptor::from(tls());
            let (handshakes, accepted) = (handshakes.clone(), accepted.clone());
            tokio::spawn(async move {
                let registration = open.0.clone();
                let evicted = poll_fn(|context| registration.poll_evicted(context));
                let agreed = tokio::select! {
                    agreed = timeout_at(due, handshake(tcp, &acceptor, &handshakes)) => agreed,
                    () = evicted => return,
                };
                match agreed {
                    Ok(Ok(tls)) => {
                        let tls = Transport::Tls(Box::new(tls));
                        let connection = Connection::new(tls, due, limits, open);
                        // Fails if the server stops.
                        let _ = accepted.send(Ok(connection)).await;
                    }
                    Ok(Err(error)) => no_tls(&error),
                    Err(_) => no_tls(&io::ErrorKind::TimedOut.into()),
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

fn no_tls(error: &io::Error) {
    static LINES: Throttle = Throttle::new(10);
    if let Some(suppressed) = LINES.pass() {
        tracing::info!(%error, suppressed, "the TLS handshake with a client failed");
    }
}

async fn handshake(
    tcp: TcpStream,
    acceptor: &TlsAcceptor,
    handshakes: &Semaphore,
) -> io::Result<TlsStream<TcpStream>> {
    // A silent client delays no other handshake. `readable` does not suffice: it may return
    // at once for a socket that was just accepted.
    if tcp.peek(&mut [0; 1]).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let _permit = handshakes.acquire().await.map_err(io::Error::other)?;
    timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await?
}

impl Connection {
    fn new(transport: Transport, due: Instant, limits: Limits, open: OpenConnection) -> Self {
        let since = Instant::now();
        let authentication = limits.authentication.min(limits.lifetime);
        Self {
            open,
            since,
            transport,
            greeting: Some(Greeting {
                missing: GREETING_BYTES,
                due: Box::pin(sleep_until(due)),
            }),
            end: End {
                sleep: Box::pin(sleep_until(since + authentication)),
                authenticated: Some(since + limits.lifetime),
            },
            stall: None,
        }
    }

    /// The result of an operation, or an error if it makes no progress and the connection is
    /// past its deadline. So a client that neither reads nor writes blocks neither direction.
    fn unless_over<T>(
        &mut self,
        outcome: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_pending() && self.is_over(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        outcome
    }

    /// Like [`Self::unless_over`], for a write, which the client has to receive in time.
    fn unless_stalled<T>(
        &mut self,
        outcome: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stall = None;
            return outcome;
        }
        let stall = || Box::pin(tokio::time::sleep(WRITE_TIMEOUT));
        let stall = self.stall.get_or_insert_with(stall);
        if stall.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.unless_over(outcome, context)
    }

    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        let OpenConnection(registration) = &self.open;
        let is_silent = match &mut self.greeting {
            Some(greeting) => greeting.due.as_mut().poll(context).is_ready(),
            None => false,
        };
        is_silent
            || registration.poll_evicted(context).is_ready()
            || self.end.poll(registration, context).is_ready()
    }

    fn heard(&mut self, bytes: usize) {
        if let Some(greeting) = &mut self.greeting {
            greeting.missing = greeting.missing.saturating_sub(bytes);
            if greeting.missing == 0 {
                self.greeting = None;
            }
        }
    }
}

impl End {
    fn poll(&mut self, registration: &Registration, context: &mut Context<'_>) -> Poll<()> {
        ready!(self.sleep.as_mut().poll(context));
        if let Some(end) = self.authenticated
            && registration.is_authenticated()
        {
            self.authenticated = None;
            self.sleep.as_mut().reset(end);
            return self.sleep.as_mut().poll(context);
        }
        Poll::Ready(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let certificate = match &self.transport {
            Transport::Plain(_) => None,
            Transport::Tls(tls) => tls.get_ref().1.peer_certificates(),
        };
        let OpenConnection(registration) = &self.open;
        Peer {
            connection: registration.number(),
            since: self.since,
            certificate: certificate
                .and_then(|chain| chain.first())
                .map(|certificate| Certificate::parse(certificate)),
            registration: Some(registration.clone()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Transport::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
        };
        self.heard(buffer.filled().len() - before);
        self.unless_over(read, context)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write(context, buffer),
            Transport::Tls(tls) => Pin::new(tls).poll_write(context, buffer),
        };
        self.unless_stalled(written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Transport::Tls(tls) => Pin::new(tls).poll_flush(context),
        };
        self.unless_stalled(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Transport::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        };
        self.unless_stalled(shut, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write_vectored(context, buffers),
            Transport::Tls(tls) => Pin::new(tls).poll_write_vectored(context, buffers),
        };
        self.unless_stalled(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(tcp) => tcp.is_write_vectored(),
            Transport::Tls(tls) => tls.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests;
