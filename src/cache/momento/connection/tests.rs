//! Tests of connections, against a server of the test.

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
async fn next_call<S: AsyncRead + AsyncWrite + Unpin>(
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
    let held = next_call(&mut leaving).await;
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
    answer(next_call(&mut next).await, "next");
    tokio::spawn(finish(next));
    assert_eq!(asking.await.unwrap(), "next");
    answer(held, "first");
    assert_eq!(first.await.unwrap().unwrap(), "first");
}

#[tokio::test]
async fn a_lost_server_fails_calls_at_once_and_is_connected_again() {
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
        answer(next_call(&mut served).await, "found");
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
            answer(next_call(&mut served).await, "secret");
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
