//! What every call passes before its handler, from the outermost layer to the innermost.

mod auth;
mod concurrency_limit;
mod cpu_load;
mod error_details;
mod fair_queue;
mod fast_path_router;
mod metrics;

pub use self::{
    auth::AdmissionLayer,
    concurrency_limit::{FairnessLayer, MUCH},
    error_details::precise_status,
    fast_path_router::DirectLayer,
    metrics::ObservationLayer,
};
pub(super) use self::{
    concurrency_limit::{Place, flow_of},
    fair_queue::Flow,
};
