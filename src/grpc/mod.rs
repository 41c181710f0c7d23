//! The gRPC service: its handlers, middleware and statuses. No module below uses gRPC.

mod account_service;
mod convert;
mod deadline;
mod ext_authz;
mod handlers;
mod health;
mod memory_budget;
mod methods;
mod middleware;
mod peer_service;
mod reason;
mod reflection;
mod share_limit;
mod status;
mod watch;
mod write_request;

pub use account_service::{AccountService, ServiceSettings};
pub use deadline::{DEFAULT_DEADLINE, LongestCall};
pub use ext_authz::{ExtAuthz, SharedRoutes};
pub use health::Readiness;
pub use methods::methods;
pub use middleware::{
    AuthLayer, ConcurrencyLimitLayer, FastPathLayer, HEAVY_CALL_CPU, MetricsLayer, WebLayer,
    with_error_details,
};
pub use peer_service::ReplicaService;
pub use reason::{DOMAIN, Reason};
pub use reflection::{reflection_v1, reflection_v1alpha};
pub use watch::{WatchLimits, WatchResponses};

/// Largest accepted request of a batch, in bytes. 1000 checks with the longest names have
/// some 270 kB.
pub const MAX_BATCH_REQUEST_BYTES: usize = 1024 * 1024;
/// Largest accepted request of another method, in bytes. A user with the most labels has some
/// 12 kB.
pub const MAX_REQUEST_BYTES: usize = 32 * 1024;
/// Largest sum of the records in a response, in bytes: with its other fields, a response stays
/// below the 4 MiB that clients accept by default.
pub const MAX_RESPONSE_BYTES: usize = 3840 * 1024;
