//! The cache in Momento: conditional writes by its SDK, and look-ups by its protocol.

mod credential;
mod lookups;

use std::{collections::HashMap, time::Duration};

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

pub use self::credential::{Credential, CredentialError};

use self::lookups::MomentoLookups;
use super::{Error, FailureKind, Found, SetCondition};
use crate::telemetry::{Backend, BackendCall, Outcome};

/// Longest wait for a connection, and for the first response.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest call. Callers set shorter timeouts.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of checks of idle connections, so that the first request after a network fault does not
/// detect it.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Longest such check.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Not used: every write has its own time to live.
const DEFAULT_TTL: Duration = Duration::from_secs(1);
/// A key that is never stored, for probes of the cache.
const PROBE_KEY: &str = "probe";

/// The name of the cache, and the connections to it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the cache.
    pub cache: String,
    /// Connections for writes. Look-ups have one more.
    pub connections: usize,
}

/// Connections to the cache. Each operation is one round trip without retries.
#[derive(Debug, Clone)]
pub struct Momento {
    client: CacheClient,
    lookups: MomentoLookups,
    cache: String,
    endpoint: String,
}

impl Momento {
    /// Opens the connections. Does not use the cache yet: see [`Self::probe`].
    ///
    /// # Errors
    /// [`FailureKind::Unavailable`]: no connection within a second. [`FailureKind::Refused`]: the
    /// credential or the name of the cache cannot be sent.
    pub async fn connect(credential: Credential, settings: Settings) -> Result<Self, Error> {
        let grpc = GrpcConfiguration::builder()
            .deadline(REQUEST_TIMEOUT)
            .keep_alive_while_idle(true)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        let transport = TransportStrategy::builder().grpc_configuration(grpc);
        let lookups = MomentoLookups::connect(&credential, &settings.cache);
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
            lookups,
            cache: settings.cache,
            endpoint,
        })
    }

    /// The endpoint of the credential.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Checks that the cache exists and accepts the credential.
    ///
    /// # Errors
    /// [`FailureKind::Missing`], [`FailureKind::Credential`] or [`FailureKind::Unavailable`].
    pub async fn probe(&self) -> Result<(), Error> {
        let keys = [PROBE_KEY.to_owned()];
        let probe = self.lookups.get(&keys, HashMap::new());
        within(CONNECT_TIMEOUT, probe).await.map(drop)
    }

    /// Creates the cache. `false`: it exists.
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

    pub(super) async fn get(&self, keys: &[String]) -> Result<Vec<Found>, Error> {
        let operation = match keys.len() {
            0 => return Ok(Vec::new()),
            1 => "Get",
            _ => "GetBatch",
        };
        recorded(operation, |context| self.lookups.get(keys, context)).await
    }

    pub(super) async fn set_if(
        &self,
        condition: SetCondition<'_>,
        key: &str,
        value: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        let cache = &self.cache;
        Ok(match condition {
            SetCondition::Absent => {
                let request = SetIfAbsentRequest::new(cache, key, value).ttl(ttl);
                self.send(request).await? == SetIfAbsentResponse::Stored
            }
            SetCondition::Equals(expected) => {
                let request = SetIfEqualRequest::new(cache, key, value, expected).ttl(ttl);
                self.send(request).await? == SetIfEqualResponse::Stored
            }
            SetCondition::Differs => {
                let request = SetIfNotEqualRequest::new(cache, key, value, value).ttl(ttl);
                self.send(request).await? == SetIfNotEqualResponse::Stored
            }
        })
    }

    async fn send<R: MomentoRequest>(&self, request: R) -> Result<R::Response, Error> {
        // The SDK adds no headers for traces.
        let call = async |_| self.client.send_request(request).await.map_err(failed);
        recorded("SetIf", call).await
    }
}

/// Records the duration and the outcome of a call, which receives the headers of its trace.
async fn recorded<T>(
    operation: &'static str,
    call: impl AsyncFnOnce(HashMap<String, String>) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut record = BackendCall::begin(Backend::Momento, operation);
    let result = call(record.trace_context()).await;
    record.end(match &result {
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
                format!("no response within {} ms", timeout.as_millis()),
            )
        })?
}

/// The SDK's own message has no keys, values or credential. Its cause is a transport error or a
/// status.
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
