//! The server from its settings: the clients of the backends, the service and its background
//! loops.

mod auth;
mod error;
mod ext_authz;
mod metrics;
mod momento_credentials;
mod peers;
pub mod provision;
mod recount;
mod reloaded_file;
pub mod secrets_manager;
mod serve;

use std::{net::SocketAddr, time::Duration};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::config::Credentials;
use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;

use self::secrets_manager::SecretsManager;
use crate::{
    background::{
        erasure::{ErasureLoop, ErasureTiming},
        orphan_cleanup::{OrphanCleanup, OrphanCleanupTiming},
        purge::{PurgeLoop, PurgeTiming},
        stream_invalidator::{InvalidatorTiming, StreamInvalidator},
    },
    cache::{self, Credential, Momento, MomentoClient},
    coherence,
    config::{BackendSettings, ServeSettings, ServerSettings},
    domain::{Key, Timestamp},
    grpc::{AccountService, ServiceSettings, WatchLimits, WebLayer},
    store::{self, DynamoDb},
    transport::listener,
};

use self::{
    auth::CallerAuth, ext_authz::RoutesFile, momento_credentials::MomentoCredentials,
    peers::PeerListener,
};
pub use self::{
    error::Error,
    metrics::{MetricsError, start_metrics},
    recount::{Recounted, recount},
    serve::stop_signal,
};

/// Longest time to fence the records of one stream event.
const INVALIDATE_TIMEOUT: Duration = Duration::from_secs(10);

/// Values that are not settings of the command line. Tests change them.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// The coherent cache.
    pub cache: coherence::CoherenceSettings,
    /// Intervals of the stream invalidator. `None`: the defaults, if the settings turn it on.
    pub invalidator: Option<InvalidatorTiming>,
    /// Intervals of the orphan clean-up. `None`: the defaults, with the rate of the settings.
    pub clean_up: Option<OrphanCleanupTiming>,
    /// Intervals of the purge. `None`: the defaults, if there is an orphan clean-up.
    pub purge: Option<PurgeTiming>,
    /// Intervals of erasures. `None`: the defaults, if there is an orphan clean-up.
    pub erasure: Option<ErasureTiming>,
    /// The longest deadline of a call, and the deadline of a call without one. `None`:
    /// [`crate::grpc::DEFAULT_DEADLINE`].
    pub longest_call: Option<Duration>,
    /// The longest operation of the table, with all attempts. `None`:
    /// [`store::OPERATION_TIMEOUT`]. Fences must outlive it, see
    /// [`coherence::Timing::fence_ttl`].
    pub operation_timeout: Option<Duration>,
}

impl From<coherence::CoherenceSettings> for Tuning {
    fn from(cache: coherence::CoherenceSettings) -> Self {
        Self {
            cache,
            invalidator: None,
            clean_up: None,
            purge: None,
            erasure: None,
            longest_call: None,
            operation_timeout: None,
        }
    }
}

fn default_clean_up(settings: &ServerSettings) -> Option<OrphanCleanupTiming> {
    let rate = settings.clean_up_rate;
    (rate > 0).then(|| OrphanCleanupTiming::with_rate(rate))
}

/// The service over its backends.
pub struct App {
    service: AccountService,
    /// Cancelled when the service stops.
    stopping: CancellationToken,
    invalidator: Option<StreamInvalidator>,
    clean_up: Option<OrphanCleanup>,
    purge: Option<PurgeLoop>,
    erasure: Option<ErasureLoop>,
    drain_timeout: Duration,
    calls_at_once: usize,
    connections: listener::Limits,
    max_connection_age: Duration,
    auth: CallerAuth,
    ext_authz: Option<RoutesFile>,
    health_listener: Option<TcpListener>,
    momento_credentials: MomentoCredentials,
    peers: Option<PeerListener>,
    is_ready: bool,
    describes_itself: bool,
    web: Option<WebLayer>,
    longest_call: Option<Duration>,
}

impl App {
    /// Connects the backends and builds the service. Unreachable backends are connected later.
    ///
    /// # Errors
    /// A setting is wrong, or a backend is missing, malformed or rejects a request.
    pub async fn boot(settings: &ServeSettings) -> Result<Self, Error> {
        Self::boot_with(settings, settings.cache.to_coherence()).await
    }

