//! The metrics: names, labels and descriptions.

use std::time::Duration;

/// The recorder of the metrics, and its error.
pub use metrics_exporter_prometheus::{BuildError as RecorderError, PrometheusHandle as Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

/// Upper bounds of the buckets of durations, in seconds: from the time of a look-up in the
/// cache to the longest deadline.
const DURATION_BUCKETS: [f64; 16] = [
    0.000_25, 0.000_5, 0.001, 0.001_5, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0,
    3.0, 5.0,
];

// A metric without labels exists from the start, at 0, so that its rate shows the first event.
// Metrics with labels (`labelled`: counters, `each`: gauges) are set to 0 in `begin`.
macro_rules! metrics {
    ($($kind:ident $name:ident = $text:literal, $help:literal;)+) => {
        $(
            #[doc = concat!("`", $text, "`: ", $help, ".")]
            pub const $name: &str = $text;
        )+

        /// Every metric, with its description.
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
        "time from a call's arrival to the end of its response, by rpc and code";
    each RPCS_UNDER_WAY = "account_rpcs_under_way", "running calls, by rpc";
    labelled CALLS_SHED = "account_calls_shed_total",
        "calls rejected because too many were running, by class (read, change)";
    labelled CALLS_QUEUED = "account_calls_queued_total",
        "calls that waited for a permit, by class (read, change)";
    each CALLS_LIMIT = "account_calls_at_once_limit",
        "slots for concurrent calls, fewer under CPU load, by class";
    gauge POLICY_IN_USE = "account_policy_in_use",
        "1 if the content of the policy file is in use, 0 while it is rejected or cannot be read";
    labelled EXT_AUTHZ_DECISIONS = "account_ext_authz_decisions_total",
        "decisions about requests of Envoy, by route, mode (enforced, dry_run) and outcome (ALLOWED, FAILED, or the reason of the denial)";
    gauge EXT_AUTHZ_IN_USE = "account_ext_authz_in_use",
        "1 if the content of the file with the routes of Envoy is in use, 0 while it is rejected or cannot be read, and without a file";
    gauge CONNECTIONS = "account_connections", "open connections of clients";
    counter CONNECTIONS_REFUSED = "account_connections_refused_total",
        "connections that were closed, or not authenticated, because too many were open";
    counter CONNECTIONS_EVICTED = "account_connections_evicted_total",
        "connections that were closed to make room for others";
    histogram BACKEND_DURATION = "account_backend_duration_seconds",
        "duration of calls to backends, with all attempts, by backend, operation and outcome";
    labelled CACHE_LOOKUPS = "account_cache_lookups_total",
        "keys that reads looked up in the cache, by result (hit, miss, unusable, failed)";
    labelled NEAR_LOOKUPS = "account_near_cache_lookups_total",
        "keys that reads looked up in this replica's memory, by result (hit, miss)";
    gauge NEAR_CACHE_BYTES = "account_near_cache_bytes",
        "approximate bytes of the records in this replica's memory";
    gauge REPLICA_ACTIVE = "account_replica_active",
        "1 while this replica may serve reads from its memory without a staleness bound";
    gauge REPLICAS_LISTED = "account_replicas_listed",
        "replicas in the directory, in this replica's view";
    labelled REPLICA_FENCES = "account_replica_fences_total",
        "fences that writes sent to other replicas, by result (acknowledged, failed)";
    counter REPLICAS_EVICTED = "account_replicas_evicted_total",
        "replicas that this replica evicted, because they did not respond";
    labelled CACHE_OPERATIONS = "account_cache_operations_total",
        "operations of the cache as Momento counts them, of items up to 1 kB, by use (look_up, fill, fence)";
    labelled CACHE_OPERATIONS_LACKED = "account_cache_operations_lacked_total",
        "operations that reads and fills did without, because too few were left in the budget, by use";
    gauge CACHE_OPERATIONS_SHARE = "account_cache_operations_share",
        "operations of the cache that this replica may use in a second; 0: unlimited";
    labelled CACHE_LEASES = "account_cache_leases_total",
        "leases that reads requested, by result (taken, refused)";
    labelled CACHE_FILLS = "account_cache_fills_total",
        "entries that reads and writes sent to the cache, by result (stored, refused)";
    labelled CACHE_FENCES = "account_cache_fences_total",
        "fences of writes, by step (fence, confirm) and result (placed, failed)";
    labelled WRITES = "account_writes_total",
        "writes whose commit was sent and not refused, by outcome (fenced, without_cache, not_confirmed, unknown)";
    counter CONTENTION = "account_contention_total",
        "writes that were decided again because another write had changed the same records";
    gauge CACHE_IN_USE = "account_cache_in_use",
        "1 while a generation of the cache is in use, in this replica's view";
    labelled GENERATION_STEPS = "account_cache_generation_steps_total",
        "steps of the generation switch that this replica saw, by phase";
    each BREAKER_OPEN = "account_cache_breaker_open",
        "1 while reads skip the cache, because it does not respond, by look_ups (short, long)";
    counter READS_PAST_CACHE = "account_cache_reads_skipped_total",
        "reads that skipped the cache, because it did not respond";
    gauge CREDENTIAL_TIME = "account_cache_credential_timestamp_seconds",
        "time at which the cache credential in use was put into its secret, in seconds since 1970";
    counter CREDENTIALS_REFUSED = "account_cache_credential_refused_total",
        "rejections of the credential by the cache";
    counter TABLE_READS = "account_table_reads_total", "table reads that callers' reads requested";
    counter TABLE_READS_SHED = "account_table_reads_shed_total",
        "table reads rejected because too many waited, or after waiting too long";
    gauge INVALIDATOR_ACTIVE = "account_invalidator_active",
        "1 while this replica follows the table's stream";
    gauge INVALIDATOR_LAG = "account_invalidator_lag_seconds",
        "age of the invalidator's last processed change, by DynamoDB's clock; 0 when caught up";
    counter INVALIDATOR_FENCES = "account_invalidator_fences_total",
        "cache entries that contradicted a change of the table's stream";
    counter CHANGES_LOGGED = "account_changes_logged_total",
        "changes that this replica wrote into the change log";
    counter PURGED = "account_purged_total",
        "deleted users and organizations that were purged, because they could no longer be undeleted";
    counter ERASED = "account_erasures_done_total", "erasures of users that were completed";
    counter LEFTOVERS_REMOVED = "account_leftovers_removed_total",
        "removed memberships of deleted users and organizations";
    counter LEFTOVERS_SKIPPED = "account_leftovers_skipped_total",
        "memberships and tasks that the clean-up could not read or remove, counted in each pass";
    gauge WATCHERS = "account_watchers", "open WatchChanges streams";
    gauge TASKS = "account_tasks", "live tasks of the runtime";
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

/// Starts to record metrics. Returns the handle that renders them for Prometheus.
///
/// # Errors
/// Metrics are recorded already.
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
    let labels: [(&'static str, &'static str, &[&'static str]); 11] = [
        (CALLS_SHED, "class", &["read", "change"]),
        (CALLS_QUEUED, "class", &["read", "change"]),
        (
            CACHE_LOOKUPS,
            "result",
            &["hit", "miss", "unusable", "failed"],
        ),
        (NEAR_LOOKUPS, "result", &["hit", "miss"]),
        (CACHE_OPERATIONS, "use", &["look_up", "fill", "fence"]),
        (
            CACHE_OPERATIONS_LACKED,
            "use",
            &["look_up", "fill", "fence"],
        ),
        (REPLICA_FENCES, "result", &["acknowledged", "failed"]),
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
    // The one outcome without a route of the file.
    let (mode, outcome) = ("enforced", "ROUTE_NOT_CONFIGURED");
    ::metrics::counter!(EXT_AUTHZ_DECISIONS, "route" => "", "mode" => mode, "outcome" => outcome)
        .absolute(0);
    for look_ups in ["short", "long"] {
        ::metrics::gauge!(BREAKER_OPEN, "look_ups" => look_ups).set(0);
    }
    for step in ["fence", "confirm"] {
        for result in ["placed", "failed"] {
            ::metrics::counter!(CACHE_FENCES, "step" => step, "result" => result).absolute(0);
        }
    }
}
