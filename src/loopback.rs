//! Loopback hosts. Traffic to them needs no encryption.

use std::net::IpAddr;

/// Whether a URL's host is this machine's loopback.
pub(crate) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}
