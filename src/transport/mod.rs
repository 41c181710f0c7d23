//! Transport: accepts, bounds and encrypts the connections of clients.

mod connection_pool;
pub mod listener;
mod open_files;
pub mod tls;
