//! A Momento server: real wire protocol, conditional writes and exact times to
//! live, items in memory.

mod items;
mod service;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use momento_protos::{
    cache_client::scs_server::ScsServer, control_client::scs_control_server::ScsControlServer,
};
use parking_lot::RwLock;
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{
    Request, Status, metadata::KeyAndValueRef, transport::Server, transport::server::TcpIncoming,
};
use uuid::Uuid;

use self::items::{Caches, Items};

/// A data call, by the name of its RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DataCall {
    /// Get.
    Get,
    /// GetBatch.
    GetBatch,
    /// Set.
    Set,
    /// SetBatch.
    SetBatch,
    /// SetIf.
    SetIf,
    /// Delete.
    Delete,
}

/// The fate of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is executed, and its response is sent.
    Served,
    /// It is executed twice before its response is sent.
    ServedTwice,
    /// It is executed, and its response is lost.
    Unanswered,
    /// It is executed, and its response is delayed.
    Slow(Duration),
    /// It is a GetBatch, and its stream ends after this number of responses.
    Cut(usize),
}

/// Receives every data call before it is served, and may count, delay, reject or lose it.
#[tonic::async_trait]
pub trait Gate: Send + Sync + 'static {
    /// Decides the fate of a call, possibly after a delay, or rejects the call.
    async fn pass(&self, call: DataCall, keys: &[&[u8]]) -> Result<Fate, Status>;

    /// Receives the trace of a call: W3C's `traceparent` and `tracestate`.
    fn in_trace(&self, _parent: &str, _state: &str) {}

    /// Staleness of look-ups without a consistent read: they return the previous value for
    /// this time after its replacement.
    fn lag(&self) -> Duration {
        Duration::ZERO
    }

    /// Delay from the last response of a GetBatch to the end of its stream.
    fn end_after(&self) -> Duration {
        Duration::ZERO
    }

    /// Receives the event that the caller of a GetBatch has dropped the stream before its end.
    fn left(&self) {}
}

/// Serves every call at once.
#[derive(Debug, Clone, Copy)]
pub struct OpenGate;

#[tonic::async_trait]
impl Gate for OpenGate {
    async fn pass(&self, _: DataCall, _: &[&[u8]]) -> Result<Fate, Status> {
        Ok(Fate::Served)
    }
}

#[derive(Clone)]
struct EmbeddedMomento {
    caches: Caches,
    api_key: ApiKey,
    gate: Arc<dyn Gate>,
}

impl EmbeddedMomento {
    /// The items of the cache that the call names. Rejects callers without the API key.
    fn admit<T>(&self, request: &Request<T>) -> Result<Items, Status> {
        self.authenticate(request)?;
        let header = |name| request.metadata().get(name)?.to_str().ok();
        if let Some(parent) = header("traceparent") {
            let state = header("tracestate").unwrap_or_default();
            self.gate.in_trace(parent, state);
        }
        let name = request.metadata().get("cache");
        let name = name.and_then(|name| name.to_str().ok()).unwrap_or_default();
        self.caches.get(name)
    }

    /// The staleness of a look-up.
    fn lag<T>(&self, request: &Request<T>) -> Duration {
        match request.metadata().get("read-concern") {
            Some(concern) if concern == "consistent" => Duration::ZERO,
            _ => self.gate.lag(),
        }
    }

    fn authenticate<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let is_authorized = request.metadata().iter().any(|entry| match entry {
            KeyAndValueRef::Ascii(name, value) => {
                name == "authorization" && value.as_bytes() == self.api_key.get().as_bytes()
            }
            KeyAndValueRef::Binary(..) => false,
        });
        if is_authorized {
            Ok(())
        } else {
            Err(Status::unauthenticated("not the key of this server"))
        }
    }
}

/// A running server. Dropping it stops the server.
#[derive(Debug)]
pub struct MomentoServer {
    addr: SocketAddr,
    caches: Caches,
    api_key: ApiKey,
    task: JoinHandle<()>,
}

impl MomentoServer {
    /// The address of the server.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Starts another server with the same caches and credential, and another gate for the
    /// calls of some clients.
    ///
    /// # Errors
    /// The server cannot listen on the address.
    pub async fn start_beside(&self, addr: SocketAddr, gate: Arc<dyn Gate>) -> io::Result<Self> {
        serve(addr, self.caches.clone(), self.api_key.clone(), gate).await
    }

    /// An evictor of items, for evictions as in a full cache.
    #[must_use]
    pub fn evictor(&self) -> Evictor {
        Evictor(self.caches.clone())
    }

    /// Replaces the API key of this server and of the servers beside it. From now on the
    /// former key is rejected.
    pub fn rotate_key(&self) {
        self.api_key.rotate();
    }

    /// The secret for this server, in the form of `accounts/MomentoAuthToken`.
    #[must_use]
    pub fn secret(&self) -> secrecy::SecretString {
        let secret = serde_json::json!({
            "MOMENTO_API_KEY": &*self.api_key.get(),
            "MOMENTO_ENDPOINT": format!("http://{}", self.addr),
        });
        secret.to_string().into()
    }
}

impl Drop for MomentoServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Evicts items of a server's caches.
#[derive(Debug, Clone)]
pub struct Evictor(Caches);

impl Evictor {
    /// Evicts an item.
    pub fn evict(&self, cache: &str, key: &[u8]) {
        if let Ok(items) = self.0.get(cache) {
            items.delete(key);
        }
    }

    /// Evicts all items of a cache.
    pub fn flush(&self, cache: &str) {
        if let Ok(items) = self.0.get(cache) {
            items.clear();
        }
    }
}

/// Starts a server without caches.
///
/// # Errors
/// The server cannot listen on the address.
pub async fn start(addr: SocketAddr, gate: Arc<dyn Gate>) -> io::Result<MomentoServer> {
    serve(addr, Caches::default(), ApiKey::new(), gate).await
}

async fn serve(
    addr: SocketAddr,
    caches: Caches,
    api_key: ApiKey,
    gate: Arc<dyn Gate>,
) -> io::Result<MomentoServer> {
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    let momento = EmbeddedMomento {
        caches: caches.clone(),
        api_key: api_key.clone(),
        gate,
    };
    let server = Server::builder()
        .add_service(ScsServer::new(momento.clone()))
        .add_service(ScsControlServer::new(momento))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    let task = tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the embedded Momento server failed");
        }
    });
    Ok(MomentoServer {
        addr,
        caches,
        api_key,
        task,
    })
}

/// The API key of a server.
#[derive(Debug, Clone)]
struct ApiKey(Arc<RwLock<Arc<str>>>);

impl ApiKey {
    fn new() -> Self {
        Self(Arc::new(RwLock::new(new_api_key())))
    }

    fn get(&self) -> Arc<str> {
        self.0.read().clone()
    }

    fn rotate(&self) {
        *self.0.write() = new_api_key();
    }
}

/// A v2 API key, with the form that clients check: three parts, the second one base64url of
/// `{"t":"g"}`.
fn new_api_key() -> Arc<str> {
    format!("e30.eyJ0IjoiZyJ9.{}", Uuid::new_v4().simple()).into()
}
