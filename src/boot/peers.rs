//! The listener for other replicas.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use tokio::net::TcpListener;
use tokio_stream::Stream;

use super::{Error, bind};
use crate::{
    config::PeerSettings,
    peer::{PeerAddress, PeerIdentity},
    transport::listener::{self, Connection, Limits},
};

/// Connections of other replicas.
const CONNECTIONS: Limits = Limits {
    authenticated: 1024,
    unauthenticated: 64,
    authentication: Duration::from_secs(10),
    lifetime: Duration::from_secs(24 * 3600),
};
/// Addresses for documentation: no packet is sent to them.
const OUTSIDE_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 1);
const OUTSIDE_V6: SocketAddr = SocketAddr::new(
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    1,
);

/// The listener for other replicas, and the identity of this process for them.
pub(super) struct PeerListener {
    listener: TcpListener,
    identity: Arc<PeerIdentity>,
    authority: String,
}

impl PeerListener {
    /// Listens, if the settings have an address.
    ///
    /// # Errors
    /// [`Error::Listen`], [`Error::PeerIdentity`].
    pub(super) async fn start(settings: &PeerSettings) -> Result<Option<Self>, Error> {
        let Some(addr) = settings.peer_addr else {
            return Ok(None);
        };
        let (listener, addr) = bind(addr).await?;
        let authority = match &settings.peer_advertise {
            Some(authority) => authority.clone(),
            None => reachable(addr).to_string(),
        };
        let identity = PeerIdentity::generate().map_err(Error::PeerIdentity)?;
        Ok(Some(Self {
            listener,
            identity: Arc::new(identity),
            authority,
        }))
    }

    /// The address for the replica directory.
    pub(super) fn address(&self) -> PeerAddress {
        self.identity.address(self.authority.clone())
    }

    /// The identity of this process.
    pub(super) fn identity(&self) -> Arc<PeerIdentity> {
        self.identity.clone()
    }

    /// The connections of other replicas.
    pub(super) fn accept(self) -> impl Stream<Item = std::io::Result<Connection>> {
        let tls = self.identity.tls();
        listener::accept(
            self.listener,
            Some(Arc::new(move || tls.clone())),
            CONNECTIONS,
        )
    }
}

/// The address for other hosts of a listener on all addresses.
fn reachable(addr: SocketAddr) -> SocketAddr {
    if !addr.ip().is_unspecified() {
        return addr;
    }
    let outside = if addr.is_ipv4() {
        OUTSIDE_V4
    } else {
        OUTSIDE_V6
    };
    let own = || {
        let socket = UdpSocket::bind(SocketAddr::new(addr.ip(), 0)).ok()?;
        socket.connect(outside).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    SocketAddr::new(own().unwrap_or_else(|| addr.ip()), addr.port())
}
