//! The write side against recordings of the reference: every answer, what can be read afterwards, the registry
//! and the whole store.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::redis::Redis;
use common::{replay, Client, Repo, Server};
use serde_json::Value;

/// Recorded answers that are decided otherwise, with the reason.
const DECIDED: &[(&str, &str)] = &[(
    "push: to both, the offline half fails, the online half stays",
    "all checks come first: a push that fails stores nothing",
)];

/// Values in Redis that a later request of the recording did not overwrite, because its rows are not newer.
const KEPT: usize = 70;

#[derive(Clone, Copy, PartialEq)]
enum Store {
    Sqlite,
    Redis,
}

/// The columns of an answer, by name.
fn columns(body: &Value) -> BTreeMap<String, Value> {
    let names = body["metadata"]["feature_names"].as_array().unwrap();
    let results = body["results"].as_array().unwrap();
    names
        .iter()
        .zip(results)
        .map(|(name, result)| (name.as_str().unwrap().to_owned(), result.clone()))
        .collect()
}

/// Compares what is read now with the recording. Redis keeps what is not older: rows that differ because of that are
/// counted in `kept`.
fn read_back(client: &mut Client, read: &Value, store: Store, kept: &mut usize) -> Option<String> {
    let got = replay::send(client, &with_text(&read["request"]));
    let wanted = &read["response"];
    if u64::from(got.status) != wanted["status"].as_u64().unwrap() {
        return Some(format!("status {}: {}", got.status, got.text()));
    }
    let Some(wanted) = wanted.get("columns") else {
        return (got.text() != wanted["body_text"].as_str().unwrap()).then(|| got.text());
    };
    let body: Value = serde_json::from_slice(&got.body).unwrap();
    let found = columns(&body);
    for (name, column) in wanted.as_object().unwrap() {
        let mut column = column.clone();
        if store == Store::Redis {
            for status in column["statuses"].as_array_mut().unwrap() {
                *status = Value::from("PRESENT");
            }
            if found[name]["statuses"] != column["statuses"] {
                return Some(format!("{name}: {} instead of {column}", found[name]));
            }
            for row in 0..column["values"].as_array().unwrap().len() {
                let time =
                    |column: &Value| column["event_timestamps"][row].as_str().unwrap()[..19].to_owned();
                if found[name]["values"][row] == column["values"][row] && time(&found[name]) == time(&column)
                {
                    continue;
                }
                if time(&found[name]) < time(&column) {
                    return Some(format!("{name}: {} instead of {column}", found[name]));
                }
                *kept += 1;
            }
            continue;
        }
        if found.get(name) != Some(&column) {
            return Some(format!("{name}: {:?} instead of {column}", found.get(name)));
        }
    }
    None
}

fn with_text(request: &Value) -> Value {
    let mut request = request.clone();
    if let Some(body) = request.get("body") {
        request["body_text"] = Value::from(body.to_string());
    }
    if request.get("headers").is_none() {
        request["headers"] = serde_json::json!({"content-type": "application/json"});
    }
    request
}

fn check_registry(repo: &Path, wanted: &Value) -> Option<String> {
    use feast_prefork::registry::{edit, wire};
    let bytes = fs::read(repo.join("data/registry.db")).unwrap();
    for (view, wanted) in wanted.as_object().unwrap() {
        let state = edit::state_of(&bytes, "driver_stats", view).unwrap();
        if wanted["state"].is_u64() && state != wanted["state"].as_u64() {
            return Some(format!("{view}: state {state:?}"));
        }
        let mut intervals = Vec::new();
        for (_, _, message) in wire::raw_fields(&bytes).unwrap().into_iter().filter(|(n, _, _)| *n == 6) {
            let fields = wire::raw_fields(message.bytes()).unwrap();
            let spec = wire::raw_fields(fields[0].2.bytes()).unwrap();
            if spec[0].2.str().unwrap() != view {
                continue;
            }
            for (_, _, meta) in fields.iter().filter(|(n, _, _)| *n == 2) {
                for (_, _, interval) in
                    wire::raw_fields(meta.bytes()).unwrap().into_iter().filter(|(n, _, _)| *n == 3)
                {
                    let times: Vec<(i64, i32)> = wire::raw_fields(interval.bytes())
                        .unwrap()
                        .into_iter()
                        .map(|(_, _, time)| {
                            feast_prefork::registry::model::seconds_and_nanos(time.bytes()).unwrap()
                        })
                        .collect();
                    intervals.push(times);
                }
            }
        }
        if wanted["intervals"].as_u64().is_some_and(|count| count != intervals.len() as u64) {
            return Some(format!("{view}: {} intervals", intervals.len()));
        }
        for (index, wanted) in wanted["last"].as_array().into_iter().flatten().enumerate() {
            if wanted.is_null() {
                continue;
            }
            let Some(last) = intervals.last().map(|last: &Vec<(i64, i32)>| last[index]) else {
                return Some(format!("{view}: no interval"));
            };
            if serde_json::json!([last.0, last.1]) != *wanted {
                return Some(format!("{view}: interval {intervals:?}"));
            }
        }
    }
    None
}

