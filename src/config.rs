//! Settings. Each is a flag with an environment variable and, where useful, a default.
//! Secrets are not settings: they come from Secrets Manager.

use std::{ffi::OsStr, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{
    Arg, ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    builder::{BoolishValueParser, Resettable},
    error::{ContextKind, ContextValue, ErrorKind},
};
use jsonwebtoken::Algorithm;
use secrecy::SecretString;

use crate::{
    auth::KeySource,
    telemetry::{LogFormat, TraceExport},
};

/// Users, organizations and memberships over gRPC, stored in DynamoDB, cached in
/// Momento.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the arguments and the environment of the process. An empty variable counts as
    /// missing: templates leave unused variables empty.
    ///
    /// # Errors
    /// The arguments are invalid, or request help. The error names the environment variable
    /// that an invalid value comes from.
    pub fn from_process() -> Result<Self, clap::Error> {
        let mut command = Self::command().mut_subcommands(|command| {
            command.mut_args(|arg| match arg.get_env() {
                Some(name) if is_empty_variable(name) => arg.env(Resettable::Reset),
                _ => arg,
            })
        });
        command.build();
        let matches = command.clone().try_get_matches();
        let cli = matches.and_then(|matches| Self::from_arg_matches(&matches));
        cli.map_err(|error| with_variable(error, &command))
    }
}

fn is_empty_variable(name: &OsStr) -> bool {
    std::env::var_os(name).is_some_and(|value| value.is_empty())
}

/// Adds the name of the environment variable to the error, if the value comes from one.
fn with_variable(error: clap::Error, command: &clap::Command) -> clap::Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let (Some(shown), Some(value)) = (
        text(ContextKind::InvalidArg),
        text(ContextKind::InvalidValue),
    ) else {
        return error;
    };
    let args = command
        .get_subcommands()
        .flat_map(clap::Command::get_arguments);
    let mut args = args.filter(|arg| arg.to_string() == shown);
    let Some(name) = args.next().and_then(Arg::get_env) else {
        return error;
    };
    let flag = shown.split(' ').next().unwrap_or_default();
    let mut given = std::env::args_os();
    let is_flag = given.any(|it| {
        let it = it.to_string_lossy();
        it == flag || it.starts_with(&format!("{flag}="))
    });
    if is_flag || std::env::var_os(name).is_none() {
        return error;
    }
    let why = std::error::Error::source(&error).map(ToString::to_string);
    let why = why.unwrap_or_else(|| "it is not one of the possible values".to_owned());
    let name = name.to_string_lossy();
    let what = format!(
        "invalid value {value:?} of the environment variable {name} for '{shown}': {why}\n"
    );
    clap::Error::raw(ErrorKind::ValueValidation, what)
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the service with the table, the cache and the secret of the settings.
    Serve(ServeSettings),
    /// Run the service on embedded servers: DynamoDB, Momento and Secrets Manager on
    /// loopback, in this process.
    #[cfg(feature = "local")]
    Dev(DevSettings),
    /// Create the table, the secret and the cache, unless they exist.
    Setup(SetupSettings),
    /// Empty the cache: all replicas of the table switch to an empty generation.
    /// Reads go to the table for a few seconds.
    Flush(FlushSettings),
    /// Fence the changed records of a DynamoDB stream event, which is read from
    /// standard input in the form that Lambda triggers receive.
    Invalidate(ServeSettings),
    /// Exit with 0 if the server at an address is serving, else with 1.
    Healthcheck(HealthcheckSettings),
}

/// Settings of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeSettings {
    /// The gRPC server.
    #[command(flatten)]
    pub server: ServerSettings,
    /// Table, cache and secret.
    #[command(flatten)]
    pub backends: BackendSettings,
    /// The cache.
    #[command(flatten)]
    pub cache: CacheSettings,
    /// The log.
    #[command(flatten)]
    pub log: LogSettings,
}

