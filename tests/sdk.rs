//! Feast's own SDK on what this program has written, and this program on what the SDK has written; and the way of
//! a newcomer, as the README tells it.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Repo, Server};

/// Runs the binary in `repo`; what it printed.
fn run(repo: &Path, words: &[&str]) -> String {
    let output =
        Command::new(common::binary()).args(words).current_dir(repo).env("TZ", "UTC").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs Python with the SDK; what it printed.
fn python(repo: &Path, script: &str) -> String {
    let output = Command::new(common::python())
        .args(["-W", "ignore", "-c", script])
        .current_dir(repo)
        .env("TZ", "UTC")
        .env("FEAST_NO_PROGRESS", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn now() -> String {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    feast_prefork::text::when::python_text(i128::from(seconds) * 1_000_000_000, 0)[..19].replace(' ', "T")
}

const READ: &str = r#"{"feature_service":"driver_activity_v3","entities":{"driver_id":[1001]}}"#;

#[test]
fn the_way_of_a_newcomer() {
    let dir = tempfile::tempdir().unwrap();
    let text = run(dir.path(), &["init", "demo"]);
    assert!(text.contains("Creating a new Feast repository in "), "{text}");
    let repo = dir.path().join("demo/feature_repo");
    let planned = run(&repo, &["plan"]);
    assert!(!repo.join("data/registry.db").exists(), "planning leaves nothing behind");
    let applied = run(&repo, &["apply"]);
    assert_eq!(planned.replace("Planned", "Applying"), applied);
    for line in [
        "No project found in the repository. Using project name demo defined in feature_store.yaml",
        "Applying changes for project demo",
        "Created project demo",
        "Created entity driver",
        "Created feature view driver_hourly_stats",
        "Created feature service driver_activity_v2",
        "Created sqlite table demo_driver_hourly_stats_fresh",
    ] {
        assert!(applied.lines().any(|found| found == line), "{line}: {applied}");
    }
    let again = run(&repo, &["apply"]);
    assert!(
        again.contains("No changes to registry") && again.contains("No changes to infrastructure"),
        "{again}"
    );
    let text = run(&repo, &["materialize-incremental", &now()]);
    assert!(text.contains("Materializing 2 feature views to ") && text.contains("5 entities"), "{text}");
    let table = run(
        &repo,
        &["get-online-features", "-e", "driver_id=1001", "-f", "driver_hourly_stats:avg_daily_trips"],
    );
    assert_eq!(table, "driver_id    avg_daily_trips\n1001         100\n");
    assert!(run(&repo, &["feature-views", "list"]).contains("AVAILABLE_ONLINE"));

    let server = Server::start(Repo { dir: copy(&repo) }, &["--no-access-log"]);
    let mut client = server.client();
    assert!(client.post("/get-online-features", READ).text().contains("\"values\":[100]"));
    let push = r#"{"push_source_name":"driver_stats_push_source","df":{"driver_id":[1001],"event_timestamp":["2030-01-01T00:00:00Z"],
        "created":["2030-01-01T00:00:00Z"],"conv_rate":[1.0],"acc_rate":[1.0],"avg_daily_trips":[1000]}}"#;
    assert_eq!(client.post("/push", push).status, 200);
    assert!(client.post("/get-online-features", READ).text().contains("\"values\":[1000]"));
    drop(server);

    run(&repo, &["teardown"]);
    assert!(!repo.join("data/online_store.db").exists());
    assert_eq!(run(&repo, &["feature-views", "list"]), "NAME    ENTITIES    TYPE    ENABLED    STATE\n");
    assert!(run(&repo, &["apply"]).contains("Created sqlite table demo_driver_hourly_stats\n"));
}

fn copy(repo: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    common::copy_tree(repo, dir.path());
    dir
}

#[test]
fn mistakes_on_the_command_line_are_one_line() {
    let repo = Repo::copy_of("driver_stats");
    for (words, code, text) in [
        (
            &["materialize"][..],
            2,
            "START_TS and END_TS are required unless --disable-event-timestamp is used",
        ),
        (
            &["materialize", "2025-01-01", "2025-01-02", "--disable-event-timestamp"],
            2,
            "Cannot specify START_TS or END_TS when --disable-event-timestamp is used",
        ),
        (
            &["materialize", "2025-03-02", "2025-03-01"],
            1,
            "The given start_date 2025-03-02 00:00:00+00:00 is greater than the given end_date 2025-03-01 \
             00:00:00+00:00.",
        ),
        (&["materialize", "2025-03-02", "garbage"], 1, "Unknown string format: garbage"),
        (&["materialize-incremental", "garbage"], 1, "Invalid isoformat string: 'garbage'"),
        (&["materialize-incremental"], 2, "END_TS"),
        (
            &["materialize", "2025-03-01", "2025-03-02", "-v", "nope"],
            1,
            "Feature view nope does not exist in project driver_stats",
        ),
        (&["init", "-x"], 2, "unexpected argument"),
        (&["init", "a b"], 2, "alphanumeric values"),
    ] {
        let output = Command::new(common::binary()).args(words).current_dir(repo.path()).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {shown}");
        assert!(shown.contains(text), "{words:?}: {shown}");
    }
    // Definitions in Python need Feast's command.
    let output = Command::new(common::binary())
        .arg("apply")
        .current_dir(repo.path())
        .env("FEAST_PREFORK_FEAST", "no-such-command")
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(shown.contains("pip install feast") && shown.contains("definitions.yaml"), "{shown}");
}

#[test]
fn the_sdk_uses_what_we_wrote_and_we_use_what_it_wrote() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &["init", "demo"]);
    let repo = dir.path().join("demo/feature_repo");
    run(&repo, &["apply"]);
    run(&repo, &["materialize-incremental", &now()]);
    let seen = python(
        &repo,
        r#"
from feast import FeatureStore
store = FeatureStore(".")
print(sorted(view.name for view in store.list_feature_views()))
view = store.get_feature_view("driver_hourly_stats")
print([(field.name, str(field.dtype)) for field in view.features], view.ttl, view.tags, view.entities)
print(len(view.materialization_intervals), view.batch_source.path, view.batch_source.created_timestamp_column)
print(store.get_feature_view("driver_hourly_stats_fresh").stream_source.name)
print(store.get_entity("driver").join_key, store.get_entity("driver").value_type)
print([projection.name for projection in store.get_feature_service("driver_activity_v2").feature_view_projections])
print(store.get_online_features(["driver_hourly_stats:avg_daily_trips"], [{"driver_id": 1001}]).to_dict())
"#,
    );
    assert_eq!(
        seen,
        "['driver_hourly_stats', 'driver_hourly_stats_fresh']\n\
         [('conv_rate', 'Float32'), ('acc_rate', 'Float32'), ('avg_daily_trips', 'Int64')] 1 day, 0:00:00 {'team': \
         'driver_performance'} ['driver']\n\
         1 data/driver_stats.parquet created\n\
         driver_stats_push_source\n\
         driver_id ValueType.INT64\n\
         ['driver_hourly_stats']\n\
         {'driver_id': [1001], 'avg_daily_trips': [100]}\n"
    );
    // It writes: a push, rows, a materialization, one more view.
    python(
        &repo,
        r#"
import datetime, pandas as pd
from feast import FeatureStore, FeatureView, Field
from feast.types import Int64
store = FeatureStore(".")
at = pd.Timestamp("2031-01-01T00:00:00Z")
store.push("driver_stats_push_source", pd.DataFrame({"driver_id": [1001], "event_timestamp": [at], "created": [at],
    "conv_rate": [0.5], "acc_rate": [0.5], "avg_daily_trips": [4242]}))
view = store.get_feature_view("driver_hourly_stats")
store.apply([FeatureView(name="sdk_view", entities=[store.get_entity("driver")], schema=[Field(name="avg_daily_trips", dtype=Int64)],
    source=view.batch_source)])
store.materialize(datetime.datetime(2020, 1, 1), datetime.datetime.utcnow(), feature_views=["sdk_view"])
"#,
    );
    let server = Server::start(Repo { dir: copy(&repo) }, &["--no-access-log"]);
    let mut client = server.client();
    assert!(client.post("/get-online-features", READ).text().contains("4242"));
    let read = r#"{"features":["sdk_view:avg_daily_trips"],"entities":{"driver_id":[1002]}}"#;
    assert!(client.post("/get-online-features", read).text().contains("[237]"));
    // Its view is materialized by us as well, and what it wrote into the registry is still there.
    let again = r#"{"end_ts":"2031-01-01","feature_views":["sdk_view"]}"#;
    assert_eq!(client.post("/materialize-incremental", again).status, 200);
    let seen = python(
        server.repo.path(),
        r#"
from feast import FeatureStore
store = FeatureStore(".")
print(len(store.get_feature_view("sdk_view").materialization_intervals), store.get_feature_view("sdk_view").state.name)
"#,
    );
    assert_eq!(seen, "2 AVAILABLE_ONLINE\n");
    // What we appended to its file, pandas reads.
    let push = r#"{"push_source_name":"driver_stats_push_source","to":"offline","df":{"driver_id":[7777],
        "event_timestamp":["2030-01-01T00:00:00Z"],"created":["2030-01-01T00:00:00"],"conv_rate":[1.0],"acc_rate":[null],
        "avg_daily_trips":[9007199254740993]}}"#;
    assert_eq!(client.post("/push", push).status, 200);
    let seen = python(
        server.repo.path(),
        r#"
import pandas as pd
frame = pd.read_parquet("data/driver_stats.parquet")
row = frame[frame.driver_id == 7777].iloc[0]
print(len(frame), row.avg_daily_trips, str(frame.dtypes["event_timestamp"]), row.acc_rate != row.acc_rate)
"#,
    );
    assert_eq!(seen, "1801 9007199254740993 datetime64[ns, UTC] True\n");
}
