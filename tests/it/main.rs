//! The whole service over real sockets: real SDKs, real wire protocols, servers
//! on ephemeral ports.

mod harness;

mod backends;
mod binary;
mod cache_faults;
mod errors;
mod legacy;
mod permissions;
mod remote_calls;
mod rooms;
mod story;
mod tutorial_faults;