/// Settings of `dev`.
#[cfg(feature = "local")]
#[derive(Debug, Clone, Args)]
pub struct DevSettings {
    /// Keep the table in this directory, so that it survives the process. Without
    /// a directory, the table is in memory.
    #[arg(long, env = "DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Use the DynamoDB at this endpoint instead of the embedded one.
    #[arg(long, env = "DEV_DYNAMODB_ENDPOINT", value_name = "URL", value_parser = url, conflicts_with = "data_dir")]
    pub dynamodb_endpoint: Option<String>,
    /// Name of the DynamoDB table.
    #[arg(long, env = "TABLE_NAME", value_name = "NAME", default_value = "accounts", value_parser = table_name)]
    pub table_name: String,
    /// Use the Secrets Manager at this endpoint instead of the embedded one.
    #[arg(long, env = "DEV_SECRETS_ENDPOINT", value_name = "URL", value_parser = url)]
    pub secrets_endpoint: Option<String>,
    /// The gRPC server.
    #[command(flatten)]
    pub server: ServerSettings,
    /// The cache.
    #[command(flatten)]
    pub cache: CacheSettings,
    /// The log.
    #[command(flatten)]
    pub log: LogSettings,
}

/// Settings of `setup`. The Momento credential for a new secret is read only from
/// environment variables: MOMENTO_API_KEY and MOMENTO_ENDPOINT, or
/// MOMENTO_AUTH_TOKEN.
#[derive(Debug, Clone, Args)]
pub struct SetupSettings {
    /// Table, cache and secret.
    #[command(flatten)]
    pub backends: BackendSettings,
    /// The log.
    #[command(flatten)]
    pub log: LogSettings,
}

/// Settings of `flush`.
#[derive(Debug, Clone, Args)]
pub struct FlushSettings {
    /// Table and cache.
    #[command(flatten)]
    pub backends: BackendSettings,
    /// The log.
    #[command(flatten)]
    pub log: LogSettings,
}

/// Settings of `healthcheck`.
#[derive(Debug, Clone, Args)]
pub struct HealthcheckSettings {
    /// Address of the server to check.
    #[arg(
        long,
        env = "HEALTHCHECK_ADDR",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:50051",
        value_parser = host_and_port
    )]
    pub addr: String,
    /// Longest wait for the response, in milliseconds.
    #[arg(long, env = "HEALTHCHECK_TIMEOUT_MS", value_name = "MS", default_value = "1000", value_parser = millis)]
    pub timeout_ms: Duration,
}

/// The gRPC server.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerSettings {
    /// Address to listen on. Port 0: any free port.
    #[arg(
        long,
        env = "LISTEN_ADDR",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:50051"
    )]
    pub listen_addr: SocketAddr,
    /// Longest wait for running calls after SIGTERM, in milliseconds.
    #[arg(long, env = "DRAIN_TIMEOUT_MS", value_name = "MS", default_value = "10000", value_parser = millis)]
    pub drain_timeout_ms: Duration,
    /// Longest wait of a WatchChanges stream for its client to receive a
    /// response, in milliseconds.
    #[arg(long, env = "WATCH_PATIENCE_MS", value_name = "MS", default_value = "30000", value_parser = millis)]
    pub watch_patience_ms: Duration,
    /// Most concurrent reads, and most concurrent changes. Further calls wait up
    /// to 250 ms in a queue that is fair between callers, and are then rejected.
    /// While the processors are overloaded, the limit falls, but not below 4 for
    /// each processor.
    #[arg(long, env = "CALLS_AT_ONCE", value_name = "COUNT", default_value_t = 1024, value_parser = clap::value_parser!(u16).range(16..))]
    pub calls_at_once: u16,
    /// Most open connections on which a call was admitted. At the limit, the caller
    /// with the most connections loses its oldest one to a caller with fewer. A
    /// connection takes some 20 kB.
    #[arg(long, env = "MAX_CONNECTIONS", value_name = "COUNT", default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// Age of a connection, in seconds, at which the server requests its client to
    /// reconnect, so that clients find new replicas. WatchChanges streams end then,
    /// too.
    #[arg(long, env = "MAX_CONNECTION_AGE_S", value_name = "S", default_value = "1800", value_parser = seconds)]
    pub max_connection_age_s: Duration,
    /// Most memberships of deleted users and organizations that all replicas
    /// together remove in a second. 0: this replica removes none.
    #[arg(
        long,
        env = "CLEAN_UP_RATE",
        value_name = "COUNT",
        default_value_t = 250
    )]
    pub clean_up_rate: u32,
    /// Address to serve metrics on, for Prometheus. Without it, the service has
    /// no metrics.
    #[arg(long, env = "METRICS_ADDR", value_name = "IP:PORT")]
    pub metrics_addr: Option<SocketAddr>,
    /// Additional address for health checks, always without TLS: for probes that
    /// do not support TLS.
    #[arg(long, env = "HEALTH_ADDR", value_name = "IP:PORT")]
    pub health_addr: Option<SocketAddr>,
    /// The export of traces.
    #[command(flatten)]
    pub traces: TraceSettings,
    /// Authentication and authorization of callers.
    #[command(flatten)]
    pub callers: CallerSettings,
}

