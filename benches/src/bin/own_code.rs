//! The cost of a cached check between tonic and the SDK: the whole stack of layers, called in the
//! process, with a map as the cache. Prints allocations. Under callgrind, the difference of two
//! runs is the number of instructions: see `just own-code`.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use account_service::{
    auth::{Authorizer, Credentials},
    cache::{Cache, Error, Found, Keys, MomentoClient},
    coherence::{CoherenceSettings, Timing},
    config::{Cli, Command, DevSettings},
    grpc::{
        AccountService, AuthLayer, ConcurrencyLimitLayer, MetricsLayer, ServiceSettings,
        WatchLimits, with_error_details,
    },
    local::{Embedded, momento},
    proto::account_v1::{self as pb, Role, account_service_server::AccountService as _},
    store::{self, DynamoDb},
    telemetry,
    transport::listener::Peer,
};
use account_service_bench::load::framed;
use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt as _, Full};
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;
use tonic::{Request, body::Body};
use tower::{Service, ServiceBuilder, ServiceExt as _, util::MapResponseLayer};

/// As in the service.
#[cfg(not(feature = "count"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "count")]
#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<std::alloc::System> = &stats_alloc::INSTRUMENTED_SYSTEM;

/// Allocations so far, if they are counted.
fn allocations() -> usize {
    #[cfg(feature = "count")]
    return ALLOCATOR.stats().allocations;
    #[cfg(not(feature = "count"))]
    return 0;
}

#[derive(Parser)]
struct Arguments {
    /// The called part.
    #[arg(value_enum)]
    what: What,
    /// The number of calls.
    #[arg(default_value_t = 1000)]
    times: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Layers and handler, from the bytes of the request to those of the response.
    Stack,
    /// The handler in its server, without layers.
    Served,
    /// The handler alone.
    Handler,
    /// The construction of the handler's request.
    Request,
    /// The map in place of the cache.
    Cache,
}

/// A cache in the process, without delay.
#[derive(Default)]
struct Map(Mutex<HashMap<Vec<u8>, Bytes>>);

impl Map {
    fn set(&self, key: &str, value: &[u8], may: impl Fn(Option<&[u8]>) -> bool) -> bool {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_set = may(map.get(key.as_bytes()).map(|value| &**value));
        if is_set {
            map.insert(key.into(), Bytes::copy_from_slice(value));
        }
        is_set
    }
}

#[tonic::async_trait]
impl Cache for Map {
    async fn get(&self, keys: &Keys) -> Result<Vec<Found>, Error> {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = |key: &[u8]| match map.get(key) {
            Some(value) => Found::Hit(value.clone()),
            None => Found::Miss,
        };
        Ok(keys.iter().map(found).collect())
    }

    async fn set_if_absent(&self, key: &str, value: &[u8], _: Duration) -> Result<bool, Error> {
        Ok(self.set(key, value, |found| found.is_none()))
    }

    async fn set_if_equal(
        &self,
        key: &str,
        value: &[u8],
        expected: &[u8],
        _: Duration,
    ) -> Result<bool, Error> {
        Ok(self.set(key, value, |found| found == Some(expected)))
    }

    async fn set_if_not_equal(&self, key: &str, value: &[u8], _: Duration) -> Result<bool, Error> {
        Ok(self.set(key, value, |found| found != Some(value)))
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const ORGANIZATION: &str = "organization-0001";
const USER: &str = "user-0001";

fn check() -> pb::CheckMembershipRequest {
    pb::CheckMembershipRequest {
        organization_name: ORGANIZATION.to_owned(),
        username: USER.to_owned(),
        minimum_role: Role::Member.into(),
        consistency: None,
    }
}

/// A request that has passed the authorizer.
fn admitted<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let nothing = Credentials {
        certificate: None,
        token: None,
    };
    if let Ok(caller) = Authorizer::open().admit(None, nothing) {
        request.extensions_mut().insert(caller);
    }
    request
}

fn dev_settings() -> Result<DevSettings> {
    match Cli::try_parse_from(["account-service", "dev"])?.command {
        Command::Dev(settings) => Ok(settings),
        _ => bail!("`dev` is another command"),
    }
}

/// A call with the bytes of its message, as from a connection.
fn call(path: &str, message: Bytes, peer: &Peer) -> Result<http::Request<Body>> {
    let call = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .extension(peer.clone())
        .body(Body::new(Full::new(message)))?;
    Ok(call)
}

async fn through<S>(mut server: S, path: &str, times: usize) -> Result<()>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    let message = framed(&check());
    let peer = Peer::in_process();
    for _ in 0..times {
        let call = call(path, message.clone(), &peer)?;
        let answer = server.ready().await?.call(call).await?;
        let body = answer.into_body().collect().await?;
        ensure!(body.trailers().is_some_and(|it| it["grpc-status"] == "0"));
    }
    Ok(())
}

