//! Settings. Each is a flag with an environment variable and, where useful, a default.
//! Secrets are not settings: they come from Secrets Manager.

mod changes;
mod client;
mod records;
mod resources;
mod server;
mod values;

use std::{ffi::OsStr, time::Duration};

use clap::{
    Arg, ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    builder::{BoolishValueParser, Resettable},
    error::{ContextKind, ContextValue, ErrorKind},
};
use secrecy::SecretString;

pub use self::changes::ChangesSettings;
pub use self::client::{ConnectionSettings, OutputFormat, ReadSettings, WriteSettings};
pub use self::records::{ExportSettings, ImportSettings};
pub use self::resources::{
    CreateCommand, DeleteCommand, GetCommand, ListCommand, ListSettings, MemberArg, ProfileFields,
    ResourceCommand, ResumeCommand, RoleArg, SuspendCommand, UserArg, VersionArg, Writing,
};
pub use self::server::{CallerSettings, PeerSettings, ServerSettings, TraceSettings};
use self::values::{
    attempt_millis, cache_name, host_and_port, log_filter, millis, not_empty, seconds, table_name,
    url,
};
use crate::telemetry::LogFormat;

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
        let mut command = without_empty_variables(Self::command());
        command.build();
        let matches = command.clone().try_get_matches();
        let cli = matches.and_then(|matches| Self::from_arg_matches(&matches));
        cli.map_err(|error| with_variable(error, &command))
    }
}

/// The environment variable of the argument that is shown like this.
fn variable_of<'a>(command: &'a clap::Command, shown: &str) -> Option<&'a OsStr> {
    let mut args = command.get_arguments();
    let found = args.find(|arg| arg.to_string() == shown);
    let mut subcommands = command.get_subcommands();
    found
        .and_then(Arg::get_env)
        .or_else(|| subcommands.find_map(|command| variable_of(command, shown)))
}

fn without_empty_variables(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| match arg.get_env() {
        Some(name) if is_empty_variable(name) => arg.env(Resettable::Reset),
        _ => arg,
    });
    command.mut_subcommands(without_empty_variables)
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
    let Some(name) = variable_of(command, shown) else {
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
    /// Count the memberships of all users and organizations, and replace the counts that
    /// CountOrganizationMembers and CountUserOrganizations return: once after an upgrade
    /// from a version without counts, and after changes may have been missed.
    Recount(RecountSettings),
    /// Fence the changed records of a DynamoDB stream event, which is read from
    /// standard input in the form that Lambda triggers receive.
    Invalidate(ServeSettings),
    /// Write all changes to standard output, as CloudEvents in lines of JSON, from
    /// the position in a file on.
    Changes(ChangesSettings),
    /// Exit with 0 if the server at an address is serving, else with 1.
    Healthcheck(HealthcheckSettings),
    /// Write all users, organizations and memberships to standard output, in lines of
    /// JSON that `import` reads.
    Export(ExportSettings),
    /// Import users, organizations and memberships. Records that exist already stay as
    /// they are: an import that was interrupted can be repeated.
    Import(ImportSettings),
    /// A command for people.
    #[command(flatten)]
    Resource(ResourceCommand),
    /// Print the script that completes commands in a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
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
    pub data_dir: Option<std::path::PathBuf>,
    /// Import the records of this file after the start, as `export` writes them, and print
    /// `seeded` then.
    #[arg(long, value_name = "FILE")]
    pub seed: Option<std::path::PathBuf>,
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

/// Settings of `recount`.
#[derive(Debug, Clone, Args)]
pub struct RecountSettings {
    /// The table.
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
    /// Connections to Momento for writes. Look-ups have one more.
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

/// Time to live of a record in the memory of a replica while the table's stream is followed.
const NEAR_TTL: Duration = Duration::from_secs(3600);

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
    /// Operations of Momento that all replicas together may use in a second, such as its
    /// quota. Further reads go to the table; fences may use more. 0: unlimited.
    #[arg(
        long,
        env = "CACHE_OPERATIONS_PER_SECOND",
        value_name = "COUNT",
        default_value_t = 100
    )]
    pub cache_operations_per_second: u32,
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
    /// Capacity of this replica's memory for records, in MiB.
    #[arg(long, env = "NEAR_CACHE_MIB", value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=65_535))]
    pub near_cache_mib: u16,
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
            cache_operations_per_second: Some(self.cache_operations_per_second)
                .filter(|count| *count > 0),
            near_cache_bytes: u64::from(self.near_cache_mib) * 1024 * 1024,
            near_ttl: self.stream_invalidator.then_some(NEAR_TTL),
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