/// The export of traces.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Traces")]
pub struct TraceSettings {
    /// Collector of traces, by OTLP over gRPC, such as http://127.0.0.1:4317.
    /// Without it, there are no traces.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", value_parser = url)]
    pub otlp_endpoint: Option<String>,
    /// Share of traced calls, from 0 to 1, among the calls whose caller has not
    /// decided.
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "SHARE", default_value = "0.01", value_parser = share)]
    pub trace_ratio: f64,
}

impl TraceSettings {
    /// The export of traces. `None` without a collector.
    #[must_use]
    pub fn export(&self) -> Option<TraceExport> {
        let endpoint = self.otlp_endpoint.clone()?;
        let ratio = self.trace_ratio;
        Some(TraceExport { endpoint, ratio })
    }
}

/// Authentication and authorization of callers.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Callers")]
pub struct CallerSettings {
    /// File with the policy: the methods that each caller may call, and the actors on
    /// whose behalf. Without it, every caller may do everything.
    #[arg(long, env = "POLICY_FILE", value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Permit addresses other than loopback without a policy or without TLS.
    #[arg(long, env = "INSECURE", value_parser = BoolishValueParser::new())]
    pub insecure: bool,
    /// File with the server's certificate and its intermediate certificates, in PEM.
    /// Read again when it changes.
    #[arg(long, env = "TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// File with the certificate's private key, in PEM.
    #[arg(long, env = "TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// File with the roots of clients' certificates, in PEM. The policy identifies a
    /// certificate by the first URI among its alternative names, else by the first DNS
    /// name. Without --jwks, every client needs a certificate.
    #[arg(
        long,
        env = "TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "tls_cert",
        requires = "policy"
    )]
    pub tls_client_ca: Option<PathBuf>,
    /// File with the revocation lists for clients' certificates, in PEM: one of each
    /// issuing authority. Read again when it changes; open connections stay open.
    #[arg(
        long,
        env = "TLS_CLIENT_CRL",
        value_name = "FILE",
        requires = "tls_client_ca"
    )]
    pub tls_client_crl: Option<PathBuf>,
    /// File or https:// URL of the JSON Web Key Set that verifies bearer tokens. Read
    /// again every 5 minutes, and when a token names an unknown key.
    #[arg(
        long,
        env = "JWKS",
        value_name = "FILE|URL",
        requires = "jwt_issuer",
        requires = "jwt_audience",
        requires = "policy"
    )]
    pub jwks: Option<KeySource>,
    /// Required issuer of tokens.
    #[arg(long, env = "JWT_ISSUER", value_name = "ISSUER", value_parser = not_empty)]
    pub jwt_issuer: Option<String>,
    /// Required audience of tokens.
    #[arg(long, env = "JWT_AUDIENCE", value_name = "AUDIENCE", value_parser = not_empty)]
    pub jwt_audience: Option<String>,
    /// Accepted signature algorithms of tokens.
    #[arg(
        long,
        env = "JWT_ALGORITHMS",
        value_name = "NAMES",
        value_delimiter = ',',
        default_values = ["RS256", "ES256", "EdDSA"],
        value_parser = algorithm
    )]
    pub jwt_algorithms: Vec<Algorithm>,
    /// Disable the gRPC server reflection.
    #[arg(long, env = "NO_REFLECTION", value_parser = BoolishValueParser::new())]
    pub no_reflection: bool,
}

