//! Parsers of setting values.

use std::time::Duration;

use http::Uri;
use jsonwebtoken::Algorithm;

pub(super) fn millis(text: &str) -> Result<Duration, String> {
    number(text, 600_000).map(Duration::from_millis)
}

pub(super) fn attempt_millis(text: &str) -> Result<Duration, String> {
    number(text, 2000).map(Duration::from_millis)
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    number(text, 86_400).map(Duration::from_secs)
}

pub(super) fn number(text: &str, max: u64) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|number| (1..=max).contains(number))
        .ok_or_else(|| format!("must be a whole number from 1 to {max}"))
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "must be a number from 0 to 1".to_owned())
}

/// An algorithm with key pairs. With a shared secret, every verifier could also sign.
pub(super) fn algorithm(text: &str) -> Result<Algorithm, String> {
    use Algorithm::{HS256, HS384, HS512};
    match text.parse() {
        Ok(HS256 | HS384 | HS512) => Err("shared secrets are not accepted".to_owned()),
        Ok(algorithm) => Ok(algorithm),
        Err(_) => Err("must be RS256 to RS512, PS256 to PS512, ES256, ES384 or EdDSA".to_owned()),
    }
}

pub(super) fn host_and_port(text: &str) -> Result<String, String> {
    let is_port = |port: &str| port.parse::<u16>().is_ok();
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && is_port(port) => Ok(text.to_owned()),
        _ => Err("must be a host and a port, such as localhost:50051".to_owned()),
    }
}

pub(super) fn server_url(text: &str) -> Result<Uri, String> {
    let url: Uri = text.parse().map_err(|_| "is not a URL".to_owned())?;
    match (url.scheme_str(), url.authority()) {
        (Some("http" | "https"), Some(_)) => Ok(url),
        _ => Err("must be http://HOST:PORT or https://HOST:PORT".to_owned()),
    }
}

pub(super) fn uri_reference(text: &str) -> Result<String, String> {
    let is_allowed = |found: char| found.is_ascii_graphic() && !"\"<>\\^`{|}".contains(found);
    if text.is_empty() || !text.chars().all(is_allowed) {
        return Err("must be a URI reference, such as //accounts/production".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn not_empty(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("must not be empty".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn table_name(text: &str) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if (3..=255).contains(&text.len()) && text.bytes().all(is_allowed) {
        return Ok(text.to_owned());
    }
    Err("must be 3 to 255 characters of A-Z, a-z, 0-9, '_', '.' and '-'".to_owned())
}

pub(super) fn cache_name(text: &str) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_graphic();
    if (3..=255).contains(&text.len()) && text.bytes().all(is_allowed) {
        return Ok(text.to_owned());
    }
    Err("must be 3 to 255 printable ASCII characters".to_owned())
}

pub(super) fn url(text: &str) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|_| "must be a URL".to_owned())?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.host().is_some() => Ok(text.to_owned()),
        _ => Err("must be a URL that begins with http:// or https://".to_owned()),
    }
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    text.parse::<tracing_subscriber::EnvFilter>()
        .map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be a key and a value, such as team=blue".to_owned()),
    }
}
