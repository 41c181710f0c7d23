//! The gRPC service: its handlers, middleware and statuses. No module below uses gRPC.

mod account_service;
mod convert;
mod deadline;
mod handlers;
mod health;
mod memory_budget;
mod methods;
mod middleware;
mod reason;
mod reflection;
mod share_limit;
mod status;
mod watch;
mod write_request;

pub use account_service::{AccountService, ServiceSettings};
pub use deadline::{DEFAULT_DEADLINE, LongestCall};
pub use health::Readiness;
pub use methods::methods;
pub use middleware::{
    AuthLayer, ConcurrencyLimitLayer, FastPathLayer, HEAVY_CALL_CPU, MetricsLayer,
    with_error_details,
};
pub use reason::{DOMAIN, Reason};
pub use reflection::{reflection_v1, reflection_v1alpha};
pub use watch::{WatchLimits, WatchStream};

/// Largest request of a batch that is read, in bytes. The largest sensible one, 1000
/// checks of the longest names, has some 270 kB.
pub const MAX_BATCH_REQUEST_BYTES: usize = 1024 * 1024;
/// Largest other request that is read, in bytes. The largest sensible one, a user with
/// all labels there may be, has some 12 kB.
pub const MAX_REQUEST_BYTES: usize = 32 * 1024;
/// Largest sum of the records in an answer, in bytes. With what is around them, an
/// answer stays below the 4 MiB that clients take by default.
pub const MAX_ANSWER_BYTES: usize = 3840 * 1024;
