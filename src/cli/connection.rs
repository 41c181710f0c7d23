//! Connections of commands to a server.

use std::{io, path::Path, time::Duration};

use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{config::ConnectionSettings, error_chain::describe, loopback::is_loopback};

/// Longest time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Reason why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// A file cannot be read.
    #[error("{what}: {source}")]
    File {
        /// The file.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The settings do not fit together, or cannot be used.
    #[error("{0}")]
    Setting(String),
    /// The server cannot be reached. A retry may succeed.
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
}

/// Rejects settings that would send a token, or trust a server, without TLS.
///
/// # Errors
/// [`ConnectionError::Setting`].
pub fn assert_secure(settings: &ConnectionSettings) -> Result<(), ConnectionError> {
    let has_tls = settings.server.scheme_str() == Some("https");
    let is_of_tls = settings.tls_ca.is_some() || settings.tls_client_cert.is_some();
    let host = settings.server.host().unwrap_or_default();
    let is_exposed = settings.token_file.is_some() && !is_loopback(host);
    if !has_tls && (is_of_tls || is_exposed) {
        let why = "--server must be https:// with certificates, and with a token unless it is on loopback";
        return Err(ConnectionError::Setting(why.to_owned()));
    }
    Ok(())
}

/// The request with the token, which is read anew each time.
///
/// # Errors
/// The file cannot be read, or has no token.
pub fn authorized<T>(
    settings: &ConnectionSettings,
    message: T,
) -> Result<Request<T>, ConnectionError> {
    let mut request = Request::new(message);
    if let Some(path) = &settings.token_file {
        let token = read(path)?;
        let token = format!("Bearer {}", token.trim());
        let mut token: MetadataValue<_> = token
            .parse()
            .map_err(|_| ConnectionError::Setting(format!("{} is not a token", path.display())))?;
        token.set_sensitive(true);
        request.metadata_mut().insert("authorization", token);
    }
    Ok(request)
}

/// Connects to the server.
///
/// # Errors
/// See [`ConnectionError`].
pub async fn connect(settings: &ConnectionSettings) -> Result<Channel, ConnectionError> {
    let endpoint = Endpoint::from(settings.server.clone()).connect_timeout(CONNECT_TIMEOUT);
    let endpoint = if settings.server.scheme_str() == Some("https") {
        let unusable = |error| ConnectionError::Setting(describe(&error));
        endpoint.tls_config(tls(settings)?).map_err(unusable)?
    } else {
        endpoint
    };
    let connected = endpoint.connect().await;
    connected.map_err(|error| ConnectionError::Unreachable(describe(&error)))
}

fn tls(settings: &ConnectionSettings) -> Result<ClientTlsConfig, ConnectionError> {
    let mut tls = ClientTlsConfig::new();
    tls = match &settings.tls_ca {
        Some(path) => tls.ca_certificate(Certificate::from_pem(read(path)?)),
        None => tls.with_native_roots(),
    };
    if let (Some(certificate), Some(key)) = (&settings.tls_client_cert, &settings.tls_client_key) {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(tls)
}

fn read(path: &Path) -> Result<String, ConnectionError> {
    let what = || path.display().to_string();
    std::fs::read_to_string(path).map_err(|source| ConnectionError::File {
        what: what(),
        source,
    })
}
