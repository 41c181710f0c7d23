//! A network path to a replica for its peers, which a test interrupts.

use std::{net::SocketAddr, time::Duration};

use account_service::local::ANY_PORT;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::sleep,
};

/// The state of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    Open,
    /// Connections stay open, and carry nothing.
    Silent,
    /// Requests reach the replica, and its replies are lost.
    RepliesLost,
    /// Each piece of a request and of a reply is late.
    Slow(Duration),
    /// Connections are closed.
    Closed,
    /// New connections lead to another server.
    To(SocketAddr),
}

/// The path to one replica.
pub struct PeerNetwork {
    /// The address that the replica advertises.
    pub advertised: SocketAddr,
    /// The address on which the replica listens.
    pub listens: SocketAddr,
    path: watch::Sender<Path>,
}

impl PeerNetwork {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(ANY_PORT).await.unwrap();
        let advertised = listener.local_addr().unwrap();
        let free = TcpListener::bind(ANY_PORT).await.unwrap();
        let listens = free.local_addr().unwrap();
        let (path, current) = watch::channel(Path::Open);
        tokio::spawn(async move {
            let mut ended = current.clone();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (peer, _) = accepted.unwrap();
                        tokio::spawn(serve(peer, listens, current.clone()));
                    }
                    gone = ended.changed() => if gone.is_err() { return },
                }
            }
        });
        Self {
            advertised,
            listens,
            path,
        }
    }

    pub fn set(&self, path: Path) {
        self.path.send_replace(path);
    }
}

async fn serve(peer: TcpStream, replica: SocketAddr, mut path: watch::Receiver<Path>) {
    let server = match *path.borrow_and_update() {
        Path::Closed => return,
        Path::To(server) => server,
        _ => replica,
    };
    let is_redirected = server != replica;
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (from_peer, to_peer) = peer.into_split();
    let (from_server, to_server) = server.into_split();
    let is_cut = async {
        let closes = |path: &Path| match path {
            Path::Closed => true,
            Path::To(_) => !is_redirected,
            _ => is_redirected,
        };
        let _ = path.clone().wait_for(closes).await;
    };
    tokio::select! {
        () = forward(from_peer, to_server, path.clone(), false) => {}
        () = forward(from_server, to_peer, path.clone(), true) => {}
        () = is_cut => {}
    }
}

/// Forwards the bytes of one direction. Bytes that are lost break the connection for good.
async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    path: watch::Receiver<Path>,
    are_replies: bool,
) {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let Ok(length @ 1..) = from.read(&mut bytes).await else {
            return;
        };
        let current = *path.borrow();
        match current {
            Path::Silent => std::future::pending().await,
            Path::RepliesLost if are_replies => std::future::pending().await,
            Path::Slow(delay) => sleep(delay).await,
            _ => {}
        }
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}
