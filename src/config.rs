//! Settings: every one a flag with an environment variable and, where one makes
//! sense, a default. Secrets are no settings: they come from Secrets Manager.

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
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the arguments and the environment of the process. A variable that is empty
    /// counts as missing, as templates set those that nobody has filled.
    ///
    /// # Errors
    /// They are wrong, or ask for help. The error says so if a value is that of a
    /// variable.
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

/// The error, with the name of the variable that the value is of, if it is of one.
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
    let why = why.unwrap_or_else(|| "it is none of the values that there are".to_owned());
    let name = name.to_string_lossy();
    let what = format!(
        "invalid value {value:?} of the environment variable {name} for '{shown}': {why}\n"
    );
    clap::Error::raw(ErrorKind::ValueValidation, what)
}

/// What the binary does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve over the table, the cache and the secret that the settings name.
    Serve(ServeSettings),
    /// Serve over embedded servers: DynamoDB, Momento and Secrets Manager on
    /// loopback, in this process.
    #[cfg(feature = "local")]
    Dev(DevSettings),
    /// Create the table, the secret and the cache, as far as they are missing.
    Setup(SetupSettings),
    /// Empty the cache: make all replicas of the table go on with an empty part
    /// of it. Reads go to the table for a few seconds.
    Flush(FlushSettings),
    /// Fence the records that the DynamoDB stream event on standard input says
    /// were changed, as a Lambda trigger gets it.
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
    /// How long the cache keeps what.
    #[command(flatten)]
    pub cache: CacheSettings,
    /// What is logged, and how.
    #[command(flatten)]
    pub log: LogSettings,
}

/// Settings of `dev`.
#[cfg(feature = "local")]
#[derive(Debug, Clone, Args)]
pub struct DevSettings {
    /// Keep the table in this directory, so that it survives the process.
    /// Without it, the table is in memory.
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
    /// How long the cache keeps what.
    #[command(flatten)]
    pub cache: CacheSettings,
    /// What is logged, and how.
    #[command(flatten)]
    pub log: LogSettings,
}

/// Settings of `setup`. The Momento credential for a new secret is read from
/// the environment variables MOMENTO_API_KEY and MOMENTO_ENDPOINT, or
/// MOMENTO_AUTH_TOKEN, and from nowhere else.
#[derive(Debug, Clone, Args)]
pub struct SetupSettings {
    /// Table, cache and secret.
    #[command(flatten)]
    pub backends: BackendSettings,
    /// What is logged, and how.
    #[command(flatten)]
    pub log: LogSettings,
}

/// Settings of `flush`.
#[derive(Debug, Clone, Args)]
pub struct FlushSettings {
    /// Table and cache.
    #[command(flatten)]
    pub backends: BackendSettings,
    /// What is logged, and how.
    #[command(flatten)]
    pub log: LogSettings,
}

/// Settings of `healthcheck`.
#[derive(Debug, Clone, Args)]
pub struct HealthcheckSettings {
    /// Address of the server to ask.
    #[arg(
        long,
        env = "HEALTHCHECK_ADDR",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:50051",
        value_parser = host_and_port
    )]
    pub addr: String,
    /// Longest to wait for an answer, in milliseconds.
    #[arg(long, env = "HEALTHCHECK_TIMEOUT_MS", value_name = "MS", default_value = "1000", value_parser = millis)]
    pub timeout_ms: Duration,
}

/// The gRPC server.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerSettings {
    /// Address to listen on. Port 0 takes a free one.
    #[arg(
        long,
        env = "LISTEN_ADDR",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:50051"
    )]
    pub listen_addr: SocketAddr,
    /// Longest to wait, after SIGTERM, for calls that are under way, in
    /// milliseconds.
    #[arg(long, env = "DRAIN_TIMEOUT_MS", value_name = "MS", default_value = "10000", value_parser = millis)]
    pub drain_timeout_ms: Duration,
    /// Longest that a WatchChanges stream waits for its client to take a
    /// response, in milliseconds.
    #[arg(long, env = "WATCH_PATIENCE_MS", value_name = "MS", default_value = "30000", value_parser = millis)]
    pub watch_patience_ms: Duration,
    /// Reads, and changes, that are under way at once. Those beyond wait up to
    /// 250 ms for their turn, callers in turn; then they are refused. While the
    /// processors do not keep up, fewer and fewer, down to 4 for each of them.
    #[arg(long, env = "CALLS_AT_ONCE", value_name = "COUNT", default_value_t = 1024, value_parser = clap::value_parser!(u16).range(16..))]
    pub calls_at_once: u16,
    /// Connections of clients that are open at once and that a call was admitted on.
    /// When all are, the caller with the most connections loses its oldest one to a
    /// caller with fewer. Each takes some 20 kB.
    #[arg(long, env = "MAX_CONNECTIONS", value_name = "COUNT", default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// How long a connection is used, in seconds; then its client is asked to
    /// connect anew, so that clients come to know new replicas. WatchChanges
    /// streams end then, too.
    #[arg(long, env = "MAX_CONNECTION_AGE_S", value_name = "S", default_value = "1800", value_parser = seconds)]
    pub max_connection_age_s: Duration,
    /// Memberships of deleted users and organizations to remove in a second, at
    /// most, by all replicas together. 0: this replica removes none.
    #[arg(
        long,
        env = "CLEAN_UP_RATE",
        value_name = "COUNT",
        default_value_t = 250
    )]
    pub clean_up_rate: u32,
    /// Address to serve metrics on, for Prometheus. Without it, there are none.
    #[arg(long, env = "METRICS_ADDR", value_name = "IP:PORT")]
    pub metrics_addr: Option<SocketAddr>,
    /// Address to answer health checks on, too, always in the clear: for probes
    /// that speak no TLS.
    #[arg(long, env = "HEALTH_ADDR", value_name = "IP:PORT")]
    pub health_addr: Option<SocketAddr>,
    /// Where traces go.
    #[command(flatten)]
    pub traces: TraceSettings,
    /// Who may call.
    #[command(flatten)]
    pub callers: CallerSettings,
}

