//! Health checks, by the gRPC health checking protocol. Open to callers without
//! credentials, so their streams are bounded.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{Stream, StreamExt as _, future::Either, stream};
use tonic::{Code, Request, Response, Status, server::NamedService as _};
use tonic_health::{
    ServingStatus,
    pb::{
        HealthCheckRequest, HealthCheckResponse,
        health_check_response::ServingStatus as WireStatus,
        health_server::{Health, HealthServer},
    },
    server::{HealthReporter, HealthService, WatchStream},
};

use super::{
    AccountService,
    share_limit::{ShareLimit, SharePermit},
    status,
};
use crate::{
    proto::account_v1::account_service_server::AccountServiceServer, transport::listener::Peer,
};

/// `Watch` streams open at once in the process.
const MAX_WATCHES: usize = 1000;
/// `Watch` streams open at once on one connection. Clients have one for each service
/// that they check.
const MAX_WATCHES_PER_CONNECTION: usize = 4;
/// `Watch` streams open at once on one unauthenticated connection. They do not count
/// towards [`MAX_WATCHES`].
const MAX_EARLY_WATCHES_PER_CONNECTION: usize = 2;

/// The service name whose status is always SERVING: for probes that restart a process that
/// hangs, but not a process without its table.
const LIVENESS: &str = "liveness";

/// Reports whether the server, and the account service, are serving.
#[derive(Debug, Clone)]
pub struct Readiness(HealthReporter);

impl Readiness {
    /// Reports that the process is alive, and not yet whether it is serving.
    pub async fn new() -> Self {
        let reporter = HealthReporter::new();
        let serving = ServingStatus::Serving;
        reporter.set_service_status(LIVENESS, serving).await;
        Self(reporter)
    }

    /// Reports this status from now on.
    pub async fn set(&self, is_serving: bool) {
        let Self(reporter) = self;
        let status = if is_serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        // The empty name is the server as a whole.
        for name in ["", AccountServiceServer::<AccountService>::NAME] {
            reporter.set_service_status(name, status).await;
        }
    }

    /// The health service of one listener.
    #[must_use]
    pub fn server(&self) -> HealthServer<impl Health + use<>> {
        HealthServer::new(BoundedHealth {
            service: HealthService::from_health_reporter(self.0.clone()),
            watches: ShareLimit::new(MAX_WATCHES, MAX_WATCHES_PER_CONNECTION),
            early: ShareLimit::new(usize::MAX, MAX_EARLY_WATCHES_PER_CONNECTION),
        })
    }
}

struct BoundedHealth {
    service: HealthService,
    watches: Arc<ShareLimit<u64>>,
    /// For unauthenticated connections, which are few.
    early: Arc<ShareLimit<u64>>,
}

/// A `Watch` stream.
struct Watch {
    statuses: Statuses,
    _permit: SharePermit<u64>,
}

type Unknown = stream::Chain<
    stream::Once<std::future::Ready<Result<HealthCheckResponse, Status>>>,
    stream::Pending<Result<HealthCheckResponse, Status>>,
>;
type Statuses = Either<WatchStream, Unknown>;

impl Stream for Watch {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.statuses.poll_next_unpin(context)
    }
}

#[tonic::async_trait]
impl Health for BoundedHealth {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.service.check(request).await
    }

    type WatchStream = Watch;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Watch>, Status> {
        let peer = request.extensions().get::<Peer>();
        let connection = peer.map_or(0, |peer| peer.connection);
        let share_limit = match peer {
            Some(peer) if !peer.is_authenticated() => &self.early,
            _ => &self.watches,
        };
        let permit = share_limit.try_acquire(connection);
        let permit = permit.ok_or_else(status::too_many_health_watches)?;
        let statuses = match self.service.watch(request).await {
            Ok(statuses) => Either::Left(statuses.into_inner()),
            // By the protocol, the stream reports this and stays open.
            Err(status) if status.code() == Code::NotFound => Either::Right(unknown()),
            Err(status) => return Err(status),
        };
        Ok(Response::new(Watch {
            statuses,
            _permit: permit,
        }))
    }
}

/// The statuses of an unknown service.
fn unknown() -> Unknown {
    let status = HealthCheckResponse {
        status: WireStatus::ServiceUnknown.into(),
    };
    stream::once(std::future::ready(Ok(status))).chain(stream::pending())
}
