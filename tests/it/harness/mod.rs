//! Starts the service with its backends, and records its calls to them.

pub mod binary;
mod calls;
mod dynamodb_proxy;
mod log_lines;
pub mod peer_network;
pub mod script;
mod table;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use account_service::{
    boot::{self, App, Tuning, provision},
    coherence,
    config::{
        CacheSettings, CallerSettings, DevSettings, LogSettings, PeerSettings, ServeSettings,
        ServerSettings, TraceSettings,
    },
    grpc::AccountService,
    local::{ANY_PORT, Embedded, momento},
    proto::account_v1::account_service_client::AccountServiceClient,
    store::OPERATION_TIMEOUT,
    telemetry::LogFormat,
};
use tokio::sync::oneshot;
use tonic::{Status, transport::Channel};

use self::{
    dynamodb_proxy::DynamoDbProxy,
    script::{BESIDE, Script},
};

pub use self::{
    calls::{from_now, no_older_than},
    table::Table,
};

pub type Client = AccountServiceClient<Channel>;

/// Environment variable with the endpoint of a DynamoDB server to test against
/// instead of the embedded one.
const DYNAMODB_ENDPOINT: &str = "TEST_DYNAMODB_ENDPOINT";
/// The same for Secrets Manager.
const SECRETS_ENDPOINT: &str = "TEST_SECRETS_ENDPOINT";
/// A timeout that is too long to affect a test.
pub const LONG_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest wait in a test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The timeout of a table operation. DynamoDB Local is slow on a busy machine until its code
/// is compiled.
pub fn table_timeout() -> Duration {
    if is_embedded() {
        OPERATION_TIMEOUT
    } else {
        OPERATION_TIMEOUT * 4
    }
}

fn is_embedded() -> bool {
    std::env::var_os(DYNAMODB_ENDPOINT).is_none()
}

/// The interval of a background loop: ten times longer if DynamoDB is not the embedded
/// server, because DynamoDB Local serves one call at a time.
pub fn pace(interval: Duration) -> Duration {
    if is_embedded() {
        interval
    } else {
        interval * 10
    }
}

/// The backends: servers that any number of replicas share.
pub struct Backends {
    pub embedded: Embedded,
    /// The script of the DynamoDB calls, by the operation's name and the request's body.
    pub dynamodb: Arc<Script>,
    /// The script of the Momento calls, by the RPC's name and the keys.
    pub momento: Arc<Script>,
    batch_responses: Arc<AtomicUsize>,
    proxy: DynamoDbProxy,
    settings: DevSettings,
}

/// One replica of the service, and a client of it.
pub struct Replica {
    pub addr: std::net::SocketAddr,
    pub client: Client,
    pub channel: Channel,
    service: AccountService,
    stop: Option<oneshot::Sender<()>>,
}

/// Sets the backends up, with retries: the first operations of a new DynamoDB server are
/// slow.
async fn set_up(embedded: &Embedded) {
    let began = Instant::now();
    while let Err(error) = embedded.set_up().await {
        assert!(began.elapsed() < PATIENCE, "{error}");
    }
}

impl Backends {
    pub async fn start() -> Self {
        log_lines::inspect();
        let settings = dev_settings();
        let momento = Arc::new(Script::default());
        let batch_responses = Arc::new(AtomicUsize::new(usize::MAX));
        let gate = Arc::new(MomentoGate {
            script: momento.clone(),
            batch_responses: batch_responses.clone(),
        });
        let embedded = Box::pin(Embedded::start(&settings, gate)).await.unwrap();
        Box::pin(set_up(&embedded)).await;
        let dynamodb = Arc::new(Script::default());
        let proxy = DynamoDbProxy::start(embedded.dynamodb_url(), dynamodb.clone()).await;
        Self {
            embedded,
            dynamodb,
            momento,
            batch_responses,
            proxy,
            settings,
        }
    }

    pub fn serve_settings(&self) -> ServeSettings {
        let mut settings = self.embedded.serve_settings(&self.settings);
        settings.backends.dynamodb_endpoint = Some(self.proxy.url());
        settings.backends.dynamodb_attempt_timeout_ms = table_timeout();
        settings
    }

    pub async fn replica(&self) -> Replica {
        Replica::start(&self.serve_settings()).await
    }

