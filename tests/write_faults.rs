//! The write side when much happens at once, and when processes die.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{eventually, Repo, Server};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

/// A push of one row of `driver` to the offline store, or to both.
fn body(driver: i64, to: &str) -> String {
    format!(
        r#"{{"push_source_name":"driver_stats_push_source","to":"{to}","df":{{"driver_id":[{driver}],
        "event_timestamp":["2023-02-25T10:00:00Z"],"created":["2023-02-25 10:00:05"],"conv_rate":[0.5],
        "acc_rate":[0.75],"avg_daily_trips":[{driver}],"string_feature":["pushed"]}}}}"#
    )
}

/// Every driver in the file, as often as it is there.
fn drivers(repo: &Path) -> Vec<i64> {
    use arrow_array::cast::AsArray;
    let file = fs::File::open(repo.join("data/driver_stats.parquet")).unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let mut found = Vec::new();
    for batch in reader.build().unwrap() {
        let batch = batch.unwrap();
        let column = batch.column_by_name("driver_id").unwrap();
        let ids = column.as_primitive::<arrow_array::types::Int64Type>();
        found.extend(ids.iter().flatten());
    }
    found
}

fn pushed(repo: &Path) -> Vec<i64> {
    let mut found: Vec<i64> = drivers(repo).into_iter().filter(|driver| *driver >= 10_000).collect();
    found.sort_unstable();
    found
}

fn batching(rows: usize, seconds: u64) -> Repo {
    let repo = Repo::copy_of("driver_stats");
    let path = repo.path().join("feature_store.yaml");
    let yaml = fs::read_to_string(&path).unwrap();
    let block = format!(
        "feature_server:\n    type: local\n    offline_push_batching_enabled: true\n    \
         offline_push_batching_batch_size: {rows}\n    offline_push_batching_batch_interval_seconds: {seconds}\n"
    );
    fs::write(&path, format!("{yaml}{block}")).unwrap();
    repo
}

#[test]
fn four_clients_push_offline_through_four_workers() {
    let server = Server::start(Repo::copy_of("driver_stats"), &["--workers", "4", "--no-access-log"]);
    let before = drivers(server.repo.path()).len();
    std::thread::scope(|scope| {
        for client in 0..4 {
            let port = server.port;
            scope.spawn(move || {
                for row in 0..15 {
                    let mut connection = common::Client::connect(port);
                    let got = connection.post("/push", &body(10_000 + client * 100 + row, "offline"));
                    assert_eq!(got.status, 200, "{}", got.text());
                }
            });
        }
    });
    let found = pushed(server.repo.path());
    assert_eq!(found.len(), 60);
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 60);
    assert_eq!(drivers(server.repo.path()).len(), before + 60);
}

#[test]
fn concurrent_online_pushes_lose_nothing_and_bad_ones_store_nothing() {
    let server = Server::start(Repo::copy_of("driver_stats"), &["--workers", "2", "--no-access-log"]);
    std::thread::scope(|scope| {
        for client in 0..4_i64 {
            let port = server.port;
            scope.spawn(move || {
                let mut connection = common::Client::connect(port);
                for row in 0..25 {
                    let driver = 20_000 + client * 100 + row;
                    // Every second client sends a row that cannot be stored behind one that can.
                    let bad = client % 2 == 1;
                    let body = format!(
                        r#"{{"push_source_name":"driver_stats_push_source","df":{{"driver_id":[{driver},{}],
                        "event_timestamp":"2023-02-25T10:00:00Z","created":"2023-02-25","conv_rate":0.5,
                        "acc_rate":0.5,"avg_daily_trips":1,"string_feature":"x"}}}}"#,
                        if bad { "null" } else { "1" }
                    );
                    let got = connection.post("/push", &body);
                    assert_eq!(got.status, if bad { 500 } else { 200 }, "{}", got.text());
                }
            });
        }
    });
    let connection = rusqlite::Connection::open(server.repo.path().join("data/online_store.db")).unwrap();
    let count: i64 = connection
        .query_row("SELECT count(DISTINCT entity_key) FROM driver_stats_driver_hourly_stats_fresh", [], |r| {
            r.get(0)
        })
        .unwrap();
    // 50 drivers of the good clients, and driver 1.
    assert_eq!(count, 51);
}

