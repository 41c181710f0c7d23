//! The client of other replicas.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;
use uuid::Uuid;

use super::{PeerAddress, pinned, wire::keys_to_wire};
use crate::{
    domain::Key,
    proto::peer_v1::{self as wire, peer_service_client::PeerServiceClient},
};

/// Longest time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(250);
/// Interval and timeout of checks of a connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Name in the TLS handshake. The fingerprint identifies the replica.
const SERVER_NAME: &str = "account-service-replica";

/// A call to another replica failed.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The address of the replica cannot be used.
    #[error("the address of the replica cannot be used")]
    Address,
    /// The replica did not respond, or refused.
    #[error("{0}")]
    Call(#[from] Status),
    /// The process at the address is another replica, or has left the directory.
    #[error("the process at the address is not that replica")]
    OtherReplica,
}

/// A connection to a replica, with the metadata of its calls.
#[derive(Clone)]
struct Connection {
    client: PeerServiceClient<Channel>,
    authorization: MetadataValue<Ascii>,
}

/// Connections to other replicas, by their incarnations. They are opened when they are first used,
/// and again when they are lost.
#[derive(Default)]
pub struct PeerClient {
    connections: Mutex<HashMap<Uuid, Connection>>,
}

impl PeerClient {
    /// Removes keys from the near cache of a replica, and keeps them out of it for the duration of
    /// the hold. At most [`super::MAX_KEYS`] keys. The caller bounds its time.
    ///
    /// # Errors
    /// The replica may have applied the fence, or may apply it later.
    pub async fn fence(
        &self,
        incarnation: Uuid,
        address: &PeerAddress,
        write: Uuid,
        keys: &[Key],
        hold: Duration,
    ) -> Result<(), PeerError> {
        let Connection {
            mut client,
            authorization,
        } = self.connection(incarnation, address)?;
        let mut request = Request::new(wire::FenceRequest {
            write_id: write.into_bytes().to_vec(),
            keys: keys_to_wire(keys),
            hold_ms: u32::try_from(hold.as_millis()).unwrap_or(u32::MAX),
        });
        request
            .metadata_mut()
            .insert("authorization", authorization);
        let response = client.fence(request).await?.into_inner();
        if Uuid::try_parse(&response.incarnation) == Ok(incarnation) {
            Ok(())
        } else {
            Err(PeerError::OtherReplica)
        }
    }

    /// Ends the holds of a write.
    ///
    /// # Errors
    /// The replica did not respond.
    pub async fn release(
        &self,
        incarnation: Uuid,
        address: &PeerAddress,
        write: Uuid,
        keys: &[Key],
    ) -> Result<(), PeerError> {
        let Connection {
            mut client,
            authorization,
        } = self.connection(incarnation, address)?;
        let mut request = Request::new(wire::ReleaseRequest {
            write_id: write.into_bytes().to_vec(),
            keys: keys_to_wire(keys),
        });
        request
            .metadata_mut()
            .insert("authorization", authorization);
        client.release(request).await?;
        Ok(())
    }

    /// Closes the connections of all replicas but these.
    pub fn retain(&self, is_listed: impl Fn(Uuid) -> bool) {
        let mut connections = self.connections.lock();
        connections.retain(|incarnation, _| is_listed(*incarnation));
    }

    fn connection(
        &self,
        incarnation: Uuid,
        address: &PeerAddress,
    ) -> Result<Connection, PeerError> {
        let mut connections = self.connections.lock();
        if let Some(connection) = connections.get(&incarnation) {
            return Ok(connection.clone());
        }
        let connection = Connection::open(address)?;
        connections.insert(incarnation, connection.clone());
        Ok(connection)
    }
}

impl Connection {
    /// Opens the connection once it is used.
    fn open(address: &PeerAddress) -> Result<Self, PeerError> {
        let token = format!("Bearer {}", address.token.as_str());
        let mut authorization: MetadataValue<Ascii> =
            token.parse().map_err(|_| PeerError::Address)?;
        authorization.set_sensitive(true);
        Ok(Self {
            client: PeerServiceClient::new(address.channel()?),
            authorization,
        })
    }
}

impl PeerAddress {
    /// A channel that connects to the replica once it is used. It accepts only the replica's
    /// certificate.
    ///
    /// # Errors
    /// [`PeerError::Address`].
    pub fn channel(&self) -> Result<Channel, PeerError> {
        let tls = pinned::client_config(self.fingerprint).map_err(|_| PeerError::Address)?;
        let tls = Arc::new(tls);
        let authority = self.authority.clone();
        let endpoint = Endpoint::from_shared(format!("http://{authority}"));
        let endpoint = endpoint
            .map_err(|_| PeerError::Address)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let connector = service_fn(move |_: Uri| connect(authority.clone(), tls.clone()));
        Ok(endpoint.connect_with_connector_lazy(connector))
    }
}

async fn connect(
    authority: String,
    tls: Arc<ClientConfig>,
) -> std::io::Result<TokioIo<TlsStream<TcpStream>>> {
    let tcp = TcpStream::connect(authority).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
    let tls = TlsConnector::from(tls).connect(name, tcp).await?;
    Ok(TokioIo::new(tls))
}
