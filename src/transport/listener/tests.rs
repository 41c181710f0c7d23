//! Tests of the listener.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_stream::StreamExt as _;

use super::*;

const LIMITS: Limits = Limits {
    authenticated: 10,
    unauthenticated: 10,
    authentication: Duration::from_secs(30),
    lifetime: Duration::from_secs(600),
};

/// A client that has sent its first bytes, and the server's end of its connection.
async fn greeted() -> (TcpStream, Connection) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut connections = accept(listener, None, LIMITS);
    let mut client = TcpStream::connect(addr).await.unwrap();
    let mut greeting = [0; GREETING_BYTES];
    client.write_all(&greeting).await.unwrap();
    let mut server = connections.next().await.unwrap().unwrap();
    server.read_exact(&mut greeting).await.unwrap();
    (client, server)
}

/// The lifetime of a connection, with or without an admitted call.
async fn lasts(is_admitted: bool) -> Duration {
    let began = Instant::now();
    let (_client, mut server) = greeted().await;
    if is_admitted {
        server.connect_info().authenticate(None).unwrap();
    }
    server.read(&mut [0; 1]).await.unwrap_err();
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_receives_nothing_is_disconnected() {
    let (_client, mut server) = greeted().await;
    let endless = async { while server.write_all(&[0; 8 * 1024]).await.is_ok() {} };
    let began = Instant::now();
    endless.await;
    let lasted = began.elapsed();
    assert!(
        lasted >= WRITE_TIMEOUT && lasted < LIMITS.authentication,
        "{lasted:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_connection_lasts_longer_once_a_call_on_it_was_admitted() {
    for (is_admitted, limit) in [(false, LIMITS.authentication), (true, LIMITS.lifetime)] {
        let lasted = lasts(is_admitted).await;
        let tolerance = Duration::from_secs(5);
        assert!(lasted >= limit && lasted < limit + tolerance, "{lasted:?}");
    }
}