/// Where traces go.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Traces")]
pub struct TraceSettings {
    /// Collector that takes traces by OTLP over gRPC, such as
    /// http://127.0.0.1:4317. Without it, none are made.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", value_parser = url)]
    pub otlp_endpoint: Option<String>,
    /// Share of the calls, from 0 to 1, that are traced where their caller has not
    /// decided that already.
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "SHARE", default_value = "0.01", value_parser = share)]
    pub trace_ratio: f64,
}

impl TraceSettings {
    /// Where and how many traces are exported. `None` without a collector.
    #[must_use]
    pub fn export(&self) -> Option<TraceExport> {
        let endpoint = self.otlp_endpoint.clone()?;
        let ratio = self.trace_ratio;
        Some(TraceExport { endpoint, ratio })
    }
}

/// Who may call, and how they show who they are.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Callers")]
pub struct CallerSettings {
    /// File with the policy: which callers may call which methods, and on whose
    /// behalf. Without it, everybody may do everything.
    #[arg(long, env = "POLICY_FILE", value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Listen on other addresses than loopback without a policy or without TLS.
    #[arg(long, env = "INSECURE", value_parser = BoolishValueParser::new())]
    pub insecure: bool,
    /// File with the server's certificate, and those between it and the root, in
    /// PEM. Read again when it changes.
    #[arg(long, env = "TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// File with the certificate's private key, in PEM.
    #[arg(long, env = "TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// File with the roots of clients' certificates, in PEM. The policy knows a
    /// certificate by the first URI among its alternative names, else the first DNS
    /// name. Required of clients unless there is --jwks, too.
    #[arg(
        long,
        env = "TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "tls_cert",
        requires = "policy"
    )]
    pub tls_client_ca: Option<PathBuf>,
    /// File with the lists of clients' certificates that were revoked, in PEM: one of
    /// each authority that issues them. Read again when it changes; connections that are
    /// open stay so.
    #[arg(
        long,
        env = "TLS_CLIENT_CRL",
        value_name = "FILE",
        requires = "tls_client_ca"
    )]
    pub tls_client_crl: Option<PathBuf>,
    /// File or https:// URL of the JSON Web Key Set that bearer tokens are signed
    /// with. Read again every 5 minutes, and when
    /// a token names a key that is not known.
    #[arg(
        long,
        env = "JWKS",
        value_name = "FILE|URL",
        requires = "jwt_issuer",
        requires = "jwt_audience",
        requires = "policy"
    )]
    pub jwks: Option<KeySource>,
    /// Who has to have issued tokens.
    #[arg(long, env = "JWT_ISSUER", value_name = "ISSUER", value_parser = not_empty)]
    pub jwt_issuer: Option<String>,
    /// For whom tokens have to be.
    #[arg(long, env = "JWT_AUDIENCE", value_name = "AUDIENCE", value_parser = not_empty)]
    pub jwt_audience: Option<String>,
    /// How tokens may be signed.
    #[arg(
        long,
        env = "JWT_ALGORITHMS",
        value_name = "NAMES",
        value_delimiter = ',',
        default_values = ["RS256", "ES256", "EdDSA"],
        value_parser = algorithm
    )]
    pub jwt_algorithms: Vec<Algorithm>,
    /// Whether not to describe the service to callers who ask for its reflection.
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
    /// Connections to Momento for reads, the last of them for those of more than 128
    /// records, and as many for writes.
    #[arg(long, env = "CACHE_CONNECTIONS", value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub cache_connections: u8,
    /// Name or ARN of the secret with the Momento credential: a JSON object with
    /// MOMENTO_API_KEY and MOMENTO_ENDPOINT, or with MOMENTO_AUTH_TOKEN.
    #[arg(long, env = "MOMENTO_SECRET_ID", value_name = "ID", default_value = "accounts/MomentoAuthToken", value_parser = not_empty)]
    pub momento_secret_id: String,
    /// How often the secret is read again, in seconds, so that a credential that
    /// was rotated is used without a restart. It is read at once, too, when the
    /// cache refuses the one in use.
    #[arg(long, env = "SECRET_REFRESH_S", value_name = "S", default_value = "300", value_parser = seconds)]
    pub secret_refresh_s: Duration,
    /// AWS region. Without it, where the AWS SDK finds one: AWS_DEFAULT_REGION,
    /// the profile, the instance.
    #[arg(long, env = "AWS_REGION", value_name = "REGION", value_parser = not_empty)]
    pub aws_region: Option<String>,
    /// Endpoint of DynamoDB instead of the region's.
    #[arg(long, env = "AWS_ENDPOINT_URL_DYNAMODB", value_name = "URL", value_parser = url)]
    pub dynamodb_endpoint: Option<String>,
    /// Longest that one attempt at a DynamoDB operation may take, in milliseconds; 2 s
    /// is what an operation may take in all. For tables that answer slowly.
    #[arg(long, env = "DYNAMODB_ATTEMPT_TIMEOUT_MS", value_name = "MS", default_value = "500", value_parser = attempt_millis)]
    pub dynamodb_attempt_timeout_ms: Duration,
    /// Endpoint of Secrets Manager instead of the region's.
    #[arg(long, env = "AWS_ENDPOINT_URL_SECRETS_MANAGER", value_name = "URL", value_parser = url)]
    pub secrets_endpoint: Option<String>,
    /// Credentials that the process made itself, for its embedded servers.
    #[arg(skip)]
    pub aws_credentials: Option<EmbeddedCredentials>,
}

