//! Settings of the commands that call a server: the connection, and the form of the output.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use http::Uri;

use super::values::server_url;

/// The connection to a server.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectionSettings {
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
}

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A table for people. Its columns may change.
    Table,
    /// A JSON object in each line, as the contract defines it.
    Json,
}

/// Settings of a command that reads.
#[derive(Debug, Clone, Args)]
pub struct ReadSettings {
    /// The form of the output.
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: OutputFormat,
    /// The connection to the server.
    #[command(flatten)]
    pub connection: ConnectionSettings,
}

/// Settings of a command that changes something.
#[derive(Debug, Clone, Args)]
pub struct WriteSettings {
    /// Print the call, and do not make it.
    #[arg(long)]
    pub dry_run: bool,
    /// The id of the request: a UUID. A repeated command with the same id changes nothing again. Default:
    /// a new one.
    #[arg(long, value_name = "UUID")]
    pub request_id: Option<uuid::Uuid>,
    /// The form of the output, and the connection to the server.
    #[command(flatten)]
    pub read: ReadSettings,
}