#[test]
fn a_batch_is_written_by_size_and_by_age() {
    let server = Server::start(batching(20, 3600), &["--workers", "2", "--no-access-log"]);
    let mut client = server.client();
    for row in 0..19 {
        let got = client.post("/push", &body(10_000 + row, "offline"));
        assert_eq!((got.status, got.text().as_str()), (202, ""));
    }
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(pushed(server.repo.path()), [0_i64; 0], "not yet");
    // Online at once, offline later.
    assert_eq!(client.post("/push", &body(10_019, "online_and_offline")).status, 202);
    let read =
        r#"{"features":["driver_hourly_stats_fresh:avg_daily_trips"],"entities":{"driver_id":[10019]}}"#;
    assert!(client.post("/get-online-features", read).text().contains("[10019]"));
    eventually("the batch is full", || pushed(server.repo.path()).len() == 20);
    drop(server);

    let server = Server::start(batching(1000, 1), &["--no-access-log"]);
    let mut client = server.client();
    assert_eq!(client.post("/push", &body(10_000, "offline")).status, 202);
    eventually("the batch is old", || pushed(server.repo.path()).len() == 1);
    let refused = client.post("/push", r#"{"push_source_name":"nope","df":{"a":[1]},"to":"offline"}"#);
    assert_eq!(refused.status, 422);
    let wrong = client.post("/push", &body(10_001, "offline").replace("\"conv_rate\"", "\"rate\""));
    assert!(wrong.text().contains("missing_expected_columns: ['conv_rate']"), "{}", wrong.text());
}

#[test]
fn a_stopping_server_writes_what_waits() {
    let mut server = Server::start(batching(1000, 3600), &["--no-access-log"]);
    assert_eq!(server.client().post("/push", &body(10_000, "offline")).status, 202);
    server.signal(Signal::SIGTERM);
    server.wait();
    assert_eq!(pushed(server.repo.path()), [10_000]);
}

#[test]
fn rows_that_fit_no_more_are_set_aside() {
    let mut server = Server::start(batching(1000, 3600), &["--no-access-log"]);
    assert_eq!(server.client().post("/push", &body(10_000, "offline")).status, 202);
    assert_eq!(server.client().post("/push", &body(10_001, "offline")).status, 202);
    // One push is damaged while it waits.
    let spool = server.repo.path().join(".feast_prefork_spool");
    let folder = fs::read_dir(&spool).unwrap().next().unwrap().unwrap().path();
    let mut files: Vec<_> =
        fs::read_dir(folder.join("pending")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let text = fs::read_to_string(&files[0]).unwrap();
    fs::write(&files[0], text.replace("[0.5]", "[\"x\"]")).unwrap();
    server.signal(Signal::SIGTERM);
    server.wait();
    assert_eq!(pushed(server.repo.path()), [10_001]);
    let names: Vec<String> = fs::read_dir(folder.join("rejected"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let reason = names.iter().find(|name| name.ends_with(".reason")).unwrap();
    let reason = fs::read_to_string(folder.join("rejected").join(reason)).unwrap();
    assert_eq!(reason, "Failed to parse string: 'x' as a scalar of type float\n");
}

/// Kills whatever of the server is alive: its children, and then itself.
fn kill_tree(server: &Server) {
    let children = common::children(server.pid());
    let _ = kill(Pid::from_raw(server.pid()), Signal::SIGKILL);
    for child in children {
        let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
    }
}

#[test]
fn every_accepted_row_is_there_exactly_once_whatever_dies() {
    let accepted = std::sync::Mutex::new(BTreeSet::new());
    let next = AtomicUsize::new(10_000);
    let mut repo = Some(batching(7, 1));
    let mut round = 0;
    while accepted.lock().unwrap().len() < 200 {
        let server = Server::start(repo.take().unwrap(), &["--workers", "2", "--no-access-log"]);
        let port = server.port;
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut client = common::Client::try_connect(port).ok();
                    while !stop.load(Ordering::Relaxed) {
                        let driver = next.fetch_add(1, Ordering::Relaxed) as i64;
                        let Some(open) = &mut client else {
                            client = common::Client::try_connect(port).ok();
                            std::thread::sleep(Duration::from_millis(5));
                            continue;
                        };
                        let text = body(driver, "offline");
                        let bytes = common::encode(
                            "POST",
                            "/push",
                            &[("content-type", "application/json")],
                            text.as_bytes(),
                        );
                        let answered = open.try_exchange(&bytes);
                        match answered {
                            Some(202) => {
                                accepted.lock().unwrap().insert(driver);
                            }
                            Some(status) => panic!("status {status}"),
                            None => client = None,
                        }
                        std::thread::sleep(Duration::from_millis(3));
                    }
                });
            }
            // Workers and jobs die at some moment, and then everything.
            for _ in 0..3 {
                std::thread::sleep(Duration::from_millis(100 + 37 * (round % 7)));
                let children = common::children(server.pid());
                if !children.is_empty() {
                    let victim = children[round as usize % children.len()];
                    let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
                }
                round += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        kill_tree(&server);
        repo = Some(server.into_repo());
        drivers(repo.as_ref().unwrap().path());
        assert!(round < 300, "it takes too long");
    }
    // A last one writes what is left.
    let mut server = Server::start(repo.take().unwrap(), &["--no-access-log"]);
    server.signal(Signal::SIGTERM);
    server.wait();
    let found = pushed(server.repo.path());
    let once: BTreeSet<i64> = found.iter().copied().collect();
    assert_eq!(once.len(), found.len(), "rows are there twice");
    let lost: Vec<i64> = accepted.lock().unwrap().difference(&once).copied().collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
}

#[test]
fn a_killed_materialization_leaves_everything_usable() {
    let server = Server::start(Repo::copy_of("driver_stats"), &["--no-access-log"]);
    let request =
        r#"{"start_ts":"2023-02-03","end_ts":"2023-02-10T12:00:00","feature_views":["driver_hourly_stats"]}"#;
    let read = r#"{"features":["driver_hourly_stats:avg_daily_trips"],"entities":{"driver_id":[1001]}}"#;
    for round in 0..8_u64 {
        let mut client = server.client();
        std::thread::scope(|scope| {
            let asked = scope.spawn(move || client.post("/materialize", request));
            // The job is whoever is not a worker.
            let workers = server.workers();
            let mut found = None;
            for _ in 0..500 {
                found = common::children(server.pid()).into_iter().find(|pid| !workers.contains(pid));
                if found.is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            std::thread::sleep(Duration::from_micros(round * 700));
            if let Some(pid) = found {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let got = asked.join().unwrap();
            assert!([200, 500].contains(&got.status), "{}", got.text());
        });
        // The registry can be read, the view can be read and run again.
        let got = server.client().post("/get-online-features", read);
        assert_eq!(got.status, 200, "{}", got.text());
    }
    let got = server.client().post("/materialize", request);
    assert_eq!(got.status, 200, "{}", got.text());
    assert!(server.client().post("/get-online-features", read).text().contains("[131]"));
    let bytes = fs::read(server.repo.path().join("data/registry.db")).unwrap();
    let state =
        feast_prefork::registry::edit::state_of(&bytes, "driver_stats", "driver_hourly_stats").unwrap();
    assert_eq!(state, Some(4));
}

#[test]
fn a_stop_answers_those_whose_run_has_not_begun() {
    let mut server = Server::start_with(
        Repo::copy_of("driver_stats"),
        &["--no-access-log"],
        &[("FEAST_MATERIALIZE_MAX_WORKERS", "1")],
    );
    let state = |server: &Server, view: &str| {
        let bytes = fs::read(server.repo.path().join("data/registry.db")).unwrap();
        feast_prefork::registry::edit::state_of(&bytes, "driver_stats", view).unwrap()
    };
    let lock = server.repo.path().join("data/registry.db.lock");
    let _held =
        feast_prefork::jobs::materialize::try_lock_view(&lock, "driver_hourly_stats").unwrap().unwrap();
    let request = |view: &str| {
        format!(r#"{{"start_ts":"2023-02-03","end_ts":"2023-02-10T12:00:00","feature_views":["{view}"]}}"#)
    };
    // One that runs, and waits for the view; one that waits for it; one in the background.
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = server.client();
        let body = request("driver_hourly_stats");
        client.send(&common::encode("POST", "/materialize", &[], body.as_bytes()));
        clients.push(client);
        std::thread::sleep(Duration::from_millis(200));
    }
    let other = "driver_hourly_stats_fresh";
    let got = server.client().post("/materialize?async=true", &request(other));
    assert_eq!(got.status, 202, "{}", got.text());
    assert_eq!(state(&server, other), Some(3));
    server.signal(Signal::SIGTERM);
    for client in &mut clients {
        let got = client.receive("POST").unwrap().unwrap();
        assert_eq!(got.status, 503, "{}", got.text());
        assert!(got.text().contains("The server stops; nothing was"), "{}", got.text());
    }
    // An answer that comes before the worker stops keeps its connection.
    drop(clients);
    server.wait();
    assert_ne!(state(&server, other), Some(3));
}

#[test]
fn a_view_whose_run_died_with_its_server_is_served_by_the_next_one() {
    let server = Server::start(Repo::copy_of("driver_stats"), &["--no-access-log"]);
    let view = "driver_hourly_stats";
    let request =
        format!(r#"{{"start_ts":"2023-02-03","end_ts":"2023-02-10T12:00:00","feature_views":["{view}"]}}"#);
    assert_eq!(server.client().post("/materialize", &request).status, 200);
    let state = |repo: &Path| {
        let bytes = fs::read(repo.join("data/registry.db")).unwrap();
        feast_prefork::registry::edit::state_of(&bytes, "driver_stats", view).unwrap()
    };
    let lock = server.repo.path().join("data/registry.db.lock");
    let held = feast_prefork::jobs::materialize::try_lock_view(&lock, view).unwrap().unwrap();
    assert_eq!(server.client().post("/materialize?async=true", &request).status, 202);
    assert_eq!(state(server.repo.path()), Some(3));
    kill_tree(&server);
    let repo = server.into_repo();
    // Whoever holds the view is at work on it, and is left alone.
    let server = Server::start(repo, &["--no-access-log"]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(state(server.repo.path()), Some(3));
    kill_tree(&server);
    drop(held);
    let server = Server::start(server.into_repo(), &["--no-access-log", "--strict-lifecycle"]);
    eventually("the view is as it was", || state(server.repo.path()) == Some(4));
    let read = format!(r#"{{"features":["{view}:avg_daily_trips"],"entities":{{"driver_id":[1001]}}}}"#);
    eventually("it is served", || server.client().post("/get-online-features", &read).status == 200);
}

#[test]
fn a_synchronous_run_outlives_the_worker_that_took_it() {
    let server = Server::start(
        Repo::copy_of("driver_stats"),
        &["--no-access-log", "--max-requests", "3", "--max-requests-jitter", "0"],
    );
    // Somebody else holds the view, so that the run has to wait.
    let lock = server.repo.path().join("data/registry.db.lock");
    let held =
        feast_prefork::jobs::materialize::try_lock_view(&lock, "driver_hourly_stats").unwrap().unwrap();
    let request =
        r#"{"start_ts":"2023-02-03","end_ts":"2023-02-10T12:00:00","feature_views":["driver_hourly_stats"]}"#;
    let first = server.workers();
    std::thread::scope(|scope| {
        let mut client = server.client();
        let asked = scope.spawn(move || client.post("/materialize", request));
        std::thread::sleep(Duration::from_millis(100));
        for _ in 0..12 {
            assert_eq!(server.client().get("/health").status, 200);
        }
        eventually("the worker has gone", || server.workers().iter().all(|pid| !first.contains(pid)));
        assert!(!asked.is_finished());
        drop(held);
        let got = asked.join().unwrap();
        assert_eq!((got.status, got.text().as_str()), (200, "null"));
    });
}

#[test]
fn concurrent_runs_leave_a_whole_registry() {
    let server = Server::start(Repo::copy_of("driver_stats"), &["--workers", "3", "--no-access-log"]);
    let views = ["driver_hourly_stats", "driver_hourly_stats_fresh", "trip_counter", "trip_counter_small"];
    std::thread::scope(|scope| {
        for view in views {
            let port = server.port;
            scope.spawn(move || {
                for _ in 0..5 {
                    let request = format!(
                        r#"{{"start_ts":"2023-02-03","end_ts":"2023-02-10","feature_views":["{view}"]}}"#
                    );
                    let got = common::Client::connect(port).post("/materialize", &request);
                    assert_eq!(got.status, 200, "{}", got.text());
                }
            });
        }
    });
    let bytes = fs::read(server.repo.path().join("data/registry.db")).unwrap();
    let registry = feast_prefork::registry::model::Registry::decode(&bytes).unwrap();
    assert_eq!(registry.views.len(), 8);
    let done = registry.views.iter().filter(|view| view.materialized_until.is_some()).count();
    assert_eq!(done, 4);
}
