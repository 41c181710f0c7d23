//! The cache in Momento, over one long-lived client. This room alone knows the
//! Momento SDK.

use std::time::Duration;

use momento::{
    CacheClient, MomentoError, MomentoErrorCode,
    cache::{
        Configuration, CreateCacheResponse, GetResponse, MomentoRequest, SetIfAbsentRequest,
        SetIfAbsentResponse, SetIfEqualRequest, SetIfEqualResponse, SetIfNotEqualRequest,
        SetIfNotEqualResponse,
    },
    config::{grpc_configuration::GrpcConfiguration, transport_strategy::TransportStrategy},
};

use super::{Credential, Error, Found, Kind};
use crate::telemetry::{Backend, BackendCall, Outcome};

/// Longest to wait for the connection, and for the first answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Backstop on every request: tells the server when an answer is of no more
/// use. Callers set tighter bounds of their own.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Idle connections are checked this often, so that the first request after a
/// network fault does not pay for finding out.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How long the check may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Every write names its own time to live; this one is never used.
const DEFAULT_TTL: Duration = Duration::from_secs(1);
/// A key that is never stored: looked up to see that the cache answers.
const PROBE_KEY: &str = "probe";

/// Where the cache is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the cache.
    pub cache: String,
    /// Connections to open.
    pub connections: usize,
}

/// The cache, over one long-lived client.
#[derive(Debug, Clone)]
pub struct Momento {
    client: CacheClient,
    cache: String,
    endpoint: String,
}

impl Momento {
    /// Opens the connections. Does not yet use the cache: see [`Self::probe`].
    ///
    /// # Errors
    /// [`Kind::Unavailable`]: no connection within a second.
    pub async fn connect(credential: Credential, settings: Settings) -> Result<Self, Error> {
        let grpc = GrpcConfiguration::builder()
            .deadline(REQUEST_TIMEOUT)
            .keep_alive_while_idle(true)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        let transport = TransportStrategy::builder().grpc_configuration(grpc);
        let endpoint = credential.0.cache_http_endpoint().to_owned();
        let client = CacheClient::builder()
            .default_ttl(DEFAULT_TTL)
            .configuration(Configuration::builder().transport_strategy(transport))
            .credential_provider(credential.0)
            .with_num_connections(settings.connections)
            .build_and_connect();
        Ok(Self {
            client: within(CONNECT_TIMEOUT, client).await?,
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
    /// [`Kind::Missing`], [`Kind::Credential`] or [`Kind::Unavailable`].
    pub async fn probe(&self) -> Result<(), Error> {
        within(CONNECT_TIMEOUT, self.client.get(&self.cache, PROBE_KEY))
            .await
            .map(|_| ())
    }

    /// Creates the cache; says whether it did, `false` if it exists.
    ///
    /// # Errors
    /// [`Kind::Credential`] or [`Kind::Unavailable`].
    pub async fn create_cache(&self) -> Result<bool, Error> {
        let created = within(CONNECT_TIMEOUT, self.client.create_cache(&self.cache)).await?;
        Ok(created == CreateCacheResponse::Created)
    }

    async fn set_if<R: MomentoRequest>(&self, request: R) -> Result<R::Response, Error> {
        watched("SetIf", self.client.send_request(request)).await
    }
}

/// See [`super::Cache`], for what each does.
impl Momento {
    pub(super) async fn get(&self, keys: &[String]) -> Result<Vec<Found>, Error> {
        let [key] = keys else {
            return self.get_batch(keys).await;
        };
        let response = watched("Get", self.client.get(&self.cache, key.as_str())).await?;
        Ok(vec![found(response)])
    }

    pub(super) async fn set_if_absent(
        &self,
        key: &str,
        value: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        let request = SetIfAbsentRequest::new(&self.cache, key, value).ttl(ttl);
        Ok(self.set_if(request).await? == SetIfAbsentResponse::Stored)
    }

    pub(super) async fn set_if_equal(
        &self,
        key: &str,
        value: &[u8],
        expected: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        let request = SetIfEqualRequest::new(&self.cache, key, value, expected).ttl(ttl);
        Ok(self.set_if(request).await? == SetIfEqualResponse::Stored)
    }

    pub(super) async fn set_if_not_equal(
        &self,
        key: &str,
        value: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        let request = SetIfNotEqualRequest::new(&self.cache, key, value, value).ttl(ttl);
        Ok(self.set_if(request).await? == SetIfNotEqualResponse::Stored)
    }
}

impl Momento {
    /// The answers come as a stream and are matched by position: where the
    /// stream ends early, the rest is unknown, not missing.
    async fn get_batch(&self, keys: &[String]) -> Result<Vec<Found>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let wanted: Vec<_> = keys.iter().map(String::as_str).collect();
        let response = watched("GetBatch", self.client.get_batch(&self.cache, wanted)).await?;
        let mut answers: std::collections::HashMap<Vec<u8>, GetResponse> = response.into();
        Ok(keys
            .iter()
            .map(|key| answers.remove(key.as_bytes()).map_or(Found::Unknown, found))
            .collect())
    }
}

/// A call whose duration and outcome are told.
async fn watched<T>(
    operation: &'static str,
    call: impl Future<Output = Result<T, MomentoError>>,
) -> Result<T, Error> {
    let mut watch = BackendCall::begin(Backend::Momento, operation);
    let result = call.await;
    let result = result.map_err(failed);
    watch.end(match &result {
        Ok(_) => Outcome::Ok,
        Err(error) if error.kind == Kind::Unavailable => Outcome::Failed,
        Err(_) => Outcome::Refused,
    });
    result
}

fn found(response: GetResponse) -> Found {
    match response {
        GetResponse::Hit { value } => Found::Hit(value.into()),
        GetResponse::Miss => Found::Miss,
    }
}

async fn within<T>(
    timeout: Duration,
    operation: impl Future<Output = Result<T, MomentoError>>,
) -> Result<T, Error> {
    tokio::time::timeout(timeout, operation)
        .await
        .map_err(|_| Error {
            kind: Kind::Unavailable,
            source: format!("no answer within {} ms", timeout.as_millis()).into(),
        })?
        .map_err(failed)
}

/// The SDK's own message never names keys, values or the credential; what
/// caused it is a transport error or a status.
fn failed(error: MomentoError) -> Error {
    let kind = match error.error_code {
        MomentoErrorCode::AuthenticationError | MomentoErrorCode::PermissionError => {
            Kind::Credential
        }
        MomentoErrorCode::CacheNotFoundError | MomentoErrorCode::StoreNotFoundError => {
            Kind::Missing
        }
        MomentoErrorCode::InvalidArgumentError | MomentoErrorCode::BadRequestError => Kind::Refused,
        _ => Kind::Unavailable,
    };
    let cause = match error.details() {
        Some(status) => format!("{:?}: {}", status.code, status.message),
        None => error.message,
    };
    Error {
        kind,
        source: cause.into(),
    }
}
