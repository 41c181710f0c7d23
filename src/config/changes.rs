//! Settings of `changes`: the server to watch, and the position.

use std::path::PathBuf;

use clap::Args;
use http::Uri;

use super::values::{server_url, uri_reference};

/// Settings of `changes`.
#[derive(Debug, Clone, Args)]
pub struct ChangesSettings {
    /// The server.
    #[arg(long, env = "ACCOUNT_SERVICE_URL", value_name = "URL", default_value = "http://127.0.0.1:50051", value_parser = server_url)]
    pub server: Uri,
    /// Certificates of the authorities that sign the server's certificate, PEM. Default: those of the
    /// system.
    #[arg(long, env = "ACCOUNT_SERVICE_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// The certificate to authenticate with, PEM.
    #[arg(
        long,
        env = "ACCOUNT_SERVICE_CLIENT_CERT",
        value_name = "FILE",
        requires = "tls_client_key"
    )]
    pub tls_client_cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(
        long,
        env = "ACCOUNT_SERVICE_CLIENT_KEY",
        value_name = "FILE",
        requires = "tls_client_cert"
    )]
    pub tls_client_key: Option<PathBuf>,
    /// The token to authenticate with. Read again for each connection.
    #[arg(long, env = "ACCOUNT_SERVICE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Save the position after the written lines in this file, and resume there.
    #[arg(long, env = "CHECKPOINT_FILE", value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Without a saved position, begin with the oldest change that is kept.
    #[arg(long)]
    pub oldest: bool,
    /// Only changes of this organization and of its members.
    #[arg(long, value_name = "NAME")]
    pub organization: Option<String>,
    /// Only changes of this user and of the user's memberships.
    #[arg(long, value_name = "NAME")]
    pub username: Option<String>,
    /// The `source` of the events: a URI reference.
    #[arg(
        long,
        env = "EVENT_SOURCE",
        value_name = "URI",
        default_value = "account-service",
        value_parser = uri_reference
    )]
    pub source: String,
}
