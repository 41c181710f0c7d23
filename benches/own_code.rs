//! The cost of a check that memory answers, beyond tonic: the whole stack of layers, called in the
//! process. Prints allocations. Under callgrind, the difference of two
//! runs is the number of instructions: see `just own-code`.

use std::{alloc::System, convert::Infallible, error::Error, sync::Arc, time::Duration};

use account_service::{
    auth::{Authorizer, Caller, Credentials, Refused},
    boot::App,
    coherence::{CoherenceSettings, Timing},
    config::{Cli, Command, DevSettings},
    grpc::{AuthLayer, ConcurrencyLimitLayer, MetricsLayer, with_error_details},
    local::{ANY_PORT, Embedded, momento},
    proto::account_v1::{self as pb, Role, account_service_server::AccountService as _},
    telemetry,
    transport::listener::Peer,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use clap::Parser;
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::runtime::Builder;
use tonic::{Request, body::Body};
use tower::{Service, ServiceBuilder, ServiceExt as _, util::MapResponseLayer};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

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
}

const HOUR: Duration = Duration::from_secs(3600);
const ORGANIZATION: &str = "organization-0001";
const USER: &str = "user-0001";

fn check() -> pb::CheckMembershipRequest {
    pb::CheckMembershipRequest {
        organization_name: ORGANIZATION.to_owned(),
        username: USER.to_owned(),
        minimum_role: Role::Member.into(),
        ..pb::CheckMembershipRequest::default()
    }
}

/// A message as a gRPC client sends it.
fn framed(message: &pb::CheckMembershipRequest) -> Bytes {
    let encoded = message.encode_to_vec();
    let mut frame = BytesMut::with_capacity(5 + encoded.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(encoded.len()).unwrap_or(u32::MAX));
    frame.put_slice(&encoded);
    frame.freeze()
}

/// The caller of a call that has passed the authorizer.
fn caller() -> Result<Caller, Refused> {
    let nothing = Credentials {
        certificate: None,
        token: None,
    };
    Authorizer::open().admit(None, nothing)
}

/// A request that has passed the authorizer.
fn admitted<T>(message: T, caller: &Caller) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(caller.clone());
    request
}

fn dev_settings() -> Result<DevSettings, Box<dyn Error>> {
    match Cli::try_parse_from(["account-service", "dev"])?.command {
        Command::Dev(settings) => Ok(settings),
        _ => Err("`dev` is another command".into()),
    }
}

/// A call with the bytes of its message, as from a connection. It has a caller already, for a server
/// without the authorizer.
fn call(
    path: &str,
    message: Bytes,
    peer: &Peer,
    caller: &Caller,
) -> Result<http::Request<Body>, Box<dyn Error>> {
    let call = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .extension(peer.clone())
        .extension(caller.clone())
        .body(Body::new(Full::new(message)))?;
    Ok(call)
}

async fn through<S>(mut server: S, path: &str, times: usize) -> Result<(), Box<dyn Error>>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    let message = framed(&check());
    let (peer, caller) = (Peer::in_process(), caller()?);
    for _ in 0..times {
        let call = call(path, message.clone(), &peer, &caller)?;
        let answer = server.ready().await?.call(call).await?;
        let body = answer.into_body().collect().await?;
        assert!(body.trailers().is_some_and(|it| it["grpc-status"] == "0"));
    }
    Ok(())
}

async fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let settings = dev_settings()?;
    // As in the service: the checks of the filters for logs and traces count.
    telemetry::start(&settings.log.log, settings.log.log_format, None)?;
    let embedded = Embedded::start(&settings, Arc::new(momento::OpenGate)).await?;
    embedded.set_up().await?;
    let mut settings = embedded.serve_settings(&settings);
    settings.server.peers.peer_addr = Some(ANY_PORT);
    let tuning = CoherenceSettings {
        near_ttl: Some(HOUR),
        timing: Timing {
            // The view stays valid, so that no read of it counts in a measurement.
            view_ttl: HOUR,
            join_wait: Duration::ZERO,
            ..Timing::default()
        },
        ..CoherenceSettings::default()
    };
    let app = App::boot_with(&settings, tuning).await?;
    let service = app.service().clone();
    let coherence = service.coherence().clone();
    let directory = tokio::spawn({
        let coherence = coherence.clone();
        async move { coherence.run_directory().await }
    });
    while !coherence.is_active() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    directory.abort();
    let caller = caller()?;
    let create = pb::CreateUserRequest {
        username: USER.to_owned(),
        first_name: "Olivia".to_owned(),
        last_name: "Smith".to_owned(),
        email: "olivia@example.com".to_owned(),
        ..pb::CreateUserRequest::default()
    };
    service.create_user(admitted(create, &caller)).await?;
    let create = pb::CreateOrganizationRequest {
        organization_name: ORGANIZATION.to_owned(),
        founding_user: USER.to_owned(),
        ..pb::CreateOrganizationRequest::default()
    };
    service
        .create_organization(admitted(create, &caller))
        .await?;
    coherence.drain().await;
    service.check_membership(admitted(check(), &caller)).await?;
    let checked = service.check_membership(admitted(check(), &caller)).await?;
    assert!(checked.get_ref().source() == pb::Source::Memory);
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
                std::hint::black_box(admitted(check(), &caller));
            }
        }
        What::Handler => {
            for _ in 0..times {
                service.check_membership(admitted(check(), &caller)).await?;
            }
        }
    }
    println!("{}", ALLOCATOR.stats().allocations);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&arguments))
}
