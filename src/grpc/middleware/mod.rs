//! Layers that every call passes before its handler, from the outermost to the innermost.

mod auth;
mod concurrency_limit;
mod cpu_load;
mod error_details;
mod fair_queue;
mod fast_path_router;
mod metrics;
mod web;

pub use self::{
    auth::AuthLayer,
    concurrency_limit::{ConcurrencyLimitLayer, HEAVY_CALL_CPU},
    error_details::with_error_details,
    fast_path_router::FastPathLayer,
    metrics::MetricsLayer,
    web::WebLayer,
};
pub(super) use self::{
    concurrency_limit::{SharedPermit, flow_of},
    fair_queue::FlowKey,
};
