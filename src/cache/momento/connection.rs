//! A channel for calls that are sent as a whole: in one write, where the usual one takes
//! three, and a turn of the runtime for each. One connection, which is opened anew when
//! it is lost.

use std::{fmt, io, sync::Arc, time::Duration};

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
/// Pause after the first attempt to connect that fails; doubled after each.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(800);

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
        /// To be told when the server takes no more calls.
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
        let (told, links) = watch::channel(Link::Opening);
        let keeper = tokio::spawn(keep(endpoint, opened, told));
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
    told: watch::Sender<Link>,
) {
    let mut opened = Ok(opened);
    let mut pause = FIRST_PAUSE;
    loop {
        let since = Instant::now();
        let lost = match opened {
            Ok((sender, connection)) => used(sender, connection, &told).await,
            Err(error) => error,
        };
        if since.elapsed() >= STEADY {
            tracing::info!(%lost, "a connection to the cache was lost");
            pause = FIRST_PAUSE;
            told.send_replace(Link::Opening);
        } else {
            told.send_replace(Link::Down(Arc::new(lost)));
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        opened = endpoint.open().await;
    }
}

/// Takes calls for a connection until it is lost; returns why.
async fn used(
    sender: SendRequest<Bytes>,
    connection: Connection,
    told: &watch::Sender<Link>,
) -> io::Error {
    let lost = CancellationToken::new();
    told.send_replace(Link::Open {
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
mod tests {
    use std::net::SocketAddr;

    use h2::server::{self, SendResponse};
    use rcgen::CertifiedKey;
    use rustls::{ServerConfig, pki_types::PrivateKeyDer};
    use tokio::{
        io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
        net::TcpListener,
        task::yield_now,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;

    type Served<S> = server::Connection<S, Bytes>;

    async fn listen() -> (TcpListener, Uri) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, format!("http://{addr}").parse().unwrap())
    }

    async fn connect(url: &Uri) -> Channel {
        let endpoint = Endpoint::new(url, RootCertStore::empty()).unwrap();
        Channel::connect(endpoint).await.unwrap()
    }

    async fn call(channel: Channel, url: Uri) -> Result<Bytes, Error> {
        let head = Request::post(url).body(()).unwrap();
        let answer = channel.call(head, Bytes::from("question")).await?;
        let mut body = answer.into_body();
        let mut bytes = Vec::new();
        while let Some(data) = body.data().await {
            bytes.extend(data?);
        }
        Ok(bytes.into())
    }

    async fn accept(listener: &TcpListener) -> Served<TcpStream> {
        let (stream, _) = listener.accept().await.unwrap();
        server::handshake(stream).await.unwrap()
    }

    /// The next call.
    async fn asked<S: AsyncRead + AsyncWrite + Unpin>(
        served: &mut Served<S>,
    ) -> SendResponse<Bytes> {
        served.accept().await.unwrap().unwrap().1
    }

    fn answer(mut call: SendResponse<Bytes>, text: &'static str) {
        let mut body = call.send_response(Response::new(()), false).unwrap();
        body.send_data(text.into(), true).unwrap();
    }

    /// Lets a connection work until it ends.
    async fn finish<S: AsyncRead + AsyncWrite + Unpin>(mut served: Served<S>) {
        while served.accept().await.is_some() {}
    }

    /// Types and flags of the frames that begin in these bytes.
    fn frames(mut bytes: &[u8]) -> Vec<(u8, u8)> {
        let mut frames = Vec::new();
        while let [a, b, c, kind, flags, _, _, _, _, rest @ ..] = bytes {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            frames.push((*kind, *flags));
            bytes = rest.get(length..).unwrap_or_default();
        }
        frames
    }

    #[tokio::test]
    async fn a_call_is_sent_in_one_write() {
        const PREFACE: usize = 24;
        const HEADERS: u8 = 1;
        const DATA_THAT_ENDS: (u8, u8) = (0, 1);
        let (listener, url) = listen().await;
        let served = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 65_536];
            let length = stream.read(&mut bytes).await.unwrap();
            assert!(length >= PREFACE);
            // Settings, none.
            stream
                .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
                .await
                .unwrap();
            loop {
                let length = stream.read(&mut bytes).await.unwrap();
                let frames = frames(&bytes[..length]);
                if frames.iter().any(|(kind, _)| *kind == HEADERS) {
                    return frames;
                }
            }
        };
        let calls = async {
            let channel = connect(&url).await;
            call(channel, url).await
        };
        select! {
            frames = served => assert_eq!(frames.last(), Some(&DATA_THAT_ENDS)),
            answered = calls => panic!("{answered:?}"),
        }
    }

    #[tokio::test]
    async fn a_server_that_takes_no_more_calls_ends_those_that_it_has() {
        let (listener, url) = listen().await;
        let (channel, mut leaving) = tokio::join!(connect(&url), accept(&listener));
        let first = tokio::spawn(call(channel.clone(), url.clone()));
        let held = asked(&mut leaving).await;
        leaving.graceful_shutdown();
        // Calls that cross the news are still served.
        tokio::spawn(async move {
            while let Some(Ok((_, call))) = leaving.accept().await {
                answer(call, "late");
            }
        });
        let asking = tokio::spawn(async move {
            loop {
                // It has to be opened anew first.
                match call(channel.clone(), url.clone()).await {
                    Ok(answered) if answered != "late" => return answered,
                    Ok(_) | Err(_) => yield_now().await,
                }
            }
        });
        let mut next = accept(&listener).await;
        answer(asked(&mut next).await, "next");
        tokio::spawn(finish(next));
        assert_eq!(asking.await.unwrap(), "next");
        answer(held, "first");
        assert_eq!(first.await.unwrap().unwrap(), "first");
    }

    #[tokio::test]
    async fn a_server_that_is_gone_is_told_of_at_once_and_found_again() {
        let (listener, url) = listen().await;
        let addr = listener.local_addr().unwrap();
        let (channel, served) = tokio::join!(connect(&url), accept(&listener));
        drop((listener, served));
        while !matches!(*channel.links.borrow(), Link::Down(_)) {
            channel.links.clone().changed().await.unwrap();
        }
        call(channel.clone(), url.clone()).await.unwrap_err();
        let listener = TcpListener::bind(addr).await.unwrap();
        let mut served = accept(&listener).await;
        let asking = async {
            while !matches!(*channel.links.borrow(), Link::Open { .. }) {
                channel.links.clone().changed().await.unwrap();
            }
            call(channel.clone(), url.clone()).await
        };
        let serving = async {
            answer(asked(&mut served).await, "found");
            finish(served).await;
        };
        select! {
            answered = asking => assert_eq!(answered.unwrap(), "found"),
            () = serving => panic!("the connection ended"),
        }
    }

    #[tokio::test]
    async fn a_server_that_ends_each_connection_at_once_is_not_there() {
        let (listener, url) = listen().await;
        let ending = async {
            loop {
                listener.accept().await.unwrap();
            }
        };
        let asking = async {
            let channel = connect(&url).await;
            while !matches!(*channel.links.borrow(), Link::Down(_)) {
                channel.links.clone().changed().await.unwrap();
            }
            assert!(!channel.is_open());
            call(channel, url.clone()).await.unwrap_err();
        };
        select! {
            () = asking => {}
            () = ending => {}
        }
    }

    #[tokio::test]
    async fn a_server_that_falls_silent_is_left() {
        let (listener, url) = listen().await;
        let (channel, silent) = tokio::join!(connect(&url), accept(&listener));
        call(channel.clone(), url).await.unwrap_err();
        let mut next = accept(&listener).await;
        drop((channel, silent));
        next.abrupt_shutdown(h2::Reason::NO_ERROR);
    }

    /// A server whose certificate is of its own, that agrees on these protocols.
    async fn secured(protocols: &[&[u8]]) -> (TcpListener, TlsAcceptor, Uri, RootCertStore) {
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(addr) = listener.local_addr().unwrap() else {
            panic!("no IPv4");
        };
        let url = format!("https://localhost:{}", addr.port())
            .parse()
            .unwrap();
        (listener, TlsAcceptor::from(Arc::new(config)), url, roots)
    }

    #[tokio::test]
    async fn calls_are_sent_through_tls_to_a_server_that_is_who_it_says() {
        let (listener, acceptor, url, roots) = secured(&[HTTP2]).await;
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut served = server::handshake(stream).await.unwrap();
                answer(asked(&mut served).await, "secret");
                tokio::spawn(finish(served));
            }
        });
        let endpoint = Endpoint::new(&url, RootCertStore::empty()).unwrap();
        Channel::connect(endpoint).await.unwrap_err();
        let channel = Channel::connect(Endpoint::new(&url, roots).unwrap()).await;
        assert_eq!(call(channel.unwrap(), url).await.unwrap(), "secret");
    }

    #[tokio::test]
    async fn a_server_that_does_not_agree_on_http_2_is_not_used() {
        let (listener, acceptor, url, roots) = secured(&[]).await;
        let accepting = async {
            let (stream, _) = listener.accept().await.unwrap();
            acceptor.accept(stream).await
        };
        let endpoint = Endpoint::new(&url, roots).unwrap();
        let (connected, _accepted) = tokio::join!(Channel::connect(endpoint), accepting);
        assert!(connected.unwrap_err().to_string().contains("HTTP/2"));
    }

    #[test]
    fn urls_without_a_server_or_of_other_protocols_are_refused() {
        for url in ["/path", "ftp://cache.example", "localhost:1"] {
            let url = url.parse().unwrap();
            assert!(
                Endpoint::new(&url, RootCertStore::empty()).is_err(),
                "{url}"
            );
        }
    }
}
