//! A network path to a replica for its peers, which a test interrupts.

use std::net::SocketAddr;

use account_service::local::ANY_PORT;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// The state of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    Open,
    /// Connections stay open, and carry nothing.
    Silent,
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
            while let Ok((peer, _)) = listener.accept().await {
                tokio::spawn(forward(peer, listens, current.clone()));
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

    /// Leads connections to another server, as if it had taken the replica's address.
    pub fn redirect(&self, server: SocketAddr) {
        self.set(Path::To(server));
    }
}

async fn forward(mut peer: TcpStream, replica: SocketAddr, mut path: watch::Receiver<Path>) {
    let current = *path.borrow_and_update();
    let server = match current {
        Path::Open => Some(replica),
        Path::To(server) => Some(server),
        Path::Silent | Path::Closed => None,
    };
    if let Some(server) = server
        && let Ok(mut server) = TcpStream::connect(server).await
    {
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut peer, &mut server) => return,
            _ = path.changed() => {}
        }
    }
    // A connection that was silent once does not recover.
    let _ = path.wait_for(|path| *path != Path::Silent).await;
}
