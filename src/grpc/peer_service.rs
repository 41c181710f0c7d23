//! The gRPC service for other replicas: fences the near cache of this one.

use std::{sync::Arc, time::Duration};

use tonic::{
    Request, Response, Status,
    service::{Interceptor, interceptor::InterceptedService},
};
use uuid::Uuid;

use crate::{
    coherence::Coherence,
    domain::Key,
    peer::{PeerIdentity, WriteId, keys_from_wire},
    proto::peer_v1::{
        self as wire,
        peer_service_server::{PeerService, PeerServiceServer},
    },
    transport::listener::Peer,
};

/// Largest request, in bytes: more than the most keys take.
const MAX_REQUEST_BYTES: usize = 512 * 1024;

/// The service for other replicas. Every call needs the token of this replica, which stands in the
/// replica directory.
pub struct ReplicaService {
    coherence: Coherence,
    identity: Arc<PeerIdentity>,
}

impl ReplicaService {
    /// Fences the near cache of `coherence`.
    #[must_use]
    pub fn new(coherence: Coherence, identity: Arc<PeerIdentity>) -> Self {
        Self {
            coherence,
            identity,
        }
    }

    /// The service for a tonic server. It rejects a call without the token before it reads the
    /// message.
    #[must_use]
    pub fn into_server(
        self,
    ) -> InterceptedService<PeerServiceServer<Self>, impl Interceptor + Clone> {
        let identity = self.identity.clone();
        let server = PeerServiceServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES);
        InterceptedService::new(server, move |call| authenticate(&identity, call))
    }
}

fn authenticate(identity: &PeerIdentity, call: Request<()>) -> Result<Request<()>, Status> {
    let authorization = call.metadata().get("authorization");
    let token = authorization.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if !identity.token().is_presented(token.unwrap_or_default()) {
        return Err(Status::unauthenticated(
            "the token of this replica is required",
        ));
    }
    if let Some(peer) = call.extensions().get::<Peer>() {
        let too_many = |_| Status::resource_exhausted("too many connections of replicas");
        peer.authenticate(None).map_err(too_many)?;
    }
    Ok(call)
}

#[tonic::async_trait]
impl PeerService for ReplicaService {
    async fn fence(
        &self,
        request: Request<wire::FenceRequest>,
    ) -> Result<Response<wire::FenceResponse>, Status> {
        let wire::FenceRequest {
            write_id,
            keys,
            hold_ms,
        } = request.into_inner();
        let (write, keys) = parse(&write_id, keys)?;
        let hold = Duration::from_millis(hold_ms.into());
        let incarnation = self.coherence.fence(&keys, write, hold);
        Ok(Response::new(wire::FenceResponse {
            incarnation: incarnation.map(|it| it.to_string()).unwrap_or_default(),
        }))
    }

    async fn release(
        &self,
        request: Request<wire::ReleaseRequest>,
    ) -> Result<Response<wire::ReleaseResponse>, Status> {
        let wire::ReleaseRequest { write_id, keys } = request.into_inner();
        let (write, keys) = parse(&write_id, keys)?;
        self.coherence.release(&keys, write);
        Ok(Response::new(wire::ReleaseResponse {}))
    }
}

fn parse(write_id: &[u8], keys: Vec<wire::Key>) -> Result<(WriteId, Vec<Key>), Status> {
    let write = Uuid::from_slice(write_id)
        .map_err(|_| Status::invalid_argument("write_id must be 16 bytes"))?;
    let keys = keys_from_wire(keys)
        .map_err(|_| Status::invalid_argument("keys must be at most 300 keys of records"))?;
    Ok((WriteId(write), keys))
}
