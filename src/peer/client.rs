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
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;
use uuid::Uuid;

use super::{Incarnation, PeerAddress, WriteId, pinned, wire::keys_to_wire};
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

/// A fence of a write.
#[derive(Debug, Clone, Copy)]
pub struct Fence<'a> {
    /// The write.
    pub write: WriteId,
    /// The keys to remove, at most [`super::MAX_KEYS`].
    pub keys: &'a [Key],
    /// Time for which the keys are kept out of the near cache, unless the write releases them. Zero:
    /// they are only removed.
    pub hold: Duration,
}

/// The client of a replica, with the token of that replica.
type PeerConnection = PeerServiceClient<InterceptedService<Channel, Authorization>>;

/// Adds the token of a replica to its calls.
#[derive(Clone)]
struct Authorization(MetadataValue<Ascii>);

impl Interceptor for Authorization {
    fn call(&mut self, mut call: Request<()>) -> Result<Request<()>, Status> {
        let token = self.0.clone();
        call.metadata_mut().insert("authorization", token);
        Ok(call)
    }
}

/// Connections to other replicas, by their incarnations. They are opened when they are first used,
/// and again when they are lost.
#[derive(Default)]
pub struct PeerClient {
    connections: Mutex<HashMap<Incarnation, PeerConnection>>,
}

impl PeerClient {
    /// Fences the near cache of a replica. The caller bounds its time.
    ///
    /// # Errors
    /// The replica may have applied the fence, or may apply it later.
    pub async fn fence(
        &self,
        incarnation: Incarnation,
        address: &PeerAddress,
        fence: Fence<'_>,
    ) -> Result<(), PeerError> {
        let Fence { write, keys, hold } = fence;
        let request = wire::FenceRequest {
            write_id: write.0.into_bytes().to_vec(),
            keys: keys_to_wire(keys),
            hold_ms: u32::try_from(hold.as_millis()).unwrap_or(u32::MAX),
        };
        let mut connection = self.connection(incarnation, address)?;
        let response = connection.fence(request).await?.into_inner();
        if Uuid::try_parse(&response.incarnation) == Ok(incarnation.0) {
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
        incarnation: Incarnation,
        address: &PeerAddress,
        write: WriteId,
        keys: &[Key],
    ) -> Result<(), PeerError> {
        let request = wire::ReleaseRequest {
            write_id: write.0.into_bytes().to_vec(),
            keys: keys_to_wire(keys),
        };
        let mut connection = self.connection(incarnation, address)?;
        connection.release(request).await?;
        Ok(())
    }

    /// Closes the connections of all replicas but these.
    pub fn retain(&self, is_listed: impl Fn(&Incarnation) -> bool) {
        let mut connections = self.connections.lock();
        connections.retain(|incarnation, _| is_listed(incarnation));
    }

    fn connection(
        &self,
        incarnation: Incarnation,
        address: &PeerAddress,
    ) -> Result<PeerConnection, PeerError> {
        let mut connections = self.connections.lock();
        if let Some(connection) = connections.get(&incarnation) {
            return Ok(connection.clone());
        }
        let connection = open(address)?;
        connections.insert(incarnation, connection.clone());
        Ok(connection)
    }
}

/// Opens a connection once it is used.
fn open(address: &PeerAddress) -> Result<PeerConnection, PeerError> {
    let token = format!("Bearer {}", address.token.as_str());
    let mut token: MetadataValue<Ascii> = token.parse().map_err(|_| PeerError::Address)?;
    token.set_sensitive(true);
    let channel = address.channel()?;
    Ok(PeerServiceClient::with_interceptor(
        channel,
        Authorization(token),
    ))
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
