//! Logging and metrics.

use std::net::SocketAddr;

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSettings};

/// Starts logging to standard error. Does nothing if it was started before.
pub fn start(settings: &LogSettings) {
    // The embedded DynamoDB warns of every answer that is an error, also of
    // those that are asked for: a missing table, a failed condition. The AWS
    // SDK warns of every place where it finds no region or credentials; what
    // comes of that is told once, by whoever needs them.
    let filter = EnvFilter::new(format!("dynoxide=error,aws_config=error,{}", settings.log));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match settings.log_format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
}

/// Gauge: 1 while a generation of the cache is in use, as this replica sees it.
pub const CACHE_IN_USE: &str = "account_cache_in_use";
/// Gauge: 1 while this replica follows the table's stream.
pub const INVALIDATOR_ACTIVE: &str = "account_invalidator_active";
/// Gauge, seconds: age of the change that the invalidator processed last, by
/// DynamoDB's clock; 0 when there was none to process.
pub const INVALIDATOR_LAG: &str = "account_invalidator_lag_seconds";
/// Counter: keys that the invalidator fenced.
pub const INVALIDATOR_FENCES: &str = "account_invalidator_fences_total";
/// Counter: changes that this replica wrote into the log of changes.
pub const CHANGES_LOGGED: &str = "account_changes_logged_total";
/// Counter: memberships removed that a deleted user or organization had left.
pub const LEFTOVERS_REMOVED: &str = "account_leftovers_removed_total";
/// Gauge: WatchChanges streams that are open in this replica.
pub const WATCHERS: &str = "account_watchers";
/// Gauge, seconds since 1970: when the cache's credential that is in use was read.
pub const CREDENTIAL_TIME: &str = "account_cache_credential_timestamp_seconds";
/// Counter: times that the cache was found to refuse the credential.
pub const CREDENTIALS_REFUSED: &str = "account_cache_credential_refused_total";
/// Gauge: 1 while reads do not ask the cache, because it does not answer.
pub const BREAKER_OPEN: &str = "account_cache_breaker_open";
/// Counter: reads that did not ask the cache for that reason.
pub const READS_PAST_CACHE: &str = "account_cache_reads_skipped_total";
/// Counter: table reads that callers' reads wanted.
pub const TABLE_READS: &str = "account_table_reads_total";
/// Counter: those of them that were refused, because too many waited already.
pub const TABLE_READS_SHED: &str = "account_table_reads_shed_total";

/// Serves metrics for Prometheus over HTTP, on any path.
///
/// # Errors
/// The address cannot be listened on, or metrics were started before.
pub fn start_metrics(addr: SocketAddr) -> Result<(), BuildError> {
    PrometheusBuilder::new()
        .with_http_listener(addr)
        .install()?;
    metrics::describe_gauge!(
        CACHE_IN_USE,
        "1 while a generation of the cache is in use, as this replica sees it"
    );
    metrics::describe_gauge!(
        INVALIDATOR_ACTIVE,
        "1 while this replica follows the table's stream"
    );
    metrics::describe_gauge!(
        INVALIDATOR_LAG,
        metrics::Unit::Seconds,
        "age of the change that was processed last; 0 when there was none"
    );
    metrics::describe_counter!(INVALIDATOR_FENCES, "keys that the invalidator fenced");
    metrics::describe_counter!(
        CHANGES_LOGGED,
        "changes that this replica wrote into the log of changes"
    );
    metrics::describe_counter!(
        LEFTOVERS_REMOVED,
        "memberships removed that a deleted user or organization had left"
    );
    metrics::describe_gauge!(
        CREDENTIAL_TIME,
        metrics::Unit::Seconds,
        "when the cache's credential that is in use was read, since 1970"
    );
    metrics::describe_counter!(
        CREDENTIALS_REFUSED,
        "times that the cache was found to refuse the credential"
    );
    metrics::describe_gauge!(
        BREAKER_OPEN,
        "1 while reads do not ask the cache, because it does not answer"
    );
    metrics::describe_counter!(
        READS_PAST_CACHE,
        "reads that did not ask the cache, because it does not answer"
    );
    metrics::describe_counter!(TABLE_READS, "table reads that callers' reads wanted");
    metrics::describe_counter!(
        TABLE_READS_SHED,
        "table reads that were refused, because too many waited already"
    );
    metrics::describe_gauge!(WATCHERS, "WatchChanges streams that are open");
    Ok(())
}