    /// A replica with its own path to the backends.
    pub async fn isolated(&self, tuning: impl Into<Tuning>) -> Isolated {
        let (dynamodb, momento) = <(Arc<Script>, Arc<Script>)>::default();
        let (way, settings) = self.way(dynamodb.clone(), momento.clone()).await;
        Isolated {
            replica: Replica::start_with(&settings, tuning).await,
            dynamodb,
            momento,
            _way: way,
        }
    }

    /// A path to the backends that these scripts control.
    pub async fn way(&self, dynamodb: Arc<Script>, momento: Arc<Script>) -> (Way, ServeSettings) {
        let proxy = DynamoDbProxy::start(self.embedded.dynamodb_url(), dynamodb).await;
        let gate = Arc::new(MomentoGate {
            script: momento,
            batch_responses: self.batch_responses.clone(),
        });
        let server = self.embedded.momento.start_beside(ANY_PORT, gate).await;
        let server = server.unwrap();
        let mut settings = self.serve_settings();
        settings.backends.dynamodb_endpoint = Some(proxy.url());
        settings.backends.momento_secret_id = self.store_secret(&server).await;
        let way = Way {
            _proxy: proxy,
            _momento: server,
        };
        (way, settings)
    }

    /// A path to Secrets Manager that this script controls, and its URL.
    pub async fn way_to_secrets(&self, script: Arc<Script>) -> (impl Drop + use<>, String) {
        let upstream = self.serve_settings().backends.secrets_endpoint.unwrap();
        let proxy = DynamoDbProxy::start(upstream, script).await;
        let url = proxy.url();
        (proxy, url)
    }

    /// Stores the secret of the Momento server under an existing name.
    pub async fn put_secret(&self, name: &str, server: &momento::MomentoServer) {
        use secrecy::ExposeSecret as _;
        let put = self.secrets_client().put_secret_value().secret_id(name);
        let put = put.secret_string(server.secret().expose_secret());
        put.send().await.unwrap();
    }

    /// Stores the secret of another Momento server; returns its name.
    pub async fn store_secret(&self, server: &momento::MomentoServer) -> String {
        use secrecy::ExposeSecret as _;
        let name = format!("momento-{}", uuid::Uuid::new_v4());
        let create = self.secrets_client().create_secret().name(&name);
        let create = create.secret_string(server.secret().expose_secret());
        create.send().await.unwrap();
        name
    }

    /// A client of the table, independent of the service.
    pub fn table(&self) -> Table {
        Table::new(&self.embedded.dynamodb_url(), &self.settings.table_name)
    }

    /// Settings with the name of a table that does not exist.
    pub fn settings_of_another_table(&self) -> ServeSettings {
        let mut settings = self.serve_settings();
        settings.backends.table_name = format!("accounts-{}", uuid::Uuid::new_v4());
        settings
    }

    /// A replica that shares the cache, but serves another table.
    pub async fn replica_on_another_table(&self) -> Replica {
        let settings = self.settings_of_another_table();
        provision::run(&settings.backends, None).await.unwrap();
        Replica::start(&settings).await
    }

    /// A replica that shares the cache, but serves a copy of the table, as a backup restores
    /// it, without the item of these keys.
    pub async fn replica_on_a_copy_without(&self, pk: &str, sk: &str) -> Replica {
        let settings = self.settings_of_another_table();
        provision::run(&settings.backends, None).await.unwrap();
        let url = self.embedded.dynamodb_url();
        let copy = Table::new(&url, &settings.backends.table_name);
        for item in self.table().items().await {
            copy.put_item(item).await;
        }
        copy.delete(pk, sk).await;
        Replica::start(&settings).await
    }

    /// Ends every further batch stream of the cache after this many responses.
    pub fn cut_batches_after(&self, responses: usize) {
        self.batch_responses.store(responses, Ordering::SeqCst);
    }

    /// Empties the cache, as an operator would.
    pub async fn flush_cache(&self) {
        let cache = &self.serve_settings().backends.cache_name;
        let client = self.momento_client();
        let began = Instant::now();
        // On a busy machine, the client may give up its connection.
        while let Err(error) = client.flush_cache(cache).await {
            assert!(began.elapsed() < PATIENCE, "{error}");
        }
    }

    /// A client of Secrets Manager, independent of the service.
    pub fn secrets_client(&self) -> aws_sdk_secretsmanager::Client {
        let settings = self.serve_settings().backends;
        let config = aws_sdk_secretsmanager::Config::builder()
            .behavior_version(aws_sdk_secretsmanager::config::BehaviorVersion::latest())
            .region(aws_sdk_secretsmanager::config::Region::new("us-east-1"))
            .credentials_provider(credentials())
            .endpoint_url(settings.secrets_endpoint.unwrap())
            .build();
        aws_sdk_secretsmanager::Client::from_conf(config)
    }

