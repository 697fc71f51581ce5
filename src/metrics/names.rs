//! Every metric of the server in one table: names, labels, bounds and help texts.
//!
//! The names of the first part are Feast 0.67's, declared in its order; those of the second part are this
//! server's own and begin with `feast_prefork_`. `docs/metrics.md` says when each one changes.

/// What a metric measures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind<'m> {
    /// Only goes up.
    Counter,
    /// Goes up and down; the mode says how the values of several processes become one.
    Gauge(&'static str),
    /// Counts by upper bounds, ascending, without the infinite one.
    Histogram(&'m [f64]),
}

/// A metric as it is declared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric<'m> {
    /// Name; that of a counter without its `_total`.
    pub family: &'m str,
    /// What it measures.
    pub kind: Kind<'m>,
    /// Names of its labels, in the order in which values are given.
    pub labels: &'m [&'m str],
    /// Help text.
    pub help: &'m str,
}

const LATENCY: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const ROWS: &[f64] = &[1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0];
const STORE_READ: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

const RUN: &[f64] = &[1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];
const OFFLINE: &[f64] = &[0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
const OFFLINE_SIZE: &[f64] = &[100.0, 1000.0, 10_000.0, 100_000.0, 500_000.0, 1e6, 5e6];

const fn metric(
    family: &'static str,
    kind: Kind<'static>,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric<'static> {
    Metric { family, kind, labels, help }
}

/// Share of one processor, in percent.
pub const CPU: Metric<'static> = metric(
    "feast_feature_server_cpu_usage",
    Kind::Gauge("liveall"),
    &[],
    "CPU usage percentage of the Feast feature server process",
);
/// Share of the machine's memory, in percent.
pub const MEMORY: Metric<'static> = metric(
    "feast_feature_server_memory_usage",
    Kind::Gauge("liveall"),
    &[],
    "Memory usage percentage of the Feast feature server process",
);
/// Requests that reached a handler.
pub const REQUESTS: Metric<'static> = metric(
    "feast_feature_server_request",
    Kind::Counter,
    &["endpoint", "status"],
    "Total number of requests to the Feast feature server",
);
/// Time in the handler.
pub const REQUEST_LATENCY: Metric<'static> = metric(
    "feast_feature_server_request_latency_seconds",
    Kind::Histogram(LATENCY),
    &["endpoint", "feature_count", "feature_view_count"],
    "Latency of requests to the Feast feature server in seconds",
);
/// Online reads whose features were found.
pub const ONLINE_REQUESTS: Metric<'static> =
    metric("feast_online_features_request", Kind::Counter, &[], "Total online feature retrieval requests");
/// Rows of online reads.
pub const ENTITY_COUNT: Metric<'static> = metric(
    "feast_online_features_entity_count",
    Kind::Histogram(ROWS),
    &[],
    "Number of entity rows per online feature request",
);
/// Values that were there, and that were not.
pub const STATUSES: Metric<'static> = metric(
    "feast_online_features_status",
    Kind::Counter,
    &["feature_view", "status"],
    "Count of individual feature values by retrieval status per feature view",
);
/// Time in the online store.
pub const STORE_READS: Metric<'static> = metric(
    "feast_feature_server_online_store_read_duration_seconds",
    Kind::Histogram(STORE_READ),
    &[],
    "Duration of the online store read phase in seconds (covers all table reads including parallel async)",
);
/// Age of what was materialized last.
pub const FRESHNESS: Metric<'static> = metric(
    "feast_feature_freshness_seconds",
    Kind::Gauge("max"),
    &["feature_view", "project"],
    "Seconds since the most recent materialization end time per feature view",
);

