//! Connections of clients, accepted in the clear or with TLS.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::{
    callers::{self, Refused},
    tls::Tls,
};

/// Longest that a client may take to agree on TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Clients that agree on TLS at once; others wait to be accepted.
const MAX_HANDSHAKES: usize = 256;
/// Pause after a connection could not be accepted, because the process or the
/// machine has too many.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A connection.
#[derive(Debug)]
pub struct Connection(Transport);

#[derive(Debug)]
enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Who is at the other end.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Whom the client's certificate names, if it has one.
    pub certificate: Option<Result<Arc<str>, Refused>>,
}

/// Accepts connections until what it returns is dropped. Without `tls`, in the
/// clear.
pub fn accept(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
) -> ReceiverStream<io::Result<Connection>> {
    let (accepted, connections) = mpsc::channel(1);
    tokio::spawn(async move {
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
            if let Err(error) = tcp.set_nodelay(true) {
                // The client is gone already.
                tracing::debug!(%error, "a connection was lost at once");
                continue;
            }
            let Some(tls) = &tls else {
                let connection = Connection(Transport::Plain(tcp));
                if accepted.send(Ok(connection)).await.is_err() {
                    return;
                }
                continue;
            };
            let Ok(permit) = handshakes.clone().acquire_owned().await else {
                return;
            };
            let (acceptor, accepted) = (TlsAcceptor::from(tls.config()), accepted.clone());
            tokio::spawn(async move {
                let agreed = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await;
                drop(permit);
                match agreed {
                    Ok(Ok(tls)) => {
                        let connection = Connection(Transport::Tls(Box::new(tls)));
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

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let certificate = match &self.0 {
            Transport::Plain(_) => None,
            Transport::Tls(tls) => tls.get_ref().1.peer_certificates(),
        };
        Peer {
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
        match &mut self.0 {
            Transport::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Transport::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write(context, buffer),
            Transport::Tls(tls) => Pin::new(tls).poll_write(context, buffer),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Transport::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Transport::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Transport::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Transport::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write_vectored(context, buffers),
            Transport::Tls(tls) => Pin::new(tls).poll_write_vectored(context, buffers),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Transport::Plain(tcp) => tcp.is_write_vectored(),
            Transport::Tls(tls) => tls.is_write_vectored(),
        }
    }
}
