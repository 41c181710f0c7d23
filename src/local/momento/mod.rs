//! A Momento server: real wire protocol, conditional writes and exact times to
//! live, items in memory.

mod items;
mod service;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use momento_protos::{
    cache_client::scs_server::ScsServer, control_client::scs_control_server::ScsControlServer,
};
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

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is executed and answered.
    Served,
    /// It is executed twice before it is answered.
    ServedTwice,
    /// It is executed, and its answer lost.
    Unanswered,
    /// It is executed, and its answer takes so long.
    Slow(Duration),
    /// Of a GetBatch: the stream of answers ends after so many.
    Cut(usize),
}

/// Sees every data call before it is served: to count, to delay, to refuse, to
/// lose.
#[tonic::async_trait]
pub trait Gate: Send + Sync + 'static {
    /// Lets the call pass, at the time of its choosing, or refuses it.
    async fn pass(&self, call: DataCall, keys: &[&[u8]]) -> Result<Fate, Status>;

    /// A call says that it is part of a trace, by W3C's `traceparent` and `tracestate`.
    fn in_trace(&self, _parent: &str, _state: &str) {}

    /// How old an answer may be to a look-up that does not ask for what was written
    /// last: it is what was there before, if that was replaced since.
    fn lag(&self) -> Duration {
        Duration::ZERO
    }

    /// How long after the last answer the stream of a GetBatch ends.
    fn end_after(&self) -> Duration {
        Duration::ZERO
    }

    /// The caller of a GetBatch left before the stream of answers ended.
    fn left(&self) {}
}

/// Lets everything pass at once.
#[derive(Debug, Clone, Copy)]
pub struct OpenGate;

#[tonic::async_trait]
impl Gate for OpenGate {
    async fn pass(&self, _: DataCall, _: &[&[u8]]) -> Result<Fate, Status> {
        Ok(Fate::Served)
    }
}

#[derive(Clone)]
struct Momento {
    caches: Caches,
    api_key: ApiKey,
    gate: Arc<dyn Gate>,
}

impl Momento {
    /// The items of the cache that the call names, if the caller may use it.
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

    /// How old the answers to a look-up may be.
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

/// A server that is running. Stops when dropped.
#[derive(Debug)]
pub struct MomentoServer {
    addr: SocketAddr,
    caches: Caches,
    api_key: ApiKey,
    task: JoinHandle<()>,
}

impl MomentoServer {
    /// Where the server listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Starts another server with the same caches and credential, so that the
    /// calls of some clients pass another gate.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn start_beside(&self, addr: SocketAddr, gate: Arc<dyn Gate>) -> io::Result<Self> {
        serve(addr, self.caches.clone(), self.api_key.clone(), gate).await
    }

    /// Drops items, as a cache does that needs the room.
    #[must_use]
    pub fn evictor(&self) -> Evictor {
        Evictor(self.caches.clone())
    }

    /// Makes another key of the one that opens this server and those beside it:
    /// from now on the former is refused.
    pub fn rotate_key(&self) {
        self.api_key.rotate();
    }

    /// The secret that opens this server, as `accounts/MomentoAuthToken` holds
    /// it.
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

/// Drops items of a server's caches.
#[derive(Debug, Clone)]
pub struct Evictor(Caches);

impl Evictor {
    /// Drops an item.
    pub fn evict(&self, cache: &str, key: &[u8]) {
        if let Ok(items) = self.0.get(cache) {
            items.delete(key);
        }
    }

    /// Drops all items of a cache.
    pub fn flush(&self, cache: &str) {
        if let Ok(items) = self.0.get(cache) {
            items.clear();
        }
    }
}

/// Starts a server without caches.
///
/// # Errors
/// The address cannot be listened on.
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
    let momento = Momento {
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

/// The key that opens a server.
#[derive(Debug, Clone)]
struct ApiKey(Arc<RwLock<Arc<str>>>);

impl ApiKey {
    fn new() -> Self {
        Self(Arc::new(RwLock::new(new_api_key())))
    }

    fn get(&self) -> Arc<str> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn rotate(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new_api_key();
    }
}

/// A v2 API key, as far as clients look into it: three parts, the second one
/// base64url of `{"t":"g"}`.
fn new_api_key() -> Arc<str> {
    format!("e30.eyJ0IjoiZyJ9.{}", Uuid::new_v4().simple()).into()
}