/// Pushes that were taken.
pub const PUSHES: Metric<'static> = metric(
    "feast_push_request",
    Kind::Counter,
    &["push_source", "mode"],
    "Total push requests to the feature store",
);
/// Ends of materializations.
pub const MATERIALIZATIONS: Metric<'static> = metric(
    "feast_materialization_result",
    Kind::Counter,
    &["feature_view", "status"],
    "Total materialization runs per feature view",
);
/// Time of materializations.
pub const MATERIALIZATION_DURATION: Metric<'static> = metric(
    "feast_materialization_duration_seconds",
    Kind::Histogram(RUN),
    &["feature_view"],
    "Duration of materialization per feature view in seconds",
);
/// Reads of the offline store.
pub const OFFLINE_REQUESTS: Metric<'static> = metric(
    "feast_offline_store_request",
    Kind::Counter,
    &["method", "status"],
    "Total offline store retrieval requests",
);
/// Time of those.
pub const OFFLINE_LATENCY: Metric<'static> = metric(
    "feast_offline_store_request_latency_seconds",
    Kind::Histogram(OFFLINE),
    &["method"],
    "Latency of offline store retrieval operations in seconds",
);
/// Their rows.
pub const OFFLINE_ROWS: Metric<'static> = metric(
    "feast_offline_store_row_count",
    Kind::Histogram(OFFLINE_SIZE),
    &["method"],
    "Number of rows returned by offline store retrieval",
);

/// Offline rows that wait for their batch.
pub const SPOOL_ROWS: Metric<'static> = metric(
    "feast_prefork_offline_rows_waiting",
    Kind::Gauge("livesum"),
    &[],
    "Rows of offline pushes that wait for their batch",
);
/// Offline rows that were written in batches.
pub const FLUSHED_ROWS: Metric<'static> = metric(
    "feast_prefork_offline_rows_written",
    Kind::Counter,
    &[],
    "Rows of offline pushes written in batches",
);
/// Offline pushes that were set aside.
pub const REJECTED_PUSHES: Metric<'static> = metric(
    "feast_prefork_offline_pushes_rejected",
    Kind::Counter,
    &[],
    "Offline pushes that could not be written and were set aside",
);

/// Requests parsed by workers, whatever they asked for.
pub const HTTP_REQUESTS: Metric<'static> = metric(
    "feast_prefork_http_requests",
    Kind::Counter,
    &[],
    "HTTP requests parsed, on any path and with any outcome",
);
/// Connections accepted by workers.
pub const CONNECTIONS_ACCEPTED: Metric<'static> =
    metric("feast_prefork_connections_accepted", Kind::Counter, &[], "Client connections accepted");
/// Open connections of each worker: how evenly they are spread.
pub const CONNECTIONS: Metric<'static> =
    metric("feast_prefork_connections", Kind::Gauge("liveall"), &[], "Open client connections of a worker");
/// Requests of each worker that wait for the registry or the store.
pub const WAITING: Metric<'static> = metric(
    "feast_prefork_requests_waiting",
    Kind::Gauge("liveall"),
    &[],
    "Requests of a worker that wait for the registry or the online store",
);
/// Time since a worker's definitions were last compared with the registry file.
pub const REGISTRY_AGE: Metric<'static> = metric(
    "feast_prefork_registry_age_seconds",
    Kind::Gauge("liveall"),
    &[],
    "Seconds since a worker last compared its definitions with the registry file",
);
/// Registry files that could not be used.
pub const REGISTRY_ERRORS: Metric<'static> = metric(
    "feast_prefork_registry_refresh_errors",
    Kind::Counter,
    &[],
    "Registry files that could not be read or decoded",
);
/// Reads of the store that failed.
pub const STORE_ERRORS: Metric<'static> =
    metric("feast_prefork_online_store_errors", Kind::Counter, &[], "Requests failed by the online store");
/// Workers by what they do.
pub const WORKERS: Metric<'static> =
    metric("feast_prefork_workers", Kind::Gauge("livesum"), &["state"], "Worker processes by state");
/// Ends of workers by reason.
pub const WORKER_EXITS: Metric<'static> = metric(
    "feast_prefork_worker_exits",
    Kind::Counter,
    &["reason"],
    "Worker processes that ended, by reason",
);
/// Version of the running binary.
pub const BUILD: Metric<'static> =
    metric("feast_prefork_build_info", Kind::Gauge("livemax"), &["version"], "Always 1");