async fn run(arguments: &Arguments) -> Result<()> {
    let settings = dev_settings()?;
    // As in the service: the checks of the filters for logs and traces count.
    telemetry::start(&settings.log.log, settings.log.log_format, None)?;
    let embedded = Embedded::start(&settings, Arc::new(momento::OpenGate)).await?;
    embedded.set_up().await?;
    let backends = embedded.backend_settings();
    let aws = aws_config::SdkConfig::builder()
        .behavior_version(aws_config::BehaviorVersion::latest())
        .region(aws_config::Region::new("us-east-1"))
        .credentials_provider(
            aws_credential_types::provider::SharedCredentialsProvider::new(
                aws_credential_types::Credentials::new("embedded", "embedded", None, None, "bench"),
            ),
        )
        .build();
    let table = store::TableSettings {
        table: backends.table_name,
        endpoint: backends.dynamodb_endpoint,
        attempt_timeout: backends.dynamodb_attempt_timeout_ms,
        operation_timeout: store::OPERATION_TIMEOUT,
    };
    let table = DynamoDb::new(&aws, table);
    let map = Arc::new(Map::default());
    let cache = MomentoClient::new(Duration::from_secs(1));
    cache.connect(map.clone());
    let settings = ServiceSettings {
        coherence: CoherenceSettings {
            membership_ttl: HOUR,
            profile_ttl: HOUR,
            // The view stays valid, so that no read of the switch counts in a measurement.
            timing: Timing {
                view_ttl: HOUR,
                ..Timing::default()
            },
            ..CoherenceSettings::default()
        },
        watch: WatchLimits {
            patience: Duration::from_secs(1),
            stopping: CancellationToken::new(),
            lifetime: Duration::from_secs(1),
        },
    };
    let service = AccountService::new(table, cache, settings);
    let coherence = service.coherence().clone();
    coherence
        .read_generation()
        .await
        .ok()
        .context("no generation")?;
    service
        .create_user(admitted(pb::CreateUserRequest {
            username: USER.to_owned(),
            first_name: "Olivia".to_owned(),
            last_name: "Smith".to_owned(),
            email: "olivia@example.com".to_owned(),
            ..pb::CreateUserRequest::default()
        }))
        .await?;
    service
        .create_organization(admitted(pb::CreateOrganizationRequest {
            organization_name: ORGANIZATION.to_owned(),
            founding_user: USER.to_owned(),
            ..pb::CreateOrganizationRequest::default()
        }))
        .await?;
    coherence.drain().await;
    for _ in 0..2 {
        service.check_membership(Request::new(check())).await?;
        coherence.drain().await;
    }
    let checked = service.check_membership(Request::new(check())).await?;
    ensure!(checked.get_ref().source() == pb::Source::Cache);
    let keys: Keys = {
        let map = map.0.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = map.keys().filter_map(|key| str::from_utf8(key).ok());
        keys.filter(|key| !key.ends_with("probe")).collect()
    };
    let times = arguments.times;
    match arguments.what {
        What::Stack => {
            let server = ServiceBuilder::new()
                .layer(MetricsLayer::new())
                .layer(MapResponseLayer::new(with_error_details))
                .layer(AuthLayer(Authorizer::open()))
                // No call is heavy: calls take fifty times as long under callgrind.
                .layer(ConcurrencyLimitLayer::new(256, Duration::MAX))
                .service(service.into_server());
            through(server, "/account.v1.AccountService/CheckMembership", times).await?;
        }
        What::Served => {
            let server = service.into_server();
            through(server, "/account.v1.AccountService/CheckMembership", times).await?;
        }
        What::Request => {
            for _ in 0..times {
                std::hint::black_box(Request::new(check()));
            }
        }
        What::Handler => {
            for _ in 0..times {
                service.check_membership(Request::new(check())).await?;
            }
        }
        What::Cache => {
            for _ in 0..times {
                ensure!(map.get(&keys).await.is_ok_and(|found| found.len() == 3));
            }
        }
    }
    println!("{}", allocations());
    Ok(())
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&arguments))
}