/// The whole SQLite store as the recording has it.
fn stored(repo: &Path) -> Value {
    let connection = rusqlite::Connection::open(repo.join("data/online_store.db")).unwrap();
    let mut tables = connection.prepare("SELECT name FROM sqlite_master WHERE type = 'table'").unwrap();
    let names: Vec<String> = tables.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let mut all = serde_json::Map::new();
    for table in names {
        let mut entities = serde_json::Map::new();
        let sql = format!(
            "SELECT entity_key, feature_name, value, value_text, event_ts, created_ts FROM \"{table}\""
        );
        let mut rows = connection.prepare(&sql).unwrap();
        let mut rows = rows.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let hex =
                |bytes: Vec<u8>| bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02X}"));
            let value = serde_json::json!([
                hex(row.get(2).unwrap()),
                row.get::<_, Option<String>>(3).unwrap(),
                row.get::<_, i64>(4).unwrap(),
                row.get::<_, Option<i64>>(5).unwrap()
            ]);
            let entity = entities.entry(hex(row.get(0).unwrap())).or_insert_with(|| serde_json::json!({}));
            entity[row.get::<_, String>(1).unwrap()] = value;
        }
        let name = table.strip_prefix("driver_stats_").unwrap_or(&table).to_owned();
        all.insert(name, Value::Object(entities));
    }
    Value::Object(all)
}

/// Replays every case in order.
fn replay_all(server: &Server, store: Store) -> usize {
    let text = fs::read_to_string(common::fixture("driver_stats/write_cases.jsonl")).unwrap();
    let mut failures = Vec::new();
    let mut client = server.client();
    let mut replayed = 0;
    let mut kept = 0;
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let name = case["name"].as_str().unwrap();
        replayed += 1;
        let decided = DECIDED.iter().any(|(decided, _)| *decided == name);
        let mut problem = None;
        if case.get("request").is_some() {
            let got = replay::send(&mut client, &with_text(&case["request"]));
            let wanted = &case["response"];
            let text = wanted["body_text"].as_str().unwrap_or_default();
            let no_time = text.contains("NaTType") && store == Store::Redis;
            if no_time {
                // A created time is not stored there.
                let fine = if name.contains("created") { 200 } else { 500 };
                problem = (got.status != fine).then(|| format!("status {}: {}", got.status, got.text()));
            } else if u64::from(got.status) != wanted["status"].as_u64().unwrap() {
                problem =
                    Some(format!("status {} instead of {}: {}", got.status, wanted["status"], got.text()));
            } else if case["match"] == "exact" || !text.starts_with("\"Type ") {
                if got.header("content-type") != wanted["content_type"].as_str() {
                    problem = Some(format!("content type {:?}", got.header("content-type")));
                } else if got.text() != text {
                    problem = Some(format!("\n     got {}\n  wanted {text}", got.text()));
                }
            }
        }
        for read in case["readback"].as_array().unwrap() {
            let quirk = read["tags"].as_array().is_some_and(|tags| tags.iter().any(|tag| tag == "quirk"));
            // A row without a created time is stored there.
            let by_design = store == Store::Redis && name.contains("created");
            if quirk || decided || by_design {
                continue;
            }
            let until = Instant::now() + Duration::from_secs(read["within_s"].as_u64().unwrap_or(0));
            let mut found = read_back(&mut client, read, store, &mut kept);
            while found.is_some() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
                found = read_back(&mut client, read, store, &mut kept);
            }
            problem = problem.or(found);
        }
        if let Some(wanted) = case["check"].get("registry") {
            let until = Instant::now() + Duration::from_secs(10);
            let mut found = check_registry(server.repo.path(), wanted);
            while found.is_some() && Instant::now() < until && name.contains("sync") {
                std::thread::sleep(Duration::from_millis(20));
                found = check_registry(server.repo.path(), wanted);
            }
            problem = problem.or(found);
        }
        if case["check"].get("expected_online").is_some() && store == Store::Sqlite {
            let wanted = fs::read_to_string(common::fixture("driver_stats/expected_online.json")).unwrap();
            let wanted: Value = serde_json::from_str(&wanted).unwrap();
            if stored(server.repo.path()) != wanted["tables"] {
                problem = Some("the store differs".to_owned());
            }
        }
        if let Some(problem) = problem {
            failures.push(format!("{name}: {problem}"));
        }
    }
    assert_eq!(replayed, 168);
    assert!(failures.is_empty(), "{} of {replayed}:\n{}", failures.len(), failures.join("\n"));
    kept
}

#[test]
fn recorded_writes_with_one_worker() {
    let server = Server::start(Repo::copy_of("driver_stats"), &["--no-access-log"]);
    assert_eq!(replay_all(&server, Store::Sqlite), 0);
}

#[test]
fn recorded_writes_with_four_workers_that_are_recycled() {
    let args = ["--no-access-log", "--workers", "4", "--max-requests", "5", "--max-requests-jitter", "0"];
    let server = Server::start(Repo::copy_of("driver_stats"), &args);
    assert_eq!(replay_all(&server, Store::Sqlite), 0);
}

#[test]
fn recorded_writes_to_redis() {
    let redis = Redis::start(&[]);
    let repo = Repo::copy_of("driver_stats");
    let yaml = format!(
        "project: driver_stats\nregistry: data/registry.db\nprovider: local\nonline_store: {{type: redis, \
         connection_string: '{}'}}\noffline_store: {{type: file}}\nentity_key_serialization_version: 3\n",
        redis.address()
    );
    fs::write(repo.path().join("feature_store.yaml"), yaml).unwrap();
    let server = Server::start(repo, &["--no-access-log"]);
    let kept = replay_all(&server, Store::Redis);
    assert_eq!(kept, KEPT, "values that stayed because they are not older");
}
