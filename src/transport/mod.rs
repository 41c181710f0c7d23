//! Transport: accepts, bounds and encrypts the connections of clients.

mod connection_pool;
pub mod listener;
pub(crate) mod loopback;
mod open_files;
pub mod tls;
