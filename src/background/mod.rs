//! Loops that run beside all calls, most of them in one replica at a time.

pub mod erasure;
mod leader_lease;
pub mod orphan_cleanup;
pub mod purge;
pub mod stream_invalidator;