    /// A client of the cache, independent of the service.
    pub fn momento_client(&self) -> ::momento::CacheClient {
        use secrecy::ExposeSecret as _;
        let secret = self.embedded.momento.secret();
        let secret: serde_json::Value = serde_json::from_str(secret.expose_secret()).unwrap();
        let text = |name: &str| secret[name].as_str().unwrap().to_owned();
        let credential =
            ::momento::CredentialProvider::from_api_key_v2(text("MOMENTO_API_KEY"), "embedded");
        let credential = credential.unwrap();
        ::momento::CacheClient::builder()
            .default_ttl(Duration::from_secs(60))
            .configuration(::momento::cache::configurations::Laptop::latest())
            .credential_provider(credential.insecure_endpoint_override(&text("MOMENTO_ENDPOINT")))
            .build()
            .unwrap()
    }

    pub fn forget_calls(&self) {
        self.dynamodb.forget_calls();
        self.momento.forget_calls();
    }

    /// The backend calls since `forget_calls`, as `2 x Get`.
    pub fn calls(&self) -> Vec<String> {
        let mut calls = self.momento.calls();
        calls.extend(self.dynamodb.calls());
        calls
    }
}

/// A replica whose calls to the backends are recorded separately.
pub struct Isolated {
    pub replica: Replica,
    pub dynamodb: Arc<Script>,
    pub momento: Arc<Script>,
    _way: Way,
}

impl Isolated {
    /// Cuts the replica off from its backends, as if it had crashed.
    pub fn cut_off(&self) {
        self.dynamodb.cut_off();
        self.momento.cut_off();
    }
}

/// A path to the backends, until it is dropped.
pub struct Way {
    _proxy: DynamoDbProxy,
    _momento: momento::MomentoServer,
}

/// Long time limits, so that a busy machine does not affect a test. A test of a time limit
/// sets that limit itself.
pub fn patient(mut cache: coherence::CoherenceSettings) -> Tuning {
    cache.timing.fence_attempt = LONG_TIMEOUT;
    cache.timing.fence_patience = LONG_TIMEOUT;
    Tuning {
        longest_call: Some(PATIENCE),
        ..cache.into()
    }
}

impl Replica {
    pub async fn start(settings: &ServeSettings) -> Self {
        Self::start_with(settings, patient(settings.cache.to_coherence())).await
    }

    pub async fn start_with(settings: &ServeSettings, tuning: impl Into<Tuning>) -> Self {
        Self::try_start_with(settings, tuning).await.unwrap()
    }

