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
//! Calls come in through `connections`, in the clear or with `tls`, and pass the
//! gate of `callers`, which knows who calls and what they are granted.
//!
//! `domain` holds the types that all of them speak, and depends on nothing.
//! `command` runs what the command line asks for. `boot` alone names the concrete
//! backends; `clean_up` removes, beside all calls, what deletions left; `lease`
//! says whose turn that is; `secrets` reads the credential that the cache needs;
//! `setup` creates what is missing; `local` holds embedded servers that stand in
//! for AWS and Momento on loopback. `backoff` says how long to wait before something
//! is tried again, `loopback` which hosts are this machine.

mod backoff;
pub mod boot;
pub mod cache;
pub mod callers;
pub mod clean_up;
pub mod coherence;
pub mod command;
pub mod config;
pub mod connections;
pub mod domain;
mod error_chain;
pub mod grpc;
pub mod health;
mod lease;
#[cfg(feature = "local")]
pub mod local;
mod loopback;
pub mod proto;
pub mod secrets;
pub mod service;
pub mod setup;
pub mod store;
pub mod telemetry;
pub mod tls;