    /// The same with other values than the defaults of [`Tuning`].
    ///
    /// # Errors
    /// As [`Self::boot`].
    pub async fn boot_with(
        settings: &ServeSettings,
        tuning: impl Into<Tuning>,
    ) -> Result<Self, Error> {
        let Tuning {
            mut cache,
            invalidator,
            clean_up,
            purge,
            erasure,
            longest_call,
            operation_timeout,
        } = tuning.into();
        let auth = CallerAuth::prepare(&settings.server).await?;
        let ext_authz = match &settings.server.callers.ext_authz {
            Some(path) => Some(RoutesFile::read(path, auth.verifies_tokens()).await?),
            None => None,
        };
        let health_listener = match settings.server.health_addr {
            Some(addr) => Some(bind(addr).await?.0),
            None => None,
        };
        let peers = PeerListener::start(&settings.server.peers).await?;
        cache.peer_address = peers.as_ref().map(PeerListener::address);
        let backends = &settings.backends;
        let aws = load_aws(backends).await?;
        let mut table = table_settings(backends);
        table.wall_clock = cache.wall_clock;
        if let Some(timeout) = operation_timeout {
            table.operation_timeout = timeout;
        }
        let table = DynamoDb::new(&aws, table);
        let momento = MomentoClient::default();
        let stopping = CancellationToken::new();
        let service_settings = ServiceSettings {
            coherence: cache,
            watch: WatchLimits {
                patience: settings.server.watch_patience_ms,
                stopping: stopping.clone(),
                lifetime: settings.server.max_connection_age_s,
            },
        };
        let service = AccountService::new(table, momento, service_settings);
        let momento_credentials =
            MomentoCredentials::begin(service.cache().clone(), &aws, backends).await?;
        let is_ready = is_table_ready(&service, backends).await? && auth.is_ready();
        let invalidator = invalidator.or_else(|| {
            let is_on = settings.cache.stream_invalidator;
            is_on.then(InvalidatorTiming::default)
        });
        let clean_up = clean_up.or_else(|| default_clean_up(&settings.server));
        let purge = purge.or_else(|| clean_up.map(|_| PurgeTiming::default()));
        let erasure = erasure.or_else(|| clean_up.map(|_| ErasureTiming::default()));
        Ok(Self {
            invalidator: invalidator.map(|timing| {
                let fencing = service.coherence().fencing.clone();
                StreamInvalidator::new(service.table().clone(), fencing, timing)
            }),
            erasure: erasure.map(|timing| {
                let accounts = service.accounts().clone();
                ErasureLoop::new(service.table().clone(), accounts, timing)
            }),
            purge: purge.map(|timing| PurgeLoop::new(service.accounts().clone(), timing)),
            clean_up: clean_up.map(|timing| OrphanCleanup::new(service.table().clone(), timing)),
            service,
            stopping,
            drain_timeout: settings.server.drain_timeout_ms,
            calls_at_once: settings.server.calls_at_once.into(),
            max_connection_age: settings.server.max_connection_age_s,
            connections: serve::limits_of_connections(&settings.server),
            auth,
            ext_authz,
            health_listener,
            momento_credentials,
            peers,
            is_ready,
            web: WebLayer::new(&settings.server.web_origins),
            describes_itself: !settings.server.callers.no_reflection,
            longest_call,
        })
    }

    /// The service.
    #[must_use]
    pub fn service(&self) -> &AccountService {
        &self.service
    }

    /// Ensures that no read returns these records from entries that the cache holds now.
    ///
    /// # Errors
    /// [`Error::NotFenced`].
    pub async fn invalidate(&self, keys: &[Key]) -> Result<(), Error> {
        let deadline = Instant::now() + INVALIDATE_TIMEOUT;
        let fencing = &self.service.coherence().fencing;
        let is_done = fencing.invalidate(keys, deadline).await;
        is_done.then_some(()).ok_or(Error::NotFenced)
    }
}

/// Whether the table can be read. A server starts without it, and serves once it can.
///
/// # Errors
/// The table is missing or unusable.
async fn is_table_ready(
    service: &AccountService,
    backends: &BackendSettings,
) -> Result<bool, Error> {
    let Err(source) = service.coherence().read_generation().await else {
        return Ok(true);
    };
    let is_transient = source.kind.is_transient();
    let error = table_error(backends, source);
    if !is_transient {
        return Err(error);
    }
    tracing::warn!(%error, "starting without the table: not serving yet");
    Ok(false)
}

/// Listens on the address of the settings. Returns the address with the actual port.
///
/// # Errors
/// [`Error::Listen`].
pub async fn listen(settings: &ServerSettings) -> Result<(TcpListener, SocketAddr), Error> {
    bind(settings.listen_addr).await
}

async fn bind(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source| Error::Listen { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    Ok((listener, addr))
}

pub(crate) async fn load_aws(settings: &BackendSettings) -> Result<SdkConfig, Error> {
    let mut loader = aws_config::defaults(BehaviorVersion::latest());
    if let Some(region) = &settings.aws_region {
        loader = loader.region(Region::new(region.clone()));
    }
    if settings.aws_credentials.is_some() {
        let credentials = Credentials::new("embedded", "embedded", None, None, "embedded");
        loader = loader.credentials_provider(credentials);
    }
    let aws = loader.load().await;
    match aws.region() {
        Some(_) => Ok(aws),
        None => Err(Error::NoRegion),
    }
}

pub(crate) fn table_settings(settings: &BackendSettings) -> store::TableSettings {
    store::TableSettings {
        table: settings.table_name.clone(),
        endpoint: settings.dynamodb_endpoint.clone(),
        attempt_timeout: settings.dynamodb_attempt_timeout_ms,
        operation_timeout: store::OPERATION_TIMEOUT,
        wall_clock: Timestamp::now,
    }
}

pub(crate) fn secrets(aws: &SdkConfig, settings: &BackendSettings) -> SecretsManager {
    SecretsManager::new(aws, settings.secrets_endpoint.clone())
}

pub(crate) async fn connect_cache(
    secret: &secrecy::SecretString,
    settings: &BackendSettings,
) -> Result<Momento, Error> {
    let id = &settings.momento_secret_id;
    let credential = Credential::from_secret(secret).map_err(|source| Error::Credential {
        id: id.clone(),
        source,
    })?;
    let cache = cache::Settings {
        cache: settings.cache_name.clone(),
        connections: settings.cache_connections.into(),
    };
    Momento::connect(credential, cache)
        .await
        .map_err(|source| cache_error(settings, source))
}

pub(crate) fn cache_error(settings: &BackendSettings, source: cache::Error) -> Error {
    Error::Cache {
        name: settings.cache_name.clone(),
        source,
    }
}

pub(crate) fn table_error(settings: &BackendSettings, source: store::Error) -> Error {
    Error::Table {
        name: settings.table_name.clone(),
        source,
    }
}

pub(crate) fn secret_error(settings: &BackendSettings, source: secrets_manager::Error) -> Error {
    Error::Secret {
        id: settings.momento_secret_id.clone(),
        source,
    }
}
