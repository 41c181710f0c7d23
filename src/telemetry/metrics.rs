//! The metrics: names, labels and descriptions.

use std::time::Duration;

/// What holds the metrics, and why there is none.
pub use metrics_exporter_prometheus::{BuildError as RecorderError, PrometheusHandle as Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

/// Upper bounds of the classes of durations, in seconds: from what the cache
/// takes to the longest deadline.
const DURATION_BUCKETS: [f64; 16] = [
    0.000_25, 0.000_5, 0.001, 0.001_5, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0,
    3.0, 5.0,
];

// What has no label is there from the start, at 0, so that a rate of it shows its
// first event; `labelled` counters and gauges of `each` label begin below.
macro_rules! metrics {
    ($($kind:ident $name:ident = $text:literal, $help:literal;)+) => {
        $(
            #[doc = concat!("`", $text, "`: ", $help, ".")]
            pub const $name: &str = $text;
        )+

        /// Every metric, with what it says.
        pub const ALL: &[(&str, &str)] = &[$(($text, $help)),+];

        fn describe() {
            $(metrics!(@describe $kind $name, $help);)+
        }
    };
    (@describe counter $name:ident, $help:literal) => {
        ::metrics::describe_counter!($name, $help);
        ::metrics::counter!($name).absolute(0);
    };
    (@describe labelled $name:ident, $help:literal) => {
        ::metrics::describe_counter!($name, $help)
    };
    (@describe gauge $name:ident, $help:literal) => {
        ::metrics::describe_gauge!($name, $help);
        ::metrics::gauge!($name).set(0);
    };
    (@describe each $name:ident, $help:literal) => {
        ::metrics::describe_gauge!($name, $help)
    };
    (@describe histogram $name:ident, $help:literal) => {
        ::metrics::describe_histogram!($name, ::metrics::Unit::Seconds, $help)
    };
}

metrics! {
    histogram RPC_DURATION = "account_rpc_duration_seconds",
        "time from a call's arrival to the end of its answer, by rpc and code";
    each RPCS_UNDER_WAY = "account_rpcs_under_way", "calls under way, by rpc";
    labelled CALLS_SHED = "account_calls_shed_total",
        "calls refused because too many were under way, by class (read, change)";
    labelled CALLS_QUEUED = "account_calls_queued_total",
        "calls that waited for their turn, by class (read, change)";
    each CALLS_LIMIT = "account_calls_at_once_limit",
        "calls that may be under way at once, as the load of the processors lets them, by class";
    gauge CONNECTIONS = "account_connections", "connections of clients that are open";
    counter CONNECTIONS_REFUSED = "account_connections_refused_total",
        "connections that were closed, or not authenticated, because too many were open";
    counter CONNECTIONS_EVICTED = "account_connections_evicted_total",
        "connections that were closed to make room for others";
    histogram BACKEND_DURATION = "account_backend_duration_seconds",
        "time that calls to backends took, all attempts together, by backend, operation and outcome";
    labelled CACHE_LOOKUPS = "account_cache_lookups_total",
        "keys that reads looked up in the cache, by result (hit, miss, unusable, failed)";
    labelled RECENT_LOOKUPS = "account_recent_lookups_total",
        "keys that reads with max_staleness looked up in this replica's memory, by result (hit, miss)";
    labelled CACHE_LEASES = "account_cache_leases_total",
        "leases that reads asked for, by result (taken, refused)";
    labelled CACHE_FILLS = "account_cache_fills_total",
        "entries that reads and writes wanted to put into the cache, by result (stored, refused)";
    labelled CACHE_FENCES = "account_cache_fences_total",
        "fences of writes, by step (fence, confirm) and result (placed, failed)";
    labelled WRITES = "account_writes_total",
        "committed writes, by outcome (fenced, without_cache, not_confirmed, unknown)";
    counter CONTENTION = "account_contention_total",
        "times that a write was decided anew because others had changed the same records";
    gauge CACHE_IN_USE = "account_cache_in_use",
        "1 while a generation of the cache is in use, as this replica sees it";
    labelled GENERATION_STEPS = "account_cache_generation_steps_total",
        "steps of the generation switch that this replica saw, by phase";
    each BREAKER_OPEN = "account_cache_breaker_open",
        "1 while reads do not ask the cache, because it does not answer, by look_ups (short, long)";
    counter READS_PAST_CACHE = "account_cache_reads_skipped_total",
        "reads that did not ask the cache, because it does not answer";
    gauge CREDENTIAL_TIME = "account_cache_credential_timestamp_seconds",
        "when the cache's credential that is in use was put into its secret, in seconds since 1970";
    counter CREDENTIALS_REFUSED = "account_cache_credential_refused_total",
        "times that the cache was found to refuse the credential";
    counter TABLE_READS = "account_table_reads_total", "table reads that callers' reads wanted";
    counter TABLE_READS_SHED = "account_table_reads_shed_total",
        "table reads that were refused, because too many waited already";
    gauge INVALIDATOR_ACTIVE = "account_invalidator_active",
        "1 while this replica follows the table's stream";
    gauge INVALIDATOR_LAG = "account_invalidator_lag_seconds",
        "age of the change that the invalidator processed last, by DynamoDB's clock; 0 when caught up";
    counter INVALIDATOR_FENCES = "account_invalidator_fences_total",
        "keys that the invalidator fenced";
    counter CHANGES_LOGGED = "account_changes_logged_total",
        "changes that this replica wrote into the log of changes";
    counter LEFTOVERS_REMOVED = "account_leftovers_removed_total",
        "memberships removed that a deleted user or organization had left";
    counter LEFTOVERS_SKIPPED = "account_leftovers_skipped_total",
        "memberships and tasks that the clean-up could not read or remove, in each pass anew";
    gauge WATCHERS = "account_watchers", "WatchChanges streams that are open";
    gauge TASKS = "account_tasks", "tasks of the runtime that are alive";
}

/// Interval of measuring the gauges of the process.
const LOOK_PAUSE: Duration = Duration::from_secs(5);

/// Measures the gauges of the process at an interval. Never ends.
pub async fn run_upkeep() {
    let runtime = tokio::runtime::Handle::current().metrics();
    loop {
        #[expect(clippy::cast_precision_loss, reason = "tasks are few")]
        ::metrics::gauge!(TASKS).set(runtime.num_alive_tasks() as f64);
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Records metrics from now on; returns what renders them for Prometheus.
///
/// # Errors
/// Metrics were recorded before.
pub fn record_metrics() -> Result<Recorder, RecorderError> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &DURATION_BUCKETS)?
        .install_recorder()?;
    describe();
    begin();
    Ok(recorder)
}

/// Counters with labels begin at 0, too.
fn begin() {
    let labels: [(&'static str, &'static str, &[&'static str]); 8] = [
        (CALLS_SHED, "class", &["read", "change"]),
        (CALLS_QUEUED, "class", &["read", "change"]),
        (
            CACHE_LOOKUPS,
            "result",
            &["hit", "miss", "unusable", "failed"],
        ),
        (RECENT_LOOKUPS, "result", &["hit", "miss"]),
        (CACHE_LEASES, "result", &["taken", "refused"]),
        (CACHE_FILLS, "result", &["stored", "refused"]),
        (
            WRITES,
            "outcome",
            &["fenced", "without_cache", "not_confirmed", "unknown"],
        ),
        (GENERATION_STEPS, "phase", &["ON", "WARM", "READY"]),
    ];
    for (name, label, values) in labels {
        for value in values {
            ::metrics::counter!(name, label => *value).absolute(0);
        }
    }
    for look_ups in ["short", "long"] {
        ::metrics::gauge!(BREAKER_OPEN, "look_ups" => look_ups).set(0);
    }
    for step in ["fence", "confirm"] {
        for result in ["placed", "failed"] {
            ::metrics::counter!(CACHE_FENCES, "step" => step, "result" => result).absolute(0);
        }
    }
}