/// Credentials of the embedded servers, which take any.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedCredentials;

/// How long the cache keeps what.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cache")]
pub struct CacheSettings {
    /// Longest a look-up in the cache may take, of up to 300 records, before the read
    /// goes to the table, in milliseconds.
    #[arg(long, env = "CACHE_READ_TIMEOUT_MS", value_name = "MS", default_value = "50", value_parser = millis)]
    pub cache_read_timeout_ms: Duration,
    /// Requests to the table that are under way at once for callers' reads. Those
    /// beyond wait up to 250 ms, 16 for each of these; then they are refused.
    /// Writes are not counted.
    #[arg(long, env = "TABLE_READS_AT_ONCE", value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u16).range(4..=4096))]
    pub table_reads_at_once: u16,
    /// How long the cache keeps a membership, in seconds.
    #[arg(long, env = "MEMBERSHIP_TTL_S", value_name = "S", default_value = "60", value_parser = seconds)]
    pub membership_ttl_s: Duration,
    /// How long the cache keeps a user or an organization, in seconds.
    #[arg(long, env = "PROFILE_TTL_S", value_name = "S", default_value = "300", value_parser = seconds)]
    pub profile_ttl_s: Duration,
    /// How long the cache keeps that there is no such user, organization or
    /// membership, in seconds.
    #[arg(long, env = "ABSENT_TTL_S", value_name = "S", default_value = "10", value_parser = seconds)]
    pub absent_ttl_s: Duration,
    /// Whether to follow the table's stream, one replica at a time, so that
    /// changes made past the service are noticed within about a second.
    #[arg(long, env = "STREAM_INVALIDATOR", value_name = "BOOL", default_value = "true", action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub stream_invalidator: bool,
}

/// What is logged, and how.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Log")]
pub struct LogSettings {
    /// What is logged: a level (error, warn, info, debug, trace), or directives
    /// such as `info,account_service=debug`.
    #[arg(long, env = "LOG", value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    pub log: String,
    /// How it is logged, to standard error.
    #[arg(
        long,
        env = "LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

impl CacheSettings {
    /// The settings in the words of the coherence protocol.
    #[must_use]
    pub fn to_coherence(&self) -> crate::coherence::CoherenceSettings {
        crate::coherence::CoherenceSettings {
            cache_read_timeout: self.cache_read_timeout_ms,
            table_reads_at_once: self.table_reads_at_once.into(),
            membership_ttl: self.membership_ttl_s,
            profile_ttl: self.profile_ttl_s,
            absent_ttl: self.absent_ttl_s,
            invalidator: self
                .stream_invalidator
                .then(crate::coherence::InvalidatorTiming::default),
            ..crate::coherence::CoherenceSettings::default()
        }
    }
}

/// The Momento credential for a new secret, from the environment through
/// `lookup`: the JSON of the secret, or `None` if there is no credential.
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

/// An algorithm of a key pair: a verifier that has a shared secret can also sign,
/// too.
fn algorithm(text: &str) -> Result<Algorithm, String> {
    use Algorithm::{HS256, HS384, HS512};
    match text.parse() {
        Ok(HS256 | HS384 | HS512) => Err("shared secrets are not taken".to_owned()),
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
    fn the_secret_of_setup_is_made_of_the_momento_variables() {
        let lookup = |name: &str| (name == "MOMENTO_AUTH_TOKEN").then(|| "t\"".to_owned());
        let secret = momento_secret_from_env(lookup).unwrap();
        assert_eq!(secret.expose_secret(), r#"{"MOMENTO_AUTH_TOKEN":"t\""}"#);
        assert!(momento_secret_from_env(|_| None).is_none());
    }
}
