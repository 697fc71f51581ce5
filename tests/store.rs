//! Changing files under a running server: the registry, and the SQLite store.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{eventually, Client, Repo, Server};
use feast_prefork::registry::wire::{self, Fields, Payload};
use rusqlite::Connection;

/// The fixture's registry without the service called `name`.
fn without_service(original: &[u8], name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for field in Fields::new(original) {
        let (number, payload) = field.unwrap();
        let Payload::Bytes(bytes) = payload else { continue };
        let needle = [&[0x0a, name.len() as u8], name.as_bytes()].concat();
        if number == 7 && bytes.windows(needle.len()).any(|window| window == needle) {
            continue;
        }
        wire::put_bytes(&mut out, number, bytes);
    }
    assert!(out.len() < original.len());
    out
}

/// Replaces a file as a careful writer does.
fn replace(path: &Path, bytes: &[u8]) {
    let beside = path.with_extension("new");
    fs::write(&beside, bytes).unwrap();
    fs::rename(&beside, path).unwrap();
}

fn service(client: &mut Client, name: &str) -> u16 {
    let body = format!(r#"{{"feature_service":"{name}","entities":{{"driver_id":[1001]}}}}"#);
    client.post("/get-online-features", &body).status
}

#[test]
fn a_new_registry_is_noticed_by_the_next_new_request() {
    let server = Server::start(Repo::copy_of("kitchen_sink"), &["--registry-ttl-sec", "0"]);
    let file = server.repo.path().join("registry.db");
    let original = fs::read(&file).unwrap();
    let mut client = server.client();
    assert_eq!(service(&mut client, "svc_driver"), 200);
    replace(&file, &without_service(&original, "svc_driver"));
    // A known request keeps its meaning until something else looks at the file.
    assert_eq!(service(&mut client, "svc_driver"), 200);
    assert_eq!(client.get("/health").status, 200);
    assert_eq!(service(&mut client, "svc_driver"), 404);
    replace(&file, &original);
    assert_eq!(service(&mut client, "svc_driver"), 200, "an unknown request looks itself");
}

#[test]
fn the_timer_finds_a_new_registry_without_any_request() {
    let server = Server::start(Repo::copy_of("kitchen_sink"), &["-r", "1", "-w", "2"]);
    let file = server.repo.path().join("registry.db");
    let original = fs::read(&file).unwrap();
    let mut clients = [server.client(), server.client()];
    for client in &mut clients {
        assert_eq!(service(client, "svc_driver"), 200);
    }
    replace(&file, &without_service(&original, "svc_driver"));
    for client in &mut clients {
        eventually("the service is gone", || service(client, "svc_driver") == 404);
    }
}

#[test]
fn a_broken_or_missing_registry_keeps_the_last_good_one() {
    let mut server = Server::start(Repo::copy_of("kitchen_sink"), &["-r", "1", "-w", "2"]);
    let file = server.repo.path().join("registry.db");
    let original = fs::read(&file).unwrap();
    let mut client = server.client();
    fs::write(&file, b"\xff\xff not a registry").unwrap();
    server.wait_for_log("Wire format was corrupt; serving the registry loaded before");
    assert_eq!(service(&mut client, "svc_driver"), 200);
    fs::remove_file(&file).unwrap();
    assert_eq!(service(&mut client, "svc_subset"), 500, "a key is missing: the service is known");
    // A worker born now inherits the last good registry, too.
    let before = server.workers();
    for &pid in &before {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    eventually("new workers", || {
        let now = server.workers();
        now.len() == 2 && now.iter().all(|pid| !before.contains(pid))
    });
    let mut client = server.client();
    assert_eq!(service(&mut client, "svc_driver"), 200);
    // The timer goes on: the file is found when it is back.
    replace(&file, &without_service(&original, "svc_driver"));
    eventually("the service is gone", || service(&mut client, "svc_driver") == 404);
}

const ONE: &str = r#"{"features":["driver_stats:nickname"],"entities":{"driver_id":[1001]}}"#;

#[test]
fn event_times_follow_the_zone_of_the_process() {
    for (zone, shown) in [("UTC", "2024-01-01T12:00:00Z"), ("America/New_York", "2024-01-01T07:00:00Z")] {
        let server = Server::start_with(Repo::copy_of("kitchen_sink"), &[], &[("TZ", zone)]);
        let text = server.client().post("/get-online-features", ONE).text();
        assert!(text.contains(shown), "{zone}: {text}");
    }
}

#[test]
fn a_locked_store_delays_only_those_who_need_it() {
    let server = Server::start(Repo::copy_of("kitchen_sink"), &["-w", "1"]);
    let writer = Connection::open(server.repo.path().join("online_store.db")).unwrap();
    writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let (mut waiting, mut other) = (server.client(), server.client());
    waiting.send(&common::encode("POST", "/get-online-features", &[], ONE.as_bytes()));
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(200) {
        assert_eq!(other.get("/health").status, 200);
    }
    writer.execute_batch("COMMIT").unwrap();
    let answer = waiting.receive("POST").unwrap().unwrap();
    assert!(answer.text().contains("\"Ann\""), "{}", answer.text());

    writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let start = Instant::now();
    let answer = waiting.post("/get-online-features", ONE);
    assert_eq!((answer.status, answer.text().as_str()), (500, "\"database is locked\""));
    let waited = start.elapsed();
    assert!(waited > Duration::from_secs(4) && waited < Duration::from_secs(8), "{waited:?}");
}

#[test]
fn readers_never_hold_a_writer_up() {
    let server = Server::start(Repo::copy_of("kitchen_sink"), &["-w", "2"]);
    let load = common::load::Load::start(server.port, 4, 0);
    let writer = Connection::open(server.repo.path().join("online_store.db")).unwrap();
    writer.busy_timeout(Duration::from_secs(5)).unwrap();
    for round in 0..50 {
        let sql = "UPDATE kitchen_sink_driver_stats SET created_ts = ?1 WHERE feature_name = 'rating'";
        assert!(writer.execute(sql, [round]).unwrap() > 0);
    }
    let counts = load.stop();
    assert_eq!(counts.failed.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[test]
fn a_store_that_appears_later_is_used() {
    let server = Server::start(Repo::copy_of("kitchen_sink"), &[]);
    let file = server.repo.path().join("online_store.db");
    let bytes = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    let mut client = server.client();
    let answer = client.post("/get-online-features", ONE);
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (500, "\"no such table: kitchen_sink_driver_stats\"")
    );
    assert!(!file.exists(), "a reader makes no file");
    replace(&file, &bytes);
    assert_eq!(client.post("/get-online-features", ONE).status, 200);
}

#[test]
fn a_store_in_wal_mode_is_read() {
    let repo = Repo::copy_of("kitchen_sink");
    let writer = Connection::open(repo.path().join("online_store.db")).unwrap();
    let mode: String = writer.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
    let server = Server::start(repo, &["-w", "2"]);
    let mut client = server.client();
    assert_eq!(client.post("/get-online-features", ONE).status, 200);
    let changed = writer
        .execute(
            "UPDATE kitchen_sink_driver_stats SET value = x'12025a7a' WHERE feature_name = 'nickname' \
             AND entity_key = (SELECT entity_key FROM kitchen_sink_driver_stats WHERE value = x'1203416e6e')",
            [],
        )
        .unwrap();
    assert_eq!(changed, 1);
    assert!(client.post("/get-online-features", ONE).text().contains("\"Zz\""), "a commit is seen at once");
}
