//! Connections of clients, accepted in the clear or with TLS. None of them lasts
//! without being of use: who does not speak HTTP/2 soon is cut off, and who was
//! here for long is asked to connect anew.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, Sleep, sleep_until, timeout, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::{
    callers::{self, Refused},
    telemetry::{CONNECTIONS, CONNECTIONS_REFUSED},
    tls::Tls,
};

/// Longest that a client may take to agree on TLS, if that is spoken, and to
/// begin with HTTP/2.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// What HTTP/2 begins with, in bytes: its preface, and the head of a first frame.
/// From then on, keepalive finds out who is silent.
const GREETING_BYTES: usize = 24 + 9;
/// Longest that agreeing on TLS may take once it is a client's turn.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Clients that agree on TLS at once: agreeing keeps a processor busy.
const MAX_HANDSHAKES: usize = 256;
/// Pause after a connection could not be accepted, because the process or the
/// machine has too many.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How many connections there are, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections that are open at once; others are closed at once.
    pub open: usize,
    /// When a connection is closed, whatever is still under way there.
    pub lifetime: Duration,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    id: u64,
    since: Instant,
    transport: Transport,
    greeting: Option<Greeting>,
    end: Pin<Box<Sleep>>,
    _open: Open,
}

#[derive(Debug)]
enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What the client has yet to say, and by when.
#[derive(Debug)]
struct Greeting {
    missing: usize,
    due: Pin<Box<Sleep>>,
}

/// Counts as open until it is dropped.
#[derive(Debug)]
struct Open {
    _place: OwnedSemaphorePermit,
}

impl Open {
    fn new(place: OwnedSemaphorePermit) -> Self {
        metrics::gauge!(CONNECTIONS).increment(1);
        Self { _place: place }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!(CONNECTIONS).decrement(1);
    }
}

/// Who is at the other end.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The connection, by a number that no other one of this process has.
    pub connection: u64,
    /// Since when it is open.
    pub since: Instant,
    /// Whom the client's certificate names, if it has one.
    pub certificate: Option<Result<Arc<str>, Refused>>,
}

/// Accepts connections until what it returns is dropped. Without `tls`, in the
/// clear.
pub fn accept(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    limits: Limits,
) -> ReceiverStream<io::Result<Connection>> {
    let (accepted, connections) = mpsc::channel(1);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(limits.open.min(Semaphore::MAX_PERMITS)));
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        loop {
            let tcp = tokio::select! {
                tcp = listener.accept() => tcp,
                () = accepted.closed() => return,
            };
            let tcp = match tcp {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                // Closed, so that the client tries another replica.
                metrics::counter!(CONNECTIONS_REFUSED).increment(1);
                continue;
            };
            if let Err(error) = tcp.set_nodelay(true) {
                // The client is gone already.
                tracing::debug!(%error, "a connection was lost at once");
                continue;
            }
            let open = Open::new(place);
            let due = Instant::now() + GREETING_TIMEOUT;
            let Some(tls) = &tls else {
                let connection = Connection::new(Transport::Plain(tcp), due, limits, open);
                if accepted.send(Ok(connection)).await.is_err() {
                    return;
                }
                continue;
            };
            let acceptor = TlsAcceptor::from(tls.config());
            let (handshakes, accepted) = (handshakes.clone(), accepted.clone());
            tokio::spawn(async move {
                let agreed = async {
                    // A client that says nothing takes no turn. A socket that was
                    // just accepted may count as readable with nothing to read.
                    if tcp.peek(&mut [0; 1]).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let _turn = handshakes.acquire().await.map_err(io::Error::other)?;
                    timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await?
                };
                match timeout_at(due, agreed).await {
                    Ok(Ok(tls)) => {
                        let tls = Transport::Tls(Box::new(tls));
                        let connection = Connection::new(tls, due, limits, open);
                        // Nobody accepts any more: the server stops.
                        let _ = accepted.send(Ok(connection)).await;
                    }
                    Ok(Err(error)) => tracing::info!(%error, "no TLS with a client"),
                    Err(_) => tracing::info!("no TLS with a client in time"),
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

impl Connection {
    fn new(transport: Transport, due: Instant, limits: Limits, open: Open) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let since = Instant::now();
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            since,
            transport,
            greeting: Some(Greeting {
                missing: GREETING_BYTES,
                due: Box::pin(sleep_until(due)),
            }),
            end: Box::pin(sleep_until(since + limits.lifetime)),
            _open: open,
        }
    }

    /// What came of it; of what makes no progress, an error once it is over. Who
    /// neither speaks nor listens is not waited for in either direction.
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

    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        let is_silent = match &mut self.greeting {
            Some(greeting) => greeting.due.as_mut().poll(context).is_ready(),
            None => false,
        };
        is_silent || self.end.as_mut().poll(context).is_ready()
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

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let certificate = match &self.transport {
            Transport::Plain(_) => None,
            Transport::Tls(tls) => tls.get_ref().1.peer_certificates(),
        };
        Peer {
            connection: self.id,
            since: self.since,
            certificate: certificate
                .and_then(|chain| chain.first())
                .map(|certificate| callers::name_of(certificate)),
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
        self.unless_over(written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Transport::Tls(tls) => Pin::new(tls).poll_flush(context),
        };
        self.unless_over(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Transport::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        };
        self.unless_over(shut, context)
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
        self.unless_over(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(tcp) => tcp.is_write_vectored(),
            Transport::Tls(tls) => tls.is_write_vectored(),
        }
    }
}
