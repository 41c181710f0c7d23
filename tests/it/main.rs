//! The whole service over real sockets: real SDKs, real wire protocols, servers
//! on ephemeral ports.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod harness;

mod backends;
mod batches;
mod binary;
mod cache_faults;
mod callers;
mod capacity;
mod change_events;
mod change_log;
mod changes;
mod command_line;
mod conformance;
mod connections;
mod counts;
mod deployment;
mod emails;
mod erasure;
mod errors;
mod expiry;
mod ext_authz;
mod filters;
mod fleet;
mod herds;
mod histories;
mod identities;
mod identity;
mod last_owner;
mod leftovers;
mod legacy;
mod lists;
mod modules;
mod near_cache;
mod organization_grants;
mod outages;
mod overload;
mod ownership;
mod permissions;
mod profiles;
mod reference;
mod remote_calls;
mod requests;
mod server;
mod setup;
mod staleness;
mod starts;
mod story;
mod streams;
mod telemetry;
mod tutorial_faults;
mod undelete;
mod web;
mod write_conditions;
