//! Connections of clients: accepting, bounding and encrypting them.

mod connection_pool;
pub mod listener;
pub(crate) mod loopback;
mod open_files;
pub mod tls;
