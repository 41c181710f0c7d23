//! The cache in Momento, over one long-lived client.

mod connection;
mod consistent_get;
mod credential;
mod in_flight_batch;
mod response_stream;

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::future::try_join;
use momento::{
    CacheClient, MomentoError, MomentoErrorCode,
    cache::{
        Configuration, CreateCacheResponse, MomentoRequest, SetIfAbsentRequest,
        SetIfAbsentResponse, SetIfEqualRequest, SetIfEqualResponse, SetIfNotEqualRequest,
        SetIfNotEqualResponse,
    },
    config::{grpc_configuration::GrpcConfiguration, transport_strategy::TransportStrategy},
};

pub use self::{
    credential::{Credential, CredentialError},
    in_flight_batch::Batching,
};

use self::consistent_get::Lookups;
use super::{Cache, Error, FailureKind, Found, Keys};
use crate::telemetry::{Backend, BackendCall, Outcome};

/// Longest to wait for the connection, and for the first answer.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Header with the time after which the client does not wait any more. Callers set tighter bounds of
/// their own.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Idle connections are checked this often, so that the first request after a
/// network fault does not pay for finding out.
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How long the check may take.
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Every write names its own time to live; this one is never used.
const DEFAULT_TTL: Duration = Duration::from_secs(1);
/// A key that is never stored: looked up to see that the cache answers.
const PROBE_KEY: &str = "probe";

/// Where the cache is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the cache.
    pub cache: String,
    /// Connections to open for look-ups, and as many for writes.
    pub connections: usize,
}

/// The cache, over one long-lived client.
#[derive(Debug, Clone)]
pub struct Momento {
    client: CacheClient,
    lookups: Arc<Lookups>,
    cache: String,
    endpoint: String,
}

impl Momento {
    /// Opens the connections. Does not yet use the cache: see [`Self::probe`].
    ///
    /// # Errors
    /// [`FailureKind::Unavailable`]: no connection within a second.
    pub async fn connect(credential: Credential, settings: Settings) -> Result<Self, Error> {
        let grpc = GrpcConfiguration::builder()
            .deadline(REQUEST_TIMEOUT)
            .keep_alive_while_idle(true)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        let transport = TransportStrategy::builder().grpc_configuration(grpc);
        let lookups = Lookups::connect(&credential, &settings);
        let endpoint = credential.endpoint();
        let client = CacheClient::builder()
            .default_ttl(DEFAULT_TTL)
            .configuration(Configuration::builder().transport_strategy(transport))
            .credential_provider(credential.0.clone())
            .with_num_connections(settings.connections)
            .build_and_connect();
        let client = async { client.await.map_err(failed) };
        let both = Box::pin(try_join(client, lookups));
        let (client, lookups) = within(CONNECT_TIMEOUT, both).await?;
        Ok(Self {
            client,
            lookups: Arc::new(lookups),
            cache: settings.cache,
            endpoint,
        })
    }

    /// Where the cache is, as the credential says.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Looks up a key, to see that the cache exists and the credential opens it.
    ///
    /// # Errors
    /// [`FailureKind::Missing`], [`FailureKind::Credential`] or [`FailureKind::Unavailable`].
    pub async fn probe(&self) -> Result<(), Error> {
        let keys = [PROBE_KEY].into_iter().collect();
        let probe = self.lookups.get(&keys, HashMap::new());
        within(CONNECT_TIMEOUT, probe).await.map(drop)
    }

    /// Creates the cache; says whether it did, `false` if it exists.
    ///
    /// # Errors
    /// [`FailureKind::Credential`] or [`FailureKind::Unavailable`].
    pub async fn create_cache(&self) -> Result<bool, Error> {
        let create = async {
            let created = self.client.create_cache(&self.cache).await;
            created.map_err(failed)
        };
        let created = within(CONNECT_TIMEOUT, create).await?;
        Ok(created == CreateCacheResponse::Created)
    }

    async fn set_if<R: MomentoRequest>(&self, request: R) -> Result<R::Response, Error> {
        // The SDK sends no headers of others.
        let call = async |_| self.client.send_request(request).await.map_err(failed);
        watched("SetIf", call).await
    }
}

#[async_trait]
impl Cache for Momento {
    async fn get(&self, keys: &Keys) -> Result<Vec<Found>, Error> {
        let operation = match keys.len() {
            0 => return Ok(Vec::new()),
            1 => "Get",
            _ => "GetBatch",
        };
        watched(operation, |context| self.lookups.get(keys, context)).await
    }

    async fn set_if_absent(&self, key: &str, value: &[u8], ttl: Duration) -> Result<bool, Error> {
        let request = SetIfAbsentRequest::new(&self.cache, key, value).ttl(ttl);
        Ok(self.set_if(request).await? == SetIfAbsentResponse::Stored)
    }

    async fn set_if_equal(
        &self,
        key: &str,
        value: &[u8],
        expected: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        let request = SetIfEqualRequest::new(&self.cache, key, value, expected).ttl(ttl);
        Ok(self.set_if(request).await? == SetIfEqualResponse::Stored)
    }

    async fn set_if_not_equal(
        &self,
        key: &str,
        value: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        let request = SetIfNotEqualRequest::new(&self.cache, key, value, value).ttl(ttl);
        Ok(self.set_if(request).await? == SetIfNotEqualResponse::Stored)
    }
}

/// Records the duration and the outcome of a call. The call gets the headers of its
/// trace.
async fn watched<T>(
    operation: &'static str,
    call: impl AsyncFnOnce(HashMap<String, String>) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut watch = BackendCall::begin(Backend::Momento, operation);
    let result = call(watch.trace_context()).await;
    watch.end(match &result {
        Ok(_) => Outcome::Ok,
        Err(error) if error.kind == FailureKind::Unavailable => Outcome::Failed,
        Err(_) => Outcome::Refused,
    });
    result
}

async fn within<T>(
    timeout: Duration,
    operation: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(timeout, operation)
        .await
        .map_err(|_| {
            Error::new(
                FailureKind::Unavailable,
                format!("no answer within {} ms", timeout.as_millis()),
            )
        })?
}

/// The SDK's own message never names keys, values or the credential; what
/// caused it is a transport error or a status.
fn failed(error: MomentoError) -> Error {
    let kind = match error.error_code {
        MomentoErrorCode::AuthenticationError | MomentoErrorCode::PermissionError => {
            FailureKind::Credential
        }
        MomentoErrorCode::CacheNotFoundError | MomentoErrorCode::StoreNotFoundError => {
            FailureKind::Missing
        }
        MomentoErrorCode::InvalidArgumentError | MomentoErrorCode::BadRequestError => {
            FailureKind::Refused
        }
        _ => FailureKind::Unavailable,
    };
    let cause = match error.details() {
        Some(status) => format!("{:?}: {}", status.code, status.message),
        None => error.message,
    };
    Error::new(kind, cause)
}