/// Table, cache and secret.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Backends")]
pub struct BackendSettings {
    /// Name of the DynamoDB table.
    #[arg(long, env = "TABLE_NAME", value_name = "NAME", value_parser = table_name)]
    pub table_name: String,
    /// Name of the Momento cache.
    #[arg(long, env = "CACHE_NAME", value_name = "NAME", default_value = "accounts-cache", value_parser = cache_name)]
    pub cache_name: String,
    /// Connections to Momento for reads, and as many for writes. The last connection
    /// for reads is for look-ups of more than 128 records.
    #[arg(long, env = "CACHE_CONNECTIONS", value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub cache_connections: u8,
    /// Name or ARN of the secret with the Momento credential: a JSON object with
    /// MOMENTO_API_KEY and MOMENTO_ENDPOINT, or with MOMENTO_AUTH_TOKEN.
    #[arg(long, env = "MOMENTO_SECRET_ID", value_name = "ID", default_value = "accounts/MomentoAuthToken", value_parser = not_empty)]
    pub momento_secret_id: String,
    /// Interval of reading the secret, in seconds, so that a rotated credential is
    /// used without a restart. The secret is also read at once when the cache
    /// rejects the credential in use.
    #[arg(long, env = "SECRET_REFRESH_S", value_name = "S", default_value = "300", value_parser = seconds)]
    pub secret_refresh_s: Duration,
    /// AWS region. Without it, the AWS SDK looks in AWS_DEFAULT_REGION, the
    /// profile, the instance.
    #[arg(long, env = "AWS_REGION", value_name = "REGION", value_parser = not_empty)]
    pub aws_region: Option<String>,
    /// Endpoint of DynamoDB instead of the region's.
    #[arg(long, env = "AWS_ENDPOINT_URL_DYNAMODB", value_name = "URL", value_parser = url)]
    pub dynamodb_endpoint: Option<String>,
    /// Longest attempt at a DynamoDB operation, in milliseconds: more for slow tables.
    /// An operation takes at most 2 s in all.
    #[arg(long, env = "DYNAMODB_ATTEMPT_TIMEOUT_MS", value_name = "MS", default_value = "500", value_parser = attempt_millis)]
    pub dynamodb_attempt_timeout_ms: Duration,
    /// Endpoint of Secrets Manager instead of the region's.
    #[arg(long, env = "AWS_ENDPOINT_URL_SECRETS_MANAGER", value_name = "URL", value_parser = url)]
    pub secrets_endpoint: Option<String>,
    /// Credentials for the embedded servers of this process.
    #[arg(skip)]
    pub aws_credentials: Option<EmbeddedCredentials>,
}

/// Credentials of the embedded servers, which accept any.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedCredentials;

/// The cache.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cache")]
pub struct CacheSettings {
    /// Longest look-up of up to 300 records in the cache, in milliseconds. Then the
    /// read goes to the table.
    #[arg(long, env = "CACHE_READ_TIMEOUT_MS", value_name = "MS", default_value = "50", value_parser = millis)]
    pub cache_read_timeout_ms: Duration,
    /// Most concurrent requests to the table for callers' reads. At most 16 more for
    /// each of these wait, up to 250 ms. Further reads are rejected. Writes are not
    /// counted.
    #[arg(long, env = "TABLE_READS_AT_ONCE", value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u16).range(4..=4096))]
    pub table_reads_at_once: u16,
    /// Time to live of a membership in the cache, in seconds.
    #[arg(long, env = "MEMBERSHIP_TTL_S", value_name = "S", default_value = "60", value_parser = seconds)]
    pub membership_ttl_s: Duration,
    /// Time to live of a user or an organization in the cache, in seconds.
    #[arg(long, env = "PROFILE_TTL_S", value_name = "S", default_value = "300", value_parser = seconds)]
    pub profile_ttl_s: Duration,
    /// Time to live of the absence of a user, an organization or a membership in the
    /// cache, in seconds.
    #[arg(long, env = "ABSENT_TTL_S", value_name = "S", default_value = "10", value_parser = seconds)]
    pub absent_ttl_s: Duration,
    /// Whether to follow the table's stream, one replica at a time, so that reads
    /// show changes made past the service within about a second.
    #[arg(long, env = "STREAM_INVALIDATOR", value_name = "BOOL", default_value = "true", action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub stream_invalidator: bool,
}

