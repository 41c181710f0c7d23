//! Loops that run beside all calls, each in one replica at a time.

pub(crate) mod leader_lease;
pub mod orphan_cleanup;
