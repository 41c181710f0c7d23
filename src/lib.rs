//! The account service: users, organizations and memberships over gRPC, stored
//! in DynamoDB, cached in Momento.
//!
//! A request goes down through these layers, and its response goes back up:
//!
//! ```text
//! grpc       the protocol: messages to domain types, errors to statuses
//!   service    the use cases, with permissions decided on strong reads
//!     coherence  lease, fence, confirm: keeps the cache coherent
//!       cache      bytes in Momento
//!       store      records in DynamoDB
//! ```
//!
//! `transport` accepts connections, with or without TLS. `auth` authenticates and authorizes
//! callers. `peer` calls other replicas. `ext_authz` decides about requests that Envoy submits.
//!
//! `domain` has the types that all modules share, and depends on no other module. `cli` runs
//! the subcommands. `boot` builds the server from the settings. `background` has the background
//! loops. `local` has embedded servers in place of AWS and Momento, on loopback.

pub mod auth;
pub mod background;
pub mod boot;
pub mod cache;
pub mod cli;
pub mod coherence;
pub mod config;
pub mod domain;
mod error_chain;
pub mod ext_authz;
pub mod grpc;
mod json_object;
#[cfg(feature = "local")]
pub mod local;
mod loopback;
pub mod peer;
pub mod proto;
pub mod service;
pub mod store;
pub mod telemetry;
pub mod transport;