/// The log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Log")]
pub struct LogSettings {
    /// Filter of the log: a level (error, warn, info, debug, trace), or directives
    /// such as `info,account_service=debug`.
    #[arg(long, env = "LOG", value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    pub log: String,
    /// Format of the log, which goes to standard error.
    #[arg(
        long,
        env = "LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

impl CacheSettings {
    /// The settings of the coherence protocol.
    #[must_use]
    pub fn to_coherence(&self) -> crate::coherence::CoherenceSettings {
        crate::coherence::CoherenceSettings {
            cache_read_timeout: self.cache_read_timeout_ms,
            table_reads_at_once: self.table_reads_at_once.into(),
            membership_ttl: self.membership_ttl_s,
            profile_ttl: self.profile_ttl_s,
            absent_ttl: self.absent_ttl_s,
            ..crate::coherence::CoherenceSettings::default()
        }
    }
}

/// The JSON of a new secret, with the Momento credential from the environment.
/// `lookup` reads a variable. `None` if there is no credential.
#[must_use]
pub fn momento_secret_from_env(lookup: impl Fn(&str) -> Option<String>) -> Option<SecretString> {
    const NAMES: [&str; 3] = ["MOMENTO_API_KEY", "MOMENTO_ENDPOINT", "MOMENTO_AUTH_TOKEN"];
    let fields: serde_json::Map<_, _> = NAMES
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), lookup(name)?.into())))
        .collect();
    (!fields.is_empty()).then(|| serde_json::Value::Object(fields).to_string().into())
}

fn millis(text: &str) -> Result<Duration, String> {
    number(text, 600_000).map(Duration::from_millis)
}

fn attempt_millis(text: &str) -> Result<Duration, String> {
    number(text, 2000).map(Duration::from_millis)
}

fn seconds(text: &str) -> Result<Duration, String> {
    number(text, 86_400).map(Duration::from_secs)
}

fn number(text: &str, max: u64) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|number| (1..=max).contains(number))
        .ok_or_else(|| format!("must be a whole number from 1 to {max}"))
}

fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "must be a number from 0 to 1".to_owned())
}

/// An algorithm with key pairs. With a shared secret, every verifier could also sign.
fn algorithm(text: &str) -> Result<Algorithm, String> {
    use Algorithm::{HS256, HS384, HS512};
    match text.parse() {
        Ok(HS256 | HS384 | HS512) => Err("shared secrets are not accepted".to_owned()),
        Ok(algorithm) => Ok(algorithm),
        Err(_) => Err("must be RS256 to RS512, PS256 to PS512, ES256, ES384 or EdDSA".to_owned()),
    }
}

fn host_and_port(text: &str) -> Result<String, String> {
    let is_port = |port: &str| port.parse::<u16>().is_ok();
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && is_port(port) => Ok(text.to_owned()),
        _ => Err("must be a host and a port, such as localhost:50051".to_owned()),
    }
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("must not be empty".to_owned());
    }
    Ok(text.to_owned())
}

fn table_name(text: &str) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if (3..=255).contains(&text.len()) && text.bytes().all(is_allowed) {
        return Ok(text.to_owned());
    }
    Err("must be 3 to 255 characters of A-Z, a-z, 0-9, '_', '.' and '-'".to_owned())
}

fn cache_name(text: &str) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_graphic();
    if (3..=255).contains(&text.len()) && text.bytes().all(is_allowed) {
        return Ok(text.to_owned());
    }
    Err("must be 3 to 255 printable ASCII characters".to_owned())
}

fn url(text: &str) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|_| "must be a URL".to_owned())?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.host().is_some() => Ok(text.to_owned()),
        _ => Err("must be a URL that begins with http:// or https://".to_owned()),
    }
}

fn log_filter(text: &str) -> Result<String, String> {
    text.parse::<tracing_subscriber::EnvFilter>()
        .map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn setup_builds_the_secret_from_the_momento_variables() {
        let lookup = |name: &str| (name == "MOMENTO_AUTH_TOKEN").then(|| "t\"".to_owned());
        let secret = momento_secret_from_env(lookup).unwrap();
        assert_eq!(secret.expose_secret(), r#"{"MOMENTO_AUTH_TOKEN":"t\""}"#);
        assert!(momento_secret_from_env(|_| None).is_none());
    }
}
