//! Loops that run beside all calls, each in one replica at a time.

mod leader_lease;
pub mod orphan_cleanup;
pub mod stream_invalidator;