    pub async fn try_start_with(
        settings: &ServeSettings,
        tuning: impl Into<Tuning>,
    ) -> Result<Self, boot::Error> {
        let mut tuning = tuning.into();
        // A test that sets the timeout of an attempt tests the service's own bounds.
        if settings.backends.dynamodb_attempt_timeout_ms == table_timeout() {
            tuning.operation_timeout = Some(table_timeout());
            tuning.cache.timing.fence_ttl += table_timeout().saturating_sub(OPERATION_TIMEOUT);
        }
        let (listener, addr) = boot::listen(&settings.server).await?;
        let app = Box::pin(App::boot_with(settings, tuning)).await?;
        let service = app.service().clone();
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            Box::pin(app.serve(listener, stopped)).await.unwrap();
        });
        let endpoint = Channel::from_shared(format!("http://{addr}")).unwrap();
        let channel = if settings.server.callers.tls_cert.is_some() {
            // Without a TLS configuration, it cannot connect.
            endpoint.connect_lazy()
        } else {
            endpoint.connect().await.unwrap()
        };
        Ok(Self {
            addr,
            client: Client::new(channel.clone()),
            channel,
            service,
            stop: Some(stop),
        })
    }

    /// The same replica, called by another client.
    pub fn called_by(&self, client: Client) -> Self {
        Self {
            addr: self.addr,
            client,
            channel: self.channel.clone(),
            service: self.service.clone(),
            stop: None,
        }
    }

    /// Whether the replica serves from its memory.
    pub fn is_active(&self) -> bool {
        self.service.coherence().is_active()
    }

    /// Stops the server, as SIGTERM does.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Waits until no fill, publication or repair is under way.
    pub async fn settle(&self) {
        tokio::time::timeout(PATIENCE, self.service.coherence().drain())
            .await
            .unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The backends and one replica.
pub async fn start() -> (Backends, Replica) {
    let backends = Backends::start().await;
    let replica = backends.replica().await;
    (backends, replica)
}

fn dev_settings() -> DevSettings {
    DevSettings {
        data_dir: None,
        seed: None,
        dynamodb_endpoint: std::env::var(DYNAMODB_ENDPOINT).ok(),
        table_name: format!("accounts-{}", uuid::Uuid::new_v4()),
        secrets_endpoint: std::env::var(SECRETS_ENDPOINT).ok(),
        server: ServerSettings {
            listen_addr: ANY_PORT,
            drain_timeout_ms: Duration::from_secs(10),
            watch_patience_ms: Duration::from_secs(2),
            // The clean-up's calls would be counted.
            clean_up_rate: 0,
            // No limit, so that a busy machine does not affect a test.
            calls_at_once: u16::MAX,
            max_connections: 10_000,
            max_connection_age_s: Duration::from_secs(1800),
            metrics_addr: None,
            health_addr: None,
            web_origins: Vec::new(),
            // Without near caches: the calls of the cache are counted, and near caches would hide
            // defects of its protocol.
            peers: PeerSettings::default(),
            traces: TraceSettings::default(),
            callers: CallerSettings::default(),
        },
        cache: CacheSettings {
            // Long, so that a busy machine does not affect the counts.
            cache_read_timeout_ms: LONG_TIMEOUT,
            table_reads_at_once: 64,
            membership_ttl_s: Duration::from_secs(60),
            profile_ttl_s: Duration::from_secs(300),
            absent_ttl_s: Duration::from_secs(10),
            // Unlimited: look-ups are counted.
            cache_operations_per_second: 0,
            near_cache_mib: 64,
            // The invalidator's calls would be counted, and would hide defects of the protocol.
            stream_invalidator: false,
        },
        log: LogSettings {
            log: "warn".to_owned(),
            log_format: LogFormat::Text,
        },
    }
}

struct MomentoGate {
    script: Arc<Script>,
    batch_responses: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl momento::Gate for MomentoGate {
    async fn pass(&self, call: momento::DataCall, keys: &[&[u8]]) -> Result<momento::Fate, Status> {
        let keys: Vec<_> = keys
            .iter()
            .map(|key| String::from_utf8_lossy(key))
            .collect();
        let keys = keys.join(" ");
        let beside = if keys.ends_with("/probe") { BESIDE } else { "" };
        match self
            .script
            .on_call(&format!("{beside}{call:?}"), &keys)
            .await
        {
            script::Fate::Served => {
                let responses = self.batch_responses.load(Ordering::SeqCst);
                Ok(momento::Fate::Cut(responses))
            }
            script::Fate::Unanswered => Ok(momento::Fate::Unanswered),
            script::Fate::ServedTwice => Ok(momento::Fate::ServedTwice),
            script::Fate::Cut(responses) => Ok(momento::Fate::Cut(responses)),
            script::Fate::Slow(delay) => Ok(momento::Fate::Slow(delay)),
            script::Fate::Responded(429, what) => Err(Status::resource_exhausted(what)),
            _ => Err(Status::unavailable("refused by the test")),
        }
    }

    fn in_trace(&self, parent: &str, state: &str) {
        self.script.in_trace(parent, state);
    }

    fn lag(&self) -> Duration {
        // As in Momento, a look-up that is not consistent may be stale.
        Duration::from_millis(500)
    }
}

pub fn credentials() -> aws_sdk_dynamodb::config::Credentials {
    aws_sdk_dynamodb::config::Credentials::new("embedded", "embedded", None, None, "test")
}

/// Asserts the code and the `google.rpc.ErrorInfo` reason of an error.
#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(
    result: Result<T, Status>,
    code: tonic::Code,
    reason: &str,
) -> tonic_types::ErrorDetails {
    use tonic_types::StatusExt as _;
    let status = result.unwrap_err();
    let details = status.get_error_details();
    let info = details.error_info();
    assert_eq!(
        (status.code(), info.map(|info| info.reason.as_str())),
        (code, Some(reason)),
        "{status:?}"
    );
    assert_eq!(info.map(|info| info.domain.as_str()), Some("account.v1"));
    details
}
