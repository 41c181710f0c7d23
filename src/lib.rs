//! The account service: users, organizations and memberships over gRPC, stored
//! in DynamoDB, cached in Momento.
//!
//! A request comes down these stairs and its answer goes back up:
//!
//! ```text
//! grpc       the edge: messages to domain types, errors to statuses
//!   service    the use cases: who may do what, decided on strong reads
//!     coherence  lease, fence, confirm: keeps the cache honest
//!       cache      bytes in Momento
//!       store      records in DynamoDB
//! ```
//!
//! `transport` accepts connections, in the clear or with TLS. `auth` authenticates
//! callers and knows what each may do.
//!
//! `domain` holds the types that all rooms share, and depends on nothing. `cli` runs
//! the subcommands. `boot` alone names the concrete backends. `background` holds the
//! loops that run beside all calls. `local` holds embedded servers that stand in for
//! AWS and Momento on loopback.

pub mod auth;
pub mod background;
mod backoff;
pub mod boot;
pub mod cache;
pub mod cli;
pub mod coherence;
pub mod config;
pub mod domain;
mod error_chain;
pub mod grpc;
#[cfg(feature = "local")]
pub mod local;
mod loopback;
pub mod proto;
pub mod service;
pub mod store;
pub mod telemetry;
pub mod transport;
